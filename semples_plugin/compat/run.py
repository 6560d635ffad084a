"""Starts a host's own script with its corrections in place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from semples_plugin.adapters.commits import COMMITS
from semples_plugin.compat.seed import HIGHEST, VARIABLE

_STARTUP = Path(__file__).parent / "startup"
_FILES = {"clims": "run_sample.py", "weaktr": "AAF.py", "fma-wsss": "src/tasks/train_coop/run.py"}


def environment(host: str, on_cpu: bool = False, seed: int | None = None) -> dict[str, str]:
    """Environment variables under which every Python process has the host's corrections, and the seed."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    path = os.pathsep.join(dict.fromkeys([str(_STARTUP), *others]))
    variables = {**os.environ, "PYTHONPATH": path, "SEMPLES_HOST": host, "SEMPLES_HOST_DEVICE": "cpu" if on_cpu else ""}
    if seed is not None:  # the order of a set of names follows PYTHONHASHSEED
        variables |= {VARIABLE: str(seed), "PYTHONHASHSEED": str(seed)}
    return variables


def check_checkout(host: str, checkout: str | Path = ".", any_commit: bool = False) -> None:
    """A `ValueError` or `FileNotFoundError` where this isn't the host's checkout, or not at the pinned commit."""
    checkout = Path(checkout)
    if not (checkout / _FILES[host]).is_file():
        raise FileNotFoundError(f"{checkout.absolute()} is no checkout of {host}: it has no {_FILES[host]}")
    command = ["git", "-C", str(checkout), "rev-parse", "--show-toplevel", "HEAD"]
    lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
    # A folder within somebody else's repository is no checkout of the host.
    commit = lines[1] if len(lines) == 2 and Path(lines[0]) == checkout.resolve() else ""
    if commit != COMMITS[host] and not any_commit:
        got = f"it is at {commit[:8]}" if commit else "it is no git checkout"
        raise ValueError(
            f"{host}: the corrections fit commit {COMMITS[host][:8]}, and {got}: check that commit out, or say "
            "--any-commit where you know that its lines are the same"
        )


def run(
    host: str, arguments: Sequence[str], on_cpu: bool = False, any_commit: bool = False, seed: int | None = None
) -> NoReturn:
    """Becomes `python ARGUMENTS`, in the host's checkout, which is the working folder.

    Args:
        host: "clims", "weaktr" or "fma-wsss".
        arguments: the script and its own, or `-m` with a module, such as `torch.distributed.run`.
        on_cpu: map CUDA calls to the CPU, for a trial.
        any_commit: run at another commit than the pinned one.
        seed: of Python's, numpy's and torch's random numbers, 0 to 2^32 - 1, plus the rank under torchrun; a script
            that seeds by itself does that after. On a GPU some of torch's sums still differ from run to run.

    Raises:
        FileNotFoundError, ValueError: see `check_checkout`; where no script is given, or it isn't there, or for
            another seed.
    """
    if seed is not None and not 0 <= seed <= HIGHEST:
        raise ValueError(f"--seed: expected a number from 0 to {HIGHEST}, got {seed}")
    check_checkout(host, any_commit=any_commit)
    if not arguments:
        raise ValueError("expected a script of the host and its arguments, such as main.py --help")
    script = Path(arguments[0])
    if not arguments[0].startswith("-") and not script.is_file():
        raise FileNotFoundError(f"there is no script {script} in {Path.cwd()}")
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *arguments], environment(host, on_cpu, seed))
