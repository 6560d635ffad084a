"""Patches, adapters and all stages on the hosts' real code, where it is at hand. These environment variables say so:

SEMPLES_CLIMS, SEMPLES_WEAKTR, SEMPLES_FMA: checkouts at the pinned commits, which stay as they are.
SEMPLES_VOC: images in VOC's layout, with `cls_labels.npy` (integer keys) and `cls_labels_by_name.npy`.
SEMPLES_CLIMS_START, SEMPLES_WEAKTR_START, SEMPLES_FMA_START: what a host's script is started with, "python" by default;
    a start-up script can stand in for CUDA, the ImageNet weights and the old packages that a host wants.
"""

import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import save_clip

from semples_plugin import BackgroundPrompts
from semples_plugin.adapters import patching, weaktr
from semples_plugin.data.cam_files import list_cams, read_cams
from semples_plugin.data.convert import convert_folder
from semples_plugin.data.image_labels import load_image_labels
from semples_plugin.data.images import read_mask
from semples_plugin.evaluation.folders import FolderEvaluation, evaluate_folder
from semples_plugin.presets import load_preset
from semples_plugin.recipes.fma_layout import lay_out_voc
from semples_plugin.recipes.fma_standins import write_segments

PATCHED = ("clims", "weaktr")
VOC_NAMES = load_preset("voc").class_names


def need(what: str) -> str:
    name = f"SEMPLES_{what.upper().split('-')[0]}"
    if not os.environ.get(name):
        pytest.skip(f"{name} isn't set")
    return os.environ[name]


def status(checkout: str | Path, *options: str) -> str:
    command = ["git", "-C", checkout, "status", "--porcelain", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@pytest.mark.parametrize("host", [*PATCHED, "fma-wsss"])
def test_the_patch_goes_in_and_out(host):
    checkout = need(host)
    before = status(checkout)
    assert "fits" in patching.patch(host, checkout, "check")
    patching.patch(host, checkout)
    try:
        assert "fits" not in patching.patch(host, checkout, "check") and status(checkout) != before
        for name in patching.touched_files(host) if host in PATCHED else []:
            compile((Path(checkout) / name).read_text(), name, "exec")
    finally:
        patching.patch(host, checkout, "revert")
    assert status(checkout) == before


@pytest.fixture
def real_weaktr(monkeypatch):
    monkeypatch.syspath_prepend(need("weaktr"))
    import models

    torch.manual_seed(0)
    model = models.deit_small_WeakTr_patch16_224(
        num_classes=20, drop_path_rate=0.1, reduction=4, pool="avg", feat_reduction=8
    )
    return model


def test_the_hooked_fine_cam_is_weaktrs(real_weaktr):
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad(), weaktr.FineCam(real_weaktr.eval()) as fine:
        _, cams, attention = real_weaktr(images, return_att=True)
        found = fine()
    expected = (attention[0][:, None] @ cams.flatten(2)[..., None]).reshape(cams.shape)
    assert found.shape == (2, 20, 14, 14) and expected.max() > 0
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("reach", weaktr.REACH)
def test_weaktrs_training_pass_gives_its_own_logits_and_gradients(real_weaktr, reach):
    with weaktr.FineCam(real_weaktr.train(), reach) as fine:
        _, _, logits = real_weaktr(torch.randn(2, 3, 224, 224))
        cams = fine()
    torch.testing.assert_close(cams.mean((2, 3)), logits, atol=1e-6, rtol=0)
    cams.square().sum().backward()
    reached = {name.split(".")[0] for name, p in real_weaktr.named_parameters() if p.grad is not None}
    assert reached == ({"head", "adaptive_attention_fusion"} if "head" in reach else {"adaptive_attention_fusion"})


class Host:
    """A copy of a host's checkout with eight images and a small CLIP, and its own script to run there."""

    def __init__(self, host: str, folder: Path) -> None:
        self.host, self.path, self.voc = host, folder / host, Path(need("voc"))
        shutil.copytree(need(host), self.path, symlinks=True)
        save_clip(folder / "clip")
        self.clip, self.prompts = f"local-dir:{folder / 'clip'}", folder / "prompts.safetensors"
        self.names = (self.voc / "ImageSets/Segmentation/train.txt").read_text().split()[:8]

    def patch(self) -> None:
        self.before = status(self.path, "--untracked-files=no")
        assert "fits" in patching.patch(self.host, self.path, "check")
        patching.patch(self.host, self.path)

    def run(self, *arguments: str, stage: str | None = None, fails_with: str | None = None) -> dict[str, list[float]]:
        """The printed parts of the losses; all of them are finite."""
        semples = [f"--semples={stage}", f"--semples-clip={self.clip}", f"--semples-prompts={self.prompts}",
                   "--semples-prompt-length=4", "--semples-prompt-epochs=2"]  # fmt: skip
        text = self.start_python(
            *arguments, *(semples if stage and self.host in PATCHED else []), fails_with=fails_with
        )
        self.text = text
        found: dict[str, list[float]] = {}
        for name, value in re.findall(r"(loss_\w+): (\S+)", text):
            found.setdefault(name, []).append(float(value))
        assert all(math.isfinite(value) for values in found.values() for value in values)
        return found

    def start_python(self, *arguments: str, fails_with: str | None = None) -> str:
        """What the host's own script prints."""
        command = [sys.executable, "-m", "semples_plugin", "run", self.host, "--device=cpu", *arguments]
        done = subprocess.run(command, cwd=self.path, capture_output=True, text=True)
        text = done.stdout + done.stderr
        assert fails_with in text if fails_with else done.returncode == 0, text[-3000:]
        return text

    def check_prompts(self, length: int = 4) -> None:
        prompts = BackgroundPrompts.load(self.prompts)
        assert prompts.learned and prompts.vectors.shape[:2] == (20, length)
        assert prompts.class_names == load_preset("voc").class_names

    def revert(self) -> None:
        patching.patch(self.host, self.path, "revert")
        assert status(self.path, "--untracked-files=no") == self.before


def moved(before: dict, after: dict) -> set[str]:
    """Names of the parameters that changed; running statistics are none."""
    assert before.keys() == after.keys()
    after = {name: value for name, value in after.items() if not re.search("running_|num_batches", name)}
    return {name for name in after if not torch.equal(before[name], after[name])}


MATCH = {"loss_match_foreground", "loss_match_background"}


def test_clims_trains_through_the_stages(tmp_path):
    host = Host("clims", tmp_path)
    shutil.copy(host.voc / "cls_labels.npy", host.path / "voc12/cls_labels.npy")
    (tmp_path / "names.txt").write_text("\n".join(host.names) + "\n")
    host.patch()
    lists = [f"--{which}_list={tmp_path / 'names.txt'}" for which in ("train", "val")]
    clims = ["run_sample.py", f"--voc12_root={host.voc}", *lists, "--num_workers=0", "--cam_batch_size=4",
             "--clims_num_epoches=1", "--train_clims_pass=True", "--clims_network=net.resnet50_clims"]  # fmt: skip
    nothing_else = "--hyper=0,0,0,0"  # without CLIMS's own terms only SemPLeS can move a weight

    def weights(path: str) -> dict:
        return torch.load(host.path / path, weights_only=True)

    found = host.run(*clims, nothing_else, "--work_space=a", "--semples-terms=all", stage="match")
    start, matched = weights("cam-baseline-voc12/res50_cam.pth"), weights("a/res50_clims.pth")
    frozen = re.compile(r"(resnet50\.(conv1|bn1)|(stage1|backbone\.0)\.[01])\.|.*(running_|num_batches)")
    trained = {name for name in start if not frozen.match(name)}
    assert set(found) == MATCH and moved(start, matched) == trained
    host.run(*clims, "--work_space=b", "--semples-start=a/res50_clims.pth", stage="prompts")
    host.check_prompts()
    heavy = "--semples-refine-weight=100"  # two steps with the paper's 0.05 are lost in some weights' rounding
    found = host.run(*clims, nothing_else, "--work_space=c", heavy, stage="refine")
    assert set(found) == {"loss_refine"} and moved(start, weights("c/res50_clims.pth")) == trained
    assert set(host.run(*clims, "--work_space=d", "--semples-terms=all", stage="refine")) == MATCH | {"loss_refine"}
    host.revert()


WEAKTR = ["main.py", "--model=deit_small_WeakTr_patch16_224", "--device=cpu", "--batch-size=4", "--epochs=1",
          "--num_workers=0", "--data-path=data", "--finetune=", "--no-if_eval_miou", "--no-pin-mem",
          "--aa="]  # fmt: skip  # its random posterising asks a current Pillow for 0 bits, now and then


def prepare_weaktr(host: Host) -> None:
    """Images, labels and lists where WeakTr looks for them."""
    (host.path / "data/voc12/VOCdevkit").mkdir(parents=True)
    (host.path / "data/voc12/VOCdevkit/VOC2012").symlink_to(host.voc)
    shutil.copy(host.voc / "cls_labels_by_name.npy", host.path / "voc12/cls_labels.npy")
    for name in ("train_aug_id.txt", "train_id.txt", "val_id.txt"):
        (host.path / "voc12" / name).write_text("\n".join(host.names) + "\n")


def test_weaktr_trains_through_the_stages(tmp_path):
    host = Host("weaktr", tmp_path)
    prepare_weaktr(host)
    host.patch()
    main = [*WEAKTR, "--data-set=VOC12", "--img-ms-list=voc12/train_id.txt"]
    host.run(*main, "--output_dir=plain")
    alone = [*main, "--semples-alone", "--lr=0.01"]
    start = ["--semples-start=plain/checkpoint.pth"]

    def weights(folder: str) -> dict:
        return torch.load(host.path / folder / "checkpoint.pth", weights_only=False)["model"]

    def parts(folder: str) -> set[str]:
        return {name.split(".")[0] for name in moved(weights("plain"), weights(folder))}

    found = host.run(*alone, *start, "--output_dir=a", stage="match")
    assert set(found) == MATCH and parts("a") == {"head", "adaptive_attention_fusion"}
    plainly = ["--color-jitter=0", "--reprob=0"]
    host.run(*main, *plainly, "--semples-start=a/checkpoint.pth", "--output_dir=b", stage="prompts")
    host.check_prompts()
    found = host.run(*alone, *start, "--semples-reach=fusion", "--output_dir=c", stage="refine")
    assert set(found) == MATCH | {"loss_refine"} and parts("c") == {"adaptive_attention_fusion"}
    host.run(*main, *start, "--output_dir=d", stage="refine")  # beside WeakTr's own losses
    assert len(parts("d")) > 2
    host.revert()


FMA_SMALL = [
    "model.ini.clip_name=pretrains/CLIP/16.pt", "model.ini.fp32=True", "amp.enabled=False", "loader.num_workers=1",
    "loader.train.batch_size=4", "solver.max_iter=3", "solver.display_step=1", "sched.warm.warm_iters=1",
    "infer.cfg.loader.val.num_workers=1", "infer.cfg.solver.viz_cam=False", "infer.cfg.solver.viz_score=False",
]  # fmt: skip
FMA_TRAIN = "src/tasks/train_coop/run.py"


def set_entries(*entries: str) -> list[str]:
    return [f"--cfg={entry}" for entry in entries]


def prepare_fma(host: Host) -> None:
    """Data, and small stand-ins for CLIP and SAM's segments, as the recipe's miniature has them."""
    folder = lay_out_voc(host.voc, host.path, 8)
    host.start_python("-m", "semples_plugin.recipes.fma_standins", "clip", "pretrains/CLIP/16.pt")
    write_segments(folder / "JPEGImages", host.names, host.path / "experiment/VOC/sams/split=train_aug/anns")


def test_fma_wsss_by_itself_goes_from_a_training_to_masks_and_its_cams_are_read(tmp_path):
    host = Host("fma-wsss", tmp_path)
    before = status(host.path)
    prepare_fma(host)
    home = "experiment/VOC/cls"  # where its habit puts the results of configs/VOC/cls
    host.run(*set_entries(*FMA_SMALL), FMA_TRAIN, "-c", "configs/VOC/cls/cfg.py")
    assert sorted(list_cams(host.path / home / "infer/final/cam")) == sorted(host.names)
    folder, cams = f"{home}/infer/final", host.path / f"{home}/infer/final/cam"
    found = judge_as_fma(host, cams)
    aff = next((host.path / "configs/VOC/cls/infer/final").glob("aff*"))
    quiet = set_entries("solver.viz_cam=False", "solver.viz_score=False", f"rslt_dir={folder}/aff")
    host.run(*quiet, "src/tasks/aff_cam/run.py", "--cache_ori_cam", "0", "-c", f"{aff}/cfg.py")
    judge_as_fma(host, host.path / folder / "aff/cam_affed")
    seeds = set_entries("viz.enable=False", f"rslt_dir={folder}/ann", f"cam.dir={folder}/aff/cam_affed")
    host.run(*seeds, "src/tasks/anns_seed/run.py", "-c", f"{aff}/ann,affed/cfg.py")
    theirs = float(re.findall(r"mIoU: ([\d.]+)\n", host.text)[-1])
    masks = evaluate_folder(host.path / folder / "ann/seed", found.ground_truth, VOC_NAMES, progress=False)
    assert theirs == pytest.approx(masks.sweep.miou[0], abs=1e-4)  # of which it prints four digits
    convert_folder(cams, tmp_path / "clims", "clims", images=host.voc / "JPEGImages", progress=False)
    again = evaluate_folder(tmp_path / "clims", found.ground_truth, VOC_NAMES, background="power", progress=False)
    np.testing.assert_array_equal(again.sweep.iou, found.sweep.iou)
    compare_with_fma(cams, found, tmp_path)
    written = {line.split()[-1] for line in status(host.path).splitlines()} - {*before.splitlines()}
    assert all(name.startswith("configs/") and name.endswith(("cfg.pkl", "/")) for name in written), written


def judge_as_fma(host: Host, cams: Path) -> FolderEvaluation:
    """Our figures of a folder, after FMA-WSSS's script printed its own: they agree at every power that it tried."""
    masks = host.voc / "SegmentationClassAug"
    found = evaluate_folder(cams, masks, VOC_NAMES, progress=False)
    assert sorted(found.counts) == sorted(host.names) and found.failed == {} and found.background == "power"
    theirs = re.findall(r"(?m)^mIoU: ([\d.]+) \(bg_method=.*'pow': (\d+)\}", host.text)
    assert len(theirs) >= 3
    for miou, power in theirs:
        assert float(miou) == pytest.approx(found.sweep.miou[found.settings.index(float(power))], abs=1e-4)
    return found


def test_fma_wsss_trains_through_the_stages(tmp_path):
    host = Host("fma-wsss", tmp_path)
    host.patch()
    prepare_fma(host)
    alone = ["loss.loss_items.multi_cls.weights=0.0", "opt.get_pg.ini.weight_decay=0.0"]  # nothing else moves anything
    ours = [f"semples.clip={host.clip}", "semples.learning.epochs=2", "infer.cfg.eval.enabled=False"]

    def train(stage: str, *entries: str) -> set[str]:
        """Names of the losses that were printed."""
        options = set_entries(*FMA_SMALL, *ours, *(alone if stage != "prompts" else []), *entries)
        return set(host.run(*options, FMA_TRAIN, "-c", f"configs/semples/voc/{stage}/cfg.py"))

    def learned(stage: str) -> set[str]:
        """Names of the weights that a stage moved."""
        folder = host.path / f"experiment/semples/{stage}/checkpoints"
        start, final = (torch.load(folder / f"{name}.pth", weights_only=True) for name in ("start", "final"))
        return moved(start, final)

    assert train("match") == MATCH and learned("voc/match") == {"prompt_learner.ctx"}
    assert train("prompts") == set() and "SemPLeS: wrote" in host.text
    settings = {
        name: re.findall(rf"{name}\S* = (\S+)", host.text)[-1] for name in ("multi_cls.weights", "weight_decay")
    }
    assert settings == {"multi_cls.weights": "0.0", "weight_decay": "0.0"}
    host.prompts = host.path / "experiment/semples/voc/prompts.safetensors"
    host.check_prompts(length=30)
    start = host.path / "experiment/semples/voc/prompts/checkpoints/start.pth"
    assert start.resolve() == (host.path / "experiment/semples/voc/match/checkpoints/final.pth").resolve()
    assert train("refine") == MATCH | {"loss_refine"} and learned("voc/refine") == {"prompt_learner.ctx"}
    row = ["semples.prompts=unlearned", "semples.weights.background=0", "rslt_dir=experiment/semples/voc-1/unlearned"]
    assert train("refine", *row) == {"loss_match_foreground", "loss_refine"}
    assert learned("voc-1/unlearned") == {"prompt_learner.ctx"}


def test_fma_wsss_tells_what_is_wrong_with_an_entry_and_ends_where_its_cams_failed(tmp_path):
    host = Host("fma-wsss", tmp_path)
    prepare_fma(host)
    host.run("--cfg=slover.max_iter=3", FMA_TRAIN, "-c", "configs/VOC/cls/cfg.py",
             fails_with="--cfg slover.max_iter: the config has no 'slover'; it has")  # fmt: skip
    broken = [*FMA_SMALL, "solver.max_iter=2", "infer.cfg.loader.val.batch_size=no number"]
    host.run(*set_entries(*broken), FMA_TRAIN, "-c", "configs/VOC/cls/cfg.py",
             fails_with="semples run: no CAMs: src/tasks/infer_cam/run.py")  # fmt: skip
    assert (host.path / "experiment/VOC/cls/checkpoints/final.pth").is_file()


CLIMS_CAMS = """
import contextlib, types
import torch
torch.cuda.device_count, torch.cuda.device = lambda: 1, lambda _: contextlib.nullcontext()
torch.cuda.is_available = lambda: False
import net.resnet50_clims, step.make_clims, voc12.dataloader
model = net.resnet50_clims.CAM(n_classes=20)
model.load_state_dict(torch.load("cam-baseline-voc12/res50_cam.pth"))
data = voc12.dataloader.VOC12ClassificationDatasetMSF({names!r}, voc12_root={root!r}, scales=(1.0, 0.5))
args = types.SimpleNamespace(num_workers=0, work_space="work", cam_out_dir={out!r})
step.make_clims.vis_cam = False
model.eval()  # returns nothing
model.register_forward_pre_hook(lambda _, images: tuple(x.float() for x in images))  # numpy 2 makes them double
step.make_clims._work(0, model, [data], args)
"""


def judge_as_clims(folder: Path, masks: Path, names: list[str], threshold: float) -> float:
    """`step/eval_cam.py`, whose chainercv doesn't build on a current Python, up to its confusion matrix."""
    confusion = np.zeros((21, 21))
    for name in names:
        found = np.load(folder / f"{name}.npy", allow_pickle=True).item()
        cams = np.pad(found["high_res"], ((1, 0), (0, 0), (0, 0)), mode="constant", constant_values=threshold)
        keys = np.pad(np.asarray(found["keys"]) + 1, (1, 0), mode="constant")
        predicted, mask = keys[np.argmax(cams, axis=0)], read_mask(masks / f"{name}.png")
        np.add.at(confusion, (mask[mask < 255], predicted[mask < 255]), 1)
    union = confusion.sum(0) + confusion.sum(1) - np.diag(confusion)
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(np.diag(confusion) / union))


def test_cams_of_clims_are_read_and_go_to_weaktr(tmp_path, monkeypatch):
    host = Host("clims", tmp_path)
    names = (host.voc / "ImageSets/Segmentation/train.txt").read_text().split()[:20]
    shutil.copy(host.voc / "cls_labels.npy", host.path / "voc12/cls_labels.npy")
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    out, masks = tmp_path / "cams", host.voc / "SegmentationClassAug"
    out.mkdir()
    (tmp_path / "make.py").write_text(
        CLIMS_CAMS.format(names=str(tmp_path / "names.txt"), root=str(host.voc), out=str(out))
    )
    host.run(str(tmp_path / "make.py"))
    labels = load_image_labels(host.voc / "cls_labels.npy")
    for name, path in list_cams(out).items():
        cams = read_cams(path)
        assert cams.format == "clims" and cams.class_index == tuple(np.flatnonzero(labels[name]))
    voc = load_preset("voc").class_names
    found = evaluate_folder(out, masks, voc, progress=False)
    assert sorted(found.counts) == sorted(names) and found.failed == {}
    for t in (10, 30, 60):
        assert found.sweep.miou[t] == pytest.approx(judge_as_clims(out, masks, names, t / 100), rel=1e-12)
    convert_folder(out, tmp_path / "weaktr", "weaktr", progress=False)
    monkeypatch.syspath_prepend(need("weaktr"))
    import evaluation

    for t in (10, 30, 60):
        theirs = evaluation.do_python_eval(str(tmp_path / "weaktr"), str(masks), names, 21, "npy", t / 100, n_jobs=1)
        assert theirs["mIoU"] == pytest.approx(100 * found.sweep.miou[t], abs=0.01)


def test_cams_of_weaktr_are_read_and_go_to_fma_wsss(tmp_path, monkeypatch):
    host = Host("weaktr", tmp_path)
    prepare_weaktr(host)
    lists = "--img-ms-list=voc12/train_id.txt"
    host.run(*WEAKTR, "--data-set=VOC12", lists, "--output_dir=plain")
    host.run(*WEAKTR, "--data-set=VOC12MS", lists, "--gen_attention_maps", "--scales", "1.0",
             "--cam-npy-dir=cams", "--output_dir=plain", "--resume=plain/checkpoint.pth")  # fmt: skip
    found = evaluate_folder(
        host.path / "cams", host.voc / "SegmentationClassAug", load_preset("voc").class_names, progress=False
    )
    assert sorted(found.counts) == sorted(host.names) and found.failed == {}
    convert_folder(host.path / "cams", tmp_path / "fma", "fma", progress=False)
    judged = evaluate_folder(
        tmp_path / "fma", host.voc / "SegmentationClassAug", load_preset("voc").class_names, progress=False
    )
    compare_with_fma(tmp_path / "fma", judged, tmp_path)


FMA_EVAL = """
import sys
sys.path = [".", "./src", *sys.path]
from libs.seeding.seed_argmax import seed_argmax
from utils.eval_cams import eval_cams
for p in (1, 3, 0.5):
    cal = lambda cam, size, classes, crf=None: seed_argmax(cam, size, classes, {{"method": "pow", "pow": p}}, True)
    metric, _ = eval_cams(21, {names!r}, {cams!r}, 255, {masks!r}, 255, cal, eval_individually=False, importance=0)
    print("FOUND", p, metric.mIoU)
"""


def compare_with_fma(cams: Path, judged: FolderEvaluation, folder: Path) -> None:
    """FMA-WSSS's own evaluation takes the files and finds the same mIoU."""
    (folder / "other").mkdir()
    host = Host("fma-wsss", folder / "other")
    names = ["background", *load_preset("voc").class_names]
    script = folder / "judge.py"
    script.write_text(FMA_EVAL.format(names=names, cams=str(cams), masks=judged.ground_truth))
    host.run(str(script))
    found = re.findall(r"FOUND (\S+) (\S+)", host.text)
    assert len(found) == 3
    for power, miou in found:
        assert float(miou) == pytest.approx(judged.sweep.miou[judged.settings.index(float(power))], abs=1e-4)
