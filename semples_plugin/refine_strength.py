"""`RefineStrength`: lambda of (3), measured so that refinement pulls at the masks at a chosen strength.

Ours, not the paper's, which gives one lambda for each data set and its CLIP.
"""

from __future__ import annotations

from statistics import median_low
from typing import Any

import torch
from torch import Tensor

from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.utils.checks import check_number
from semples_plugin.utils.distributed import gather
from semples_plugin.utils.tensor_version import version_of

MEASURED_CALLS = 10
"""Calls that train, after which lambda is fixed."""


class RefineStrength:
    """lambda = share / median over the pairs of |gradient of L_refine| / |gradient of L_match|.

    The pairs are those of the first `MEASURED_CALLS` calls with these prompts, of all ranks. A pair to which one of
    the two gives no gradient, as a clamped one, has no ratio and isn't counted; a call without any isn't either.
    Other prompts, or changed ones, begin anew.

    Args:
        share: of matching's gradient, above 0.

    Raises:
        TypeError, ValueError: for anything else.

    >>> strength, prompts = RefineStrength(0.2), BackgroundPrompts(2, 4, 64)
    >>> strength.is_due(prompts), strength.weight_for(prompts)
    (True, 0.0)
    >>> strength.add(torch.tensor([0.1, 0.5, 4.0, 0.0]))
    >>> strength.weight_for(prompts)
    0.4
    """

    def __init__(self, share: float) -> None:
        check_number("refine_share", share, 0, above=True)
        self.share = float(share)
        self._begin(None)

    @torch.compiler.disable  # versions of tensors, which tell changed prompts, aren't kept there
    def weight_for(self, prompts: BackgroundPrompts | None) -> float:
        """lambda as far as it is known for these prompts; 0 before the first call."""
        return self._weight if self._is_of(prompts) else 0.0

    def is_due(self, prompts: BackgroundPrompts) -> bool:
        """Whether a call that trains with these prompts is to be measured."""
        if not self._is_of(prompts):
            self._begin(prompts)
        return self._calls < MEASURED_CALLS

    def add(self, ratios: Tensor) -> None:
        """Takes the ratios `[P]` of a call, see `diagnostics.gradient_ratios`; collective, and waits for the device."""
        useful = ratios[(ratios > 0) & ratios.isfinite()]
        found = [ratio for of_rank in gather(useful.tolist()) for ratio in of_rank]
        if found:
            self._calls += 1
            self._ratios += found
            self._weight = self.share / median_low(self._ratios)

    def __getstate__(self) -> dict[str, Any]:
        """With whether the prompts are still those that were measured, since a copy's count of changes begins anew."""
        is_current = self._vectors is not None and self._version == version_of(self._vectors)
        return {**self.__dict__, "is_current": is_current}

    def __setstate__(self, state: dict[str, Any]) -> None:
        is_current = state.pop("is_current")
        self.__dict__.update(state)
        if self._vectors is not None:
            self._version = version_of(self._vectors) if is_current else -1  # which no tensor has

    def _begin(self, prompts: BackgroundPrompts | None) -> None:
        self._vectors = None if prompts is None else prompts.vectors
        self._version = None if prompts is None else version_of(prompts.vectors)
        self._ratios: list[float] = []
        self._calls, self._weight = 0, 0.0

    def _is_of(self, prompts: BackgroundPrompts | None) -> bool:
        if prompts is None or self._vectors is not prompts.vectors:
            return False
        return self._version == version_of(prompts.vectors)
