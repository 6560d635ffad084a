import os

import numpy as np
import pytest

from semples_plugin.labels import load_image_labels

LABELS = np.eye(20, dtype=np.float32)[3]


@pytest.mark.parametrize("key", [2007000032, "2007_000032", "2007_000032.jpg", np.int32(2007000032)])
def test_every_hosts_keys(tmp_path, key):
    np.save(tmp_path / "labels.npy", {key: LABELS})
    labels = load_image_labels(tmp_path / "labels.npy")
    assert list(labels) == ["2007_000032"]
    np.testing.assert_array_equal(labels["2007_000032"], LABELS)


class Attack:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


@pytest.mark.parametrize("content", ["attack", "halves", "list", "cut"])
def test_other_files_are_refused_and_no_code_runs(tmp_path, content):
    path = tmp_path / "labels.npy"
    things = {
        "attack": {"a": Attack(str(tmp_path / "attacked"))},
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
