"""The patches and adapters on the hosts' real code; give the pinned checkouts as SEMPLES_WEAKTR and SEMPLES_CLIMS."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from semples_plugin import patching
from semples_plugin.adapters import weaktr

CHECKOUTS = {host: os.environ.get(f"SEMPLES_{host.upper()}") for host in ("clims", "weaktr")}


def need(host: str) -> str:
    if not CHECKOUTS[host]:
        pytest.skip(f"SEMPLES_{host.upper()} names no checkout")
    return CHECKOUTS[host]


@pytest.mark.parametrize("host", CHECKOUTS)
def test_the_patch_goes_in_and_out(host):
    checkout = need(host)
    assert "the patch fits" in patching.patch(host, checkout, "check")
    patching.patch(host, checkout)
    try:
        assert "is patched" in patching.patch(host, checkout, "check")
        for name in patching.touched_files(host):
            subprocess.run([sys.executable, "-m", "py_compile", Path(checkout) / name], check=True)
    finally:
        patching.patch(host, checkout, "revert")
    status = ["git", "-C", checkout, "status", "--porcelain", "--untracked-files=no"]
    assert subprocess.run(status, check=True, capture_output=True, text=True).stdout == ""


@pytest.fixture
def real_weaktr(monkeypatch):
    monkeypatch.syspath_prepend(need("weaktr"))
    import models

    torch.manual_seed(0)
    model = models.deit_small_WeakTr_patch16_224(
        num_classes=20, drop_path_rate=0.1, reduction=4, pool="avg", feat_reduction=8
    )
    return model


def test_the_hooked_fine_cam_is_weaktrs(real_weaktr):
    images = torch.randn(2, 3, 224, 224)
    with torch.no_grad(), weaktr.FineCam(real_weaktr.eval()) as fine:
        _, cams, attention = real_weaktr(images, return_att=True)
        found = fine()
    expected = (attention[0][:, None] @ cams.flatten(2)[..., None]).reshape(cams.shape)
    assert found.shape == (2, 20, 14, 14) and expected.max() > 0
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("reach", weaktr.REACH)
def test_weaktrs_training_pass_gives_its_own_logits_and_gradients(real_weaktr, reach):
    with weaktr.FineCam(real_weaktr.train(), reach) as fine:
        _, _, logits = real_weaktr(torch.randn(2, 3, 224, 224))
        cams = fine()
    torch.testing.assert_close(cams.mean((2, 3)), logits, atol=1e-6, rtol=0)
    cams.square().sum().backward()
    reached = {name.split(".")[0] for name, p in real_weaktr.named_parameters() if p.grad is not None}
    assert reached == ({"head", "adaptive_attention_fusion"} if "head" in reach else {"adaptive_attention_fusion"})
