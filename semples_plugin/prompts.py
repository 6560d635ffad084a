"""`BackgroundPrompts`: the learned class-associated background prompts p_k, with the CLIP and classes they are for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from torch import Tensor, nn

from semples_plugin.clip.frozen import PROMPT_TEMPLATE, TEXTS_AT_ONCE, FrozenClip
from semples_plugin.diagnostics import check_clip
from semples_plugin.prompt_quality import ClassQuality, quality_from_similarities
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.checks import check_names, first_difference, waits
from semples_plugin.utils.safe_pickle import read_saved
from semples_plugin.utils.tensor_version import version_of
from semples_plugin.utils.text import reason, shown
from semples_plugin.version import __version__

RELEASE_SUFFIX = (13,)
"""The authors' code puts the token 13 (a full stop inside a word) where the text "." would give 269."""

_SAME_CLIP = 0.98  # cosine of two signatures; pure bfloat16 stays above 0.99, another model far below


class BackgroundPrompts(nn.Module):
    """K sequences of L context vectors, one per class, in the template "a photo of {}."; `for_clip` makes them.

    `state_dict` carries the vectors and, as extra state, everything below; a state dict of `vectors` alone,
    as older versions wrote it, loads as well and counts as learned.

    Args:
        num_classes: K.
        length: L, 30 in the paper.
        width: W, `clip.text_width`.
        init: "normal" or, as the release does, "uniform" over [0, 1).
        std: standard deviation of the normal start; `clip.token_std` gives vectors as large as words'.
        seed: of the start; the same seed gives the same vectors on every device.
        template: text with "{}" where the vectors go.
        suffix_ids: token ids in place of what follows "{}"; only the release's prompts need them.

    Attributes:
        vectors: the parameter `[K, L, W]`, float32.
        class_names, clip_name, signature: what the prompts belong to, None until a regularizer takes them.
        seed: of the start, then of the learning.
        learned: whether they describe backgrounds: `learn_background_prompts`, a file and a state dict say
            so. Whoever learns them by an optimiser of their own says so by `prompts.learned = True`.
        quality: of each class, what its prompt was near to before and after `learn_background_prompts`; empty
            before.

    >>> clip = FrozenClip.load("demo")
    >>> prompts = BackgroundPrompts.for_clip(clip, ["train", "boat"], length=4)
    >>> prompts
    BackgroundPrompts(2 classes, 4 vectors of 64, not learned, for ...)
    >>> prompts.encode(clip).shape
    torch.Size([2, 64])
    """

    def __init__(
        self,
        num_classes: int,
        length: int,
        width: int,
        *,
        init: str = "normal",
        std: float = 0.02,
        seed: int = 0,
        template: str = PROMPT_TEMPLATE,
        suffix_ids: tuple[int, ...] | None = None,
    ) -> None:
        super().__init__()
        if min(num_classes, length, width) < 1:
            raise ValueError(f"expected positive sizes, got num_classes {num_classes}, length {length}, width {width}")
        if init not in ("normal", "uniform"):
            raise ValueError(f'init: expected "normal" or "uniform", got {init!r}')
        generator = torch.Generator().manual_seed(seed)
        # Drawn on the CPU in float32, whatever torch's defaults are, so that a seed gives the same vectors everywhere.
        drawing: dict[str, Any] = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
        shape = (num_classes, length, width)
        vectors = torch.rand(shape, **drawing) if init == "uniform" else std * torch.randn(shape, **drawing)
        self.vectors = nn.Parameter(vectors)
        self.template = template
        self.suffix_ids = suffix_ids
        self.seed = int(seed)
        self.learned = False
        self.quality: tuple[ClassQuality, ...] = ()
        self.class_names: tuple[str, ...] | None = None
        self.clip_name: str | None = None
        self.signature: Tensor | None = None

    @classmethod
    def for_clip(
        cls,
        clip: FrozenClip,
        class_names: Sequence[str],
        length: int = 30,
        *,
        init: str = "normal",
        std: float | None = None,
        seed: int = 0,
        template: str = PROMPT_TEMPLATE,
        suffix_ids: tuple[int, ...] | None = None,
    ) -> BackgroundPrompts:
        """Prompts to learn for a CLIP and its classes, on its device.

        Args:
            clip: whose text width they have, and to which they belong from now on.
            class_names: K names, in the order of the label columns.
            length: L.
            std: of the normal start; None for `clip.token_std`, which makes vectors as large as words'.
            init, seed, template, suffix_ids: see above.

        Raises:
            TypeError: for what is no `FrozenClip`, or no list of names.
            ValueError: where they don't fit into the CLIP's context, or the names are no class list.

        >>> clip = FrozenClip.load("demo")
        >>> prompts = BackgroundPrompts.for_clip(clip, ["train", "boat"], length=8, seed=1)
        >>> prompts.vectors.shape, prompts.class_names
        (torch.Size([2, 8, 64]), ('train', 'boat'))
        """
        check_clip(clip)
        names = check_names(class_names)
        prompts = cls(
            len(names),
            length,
            clip.text_width,
            init=init,
            std=clip.token_std if std is None else std,
            seed=seed,
            template=template,
            suffix_ids=suffix_ids,
        )
        prompts.check_belongs_to(clip, names)
        return prompts.to(clip.device)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> BackgroundPrompts:
        """Prompts with the sizes and the content of a `state_dict`."""
        prompts = cls(*state["vectors"].shape)
        prompts.load_state_dict(state)
        return prompts

    def get_extra_state(self) -> dict[str, Any]:
        """What the vectors belong to, in plain types and tensors, so that `weights_only=True` reads it."""
        return {
            "class_names": self.class_names,
            "clip_name": self.clip_name,
            "signature": self.signature,
            "template": self.template,
            "suffix_ids": self.suffix_ids,
            "seed": self.seed,
            "learned": self.learned,
            "quality": [asdict(quality) for quality in self.quality],
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `get_extra_state` gave, now or in an older version; what vectors belong to stays if not given."""
        names, suffix = state.get("class_names", self.class_names), state.get("suffix_ids", self.suffix_ids)
        if state.get("words"):  # an unreleased version had them
            raise ValueError("these prompts are words, which are no longer taken; learn prompts of the classes")
        if names is not None and len(names) != self.num_classes:
            raise ValueError(f"expected {self.num_classes} class names, got {len(names)}")
        quality = tuple(map(ClassQuality.from_dict, state.get("quality", ())))
        quality = quality or quality_from_similarities(names or (), state.get("similarities", {}))
        # From here on nothing raises.
        self.quality, self.class_names = quality, None if names is None else tuple(names)
        self.suffix_ids = None if suffix is None else tuple(suffix)
        self.clip_name = state.get("clip_name", self.clip_name)
        self.signature = state.get("signature", self.signature)
        self.template = state.get("template", self.template)
        self.seed = state.get("seed", self.seed)
        self.learned = state.get("learned", True)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *others: Any) -> None:
        vectors, key = state_dict.get(f"{prefix}vectors"), f"{prefix}_extra_state"
        if isinstance(vectors, Tensor) and vectors.shape == self.vectors.shape:  # else our vectors and extra state stay
            self.set_extra_state(state_dict.get(key, {}))  # older versions wrote the vectors alone
        super()._load_from_state_dict({**state_dict, key: self.get_extra_state()}, prefix, *others)

    def extra_repr(self) -> str:
        """What stands between the brackets of `repr`."""
        classes, length, width = self.vectors.shape
        learned = "learned" if self.learned else "not learned"
        return f"{classes} classes, {length} vectors of {width}, {learned}, for {self.clip_name or 'no CLIP yet'}"

    @property
    def num_classes(self) -> int:
        """K."""
        return self.vectors.shape[0]

    def encode(self, clip: FrozenClip, classes: Tensor | None = None) -> Tensor:
        """u_b = E_T(p_k): `[K, D]`, unit length, differentiable in the vectors; or of some `classes` `[C]` alone.

        >>> clip = FrozenClip.load("demo")
        >>> prompts = BackgroundPrompts.for_clip(clip, ["train", "boat", "bird"], length=4)
        >>> prompts.encode(clip, torch.tensor([2])).shape
        torch.Size([1, 64])
        """
        vectors = self.vectors if classes is None else self.vectors[classes]
        return clip.encode_prompts(vectors, self.template, self.suffix_ids)

    def check_belongs_to(self, clip: FrozenClip, class_names: Sequence[str]) -> None:
        """Ties the prompts to a CLIP and a class list, or checks that they belong to these.

        Raises:
            ValueError: where they belong to another CLIP or other classes; both sides are named.

        >>> clip = FrozenClip.load("demo")
        >>> BackgroundPrompts.for_clip(clip, ["train", "boat"], length=4).check_belongs_to(clip, ["boat", "train"])
        Traceback (most recent call last):
        ValueError: the prompts belong to other classes: class 0 is 'train' in the prompts and 'boat' in the
        class list; use the class list that they were learned with, or learn them again
        """
        if self.num_classes != len(class_names):
            hint = "; the release's COCO list has 90 names (preset release-coco)" if self.num_classes == 90 else ""
            raise ValueError(
                f"the prompts are for {self.num_classes} classes, the class list has {len(class_names)}{hint}"
            )
        if self.vectors.shape[2] != clip.text_width:
            raise ValueError(
                f"the prompts were made for {self.clip_name or 'a CLIP'} of text width {self.vectors.shape[2]}, "
                f"{clip.name} has {clip.text_width}"
            )
        clip.layout(self.vectors.shape[1], self.template, self.suffix_ids)  # raises where they don't fit
        if self.class_names is not None and (k := first_difference(self.class_names, class_names)) is not None:
            raise ValueError(
                f"the prompts belong to other classes: class {k} is {self.class_names[k]!r} in the prompts and "
                f"{class_names[k]!r} in the class list; use the class list that they were learned with, or learn them "
                "again"
            )
        signature = clip.signature()
        if not same_clip(self.signature, signature):
            raise ValueError(
                f"the prompts belong to another CLIP: they were learned with {self.clip_name}, this is {clip.name}, "
                "whose texts lie elsewhere; load the CLIP that they were learned with, or learn them again"
            )
        self.class_names = self.class_names or tuple(map(str, class_names))
        if self.signature is None:
            self.clip_name, self.signature = clip.name, signature

    def save(self, path: str | Path) -> None:
        """Writes a safetensors file with the vectors and, as metadata, the extra state.

        Raises:
            OSError: where it can't be written; an older file of that name stays as it was.

        >>> from tempfile import TemporaryDirectory
        >>> prompts = BackgroundPrompts.for_clip(FrozenClip.load("demo"), ["train", "boat"], length=4)
        >>> with TemporaryDirectory() as folder:
        ...     prompts.save(f"{folder}/prompts.safetensors")
        ...     loaded = BackgroundPrompts.load(f"{folder}/prompts.safetensors")
        >>> torch.equal(loaded.vectors, prompts.vectors), loaded.class_names
        (True, ('train', 'boat'))
        """
        from safetensors.torch import save_file

        metadata = self.get_extra_state()
        tensors = {"prompts": self.vectors.detach().float().cpu().contiguous()}
        signature = metadata.pop("signature")
        if signature is not None:
            tensors["signature"] = signature.contiguous()
        # Not from importlib.metadata: a checkout on PYTHONPATH has none, and an error here costs hours of learning.
        metadata["versions"] = {
            "semples-plugin": __version__,
            "torch": torch.__version__,
            "open_clip": open_clip.__version__,
        }
        with replacing(path) as temporary:
            save_file(tensors, temporary, metadata={key: json.dumps(value) for key, value in metadata.items()})

    @classmethod
    def load(cls, path: str | Path) -> BackgroundPrompts:
        """Reads a file of `save`, or the release's `btp.pth` (as data: no code in it is run).

        A `btp.pth` comes back with the release's suffix token; it doesn't say which CLIP and classes it is
        for (ViT-B/32 and the list of its data set), so the regularizer can only check its sizes.

        Raises:
            FileNotFoundError: where there is no such file.
            ValueError: where it is damaged, holds something else, or holds more than tensors.

        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     torch.save({"prompts": torch.rand(20, 30, 512)}, f"{folder}/btp.pth")
        ...     BackgroundPrompts.load(f"{folder}/btp.pth")
        BackgroundPrompts(20 classes, 30 vectors of 512, learned, for no CLIP yet)
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"there is no prompts file {path}")
        with path.open("rb") as file:
            begins_with_json = file.read(9)[8:] == b"{"  # safetensors: a length of eight bytes, then its header
        tensors, metadata = _read_safetensors(path) if begins_with_json else _read_release(path)
        vectors = tensors.get("prompts")
        if vectors is None or vectors.ndim != 3 or not vectors.is_floating_point():
            shapes = shown({name: list(tensor.shape) for name, tensor in tensors.items()})
            raise ValueError(f"{path} holds no prompts: expected a tensor 'prompts' [K, L, W], got {shapes}")
        if not bool(vectors.isfinite().all()):
            raise ValueError(f"{path}: the prompts hold NaN or infinite values; learn them again")
        metadata["signature"] = tensors.get("signature")
        try:
            return cls.from_state({"vectors": vectors, "_extra_state": metadata})
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            raise ValueError(f"{path} is damaged: {error!r:.100}; learn the prompts again") from error


@dataclass(frozen=True)
class EncodedPrompts:
    """u_b of prompts that are fixed, and what tells whether they were changed since.

    Attributes:
        features: u_b, `[K, D]`, unit length, without gradients.
        source: the parameter that was encoded.
        version: how often it had been changed in place, by autograd's count.
        vectors: a copy of its values.
        surroundings: template and suffix that it was encoded in.
    """

    features: Tensor
    source: Tensor
    version: int | None
    vectors: Tensor
    surroundings: tuple[str, tuple[int, ...] | None]

    @classmethod
    def of(cls, prompts: BackgroundPrompts, clip: FrozenClip) -> EncodedPrompts:
        """Encodes all classes."""
        vectors = prompts.vectors
        with torch.no_grad():
            parts = torch.arange(len(vectors), device=vectors.device).split(TEXTS_AT_ONCE)
            features = torch.cat([prompts.encode(clip, part) for part in parts])
        surroundings = prompts.template, prompts.suffix_ids
        return cls(features, vectors, version_of(vectors), vectors.detach().clone(), surroundings)

    def is_current(self, prompts: BackgroundPrompts) -> bool:
        """Whether `prompts` are those that were encoded, and unchanged, as far as that is seen without waiting."""
        vectors = prompts.vectors
        if self.source is not vectors or self.version != version_of(vectors):
            return False
        if self.surroundings != (prompts.template, prompts.suffix_ids) or self.vectors.device != vectors.device:
            return False
        # Autograd doesn't count changes of `vectors.data`: values are compared, too, where that waits for no device.
        compares_values = torch.compiler.is_compiling() or not waits(vectors.device)
        return not (compares_values and not torch.equal(self.vectors, vectors.detach()))


def same_clip(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two signatures, as far as they are known, are one CLIP's, in whatever precision."""
    return a is None or b is None or (a.shape == b.shape and float(a @ b) >= _SAME_CLIP)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
            metadata = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
    except (SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no prompts file, or is cut short or damaged: {reason(error)}") from error
    return tensors, metadata


def _read_release(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    try:
        state = read_saved(path)
    except ValueError as error:
        raise ValueError(
            f"{path} is no prompts file: neither safetensors nor a state dict of tensors alone, as the release's "
            "btp.pth is (it is cut short or damaged, or holds code, which is never run)"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, np.ndarray) for value in state.values()):
        raise ValueError(f"{path}: expected a state dict with one tensor 'prompts', got {type(state).__name__}")
    return {name: torch.from_numpy(array.copy()) for name, array in state.items()}, {"suffix_ids": RELEASE_SUFFIX}
