"""`semples run --seed`: the random numbers of scripts that have no seed of their own, such as CLIMS's."""

from __future__ import annotations

import os
from typing import Any

from semples_plugin.compat.corrections import Corrections

CORRECTIONS = Corrections()
VARIABLE = "SEMPLES_HOST_SEED"
"""Environment variable that holds the seed for every process of the script."""
HIGHEST = 2**32 - 1
"""The highest seed that numpy takes."""


def _seed() -> int:
    """Of this process: ranks of a distributed training draw different numbers."""
    return (int(os.environ[VARIABLE]) + int(os.environ.get("RANK") or 0)) % (HIGHEST + 1)


@CORRECTIONS.after("random")
def seed_python(random: Any) -> None:
    """Flips and crops of CLIMS come from here."""
    random.seed(_seed())


@CORRECTIONS.after("numpy")
def seed_numpy(numpy: Any) -> None:
    """The old global generator, which all hosts use."""
    numpy.random.seed(_seed())


@CORRECTIONS.after("torch")
def seed_torch(torch: Any) -> None:
    """Also CUDA's generators, and the base seed from which a DataLoader seeds all three of these in its workers."""
    torch.manual_seed(_seed())
