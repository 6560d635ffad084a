"""What makes the host wait for the device in a step, counted on a pretended device; test_gpu.py asks a GPU."""

import pytest
import torch
from conftest import build_frozen
from pretended_device import DEVICE, PretendedDevice
from test_prompt_learning import OPTIONS, Batches
from test_regularizer import LABELS, NAMES, WEIGHTS, cams, host_images

from semples_plugin import BackgroundPrompts, ClassMasks, FrozenClip, SemPLeSRegularizer, learn_background_prompts, wrap
from semples_plugin.prompt_learning.epochs import LearningRun
from semples_plugin.refine_strength import MEASURED_CALLS
from semples_plugin.utils import checks

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_schedule(monkeypatch):
    monkeypatch.setattr("semples_plugin.masks._span_checks", checks.CheckSchedule(every=0))


@pytest.mark.parametrize(
    ("look", "waits"),
    [
        (lambda x: x.sum().item(), ["_local_scalar_dense"]),
        (lambda x: float(x.sum()), ["_local_scalar_dense"]),
        (lambda x: "positive" if x.sum() > 0 else "negative", ["_local_scalar_dense"]),
        (lambda x: x.tolist(), ["copy from the device"]),
        (lambda x: x.cpu(), ["copy from the device"]),
        (lambda x: torch.zeros(3).copy_(x), ["copy from the device"]),
        (lambda x: x.copy_(torch.zeros(3)), ["copy to the device"]),
        (lambda x: x.copy_(torch.zeros(3), non_blocking=True), []),
        (lambda x: torch.zeros(3).to(DEVICE), ["copy to the device"]),
        (lambda x: torch.zeros(3).to(DEVICE, non_blocking=True), []),
        (lambda x: x.new_tensor([1.0, 2.0]), ["copy to the device"]),
        (lambda x: torch.zeros(3, device=DEVICE) + x, []),
        (lambda x: x[x > 0], ["index by booleans"]),
        (lambda x: x[torch.tensor([0, 1])], ["index by an index on the CPU"]),
        (lambda x: x[torch.arange(2, device=DEVICE)], []),
        (lambda x: x.nonzero(), ["nonzero"]),
        (lambda x: x.unique(), ["_unique2"]),
        (lambda x: torch.equal(x, x), ["equal"]),
        (lambda x: torch.where(x > 0, x, 0.0).mean(), []),
    ],
)
def test_the_pretended_device_counts(look, waits):
    with PretendedDevice() as pretended:
        x = torch.tensor([1.0, -2.0, 3.0]).to(DEVICE)
        pretended.waits.clear()
        look(x)
        assert pretended.waits == waits
        with pytest.raises(RuntimeError, match="expected all tensors to be on one device"):
            x + torch.zeros(3)


def make(stage: str, device: torch.device, **options) -> SemPLeSRegularizer:
    clip = build_frozen().to(device)
    prompts = None
    if stage != "a":
        prompts = BackgroundPrompts(3, 4, clip.text_width, std=clip.token_std)
        prompts.learned = stage == "c"
    return SemPLeSRegularizer(clip, NAMES, weights=WEIGHTS, prompts=prompts, **options)


def steps(stage: str, device: torch.device = DEVICE, number: int = 12, labels_on: torch.device = CPU, **options):
    """What makes the host wait in each of some steps; the losses and the masks' gradient of the last."""
    waits = []
    with PretendedDevice() as pretended:
        regularizer, images, labels = make(stage, device, **options), host_images().to(device), LABELS.to(labels_on)
        for _ in range(number):
            maps = cams().detach().to(device).requires_grad_()
            pretended.waits.clear()
            losses = regularizer(images, ClassMasks.from_dense(maps, labels).normalized())
            sum(losses.values()).backward()
            waits.append(list(pretended.waits))
        return waits, {name: loss.item() for name, loss in losses.items()}, maps.grad.cpu()


@pytest.mark.parametrize(
    ("stage", "options", "once"),
    [
        ("a", {}, []),
        ("c", {}, []),
        # A backward pass in parts asks whether the losses are weighed alike.
        ("a", {"max_pairs": 2}, ["_local_scalar_dense"]),
        ("c", {"max_pairs": 2}, ["_local_scalar_dense"]),
        # The number of pairs must be known.
        ("c", {"labels_on": DEVICE}, ["copy from the device"]),
    ],
)
def test_a_step_of_a_and_c_waits_for_its_checks_alone(stage, options, once):
    waits, losses, gradient = steps(stage, check_every=10, **options)
    assert waits[3:9] == [once] * 6 and waits[10:] == [once] * 2
    checks = len(once) + (2 if stage == "a" else 3)  # all ranges in one copy, each clamped share
    assert len(waits[9]) == checks
    # The CAMs' span; in the first step two copies of colours, too.
    assert [len(waited) for waited in waits[:3]] == [checks + 3, checks + 1, checks + 1]
    _, expected, expected_gradient = steps(stage, CPU, number=1, **{**options, "labels_on": CPU})
    assert losses == pytest.approx(expected, rel=1e-6)
    torch.testing.assert_close(gradient, expected_gradient)


def test_checks_can_be_left_out_after_the_first_steps():
    waits, _, _ = steps("c", number=12, check_every=0)
    assert waits[0] and waits[3:] == [[]] * 9


def test_sizes_that_take_turns_are_checked_three_times_each():
    with PretendedDevice() as pretended:
        regularizer, images, maps = make("c", DEVICE, check_every=0), host_images().to(DEVICE), cams().to(DEVICE)
        counts = []
        for i in range(10):
            pretended.waits.clear()
            regularizer(images[..., : 40 - 8 * (i % 2)], ClassMasks.from_dense(maps, LABELS).sigmoid())
            counts.append(len(pretended.waits))
        assert min(counts[:6]) > 0 and counts[6:] == [0] * 4


def test_a_measured_lambda_waits_until_it_is_fixed():
    waits, _, _ = steps("c", number=MEASURED_CALLS + 2, check_every=0, refine_share=0.3)
    assert all(waits[:MEASURED_CALLS]) and waits[MEASURED_CALLS:] == [[], []]


def test_a_clip_in_half_precision_is_looked_at_as_often_as_its_regularizer_says():
    with PretendedDevice() as pretended:
        half = build_frozen()
        half.model.half()
        clip = FrozenClip(half.model, half.tokenizer).to(DEVICE)
        regularizer = SemPLeSRegularizer(clip, NAMES, check_every=4)  # texts, which it encodes, are no images
        images, maps, counts = host_images().to(DEVICE), cams().to(DEVICE), []
        for _ in range(9):
            pretended.waits.clear()
            regularizer(images, ClassMasks.from_dense(maps, LABELS).sigmoid())
            counts.append(len(pretended.waits))
    assert counts[1:] == [3, 3, 3, 0, 0, 0, 3, 0]  # ranges, a clamped share, and CLIP's features


def test_a_step_of_b_waits_in_its_first_three_alone(monkeypatch):
    waits, plain_step = [], LearningRun._step
    with PretendedDevice() as pretended:

        def step(run, chosen):
            before = len(pretended.waits)
            loss = plain_step(run, chosen)
            waits.append(pretended.waits[before:])
            return loss

        monkeypatch.setattr(LearningRun, "_step", step)
        histories = []
        for device in (DEVICE, CPU):
            regularizer = make("b", device, input_mean=None, input_std=None)
            batches = (
                (images.to(device), ClassMasks.from_pairs(m.maps.to(device), m.image_index, m.class_index))
                for images, m in Batches()
            )
            histories.append(learn_background_prompts(regularizer, batches, **OPTIONS))
    assert len(waits) == 2 * 18 and waits[:18] == [["_local_scalar_dense"]] * 3 + [[]] * 15
    assert histories[0].loss == pytest.approx(histories[1].loss, rel=1e-5)


def test_labels_on_a_device_are_waited_for_before_the_model_is_queued():
    with PretendedDevice() as pretended:
        regularizer, order = make("a", DEVICE, check_every=0), []

        def model(images):
            order.append(list(pretended.waits))
            return cams().to(DEVICE, non_blocking=True)

        semples, images, labels = wrap(model, regularizer, "logits"), host_images().to(DEVICE), LABELS.to(DEVICE)
        for _ in range(5):
            pretended.waits.clear()
            semples(images, labels)
        assert order[-1] == pretended.waits == ["copy from the device"]
