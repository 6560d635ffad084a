"""CLIMS: sigmoid CAMs `[N, K, h, w]`, which are masks already; 512-pixel crops with zero padding; float32.

CLIMS has its own L_match (its OTM and BTM terms, weighted 10 : 24 on VOC, the paper's 1 : 2.4), and
suppresses a fixed list of backgrounds. The paper adds its *learned* prompts to that (Table 4), which we read
as CLIMS's loss plus L_refine, scaled as CLIMS scales its foreground term. `--semples-terms all` adds L_match
as well; give `--hyper` zeros for CLIMS's own then. Gradients reach all that CLIMS trains: everything but its
first convolution and batch norm.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor, nn

from semples_plugin.adapters import host_options
from semples_plugin.adapters.base import CamAdapter, evaluating, without_ddp
from semples_plugin.regularizer import SemPLeSRegularizer
from semples_plugin.utils.checkpoint_files import load_weights, read_checkpoint, weights_of
from semples_plugin.utils.checks import first_difference
from semples_plugin.utils.distributed import is_first


class ClimsAdapter(CamAdapter):
    """The objectives for CLIMS's `x = model(img)`, sigmoid CAMs, which need no eps: a preset's goes unused.

    Args:
        regularizer: with ImageNet's statistics.
        scale: factor of the loss; CLIMS's first `--hyper` value puts it on the scale of its own terms.
    """

    def __init__(self, regularizer: SemPLeSRegularizer, *, scale: float = 1.0) -> None:
        super().__init__(regularizer, "sigmoid", scale=scale)

    def images(self, images: Tensor) -> Tensor:
        """Images whose padding is painted over."""
        is_padding = (images == 0).all(dim=1)  # no pixel of a normalised image is 0 in all three channels
        return self.regularizer.paint(images, is_padding)


def add_arguments(parser: argparse.ArgumentParser, preset: str = "voc") -> None:
    """The options of `run_sample.py` ("voc") and `run_sample_coco.py` ("coco")."""
    add = host_options.add_arguments(parser, preset).add_argument
    add(
        "--semples-terms",
        choices=("refine", "all"),
        default="refine",
        help="refine: L_refine beside CLIMS's own terms in (c), the paper's Table 4 as we read it; all: L_match "
        "too, and what --semples match needs (default: %(default)s)",
    )
    add(
        "--semples-scale",
        type=float,
        help="factor of SemPLeS's losses (default: the first of --hyper, CLIMS's for its foreground term)",
    )


def _warn_of_other_classes(class_names: Sequence[str]) -> None:
    """Warns where CLIMS's own loss, whose texts name classes from lists in its code, has no list of these names."""
    host_lists = getattr(sys.modules.get("clip_utils"), "category_dict", {}).values()
    if host_lists and all(first_difference(class_names, names) is not None for names in host_lists):
        warnings.warn(
            "--semples-classes differs from category_dict in CLIMS's clip_utils.py, whose names its own loss matches "
            "the same columns with: write your names there too, or leave that loss out (--hyper 0,0,0,0)",
            UserWarning,
            stacklevel=3,
        )


def _check_stage(args: argparse.Namespace) -> None:
    if args.semples == "match" and args.semples_terms == "refine":
        raise ValueError(
            "stage (a) is CLIMS's own training, which matches segments and labels already: run it without "
            "--semples, or give --semples-terms all"
        )
    if args.semples == "prompts" and not args.semples_start:
        raise ValueError("stage (b) looks through a trained network: give --semples-start a/res50_clims.pth")


class Training:
    """What the patch calls: `semples(img, x, label)` in every step, `semples.learn_prompts(...)` in (b).

    Args:
        args: CLIMS's, with ours.
        model: CLIMS's network, in `DataParallel` or not.
    """

    def __init__(self, args: argparse.Namespace, model: nn.Module) -> None:
        self.args = args
        self.adapter: ClimsAdapter | None = None
        if args.semples is None:
            return
        if not self.learns_prompts:
            host_options.check_averaged(model)
        _check_stage(args)
        network: Any = getattr(model, "module", model)
        if args.semples_start:
            weights = weights_of(args.semples_start, read_checkpoint(args.semples_start))
            load_weights(network, args.semples_start, weights)
        factors = [float(factor) for factor in args.hyper.split(",")]  # of CLIMS's own terms
        if args.semples_classes and any(factors):
            _warn_of_other_classes(host_options.preset_of(args).class_names)
        if args.semples == "refine" and args.semples_terms == "refine":
            args.semples_foreground_weight = args.semples_background_weight = 0.0
        scale = args.semples_scale
        if scale is None:
            scale = factors[0] or 1.0
        device = next(model.parameters()).device
        regularizer = host_options.build_regularizer(args, network.n_classes, device)
        self.adapter = ClimsAdapter(regularizer, scale=scale)
        self.log = host_options.LossLog()

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

        Under DDP every rank walks its share of the data; with the names in its packs, an image that a sampler
        repeats counts once.
        """
        assert self.adapter is not None
        network = without_ddp(model)
        with evaluating(network) as device:

            def walk() -> Iterator[tuple[Any, ...]]:
                for pack in loader:
                    images = pack["img"].to(device)
                    batch = (images, network(images), pack["label"])
                    yield (*batch, pack["name"]) if "name" in pack else batch

            learning = {"origin": network, **host_options.learning_options(self.args)}
            self.adapter.learn_prompts(walk(), self.args.semples_prompts, **learning)
        if is_first():
            print(f"SemPLeS: wrote {self.args.semples_prompts}; stage (c): --semples refine")
