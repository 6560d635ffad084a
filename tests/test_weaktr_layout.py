"""VOC and COCO as WeakTr's checkout wants them, and the lists, labels and masks of a miniature."""

import json
import subprocess
import sys

import numpy as np
import pytest

from semples_plugin.data.image_labels import load_image_labels, read_class_names
from semples_plugin.data.images import read_mask, write_mask
from semples_plugin.recipes.weaktr_layout import lay_out_coco, lay_out_voc, write_coco_miniature, write_lists


def lists(folder, **names: list[str]):
    """Text files of a name a line."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in names.items():
        (folder / f"{name}.txt").write_text("".join(f"{line}\n" for line in content))
    return folder


@pytest.fixture
def voc(tmp_path):
    for folder in ("JPEGImages", "SegmentationClassAug"):
        (tmp_path / "voc" / folder).mkdir(parents=True)
    (tmp_path / "voc/JPEGImages/2007_000032.jpg").write_text("an image")
    return tmp_path / "voc"


def test_voc(voc, tmp_path):
    own = lists(tmp_path / "WeakTr/voc12", train_aug_id=["a", "b", "c"], train_id=["a", "b"], val_id=["d"])
    for _ in range(2):  # a second time changes nothing
        folder = lay_out_voc(voc, tmp_path / "WeakTr")
        assert folder == tmp_path / "WeakTr/data/voc12/VOCdevkit/VOC2012"
        assert (folder / "JPEGImages/2007_000032.jpg").read_text() == "an image"
        splits = {name: (folder / f"ImageSets/Segmentation/{name}.txt").read_text().split() for name in
                  ("trainaug", "train", "val")}  # fmt: skip
        assert splits == {"trainaug": ["a", "b", "c"], "train": ["a", "b"], "val": ["d"]}
    small = lists(tmp_path / "small", train=["x", "y"], val=["z"])
    np.save(tmp_path / "labels.npy", {"x": np.ones(20, np.float32)})
    write_lists(small, tmp_path / "labels.npy", own)
    lay_out_voc(voc, tmp_path / "WeakTr")
    assert (own / "train_aug_id.txt").read_text() == (own / "train_id.txt").read_text() == "x\ny\n"
    assert (folder / "ImageSets/Segmentation/val.txt").read_text() == "z\n"
    assert list(load_image_labels(own / "cls_labels.npy")) == ["x"]


def test_another_folder_takes_the_place_of_a_link_but_not_of_a_folder(voc, tmp_path):
    lists(tmp_path / "WeakTr/voc12", train_aug_id=["a"], train_id=["a"], val_id=["d"])
    folder = lay_out_voc(voc, tmp_path / "WeakTr")
    voc.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*JPEGImages"):
        lay_out_voc(voc, tmp_path / "WeakTr")
    lay_out_voc(tmp_path / "moved", tmp_path / "WeakTr")
    assert (folder / "JPEGImages/2007_000032.jpg").is_file()
    (folder / "JPEGImages").unlink()
    (folder / "JPEGImages").mkdir()
    with pytest.raises(FileExistsError):
        lay_out_voc(tmp_path / "moved", tmp_path / "WeakTr")


def square(image: int, category: int, corner: int, side: int) -> dict:
    polygon = [corner, corner, corner + side, corner, corner + side, corner + side, corner, corner + side]
    return {"image_id": image, "category_id": category, "area": side * side, "segmentation": [polygon]}


@pytest.fixture
def coco(tmp_path):
    """Two images a split; the second shows nothing."""
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    categories = [{"id": 1, "name": "person"}, {"id": 44, "name": "bottle"}]
    for first, split in ((9, "train"), (42, "val")):
        (folder / f"{split}2014").mkdir()
        images = [
            {"id": number, "file_name": f"COCO_{split}2014_{number:012}.jpg", "height": 40, "width": 50}
            for number in (first, first + 1)
        ]
        for image in images:
            (folder / f"{split}2014" / image["file_name"]).write_text(image["file_name"])
        crowd = {"image_id": first, "category_id": 1, "area": 9, "segmentation": {"counts": [], "size": [40, 50]}}
        objects = [square(first, 44, 10, 5), square(first, 1, 5, 30), crowd]
        content = {"images": images, "annotations": objects, "categories": categories}
        (folder / f"annotations/instances_{split}2014.json").write_text(json.dumps(content))
    return folder


def test_coco_and_its_miniature(coco, tmp_path):
    with pytest.warns(UserWarning, match="has no category"):
        write_coco_miniature(coco, tmp_path / "small", 4)
    assert (tmp_path / "small/lists/train.txt").read_text() == "000000000009\n"  # what shows nothing is left out
    assert (tmp_path / "small/lists/val.txt").read_text() == "000000000042\n"
    labels = load_image_labels(tmp_path / "small/cls_labels.npy")
    names = read_class_names("release-coco")
    assert set(labels) == {"000000000009", "000000000042"} and len(names) == 90
    assert [names[k] for k in np.flatnonzero(labels["000000000009"])] == ["person", "bottle"]
    mask = read_mask(tmp_path / "small/masks/000000000009.png")
    assert mask.shape == (40, 50) and (mask[0, 0], mask[12, 12], mask[30, 30]) == (0, 44, 1)  # the smaller one above
    own = tmp_path / "WeakTr/coco"
    own.mkdir(parents=True)
    write_lists(tmp_path / "small/lists", tmp_path / "small/cls_labels.npy", own)
    folder = lay_out_coco(coco, tmp_path / "WeakTr", tmp_path / "small/masks")
    assert (folder / "images/000000000042.jpg").read_text() == "COCO_val2014_000000000042.jpg"
    assert (folder / "voc_format/class_labels/000000000009.png").is_file()
    splits = [(folder / f"voc_format/{name}.txt").read_text() for name in ("train", "val", "val_5000")]
    assert splits == ["000000000009\n", "000000000042\n", "000000000042\n"]
    (coco / "val2014/COCO_val2014_000000000042.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"COCO_val2014_000000000042\.jpg, an image of .*coco/val_id\.txt"):
        lay_out_coco(coco, tmp_path / "WeakTr", tmp_path / "small/masks")


def test_the_command(voc, tmp_path):
    lists(tmp_path / "WeakTr/voc12", train_aug_id=["a"], train_id=["a"], val_id=["d"])
    command = [sys.executable, "-m", "semples_plugin.recipes.weaktr_layout", "voc", str(voc), "."]
    done = subprocess.run(command, cwd=tmp_path / "WeakTr", capture_output=True, text=True, check=True)
    assert done.stdout == "made data/voc12/VOCdevkit/VOC2012\n"
    assert (tmp_path / "WeakTr/data/voc12/VOCdevkit/VOC2012/JPEGImages/2007_000032.jpg").is_file()


def test_labels_of_voc_masks_are_weaktrs(tmp_path):
    """As the recipe's miniature makes them."""
    (tmp_path / "masks").mkdir()
    write_mask(tmp_path / "masks/2007_000032.png", np.array([[0, 1], [15, 255]], np.uint8))
    command = [sys.executable, "-m", "semples_plugin", "labels", "masks", "--classes", "voc", "--out", "cls_labels.npy"]
    subprocess.run(command, cwd=tmp_path, capture_output=True, check=True)
    assert np.flatnonzero(load_image_labels(tmp_path / "cls_labels.npy")["2007_000032"]).tolist() == [0, 14]
