"""Puts a host's corrections in place in every Python process that `semples run` brings about, also spawned ones.

Python imports a module of this name when it starts. `semples run` puts this folder first on PYTHONPATH; another
`sitecustomize` that it hides is run as well.
"""

import importlib.machinery
import importlib.util
import os
import sys
from pathlib import Path

_HERE = Path(__file__).parent


def _run_the_hidden_one() -> None:
    others = [folder for folder in sys.path if Path(folder or ".").resolve() != _HERE]
    spec = importlib.machinery.PathFinder.find_spec("sitecustomize", others)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))


_run_the_hidden_one()
if "SEMPLES_HOST" in os.environ:
    from semples_plugin.compat.corrections import install

    install(
        os.environ["SEMPLES_HOST"],
        on_cpu=os.environ.get("SEMPLES_HOST_DEVICE") == "cpu",
        seeded="SEMPLES_HOST_SEED" in os.environ,
    )
