"""mmsegmentation: SemPLeS from a config.

    custom_imports = dict(imports=["semples_plugin.adapters.mmseg"])

registers, in mmseg's own registries, `SemPLeSRegularizer` and `CamSegmentor` (MODELS); `LoadImageLabels` and
`PackCamInputs` (TRANSFORMS), `WsssVoc` and `WsssCoco` (DATASETS), `CamMetric` (METRICS), see `mmseg_data`;
`MergedScores` (MODELS) and `SegmentationMetric` (METRICS), see `mmseg_segments`; and `SemPLeSStages` (HOOKS),
see `mmseg_stages`. No compiled operator of mmcv is needed. DDP needs no flag:
CLIP has no trainable parameter, and a batch without labels still gives gradients to every parameter of the
model.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmengine.structures import PixelData
from mmseg.models.segmentors.base import BaseSegmentor
from mmseg.registry import MODELS
from mmseg.structures import SegDataSample
from torch import Tensor, nn

from semples_plugin.adapters import mmseg_data, mmseg_segments, mmseg_stages
from semples_plugin.adapters.base import CamAdapter
from semples_plugin.adapters.host_options import refuse_hosts_own
from semples_plugin.adapters.mmseg_runner import warnings_in_log
from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.data.image_labels import read_class_names
from semples_plugin.masks import ClassMasks, check_kind
from semples_plugin.presets import Preset, Statistics, load_preset
from semples_plugin.prompts import BackgroundPrompts
from semples_plugin.regularizer import IMAGENET_MEAN, IMAGENET_STD, SemPLeSRegularizer
from semples_plugin.utils.checks import check_known, check_number
from semples_plugin.utils.text import shown

__all__ = ["CamSegmentor", "build_regularizer", "mmseg_data", "mmseg_segments", "mmseg_stages"]


@MODELS.register_module(name="SemPLeSRegularizer", force=True)
def build_regularizer(
    clip: Mapping[str, Any] | str | None = None,
    preset: str = "voc",
    class_names: Sequence[str] | str | None = None,
    weights: Mapping[str, float] | None = None,
    prompts: str | None = None,
    statistics: Statistics = (IMAGENET_MEAN, IMAGENET_STD),
    **options: Any,
) -> SemPLeSRegularizer:
    """A regularizer from a config's dict.

    Args:
        clip: arguments of `FrozenClip.load` (`name`, `pretrained`, `precision`, ...); "demo" for the demo's
            tiny CLIP; by default the preset's.
        preset: class names, weights, masks and the schedule of (b), see `load_preset`. `SemPLeSStages` and
            `CamSegmentor` read their defaults from it.
        class_names: instead of the preset's: a list, or a text file's path.
        weights: of `LossWeights` that replace the preset's, `dict(refine=0.1)`.
        prompts: a prompts file, to refine from the start; without it the hook `SemPLeSStages` learns them.
        statistics: mean and standard deviation of the images, which a `CamSegmentor` takes from its
            preprocessor.
        options: other fields of the preset to replace, such as `mask_eps=1e-3`, and further options of
            `SemPLeSRegularizer`, such as `fill`, `max_pairs`, `input_mean`.
    """
    refuse_hosts_own(options)
    if class_names is not None:
        options["class_names"] = read_class_names(class_names) if isinstance(class_names, str) else class_names
    if weights is not None:
        options["weights"] = weights
    if prompts is not None:
        options["prompts"] = BackgroundPrompts.load(prompts)
    base = load_preset(preset)
    return base.build_regularizer(_load_clip(clip, base), statistics=statistics, **options)


def _load_clip(clip: Mapping[str, Any] | str | None, preset: Preset) -> FrozenClip:
    if clip == "demo":
        return FrozenClip.load(clip)
    if clip is not None and not isinstance(clip, Mapping):
        error = ValueError if isinstance(clip, str) else TypeError
        raise error(
            f'clip: expected dict(name="ViT-B-32-quickgelu", pretrained="openai"), or "demo", got {shown(clip)}'
        )
    arguments = clip or {}
    check_known("clip", arguments, list(inspect.signature(FrozenClip.load).parameters))
    return preset.load_clip(**arguments)


@MODELS.register_module(force=True)
class CamSegmentor(BaseSegmentor):
    """A backbone of mmseg's and a 1 x 1 classifier, whose maps are CAMs, trained from image labels.

    Its losses are `loss_cls` (multi-label soft margin) and, from stage (a) on, the named objectives of
    SemPLeS. Its predictions are CAM-based segmentations with a constant background score, so that mmseg's
    tools, metrics and visualizers work on them; `CamMetric` reads the scores, which are in `seg_logits`.

    Args:
        backbone: config of any backbone.
        num_classes: K, without background.
        in_channels: channels of the chosen feature map.
        regularizer: config of `SemPLeSRegularizer`, or one that was built; None for a baseline.
        in_index: index of the feature map among the backbone's outputs.
        kind: of the CAMs, see `ClassMasks.of_kind`: "relu" or "logits".
        eps: of the masks' normalisation, in the units of the CAMs; None for the preset's of the regularizer,
            which may differ in stage (b). "logits" need none.
        threshold: background score of the predictions, in [0, 1].
        cls_weight: weight of `loss_cls`; the release trains (a) and (c) with 0.
        scale: factor of the objectives.
        data_preprocessor: mmseg's; its mean and std say how the images are normalised. They must be RGB.
        init_cfg: of mmengine.
        pretrained, train_cfg, test_cfg: unused; mmseg's `init_model` gives them to every segmentor.

    Attributes:
        active: whether `loss` includes the objectives; `SemPLeSStages` sets it.
        learning_prompts: whether masks are made for stage (b), which may have another eps; `SemPLeSStages`
            sets it.

    Raises:
        TypeError, ValueError: where an option is of another kind or out of its range.

    A custom CAM head is a subclass whose `extract_feat` returns other raw CAMs. `SemPLeSStages` also trains
    any other segmentor that has `regularizer`, `active` and `images_and_masks`.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any],
        num_classes: int,
        in_channels: int,
        regularizer: Mapping[str, Any] | SemPLeSRegularizer | None = None,
        *,
        in_index: int = -1,
        kind: str = "relu",
        eps: float | None = None,
        threshold: float = 0.3,
        cls_weight: float = 1.0,
        scale: float = 1.0,
        data_preprocessor: Mapping[str, Any] | None = None,
        init_cfg: Any = None,
        pretrained: None = None,
        train_cfg: None = None,
        test_cfg: None = None,
    ) -> None:
        check_kind(kind)
        _check_sizes(num_classes, in_channels, in_index)
        _check_factors(eps, threshold, cls_weight, scale)
        _check_regularizer(regularizer)
        super().__init__(data_preprocessor=data_preprocessor, init_cfg=init_cfg)
        self.backbone = MODELS.build(backbone)
        self.classifier = nn.Conv2d(in_channels, num_classes, 1, bias=False)
        self.num_classes, self.in_index = num_classes, in_index
        self.out_channels = num_classes + 1  # of the scores; mmseg's test-time augmentation reads it
        self.align_corners = False
        self.kind, self.eps, self.threshold, self.cls_weight = kind, eps, threshold, cls_weight
        self.adapter: CamAdapter | None = None
        if regularizer is not None:
            self.adapter = CamAdapter(self._build_regularizer(regularizer), kind, scale=scale)
        self.active = regularizer is not None
        self.learning_prompts = False

    @property
    def regularizer(self) -> SemPLeSRegularizer:
        """The regularizer; a `ValueError` where the config has none."""
        if self.adapter is None:
            raise ValueError('the model has no regularizer: give regularizer=dict(type="SemPLeSRegularizer", ...)')
        return self.adapter.regularizer

    def extract_feat(self, inputs: Tensor) -> Tensor:
        """Raw CAMs `[N, K, h, w]` of images `[N, 3, H, W]`."""
        outputs = self.backbone(inputs)
        features = outputs[self.in_index] if isinstance(outputs, (tuple, list)) else outputs
        if features.shape[1] != self.classifier.in_channels:
            raise ValueError(
                f"in_channels is {self.classifier.in_channels}, the backbone's feature map {self.in_index} "
                f"has {features.shape[1]}"
            )
        return self.classifier(features)

    def encode_decode(self, inputs: Tensor, batch_data_samples: Any) -> Tensor:
        """The same, under the name that mmseg's base class asks for."""
        return self.extract_feat(inputs)

    def _forward(self, inputs: Tensor, data_samples: Any = None) -> Tensor:
        return self.extract_feat(inputs)

    def loss(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> dict[str, Tensor]:
        """Named, weighted losses of a batch, and figures that are logged but not trained.

        Args:
            inputs: preprocessed images `[N, 3, H, W]`.
            data_samples: with image labels.
        """
        labels = mmseg_data.labels_of(data_samples, self.num_classes)
        cams = self.extract_feat(inputs)
        losses: dict[str, Tensor] = {}
        if self.cls_weight:
            targets = labels.to(inputs.device, non_blocking=True)
            losses["loss_cls"] = self.cls_weight * F.multilabel_soft_margin_loss(cams.mean((2, 3)), targets)
        if self.adapter is not None and self.active:
            if self.regularizer.clip.device != inputs.device:
                self.regularizer.to(inputs.device)
            with warnings_in_log():
                images, masks = self._images_and_masks(inputs, data_samples, cams, labels)
                objectives = self.regularizer(images, masks)
            losses.update({name: self.adapter.scale * value for name, value in objectives.items()})
            losses.update(self.regularizer.figures)
        elif not losses:
            losses["loss_cls"] = 0.0 * cams.sum()  # a backward pass needs a loss
        return losses

    def images_and_masks(self, inputs: Tensor, data_samples: Sequence[SegDataSample]) -> tuple[Tensor, ClassMasks]:
        """A preprocessed batch for the objectives: images without padding, and masks of the present classes."""
        labels = mmseg_data.labels_of(data_samples, self.num_classes)
        return self._images_and_masks(inputs, data_samples, self.extract_feat(inputs), labels)

    def _images_and_masks(
        self, inputs: Tensor, data_samples: Sequence[SegDataSample], cams: Tensor, labels: Tensor
    ) -> tuple[Tensor, ClassMasks]:
        assert self.adapter is not None
        images = self.regularizer.paint(inputs, _padding(inputs, data_samples))
        preset = self.regularizer.preset
        if self.eps is not None:
            self.adapter.eps = self.eps
        elif preset is not None:
            self.adapter.eps = preset.stage_eps("prompts" if self.learning_prompts else "match")
        return images, self.adapter.masks(cams.float(), labels)

    @torch.no_grad()
    def predict(self, inputs: Tensor, data_samples: Sequence[SegDataSample] | None = None) -> Sequence[SegDataSample]:
        """CAM-based segmentations at the images' original sizes.

        Of the classes in a sample's image labels, or, without labels, of those whose mean logit is positive.

        Returns:
            The samples, with `pred_sem_seg` `[1, H, W]` of 0 for background and k + 1 for class k, and
            `seg_logits` `[K + 1, H, W]`: the background score, then the classes' scores in [0, 1], or -1 for
            an absent class.
        """
        cams = self.extract_feat(inputs).float()
        data_samples = data_samples or [SegDataSample() for _ in cams]
        for cam, sample in zip(cams, data_samples, strict=True):
            labels = mmseg_data.label_of(sample, self.num_classes)
            present = cam.mean((1, 2)) > 0 if labels is None else labels.to(cam.device) == 1
            scores = self._scores(self._to_original(cam[None], inputs, sample.metainfo)[0], present)
            background = torch.full_like(scores[:1], self.threshold)
            logits = torch.cat([background, scores])
            segmentation = logits.argmax(0, keepdim=True)
            predicted = {"seg_logits": PixelData(data=logits), "pred_sem_seg": PixelData(data=segmentation)}
            sample.set_data(predicted)
        return data_samples

    def _scores(self, cams: Tensor, present: Tensor) -> Tensor:
        """Scores in [0, 1] from CAMs `[K, H, W]`; -1, below every background score, for absent classes."""
        if self.kind == "logits":
            scores = cams.sigmoid()
        else:
            scores = cams.relu()
            scores = scores / scores.amax((1, 2), keepdim=True).clamp(min=1e-12)
        scores[~present] = -1
        return scores

    def _to_original(self, cams: Tensor, inputs: Tensor, meta: Mapping[str, Any]) -> Tensor:
        """CAMs `[1, K, H, W]` of the image as it was read: without padding, flip and resizing."""
        height, width = inputs.shape[2:]
        cams = F.interpolate(cams, (height, width), mode="bilinear", align_corners=False)
        padding = meta.get("img_padding_size", meta.get("padding_size", (0, 0, 0, 0)))
        left, right, top, bottom = padding
        cams = cams[:, :, top : height - bottom, left : width - right]
        if meta.get("flip"):
            cams = cams.flip(_FLIPPED_AXES[meta["flip_direction"]])
        size = tuple(meta.get("ori_shape", cams.shape[2:]))[:2]
        return F.interpolate(cams, size, mode="bilinear", align_corners=False)

    def _build_regularizer(self, regularizer: Mapping[str, Any] | SemPLeSRegularizer) -> SemPLeSRegularizer:
        """The regularizer of a config, with the preprocessor's statistics; checked and logged."""
        if isinstance(regularizer, SemPLeSRegularizer):
            built = regularizer
        else:
            settings = {"type": "SemPLeSRegularizer", **regularizer}
            if "input_mean" not in settings:
                settings["statistics"] = self._statistics()
            built = MODELS.build(settings)
        names = built.class_names
        if len(names) != self.num_classes:
            raise ValueError(f"num_classes is {self.num_classes}, the regularizer names {len(names)} classes")
        print_log(f"SemPLeS: {built.clip}; classes: {', '.join(names)}", logger="current", level=logging.INFO)
        return built

    def _statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of the preprocessor, on the scale of [0, 1] pixels."""
        preprocessor: Any = self.data_preprocessor
        if not getattr(preprocessor, "_enable_normalize", False):
            raise ValueError(
                "data_preprocessor: expected mean and std, which say how images are normalised; or give the "
                "regularizer input_mean and input_std itself"
            )
        if not getattr(preprocessor, "_channel_conversion", False):
            print_log(
                "SemPLeS: data_preprocessor has no bgr_to_rgb=True; images must be loaded as RGB then, or CLIP "
                "sees wrong colours",
                logger="current",
                level=logging.WARNING,
            )
        mean = tuple((preprocessor.mean / 255).flatten().tolist())
        std = tuple((preprocessor.std / 255).flatten().tolist())
        return mean, std


_FLIPPED_AXES = {"horizontal": (3,), "vertical": (2,), "diagonal": (2, 3)}
"""Axes of `[1, K, H, W]` that mmseg's `flip_direction` names."""


def _check_sizes(num_classes: int, in_channels: int, in_index: int) -> None:
    check_number("num_classes", num_classes, 1, whole=True)
    check_number("in_channels", in_channels, 1, whole=True)
    check_number("in_index", in_index, whole=True)


def _check_factors(eps: float | None, threshold: float, cls_weight: float, scale: float) -> None:
    if eps is not None:
        check_number("eps", eps, 0, above=True)
    check_number("threshold", threshold, 0, 1)
    check_number("cls_weight", cls_weight, 0)
    check_number("scale", scale, 0)


def _check_regularizer(regularizer: Any) -> None:
    if regularizer is not None and not isinstance(regularizer, (Mapping, SemPLeSRegularizer)):
        raise TypeError(
            'regularizer: expected dict(type="SemPLeSRegularizer", ...), one that was built, or None, got '
            f"{shown(regularizer)}"
        )


def _padding(inputs: Tensor, data_samples: Sequence[SegDataSample]) -> Tensor:
    """Which pixels of a batch are padding, by what mmseg wrote into the samples: bool `[N, H, W]`."""
    padding = torch.zeros(len(inputs), *inputs.shape[2:], dtype=torch.bool, device=inputs.device)
    height, width = inputs.shape[2:]
    for is_padding, sample in zip(padding, data_samples, strict=True):
        left, right, top, bottom = sample.metainfo.get("padding_size", (0, 0, 0, 0))
        is_padding[:top] = True
        is_padding[height - bottom :] = True
        is_padding[:, :left] = True
        is_padding[:, width - right :] = True
    return padding
