"""The rows of the demo's table: what each of them is trained with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Row:
    """One row; every row but the baseline starts from the baseline.

    Attributes:
        title: what it is.
        prompts: "learned" by (b), "unlearned", or "none" where nothing is refined.
        weights: fields of `LossWeights` that differ from the recipe's.
        labels: weight of the image labels' own loss beside SemPLeS.
        shared, mask_tau: of `learn_background_prompts`.
        only_with: the option of `semples demo` that it takes; "" for rows of the plain table.
    """

    title: str
    prompts: str = "learned"
    weights: Mapping[str, float] = field(default_factory=dict)
    labels: float = 0.0
    shared: bool = False
    mask_tau: float = 1.0
    only_with: str = ""


_APART = {"refine": 0.8, "prompt_foreground": 1.0}
"""A term of (2) keeps prompts off the objects; then refinement can be strong."""

ROWS = {
    "baseline": Row("baseline: image labels alone", "none"),
    "match": Row("(a) + segment-label matching", "none"),
    "unlearned": Row("(c) + refinement, prompts not learned", "unlearned"),
    "text only": Row("(c) + refinement, prompts from L_T alone", weights={"image": 0.0}, only_with="ablation"),
    "image only": Row("(c) + refinement, prompts from L_I alone", weights={"text": 0.0}, only_with="ablation"),
    "full": Row("(c) + refinement, learned prompts (full)"),
    "strong": Row("(c) full, lambda 0.8", weights={"refine": 0.8}, only_with="additions"),
    "apart each": Row("(c) lambda 0.8, prompts kept off objects", weights=_APART, mask_tau=0.3, only_with="additions"),
    "apart": Row("(c) the same, one prompt for all", weights=_APART, shared=True, mask_tau=0.3, only_with="additions"),
    "labels": Row("(a) beside the image labels' own loss", "none", labels=1.0, only_with="additions"),
    "full labels": Row("(c) full, beside that loss", labels=1.0, only_with="additions"),
}
"""By their names, in the order in which they are trained and printed."""
