"""Straightforward steps, with the encoder passes that the authors' public code makes; each waste can be left out.

They were written from a count of those passes, encode all pairs in one batch, and compute the library's losses.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semples_plugin import functional
from semples_plugin.clip import fast_towers
from semples_plugin.masks import ClassMasks
from semples_plugin.regularizer import SemPLeSRegularizer

REFINEMENT_WASTE = {
    "weight gradients": "gradients for CLIP's weights, which nobody uses",
    "label texts": "each pair's label text encoded three times, instead of K once and for all",
    "prompt texts": "all K prompts encoded in every step, over 77 tokens, with gradients",
    "foreground twice": "each foreground view encoded for matching and again for refinement",
    "separate batches": "foregrounds and backgrounds encoded one after the other",
    "last block": "CLIP's last block computed for tokens that nobody reads",
    "attention": "attention's projections on a batch that torch turns around",
    "patches": "patches embedded by a convolution",
    "activations": "QuickGELU keeping two tensors for its gradient",
}
PROMPT_WASTE = {
    "weight gradients": REFINEMENT_WASTE["weight gradients"],
    "label texts": "each pair's label text encoded in every step, with gradients",
    "backgrounds": "each background encoded in every epoch",
    "padding": "prompts of 77 tokens, of which all behind the end of text can't be seen",
    "absent classes": "prompts of classes encoded that are not in the batch",
    "attention": REFINEMENT_WASTE["attention"],
    "activations": REFINEMENT_WASTE["activations"],
}


class PlainSteps:
    """Losses of stages (c) and (b) with as much waste as is asked for.

    Args:
        regularizer: with prompts and a native `open_clip.CLIP`.
        waste: names of `REFINEMENT_WASTE` or `PROMPT_WASTE`.
    """

    def __init__(self, regularizer: SemPLeSRegularizer, waste: Collection[str]) -> None:
        self.regularizer, self.waste = regularizer, frozenset(waste)
        self.model: Any = regularizer.clip.model
        texts = [regularizer.template.format(name) for name in regularizer.class_names]
        self.label_ids = regularizer.clip.tokenizer(texts).to(regularizer.clip.device)

    def refinement(self, images: Tensor, masks: ClassMasks) -> Tensor:
        """L_match + L_refine of a batch."""
        with self._towers():
            return self._refinement(images, masks)

    def prompts(self, images: Tensor, masks: ClassMasks, features: Tensor) -> Tensor:
        """L_prompt of a batch from its background features, unless encoding these again is among the waste."""
        with self._towers():
            return self._prompt_loss(images, masks, features)

    def _refinement(self, images: Tensor, masks: ClassMasks) -> Tensor:
        regularizer, weights, pairs = self.regularizer, self.regularizer.weights, len(masks)
        kept = regularizer.prompt_features()
        self._thaw()
        views = regularizer.views(images, masks)
        if "separate batches" in self.waste or "foreground twice" in self.waste:
            foreground, background = self._images(views[:pairs]), self._images(views[pairs:])
        else:
            foreground, background = self._images(views).chunk(2)
        again = self._images(views[:pairs]) if "foreground twice" in self.waste else foreground
        match, repel = functional.matching_loss(
            functional.similarity(foreground, self._labels(masks.class_index)),
            functional.similarity(background, self._labels(masks.class_index)),
        )
        if "label texts" in self.waste:
            with torch.no_grad():
                self._labels(masks.class_index)
        prompts = self._prompts() if "prompt texts" in self.waste else kept
        refine = functional.refinement_loss(functional.similarity(again, prompts[masks.class_index]))
        return weights.foreground * match + weights.background * repel + weights.refine * refine

    def _prompt_loss(self, images: Tensor, masks: ClassMasks, features: Tensor) -> Tensor:
        regularizer, weights, classes = self.regularizer, self.regularizer.weights, masks.class_index
        self._thaw()
        if "backgrounds" in self.waste:
            features = self._images(regularizer.views(images, masks.detach())[len(masks) :])
        if "padding" in self.waste:
            described = self._prompts()[classes]
        elif "absent classes" in self.waste:
            described = regularizer._need_prompts().encode(regularizer.clip)[classes]
        else:
            present, places = classes.unique(return_inverse=True)
            described = regularizer._need_prompts().encode(regularizer.clip, present)[places]
        image, text = functional.prompt_loss(
            functional.similarity(described, features), functional.similarity(described, self._labels(classes))
        )
        return weights.image * image + weights.text * text

    def _towers(self) -> AbstractContextManager[None]:
        """The library's towers, with attention and patches of torch and open_clip where those are among the waste."""
        return fast_towers.without(*(self.waste & {"attention", "patches"}))

    def _thaw(self) -> None:
        self.model.requires_grad_("weight gradients" in self.waste)  # each time: the library freezes it again

    def _images(self, views: Tensor) -> Tensor:
        if not self.waste & {"weight gradients", "last block"}:
            return self.regularizer.clip.encode_images(views)
        # `encode_images` would freeze the weights again, and skip the last block's other tokens.
        dtype = next(self.model.visual.parameters()).dtype
        return F.normalize(self.model.visual(views.to(dtype)).float(), dim=-1)

    def _labels(self, classes: Tensor) -> Tensor:
        if "label texts" not in self.waste:
            return self.regularizer.label_features[classes]
        return F.normalize(self.model.encode_text(self.label_ids[classes]).float(), dim=-1)

    def _prompts(self) -> Tensor:
        """All K prompts, over the whole context."""
        model, prompts = self.model, self.regularizer._need_prompts()
        (ids,) = self.regularizer.clip.tokenizer(["a photo of " + "x " * prompts.vectors.shape[1] + "."])
        ids = ids.to(self.label_ids).expand(prompts.num_classes, -1)
        embedded = model.token_embedding(ids)
        start = 4  # after the start of text and "a photo of"
        end = start + prompts.vectors.shape[1]
        embedded = torch.cat([embedded[:, :start], prompts.vectors.to(embedded), embedded[:, end:]], dim=1)
        hidden = model.transformer(embedded + model.positional_embedding.to(embedded), attn_mask=model.attn_mask)
        pooled = model.ln_final(hidden)[torch.arange(len(ids)), ids.argmax(-1)]
        return F.normalize((pooled @ model.text_projection).float(), dim=-1)
