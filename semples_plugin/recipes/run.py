"""Runs a recipe: skips what is done, goes on where it stopped, stops at the first failure."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from io import FileIO
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO, NoReturn

from semples_plugin.recipes.environment import describe_environment
from semples_plugin.recipes.jobs import (
    DONE,
    FAILED,
    INTERRUPTED,
    Job,
    Record,
    executable,
    exists,
    makers,
    newer_makers,
    why_to_run,
)
from semples_plugin.utils.atomic_files import check_writable

_PATIENCE = 30  # seconds that an interrupted command has to end by itself


def run_jobs(jobs: Sequence[Job], chosen: Sequence[Job], again: str) -> None:
    """Runs those of the chosen jobs that are not done.

    Args:
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
    with _only_one(folder):
        check_by_hand(chosen, folder)
        for number, job in enumerate(chosen, 1):
            _run_job(job, jobs, f"[{number}/{len(chosen)}]", again)


def check_by_hand(jobs: Sequence[Job], folder: Path) -> None:
    """Refuses to start where files are missing that nobody but the user can get, all of them in one message.

    What belongs into the recipe's own folder may be put there once that exists, so it is looked for at its turn.
    """
    missing = [
        f"{path} ({job.step.name}: {job.step.source})"
        for job in jobs
        if not job.words
        for path in job.makes
        if folder not in path.parents and not exists(path)
    ]
    if missing:
        raise FileNotFoundError("not there, and only you can get them:\n  " + "\n  ".join(missing))


def _run_job(job: Job, jobs: Sequence[Job], number: str, again: str) -> None:
    why = why_to_run(job, jobs)
    if not why:
        print(f"{number} {job.key}: done")
        return
    if not job.words:
        _by_hand(job, number, again)
        return
    _check_needs(job, jobs)
    for path in {job.folder, *(made.parent for made in job.makes)}:
        path.mkdir(parents=True, exist_ok=True)
    before = job.read_record()
    words, seconds = _resumed(job, before, jobs)
    print(
        f"{number} {job.key}: {job.step.about} ({why})\ncd {shlex.quote(str(job.folder))}\n{shlex.join(words)}",
        flush=True,
    )
    record = Record(job.words, str(job.folder), INTERRUPTED, seconds, _now())
    start = time.monotonic()
    try:
        status = _execute(executable(words), job.folder, job.log)
        record.status = DONE if status == 0 else FAILED
        absent = [path for path in job.makes if not exists(path)]
        if status == 0 and absent:
            record.status = FAILED
    finally:
        record.seconds, record.ended = seconds + time.monotonic() - start, _now()
        record.environment = describe_environment(job.folder)
        job.write_record(record)
    if record.status == FAILED:
        what = _describe_status(status) if status else f"ended, and made no {absent[0]}"
        _stop(f"{job.key} {what}; what it printed is in {job.log}", job, words, again)


def _resumed(job: Job, before: Record | None, jobs: Sequence[Job]) -> tuple[list[str], float]:
    """The words with the options that go on from where an interrupted run stopped, and the seconds that it took."""
    words = job.words
    if before is None or before.status == DONE or job.step.resume is None:
        return words, 0.0
    left, options = job.step.resume
    same = (before.command, before.folder) == (words, str(job.folder)) and not newer_makers(job, before, jobs)
    if not same or not exists(job.settings.path(left)):
        return words, 0.0
    return [*words, *job.settings.words(options)], before.seconds


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


def _stop(what: str, job: Job, words: Sequence[str], again: str) -> NoReturn:
    raise ChildProcessError(
        f"{what}. By itself the step is\n  cd {shlex.quote(str(job.folder))} && {shlex.join(words)}\n"
        f"and `{again}` goes on from here"
    )


def _execute(words: Sequence[str], folder: Path, log: Path) -> int:
    """Runs a command, shows what it prints, keeps it in `log`, and returns its exit status."""
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    try:
        # In a session of its own the command gets one interrupt, ours, together with all that it started.
        process = subprocess.Popen(
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no command {words[0]}: install it, or put it into PATH") from error
    with _signals_interrupt():
        try:
            assert process.stdout is not None
            with log.open("wb", buffering=0) as file:
                while chunk := os.read(process.stdout.fileno(), 65536):
                    _keep(chunk, file, log)
                    _show(chunk)
            return process.wait()
        except BaseException:
            _end(process)
            raise


def _keep(chunk: bytes, file: BinaryIO | FileIO, log: Path) -> None:
    try:
        file.write(chunk)
    except OSError as error:
        error.filename = str(log)  # a full disk gives no name
        raise


def _show(chunk: bytes) -> None:
    buffer = getattr(sys.stdout, "buffer", None)
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
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_PATIENCE)
            return
    process.communicate()


@contextlib.contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Within it what job queues and closed terminals send is an interrupt, so that the command isn't left behind."""

    def interrupt(number: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    before: dict[signal.Signals, Any] = {
        number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """A lock that ends with the process, however that ends."""
    with (folder / "steps" / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise BlockingIOError(f"another `semples recipe run` is at work in {folder}") from error
        yield


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")
