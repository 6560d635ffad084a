"""mmsegmentation: the tiny config goes through the stages, resumes in each, and its metric is mmseg's own."""

import os
import random
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_distributed import spawn

pytest.importorskip("mmseg", reason="needs semples-plugin[mmseg]")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmengine.config import Config
    from mmengine.hooks import EMAHook, Hook
    from mmengine.registry import init_default_scope
    from mmengine.runner import Runner
    from mmseg.registry import DATASETS, HOOKS, METRICS, MODELS, TRANSFORMS

    import semples_plugin.adapters.mmseg
    from semples_plugin.adapters import mmseg_data

from semples_plugin import BackgroundPrompts, FrozenClip
from semples_plugin.data.cam_files import chosen_cams
from semples_plugin.demo.data import OBJECTS
from semples_plugin.demo.export import write_world
from semples_plugin.prompt_learning import epochs, work_dir

CONFIG = Path(__file__).parent.parent / "examples/mmseg/tiny_demo.py"
Config.pretty_text = property(lambda self: "")  # mmengine prints it, and yapf takes minutes over long temporary paths
pytestmark = pytest.mark.filterwarnings("ignore")  # mmengine's and mmcv's own


@pytest.fixture(autouse=True)
def scope():
    init_default_scope("mmseg")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "demo-world"
    write_world(folder, train=48, test=12)
    return folder


def config(world, work_dir, iterations=12, **changes) -> Config:
    """The example's config, with stages of four iterations and all that is random left to the seed."""
    file = world / f"tiny_{os.getpid()}.py"  # ranks write it at the same time
    file.write_text(CONFIG.read_text().replace('"demo-world"', repr(str(world))))
    cfg = Config.fromfile(file)
    cfg.merge_from_dict({
        "work_dir": str(work_dir), "train_cfg.max_iters": iterations, "train_dataloader.batch_size": 4,
        "custom_hooks.0.baseline": 4, "custom_hooks.0.match": 4, "custom_hooks.0.draw_interval": 3,
        "custom_hooks.0.restart": "baseline",
        "custom_hooks.0.learning": {"epochs": 2, "lr": 2e-2, "batch_size": 16, "progress": False},
        "default_hooks.checkpoint.interval": 1, "default_hooks.checkpoint.max_keep_ckpts": -1,
        "default_hooks.logger.interval": 1, "log_level": "ERROR",
        "visualizer.vis_backends": [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}],
    })  # fmt: skip
    for key, value in changes.items():
        *path, last = key.split(".")
        place = cfg
        for part in path:
            place = place[int(part)] if part.isdigit() else place[part]
        place[last] = value
    return cfg


class Listener(Hook):
    """Keeps the losses of every iteration, and the weights, and whether a gradient was pending, before it."""

    def __init__(self) -> None:
        self.losses: dict[int, dict[str, float]] = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.pending = getattr(runner, "pending", {})
        runner.before = {name: value.clone() for name, value in runner.model.state_dict().items()}
        runner.pending[runner.iter] = any(p.grad is not None and p.grad.any() for p in runner.model.parameters())

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses[runner.iter] = {name: float(v) for name, v in outputs.items() if name.startswith("loss_")}


def train(cfg: Config) -> tuple[Runner, dict[int, dict[str, float]]]:
    cfg.experiment_name = f"run{next(_RUNS)}"  # mmengine keeps runners by name
    runner, listener = Runner.from_cfg(cfg), Listener()
    runner.register_hook(listener, priority="LOWEST")
    runner.train()
    return runner, listener.losses


_RUNS = iter(range(1000))


@pytest.fixture(scope="module")
def whole(world, tmp_path_factory):
    """An uninterrupted run."""
    init_default_scope("mmseg")
    folder = tmp_path_factory.mktemp("whole")
    runner, losses = train(config(world, folder))
    return folder, runner, losses


def test_a_run_goes_through_the_stages(whole):
    folder, runner, losses = whole
    names = {i: set(terms) - {"loss_cls"} for i, terms in losses.items()}
    match = {"loss_match_foreground", "loss_match_background"}
    assert [names[i] for i in (3, 4, 7, 8, 11)] == [
        set(),
        match,
        match,
        match | {"loss_refine"},
        match | {"loss_refine"},
    ]
    prompts = BackgroundPrompts.load(folder / "semples" / "prompts.safetensors")
    assert prompts.learned and prompts.class_names == OBJECTS
    assert not list((folder / "semples").glob("prompts.unfinished*"))
    assert torch.equal(prompts.vectors, runner.model.regularizer.prompts.vectors)
    start, matched, refined = (
        torch.load(folder / f"iter_{i}.pth", weights_only=False)["state_dict"] for i in (4, 8, 9)
    )
    weight = "classifier.weight"
    # (c) begins where (a) began: one step away from it, and several from where (a) ended.
    assert (refined[weight] - start[weight]).abs().max() < 1.5e-3 < (refined[weight] - matched[weight]).abs().max()
    (scalars,) = folder.glob("*/vis_data/scalars.json")
    text = scalars.read_text()
    for name in ("loss_match_foreground", "loss_match_background", "loss_refine", "similarity_prompt", "mask_area"):
        assert f'"{name}"' in text
    assert list(folder.glob("*/vis_data/vis_image/semples_masks_*.png"))
    (events,) = folder.glob("*/vis_data/events.*")
    kept = EventAccumulator(str(events)).Reload()
    assert [e.step for e in kept.Scalars("loss_refine")] == [9, 10, 11, 12]
    assert {i.step: i.height for i in kept.Images("semples_masks")} == {6: 414, 9: 608, 12: 608}  # prompts in (c)


def test_refinement_may_go_on_from_where_matching_ended(whole, world, tmp_path):
    folder, *_ = whole
    changes = {"resume": True, "load_from": str(folder / "iter_8.pth"), "custom_hooks.0.restart": "matched"}
    runner, _ = train(config(world, tmp_path, iterations=9, **changes))
    matched = torch.load(folder / "iter_8.pth", weights_only=False)["state_dict"]
    assert 0 < (runner.model.classifier.weight - matched["classifier.weight"]).abs().max() < 1.5e-3  # one step away
    torch.testing.assert_close(runner.before, matched, rtol=0, atol=0)  # (b) left no trace, nor in running statistics


@pytest.mark.parametrize("at", [2, 4, 6, 8, 10], ids=["baseline", "its end", "(a)", "its end, before (b)", "(c)"])
def test_a_resumed_run_has_the_losses_of_an_uninterrupted_one(whole, world, tmp_path, at):
    folder, _, losses = whole
    # Nothing is drawn this time, so that a trace of drawing would show.
    changes = {"resume": True, "load_from": str(folder / f"iter_{at}.pth"), "custom_hooks.0.draw_interval": 0}
    runner, resumed = train(config(world, tmp_path, **changes))
    assert sorted(resumed) == list(range(at, 12))
    for i, terms in resumed.items():
        assert terms.keys() == losses[i].keys()
        for name, value in terms.items():
            assert value == pytest.approx(losses[i][name], rel=1e-5), (i, name)
    state = torch.load(folder / "iter_12.pth", weights_only=False)["state_dict"]
    torch.testing.assert_close(dict(runner.model.state_dict()), dict(state), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("at", [6, 10])
@pytest.mark.parametrize("what", ["averages and gathered gradients", "prompts that were learned before"])
def test_so_it_has_under_other_options(whole, world, tmp_path, what, at):
    changes = {
        "optim_wrapper.accumulative_counts": 2,
        "custom_hooks": [*config(world, tmp_path).custom_hooks, {"type": "EMAHook"}],
    }
    if what.startswith("prompts"):
        changes = {"custom_hooks.0.baseline": 8, "custom_hooks.0.match": 0}
        changes["model.regularizer.prompts"] = str(whole[0] / "semples" / "prompts.safetensors")
    _, losses = train(config(world, tmp_path / "whole", **changes))
    resume = {"resume": True, "load_from": str(tmp_path / "whole" / f"iter_{at}.pth"), **changes}
    _, resumed = train(config(world, tmp_path, **resume))
    assert sorted(resumed) == list(range(at, 12)) and "loss_refine" in resumed[11]
    for i, terms in resumed.items():
        assert terms == pytest.approx(losses[i], rel=1e-5), i


def test_the_plan_and_every_change_of_stage_are_logged(whole, world, tmp_path, caplog):
    folder, *_ = whole
    changes = {"log_level": "INFO", "custom_hooks.0.match": 8, "load_from": str(folder / "iter_4.pth"), "resume": True}
    train(config(world, tmp_path, iterations=6, **changes))
    (log,) = tmp_path.glob("*/*.log")
    text = log.read_text()
    assert "SemPLeS: 4 iterations of baseline, 8 of (a) matching, (b) prompts, 0 of (c) refinement" in text
    assert "baseline 4 and match 8 are all of the 6 iterations: prompts are never learned" in text
    assert text.count("SemPLeS: (a) matching from iteration 5 on") == 1 and "(c) refinement from" not in text


def test_the_preset_and_what_departs_from_it_are_logged(world, tmp_path):
    changes = {"log_level": "INFO", "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 1}}
    changes |= {"train_dataloader.sampler": {"type": "DefaultSampler", "shuffle": True}}
    cfg = config(world, tmp_path, **changes)
    cfg.model.regularizer.preset = "coco"
    cfg.custom_hooks = [{"type": "SemPLeSStages", "baseline": 1, "match": 20, "learning": {"epochs": 7}}]
    train(cfg)
    (log,) = tmp_path.glob("*/*.log")
    text = log.read_text()
    learns = "preset coco; (b) learns 30 vectors a class, start normal, std 0.02: epochs 7, lr 5e-06, batch_size 64, "
    assert learns + "weight_decay 0.01" in text  # 100 times the rate, and twice the batch, before
    assert (
        "(a) and (c) are trained by the runner's settings: lr 0.001 (coco: 5e-06), batch_size 4 (coco: 64), "
        "epochs 20 (coco: 60)" in text
    )


def test_a_regularizer_without_a_preset_learns_by_vocs_and_says_so(world, tmp_path):
    from semples_plugin import SemPLeSRegularizer

    cfg = config(world, tmp_path, iterations=3, log_level="INFO")
    cfg.model.regularizer = None
    model = MODELS.build(cfg.model)
    model.adapter = semples_plugin.adapters.mmseg.CamAdapter(SemPLeSRegularizer(FrozenClip.load("demo"), OBJECTS))
    learning = {"epochs": 1, "progress": False}
    cfg.custom_hooks = [{"type": "SemPLeSStages", "baseline": 1, "match": 1, "learning": learning}]
    cfg.model, cfg.experiment_name = model, f"{tmp_path} own"
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.model.regularizer.prompts.vectors.shape[:2] == (8, 30)
    (log,) = tmp_path.glob("*/*.log")
    assert "built without a preset; (b) takes voc's" in log.read_text()


def test_warnings_of_a_step_are_in_the_log_once(world, tmp_path):
    changes = {"log_level": "WARNING", "custom_hooks.0.baseline": 0, "custom_hooks.0.match": 2}
    cfg = config(world, tmp_path, iterations=2, experiment_name=str(tmp_path), **changes)
    runner = Runner.from_cfg(cfg)
    runner.model.classifier.weight.data.abs_().neg_()  # of ReLU features: CAMs without a positive value
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        shown = warnings.showwarning
        runner.train()
        assert warnings.showwarning is shown
    (log,) = tmp_path.glob("*/*.log")
    assert log.read_text().count('kind="relu" got CAMs without a positive value') == 1


class Stop(Exception):  # noqa: N818, no error
    """Interrupts (b)."""


def test_an_interrupted_prompt_stage_goes_on_in_a_resumed_run_alone(whole, world, tmp_path, monkeypatch):
    folder, _, losses = whole
    changes = {"resume": True, "load_from": str(folder / "iter_8.pth"), "log_level": "WARNING"}

    def interrupt(*_):
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(epochs, "measure", interrupt)  # after the walk
        train(config(world, tmp_path, iterations=9, **changes))
    (unfinished,) = (tmp_path / "semples").glob("prompts.unfinished.*")
    features = torch.load(unfinished / "features.pt", weights_only=True)
    del features["digest"]
    features["rows"] = features["rows"].flip(0)  # so that it shows whether they are taken
    torch.save({**features, "digest": work_dir.digest(features)}, unfinished / "features.pt")
    left = tmp_path / "left"
    shutil.copytree(unfinished, left)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        _, resumed = train(config(world, tmp_path, iterations=9, **changes))
    assert resumed[8]["loss_refine"] != pytest.approx(losses[8]["loss_refine"], rel=1e-5)
    logs = "".join(path.read_text() for path in tmp_path.glob("*/*.log"))
    assert "holds an interrupted run, which is continued" in logs  # Python's warnings are in the log, too
    shutil.copytree(left, unfinished)
    fresh = train(config(world, tmp_path, iterations=9))[1]  # in the same folder, of a model of its own
    assert fresh[8]["loss_refine"] == pytest.approx(losses[8]["loss_refine"], rel=1e-5)
    shutil.copytree(left, unfinished)
    earlier = {"load_from": str(folder / "iter_6.pth"), "model.cls_weight": 0.0, "resume": True}
    train(config(world, tmp_path / "other", iterations=9, **earlier))
    train(config(world, tmp_path, iterations=9, **earlier))  # resumed, and yet another model at the end of (a)
    first, second = (BackgroundPrompts.load(p / "semples/prompts.safetensors") for p in (tmp_path, tmp_path / "other"))
    assert torch.equal(first.vectors, second.vectors) and not list((tmp_path / "semples").glob("prompts.unfin*"))


def test_a_restart_takes_averages_and_gathered_gradients_back(whole, world, tmp_path):
    changes = {
        "optim_wrapper.accumulative_counts": 3,  # an update at 3, 6 and 9, so that a gradient is pending at 8
        "custom_hooks": [*config(world, tmp_path).custom_hooks, {"type": "EMAHook"}],
        "default_hooks.checkpoint.interval": 4,
    }
    runner, _ = train(config(world, tmp_path / "a", iterations=9, **changes))
    start = torch.load(tmp_path / "a" / "iter_4.pth", weights_only=False)["ema_state_dict"]["module.classifier.weight"]
    (ema,) = (hook for hook in runner.hooks if isinstance(hook, EMAHook))
    assert runner.pending[7] and not runner.pending[8]
    # Checkpoints hold the raw weights under ema's name. One update of (c) alone lies between them.
    assert (runner.model.classifier.weight - start).abs().max() < 1.5e-3
    assert (ema.ema_model.module.classifier.weight - start).abs().max() < 1.5e-3 and ema.ema_model.steps == 1


def test_weights_alone_are_loaded_without_a_stage(whole, world, tmp_path):
    folder, *_ = whole
    _, losses = train(config(world, tmp_path, iterations=2, load_from=str(folder / "iter_12.pth")))
    assert set(losses[0]) == {"loss_cls"}


def test_an_epoch_based_loop_does_the_same(world, tmp_path):
    changes = {
        "train_cfg": {"type": "EpochBasedTrainLoop", "max_epochs": 3},
        "train_dataloader.sampler": {"type": "DefaultSampler", "shuffle": True}, "train_dataloader.batch_size": 24,
        "custom_hooks.0.baseline": 1, "custom_hooks.0.match": 1, "log_processor.by_epoch": True,
        "default_hooks.checkpoint.by_epoch": True,
    }  # fmt: skip
    cfg = config(world, tmp_path / "a", **changes)
    _, losses = train(cfg)
    assert ["loss_refine" in losses[i] for i in range(6)] == [False] * 4 + [True] * 2
    cfg.merge_from_dict(
        {"resume": True, "load_from": str(tmp_path / "a" / "epoch_2.pth"), "work_dir": str(tmp_path / "b")}
    )
    _, resumed = train(cfg)
    for i in (4, 5):
        assert resumed[i] == pytest.approx(losses[i], rel=1e-5)


def test_our_metric_agrees_with_mmsegs_at_the_best_background_score(whole, world):
    _, runner, _ = whole
    loader = Runner.build_dataloader(config(world, "x").val_dataloader)
    meta = loader.dataset.metainfo

    def judge(metric, threshold):
        metric.dataset_meta = meta
        runner.model.threshold = threshold
        for batch in loader:
            samples = runner.model.val_step(batch)
            metric.process(batch, [sample.to_dict() for sample in samples])
        return metric.evaluate(len(loader.dataset))

    ours = judge(METRICS.build({"type": "CamMetric"}), 0.3)
    theirs = judge(METRICS.build({"type": "IoUMetric"}), ours["cam/threshold"])
    assert theirs["mIoU"] == pytest.approx(ours["cam/mIoU"], abs=0.01)  # it rounds to two digits


def test_the_metric_equals_a_slow_loop(tmp_path):
    metric = METRICS.build({"type": "CamMetric"})
    metric.dataset_meta = {"classes": ("background", "a", "b", "c")}
    generator = torch.Generator().manual_seed(0)
    samples = []
    for _ in range(5):
        scores = torch.randint(0, 21, (3, 9, 8), generator=generator) / 20
        scores[int(torch.randint(3, (1,), generator=generator))] = -1  # an absent class
        mask = torch.randint(0, 5, (1, 9, 8), generator=generator)
        mask[mask == 4] = 255
        samples.append((scores, mask))
        logits = torch.cat([torch.zeros(1, 9, 8), scores])
        predicted = {"pred_sem_seg": {"data": logits.argmax(0, keepdim=True)}, "gt_sem_seg": {"data": mask}}
        metric.process(None, [{"seg_logits": {"data": logits}, **predicted}])
    metrics = metric.evaluate(5)

    def miou(threshold):
        hits, union = np.zeros(4), np.zeros(4)
        for scores, mask in samples:
            predicted = torch.cat([torch.full((1, 9, 8), float(threshold)), scores]).argmax(0).numpy()
            known, label = mask[0].numpy() != 255, mask[0].numpy()
            for k in range(4):
                hits[k] += ((predicted == k) & (label == k) & known).sum()
                union[k] += (((predicted == k) | (label == k)) & known).sum()
        return np.mean(hits / union)

    every = [miou(np.float32(t / 100)) for t in range(100)]
    assert metrics["cam/mIoU"] == 100 * max(every) and metrics["cam/threshold"] == np.argmax(every) / 100


def test_image_labels_come_from_files_tables_or_masks(world, tmp_path):
    image = {"img_path": str(world / "train/images/0003.png")}
    npy = TRANSFORMS.build({"type": "LoadImageLabels", "source": str(world / "train/cls_labels.npy"), "num_classes": 8})
    expected = npy(dict(image))["gt_image_labels"]
    mask = np.asarray(Image.open(world / "train/masks/0003.png"))
    from_mask = TRANSFORMS.build({"type": "LoadImageLabels", "source": "mask", "num_classes": 8})
    assert np.array_equal(from_mask({**image, "gt_seg_map": mask})["gt_image_labels"], expected) and expected.sum()
    for value in (9, 254, -1, 300):
        wrong = mask.astype(np.int64)
        wrong[0, 0] = value
        with pytest.raises(ValueError, match=rf"the ground truth of .*0003\.png holds {value}, expected 0 to 8, which"):
            from_mask({**image, "gt_seg_map": wrong})
    (tmp_path / "spaces.txt").write_text("0003.png train boat\n0004.png bird\n")
    with pytest.raises(ValueError, match=r"names a class; expected .* with commas"):
        TRANSFORMS.build({"type": "LoadImageLabels", "source": str(tmp_path / "spaces.txt"), "class_names": OBJECTS})
    sample = TRANSFORMS.build({"type": "PackCamInputs"})({"img": np.zeros((4, 4, 3)), **npy(dict(image))})
    with pytest.raises(ValueError, match=r"have 8 columns, the model has 7 classes; is one of the columns the backgr"):
        mmseg_data.label_of(sample["data_samples"], 7)
    (tmp_path / "labels.txt").write_text(
        "0003.png," + ",".join(n for n, v in zip(OBJECTS, expected, strict=True) if v) + "\n"
    )
    table = {"type": "LoadImageLabels", "source": str(tmp_path / "labels.txt"), "class_names": OBJECTS}
    assert np.array_equal(TRANSFORMS.build(table)(dict(image))["gt_image_labels"], expected)
    with pytest.raises(KeyError, match=r"has no labels of 0099 .*; it has 48 images, such as 0000"):
        npy({"img_path": "0099.png"})
    wide = TRANSFORMS.build(
        {"type": "LoadImageLabels", "source": str(world / "train/cls_labels.npy"), "num_classes": 9}
    )
    with pytest.raises(ValueError, match="labels have 8 columns, expected 9"):
        wide(dict(image))
    for wrong, error, words in (
        ({"source": "mask"}, ValueError, "needs num_classes"),
        ({"source": str(tmp_path / "labels.txt")}, ValueError, "needs class_names"),
        ({"source": "nowhere.npy"}, FileNotFoundError, "no file nowhere.npy of image labels; `semples labels` makes"),
    ):
        with pytest.raises(error, match=words):
            TRANSFORMS.build({"type": "LoadImageLabels", **wrong})
    with pytest.raises(ValueError, match="comes before PackCamInputs"):
        npy({"inputs": None, "data_samples": None})
    with pytest.raises(ValueError, match="array has no name"):
        npy({"img": None, "img_path": None})


def test_lists_of_names_and_of_paths_are_read(tmp_path):
    (tmp_path / "list.txt").write_text(
        "2007_000032\n/JPEGImages/2007_000039.jpg /SegmentationClassAug/2007_000039.png\n"
    )
    prefix = {"img_path": "JPEGImages", "seg_map_path": "SegmentationClassAug"}
    voc = DATASETS.build({"type": "WsssVoc", "data_root": str(tmp_path), "ann_file": "list.txt", "data_prefix": prefix})
    assert [Path(voc.get_data_info(i)["img_path"]).relative_to(tmp_path).as_posix() for i in range(2)] == [
        "JPEGImages/2007_000032.jpg", "JPEGImages/2007_000039.jpg",
    ]  # fmt: skip
    assert voc.get_data_info(1)["seg_map_path"].endswith("SegmentationClassAug/2007_000039.png")
    (tmp_path / "coco.txt").write_text("000000000009\n")
    coco = DATASETS.build({"type": "WsssCoco", "split": "train", "masks": 90, "data_root": str(tmp_path),
                           "ann_file": "coco.txt", "data_prefix": prefix})  # fmt: skip
    entry = coco.get_data_info(0)
    assert entry["img_path"].endswith("COCO_train2014_000000000009.jpg")
    assert entry["seg_map_path"].endswith("SegmentationClassAug/000000000009.png")
    to = entry["label_map"]
    assert (to[0], to[1], to[12], to[13], to[90]) == (0, 1, 255, 12, 80)  # 12 is the street sign that nobody marked
    assert len(coco.metainfo["classes"]) == 81
    (tmp_path / "coco.txt").write_text("train2014/COCO_train2014_000000000009.jpg\n")
    for split, mask in (("train", "000000000009"), (None, "COCO_train2014_000000000009")):  # None: as in the list
        coco = DATASETS.build({"type": "WsssCoco", "split": split, "data_root": str(tmp_path), "ann_file": "coco.txt",
                               "data_prefix": prefix})  # fmt: skip
        entry = coco.get_data_info(0)
        assert entry["img_path"] == f"{tmp_path}/JPEGImages/COCO_train2014_000000000009.jpg"
        assert entry["seg_map_path"] == f"{tmp_path}/SegmentationClassAug/{mask}.png"
    (tmp_path / "list.txt").write_text("im 0\n\nim 1\n\n")
    voc = DATASETS.build({"type": "WsssVoc", "data_root": str(tmp_path), "ann_file": "list.txt", "data_prefix": prefix})
    assert [Path(voc.get_data_info(i)["img_path"]).name for i in range(len(voc))] == ["im 0.jpg", "im 1.jpg"]
    assert voc.get_data_info(1)["seg_map_path"].endswith("SegmentationClassAug/im 1.png")
    with pytest.raises(ValueError, match="masks: expected 80 or 90"):
        DATASETS.build({"type": "WsssCoco", "masks": 91})


def test_two_images_of_one_name_are_refused(tmp_path):
    both = r"site1/001.* and .*site2/001.* would both be called '001'"
    classes = {"metainfo": {"classes": ("background", "a")}, "data_root": str(tmp_path), "img_suffix": ".png"}
    (tmp_path / "list.txt").write_text("site1/001\nsite2/001\n")
    listed = {"ann_file": "list.txt", "data_prefix": {"img_path": "images"}}
    for site in ("site1", "site2"):
        (tmp_path / "images" / site).mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / "images" / site / "001.png")
    for files in (listed, {"data_prefix": {"img_path": "images"}}):
        with pytest.raises(ValueError, match=both):
            DATASETS.build({"type": "WsssDataset", **classes, **files})
    (tmp_path / "list.txt").write_text("site1/001\nsite1/001\n")  # an image may be drawn twice as often
    assert len(DATASETS.build({"type": "WsssDataset", **classes, **listed})) == 2
    np.save(tmp_path / "labels.npy", {"001": np.ones(1, np.float32)})
    load = TRANSFORMS.build({"type": "LoadImageLabels", "source": str(tmp_path / "labels.npy")})
    metric = METRICS.build({"type": "CamMetric", "output_dir": str(tmp_path / "cams")})
    metric.dataset_meta = {"classes": ("background", "a")}
    first, second = ({"img_path": f"{tmp_path}/site{k}/001.png"} for k in (1, 2))

    def write(image, value):
        logits = torch.full((2, 3, 3), value)
        logits[0] = 0.5
        predicted = {"pred_sem_seg": {"data": logits.argmax(0, keepdim=True)}}
        metric.process(None, [{**image, "seg_logits": {"data": logits}, **predicted}])

    for value in (0.6, 0.7):  # in every epoch anew
        assert load(dict(first))["gt_image_labels"].tolist() == [1]
        write(first, value)
    written = (tmp_path / "cams" / "001.npy").read_bytes()
    with pytest.raises(ValueError, match=both):
        load(dict(second))
    with pytest.raises(ValueError, match=both):
        write(second, 0.9)
    assert (tmp_path / "cams" / "001.npy").read_bytes() == written


def test_cams_labels_and_lists_of_coco_fit_together(tmp_path):
    np.save(tmp_path / "labels.npy", {9: np.eye(2, dtype=np.float32)[1]})
    image = {"img_path": f"{tmp_path}/train2014/COCO_train2014_000000000009.jpg"}
    load = TRANSFORMS.build({"type": "LoadImageLabels", "source": str(tmp_path / "labels.npy")})
    assert load(dict(image))["gt_image_labels"].tolist() == [0, 1]
    metric = METRICS.build({"type": "CamMetric", "output_dir": str(tmp_path / "cams")})
    metric.dataset_meta = {"classes": ("background", "a", "b")}
    logits = torch.tensor([0.5, -1.0, 0.8]).view(3, 1, 1).expand(3, 2, 2)
    predicted = {"pred_sem_seg": {"data": logits.argmax(0, keepdim=True)}}
    metric.process(None, [{**image, "seg_logits": {"data": logits}, **predicted}])
    for line in ("COCO_train2014_000000000009", "000000000009", "/train2014/COCO_train2014_000000000009.jpg /m/9.png"):
        (tmp_path / "list.txt").write_text(line)
        assert list(chosen_cams(tmp_path / "cams", tmp_path / "list.txt")) == ["000000000009"]


def test_mistakes_in_a_config_are_named(world, tmp_path):
    for changes, error, words in (
        ({"model.regularizer.class_names": ["train", "boat"]}, ValueError, "num_classes is 8, the regularizer names 2"),
        ({"model.regularizer.class_names": [*OBJECTS[:7], "train"]}, ValueError, "'train' twice"),
        ({"model.regularizer.prompts": "nowhere.safetensors"}, FileNotFoundError, "no prompts file nowhere"),
        ({"model.regularizer.clip": {"name": "ViT-B-23", "pretrained": "openai"}}, ValueError, "did you mean"),
        ({"model.regularizer.clip": "tiny"}, ValueError, 'or "demo", got'),
        ({"model.regularizer.weights": {"refinement": 1}}, ValueError, "expected some of foreground"),
        ({"model.regularizer": None}, ValueError, "the model has no regularizer"),
        ({"model.in_channels": 64}, ValueError, "in_channels is 64, the backbone's feature map -1 has 32"),
        ({"custom_hooks.0.learning": {"epoch": 3}}, ValueError, "learning: expected some of epochs, lr,.* got epoch"),
        ({"custom_hooks.0.prompt_length": 500}, ValueError, "500"),  # before the hours of (a), not after them
        ({"custom_hooks.0.prompt_std": "words"}, ValueError, 'prompt_std: expected "preset", None or a number'),
        (
            {"model.threshold": 30},
            ValueError,
            "threshold: .* of at least 0 and at most 1, got 30",
        ),
        ({"model.regularizer": None, "model.kind": "rleu"}, ValueError, "kind: expected one of .* got 'rleu'"),
        ({"model.regularizer.mask_esp": 1.0}, ValueError, "did you mean mask_eps"),
        ({"model.regularizer.lr": 1.0}, ValueError, r"that of stage \(b\) is prompt_lr"),
        ({"custom_hooks.0.restart": "start"}, ValueError, 'expected "baseline" or "matched"'),
        ({"custom_hooks.0.match": -1}, ValueError, "match: expected a whole number of at least 0, got -1"),
        ({"custom_hooks.0.match": 0, "custom_hooks.0.baseline": 0}, ValueError, "match=0 begins with refinement"),
        (
            {"model.data_preprocessor.mean": None, "model.data_preprocessor.std": None},
            ValueError,
            "expected mean and std",
        ),
    ):
        with pytest.raises(error, match=words):
            train(config(world, tmp_path, **changes))
    cfg = config(world, tmp_path)
    cfg.train_dataloader.dataset.pipeline.pop(2)
    with pytest.raises(ValueError, match="samples have no image labels: put dict"):
        train(cfg)
    other = BackgroundPrompts(8, 4, 64)
    other.class_names, other.clip_name = OBJECTS, "another CLIP"
    other.signature = -MODELS.build(cfg.model).regularizer.clip.signature()
    other.save(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="the prompts belong to another CLIP"):
        train(config(world, tmp_path, **{"model.regularizer.prompts": str(tmp_path / "other.safetensors")}))


SEGMENTOR = {"type": "CamSegmentor", "backbone": None, "num_classes": 2, "in_channels": 3}  # told before it is built


@pytest.mark.parametrize(
    ("registry", "base", "name", "value", "error"),
    [
        *((MODELS, SEGMENTOR, name, value, error) for name, value, error in (
            ("eps", -1, ValueError), ("eps", 0.0, ValueError), ("eps", "x", TypeError), ("scale", "x", TypeError),
            ("scale", float("nan"), ValueError), ("scale", -1, ValueError), ("cls_weight", None, TypeError),
            ("threshold", "a", TypeError), ("threshold", 1.5, ValueError), ("num_classes", 2.0, TypeError),
            ("in_channels", 0, ValueError), ("in_index", 0.5, TypeError), ("regularizer", "voc", TypeError),
        )),
        *((HOOKS, {"type": "SemPLeSStages", "match": 2}, name, value, error) for name, value, error in (
            ("match", 1.5, TypeError), ("match", "2", TypeError), ("match", -1, ValueError), ("match", True, TypeError),
            ("baseline", 0.5, TypeError), ("prompt_length", 2.5, TypeError), ("prompt_length", 0, ValueError),
            ("prompt_std", -1, ValueError), ("prompt_std", [1], TypeError), ("seed", "a", TypeError),
            ("draw_interval", -1, ValueError), ("learning", [1], TypeError),
        )),
        *((MODELS, {"type": "SemPLeSRegularizer", "clip": "demo"}, name, value, error) for name, value, error in (
            ("clip", {"nme": "ViT-B-32"}, ValueError), ("clip", 3, TypeError), ("class_names", 5, TypeError),
        )),
    ],
)  # fmt: skip
def test_a_wrong_field_is_named_where_the_config_is_built(registry, base, name, value, error):
    with pytest.raises(error, match=rf"{name}: expected .* got .") as raised:
        registry.build({**base, name: value})
    assert len(str(raised.value)) < 500


def test_wrong_thresholds_of_the_metric_are_refused_before_the_run():
    for wrong in ([30], [0.5, 0.3], 0.5, [], ["a"]):
        with pytest.raises(ValueError, match="thresholds: expected a list of background scores from 0 to 1, ascending"):
            METRICS.build({"type": "CamMetric", "thresholds": wrong})
    assert METRICS.build({"type": "CamMetric", "thresholds": [0, 0.3, 1]}).thresholds.tolist() == [0, 0.3, 1]


def test_wrong_options_of_the_prompts_are_refused_before_the_run():
    for learning, words in (
        ({"epochs": 0}, "epochs and batch_size of at least 1"),
        ({"lr": 0.0}, "lr above 0"),
        ({"epoch": 3}, "learning: expected some of epochs, lr,.* got epoch"),
    ):
        with pytest.raises(ValueError, match=words):
            HOOKS.build({"type": "SemPLeSStages", "match": 1, "learning": learning})


def test_a_checkpoint_carries_the_prompts_whole(tmp_path):
    hook = HOOKS.build({"type": "SemPLeSStages", "match": 1})
    clip = FrozenClip.load("demo")
    prompts = BackgroundPrompts.for_clip(clip, OBJECTS, 4, seed=7)
    prompts.learned = True
    model = SimpleNamespace(regularizer=SimpleNamespace(prompts=prompts))
    hook.before_save_checkpoint(SimpleNamespace(model=model), checkpoint := {})
    torch.save(checkpoint, tmp_path / "iter.pth")
    older = {"vectors": prompts.vectors.detach(), "template": "a photo of {}.", "suffix_ids": None, "similarities": {},
             "class_names": OBJECTS, "clip_name": clip.name, "signature": clip.signature()}  # fmt: skip
    for state, seed in ((torch.load(tmp_path / "iter.pth", weights_only=True)["semples"]["prompts"], 7), (older, 0)):
        hook.after_load_checkpoint(SimpleNamespace(_resume=True), {"semples": {"start": None, "prompts": state}})
        restored = BackgroundPrompts.from_state(hook._resumed_prompts)
        assert torch.equal(restored.vectors, prompts.vectors) and restored.seed == seed and restored.learned
        assert restored.class_names == OBJECTS and torch.equal(restored.signature, clip.signature())


def test_a_walk_leaves_every_random_generator_as_it_was():
    from semples_plugin.adapters.mmseg_runner import random_states_kept

    def draw():
        return random.random(), np.random.rand(), float(torch.rand(()))

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    random.setstate(states[0])
    np.random.set_state(states[1])
    torch.set_rng_state(states[2])
    with pytest.raises(KeyError), random_states_kept():
        assert draw() == expected
        raise KeyError
    assert draw() == expected


def test_the_module_can_be_imported_twice():
    import importlib

    importlib.reload(semples_plugin.adapters.mmseg)
    assert MODELS.get("CamSegmentor") is semples_plugin.adapters.mmseg.CamSegmentor


def _run(rank, world, out, earlier) -> None:
    warnings.simplefilter("ignore")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.destroy_process_group()  # mmengine's launcher makes its own, and wants a GPU for it
    torch.cuda.set_device = lambda _: None
    wrapper = {"type": "MMDistributedDataParallel", "device_ids": None}
    distributed = {"launcher": "pytorch", "env_cfg": {"dist_cfg": {"backend": "gloo"}}, "model_wrapper_cfg": wrapper}
    cfg = config(Path(world), out, **distributed)
    cfg.train_dataloader.batch_size = 2
    cfg.model.backbone.norm_eval = True  # the ranks' running statistics would differ
    cfg.val_dataloader.dataset.indices = 11  # the sampler repeats one, so that the ranks' shares are equal
    cfg.val_evaluator.output_dir = f"{out}/cams"
    runner, losses = train(cfg)
    model = runner.model.module
    kept = (model.regularizer.prompts.vectors.detach(), model.classifier.weight.detach())
    judged, resumed = runner.val_loop.run(), []
    for at in (8, 10):  # one process's checkpoints: before (b), and after
        load = {"resume": True, "load_from": f"{earlier}/iter_{at}.pth", **distributed}
        runner, _ = train(config(Path(world), f"{out}/resumed{at}", iterations=at + 1, **load))
        resumed.append(runner.model.module.regularizer.prompts.vectors.detach())
    torch.save((*kept, losses, judged, resumed), f"{out}/{rank}.pt")


def test_two_processes_share_prompts_and_weights_and_count_each_image_once(whole, world, tmp_path):
    folder, alone, _ = whole
    spawn(_run, str(world), str(tmp_path), str(folder))
    (prompts, weight, losses, judged, resumed), (others, other_weight, *_) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2)
    )
    assert torch.equal(prompts, others) and torch.equal(weight, other_weight)
    assert "loss_refine" in losses[11]
    assert [path.stem for path in sorted((tmp_path / "cams").iterdir())] == [f"{i:04}" for i in range(11)]
    learned = alone.model.regularizer.prompts.vectors.detach()
    torch.testing.assert_close(resumed[0], learned, atol=1e-4, rtol=0)  # batches of other sizes round otherwise
    assert torch.equal(resumed[1], learned)
    alone = config(world, tmp_path, load_from=str(tmp_path / "iter_12.pth"), experiment_name="alone")
    alone.test_dataloader.dataset.indices = 11
    assert Runner.from_cfg(alone).test() == pytest.approx(judged, abs=1e-9)


def test_the_script_runs_the_example(world, tmp_path):
    script = CONFIG.parent / "train.py"
    command = [sys.executable, str(script), str(CONFIG), "--work-dir", str(tmp_path), "--cfg-options",
               "train_cfg.max_iters=3", "default_hooks.logger.interval=1", "custom_hooks.0.baseline=1",
               "custom_hooks.0.match=1", "custom_hooks.0.learning.epochs=1",
               "train_dataloader.batch_size=4"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=world.parent)
    assert done.returncode == 0, done.stderr[-3000:]
    text = done.stdout + done.stderr
    assert "loss_refine" in text and "cam/mIoU" in text
