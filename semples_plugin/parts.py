"""Sums over many pairs, a part at a time: memory is one part's, and nothing is computed twice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Terms = Callable[[Tensor, slice], Tensor]


def sum_in_parts(terms: Terms, x: Tensor, size: int) -> Tensor:
    """The sum of `terms(x[part], part)` over parts of at most `size` rows.

    Each part's graph is gone before the next begins: its gradient is taken at once, as if the terms were added up
    with one common factor, which is how losses are used. Where the backward pass turns out to weigh them otherwise,
    the parts are computed again with the right weights.

    Args:
        terms: T scalars as a tensor `[T]`, of some rows of `x` and the slice that they are; differentiable in them.
        x: `[P, ...]`.
        size: rows of a part.
    """
    found: Tensor = _SumInParts.apply(x, terms, size)
    return found


class _SumInParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, terms: Terms, size: int) -> Tensor:
        ctx.terms, ctx.size, wanted = terms, size, ctx.needs_input_grad[0]
        total, gradients = torch.zeros(()), []
        for part in _parts(x, size):
            rows = x[part].detach().requires_grad_(wanted)
            with torch.set_grad_enabled(wanted):
                values = terms(rows, part)
                if wanted:
                    gradients.append(torch.autograd.grad(values.sum(), rows)[0])
            total = total.to(values) + values.detach()
        ctx.save_for_backward(x, *([torch.cat(gradients)] if wanted else []))
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor, None, None]:
        x, gradient = ctx.saved_tensors
        if bool((factors == factors[0]).all()):
            return factors[0].to(gradient) * gradient, None, None
        gradients = []
        for part in _parts(x, ctx.size):
            rows = x[part].detach().requires_grad_()
            with torch.enable_grad():
                values = ctx.terms(rows, part)
            gradients.append(torch.autograd.grad(values, rows, factors)[0])
        return torch.cat(gradients), None, None


def _parts(x: Tensor, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, len(x), size)]
