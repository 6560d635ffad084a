"""CAM files of the hosts: read without executing code, written as their own code writes them.

| format | of | what a file holds |
|---|---|---|
| `clims` | CLIMS, IRNet | `.npy` dictionary: `keys`, `cam` (stride 4), `high_res` (full size), up to 1 |
| `weaktr` | WeakTr, MCTformer | `.npy` dictionary {class: full size, min-max} |
| `fma` | FMA-WSSS | `.npz`: `cam` at CLIP's stride, as it came; `fg_cls` |
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semples_plugin.files import replacing
from semples_plugin.pickled import read_pickled

FORMATS = {"clims": ".npy", "weaktr": ".npy", "fma": ".npz"}
EPS = 1e-7  # FMA-WSSS's, of its min-max normalisation


@dataclass(frozen=True)
class Cams:
    """CAMs of one image.

    Attributes:
        maps: `[P, h, w]`, float32, as the file has them.
        class_index: the P classes, 0-based.
        format: of the file, see `FORMATS`.
    """

    maps: NDArray[np.float32]
    class_index: tuple[int, ...]
    format: str

    def scores(self, height: int, width: int) -> NDArray[np.float32]:
        """Scores `[P, height, width]` as the format's own evaluation thresholds them.

        Files of `clims` and `weaktr` hold scores already; those of `fma` are resampled bilinearly, and become
        ReLU and min-max per class, as FMA-WSSS does it.

        Raises:
            ValueError: where CAMs at full size are of another size than the image.
        """
        if self.format == "fma":
            return _min_max(resized(self.maps, height, width))
        if self.maps.shape[1:] != (height, width):
            size = " x ".join(map(str, self.maps.shape[1:]))
            raise ValueError(f"CAMs of {size} pixels, where the image has {height} x {width}; was it scaled since?")
        return self.maps


def list_cams(folder: str | Path) -> dict[str, Path]:
    """Image names to the CAM files of a folder, sorted.

    Raises:
        FileNotFoundError: where there is no such folder, or no `.npy` and `.npz` in it.
        ValueError: where an image has two files.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix in (".npy", ".npz"):
            if path.stem in files:
                raise ValueError(f"{folder} holds two files of {path.stem}: .npy and .npz")
            files[path.stem] = path
    if not files:
        raise FileNotFoundError(f"{folder} holds no CAMs: expected .npy or .npz files")
    return files


def read_cams(path: str | Path) -> Cams:
    """Reads a CAM file of any host; what it holds says whose it is.

    Raises:
        OSError: where it can't be read.
        ValueError: where it is damaged, holds more than data, or holds something else than CAMs.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            with np.load(path) as file:  # pickles inside are refused by default
                maps, class_index, form = file["cam"], file["fg_cls"], "fma"
        else:
            maps, class_index, form = _read_dictionary(read_pickled(path))
        maps = np.asarray(maps, dtype=np.float32)
        classes = tuple(int(k) for k in class_index)
    except OSError:
        raise
    except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        prefix = "" if str(error).startswith(str(path)) else f"{path} is damaged, or no CAM file: "
        raise ValueError(f"{prefix}{error}") from error
    if not classes:
        maps = maps.reshape(0, *maps.shape[-2:]) if maps.ndim >= 2 else np.zeros((0, 0, 0), np.float32)
    if maps.ndim != 3 or len(maps) != len(classes) or len(set(classes)) < len(classes) or min(classes, default=0) < 0:
        raise ValueError(
            f"{path}: expected CAMs [P, h, w] of P different classes from 0, got {list(maps.shape)} of {list(classes)}"
        )
    if not np.isfinite(
        maps.sum(dtype=np.float64)
    ):  # NaN and infinity survive a sum, which is quicker than a look at each
        raise ValueError(f"{path}: NaN or infinite values")
    return Cams(maps, classes, form)


def write_cams(path: str | Path, cams: Cams) -> None:
    """Writes a CAM file as the host of `cams.format` writes it; `maps` must be at full size for `clims`, `weaktr`.

    Raises:
        OSError: where it can't be written; an older file of that name stays as it was.
    """
    import torch

    if cams.format == "fma":
        # Its evaluation and its seeding read these two; logits and attention are its network's alone.
        content: Any = {"cam": cams.maps, "fg_cls": np.array(cams.class_index, dtype=np.int64)}
    elif cams.format == "clims":
        height, width = cams.maps.shape[1:]
        strided = resized(cams.maps, -(-height // 4), -(-width // 4))
        keys = torch.tensor(cams.class_index, dtype=torch.int64)
        content = {"keys": keys, "cam": torch.from_numpy(strided), "high_res": cams.maps}
    else:
        content = dict(zip(cams.class_index, cams.maps))
    with replacing(path) as temporary, temporary.open("wb") as file:
        if cams.format == "fma":
            np.savez(file, **content)
        else:
            np.save(file, np.array(content, dtype=object), allow_pickle=True)


def resized(maps: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Bilinear resampling of `[P, h, w]`, corners not aligned."""
    import cv2

    if maps.shape[1:] == (height, width) or not len(maps):
        return maps if len(maps) else np.zeros((0, height, width), np.float32)
    return np.stack([cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) for one in maps])


def _min_max(maps: NDArray[np.float32]) -> NDArray[np.float32]:
    positive = np.maximum(maps, 0)
    low, high = positive.min((1, 2), keepdims=True), positive.max((1, 2), keepdims=True)
    return (positive - low) / (high - low + np.float32(EPS))


def _read_dictionary(found: Any) -> tuple[NDArray[Any], Any, str]:
    if not isinstance(found, dict):
        raise ValueError(f"expected a dictionary of CAMs, got {type(found).__name__}")
    if "keys" in found and "high_res" in found:
        return found["high_res"], found["keys"], "clims"
    if not all(isinstance(key, int) for key in found):
        raise ValueError(f"expected the keys `keys` and `high_res`, or numbers of classes, got {list(found)[:5]}")
    return np.stack(list(found.values())) if found else np.zeros((0, 0, 0)), list(found), "weaktr"
