"""`FrozenClip`: a CLIP of open_clip's, frozen, that encodes images, texts and prompt vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from semples_plugin.clip.fast_towers import (
    OnceDifferentiable,
    encode_pixels,
    fold_batch_norms,
    lean_activations,
    read_one_token,
)
from semples_plugin.utils.checks import CheckSchedule, check_device, check_tensor

Tokenizer = Callable[[list[str]], Tensor]

PROMPT_TEMPLATE = "a photo of {}."
"""Text of a background prompt; the context vectors take the place of "{}"."""

TEXTS_AT_ONCE = 128
"""Texts and prompts that are encoded at once without gradients, so that memory doesn't grow with the classes."""

_PLACEHOLDERS = (("photo", "of"), ("x", "o"))  # words that a tokenizer is likely to keep as single tokens

_TEXT_TOWER = ("token_embedding", "positional_embedding", "transformer", "ln_final", "text_projection", "attn_mask")


@dataclass(frozen=True)
class PromptLayout:
    """Token ids of a prompt `[T]`, on CLIP's device; context vectors replace those from `start` to `start + length`."""

    ids: Tensor
    start: int
    length: int


class FrozenClip:
    """CLIP's joint space: unit vectors for images, texts and prompts; gradients reach inputs, never CLIP.

    The model is set to eval mode and its parameters stop requiring gradients, in place. It computes in the
    precision of its own weights: a surrounding autocast neither speeds it up nor changes its features. It is
    no `nn.Module`, so a host model that holds one keeps its state dict, its parameters and its optimiser as
    they are.

    >>> clip = FrozenClip.load("demo")  # the embedded tiny CLIP
    >>> clip
    FrozenClip(the demo's tiny CLIP, images 64 x 64, float32, on cpu)
    >>> texts = clip.encode_texts(["a photo of rails.", "a photo of water."])
    >>> images = torch.zeros(1, 3, 64, 64, requires_grad=True)
    >>> similarities = clip.encode_images(images) @ texts.T
    >>> similarities.shape
    torch.Size([1, 2])
    >>> similarities.sum().backward()
    >>> images.grad.shape, any(parameter.requires_grad for parameter in clip.model.parameters())
    (torch.Size([1, 3, 64, 64]), False)

    Args:
        model: an `open_clip.CLIP` or `CustomTextCLIP` whose text tower takes token embeddings. Hugging Face
            text towers and CoCa are refused.
        tokenizer: maps a list of M strings to token ids `[M, context]`; nothing else is asked of it.
        name: what error messages and saved prompts call this model; made from its class where left out.

    Raises:
        TypeError: for a model without a text tower that takes token embeddings.
        ValueError: for a model made under `torch.inference_mode()`.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, name: str | None = None) -> None:
        self._text = _text_tower(model)
        if self._text.token_embedding.weight.is_inference():
            raise ValueError("model: made under torch.inference_mode(), it lets no gradient through; make it outside")
        self.model = model
        self._checks = CheckSchedule()
        self.freeze()
        self.tokenizer = tokenizer
        self.name = name or f"{type(model).__name__} built by the caller"
        visual: Any = model.visual
        size = visual.image_size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.image_mean: tuple[float, ...] = tuple(getattr(visual, "image_mean", None) or OPENAI_DATASET_MEAN)
        self.image_std: tuple[float, ...] = tuple(getattr(visual, "image_std", None) or OPENAI_DATASET_STD)
        # Low-precision models keep their layer norms in float32; the first convolution says what images must be.
        self._image_dtype = next(p.dtype for p in visual.parameters() if p.ndim == 4)
        self._layouts: dict[Any, PromptLayout] = {}

    @classmethod
    def load(
        cls,
        name: str,
        pretrained: str | Path | None = None,
        *,
        device: str | torch.device = "cpu",
        precision: str = "fp32",
        cache_dir: str | None = None,
    ) -> FrozenClip:
        """Loads a model with its weights and its tokenizer through open_clip.

        Args:
            name: an open_clip name ("ViT-B-32-quickgelu"), "local-dir:PATH", a folder with
                `open_clip_config.json` and the weights, or "demo", the embedded tiny CLIP.
            pretrained: an open_clip tag ("openai"), or the path of a weights file. OpenAI's own `ViT-B-32.pt`
                is recognised and gets its QuickGELU; for other files the name decides, and a warning says so
                where it matters. Not used with "local-dir:" and "demo".
            device: where the model is put; see `to`.
            precision: "fp32", "bf16" or "fp16", of the weights and of the computation.
            cache_dir: where open_clip keeps its downloads.

        Raises:
            ValueError: for an unknown name, tag or precision (the nearest known ones are named), weights that
                are damaged or another model's, a device that isn't there, or a tower that can't take prompt
                vectors.
            FileNotFoundError: when the weights or the tokenizer are neither cached nor to be downloaded.
        """
        from semples_plugin.clip.loading import load_open_clip

        device = check_device(device)  # before the weights are read
        model, tokenizer, full_name = load_open_clip(name, pretrained, precision=precision, cache_dir=cache_dir)
        lean_activations(model)
        fold_batch_norms(model)
        return cls(model, tokenizer, full_name).to(device)

    def __repr__(self) -> str:
        height, width = self.image_size
        dtype = str(self._image_dtype).removeprefix("torch.")
        return f"FrozenClip({self.name}, images {height} x {width}, {dtype}, on {self.device})"

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self._text.positional_embedding.device

    @property
    def text_width(self) -> int:
        """W, the width of token embeddings and so of prompt vectors."""
        return self._text.token_embedding.weight.shape[1]

    @property
    def token_std(self) -> float:
        """Standard deviation of the token embeddings: a natural scale for prompts to start from."""
        return float(self._text.token_embedding.weight.float().std())

    def to(self, device: str | torch.device) -> FrozenClip:
        """Moves the model, in place, and returns self."""
        self.model.to(device)
        return self

    def encode_images(self, images: Tensor) -> Tensor:
        """E_I, CLIP's image encoder.

        Args:
            images: `[B, 3, H, W]`, CLIP-normalised, H x W = `image_size`.

        Returns:
            `[B, D]`, unit length, float32 (float64 for a float64 model); differentiable in `images`.

        Raises:
            TypeError: for what is no tensor of floating-point values.
            ValueError: for images of another size, and where a model in fp16 overflows.
        """
        check_tensor("images", images, shape="[B, 3, H, W]")
        if images.shape[1:] != (3, *self.image_size):
            height, width = self.image_size
            raise ValueError(f"images: {self.name} takes [B, 3, {height}, {width}], got {list(images.shape)}")
        with self._frozen():
            return self.features_of(images)

    def features_of(self, images: Tensor) -> Tensor:
        """`encode_images` without its checks, for graphs of `torch.compile`: of a model that is frozen already."""
        return self._unit(encode_pixels(self.model.visual, images.to(self._image_dtype)), "images")

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """E_T, CLIP's text encoder, of M strings: `[M, D]`, unit length, without gradients."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError(f"texts: expected a list of strings, got {texts!r:.80}")
        ids = self._token_ids(list(texts)).to(self.device)
        with self._frozen():
            parts = [self.model.encode_text(part) for part in ids.split(TEXTS_AT_ONCE)]  # type: ignore[operator]
            return self._unit(torch.cat(parts), "texts")

    def encode_prompts(
        self,
        prompts: Tensor,
        template: str = PROMPT_TEMPLATE,
        suffix_ids: tuple[int, ...] | None = None,
    ) -> Tensor:
        """E_T of context vectors that take the place of "{}" in a template.

        Args:
            prompts: context vectors `[K, L, W]` in the space of the token embeddings.
            template: text around the vectors.
            suffix_ids: token ids in place of what follows "{}", for the release's prompts; as many as it has.

        Returns:
            `[K, D]`, unit length; differentiable in the vectors. A causal tower gets no padding behind the
            end of text, which its features don't depend on: 36 tokens instead of 77 for 30 vectors.

        Raises:
            TypeError: for what is no tensor of floating-point values.
            ValueError: for vectors of another width, more of them than fit into the context, a template
                without "{}", or another number of suffix ids.
        """
        check_tensor("prompts", prompts, shape="[K, L, W]")
        if prompts.shape[2] != self.text_width:
            raise ValueError(f"prompts: {self.name} takes vectors of width {self.text_width}, got {prompts.shape[2]}")
        layout = self.layout(prompts.shape[1], template, suffix_ids)
        ids = layout.ids.expand(len(prompts), -1)
        embedded = self._text.token_embedding(ids).to(prompts.dtype)
        end = layout.start + layout.length  # of the vectors
        embedded = torch.cat([embedded[:, : layout.start], prompts, embedded[:, end:]], dim=1)
        with self._frozen():
            return self._unit(self._encode_embedded(embedded, ids), "prompts")

    def signature(self) -> Tensor:
        """A unit vector `[D]` on the CPU that tells one CLIP from another, whatever its precision and device.

        It is the direction from one text to another, so it depends on tokenizer, weights and activation
        alike. The texts differ in length, so that they differ for a tokenizer that knows neither word.
        """
        sentence, word = self.encode_texts(["a photo of a cat.", "street"]).double().cpu()
        return F.normalize(sentence - word, dim=0).float()

    def _unit(self, features: Tensor, what: str) -> Tensor:
        """Features of images, texts or prompts at unit length, in float32 or better."""
        if features.dtype == torch.float16:
            self.check_finite(features, what)
        if features.requires_grad and not torch.compiler.is_compiling():
            features = OnceDifferentiable.apply(features)
        return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)

    def check_finite(self, values: Tensor, what: str) -> None:
        """Raises a `ValueError` where a model in fp16 overflowed: `values` come from its features of `what`."""
        # fp16 alone overflows, at 65,504: in other precisions a check isn't worth waiting for the device.
        if self._image_dtype != torch.float16 or torch.compiler.is_compiling():
            return
        if self._checks.is_due(values.device, what) and not bool(values.isfinite().all()):
            raise ValueError(
                f"{self.name} overflows in fp16, its features of {what} are NaN or infinite: load it with precision "
                '"bf16" or "fp32"'
            )

    def freeze(self) -> None:
        """Eval mode, and no gradient for any parameter, as its owner may have trained the model meanwhile."""
        self.model.eval().requires_grad_(False)

    def _frozen(self) -> torch.autocast:
        """A context without autocast; the model is frozen again."""
        self.freeze()
        return torch.autocast(self.device.type, enabled=False)

    def _encode_embedded(self, embedded: Tensor, ids: Tensor) -> Tensor:
        """What `encode_text` of open_clip's text towers does from the embeddings on."""
        from open_clip.transformer import text_global_pool

        text, tokens = self._text, ids.shape[1]
        dtype = text.transformer.get_cast_dtype()
        mask = text.attn_mask if text.attn_mask is None else text.attn_mask[:tokens, :tokens]
        hidden = embedded.to(dtype) + text.positional_embedding[:tokens].to(dtype)
        last_token = None
        if tokens < text.positional_embedding.shape[0]:  # a cropped prompt ends with the token that is read
            last_token = read_one_token(text.transformer, hidden, slice(tokens - 1, tokens), mask)
        if last_token is not None:
            pooled = text.ln_final(last_token)[:, 0]
        else:
            pool_type, eos_id = _pooling(text)
            hidden = text.ln_final(text.transformer(hidden, attn_mask=mask))
            pooled = text_global_pool(hidden, ids, pool_type, eos_token_id=eos_id)
        projection = text.text_projection
        if projection is None:
            return pooled
        return projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection

    def layout(self, length: int, template: str, suffix_ids: tuple[int, ...] | None) -> PromptLayout:
        """Where `length` vectors stand among the tokens of `template`; a ValueError where they don't fit."""
        key = (length, template, suffix_ids, self.device)  # a copy to a device waits for it
        if key not in self._layouts:
            layout = self._build_layout(length, template, suffix_ids)
            self._layouts[key] = replace(layout, ids=layout.ids.to(self.device))
        return self._layouts[key]

    def _build_layout(self, length: int, template: str, suffix_ids: tuple[int, ...] | None) -> PromptLayout:
        ids, start, most = self._read_template(template)
        if not 1 <= length <= most:
            raise ValueError(
                f"prompts of {length} vectors don't fit into {self.name}: around {template!r} its context of "
                f"{len(ids)} tokens has room for 1 to {most}"
            )
        placeholder = ids[start].expand(length)
        ids = torch.cat([ids[:start], placeholder, ids[start + 1 :]])[: len(ids)]
        end = self._end_of_text(ids)
        if suffix_ids is not None:
            if end is None or len(suffix_ids) != end - start - length:
                raise ValueError(
                    f"suffix_ids: expected as many as follow the vectors in {template!r}, got {suffix_ids}"
                )
            ids[start + length : end] = torch.tensor(suffix_ids)
        return PromptLayout(ids if end is None else ids[: end + 1], start, length)

    def _read_template(self, template: str) -> tuple[Tensor, int, int]:
        """Token ids of the template with one word in it, that word's position, and how many vectors fit there."""
        if template.count("{}") != 1:
            raise ValueError(f'template: expected one "{{}}" where the vectors go, got {template!r}')
        for words in _PLACEHOLDERS:
            first, second = self._token_ids([template.replace("{}", word) for word in words]).cpu()
            positions = (first != second).nonzero()
            if len(positions) == 1:  # the tokenizer keeps both words as single tokens
                padding_id = self._token_ids([words[0]])[0, -1].cpu()
                padding = int(torch.ne(first.flip(0), padding_id).int().argmax())
                # Where padding and end of text are one token, a tower that reads the last position needs one of them.
                reserved = 1 if _pooling(self._text)[0] == "last" else 0
                return first, int(positions), 1 + padding - reserved
        raise ValueError(f"the tokenizer of {self.name} keeps none of {_PLACEHOLDERS} as single tokens in {template!r}")

    def _end_of_text(self, ids: Tensor) -> int | None:
        """Position of the token that a causal tower's feature is read from; None for towers that can't be cropped."""
        pool_type, eos_id = _pooling(self._text)
        if self._text.attn_mask is None or pool_type not in ("argmax", "eos"):
            return None  # every token sees the padding
        if pool_type == "argmax":
            return int(ids.argmax())
        return int(torch.eq(ids, eos_id).int().argmax())

    def _token_ids(self, texts: list[str]) -> Tensor:
        """Token ids `[M, context]`; a ValueError for those of another model's tokenizer."""
        ids = self.tokenizer(texts)
        vocabulary = self._text.token_embedding.weight.shape[0]
        context = self._text.positional_embedding.shape[0]
        if ids.shape != (len(texts), context) or not 0 <= int(ids.max()) < vocabulary:
            raise ValueError(
                f"the tokenizer does not belong to {self.name}: expected [{len(texts)}, {context}] ids below "
                f"{vocabulary}, got {list(ids.shape)} up to {int(ids.max())}; pass the one that it was trained with"
            )
        return ids


def _text_tower(model: nn.Module) -> Any:
    """The part of a model that encodes texts: `model.text`, or the model itself for `open_clip.CLIP`."""
    text: Any = getattr(model, "text", model)
    kind = type(model).__name__
    if type(text).__name__ == "HFTextEncoder":
        raise TypeError(f"{kind} has a Hugging Face text tower, which takes no prompt vectors; choose a native CLIP")
    if kind == "CoCa" or getattr(text, "cls_emb", None) is not None:
        raise TypeError(f"{kind} appends a token of its own to every text (CoCa), which leaves no place for prompts")
    missing = [name for name in _TEXT_TOWER if not hasattr(text, name)]
    if missing or not hasattr(model, "visual") or getattr(text, "use_pad_mask", False):
        raise TypeError(
            f"model: expected an open_clip CLIP or CustomTextCLIP with a text tower that takes embeddings, got {kind}"
            + (f" without {', '.join(missing)}" if missing else "")
        )
    return text


def _pooling(text: Any) -> tuple[str, int]:
    """open_clip's name for the token that a feature is read from, and the id of the end of text."""
    if hasattr(text, "text_pool_type"):  # `CLIP` adds a prefix to the names of `TextTransformer`
        return text.text_pool_type, text.text_eos_id
    return text.pool_type, text.eos_id
