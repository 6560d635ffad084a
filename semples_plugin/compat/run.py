"""Starts a host's own script with its corrections in place."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from semples_plugin.adapters.commits import COMMITS
from semples_plugin.compat import config_options, seeding
from semples_plugin.utils import git

_STARTUP = Path(__file__).parent / "startup"
_FILES = {"clims": "run_sample.py", "weaktr": "AAF.py", "fma-wsss": "src/tasks/train_coop/run.py"}


def environment(host: str, on_cpu: bool = False, seed: int | None = None) -> dict[str, str]:
    """Environment variables under which every Python process has the host's corrections, and the seed."""
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    found = {"SEMPLES_HOST": host, "SEMPLES_HOST_DEVICE": "cpu" if on_cpu else ""}
    if host == "weaktr":  # as OnlineRetraining/segm/dist_train.sh has it
        others.append(str(Path("OnlineRetraining").absolute()))
        found["DATASET"] = os.environ.get("DATASET", str(Path("data").absolute()))
    path = os.pathsep.join(dict.fromkeys([str(_STARTUP), *others]))
    found["PYTHONPATH"] = path
    if seed is not None:  # the order of a set of names follows PYTHONHASHSEED
        found |= {seeding.VARIABLE: str(seed), "PYTHONHASHSEED": str(seed)}
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SEMPLES_HOST")}
    return {**inherited, **found}


def check_checkout(host: str, checkout: str | Path = ".", any_commit: bool = False) -> None:
    """A `ValueError` or `FileNotFoundError` where this isn't the host's checkout, or not at the pinned commit."""
    checkout = Path(checkout).absolute()
    if not (checkout / _FILES[host]).is_file():
        raise FileNotFoundError(f"{checkout} is no checkout of {host}: it has no {_FILES[host]}")
    if any_commit:
        return
    advice = "or say --any-commit where you know that its lines are those of the pinned commit"
    try:
        git.check_root(checkout, host)
        commit = git.head(checkout)
    except ValueError as error:
        raise ValueError(f"{error}; {advice}") from error
    if commit != COMMITS[host]:
        raise ValueError(
            f"{host}: the corrections fit commit {COMMITS[host][:8]}, and {checkout} is at {commit[:8]}: "
            f"git -C {checkout} checkout {COMMITS[host][:8]}, {advice}"
        )


def run(
    host: str,
    arguments: Sequence[str],
    on_cpu: bool = False,
    any_commit: bool = False,
    seed: int | None = None,
    entries: Sequence[str] = (),
) -> NoReturn:
    """Becomes `python ARGUMENTS`, in the host's checkout, which is the working folder.

    Args:
        host: "clims", "weaktr" or "fma-wsss".
        arguments: the script and its own, or `-m` with a module, such as `torch.distributed.run`.
        on_cpu: map CUDA calls to the CPU, for a trial.
        any_commit: run at another commit than the pinned one.
        seed: of Python's, numpy's and torch's random numbers, 0 to 2^32 - 1, plus the rank under torchrun; a script
            that seeds by itself does that after. On a GPU some of torch's sums still differ from run to run.
        entries: FMA-WSSS: KEY=VALUE of the config that the script reads, such as "solver.max_iter=3".

    Raises:
        FileNotFoundError, ValueError: see `check_checkout`; where no script is given, or it isn't there, for another
            seed, where an entry is no KEY=VALUE, or the host has no configs.
    """
    if seed is not None and not 0 <= seed <= seeding.HIGHEST:
        raise ValueError(f"--seed: expected a number from 0 to {seeding.HIGHEST}, got {seed}")
    if entries and host != "fma-wsss":
        raise ValueError(f"--cfg: {host} takes its options behind the script; only FMA-WSSS reads a config")
    variables = environment(host, on_cpu, seed)
    variables[config_options.VARIABLE] = config_options.to_environment(config_options.parse_options(entries))
    check_checkout(host, any_commit=any_commit)
    _check_script(arguments)
    sys.stdout.flush()
    os.execve(sys.executable, [sys.executable, *arguments], variables)


def _check_script(arguments: Sequence[str]) -> None:
    """A `ValueError` or `FileNotFoundError` where Python would start something else than a script or a module."""
    expected = "expected a script of the host and its arguments, such as main.py --help, or -m and a module"
    if not arguments or list(arguments) == ["-m"]:
        raise ValueError(f"{expected}, got {arguments[0] if arguments else 'none'}")
    if arguments[0].startswith("-") and arguments[0] != "-m":  # with -I, -E or -S Python would leave corrections out
        raise ValueError(
            f"{expected}, got the option {arguments[0]}; run's own are --device, --seed, --cfg and --any-commit"
        )
    if arguments[0] != "-m" and not Path(arguments[0]).is_file():
        raise FileNotFoundError(f"there is no script {arguments[0]} in {Path.cwd()}")
