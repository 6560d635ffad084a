"""`semples eval`: equal to a slow loop per threshold on every host's format, and honest about noise."""

import copy
import errno
import gc
import json
import pickle
import re
import subprocess
import sys
import tempfile
import tracemalloc
import warnings
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_cam_files import HOSTS, stack_resized

from semples_plugin.cli.app import main
from semples_plugin.data.cam_files import Cams, list_cams, read_image_list, write_cams
from semples_plugin.data.images import write_mask
from semples_plugin.data.pseudo_masks import Recipe, write_pseudo_masks
from semples_plugin.evaluation.comparison import (
    MIN_IMAGES_FOR_BOOTSTRAP,
    Comparison,
    compare,
    on_common_images,
    resampled,
)
from semples_plugin.evaluation.folders import THRESHOLDS, FolderEvaluation, evaluate_folder, image_iou
from semples_plugin.evaluation.iou import (
    CamEvaluation,
    ImageCounts,
    intersection_over_union,
    power_thresholds,
    sweep_of,
)
from semples_plugin.evaluation.stored_counts import StoredCounts
from semples_plugin.viz.tables import describe_gain

NAMES = tuple("abcdefghijkl")  # twelve classes, as many as test_cam_files' CAMs can be of
K = len(NAMES)
NAMES_20 = tuple("abcdefghijklmnopqrst")


def world(folder, host="weaktr", count=6, seed=0, quality=0.0):
    """CAMs and masks of a few images; with quality the CAMs know something of the masks."""
    write, suffix = HOSTS[host]
    random = np.random.default_rng(seed)
    for name in ("masks", "cams", "images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for n in range(count):
        keys = tuple(sorted(random.choice(K, size=3, replace=False).tolist()))
        mask = random.choice([0, 1 + keys[0], 1 + keys[1], 1 + random.integers(K), 255], size=(20, 31)).astype(np.uint8)
        Image.fromarray(mask).save(folder / "masks" / f"{n}.png")
        Image.fromarray(random.integers(0, 256, (20, 31, 3), dtype=np.uint8)).save(folder / "images" / f"{n}.jpg")
        size = (7, 9) if host == "fma" else (20, 31)
        # Twentieths, so that scores fall on thresholds, where > and >= differ.
        cams = (random.integers(0, 21, (3, *size)) / 20).astype(np.float32)
        if quality:
            right = np.stack([mask == k + 1 for k in keys]).astype(np.float32)
            cams = (1 - quality) * cams + quality * right
        write(folder / "cams" / f"{n}{suffix}", cams, keys)
    return folder / "cams", folder / "masks"


def slow_iou(cams, masks, predict):
    """A confusion matrix filled image by image, as the hosts do it."""
    confusion = np.zeros((K + 1, K + 1), np.int64)
    for name, path in list_cams(cams).items():
        mask = np.asarray(Image.open(masks / f"{name}.png"))
        predicted = predict(path, mask.shape)
        known = mask != 255
        np.add.at(confusion, (mask[known], predicted[known]), 1)
    hits = np.diag(confusion)
    with np.errstate(invalid="ignore"):
        return (
            hits / (confusion.sum(0) + confusion.sum(1) - hits),
            hits / confusion.sum(0),
            hits / confusion.sum(1),
        )


def constant(threshold):
    def predict(path, size):
        found = np.load(path, allow_pickle=True).item()
        maps, keys = (found["high_res"], found["keys"].numpy()) if "keys" in found else (
            np.stack(list(found.values())), np.array(list(found)))  # fmt: skip
        maps = np.pad(maps, ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
        return np.pad(keys + 1, (1, 0))[maps.argmax(0)]

    return predict


def power(p):
    def predict(path, size):
        found = np.load(path)
        maps = np.maximum(stack_resized(found["cam"], *size), 0)
        low, high = maps.min((1, 2), keepdims=True), maps.max((1, 2), keepdims=True)
        maps = (maps - low) / (high - low + np.float32(1e-7))
        background = np.power(1 - maps.max(0, keepdims=True), np.float32(p))
        return np.pad(found["fg_cls"] + 1, (1, 0))[np.concatenate([background, maps]).argmax(0)]

    return predict


@pytest.mark.parametrize("host", HOSTS)
def test_it_equals_a_loop_per_setting_exactly(tmp_path, host):
    cams, masks = world(tmp_path, host)
    found = evaluate_folder(cams, masks, NAMES, progress=False)
    assert found.background == ("power" if host == "fma" else "constant")
    assert host == "fma" or found.settings == tuple(THRESHOLDS)
    slow = power if host == "fma" else constant
    for t, setting in enumerate(found.settings):
        iou, precision, recall = slow_iou(cams, masks, slow(setting))
        np.testing.assert_array_equal(found.sweep.iou[t], iou)
        np.testing.assert_array_equal(found.sweep.precision[t], precision)
        np.testing.assert_array_equal(found.sweep.recall[t], recall)
    best = max(np.nanmean(slow_iou(cams, masks, slow(s))[0]) for s in found.settings)
    assert found.miou == best and found.chosen_here
    given = evaluate_folder(cams, masks, NAMES, setting=found.settings[found.chosen], progress=False)
    assert given.miou == found.miou and not given.chosen_here


def random_counts(images, thresholds=100):
    """Counts of images of none to four classes; the number of classes differs from image to image."""
    random = np.random.default_rng(0)
    for n in range(images):
        classes = np.flatnonzero(random.random(K + 1) < 0.2)
        annotated, *planes = (
            random.integers(0, 2**31 - 1, (len(classes), *size), dtype=np.int32)
            for size in ((), (thresholds,), (thresholds,))
        )
        yield f"{n:06}", ImageCounts(classes, annotated, *planes, cams=n % 7, empty=n % 3)


def assert_same_counts(found, expected):
    """Names in their order, and values and types of all that is counted."""
    assert list(found) == list(expected)
    for one, other in zip(found.values(), expected.values(), strict=True):
        for field in fields(ImageCounts):
            value, wanted = getattr(one, field.name), getattr(other, field.name)
            if not isinstance(wanted, int):
                assert value.dtype == wanted.dtype
            np.testing.assert_array_equal(value, wanted)


@contextmanager
def kept_bytes():
    """A list that gets what the block leaves in memory, without what the system maps, and its peak."""
    found = []
    gc.collect()
    tracemalloc.start()
    try:
        yield found
        gc.collect()
        found += tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


def test_counts_in_a_file_are_those_in_memory():
    expected = dict(random_counts(50))
    found = StoredCounts(expected.items())
    assert_same_counts(found, expected)
    assert found.keys() == expected.keys() and "000049" in found and "000050" not in found and len(found) == 50
    with pytest.raises(KeyError, match="000050"):
        found["000050"]
    for again in (pickle.loads(pickle.dumps(found)), copy.deepcopy(found)):
        assert_same_counts(again, expected)
    last = {"a": expected["000003"], "b": expected["000004"]}
    assert_same_counts(StoredCounts([("a", expected["000001"]), *last.items()]), last)
    assert not StoredCounts([])


def test_memory_of_an_evaluation_grows_by_its_names(tmp_path):
    """Counts at 100 thresholds are 3 KB an image here, and 60 images' arrays more than all figures together."""
    sides = [world(tmp_path / side, count=60, quality=quality) for side, quality in (("a", 0.1), ("b", 0.3))]

    def judge():
        return [evaluate_folder(cams, sides[0][1], NAMES, progress=False) for cams, _ in sides]

    judge()  # what modules keep once and for all
    with kept_bytes() as found:
        evaluations = judge()
    figures = 2 * sum(value.nbytes for value in vars(evaluations[0].sweep).values())
    assert found[0] < figures + 2 * 60 * 500
    with kept_bytes() as found:
        chosen = on_common_images(evaluations)
    assert found[0] < figures + 2 * 60 * 300
    expected = {name: evaluations[0].counts[name] for name in chosen[0].counts}
    assert_same_counts(chosen[0].counts, expected)
    some = evaluations[0].on_images(["7", "3"])
    assert_same_counts(some.counts, {name: expected[name] for name in ("7", "3")})
    assert "5" in some.left_out and "5" not in some.counts and len(some.counts) == 2
    sweep = sweep_of([expected["7"], expected["3"]], K, THRESHOLDS)
    np.testing.assert_array_equal(some.sweep.iou, sweep.iou)
    with pytest.raises(KeyError):
        some.counts["5"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="of Linux")
def test_a_full_folder_of_temporary_files_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "TemporaryFile", partial(Path("/dev/full").open, "r+b"))
    with pytest.raises(OSError, match=r"where pixel counts .* are kept; TMPDIR names another folder") as raised:
        StoredCounts(random_counts(10))
    assert raised.value.errno == errno.ENOSPC and raised.value.filename == tempfile.gettempdir()

    def killed():
        yield from random_counts(1)
        raise ChildProcessError("one of 2 processes was killed")

    monkeypatch.undo()
    with pytest.raises(ChildProcessError, match=r"^one of 2 processes was killed$"):
        StoredCounts(killed())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="of Linux")
def test_nothing_is_left_of_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = len([*Path("/proc/self/fd").iterdir()])
    found = StoredCounts(random_counts(10))
    assert not any(tmp_path.iterdir())  # while they are read, too: a kill leaves nothing
    counts = found["000003"]
    del found
    gc.collect()
    assert counts.predicted.sum() > 0  # they hold the map
    del counts
    gc.collect()
    assert len([*Path("/proc/self/fd").iterdir()]) == files


def test_the_commands_do_without_torch(tmp_path):
    """It takes seconds to import, and workers can't be forked once it is there."""
    cams, masks = world(tmp_path)
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    code = """if 1:
        import sys
        from semples_plugin.cli.app import main
        cams, masks, images, out = sys.argv[1:]
        judging = [cams, "--masks", masks, "--quiet"]
        print(main(["eval", *judging, "--out", out]))
        print(main(["show", *judging, "--images", images, "--out", f"{out}/show.png"]))
        print(main(["report", *judging, "--images", images, "--out", f"{out}/report.html"]))
        print(main(["pseudo-masks", cams, f"{out}/pseudo", "--threshold", "0.4", "--quiet"]))
        print("torch" in sys.modules)
    """
    command = [sys.executable, "-c", code, cams, masks, tmp_path / "images", tmp_path / "out"]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line for line in said if line in ("0", "1", "True", "False")] == ["0", "0", "0", "0", "False"]


def test_a_power_is_the_constant_at_which_it_turns():
    for p, threshold in zip((0.5, 1, 3, 10), power_thresholds((0.5, 1, 3, 10)), strict=True):
        scores = np.array([threshold, np.nextafter(np.float32(threshold), np.float32(1))], np.float32)
        assert (scores > np.power(1 - scores, np.float32(p))).tolist() == [False, True]
    assert power_thresholds([1]) == 0.5


def test_lists_name_what_is_missing_and_what_is_extra(tmp_path, capsys):
    cams, masks = world(tmp_path)
    (tmp_path / "val.txt").write_bytes(b"0\r\n1\r\nfoo\r\n")  # Windows' line ends
    found = evaluate_folder(cams, masks, NAMES, image_list=tmp_path / "val.txt", progress=False)
    assert list(found.counts) == ["0", "1"] and found.missing == ("foo",) and found.extra == ("2", "3", "4", "5")
    (tmp_path / "fma.txt").write_text("/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png\n")
    assert read_image_list(tmp_path / "fma.txt") == ["2007_000032"]
    (tmp_path / "win.txt").write_text("images\\a.jpg masks\\a.png\nb\nimages/a.jpg\n", encoding="utf-8-sig")
    assert read_image_list(tmp_path / "win.txt") == ["a", "b"]  # each once
    (tmp_path / "utf16.txt").write_text("a\n", encoding="utf-16")
    with pytest.raises(ValueError, match=r"utf16.txt: expected text in UTF-8"):
        read_image_list(tmp_path / "utf16.txt")
    for text, words in (("", "names no images"), ("foo\n", "none of the 1 images")):
        (tmp_path / "val.txt").write_text(text)
        with pytest.raises(ValueError, match=words):
            evaluate_folder(cams, masks, NAMES, image_list=tmp_path / "val.txt", progress=False)


def test_one_bad_file_costs_one_image(tmp_path):
    cams, masks = world(tmp_path)
    whole = evaluate_folder(cams, masks, NAMES, progress=False)
    path = cams / "1.npy"
    path.write_bytes(path.read_bytes()[:-50])
    (masks / "2.png").write_bytes(b"\x89PNG")
    (masks / "3.png").unlink()
    Image.fromarray(np.zeros((5, 6), np.uint8)).save(masks / "4.png")
    Image.fromarray(np.full((20, 31), K + 1, np.uint8)).save(masks / "5.png")
    world(tmp_path / "more", count=7)
    for folder in ("cams", "masks"):
        (path,) = (tmp_path / "more" / folder).glob("6.*")
        path.rename(tmp_path / folder / path.name)
    Image.fromarray(np.full((20, 31), 255, np.uint8)).save(masks / "6.png")
    found = evaluate_folder(cams, masks, NAMES, progress=False)
    assert list(found.counts) == ["0"] and list(whole.counts) == list("012345")
    for name, words in {
        "1": "1.npy is damaged", "2": "2.png is damaged", "3": "there is no mask",
        "4": "CAMs of 20 x 31 pixels, where the image has 5 x 6", "5": "expected values of 0 to 12 and 255",
        "6": "255 everywhere, which leaves nothing to judge",
    }.items():  # fmt: skip
        assert words in found.failed[name]
    with pytest.raises(ValueError, match=r"none of the CAMs .* expected (different classes|values) of 0 to"):
        evaluate_folder(cams, masks, NAMES[:1], progress=False)


def test_the_bootstrap_knows_a_gain_from_noise(tmp_path):
    cams, masks = world(tmp_path / "a", count=40, quality=0.2)
    better, _ = world(tmp_path / "b", count=40, quality=0.6)
    other, _ = world(tmp_path / "c", count=40, quality=0.2, seed=0)
    a, b, c = (evaluate_folder(f, masks, NAMES, progress=False) for f in (cams, better, other))
    gain = compare(a, b, resamples=300)
    assert gain.low > 0 and gain.above == 1 and gain.images == 40
    assert gain.miou == (a.miou, b.miou)
    same = compare(a, c, resamples=300)
    assert same.low == same.high == same.above == 0
    assert image_iou(b, "0") > image_iou(a, "0")
    with pytest.raises(ValueError, match="different class names"):
        compare(a, evaluate_folder(better, masks, [*NAMES[:-1], "z"], progress=False))


def test_the_bootstrap_equals_a_table_of_all_classes(tmp_path):
    """Gains of resampled sets are those of the rows of all classes, of which an image holds few."""
    sides = [world(tmp_path / side, count=30, quality=quality) for side, quality in (("a", 0.1), ("b", 0.3))]
    a, b = (evaluate_folder(cams, sides[0][1], NAMES, progress=False) for cams, _ in sides)

    def table(evaluation):
        rows = np.zeros((30, 3, K + 1), np.int64)
        for row, counts in zip(rows, evaluation.counts.values(), strict=True):
            t = evaluation.chosen
            row[:, counts.classes] = counts.annotated, counts.predicted[:, t], counts.hits[:, t]
        return rows

    tables, gains = (table(a), table(b)), []
    for draws in resampled(30, 200, seed=3):
        before, after = (np.nanmean(intersection_over_union(*np.tensordot(draws, rows, axes=1))) for rows in tables)
        gains.append(after - before)
    found = compare(a, b, resamples=200, seed=3)
    assert [found.low, found.high] == np.percentile(gains, (2.5, 97.5)).tolist()
    assert found.above == np.mean(np.array(gains) > 0)


def test_memory_of_a_comparison_does_not_grow_with_the_classes():
    """A table of all classes would have 3 * 255 * 8 bytes an image and side."""
    images, ones = 300, np.ones((3, 1), np.int32)
    counts = {str(n): ImageCounts(np.array([0, 7, n % 240 + 8]), ones[:, 0], ones, ones) for n in range(images)}
    sweep = sweep_of(counts.values(), 254, [0.5])
    names = tuple(map(str, range(254)))
    side = FolderEvaluation("", "", "", names, "constant", (0.5,), sweep, 0, False, counts, (), (), {})
    with kept_bytes() as found:
        compare(side, side, resamples=3)
    assert found[1] < images * 1000


def test_the_interval_covers_the_spread_over_sets(tmp_path):
    """Gains on fresh sets of images spread as wide as the bootstrap of one of them says."""
    gains, widths = [], []
    for seed in range(12):
        sides = [world(tmp_path / f"{seed}{q}", count=25, seed=seed, quality=q) for q in (0.3, 0.34)]
        a, b = (evaluate_folder(*side, NAMES, setting=0.5, progress=False) for side in sides)
        found = compare(a, b, resamples=200)
        gains.append(found.miou[1] - found.miou[0])
        widths.append(found.high - found.low)
    assert 0.5 < np.mean(widths) / (3.92 * np.std(gains, ddof=1)) < 2


def equal_sides(random, images, classes=8):
    """Two evaluations that differ by chance alone: each image's errors could as well be the other's."""
    sides = []
    shape = (images, classes + 1)
    in_mask = random.integers(50, 2000, shape) * (random.random(shape) < 0.3) + 1
    difficulty = random.normal(0, 1, (images, 1))
    for _ in range(2):
        hits = in_mask / (1 + np.exp(difficulty + random.normal(0, 0.7, shape)))
        extra = in_mask * random.random(shape) * 0.5
        counts = {
            str(n): ImageCounts(np.arange(classes + 1), in_mask[n], (hits + extra)[n][:, None], hits[n][:, None])
            for n in range(images)
        }
        total = [sum(getattr(one, key) for one in counts.values()) for key in ("annotated", "predicted", "hits")]
        sweep = CamEvaluation(classes, [0.5]).sweep(*total)
        sides.append(
            FolderEvaluation("", "", "", NAMES[:classes], "constant", (0.5,), sweep, 0, False, counts, (), (), {})
        )
    return sides


def test_chance_alone_is_seldom_called_a_gain():
    """The verdict is wrong nearly as seldom as 95 % says, from the number of images on where there is one."""
    random, wrong = np.random.default_rng(0), []
    for _ in range(300):
        found = compare(*equal_sides(random, MIN_IMAGES_FOR_BOOTSTRAP), resamples=200)
        wrong.append("nearly every" in describe_gain(found))
    assert 0.01 < np.mean(wrong) < 0.1
    few = compare(*equal_sides(random, MIN_IMAGES_FOR_BOOTSTRAP - 1), resamples=50)
    assert "too few images to tell it from luck, for which it takes 50" in describe_gain(few)


def test_a_verdict_says_of_what_and_calls_little_by_its_name():
    found = Comparison(images=400, miou=(0.5, 0.5002), low=0.0001, high=0.0003, above=1.0)
    said = describe_gain(found)
    assert said.startswith(
        "+0.02 points of mIoU on 400 images; 95 % bootstrap interval +0.01 to +0.03, over images and"
    )
    assert "not over training seeds" in said and "less than 0.1 points" in said and "nearly every" not in said
    assert "less than 0.1 points" in describe_gain(replace(found, miou=(0.5, 0.4998), low=-0.0003, high=-0.0001))
    for miou, low, high, words in (
        (0.5011, 0.0001, 0.003, "better on nearly every resampled set"),
        (0.4989, -0.003, -0.0001, "worse on nearly every resampled set"),
        (0.5011, -0.0001, 0.003, "the interval holds 0"),
        (0.5002, -0.0001, 0.003, "the interval holds 0"),
    ):
        assert words in describe_gain(replace(found, miou=(0.5, miou), low=low, high=high))


def crossed(folder, shown, count=30, classes=20):
    """Masks of one to three classes, and good CAMs of them, under the numbers that `shown` gives them."""
    random = np.random.default_rng(0)
    (folder / "masks").mkdir(parents=True)
    for n in range(count):
        present = random.choice(classes, size=1 + n % 3, replace=False)
        mask = np.zeros((12, 12), np.uint8)
        for place, k in enumerate(present):
            mask[:, 4 * place : 4 * place + 3] = k + 1
        Image.fromarray(mask).save(folder / "masks" / f"{n}.png")
        named = {shown(int(k), random): int(k) for k in present}
        if extra := shown(None, random):
            named.setdefault(extra, -1)
        planes = [0.8 * (mask == k + 1) + 0.1 * random.random((12, 12)) for k in named.values()]
        write_cams(folder / "cams" / f"{n}.npy", Cams([p.astype(np.float32) for p in planes], tuple(named), "weaktr"))
    return folder / "cams", folder / "masks"


def test_cams_of_another_class_list_are_told(tmp_path, capsys):
    for what, number in (
        ("a list of five classes", lambda k: k % 5),
        ("background counted", lambda k: (k + 1) % 20),
        ("another order", lambda k: (7 * k + 3) % 20),
    ):
        cams, masks = crossed(tmp_path / what, lambda k, _, number=number: None if k is None else number(k))
        with pytest.warns(
            UserWarning, match=r"only \d+ of \d+ CAMs \(\d+ %\) are of a class that the same image's ground truth"
        ):
            found = evaluate_folder(cams, masks, NAMES_20, progress=False)
        right, of = found.annotated_cams
        assert right < 0.4 * of and found.to_dict()["doubt"].startswith(f"{cams}: only {right} of {of} CAMs")
    assert main(["eval", str(cams), "--masks", str(masks), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    said = capsys.readouterr().err
    assert said.startswith(f"semples eval: {cams}: only ") and said.count("\n") == 1


@pytest.mark.parametrize(("empty", "told"), [(0, False), (1, False), (2, True), (20, True)])
def test_empty_cams_are_told(tmp_path, empty, told):
    """20 CAMs: one in each of ten images wins its pixels, the other is below it everywhere, or empty."""
    for n in range(10):
        high, low = np.ones((4, 5), np.float32), np.full((4, 5), 0.5, np.float32)
        planes = [high * (n >= empty - 10), low * (n >= empty)]
        write_cams(tmp_path / "cams" / f"{n}.npy", Cams(planes, (0, 1), "weaktr"))
        write_mask(tmp_path / "masks" / f"{n}.png", np.ones((4, 5), np.uint8))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = evaluate_folder(tmp_path / "cams", tmp_path / "masks", ["a", "b"], progress=False)
    assert found.empty_cams == (empty, 20) and (found.doubt != "") == told == bool(caught)
    assert not told or f"{empty} of 20 CAMs are nowhere above 0, the lowest" in str(caught[0].message)
    assert (found.to_dict()["doubt"] is not None) == told


@pytest.mark.parametrize("images", [10, 12])
def test_a_command_names_ten_failures_and_counts_the_others(tmp_path, capsys, images):
    cams, masks = world(tmp_path, count=images + 1)
    for n in range(images):
        (cams / f"{n}.npy").write_bytes(b"damaged")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    eval_ = ["eval", str(cams), "--masks", str(masks), "--classes", str(tmp_path / "names.txt"), "--out"]
    for command, what, where in (
        ([*eval_, str(tmp_path / "eval")], f"{cams}: not judged", "; eval.json lists all"),
        (["convert", str(cams), str(tmp_path / "a"), "--to", "clims"], "not converted", ""),
        (["pseudo-masks", str(cams), str(tmp_path / "b"), "--threshold", "0.4"], "without a mask", ""),
    ):
        assert main([*command, "--quiet"]) == 1
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith(what)]
        assert len(said) == min(images, 11) and all("damaged" in line for line in said[:10])
        assert said[10:] == ([f"{what}: ... and 2 more{where}"] if images > 10 else [])
    found = json.loads((tmp_path / "eval" / "eval.json").read_text())
    assert len(found["cams"]["failed"]) == images


def test_cams_for_predicted_labels_are_not_doubted(tmp_path):
    """A classifier names a class too many in every other image; each image's mask holds one to three."""

    def shown(k, random):
        return k if k is not None else random.integers(20) if random.random() < 0.5 else None

    cams, masks = crossed(tmp_path, shown)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = evaluate_folder(cams, masks, NAMES_20, progress=False)
    right, all_cams = found.annotated_cams
    assert right == 60 < all_cams and found.doubt == "" and found.to_dict()["doubt"] is None


def test_the_command_writes_figures_and_says_on_what_they_were_chosen(tmp_path, capsys):
    cams, masks = world(tmp_path / "before")
    after, _ = world(tmp_path / "after", quality=0.4)
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    command = ["eval", str(cams), str(after), "--masks", str(masks), "--classes", str(tmp_path / "names.txt"),
               "--out", str(tmp_path / "out"), "--quiet"]  # fmt: skip
    assert main(command) == 0
    said = capsys.readouterr().out
    assert re.search(r"before/cams: mIoU [\d.]+ % over 11 of 13 classes on 6 images of the folder; ", said)
    assert "6 images; 95 %" in said and "too few images to tell it from luck" in said
    assert "before/cams: mIoU" in said and "chosen on the ground truth that it is reported on" in said
    assert "95 % bootstrap interval" in said and (tmp_path / "out" / "curve.png").read_bytes()[1:4] == b"PNG"
    found = json.loads((tmp_path / "out" / "eval.json").read_text())
    assert found["before/cams"]["split"] == "all CAMs" and len(found["after/cams"]["curve"]) == 100
    assert found["after/cams"]["beside the first"]["interval"][0] > 0 and found["after/cams"]["chosen on these masks"]
    earlier = {name: (tmp_path / "out" / name).read_bytes() for name in ("eval.json", "images.csv", "curve.png")}
    rows = (tmp_path / "out" / "images.csv").read_text().splitlines()
    assert rows[0] == "image,before/cams,after/cams" and len(rows) == 7
    assert main([*command, "--setting", "0.3", "0.425"]) == 0
    said = capsys.readouterr()
    assert "chosen on" not in said.out and "kept an earlier eval.json, images.csv, curve.png as eval.json.b" in said.err
    assert {name: (tmp_path / "out" / f"{name}.before").read_bytes() for name in earlier} == earlier
    found = json.loads((tmp_path / "out" / "eval.json").read_text())["after/cams"]
    assert found["chosen"] == 0.425 and len(found["curve"]) == 101 and found["curve"]["0.425"] == found["miou"]
    assert main([*command, "--setting", "0.3"]) == 0  # for both
    for wrong, words in (
        (["--setting", "0.3", "0.4", "0.5"], "--setting: expected 1 or 2, one for each folder, got 3"),
        (["--titles", "a"], "--titles: expected 2 different ones, got a"),
        (["--titles", "a", "a"], "--titles: expected 2 different ones, got a, a"),
        (["--setting", "2", "2"], "expected 0 to 1, got 2"),
        (["--background", "power", "--setting", "0", "0"], "a number above 0"),
        (["--background", "power", "--setting", "inf"], "a number above 0, got inf"),
        (["--setting", "1.00000001"], "expected 0 to 1, got 1.00000001"),
        (["--list", str(tmp_path / "none.txt")], "none.txt"),
    ):
        assert main([*command, *wrong]) == 1
        assert words in capsys.readouterr().err


def test_several_folders_are_judged_on_the_images_that_all_have(tmp_path, capsys):
    cams, masks = world(tmp_path / "a")
    better, _ = world(tmp_path / "b", quality=0.4)
    best, _ = world(tmp_path / "c", quality=0.8)
    (better / "1.npy").unlink()
    (best / "3.npy").write_bytes(b"")
    (tmp_path / "a" / "classes.txt").write_text("\n".join(NAMES))  # beside the masks: found without --classes
    out = tmp_path / "out"
    command = ["eval", *map(str, (cams, better, best)), "--masks", str(masks), "--out", str(out), "--quiet"]
    assert main(command) == 1  # a file could not be judged, and scripts should know
    said = capsys.readouterr()
    assert "c/cams: not judged: 3: " in said.err and "left out, not in every folder: 2: 1, 3" in said.err
    found = json.loads((out / "eval.json").read_text())
    assert {one["images"] for one in found.values()} == {4} and found["c/cams"]["beside the first"]["images"] == 4
    (tmp_path / "list.txt").write_text("0\n2\n4\n5\n")
    alone = evaluate_folder(best, masks, NAMES, image_list=tmp_path / "list.txt", progress=False)
    assert found["c/cams"]["miou"] == alone.miou and str(tmp_path / "a" / "classes.txt") in said.out
    gain = found["c/cams"]["miou"] - found["a/cams"]["miou"]
    assert found["c/cams"]["beside the first"]["gain"] == pytest.approx(gain, abs=1e-12)
    everything = [evaluate_folder(folder, masks, NAMES, progress=False) for folder in (cams, better)]
    with pytest.raises(ValueError, match="different images"):
        compare(*everything)


def test_masks_are_judged_as_they_are(tmp_path, capsys):
    cams, masks = world(tmp_path, quality=0.5)
    write_pseudo_masks(cams, tmp_path / "pseudo", Recipe((0.4,)), workers=1, progress=False)
    found = evaluate_folder(tmp_path / "pseudo", masks, NAMES, progress=False)
    same = evaluate_folder(cams, masks, NAMES, setting=0.4, progress=False)
    assert found.miou == same.miou and not found.chosen_here
    mask = np.asarray(Image.open(tmp_path / "pseudo" / "0.png")).copy()
    mask[:5] = 255  # a pseudo mask's 255 is background here, as where hosts judge theirs
    Image.fromarray(mask).save(tmp_path / "pseudo" / "0.png")
    ignored = evaluate_folder(tmp_path / "pseudo", masks, NAMES, progress=False)
    Image.fromarray(np.where(mask == 255, 0, mask)).save(tmp_path / "pseudo" / "0.png")
    zeroed = evaluate_folder(tmp_path / "pseudo", masks, NAMES, progress=False)
    assert ignored.miou == zeroed.miou
    (tmp_path / "classes.txt").write_text("\n".join(NAMES))
    command = [
        "eval",
        str(cams),
        str(tmp_path / "pseudo"),
        "--masks",
        str(masks),
        "--out",
        str(tmp_path / "o"),
        "--quiet",
    ]
    assert main(command) == 0 and "masks as they are" in capsys.readouterr().out
    both = evaluate_folder(tmp_path / "pseudo", masks, NAMES, setting=0.9, background="power", progress=False)
    assert both.miou == ignored.miou and both.background == "none"  # `eval cams masks --setting 0.4` is for the CAMs
    assert (
        main(["show", *command[1:5], "--images", str(tmp_path / "images"), "--out", str(tmp_path / "s.png"), "--quiet"])
        == 0
    )
