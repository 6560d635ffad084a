import importlib.util
import json
import warnings
from functools import partial

import numpy as np
import pytest
from PIL import Image
from test_cam_files import CLASSES, as_fma, as_weaktr, maps

from semples_plugin.cli.app import main
from semples_plugin.data import pseudo_masks
from semples_plugin.data.cam_files import Cams, write_cams
from semples_plugin.data.dense_crf import refine_scores
from semples_plugin.data.images import read_note, voc_palette
from semples_plugin.data.pseudo_masks import Recipe, refine_labels, to_labels, write_pseudo_masks


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
    before = (out / "0.png").stat().st_ino
    assert main(command) == 0
    assert (out / "1.png").exists() and (out / "0.png").stat().st_ino == before
    assert sorted(path.name for path in out.iterdir()) == ["0.png", "1.png", "2.png"]  # hosts read whatever is there
    assert json.loads(read_note(out / "0.png"))["thresholds"] == [0.4, 0.6]
    out.rename(world / "moved")  # what masks are made of goes with them
    assert main([*command[:2], str(world / "moved"), *command[3:]]) == 0
    (world / "moved").rename(out)
    assert main([*command[:3], "--threshold", "0.5"]) == 1
    assert (
        "3 files, such as 0.png, that this command didn't make, or made with other settings" in capsys.readouterr().err
    )
    picture = np.asarray(Image.open(out / "2.png"))
    as_weaktr(world / "cams" / "2.npy", maps(seed=9))  # retrained
    assert main(command) == 1 and "1 files, such as 2.png" in capsys.readouterr().err
    assert np.array_equal(np.asarray(Image.open(out / "2.png")), picture)  # perhaps somebody still wants it


def test_a_list_chooses_the_images(world, capsys):
    (world / "list.txt").write_text("1\r\n2.jpg\r\n")
    command = ["pseudo-masks", str(world / "cams"), str(world / "out"), "--threshold", "0.4", "--quiet", "--list"]
    assert main([*command, str(world / "list.txt")]) == 0
    assert sorted(path.name for path in (world / "out").glob("*.png")) == ["1.png", "2.png"]
    (world / "list.txt").write_text("1\n5\n")
    assert main([*command, str(world / "list.txt")]) == 1
    assert "has no CAMs of 1 images of" in capsys.readouterr().err


def test_fma_wsss_needs_the_photographs(world, capsys):
    for images, error, words in (
        (None, ValueError, "give --images FOLDER"),
        (world / "nowhere", FileNotFoundError, "there is no folder"),
        (world / "cams", FileNotFoundError, r"holds none of the 3 images, such as 0\.jpg"),
    ):
        with pytest.raises(error, match=words):
            write_pseudo_masks(world / "fma", world / "a", Recipe(power=2), images=images, progress=False)
    assert not (world / "a").exists()
    (world / "fma" / "2.npz").write_bytes(b"PK")
    failed = write_pseudo_masks(
        world / "fma", world / "b", Recipe(power=2), images=world / "images", workers=1, progress=False
    )
    assert list(failed) == ["2"] and "2.npz is damaged" in failed["2"]
    assert np.asarray(Image.open(world / "b" / "0.png")).shape == (30, 41)


def test_photographs_may_come_later_for_images_without_a_label(world, capsys):
    as_weaktr(world / "cams" / "1.npy", np.zeros((0, 5, 6), np.float32), keys=())
    command = ["pseudo-masks", str(world / "cams"), str(world / "out"), "--threshold", "0.4", "--quiet"]
    assert main(command) == 1 and "doesn't say how large its image is: give --images FOLDER" in capsys.readouterr().err
    before = (world / "out" / "0.png").stat().st_ino
    for again in ([*command, "--images", str(world / "images")], command):
        assert main(again) == 0 and (world / "out" / "0.png").stat().st_ino == before
    assert not np.asarray(Image.open(world / "out" / "1.png")).any()


def test_other_photographs_are_another_setting_where_they_change_a_mask(world, monkeypatch):
    (world / "half").mkdir()
    (world / "moved").mkdir()
    for n in range(3):
        Image.new("RGB", (20, 15)).save(world / "half" / f"{n}.jpg")
        Image.new("RGB", (41, 30)).save(world / "moved" / f"{n}.jpg")
    write = partial(write_pseudo_masks, progress=False)
    write(world / "fma", world / "a", Recipe(power=2), images=world / "images")
    assert write(world / "fma", world / "a", Recipe(power=2), images=world / "moved") == {}
    with pytest.raises(ValueError, match="made with other settings"):
        write(world / "fma", world / "a", Recipe(power=2), images=world / "half")
    monkeypatch.setattr(pseudo_masks, "import_crf", lambda: None)
    monkeypatch.setattr(pseudo_masks, "refine_labels", lambda labels, *_: labels)
    write(world / "cams", world / "b", Recipe((0.5,), crf=5), images=world / "images")
    assert write(world / "cams", world / "b", Recipe((0.5,), crf=5), images=world / "images") == {}
    with pytest.raises(ValueError, match="made with other settings"):
        write(world / "cams", world / "b", Recipe((0.5,), crf=5), images=world / "moved")


def test_bad_recipes_and_folders_are_named(world):
    for arguments, words in (
        ({}, "one or two thresholds, or a power"),
        ({"thresholds": (0.5,), "power": 2}, "not both"),
        ({"thresholds": (0.5, 0.3)}, "ascending"),
        ({"thresholds": (0.1, 0.2, 0.3)}, "two ascending"),
        ({"thresholds": (1.5,)}, "from 0 to 1"),
        ({"power": 0}, "a number above 0"),
        ({"power": np.inf}, "a number above 0"),
        ({"thresholds": (0.5,), "crf": -1}, "iterations"),
    ):
        with pytest.raises(ValueError, match=words):
            Recipe(**arguments)
    (world / "full").mkdir()
    (world / "full" / "x.png").touch()
    with pytest.raises(ValueError, match="is the folder of the CAMs themselves"):
        write_pseudo_masks(world / "cams", world / "cams", Recipe((0.5,)), progress=False)
    with pytest.raises(ValueError, match=r"holds 1 files, such as x\.png, that this command didn't make"):
        write_pseudo_masks(world / "cams", world / "full", Recipe((0.5,)), progress=False)
    with pytest.raises(ValueError, match="a CRF looks at the images"):
        write_pseudo_masks(world / "cams", world / "x", Recipe((0.5,), crf=5), progress=False)


@pytest.mark.skipif(importlib.util.find_spec("pydensecrf") is None, reason="needs semples-plugin[crf]")
def test_the_crf_moves_a_boundary_to_the_edge_in_the_photograph(world):
    image = np.zeros((40, 40, 3), np.uint8)
    image[:, 20:] = 255
    labels = np.zeros((40, 40), np.uint8)
    labels[:, 16:] = 7  # four columns too many
    refined = refine_labels(labels, image, 10)
    assert (refined[:, 20:] == 7).all() and (refined[:, :20] == 0).mean() > 0.95
    assert (refine_labels(labels * 0, image, 10) == 0).all()
    failed = write_pseudo_masks(
        world / "cams", world / "crf", Recipe((0.3, 0.6), crf=2), images=world / "images", workers=1, progress=False
    )
    assert failed == {} and np.asarray(Image.open(world / "crf" / "0.png")).shape == (30, 41)


def test_a_missing_crf_is_told_before_the_work(world, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pydensecrf", None)
    with pytest.raises(ImportError, match=r"pip install '\.\[crf\]' in the checkout"):
        write_pseudo_masks(world / "cams", world / "x", Recipe((0.5,), crf=5), images=world / "images", progress=False)
    assert not (world / "x").exists()


def test_masks_that_are_background_alone_are_told(tmp_path):
    for scale, words in ((1e-3, "3 of 3 masks of images with CAMs are background alone"), (1.0, None)):
        folder = tmp_path / f"cams {scale}"
        for name in "abc":
            plane = np.linspace(0, scale, 20, dtype=np.float32).reshape(4, 5)
            write_cams(folder / f"{name}.npy", Cams([plane], (2,), "weaktr"))
        write_cams(folder / "without labels.npy", Cams([], (), "clims"))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            write_pseudo_masks(folder, tmp_path / f"masks {scale}", Recipe((0.4,)), progress=False)
        assert [str(one.message)[: len(words or "")] for one in caught] == ([words] if words else [])


def test_a_crf_over_scores_is_pydensecrfs_over_all_classes():
    crf = pytest.importorskip("pydensecrf.densecrf", reason="needs semples-plugin[crf]")
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (40, 56, 3), dtype=np.uint8)
    image[:, :28] //= 4
    logits = np.kron(generator.normal(size=(21, 5, 7)) * 4, np.ones((1, 8, 8))).astype(np.float32)
    logits[2:17] -= 30  # classes that no pixel shows
    probabilities = np.exp(logits) / np.exp(logits).sum(0)
    field = crf.DenseCRF2D(56, 40, 21)
    field.setUnaryEnergy(np.ascontiguousarray(-np.log(np.maximum(probabilities, 1e-8)).reshape(21, -1)))
    field.addPairwiseGaussian(sxy=1, compat=3)
    field.addPairwiseBilateral(sxy=67, srgb=3, rgbim=image.copy(), compat=4)
    expected = np.asarray(field.inference(10)).reshape(21, 40, 56).argmax(0)
    refined = refine_scores(probabilities, image, 10)
    assert refined.dtype == np.uint8 and np.array_equal(refined, expected)
    assert (refined != probabilities.argmax(0)).any()
    certain = np.zeros((21, 40, 56), np.float32)
    certain[4] = 1
    assert (refine_scores(certain, image, 10) == 4).all()
    with pytest.raises(ValueError, match=r"scores of \(40, 56\) pixels, where the image has \(40, 50\)"):
        refine_scores(probabilities, image[:, :50], 10)
