"""`pair_terms`: the terms of (1) and (3) as a function of tensors alone, which `torch.compile` makes one graph of."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from semples_plugin import functional
from semples_plugin.masks import pair_views
from semples_plugin.pair_encoder import encode_pair

Named = dict[str, Tensor]


def pair_terms(
    encode: Callable[[Tensor], Tensor],
    names: tuple[str, ...],
    pairs: Tensor,
    maps: Tensor,
    class_index: Tensor,
    fill: Tensor,
    label_features: Tensor,
    prompts: Tensor | None,
    counted: Tensor | None = None,
) -> tuple[Named, Named]:
    """The terms of (1) and (3), and what they are made of.

    Args:
        encode: CLIP's image encoder.
        names: of the terms that are wanted.
        pairs: the image of each pair, `[P, 3, S, S]`, CLIP-normalised.
        maps: its mask, `[P, S, S]`.
        class_index: its class, `[P]`.
        fill: colour of what is masked out.
        label_features: u_f of all classes, `[K, D]`.
        prompts: u_b of all classes, `[K, D]`, for refinement.
        counted: which of the pairs are no padding, `[P]`; None for all.

    Returns:
        Terms, unweighted, by the names of their losses, and the similarities `[P]` that they are made of.
    """
    matches = "loss_match_foreground" in names
    repels = "loss_match_background" in names
    refines = "loss_refine" in names
    v_f, v_b = encode_pair(encode, pair_views(pairs, maps, fill), foreground=matches or refines, background=repels)
    u_f = label_features[class_index]
    losses: Named = {}
    similarities: Named = {}
    if matches:
        similarities["foreground"] = functional.similarity(v_f, u_f)
        losses["loss_match_foreground"] = functional.attract(similarities["foreground"], counted)
    if repels:
        similarities["background"] = functional.similarity(v_b, u_f)
        losses["loss_match_background"] = functional.repel(similarities["background"], counted)
    if refines and prompts is not None:
        similarities["prompt"] = functional.similarity(v_f, prompts[class_index])
        losses["loss_refine"] = functional.refinement_loss(similarities["prompt"], counted)
    return losses, similarities
