"""Every script and every block of Python that a reader may copy runs."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from semples_plugin import FrozenClip
from semples_plugin.data.cam_files import read_cams
from semples_plugin.demo.data import make_scenes

ROOT = Path(__file__).resolve().parent.parent


def run_script(name: str, *options: str, cwd: Path) -> str:
    command = [sys.executable, str(ROOT / "examples" / name), *options]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_quickstart_is_short_and_lowers_the_activation_of_context(tmp_path):
    assert len((ROOT / "examples" / "quickstart.py").read_text().splitlines()) < 60
    context = [float(value) for value in re.findall(r"context=([\d.]+)", run_script("quickstart.py", cwd=tmp_path))]
    assert len(context) == 3 and context[0] > context[1] + 0.15 and context[1] > context[2]
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.safetensors"]


def test_wrap_your_model_goes_through_the_stages(tmp_path):
    match, verdict, refine = run_script("wrap_your_model.py", cwd=tmp_path).splitlines()
    assert "loss_refine" not in match and "loss_refine" in refine and verdict.startswith("(b) went well")
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.safetensors"]


def test_a_plain_loop_runs_on_two_processes(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
               str(ROOT / "examples" / "several_gpus.py")]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    pairs, start, end = re.search(r"prompts of (\d+) pairs, L_prompt ([\d.]+) to ([\d.]+)", done.stdout).groups()
    assert int(pairs) == make_scenes(101, seed=0).labels.sum()  # though the sampler makes it 102 images
    assert float(end) < 0.7 * float(start) and "refine=" in done.stderr
    assert done.stderr.count("(b) did not go well") <= 1  # the first rank speaks for all


@pytest.mark.parametrize("wrong", [("foo", "3"), ("walk", "many"), ("store", "0")])
def test_one_measurement_that_is_none_is_refused_in_a_sentence(monkeypatch, capsys, wrong):
    import cost_growth

    monkeypatch.setattr(sys, "argv", ["cost_growth.py", "--one", *wrong])
    with pytest.raises(SystemExit):
        cost_growth.main()
    words = rf"--one: expected one of walk, store, .*, and a size from 1 up, got {' '.join(wrong)}"
    assert re.search(words, capsys.readouterr().err)


def test_a_hosts_head_gains_in_the_demo(tmp_path):
    from hosts_in_the_demo import Run

    judged = Run("CLIMS", seed=0, images=200, shorten=3, out=tmp_path).judge()
    assert judged["(a) matching"].miou > judged["baseline"].miou + 5
    assert judged["(c) refinement"].context < judged["baseline"].context - 0.1


def test_the_hosts_heads_make_a_table_and_pictures(tmp_path):
    text = run_script("hosts_in_the_demo.py", "--shorten=100", "--images=24", "--seeds", "0", "1", cwd=tmp_path)
    assert re.findall(r"^\| ([\w-]+) \|", text, re.MULTILINE)[1:] == ["CLIMS"] * 3 + ["WeakTr"] * 3 + ["FMA-WSSS"] * 3
    rows = json.loads((tmp_path / "hosts-out/hosts.json").read_text())["rows"]
    for host, stages in rows.items():
        assert list(stages) == ["baseline", "(a) matching", "(c) refinement"] and len(stages["baseline"]) == 2
        assert len({json.dumps(stage) for stage in stages.values()}) == 3  # every stage moved something
        assert (tmp_path / f"hosts-out/{host}.png").is_file()


def python_blocks(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)


@pytest.fixture
def yours(tmp_path, monkeypatch):
    """What the README and the guide to loops take for granted; `starts` and `optimizers` grow with each stage."""
    from semples_plugin.demo.data import OBJECTS
    from semples_plugin.demo.network import CamNet, normalize_images
    from semples_plugin.presets import Preset

    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    scenes = make_scenes(6, seed=0)
    images, labels = normalize_images(scenes.images), torch.from_numpy(scenes.labels).float()
    model = CamNet(len(OBJECTS)).eval()
    starts, optimizers = [], []

    def new_optimizer(model):
        starts.append({name: value.clone() for name, value in model.state_dict().items()})
        optimizers.append(torch.optim.AdamW(model.parameters(), lr=0.01))
        return optimizers[-1]

    tiny = FrozenClip.load("demo")
    monkeypatch.setattr("semples_plugin.FrozenClip.load", lambda *a, **k: tiny)
    monkeypatch.setattr(Preset, "learning_options", lambda self: {"epochs": 2})
    return {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.01),
        "loader": [(images, labels)],
        "device": "cpu",
        "epochs": lambda loader: [*loader, *loader],
        "new_optimizer": new_optimizer,
        "starts": starts,
        "optimizers": optimizers,
        "CLASS_NAMES": OBJECTS,
        "images": images,
        "labels": labels,
        "your_loss": lambda cams, labels: F.binary_cross_entropy_with_logits(cams.mean((2, 3)), labels),
        "SummaryWriter": SummaryWriter,
    }


def is_bit_equal(a, b) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


def test_the_readmes_lines_train_the_model(yours):
    (block,) = python_blocks("README.md")
    assert len(re.sub(r"^from.*|^$", "", block, flags=re.MULTILINE).split("\n")) <= 13
    before = {name: value.clone() for name, value in yours["model"].state_dict().items()}
    exec(compile(block, "README.md", "exec"), yours)
    assert not is_bit_equal(before, yours["model"].state_dict())
    assert yours["regularizer"].figures["similarity_foreground"] > 0


@pytest.mark.filterwarnings("ignore:.b. did not go well", "ignore:the CAMs span", "ignore:no image shows")
def test_the_guide_to_loops_runs_and_its_stages_begin_with_the_baseline(yours, tmp_path):
    stages, *others = python_blocks("docs/loop.md")
    exec(compile(stages, "loop.md", "exec"), yours)
    starts, optimizers = yours["starts"], yours["optimizers"]
    baseline, matched, refined = (yours[name].state_dict() for name in ("baseline", "matched", "refined"))
    assert len(starts) == 3 and len({*map(id, optimizers)}) == 3  # baseline, (a) and (c)
    assert not is_bit_equal(starts[0], baseline)
    assert is_bit_equal(starts[1], baseline) and is_bit_equal(starts[2], baseline)
    assert not is_bit_equal(matched, baseline) and not is_bit_equal(refined, matched)
    assert yours["regularizer"].prompts.learned and yours["history"].verdict
    assert (tmp_path / "prompts.safetensors").is_file()

    prompts = yours["regularizer"].prompts
    for block in others:
        exec(compile(block, "loop.md", "exec"), yours)
        if "BackgroundPrompts.from_state" in block:  # a checkpoint's prompts are those that were saved
            assert yours["regularizer"].prompts is not prompts
            assert torch.equal(yours["regularizer"].prompts.vectors, prompts.vectors)
    assert list((tmp_path / "runs" / "a").iterdir())


@pytest.mark.filterwarnings("ignore:.b. did not go well", "ignore:the CAMs span", "ignore:no image shows")
def test_the_guides_steps_train_as_a_plain_step_does(yours):
    blocks = python_blocks("docs/loop.md")
    exec(compile(blocks[0], "loop.md", "exec"), yours)
    for word in ("def step", "def accumulated_step"):
        (block,) = (block for block in blocks if word in block)
        exec(compile(block, "loop.md", "exec"), yours)
    model, images, labels = yours["model"].eval(), yours["images"], yours["labels"]

    def gradients() -> torch.Tensor:
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])

    yours["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.0)
    model.zero_grad()
    masks = yours["ClassMasks"].from_dense(model(images), labels).max_normalized(yours["preset"].mask_eps)
    sum(yours["regularizer"](images, masks).values()).backward()
    whole = gradients()
    yours["accumulated_step"]([(images[:1], labels[:1]), (images[1:], labels[1:])])  # of unequal numbers of pairs
    torch.testing.assert_close(gradients(), whole, atol=1e-5, rtol=1e-4)

    yours["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.01)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    yours["step"](images, labels)
    assert not is_bit_equal(before, model.state_dict()) and torch.isfinite(gradients()).all()


def test_the_guides_lines_write_cams_that_are_read(tmp_path, monkeypatch):
    class Model(torch.nn.Module):
        def forward(self, images):
            assert not self.training and not torch.is_grad_enabled()
            return torch.linspace(-1, 3, 3 * 4 * 5).view(1, 3, 4, 5).expand(len(images), 3, 4, 5)

    monkeypatch.chdir(tmp_path)
    Path("JPEGImages").mkdir()
    Image.new("RGB", (15, 12)).save("JPEGImages/a.png")
    np.save("cls_labels.npy", {"a": np.array([1, 0, 1], np.float32)}, allow_pickle=True)
    Path("train.txt").write_text("a\n")
    (block,) = (block for block in python_blocks("docs/cams.md") if "write_cams_of" in block)
    exec(compile(block, "cams.md", "exec"), {"model": Model()})
    cams = read_cams(tmp_path / "cams" / "a.npy")
    assert cams.class_index == (0, 2) and cams.size == (12, 15) and cams.format == "weaktr"
    assert cams.maps[1].max() == 1 and cams.maps.min() >= 0
