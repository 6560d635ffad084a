"""The tables of `semples bench`, in Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from semples_plugin.bench.hosts import STAGES, pairs_of, stages_of
from semples_plugin.bench.tasks import (
    FAST_PATHS,
    LADDERS,
    PLAIN_PART,
    PROMPT_BATCH,
    PROMPT_EPOCHS,
    PROMPT_PAIRS,
    Modes,
    compiled_of,
    modes_of,
)
from semples_plugin.clip import fast_towers

Row = dict[str, Any]
"""Median "seconds" of a step and those of the "first", peak "memory" in bytes and "flops"; empty where it doesn't fit
into the memory."""

LEAST_SAVING = 0.03  # of time or memory; a fast path below both isn't worth its lines on a device


def format_tables(results: dict[str, Any]) -> str:
    """A table for each part that was measured, in Markdown; a dash where a figure is missing.

    Args:
        results: as `run_bench` returns them.
    """
    settings = results["settings"]
    measured = _Measured(results["measured"])
    kind = torch.device(settings["device"]).type
    parts = settings["parts"]
    peak = measured["matmul"].get("peak")
    reach = f"; matrix products reach {_number(peak, 1e12)} TFLOP/s" if peak else ""
    blocks = [
        [f"{settings['clip']} in {settings['precision']}, K = {settings['classes']}, on {results['machine']}{reach}"]
    ]
    if "refinement" in parts:
        blocks.append(_refinement_table(measured, settings["pairs"]["refinement"], peak, PLAIN_PART.get(kind)))
    if "savings" in parts:
        blocks += [_savings_table(measured, step) for step in LADDERS]
    blocks += [_ablation_table(measured, count, kind) for count in settings["pairs"].get("ablation", ())]
    for count in settings["pairs"].get("modes", ()):
        blocks.append(_modes_table(measured, "modes", modes_of(count), count))
        blocks.append(_modes_table(measured, "compiled", compiled_of(kind), count))
    if "prompts" in parts:
        blocks.append(_prompt_table(measured))
    if "host" in parts:
        blocks.append(_host_table(measured, settings["hosts"]))
    return "\n\n".join("\n".join(block) for block in blocks)


class _Measured(dict[str, Row]):
    """Rows by name, empty ones for what wasn't measured."""

    def __missing__(self, name: str) -> Row:
        return {}


def _refinement_table(
    measured: _Measured, pairs: Iterable[int], peak: float | None, plain_part: int | None
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


def _savings_table(measured: _Measured, step: str) -> list[str]:
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


def _ablation_table(measured: _Measured, count: int, kind: str) -> list[str]:
    """The library's step with each fast path taken away: what the path saves."""
    usual = measured[f"ablation {count} nothing"]
    lines = [f"| (c), {count} pairs: with | [s] | the path saves | memory [GB] | it saves | |", _rule(6)]
    lines.append(_line(["all paths", _number(usual.get("seconds")), "", _number(usual.get("memory"), 1e9), "", ""]))
    for path, description in FAST_PATHS.items():
        row = measured[f"ablation {count} {path}"]
        if row.get("absent") and fast_towers.uses(path, torch.device(kind)):  # this CLIP has no such thing
            continue
        cells = [
            description,
            _number(row.get("seconds")),
            _saving(row, usual, "seconds"),
            _number(row.get("memory"), 1e9),
            _saving(row, usual, "memory"),
            verdict(path, row, usual, kind),
        ]
        lines.append(_line(cells))
    return lines


def verdict(path: str, without: Row, usual: Row, kind: str) -> str:
    """What is to be said of a fast path on a kind of device, nothing where it is used and worth it."""
    if not fast_towers.uses(path, torch.device(kind)):
        return "not used here"
    return "" if is_worth_it(without, usual) else f"below {100 * LEAST_SAVING:.0f} %: not to be used here"


def is_worth_it(without: Row, usual: Row) -> bool:
    """Whether a fast path saves at least `LEAST_SAVING` of a step's time or memory, or wasn't measured."""
    for field in ("seconds", "memory"):
        old, new = without.get(field), usual.get(field)
        if not old or new is None or 1 - new / old >= LEAST_SAVING:
            return True
    return False


def _modes_table(measured: _Measured, part: str, modes: Modes, count: int) -> list[str]:
    """Ways to call the library's step, beside the first of them."""
    usual = measured[f"{part} {count} {next(iter(modes))}"]
    lines = [f"| (c), {count} pairs | [s] | of the first | memory [GB] | of the first | first step [s] |", _rule(6)]
    for mode, (description, _) in modes.items():
        row = measured[f"{part} {count} {mode}"]
        said = f"{description}: {_cell(row['failed'])}" if "failed" in row else description
        lines.append(_line([said, *_beside(row, usual), _number(row.get("first"))]))
    return lines


def _host_table(measured: _Measured, hosts: Mapping[str, dict[str, Any]]) -> list[str]:
    """Each host's step, its own and with SemPLeS; memory is what a step adds to weights and optimizer."""
    lines = ["| host, step | [s] | of its own | memory [GB] | of its own |", _rule(5)]
    for host, settings in hosts.items():
        size = f"{settings['batch']} images of {settings['size']}, {pairs_of(settings)} pairs"
        own = measured[f"host {host} own"]
        for stage in stages_of(host):
            cells = [
                f"{host}, {STAGES[stage]}" + (f": {size}" if stage == "own" else ""),
                *_beside(measured[f"host {host} {stage}"], own),
            ]
            if stage == "own":
                cells[2] = cells[4] = ""
            lines.append(_line(cells))
    return lines


def _beside(row: Row, other: Row) -> list[str]:
    """Seconds and memory of a row, each with its ratio to another's."""
    cells = []
    for field, unit in (("seconds", 1.0), ("memory", 1e9)):
        cells += [_number(row.get(field), unit), _ratio(row.get(field), other.get(field), digits=3)]
    return cells


def _prompt_table(measured: _Measured) -> list[str]:
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


def _cell(text: str) -> str:
    """Any text as a cell's."""
    return text.replace("|", "/")


def _rule(columns: int) -> str:
    return "|" + "---|" * columns


def _number(value: float | None, unit: float = 1.0) -> str:
    return "-" if value is None else f"{value / unit:.3g}"


def _ratio(a: float | None, b: float | None, digits: int = 2) -> str:
    return "-" if not a or not b else f"{a / b:.{digits}g}"


def _saving(before: Row, after: Row, field: str) -> str:
    old, new = before.get(field), after.get(field)
    return "-" if not old or new is None else f"{100 * (1 - new / old):.0f} %"


def _share_of_peak(row: Row, peak: float | None) -> str:
    """The step's operations per second, as a share of a matrix product's."""
    flops, seconds = row.get("flops"), row.get("seconds")
    if not peak or not seconds or flops is None:
        return "-"
    return f"{100 * flops / seconds / peak:.0f} %"
