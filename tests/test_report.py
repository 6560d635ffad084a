"""Pictures and the page, on the demo's scenes: `show`, `report`, `prompts`."""

import base64
import copy
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

from semples_plugin import BackgroundPrompts, FrozenClip
from semples_plugin.cli.app import main
from semples_plugin.demo.data import CONTEXTS, OBJECTS, make_scenes
from semples_plugin.demo.export import write_scenes, write_stage
from semples_plugin.evaluation.folders import evaluate_folder, image_iou
from semples_plugin.prompt_quality import ClassQuality, Nearness
from semples_plugin.viz.curves import draw_curve
from semples_plugin.viz.examples import class_colours, describe_image, draw_image, gain_of, ranked
from semples_plugin.viz.overlays import CLASSES, ERRORS, draw_grid, fitted, outline_labels, overlay_errors
from semples_plugin.viz.prompt_maps import VOCABULARY, nearest_words, where_clip_sees
from semples_plugin.viz.report import prompt_panels, write_report
from semples_plugin.viz.tables import describe_words, format_classes, format_percent


@pytest.fixture(scope="module")
def clip():
    return FrozenClip.load("demo")


@pytest.fixture(scope="module")
def prompts(clip):
    """Prompts that were given, as one word each, the contexts that the objects keep company with."""
    given = BackgroundPrompts(len(OBJECTS), 1, clip.text_width)
    given.vectors.data[:, 0] = clip.model.token_embedding(clip.tokenizer(list(CONTEXTS)))[:, 1].detach()
    given.check_belongs_to(clip, OBJECTS)
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


def test_classes_look_like_no_error_and_like_no_other_class():
    colours = np.array([*ERRORS.values(), *CLASSES])
    apart = np.abs(colours[:, None] - colours[None]).sum(2) + 999 * np.eye(len(colours))
    assert apart[:, len(ERRORS) :].min() > 120


def test_borders_are_in_the_colour_of_their_label():
    labels = np.zeros((40, 60), np.uint8)
    labels[5:20, 5:20], labels[10:30, 30:50] = 3, 7
    palette = np.zeros((256, 3), np.uint8)
    palette[3], palette[7] = CLASSES[0], CLASSES[1]
    image = np.full((40, 60, 3), 100, np.uint8)
    drawn = outline_labels(image, labels, palette)
    assert (image == 100).all() and (drawn[[12, 35], [12, 40]] == 100).all()  # inside and outside
    for label, colour in ((3, CLASSES[0]), (7, CLASSES[1])):
        ys, xs = np.nonzero((drawn == colour).all(2))
        assert len(ys) > 40 and (labels[ys, xs] == label).all()


def test_a_row_shows_which_class_is_where(world):
    evaluations = [judge(world, "before"), judge(world, "after")]
    several = next(name for name in evaluations[0].counts if len(class_colours(evaluations, name)) > 1)
    colours = class_colours(evaluations, several)
    mask = np.asarray(Image.open(world / "masks" / f"{several}.png"))
    assert set(colours) == {OBJECTS[k - 1] for k in np.unique(mask) if k} and len({*colours.values()}) == len(colours)
    image, shown, _, _, after, _ = draw_image(evaluations, several, world / "images")
    for name, colour in colours.items():
        inside = mask == OBJECTS.index(name) + 1
        expected = 0.35 * image[inside] + 0.65 * np.array(colour)
        assert np.abs(shown[inside] - expected).max() < 1
        assert (after[inside] == colour).all(1).any() and not (after[~inside] == colour).all(1).any()


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
    ious = [round(100 * image_iou(evaluation, last)) for evaluation in evaluations]
    assert f"IoU {ious[0]} -> {ious[1]} %" in describe_image(evaluations, last)
    assert gain_of(evaluations, last) <= gain_of(evaluations, order[0])
    assert main([*command, "--names", "0001", "nope"]) == 1
    assert "nope: not among the CAMs of" in capsys.readouterr().err
    assert main([*command[:-4], "--out", str(tmp_path / "a.txt")]) == 1
    assert "a.txt: expected a name that ends in a picture's format" in capsys.readouterr().err


def test_a_damaged_image_costs_its_row(world, tmp_path, clip, prompts, capsys):
    shutil.copytree(world / "images", tmp_path / "images")
    evaluations = [judge(world, "before"), judge(world, "after")]
    first, *_, last = ranked(evaluations)
    (tmp_path / "images" / f"{first}.png").write_bytes(b"no picture")
    command = ["show", str(world / "before"), "--masks", str(world / "masks"), "--images", str(tmp_path / "images"),
               "--out", str(tmp_path / "a.png"), "--quiet", "--names"]  # fmt: skip
    assert main([*command, first, last]) == 0 and "is damaged, or no image" in capsys.readouterr().err
    assert main([*command, last]) == 0
    assert main([*command, first]) == 1 and "no image to draw" in capsys.readouterr().err
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no picture")
    with pytest.warns(UserWarning, match="no image"):
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
    assert (tmp_path / "r.html.before").read_text() == page
    assert "kept an earlier r.html as r.html.before\n" in capsys.readouterr().err
    pictures = re.findall(r"data:image/jpeg;base64,([^\"]+)", page)
    assert all(base64.b64decode(picture)[:2] == b"\xff\xd8" for picture in pictures)
    assert len(pictures) == 4 * 6 + 3 * sum("learned prompt" in row for row in page.split('<div class="row"'))


def page_of(world, path, evaluations, titles):
    write_report(path / "r.html", evaluations, titles, images=world / "images", shown=1)
    return (path / "r.html").read_text()


def test_names_are_text_wherever_they_stand(world, tmp_path):
    hostile = """<script>alert('1')</script>" onerror="x"""
    names = [hostile, *OBJECTS[1:]]
    evaluation = evaluate_folder(world / "after", world / "masks", names, setting=0.5, progress=False)
    write_report(tmp_path / "r.html", [evaluation], [hostile], images=world / "images", shown=8, heading=hostile)
    tags, texts = [], []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.append((tag, dict(attributes)))
    parser.handle_data = texts.append
    parser.feed((tmp_path / "r.html").read_text())
    assert "script" not in dict(tags) and not any("onerror" in attributes for _, attributes in tags)
    # The page's title and heading, a tile, the table's head, note and row, captions, and the legends of some images.
    assert "".join(texts).count(hostile) > 7 and hostile in [attributes.get("alt") for _, attributes in tags]


def test_no_gain_is_neither_good_nor_bad(world, tmp_path):
    before, after = judge(world, "before"), judge(world, "after")
    for second, ways in ((before, {""}), (after, {"", "up"})):
        gains = re.findall(r'<td class="(up|down|)">([^<]*)</td>', page_of(world, tmp_path, [before, second], "ab"))
        assert {way for way, _ in gains} == ways
        assert all((way == "up") == text.startswith("+") and (way or text in ("0.0", "-")) for way, text in gains)
    assert [format_percent(value, "+") for value in (0.04, -0.04, 0.06, -0.06, float("nan"))] == [
        "0.0", "0.0", "+0.1", "-0.1", "-"
    ]  # fmt: skip


def test_gains_say_of_what_over_what(world, tmp_path):
    before, after = judge(world, "before"), judge(world, "after")
    last = format_classes([before, after, after], ["a", "b", "c"]).splitlines()[-1]
    assert last == "The gain is that of c over a; precision and recall are c's."
    page = page_of(world, tmp_path, [before, after], ["<1>", "2"])
    assert "<h3>gain: 2 over &lt;1&gt;</h3>" in page and "The gain is that of 2 over &lt;1&gt;." in page
    assert "<h2>Most gained, 2 over &lt;1&gt;</h2>" in page


def test_lines_of_pictures_have_no_holes(world, tmp_path):
    before, after = judge(world, "before"), judge(world, "after")
    for count in (1, 2, 3, 4):
        page = page_of(world, tmp_path, [before, after, after, after][:count], "abcd"[:count])
        rows = re.findall(r'<div class="row" style="--wide:(\d);--narrow:(\d)">(.*?)</div>', page)
        assert len(rows) == 2
        for wide, narrow, figures in rows:
            pictures = figures.count("<figure>")
            assert pictures == 2 + 2 * count and pictures % int(wide) == pictures % int(narrow) == 0 and int(wide) <= 6
        assert page.count('<i style="background:rgb') > 2 * len(ERRORS)  # each row's classes have their colours


def test_a_report_doubts_cams_of_other_classes(world, tmp_path):
    shutil.copytree(world / "masks", tmp_path / "masks")
    for path in (tmp_path / "masks").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask > 0, mask % 8 + 1, 0).astype(np.uint8)).save(path)
    with pytest.warns(UserWarning, match="only"):
        evaluation = evaluate_folder(world / "after", tmp_path / "masks", OBJECTS, setting=0.5, progress=False)
    page = page_of(world, tmp_path, [evaluation], ["after"])
    assert re.search(r'<p class="warn">[^<]*after: only \d+ of \d+ CAMs', page)


def test_near_words_are_the_contexts_that_prompts_hold(world, clip, prompts, capsys):
    words = nearest_words(prompts, clip, [*OBJECTS, *CONTEXTS], count=1)
    # The template makes "rails" of the vectors of "rails".
    assert [prompt.words[0][0] for prompt in words] == list(CONTEXTS) and words[0].quality.after.background == 0.9
    assert all(prompt.label < prompt.words[0][1] for prompt in words)
    assert main(["prompts", "words", str(world / "prompts.safetensors")]) == 0  # the file says which CLIP
    output = capsys.readouterr().out
    assert f"{OBJECTS[0]:16}" in output and f"{CONTEXTS[0]} 1.00" in output
    assert re.search(rf"^{OBJECTS[0]} +0\.\d\d +0\.90 +0\.31 +0\.88  {CONTEXTS[0]} 1.00", output, re.MULTILINE)
    assert "label: cosine of the prompt and its class's own label text" in output
    assert output.splitlines()[-1].startswith(
        "(b) went well: the prompts describe backgrounds (sim(u_b, v_b) 0.90, before"
    )
    assert not any(prompt.shared for prompt in words)
    one = copy.deepcopy(prompts)
    one.vectors.data[:] = one.vectors.data[:1].clone()
    one.quality = tuple(replace(quality, after=replace(quality.after, separation=0.3)) for quality in prompts.quality)
    assert "the shared prompt describes the object" in describe_words(nearest_words(one, clip))
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
