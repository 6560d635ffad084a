"""FMA-WSSS's data by links, what stands in for downloads, and the recipe's steps; `test_hosts` runs its own scripts."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from semples_plugin.compat import fma_wsss as corrections
from semples_plugin.data.images import read_mask, write_mask
from semples_plugin.recipes import book
from semples_plugin.recipes.fma_layout import lay_out_coco, lay_out_voc
from semples_plugin.recipes.fma_standins import draw_masks, superpixels, write_segments
from semples_plugin.recipes.jobs import jobs_of


def save_image(path: Path, side: int = 32) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = np.zeros((side, side, 3), np.uint8)
    image[:, side // 2 :] = 255
    Image.fromarray(image).save(path)


@pytest.fixture
def voc(tmp_path):
    """Six images; the mask of the k-th shows class k + 1, and pixels that are ignored."""
    folder, names = tmp_path / "voc", [f"2007_00000{k}" for k in range(6)]
    (folder / "SegmentationClassAug").mkdir(parents=True)
    for k, name in enumerate(names):
        save_image(folder / f"JPEGImages/{name}.jpg")
        write_mask(folder / f"SegmentationClassAug/{name}.png", np.array([[0, k + 1], [255, 0]], np.uint8))
    lists = folder / "ImageSets/Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("\n".join(names[:4]) + "\n")
    (lists / "val.txt").write_text("\n".join(names[5:]) + "\n")
    return folder


def test_voc_is_linked_and_training_leaves_validation_out(voc, tmp_path):
    folder = lay_out_voc(voc, tmp_path / "FMA-WSSS")
    assert folder == tmp_path / "FMA-WSSS/datasets/VOC2012"
    lists = {path.stem: path.read_text().split() for path in (folder / "ImageSets/Segmentation").iterdir()}
    names = [f"2007_00000{k}" for k in range(6)]
    assert lists == {"train": names[:4], "train_aug": names[:5], "val": names[5:]}
    pairs = (folder / "ImageSets/SegmentationAug/val.txt").read_text()
    assert pairs == "/JPEGImages/2007_000005.jpg /SegmentationClassAug/2007_000005.png\n"
    labels = pickle.loads((folder / "third_party/seg_cls_labels.pkl").read_bytes())
    assert {name: np.flatnonzero(row).tolist() for name, row in labels.items()} == {
        name: [0, k + 1] for k, name in enumerate(names)
    }
    assert {(row.dtype, row.shape) for row in labels.values()} == {(np.dtype(np.uint8), (21,))}
    assert (folder / "SegmentationClass").resolve() == voc / "SegmentationClassAug"
    (voc / "SegmentationClass").mkdir()
    (voc / "ImageSets/Segmentation/train_aug.txt").write_text(names[1] + "\n")
    lay_out_voc(voc, tmp_path / "FMA-WSSS")  # again, over the links
    assert (folder / "SegmentationClass").resolve() == voc / "SegmentationClass"
    assert (folder / "ImageSets/Segmentation/train_aug.txt").read_text().split() == names[1:2]


def test_a_miniature_of_voc_has_two_disjoint_lists(voc, tmp_path):
    folder = lay_out_voc(voc, tmp_path / "FMA-WSSS", 2)
    lists = {path.stem: path.read_text().split() for path in (folder / "ImageSets/Segmentation").iterdir()}
    first, second = ["2007_000000", "2007_000001"], ["2007_000002", "2007_000003"]
    assert lists == {"train": first, "train_aug": first, "val": second}
    with pytest.raises(ValueError, match=r"train.txt: expected at least 6 images, got 4"):
        lay_out_voc(voc, tmp_path / "FMA-WSSS", 3)
    (voc / "SegmentationClassAug/2007_000001.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"2007_000001.png"):
        lay_out_voc(voc, tmp_path / "FMA-WSSS", 2)


@pytest.fixture
def coco(tmp_path):
    """Three images of each split: a bear with a cup in front of it, nothing, a crowd of cups."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    square = lambda low, high: [[low, low, high, low, high, high, low, high]]  # noqa: E731
    categories = [{"id": 23, "name": "bear"}, {"id": 47, "name": "cup"}]
    for start, split in ((10, "train"), (20, "val")):
        images = []
        for k in range(start, start + 3):
            name = f"COCO_{split}2014_{k:012d}.jpg"
            save_image(folder / f"{split}2014/{name}")
            images.append({"id": k, "file_name": name, "height": 32, "width": 32})
        found = [
            {"image_id": start, "category_id": 47, "segmentation": square(8, 15), "area": 64, "iscrowd": 0},
            {"image_id": start, "category_id": 23, "segmentation": square(0, 23), "area": 576, "iscrowd": 0},
            {"image_id": start + 2, "category_id": 47, "segmentation": {"counts": [1024]}, "area": 9, "iscrowd": 1},
        ]
        content = {"images": images, "annotations": found, "categories": categories}
        (folder / f"annotations/instances_{split}2014.json").write_text(json.dumps(content))
    return folder


@pytest.mark.filterwarnings("ignore:.*has no category")
def test_coco_is_linked_by_twelve_digits_and_images_without_a_class_are_left_out(coco, tmp_path):
    for split in ("train", "val"):
        draw_masks(coco / f"annotations/instances_{split}2014.json", tmp_path / "masks", 8)
    mask = read_mask(tmp_path / "masks/000000000010.png")
    assert [mask[10, 10], mask[20, 20], mask[28, 28]] == [42, 22, 0]  # the cup is smaller, and before the bear
    assert sorted(path.stem for path in (tmp_path / "masks").iterdir()) == [f"{k:012d}" for k in (10, 12, 20, 22)]
    folder = lay_out_coco(coco, tmp_path / "FMA-WSSS", tmp_path / "masks")
    lists = {path.stem: path.read_text().split() for path in (folder / "lists").iterdir()}
    train = ["000000000010", "000000000012"]
    assert lists == {"train": train, "train_1250": train, "val": ["000000000020", "000000000022"]}
    image = folder / "images/train2014/000000000010.jpg"
    assert image.resolve() == coco / "train2014/COCO_train2014_000000000010.jpg"
    labels = pickle.loads((folder / "third_party/seg_cls_labels.pkl").read_bytes())
    shown = {name: np.flatnonzero(row).tolist() for name, row in labels.items()}
    assert shown["000000000010"] == [0, 22, 42] and shown["000000000012"] == [0, 42]
    assert len(shown) == 4 and labels["000000000010"].shape == (81,)
    assert read_mask(folder / "annotations/val2014/000000000020.png").max() == 42
    (tmp_path / "masks/000000000022.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"there is no .*000000000022.png"):
        lay_out_coco(coco, tmp_path / "FMA-WSSS", tmp_path / "masks")


@pytest.mark.parametrize("name", ["fma-wsss-voc", "fma-wsss-coco"])
def test_each_row_reads_what_it_made_itself(name):
    """FMA-WSSS's configs name files of its own runs: one left as it is would give a row the other row's figures."""
    jobs = {job.step.name: job for job in jobs_of(book.RECIPES[name], {}, 1, False)}
    for row, other in (("baseline", "refine"), ("refine", "baseline")):
        own = [job for step, job in jobs.items() if step.endswith(row)]
        assert len(own) > 8 and not any(f"/{other}" in job.line for job in own)
        home = f"experiment/semples/seed0/{row}"
        steps = ("seeds", "second", "second-seeds")
        entries = {step: dict(word.split("=") for word in jobs[f"{step}-{row}"].words if "=" in word) for step in steps}
        (masks,) = jobs[f"seeds-{row}"].makes
        assert masks.as_posix().endswith(entries["second"]["dt.train.ini.ps_mask_dir"])
        assert entries["seeds"]["cam.dir"].startswith(f"{home}/infer/")
        assert entries["second-seeds"]["cam.dir"].startswith(f"{home}/seg/infer/")
        assert str(jobs[f"second-seeds-{row}"].makes[0]) in jobs[f"network-{row}"].line
    assert "rand_seed=0" in jobs["match"].words and "{" not in jobs["match"].line


def test_superpixels_follow_colours_and_cover_an_image(tmp_path):
    save_image(tmp_path / "a.jpg")
    write_segments(tmp_path, ["a"], tmp_path / "out")
    segments = pickle.loads((tmp_path / "out/a.pkl").read_bytes())
    masks = np.stack([segment["segmentation"] for segment in segments])
    assert (masks.sum(0) == 1).all() and 2 <= len(masks) <= 24
    assert [segment["area"] for segment in segments] == masks.sum((1, 2)).tolist()
    image = np.asarray(Image.open(tmp_path / "a.jpg"))
    parts = superpixels(image, 2)
    assert len(np.unique(parts)) == 2 and (parts[:, 2] == parts[0, 2]).all() and (parts[:, -2] != parts[0, 2]).all()


def test_cams_are_copied_where_there_is_no_rsync(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    module = SimpleNamespace(subprocess=subprocess)
    corrections.copy_without_rsync(module)
    source, target = tmp_path / "source", tmp_path / "target"
    for folder, name in ((source, "new.npz"), (target, "old.npz")):
        folder.mkdir()
        (folder / name).write_text(name)
    module.subprocess.run(["rsync", "-a", "--delete", f"{source}/", str(target)])
    assert [path.name for path in target.iterdir()] == ["new.npz"] and (source / "new.npz").exists()
    assert module.subprocess.run(["true"]).returncode == 0  # other commands are run
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/rsync")
    untouched = SimpleNamespace(subprocess=subprocess)
    corrections.copy_without_rsync(untouched)
    assert untouched.subprocess is subprocess


def test_kept_figures_are_those_of_the_cams_that_are_there(tmp_path):
    (tmp_path / "cam").mkdir()
    (tmp_path / "eval").mkdir()
    kept, cam = tmp_path / "eval/bg_method_metrics.pkl", tmp_path / "cam/a.npz"
    kept.write_text("kept")
    cam.write_text("cam")
    found = []
    module = SimpleNamespace(search_and_eval=lambda *_: found.append(kept.exists()))
    corrections.judge_new_cams_anew(module)
    for age, expected in ((-5, True), (5, False)):
        os.utime(cam, (kept.stat().st_mtime + age,) * 2)
        module.search_and_eval(None, str(tmp_path / "cam"), None, str(tmp_path))
        assert found[-1] is expected


def test_a_failed_inference_ends_the_training_and_a_failed_validation_does_not(monkeypatch, capsys):
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 3))
    corrections.end_where_inference_failed(None)
    script = [sys.executable, "src/tasks/infer_cam/run.py", "-e", "0", "-c"]
    assert subprocess.run([*script, "configs/VOC/cls/val/iter-9/cfg.pkl"], check=False).returncode == 3
    with pytest.raises(SystemExit):
        subprocess.run([*script, "configs/VOC/cls/infer/final/cfg.pkl"], check=False)
    assert "no CAMs: src/tasks/infer_cam/run.py -e 0 -c configs/VOC/cls/infer/final/cfg.pkl ended with status 3" in (
        capsys.readouterr().err
    )
