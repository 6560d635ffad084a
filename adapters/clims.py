"""CLIMS: sigmoid CAMs `[N, K, h, w]` that are its masks already, 512-pixel crops with zero padding, float32.

CLIMS has L_match of its own (its OTM and BTM terms, weighted 10 : 24 on VOC, the paper's 1 : 2.4), and suppresses a
fixed list of backgrounds. The paper adds its *learned* prompts to that (Table 4), which we read as CLIMS's loss plus
L_refine, scaled as CLIMS scales its foreground term. `--semples-terms all` adds L_match as well; give `--hyper`
zeros for CLIMS's own then. All that CLIMS trains is reached: everything but its first convolution and batch norm.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from semples_plugin.adapters import host_options
from semples_plugin.adapters.base import CamAdapter, evaluating, without_ddp
from semples_plugin.regularizer import SemPLeSRegularizer
from semples_plugin.utils.checks import first_difference
from semples_plugin.utils.distributed import is_first


class ClimsAdapter(CamAdapter):
    """The objectives for CLIMS's `x = model(img)`, a sigmoid that no eps is needed for: a preset's goes unused.

    Args:
        regularizer: with ImageNet's statistics.
        scale: factor of the loss; CLIMS's first `--hyper` value puts it on the scale of its own terms.
    """

    def __init__(self, regularizer: SemPLeSRegularizer, *, scale: float = 1.0) -> None:
        super().__init__(regularizer, "sigmoid", scale=scale)

    def images(self, images: Tensor) -> Tensor:
        """Images whose padding takes no part; no pixel of an image is 0 in all three normalised channels."""
        return self.regularizer.paint(images, (images == 0).all(dim=1))


def add_arguments(parser: argparse.ArgumentParser, preset: str = "voc") -> None:
    """The options of `run_sample.py` ("voc") and `run_sample_coco.py` ("coco")."""
    add = host_options.add_arguments(parser, preset).add_argument
    add(
        "--semples-terms", choices=("refine", "all"), default="refine",
        help="refine: L_refine beside CLIMS's own terms in (c), the paper's Table 4 as we read it; all: L_match too, "
        "and what --semples match needs (default: %(default)s)",
    )  # fmt: skip
    add(
        "--semples-scale", type=float,
        help="factor of SemPLeS's losses (default: the first of --hyper, CLIMS's for its foreground term)",
    )  # fmt: skip


def _all_zero(hyper: str) -> bool:
    """Whether all of CLIMS's own loss is left out by its `--hyper`."""
    return not any(float(value) for value in hyper.split(","))


def _warn_of_other_classes(class_names: Sequence[str]) -> None:
    # CLIMS's own loss puts names from a list inside of the code into its texts, column by column.
    lists = getattr(sys.modules.get("clip_utils"), "category_dict", {}).values()
    if lists and all(first_difference(class_names, known) is not None for known in lists):
        warnings.warn(
            "--semples-classes differs from category_dict in CLIMS's clip_utils.py, whose names its own loss matches "
            "the same columns with: write your names there too, or leave that loss out (--hyper 0,0,0,0)",
            UserWarning,
            stacklevel=3,
        )


class Training:
    """What the patch calls: `semples(img, x, label)` in every step, `semples.learn_prompts(...)` in stage (b).

    Args:
        args: CLIMS's, with ours.
        model: CLIMS's network, in `DataParallel` or not.
    """

    def __init__(self, args: argparse.Namespace, model: nn.Module) -> None:
        self.args, self.adapter = args, None
        if args.semples is None:
            return
        if not self.learns_prompts:
            host_options.check_averaged(model)
        if args.semples == "match" and args.semples_terms == "refine":
            raise ValueError(
                "stage (a) is CLIMS's own training, which matches segments and labels already: run it without "
                "--semples, or give --semples-terms all"
            )
        if args.semples == "prompts" and not args.semples_start:
            raise ValueError("stage (b) looks through a trained network: give --semples-start a/res50_clims.pth")
        network: Any = getattr(model, "module", model)
        if args.semples_start:
            weights = torch.load(args.semples_start, map_location="cpu", weights_only=True)
            network.load_state_dict(weights)
        if args.semples == "refine" and args.semples_terms == "refine":
            args.semples_foreground_weight = args.semples_background_weight = 0.0
        if args.semples_classes and not _all_zero(args.hyper):
            _warn_of_other_classes(host_options.preset_of(args).class_names)
        device = next(model.parameters()).device
        scale = args.semples_scale
        if scale is None:
            scale = float(args.hyper.split(",")[0]) or 1.0
        self.log = host_options.LossLog()
        self.adapter = ClimsAdapter(host_options.build_regularizer(args, network.n_classes, device), scale=scale)

    @property
    def learns_prompts(self) -> bool:
        """Whether this run is stage (b)."""
        return bool(self.args.semples == "prompts")

    def __call__(self, images: Tensor, cams: Tensor, labels: Tensor) -> Tensor | float:
        """The number to add to CLIMS's loss; 0 without `--semples`."""
        if self.adapter is None:
            return 0.0
        loss = self.adapter.loss(images, cams, labels)
        self.log(self.adapter.losses)
        return loss

    def learn_prompts(self, model: nn.Module, loader: Iterable[dict[str, Any]]) -> None:
        """Stage (b): walks CLIMS's loader once, learns the prompts and writes `--semples-prompts`.

        Under DDP every rank walks its own part; the names in the packs let an image that a sampler repeats count once.
        """
        assert self.adapter is not None
        network = without_ddp(model)
        with evaluating(network) as device:

            def walk() -> Iterator[tuple[Any, ...]]:
                for pack in loader:
                    images = pack["img"].to(device)
                    yield images, network(images), pack["label"], *([pack["name"]] if "name" in pack else [])

            learning = {"origin": network, **host_options.learning_options(self.args)}
            self.adapter.learn_prompts(walk(), self.args.semples_prompts, **learning)
        if is_first():
            print(f"SemPLeS: wrote {self.args.semples_prompts}; stage (c): --semples refine")
