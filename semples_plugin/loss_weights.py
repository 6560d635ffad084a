"""`LossWeights`: how the terms of the objectives are weighed, and the names that their losses have."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms; 0 leaves a term out, and its cost with it. Defaults: the paper's for VOC.

    Attributes:
        foreground: of E[-log sim(v_f, u_f)] in L_match (1).
        background: lambda_b, of E[-log(1 - sim(v_b, u_f))] in L_match (1).
        refine: lambda, of L_refine (3); not used where the regularizer has a `refine_share`.
        image: of L_prompt^I in (2).
        text: lambda_T, of L_prompt^T in (2).
        prompt_foreground: lambda_F, of E[-log(1 - sim(u_b, v_f))] beside (2), which keeps prompts from describing
            the object. Ours, not the paper's.

    Raises:
        ValueError: for a weight that is negative, NaN or infinite.

    >>> print(LossWeights(refine=0.2))
    foreground 1, background 2.4, refine 0.2, image 1, text 0.02, prompt_foreground 0
    >>> LossWeights(background=0)  # without the term on backgrounds, whose views are not encoded then
    LossWeights(foreground=1.0, background=0, refine=0.05, image=1.0, text=0.02, prompt_foreground=0.0)
    """

    foreground: float = 1.0
    background: float = 2.4
    refine: float = 0.05
    image: float = 1.0
    text: float = 0.02
    prompt_foreground: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"LossWeights.{field.name}: expected a finite number of at least 0, got {value}")

    def __str__(self) -> str:
        return ", ".join(f"{field.name} {getattr(self, field.name):g}" for field in fields(self))

    def of_matching(self) -> dict[str, float]:
        """Those of (1) that are above 0, by the names of their losses."""
        return _above_zero(loss_match_foreground=self.foreground, loss_match_background=self.background)

    def of_refinement(self) -> dict[str, float]:
        """That of (3), likewise."""
        return _above_zero(loss_refine=self.refine)

    def of_prompts(self) -> dict[str, float]:
        """Those of (2), likewise."""
        return _above_zero(
            loss_prompt_image=self.image, loss_prompt_text=self.text, loss_prompt_foreground=self.prompt_foreground
        )


def _above_zero(**weights: float) -> dict[str, float]:
    return {name: weight for name, weight in weights.items() if weight > 0}
