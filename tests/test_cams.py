import cv2
import numpy as np
import pytest

from semples_plugin.data.images import voc_palette
from semples_plugin.evaluation.iou import CamEvaluation
from semples_plugin.viz.overlays import draw_grid, overlay_cam, overlay_mask, write_picture

THRESHOLDS = np.linspace(0, 1, 11)


def images(count=4, seed=0):
    random = np.random.default_rng(seed)
    for n in range(count):
        present = sorted(random.choice(3, size=n % 3, replace=False).tolist())
        # Scores that fall on the thresholds too, where > and >= differ.
        cams = random.integers(0, 21, (len(present), 6, 7)) / 20
        mask = random.choice([0, 1, 2, 3, 255], size=(6, 7)).astype(np.uint8)
        yield cams, present, mask


def slow_miou(threshold):
    hits, union = np.zeros(4), np.zeros(4)
    for cams, present, mask in images():
        for y in range(6):
            for x in range(7):
                if mask[y, x] == 255:
                    continue
                guess, best = 0, threshold
                for cam, k in zip(cams[:, y, x], present, strict=True):
                    if cam > best:
                        guess, best = k + 1, cam
                for k in range(4):
                    hits[k] += mask[y, x] == k and guess == k
                    union[k] += mask[y, x] == k or guess == k
    return hits / union


@pytest.mark.parametrize("num_classes", [3, 254])  # 254 with 200 thresholds and more take places beyond 16 bits
def test_the_sweep_equals_a_loop_per_threshold_exactly(num_classes):
    between = [] if num_classes == 3 else np.linspace(0.001, 0.999, 301)
    evaluation = CamEvaluation(num_classes, np.union1d(THRESHOLDS, between))
    for cams, present, mask in images():
        evaluation.update(cams, present, mask)
    sweep = evaluation.compute()
    for t, threshold in enumerate(sweep.thresholds):
        if threshold not in THRESHOLDS:
            continue
        expected = slow_miou(threshold)
        np.testing.assert_array_equal(sweep.iou[t, :4], expected)
        assert sweep.miou[t] == expected.mean()
    assert sweep.miou[sweep.best] == sweep.miou.max()


def test_as_many_thresholds_as_fit_are_counted():
    """256 of them exceed a byte where a score is above all."""
    thresholds = 0.9985 * np.arange(256) / 255
    evaluation = CamEvaluation(1, thresholds)
    evaluation.update(np.full((1, 1, 1), 0.9999), [0], np.ones((1, 1), np.uint8))
    assert (evaluation.compute().iou[:, 1] == 1).all()


def test_a_class_that_nobody_shows_does_not_count():
    evaluation = CamEvaluation(2, [0.5])
    evaluation.update(np.ones((1, 2, 2)), [0], np.ones((2, 2), dtype=np.uint8))
    sweep = evaluation.compute()
    assert np.isnan(sweep.iou[0, [0, 2]]).all() and sweep.miou[0] == 1


def test_bad_input_is_named():
    for wrong in ([0.5, 0.4], [0.5, 0.5], [30], [-0.1], [np.nan], [0.1, np.nan], 0.5, [], ["a"], None, [[0.5]]):
        with pytest.raises(ValueError, match=r"from 0 to 1, ascending, got .*\S"):
            CamEvaluation(2, wrong)
    with pytest.raises(ValueError, match="expected 1 to 254, as masks are bytes, got 255"):
        CamEvaluation(255, [0.5])
    with pytest.raises(TypeError, match="expected floating point numbers of one precision, got int64"):
        CamEvaluation(2, [0.5]).update(np.ones((1, 2, 2), np.int64), [0], np.ones((2, 2), np.uint8))
    nothing = CamEvaluation(2, [0.5])
    nothing.update(np.ones((1, 2, 2)), [0], np.full((2, 2), 255))
    with pytest.raises(ValueError, match="ground truth holds nothing but 255"):
        _ = nothing.compute().best
    evaluation = CamEvaluation(2, [0.5])
    for cams, present, mask, words in (
        (np.ones((1, 2, 3)), [0], np.zeros((2, 2), dtype=np.uint8), "to fit the ground truth"),
        (np.full((1, 2, 2), np.nan), [0], np.zeros((2, 2), dtype=np.uint8), "NaN"),
        (np.ones((1, 2, 2)), [0], np.full((2, 2), 7, dtype=np.uint8), "values of 0 to 2 and 255"),
    ):
        with pytest.raises(ValueError, match=words):
            evaluation.update(cams, present, mask)


def test_classes_are_different_and_known():
    evaluation = CamEvaluation(2, [0.5])
    for classes in ([-1, 0], [1, 1], [0, 2]):
        with pytest.raises(ValueError, match="different classes of 0 to 1"):
            evaluation.update(np.zeros((2, 4, 4)), classes, np.zeros((4, 4), np.uint8))
    with pytest.raises(ValueError, match="a picture's format"):
        write_picture("picture", np.zeros((4, 4, 3), np.uint8))


def test_errors_name_what_is_wrong_and_stay_short():
    evaluation, mask = CamEvaluation(2, [0.5]), np.zeros((16, 16), np.uint8)
    for size, classes, labels, words in (
        (16, range(254), mask, r"different classes of 0 to 1, got \[2, 3, "),
        (15, range(254), mask, r"to fit the ground truth, got \[\(15, 15\), "),
        (16, [0], np.arange(256, dtype=np.uint8).reshape(16, 16), r"values of 0 to 2 and 255, got \[3, 4, "),
        (16, [0], np.arange(-9, 247).reshape(16, 16), r"values of 0 to 2 and 255, got \[-9, -8, "),
    ):
        with pytest.raises(ValueError, match=words) as caught:
            evaluation.update(np.zeros((len(classes), size, size)), classes, labels)
        assert len(str(caught.value)) < 500


def test_pictures(tmp_path):
    assert voc_palette()[[1, 2, 3, 20]].tolist() == [[128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 64, 128]]
    image = np.full((8, 8, 3), 100, dtype=np.uint8)
    cam = np.zeros((8, 8))
    cam[:, 4:] = 1
    over = overlay_cam(image, cam)
    assert over[0, 0].argmax() == 2 and over[0, 7].argmax() == 0  # cold is blue, hot is red
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[0] = 1
    shown = overlay_mask(image, mask, opacity=1.0)
    assert shown[0, 0].tolist() == [128, 0, 0] and shown[1, 0].tolist() == [60, 60, 60]
    grid = draw_grid([[image, over]], ["image", "CAM"], cell=40)
    write_picture(tmp_path / "grid.png", grid)
    np.testing.assert_array_equal(cv2.imread(str(tmp_path / "grid.png"))[:, :, ::-1], grid)
