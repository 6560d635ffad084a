"""A small CLIP of random weights for miniature runs: `python -m semples_plugin.recipes.small_clip OUT`.

OUT holds one and the same model twice: `openai.pt`, which `clip.load` of the hosts reads, and open_clip's files, for
`--semples-clip local-dir:OUT`. It knows nothing: commands can be tried with it, and nothing else.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from semples_plugin.utils.atomic_files import replacing

# OpenAI's loader takes heads of 64 for granted, and reads the other sizes off the weights.
CONFIG = {
    "embed_dim": 64,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 224, "layers": 2, "width": 128, "head_width": 64, "patch_size": 32},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 2},
}
CLIP_STATISTICS = {"mean": [0.48145466, 0.4578275, 0.40821073], "std": [0.26862954, 0.26130258, 0.27577711]}


def write_small_clip(out: str | Path, seed: int = 0) -> None:
    """Writes the model.

    Args:
        out: folder, made where it isn't there.
        seed: of the weights.
    """
    import torch
    from open_clip.model import CLIP
    from safetensors.torch import save_file

    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = CLIP(**CONFIG).state_dict()
    # As OpenAI rounded theirs, and as its loader does it again.
    weights = {name: tensor.half().float().contiguous() for name, tensor in weights.items()}
    with replacing(out / "openai.pt") as temporary:
        torch.save(weights, temporary)
    with replacing(out / "open_clip_model.safetensors") as temporary:
        save_file(weights, temporary)
    with replacing(out / "open_clip_config.json") as temporary:
        temporary.write_text(
            json.dumps({"model_cfg": CONFIG, "preprocess_cfg": CLIP_STATISTICS}, indent=2) + "\n", encoding="utf-8"
        )


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m semples_plugin.recipes.small_clip", description=__doc__)
    parser.add_argument("out", metavar="OUT", help="folder to write")
    options = parser.parse_args()
    write_small_clip(options.out)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
