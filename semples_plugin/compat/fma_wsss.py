"""What FMA-WSSS needs on today's Python and packages; each correction names the line that needs it."""

from __future__ import annotations

import math
import pickle
from types import FunctionType
from typing import Any

from semples_plugin.compat.common import fill_packaging
from semples_plugin.compat.corrections import Corrections

CORRECTIONS = Corrections()
CORRECTIONS.stand_in("pkg_resources")(fill_packaging)  # src/libs/clip/clip.py:6


@CORRECTIONS.stand_in("torch._six")  # src/utils/lr_scheduler.py:4
def fill_six(module: Any) -> None:
    """Of it only `inf` is used."""
    module.inf = math.inf


@CORRECTIONS.after("cv2")
def restore_cv2(cv2: Any) -> None:
    """`from cv2 import cv2`."""
    cv2.cv2 = cv2


@CORRECTIONS.in_source("alchemy_cat.contrib.voc.utils")  # its line 29
def count_colours_beyond_a_byte(source: str) -> str:
    """numpy 2 no longer widens a byte that is multiplied by 256."""
    return source.replace("enumerate(VOC_COLOR)", "enumerate(VOC_COLOR.tolist())")


@CORRECTIONS.after("alchemy_cat")  # src/tasks/train_coop/run.py:48, :294
def pickle_lambdas(_: Any) -> None:
    """The configs that go to child processes hold lambdas, which Python's own pickle refuses."""
    from multiprocessing.reduction import ForkingPickler

    import cloudpickle

    pickle.dump = cloudpickle.dump

    def reduce(_: Any, value: Any) -> Any:
        if isinstance(value, FunctionType) and "<" in value.__qualname__:  # a lambda has no name to be found by
            return cloudpickle.loads, (cloudpickle.dumps(value),)
        return NotImplemented

    ForkingPickler.reducer_override = reduce  # type: ignore[method-assign]  # of what goes to new processes
