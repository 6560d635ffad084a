import cv2
import numpy as np
import pytest
import torch
from conftest import build_frozen
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from semples_plugin import BackgroundPrompts, ClassMasks, SemPLeSRegularizer
from semples_plugin.viz import training_log
from semples_plugin.viz.training_log import TrainingLog, draw_pairs


class Writer:
    def __init__(self):
        self.scalars, self.images = {}, {}

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value

    def add_image(self, name, image, step):
        self.images[name, step] = image


@pytest.fixture
def batch():
    regularizer = SemPLeSRegularizer(build_frozen(), ["cat", "dog"], input_mean=None, input_std=None)
    maps = torch.zeros(3, 16, 16)
    maps[:, :8] = 1
    masks = ClassMasks.from_pairs(maps.requires_grad_(), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    return regularizer, torch.randn(2, 3, 32, 32).clamp(-1, 1), masks


def test_the_writer_gets_means_between_two_updates(batch, capsys):
    *_, masks = batch
    writer = Writer()
    with TrainingLog(10, writer, every=4, title="a") as log:
        due = []
        for step in range(10):
            log({"loss_refine": torch.tensor(float(step), requires_grad=True)}, masks, {"mask_area": torch.tensor(0.5)})
            due.append(log.due)
    assert [i + 1 for i, is_due in enumerate(due) if is_due] == [4, 8]
    means = {step: value for (name, step), value in writer.scalars.items() if name == "a/loss_refine"}
    assert means == {1: 0.0, 4: 2.0, 8: 5.5, 10: 8.5}  # of steps 0; 1 to 3; 4 to 7; 8 and 9
    assert writer.scalars["a/mask_area", 8] == 0.5 and writer.scalars["a/pairs_per_second", 8] > 0
    assert ("a/pairs_per_second", 1) not in writer.scalars  # the first step warms up
    bar = capsys.readouterr().err
    assert "refine=5.500" in bar and "area" not in bar and "pairs/s=" in bar and "10/10" in bar
    other = Writer()
    with TrainingLog(4, other, every=4, progress=False) as log:
        for step in range(4):  # a part that only some steps have, as a number
            log({"loss_cls": 1.0, **({"loss_refine": 3.0} if step else {})}, masks)
    assert other.scalars["semples/loss_refine", 4] == 3 and other.scalars["semples/loss_cls", 4] == 1
    with pytest.raises(ValueError, match="at least 1"):
        TrainingLog(every=0)
    with pytest.raises(ValueError, match="more than the 100 already made, got 18"):
        TrainingLog(18, start=100)
    with pytest.raises(TypeError, match="dictionary of named parts, got Tensor"):
        TrainingLog(progress=False)(torch.tensor(1.0), masks)


def test_the_bar_tells_a_slow_runs_pairs_per_second(batch, monkeypatch, capsys):
    *_, masks = batch  # three pairs
    for seconds, rate in (
        (0.01, "pairs/s=300"),
        (0.8, "pairs/s=3.8"),
        (8.0, "pairs/s=0.38"),
        (700.0, "pairs/s=0.0043"),
    ):
        clock = iter(range(100))
        monkeypatch.setattr(training_log.time, "perf_counter", lambda c=clock, s=seconds: s * next(c))
        with TrainingLog(2, every=2) as log:
            log({"loss_refine": 1.0}, masks)
            log({"loss_refine": 1.0}, masks)
        assert rate in capsys.readouterr().err


def test_pictures_show_each_pairs_image_and_mask(batch):
    regularizer, images, masks = batch
    log = TrainingLog(writer=Writer(), progress=False)
    picture = log.draw(images, masks, regularizer)
    assert log.writer.images["semples/masks", 0] is picture
    assert picture.shape[:2] == (26 + 2 * 194, 3 * 168 + 8)
    image, heat = picture[52:212, 8:168], picture[246:406, 8:168]
    assert abs(image[:80].astype(int) - heat[:80]).mean() > 20  # the upper half is masked: red over the image
    assert heat[:80, :, 0].mean() > heat[80:, :, 0].mean()
    assert draw_pairs(images, masks[:0], regularizer).shape == (64, 64, 3)


def test_tensorboard_keeps_scalars_and_pictures(batch, tmp_path):
    regularizer, images, masks = batch
    with SummaryWriter(tmp_path) as writer, TrainingLog(2, writer, every=2, progress=False) as log:
        for step in range(2):
            log({"loss_refine": torch.tensor(float(step))}, masks)
        picture = log.draw(images, masks, regularizer)
    kept = EventAccumulator(str(tmp_path)).Reload()
    assert [(e.step, e.value) for e in kept.Scalars("semples/loss_refine")] == [(1, 0.0), (2, 1.0)]
    (image,) = kept.Images("semples/masks")
    assert image.step == 2
    assert (cv2.imdecode(np.frombuffer(image.encoded_image_string, np.uint8), 1)[..., ::-1] == picture).all()


def test_learned_prompts_are_drawn_where_clip_sees_them(batch):
    regularizer, images, masks = batch
    regularizer.prompts = BackgroundPrompts(2, 4, regularizer.clip.text_width)
    assert draw_pairs(images, masks, regularizer).shape[0] == 26 + 2 * 194  # not before they are learned
    regularizer.prompts.learned = True
    with_prompts = draw_pairs(images, masks, regularizer)
    assert with_prompts.shape[0] == 26 + 3 * 194
    with torch.no_grad():
        regularizer.prompts.vectors[1] *= -3
    changed = (draw_pairs(images, masks, regularizer) != with_prompts)[26 + 388 :].any((0, 2))
    assert not changed[:172].any() and changed[180:].any()  # the first pair is of class 0, the others of class 1
