import os
from pathlib import Path

import numpy as np
import pytest

from semples_plugin.data.image_labels import load_image_labels, read_class_names
from semples_plugin.utils.checks import class_positions, first_difference

LABELS = np.eye(20, dtype=np.float32)[3]


def test_class_names_are_one_in_any_spelling_unless_signs_tell_them_apart():
    position = class_positions(["TV monitor", "t-shirt", "c", "c++", "C#", "ER+", "ER-", "co op", "coop"])
    for k, spellings in enumerate((
        ("tvmonitor", "tv-monitor", "tv/monitor", " tv_monitor "), ("T shirt", "tshirt"), ("C",), ("C++", "c + +"),
        ("c#",), ("er+", "ER +"), ("er-", "ER_-"), ("Co op",), ("COOP",),
    )):  # fmt: skip
        assert [position(name) for name in spellings] == [k] * len(spellings)
    assert [position(name) for name in ("co-op", "ER", "+", "c--", "", "monitor")] == [None] * 6
    assert first_difference(["tv monitor", "ER-"], ["TVmonitor", "er-"]) is None
    for a, b, k in (
        (["x", "ER+", "ER-"], ["x", "ER-", "ER+"], 1), (["co op", "coop"], ["coop", "co op"], 0),
        (["ER+", "x"], ["ER-", "x"], 0), (["c", "x"], ["c#", "x"], 0), (["a", "b"], ["a"], 1), (["a"], ["a", "b"], 1),
    ):  # fmt: skip
        assert first_difference(a, b) == k == first_difference(b, a)


@pytest.mark.parametrize("key", [2007000032, "2007_000032", "2007_000032.jpg", np.int32(2007000032)])
def test_every_hosts_keys(tmp_path, key):
    np.save(tmp_path / "labels.npy", {key: LABELS})
    labels = load_image_labels(tmp_path / "labels.npy")
    assert list(labels) == ["2007_000032"]
    np.testing.assert_array_equal(labels["2007_000032"], LABELS)


def test_class_names_come_from_a_file_or_a_preset(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfcat\r\n\r\n dog\r\n")  # as Windows' editors write it
    assert read_class_names(path) == ("cat", "dog") and len(read_class_names("coco")) == 80
    for text, words in (("background\ncat", "begins with 'background'"), ("cat\ncat", "'cat' twice"), ("", "none")):
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"names\.txt: class_names: .*{words}"):
            read_class_names(path)
    with pytest.raises(FileNotFoundError, match="one class name a line, or a preset"):
        read_class_names(tmp_path / "nowhere.txt")


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


class Address:
    """A real array type that, unpickled by numpy, follows a pointer which the file chose."""

    def __reduce__(self):
        return (np.ndarray, ((1,), np.dtype("O"), b"A" * 8))


def test_labels_of_other_shapes_are_refused_in_a_sentence(tmp_path):
    path = tmp_path / "labels.npy"
    for labels, words in (
        ({"a": np.zeros(20), "b": np.zeros(21)}, "expected labels of one length K, got several"),
        ({"a": np.full(5000, 0.3)}, "expected multi-hot labels .* for 'a', got 0.3$"),
        ({"a" * 5000: np.zeros((70, 9))}, r"expected .* for 'a{79}, got float64 \[70, 9\]$"),
        ({"": LABELS}, "expected the name of an image, got ''$"),
        ({2.5: LABELS}, "expected image names or integers as keys, got 2.5$"),
    ):
        np.save(path, np.array(labels, dtype=object))
        with pytest.raises(ValueError, match=rf"labels\.npy is no dictionary of image labels: {words}") as error:
            load_image_labels(path)
        assert len(str(error.value)) < 500 and "\n" not in str(error.value)


@pytest.mark.parametrize("content", ["attack", "address", "halves", "words", "none", "list", "cut"])
def test_other_files_are_refused_and_no_code_runs(tmp_path, content):
    path = tmp_path / "labels.npy"
    things = {
        "attack": {"a": Attack(str(tmp_path / "attacked"))},
        "address": {"a": Address()},
        "words": {"a": np.array(["cat"])},
        "none": {None: LABELS},
        "halves": {"a": LABELS / 2},
        "list": ["a"],
        "cut": {"a": LABELS},
    }
    np.save(path, np.array(things[content], dtype=object))
    if content == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"labels\.npy"):
        load_image_labels(path)
    assert not (tmp_path / "attacked").exists()


def test_a_flipped_byte_is_an_error_or_changes_a_name_but_never_crashes(tmp_path):
    path = tmp_path / "labels.npy"
    np.save(path, {"2007_000032": LABELS, "2007_000039": LABELS})
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    refused = 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[generator.integers(len(damaged))] = generator.integers(256)
        path.write_bytes(damaged)
        try:
            load_image_labels(path)
        except ValueError:
            refused += 1
    assert refused > 100


def test_a_preset_is_its_own_whatever_lies_in_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("voc").write_text("one\ntwo\n")
    Path("coco").mkdir()
    assert len(read_class_names("voc")) == 20 and len(read_class_names("coco")) == 80
    assert read_class_names("./voc") == ("one", "two")
    Path("folder").mkdir()
    with pytest.raises(FileNotFoundError, match="there is no folder: expected a text file with one class name a line"):
        read_class_names("folder")
