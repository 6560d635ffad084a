"""open_clip's own ViT-B/32 takes every fast path: fails where a later open_clip changes what they rely on.

Tried on the oldest and the newest open_clip that pyproject.toml allows, see noxfile.py.
"""

import inspect
import warnings
from unittest import mock

import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import build_frozen
from open_clip import transformer
from torch import nn

from semples_plugin import FrozenClip
from semples_plugin.clip import fast_towers
from semples_plugin.clip.fast_towers import PATHS, encode_pixels, fold_batch_norms, lean_activations, without

LAYERS, VECTORS, TOKENS = 12, 30, 36


@pytest.fixture(scope="module")
def vit() -> FrozenClip:
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)
    lean_activations(model)
    return FrozenClip(model, open_clip.get_tokenizer("ViT-B-32-quickgelu"))


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vectors(vit) -> torch.Tensor:
    return 0.02 * torch.randn(2, VECTORS, vit.text_width, generator=torch.Generator().manual_seed(0))


class Calls:
    """What a tower computes with: how often, and the tokens of each query and key."""

    REPLACED = (
        (transformer.VisionTransformer, "forward"),
        (transformer.VisionTransformer, "_embeds"),
        (transformer.Transformer, "forward"),
        (nn.MultiheadAttention, "forward"),
        (torch, "sigmoid"),
    )

    def __init__(self) -> None:
        self.made: list[str] = []
        self.attended: list[tuple[int, int]] = []

    def __enter__(self) -> "Calls":
        self.patches = [
            mock.patch.object(F, "scaled_dot_product_attention", self._attend(F.scaled_dot_product_attention))
        ]
        for owner, name in self.REPLACED:
            self.patches.append(mock.patch.object(owner, name, self._note(owner, name)))
        for patch in self.patches:
            patch.start()
        return self

    def __exit__(self, *_) -> None:
        for patch in self.patches:
            patch.stop()

    def _note(self, owner, name):
        function = getattr(owner, name)

        def noted(*args, **kwargs):
            self.made.append(f"{getattr(owner, '__name__', owner)}.{name}")
            return function(*args, **kwargs)

        return noted

    def _attend(self, function):
        def attend(query, key, value, *args, **kwargs):
            self.attended.append((query.shape[2], key.shape[2]))
            return function(query, key, value, *args, **kwargs)

        return attend


def of_images(vit, images, _):
    return vit.encode_images(images)


def of_prompts(vit, _, vectors):
    return vit.encode_prompts(vectors)


@pytest.mark.parametrize(("encode", "tokens"), [(of_images, 50), (of_prompts, TOKENS)])
def test_a_tower_takes_every_path(vit, images, vectors, encode, tokens):
    with warnings.catch_warnings(), Calls() as calls:
        warnings.simplefilter("error")
        encode(vit, images, vectors)
    assert calls.made == []  # nothing of what the paths replace
    assert calls.attended == [(tokens, tokens)] * (LAYERS - 1) + [(1, tokens)]
    lean = [module for module in vit.model.modules() if isinstance(module, fast_towers.LeanQuickGELU)]
    assert len(lean) == 2 * LAYERS and not any(isinstance(m, transformer.QuickGELU) for m in vit.model.modules())


TAKEN_AWAY = {
    "last block": [],
    "attention": ["MultiheadAttention.forward"] * LAYERS,
    "patches": ["VisionTransformer._embeds"],
    "activations": ["torch.sigmoid"] * LAYERS,
}


@pytest.mark.parametrize("path", TAKEN_AWAY)
def test_a_path_can_be_taken_away(vit, images, path, monkeypatch):
    expected = encode_pixels(vit.model.visual, images)
    with without(path), Calls() as calls:
        found = encode_pixels(vit.model.visual, images)
    assert calls.made == TAKEN_AWAY[path]
    if path == "last block":
        assert calls.attended == [(50, 50)] * LAYERS
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert fast_towers.uses(path, torch.device("cpu"))  # again
    monkeypatch.setitem(PATHS, path, frozenset({"cuda"}))
    with Calls() as calls:
        encode_pixels(vit.model.visual, images)
    assert calls.made == TAKEN_AWAY[path]  # a path that isn't for this device
    assert fast_towers.uses(path, torch.device("cuda", 1)) and fast_towers.uses(path, torch.device("mps"))


def test_the_paths_give_open_clips_own_features(vit, images, vectors):
    torch.testing.assert_close(encode_pixels(vit.model.visual, images), vit.model.visual(images), atol=1e-5, rtol=1e-4)
    words = " ".join(["x"] * VECTORS)
    (ids,) = vit.tokenizer([f"a photo of {words}."])
    own = vit.encode_prompts(vit.model.token_embedding(ids[4 : 4 + VECTORS])[None])
    torch.testing.assert_close(own, vit.encode_texts([f"a photo of {words}."]), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (transformer.VisionTransformer.forward, ["self", "x"]),
        (transformer.VisionTransformer._embeds, ["self", "x"]),
        (transformer.Transformer.forward, ["self", "x", "attn_mask"]),
        (transformer.ResidualAttentionBlock.forward, ["self", "q_x", "k_x", "v_x", "attn_mask"]),
        (transformer.QuickGELU.forward, ["self", "x"]),
        (transformer.text_global_pool, ["x", "text", "pool_type", "eos_token_id"]),
    ],
)
def test_what_the_paths_replace_takes_what_it_took(function, parameters):
    assert list(inspect.signature(function).parameters) == parameters


class VisionTransformer(nn.Module):
    """A later open_clip's, which embeds its patches elsewhere."""

    def __init__(self, tower: nn.Module) -> None:
        super().__init__()
        self.tower = tower
        for name in fast_towers._VISION_PARTS[1:]:
            setattr(self, name, getattr(tower, name))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.tower(images)


class Attention(nn.Module):
    """A later open_clip's, or an adapter around the one of today."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, *args, **kwargs):
        return self.attention(*args, **kwargs)


def changed_attention() -> nn.Module:
    visual = build_frozen().model.visual
    visual.transformer.resblocks[1].attn = Attention(visual.transformer.resblocks[1].attn)
    return visual


def changed_block() -> nn.Module:
    visual = build_frozen().model.visual
    block = visual.transformer.resblocks[0]
    block.add_module("norm_1", block.ln_1)
    del block.ln_1
    block.forward = lambda x, attn_mask=None: x + block.attn(*[block.norm_1(x)] * 3)[0]
    return visual


@pytest.mark.parametrize(
    ("tower", "words"),
    [
        (lambda: VisionTransformer(build_frozen().model.visual), "VisionTransformer without _embeds"),
        (changed_attention, "ResidualAttentionBlock whose attn is no torch.nn.MultiheadAttention"),
        (changed_block, "ResidualAttentionBlock without ln_1"),
    ],
)
def test_a_tower_that_has_changed_runs_as_it_is_and_is_named_once(tower, words):
    visual, images = tower(), torch.randn(2, 3, 32, 32)
    with pytest.warns(UserWarning, match=f"{words}, unlike that of open_clip .* own forward pass is used") as caught:
        assert torch.equal(encode_pixels(visual, images), visual(images))
        encode_pixels(visual, images)
    assert len(caught) == 1


def test_other_settings_of_open_clips_are_no_change():
    vision = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
    text = {"width": 64, "heads": 2, "layers": 1}
    towers = [
        {**vision, "pool_type": "avg"},
        {**vision, "block_type": "custom", "qk_norm": True},
        {**vision, "attentional_pool": True},
        {"image_size": 32, "layers": [1, 1, 1, 1], "width": 16},
        {"image_size": 32, "timm_model_name": "test_vit", "timm_model_pretrained": False, "timm_pool": "token"},
    ]
    images = torch.randn(2, 3, 32, 32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for config in towers:
            visual = open_clip.CLIP(32, config, text).eval().visual
            assert torch.equal(encode_pixels(visual, images), visual(images))
        build_frozen("SigLIP").encode_prompts(torch.zeros(1, 3, 64))


def test_batch_norms_stay_where_they_are_to_stay():
    vision = {"image_size": 64, "timm_model_name": "resnet18", "timm_model_pretrained": False, "timm_pool": "avg"}
    model = open_clip.CLIP(32, {**vision, "timm_proj": "linear"}, {"width": 64, "heads": 2, "layers": 1}).eval()
    visual = model.visual
    with without("batch norms"):
        fold_batch_norms(model)
    assert model.visual is visual
    fold_batch_norms(model)
    assert model.visual is not visual


def test_an_unknown_path_is_named():
    words = r"paths: expected some of last block, .* got patch; did you mean patches"
    with pytest.raises(ValueError, match=words), without("patch"):
        pass
