"""Everything that only a GPU can show, in ten minutes, as one JSON and one Markdown table: `make gpu`.

Runs from a checkout on a machine that has torch with CUDA and what requirements-gpu.txt names; needs no network.
A part that fails or runs over its time is a row that says so, and the others still run. Into the folder `--out`:

- gpu.json, all figures; gpu.md, the table
- trace.json, one step of (c), for Chrome's trace viewer or Perfetto
- NAME.log and NAME.json of each part

`--device cpu --quick` tries every part but the device, with the smallest of everything; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # where nothing is installed

try:
    import torch

    from semples_plugin.bench.hosts import HOSTS, STAGES, stages_of
    from semples_plugin.bench.run import describe_machine
    from semples_plugin.bench.tables import format_tables, verdict
    from semples_plugin.bench.tasks import (
        FAST_PATHS,
        PROMPT_BATCH,
        PROMPT_EPOCHS,
        PROMPT_PAIRS,
        Modes,
        compiled_of,
        modes_of,
    )
    from semples_plugin.utils.atomic_files import replacing
except ImportError as absent:
    sys.exit(
        f"{sys.executable} lacks what this needs: {absent}. Take a Python that has torch, `make gpu PYTHON=...`, and "
        "install requirements-gpu.txt, see docs/cost.md"
    )

TOTAL = 600  # seconds for everything
AIMS = {"host": 1.5, "peak": 0.40, "learning": 10.0}  # times a host's step; share of the matmul peak; minutes of (b)

Row = tuple[str, str, str]
"""What was measured, the figure, and what was aimed at."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and where.

    Attributes:
        out: the folder for all files.
        device, precision, clip: of the library's own steps; `clip` is open_clip's name.
        pairs: numbers of pairs of a step; the last but one is the one that is profiled and has an aim.
        seconds: for the repeats of each measurement.
        learning: pairs and epochs of (b), and how many of these are run.
        bench: further options of `semples bench`.
        patience: factor of the time that each part and the whole may take.
    """

    out: Path
    device: str = "cuda"
    precision: str = "bf16"
    clip: str = "ViT-B-32-quickgelu"
    pairs: tuple[int, ...] = (1, 6, 16, 96, 256)
    seconds: float = 1.0
    learning: tuple[int, int, int] = (PROMPT_PAIRS, PROMPT_EPOCHS, 20)
    bench: tuple[str, ...] = ()
    patience: float = 1.0

    @classmethod
    def quick(cls, out: Path, device: str) -> Settings:
        """The smallest of everything."""
        small = ("--batch", "2", "--size", "32", "--classes", "3", "--length", "4")
        return cls(out, device, "fp32", "ViT-S-32-alt", (2, 3), 0.0, (24, 4, 2), small, patience=5.0)

    @property
    def many(self) -> int:
        """The number of pairs with an aim: 96."""
        return self.pairs[-2]


@dataclass
class Outcome:
    """What came of a part: "done", "failed", "skipped" or "ran over"; rows of the table, and all figures."""

    status: str = "done"
    message: str = ""
    seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    figures: dict[str, Any] = field(default_factory=dict)


def run_tests(settings: Settings, outcome: Outcome, limit: float) -> None:
    """tests/test_gpu.py without what needs two GPUs."""
    _pytest(settings, outcome, limit, "tests", "not nccl")


def run_two_gpus(settings: Settings, outcome: Outcome, limit: float) -> None:
    """Two processes over nccl."""
    _pytest(settings, outcome, limit, "nccl", "nccl")


def run_refinement(settings: Settings, outcome: Outcome, limit: float) -> None:
    """The step of (c) by the number of pairs, beside a plain one."""
    with _bench(settings, outcome, "refinement", limit, "--pairs", *map(str, settings.pairs)) as measured:
        peak = measured.get("matmul", {}).get("peak")
        for count in settings.pairs:
            ours = measured.get(f"refinement {count} ours", {})
            plain = measured.get(f"refinement {count} plain", {})
            if not ours:
                continue
            cells = [f"{ours['seconds'] * 1e3:.3g} ms", f"{ours['memory'] / 1e9:.3g} GB"]
            if plain:
                cells.append(f"a plain step takes {plain['seconds'] / ours['seconds']:.1f} times as long")
            aim = ""
            if peak:
                cells.append(f"{100 * ours['flops'] / ours['seconds'] / peak:.0f} % of the matmul peak")
                aim = f"above {100 * AIMS['peak']:.0f} %" if count == settings.many else ""
            outcome.rows.append((f"step of (c), {count} pairs", ", ".join(cells), aim))


def run_ablation(settings: Settings, outcome: Outcome, limit: float) -> None:
    """Each fast path taken away in turn."""
    with _bench(settings, outcome, "ablation", limit) as measured:
        for count in _counts(measured, "ablation"):
            usual = measured.get(f"ablation {count} nothing", {})
            for path, description in FAST_PATHS.items():
                row = measured.get(f"ablation {count} {path}", {})
                if usual and row.get("seconds"):  # not for a path that this CLIP doesn't take
                    said = verdict(path, row, usual, torch.device(settings.device).type)
                    figure = f"{_saved(row, usual)} saved" + (f"; {said}" if said else "")
                    outcome.rows.append((f"instead of {description}, {count} pairs", figure, ""))


def run_modes(settings: Settings, outcome: Outcome, limit: float) -> None:
    """The library's step as a caller may set it."""
    with _bench(settings, outcome, "modes", limit) as measured:
        for count in _counts(measured, "modes"):
            _add_modes(outcome, measured, f"modes {count}", modes_of(count), count)
        for count in _counts(measured, "compiled"):
            compiled = compiled_of(torch.device(settings.device).type)
            _add_modes(outcome, measured, f"compiled {count}", compiled, count)


def run_savings(settings: Settings, outcome: Outcome, limit: float) -> None:
    """What each saving saves of a plain step, in a table of its own."""
    what = "what each saving saves"
    try:
        with _bench(settings, outcome, "savings", limit) as measured:
            if measured:  # of a part that ran over, the log holds no table
                with replacing(settings.out / "savings.md") as temporary:
                    temporary.write_text(format_tables(outcome.figures) + "\n", encoding="utf-8")
                outcome.rows.append((what, "in savings.md", ""))
    except RanOverError:
        if not outcome.rows:
            outcome.rows.append((what, "out of time, nothing measured yet", ""))
        raise


def run_hosts(settings: Settings, outcome: Outcome, limit: float) -> None:
    """Three hosts' own steps, without and with (a) and (c)."""
    with _bench(settings, outcome, "host", limit, "--host", *HOSTS) as measured:
        for host in HOSTS:
            own = measured.get(f"host {host} own")
            for stage in stages_of(host):
                row = measured.get(f"host {host} {stage}")
                if not row or not own:
                    continue
                figure = f"{row['seconds'] * 1e3:.3g} ms, {row['memory'] / 1e9:.3g} GB"
                aimed = host == "clims" and stage != "own"
                if stage != "own":
                    figure += f": {row['seconds'] / own['seconds']:.2f} times its own step"
                outcome.rows.append((f"{host}, {STAGES[stage]}", figure, f"at most {AIMS['host']}" if aimed else ""))


def run_profile(settings: Settings, outcome: Outcome, limit: float) -> None:
    """Where the time of one step of (c) goes."""
    spec = {"step": "profile", "pairs": settings.many, "waste": None, "trace": str(settings.out / "trace.json")}
    figures = _worker(settings, outcome, "profile", limit, spec)
    what = f"one step of (c), {settings.many} pairs"
    if figures["busy"] is not None:
        outcome.rows.append((f"{what}: the device computes", f"{100 * figures['busy']:.0f} % of the time", ""))
    for name, seconds, calls in figures["top"][:8]:
        outcome.rows.append((f"{what}: {name}", f"{seconds * 1e3:.3g} ms in {calls} calls", ""))


def run_learning(settings: Settings, outcome: Outcome, limit: float) -> None:
    """All of (b) for VOC."""
    pairs, epochs, run = settings.learning
    spec = {"step": "learning", "pairs": pairs, "epochs": run, "batch": PROMPT_BATCH}
    figures = _worker(settings, outcome, "learning", limit, spec)
    walk, epoch = figures["walk"], (figures["seconds"] - figures["walk"]) / run
    figure = f"{(walk + epochs * epoch) / 60:.2g} minutes: {walk:.2g} s encode {2 * pairs} views, an epoch takes "
    figure += f"{epoch:.2g} s ({run} were run)"
    outcome.rows.append(
        (f"all of (b), {pairs} pairs, {epochs} epochs", figure, f"below {AIMS['learning']:.0f} minutes")
    )


PARTS: dict[str, tuple[Callable[[Settings, Outcome, float], None], int]] = {
    "tests": (run_tests, 90),
    "nccl": (run_two_gpus, 40),
    "host": (run_hosts, 100),
    "refinement": (run_refinement, 90),
    "profile": (run_profile, 40),
    "ablation": (run_ablation, 55),
    "learning": (run_learning, 85),
    "savings": (run_savings, 60),
    "modes": (run_modes, 40),
}
"""Parts in the order in which they run, with seconds for each; a part may take what those before it left as well."""


class PartFailedError(Exception):
    """A part that gave no result, and why."""


class RanOverError(PartFailedError):
    """A part that took too long."""


def run_parts(settings: Settings, names: Iterable[str], total: float = TOTAL) -> dict[str, Outcome]:
    """Runs the parts one after the other, and writes gpu.json and gpu.md after each."""
    begun = time.monotonic()
    total *= settings.patience
    outcomes: dict[str, Outcome] = {}
    machine = describe_machine(settings.device)
    names = list(names)
    for number, name in enumerate(names, 1):
        run, budget = PARTS[name]
        reserved = sum(PARTS[later][1] for later in names[number:]) * settings.patience
        outcome = outcomes[name] = Outcome()
        start = time.monotonic()
        left = total - (start - begun)
        print(f"{name} ...", flush=True)
        try:
            if left < 1:
                raise RanOverError(f"no time was left of {total:g} s")
            run(settings, outcome, min(left, max(budget * settings.patience, left - reserved)))
        except RanOverError as error:
            outcome.status, outcome.message = "ran over", str(error)
        except Exception as error:  # whatever a part does, the others still run
            outcome.status, outcome.message = "failed", f"{type(error).__name__}: {error}"[:500]
            if isinstance(error, PartFailedError):
                outcome.message = str(error)[:500]
        outcome.seconds = time.monotonic() - start
        _write(settings, machine, outcomes, time.monotonic() - begun)
    return outcomes


def format_table(machine: str, settings: Settings, outcomes: dict[str, Outcome], seconds: float) -> str:
    """The Markdown table."""
    title = "`make gpu`" if settings.patience == 1 else "A try of `make gpu`, whose figures mean nothing,"
    lines = [
        f"{title} on {machine}; CLIP {settings.clip} in {settings.precision}; {seconds:.0f} s",
        "",
        "| part | what | figure | aim |",
        "|---|---|---|---|",
    ]
    for name, outcome in outcomes.items():
        if outcome.status != "done":
            message = " ".join(outcome.message.replace("|", "/").split())
            lines.append(f"| {name} | **{outcome.status}** | {message} | |")
        lines += [f"| {name} | {what} | {figure} | {aim} |" for what, figure, aim in outcome.rows]
    return "\n".join(lines) + "\n"


def _write(settings: Settings, machine: str, outcomes: dict[str, Outcome], seconds: float) -> None:
    table = format_table(machine, settings, outcomes, seconds)
    parts = {name: asdict(outcome) for name, outcome in outcomes.items()}
    results = {"machine": machine, "settings": asdict(settings), "seconds": seconds, "aims": AIMS, "parts": parts}
    for name, text in (("gpu.json", json.dumps(results, indent=2, default=str) + "\n"), ("gpu.md", table)):
        with replacing(settings.out / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _counts(measured: dict[str, Any], part: str) -> list[int]:
    """Numbers of pairs that a part was measured with."""
    return sorted({int(name.split()[1]) for name in measured if name.startswith(f"{part} ")})


def _add_modes(outcome: Outcome, measured: dict[str, Any], start: str, modes: Modes, count: int) -> None:
    """A row for each way to call the step but the first, beside that."""
    first, *others = modes
    usual = measured.get(f"{start} {first}", {})
    for mode in others:
        row = measured.get(f"{start} {mode}", {})
        figure = row.get("failed")
        if row.get("seconds") and usual.get("seconds"):
            figure = f"{row['seconds'] / usual['seconds']:.3g} times the usual step"
            if start.startswith("compiled"):
                figure += f"; the first step takes {row['first']:.3g} s"
        if figure:
            outcome.rows.append((f"step of (c), {count} pairs, {modes[mode][0]}", figure.replace("|", "/"), ""))


def _saved(without: dict[str, float], usual: dict[str, float]) -> str:
    return " and ".join(
        f"{100 * (1 - usual[name] / without[name]):.1f} % of the {what}"
        for name, what in (("seconds", "time"), ("memory", "memory"))
        if without.get(name) and usual.get(name) is not None
    )


def _pytest(settings: Settings, outcome: Outcome, limit: float, name: str, chosen: str) -> None:
    report = settings.out / f"{name}.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "tests/test_gpu.py", "-m", "gpu", "-k", chosen, f"--junitxml={report}"]
    status = _call([*command, "-p", "no:cacheprovider"], limit, settings.out / f"{name}.log")
    if not report.is_file():
        raise PartFailedError(f"pytest ended with {status}: {_last_line(settings.out / f'{name}.log')}")
    cases = list(ET.parse(report).iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [skip for case in cases for skip in case.findall("skipped")]
    passed = len(cases) - len(failed) - len(skipped)
    outcome.figures = {"passed": passed, "failed": failed, "skipped": len(skipped)}
    if cases and len(skipped) == len(cases):
        outcome.status, outcome.message = "skipped", skipped[0].get("message") or "no reason given"
        return
    figure = f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped"
    if failed or not cases:
        raise PartFailedError(f"{figure}: {', '.join(map(str, failed)) or f'no test was found, see {name}.log'}")
    outcome.rows.append(("tests/test_gpu.py", figure, "none fails"))


@contextlib.contextmanager
def _bench(settings: Settings, outcome: Outcome, part: str, limit: float, *options: str) -> Any:
    """`semples bench --only PART`; yields its rows, those also that it wrote before it failed or ran over."""
    out = settings.out / f"{part}.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, "-m", "semples_plugin", "bench", "--only", part, "--device", settings.device]
    command += ["--precision", settings.precision, "--clip", settings.clip, "--seconds", str(settings.seconds)]
    command += [*options, *settings.bench, "--out", str(out), "--quiet"]
    error: PartFailedError | None = None
    try:
        if _call(command, limit, settings.out / f"{part}.log"):
            error = PartFailedError(_last_line(settings.out / f"{part}.log"))
    except RanOverError as ran_over:
        error = ran_over
    if out.is_file():
        outcome.figures = json.loads(out.read_text(encoding="utf-8"))
        yield outcome.figures["measured"]
    else:
        yield {}
    if error is not None:
        raise error


def _worker(settings: Settings, outcome: Outcome, name: str, limit: float, spec: dict[str, Any]) -> dict[str, Any]:
    """The one row that the bench's worker measures for a spec."""
    classes, length = (3, 4) if settings.bench else (20, 30)
    common = {"clip": settings.clip, "device": settings.device, "precision": settings.precision, "max_pairs": None}
    common |= {"part": None, "classes": classes, "length": length, "seconds": settings.seconds}
    groups = json.dumps([{name: {**common, **spec}}])
    log = settings.out / f"{name}.log"
    status = _call([sys.executable, "-W", "ignore", "-m", "semples_plugin.bench.worker", groups], limit, log)
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.startswith("{")]
    row = json.loads(lines[-1])[name] if lines and status == 0 else None
    if not row:
        raise PartFailedError("the GPU's memory doesn't suffice" if row == {} else _last_line(log))
    outcome.figures = row
    return dict(row)


def _call(command: list[str], limit: float, log: Path) -> int:
    """The exit status of a command, whose output goes into `log`; after `limit` seconds it is ended."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            return process.wait(limit)
        except subprocess.TimeoutExpired as error:
            raise RanOverError(f"ended after {limit:.0f} s") from error
        finally:
            with contextlib.suppress(ProcessLookupError):  # its own children as well
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return f"{lines[-1]} ({log.name})" if lines else f"it said nothing ({log.name})"


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 where every part was done or skipped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gpu-out"), help="folder for the files")
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1, ...; cpu with --quick alone")
    parser.add_argument("--quick", action="store_true", help="the smallest of everything, to try the script itself")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts (default: all)")
    options = parser.parse_args(arguments)
    if torch.device(options.device).type == "cuda" and not torch.cuda.is_available():
        print(
            f"There is no CUDA device here that torch {torch.__version__} can use: run this where there is one. "
            "`--device cpu --quick` tries every part but the device.",
            file=sys.stderr,
        )
        return 1
    if torch.device(options.device).type == "cpu" and not options.quick:
        parser.error("on a CPU this takes hours: give --quick, or use `semples bench`")
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    settings = Settings.quick(out, options.device) if options.quick else Settings(out, options.device)
    outcomes = run_parts(settings, [name for name in PARTS if name in options.only])
    print((out / "gpu.md").read_text(encoding="utf-8"))
    print(f"All figures: {out / 'gpu.json'}")
    return int(any(outcome.status in ("failed", "ran over") for outcome in outcomes.values()))


if __name__ == "__main__":
    sys.exit(main())
