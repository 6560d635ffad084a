"""The configs of `examples/mmseg` train and judge images that lie as they say, at a fraction of the size."""

import importlib.util
import json
import keyword
import runpy
import shutil
import sys
import tarfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("mmseg", reason="needs semples-plugin[mmseg]")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmengine.config import Config
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import init_default_scope
    from mmengine.structures import PixelData
    from mmseg.models import SegTTAModel
    from mmseg.registry import METRICS, MODELS
    from mmseg.structures import SegDataSample

    from semples_plugin.adapters import mmseg_testing
    from semples_plugin.adapters.mmseg_options import set_options

from test_mmseg import train

from semples_plugin import BackgroundPrompts, load_preset
from semples_plugin.data.dense_crf import refine_scores
from semples_plugin.data.images import read_mask, voc_palette

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
         [f"ImageSets/Segmentation/{part}" for part in ("train_aug", "train", "val", "test")], 20),
        ("COCO2014", ["train2014/COCO_train2014_{}", "val2014/COCO_val2014_{}"], ["masks", "PseudoMasks"],
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
    for config in CONFIGS.rglob("*.py"):
        text = config.read_text().replace('"data/', f'"{folder}/').replace("(2048, 512)", "(192, 96)")
        copy = folder / config.relative_to(CONFIGS)
        copy.parent.mkdir(exist_ok=True)
        copy.write_text(text.replace("(448, 448)", "(96, 96)").replace("(512, 512)", "(96, 96)"))
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


@pytest.fixture
def script(configs, tmp_path, monkeypatch):
    """Runs train.py beside the copied configs, in a folder of its own."""

    def run(*options: object) -> None:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", ["train.py", *map(str, options)])
        runpy.run_path(str(configs / "train.py"), run_name="__main__")

    return run


SMALL = ("--with", "miniature", "--cfg-options", "log_level=ERROR")
SHORT = ("train_cfg.max_iters=1", "train_cfg.val_interval=2", "default_hooks.checkpoint.interval=1",
         "train_dataloader.batch_size=2")  # fmt: skip


@pytest.mark.parametrize(("data", "classes"), [("voc", 21), ("coco", 81)])
def test_stage_two_is_trained_and_tested_in_miniature(configs, script, tmp_path, data, classes):
    pytest.importorskip("pydensecrf", reason="needs semples-plugin[crf]")
    script(f"{data}_deeplab_r101", *SMALL, *SHORT)
    work_dir = tmp_path / f"work_dirs/{data}_deeplab_r101"
    head = torch.load(work_dir / "iter_1.pth", weights_only=False)["state_dict"]["decode_head.conv_seg.weight"]
    assert len(head) == classes
    plain = json.loads((work_dir / "test.json").read_text())
    assert 0 <= plain["mIoU"] <= 100 and plain["config"] == f"{data}_deeplab_r101 miniature" and "seed" in plain
    script(f"{data}_deeplab_r101", *SMALL, "--test", "last", "--tta", "--crf", 2, "--masks", "masks")
    figures = json.loads((work_dir / "test-tta-crf2.json").read_text())
    assert figures["checkpoint"].endswith("iter_1.pth")
    # What was written is what was counted.
    predicted = np.stack([read_mask(tmp_path / f"masks/{name}.png") for name in NAMES])
    folder = configs / ("VOC2012/SegmentationClass" if data == "voc" else "COCO2014/masks")
    truth = np.stack([read_mask(folder / f"{name}.png") for name in NAMES])
    assert figures["aAcc"] == pytest.approx(100 * (predicted == truth).mean(), abs=0.01)


def test_the_last_checkpoint_is_found_where_the_work_folder_was_moved_or_copied(configs, script, tmp_path):
    script("voc_deeplab_r101", *SMALL, *SHORT)
    work_dir = tmp_path / "work_dirs/voc_deeplab_r101"
    shutil.copytree(work_dir, tmp_path / "copied")
    script("voc_deeplab_r101", *SMALL, "--work-dir", "copied", "--test", "last")  # not the other folder's, still there
    assert json.loads((tmp_path / "copied/test.json").read_text())["checkpoint"] == "copied/iter_1.pth"
    (work_dir / "last_checkpoint").write_text("/where/it/was/before/iter_1.pth")  # mmengine notes the whole path
    script("voc_deeplab_r101", *SMALL, "--test", "last")
    assert json.loads((work_dir / "test.json").read_text())["checkpoint"] == "work_dirs/voc_deeplab_r101/iter_1.pth"
    script("voc_deeplab_r101", *SMALL, *SHORT, "train_cfg.max_iters=2", "--resume")
    last = torch.load(work_dir / "iter_2.pth", weights_only=False)
    assert last["meta"]["iter"] == 2 and last["param_schedulers"][0]["last_step"] == 2


def test_masks_for_the_server_are_what_it_takes(configs, script, tmp_path, capsys):
    script("voc_deeplab_r101", *SMALL, *SHORT)
    (configs / "VOC2012/SegmentationClass").rename(tmp_path / "away")  # nobody has the test set's
    try:
        script("voc_deeplab_r101", *SMALL, "--test", "last", "--tta", "--submit", "server")
    finally:
        (tmp_path / "away").rename(configs / "VOC2012/SegmentationClass")
    assert "for VOC's evaluation server: server/results.tgz" in capsys.readouterr().out
    assert not (tmp_path / "work_dirs/voc_deeplab_r101/test-tta.json").exists()
    with tarfile.open(tmp_path / "server/results.tgz") as archive:
        assert archive.getnames() == [f"results/VOC2012/Segmentation/comp6_test_cls/{name}.png" for name in NAMES]
        archive.extractall(tmp_path / "there", filter="data")
    for name in NAMES:
        with Image.open(tmp_path / f"there/{mmseg_testing.SUBMISSION}/{name}.png") as image:
            assert image.mode == "P" and image.size == (120, 80)
            assert image.getpalette()[:63] == voc_palette()[:21].flatten().tolist()
    (tmp_path / f"server/{mmseg_testing.SUBMISSION}/{NAMES[0]}.png").unlink()
    with pytest.raises(FileNotFoundError, match=f"has no mask of 1 images, such as {NAMES[0]}"):
        mmseg_testing.pack_submission(tmp_path / "server", NAMES)


@pytest.mark.parametrize(
    ("options", "message"),
    [(["voc_deeplab_r101", "--tta"], "say how to test a network: give --test CHECKPOINT, too"),
     (["nothing"], "there is no config nothing: expected a file, or one of coco_cam_r50, coco_deeplab_r101, "),
     (["voc_deeplab_r101", "--test", "last"], r"there is no checkpoint in work_dirs/voc_deeplab_r101"),
     (["voc_deeplab_r101", "--test", "a.pth"], r"there is no checkpoint a\.pth"),
     (["voc_cam_r50", "--test", "HERE", "--crf", "1"], "this config's test_evaluator is CamMetric"),
     (["voc_cam_r50", "--test", "HERE", "--tta"], "this config has no tta_model and tta_pipeline"),
     (["coco_deeplab_r101", "--test", "HERE", "--submit", "x"], "takes masks of VOC, and the config's data are Wsss"),
     (["voc_deeplab_r101", "--data", "nowhere"], "there is no folder nowhere"),
     (["voc_deeplab_r101", "--pseudo-masks", "EMPTY"],
      r"has no mask of 2 of the 2 images of .*train_aug\.txt, such as 000000000001\.png; `semples pseudo-masks`"),
     (["miniature"], "miniature is no whole config, as it names no type of model: give it as CONFIG --with miniature"),
     (["coco_weights", "--pseudo-masks", "EMPTY"], "coco_weights is no whole config"),
     (["BROKEN"], r"broken\.py can't be read as a config \(SyntaxError: invalid syntax"),
     (["voc_deeplab_r101", "--with", "OTHER"], "--with .*other.py doesn't fit voc_deeplab_r101: "),
     (["voc_deeplab_r101", "--data", "EMPTY", "--test", "HERE"],
      "test_dataloader: there is no .*empty/ImageSets/Segmentation/val.txt; --data FOLDER names"),
     (["voc_deeplab_r101", "--test", "PAGE"], r"page\.pth is no checkpoint of torch\.save, it begins with b'<html>"),
     (["voc_deeplab_r101", "--data", "EMPTY"], "train_dataloader: there is no .*/train_aug.txt; --data FOLDER")],
)  # fmt: skip
def test_bad_options_are_refused_in_a_sentence(script, tmp_path, options, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.py").write_text("x = = 3")
    (tmp_path / "other.py").write_text("param_scheduler = {'7': {'end': 3}}")
    (tmp_path / "page.pth").write_text("<html>")
    torch.save({}, tmp_path / "here.pth")
    places = {name.upper(): tmp_path / f"{name}{end}" for name, end in
              {"here": ".pth", "page": ".pth", "empty": "", "broken": ".py", "other": ".py"}.items()}  # fmt: skip
    with pytest.raises(SystemExit, match=message):
        script(*[places.get(option, option) for option in options])


@pytest.mark.parametrize(
    ("option", "message"),
    [("train_cfg.max_iter=3", "train_cfg has no 'max_iter'; it has type, max_iters, .*; did you mean max_iters"),
     ("log_levle=INFO", "the config has no 'log_levle'; .*; did you mean log_level"),
     ("default_hooks.checkpoint.intervall=1", "no 'intervall'; .*did you mean interval"),  # it takes any keyword
     ("randomness.sed=1", "randomness has no 'sed'"), ("model.test_cfg.stirde=3", "model.test_cfg has no 'stirde'"),
     ("train_dataloader.batchsize=3", "did you mean batch_size"),
     ("param_scheduler.3.end=2", "param_scheduler is a list of 1, expected a position from 0"),
     ("log_level.x=1", "log_level has no entries, it is 'INFO'"),
     ("model.backbone=3", r"expected model\.backbone\.NAME=VALUE with NAME such as type, depth")],
)  # fmt: skip
def test_entries_that_nothing_reads_are_refused(configs, script, option, message):
    with pytest.raises(SystemExit, match=f"--cfg-options {option.split('=')[0]}: .*{message}"):
        script("voc_deeplab_r101", "--cfg-options", option)


@pytest.mark.parametrize("word", ["max_iters", "=3", "a..b=3", "x=[1,2"])
def test_what_is_no_entry_is_refused(script, word, capsys):
    with pytest.raises(SystemExit):
        script("voc_deeplab_r101", "--cfg-options", "log_level=ERROR", word)
    message = capsys.readouterr().err.splitlines()[-1]
    assert "--cfg-options: " in message and repr(word) in message


def test_entries_that_a_class_or_function_names_are_added(configs):
    config = Config.fromfile(configs / "voc_deeplab_r101.py")
    entries = {"test_evaluator.output_dir": "cams", "randomness.deterministic": True, "load_from": "a.pth",
               "default_hooks.checkpoint.save_best": "mIoU", "optim_wrapper.clip_grad.max_norm": 1.0,
               "train_dataloader.pin_memory": True, "train_dataloader.dataset.indices": 4,
               "optim_wrapper.optimizer.type": "AdamW", "optim_wrapper.optimizer.betas": (0.9, 0.99),
               "param_scheduler.0.end": 3, "model.backbone.init_cfg": None}  # fmt: skip
    set_options(config, entries)
    assert config.test_evaluator.output_dir == "cams" and config.optim_wrapper.clip_grad == {"max_norm": 1.0}
    assert config.param_scheduler[0].end == 3 and config.model.backbone.init_cfg is None
    assert config.train_dataloader.pin_memory and config.load_from == "a.pth"


def test_deeplab_starts_from_coco(configs, tmp_path):
    init_default_scope("mmseg")
    cfg = Config.fromfile(configs / "voc_deeplab_r101.py")
    assert cfg.model.backbone.init_cfg.checkpoint == "open-mmlab://resnet101_v1c"
    for name in ("miniature", "coco_weights"):
        cfg.merge_from_dict(Config.fromfile(configs / f"{name}.py").to_dict())
    init = cfg.model.backbone.init_cfg
    assert "/deeplabv3_r101-d8_" in init.checkpoint and "coco-stuff164k" in init.checkpoint
    weights = {name: torch.full_like(value, 0.5) for name, value in MODELS.build(cfg.model).state_dict().items()}
    torch.save({"state_dict": weights}, tmp_path / "weights.pth")
    init.checkpoint = str(tmp_path / "weights.pth")
    model = MODELS.build(cfg.model)
    model.init_weights()
    assert all((value == 0.5).all() for value in model.backbone.parameters())
    assert not (model.decode_head.conv_seg.weight == 0.5).any()


@pytest.mark.parametrize(("data", "classes"), [("voc", 21), ("coco", 81)])
def test_mask2formers_config_begins_with_imagenet_22k(configs, monkeypatch, data, classes):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # mmdet and mmcv's operators
    cfg = Config.fromfile(configs / f"{data}_mask2former_swin_l.py", import_custom_modules=False)
    head, backbone = cfg.model.decode_head, cfg.model.backbone
    assert (
        backbone.init_cfg.type == "Pretrained" and "swin_large_patch4_window12_384_22k" in backbone.init_cfg.checkpoint
    )
    assert head.num_classes == classes and list(head.loss_cls.class_weight) == [1.0] * classes + [0.1]
    dataset, root = {"voc": ("WsssVoc", "VOC2012"), "coco": ("WsssCoco", "COCO2014")}[data]
    for loader in mmseg_testing.LOADERS:
        assert cfg[loader].dataset.type == dataset and Path(cfg[loader].dataset.data_root).name == root
    assert cfg.test_evaluator.scores == cfg.val_evaluator.scores == cfg.tta_model.scores == "probabilities"
    assert not any(map(keyword.iskeyword, keys_of(cfg.to_dict())))  # mmengine writes a config as dict(key=...)
    network = MODELS.build({**backbone, "init_cfg": None})
    network.init_weights()
    assert sum(p.numel() for p in network.parameters()) == pytest.approx(195e6, rel=0.01)


def keys_of(config: object) -> list[str]:
    parts = config.values() if isinstance(config, dict) else config if isinstance(config, (list, tuple)) else []
    return [*(config if isinstance(config, dict) else []), *(key for part in parts for key in keys_of(part))]


def views(*scores: torch.Tensor) -> list[SegDataSample]:
    samples = [SegDataSample(metainfo={"img_path": "a.jpg"}) for _ in scores]
    for sample, values in zip(samples, scores, strict=True):
        sample.seg_logits = PixelData(data=values)
    return samples


def test_merged_scores_are_the_mean_of_the_views():
    module = torch.nn.Module()
    module.out_channels, module.test_step = 3, None  # mmengine asks for the latter
    torch.manual_seed(0)
    scores = [3 * torch.randn(3, 4, 5) for _ in range(4)]
    (merged,) = MODELS.build({"type": "MergedScores", "module": module}).merge_preds([views(*scores)])
    mean = torch.stack([view.exp() / view.exp().sum(0) for view in scores]).mean(0)
    torch.testing.assert_close(merged.seg_logits.data.softmax(0), mean)
    assert torch.equal(merged.pred_sem_seg.data, mean.argmax(0)[None])
    (mmsegs,) = SegTTAModel(module=module).merge_preds([views(*scores)])
    assert torch.equal(mmsegs.pred_sem_seg.data, merged.pred_sem_seg.data)
    scores = [torch.rand(3, 4, 5) for _ in range(4)]
    options = {"type": "MergedScores", "module": module, "scores": "probabilities"}
    (merged,) = MODELS.build(options).merge_preds([views(*scores)])
    torch.testing.assert_close(merged.seg_logits.data, sum(scores) / 4)
    with pytest.raises(ValueError, match="scores: expected one of logits, probabilities, got 'sums'"):
        MODELS.build({**options, "scores": "sums"})


@pytest.fixture
def sample(configs):
    """A prediction of 21 classes for one of the images, as an evaluator gets it."""
    torch.manual_seed(0)
    logits = torch.nn.functional.interpolate(4 * torch.randn(1, 21, 5, 7), (80, 120), mode="bilinear")[0]
    truth = torch.from_numpy(read_mask(configs / f"VOC2012/SegmentationClass/{NAMES[0]}.png").astype(int))
    path = configs / f"VOC2012/JPEGImages/{NAMES[0]}.jpg"
    return {"img_path": str(path), "seg_logits": {"data": logits}, "pred_sem_seg": {"data": logits.argmax(0)[None]},
            "gt_sem_seg": {"data": truth[None]}}  # fmt: skip


def judged(samples: list[dict], **options) -> dict[str, float]:
    metric = METRICS.build({"type": "SegmentationMetric", **options})
    metric.dataset_meta = {"classes": [str(k) for k in range(21)]}
    metric.process(None, samples)
    return metric.evaluate(len(samples))


def test_the_metric_is_mmsegs_and_its_crf_ours(sample, tmp_path):
    pytest.importorskip("pydensecrf", reason="needs semples-plugin[crf]")
    plain = judged([sample], output_dir=str(tmp_path / "plain"))
    assert plain == judged([sample], type="IoUMetric") and plain["mIoU"] > 0
    assert np.array_equal(read_mask(tmp_path / f"plain/{NAMES[0]}.png"), sample["pred_sem_seg"]["data"][0].numpy())
    image = np.asarray(Image.open(sample["img_path"]))
    probabilities = sample["seg_logits"]["data"].softmax(0)
    expected = refine_scores(probabilities.numpy(), image, 3)
    assert (expected != sample["pred_sem_seg"]["data"][0].numpy()).any()
    refined = {**sample, "pred_sem_seg": {"data": torch.from_numpy(expected.astype(int))[None]}}
    assert judged([sample], crf=3, output_dir=str(tmp_path / "crf")) == judged([refined])
    assert np.array_equal(read_mask(tmp_path / f"crf/{NAMES[0]}.png"), expected)
    scaled = {**sample, "seg_logits": {"data": 0.1 * probabilities}}  # Mask2Former's don't sum to 1
    assert judged([scaled], crf=3, scores="probabilities") == judged([refined])


def test_the_metric_refuses_what_it_cant_judge(sample, tmp_path, monkeypatch):
    unlabelled = {name: value for name, value in sample.items() if name != "gt_sem_seg"}
    assert judged([unlabelled], output_dir=str(tmp_path)) == {} and (tmp_path / f"{NAMES[0]}.png").is_file()
    with pytest.raises(ValueError, match="no ground truth: put LoadAnnotations into the pipeline, or give output_dir"):
        judged([unlabelled])
    with pytest.raises(ValueError, match="crf: expected a whole number of at least 0"):
        judged([sample], crf=-1)
    with pytest.raises(ValueError, match="scores: expected one of logits"):
        judged([sample], scores="sums")
    monkeypatch.setattr("semples_plugin.adapters.mmseg_segments.import_crf", lambda: None)
    with pytest.raises(ValueError, match='the model predicts negative ones; are they "logits"'):
        judged([sample], crf=1, scores="probabilities")
    with pytest.raises(ValueError, match="a CRF needs scores"):
        judged([{name: value for name, value in sample.items() if name != "seg_logits"}], crf=1)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    with pytest.raises(ImportError, match="the CRF needs one more package"):
        judged([sample], crf=1)


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
