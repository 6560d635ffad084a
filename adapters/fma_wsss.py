"""FMA-WSSS: signed Grad-CAMs `[P, h, w]` of the present classes, as an entry of its config's `loss_items`.

    from semples_plugin.adapters.fma_wsss import LossItem

    semples = cfg.loss.loss_items.semples
    semples.cri = LossItem("refine", preset="voc", prompts="prompts.safetensors")
    semples.cal = lambda cri, inp, out: cri(inp.img, out.pos_cam, inp.fg_cls_lb)
    semples.weights = 1.0

The maps are gradients themselves, so the objectives reach the learned context, and nothing else, by
second-order gradients. Stages (a) and (c) need float32 throughout, `cfg.amp.enabled = False` and
`cfg.model.ini.fp32 = True`: in half precision small maps vanish, and their gradients overflow. Images are
normalised by CLIP's mean and standard deviation. The host's own CLIP isn't shared, because the host patches
its towers.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor

from semples_plugin.adapters.base import CamAdapter
from semples_plugin.adapters.host_options import UNLEARNED, refuse_hosts_own
from semples_plugin.masks import ClassMasks
from semples_plugin.presets import Preset, load_preset
from semples_plugin.prompt_learning.epochs import LearningOptions
from semples_plugin.prompt_learning.learn import learn_background_prompts
from semples_plugin.prompt_learning.walk import harden
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.regularizer import SemPLeSRegularizer
from semples_plugin.utils.atomic_files import check_writable
from semples_plugin.utils.checks import check_known, warn_once
from semples_plugin.utils.stages import STAGES

EPS = 1e-7  # raw Grad-CAMs reach 5e-4


class FmaAdapter(CamAdapter):
    """The objectives for `out.pos_cam`: ReLU, then min-max per pair.

    Args:
        regularizer: with `input_mean=None, input_std=None`, since the images are CLIP-normalised already.
        eps: of the normalisation, in the units of the maps; far below 5e-4, which raw Grad-CAMs reach.
        scale: factor of the loss.

    Raises:
        ValueError: for a regularizer of other image statistics.
    """

    def __init__(self, regularizer: SemPLeSRegularizer, *, eps: float = EPS, scale: float = 1.0) -> None:
        clip = regularizer.clip
        if (regularizer.input_mean, regularizer.input_std) != (clip.image_mean, clip.image_std):
            raise ValueError("regularizer: FMA-WSSS's images are CLIP-normalised; give input_mean=None, input_std=None")
        super().__init__(regularizer, "min-max", eps=eps, scale=scale)

    def masks(self, cams: Tensor, labels: Tensor) -> ClassMasks:
        """Masks `[P, h, w]` in [0, 1] of maps `[P, h, w]`, which are in the order of `nonzero(labels)`."""
        image_index, class_index = labels.nonzero(as_tuple=True)
        if len(cams) != len(image_index):
            raise ValueError(f"cams: expected one map for each of the {len(image_index)} labels, got {len(cams)}")
        if cams.dtype == torch.float16 and cams.requires_grad:
            warn_once(
                "half-precision Grad-CAMs",
                "pos_cam is float16: its gradient is about 1 / max(pos_cam), which overflows at GradScaler's start "
                "value, so that steps are skipped; set cfg.amp.enabled = False and cfg.model.ini.fp32 = True",
            )
        pairs = ClassMasks.from_pairs(cams.float(), image_index, class_index)
        num_images, num_classes = labels.shape  # so that labels of another data set's width are refused
        pairs = replace(pairs, num_images=num_images, num_classes=num_classes)
        return pairs.relu().of_kind("min-max", self.eps)


class LossItem:
    """The `cri` of FMA-WSSS's `loss_items`: stage (a) "match", (b) "prompts" or (c) "refine".

    Nothing is loaded before the first call, so that reading a config stays cheap.

    Args:
        stage: "prompts" trains nothing: it keeps the features of `batches` calls, learns the prompts, writes
            them and ends the process. Run it with weight decay 0 and this loss item alone, so that the
            context stays unchanged.
        preset: class names, weights and schedules. Its eps, for CAMs that reach 1, is replaced by 1e-7, for
            raw Grad-CAMs that reach 5e-4; its image statistics are unused, since the images are
            CLIP-normalised.
        prompts: file that (b) writes and (c) reads; "unlearned" in (c) for random prompts that nothing learned, the
            second row of the paper's Table 5.
        batches: for (b), the number of calls that make one walk over the data.
        clip, pretrained, precision: see `FrozenClip.load`; the preset's model by default.
        scale: factor of the loss.
        seed: of the prompts.
        learning: options of `learn_background_prompts` that replace the preset's.
        replaced: fields of the preset, such as `class_names`, `prompt_length` or `mask_eps`; None for the preset's.
            `weights` is a mapping of those to replace: `dict(image=0)` in (b) learns from the texts alone, and
            `dict(text=0)` from the images alone, as Table 5's rows do; `prompt_foreground` is of (b), too; (a) and
            (c) read `foreground`, `background` and `refine`.

    Raises:
        TypeError, ValueError: where an option is unknown, of another kind or out of its range.
        FileNotFoundError: where stage (c) has no prompts file.
    """

    def __init__(
        self,
        stage: str,
        *,
        preset: str = "voc",
        prompts: str | Path = "prompts.safetensors",
        batches: int | None = None,
        clip: str | None = None,
        pretrained: str | None = None,
        precision: str = "fp32",
        scale: float = 1.0,
        seed: int = 0,
        learning: dict[str, Any] | None = None,
        **replaced: Any,
    ) -> None:
        _check_stage(stage, batches, prompts)
        refuse_hosts_own(replaced)
        given = {name: value for name, value in replaced.items() if value is not None}
        self.preset = load_preset(preset).with_(**{"mask_eps": EPS, "prompt_mask_eps": EPS, **given})
        self.stage, self.prompts, self.batches = stage, Path(prompts), batches
        self.clip, self.pretrained, self.precision = clip, pretrained, precision
        self.scale, self.seed = scale, seed
        self.learning = _learning_options(self.preset, learning, seed)
        self.adapter: FmaAdapter | None = None
        self._kept: list[tuple[Tensor, ...]] = []

    def __call__(self, images: Tensor, cams: Tensor, labels: Tensor) -> Tensor:
        """The scalar for `loss_items`.

        Args:
            images: `inp.img` `[N, 3, H, W]`, in CLIP's statistics.
            cams: `out.pos_cam` `[P, h, w]`, of any precision.
            labels: `inp.fg_cls_lb`, multi-hot `[N, K]`.
        """
        if self.adapter is None:
            self.adapter = self._build(images.device)
        if self.stage != "prompts":
            return self.adapter.loss(images, cams, labels)
        self._keep_features(self.adapter, images, cams, labels)
        if len(self._kept) == self.batches:
            self._learn_prompts(self.adapter)
            sys.exit(0)
        return 0.0 * cams.float().sum()

    def get_named_param_groups(self) -> dict[str, Any]:
        """No parameters: prompts are learned in stage (b), not by the host's optimiser."""
        return {}

    def display(self, iteration: int, writer: Any) -> None:
        """Prints the terms of the last loss and writes them to TensorBoard; FMA-WSSS calls it for each loss."""
        losses = self.adapter.losses if self.adapter else {}
        for name, value in losses.items():
            print(f"    {name}: {float(value):.4f}")
            writer.add_scalar(f"semples/{name}", float(value), iteration + 1)

    def _keep_features(self, adapter: FmaAdapter, images: Tensor, cams: Tensor, labels: Tensor) -> None:
        masks = harden(adapter.masks(cams, labels), self.learning["mask_tau"], adapter.regularizer)
        foregrounds, backgrounds = adapter.regularizer.pair_features(images, masks)
        self._kept.append((foregrounds.cpu(), backgrounds.cpu(), masks.class_index.cpu()))

    def _learn_prompts(self, adapter: FmaAdapter) -> None:
        options = {"seed": self.seed, "save_to": self.prompts, **self.learning, "mask_tau": 1}  # the masks are hard
        learn_background_prompts(adapter.regularizer, self._kept, **options)
        print(f'SemPLeS: wrote {self.prompts}; stage (c): LossItem("refine", prompts=...)')

    def _build(self, device: torch.device) -> FmaAdapter:
        clip = self.preset.load_clip(self.clip, self.pretrained, device=device, precision=self.precision)
        regularizer = self.preset.build_regularizer(clip, statistics=(None, None))
        if self.stage == "refine" and _is_unlearned(self.prompts):
            regularizer.prompts = self.preset.new_prompts(clip.text_width, seed=self.seed)
            regularizer.prompts.learned = True  # a row of the table, no mistake to warn of
        elif self.stage == "refine":
            regularizer.prompts = BackgroundPrompts.load(self.prompts)
        elif self.stage == "prompts":
            check_writable("save_to", self.prompts)
            regularizer.prompts = self.preset.new_prompts(clip.text_width, seed=self.seed)
        return FmaAdapter(regularizer, eps=self.preset.stage_eps(self.stage), scale=self.scale)


def _is_unlearned(prompts: str | Path) -> bool:
    return str(prompts) == UNLEARNED


def _check_stage(stage: str, batches: int | None, prompts: str | Path) -> None:
    if stage not in STAGES:
        raise ValueError(f"stage: expected one of {', '.join(STAGES)}, got {stage!r}")
    if not isinstance(batches, (Integral, NoneType)):
        raise TypeError(f"batches: expected an integer, the calls that make one walk, got {batches!r:.80}")
    if stage == "prompts" and (batches is None or batches < 1):
        raise ValueError("batches: stage (b) needs the number of calls that make one walk over the data")
    if stage == "prompts" and _is_unlearned(prompts):
        raise ValueError('prompts: "unlearned" stands for no file; stage (b) learns prompts and needs one to write')
    if stage == "refine" and not _is_unlearned(prompts) and not Path(prompts).is_file():
        raise FileNotFoundError(f"stage (c) needs the prompts of stage (b): there is no {prompts}")


def _learning_options(preset: Preset, replaced: Mapping[str, Any] | None, seed: int) -> dict[str, Any]:
    """Options of `learn_background_prompts`: the preset's, with what is to be replaced in them."""
    defaults = preset.learning_options()
    check_known("learning", replaced or {}, [*defaults, "progress"])
    options = {**defaults, **(replaced or {})}
    LearningOptions(**{name: options[name] for name in defaults}, seed=seed)  # checks them
    return options
