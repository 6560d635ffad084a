"""The tables of `semples bench`."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from semples_plugin.bench.plain import PROMPT_WASTE, REFINEMENT_WASTE
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.checks import check_device, check_integers
from semples_plugin.version import __version__

Row = dict[str, float | None]
PAIRS = {"cpu": (1, 6, 16, 96), "cuda": (1, 4, 6, 16, 64, 96, 256)}
LADDER = 6  # pairs at which savings are taken away one by one, and of a part
PLAIN_PART = {"cpu": 24}  # pairs of a plain step at once: 96 of them would need some 35 GB
PROMPT_PAIRS, PROMPT_EPOCHS, PROMPT_BATCH = 15_000, 60, 128  # VOC's train_aug, and the release's batches


def run_bench(
    out: str | Path,
    *,
    clip: str = "ViT-B-32-quickgelu",
    device: str = "cpu",
    precision: str = "fp32",
    pairs: Sequence[int] | None = None,
    classes: int = 20,
    length: int = 30,
    seconds: float = 30.0,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures, prints tables in Markdown and writes them as JSON.

    Args:
        out: the JSON file.
        clip: open_clip name of a native CLIP; its weights are random.
        device, precision: where, and in what CLIP computes.
        pairs: numbers of pairs P of a refinement step; more of them where there is a GPU.
        classes, length: K and L of the prompts.
        seconds: for the repeats of each measurement; each is made once at least, after a warm-up.
        progress: show a progress bar.

    Returns:
        What the file holds.

    Raises:
        OSError: where the file can't be written; before anything is measured, if that can be seen.
        ValueError: where a number is out of range, there is no such device, or the model can't be measured.
    """
    kind = check_device(device).type
    pairs = tuple(pairs or PAIRS.get(kind, PAIRS["cpu"]))
    for name, values in (("pairs", pairs), ("classes", (classes,)), ("length", (length,))):
        check_integers(name, values, least=1)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds: expected a number from 0 up, got {seconds}")
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    if out.is_dir() or not os.access(out.parent, os.W_OK):
        raise PermissionError(f"{out} is a folder, or in one that can't be written into: expected a file to write")
    common = {"clip": clip, "device": device, "precision": precision, "classes": classes, "length": length,
              "max_pairs": None, "part": None, "seconds": seconds}  # fmt: skip
    tasks: dict[str, dict[str, Any]] = {"matmul": {"step": "matmul"}}
    for count in pairs:
        refinement = {"step": "refinement", "pairs": count}
        tasks[f"refinement {count} ours"] = {**refinement, "waste": None}
        tasks[f"refinement {count} in parts"] = {**refinement, "waste": None, "max_pairs": LADDER}
        tasks[f"refinement {count} plain"] = {
            **refinement,
            "waste": list(REFINEMENT_WASTE),
            "part": PLAIN_PART.get(kind),
        }
    for step, waste, count in (("refinement", REFINEMENT_WASTE, LADDER), ("prompts", PROMPT_WASTE, PROMPT_BATCH)):
        for i in range(len(waste) + 1):
            left = list(waste)[i:]
            tasks[f"{step} without {i}"] = {"step": step, "pairs": count, "waste": left}
    tasks["prompts ours"] = {"step": "prompts", "pairs": PROMPT_BATCH, "waste": None}
    tasks["walk"] = {"step": "walk", "pairs": PROMPT_BATCH, "waste": None}
    found: dict[str, Row] = {}
    for name, task in tqdm(tasks.items(), "semples bench", disable=not progress):
        found[name] = _in_a_process({**common, **task})
    results = {
        "machine": describe_machine(device),
        "settings": {**common, "pairs": list(pairs)},
        "measured": found,
    }
    print(format_tables(results))
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")
    print(f"\nFigures: {out}")
    return results


def describe_machine(device: str) -> str:
    """Processor or GPU, and versions."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _processor()
    return f"{name}, torch {torch.__version__}, semples-plugin {__version__}"


def format_tables(results: dict[str, Any]) -> str:
    """The refinement step by pairs, what each saving saves, and prompt learning, in Markdown."""
    found, settings = results["measured"], results["settings"]
    peak = found["matmul"].get("peak")
    plain_part = PLAIN_PART.get(torch.device(settings["device"]).type)
    lines = [
        f"{settings['clip']} in {settings['precision']}, K = {settings['classes']}, on {results['machine']}; matrix "
        f"products reach {_number(peak, 1e12)} TFLOP/s",
        "",
        "| refinement step, pairs | ours [s] | plain [s] | plain / ours | memory, ours [GB] | plain [GB] | "
        "ours / plain | in parts [s] | [GB] | ours: TFLOP | of the matmul peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for count in settings["pairs"]:
        ours, plain, parts = (found[f"refinement {count} {which}"] for which in ("ours", "plain", "in parts"))
        share = ours["flops"] / ours["seconds"] / peak if peak and ours.get("seconds") else None
        whole = plain_part is None or count <= plain_part
        cells = [
            str(count), _number(ours.get("seconds")), _number(plain.get("seconds")),
            _ratio(plain.get("seconds"), ours.get("seconds")), _number(ours.get("memory"), 1e9),
            _number(plain.get("memory"), 1e9) if whole else f"in parts of {plain_part}",
            _ratio(ours.get("memory"), plain.get("memory")) if whole else "-",
            _number(parts.get("seconds")), _number(parts.get("memory"), 1e9), _number(ours.get("flops"), 1e12),
            "-" if share is None else f"{100 * share:.0f} %",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    for step, waste, count in (("refinement", REFINEMENT_WASTE, LADDER), ("prompts", PROMPT_WASTE, PROMPT_BATCH)):
        lines += [
            "",
            f"| {step}, {count} pairs: without | [s] | time saved | memory [GB] | saved |",
            "|---|---|---|---|---|",
        ]
        before = found[f"{step} without 0"]
        lines.append(f"| nothing | {_number(before.get('seconds'))} | | {_number(before.get('memory'), 1e9)} | |")
        for i, text in enumerate(waste.values(), 1):
            now = found[f"{step} without {i}"]
            cells = [text, _number(now.get("seconds")), _saved(before, now, "seconds"),
                     _number(now.get("memory"), 1e9), _saved(before, now, "memory")]  # fmt: skip
            lines.append(f"| {' | '.join(cells)} |")
            before = now
    lines += ["", *_prompt_learning(found)]
    return "\n".join(lines)


def _prompt_learning(found: dict[str, Row]) -> list[str]:
    """Stage (b) as a whole: one walk and steps over kept features, beside encoding everything in every epoch."""
    walk, ours, plain = found["walk"], found["prompts ours"], found["prompts without 0"]
    steps = -(-PROMPT_PAIRS // PROMPT_BATCH)
    lines = [
        f"| prompts of {PROMPT_PAIRS} pairs, {PROMPT_EPOCHS} epochs | ours | plain | plain / ours |",
        "|---|---|---|---|",
    ]
    for field, unit, title in (("seconds", 60, "minutes"), ("flops", 1e15, "PFLOP")):
        parts = [row.get(field) for row in (walk, ours, plain)]
        if None in parts:
            lines.append(f"| {title} | - | - | - |")
            continue
        once, step, naive = (float(part or 0) for part in parts)
        total, other = steps * once + PROMPT_EPOCHS * steps * step, PROMPT_EPOCHS * steps * naive
        lines.append(f"| {title} | {_number(total, unit)} | {_number(other, unit)} | {other / total:.1f} |")
    return lines


def _in_a_process(task: dict[str, Any]) -> Row:
    command = [sys.executable, "-W", "ignore", "-m", "semples_plugin.bench.worker", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        row: Row = json.loads(done.stdout.splitlines()[-1])
        return row
    if done.returncode < 0 or "out of memory" in done.stderr or "can't allocate memory" in done.stderr:
        return {}  # a plain step that doesn't fit is a result too: its cells stay empty
    raise ValueError(f"{task['clip']} can't be measured: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or 'CPU'} ({torch.get_num_threads()} threads)"


def _number(value: float | None, unit: float = 1.0) -> str:
    return "-" if value is None else f"{value / unit:.3g}"


def _ratio(a: float | None, b: float | None) -> str:
    return "-" if not a or not b else f"{a / b:.2g}"


def _saved(before: Row, now: Row, field: str) -> str:
    old, new = before.get(field), now.get(field)
    return "-" if not old or new is None else f"{100 * (1 - new / old):.0f} %"
