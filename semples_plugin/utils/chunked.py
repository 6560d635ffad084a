"""Sums over many pairs, part by part: with the memory of one part, and every part computed once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Terms = Callable[[Tensor, slice], Tensor]


def sum_in_parts(terms: Terms, x: Tensor, size: int) -> Tensor:
    """The sum of `terms(x[part], part)` over parts of at most `size` rows.

    Each part's graph is freed before the next part: its gradient is computed at once, for the sum of the
    terms, which is how losses are used. Where the backward pass turns out to weight the terms differently, or
    is differentiated itself (`create_graph=True`, which needs the memory of all parts), the parts are
    computed again; `terms` must give the same values then.

    Args:
        terms: from rows of `x`, in float32 or better, and their slice to T scalars `[T]`, differentiable in
            the rows.
        x: `[P, ...]`.
        size: rows of a part.

    Returns:
        The T sums `[T]`, differentiable in `x`.
    """
    total: Tensor = _SumInParts.apply(x, terms, size)
    return total


class _SumInParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, terms: Terms, size: int) -> Tensor:
        ctx.terms, ctx.size = terms, size
        needs_grad = ctx.needs_input_grad[0] and not torch.is_inference_mode_enabled()
        total, gradients = torch.zeros((), device=x.device), []
        for part in _parts(x, size):
            rows = _as_float32(x[part].detach()).requires_grad_(needs_grad)
            with torch.set_grad_enabled(needs_grad):
                values = terms(rows, part)
                if needs_grad:
                    gradients.append(torch.autograd.grad(values.sum(), rows)[0])
            total = total.to(values) + values.detach()
        if needs_grad:
            ctx.save_for_backward(x, torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, factors: Tensor) -> tuple[Tensor, None, None]:
        x, gradient = ctx.saved_tensors
        differentiable = torch.is_grad_enabled()  # with create_graph=True
        if not differentiable and bool((factors == factors[0]).all()):
            # In float32: a loss scaler starts at 65,536, which is infinite in half precision.
            return (factors[0] * gradient).to(x.dtype), None, None
        gradients = []
        # Of torch's attention kernels only the unfused one can be differentiated twice.
        kernels = sdpa_kernel(SDPBackend.MATH) if differentiable else nullcontext()
        with torch.enable_grad(), kernels:
            for part in _parts(x, ctx.size):
                rows = _as_float32(x[part] if differentiable else x[part].detach())
                if not differentiable:
                    rows.requires_grad_()
                values = ctx.terms(rows, part)
                gradients.append(torch.autograd.grad(values, rows, factors, create_graph=differentiable)[0])
        return torch.cat(gradients).to(x.dtype), None, None


def _as_float32(rows: Tensor) -> Tensor:
    """Rows in float32 or better, so that their gradients can be scaled before they are rounded."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))


def _parts(x: Tensor, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, len(x), size)]
