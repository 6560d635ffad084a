"""What WeakTr needs on today's Python and packages; each correction names the line of WeakTr that needs it."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

from semples_plugin.compat import weaktr_retraining
from semples_plugin.compat.common import restore_cubic
from semples_plugin.compat.corrections import Corrections

CORRECTIONS = Corrections()
weaktr_retraining.register(CORRECTIONS)
CORRECTIONS.after("PIL.Image")(restore_cubic)  # datasets.py:84, :150


@CORRECTIONS.stand_in("mlflow")  # main.py:23
def fill_mlflow(module: Any) -> None:
    """Runs and figures go nowhere; WeakTr writes them to its own log as well."""
    module.start_run = module.log_param = module.log_metric = lambda *_, **__: None


@CORRECTIONS.after("models")  # models.py:149
def drop_timms_new_keywords(models: ModuleType) -> None:
    """timm 1.x hands three keywords to every model that is registered, which WeakTr's hand on to their class."""
    from timm.models import _registry

    for name in models.__all__:
        entry = _registry._model_entrypoints[name]
        _registry._model_entrypoints[name] = _without(entry, "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir")


def _without(function: Any, *keywords: str) -> Any:
    @functools.wraps(function)
    def called(*arguments: Any, **options: Any) -> Any:
        return function(*arguments, **{name: value for name, value in options.items() if name not in keywords})

    return called


@CORRECTIONS.after("PIL.ImageOps")  # --aa, through timm's augmentations
def keep_a_bit(image_ops: Any) -> None:
    """timm posterises to 0 bits at times, which Pillow refuses now; 1 is the nearest that it does."""
    posterize = image_ops.posterize
    image_ops.posterize = lambda image, bits: posterize(image, max(1, bits))


@CORRECTIONS.after("torch")  # main.py:371
def allow_the_figures_in_checkpoints(torch: Any) -> None:
    """WeakTr keeps its options and numpy's numbers in its checkpoints, which `torch.load` refuses by default."""
    from argparse import Namespace

    import numpy as np

    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")}
    torch.serialization.add_safe_globals([scalar, np.dtype, Namespace, *kinds])
