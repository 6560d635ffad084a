"""`semples bench`: measures each step in a process of its own, and writes the figures and tables of them."""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from semples_plugin.bench.host_networks import STRIDE
from semples_plugin.bench.hosts import HOSTS, PAIRS_PER_IMAGE, settings_of
from semples_plugin.bench.tables import Row, format_tables
from semples_plugin.bench.tasks import DEFAULT_PARTS, PAIRS, PARTS, PROGRESS, Advance, Group, groups_of, pairs_of_parts
from semples_plugin.utils.atomic_files import replacing, set_aside
from semples_plugin.utils.checks import check_device, check_integers, check_number
from semples_plugin.version import __version__

_BAR = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"  # it moves by parts of a row


def run_bench(
    out: str | Path,
    *,
    clip: str = "ViT-B-32-quickgelu",
    device: str = "cpu",
    precision: str = "fp32",
    only: Sequence[str] | None = None,
    pairs: Sequence[int] | None = None,
    hosts: Sequence[str] | None = None,
    batch: int | None = None,
    size: int | None = None,
    pairs_per_image: float = PAIRS_PER_IMAGE,
    classes: int = 20,
    length: int = 30,
    seconds: float = 30.0,
    progress: bool = True,
) -> dict[str, Any]:
    """Measures, writes the figures as JSON after each measurement, and prints tables in Markdown.

    Args:
        out: the JSON file.
        clip: open_clip name of a native CLIP; its weights are random.
        device, precision: where, and in what CLIP computes.
        only: parts of `tasks.PARTS`; by default all but the hosts, or the hosts alone where these are given.
        pairs: numbers of pairs P of a step in the parts refinement, ablation and modes; by default `tasks.PAIRS`.
        hosts: of `hosts.HOSTS`; by default all of them.
        batch, size: images of a host's step and the side of its crop; by default the host's own, with smaller
            batches on a CPU.
        pairs_per_image: present classes of an image of the host's, in the mean; each has one at least.
        classes, length: K and L of the prompts.
        seconds: for the repeats of each measurement; each is made once at least, after a warm-up.
        progress: show a progress bar.

    Returns:
        What the file holds: "machine", "settings" and "measured", a row of figures for each measurement.

    Raises:
        OSError: where the file can't be written; before anything is measured, if that can be seen.
        ValueError: where a number is out of range, there is no such part, host or device, no part goes by `pairs`,
            or the model can't be measured.
    """
    kind = check_device(device).type
    parts = _chosen("only", only or (("host",) if hosts else DEFAULT_PARTS), PARTS)
    chosen = _chosen("hosts", hosts or (HOSTS if "host" in parts else ()), HOSTS)
    parts += ("host",) if chosen and "host" not in parts else ()
    _check_pairs(pairs, parts)
    for name, value in (("classes", classes), ("length", length)):
        check_integers(name, (value,), least=1)
    if not 0 <= seconds < math.inf:
        raise ValueError(f"seconds: expected a number from 0 up, got {seconds}")
    _check_host_options(batch, size, pairs_per_image, classes)
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
    of_parts = pairs_of_parts(parts, pairs, kind)
    of_hosts = {host: settings_of(host, kind, batch, size, pairs_per_image) for host in chosen}
    results: dict[str, Any] = {
        "machine": describe_machine(device),
        "settings": {**common, "parts": list(parts), "pairs": of_parts, "hosts": of_hosts},
        "measured": {},
    }
    groups = [
        {name: {**common, **spec} for name, spec in group.items()}
        for group in groups_of(parts, of_parts, kind, of_hosts)
    ]
    if set_aside(out.resolve()):
        print(f"Earlier figures: {out}.before")
    _measure_into(results, groups, kind, out, progress)
    print(format_tables(results))
    print(f"\nFigures: {out}")
    return results


def _measure_into(results: dict[str, Any], groups: Sequence[Group], kind: str, out: Path, progress: bool) -> None:
    """Measures all groups, and writes the results after each, as an interrupt may come in the midst of a long one."""
    with tqdm(desc="semples bench", total=sum(map(len, groups)), bar_format=_BAR, disable=not progress) as bar:
        for rows in _measure(groups, kind, bar.update):
            results["measured"].update(rows)
            bar.update(len(results["measured"]) - bar.n)
            with replacing(out) as temporary:
                temporary.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _chosen(name: str, chosen: Iterable[str], known: Mapping[str, Any]) -> tuple[str, ...]:
    """What was chosen, in the order of what is known; a ValueError for anything else."""
    unknown = [each for each in chosen if each not in known]
    if unknown:
        raise ValueError(f"{name}: expected some of {', '.join(known)}, got {unknown[0]!r:.80}")
    return tuple(each for each in known if each in chosen)


def _check_pairs(pairs: Sequence[int] | None, parts: Sequence[str]) -> None:
    if pairs is None:
        return
    check_integers("pairs", pairs, least=1)
    if not any(part in PAIRS for part in parts):
        raise ValueError(
            f"pairs: expected one of the parts that go by them, {', '.join(PAIRS)}; got {', '.join(parts)} alone, "
            "which have numbers of their own: leave pairs out"
        )


def _check_host_options(batch: int | None, size: int | None, pairs_per_image: float, classes: int) -> None:
    check_integers("batch", (1 if batch is None else batch,), least=1)
    check_integers("size", (STRIDE if size is None else size,), least=STRIDE)
    if size is not None and size % STRIDE:
        raise ValueError(f"size: expected a multiple of {STRIDE}, got {size}")
    check_number("pairs_per_image", pairs_per_image, 1, classes)


def describe_machine(device: str) -> str:
    """Processor or GPU, and versions."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _processor()
    return f"{name}, torch {torch.__version__}, semples-plugin {__version__}"


def _measure(groups: Sequence[Group], kind: str, advance: Advance) -> Iterator[dict[str, Row]]:
    """The rows of each group: on a CPU from a process of its own, so that memory is its own.

    A GPU's memory is counted by torch, so that one process does for all, which saves its start. `advance` is told
    what of the rows is measured meanwhile.
    """
    size = 1 if kind == "cpu" else len(groups)
    waiting = list(groups)
    while waiting:
        part = waiting[: max(size, 1)]
        for rows in _in_a_process(part, advance):
            yield rows
            waiting.pop(0)


def _in_a_process(groups: Sequence[Group], advance: Advance) -> Iterator[dict[str, Row]]:
    """What `worker` measures, as it comes; empty rows, and the end, where the memory doesn't suffice."""
    command = [sys.executable, "-W", "ignore", "-m", "semples_plugin.bench.worker", json.dumps(groups)]
    count = 0
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8") as process,
    ):
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if line.startswith(PROGRESS):
                    advance(float(line.removeprefix(PROGRESS)))
                elif line.startswith("{"):  # others are what libraries print
                    count += 1
                    yield json.loads(line)
            status = process.wait()
        except BaseException:  # Ctrl-C reaches both; an interrupt of this process alone must end the other, too
            process.kill()
            raise
        errors.seek(0)
        said = errors.read()
    if status == 0:
        return
    if status < 0 or "out of memory" in said or "can't allocate memory" in said:
        yield {name: {} for name in groups[count]}  # a step that doesn't fit is a result, too: its cells stay empty
        return
    (clip,) = {spec["clip"] for spec in groups[count].values()}
    lines = said.strip().splitlines() or ["no message"]
    raise ValueError(f"{clip} can't be measured: {lines[-1]}")


def _processor() -> str:
    """The processor's name, where the system tells it, and torch's threads."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or "CPU"
    return f"{name} ({torch.get_num_threads()} threads)"
