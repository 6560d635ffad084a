import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import reference
import torch
import torch.nn.functional as F

from semples_plugin import ClassMasks
from semples_plugin.masks import masked_views
from semples_plugin.utils import checks

LABELS = torch.tensor([[0.0, 1, 1], [0, 0, 0], [1, 0, 0]])


def dense() -> torch.Tensor:
    return torch.randn(3, 3, 4, 5, generator=torch.Generator().manual_seed(1)).requires_grad_()


@pytest.mark.parametrize("kind", [torch.float32, torch.float64, torch.int64, torch.bool, torch.uint8])
def test_dense_cams_become_pairs_in_row_major_order(kind):
    cams = dense()
    masks = ClassMasks.from_dense(cams, LABELS.to(kind))
    assert masks.image_index.tolist() == [0, 0, 2] and masks.class_index.tolist() == [1, 2, 0]
    torch.testing.assert_close(masks.maps, torch.stack([cams[0, 1], cams[0, 2], cams[2, 0]]))
    masks.maps.sum().backward()
    assert cams.grad.sum() == 3 * 20 and cams.grad[1].abs().sum() == 0 and cams.grad[0, 0].abs().sum() == 0


def test_min_max_equals_the_loop_and_carries_gradients_through_both_ends():
    cams = dense()
    masks = ClassMasks.from_dense(cams, LABELS).normalized(eps=0.1)
    for got, raw in zip(masks.maps, [cams[0, 1], cams[0, 2], cams[2, 0]], strict=True):
        torch.testing.assert_close(got, torch.tensor(reference.min_max(raw.tolist(), 0.1)))
    middle = cams[0, 1].flatten().argsort()[10]
    (gradient,) = torch.autograd.grad(masks.maps[0].flatten()[middle], cams)
    flat = gradient[0, 1].flatten()
    lowest, highest = cams[0, 1].flatten().argmin(), cams[0, 1].flatten().argmax()
    assert {int(i) for i in flat.nonzero()} == {int(middle), int(lowest), int(highest)}


def test_max_normalisation_relu_and_sigmoid():
    cams = dense()
    masks = ClassMasks.from_dense(cams, LABELS)
    torch.testing.assert_close(masks.sigmoid().maps, masks.maps.sigmoid())
    torch.testing.assert_close(masks.relu().maps, masks.maps.clamp(min=0))
    normalised = masks.max_normalized(eps=1e-6).maps
    torch.testing.assert_close(normalised.amax((1, 2)), torch.ones(3), atol=1e-5, rtol=0)
    top = cams[0, 1].flatten().argmax()
    other = cams[0, 1].flatten().argsort()[-2]
    (gradient,) = torch.autograd.grad(normalised[0].flatten()[other], cams)
    assert gradient[0, 1].flatten()[top] < 0


@pytest.mark.parametrize("tau", [0.3, 1.0, 1])
def test_hardened_masks_equal_the_loop_and_carry_gradients_below_tau(tau):
    maps = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64).requires_grad_()
    index = torch.tensor([0, 0, 1])
    masks = ClassMasks.from_pairs(maps, index, torch.tensor([0, 1, 1])).hardened(tau)
    for got, raw in zip(masks.maps, maps.detach(), strict=True):
        torch.testing.assert_close(got.detach(), torch.tensor(reference.hardened(raw.tolist(), tau)).double())
    assert masks.image_index is index and masks.maps.amax() <= 1
    (gradient,) = torch.autograd.grad(masks.maps.sum(), maps)
    torch.testing.assert_close(gradient, torch.where(maps < tau, 1 / tau, 0.0).double())
    harden = lambda x: ClassMasks.from_pairs(x, index, index).hardened(tau).maps  # noqa: E731
    assert torch.autograd.gradcheck(harden, maps)


def test_what_cannot_be_hardened_is_named(monkeypatch):
    masks = ClassMasks.from_pairs(torch.rand(1, 4, 5), torch.tensor([0]), torch.tensor([0]))
    for tau in (0, -0.1, 1.1, math.nan):
        with pytest.raises(ValueError, match=f"tau: expected a finite number above 0 and at most 1, got {tau}"):
            masks.hardened(tau)
    for tau in ("0.3", None, True):
        with pytest.raises(TypeError, match="tau: expected a finite number"):
            masks.hardened(tau)
    for wrong, words in (
        (3.0, r"in \[0, 1\], got .*sigmoid"),
        (-1.0, r"in \[0, 1\], got"),
        (math.nan, "NaN or infinite"),
    ):
        with pytest.raises(ValueError, match=f"masks: .*{words}"):
            replace(masks, maps=masks.maps + wrong).hardened(0.3)
    assert len(masks[:0].hardened(0.3)) == 0
    half = replace(masks, maps=torch.full((1, 2, 2), 1.0005).half()).hardened(0.3)
    assert half.maps.dtype == torch.float32 and half.maps.amax() == 1
    monkeypatch.setattr(checks, "waits", lambda device: True)
    monkeypatch.setattr("semples_plugin.masks._unit_checks", checks.CheckSchedule())
    for _ in range(3):
        masks.hardened(0.3)
    replace(masks, maps=masks.maps + 3).hardened(0.3)  # unseen: nobody waits for the device


def test_normalising_half_precision_does_not_underflow():
    maps = torch.rand(2, 8, 8) * 5e-4
    masks = ClassMasks.from_pairs(maps.half(), torch.tensor([0, 0]), torch.tensor([0, 1])).normalized(eps=1e-7)
    assert masks.maps.dtype == torch.float32 and masks.maps.amax() > 0.99


def test_a_half_precision_logit_keeps_its_gradient():
    logits = torch.full((1, 2, 2), 9.0, dtype=torch.float16, requires_grad=True)
    masks = ClassMasks.from_pairs(logits, torch.tensor([0]), torch.tensor([0])).sigmoid()
    assert masks.maps.dtype == torch.float32 and masks.maps.max() < 1
    masks.maps.sum().backward()
    assert logits.grad.min() > 1e-4


def test_an_eps_that_flattens_the_cams_warns_once():
    masks = ClassMasks.from_pairs(torch.rand(2, 8, 8) * 5e-4, torch.tensor([0, 0]), torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match="less than eps = 0.1"):
        masks.normalized()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks.normalized()
    with pytest.raises(ValueError, match="positive"):
        masks.normalized(eps=0)


def test_cams_without_a_positive_value_get_a_warning_of_their_own():
    masks = ClassMasks.from_pairs(-1 - torch.rand(2, 8, 8), torch.tensor([0, 0]), torch.tensor([0, 1]))
    with pytest.warns(UserWarning, match="no positive value.*sigmoid") as caught:
        masks.max_normalized()
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="less than eps"):  # the other mistake is still told
        masks.normalized(eps=9)
    checks._warned.clear()
    with pytest.warns(UserWarning, match="constant"):
        ClassMasks.from_pairs(torch.ones(1, 4, 4), torch.tensor([0]), torch.tensor([0])).normalized()


def test_resizing_is_bilinear_and_keeps_an_empty_batch_on_the_graph():
    cams = dense()
    resized = ClassMasks.from_dense(cams, LABELS).resized(8, 8, align_corners=True)
    expected = F.interpolate(cams[0, 1][None, None], (8, 8), mode="bilinear", align_corners=True)[0, 0]
    torch.testing.assert_close(resized.maps[0], expected)
    empty = ClassMasks.from_dense(cams, torch.zeros(3, 3)).resized(8, 8)
    empty.maps.sum().backward()
    assert empty.maps.shape == (0, 8, 8) and cams.grad.abs().sum() == 0


def test_masks_that_shrink_keep_their_area_and_every_pixel_its_gradient():
    maps = torch.zeros(1, 64, 64)
    maps[:, :, ::8] = maps[:, :, 1::8] = 1  # stripes of a quarter of the area, thinner than a target pixel
    maps.requires_grad_()
    small = ClassMasks.from_pairs(maps, torch.tensor([0]), torch.tensor([0])).resized(8, 8)
    assert small.maps.mean().item() == pytest.approx(0.25, abs=0.01)
    small.maps.sum().backward()
    assert (maps.grad > 0).all()


def test_no_pairs_may_come_as_empty_lists():
    empty = torch.tensor([])
    assert len(ClassMasks.from_pairs(torch.zeros(0, 4, 4), empty, empty)) == 0


def test_views_are_the_equations_and_the_fill_shows_where_masked_out():
    images = torch.randn(2, 3, 4, 4)
    masks = ClassMasks.from_pairs(torch.rand(3, 4, 4), torch.tensor([1, 0, 1]), torch.tensor([0, 1, 2]))
    views = masked_views(images, masks, torch.zeros(3))
    for p, (image, mask) in enumerate(zip([1, 0, 1], masks.maps, strict=True)):
        torch.testing.assert_close(views[p], mask * images[image])
        torch.testing.assert_close(views[3 + p], (1 - mask) * images[image])
    fill = torch.tensor([0.1, 0.2, 0.3])
    nothing = ClassMasks.from_pairs(torch.zeros(1, 4, 4), torch.tensor([0]), torch.tensor([0]))
    views = masked_views(images, nothing, fill)
    torch.testing.assert_close(views[0], fill.view(3, 1, 1).expand(3, 4, 4))
    torch.testing.assert_close(views[1], images[0])


@pytest.mark.parametrize(
    ("cams", "labels", "error", "words"),
    [
        (dense().detach().numpy(), LABELS, TypeError, "torch.Tensor"),
        (dense()[0], LABELS, ValueError, r"\[N, K, h, w\]"),
        (dense().detach().mul(9).to(torch.uint8), LABELS, TypeError, "floating.*255"),
        (dense(), LABELS[:, :2], ValueError, "80 or 90"),
        (dense(), LABELS * 0.5, ValueError, "multi-hot"),
        (dense(), LABELS * torch.nan, ValueError, "multi-hot"),
        (dense(), LABELS[0], ValueError, r"\[N, K\]"),
    ],
)
def test_bad_dense_input(cams, labels, error, words):
    with pytest.raises(error, match=words):
        ClassMasks.from_dense(cams, labels)


@pytest.mark.parametrize("index", [torch.zeros(2), torch.zeros(3, dtype=torch.int64), torch.tensor([0, -1])])
def test_bad_indices(index):
    good = torch.tensor([0, 1])
    for name, pair in (("image_index", (index, good)), ("class_index", (good, index))):
        with pytest.raises(ValueError, match=name):
            ClassMasks.from_pairs(torch.rand(2, 4, 4), *pair)


def test_one_pair_and_some_pairs():
    masks = ClassMasks.from_dense(dense(), LABELS)
    assert [pair.class_index.item() for pair in masks] == [1, 2, 0] and len(list(masks)) == 3
    for part in (masks[-1], masks[2], masks[2:], masks[torch.tensor([2])], masks[torch.tensor([False, False, True])]):
        assert len(part) == 1 and part.num_images == 3 and torch.equal(part.maps, masks.maps[2:])
    with pytest.raises(IndexError, match="there is no pair 3, the masks are of 3 pairs"):
        masks[3]


def test_what_masks_are_can_be_read_in_a_line():
    masks = ClassMasks.from_dense(dense(), LABELS)
    assert repr(masks) == "ClassMasks(3 pairs, 3 images, 3 classes; maps 4 x 5, float32, on cpu, with gradients)"
    pair = ClassMasks.from_pairs(torch.zeros(1, 2, 7).half(), torch.tensor([0]), torch.tensor([5]))
    assert repr(pair) == "ClassMasks(1 pair; maps 2 x 7, float16, on cpu)"


def test_a_kind_has_the_defaults_of_its_method():
    cams = dense().abs()
    masks = ClassMasks.from_dense(cams, LABELS)
    by_method = {
        "logits": masks.sigmoid(),
        "sigmoid": masks,
        "relu": masks.max_normalized(),
        "min-max": masks.normalized(),
    }
    for kind, expected in by_method.items():
        torch.testing.assert_close(masks.of_kind(kind).maps, expected.maps, atol=0, rtol=0)
    torch.testing.assert_close(masks.of_kind("min-max", 0.5).maps, masks.normalized(0.5).maps)
    with pytest.raises(ValueError, match="kind: expected one of logits, sigmoid, relu, min-max, got 'rleu'"):
        masks.of_kind("rleu")


def test_numbers_of_other_kinds_choose_a_pair():
    masks = ClassMasks.from_dense(dense(), LABELS)
    for number in (np.int64(1), torch.tensor(1)):
        assert len(masks[number]) == 1 and masks[number].class_index.item() == 2
    with pytest.raises(TypeError):
        masks[1.0]
