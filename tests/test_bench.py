import json

import pytest
import torch
from conftest import build_frozen

from semples_plugin import BackgroundPrompts, ClassMasks, SemPLeSRegularizer
from semples_plugin.bench import run, worker
from semples_plugin.bench.plain import PROMPT_WASTE, REFINEMENT_WASTE, PlainSteps
from semples_plugin.regularizer import sum_of

SPEC = {
    "clip": "small",
    "device": "cpu",
    "precision": "fp32",
    "classes": 3,
    "length": 4,
    "max_pairs": None,
    "part": None,
    "seconds": 0,
}


@pytest.fixture
def scene():
    clip = build_frozen()
    prompts = BackgroundPrompts(3, 4, clip.text_width, std=1.0)
    prompts.learned = True
    regularizer = SemPLeSRegularizer(clip, ["a", "b", "c"], prompts=prompts, input_mean=None, input_std=None)
    maps = torch.rand(4, 14, 14, requires_grad=True)
    return (
        regularizer,
        torch.randn(4, 3, 32, 32),
        ClassMasks.from_pairs(maps, torch.arange(4), torch.tensor([0, 1, 2, 1])),
    )


@pytest.mark.parametrize("waste", [[], *[[name] for name in REFINEMENT_WASTE], list(REFINEMENT_WASTE)])
def test_a_plain_refinement_step_is_the_same_step(scene, waste):
    regularizer, images, masks = scene
    plain = PlainSteps(regularizer, waste).refinement(images, masks)
    (expected,) = torch.autograd.grad(plain, masks.maps)
    ours = sum_of(regularizer(images, masks))
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(ours, masks.maps)[0], expected, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("waste", [[], *[[name] for name in PROMPT_WASTE], list(PROMPT_WASTE)])
def test_a_plain_prompt_step_is_the_same_step(scene, waste):
    regularizer, images, masks = scene
    vectors = regularizer.prompts.vectors
    features = regularizer.background_features(images, masks)
    plain = PlainSteps(regularizer, waste).prompts(images, masks, features)
    (expected,) = torch.autograd.grad(plain, vectors)
    ours = sum_of(regularizer.prompt_losses_of(features, masks.class_index))
    torch.testing.assert_close(ours, plain, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(torch.autograd.grad(ours, vectors)[0], expected, atol=1e-7, rtol=1e-5)


def test_waste_costs_operations(monkeypatch):
    monkeypatch.setattr(worker, "build", lambda *_: build_frozen())
    flops = {}
    for step, waste in (("refinement", REFINEMENT_WASTE), ("prompts", PROMPT_WASTE)):
        for name, names in {"ours": None, "none": [], "all": list(waste)}.items():
            row = worker.measure({**SPEC, "step": step, "pairs": 4, "waste": names})
            flops[step, name] = row["flops"]
            assert row["seconds"] > 0 and row["memory"] is not None
        assert flops[step, "ours"] == flops[step, "none"] < flops[step, "all"] / 2
    assert worker.measure({**SPEC, "step": "walk", "pairs": 4, "waste": None})["flops"] > 0
    # Both encode two views; a step goes backward, too, where a fused attention counts for more than forward.
    walk = worker.measure({**SPEC, "step": "walk", "pairs": 4, "waste": None})["flops"]
    assert 2 * walk <= flops["refinement", "ours"] < 3 * walk


def test_the_tables(monkeypatch, tmp_path, capsys):
    def fake(task):
        if task["step"] == "matmul":
            return {"peak": 1e12}
        if task.get("pairs") == 96 and task["waste"]:
            assert task["part"] == 24
            return {}  # out of memory
        waste = len(task["waste"] or [])
        return {"seconds": 1.0 + waste, "memory": 1e9 * (1 + waste), "flops": 1e11}

    monkeypatch.setattr(run, "_in_a_process", fake)
    results = run.run_bench(tmp_path / "bench.json", progress=False)
    assert json.loads((tmp_path / "bench.json").read_text()) == results
    run.run_bench(tmp_path / "bench.json", progress=False)
    assert json.loads((tmp_path / "bench.json.before").read_text()) == results
    text = capsys.readouterr().out
    assert f"Earlier figures: {tmp_path}/bench.json.before\n" in text
    assert "| 6 | 1 | 10 | 10 | 1 | 10 | 0.1 | 1 | 1 | 0.1 | 10 % |" in text
    assert "| 96 | 1 | - | - | 1 | in parts of 24 | - |" in text
    assert f"| {REFINEMENT_WASTE['weight gradients']} | 9 | 10 % | 9 | 10 % |" in text
    assert "| minutes | 120 | 944 | 7.9 |" in text  # 118 walked steps and 60 x 118 of 1 s, beside 60 x 118 of 8 s


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"pairs": [0]}, "pairs: expected integers from 1 up"),
        ({"pairs": [6, 6]}, "pairs: expected .* none twice, got 6, 6"),
        ({"pairs": [1.5]}, "pairs: expected integers"),
        ({"classes": 0}, "classes: expected integers from 1 up"),
        ({"length": 0}, "length: expected integers from 1 up"),
        ({"seconds": -1}, "seconds: expected a number from 0 up, got -1"),
        ({"seconds": float("nan")}, "seconds: expected a number from 0 up, got nan"),
        ({"seconds": float("inf")}, "seconds: expected a number from 0 up, got inf"),
        ({"out": "."}, "expected a file to write"),
    ],
)
def test_what_can_not_be_measured_is_refused_before_any_work(monkeypatch, tmp_path, wrong, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "_in_a_process", lambda task: pytest.fail("measured"))
    with pytest.raises((OSError, ValueError), match=words):
        run.run_bench(**{"out": tmp_path / "bench.json", "progress": False, **wrong})


def test_an_unknown_clip_is_named():
    with pytest.raises(ValueError, match=r"ViT-Z can't be measured: .*ViT-Z"):
        run._in_a_process({**SPEC, "clip": "ViT-Z", "step": "refinement", "pairs": 1, "waste": None})


def test_a_plain_step_in_parts_is_the_whole(monkeypatch):
    monkeypatch.setattr(worker, "build", lambda *_: build_frozen())
    gradients = []
    for part in (None, 2):
        spec = {**SPEC, "step": "refinement", "pairs": 5, "waste": list(REFINEMENT_WASTE), "part": part}
        step, (maps, *others) = worker.prepare(spec)
        step().backward()
        gradients.append([maps.grad, next(weight.grad for weight in others if weight.shape == (64, 3, 16, 16))])
    for whole, parts in zip(*gradients, strict=True):  # of the masks, and of CLIP's first weights, which nobody uses
        torch.testing.assert_close(parts, whole, atol=1e-7, rtol=1e-4)
