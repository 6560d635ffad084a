"""Command-line options that the patched hosts share, and the regularizer that is built from them."""

from __future__ import annotations

import argparse
import ast
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from semples_plugin.data.image_labels import read_class_names
from semples_plugin.presets import Preset, load_preset
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.regularizer import SemPLeSRegularizer
from semples_plugin.utils.distributed import world_size
from semples_plugin.utils.stages import STAGES

HOSTS_OWN = ("lr", "epochs", "batch_size")
"""Fields of a preset that a host with a training loop of its own sets by its own options."""


_WEIGHTS = {
    "foreground": "of the foreground term of (1)",
    "background": "lambda_b of (1)",
    "refine": "lambda of (3)",
    "image": "of L_prompt^I in (2)",
    "text": "lambda_T of (2)",
}
"""Fields of `LossWeights` that are the paper's, and what they are there."""

UNLEARNED = "unlearned"
"""What `--semples-prompts` says for (c) with prompts as stage (b) would begin with them, Table 5's second row."""


def add_arguments(parser: argparse.ArgumentParser, preset: str) -> Any:
    """Adds `--semples` and the options that belong to it; without `--semples` the host runs unchanged.

    Args:
        parser: the host's.
        preset: default of `--semples-preset`.

    Returns:
        The group of these options, for further ones of a single host.
    """
    group = parser.add_argument_group("SemPLeS")
    add = group.add_argument
    add("--semples", choices=STAGES, help="stage: (a) match, (b) prompts, (c) refine; left out: the host as it is")
    add("--semples-preset", default=preset, help="class names, weights and schedules (default: %(default)s)")
    add("--semples-classes", help="text file with one class name a line, in label order, instead of the preset's")
    add("--semples-clip", help="open_clip name, or local-dir:PATH (default: the preset's)")
    add("--semples-pretrained", help="its tag, or the path of a weights file (default: the preset's)")
    add("--semples-precision", default="fp32", help="of CLIP: fp32, bf16 or fp16 (default: %(default)s)")
    add(
        "--semples-prompts",
        default="prompts.safetensors",
        help="(b) writes this file, (c) reads it; btp.pth also; in (c) `unlearned` stands for new prompts of "
        "--semples-seed, Table 5's second row",
    )
    add("--semples-start", help="checkpoint that the stage starts from (default: the host's own)")
    add(
        "--semples-max-pairs",
        type=_pairs,
        metavar="P",
        help="pairs that CLIP sees at once, to bound memory; auto: what is quick on a CPU, or fits into a GPU",
    )
    add("--semples-seed", type=int, default=0, help="of the prompts")
    for name, meaning in _WEIGHTS.items():
        add(f"--semples-{name}-weight", type=float, metavar="W", help=f"{meaning} (default: the preset's)")
    add(
        "--semples-prompt-foreground",
        type=float,
        metavar="W",
        help="lambda_F, which keeps (b)'s prompts from describing the object; not in the paper (default: the preset's)",
    )
    add("--semples-prompt-length", type=int, help="L (default: the preset's)")
    add("--semples-prompt-epochs", type=int, help="epochs of stage (b) (default: the preset's)")
    add("--semples-prompt-lr", type=float, help="learning rate of stage (b) (default: the preset's)")
    add(
        "--semples-set",
        nargs="+",
        action="extend",
        type=_parse_setting,
        default=[],
        metavar="FIELD=VALUE",
        help="any other field of the preset, such as mask_eps=1e-3 prompt_batch_size=128; see help(Preset)",
    )
    return group


def _pairs(text: str) -> int | str:
    """A number of pairs, or `auto`."""
    if text != "auto" and not (text.isdecimal() and int(text) > 0):
        raise argparse.ArgumentTypeError(f"expected a positive number of pairs or auto, got {text!r}")
    return text if text == "auto" else int(text)


def _parse_setting(text: str) -> tuple[str, Any]:
    """Name and value of `FIELD=VALUE`: a Python literal, or else a word."""
    name, equals, value = text.partition("=")
    if not equals:
        raise argparse.ArgumentTypeError(f"expected FIELD=VALUE, got {text!r}")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def preset_of(args: argparse.Namespace) -> Preset:
    """The chosen preset with everything that the command line replaces in it."""
    settings = dict(args.semples_set)
    refuse_hosts_own(settings)
    options: dict[str, Any] = {
        "prompt_length": args.semples_prompt_length,
        "prompt_epochs": args.semples_prompt_epochs,
        "prompt_lr": args.semples_prompt_lr,
    }
    if args.semples_classes:
        options["class_names"] = read_class_names(args.semples_classes)
    weights = {name: getattr(args, f"semples_{name}_weight") for name in _WEIGHTS}
    weights["prompt_foreground"] = args.semples_prompt_foreground
    options["weights"] = _without_none(weights)
    preset = load_preset(args.semples_preset).with_(**settings)
    return preset.with_(**_without_none(options))


def _without_none(options: dict[str, Any]) -> dict[str, Any]:
    """The options that were given."""
    return {name: value for name, value in options.items() if value is not None}


def refuse_hosts_own(names: Iterable[str]) -> None:
    """Raises a `ValueError` where `names` holds a field that the host's own training loop sets."""
    for name in HOSTS_OWN:
        if name in names:
            raise ValueError(
                f"{name}: the host's own option sets how (a) and (c) are trained; that of stage (b) is prompt_{name}"
            )


def check_averaged(model: nn.Module) -> None:
    """Raises a `ValueError` where several processes train a model each, and nothing averages their gradients."""
    if world_size() > 1 and not isinstance(model, DistributedDataParallel):
        raise ValueError(
            f"{world_size()} processes train, but {type(model).__name__} is not in DistributedDataParallel: each "
            "would train a model of its own and write the same files; start one process, without torchrun, or wrap "
            "the model"
        )


def build_regularizer(args: argparse.Namespace, num_classes: int, device: str | torch.device) -> SemPLeSRegularizer:
    """The regularizer of the chosen stage: without prompts, with new ones, or with those of the prompts file.

    Args:
        args: the host's, with ours.
        num_classes: K, the columns of the host's labels.
        device: CLIP's.

    Raises:
        ValueError: where class names and label columns differ in number, or the prompts belong to other
            classes or another CLIP.
        FileNotFoundError: where stage (c) finds no prompts, or CLIP's weights are missing.
    """
    preset, unlearned = preset_of(args), args.semples_prompts == UNLEARNED
    if len(preset.class_names) != num_classes:
        hints = {80: "; COCO with 80 columns has the preset coco", 90: "; COCO with 90 has release-coco"}
        source = args.semples_classes or f"preset {preset.name}"
        raise ValueError(
            f"the labels have {num_classes} columns, {source} names {len(preset.class_names)} classes"
            f"{hints.get(num_classes, '')}; or give --semples-classes FILE"
        )
    if args.semples == "prompts" and unlearned:
        raise ValueError("stage (b) learns prompts: give the file to write as --semples-prompts, not `unlearned`")
    if args.semples == "refine" and not unlearned and not Path(args.semples_prompts).is_file():
        raise FileNotFoundError(
            f"stage (c) needs the prompts of stage (b): there is no {args.semples_prompts}; run --semples prompts "
            "first, or give --semples-prompts PATH"
        )
    clip = preset.load_clip(args.semples_clip, args.semples_pretrained, device=device, precision=args.semples_precision)
    regularizer = preset.build_regularizer(clip, max_pairs=args.semples_max_pairs)
    if args.semples == "prompts" or (args.semples == "refine" and unlearned):
        regularizer.prompts = preset.new_prompts(clip.text_width, seed=args.semples_seed)
    elif args.semples == "refine":
        regularizer.prompts = BackgroundPrompts.load(args.semples_prompts)
    return regularizer


class LossLog:
    """Prints the mean terms of the objectives after the first step and then after every `every` steps."""

    def __init__(self, every: int = 100) -> None:
        self.every, self.step = every, 0
        self._since_last_print: list[dict[str, Tensor]] = []

    def __call__(self, losses: dict[str, Tensor]) -> None:
        """Takes the `losses` of an adapter, and waits for the device only when it prints."""
        self.step += 1
        self._since_last_print.append(losses)
        if self.step != 1 and self.step % self.every != 0:
            return
        words = []
        for name in losses:
            values = torch.stack([earlier[name] for earlier in self._since_last_print])
            words.append(f"{name}: {float(values.mean()):.4f}")
        print(f"SemPLeS step {self.step}", *words)
        self._since_last_print = []


def learning_options(args: argparse.Namespace) -> dict[str, Any]:
    """Options of `learn_background_prompts` for stage (b)."""
    return {**preset_of(args).learning_options(), "seed": args.semples_seed}
