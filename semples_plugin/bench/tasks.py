"""What `semples bench` measures: its parts, and the steps of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from semples_plugin.bench.hosts import stages_of
from semples_plugin.bench.plain import PROMPT_WASTE, REFINEMENT_WASTE

PARTS = {
    "refinement": "the step of (c) by the number of pairs, beside a plain one, and in parts",
    "savings": "what each saving saves of a plain step, one taken away after the other",
    "ablation": "the library's own step with each of CLIP's fast paths taken away in turn",
    "modes": "the library's own step as a caller may set it, such as without checks of values",
    "prompts": "(b) for VOC, from the rates of its steps",
    "host": "a host's own training step, and the same with (a) and with (c)",
}
DEFAULT_PARTS = tuple(part for part in PARTS if part != "host")

PAIRS = {"cpu": (1, 6, 16, 96), "cuda": (1, 4, 6, 16, 64, 96, 256)}
SAVING_PAIRS = 6  # pairs of the refinement steps from which savings are taken away, and of a part
SIDE_BY_SIDE_PAIRS = {"cpu": (SAVING_PAIRS,), "cuda": (SAVING_PAIRS, 96)}  # of ablation and modes
PLAIN_PART = {"cpu": 24}  # pairs of a plain step at once: 96 of them would need some 35 GB
PROMPT_PAIRS, PROMPT_EPOCHS, PROMPT_BATCH = 15_000, 60, 128  # VOC's train_aug, and the release's batches
LADDERS: dict[str, tuple[Mapping[str, str], int]] = {
    "refinement": (REFINEMENT_WASTE, SAVING_PAIRS),
    "prompts": (PROMPT_WASTE, PROMPT_BATCH),
}
"""Steps whose waste is removed piece by piece: names and descriptions of the waste, and the number of pairs."""
MODES: dict[str, tuple[str, dict[str, Any]]] = {
    "as it is": ("as it is", {}),
    "checked": ("values checked in every step, as on a CPU", {"checks": True}),
    "unchecked": ("values never checked", {"checks": False}),
}
"""Ways to call the library's own step: what a table calls them, and what they add to a spec. The first is the usual."""

FAST_PATHS = {
    "last block": REFINEMENT_WASTE["last block"],
    "attention": REFINEMENT_WASTE["attention"],
    "patches": REFINEMENT_WASTE["patches"],
    "activations": REFINEMENT_WASTE["activations"],
    "batch norms": "batch norms of a timm tower beside its convolutions",
}
"""What is computed without each of `fast_towers.PATHS`."""

Group = dict[str, dict[str, Any]]
"""Specs of steps that take turns in one process, by the names of their rows, as `steps.prepare` reads them."""


def groups_of(
    parts: Sequence[str], pairs: Sequence[int], kind: str, hosts: Mapping[str, Mapping[str, Any]]
) -> list[Group]:
    """The groups that the parts need, with what each step adds to the common settings.

    Args:
        parts: of `PARTS`.
        pairs: numbers of pairs of refinement.
        kind: of the device, "cpu" or "cuda".
        hosts: what `host_settings` gives, by name; for the part "host".
    """
    side_by_side = SIDE_BY_SIDE_PAIRS.get(kind, SIDE_BY_SIDE_PAIRS["cpu"])
    groups: list[Group] = []
    if "refinement" in parts:
        groups += _refinement(pairs, kind)
    if "savings" in parts:
        groups += [{name: spec} for step in LADDERS for name, spec in _ladder(step).items()]
    if "ablation" in parts:
        groups += [_ablation(count) for count in side_by_side]
    if "modes" in parts:
        groups += [_modes(count) for count in side_by_side]
    if "prompts" in parts:
        groups += _prompts("savings" in parts)
    if "host" in parts:
        groups += [_host(host, settings) for host, settings in hosts.items()]
    return groups


def _refinement(pairs: Sequence[int], kind: str) -> list[Group]:
    groups: list[Group] = [{"matmul": {"step": "matmul"}}]
    for count in pairs:
        ours = _ours(count)
        plain = {**ours, "waste": list(REFINEMENT_WASTE), "part": PLAIN_PART.get(kind)}
        groups.append({f"refinement {count} ours": ours})
        groups.append({f"refinement {count} in parts": {**ours, "max_pairs": SAVING_PAIRS}})
        groups.append({f"refinement {count} plain": plain})
    return groups


def _ladder(step: str) -> Group:
    waste, count = LADDERS[step]
    return {
        f"{step} without {i}": {"step": step, "pairs": count, "waste": list(waste)[i:]} for i in range(len(waste) + 1)
    }


def _ablation(count: int) -> Group:
    group = {f"ablation {count} nothing": _ours(count)}
    return group | {f"ablation {count} {path}": {**_ours(count), "without": path} for path in FAST_PATHS}


def _modes(count: int) -> Group:
    return {f"modes {count} {mode}": {**_ours(count), **added} for mode, (_, added) in MODES.items()}


def _prompts(has_plain: bool) -> list[Group]:
    ours = {"step": "prompts", "pairs": PROMPT_BATCH, "waste": None}
    steps = {"prompts ours": ours, "walk": {**ours, "step": "walk"}}
    if not has_plain:
        steps["prompts without 0"] = {**ours, "waste": list(PROMPT_WASTE)}
    return [{name: spec} for name, spec in steps.items()]


def _host(host: str, settings: Mapping[str, Any]) -> Group:
    common = {"step": "host", "host": host, **settings}
    return {f"host {host} {stage}": {**common, "stage": stage} for stage in stages_of(host)}


def _ours(count: int) -> dict[str, Any]:
    return {"step": "refinement", "pairs": count, "waste": None}
