"""Patches, adapters and all stages on the hosts' real code, where it is at hand. These environment variables say so:

SEMPLES_CLIMS, SEMPLES_WEAKTR, SEMPLES_FMA: checkouts at the pinned commits, which stay as they are.
SEMPLES_VOC: images in VOC's layout, with `cls_labels.npy` (integer keys) and `cls_labels_by_name.npy`.
SEMPLES_COCO: images in COCO 2014's layout.
"""

import argparse
import json
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
from PIL import Image

from semples_plugin import BackgroundPrompts
from semples_plugin.adapters import patching, weaktr, weaktr_checkpoints
from semples_plugin.compat.needs import check
from semples_plugin.compat.needs.check import check_host
from semples_plugin.data.cam_files import list_cams, read_cams
from semples_plugin.data.convert import convert_folder
from semples_plugin.data.image_labels import load_image_labels
from semples_plugin.evaluation.folders import FolderEvaluation, evaluate_folder
from semples_plugin.presets import load_preset
from semples_plugin.recipes import fma_layout, weaktr_layout
from semples_plugin.recipes.fma_standins import write_segments
from semples_plugin.recipes.small_clip import write_small_clip

PATCHED = ("clims", "weaktr")
COCO_IDS = [k for k in range(1, 91) if k not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # of the annotated categories
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


LAYOUTS = [(8.0, "max"), (4.0, "avg")]  # of WeakTr's published checkpoints, and its defaults


def build_weaktr(reduction: float, pool: str) -> torch.nn.Module:
    import models

    return models.deit_small_WeakTr_patch16_224(
        num_classes=20, drop_path_rate=0.1, reduction=reduction, pool=pool, feat_reduction=8
    )


@pytest.fixture(params=LAYOUTS)
def real_weaktr(monkeypatch, request):
    monkeypatch.syspath_prepend(need("weaktr"))
    torch.manual_seed(0)
    return build_weaktr(*request.param)


def test_a_checkpoint_of_its_layout_loads_and_another_is_refused(real_weaktr, tmp_path):
    channels = real_weaktr.adaptive_attention_fusion.attn_head_ffn[0].weight.shape
    published = channels == (9, 72)
    assert published or channels == (18, 72)
    torch.save({"model": real_weaktr.state_dict(), "epoch": 3, "miou": np.float64(69.4)}, tmp_path / "start.pth")
    checkpoint = weaktr_checkpoints.read_checkpoint(tmp_path / "start.pth")
    (reduction, pool), (other_reduction, other_pool) = LAYOUTS if published else LAYOUTS[::-1]
    args = argparse.Namespace(reduction=reduction, pool_type=pool, nb_classes=20, data_set="VOC12")
    weaktr_checkpoints.check_layout(tmp_path / "start.pth", checkpoint, args)
    torch.manual_seed(1)
    loaded = build_weaktr(reduction, pool)
    loaded.load_state_dict(checkpoint["model"])
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad(), weaktr.FineCam(loaded.eval()) as fine:
        loaded(images)
        found = fine()
        _, cams, attention = real_weaktr.eval()(images, return_att=True)
    expected = (attention[0][:, None] @ cams.flatten(2)[..., None]).reshape(cams.shape)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    args.reduction, args.pool_type = other_reduction, other_pool
    words = f"--reduction {reduction:g} --pool-type .*--reduction {other_reduction:g} --pool-type {other_pool}"
    with pytest.raises(ValueError, match=words):
        weaktr_checkpoints.check_layout(tmp_path / "start.pth", checkpoint, args)


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


def torch_weights(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def clims_on_voc(folder: Path, count: int) -> tuple[Host, list[str]]:
    """CLIMS with the baseline CAM network that its own script trains, and the options that all its passes take."""
    host = Host("clims", folder)
    host.names = host.names[:count]
    shutil.copy(host.voc / "cls_labels.npy", host.path / "voc12/cls_labels.npy")
    write_small_clip(folder / "small")
    lists = folder / "voc/ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(host.names) + "\n")
    for link in ("JPEGImages", "SegmentationClass"):
        target = "SegmentationClassAug" if link == "SegmentationClass" else link
        (folder / "voc" / link).symlink_to((host.voc / target).resolve())
    options = [f"--{which}_list={lists / 'train.txt'}" for which in ("train", "val", "infer")]
    options += [f"--voc12_root={folder / 'voc'}", "--num_workers=1", "--cam_batch_size=2", "--clims_num_epoches=1",
                "--irn_batch_size=2", "--irn_num_epoches=1", "--exp_times=0", "--cam_network=net.resnet50_clims",
                f"--clip={folder / 'small/openai.pt'}"]  # fmt: skip
    host.before = status(host.path, "--untracked-files=no")
    options = ["run_sample.py", *options]
    # At CLIMS's rate of 0.1 one epoch of a few images ends, with some random numbers, in CAMs that give no gradient.
    start = ["--work_space=cam-baseline-voc12", "--cam_num_epoches=1", "--cam_learning_rate=0.01"]
    host.start_python("--seed=1", *options, *start, "--train_cam_pass=True")
    return host, options


def test_clims_trains_through_the_stages(tmp_path):
    host, clims = clims_on_voc(tmp_path, 4)
    plain = [*clims, "--train_clims_pass=True"]
    for folder, seed in {"plain": 1, "again": 1, "other": 2}.items():
        host.start_python("--seed", str(seed), *plain, f"--work_space={folder}")
    unpatched, again, other = (
        torch_weights(host.path / folder / "res50_clims.pth") for folder in ("plain", "again", "other")
    )
    assert not moved(unpatched, again) and moved(unpatched, other)  # CLIMS has no seed of its own
    assert status(host.path, "--untracked-files=no") == host.before
    host.patch()
    nothing_else = "--hyper=0,0,0,0"  # without CLIMS's own terms only SemPLeS can move a weight

    def weights(path: str) -> dict:
        return torch_weights(host.path / path)

    host.start_python("--seed=1", *plain, "--work_space=off")
    assert not moved(unpatched, weights("off/res50_clims.pth"))  # the patch alone changes nothing
    found = host.run(*plain, nothing_else, "--work_space=a", "--semples-terms=all", stage="match")
    start, matched = weights("cam-baseline-voc12/res50_cam.pth"), weights("a/res50_clims.pth")
    frozen = re.compile(r"(resnet50\.(conv1|bn1)|(stage1|backbone\.0)\.[01])\.|.*(running_|num_batches)")
    trained = {name for name in start if not frozen.match(name)}
    assert set(found) == MATCH and moved(start, matched) == trained
    host.run(*plain, "--work_space=b", "--semples-start=a/res50_clims.pth", stage="prompts")
    host.check_prompts()
    heavy = "--semples-refine-weight=100"  # two steps with the paper's 0.05 are lost in some weights' rounding
    found = host.run(*plain, nothing_else, "--work_space=c", heavy, stage="refine")
    assert set(found) == {"loss_refine"} and moved(start, weights("c/res50_clims.pth")) == trained
    assert set(host.run(*plain, "--work_space=d", "--semples-terms=all", stage="refine")) == MATCH | {"loss_refine"}
    host.revert()


def test_clims_trains_on_coco_with_and_without_torchrun(tmp_path):
    pytest.importorskip("pycocotools")
    host, coco = Host("clims", tmp_path), tmp_path / "coco"
    small_coco(Path(need("coco")), coco)
    write_small_clip(tmp_path / "small")
    for name in ("train_labels.npy", "val_labels.npy"):  # of all of COCO; CLIMS makes them where they are not there
        (host.path / "mscoco" / name).unlink(missing_ok=True)
    clims = ["run_sample_coco.py", f"--mscoco_root={coco}", "--num_workers=0", "--cam_batch_size=2", "--exp_times=0",
             "--cam_network=net.resnet50_clims", "--clims_num_epoches=1", "--irn_batch_size=2", "--irn_num_epoches=1",
             "--cam_num_epoches=1", f"--clip={tmp_path / 'small/openai.pt'}"]  # fmt: skip
    torchrun = ["-m", "torch.distributed.run", "--nproc_per_node=1", *clims, "--use_distributed_train=True"]
    host.start_python(*clims, "--work_space=cam-baseline-coco", "--train_cam_pass=True")
    host.patch()
    host.start_python(*clims, "--work_space=a", "--train_clims_pass=True")
    host.start_python(*torchrun, "--work_space=t", "--train_clims_pass=True")
    start = torch_weights(host.path / "cam-baseline-coco/res50_cam.pth")
    for folder in ("a", "t"):
        assert moved(start, torch_weights(host.path / folder / "res50_clims.pth"))
    judge_clims(host, clims, coco / "masks", load_preset("coco").class_names)
    host.run(*clims, "--work_space=b", "--semples-start=a/res50_clims.pth", "--train_clims_pass=True", stage="prompts")
    assert BackgroundPrompts.load(host.prompts).vectors.shape[:2] == (80, 4)
    found = host.run(*torchrun, "--work_space=c", "--train_clims_pass=True", stage="refine")
    assert set(found) == {"loss_refine"} and (host.path / "c/res50_clims.pth").is_file()
    host.revert()


def small_coco(source: Path, out: Path) -> None:
    """The first images of each split that show anything, and their masks as CLIMS names them."""
    from pycocotools.coco import COCO

    (out / "annotations").mkdir(parents=True)
    (out / "mask/train2014").mkdir(parents=True)
    (out / "masks").mkdir()
    for split in ("train2014", "val2014"):
        (out / split).symlink_to((source / split).resolve())
        content = json.loads((source / f"annotations/instances_{split}.json").read_text())
        shown = {annotation["image_id"] for annotation in content["annotations"]}
        content["images"] = [image for image in content["images"] if image["id"] in shown][:2]
        names = [image["id"] for image in content["images"]]
        content["annotations"] = [a for a in content["annotations"] if a["image_id"] in names]
        path = out / f"annotations/instances_{split}.json"
        path.write_text(json.dumps(content))
    coco = COCO(out / "annotations/instances_train2014.json")
    column = {category: k for k, category in enumerate(COCO_IDS, 1)}
    for image in coco.loadImgs(coco.getImgIds()):
        mask = np.zeros((image["height"], image["width"]), np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(image["id"])):
            mask[coco.annToMask(annotation) == 1] = column[annotation["category_id"]]
        Image.fromarray(mask).save(out / f"mask/train2014/{image['id']}.png")
        Image.fromarray(mask).save(
            out / "masks" / Path(image["file_name"]).with_suffix(".png")
        )  # as the CAMs are named


def judge_clims(host: Host, clims: list[str], masks: Path, classes: tuple[str, ...]) -> None:
    """CLIMS makes CAMs and IRNet's pseudo masks of what it trained in `a`, and judges them as we do."""
    passes = ("make_clims", "eval_cam", "cam_to_ir_label", "train_irn", "make_sem_seg", "eval_sem_seg")
    printed = host.start_python(*clims, "--work_space=a", *(f"--{name}_pass=True" for name in passes))
    theirs = {0.15 if "coco" not in clims[0] else 0.1: float(re.findall(r"threshold: \S+ miou: (\S+)", printed)[0])}
    for threshold in (0.3, 0.6):
        again = host.start_python(*clims, "--work_space=a", "--eval_cam_pass=True", f"--cam_eval_thres={threshold}")
        theirs[threshold] = float(re.findall(r"threshold: \S+ miou: (\S+)", again)[0])
    found = evaluate_folder(host.path / "a/cam_mask", masks, classes, progress=False)
    assert found.failed == {} and list_cams(host.path / "a/cam_mask").keys() == found.counts.keys()
    for threshold, miou in theirs.items():
        assert miou == pytest.approx(found.sweep.miou[round(100 * threshold)], rel=1e-9)
    of_masks = evaluate_folder(host.path / "a/sem_seg", masks, classes, progress=False)
    printed_miou = re.findall(r"'miou': (?:np\.float64\()?([\d.e-]+)", printed)[-1]
    assert float(printed_miou) == pytest.approx(float(np.nanmax(of_masks.sweep.miou)), rel=1e-9)


WEAKTR = ["main.py", "--model=deit_small_WeakTr_patch16_224", "--data-path=data", "--reduction=8", "--pool-type=max",
          "--num_workers=0"]  # fmt: skip
TRAINING = [*WEAKTR, "--data-set=VOC12", "--img-ms-list=voc12/train_id.txt", "--batch-size=4", "--epochs=1",
            "--finetune="]  # fmt: skip  # no ImageNet weights without a network


def prepare_weaktr(host: Host) -> None:
    """Images, labels and lists where WeakTr looks for them."""
    shutil.copy(host.voc / "cls_labels_by_name.npy", host.path / "voc12/cls_labels.npy")
    for name in ("train_aug_id.txt", "train_id.txt", "val_id.txt"):
        (host.path / "voc12" / name).write_text("\n".join(host.names) + "\n")
    weaktr_layout.lay_out_voc(host.voc, host.path)


def train_weaktr(host: Host, folder: str, *options: str, stage: str | None = None) -> dict[str, list[float]]:
    """An epoch in `folder`, whose end are CAMs and their mIoU."""
    out = host.path.parent / folder
    found = host.run(*TRAINING, f"--output_dir={out}", f"--cam-npy-dir={out}/cams", *options, stage=stage)
    if stage != "prompts":
        assert re.search(r"Max mIoU: \d", host.text) and len(list_cams(out / "cams")) == len(host.names)
    return found


def test_weaktr_trains_through_the_stages(tmp_path):
    host = Host("weaktr", tmp_path)
    prepare_weaktr(host)
    before = status(host.path)
    train_weaktr(host, "unpatched")
    assert status(host.path) == before
    host.patch()
    train_weaktr(host, "plain")
    alone = ["--semples-alone", "--lr=0.01"]
    start = [f"--semples-start={tmp_path}/plain/checkpoint.pth"]

    def weights(folder: str) -> dict:
        return weaktr_checkpoints.read_checkpoint(tmp_path / folder / "checkpoint.pth")["model"]

    def parts(folder: str) -> set[str]:
        return {name.split(".")[0] for name in moved(weights("plain"), weights(folder))}

    assert moved(weights("unpatched"), weights("plain")) == set()  # without --semples WeakTr is what it was, to the bit
    found = train_weaktr(host, "a", *alone, *start, stage="match")
    assert set(found) == MATCH and parts("a") == {"head", "adaptive_attention_fusion"}
    plainly = ["--aa=", "--color-jitter=0", "--reprob=0"]  # stage (b) wants images that nothing is painted over
    train_weaktr(host, "b", *plainly, f"--semples-start={tmp_path}/a/checkpoint.pth", stage="prompts")
    host.check_prompts()
    found = train_weaktr(host, "c", *alone, *start, "--semples-reach=fusion", stage="refine")
    assert set(found) == MATCH | {"loss_refine"} and parts("c") == {"adaptive_attention_fusion"}
    train_weaktr(host, "d", *start, stage="refine")  # beside WeakTr's own losses
    assert len(parts("d")) > 2
    host.run(*TRAINING, f"--output_dir={tmp_path}/e", *start, "--pool-type=avg", stage="match",
             fails_with="--pool-type max, and this run has --reduction 8 --pool-type avg")  # fmt: skip
    assert not (tmp_path / "e").exists() or not list((tmp_path / "e").iterdir())
    host.revert()
    assert status(host.path) == before


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
    folder = fma_layout.lay_out_voc(host.voc, host.path, 8)
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


def test_cams_of_clims_are_read_and_go_to_weaktr(tmp_path, monkeypatch):
    host, clims = clims_on_voc(tmp_path, 2)
    host.start_python(*clims, "--work_space=a", "--train_clims_pass=True")
    out, masks = host.path / "a/cam_mask", host.voc / "SegmentationClassAug"
    voc = load_preset("voc").class_names
    judge_clims(host, clims, masks, voc)
    assert status(host.path, "--untracked-files=no") == host.before
    labels = load_image_labels(host.voc / "cls_labels.npy")
    for name, path in list_cams(out).items():
        cams = read_cams(path)
        assert cams.format == "clims" and cams.class_index == tuple(np.flatnonzero(labels[name]))
    found = evaluate_folder(out, masks, voc, progress=False)
    assert sorted(found.counts) == sorted(host.names)
    convert_folder(out, tmp_path / "weaktr", "weaktr", progress=False)
    monkeypatch.syspath_prepend(need("weaktr"))
    import evaluation

    for t in (10, 30, 60):
        theirs = evaluation.do_python_eval(
            str(tmp_path / "weaktr"), str(masks), host.names, 21, "npy", t / 100, n_jobs=1
        )
        assert theirs["mIoU"] == pytest.approx(100 * found.sweep.miou[t], abs=0.01)


def generate_weaktrs_cams(host: Host, folder: str, *scales: str) -> FolderEvaluation:
    """WeakTr's own command for CAMs of several scales, its own judgement of them, and ours."""
    out = host.path.parent / folder
    host.run(*WEAKTR, "--data-set=VOC12MS", "--img-ms-list=voc12/train_id.txt", "--gen_attention_maps", "--scales",
             *scales, f"--cam-npy-dir={out}/cams-ms", f"--output_dir={out}",
             f"--resume={out}/checkpoint.pth")  # fmt: skip
    host.run("evaluation.py", "--list=voc12/train_id.txt", "--data-path=data", "--type=npy", "--n_jobs=1",
             f"--predict_dir={out}/cams-ms", "--curve=True", "--start=40", "--end=42")  # fmt: skip
    found = evaluate_folder(
        out / "cams-ms", host.voc / "SegmentationClassAug", load_preset("voc").class_names,
        progress=False,
    )  # fmt: skip
    assert sorted(found.counts) == sorted(host.names) and found.failed == {}
    for percent, theirs in re.findall(r"background score: 0\.(4[01])0\tmIoU: (\S+)%", host.text):
        assert float(theirs) == pytest.approx(100 * found.sweep.miou[int(percent)], abs=0.01)
    return found


def test_cams_of_weaktr_are_read_and_go_to_fma_wsss(tmp_path, monkeypatch):
    host = Host("weaktr", tmp_path)
    prepare_weaktr(host)
    before = status(host.path)
    train_weaktr(host, "plain")
    found = generate_weaktrs_cams(host, "plain", "1.0", "1.2")
    host.patch()
    again = generate_weaktrs_cams(host, "plain", "1.0", "1.2")
    np.testing.assert_array_equal(again.sweep.iou, found.sweep.iou)
    host.revert()
    assert status(host.path) == before
    convert_folder(tmp_path / "plain/cams-ms", tmp_path / "fma", "fma", progress=False)
    judged = evaluate_folder(
        tmp_path / "fma", host.voc / "SegmentationClassAug", load_preset("voc").class_names, progress=False
    )
    compare_with_fma(tmp_path / "fma", judged, tmp_path)


def test_weaktrs_second_stage_trains_and_is_tested(tmp_path):
    """OnlineRetraining, for mmsegmentation 0.x, at the smallest size that its patches of 120 and 16 allow."""
    for package in ("mmseg", "einops", "pydensecrf"):
        pytest.importorskip(package)
    if not list(Path(torch.hub.get_dir()).glob("checkpoints/deit_small_patch16_224-*.pth")):
        pytest.skip("DeiT's weights are not in torch's cache")
    host = Host("weaktr", tmp_path)
    host.names = host.names[:3]
    prepare_weaktr(host)
    before = status(host.path)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    train = [*launch, "OnlineRetraining/segm/train.py", "--local_rank=0", f"--log-dir={tmp_path}/s",
             "--dataset=pascal_voc", "--backbone=deit_small_patch16_224", "--decoder=mask_transformer",
             f"--ann-dir={host.voc}/SegmentationClassAug", "--start-value=1.2", "--patch-size=120", "--batch-size=2",
             "--im-size=256", "--crop-size=240", "--window-size=240", "--window-stride=240",
             "--num-workers=0"]  # fmt: skip
    host.start_python(*train, "--epochs=1")
    first = torch.load(tmp_path / "s/checkpoint.pth", weights_only=True)
    text = host.start_python(*train, "--epochs=2", "--resume")
    assert "Resuming training from checkpoint" in text
    second = torch.load(tmp_path / "s/checkpoint.pth", weights_only=True)
    assert (first["epoch"], second["epoch"]) == (0, 1) and moved(first["model"], second["model"])
    host.start_python(*launch, "OnlineRetraining/segm/eval/miou.py", "--local_rank=0", "--multiscale",
                      f"--predict-dir={tmp_path}/p", "--im-size=128", f"{tmp_path}/s/checkpoint.pth",
                      "pascal_voc")  # fmt: skip
    text = host.start_python("OnlineRetraining/segm/eval/make_crf.py", "--list=val.txt", "--data-path=data",
                             f"--predict-dir={tmp_path}/p", f"--predict-png-dir={tmp_path}/png", "--num-cls=21",
                             "--dataset=voc12", "--n-jobs=1")  # fmt: skip
    judged = evaluate_folder(
        tmp_path / "png", host.voc / "SegmentationClassAug", load_preset("voc").class_names, progress=False
    )
    assert sorted(judged.counts) == sorted(host.names)
    theirs = float(re.findall(r"mIoU:\s*([\d.]+)%", text)[-1])
    assert theirs == pytest.approx(100 * judged.miou, abs=0.01)
    assert status(host.path) == before


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


def test_doctor_finds_what_the_real_checkouts_bring_and_names_what_they_do_not(monkeypatch):
    monkeypatch.setattr(check, "_reach", lambda url: None)
    for host, brought, wanted in (
        ("clims", "voc12/train_aug.txt: 10,582 images for training, each with label", "res50_cam.pth (the CAM network"),
        ("weaktr", "voc12/cls_labels.npy: labels of 12,031 images, 20 columns", "no folder data/voc12/VOCdevkit"),
        ("fma-wsss", ", at the pinned commit 112437ec", "there is no folder datasets/VOC2012; in "),
    ):
        found = list(check_host(host, need(host)))
        assert any(brought in finding.text for finding in found if finding.status == "found")
        assert any(wanted in finding.text for finding in found if finding.status == "missing" and finding.fails)
