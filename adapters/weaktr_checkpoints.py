"""WeakTr's checkpoints: read as data, and compared with the options of the network that is to load them.

WeakTr's fusion has two options. `--reduction` is the ratio of its layer widths, which the weights show.
`--pool-type` leaves no trace in them: weights that were trained with `max` load into `avg` and give other CAMs.
It is known from the options that a checkpoint holds as `args`, or from the `variant.yml` that WeakTr writes
beside its checkpoints. The published checkpoints, and the guide of WeakTr, have 8 and max; its defaults are 4
and avg.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semples_plugin.utils import checkpoint_files
from semples_plugin.utils.checkpoint_files import weights_of

_FUSION = "adaptive_attention_fusion.attn_head_ffn.0.weight"
_HEAD = "head.weight"


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of WeakTr's, which holds numpy's numbers and options beside the weights; other objects are refused.

    Raises:
        FileNotFoundError: where there is none.
        ValueError: where it is no checkpoint or damaged, holds no weights by name, or an object of another kind.
    """
    import numpy as np

    scalar = np.float64().__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # numpy 1 and 2
    dtypes = {type(np.dtype(kind)) for kind in ("f4", "f8", "i8")}
    allowed: list[Any] = [*names, np.dtype, *dtypes, argparse.Namespace]
    checkpoint = checkpoint_files.read_checkpoint(path, allowed)
    weights_of(path, checkpoint)
    return dict(checkpoint)


def check_options(args: argparse.Namespace) -> None:
    """Compares the checkpoints that WeakTr's options name with its other options, before anything is built.

    Args:
        args: WeakTr's, with ours; of these `semples_start`, `resume` and `finetune` name files. A checkpoint
            without the fusion, such as DeiT's, fits each.

    Raises:
        ValueError: where reduction, pooling or the number of classes are others.
        FileNotFoundError: where a file is missing.
    """
    for option in ("semples_start", "resume", "finetune"):
        path = getattr(args, option, None)
        if path and "://" not in path:
            check_layout(path, read_checkpoint(path), args)


def check_layout(path: str | Path, checkpoint: Mapping[str, Any], args: argparse.Namespace) -> None:
    """Raises a `ValueError` where a checkpoint belongs to a network of other options than `args`, or to none."""
    weights = weights_of(path, checkpoint)
    fusion = weights.get(_FUSION)
    if fusion is None:
        return
    if fusion.ndim != 2 or not fusion.numel():
        raise ValueError(f"{path}: expected a fusion {_FUSION} [hidden, channels], got {list(fusion.shape)}")
    hidden, channels = fusion.shape
    pooling = trained_pooling(path, checkpoint)
    wanted = f"--reduction {args.reduction:g} --pool-type {args.pool_type}"
    found = f"--reduction {channels / hidden:g} --pool-type {pooling or '(not said)'}"
    if hidden != int(channels / args.reduction) or (pooling is not None and pooling != args.pool_type):
        advice = found if pooling else f"--reduction {channels / hidden:g}, and max with 8, as WeakTr's guide has it"
        raise ValueError(f"{path} was trained with {found}, and this run has {wanted}: give {advice}")
    classes = getattr(args, "nb_classes", None)
    if classes is not None and _HEAD in weights and len(weights[_HEAD]) != classes:
        raise ValueError(
            f"{path} holds {len(weights[_HEAD])} classes, and --data-set {args.data_set} has {classes}: give the "
            "checkpoint of this data set"
        )


def trained_pooling(path: str | Path, checkpoint: Mapping[str, Any]) -> str | None:
    """`max` or `avg`, from the checkpoint's `args` or from `variant.yml` beside it; None where neither says."""
    args = checkpoint.get("args")
    options = vars(args) if isinstance(args, argparse.Namespace) else args
    if isinstance(options, Mapping) and "pool_type" in options:
        return str(options["pool_type"])
    variant = Path(path).parent / "variant.yml"
    if not variant.is_file():
        return None
    match = re.search(r"^pool_type: (\w+)$", variant.read_text(errors="replace", encoding="utf-8"), re.MULTILINE)
    return match[1] if match else None
