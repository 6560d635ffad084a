"""The configs of `examples/mmseg` train and judge images that lie as they say, at a fraction of the size."""

import importlib.util
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("mmseg", reason="needs semples-plugin[mmseg]")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import init_default_scope
    from mmseg.registry import MODELS

from test_mmseg import train

from semples_plugin import BackgroundPrompts, load_preset

CONFIGS = Path(__file__).parent.parent / "examples/mmseg"
NAMES = ("000000000001", "000000000002")
COMPILED = all(importlib.util.find_spec(name) for name in ("mmdet", "mmcv._ext"))
pytestmark = pytest.mark.filterwarnings("ignore")  # mmengine's and mmcv's own


@pytest.fixture(scope="module")
def configs(tmp_path_factory) -> Path:
    """Copies of the configs for small crops of two images, which lie beside them in both data sets' layouts."""
    folder = tmp_path_factory.mktemp("configs")
    generator = np.random.default_rng(0)
    for root, images, masks, lists, classes in (
        ("VOC2012", ["JPEGImages/{}"], ["SegmentationClassAug", "SegmentationClass", "PseudoMasks"],
         ["ImageSets/Segmentation/train_aug", "ImageSets/Segmentation/train", "ImageSets/Segmentation/val"], 20),
        ("COCO2014", ["train2014/COCO_train2014_{}", "val2014/COCO_val2014_{}"], ["masks"],
         ["lists/train", "lists/val"], 80),
    ):  # fmt: skip
        for name in NAMES:
            mask = np.zeros((80, 120), np.uint8)
            mask[10:60, 10:60], mask[60:70, 50:] = 1, 3
            for place in images:
                path = folder / root / f"{place.format(name)}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(generator.integers(0, 256, (80, 120, 3), dtype=np.uint8)).save(path)
            for place in masks:
                (folder / root / place).mkdir(exist_ok=True)
                Image.fromarray(mask).save(folder / root / place / f"{name}.png")
        for place in lists:
            (folder / root / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / root / f"{place}.txt").write_text("".join(f"{name}\n" for name in NAMES))
        labels = np.zeros(classes, np.float32)
        labels[[0, 2]] = 1
        for place in ("cls_labels", "cls_labels_train", "cls_labels_val"):
            np.save(folder / root / place, dict.fromkeys(NAMES, labels), allow_pickle=True)
    for config in CONFIGS.glob("*_*.py"):
        text = config.read_text().replace('"data/', f'"{folder}/').replace("(2048, 512)", "(192, 96)")
        (folder / config.name).write_text(text.replace("(448, 448)", "(96, 96)").replace("(512, 512)", "(96, 96)"))
    return folder


def small(path: Path, work_dir: Path) -> Config:
    """A config without a pretrained backbone, workers, logs and checkpoints."""
    init_default_scope("mmseg")
    cfg = Config.fromfile(path)
    cfg.merge_from_dict({
        "work_dir": str(work_dir), "model.backbone.init_cfg": None, "log_level": "ERROR",
        "default_hooks.checkpoint": {"interval": -1, "save_last": False}, "val_dataloader.num_workers": 0,
        "train_dataloader": {"batch_size": 2, "num_workers": 0, "persistent_workers": False},
    })  # fmt: skip
    return cfg


@pytest.mark.parametrize(("name", "preset"), [("voc_cam_r50", "voc"), ("coco_cam_r50", "coco")])
def test_cam_configs_go_through_the_stages(configs, tmp_path, name, preset):
    cfg = small(configs / f"{name}.py", tmp_path)
    assert cfg.model.regularizer.clip == {"name": "ViT-B-32-quickgelu", "pretrained": "openai"}
    cfg.model.regularizer.clip = "demo"
    cfg.train_cfg.update(max_epochs=3, val_interval=3)
    (stages,) = cfg.custom_hooks
    stages.update(baseline=1, match=1, draw_interval=1, learning={"epochs": 1, "progress": False})
    runner, losses = train(cfg)
    assert ["loss_refine" in losses[i] for i in range(3)] == [False, False, True]
    prompts = BackgroundPrompts.load(tmp_path / "semples" / "prompts.safetensors")
    assert prompts.class_names == load_preset(preset).class_names
    assert 0 <= runner.message_hub.get_scalar("val/cam/mIoU").current() <= 100


def test_deeplab_trains_on_pseudo_masks(configs, tmp_path):
    cfg = small(configs / "voc_deeplab_r101.py", tmp_path)
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    assert cfg.train_dataloader.dataset.data_prefix.seg_map_path == "PseudoMasks"
    cfg.model = revert_sync_batchnorm(MODELS.build(cfg.model))  # which wants a GPU
    scalars = train(cfg)[0].message_hub
    assert scalars.get_scalar("train/decode.loss_ce").current() > 0 <= scalars.get_scalar("val/mIoU").current()


@pytest.mark.skipif(COMPILED, reason="has mmdet and mmcv's compiled operators")
def test_mask2former_says_what_is_missing(configs):
    with pytest.raises(ImportError, match=r"install mmdet, and an mmcv with compiled operators|this mmcv has none"):
        Config.fromfile(configs / "voc_mask2former_swin_l.py")


@pytest.mark.skipif(not COMPILED, reason="needs mmdet and mmcv's compiled operators")
def test_mask2former_trains_on_pseudo_masks(configs, tmp_path):
    cfg = small(configs / "voc_mask2former_swin_l.py", tmp_path)
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    scalars = train(cfg)[0].message_hub
    assert scalars.get_scalar("train/decode.loss_mask").current() > 0 <= scalars.get_scalar("val/mIoU").current()
