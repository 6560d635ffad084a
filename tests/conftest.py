"""Small but real CLIPs: open_clip's own classes, random weights, open_clip's own tokenizer."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

# Before torch: its threads wait for one another by spinning, which costs minutes where something else has a core.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import open_clip
import pytest
import torch
from safetensors.torch import save_file

from semples_plugin import FrozenClip
from semples_plugin.utils import checks

# Under nohup and in the background of a script they are ignored, also by what tests start and interrupt.
for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, usual)

VISION = {"image_size": 32, "patch_size": 16, "width": 64, "layers": 2, "head_width": 32}
TEXT = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 3}


def build_clip(kind: str = "CLIP", seed: int = 0, **text):
    torch.manual_seed(seed)
    if kind == "SigLIP":
        text = {"context_length": 16, "no_causal_mask": True, "pool_type": "last", "proj_bias": True, **text}
    make = open_clip.CLIP if kind == "CLIP" else open_clip.CustomTextCLIP
    model = make(32, vision_cfg=dict(VISION), text_cfg={**TEXT, **text})
    with torch.no_grad():  # open_clip starts with tiny texts and zero biases: give every weight something to say
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        # Like a trained CLIP's, all features lie in a narrow cone, so that cosines are positive and not clamped.
        text = getattr(model, "text", model)
        projection = text.text_projection
        shift_features(model.visual.ln_post, model.visual.proj)
        shift_features(text.ln_final, projection.weight.T if isinstance(projection, torch.nn.Linear) else projection)
    return model


def shift_features(norm: torch.nn.LayerNorm, projection: torch.Tensor) -> None:
    """Moves all features by one vector, the same for every tower."""
    shift = torch.linspace(-1, 2, projection.shape[1])
    # In float64: the last bits of a float32 solution depend on where memory lies (torch 2.6).
    norm.bias.add_(torch.linalg.lstsq(projection.T.double(), shift.double()).solution)


class StickyTokenizer:
    """SigLIP's manner on open_clip's vocabulary: no start token, and padding with the end-of-text token."""

    def __init__(self, context: int = 16) -> None:
        self.inner, self.context = open_clip.get_tokenizer("ViT-B-32"), context

    def __call__(self, texts):
        rows = []
        for text in texts:
            ids = self.inner([text])[0]
            ids = ids[1 : int(ids.argmax())][: self.context - 1]
            rows.append(torch.cat([ids, ids.new_full((self.context - len(ids),), 49407)]))
        return torch.stack(rows)


def build_frozen(kind: str = "CLIP", seed: int = 0, double: bool = False) -> FrozenClip:
    model = build_clip(kind, seed)
    tokenizer = StickyTokenizer() if kind == "SigLIP" else open_clip.get_tokenizer("ViT-B-32")
    return FrozenClip(model.double() if double else model, tokenizer, f"{kind} {seed}")


def save_clip(folder: Path) -> None:
    """Writes a small CLIP as open_clip's `local-dir:` reads it."""
    folder.mkdir()
    config = {"embed_dim": 32, "vision_cfg": VISION, "text_cfg": TEXT}
    config = {"model_cfg": config, "preprocess_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    weights = {name: tensor.contiguous() for name, tensor in build_clip().state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")


@pytest.fixture
def clip() -> FrozenClip:
    return build_frozen()


@pytest.fixture
def clip64() -> FrozenClip:
    return build_frozen(double=True)


@pytest.fixture(autouse=True)
def _fresh_warnings():
    checks._warned.clear()
