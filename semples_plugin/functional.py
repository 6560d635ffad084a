"""Equations (1) to (3) of SemPLeS as pure functions.

Every loss is an expectation over the (image, present class) pairs of a batch and is built from two terms:
`attract`, -log sim, and `repel`, -log(1 - sim). Features are `[P, D]`, similarities `[P]`, losses scalars.
Everything below half precision is computed in float32, whatever autocast says: near 1, float16 cannot tell
sim from 0.9999 and the logarithm of what is left is noise.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

SIMILARITY_RANGE = (1e-4, 0.9999)
"""Cosines are clamped to this range, so that both logarithms are finite (section 4.2: non-positive scores
become a small positive number). Outside of it a pair gets no gradient."""


def similarity(a: Tensor, b: Tensor) -> Tensor:
    """The paper's sim: cosine of each pair of rows, clamped to `SIMILARITY_RANGE`.

    Args:
        a, b: features `[P, D]`; they need not have unit length.

    Returns:
        `[P]`, float32 (float64 for float64 features).
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"expected two feature matrices of one shape [P, D], got {tuple(a.shape)} and {tuple(b.shape)}"
        )
    dtype = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    with torch.autocast(a.device.type, enabled=False):
        return F.cosine_similarity(a.to(dtype), b.to(dtype), dim=1).clamp(*SIMILARITY_RANGE)


def is_clamped(similarities: Tensor) -> Tensor:
    """Which similarities `[P]` lie at an end of `SIMILARITY_RANGE`: these pairs get no gradient."""
    low, high = SIMILARITY_RANGE
    return (similarities <= low) | (similarities >= high)


def attract(similarities: Tensor) -> Tensor:
    """E[-log sim], the expectation over the pairs `[P]`; 0, with a gradient of zero, when there are none."""
    return _mean(-similarities.log())


def repel(similarities: Tensor) -> Tensor:
    """E[-log(1 - sim)], the expectation over the pairs `[P]`; 0, with a gradient of zero, when there are none."""
    return _mean(-torch.log1p(-similarities))


def matching_loss(foreground_label: Tensor, background_label: Tensor) -> tuple[Tensor, Tensor]:
    """Equation (1), L_match, unweighted and in its two parts.

    Args:
        foreground_label: sim(v_f, u_f), `[P]`: the foreground view and the text of its class.
        background_label: sim(v_b, u_f), `[P]`: the background view and the same text.

    Returns:
        E[-log sim(v_f, u_f)] and E[-log(1 - sim(v_b, u_f))]; the paper weighs the second by lambda_b.
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
    """
    if text_term == "paper":
        return attract(prompt_background), repel(prompt_label)
    if text_term == "release":
        return attract(prompt_background), -attract(prompt_label)
    raise ValueError(f'text_term: expected "paper" or "release", got {text_term!r}')


def refinement_loss(foreground_prompt: Tensor) -> Tensor:
    """Equation (3), L_refine, unweighted: E[-log(1 - sim(v_f, u_b))].

    Args:
        foreground_prompt: sim(v_f, u_b), `[P]`: the foreground view and the background prompt of its class.
    """
    return repel(foreground_prompt)


def _mean(values: Tensor) -> Tensor:
    # The mean of nothing is NaN; a sum over nothing is a zero that hangs on the graph, as DDP needs it.
    return values.sum() / max(values.numel(), 1)
