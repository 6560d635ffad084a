"""mmsegmentation's own tools on our models: inference, test-time augmentation, CAM files; and models of one's own."""

import re
import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from test_mmseg import CONFIG, config, scope, train, whole, world  # noqa: F401, fixtures

pytest.importorskip("mmseg", reason="needs semples-plugin[mmseg]")
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from mmengine.runner import Runner
    from mmengine.structures import LabelData
    from mmseg.apis import inference_model, init_model
    from mmseg.models import SegTTAModel
    from mmseg.registry import METRICS, MODELS, TRANSFORMS
    from mmseg.structures import SegDataSample

    from semples_plugin.adapters.mmseg import CamSegmentor

from semples_plugin.demo.data import OBJECTS
from semples_plugin.evaluation.folders import evaluate_folder

pytestmark = pytest.mark.filterwarnings("ignore")  # mmengine's and mmcv's own


GUIDE = CONFIG.parent.parent.parent / "docs/mmsegmentation.md"


def guide(word: str) -> str:
    """The guide's block of Python that holds a word."""
    blocks = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    (block,) = (block for block in blocks if word in block)
    return block


def test_mmsegs_inference_segments_a_new_image(whole, world, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.chdir(tmp_path)
    config(world, tmp_path)  # writes the config beside the data
    (file,) = world.glob("tiny_*.py")
    shutil.copy(world / "test/images/0003.png", "image.jpg")
    recipe = guide("inference_model").replace("CONFIG", str(file))
    exec(recipe.replace("CHECKPOINT", str(whole[0] / "iter_12.pth")), {})
    assert (tmp_path / "segmented.png").stat().st_size > 1000
    model = init_model(config(world, tmp_path), str(whole[0] / "iter_12.pth"), device="cpu")
    path = world / "test/images/0003.png"
    result = inference_model(model, str(path))
    assert result.pred_sem_seg.data.shape == (1, 64, 64) and result.seg_logits.data.shape == (9, 64, 64)
    pixels = np.asarray(Image.open(path))[:, :, ::-1]
    assert torch.equal(inference_model(model, pixels.copy()).pred_sem_seg.data, result.pred_sem_seg.data)


def test_mmsegs_test_time_augmentation_merges_our_scores(whole, world, tmp_path):  # noqa: F811
    cfg = config(world, tmp_path)
    model = init_model(cfg, str(whole[0] / "iter_12.pth"), device="cpu")
    augmented = SegTTAModel(module=model, data_preprocessor=cfg.model.data_preprocessor)
    flips = [[{"type": "RandomFlip", "prob": 0.0}, {"type": "RandomFlip", "prob": 1.0, "direction": "horizontal"}],
             [{"type": "PackCamInputs"}]]  # fmt: skip
    load = {"type": "LoadImageFromFile"}
    pipeline = [TRANSFORMS.build(load), TRANSFORMS.build({"type": "TestTimeAug", "transforms": flips})]
    results = {"img_path": str(world / "test/images/0003.png")}
    for transform in pipeline:
        results = transform(results)
    batch = {key: [[value] for value in results[key]] for key in results}
    (merged,) = augmented.test_step(batch)
    pixels = np.asarray(Image.open(world / "test/images/0003.png"))[:, :, ::-1]
    plain, mirrored = (inference_model(model, part.copy()).seg_logits.data for part in (pixels, pixels[:, ::-1]))
    expected = (plain.softmax(0) + mirrored.flip(2).softmax(0)).argmax(0)
    assert torch.equal(merged.pred_sem_seg.data[0], expected) and expected.any()
    metric = METRICS.build({"type": "CamMetric"})
    metric.dataset_meta = {"classes": ("background", *OBJECTS)}
    with pytest.raises(ValueError, match="test-time augmentation merges the latter alone; judge that by IoUMetric"):
        metric.process(None, [merged.to_dict()])


@pytest.mark.parametrize("direction", ["horizontal", "vertical", "diagonal"])
def test_predictions_are_those_of_the_image_before_it_was_flipped_and_padded(whole, world, tmp_path, direction):  # noqa: F811
    cfg = config(world, tmp_path)
    cfg.model.data_preprocessor.test_cfg = {"size": (80, 72)}
    model = init_model(cfg, str(whole[0] / "iter_12.pth"), device="cpu")
    flip = TRANSFORMS.build({"type": "RandomFlip", "prob": 1.0, "direction": direction})
    pack = TRANSFORMS.build({"type": "PackCamInputs"})
    load = TRANSFORMS.build({"type": "LoadImageFromFile"})
    packed = pack(flip(load({"img_path": str(world / "test/images/0003.png")})))
    (sample,) = model.test_step({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]})
    assert sample.metainfo["img_padding_size"] == (0, 8, 0, 16) and sample.seg_logits.data.shape == (9, 64, 64)
    assert torch.equal(sample.pred_sem_seg.data[0], sample.seg_logits.data.argmax(0))
    with torch.no_grad():  # CAMs of the flipped image in the padded square
        data = model.data_preprocessor({"inputs": [packed["inputs"]], "data_samples": [packed["data_samples"]]}, False)
        cams = torch.nn.functional.interpolate(model.extract_feat(data["inputs"]), (80, 72), mode="bilinear")[0]
    cams = cams[:, :64, :64].flip({"horizontal": (2,), "vertical": (1,), "diagonal": (1, 2)}[direction]).relu()
    present = sample.seg_logits.data[1:].amax((1, 2)) > 0
    scores = (cams / cams.amax((1, 2), keepdim=True).clamp(min=1e-12))[present]
    assert present.any()
    torch.testing.assert_close(sample.seg_logits.data[1:][present], scores)


def test_cam_files_from_a_test_run_are_judged_as_the_metric_judges(whole, world, tmp_path):  # noqa: F811
    cfg = config(world, tmp_path, **{"test_evaluator.output_dir": str(tmp_path / "cams")})
    cfg.load_from, cfg.experiment_name = str(whole[0] / "iter_12.pth"), str(tmp_path)
    metrics = Runner.from_cfg(cfg).test()
    judged = evaluate_folder(tmp_path / "cams", world / "test/masks", OBJECTS, progress=False)
    assert len(judged.counts) == 12 and 100 * judged.miou == pytest.approx(metrics["cam/mIoU"], abs=1e-9)
    assert judged.settings[judged.chosen] == metrics["cam/threshold"]
    cfg = config(world, tmp_path, **{"test_evaluator.output_dir": str(tmp_path / "more")})
    cfg.load_from, cfg.experiment_name = str(whole[0] / "iter_12.pth"), f"{tmp_path} more"
    cfg.test_dataloader.dataset.pipeline.pop(1)  # images without masks
    assert Runner.from_cfg(cfg).test() == {}
    for path in (tmp_path / "cams").iterdir():
        assert path.read_bytes() == (tmp_path / "more" / path.name).read_bytes()
    cfg = config(world, tmp_path)
    cfg.experiment_name = f"{tmp_path} none"
    cfg.test_dataloader.dataset.pipeline.pop(1)
    with pytest.raises(ValueError, match="no ground truth: put LoadAnnotations into the pipeline, or give output_dir"):
        Runner.from_cfg(cfg).test()


def test_a_cam_head_of_ones_own_is_a_subclass(world, tmp_path):  # noqa: F811
    exec(guide("class TwoLayers"), {})
    changes = {"model.type": "TwoLayers", "custom_hooks.0.baseline": 1, "custom_hooks.0.match": 1}
    _, losses = train(config(world, tmp_path, iterations=3, **changes))
    assert ["loss_refine" in losses[i] for i in range(3)] == [False, False, True]

    @MODELS.register_module(force=True)
    class Alien(CamSegmentor):
        def __dir__(self):
            return [name for name in super().__dir__() if name not in ("images_and_masks", "active")]

    changes["model.type"] = "Alien"
    with pytest.raises(ValueError, match="Alien has no active, images_and_masks, which SemPLeSStages asks for"):
        train(config(world, tmp_path, **changes))


def test_mmsegs_own_segmentors_learn_as_well(world, tmp_path):  # noqa: F811
    exec(guide("class CamEncoderDecoder"), {})
    model = config(world, tmp_path).model
    head = {"type": "FCNHead", "in_channels": 32, "channels": 16, "num_convs": 1, "num_classes": 8, "in_index": 0,
            "loss_decode": {"type": "CrossEntropyLoss"}}  # fmt: skip
    own = {"type": "CamEncoderDecoder", "decode_head": head, "regularizer": dict(model.regularizer)}
    own["regularizer"]["type"] = "SemPLeSRegularizer"
    own |= {name: model[name] for name in ("backbone", "data_preprocessor")}
    changes = {"model": own, "custom_hooks.0.baseline": 1, "custom_hooks.0.match": 1, "custom_hooks.0.draw_interval": 1}
    changes |= {"val_dataloader": None, "val_evaluator": None, "val_cfg": None}
    _, losses = train(config(world, tmp_path, iterations=3, **changes))
    names = [set(losses[i]) - {"loss_cls"} for i in range(3)]
    match = {"loss_match_foreground", "loss_match_background"}
    assert names == [set(), match, match | {"loss_refine"}]

    @MODELS.register_module(force=True)
    class Unbuilt(MODELS.get("CamEncoderDecoder")):
        regularizer = None

        def __setattr__(self, name, value):
            if name != "regularizer":
                super().__setattr__(name, value)

    own["type"] = "Unbuilt"
    with pytest.raises(ValueError, match=r"Unbuilt.regularizer: expected a SemPLeSRegularizer, got NoneType; build it"):
        train(config(world, tmp_path, **changes))


def test_padding_is_in_no_view_and_pad_is_refused(world, tmp_path):  # noqa: F811
    model = MODELS.build(config(world, tmp_path).model)
    label = torch.zeros(8)
    label[:2] = 1
    sample = SegDataSample(metainfo={"padding_size": (0, 16, 0, 8)}, gt_image_labels=LabelData(data=label))
    inputs = torch.randn(1, 3, 64, 64).clamp(-1, 1)
    images, masks = model.images_and_masks(inputs, [sample])
    assert masks.class_index.tolist() == [0, 1] and torch.equal(images[0, :, :56, :48], inputs[0, :, :56, :48])
    padded = torch.cat([images[0, :, 56:].flatten(1), images[0, :, :56, 48:].flatten(1)], dim=1)
    assert (padded == padded[:, :1]).all() and not (inputs[0, :, 56:] == inputs[0, :, 56:57, :1]).all()
    pack = TRANSFORMS.build({"type": "PackCamInputs"})
    pad = TRANSFORMS.build({"type": "Pad", "size": (80, 80)})
    with pytest.raises(ValueError, match="the transform Pad hides which pixels are padding"):
        pack(pad({"img": np.zeros((64, 64, 3), np.uint8), "img_path": "a.png"}))


def test_the_config_is_tested_by_the_script(whole, world, tmp_path, monkeypatch, capsys):  # noqa: F811
    import runpy

    config(world, tmp_path)  # writes the config beside the data
    (file,) = world.glob("tiny_*.py")
    command = ["train.py", str(file), "--work-dir", str(tmp_path), "--test", str(whole[0] / "iter_12.pth")]
    monkeypatch.setattr("sys.argv", command)
    runpy.run_path(str(CONFIG.parent / "train.py"), run_name="__main__")
    (log,) = tmp_path.glob("*/*.log")
    assert "cam/mIoU" in log.read_text() and "loss" not in log.read_text()
