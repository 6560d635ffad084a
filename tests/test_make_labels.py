import json

import cv2
import numpy as np
import pytest
from PIL import Image

from semples_plugin.cli.app import main
from semples_plugin.data.image_labels import classes_beside, load_image_labels
from semples_plugin.data.make_labels import make_labels
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
    (tmp_path / "short.csv").write_text("001.jpg,cat\n")
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
        (tmp_path / "mine.csv", NAMES, "integer", "'holiday' is no number that hosts read back"),
        (tmp_path / "short.csv", NAMES, "integer", "'001' is no number that hosts read back"),
    ):
        with pytest.raises(ValueError, match=words):
            make_labels(source, out, names, keys)
    with pytest.raises(FileNotFoundError, match="there is no"):
        make_labels(tmp_path / "nothing", out, NAMES)
    assert out.read_bytes() == b"older"


CATEGORIES = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
IMAGES = [{"id": 5, "file_name": "1.jpg"}]
WHOLE = {"images": IMAGES, "annotations": [{"image_id": 5, "category_id": 1}], "categories": CATEGORIES}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([WHOLE], "got a list"),
        ({**WHOLE, "images": None}, "'images' is no list"),
        ({**WHOLE, "images": [{"id": 5}]}, "one of its images has no usable 'file_name': {'id': 5}"),
        ({**WHOLE, "images": [{"id": 5, "file_name": 7}]}, "one of its images has no usable 'file_name'"),
        ({**WHOLE, "images": [{"id": [5], "file_name": "1.jpg"}]}, "one of its images has no usable 'id'"),
        ({**WHOLE, "images": [{"id": 5, "file_name": ""}]}, "expected the name of an image"),
        ({**WHOLE, "images": [*IMAGES, {"id": 5, "file_name": "2.jpg"}]}, "1.jpg and 2.jpg of its images have one id"),
        ({**WHOLE, "annotations": {"a": 1}}, "'annotations' is no list"),
        ({**WHOLE, "annotations": [7]}, "one of its annotations has no usable 'image_id': 7"),
        ({**WHOLE, "annotations": [{"image_id": 5, "x": ["y" * 999] * 999}]}, "has no usable 'category_id'"),
        ({**WHOLE, "annotations": [{"image_id": 5, "category_id": {}}]}, "has no usable 'category_id'"),
        ({**WHOLE, "categories": [{"id": 1}]}, "one of its categories has no usable 'name'"),
        ({**WHOLE, "categories": [{"id": None, "name": "cat"}, *CATEGORIES]}, "categories has no usable 'id'"),
        ({**WHOLE, "categories": [*CATEGORIES, {"id": 3, "name": "Cat "}]}, "two of its categories are called 'cat'"),
        ({**WHOLE, "categories": [*CATEGORIES, {"id": 2, "name": "bird"}]}, "bird and dog of its categories have"),
        ({**WHOLE, "categories": [{"id": 0, "name": "background"}, *CATEGORIES]}, "begins with 'background'"),
        ({**WHOLE, "categories": []}, "got none"),
        (b'{"images": ' + b"[" * 200_000, "lists in lists without an end"),
        (b'{"images": [], "annotations": ' + b'{"a": ' * 200_000, "lists in lists without an end"),
        (b"\xe9" + b'{"images": []}' * 9999, "can't decode byte 0xe9 in position 0"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "Exceeds the limit"),
        (b"", "Expecting value"),
    ],
)  # fmt: skip
def test_damaged_coco_is_refused_in_a_sentence(content, words, tmp_path):
    path, out = tmp_path / "instances.json", tmp_path / "out.npy"
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    for names in (None, ["cat"]):
        if names is not None and ("background" in words or words == "got none"):
            continue  # given names leave categories out
        with pytest.raises(ValueError, match=r"instances\.json: expected COCO's") as error:
            make_labels(path, out, names)
        message = str(error.value)
        assert words in message and len(message) < 500 and "\n" not in message
    assert not out.exists()


def test_names_of_categories_may_be_spelled_otherwise_but_never_mean_two(tmp_path):
    names = ["ER+", "ER-", "TV monitor", "tv-monitor", "tvmonitor"]
    categories = [{"id": k, "name": name} for k, name in enumerate(names)]
    annotations = [{"image_id": 5, "category_id": k} for k in range(5)]
    path = tmp_path / "instances.json"
    path.write_text(json.dumps({"images": IMAGES, "annotations": annotations, "categories": categories}))
    assert make_labels(path, tmp_path / "all.npy")[0] == {"1": {0, 1, 2, 3, 4}}
    with pytest.warns(UserWarning) as caught:
        present, _ = make_labels(path, tmp_path / "some.npy", ["er -", "ER+", "tv_monitor"])
    assert present == {"1": {0, 1}}
    text = " ".join(str(warning.message) for warning in caught)
    assert "no category tv_monitor" in text and "no such names: TV monitor, tv-monitor, tvmonitor" in text


def test_a_table_keeps_classes_apart_that_differ_in_a_sign(tmp_path):
    (tmp_path / "labels.csv").write_text("1.jpg,c++,er-\n2.jpg,C,ER+\n3.jpg,c#\n")
    present, _ = make_labels(tmp_path / "labels.csv", tmp_path / "out.npy", ["c", "c++", "c#", "ER+", "ER-"])
    assert present == {"1": {1, 4}, "2": {0, 3}, "3": {2}}
    (tmp_path / "labels.csv").write_text("1.jpg,co-op\n")
    with pytest.raises(ValueError, match="line 1: 'co-op' is none of the 2 class names"):
        make_labels(tmp_path / "labels.csv", tmp_path / "other.npy", ["co op", "coop"])


def test_damaged_rows_are_named_and_nothing_is_written(tmp_path):
    path, out = tmp_path / "labels.csv", tmp_path / "out.npy"
    rows = [f"{k}.jpg,cat" for k in range(10_000)]
    for line, row, words in (
        (2, '2.jpg,"cat', "unexpected end of data"),
        (3, '"3.jpg,cat', "unexpected end of data"),
        (3, '"3.jpg,cat"', "with commas, got '3.jpg,cat'"),
        (4, '4.jpg,"cat"s', "',' expected after '\"'"),
        (5, ",cat", "expected the name of an image, got ''"),
        (6, " .jpg/,cat", "expected the name of an image, got '.jpg/'"),
        (7, "7.jpg,cat," + "x" * 200_000, "field larger than field limit"),
        (8, "y" * 9999 + ";z", "with commas, got 'y+$"),
        (9, "9.jpg," + "z" * 9999, "'z+ is none of the 3 class names"),
    ):
        path.write_text("\n".join([*rows[: line - 1], row, *rows[line:]]))
        with pytest.raises(ValueError, match=rf"labels\.csv, line {line}: .*{words}") as error:
            make_labels(path, out, NAMES)
        assert len(str(error.value)) < 500
    path.write_bytes("1.jpg,cat\n".encode("utf-16-le"))
    with pytest.raises(ValueError, match="expected text in UTF-8, got zero bytes"):
        make_labels(path, out, NAMES)
    path.write_bytes(b"caf\xe9.jpg,cat\n" * 999)
    with pytest.raises(ValueError, match=r"labels\.csv: expected text in UTF-8 \(.{,200}$"):
        make_labels(path, out, NAMES)
    assert not out.exists()
    path.write_text('"a, b.jpg","tv monitor"\n')  # quotes that are closed are CSV's own
    assert make_labels(path, out, NAMES)[0] == {"a, b": {2}}


def test_what_is_there_is_not_overwritten(tmp_path, capsys):
    own, names, out = table(tmp_path / "own.csv"), tmp_path / "names.txt", tmp_path / "cls_labels.npy"
    names.write_text("\n".join(NAMES))
    before = own.read_bytes()
    command = ["labels", str(own), "--classes", str(names), "--out"]
    assert main([*command, str(own)]) == 1 and own.read_bytes() == before
    assert "own.csv exists and holds something else: choose another name" in capsys.readouterr().err
    assert main([*command, str(out)]) == 0
    made = out.read_bytes(), out.stat().st_ino
    assert main([*command, str(out)]) == 0 and (out.read_bytes(), out.stat().st_ino) == made  # the same again
    assert main([*command, str(out), "--keys", "integer"]) == 1 and out.read_bytes() == made[0]
    own.write_text("2007_000032.jpg,dog\n")
    assert main([*command, str(out)]) == 1 and out.read_bytes() == made[0]
    assert main([*command, str(tmp_path)]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cls_labels.npy", "names.txt", "own.csv"]


def test_class_names_beside_the_source_are_found(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    masks(tmp_path / "masks"), table(tmp_path / "labels.csv"), coco(tmp_path / "instances.json")
    assert main(["labels", "masks"]) == 1 and "class names are needed" in capsys.readouterr().err
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    assert classes_beside("masks") == tmp_path / "classes.txt" and classes_beside("masks/x") is None
    for source in ("masks", "labels.csv"):
        assert main(["labels", source, "--out", f"{source}.npy"]) == 0
        assert {name: label.tolist() for name, label in load_image_labels(f"{source}.npy").items()} == TRUTH
    (tmp_path / "classes.txt").write_text("bird")
    assert main(["labels", "instances.json"]) == 0  # COCO's JSON has its own
    assert "tv monitor" in capsys.readouterr().out
    assert main(["labels", "masks", "--out", "x.npy"]) == 1 and "expected values of 0 to 1" in capsys.readouterr().err


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
