"""`FrozenClip`: a CLIP of open_clip's, frozen, that encodes images, texts and prompt vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from open_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from torch import Tensor, nn

from semples_plugin.clip.fast_towers import OnceDifferentiable, encode_pixels, lean_activations, read_one_token
from semples_plugin.utils.checks import CheckSchedule, check_device, check_tensor

Tokenizer = Callable[[list[str]], Tensor]

PROMPT_TEMPLATE = "a photo of {}."
"""Where the learned vectors stand in a background prompt."""

_PLACEHOLDERS = (("photo", "of"), ("x", "o"))  # words that a tokenizer is likely to keep as single tokens


@dataclass(frozen=True)
class PromptLayout:
    """Token ids of a prompt `[T]`, in which positions `start` to `start + length` are the learned vectors'."""

    ids: Tensor
    start: int
    length: int


class FrozenClip:
    """CLIP's joint space: unit vectors for images, texts and prompts; gradients reach inputs, never CLIP.

    The model is set to eval mode and its parameters stop requiring gradients, in place. It computes in the
    precision of its own weights: a surrounding autocast neither speeds it up nor changes its features. It is no
    `nn.Module`, so a host model that holds one keeps its state dict, its parameters and its optimiser as they are.

    Args:
        model: an `open_clip.CLIP` or `CustomTextCLIP` whose text tower takes token embeddings. Hugging Face text
            towers and CoCa are refused.
        tokenizer: maps a list of M strings to token ids `[M, context]`; nothing else is asked of it.
        name: what error messages and saved prompts call this model; guessed from its class where left out.
    """

    def __init__(self, model: nn.Module, tokenizer: Tokenizer, name: str | None = None) -> None:
        self._text = _text_tower(model)
        if self._text.token_embedding.weight.is_inference():
            raise ValueError("model: made under torch.inference_mode(), it lets no gradient through; make it outside")
        self.model = model
        self._checks = CheckSchedule()
        self._as_it_is()
        self.tokenizer = tokenizer
        self.name = name or f"{type(model).__name__} built by the caller"
        visual: Any = model.visual
        size = visual.image_size
        self.image_size: tuple[int, int] = (size, size) if isinstance(size, int) else tuple(size)
        self.image_mean: tuple[float, ...] = tuple(getattr(visual, "image_mean", None) or OPENAI_DATASET_MEAN)
        self.image_std: tuple[float, ...] = tuple(getattr(visual, "image_std", None) or OPENAI_DATASET_STD)
        # Low-precision models keep their layer norms in float32; the first convolution says what images must be.
        self._image_dtype = next(p.dtype for p in visual.parameters() if p.ndim == 4)
        self._layouts: dict[tuple[int, str, tuple[int, ...] | None], PromptLayout] = {}

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
            pretrained: an open_clip tag ("openai"), or the path of a weights file. OpenAI's own `ViT-B-32.pt` is
                recognised and gets its QuickGELU; for other files the name decides, and a warning says so where
                it matters. Not used with "local-dir:" and "demo".
            device: where the model is put; see `to`.
            precision: "fp32", "bf16" or "fp16", of the weights and of the computation.
            cache_dir: where open_clip keeps its downloads.

        Raises:
            ValueError: for an unknown name, tag or precision (the nearest known ones are named), weights that are
                damaged or another model's, a device that isn't there, or a tower that can't take prompt vectors.
            FileNotFoundError: when the weights or the tokenizer are neither cached nor to be downloaded.
        """
        from semples_plugin.clip.loading import load_open_clip

        device = check_device(device)  # before the weights are read
        model, tokenizer, full_name = load_open_clip(name, pretrained, precision=precision, cache_dir=cache_dir)
        lean_activations(model)
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
        """E_I.

        Args:
            images: `[B, 3, H, W]`, CLIP-normalised, H x W = `image_size`.

        Returns:
            `[B, D]`, unit length, float32 (float64 for a float64 model); differentiable in `images`.
        """
        check_tensor("images", images, shape="[B, 3, H, W]")
        if images.shape[1:] != (3, *self.image_size):
            height, width = self.image_size
            raise ValueError(f"images: {self.name} takes [B, 3, {height}, {width}], got {list(images.shape)}")
        with self._as_it_is():
            return self._unit(encode_pixels(self.model.visual, images.to(self._image_dtype)), "images")

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """E_T of M strings: `[M, D]`, unit length, without gradients."""
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise TypeError("texts: expected a list of strings")
        ids = self._token_ids(list(texts)).to(self.device)
        with self._as_it_is():
            return self._unit(self.model.encode_text(ids), "texts")  # type: ignore[operator]

    def encode_prompts(
        self,
        prompts: Tensor,
        template: str = PROMPT_TEMPLATE,
        suffix_ids: tuple[int, ...] | None = None,
    ) -> Tensor:
        """E_T of prompt vectors that take the place of "{}" in a template.

        Args:
            prompts: vectors `[K, L, W]` in the space of the token embeddings.
            template: text around the vectors.
            suffix_ids: token ids in place of what follows "{}", for the release's prompts; as many as it has.

        Returns:
            `[K, D]`, unit length; differentiable in the vectors. A causal tower is fed no padding behind the end
            of text, which it can't see: 36 tokens instead of 77 for 30 vectors, and the same features.
        """
        check_tensor("prompts", prompts, shape="[K, L, W]")
        if prompts.shape[2] != self.text_width:
            raise ValueError(f"prompts: {self.name} takes vectors of width {self.text_width}, got {prompts.shape[2]}")
        layout = self.layout(prompts.shape[1], template, suffix_ids)
        ids = layout.ids.to(self.device).expand(len(prompts), -1)
        embedded = self._text.token_embedding(ids).to(prompts.dtype)
        end = layout.start + layout.length
        embedded = torch.cat([embedded[:, : layout.start], prompts, embedded[:, end:]], dim=1)
        with self._as_it_is():
            return self._unit(self._encode_embedded(embedded, ids), "prompts")

    def signature(self) -> Tensor:
        """A unit vector `[D]` on the CPU that tells one CLIP from another, whatever its precision and device.

        It is the direction from one text to another, so it depends on tokenizer, weights and activation alike. The
        texts differ in length, so that they differ for a tokenizer that knows neither word.
        """
        sentence, word = self.encode_texts(["a photo of a cat.", "street"]).double().cpu()
        return F.normalize(sentence - word, dim=0).float()

    def _unit(self, features: Tensor, what: str) -> Tensor:
        """Features at unit length, in float32 or better."""
        # Only half precision overflows, at 65,504; others aren't worth waiting for the device.
        half = features.dtype == torch.float16 and not torch.compiler.is_compiling()
        if half and self._checks.is_due(features.device) and not bool(features.isfinite().all()):
            raise ValueError(
                f"{self.name} overflows in fp16, its features of {what} are NaN or infinite: load it with precision "
                '"bf16" or "fp32"'
            )
        if features.requires_grad and not torch.compiler.is_compiling():
            features = OnceDifferentiable.apply(features)
        return F.normalize(features.to(torch.promote_types(features.dtype, torch.float32)), dim=-1)

    def _as_it_is(self) -> torch.autocast:
        # Each time anew: a host that owns the model may have switched it back to training.
        self.model.eval().requires_grad_(False)
        return torch.autocast(self.device.type, enabled=False)

    def _encode_embedded(self, embedded: Tensor, ids: Tensor) -> Tensor:
        # open_clip's text towers, from the embeddings on; checked against `encode_text` in the tests.
        from open_clip.transformer import text_global_pool

        text, tokens = self._text, ids.shape[1]
        dtype = text.transformer.get_cast_dtype()
        mask = text.attn_mask if text.attn_mask is None else text.attn_mask[:tokens, :tokens]
        hidden = embedded.to(dtype) + text.positional_embedding[:tokens].to(dtype)
        # A cropped prompt ends with the token that its feature is read from.
        cropped = tokens < text.positional_embedding.shape[0]
        read = read_one_token(text.transformer, hidden, slice(tokens - 1, tokens), mask) if cropped else None
        if read is not None:
            pooled = text.ln_final(read)[:, 0]
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
        key = (length, template, suffix_ids)
        if key not in self._layouts:
            self._layouts[key] = self._build_layout(*key)
        return self._layouts[key]

    def _build_layout(self, length: int, template: str, suffix_ids: tuple[int, ...] | None) -> PromptLayout:
        ids, start, room = self._read_template(template)
        if not 1 <= length <= room:
            raise ValueError(
                f"prompts of {length} vectors don't fit into {self.name}: around {template!r} its context of "
                f"{len(ids)} tokens has room for 1 to {room}"
            )
        ids = torch.cat([ids[:start], ids[start].expand(length), ids[start + 1 :]])[: len(ids)]
        end = self._end_of_text(ids)
        if suffix_ids is not None:
            if end is None or len(suffix_ids) != end - start - length:
                raise ValueError(
                    f"suffix_ids: expected as many as follow the vectors in {template!r}, got {suffix_ids}"
                )
            ids[start + length : end] = torch.tensor(suffix_ids)
        return PromptLayout(ids if end is None else ids[: end + 1], start, length)

    def _read_template(self, template: str) -> tuple[Tensor, int, int]:
        """Token ids of the template with one word in it, that word's position, and how many fit there."""
        if template.count("{}") != 1:
            raise ValueError(f'template: expected one "{{}}" where the vectors go, got {template!r}')
        for words in _PLACEHOLDERS:
            first, second = self._token_ids([template.replace("{}", word) for word in words]).cpu()
            places = (first != second).nonzero()
            if len(places) == 1:
                padding = self._token_ids([words[0]])[0, -1].cpu()
                spare = int(torch.ne(first.flip(0), padding).int().argmax())
                # Where padding and end of text are one token, a tower that reads the last position needs one of them.
                last = _pooling(self._text)[0] == "last"
                return first, int(places), 1 + spare - int(last)
        raise ValueError(f"the tokenizer of {self.name} keeps none of {_PLACEHOLDERS} as single tokens in {template!r}")

    def _end_of_text(self, ids: Tensor) -> int | None:
        pool_type, eos_id = _pooling(self._text)
        if self._text.attn_mask is None or pool_type not in ("argmax", "eos"):
            return None  # such a tower sees all of its tokens and can't be cropped
        return int(ids.argmax()) if pool_type == "argmax" else int(torch.eq(ids, eos_id).int().argmax())

    def _token_ids(self, texts: list[str]) -> Tensor:
        ids = self.tokenizer(texts)
        vocabulary, context = (
            self._text.token_embedding.weight.shape[0],
            self._text.positional_embedding.shape[0],
        )
        if ids.shape != (len(texts), context) or not 0 <= int(ids.max()) < vocabulary:
            raise ValueError(
                f"the tokenizer does not belong to {self.name}: expected [{len(texts)}, {context}] ids below "
                f"{vocabulary}, got {list(ids.shape)} up to {int(ids.max())}; pass the one that it was trained with"
            )
        return ids


def _text_tower(model: nn.Module) -> Any:
    text: Any = getattr(model, "text", model)
    kind = type(model).__name__
    if type(text).__name__ == "HFTextEncoder":
        raise TypeError(f"{kind} has a Hugging Face text tower, which takes no prompt vectors; choose a native CLIP")
    if kind == "CoCa" or getattr(text, "cls_emb", None) is not None:
        raise TypeError(f"{kind} appends a token of its own to every text (CoCa), which leaves no place for prompts")
    needed = (
        "token_embedding",
        "positional_embedding",
        "transformer",
        "ln_final",
        "text_projection",
        "attn_mask",
    )
    missing = [name for name in needed if not hasattr(text, name)]
    if missing or not hasattr(model, "visual") or getattr(text, "use_pad_mask", False):
        raise TypeError(
            f"model: expected an open_clip CLIP or CustomTextCLIP with a text tower that takes embeddings, got {kind}"
            + (f" without {', '.join(missing)}" if missing else "")
        )
    return text


def _pooling(text: Any) -> tuple[str, int]:
    # `CLIP` prefixes what `TextTransformer` calls `pool_type` and `eos_id`.
    if hasattr(text, "text_pool_type"):
        return text.text_pool_type, text.text_eos_id
    return text.pool_type, text.eos_id
