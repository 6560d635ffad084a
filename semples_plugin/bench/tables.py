"""The tables of `semples bench`, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from semples_plugin.bench.plain import PROMPT_WASTE, REFINEMENT_WASTE

Row = dict[str, float | None]
"""Median "seconds", peak "memory" in bytes and "flops" of a step; empty where it doesn't fit into the memory."""

SAVING_PAIRS = 6  # pairs of the refinement steps from which savings are taken away, and of a part
PLAIN_PART = {"cpu": 24}  # pairs of a plain step at once: 96 of them would need some 35 GB
PROMPT_PAIRS, PROMPT_EPOCHS, PROMPT_BATCH = 15_000, 60, 128  # VOC's train_aug, and the release's batches
LADDERS: dict[str, tuple[Mapping[str, str], int]] = {
    "refinement": (REFINEMENT_WASTE, SAVING_PAIRS),
    "prompts": (PROMPT_WASTE, PROMPT_BATCH),
}
"""Steps whose waste is removed piece by piece: names and descriptions of the waste, and the number of pairs."""


def format_tables(results: dict[str, Any]) -> str:
    """The refinement step by pairs, what each saving saves, and prompt learning, in Markdown.

    Args:
        results: as `run_bench` returns them.
    """
    measured, settings = results["measured"], results["settings"]
    peak = measured["matmul"].get("peak")
    plain_part = PLAIN_PART.get(torch.device(settings["device"]).type)
    lines = [
        f"{settings['clip']} in {settings['precision']}, K = {settings['classes']}, on {results['machine']}; matrix "
        f"products reach {_number(peak, 1e12)} TFLOP/s",
        "",
        *_refinement_table(measured, settings["pairs"], peak, plain_part),
    ]
    for step in LADDERS:
        lines += ["", *_savings_table(measured, step)]
    lines += ["", *_prompt_table(measured)]
    return "\n".join(lines)


def _refinement_table(
    measured: dict[str, Row], pairs: Iterable[int], peak: float | None, plain_part: int | None
) -> list[str]:
    """Our step, the plain one and ours in parts, a line for each number of pairs."""
    lines = [
        "| refinement step, pairs | ours [s] | plain [s] | plain / ours | memory, ours [GB] | plain [GB] | "
        "ours / plain | in parts [s] | [GB] | ours: TFLOP | of the matmul peak |",
        _rule(11),
    ]
    for count in pairs:
        ours = measured[f"refinement {count} ours"]
        plain = measured[f"refinement {count} plain"]
        in_parts = measured[f"refinement {count} in parts"]
        plain_memory = _number(plain.get("memory"), 1e9)
        memory_ratio = _ratio(ours.get("memory"), plain.get("memory"))
        if plain_part is not None and count > plain_part:  # memory of a part can't be compared
            plain_memory, memory_ratio = f"in parts of {plain_part}", "-"
        cells = [
            str(count),
            _number(ours.get("seconds")),
            _number(plain.get("seconds")),
            _ratio(plain.get("seconds"), ours.get("seconds")),
            _number(ours.get("memory"), 1e9),
            plain_memory,
            memory_ratio,
            _number(in_parts.get("seconds")),
            _number(in_parts.get("memory"), 1e9),
            _number(ours.get("flops"), 1e12),
            _share_of_peak(ours, peak),
        ]
        lines.append(_line(cells))
    return lines


def _savings_table(measured: dict[str, Row], step: str) -> list[str]:
    """Time and memory of a step without the first i pieces of its waste, and what the i-th saves."""
    waste, count = LADDERS[step]
    before = measured[f"{step} without 0"]
    lines = [
        f"| {step}, {count} pairs: without | [s] | time saved | memory [GB] | saved |",
        _rule(5),
        f"| nothing | {_number(before.get('seconds'))} | | {_number(before.get('memory'), 1e9)} | |",
    ]
    for i, description in enumerate(waste.values(), 1):
        after = measured[f"{step} without {i}"]
        cells = [
            description,
            _number(after.get("seconds")),
            _saving(before, after, "seconds"),
            _number(after.get("memory"), 1e9),
            _saving(before, after, "memory"),
        ]
        lines.append(_line(cells))
        before = after
    return lines


def _prompt_table(measured: dict[str, Row]) -> list[str]:
    """Stage (b) as a whole: one walk and steps over kept features, beside encoding everything in every epoch."""
    lines = [
        f"| prompts of {PROMPT_PAIRS} pairs, {PROMPT_EPOCHS} epochs | ours | plain | plain / ours |",
        _rule(4),
    ]
    steps = math.ceil(PROMPT_PAIRS / PROMPT_BATCH)
    for field, unit, title in (("seconds", 60, "minutes"), ("flops", 1e15, "PFLOP")):
        walk = measured["walk"].get(field)
        ours = measured["prompts ours"].get(field)
        plain = measured["prompts without 0"].get(field)
        if walk is None or ours is None or plain is None:
            lines.append(_line([title, "-", "-", "-"]))
            continue
        our_total = steps * walk + PROMPT_EPOCHS * steps * ours
        plain_total = PROMPT_EPOCHS * steps * plain
        ratio = f"{plain_total / our_total:.1f}"
        lines.append(_line([title, _number(our_total, unit), _number(plain_total, unit), ratio]))
    return lines


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _number(value: float | None, unit: float = 1.0) -> str:
    return "-" if value is None else f"{value / unit:.3g}"


def _ratio(a: float | None, b: float | None) -> str:
    return "-" if not a or not b else f"{a / b:.2g}"


def _saving(before: Row, after: Row, field: str) -> str:
    old, new = before.get(field), after.get(field)
    return "-" if not old or new is None else f"{100 * (1 - new / old):.0f} %"


def _share_of_peak(row: Row, peak: float | None) -> str:
    """The step's operations per second, as a share of a matrix product's."""
    flops, seconds = row.get("flops"), row.get("seconds")
    if not peak or not seconds or flops is None:
        return "-"
    return f"{100 * flops / seconds / peak:.0f} %"
