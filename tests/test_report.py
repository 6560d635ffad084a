"""Pictures and the page, on the demo's scenes: `show`, `report`, `prompts`."""

import base64
import re
import shutil

import numpy as np
import pytest
import torch

from semples_plugin import BackgroundPrompts
from semples_plugin.cams.curves import draw_curve
from semples_plugin.cams.drawing import ERRORS, draw_grid, fitted, overlay_errors
from semples_plugin.cams.folders import evaluate_folder, image_iou
from semples_plugin.cams.prompt_views import VOCABULARY, nearest_words, where_clip_sees
from semples_plugin.cams.report import prompt_panels
from semples_plugin.cams.show import describe_image, draw_image, gain_of, ranked
from semples_plugin.cli import main
from semples_plugin.demo.data import CONTEXTS, OBJECTS, make_scenes
from semples_plugin.demo.export import write_scenes, write_stage
from semples_plugin.demo.run import load_tiny_clip
from semples_plugin.prompt_quality import ClassQuality, Nearness


@pytest.fixture(scope="module")
def clip():
    return load_tiny_clip()


@pytest.fixture(scope="module")
def prompts(clip):
    """Prompts that were given, as one word each, the contexts that the objects keep company with."""
    given = BackgroundPrompts(len(OBJECTS), 1, clip.text_width)
    given.vectors.data[:, 0] = clip.model.token_embedding(clip.tokenizer(list(CONTEXTS)))[:, 1].detach()
    given.claim(clip, OBJECTS)
    before, after = Nearness(0.2, 0.2, 0.5, 0.2, "sea"), Nearness(0.9, 0.31, 0.875, 0.1, "sea")
    given.learned, given.quality = True, tuple(ClassQuality(name, before, after) for name in OBJECTS)
    return given


@pytest.fixture(scope="module")
def world(tmp_path_factory, prompts):
    """Scenes, and CAMs that hold the object and its context ("before") or the object alone ("after")."""
    folder = tmp_path_factory.mktemp("world")
    scenes = make_scenes(8, seed=3)
    write_scenes(folder, scenes)
    objects = np.stack([scenes.objects == k + 1 for k in range(8)], axis=1).astype(np.float32)
    contexts = np.stack([scenes.contexts == k + 1 for k in range(8)], axis=1).astype(np.float32)
    write_stage(folder / "before", scenes, 0.9 * objects + 0.8 * contexts)
    write_stage(folder / "after", scenes, 0.9 * objects)
    prompts.save(folder / "prompts.safetensors")
    return folder


def judge(world, name):
    return evaluate_folder(world / name, world / "masks", OBJECTS, setting=0.5, progress=False)


def test_errors_have_their_colours():
    predicted = np.array([[1, 0, 1, 2, 0, 1]])
    mask = np.array([[1, 1, 0, 1, 0, 255]])
    picture = overlay_errors(np.zeros((1, 6, 3), np.uint8), predicted, mask, opacity=1)
    assert [tuple(pixel) for pixel in picture[0].tolist()] == [*ERRORS.values(), (0, 0, 0), (0, 0, 0)]


def test_pictures_keep_their_shape_in_a_grid():
    assert fitted(np.zeros((40, 80, 3), np.uint8), 20).shape == (10, 20, 3)
    grid = draw_grid([[np.zeros((40, 80, 3), np.uint8)]], ["a"], cell=20)
    assert grid.shape == (26 + 10 + 8, 36, 3) and (grid[26:36, 8:28] == 0).all() and (grid[36:] == 255).all()
    named = draw_grid([[np.zeros((40, 80, 3), np.uint8), np.zeros((80, 40, 3), np.uint8)]], ["", ""], 20, ["a row"])
    assert (
        named.shape[0] == 26 + 26 + 20 + 8 and (named[30:50] < 200).any() and (named[52 + 5 : 52 + 15, 8:28] == 0).all()
    )


def test_a_row_shows_what_the_judgement_counted(world):
    before, after = judge(world, "before"), judge(world, "after")
    names = ranked([before, after])
    _, _, _, errors_before, _, errors_after = draw_image([before, after], names[0], world / "images")
    red = np.array(ERRORS["background taken for an object"])

    def redness(picture):
        return (np.abs(picture.astype(int) - red).sum(2) < 130).mean()

    assert redness(errors_before) > redness(errors_after) + 0.1
    assert after.miou == 1 and before.miou < 0.7


def test_show_draws_the_chosen_images(world, tmp_path, capsys):
    command = ["show", str(world / "before"), str(world / "after"), "--masks", str(world / "masks"), "--images",
               str(world / "images"), "--classes", str(world / "classes.txt"), "--out", str(tmp_path / "a.png"),
               "--setting", "0.5", "0.5", "--quiet"]  # fmt: skip
    assert main([*command, "--worst", "2"]) == 0
    last, first, _ = (line.split()[0] for line in capsys.readouterr().out.splitlines())
    evaluations = [judge(world, "before"), judge(world, "after")]
    order = ranked(evaluations)
    assert [last, first] == order[:-3:-1] and (tmp_path / "a.png").stat().st_size > 1000
    ious = [round(100 * image_iou(one, last)) for one in evaluations]
    assert f"IoU {ious[0]} -> {ious[1]} %" in describe_image(evaluations, last)
    assert gain_of(evaluations, last) <= gain_of(evaluations, order[0])
    assert main([*command, "--names", "0001", "nope"]) == 1
    assert "nope: not among the CAMs of" in capsys.readouterr().err
    assert main([*command[:-4], "--out", str(tmp_path / "a.txt")]) == 1
    assert "a.txt: expected a name that ends in a picture's format" in capsys.readouterr().err


def test_a_damaged_photograph_costs_its_row(world, tmp_path, clip, prompts, capsys):
    shutil.copytree(world / "images", tmp_path / "images")
    evaluations = [judge(world, "before"), judge(world, "after")]
    first, *_, last = ranked(evaluations)
    (tmp_path / "images" / f"{first}.png").write_bytes(b"no picture")
    command = ["show", str(world / "before"), "--masks", str(world / "masks"), "--images", str(tmp_path / "images"),
               "--out", str(tmp_path / "a.png"), "--quiet", "--names"]  # fmt: skip
    assert main([*command, first, last]) == 0 and "is damaged, or no photograph" in capsys.readouterr().err
    assert main([*command, last]) == 0
    assert main([*command, first]) == 1 and "no image to draw" in capsys.readouterr().err
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="no photograph"):
        assert prompt_panels(prompts, clip, evaluations[0], tmp_path / "images") == []


def test_titles_are_drawn_as_they_are(world):
    evaluations = [judge(world, "before"), judge(world, "after")]
    drawn = draw_curve(evaluations, ["_before", "100$ and 200$"], "svg").decode()
    assert "<!-- _before" in drawn.replace("<!--  _before", "<!-- _before")
    assert "<!-- 100$ and 200$" in drawn.replace(r"\$", "$")


def test_the_report_is_one_file_that_holds_everything(world, tmp_path, capsys):
    command = ["report", str(world / "before"), str(world / "after"), "--masks", str(world / "masks"), "--images",
               str(world / "images"), "--classes", str(world / "classes.txt"), "--out", str(tmp_path / "r.html"),
               "--prompts", str(world / "prompts.safetensors"), "--clip", "demo", "--quiet", "--shown", "2",
               "--titles", "<before>", "after", "--setting", "0.5", "0.5"]  # fmt: skip
    assert main(command) == 0
    page = (tmp_path / "r.html").read_text()
    outside = re.findall(r"""(?:src|href)=["'](?!data:|#)([^"']+)""", page)
    assert outside == [] and "&lt;before&gt;" in page and "<before>" not in page
    for words in (
        "Most gained",
        "Least gained",
        "What the prompts say",
        "Where CLIP sees them",
        "bootstrap",
        "<svg",
        "(b) went well: the prompts describe",
        "background: mean cosine with",
        "<td>0.31</td><td>0.88</td>",
    ):
        assert words in page
    assert "chosen on the masks" not in page
    other = [*command[: command.index("--classes")], *command[command.index("--classes") + 2 :], "--classes", "voc"]
    assert main(other) == 1 and "the CAMs were judged with aeroplane" in capsys.readouterr().err
    at = command.index("--prompts")
    worse = ["report", command[2], command[1], *command[3:at], *command[at + 2 :]]
    assert main(worse) == 0 and "Most lost" in (tmp_path / "r.html").read_text()
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert all(base64.b64decode(picture)[:2] == b"\xff\xd8" for picture in pictures)
    assert len(pictures) == 4 * 6 + 3 * sum("learned prompt" in row for row in page.split('<div class="row">'))


def test_near_words_are_the_contexts_that_prompts_hold(world, clip, prompts, capsys):
    found = nearest_words(prompts, clip, [*OBJECTS, *CONTEXTS], count=1)
    # The template makes "rails" of the vectors of "rails".
    assert [one.words[0][0] for one in found] == list(CONTEXTS) and found[0].quality.after.background == 0.9
    assert all(one.label < one.words[0][1] for one in found)
    assert main(["prompts", "words", str(world / "prompts.safetensors")]) == 0  # the file says which CLIP
    said = capsys.readouterr().out
    assert f"{OBJECTS[0]:16}" in said and f"{CONTEXTS[0]} 1.00" in said
    assert re.search(rf"^{OBJECTS[0]} +0\.\d\d +0\.90 +0\.31 +0\.88  {CONTEXTS[0]} 1.00", said, re.MULTILINE)
    assert "label: cosine of the prompt and its class's own label text; lower is safer" in said
    assert said.splitlines()[-1].startswith(
        "(b) went well: the prompts describe backgrounds (sim(u_b, v_b) 0.90, before"
    )
    with pytest.raises(ValueError, match="no words"):
        nearest_words(prompts, clip, [])
    with pytest.raises(ValueError, match="don't say their classes"):
        nearest_words(BackgroundPrompts(8, 1, clip.text_width), clip)
    assert len(set(VOCABULARY)) == len(VOCABULARY) > 100


def test_clip_sees_a_context_where_it_is(clip, prompts):
    scenes = make_scenes(60, seed=5)
    inside, outside = [], []
    features = prompts.encode(clip).detach()
    for i in range(60):
        (k,) = np.flatnonzero(scenes.labels[i])[:1]
        mask = scenes.contexts[i] == k + 1
        if not 0.15 < mask.mean() < 0.5:
            continue
        heat = where_clip_sees(clip, features[k : k + 1], scenes.images[i], grid=8)
        assert heat.shape == (1, 8, 8)
        grid = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(mask).float()[None], 8)[0].numpy()
        inside.append(heat[0][grid > 0.6].mean())
        outside.append(heat[0][grid < 0.1].mean())
    assert np.nanmean(inside) > np.nanmean(outside) + 0.05


def test_prompts_show_draws_a_learned_prompt_beside_others(world, tmp_path, capsys):
    command = ["prompts", "show", str(world / "prompts.safetensors"), "--clip", "demo", "--images",
               str(world / "images" / "0000.png"), "--out", str(tmp_path / "p.png")]  # fmt: skip
    assert main([*command, "--class", OBJECTS[2], "--beside", CONTEXTS[2]]) == 0
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert main([*command, "--class", "unicorn"]) == 1
    assert "no class 'unicorn'; they have" in capsys.readouterr().err
