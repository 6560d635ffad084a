import importlib.util
import json

import numpy as np
import pytest
from PIL import Image
from test_cam_files import CLASSES, as_fma, as_weaktr, maps

from semples_plugin.cams.drawing import voc_palette
from semples_plugin.cams.pseudo_masks import Recipe, refine_scores, to_labels, write_pseudo_masks
from semples_plugin.cli import main


def test_labels_come_from_thresholds_a_power_or_between_two_thresholds():
    scores = np.array([[[0.2, 0.5, 0.9, 0.1]], [[0.3, 0.4, 0.8, 0.1]]], np.float32)
    assert to_labels(scores, (3, 7), Recipe((0.3,))).tolist() == [[0, 4, 4, 0]]
    assert to_labels(scores, (3, 7), Recipe((0.2, 0.6))).tolist() == [[255, 255, 4, 0]]
    assert to_labels(scores, (3, 7), Recipe(power=1)).tolist() == [[0, 0, 4, 0]]
    assert to_labels(scores, (3, 7), Recipe(power=2)).tolist() == [[0, 4, 4, 0]]


@pytest.fixture
def world(tmp_path):
    for name in ("cams", "fma", "images"):
        (tmp_path / name).mkdir()
    for n in range(3):
        as_weaktr(tmp_path / "cams" / f"{n}.npy", maps(seed=n))
        as_fma(tmp_path / "fma" / f"{n}.npz", maps((7, 9), seed=n))
        Image.fromarray(np.zeros((30, 41, 3), np.uint8)).save(tmp_path / "images" / f"{n}.jpg")
    return tmp_path


def test_masks_are_palette_pngs_and_a_second_call_makes_only_what_is_missing(world, capsys):
    out = world / "out"
    command = ["pseudo-masks", str(world / "cams"), str(out), "--threshold", "0.4", "0.6", "--quiet", "--workers", "1"]
    assert main(command) == 0
    for n in range(3):
        with Image.open(out / f"{n}.png") as picture:
            assert picture.mode == "P" and picture.getpalette()[:768] == voc_palette().flatten().tolist()
            expected = to_labels(maps(seed=n), CLASSES, Recipe((0.4, 0.6)))
            assert np.array_equal(np.asarray(picture), expected) and 255 in expected
    (out / "1.png").unlink()
    before = (out / "0.png").stat().st_mtime_ns
    assert main(command) == 0
    assert (out / "1.png").exists() and (out / "0.png").stat().st_mtime_ns == before
    assert json.loads((out / "settings.json").read_text())["thresholds"] == [0.4, 0.6]
    assert main([*command[:3], "--threshold", "0.5"]) == 1
    assert "choose another folder" in capsys.readouterr().err


def test_fma_wsss_needs_the_photographs(world, capsys):
    failed = write_pseudo_masks(world / "fma", world / "a", Recipe(power=2), workers=1, progress=False)
    assert len(failed) == 3 and "give --images FOLDER" in failed["0"]
    (world / "fma" / "2.npz").write_bytes(b"PK")
    failed = write_pseudo_masks(
        world / "fma", world / "b", Recipe(power=2), images=world / "images", workers=1, progress=False
    )
    assert list(failed) == ["2"] and "2.npz is damaged" in failed["2"]
    assert np.asarray(Image.open(world / "b" / "0.png")).shape == (30, 41)


def test_bad_recipes_and_folders_are_named(world):
    for arguments, words in (
        ({}, "one or two thresholds, or a power"),
        ({"thresholds": (0.5,), "power": 2}, "not both"),
        ({"thresholds": (0.5, 0.3)}, "ascending"),
        ({"thresholds": (0.1, 0.2, 0.3)}, "two ascending"),
        ({"thresholds": (1.5,)}, "from 0 to 1"),
        ({"power": 0}, "more than 0"),
        ({"thresholds": (0.5,), "crf": -1}, "iterations"),
    ):
        with pytest.raises(ValueError, match=words):
            Recipe(**arguments)
    (world / "full").mkdir()
    (world / "full" / "x.png").touch()
    with pytest.raises(ValueError, match="holds PNGs already"):
        write_pseudo_masks(world / "cams", world / "full", Recipe((0.5,)), progress=False)
    with pytest.raises(ValueError, match="a CRF looks at the photographs"):
        write_pseudo_masks(world / "cams", world / "x", Recipe((0.5,), crf=5), progress=False)


@pytest.mark.skipif(importlib.util.find_spec("pydensecrf") is None, reason="needs semples-plugin[crf]")
def test_the_crf_moves_a_boundary_to_the_edge_in_the_photograph(world):
    photograph = np.zeros((40, 40, 3), np.uint8)
    photograph[:, 20:] = 255
    scores = np.full((1, 40, 40), 0.2, np.float32)
    scores[:, :, 16:] = 0.8  # four columns too many
    refined = refine_scores(scores, photograph, np.full((40, 40), 0.5, np.float32), 10)
    np.testing.assert_allclose(refined.sum(0), 1, atol=1e-4)
    assert (refined.argmax(0)[:, 20:] == 1).mean() > 0.95 and (refined.argmax(0)[:, :20] == 0).mean() > 0.95
    failed = write_pseudo_masks(
        world / "cams", world / "crf", Recipe((0.3, 0.6), crf=2), images=world / "images", workers=1, progress=False
    )
    assert failed == {} and np.asarray(Image.open(world / "crf" / "0.png")).shape == (30, 41)


def test_a_missing_crf_is_told_before_the_work(world, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydensecrf", None)
    with pytest.raises(ImportError, match=r"pip install 'semples-plugin\[crf\]'"):
        write_pseudo_masks(world / "cams", world / "x", Recipe((0.5,), crf=5), images=world / "images", progress=False)
    assert not (world / "x").exists()
