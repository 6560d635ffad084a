import pytest
import reference
import torch

from semples_plugin import functional

PAIRS, WIDTH = 5, 4


def features(seed: int, positive: bool = True) -> torch.Tensor:
    values = torch.randn(PAIRS, WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return values.abs() if positive else values


def total(parts, weight):
    return parts[0] + weight * parts[1]


def match(v_f, v_b, u_f):
    return total(functional.matching_loss(functional.similarity(v_f, u_f), functional.similarity(v_b, u_f)), 2.4)


def prompt(u_b, v_b, u_f, term="paper"):
    return total(functional.prompt_loss(functional.similarity(u_b, v_b), functional.similarity(u_b, u_f), term), 0.3)


def refine(v_f, u_b):
    return functional.refinement_loss(functional.similarity(v_f, u_b))


def prompt_foreground(u_b, v_f):
    return functional.repel(functional.similarity(u_b, v_f))


CASES = {
    "match": (match, lambda *x: reference.l_match(*x, 2.4), 3),
    "prompt": (prompt, lambda *x: reference.l_prompt(*x, 0.3), 3),
    "prompt release": (lambda *x: prompt(*x, "release"), lambda *x: reference.l_prompt_release(*x, 0.3), 3),
    "prompt foreground": (prompt_foreground, reference.l_prompt_foreground, 2),
    "refine": (refine, reference.l_refine, 2),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("positive", [True, False], ids=["positive", "with negative cosines"])
def test_losses_and_gradients_equal_the_equations(name, positive):
    ours, theirs, count = CASES[name]
    inputs = [features(seed, positive).requires_grad_() for seed in range(count)]
    loss = ours(*inputs)
    lists = [x.detach().tolist() for x in inputs]
    assert loss.item() == pytest.approx(theirs(*lists), abs=1e-6)
    loss.backward()
    for place, x in enumerate(inputs):
        numeric = reference.numeric_gradient(lambda v, i=place: theirs(*lists[:i], v, *lists[i + 1 :]), lists[place])
        torch.testing.assert_close(x.grad, torch.tensor(numeric, dtype=torch.float64), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_gradcheck(name):
    ours, _, count = CASES[name]
    assert torch.autograd.gradcheck(ours, [features(seed).requires_grad_() for seed in range(count)])


@pytest.mark.parametrize("cosine", [-1.0, 0.0, 1.0])
def test_extreme_cosines_give_finite_losses_and_no_gradient(cosine):
    a = torch.tensor([[1.0, 0.0]], requires_grad=True)
    b = torch.tensor([[cosine, 1.0 if cosine == 0 else 0.0]])
    similarity = functional.similarity(a, b)
    assert similarity.item() == pytest.approx(min(max(cosine, 1e-4), 0.9999))
    loss = functional.attract(similarity) + functional.repel(similarity)
    loss.backward()
    assert loss.isfinite() and a.grad.abs().sum() == 0


def test_half_precision_features_are_compared_in_float32():
    a, b = torch.randn(3, 8).half(), torch.randn(3, 8).half()
    expected = functional.similarity(a.float(), b.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = functional.similarity(a, b)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got, expected)


def test_no_pairs_give_a_zero_on_the_graph():
    a = torch.zeros(0, 4, requires_grad=True)
    loss = functional.attract(functional.similarity(a, torch.zeros(0, 4)))
    loss.backward()
    assert loss.item() == 0 and a.grad.shape == (0, 4)


def test_wrong_shapes_are_named():
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3, 3\)"):
        functional.similarity(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="text_term"):
        functional.prompt_loss(torch.ones(1), torch.ones(1), "other")


def test_padding_counts_in_no_mean_and_gets_no_gradient():
    similarities = torch.tensor([0.3, 0.2, 0.7, 0.7], requires_grad=True)
    counted = torch.tensor([True, True, False, False])
    for term in (functional.attract, functional.repel, functional.refinement_loss):
        expected = term(similarities[:2])
        whole = term(similarities, counted)
        torch.testing.assert_close(whole, expected)
        gradient, right = (torch.autograd.grad(loss, similarities)[0] for loss in (whole, expected))
        torch.testing.assert_close(gradient, right)
        assert gradient[2:].tolist() == [0, 0]
        with_nan = torch.tensor([0.3, 0.2, float("nan"), 0.7])
        torch.testing.assert_close(term(with_nan, counted), expected)
        assert term(similarities, torch.zeros(4).bool()).item() == 0
