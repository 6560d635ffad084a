"""Runs a recipe: skips what is done, goes on where it stopped, stops at the first failure."""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn

from semples_plugin.compat.needs.check import check_published
from semples_plugin.compat.needs.published import PUBLISHED
from semples_plugin.recipes.common import CHECK_DATA
from semples_plugin.recipes.environment import describe_environment
from semples_plugin.recipes.jobs import (
    DONE,
    FAILED,
    INTERRUPTED,
    MOVED,
    UNFINISHED,
    Job,
    Record,
    describe_change,
    executable,
    exists,
    makers,
    newer_makers,
    stale_jobs,
    why_to_run,
)
from semples_plugin.recipes.recipe import Recipe, options_of
from semples_plugin.utils.atomic_files import check_writable, set_aside

_PATIENCE = 30  # seconds that an interrupted command has to end by itself


def run_jobs(recipe: Recipe, jobs: Sequence[Job], chosen: Sequence[Job], again: str) -> None:
    """Runs those of the chosen jobs that are not done.

    Args:
        recipe: whose jobs these are.
        jobs: all of the recipe, in order.
        chosen: those to run, in order.
        again: the command with which the user goes on.

    Raises:
        ChildProcessError: where a command fails, or doesn't make what it should.
        FileNotFoundError: where something is missing that nobody but the user can get, or that an earlier step makes.
        BlockingIOError: where another process runs the same recipe in the same folder.
        OSError: where nothing can be written.
    """
    folder = jobs[0].settings.folder
    check_writable("runs", folder / "steps" / "lock")
    with _signals_interrupt(), _only_one(folder) as lock:
        check_before(recipe, jobs, chosen)
        for number, job in enumerate(chosen, 1):
            _warn_of_stale_input(job, jobs, chosen[: number - 1])
            failed = _run_job(job, jobs, f"[{number}/{len(chosen)}]", again, lock)
            if failed:
                raise ChildProcessError(f"{failed}{_settings_hint(job, recipe)}\nand `{again}` goes on from here")


def check_before(recipe: Recipe, jobs: Sequence[Job], chosen: Sequence[Job]) -> None:
    """Refuses to start where files are missing that no command makes, all of them in one message.

    These are what only the user can get, data, and files that settings name, such as CLIP's weights. What belongs into
    the recipe's own folder may be put there once that exists, so it is looked for at its turn.
    """
    folder = jobs[0].settings.folder
    missing = {
        path: f"{path} ({job.step.about}: {job.step.source})" for job in chosen if not job.words for path in job.makes
    }
    for job in chosen:
        advice = 'another folder is set by --set NAME=FOLDER, or NAME = "FOLDER" in semples.toml'
        # What a late step of one seed needs, such as test images, stops no training.
        for path in job.needs if job.step.once else ():
            missing.setdefault(path, f"{path} ({job.step.name} needs it; {advice})")
        for path in job.settings.named_files():
            missing.setdefault(path, f"{path} (named by a setting)")
    lines = [text for path, text in missing.items() if folder not in path.parents and not exists(path)]
    if any(job.step.name == CHECK_DATA and why_to_run(job, jobs) for job in chosen):
        lines += _lost_data(recipe, jobs[0], known=set(missing))
    if lines:
        raise FileNotFoundError("not there, or empty, and no command makes them:\n  " + "\n  ".join(lines))


def _lost_data(recipe: Recipe, job: Job, known: set[Path]) -> list[str]:
    """What `semples doctor` finds missing in the data sets, beside folders that are `known` to be needed.

    What is there is printed, with the number of files that a whole data set has: lists of one's own may name fewer.
    """
    lost = []
    for name in PUBLISHED.keys() & recipe.paths.keys():
        for finding in check_published(name, job.settings.path(f"{{{name}}}")):
            if not finding.fails:
                print(f"semples recipe: {finding.text}", file=sys.stderr)
            elif not any(finding.text.startswith(f"{path} (") for path in known):
                lost.append(finding.text)
    return lost


def _warn_of_stale_input(job: Job, jobs: Sequence[Job], ran: Sequence[Job]) -> None:
    """With `--only` and `--from` a step may stand on others that would have to run again."""
    outside = [maker for maker in makers(job, jobs) if maker.words and maker not in ran]
    stale = stale_jobs(jobs) if outside else {}
    for maker in outside:
        if maker.key in stale:
            print(f"semples recipe: {job.key} builds on {maker.key}: {stale[maker.key]}", file=sys.stderr)


def _settings_hint(job: Job, recipe: Recipe) -> str:
    """Where an option that the command asks for, such as `--device cpu`, belongs in the recipe."""
    options = "".join(f"\n  {name}: {meaning}" for name, meaning in options_of(job.step, recipe).items())
    return (
        f"\nOptions that it asks for are set in the recipe, by --set or in semples.toml, as{options}" if options else ""
    )


def _run_job(job: Job, jobs: Sequence[Job], number: str, again: str, lock: int) -> str:
    """Runs a job that isn't done; returns what is to be said where its command failed."""
    why = why_to_run(job, jobs)
    if not why:
        print(f"{number} {job.key}: done")
        return ""
    if not job.words:
        _by_hand(job, number, again)
        return ""
    _check_needs(job, jobs)
    before = job.read_record()
    words, seconds = _resumed(job, before, jobs)
    resumed = words != job.words
    moved_from = before if why == MOVED else None
    if before is not None and not resumed and not moved_from:
        _set_aside(job, folders=not _goes_on(job, before, jobs))
    for path in {job.folder, *(made.parent for made in job.makes)}:
        path.mkdir(parents=True, exist_ok=True)
    print(
        f"{number} {job.key}: {job.step.about} ({why})\ncd {shlex.quote(str(job.folder))}\n{shlex.join(words)}",
        flush=True,
    )
    # Kept before anything runs: whatever ends this process, the step isn't taken for done.
    record = Record(
        job.words, str(job.folder), UNFINISHED, seconds, _now(), environment=describe_environment(job.folder)
    )
    job.write_record(record)
    start = time.monotonic()
    try:
        status = _execute(executable(words), job, resumed, lock)
        record.status = DONE if status == 0 else FAILED
        absent = [path for path in job.makes if not exists(path)]
        if status == 0 and absent:
            record.status = FAILED
    except BaseException:
        record.status = INTERRUPTED
        raise
    finally:
        # What builds on paths of another folder is as good as before.
        ended = moved_from.ended if moved_from and record.status == DONE else _now()
        record.seconds, record.ended = seconds + time.monotonic() - start, ended
        job.write_record(record)
    if record.status == DONE:
        return ""
    what = _describe_status(status) if status else f"ended, and made no {absent[0]}"
    itself = f"cd {shlex.quote(str(job.folder))} && {shlex.join(words)}"
    return f"{job.key} {what}; what it printed is in {job.log}. By itself the step is\n  {itself}"


def _set_aside(job: Job, folders: bool) -> None:
    """Sets aside what an earlier run of the step left, so that it isn't taken for this run's.

    What serves all seeds in the host's checkout stays. So do folders that an interrupted run of the same command left,
    which many commands fill where they stopped, unless `folders` is set.
    """
    checkout = job.settings.path("{checkout}")
    left = [job.settings.path(job.step.resume[0])] if job.step.resume else []
    for path in {*job.makes, *left}:
        inside = job.settings.folder in path.parents and not (job.step.once and checkout in path.parents)
        if inside and (path.is_file() or (folders and exists(path))):
            aside = set_aside(path, keep_all=True)
            if aside:
                print(f"{job.key}: what an earlier run made is in {aside}; remove it where you don't need it")


def _resumed(job: Job, before: Record | None, jobs: Sequence[Job]) -> tuple[list[str], float]:
    """The words with the options that go on from where an interrupted run stopped, and the seconds that it took."""
    words = job.words
    if before is None or job.step.resume is None or not _goes_on(job, before, jobs):
        return words, 0.0
    left, options = job.step.resume
    if not exists(job.settings.path(left)):
        return words, 0.0
    return [*words, *job.settings.words(options)], before.seconds


def _goes_on(job: Job, before: Record, jobs: Sequence[Job]) -> bool:
    """Whether the last run was this very command's, on the same input, and didn't come to its end."""
    return before.status != DONE and not describe_change(before, job) and not newer_makers(job, before, jobs)


def _describe_status(status: int) -> str:
    if status == -signal.SIGKILL:
        return "was killed, as happens where memory runs out"
    return f"ended with exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"


def _by_hand(job: Job, number: str, again: str) -> None:
    """Tells what the user has to do, and stops where later steps need it."""
    print(f"{number} {job.key}: by hand: {job.step.about}: {job.step.source}")
    absent = [path for path in job.makes if not exists(path)]
    if absent:
        raise FileNotFoundError(f"{absent[0]} isn't there: {job.step.source}; then `{again}` goes on")


def _check_needs(job: Job, jobs: Sequence[Job]) -> None:
    for path in job.needs:
        if not exists(path):
            origins = ", ".join(maker.key for maker in makers(job, jobs, [path]))
            origin = f"it comes from {origins}, which hasn't run" if origins else "no step makes it: check the settings"
            raise FileNotFoundError(f"{job.key} needs {path}, which isn't there: {origin}")


def _execute(words: Sequence[str], job: Job, resumed: bool, lock: int) -> int:
    """Runs a command, shows what it prints, keeps it in the job's log, and returns its exit status."""
    process = None
    try:
        with _interrupts_wait():
            process = _start(words, job.folder, lock)
        with job.log.open("ab" if resumed else "wb", buffering=0) as file:
            for chunk in _output_of(process):
                _keep(chunk, file, job.log)
                _show(chunk)
        return process.wait()
    except BaseException:
        if process is not None:
            _end(process)
        raise


def _start(words: Sequence[str], folder: Path, lock: int) -> subprocess.Popen[bytes]:
    try:
        # In a session of its own the command gets one interrupt, ours, together with all that it started. It holds the
        # lock as well, should this process be killed.
        return subprocess.Popen(
            words,
            cwd=folder,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(lock,),
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no command {words[0]}: install it, or put it into PATH") from error


def _output_of(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What a command prints until it ends; a daemon that it left behind isn't waited for."""
    assert process.stdout is not None
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            ended = process.poll() is not None
            if selector.select(timeout=0 if ended else 1):
                chunk = os.read(process.stdout.fileno(), 65536)
                if not chunk:
                    return
                yield chunk
            elif ended:
                return


def _keep(chunk: bytes, file: BinaryIO | FileIO, log: Path) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        error.filename = str(log)  # a full disk gives no name
        raise


def _show(chunk: bytes) -> None:
    """Shows it as long as somebody reads; the log has it in any case."""
    buffer = getattr(sys.stdout, "buffer", None)
    with contextlib.suppress(OSError):
        if buffer is None:  # a test's, or a notebook's
            sys.stdout.write(chunk.decode(errors="replace"))
            return
        buffer.write(chunk)
        buffer.flush()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a command and all that it started: by an interrupt, and by force where that isn't heard."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            process.wait(timeout=_PATIENCE)
            return


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Within it what job queues and closed terminals send is an interrupt, so that the command isn't left behind."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    with _handled(interrupt, signal.SIGTERM, signal.SIGHUP):
        yield


@contextlib.contextmanager
def _interrupts_wait() -> Iterator[None]:
    """Within it an interrupt waits for the end: a command that is halfway started can't be ended."""
    waiting: list[int] = []
    with _handled(lambda number, frame: waiting.append(number), signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        yield
    if waiting:
        raise KeyboardInterrupt


@contextlib.contextmanager
def _handled(handler: Callable[[int, FrameType | None], object], *numbers: signal.Signals) -> Iterator[None]:
    """Within it these signals go to the handler, but for those that are ignored, as under nohup."""
    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, handler) for number in numbers if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[int]:
    """A lock that ends with this process and the command that it runs, however they end; yields its descriptor."""
    with (folder / "steps" / "lock").open("wb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BlockingIOError(
                f"another `semples recipe run` is at work in {folder}, or a command that one left"
            ) from error
        yield file.fileno()


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
