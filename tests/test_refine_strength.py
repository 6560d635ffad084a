import copy
import math
import pickle
from dataclasses import replace

import pytest
import reference
import torch
from conftest import build_frozen
from test_regularizer import LABELS, NAMES, WEIGHTS, by_hand, cams, double_regularizer, host_images

from semples_plugin import BackgroundPrompts, ClassMasks, LossWeights, SemPLeSRegularizer, learn_background_prompts
from semples_plugin.refine_strength import MEASURED_CALLS, RefineStrength

SHARE = 0.3
IMAGES = host_images(torch.float64)
pytestmark = pytest.mark.filterwarnings("ignore:refinement with prompts", "ignore:the masks carry no gradient")


def maps_of(call: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(call)
    return torch.randn(3, 3, 10, 12, generator=generator, dtype=torch.float64).requires_grad_()


def masks_of(call: int) -> ClassMasks:
    return ClassMasks.from_dense(maps_of(call), LABELS).sigmoid()


def gradients_by_hand(regularizer, call: int) -> tuple[list, list]:
    """Of L_match and L_refine on the mask of each pair, from the equations and by torch's cosine."""
    maps = maps_of(call).detach().sigmoid().requires_grad_()
    v_f, v_b, u_f, u_b = by_hand(regularizer, maps)
    sim = lambda a, b: torch.cosine_similarity(a, b, dim=0).clamp(1e-4, 0.9999)  # noqa: E731
    found: tuple[list, list] = ([], [])
    for p, (n, k) in enumerate(LABELS.nonzero().tolist()):
        match = -sim(v_f[p], u_f[p]).log() - 2.4 * (1 - sim(v_b[p], u_f[p])).log()
        refine = -(1 - sim(v_f[p], u_b[p])).log()
        for loss, gradients in zip((match, refine), found, strict=True):
            gradients.append(torch.autograd.grad(loss, maps, retain_graph=True)[0][n, k].flatten().tolist())
    return found


@pytest.mark.parametrize("max_pairs", [None, 2])
def test_lambda_equals_the_loop_call_by_call_and_is_fixed_after_ten(monkeypatch, max_pairs):
    regularizer = double_regularizer(refine_share=SHARE, max_pairs=max_pairs)
    encoded, encode = [], regularizer.clip.encode_images
    monkeypatch.setattr(regularizer.clip, "encode_images", lambda x: (encoded.append(len(x)), encode(x))[1])
    assert regularizer.refine_weight == 0
    match, refine, weights = [], [], []
    for call in range(MEASURED_CALLS + 2):
        encoded.clear()
        regularizer.weights = replace(WEIGHTS, refine=0.0 if call % 2 else 7.0)  # which has no say
        losses = regularizer(IMAGES, masks_of(call))
        assert sum(encoded) == (12 if call < MEASURED_CALLS else 6)
        by_call = gradients_by_hand(regularizer, call)
        if call < MEASURED_CALLS:
            match, refine = match + by_call[0], refine + by_call[1]
        weights.append(regularizer.refine_weight)
        assert weights[-1] == pytest.approx(reference.refine_weight(match, refine, SHARE), rel=1e-5)
        similar = by_hand(regularizer, maps_of(call).sigmoid())
        v_f, u_b = ([x.tolist() for x in group] for group in (similar[0], similar[3]))
        assert losses["loss_refine"].item() == pytest.approx(weights[-1] * reference.l_refine(v_f, u_b), rel=1e-6)
    assert len(set(weights[MEASURED_CALLS - 1 :])) == 1 < len(set(weights))


def test_refinement_has_the_share_that_was_asked_for_and_the_gradient_that_follows():
    regularizer = double_regularizer(refine_share=SHARE)
    maps = cams(torch.float64)
    masks = ClassMasks.from_dense(maps, LABELS).sigmoid()
    losses = regularizer(IMAGES, masks)
    assert maps.grad is None and regularizer.prompts.vectors.grad is None
    assert regularizer.gradient_balance(IMAGES, masks)["refine_to_match"] == pytest.approx(SHARE, rel=1e-5)
    usual = double_regularizer()
    usual.weights = replace(WEIGHTS, refine=regularizer.refine_weight)
    torch.testing.assert_close(losses, usual(IMAGES, masks))
    gradients = [
        torch.autograd.grad(sum(x.values()), maps, retain_graph=True)[0] for x in (losses, usual(IMAGES, masks))
    ]
    torch.testing.assert_close(*gradients)
    assert usual.refine_weight == usual.weights.refine
    double = double_regularizer(refine_share=2 * SHARE)
    double(IMAGES, masks)
    assert double.refine_weight == pytest.approx(2 * regularizer.refine_weight)


def test_calls_that_do_not_train_are_not_measured():
    regularizer = double_regularizer(refine_share=SHARE)
    nothing = ClassMasks.from_dense(cams(torch.float64), torch.zeros(3, 3)).sigmoid()
    for _ in range(MEASURED_CALLS):
        with torch.no_grad():
            losses = regularizer(IMAGES, masks_of(1))
        assert list(losses)[-1] == "loss_refine" and losses["loss_refine"].item() == 0 == regularizer.refine_weight
        assert list(regularizer(IMAGES, nothing)) == list(losses) and regularizer.refine_weight == 0
    prompts, regularizer.prompts = regularizer.prompts, None
    assert list(regularizer(IMAGES, masks_of(1))) == ["loss_match_foreground", "loss_match_background"]
    regularizer.prompts = prompts
    assert regularizer.refine_weight == 0
    for call in range(MEASURED_CALLS):  # none of them was counted
        before = regularizer.refine_weight
        regularizer(IMAGES, masks_of(call))
    assert regularizer.refine_weight > 0
    with torch.no_grad():
        assert regularizer(IMAGES, masks_of(1))["loss_refine"].item() > 0 != before


def test_other_prompts_begin_anew_and_the_same_ones_go_on():
    regularizer = double_regularizer(refine_share=SHARE)
    width = regularizer.clip.text_width
    changes = {
        "other": lambda: setattr(regularizer, "prompts", BackgroundPrompts(3, 4, width, std=1.0, seed=3).double()),
        "loaded": lambda: regularizer.prompts.load_state_dict({"vectors": torch.randn(3, 4, width).double()}),
        "learned": lambda: learn_background_prompts(
            regularizer, [(IMAGES, masks_of(0).detach())], epochs=1, lr=0.1, progress=False
        ),
    }
    for change in changes.values():
        for call in range(MEASURED_CALLS + 1):
            regularizer(IMAGES, masks_of(call))
        fixed = regularizer.refine_weight
        regularizer.prompts = regularizer.prompts
        regularizer(IMAGES, masks_of(99))
        assert regularizer.refine_weight == fixed > 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("semples_plugin.prompt_learning.learn.warn_caller", lambda message: None)
            change()
        assert regularizer.refine_weight == 0
        regularizer(IMAGES, masks_of(99))
        expected = reference.refine_weight(*gradients_by_hand(regularizer, 99), SHARE)
        assert regularizer.refine_weight == pytest.approx(expected, rel=1e-5)


def test_pairs_without_a_gradient_have_no_ratio():
    strength, prompts = RefineStrength(0.5), BackgroundPrompts(3, 4, 64)
    for nothing in ([], [0.0, 0.0], [math.inf, math.nan]):
        assert strength.is_due(prompts)
        strength.add(torch.tensor(nothing))
        assert strength.weight_for(prompts) == 0
    for call in range(MEASURED_CALLS):
        assert strength.is_due(prompts)
        strength.add(torch.tensor([0.0, math.nan, math.inf, 0.0, 0.25, 5.0, 5.0 + call]))
    assert strength.weight_for(prompts) == 0.5 / 5.0 and not strength.is_due(prompts)
    assert strength.weight_for(None) == strength.weight_for(BackgroundPrompts(3, 4, 64)) == 0


@pytest.mark.filterwarnings("ignore:.*their cosine is clamped")
def test_prompts_opposite_of_every_foreground_give_no_infinite_lambda():
    regularizer = double_regularizer(refine_share=SHARE)
    v_f, _ = regularizer.pair_features(IMAGES, masks_of(0))
    regularizer.prompt_features = lambda: -v_f.mean(0).expand(3, -1)
    losses = regularizer(IMAGES, masks_of(0))
    assert regularizer.refine_weight == losses["loss_refine"].item() == 0


def test_mistakes_are_named(clip):
    for share, error in (
        (0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        ("0.1", TypeError),
        (True, TypeError),
    ):
        with pytest.raises(error, match=f"refine_share: expected a finite number above 0, got .?{share}"):
            SemPLeSRegularizer(clip, NAMES, refine_share=share)
    regularizer = double_regularizer(refine_share=0.25)
    assert "prompt_foreground 0; refine_share 0.25; prompts of length 4" in repr(regularizer)
    regularizer.weights = LossWeights(foreground=0, background=0)
    with pytest.raises(
        ValueError, match=r"refine_share is a share of L_match's gradient, but both weights .* are 0: set"
    ):
        regularizer(IMAGES, masks_of(0))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_masks_measure_the_same(dtype):
    found = []
    for kind in (torch.float32, dtype):
        clip = build_frozen()
        prompts = BackgroundPrompts(3, 4, clip.text_width, std=1.0)
        regularizer = SemPLeSRegularizer(clip, NAMES, weights=WEIGHTS, prompts=prompts, refine_share=SHARE)
        maps = torch.rand(3, 10, 12, generator=torch.Generator().manual_seed(1)).to(kind).requires_grad_()
        masks = ClassMasks.from_pairs(maps, torch.tensor([0, 1, 2]), torch.tensor([1, 2, 0]))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            sum(regularizer(host_images(), masks).values()).backward()
        found.append(regularizer.refine_weight)
    assert found[1] == pytest.approx(found[0], rel=0.05)


def test_compiled_it_measures_the_same():
    found = []
    for compiled in (False, True):
        clip = build_frozen()
        prompts = BackgroundPrompts(3, 4, clip.text_width, std=1.0)
        regularizer = SemPLeSRegularizer(clip, NAMES, weights=WEIGHTS, prompts=prompts, refine_share=SHARE)
        torch.compiler.reset()
        call = torch.compile(regularizer.__call__, backend="aot_eager") if compiled else regularizer
        maps = cams()
        for _ in range(2):
            losses = call(host_images(), ClassMasks.from_dense(maps, LABELS).sigmoid())
        sum(losses.values()).backward()
        found.append((torch.tensor(regularizer.refine_weight), losses["loss_refine"].detach(), maps.grad))
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_keep_lambda_where_the_prompts_are_those_that_were_measured(copied):
    strength, prompts = RefineStrength(0.2), BackgroundPrompts(2, 4, 64)
    with torch.no_grad():
        prompts.vectors.mul_(2).add_(1)  # autograd counts both; a copy's count begins anew
    assert strength.is_due(prompts)
    strength.add(torch.tensor([0.5]))
    again, same = copied((strength, prompts))
    assert again.weight_for(same) == strength.weight_for(prompts) == 0.4
    with torch.no_grad():
        prompts.vectors.mul_(2)
    again, same = copied((strength, prompts))
    assert strength.weight_for(prompts) == 0
    assert again.weight_for(same) == 0
