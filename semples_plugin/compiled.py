"""`CompiledTerms`: the terms of (1) and (3) as graphs of `torch.compile`, for any number of pairs.

A graph is made for one number of pairs, and batches have another one each time. So pairs are padded to a few
numbers, of which each has its graph; padding doesn't count in any mean, and gets a gradient of zero. What depends on
the host's sizes, resampling images and masks to CLIP's square, happens before: other sizes need no other graph.
"""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.masks import ClassMasks

_STEPS = (4, 5, 6)  # of each octave, in quarters: 8, 10, 12, 16, 20, ...


def padded_count(count: int, most: int | None = None) -> int:
    """The number of pairs that `count` > 0 of them are padded to: less than a quarter of it is padding.

    Args:
        count: P.
        most: not to be exceeded, if `count` doesn't.

    >>> padded_count(7), padded_count(33), padded_count(9, most=9)
    (8, 40, 9)
    """
    octave = max(count.bit_length() - 3, 0)
    sizes = (step << octave for step in (*_STEPS, 2 * _STEPS[0]))
    padded = count if count < _STEPS[0] else next(size for size in sizes if size >= count)
    return padded if most is None or count > most else min(padded, most)


class CompiledTerms:
    """Calls a function of tensors of pairs, `pair_terms`, as a graph for each padded number of them.

    Args:
        terms: the function; it is compiled as one graph, without a break.
        options: of `torch.compile`, such as `backend` and `mode`.

    Raises:
        TypeError: for `fullgraph` and `dynamic`, which are set here.
        RuntimeError: for what `torch.compile` doesn't know.
    """

    def __init__(self, terms: Callable[..., Any], options: dict[str, Any]) -> None:
        for name in ("fullgraph", "dynamic"):
            if name in options:
                raise TypeError(f"compile: {name} is set already, pairs being padded to fixed numbers; leave it out")
        self._terms = terms
        self._options = {"fullgraph": True, "dynamic": False, **options}
        self._graphs: dict[tuple[Any, ...], Callable[..., Any]] = {}
        torch.compile(terms, **self._options)  # so that wrong options are refused here

    def __call__(
        self,
        clip: FrozenClip,
        names: tuple[str, ...],
        images: Tensor,
        masks: ClassMasks,
        *shared: Any,
        most: int | None,
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """What `terms` gives for P > 0 pairs.

        Args:
            clip: the CLIP that encodes them.
            names: of the terms; each tuple of them has its own graphs.
            images: `[N, 3, S, S]`, CLIP-normalised.
            masks: P of them, `[S, S]`.
            shared: what `terms` takes besides, independent of N and P.
            most: of `padded_count`.

        Returns:
            Losses, scalars, and similarities, `[P]`.
        """
        clip.freeze()
        count = len(masks)
        size = padded_count(count, most)
        # Padding is of the first image and the first class, with an empty mask: all of its values are finite.
        image_index, class_index = (F.pad(index, (0, size - count)) for index in (masks.image_index, masks.class_index))
        maps = F.pad(masks.maps.to(images.dtype), (0, 0, 0, 0, 0, size - count))
        counted = torch.arange(size, device=maps.device) < count
        kind = images.dtype, torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        graph = self._graph(size, names, *kind)
        losses, similarities = graph(clip.features_of, names, images[image_index], maps, class_index, *shared, counted)
        for values in similarities.values():
            clip.check_finite(values, "images")
        # With CUDA graphs the next call writes into the same memory.
        return losses, {name: values[:count].clone() for name, values in similarities.items()}

    def _graph(self, size: int, names: tuple[str, ...], *kind: Any) -> Callable[..., Any]:
        """The compiled function for `size` pairs, and all else that a graph is made for."""
        key = size, names, *kind
        if key not in self._graphs:
            terms: Any = self._terms
            # torch counts the graphs of a function by its code, and allows eight of them: each kind gets a copy.
            code = terms.__code__.replace(co_name=f"{terms.__name__}_of_{size}")
            copied = FunctionType(code, terms.__globals__, code.co_name, terms.__defaults__)
            self._graphs[key] = torch.compile(copied, **self._options)
        return self._graphs[key]

    def __getstate__(self) -> dict[str, Any]:
        """Without the graphs, which can't be pickled and are made again where they are needed."""
        return {**self.__dict__, "_graphs": {}}
