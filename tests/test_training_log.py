import pytest
import torch
from conftest import build_frozen

from semples_plugin import ClassMasks, SemPLeSRegularizer
from semples_plugin.training_log import TrainingLog, draw_pairs


class Writer:
    def __init__(self):
        self.scalars, self.images = {}, {}

    def add_scalar(self, name, value, step):
        self.scalars[name, step] = value

    def add_image(self, name, image, step):
        self.images[name, step] = image


class Board(Writer):
    def add_image(self, name, image, step, dataformats="CHW"):
        assert dataformats == "HWC"
        super().add_image(name, image, step)


@pytest.fixture
def batch():
    regularizer = SemPLeSRegularizer(build_frozen(), ["cat", "dog"], input_mean=None, input_std=None)
    maps = torch.zeros(3, 16, 16)
    maps[:, :8] = 1
    masks = ClassMasks.from_pairs(maps.requires_grad_(), torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    return regularizer, torch.randn(2, 3, 32, 32).clamp(-1, 1), masks


def test_the_writer_gets_means_between_two_looks(batch, capsys):
    *_, masks = batch
    writer = Writer()
    with TrainingLog(10, writer, every=4, title="a") as log:
        looks = []
        for step in range(10):
            log({"loss_refine": torch.tensor(float(step), requires_grad=True)}, masks, {"mask_area": torch.tensor(0.5)})
            looks.append(log.due)
    assert [i + 1 for i, due in enumerate(looks) if due] == [4, 8]
    means = {step: value for (name, step), value in writer.scalars.items() if name == "a/loss_refine"}
    assert means == {1: 0.0, 4: 2.0, 8: 5.5}  # of steps 0; 1 to 3; 4 to 7
    assert writer.scalars["a/mask_area", 8] == 0.5 and writer.scalars["a/pairs per second", 8] > 0
    bar = capsys.readouterr().err
    assert "refine=5.500" in bar and "pairs/s=" in bar and "10/10" in bar
    with pytest.raises(ValueError, match="at least 1"):
        TrainingLog(every=0)


@pytest.mark.parametrize("kind", [Writer, Board])
def test_pictures_show_each_pair_beside_its_image(batch, kind):
    regularizer, images, masks = batch
    log = TrainingLog(writer=kind(), progress=False)
    picture = log.draw(images, masks, regularizer)
    assert log.writer.images["semples/masks", 0] is picture and picture.shape[1] > 6 * 160
    image, heat = picture[26 : 26 + 160, 8:168], picture[26 : 26 + 160, 176:336]
    assert abs(image[:80].astype(int) - heat[:80]).mean() > 20  # the upper half is masked: red over the image
    assert heat[:80, :, 0].mean() > heat[80:, :, 0].mean()
    assert draw_pairs(images, masks[:0], regularizer).shape == (64, 64, 3)
