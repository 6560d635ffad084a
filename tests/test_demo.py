"""The embedded world, and in it the paper's claim: matching and then refinement take false activation away."""

import dataclasses
import json
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import open_clip
import pytest
import torch

from semples_plugin import BackgroundPrompts, FrozenClip
from semples_plugin.cli.app import main
from semples_plugin.clip.tiny import FOLDER, VOCABULARY, TinyTokenizer, load_tiny_clip
from semples_plugin.demo import export, run, training
from semples_plugin.demo.data import CONTEXTS, OBJECTS, make_scenes
from semples_plugin.demo.rows import ROWS
from semples_plugin.demo.table import Judgement, explain
from semples_plugin.demo.train_tiny_clip import Recipe as ClipRecipe
from semples_plugin.demo.train_tiny_clip import measure, segment_map, train
from semples_plugin.demo.training import Recipe, World
from semples_plugin.evaluation.folders import evaluate_folder
from semples_plugin.prompt_learning.epochs import PromptHistory

SMALL = Recipe(train_images=48, test_images=24, baseline_steps=4, steps=3, prompt_length=4, prompt_steps=4)


@pytest.fixture(scope="module")
def scenes():
    return make_scenes(300, seed=5)


def test_a_seed_fixes_every_scene_whatever_the_count(scenes):
    first, other = make_scenes(3, seed=5), make_scenes(3, seed=6)
    for field in dataclasses.fields(first):
        assert np.array_equal(getattr(first, field.name), getattr(scenes, field.name)[:3])
    assert not np.array_equal(first.images, other.images)


def test_labels_name_the_objects_that_masks_show(scenes):
    for labels, objects in zip(scenes.labels, scenes.objects, strict=True):
        assert set(np.flatnonzero(labels) + 1) == set(np.unique(objects)) - {0}
    assert not (scenes.contexts.astype(bool) & scenes.objects.astype(bool)).any()


def test_objects_keep_company_with_their_contexts(scenes):
    single = scenes.labels.sum(1) == 1
    own = scenes.labels.argmax(1) + 1
    shares = (scenes.contexts == own[:, None, None]).mean((1, 2))[single]
    assert 0.68 < single.mean() < 0.82
    assert 0.07 < (scenes.objects[single] > 0).mean() < 0.11
    assert 0.84 < (shares > 0).mean() < 0.96
    # Prompts learn from what is left when the object is cut out: the context must stay in sight.
    assert 0.2 < np.median(shares[shares > 0]) < 0.4 and (shares[shares > 0] > 0.1).mean() > 0.95
    alone = make_scenes(100, seed=5, own_context=0.0)
    own = alone.labels.argmax(1) + 1
    assert not (alone.contexts == own[:, None, None])[alone.labels.sum(1) == 1].any()


def test_the_tokenizer_knows_whole_words():
    ids = TinyTokenizer()(["a photo of a train.", "Train <eot> zebra", "rails " * 100])
    assert ids.shape == (3, 77) and ids.dtype == torch.int64
    assert [VOCABULARY[i] for i in ids[0, :9]] == "<sos> a photo of a train . <eot> <pad>".split()
    assert [VOCABULARY[i] for i in ids[1, :7]] == "<sos> train <unk> <unk> <unk> <unk> <eot>".split()
    assert ids[2, -1] == ids.max() == len(VOCABULARY) - 1
    assert all(word in VOCABULARY for word in (*OBJECTS, *CONTEXTS))


def test_the_shipped_clip_measures_what_its_metrics_say():
    model = load_tiny_clip()
    assert type(model) is open_clip.CLIP
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 3.2e6
    report = json.loads((FOLDER / "metrics.json").read_text())
    metrics = measure(model, report["test_seed"])
    assert metrics == pytest.approx(report["metrics"], abs=5e-3)
    assert ClipRecipe(**report["recipe"]) == ClipRecipe()


def test_the_shipped_clip_has_the_bias_that_the_demo_is_about():
    metrics = measure(load_tiny_clip(), seed=901, count=300)
    assert metrics["zero_shot_accuracy"] > 0.97
    assert metrics["object_to_own_label"] > metrics["object_to_other_labels"] + 0.5
    bias = metrics["context_to_label_of_its_object"]
    assert metrics["context_to_labels_of_other_objects"] + 0.1 < bias < metrics["object_to_own_label"] - 0.3


def test_the_recipe_that_trained_it_still_trains():
    torch.manual_seed(1)
    model = train(ClipRecipe(steps=3, batch=8, scenes=20))
    assert not model.training and all(p.isfinite().all() for p in model.parameters())
    scenes = make_scenes(1, seed=5)
    numbers = set(np.unique(segment_map(scenes.objects, scenes.contexts)))
    assert {int(k) + 1 for k in np.flatnonzero(scenes.labels[0])} <= numbers


def test_a_run_writes_table_picture_prompts_and_figures(tmp_path, capsys):
    results = run.run_demo([3], tmp_path, ablation=True, additions=True, recipe=SMALL, progress=False)
    text = capsys.readouterr().out
    assert all(f"\n{row.title}" in text for row in ROWS.values())
    learned = results["seeds"]["3"]["separation"]
    assert list(learned) == [name for name, row in ROWS.items() if row.prompts == "learned"]
    # A strong lambda doesn't change (b), a term that keeps prompts off the objects does.
    assert (
        learned["strong"] == learned["full"] == learned["full labels"] < learned["apart each"] and learned["full"] > 0.5
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cams", "classes.txt", "grid.png", "images", "masks", "prompts-3.safetensors", "report.html", "results.json",
    ]  # fmt: skip
    judged = evaluate_folder(tmp_path / "cams" / "full", tmp_path / "masks", OBJECTS, progress=False)
    rows = results["seeds"]["3"]["rows"]
    assert 100 * judged.miou == pytest.approx(rows["full"]["miou"], abs=0.5)  # other thresholds
    assert json.loads((tmp_path / "results.json").read_text())["seeds"] == results["seeds"]
    prompts = BackgroundPrompts.load(tmp_path / "prompts-3.safetensors")
    prompts.check_belongs_to(FrozenClip.load("demo"), OBJECTS)
    again = run.run_demo([3], tmp_path / "again", recipe=SMALL, progress=False)["seeds"]["3"]["rows"]
    assert list(again) == [name for name, row in ROWS.items() if not row.only_with]
    assert again["full"] == rows["full"]
    others = [name for name in rows if name != "baseline"]
    assert len({rows[name]["coverage"] for name in others}) == len(others)  # no two rows are trained alike


def test_each_row_learns_prompts_in_its_own_way(monkeypatch):
    learned = {}

    def learn(regularizer, batches, *, shared, mask_tau, **_):
        learned[name] = (shared, mask_tau, regularizer.weights.refine, regularizer.weights.prompt_foreground)
        return PromptHistory([], [])

    monkeypatch.setattr(training, "learn_background_prompts", learn)
    world = World(FrozenClip.load("demo"), 0, SMALL, progress=False)
    world.networks["match"] = world._train_baseline()
    for name in ("full", "strong", "apart each", "apart"):
        world._regularizer(name)
    assert learned == {
        "full": (False, 1.0, 0.2, 0.0),
        "strong": (False, 1.0, 0.8, 0.0),
        "apart each": (False, 0.3, 0.8, 1.0),
        "apart": (True, 0.3, 0.8, 1.0),
    }


def test_a_stopped_run_goes_on_with_the_seeds_that_are_missing(tmp_path, monkeypatch, capsys):
    trained, exported = [], []

    class FakeWorld:
        histories: ClassVar = {"full": SimpleNamespace(separation=0.9)}

        def __init__(self, clip, seed, *_):
            self.seed, self.prompts = seed, {"full": BackgroundPrompts(8, 1, clip.text_width)}

        def run(self, names):
            trained.append(self.seed)
            if trained == [1, 2]:
                raise KeyboardInterrupt
            return {name: Judgement(10.0 * self.seed, 0.5, 0.7, 0.3) for name in names}

        def draw(self):
            return np.zeros((8, 8, 3), np.uint8)

        def export(self, _):
            exported.append(self.seed)

    monkeypatch.setattr(run, "World", FakeWorld)
    command = ["demo", "--out", str(tmp_path), "--quiet", "--seeds"]
    assert main([*command, "1", "2"]) == 130
    assert f"seeds in {tmp_path}/results.json: 1; the same command goes on" in capsys.readouterr().err
    kept = (tmp_path / "prompts-1.safetensors").stat().st_mtime_ns
    assert main([*command, "1", "2"]) == 0 and trained == [1, 2, 2]
    text = capsys.readouterr().out
    assert "than the object: full 0.90.\n" in text
    assert "has seeds 1 already" in text and "alone                 15.0 (7.1)" in text and exported == [1]
    assert (tmp_path / "prompts-1.safetensors").stat().st_mtime_ns == kept
    assert main([*command, "2"]) == 0 and trained == [1, 2, 2] and "one seed" in capsys.readouterr().out
    assert set(json.loads((tmp_path / "results.json").read_text())["seeds"]) == {"1", "2"}
    for option in ("--ablation", "--additions"):
        assert main([*command, "1", option]) == 1
    assert "holds results of other settings (rows)" in capsys.readouterr().err
    (tmp_path / "results.json").write_text('{"seeds": [1], "rows": {}}')  # of version 0.1
    assert main([*command, "1"]) == 1 and "(recipe, rows, device, threads, version)" in capsys.readouterr().err
    (tmp_path / "results.json").write_text("{")
    assert main([*command, "1"]) == 1 and "results.json is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", [["-1"], ["1", "1"], [str(2**40)]])
def test_seeds_that_can_not_be_are_refused_before_any_work(tmp_path, capsys, seeds):
    assert main(["demo", "--quiet", "--out", str(tmp_path / "out"), "--seeds", *seeds]) == 1
    assert "seeds: expected integers from 0 up" in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(("chosen", "threads"), [(None, 1), ("2", 2)])
def test_the_command_takes_one_thread_unless_told_otherwise(monkeypatch, chosen, threads):
    before, used = torch.get_num_threads(), []
    monkeypatch.setattr(run, "run_demo", lambda *_, **__: used.append(torch.get_num_threads()))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if chosen:
        monkeypatch.setenv("OMP_NUM_THREADS", chosen)
    try:
        torch.set_num_threads(2)
        assert main(["demo"]) == 0 and used == [threads]
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("option", [["--train", "0"], ["--test", "-1"], ["--seed", "-1"]])
def test_an_export_of_nothing_is_refused(tmp_path, monkeypatch, capsys, option):
    monkeypatch.setattr("sys.argv", ["export", str(tmp_path / "world"), *option])
    with pytest.raises(SystemExit) as status:
        export.main()
    assert status.value.code == 1 and f"{option[0][2:]}: expected integers" in capsys.readouterr().err
    assert not (tmp_path / "world").exists()


def test_the_command_line_runs_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "Recipe", lambda: SMALL)
    assert main(["demo", "--seeds", "1", "2", "--out", str(tmp_path / "out"), "--quiet"]) == 0
    assert "mean of 2 seeds" in capsys.readouterr().out
    (tmp_path / "file").write_text("")
    assert main(["demo", "--seeds", "1", "--out", str(tmp_path / "file"), "--quiet"]) == 1
    assert "semples demo: " in capsys.readouterr().err
    assert main(["demo", "--device", "toaster", "--out", str(tmp_path / "out"), "--quiet"]) == 1
    assert "device 'toaster' can't be used here" in capsys.readouterr().err


@pytest.mark.parametrize(("miou", "better"), [((30, 50, 60), "1 of 1"), ((30, 60, 50), "0 of 1")])
def test_the_explanation_follows_the_figures(miou, better):
    judged = {
        name: [Judgement(value, 0.5, 0.7, 1 - value / 100)]
        for name, value in zip(("baseline", "match", "full"), miou, strict=True)
    }
    text = explain({**judged, "unlearned": judged["match"]})
    assert f"better in {better} seeds" in text
    assert ("does not fall" in text) == (better == "0 of 1")


def test_each_stage_takes_false_activation_away():
    clip = FrozenClip.load("demo")
    before = {name: value.clone() for name, value in clip.model.state_dict().items()}
    world = World(clip, 0, Recipe(), progress=False)
    rows = world.run(("baseline", "match", "full"))
    baseline, match, full = rows.values()
    assert baseline.context > match.context + 0.2 and match.context > full.context + 0.03
    assert match.miou > baseline.miou + 15 and full.miou > baseline.miou + 15
    assert all(torch.equal(before[name], value) for name, value in clip.model.state_dict().items())
    # Learned prompts describe each class's context, not its object.
    learned = world.prompts["full"].encode(clip)
    near = learned @ clip.encode_texts([f"a photo of {c}." for c in CONTEXTS]).T
    own = learned @ clip.encode_texts([f"a photo of {c}." for c in OBJECTS]).T
    assert (near.diagonal() > own.diagonal()).sum() >= 6
    assert (near.argmax(1) == torch.arange(len(CONTEXTS))).sum() >= 6
