"""open_clip's transformers without the work that nobody reads; whatever is built otherwise runs as it is.

A feature is read from one token. In the last block only that token's query, and what follows from it, matters: a
twelfth of the tower's time and memory for ViT-B. torch's attention turns batch and tokens around, after which a CPU
multiplies token by token; its projections are called on the batch as it is. Patches don't overlap, so their embedding
and its gradient are one matrix product each, where a convolution's gradient takes ten times as long. QuickGELU,
x sigmoid(1.702 x), keeps two tensors for its gradient; written as silu(1.702 x) / 1.702 it keeps one, which is a
quarter of the memory. What each of them saves is measured by `semples bench`.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def read_one_token(transformer: Any, x: Tensor, token: slice, attn_mask: Tensor | None = None) -> Tensor | None:
    """The output `[B, 1, W]` of a transformer at one token, or None where it isn't built as expected.

    Args:
        transformer: open_clip's `Transformer`.
        x: `[B, T, W]`.
        token: of length 1.
        attn_mask: `[T, T]`.
    """
    blocks: Any = getattr(transformer, "resblocks", ())
    plain = all(type(block).__name__ == "ResidualAttentionBlock" and not hasattr(block, "ln_1_kv") for block in blocks)
    if not (plain and len(blocks) and type(transformer).__name__ == "Transformer" and transformer.batch_first):
        return None
    mask = None if attn_mask is None else attn_mask.to(x.dtype)
    for block in blocks[:-1]:
        normed = block.ln_1(x)
        x = x + block.ls_1(attend(block.attn, normed, normed, mask))
        x = x + block.ls_2(block.mlp(block.ln_2(x)))
    last: Any = blocks[-1]
    normed = last.ln_1(x)
    read: Tensor = x[:, token]
    read = read + last.ls_1(attend(last.attn, normed[:, token], normed, None if mask is None else mask[token]))
    read = read + last.ls_2(last.mlp(last.ln_2(read)))
    return read


def encode_pixels(visual: Any, images: Tensor) -> Any:
    """`visual(images)`: features `[B, D]` of normalised images."""
    features: Any = None
    if type(visual).__name__ == "VisionTransformer" and hasattr(visual, "_embeds"):
        whole = visual.attn_pool is not None or visual.pool_type != "tok" or visual.output_tokens
        features = None if whole else read_one_token(visual.transformer, embed(visual, images), slice(0, 1))
    if features is None:
        return visual(images)
    features = visual.ln_post(features[:, 0])
    return features if visual.proj is None else features @ visual.proj


def attend(attn: Any, q: Tensor, kv: Tensor, mask: Tensor | None) -> Tensor:
    """`attn(q, kv, kv, attn_mask=mask)[0]`, of batches first."""
    if type(attn) is not nn.MultiheadAttention or attn.in_proj_weight is None or attn.bias_k is not None:
        attended: Tensor = attn(q, kv, kv, need_weights=False, attn_mask=mask)[0]
        return attended
    weight, bias, width = attn.in_proj_weight, attn.in_proj_bias, attn.embed_dim
    if q is kv:
        parts = F.linear(q, weight, bias).chunk(3, dim=-1)
    else:
        parts = F.linear(q, weight[:width], bias[:width]), *F.linear(kv, weight[width:], bias[width:]).chunk(2, dim=-1)
    query, key, value = (part.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2) for part in parts)
    together = F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
    return F.linear(together, attn.out_proj.weight, attn.out_proj.bias)


def embed(visual: Any, images: Tensor) -> Any:
    """`visual._embeds(images)`: tokens `[B, 1 + T, W]`."""
    conv, dropout = visual.conv1, visual.patch_dropout
    plain = conv.kernel_size == conv.stride and conv.padding == (0, 0) and conv.bias is None
    if not plain or (dropout.training and not isinstance(dropout, nn.Identity)):
        return visual._embeds(images)
    high, wide = conv.kernel_size
    whole = images[..., : images.shape[2] // high * high, : images.shape[3] // wide * wide]  # as the convolution sees
    patches = whole.unflatten(3, (-1, wide)).unflatten(2, (-1, high)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
    tokens = F.linear(patches, conv.weight.flatten(1))
    first = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
    return visual.ln_pre(torch.cat([first, tokens], dim=1) + visual.positional_embedding.to(tokens.dtype))


class OnceDifferentiable(torch.autograd.Function):
    """The identity; says which attention kernels can be differentiated twice, where others were used."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        fused = torch.backends.cuda.flash_sdp_enabled() or torch.backends.cuda.mem_efficient_sdp_enabled()  # CPUs', too
        ctx.fused = fused
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
        return F.silu(1.702 * x) / 1.702


def lean_activations(model: nn.Module) -> None:
    """Replaces every QuickGELU, in place; the values stay the same to rounding."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child).__name__ == "QuickGELU":
                setattr(module, name, LeanQuickGELU())
