"""Failure strata: hand-computed objects and figures, the table, eval.json and the page."""

import json
import re

import cv2
import numpy as np
import pytest
from PIL import Image

from semples_plugin.cli.app import main
from semples_plugin.data.cam_files import Cams, write_cams
from semples_plugin.data.images import write_mask
from semples_plugin.data.pseudo_masks import Recipe, write_pseudo_masks
from semples_plugin.evaluation.comparison import MIN_IMAGES_FOR_BOOTSTRAP, on_common_images, resampled
from semples_plugin.evaluation.folders import evaluate_folder
from semples_plugin.evaluation.regions import Regions, colour_contrast, find_regions, labels_at_border
from semples_plugin.evaluation.strata import stratify
from semples_plugin.viz.report import write_report
from semples_plugin.viz.strata import describe_strata, format_strata, strata_tables

CLASSES = ("cat", "dog", "cow")
FAINT, CLEAR = 0.45, 0.9  # scores of CAMs


def boxes(size, found):
    """A mask of that size with a box, (top, left, bottom, right), for each label."""
    mask = np.zeros(size, np.uint8)
    for label, (top, left, bottom, right) in found.items():
        mask[top:bottom, left:right] = label
    return mask


# Objects by size: d1's cow 10, b2's cow 30, a1's cat 64, b2's dog 100, c3's cat 150, b2's cat 225, e1's cat 300, c3's
# dog 600, of 1,600 pixels each.
MASKS = {
    "a1": boxes((40, 40), {1: (10, 10, 18, 18)}),
    "b2": boxes((40, 40), {1: (0, 0, 15, 15), 2: (20, 20, 30, 30), 3: (20, 5, 25, 11)}),
    "c3": boxes((40, 40), {1: (5, 5, 15, 20), 2: (20, 0, 40, 30)}),
    "d1": boxes((40, 40), {3: (10, 10, 15, 12)}),
    "e1": boxes((40, 40), {1: (10, 10, 30, 25)}),
}


def world(folder, side="cams", found=lambda name, label: CLEAR, masks=MASKS):
    """Masks, photographs and CAMs that hold objects at a score, all of them where it is one number."""
    for name, mask in masks.items():
        write_mask(folder / "gt" / f"{name}.png", mask)
        (folder / "images").mkdir(exist_ok=True)
        grey = np.repeat(np.where(mask > 0, 60 * mask, 40).astype(np.uint8)[..., None], 3, axis=2)
        Image.fromarray(grey).save(folder / "images" / f"{name}.png")
        labels = sorted({*np.unique(mask)} - {0, 255})
        planes = [((mask == label) * found(name, label)).astype(np.float32) for label in labels]
        write_cams(folder / side / f"{name}.npy", Cams(planes, tuple(int(label) - 1 for label in labels), "weaktr"))
    return folder / side


def judge(folder, side="cams", setting=0.3):
    return evaluate_folder(folder / side, folder / "gt", CLASSES, setting=setting, progress=False)


def strata_of(folder, *evaluations, images=True, **options):
    photographs = folder / "images" if images else None
    return stratify(evaluations, find_regions(evaluations[0], photographs, progress=False), **options)


def test_objects_are_classes_in_images_and_ignored_pixels_are_none_of_them(tmp_path):
    mask = MASKS["a1"].copy()
    mask[10, 10:18] = 255
    mask[30:33, 30:32] = 1  # in two pieces: one object
    world(tmp_path, masks={**MASKS, "a1": mask, "e1": np.pad(MASKS["e1"], ((0, 40), (0, 0)))})
    cat_and_dog = [CLEAR * np.float32(mask == 1), CLEAR * np.float32(mask == 0)]
    write_cams(tmp_path / "cams" / "a1.npy", Cams(cat_and_dog, (0, 1), "weaktr"))  # a dog that isn't there
    found = find_regions(judge(tmp_path), progress=False)
    assert found.names == ("a1", "b2", "c3", "d1", "e1") and found.contrast is None and found.failed == {}
    assert found.image.tolist() == [0, 1, 1, 1, 2, 2, 3, 4] and found.label.tolist() == [1, 1, 2, 3, 1, 2, 3, 1]
    assert (found.area * 1600).round(9).tolist() == [64 - 8 + 6, 225, 100, 30, 150, 600, 10, 300 / 2]
    assert found.border.tolist() == [False, True, False, False, False, True, False, False]
    assert found.classes.tolist() == [1, 3, 3, 3, 2, 2, 1, 1]


@pytest.mark.parametrize("turns", range(4))
def test_the_border_is_reached_on_every_side_up_to_gaps_of_masks(turns):
    for between, value, touches in (
        (0, 0, True), (2, 0, True), (3, 0, False),  # SBD's masks end before it
        (3, 255, True), (5, 255, True), (6, 255, False),  # VOC's contour
        (3, 2, False),  # another object is between
    ):  # fmt: skip
        mask = np.zeros((20, 24), np.uint8)
        mask[between:9, 10:13] = 1
        mask[:between, 10:13] = value
        assert (1 in labels_at_border(np.rot90(mask, turns))) == touches, (between, value)
    assert labels_at_border(np.full((3, 3), 255, np.uint8)) == set()


def lab(grey):
    rgb = np.repeat(np.asarray(grey, np.uint8)[..., None], 3, axis=2)
    return cv2.cvtColor(rgb, cv2.COLOR_RGB2LAB)


def test_contrast_is_the_difference_in_colour():
    mask = boxes((60, 80), {1: (20, 30, 40, 50)})  # its surroundings reach 5 pixels far
    inside = mask == 1
    assert colour_contrast(lab(np.where(inside, 255, 0)), mask, 1) == pytest.approx(100)
    assert colour_contrast(lab(np.where(inside, 119, 0)), mask, 1) == pytest.approx(50, abs=0.3)  # CIELAB's middle
    assert colour_contrast(lab(np.full((60, 80), 90)), mask, 1) == 0
    half = np.zeros((60, 80))
    half[20:30, 30:50] = 255  # half of the object, whose mean is the middle, and far from all of its pixels
    assert colour_contrast(lab(half), mask, 1) == pytest.approx(50)
    stripes = np.zeros((60, 80))
    stripes[:, ::2] = 255  # the same colours on both sides
    assert colour_contrast(lab(stripes), mask, 1) < 1
    red_on_green = np.where(inside[..., None], (255, 0, 0), (0, 255, 0)).astype(np.uint8)
    # CIELAB of sRGB's primaries: (53.24, 80.09, 67.20) and (87.73, -86.18, 83.18).
    assert colour_contrast(cv2.cvtColor(red_on_green, cv2.COLOR_RGB2LAB), mask, 1) == pytest.approx(170.6, abs=1)


def test_surroundings_are_near_and_not_ignored():
    mask = boxes((60, 80), {1: (20, 30, 40, 50)})
    far = np.full((60, 80), 255)
    far[15:45, 25:55] = 0  # up to 5 pixels away
    assert colour_contrast(lab(far), mask, 1) == 0
    far[16:44, 26:54] = 255
    far[20:40, 30:50] = 0
    assert 70 < colour_contrast(lab(far), mask, 1) < 100  # a distance of 5 belongs to them, as well
    contour = np.zeros((60, 80))
    contour[18:42, 28:52] = 255
    contour[20:40, 30:50] = 0
    ignoring = mask.copy()
    ignoring[18:42, 28:52] = 255
    ignoring[20:40, 30:50] = 1
    assert colour_contrast(lab(contour), ignoring, 1) == 0 < colour_contrast(lab(contour), mask, 1)
    assert np.isnan(colour_contrast(lab(far), np.ones((60, 80), np.uint8), 1))
    assert np.isnan(colour_contrast(lab(far), np.where(mask == 1, 1, 255).astype(np.uint8), 1))


def test_small_objects_have_no_more_contrast_for_being_small():
    """An overlap of histograms would call twelve pixels of noise far from the same noise."""
    noise, contrast = lab(np.random.default_rng(0).integers(90, 170, (60, 80))), {}
    for side in (4, 20):
        mask = boxes((60, 80), {1: (20, 30, 20 + side, 30 + side)})
        contrast[side] = colour_contrast(noise, mask, 1)
    assert contrast[20] < 2 and contrast[4] < 6


def test_figures_by_hand(tmp_path):
    """Half of every dog, all of every cat, and a cow in b2 alone, with 30 pixels too many."""
    for name, mask in MASKS.items():
        predicted = np.where(mask == 1, 1, 0).astype(np.uint8)
        for top, left, bottom, right in {"b2": [(20, 20, 25, 30)], "c3": [(20, 0, 30, 30)]}.get(name, []):
            predicted[top:bottom, left:right] = 2
        if name == "b2":
            predicted[20:30, 5:11] = 3
        write_mask(tmp_path / "predicted" / f"{name}.png", predicted)
    world(tmp_path)
    found = strata_of(tmp_path, judge(tmp_path, "predicted"))

    def figures(stratum):
        (score,) = stratum.scores
        assert score.gain is None and score.interval.low <= score.iou <= score.interval.high
        return stratum.name, stratum.objects, stratum.images, score.iou, score.pooled_iou, score.recall

    iou = {"cow d1": 0, "cow b2": 0.5, "cat": 1, "dog": 0.5}
    assert figures(found.every) == ("all objects", 8, 5, (4 * 1 + 3 * 0.5 + 0) / 8, 1119 / 1509, (4 + 1 + 2 * 0.5) / 8)
    assert [figures(stratum) for stratum in found.groups["size"]] == [
        ("smallest quarter", 2, 2, (iou["cow d1"] + iou["cow b2"]) / 2, 30 / 70, (0 + 1) / 2),
        ("second quarter", 2, 2, (iou["cat"] + iou["dog"]) / 2, 114 / 164, 0.75),
        ("third quarter", 2, 2, 1, 1, 1),
        ("largest quarter", 2, 2, 0.75, 600 / 900, 0.75),
    ]
    spans = [tuple(round(1600 * value) for value in stratum.span) for stratum in found.groups["size"]]
    assert spans == [(10, 30), (64, 100), (150, 225), (300, 600)]
    assert [figures(stratum)[:4] for stratum in found.groups["border"]] == [
        ("inside the image", 6, 5, pytest.approx((0 + 0.5 + 1 + 0.5 + 1 + 1) / 6)),
        ("touches the border", 2, 2, 0.75),
    ]
    assert [figures(stratum)[:4] for stratum in found.groups["classes"]] == [
        ("1 class", 3, 3, pytest.approx(2 / 3)),
        ("2 classes", 2, 1, 0.75),
        ("3 or more", 3, 1, pytest.approx(2 / 3)),
    ]
    # Greys 60, 120 and 180 on 40: cats, dogs, cows.
    names = [(stratum.name, stratum.objects) for stratum in found.groups["contrast"]]
    assert names[0] == ("lowest quarter", 4) and sum(number for _, number in names) == 8
    assert found.groups["contrast"][0].scores[0].iou == 1 and all(stratum.is_small for stratum in found.groups["size"])
    pooled_recall = found.to_dict(0)["all objects"]["pooled recall"]
    assert pooled_recall == pytest.approx((64 + 225 + 150 + 300 + 30 + 50 + 300) / 1479)


def test_the_setting_is_the_one_reported(tmp_path):
    world(tmp_path, found=lambda name, label: FAINT if label == 2 else CLEAR)
    low, high = (strata_of(tmp_path, judge(tmp_path, setting=setting)) for setting in (0.3, 0.5))
    assert low.every.scores[0].recall == 1 and high.every.scores[0].recall == 6 / 8
    chosen = judge(tmp_path, setting=None)
    assert chosen.chosen_here and strata_of(tmp_path, chosen).every.scores[0].recall == 1


def test_pseudo_masks_fare_as_the_cams_that_they_are_made_of(tmp_path):
    cams = world(tmp_path, found=lambda name, label: FAINT if label == 2 else CLEAR)
    write_pseudo_masks(cams, tmp_path / "pseudo", Recipe(thresholds=(0.5,)), progress=False)
    of_cams, of_masks = (strata_of(tmp_path, judge(tmp_path, side, 0.5)) for side in ("cams", "pseudo"))
    assert of_cams == of_masks


def test_intervals_are_those_of_a_slow_bootstrap(tmp_path):
    random = np.random.default_rng(1)
    masks = {}
    for n in range(12):
        mask = np.zeros((30, 30), np.uint8)
        for label in range(1, 2 + n % 3):
            top, left, size = *random.integers(0, 20, 2), random.integers(2, 9)
            mask[top : top + size, left : left + size] = label
        masks[f"{n}"] = mask
    scores = {side: np.random.default_rng(seed) for side, seed in (("before", 2), ("after", 3))}
    for side, generator in scores.items():
        world(tmp_path, side, lambda *_, g=generator: g.random((30, 30)), masks)
    before, after = (judge(tmp_path, side, 0.5 - 0.2 * (side == "after")) for side in scores)
    found = strata_of(tmp_path, before, after, resamples=60, seed=5)
    regions = find_regions(before, progress=False)

    def iou(evaluation, i):
        counts = evaluation.counts[regions.names[regions.image[i]]]
        (k,) = np.flatnonzero(counts.classes == regions.label[i])
        hits = counts.hits[k, evaluation.chosen]
        return hits / (counts.annotated[k] + counts.predicted[k, evaluation.chosen] - hits)

    for border, stratum in zip((False, True), found.groups["border"], strict=True):
        means = []
        for draws in resampled(12, 60, 5):
            objects = [i for i in np.flatnonzero(regions.border == border) for _ in range(draws[regions.image[i]])]
            means.append([np.mean([iou(side, i) for i in objects]) for side in (before, after)])
        means = np.array(means)
        for e in range(2):
            assert stratum.scores[e].interval == pytest.approx(np.percentile(means[:, e], (2.5, 97.5)))
        gain, interval = stratum.scores[1].gain
        assert interval == pytest.approx(np.percentile(means[:, 1] - means[:, 0], (2.5, 97.5)))
        assert gain == pytest.approx(stratum.scores[1].iou - stratum.scores[0].iou) and gain > 0


def test_objects_of_one_size_are_one_stratum(tmp_path):
    world(tmp_path, masks=dict.fromkeys("abcde", MASKS["a1"]))
    found = strata_of(tmp_path, judge(tmp_path))
    assert [(stratum.name, stratum.objects) for stratum in found.groups["size"]] == [("smallest quarter", 5)]
    assert [stratum.name for stratum in found.groups["border"]] == ["inside the image"]


def test_bad_photographs_cost_their_contrast_alone(tmp_path):
    world(tmp_path)
    images = tmp_path / "images"
    (images / "a1.png").unlink()
    (images / "b2.png").write_bytes(b"no image")
    Image.new("RGB", (20, 40)).save(images / "c3.png")
    evaluation = judge(tmp_path)
    regions = find_regions(evaluation, images, progress=False)
    assert list(regions.failed) == ["a1", "b2", "c3"]
    for name, words in (
        ("a1", "there is no image"), ("b2", "is damaged, or no image"),
        ("c3", "c3.png has 40 x 20 pixels, its mask 40 x 40"),
    ):  # fmt: skip
        assert words in regions.failed[name]
    found = stratify([evaluation], regions)
    assert found.every.objects == sum(stratum.objects for stratum in found.groups["size"]) == 8
    assert sum(stratum.objects for stratum in found.groups["contrast"]) == 2
    assert "3 images not measured: a1, b2, c3." in describe_strata(found)
    for name in "de":
        (images / f"{name}1.png").unlink()
    nothing = strata_of(tmp_path, evaluation)
    assert "contrast" not in nothing.groups and nothing.to_dict(0)["contrast"] is None


def test_a_mask_that_went_bad_costs_its_image(tmp_path):
    world(tmp_path)
    evaluation = judge(tmp_path)
    (tmp_path / "gt" / "b2.png").write_bytes(b"")
    found = strata_of(tmp_path, evaluation)
    assert found.every.objects == 5 and "b2.png is damaged" in found.failed["b2"]
    for path in (tmp_path / "gt").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="no object in the ground truth of 5 images: there is no mask"):
        strata_of(tmp_path, evaluation)
    world(tmp_path / "empty", masks={"a": np.zeros((9, 9), np.uint8)})
    with pytest.raises(ValueError, match="of 1 images: all is background"):
        strata_of(tmp_path / "empty", judge(tmp_path / "empty"))


def test_evaluations_must_be_of_the_same_images(tmp_path):
    world(tmp_path)
    world(tmp_path, "fewer")
    (tmp_path / "fewer" / "b2.npy").unlink()
    sides = [judge(tmp_path), judge(tmp_path, "fewer")]
    with pytest.raises(ValueError, match="judged on other images than the objects are of"):
        strata_of(tmp_path, *sides)
    assert strata_of(tmp_path, *on_common_images(sides)).every.objects == 5


@pytest.fixture
def two_sides(tmp_path):
    """Enough images of one object for an interval; `before` misses every second, `after` none."""
    masks = {f"{n}": boxes((40, 40), {1: (10, 10, 12 + n % 20, 20)}) for n in range(MIN_IMAGES_FOR_BOOTSTRAP)}
    world(tmp_path, "before", lambda name, label: CLEAR if int(name) % 2 else 0.1, masks)
    world(tmp_path, "after", masks=masks)
    (tmp_path / "classes.txt").write_text("\n".join(CLASSES))
    return tmp_path


def test_the_command_prints_and_writes_them(two_sides, capsys):
    before, after, out = two_sides / "before", two_sides / "after", two_sides / "out"
    command = ["eval", str(before), str(after), "--gt", str(two_sides / "gt"), "--out", str(out), "--setting", "0.3",
               "--quiet", "--strata", "--images", str(two_sides / "images")]  # fmt: skip
    assert main([*command, "--workers", "2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"^all objects +50 +50  before +50.0 .* 50.0$", said, re.MULTILINE)
    assert re.search(r"^ +after +100.0  100.0 to 100.0 +100.0 +100.0  \+50.0 ", said, re.MULTILINE)
    assert re.search(r"^  smallest quarter \*: 1.25 to", said, re.MULTILINE)
    assert "An object is all pixels of one class in one image." in said and "* fewer than 50 images" in said
    found = json.loads((out / "eval.json").read_text())
    strata = found["after"]["strata"]
    assert list(strata) == ["object", "all objects", "size", "border", "contrast", "classes", "not measured"]
    assert list(strata["size"][0]) == [
        "stratum", "from", "to", "objects", "images", "too few images", "iou", "interval", "pooled iou", "recall",
        "pooled recall", "beside the first",
    ]  # fmt: skip
    everything = strata["all objects"]
    assert everything["beside the first"]["gain"] == 0.5 and everything["beside the first"]["interval"][0] > 0.3
    assert not everything["too few images"] and "beside the first" not in found["before"]["strata"]["all objects"]
    assert main([*command, "--workers", "1"]) == 0
    assert json.loads((out / "eval.json").read_text()) == found


def test_without_the_option_nothing_is_measured(two_sides, capsys, monkeypatch):
    def fail(*arguments, **options):
        raise AssertionError("measured")

    monkeypatch.setattr("semples_plugin.evaluation.regions.find_regions", fail)
    command = ["eval", str(two_sides / "after"), "--gt", str(two_sides / "gt"), "--out", str(two_sides / "out")]
    assert main([*command, "--quiet"]) == 0
    assert "strata" not in json.loads((two_sides / "out" / "eval.json").read_text())["after"]
    assert "strata" not in capsys.readouterr().out


def test_the_command_says_what_it_lacks(two_sides, capsys):
    command = ["eval", str(two_sides / "after"), "--gt", str(two_sides / "gt"), "--out", str(two_sides / "out"),
               "--quiet"]  # fmt: skip
    assert main([*command, "--strata"]) == 0
    said = capsys.readouterr().out
    assert "No strata of contrast: there was no image to read" in said and "--images FOLDER" in said
    assert json.loads((two_sides / "out" / "eval.json").read_text())["after"]["strata"]["contrast"] is None
    assert main([*command, "--images", str(two_sides / "images")]) == 1
    assert "give --strata, too" in capsys.readouterr().err
    for folder, words in (("none", "there is no folder"), ("after", "holds none of the 50 images")):
        assert main([*command, "--strata", "--images", str(two_sides / folder)]) == 1
        assert words in capsys.readouterr().err
    (two_sides / "broken").mkdir()
    for path in (two_sides / "images").iterdir():
        (two_sides / "broken" / path.name).write_text("no image")
    assert main([*command, "--strata", "--images", str(two_sides / "broken")]) == 1
    said = capsys.readouterr().out
    assert "No strata of contrast: there was no image to read" in said and "50 images not measured" in said
    (two_sides / "images" / "7.png").unlink()
    assert main([*command, "--strata", "--images", str(two_sides / "images")]) == 1
    captured = capsys.readouterr()
    assert "strata: not measured: 7: there is no image" in captured.err and "contrast to" in captured.out
    found = json.loads((two_sides / "out" / "eval.json").read_text())["after"]
    assert list(found["strata"]["not measured"]) == ["7"] and found["miou"] == 1


def test_figures_outlive_strata_that_fail(two_sides, capsys):
    masks = {f"{n}": np.zeros((9, 9), np.uint8) for n in range(3)}
    world(two_sides / "void", masks=masks)
    out = two_sides / "out"
    command = ["eval", str(two_sides / "void" / "cams"), "--gt", str(two_sides / "void" / "gt"), "--out", str(out)]
    assert main([*command, "--quiet", "--strata"]) == 1
    assert "no object in the ground truth of 3 images" in capsys.readouterr().err
    assert json.loads((out / "eval.json").read_text())["cams"]["miou"] == 1


def test_a_page_outlives_strata_that_fail(two_sides, capsys):
    world(two_sides / "void", masks={f"{n}": np.zeros((9, 9), np.uint8) for n in range(3)})
    page = two_sides / "r.html"
    command = ["report", str(two_sides / "void" / "cams"), "--gt", str(two_sides / "void" / "gt"), "--out", str(page)]
    assert main([*command, "--quiet", "--strata"]) == 1
    captured = capsys.readouterr()
    assert "no object in the ground truth of 3 images: all is background" in captured.err
    assert "r.html, without strata" in captured.out and "<html" in page.read_text(encoding="utf-8")


def test_the_page_has_a_table_and_a_chart(two_sides, capsys):
    command = ["report", str(two_sides / "before"), str(two_sides / "after"), "--gt", str(two_sides / "gt"), "--images",
               str(two_sides / "images"), "--setting", "0.3", "--titles", "<b>", "after", "--shown", "1", "--quiet",
               "--out", str(two_sides / "r.html")]  # fmt: skip
    assert main(command) == 0
    assert "Failure strata" not in (two_sides / "r.html").read_text()
    assert main([*command, "--strata"]) == 0
    page = (two_sides / "r.html").read_text()
    section = page[page.index('<section id="failure-strata">') :]
    section = section[: section.index("</section>")]
    assert section.count("<svg") == 1 and section.count("<tbody>") == 5 and "<b>" not in section
    body = section[section.index("<tbody>") :]
    rows = re.findall(r"<tr><th>(.*?)<br><small>(.*?)</small></th>(.*?)</tr>", body, re.DOTALL)
    assert rows[0][:2] == ("all objects", "50 objects in 50 images") and '<td class="up">+50.0' in rows[0][2]
    cells = section.split("<thead>")[1].split("</thead>")[0].count("<th>")
    assert all(1 + row.count("<td") == cells == 8 for *_, row in rows)
    few = [(name, row) for name, number, row in rows if int(number.split()[-2]) < MIN_IMAGES_FOR_BOOTSTRAP]
    assert len(few) == 4 and all("quarter *: " in name and 'class="up"' not in row for name, row in few)
    assert re.search(r'style="--w:50.0%;--c:#8a8f98">50.0<br><small>[\d.]+ to [\d.]+</small>', rows[0][2])


def test_gains_have_a_colour_where_they_are_no_luck(two_sides):
    before, after = (judge(two_sides, side) for side in ("before", "after"))
    for sides, direction in (((before, after), "up"), ((after, before), "down"), ((after, after), "")):
        found = strata_of(two_sides, *sides)
        tables = strata_tables(found, ["1", "2"])
        assert tables[""][0].gains[0].direction == direction
        assert "IoU" in format_strata(found, ["1", "2"]).splitlines()[0]
    alone = strata_of(two_sides, after)
    assert strata_tables(alone, ["1"])[""][0].gains == [] and "gain" not in format_strata(alone, ["1"])


def test_charts_take_any_number_of_groups_and_titles(two_sides):
    after = judge(two_sides, "after")
    for images in (True, False):
        for sides in ([after], [after] * 7):
            found = strata_of(two_sides, *sides, images=images)
            titles = [f"$x_{n}" for n in range(len(sides))]
            write_report(two_sides / "r.html", sides, titles, strata=found)
            page = (two_sides / "r.html").read_text()
            assert page.count("<!-- contrast to the surroundings") == int(images)
            # The legend names each, and $ begins no formula.
            assert all(page.replace("\\$", "$").count(f"<!-- {title} -->") >= 1 for title in titles)


def test_regions_hold_positions_of_images_that_could_be_read(tmp_path):
    world(tmp_path)
    evaluation = judge(tmp_path)
    (tmp_path / "gt" / "a1.png").unlink()
    found = find_regions(evaluation, tmp_path / "images", progress=False)
    assert isinstance(found, Regions) and found.image.tolist() == [1, 1, 1, 2, 2, 3, 4]
    assert len(found.contrast) == len(found.area) == len(found.border) == len(found.classes) == 7
