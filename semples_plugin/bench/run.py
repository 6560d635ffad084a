"""`semples bench`: measures each step in a process of its own, and writes the figures and tables of them."""

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

from semples_plugin.bench.plain import REFINEMENT_WASTE
from semples_plugin.bench.tables import LADDERS, PLAIN_PART, PROMPT_BATCH, SAVING_PAIRS, Row, format_tables
from semples_plugin.utils.atomic_files import replacing, set_aside
from semples_plugin.utils.checks import check_device, check_integers
from semples_plugin.version import __version__

PAIRS = {"cpu": (1, 6, 16, 96), "cuda": (1, 4, 6, 16, 64, 96, 256)}


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
    """Measures, prints tables in Markdown and writes the figures as JSON.

    Args:
        out: the JSON file.
        clip: open_clip name of a native CLIP; its weights are random.
        device, precision: where, and in what CLIP computes.
        pairs: numbers of pairs P of a refinement step; by default more of them on a GPU.
        classes, length: K and L of the prompts.
        seconds: for the repeats of each measurement; each is made once at least, after a warm-up.
        progress: show a progress bar.

    Returns:
        What the file holds: "machine", "settings" and "measured", a row of figures for each measurement.

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
    common = {
        "clip": clip,
        "device": device,
        "precision": precision,
        "classes": classes,
        "length": length,
        "max_pairs": None,
        "part": None,
        "seconds": seconds,
    }
    measured: dict[str, Row] = {}
    for name, task in tqdm(_tasks(pairs, kind).items(), "semples bench", disable=not progress):
        measured[name] = _in_a_process({**common, **task})
    results = {
        "machine": describe_machine(device),
        "settings": {**common, "pairs": list(pairs)},
        "measured": measured,
    }
    print(format_tables(results))
    if set_aside(out.resolve()):
        print(f"\nEarlier figures: {out}.before")
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"\nFigures: {out}")
    return results


def _tasks(pairs: Sequence[int], kind: str) -> dict[str, dict[str, Any]]:
    """The measurements by name, each with what it adds to the common settings of `worker.prepare`."""
    tasks: dict[str, dict[str, Any]] = {"matmul": {"step": "matmul"}}
    for count in pairs:
        ours = {"step": "refinement", "pairs": count, "waste": None}
        plain = {**ours, "waste": list(REFINEMENT_WASTE), "part": PLAIN_PART.get(kind)}
        tasks[f"refinement {count} ours"] = ours
        tasks[f"refinement {count} in parts"] = {**ours, "max_pairs": SAVING_PAIRS}
        tasks[f"refinement {count} plain"] = plain
    for step, (waste, count) in LADDERS.items():
        for i in range(len(waste) + 1):
            tasks[f"{step} without {i}"] = {"step": step, "pairs": count, "waste": list(waste)[i:]}
    tasks["prompts ours"] = {"step": "prompts", "pairs": PROMPT_BATCH, "waste": None}
    tasks["walk"] = {"step": "walk", "pairs": PROMPT_BATCH, "waste": None}
    return tasks


def describe_machine(device: str) -> str:
    """Processor or GPU, and versions."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _processor()
    return f"{name}, torch {torch.__version__}, semples-plugin {__version__}"


def _in_a_process(task: dict[str, Any]) -> Row:
    """What `worker` measures; an empty row where the memory doesn't suffice."""
    command = [sys.executable, "-W", "ignore", "-m", "semples_plugin.bench.worker", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace")
    if done.returncode == 0:
        row: Row = json.loads(done.stdout.splitlines()[-1])
        return row
    if done.returncode < 0 or "out of memory" in done.stderr or "can't allocate memory" in done.stderr:
        return {}  # a plain step that doesn't fit is a result, too: its cells stay empty
    lines = done.stderr.strip().splitlines() or ["no message"]
    raise ValueError(f"{task['clip']} can't be measured: {lines[-1]}")


def _processor() -> str:
    """The processor's name, where the system tells it, and torch's threads."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or "CPU"
    return f"{name} ({torch.get_num_threads()} threads)"
