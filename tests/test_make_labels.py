import json

import cv2
import numpy as np
import pytest
from PIL import Image

from semples_plugin.cli import main
from semples_plugin.labels import load_image_labels
from semples_plugin.make_labels import make_labels
from semples_plugin.presets import load_preset

NAMES = ("cat", "dog", "tv monitor")
TRUTH = {"2007_000032": [1, 0, 1], "2007_000039": [0, 0, 0]}


def masks(folder):
    folder.mkdir()
    first, second = np.zeros((8, 8), np.uint8), np.full((8, 8), 255, np.uint8)
    first[:4], first[4:6], first[7] = 1, 3, 255
    palette = Image.fromarray(first).convert("P")
    palette.putdata(first.ravel().tolist())
    palette.putpalette([7 * i % 256 for i in range(768)])  # colours that are not the numbers, as in VOC
    palette.save(folder / "2007_000032.png")
    cv2.imwrite(str(folder / "2007_000039.png"), second)
    return folder


def coco(path):
    content = {
        "images": [{"id": 5, "file_name": "2007_000032.jpg"}, {"id": 9, "file_name": "2007_000039.jpg"}],
        "annotations": [{"image_id": 5, "category_id": 90}, {"image_id": 5, "category_id": 2}] * 2,
        "categories": [{"id": 90, "name": "tv monitor"}, {"id": 2, "name": "cat"}, {"id": 13, "name": "dog"}],
    }
    path.write_text(json.dumps(content))
    return path


def table(path):
    path.write_text("image,classes\n2007_000032.jpg,cat\n\n2007_000039.jpg\n2007_000032.jpg,tv monitor,cat\n")
    return path


@pytest.fixture(params=["masks", "coco", "table"])
def source(request, tmp_path):
    return {
        "masks": lambda: masks(tmp_path / "masks"),
        "coco": lambda: coco(tmp_path / "instances.json"),
        "table": lambda: table(tmp_path / "labels.csv"),
    }[request.param]()


def test_every_source_gives_the_same_labels_under_both_keys(source, tmp_path, capsys):
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    for keys in ("name", "integer"):
        out = tmp_path / f"{keys}.npy"
        command = ["labels", str(source), "--classes", str(tmp_path / "names.txt"), "--out", str(out), "--keys", keys]
        assert main(command) == 0
        text = " ".join(capsys.readouterr().out.split())
        assert "cat 1 dog 0 tv monitor 1 images 2 without a label 1" in text
        as_hosts_read = np.load(out, allow_pickle=True).item()
        assert set(as_hosts_read) == ({2007000032, 2007000039} if keys == "integer" else set(TRUTH))
        assert all(label.dtype == np.float32 for label in as_hosts_read.values())
        found = load_image_labels(out)
        assert {name: label.tolist() for name, label in found.items()} == TRUTH


def test_cocos_ids_become_columns_in_their_order(tmp_path):
    present, names = make_labels(coco(tmp_path / "instances.json"), tmp_path / "out.npy")
    assert names == NAMES and present["2007_000032"] == {0, 2}
    with pytest.warns(UserWarning, match="left out, for the class list has no such names: cat, dog"):
        present, _ = make_labels(tmp_path / "instances.json", tmp_path / "tv.npy", ["TVmonitor"])
    assert present == {"2007_000032": {0}, "2007_000039": set()}


def test_what_is_wrong_is_named_and_nothing_is_written(tmp_path):
    out = tmp_path / "out.npy"
    out.write_bytes(b"older")
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.json").write_text("{}")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no picture")
    (tmp_path / "colour").mkdir()
    cv2.imwrite(str(tmp_path / "colour" / "a.png"), np.zeros((4, 4, 3), np.uint8))
    (tmp_path / "mine.csv").write_text("holiday.jpg,cat\n")
    table(tmp_path / "labels.csv")
    (tmp_path / "twice.csv").write_text("x/1.jpg,cat\ny/1.png,dog\n")
    (tmp_path / "semicolons.csv").write_text("1.jpg,cat\n2.jpg;dog\n")
    (tmp_path / "hot.csv").write_text("1.jpg,0,1,0\n")
    (tmp_path / "nameless.csv").write_text("1.jpg\n2.jpg\n")
    content = json.loads(coco(tmp_path / "c.json").read_text())
    (tmp_path / "orphan.json").write_text(json.dumps({**content, "annotations": [{"image_id": 5, "category_id": 7}]}))
    twice = [{"id": 5, "file_name": "a/1.jpg"}, {"id": 9, "file_name": "b/1.jpg"}]
    (tmp_path / "twice.json").write_text(json.dumps({**content, "images": twice}))
    for source, names, keys, words in (
        (masks(tmp_path / "masks"), NAMES[:2], "name", r"2007_000032\.png: expected values of 0 to 2 and 255, got 3"),
        (tmp_path / "labels.csv", NAMES[:2], "name", "line 5: 'tv monitor' is none of the 2 class names"),
        (tmp_path / "labels.csv", None, "name", "class names are needed"),
        (coco(tmp_path / "c.json"), ["bird"], "name", "none of the categories bird; it has cat, dog, tv monitor"),
        (tmp_path / "orphan.json", None, "name", "annotation of image_id 5 and category_id 7 points to no image"),
        (tmp_path / "twice.json", None, "name", "a/1.jpg and b/1.jpg would both be called '1'"),
        (tmp_path / "twice.csv", NAMES, "name", "x/1.jpg and y/1.png would both be called '1'"),
        (tmp_path / "semicolons.csv", NAMES, "name", "line 2: .* with commas, got '2.jpg;dog'"),
        (tmp_path / "hot.csv", NAMES, "name", "line 1: '0' is none of the 3 class names; .* without 0 and 1"),
        (tmp_path / "nameless.csv", NAMES, "name", "no row names a class"),
        (tmp_path / "bad.json", None, "name", "expected COCO's images"),
        (tmp_path / "bad", NAMES, "name", r"a\.png is damaged"),
        (tmp_path / "colour", NAMES, "name", r"one channel of class numbers in bytes, got uint8 \[4, 4, 3\]"),
        (tmp_path / "empty", NAMES, "name", "holds no PNG masks"),
        (out, NAMES, "name", "expected a folder of masks"),
        (tmp_path / "mine.csv", NAMES, "integer", "'holiday' is no number"),
    ):
        with pytest.raises(ValueError, match=words):
            make_labels(source, out, names, keys)
    with pytest.raises(FileNotFoundError, match="there is no"):
        make_labels(tmp_path / "nothing", out, NAMES)
    assert out.read_bytes() == b"older"


def test_weaktrs_coco_has_ninety_columns_and_plain_names(tmp_path, capsys):
    preset = load_preset("release-coco")
    used = [(k + 1, name) for k, name in enumerate(preset.class_names) if name not in ("hat", "blender")]
    content = {
        "images": [{"id": 57870, "file_name": "COCO_train2014_000000057870.jpg"}],
        "annotations": [{"image_id": 57870, "category_id": 90}, {"image_id": 57870, "category_id": 1}],
        "categories": [{"id": k, "name": name} for k, name in used],
    }
    (tmp_path / "instances.json").write_text(json.dumps(content))
    out = tmp_path / "cls_labels.npy"
    assert main(["labels", str(tmp_path / "instances.json"), "--classes", "release-coco", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert "no category hat, blender: their columns stay 0" in said.err and "WeakTr's style" in said.out
    labels = load_image_labels(out)
    assert list(labels) == ["000000057870"] and labels["000000057870"].nonzero()[0].tolist() == [0, 89]


def test_a_dot_in_a_name_is_no_ending(tmp_path):
    (tmp_path / "labels.csv").write_text("frame_0.5,dog\nframe_0.7.PNG,cat\n")
    present, _ = make_labels(tmp_path / "labels.csv", tmp_path / "out.npy", NAMES)
    assert present == {"frame_0.5": {1}, "frame_0.7": {0}}
