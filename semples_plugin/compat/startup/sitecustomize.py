"""Puts a host's corrections in place in every Python process that `semples run` brings about, also spawned ones.

Python imports a module of this name when it starts. `semples run` puts this folder first on PYTHONPATH; another
`sitecustomize` that it hides is run as well.
"""

import importlib.machinery
import importlib.util
import os
import sys
import warnings
from pathlib import Path

_HERE = Path(__file__).parent


def _run_the_hidden_one() -> None:
    others = [folder for folder in sys.path if Path(folder or ".").resolve() != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


def _install() -> None:
    """The corrections; a process that can't have them ends, since the host would run without, and silently."""
    try:
        from semples_plugin.compat.corrections import install

        install(
            os.environ["SEMPLES_HOST"],
            on_cpu=os.environ.get("SEMPLES_HOST_DEVICE") == "cpu",
            seeded="SEMPLES_HOST_SEED" in os.environ,
        )
    except BaseException as error:
        print(f"semples run: the corrections can't be put in place: {type(error).__name__}: {error}", file=sys.stderr)
        os._exit(1)


def _quieten() -> None:
    """Hides what libraries say of the host's old lines: its user can't mend them, and what stops is corrected."""
    if not sys.warnoptions:  # -W and PYTHONWARNINGS win
        for kind in (DeprecationWarning, PendingDeprecationWarning, FutureWarning, SyntaxWarning):
            warnings.simplefilter("ignore", kind)


if "SEMPLES_HOST" in os.environ:
    _quieten()
    _install()
_run_the_hidden_one()  # last: whatever it raises, Python reports and goes on
