"""Equations (1) to (3) of SemPLeS as pure functions.

Every loss is an expectation over the (image, present class) pairs of a batch and is built from two terms:
`attract`, -log sim, and `repel`, -log(1 - sim). Features are `[P, D]`, similarities `[P]`, losses scalars.
Half-precision features are compared in float32, under any autocast: near 1, float16 cannot tell sim from
0.9999, and the logarithm of 1 - sim would be noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITY_RANGE = (1e-4, 0.9999)
"""Cosines are clamped to this range, so that both logarithms are finite (section 4.2: non-positive scores
become a small positive number). A pair whose cosine lies outside of it gets no gradient."""


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """The paper's sim: cosine of each pair of rows, clamped to `SIMILARITY_RANGE`.

    Args:
        a, b: features `[P, D]`; they need not have unit length.

    Returns:
        `[P]`, float32 (float64 for float64 features).

    Raises:
        ValueError: unless both have one shape `[P, D]`.

    >>> features, texts = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    >>> similarity(features, texts)  # the second cosine is -1
    tensor([6.0000e-01, 1.0000e-04])
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"expected two feature matrices of one shape [P, D], got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return F.cosine_similarity(a.to(dtype), b.to(dtype), dim=1).clamp(*SIMILARITY_RANGE)


def is_clamped(similarities: Tensor) -> Tensor:
    """Which similarities `[P]` lie at an end of `SIMILARITY_RANGE`: these pairs get no gradient.

    >>> is_clamped(torch.tensor([0.3, 1e-4, 0.9999]))
    tensor([False,  True,  True])
    """
    low, high = SIMILARITY_RANGE
    return (similarities <= low) | (similarities >= high)


def attract(similarities: Tensor, counted: Tensor | None = None) -> Tensor:
    """E[-log sim], the expectation over the pairs `[P]`; 0, with a gradient of zero, when there are none.

    With `counted` (bool, `[P]`) it is that over the pairs that count; the others, padding, get a gradient of zero.

    >>> attract(torch.tensor([0.9, 0.9])), attract(torch.tensor([0.1]))
    (tensor(0.1054), tensor(2.3026))
    """
    return _mean(-similarities.log(), counted)


def repel(similarities: Tensor, counted: Tensor | None = None) -> Tensor:
    """E[-log(1 - sim)], the expectation over the pairs `[P]`, as in `attract`.

    >>> repel(torch.tensor([0.9, 0.9])), repel(torch.tensor([0.1]))
    (tensor(2.3026), tensor(0.1054))
    """
    return _mean(-torch.log1p(-similarities), counted)


def matching_loss(foreground_label: Tensor, background_label: Tensor) -> tuple[Tensor, Tensor]:
    """Equation (1), L_match, unweighted and in its two parts.

    Args:
        foreground_label: sim(v_f, u_f), `[P]`: the foreground view and the text of its class.
        background_label: sim(v_b, u_f), `[P]`: the background view and the same text.

    Returns:
        E[-log sim(v_f, u_f)] and E[-log(1 - sim(v_b, u_f))]; the paper weighs the second by lambda_b.

    >>> foreground, background = matching_loss(torch.tensor([0.8, 0.9]), torch.tensor([0.3, 0.2]))
    >>> foreground + 2.4 * background  # L_match, with lambda_b for VOC
    tensor(0.8600)
    """
    return attract(foreground_label), repel(background_label)


def prompt_loss(prompt_background: Tensor, prompt_label: Tensor, text_term: str = "paper") -> tuple[Tensor, Tensor]:
    """Equation (2), L_prompt, unweighted and in its two parts, L^I and L^T.

    Args:
        prompt_background: sim(u_b, v_b), `[P]`: the prompt of the class and the background view.
        prompt_label: sim(u_b, u_f), `[P]`: the prompt and the text of the class.
        text_term: "paper", E[-log(1 - sim(u_b, u_f))], or "release", E[log sim(u_b, u_f)], which is what the
            authors' code minimises: it has no upper bound on its pull away from the label.

    Returns:
        E[-log sim(u_b, v_b)] and the text term; the paper weighs the second by lambda_T.

    Raises:
        ValueError: for another text term.

    >>> prompt_loss(torch.tensor([0.8]), torch.tensor([0.3]))
    (tensor(0.2231), tensor(0.3567))
    >>> prompt_loss(torch.tensor([0.8]), torch.tensor([0.3]), text_term="release")
    (tensor(0.2231), tensor(-1.2040))
    """
    if text_term == "paper":
        return attract(prompt_background), repel(prompt_label)
    if text_term == "release":
        return attract(prompt_background), -attract(prompt_label)
    raise ValueError(f'text_term: expected "paper" or "release", got {text_term!r}')


def refinement_loss(foreground_prompt: Tensor, counted: Tensor | None = None) -> Tensor:
    """Equation (3), L_refine, unweighted: E[-log(1 - sim(v_f, u_b))].

    Args:
        foreground_prompt: sim(v_f, u_b), `[P]`: the foreground view and the background prompt of its class.
        counted: see `attract`.

    Returns:
        The scalar; the paper weighs it by lambda.

    >>> refinement_loss(torch.tensor([0.3, 0.2]))
    tensor(0.2899)
    """
    return repel(foreground_prompt, counted)


def _mean(values: Tensor, counted: Tensor | None) -> Tensor:
    if counted is not None:
        return torch.where(counted, values, 0.0).sum() / counted.sum().clamp(min=1)
    # The mean of nothing is NaN; a sum over nothing is a zero that hangs on the graph, as DDP needs it.
    return values.sum() / max(values.numel(), 1)
