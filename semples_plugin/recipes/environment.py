"""What a figure depends on beside its command: versions, the host's commit, the device."""

from __future__ import annotations

import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("semples-plugin", "torch", "torchvision", "open_clip_torch", "timm", "numpy", "mmsegmentation", "mmengine")


def describe_environment(folder: Path) -> dict[str, Any]:
    """Python's and packages' versions, GPUs, and the commit of the checkout that `folder` lies in."""
    return {
        "python": platform.python_version(),
        **{name: found for name in _PACKAGES if (found := _version(name))},
        "commit": _output("git", "-C", str(folder), "rev-parse", "HEAD"),
        "device": _output("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or platform.processor() or "CPU",
    }


def _version(name: str) -> str:
    for distribution in (name, f"onedl-{name}"):
        try:
            return version(distribution)
        except PackageNotFoundError:
            continue
    return ""


def _output(*command: str) -> str:
    """What a command prints; nothing where it isn't there or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", timeout=10)
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs costs a name, no run
        return ""
    return done.stdout.strip().replace("\n", ", ") if done.returncode == 0 else ""
