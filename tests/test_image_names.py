"""One image has one name, in whatever spelling it comes, and two images never share one."""

import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from semples_plugin.cli.app import main
from semples_plugin.data.cam_files import Cams, chosen_cams, list_cams, read_image_list, write_cams
from semples_plugin.data.convert import convert_folder
from semples_plugin.data.image_labels import load_image_labels
from semples_plugin.data.image_names import (
    ImageNames,
    file_stems,
    image_name,
    key_of_name,
    name_of_key,
    read_image_paths,
)
from semples_plugin.data.images import find_image, find_mask, write_mask
from semples_plugin.data.make_labels import make_labels
from semples_plugin.data.pseudo_masks import Recipe, write_pseudo_masks
from semples_plugin.evaluation.folders import evaluate_folder

SPELLINGS = [
    ("2007_000032", ("2007_000032", "2007_000032.jpg", "/JPEGImages/2007_000032.jpg", "masks\\2007_000032.PNG")),
    ("000000000009", ("000000000009", "COCO_train2014_000000000009", "val2014/COCO_val2014_000000000009.jpg",
                      "COCO_train2014_000000000009.npy", "cams/000000000009.npz")),
    ("001", ("001", "001.tif", "site1/001.jpeg", "001.jpg.npy")),
    ("frame_0.5", ("frame_0.5", "frame_0.5.png", "a.b/frame_0.5.webp")),
    ("10:30", ("10:30", "0:/10:30.jpg")),
    ("im 0", ("im 0", "im 0.jpg", "my images/im 0.png")),
    ("COCO_train2014_mine", ("COCO_train2014_mine", "x/COCO_train2014_mine.png")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "path"), [(name, path) for name, paths in SPELLINGS for path in paths])
def test_a_list_a_file_and_a_label_key_give_one_name(name, path, tmp_path):
    assert image_name(path) == name and image_name(name) == name
    assert all(image_name(stem) == name for stem in file_stems(name))
    for line in (path, *([] if " " in path else [f"{path}.jpg other/column.png"])):
        (tmp_path / "list.txt").write_text(f"{line}\n")
        assert read_image_list(tmp_path / "list.txt") == [name]
    np.save(tmp_path / "labels.npy", {path: np.eye(3, dtype=np.float32)[0]})
    assert list(load_image_labels(tmp_path / "labels.npy")) == [name]
    (tmp_path / "table.csv").write_text(f"{path},a\n")
    assert list(make_labels(tmp_path / "table.csv", tmp_path / "out.npy", ["a"])[0]) == [name]
    file = tmp_path / "cams" / (re.split(r"[/\\]", path)[-1] + ".npy")
    write_cams(file, Cams([np.ones((2, 2), np.float32)], (0,), "weaktr"))
    assert chosen_cams(tmp_path / "cams", tmp_path / "list.txt") == {name: file}


def test_keys_come_back_as_the_names_that_they_stand_for():
    for key, name in ((2007000032, "2007_000032"), (9, "000000000009"), (581929, "000000581929"),
                      (np.int64(9), "000000000009"), (20240101120000, "20240101120000"), ("001", "001"),
                      ("COCO_val2014_000000000042.jpg", "000000000042")):  # fmt: skip
        assert name_of_key(key) == name
    for name in ("2007_000032", "000000000009", "000000581929", "20240101120000"):
        assert name_of_key(key_of_name(name)) == name == name_of_key(name)
    for name in ("001", "9", "holiday", "2007000032", "0007_000032", "000000000_009", "001234567890", "२००७"):
        with pytest.raises(ValueError, match=f"'{name}' is no number that hosts read back"):
            key_of_name(name)
    for key, error in ((None, TypeError), (True, TypeError), (9.0, TypeError), (-9, ValueError)):
        with pytest.raises(error, match="as keys, got"):
            name_of_key(key)
    for path in ("", " ", "..", "a/..", "a\0.jpg", "b/a\n", "a\x7f"):
        with pytest.raises(ValueError, match="expected the name of an image, got"):
            image_name(path)


@pytest.mark.parametrize("keys", ["name", "integer"])
def test_cocos_labels_fit_cocos_lists_whatever_the_keys(keys, tmp_path):
    (tmp_path / "labels.csv").write_text("COCO_train2014_000000000009.jpg,b\nCOCO_val2014_000000000042.jpg\n")
    make_labels(tmp_path / "labels.csv", tmp_path / "labels.npy", ["a", "b", "c"], keys)
    (tmp_path / "list.txt").write_text("COCO_train2014_000000000009\n000000000042\n")
    labels = load_image_labels(tmp_path / "labels.npy")
    assert [labels[name].tolist() for name in read_image_list(tmp_path / "list.txt")] == [[0, 1, 0], [0, 0, 0]]
    raw = np.load(tmp_path / "labels.npy", allow_pickle=True).item()
    assert set(raw) == ({9, 42} if keys == "integer" else {"000000000009", "000000000042"})


def test_two_images_of_one_name_are_refused_where_they_meet(tmp_path):
    names = ImageNames()
    assert [names.of(path) for path in ("site1/001.png", "site1\\001.png", "site1/002.png")] == ["001", "001", "002"]
    with pytest.raises(ValueError, match=r"^site1/001\.png and site2/001\.png would both be called '001': .{,200}$"):
        names.of("site2/001.png")
    with pytest.raises(ValueError, match=r"^.{,500}$"):
        names.of("x" * 5000 + "/001.png")
    (tmp_path / "list.txt").write_text("site1/001.png\nsite2/002.png\nsite2/001.png\n")
    with pytest.raises(ValueError, match=r"list\.txt, line 3: site1/001\.png and site2/001\.png would both be called"):
        read_image_list(tmp_path / "list.txt")
    mask = np.ones((2, 2), np.uint8)
    for name in ("000000000009", "COCO_val2014_000000000009"):
        write_mask(tmp_path / "masks" / f"{name}.png", mask)
    for meet in (
        lambda: list_cams(tmp_path / "masks", masks=True),
        lambda: make_labels(tmp_path / "masks", tmp_path / "labels.npy", ["a"]),
    ):
        with pytest.raises(
            ValueError, match=r"000000000009\.png and .*COCO_val2014_0.*png would both be called '0{11}9'"
        ):
            meet()
    for pair in ({9: [1.0], "000000000009": [0.0]}, {"a.jpg": [1.0], "x/a.png": [0.0]}):
        np.save(tmp_path / "labels.npy", {key: np.array(value) for key, value in pair.items()})
        with pytest.raises(ValueError, match=r"the keys .* and '.*' both mean the image"):
            load_image_labels(tmp_path / "labels.npy")


def test_files_with_and_without_cocos_prefix_are_found_and_keep_their_stems(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    cam, prefixed = np.zeros((6, 8), np.float32), "COCO_train2014_000000000009"
    cam[:3] = 1
    for stem in (prefixed, "000000000042"):
        write_cams(f"cams/{stem}.npy", Cams([cam], (0,), "weaktr"))
    for stem in ("000000000009", "COCO_val2014_000000000042"):  # each the other way round
        write_mask(f"masks/{stem}.png", cam.astype(np.uint8))
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 6)).save(f"images/{prefixed}.jpg")
    Image.new("RGB", (8, 6)).save("images/000000000042.png")
    (tmp_path / "list.txt").write_text("train2014/COCO_train2014_000000000009.jpg\nCOCO_val2014_000000000042\n")
    found = evaluate_folder("cams", "masks", ["a"], image_list="list.txt", progress=False)
    assert list(found.counts) == ["000000000009", "000000000042"] and found.miou == 1
    assert not found.missing and not found.extra and not found.failed
    assert find_image("images", "000000000009").name == f"{prefixed}.jpg"
    assert find_image("images", "000000000042").name == "000000000042.png"
    assert find_mask("masks", "7").name == "7.png" and find_image("images", "7").name == "7.jpg"
    for _ in range(2):  # the second call goes on where the first ended
        convert_folder("cams", "fma", "fma", image_list="list.txt", progress=False)
        write_pseudo_masks("cams", "pseudo", Recipe((0.5,)), images="images", image_list="list.txt", progress=False)
    convert_folder("fma", "back", "weaktr", images="images", progress=False)
    for folder in ("fma", "back", "pseudo"):
        assert sorted(path.stem for path in (tmp_path / folder).iterdir()) == ["000000000042", prefixed]
    (tmp_path / "names.txt").write_text("a")
    command = ["show", "cams", "--masks", "masks", "--images", "images", "--classes", "names.txt", "--names", prefixed]
    assert main(command) == 0 and (tmp_path / "cams.png").exists(), capsys.readouterr().err


def test_lines_are_names_with_spaces_or_columns(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text(
        "im 0\n\nim 3\n  im 0.png \n/my images/b c.jpg\nim.jpg masks/im.png\nd.jpg\te.png f.npy\n2007_000032  -1\n"
    )
    paths = ["im 0", "im 3", "im 0.png", "/my images/b c.jpg", "im.jpg", "d.jpg", "2007_000032  -1"]
    with pytest.raises(ValueError, match=r"list\.txt, line 4: im 0 and im 0\.png would both be called 'im 0'"):
        read_image_paths(file)
    file.write_text(file.read_text().replace("im 0.png", "im 0"))
    paths[2] = "im 0"
    assert read_image_paths(file) == paths
    assert read_image_list(file) == ["im 0", "im 3", "b c", "im", "d", "2007_000032  -1"]
    for second in ("a.jpg c.jpg", "a.jpg a.jpg"):
        file.write_text(f"a.jpg b.jpg\n{second}\n")
        with pytest.raises(ValueError, match=f"line 2: a.jpg stands beside b.jpg and {second[6:]}; a file whose name"):
            read_image_paths(file)
    file.write_text("\n \n")
    with pytest.raises(ValueError, match="names no images"):
        read_image_paths(file)


def test_names_need_no_torch():
    code = "import sys, semples_plugin.data.image_names; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
