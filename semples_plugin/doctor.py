"""`semples doctor`: what is installed, which devices there are, and whether CLIP's weights are at hand."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from semples_plugin.clip_loading import LOCAL_DIR, check_source, find_cached, where_to_get

_NEEDED = ("semples-plugin", "torch", "torchvision", "open_clip_torch", "numpy", "opencv-python", "safetensors", "tqdm")
_OPTIONAL = {
    "transformers": "tokenizers of SigLIP and other models of the Hugging Face hub: pip install transformers",
    "mmengine": "mmsegmentation configs: pip install onedl-mmsegmentation onedl-mmcv onedl-mmengine",
}
_SAME = {"opencv-python": "opencv-python-headless", "mmengine": "onedl-mmengine"}


def print_report(clip: str, pretrained: str) -> int:
    """Prints the report; returns 0 when training can begin, 1 when something that it needs is missing."""
    print(f"Python {platform.python_version()} on {platform.system()} {platform.machine()}")
    missing = [name for name in _NEEDED if _print_version(name, "required: pip install " + name) is None]
    for name, use in _OPTIONAL.items():
        _print_version(name, f"optional, for {use}")
    _print_devices()
    return int(bool(missing) + _print_clip(clip, pretrained))


def _print_clip(clip: str, pretrained: str) -> bool:
    """Where CLIP's weights are, or come from; returns whether they can't be had."""
    try:
        check_source(clip, pretrained)
    except (OSError, ValueError) as error:
        print(f"CLIP      {error}")
        return True
    if clip.startswith(LOCAL_DIR):
        print(f"CLIP      {clip}")
        return False
    found = Path(pretrained) if Path(pretrained).is_file() else find_cached(clip, pretrained)
    print(f"CLIP      {clip}/{pretrained}: {found or 'not cached; the first load downloads it'}")
    if found is None:
        print(f"          without a network, {where_to_get(clip, pretrained)}")
    return False


def _print_version(name: str, use: str) -> str | None:
    for distribution in filter(None, (name, _SAME.get(name))):
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        print(f"installed {distribution} {found}")
        return found
    print(f"missing   {name} ({use})")
    return None


def _print_devices() -> None:
    print(f"device    cpu, {torch.get_num_threads()} threads")
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        print(f"device    cuda:{index}, {properties.name}, {properties.total_memory / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        print("device    no CUDA device is visible to torch")
