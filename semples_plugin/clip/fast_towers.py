"""open_clip's transformers without the computations whose results are not used; other models run as they are.

- A feature is read from one token: in the last block only that token's query, and what follows from it, is
  computed. That saves a twelfth of the tower's time and memory for ViT-B.
- torch's attention transposes batch and tokens, after which a CPU multiplies token by token: here the
  projections are applied to the batch as it is.
- Patches don't overlap, so that their embedding and its gradient are one matrix product each; a convolution's
  gradient takes ten times as long.
- A timm tower's batch norms are frozen, so that each is merged into the convolution before it, which saves a
  quarter of a step with an EfficientNet on a CPU.
- QuickGELU, x sigmoid(1.702 x), keeps two tensors for its gradient; as silu(1.702 x) / 1.702 it keeps one,
  which saves a quarter of the memory.

`semples bench` measures what each of them saves, and `PATHS` says where each is used.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from semples_plugin.utils.checks import check_known, warn_once

# CUDA, and with it every device that is no CPU: nothing is measured there, all are on.
PATHS: dict[str, frozenset[str]] = {
    "last block": frozenset({"cpu", "cuda"}),
    "attention": frozenset({"cpu", "cuda"}),
    "patches": frozenset({"cpu", "cuda"}),
    "activations": frozenset({"cpu", "cuda"}),
    "batch norms": frozenset({"cpu", "cuda"}),
}
"""Fast paths, and the kinds of devices on which each is used: those where it saves 3 % of a step's time or memory."""

_VISION_PARTS = (
    "_embeds", "conv1", "class_embedding", "positional_embedding", "patch_dropout", "ln_pre", "transformer", "ln_post",
    "proj", "attn_pool", "pool_type", "output_tokens",
)  # fmt: skip
_BLOCK_PARTS = ("ln_1", "attn", "ls_1", "ln_2", "mlp", "ls_2")

_left_out: frozenset[str] = frozenset()


@contextmanager
def without(*paths: str) -> Iterator[None]:
    """The plain computations in place of some `PATHS`, in the whole process: to see what each of them saves.

    "batch norms" matters while a model is loaded, the others while it computes.

    Raises:
        ValueError: for a path that isn't known.
    """
    global _left_out
    check_known("paths", paths, list(PATHS))
    before = _left_out
    _left_out = before | set(paths)
    try:
        yield
    finally:
        _left_out = before


def uses(path: str, device: torch.device) -> bool:
    """Whether one of `PATHS` is used on a device."""
    return ("cpu" if device.type == "cpu" else "cuda") in PATHS[path] and path not in _left_out


def read_one_token(transformer: Any, x: Tensor, token: slice, attn_mask: Tensor | None = None) -> Tensor | None:
    """The output `[B, 1, W]` of a transformer at one token, or None where it isn't built as expected.

    Args:
        transformer: open_clip's `Transformer`.
        x: embedded tokens `[B, T, W]`.
        token: a slice of length 1.
        attn_mask: `[T, T]`, added to the attention's logits.
    """
    if not _is_supported(transformer):
        return None
    reads_one = uses("last block", x.device)
    blocks: Any = transformer.resblocks
    mask = None if attn_mask is None else attn_mask.to(x.dtype)
    for block in blocks[:-1] if reads_one else blocks:
        normed = block.ln_1(x)
        x = x + block.ls_1(attend(block.attn, normed, normed, mask))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    if not reads_one:
        return x[:, token]
    last: Any = blocks[-1]
    normed = last.ln_1(x)
    token_mask = None if mask is None else mask[token]
    output: Tensor = x[:, token]
    output = output + last.ls_1(attend(last.attn, normed[:, token], normed, token_mask))
    output = output + last.ls_2(last.mlp(last.ln_2(output)))
    return output


def _is_supported(transformer: Any) -> bool:
    """Whether a transformer is open_clip's own, with batches first and self-attention in every block."""
    if type(transformer).__name__ != "Transformer" or not _has_parts(transformer, ("resblocks", "batch_first")):
        return False
    blocks: Any = transformer.resblocks
    kinds = {type(block).__name__ for block in blocks}
    if kinds != {"ResidualAttentionBlock"} or not transformer.batch_first:
        return False  # other settings of open_clip's
    if any(hasattr(block, "ln_1_kv") for block in blocks) or not _has_parts(blocks[0], _BLOCK_PARTS):
        return False
    if not all(isinstance(block.attn, nn.MultiheadAttention) for block in blocks):
        _warn_of_change(blocks[0], "whose attn is no torch.nn.MultiheadAttention")
        return False
    return True


def _has_parts(module: Any, names: tuple[str, ...]) -> bool:
    """Whether a module of open_clip's has what a fast path reads of it; a warning names what is gone."""
    missing = [name for name in names if not hasattr(module, name)]
    if missing:
        _warn_of_change(module, f"without {', '.join(missing)}")
    return not missing


def _warn_of_change(module: nn.Module, what: str) -> None:
    kind = type(module).__name__
    warn_once(
        f"{kind} {what}",
        f"CLIP has a {kind} {what}, unlike that of open_clip 3.1 to 3.3 (this is {open_clip.__version__}): its own "
        "forward pass is used, which gives the same features in more time and memory; was the model changed, or is "
        "this open_clip newer than this semples-plugin?",
    )


def encode_pixels(visual: Any, images: Tensor) -> Any:
    """`visual(images)`: features `[B, D]` of normalised images."""
    class_token = None
    if _reads_class_token(visual):
        class_token = read_one_token(visual.transformer, embed(visual, images), slice(0, 1))
    if class_token is None:
        return visual(images)
    features = visual.ln_post(class_token[:, 0])
    return features if visual.proj is None else features @ visual.proj


def _reads_class_token(visual: Any) -> bool:
    """Whether an image tower is a vision transformer whose feature comes from its class token alone."""
    if type(visual).__name__ != "VisionTransformer" or not _has_parts(visual, _VISION_PARTS):
        return False
    if visual.attn_pool is not None or visual.pool_type != "tok" or visual.output_tokens:
        return False  # other settings of open_clip's
    return _is_supported(visual.transformer)


def attend(attn: Any, q: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
    """`attn(q, kv, kv, attn_mask=mask)[0]`, batches first: q `[B, S, W]` and kv `[B, T, W]` to `[B, S, W]`."""
    is_plain = type(attn) is nn.MultiheadAttention and attn.in_proj_weight is not None and attn.bias_k is None
    if not is_plain or not uses("attention", q.device):
        attended: Tensor = attn(q, kv, kv, need_weights=False, attn_mask=mask)[0]
        return attended
    weight, bias, width = attn.in_proj_weight, attn.in_proj_bias, attn.embed_dim
    if q is kv:
        query, key, value = F.linear(q, weight, bias).chunk(3, dim=-1)
    else:
        query = F.linear(q, weight[:width], bias[:width])
        key, value = F.linear(kv, weight[width:], bias[width:]).chunk(2, dim=-1)
    query, key, value = (_split_heads(tensor, attn.num_heads) for tensor in (query, key, value))
    heads = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return F.linear(heads.transpose(1, 2).flatten(2), attn.out_proj.weight, attn.out_proj.bias)


def _split_heads(x: Tensor, heads: int) -> Tensor:
    """`[B, T, heads * w]` as `[B, heads, T, w]`."""
    return x.unflatten(-1, (heads, -1)).transpose(1, 2)


def embed(visual: Any, images: Tensor) -> Any:
    """`visual._embeds(images)`: tokens `[B, 1 + T, W]`."""
    conv, dropout = visual.conv1, visual.patch_dropout
    if type(conv) is not nn.Conv2d or not uses("patches", images.device):
        return visual._embeds(images)
    disjoint = conv.kernel_size == conv.stride and conv.padding == (0, 0) and conv.bias is None
    drops_patches = dropout.training and not isinstance(dropout, nn.Identity)
    if not disjoint or drops_patches:
        return visual._embeds(images)
    high, wide = conv.kernel_size
    # The convolution ignores pixels beside the last whole patch.
    covered = images[..., : images.shape[2] // high * high, : images.shape[3] // wide * wide]
    grid = covered.unflatten(3, (-1, wide)).unflatten(2, (-1, high))  # [B, 3, rows, high, columns, wide]
    patches = grid.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # [B, rows * columns, 3 * high * wide]
    tokens = F.linear(patches, conv.weight.flatten(1))
    class_token = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
    return visual.ln_pre(torch.cat([class_token, tokens], dim=1) + visual.positional_embedding.to(tokens.dtype))


class OnceDifferentiable(torch.autograd.Function):
    """The identity; a RuntimeError with advice where fused attention kernels would be differentiated twice."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        # Despite their names, these switches hold for CPUs as well.
        ctx.fused = torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        if ctx.fused and torch.is_grad_enabled():
            raise RuntimeError(
                "CLIP's fused attention can't be differentiated twice (create_graph=True): call the regularizer under "
                "`with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):`"
            )
        return gradient


class LeanQuickGELU(nn.Module):
    """x sigmoid(1.702 x), keeping one tensor for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(1.702 * x) / 1.702 if uses("activations", x.device) else x * torch.sigmoid(1.702 * x)


def lean_activations(model: nn.Module) -> None:
    """Replaces every QuickGELU, in place; the values stay the same to rounding."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "QuickGELU":
                setattr(module, name, LeanQuickGELU())


@torch.no_grad()
def fold_batch_norms(model: Any) -> None:
    """Merges the batch norms of a timm image tower into their convolutions, in place; the features stay the same.

    A tower whose modules don't follow one another as they are named is left as it is, and one in half precision,
    where merged weights would be rounded.
    """
    visual = model.visual
    if type(visual).__name__ != "TimmModel" or any(p.dtype.itemsize < 4 for p in visual.parameters()):
        return
    if not uses("batch norms", next(visual.parameters()).device):
        return
    folded = copy.deepcopy(visual).eval()
    pairs = [
        (module, before, after)
        for module in folded.modules()
        for before, after in pairwise(module.named_children())
        if _can_fold(before[1], after[1])
    ]
    for module, (conv_name, conv), (norm_name, norm) in pairs:
        setattr(module, conv_name, fuse_conv_bn_eval(conv, norm))
        setattr(module, norm_name, getattr(norm, "act", nn.Identity()))  # timm's norm may hold the activation
    height, width = visual.image_size
    image = torch.linspace(0, 60, 3 * height * width).sin().view(1, 3, height, width)
    image = image.to(next(visual.parameters()).dtype)
    if pairs and torch.allclose(folded(image), visual.eval()(image), rtol=1e-4, atol=1e-5):
        model.visual = folded


def _can_fold(conv: nn.Module, norm: nn.Module) -> bool:
    if not (isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)):
        return False
    return norm.running_mean is not None and norm.num_features == conv.out_channels
