import open_clip
import pytest
import torch
import torch.nn.functional as F
from conftest import TEXT, VISION, build_clip
from open_clip.transformer import QuickGELU

from semples_plugin.clip.fast_towers import (
    LeanQuickGELU,
    encode_pixels,
    fold_batch_norms,
    lean_activations,
    read_one_token,
)


def test_the_short_way_gives_the_features_and_gradients_of_the_long_one():
    visual = build_clip().double().eval().visual
    images = torch.randn(3, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    short, long = encode_pixels(visual, images), visual(images)
    torch.testing.assert_close(short, long, atol=1e-12, rtol=1e-9)
    weights = torch.randn_like(long)
    gradients = [torch.autograd.grad((features * weights).sum(), images)[0] for features in (short, long)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("size", [33, 47, (32, 45)])
def test_what_is_left_beside_the_patches_is_not_seen_as_by_the_convolution(size):
    torch.manual_seed(0)
    visual = open_clip.CLIP(32, {**VISION, "image_size": size}, TEXT).double().eval().visual
    height, width = visual.image_size
    images = torch.randn(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    short, long = encode_pixels(visual, images), visual(images)
    torch.testing.assert_close(short, long, atol=1e-12, rtol=1e-9)
    weights = torch.randn_like(long)
    gradients = [torch.autograd.grad((features * weights).sum(), images)[0] for features in (short, long)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-9)
    assert not gradients[0][..., width // 16 * 16 :].any()


@pytest.mark.parametrize("token", [slice(0, 1), slice(2, 3), slice(6, 7)])
def test_any_token_can_be_read_under_a_causal_mask(token):
    transformer = build_clip().double().eval().transformer
    mask = torch.full((7, 7), float("-inf"), dtype=torch.float64).triu(1)
    x = torch.randn(2, 7, 64, dtype=torch.float64)
    expected = transformer(x, attn_mask=mask)[:, token]
    torch.testing.assert_close(read_one_token(transformer, x, token, mask), expected, atol=1e-12, rtol=1e-9)


def test_what_is_built_otherwise_runs_as_it_is():
    average = open_clip.CLIP(32, {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32,
                                  "pool_type": "avg"}, {"width": 64, "heads": 2, "layers": 1})  # fmt: skip
    resnet = open_clip.CLIP(
        32, {"image_size": 64, "layers": [1, 1, 1, 1], "width": 16}, {"width": 64, "heads": 2, "layers": 1}
    )
    for model, size in ((average, 32), (resnet, 64)):
        images = torch.randn(2, 3, size, size)
        assert torch.equal(encode_pixels(model.eval().visual, images), model.visual(images))
    assert read_one_token(torch.nn.Identity(), torch.randn(1, 2, 64), slice(0, 1)) is None


def test_the_lean_activation_is_quick_gelu_and_keeps_half():
    kept, results = [], []
    for activation in (QuickGELU(), LeanQuickGELU()):
        x, sizes = torch.linspace(-8, 8, 64, dtype=torch.float64, requires_grad=True), {}

        def note(tensor, sizes=sizes):
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            y = activation(x)
        kept.append(sum(size for size in sizes.values() if size == 64))
        results.append((y, torch.autograd.grad(y.sum(), x)[0]))
    assert kept == [128, 64]
    for old, new in zip(*results, strict=True):
        torch.testing.assert_close(new, old, atol=1e-14, rtol=1e-12)
    model = torch.nn.Sequential(torch.nn.Sequential(QuickGELU()), torch.nn.GELU())
    lean_activations(model)
    assert [type(module).__name__ for module in model.modules()][2:] == ["LeanQuickGELU", "GELU"]


def timm_clip(name: str) -> open_clip.CLIP:
    """A CLIP with a timm image tower, whose batch norms have statistics as if trained."""
    torch.manual_seed(0)
    vision = {"timm_model_name": name, "timm_model_pretrained": False, "timm_pool": "avg", "timm_proj": "linear",
              "image_size": 64}  # fmt: skip
    model = open_clip.CLIP(32, vision, TEXT).eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                values.data += 0.5 * torch.rand_like(values)
    return model


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet", "tf_efficientnet_lite0"])
def test_folded_batch_norms_give_the_same_features_and_gradients(name):
    model = timm_clip(name).double()
    visual = model.visual
    fold_batch_norms(model)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in visual.modules())  # the caller's stays
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.visual.modules())
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64, requires_grad=True)
    folded, plain = (F.normalize(tower(images), dim=-1) for tower in (model.visual, visual))
    torch.testing.assert_close(folded, plain, atol=1e-12, rtol=1e-9)
    weights = torch.randn_like(plain)
    gradients = [torch.autograd.grad((features * weights).sum(), images)[0] for features in (folded, plain)]
    torch.testing.assert_close(*gradients, atol=1e-12, rtol=1e-9)


def test_a_tower_that_is_not_what_its_names_say_keeps_its_batch_norms():
    model = timm_clip("test_resnet")
    norm = model.visual.trunk.layer1[0].bn1
    norm.register_forward_hook(lambda module, inputs, output: output + inputs[0])  # the convolution has another use
    plain = model.visual
    fold_batch_norms(model)
    assert model.visual is plain and norm in model.visual.modules()
    half = timm_clip("test_resnet").bfloat16()
    plain = half.visual
    fold_batch_norms(half)
    assert half.visual is plain
