"""What `semples bench` measures: its parts, and the steps of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from semples_plugin.bench.hosts import stages_of
from semples_plugin.bench.plain import PROMPT_WASTE, REFINEMENT_WASTE

PARTS = {
    "refinement": "the step of (c) by the number of pairs, beside a plain one, and in parts",
    "savings": "what each saving saves of a plain step, one taken away after the other",
    "ablation": "the library's own step with each of CLIP's fast paths taken away in turn",
    "modes": "the library's own step as a caller may set it: without checks of values, in parts, compiled",
    "prompts": "(b) for VOC, from the rates of its steps",
    "host": "a host's own training step, and the same with (a) and with (c)",
}
DEFAULT_PARTS = tuple(part for part in PARTS if part != "host")

SAVING_PAIRS = 6  # pairs of the refinement steps from which savings are taken away, and of a part
_SIDE_BY_SIDE = {"cpu": (SAVING_PAIRS,), "cuda": (SAVING_PAIRS, 96)}
PAIRS: dict[str, dict[str, tuple[int, ...]]] = {
    "refinement": {"cpu": (1, 6, 16, 96), "cuda": (1, 4, 6, 16, 64, 96, 256)},
    "ablation": _SIDE_BY_SIDE,
    "modes": _SIDE_BY_SIDE,
}
"""Numbers of pairs of the parts that go by them, by the kind of device."""
PLAIN_PART = {"cpu": 24}  # pairs of a plain step at once: 96 of them would need some 35 GB
PROMPT_PAIRS, PROMPT_EPOCHS, PROMPT_BATCH = 15_000, 60, 128  # VOC's train_aug, and the release's batches
LADDERS: dict[str, tuple[Mapping[str, str], int]] = {
    "refinement": (REFINEMENT_WASTE, SAVING_PAIRS),
    "prompts": (PROMPT_WASTE, PROMPT_BATCH),
}
"""Steps whose waste is removed piece by piece: names and descriptions of the waste, and the number of pairs."""
Modes = dict[str, tuple[str, dict[str, Any]]]
"""Ways to call the library's own step: what a table calls them, and what they add to a spec. The first is the usual."""
MODES: Modes = {
    "as it is": ("as it is, all at once", {}),
    "checked": ("values checked in every step, as on a CPU", {"checks": True}),
    "unchecked": ("values never checked", {"checks": False}),
    **{f"parts of {size}": (f"`max_pairs={size}`", {"max_pairs": size}) for size in (2, 4, 8, 16)},
    "auto": ('`max_pairs="auto"`', {"max_pairs": "auto"}),
}
COMPILED: Modes = {
    "eager": ("as it is", {}),
    "compiled": ("`regularizer.compile()`", {"compile": {}}),
    "graphs": ('`compile(mode="reduce-overhead")`', {"compile": {"mode": "reduce-overhead"}}),
}
"""Those that are compiled, in a group of their own: a machine that can't has the others' figures all the same."""

FAST_PATHS = {
    "last block": REFINEMENT_WASTE["last block"],
    "attention": REFINEMENT_WASTE["attention"],
    "patches": REFINEMENT_WASTE["patches"],
    "activations": REFINEMENT_WASTE["activations"],
    "batch norms": "batch norms of a timm tower beside its convolutions",
}
"""What is computed without each of `fast_towers.PATHS`."""

PROGRESS = "semples bench measured "
"""Begins a line of the worker's on its progress; a number of rows follows."""
Advance = Callable[[float], object]
"""Is told what has been measured since it was told before, in rows."""

Group = dict[str, dict[str, Any]]
"""Specs of steps that take turns in one process, by the names of their rows, as `steps.prepare` reads them."""


def pairs_of_parts(parts: Sequence[str], pairs: Sequence[int] | None, kind: str) -> dict[str, list[int]]:
    """The numbers of pairs of those parts that go by them: `pairs`, or the usual ones of a kind of device."""
    return {part: list(pairs or usual.get(kind, usual["cpu"])) for part, usual in PAIRS.items() if part in parts}


def groups_of(
    parts: Sequence[str], pairs: Mapping[str, Sequence[int]], kind: str, hosts: Mapping[str, Mapping[str, Any]]
) -> list[Group]:
    """The groups that the parts need, with what each step adds to the common settings.

    Args:
        parts: of `PARTS`.
        pairs: what `pairs_of_parts` gives.
        kind: of the device, "cpu" or "cuda".
        hosts: what `host_settings` gives, by name; for the part "host".
    """
    groups: list[Group] = []
    if "refinement" in parts:
        groups += _refinement(pairs["refinement"], kind)
    if "savings" in parts:
        groups += [{name: spec} for step in LADDERS for name, spec in _ladder(step).items()]
    if "ablation" in parts:
        groups += [_ablation(count) for count in pairs["ablation"]]
    if "modes" in parts:
        groups += [_modes("modes", modes_of(count), count) for count in pairs["modes"]]
        groups += [_modes("compiled", compiled_of(kind), count) for count in pairs["modes"]]
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


def modes_of(count: int) -> Modes:
    """`MODES` for `count` pairs: without parts that would hold them all."""
    sizes = {mode: added.get("max_pairs") for mode, (_, added) in MODES.items()}
    return {mode: MODES[mode] for mode, size in sizes.items() if not isinstance(size, int) or size < count}


def compiled_of(kind: str) -> Modes:
    """`COMPILED` for a kind of device: CUDA graphs are a GPU's."""
    return {mode: COMPILED[mode] for mode in COMPILED if mode != "graphs" or kind == "cuda"}


def _modes(part: str, modes: Modes, count: int) -> Group:
    return {f"{part} {count} {mode}": {**_ours(count), **added} for mode, (_, added) in modes.items()}


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
