"""Git, asked in one way: English messages, one sentence for what it refuses, and its own advice."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def git(folder: str | Path, *arguments: str) -> str:
    """Standard output of a git command, without space around it.

    Raises:
        ValueError: with git's own words where it failed, or where there is no git.
    """
    result = _run(folder, *arguments)
    if result.returncode != 0:
        raise ValueError(f"{folder}: git says: {_reason(result.stderr)}")
    return result.stdout.strip()


def succeeds(folder: str | Path, *arguments: str) -> bool:
    """Whether a git command ends without an error; a `ValueError` where there is no git."""
    return _run(folder, *arguments).returncode == 0


def check_root(folder: str | Path, project: str) -> None:
    """Checks that a folder is the root of a git checkout; files of ours in somebody else's repository are none.

    Args:
        folder: where the checkout should be.
        project: what it should be a checkout of, for the error.

    Raises:
        FileNotFoundError: where there is no such folder.
        ValueError: where it is no checkout, a folder within one, or another user's, which git refuses to read.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    if "not a git repository" in _run(folder, "rev-parse", "--show-toplevel").stderr:
        raise ValueError(f"{folder} is no git checkout; clone {project} with git, an unpacked archive has no commits")
    root = git(folder, "rev-parse", "--show-toplevel")
    if Path(root).resolve() != Path(folder).resolve():
        raise ValueError(
            f"{folder} is a folder inside of the checkout {root}; give that, if it is {project}'s, or else clone "
            f"{project} with git"
        )


def head(checkout: str | Path) -> str:
    """The commit that a checkout is at, in 40 digits; a `ValueError` where it has none yet."""
    return git(checkout, "rev-parse", "--verify", "HEAD")


def _reason(errors: str) -> str:
    """The first of git's words, and the command that it advises for another user's checkout."""
    lines = [line.strip().removeprefix("fatal: ") for line in errors.splitlines() if line.strip()]
    advice = [f"; if you trust it: {line}" for line in lines if line.startswith("git config ")]
    return "".join([*(lines or ["nothing"])[:1], *advice[:1]])


def _run(folder: str | Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["git", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, env={**os.environ, "LC_ALL": "C"})
    except FileNotFoundError as error:
        raise ValueError("git is not installed, or not on the PATH") from error
    texts = os.fsdecode(done.stdout), os.fsdecode(done.stderr)  # paths, as Python spells them in this locale
    return subprocess.CompletedProcess(command, done.returncode, *texts)
