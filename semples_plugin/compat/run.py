"""Starts a host's own script with its corrections in place."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from semples_plugin.adapters.commits import COMMITS
from semples_plugin.compat.config_options import VARIABLE, parse_options, to_environment

_STARTUP = Path(__file__).parent / "startup"
_FILES = {"clims": "run_sample.py", "weaktr": "AAF.py", "fma-wsss": "src/tasks/train_coop/run.py"}


def environment(host: str, on_cpu: bool = False) -> dict[str, str]:
    """Environment variables under which every Python process has the host's corrections."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    path = os.pathsep.join(dict.fromkeys([str(_STARTUP), *others]))
    return {**os.environ, "PYTHONPATH": path, "SEMPLES_HOST": host, "SEMPLES_HOST_DEVICE": "cpu" if on_cpu else ""}


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
    host: str,
    arguments: Sequence[str],
    on_cpu: bool = False,
    any_commit: bool = False,
    config_options: Sequence[str] = (),
) -> NoReturn:
    """Becomes `python ARGUMENTS`, in the host's checkout, which is the working folder.

    Args:
        host: "clims", "weaktr" or "fma-wsss".
        arguments: the script and its own, or `-m` with a module, such as `torch.distributed.run`.
        on_cpu: map CUDA calls to the CPU, for a trial.
        any_commit: run at another commit than the pinned one.
        config_options: FMA-WSSS: entries KEY=VALUE of the config that the script reads, such as "solver.max_iter=3".

    Raises:
        FileNotFoundError, ValueError: see `check_checkout`; where no script is given, or it isn't there; where an
            option is no KEY=VALUE, or the host has no configs.
    """
    if config_options and host != "fma-wsss":
        raise ValueError(f"--cfg: {host} takes its options behind the script; only FMA-WSSS reads a config")
    options = to_environment(parse_options(config_options))
    check_checkout(host, any_commit=any_commit)
    if not arguments:
        raise ValueError("expected a script of the host and its arguments, such as main.py --help")
    script = Path(arguments[0])
    if not arguments[0].startswith("-") and not script.is_file():
        raise FileNotFoundError(f"there is no script {script} in {Path.cwd()}")
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *arguments], {**environment(host, on_cpu), VARIABLE: options})
