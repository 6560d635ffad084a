"""What WeakTr's second stage takes of mmsegmentation 0.x, by today's; `test_hosts` runs its own scripts."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

pytest.importorskip("mmseg")
from mmseg.evaluation import IoUMetric

from semples_plugin.compat import cpu, weaktr_retraining
from semples_plugin.compat.weaktr import CORRECTIONS
from semples_plugin.compat.weaktr_retraining import LabelledImages

MEAN, STD = [120.0, 110.0, 100.0], [60.0, 50.0, 40.0]
NORMALIZE = {"type": "Normalize", "mean": MEAN, "std": STD, "to_rgb": True}
TRAIN = [  # of segm/data/config/pascal_voc.py, at a size of 48
    {"type": "LoadImageFromFile"},
    {"type": "LoadAnnotations"},
    {"type": "Resize", "img_scale": (384, 48), "ratio_range": (0.5, 2.0)},
    {"type": "RandomCrop", "crop_size": (48, 48), "cat_max_ratio": 0.75},
    {"type": "RandomFlip", "prob": 0.5},
    {"type": "PhotoMetricDistortion"},
    NORMALIZE,
    {"type": "Pad", "size": (48, 48), "pad_val": 0, "seg_pad_val": 255},
    {"type": "DefaultFormatBundle"},
    {"type": "Collect", "keys": ["img", "gt_semantic_seg"]},
]
TEST = [
    {"type": "LoadImageFromFile"},
    {
        "type": "MultiScaleFlipAug",
        "img_scale": (384, 48),
        "flip": False,
        "transforms": [{"type": "Resize", "keep_ratio": True}, {"type": "RandomFlip"}, NORMALIZE],
    },
]


@pytest.fixture
def folder(tmp_path):
    """An image of 60 x 80, red in the left half, which is class 3."""
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    image, mask = np.zeros((60, 80, 3), np.uint8), np.zeros((60, 80), np.uint8)
    image[:, :40, 2], mask[:, :40] = 250, 3  # BGR
    cv2.imwrite(str(tmp_path / "images/a.jpg"), image, [cv2.IMWRITE_JPEG_QUALITY, 100])
    cv2.imwrite(str(tmp_path / "masks/a.png"), mask)
    (tmp_path / "list.txt").write_text("a\n")
    return tmp_path


def config(folder, pipeline, **more) -> dict:
    places = {"data_root": folder, "img_dir": "images", "ann_dir": "masks", "split": "list.txt"}
    return {"type": "PascalVOCDataset", **places, "pipeline": pipeline, **more}


def test_images_and_labels_are_cropped_and_flipped_together(folder):
    data = LabelledImages(config(folder, TRAIN))
    assert len(data) == 1
    np.random.seed(0)
    sides = set()
    for _ in range(20):
        found = data[0]
        image, labels = found["img"].data, found["gt_semantic_seg"].data.squeeze(0)
        assert image.shape == (3, 48, 48) and labels.shape == (48, 48) and image.dtype == torch.float32
        assert set(labels.unique().tolist()) <= {0, 3, 255}
        brightest = (image * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]).amax(0)
        inside = labels != 255
        halves = [brightest[labels == value] for value in (3, 0) if (labels == value).any()]
        assert len(halves) == 1 or halves[0].mean() > halves[1].mean() + 30  # whatever the colours became
        assert (image[:, ~inside] == 0).all()  # what is padded
        sides.add(bool((labels[:, 0] == 3).any()))
    assert sides == {True, False}


def test_pseudo_masks_may_lie_elsewhere(folder, tmp_path):
    """As `--ann-dir`."""
    (tmp_path / "elsewhere").mkdir()
    cv2.imwrite(str(tmp_path / "elsewhere/a.png"), np.full((60, 80), 7, np.uint8))
    labels = LabelledImages(config(folder, TRAIN, ann_dir=str(tmp_path / "elsewhere")))[0]["gt_semantic_seg"].data
    assert set(labels.unique().tolist()) <= {7, 255}


def test_scales_and_flips_of_the_test(folder):
    single = LabelledImages(config(folder, TEST))[0]
    assert [image.shape for image in single["img"]] == [(3, 48, 64)]
    assert single["img_metas"][0].data == {"ori_shape": (60, 80, 3), "ori_filename": "a.jpg", "flip": False}
    red = single["img"][0][:, 24, 8]
    torch.testing.assert_close(red, torch.tensor([(250 - 120) / 60, -110 / 50, -100 / 40]), atol=0.1, rtol=0)
    pipeline = [TEST[0], {**TEST[1], "img_ratios": [0.5, 1.0], "flip": True}]
    several = LabelledImages(config(folder, pipeline))[0]
    assert [image.shape[1:] for image in several["img"]] == [(24, 32), (24, 32), (48, 64), (48, 64)]
    assert [meta.data["flip"] for meta in several["img_metas"]] == [False, True, False, True]
    torch.testing.assert_close(several["img"][3].flip(2), several["img"][2])


def test_mean_iou_is_mmsegmentations():
    module = SimpleNamespace()
    weaktr_retraining.fill_mean_iou(module)
    generator = np.random.default_rng(0)
    truths = [generator.choice([0, 1, 2, 255], (30, 40)).astype(np.uint8) for _ in range(3)]
    predictions = [generator.choice([0, 1, 2], (30, 40)) for _ in range(3)]
    found = module.mean_iou(results=predictions, gt_seg_maps=truths, num_classes=5, ignore_index=255)
    areas = [
        IoUMetric.intersect_and_union(torch.from_numpy(p), torch.from_numpy(t.astype(np.int64)), 5, 255)
        for p, t in zip(predictions, truths, strict=True)
    ]
    intersect, union, _, label = (sum(part) for part in zip(*areas, strict=True))
    np.testing.assert_allclose(found["IoU"], (intersect / union).numpy(), rtol=1e-6)  # NaN for the two that are nowhere
    np.testing.assert_allclose(found["Acc"], (intersect / label).numpy(), rtol=1e-6)
    assert found["aAcc"] == pytest.approx(float(intersect.sum() / label.sum()))
    assert np.isnan(found["IoU"][3:]).all()


def test_each_correction_is_registered():
    assert {"mmseg.core", "mmseg.datasets.builder", "mmseg.datasets.custom", "apex.normalization", "xformers.ops",
            "mlflow"} <= set(CORRECTIONS.stand_ins)  # fmt: skip
    assert {"mmseg.datasets", "mmcv.utils", "timm.models.vision_transformer", "timm.optim.nadam", "timm.optim.radam",
            "models"} <= set(CORRECTIONS.changes)  # fmt: skip
    for name in ("mmcv.utils", "timm.optim.nadam", "timm.optim.radam"):
        module = __import__(name, fromlist=["_"])
        before = set(vars(module))
        for change in CORRECTIONS.changes[name]:
            change(module)
        assert set(vars(module)) - before <= {"Config", "Nadam", "RAdam"} and set(vars(module)) != before


def test_on_the_cpu_it_keeps_no_number_of_a_gpu():
    utils = SimpleNamespace(device=None)
    utils.set_gpu_dist_mode = lambda mode: setattr(utils, "device", 0)
    cpu.name_the_cpu(utils)
    utils.set_gpu_dist_mode(True)
    assert utils.device == "cpu"
