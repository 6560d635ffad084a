"""Patches, adapters and all stages on the hosts' real code, where it is at hand. These environment variables say so:

SEMPLES_CLIMS, SEMPLES_WEAKTR, SEMPLES_FMA: checkouts at the pinned commits, which stay as they are.
SEMPLES_VOC: images in VOC's layout, with `cls_labels.npy` (integer keys) and `cls_labels_by_name.npy`.
SEMPLES_COCO: images in COCO 2014's layout.
SEMPLES_CLIMS_START, SEMPLES_WEAKTR_START, SEMPLES_FMA_START: what a host's script is started with, "python" by default;
    a start-up script can stand in for CUDA, the ImageNet weights and the old packages that a host wants.
"""

import json
import math
import os
import pickle
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
from semples_plugin.adapters import patching, weaktr
from semples_plugin.data.cam_files import list_cams, read_cams
from semples_plugin.data.convert import convert_folder
from semples_plugin.data.image_labels import load_image_labels
from semples_plugin.evaluation.folders import FolderEvaluation, evaluate_folder
from semples_plugin.presets import load_preset
from semples_plugin.recipes.small_clip import write_small_clip

PATCHED = ("clims", "weaktr")
COCO_IDS = [k for k in range(1, 91) if k not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # of the annotated categories


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
    host.start_python(*options, "--work_space=cam-baseline-voc12", "--cam_num_epoches=1", "--train_cam_pass=True")
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


SMALL_CLIP = """
import sys
import torch
from clip.model import CLIP
torch.manual_seed(0)
own = CLIP(64, 224, 2, 128, 16, 77, 49408, 64, 1, 2).eval()
if sys.argv[2:] == ["traced"]:
    example = (torch.zeros(1, 3, 224, 224), torch.ones(1, 77, dtype=torch.int64))
    torch.jit.trace(own, example, check_trace=False).save(sys.argv[1])
else:
    torch.save(own.state_dict(), sys.argv[1])
"""
SMALL = """
cfg.model.ini.clip_name, cfg.model.ini.fp32, cfg.amp.enabled = "pretrains/CLIP/16.pt", True, False
cfg.loader.num_workers, cfg.loader.train.batch_size = 1, 4
cfg.solver.max_iter, cfg.solver.display_step, cfg.sched.warm.warm_iters = 3, 1, 1
if STAGE != "prompts":  # so that SemPLeS alone can move anything; (b) sees to it by itself
    cfg.loss.loss_items.multi_cls.weights = 0.
    cfg.opt.get_pg.ini.weight_decay = 0.
options = dict(clip={clip!r}, learning={{"epochs": 2}})
semples.cri = IL(lambda c: LossItem(STAGE, prompts=PROMPTS, batches=c.dt.few_shot.epoch_len, **options))
"""


def prepare_fma(host: Host) -> None:
    """Data, labels and a small CLIP of its own where FMA-WSSS looks for them."""
    voc = host.path / "datasets/VOC2012"
    for folder in (voc / "ImageSets/SegmentationAug", voc / "third_party", host.path / "pretrains/CLIP"):
        folder.mkdir(parents=True)
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (voc / folder).symlink_to(host.voc / folder)
    lines = "".join(f"/JPEGImages/{name}.jpg /SegmentationClassAug/{name}.png\n" for name in host.names)
    for name in ("train_aug.txt", "train.txt"):
        (voc / "ImageSets/SegmentationAug" / name).write_text(lines)
    labels = load_image_labels(host.voc / "cls_labels.npy")
    with (voc / "third_party/seg_cls_labels.pkl").open("wb") as file:
        pickle.dump({name: np.concatenate([[1], row]).astype(np.uint8) for name, row in labels.items()}, file)
    host.start_python("-c", SMALL_CLIP, "pretrains/CLIP/16.pt", "traced")


def test_fma_wsss_trains_through_the_stages(tmp_path):
    host = Host("fma-wsss", tmp_path)
    host.patch()
    prepare_fma(host)
    for stage, parts in {"match": MATCH, "prompts": set(), "refine": MATCH | {"loss_refine"}}.items():
        with (host.path / "configs/semples" / stage / "cfg.py").open("a") as file:
            file.write(SMALL.format(clip=host.clip))
        ends = "SemPLeS: wrote" if stage == "prompts" else None
        script = "src/tasks/train_coop/run.py"
        found = host.run(script, "-c", f"configs/semples/{stage}/cfg.py", fails_with=ends)
        assert set(found) == parts
        if stage == "prompts":
            host.prompts = host.path / "experiment/semples/prompts.safetensors"
            last = {
                name: re.findall(rf"{name}\S* = (\S+)", host.text)[-1] for name in ("multi_cls.weights", "weight_decay")
            }
            assert last == {"multi_cls.weights": "0.0", "weight_decay": "0.0"}
            host.check_prompts(length=30)
            folder = host.path / "experiment/semples"
            start = folder / "prompts/checkpoints/start.pth"
            assert start.resolve() == (folder / "match/checkpoints/final.pth").resolve()
            continue
        saved = [
            torch.load(host.path / f"experiment/semples/{stage}/checkpoints/{name}.pth", weights_only=True)
            for name in ("start", "final")
        ]
        assert set(saved[0]) == {"prompt_learner.ctx"} == moved(*saved)


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


def test_cams_of_fma_wsss_are_read(tmp_path):
    pytest.importorskip("cloudpickle")
    host = Host("fma-wsss", tmp_path)
    prepare_fma(host)
    host.patch()
    with (host.path / "configs/semples/match/cfg.py").open("a") as file:
        file.write(SMALL.format(clip=host.clip))
    host.run("src/tasks/train_coop/run.py", "-c", "configs/semples/match/cfg.py",
             fails_with="Can't pickle <function <lambda>")  # fmt: skip
    # Its own `infer()`, with a pickle that can, and without starting a process that has no start-up script.
    script = tmp_path / "infer.py"
    script.write_text(
        "import pickle, subprocess, runpy, sys, cloudpickle\npickle.dump = cloudpickle.dump\n"
        "subprocess.run = lambda *a, **k: None\nsys.argv[0] = 'src/tasks/train_coop/run.py'\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    host.run(str(script), "-i", "1", "-c", "configs/semples/match/cfg.py")
    config = "configs/semples/match/infer/final/cfg.pkl"
    script.write_text(
        "import multiprocessing, runpy, sys\nmultiprocessing.set_start_method = lambda *a, **k: None\n"
        "sys.argv[0] = 'src/tasks/infer_cam/run.py'\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    ends = None if torch.cuda.is_available() else "seed_argmax_cuda"  # after the CAMs come its figures, on a GPU
    host.run(str(script), "--no_cache", "1", "-c", config, fails_with=ends)
    out = host.path / "experiment/semples/match/infer/final/cam"
    found = evaluate_folder(out, host.voc / "SegmentationClassAug", load_preset("voc").class_names, progress=False)
    assert sorted(found.counts) == sorted(host.names) and found.failed == {} and found.background == "power"
    convert_folder(out, tmp_path / "clims", "clims", images=host.voc / "JPEGImages", progress=False)
    again = evaluate_folder(
        tmp_path / "clims", host.voc / "SegmentationClassAug", load_preset("voc").class_names, background="power",
        progress=False,
    )  # fmt: skip
    np.testing.assert_array_equal(again.sweep.iou, found.sweep.iou)
    compare_with_fma(out, found, tmp_path)
