"""CAM files of the hosts: read without executing code, written as their own code writes them.

| format | of | what a file holds |
|---|---|---|
| `clims` | CLIMS, IRNet | `.npy` dictionary: `keys`, `cam` (stride 4), `high_res` (full size), up to 1 |
| `weaktr` | WeakTr, MCTformer | `.npy` dictionary {class: full size, min-max} |
| `fma` | FMA-WSSS | `.npz`: `cam` at CLIP's stride, as it came; `fg_cls` |

Masks are read as CAMs of 0 and 1 (`labels`), so that they are judged and drawn the same way.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semples_plugin.data.image_names import ImageNames, image_name, read_image_paths
from semples_plugin.data.images import read_mask
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.safe_pickle import read_header, read_pickled
from semples_plugin.utils.text import reason, shown

FORMATS = {"clims": ".npy", "weaktr": ".npy", "fma": ".npz"}
Plane = NDArray[np.float32]
EPS = 1e-7  # FMA-WSSS's, of its min-max normalisation
MAX_CLASSES = 254  # masks are bytes: 0 is background, 255 ignored
_MAX_BYTES = 1 << 29  # of the maps in a small .npz or PNG, which can be a thousand times as large as their file


@dataclass(frozen=True, eq=False)
class Cams:
    """CAMs of one image.

    Attributes:
        planes: P maps `[h, w]` of one size, float32, as the file has them; other types are rounded to it.
        class_index: the P classes, 0-based, each once, 253 at most.
        format: of the file, see `FORMATS`; or "labels" for a mask.

    Raises:
        ValueError: where they are none of that.
    """

    planes: Sequence[Plane]
    class_index: tuple[int, ...]
    format: str

    def __post_init__(self) -> None:
        if self.format not in (*FORMATS, "labels"):
            raise ValueError(f"format: expected one of {', '.join(FORMATS)} or labels, got {shown(self.format)}")
        _check_count(len(self.planes), len(self.class_index))
        if len(set(self.class_index)) < len(self.class_index) or not all(
            0 <= k < MAX_CLASSES for k in self.class_index
        ):
            raise ValueError(
                f"expected different classes from 0 to {MAX_CLASSES - 1}, got {shown(list(self.class_index))}"
            )
        shapes = {plane.shape for plane in self.planes}
        if len(shapes) > 1 or any(len(shape) != 2 or 0 in shape for shape in shapes):
            raise ValueError(f"expected maps [h, w] of one size, got {shown(sorted(shapes))}")

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the maps; None where there are none."""
        return None if not len(self.planes) else (self.planes[0].shape[0], self.planes[0].shape[1])

    @property
    def maps(self) -> NDArray[np.float32]:
        """`[P, h, w]`."""
        return np.stack(self.planes) if len(self.planes) else np.zeros((0, 0, 0), np.float32)

    def scores(self, height: int, width: int) -> Sequence[Plane]:
        """P scores `[height, width]` as the format's own evaluation thresholds them.

        Files of `clims` and `weaktr` hold scores already; those of `fma` are resampled bilinearly, and become
        ReLU and min-max per class, as FMA-WSSS does it.

        Raises:
            ValueError: where CAMs at full size are of another size than the image, or exceed 1.
        """
        if self.format == "fma":
            return [_min_max(resized(plane, height, width)) for plane in self.planes]
        if self.size not in (None, (height, width)):
            raise ValueError(
                f"CAMs of {' x '.join(map(str, self.size or ()))} pixels, where the image has {height} x {width}; was "
                "it scaled since?"
            )
        highest = max((float(plane.max()) for plane in self.planes if plane.size), default=0.0)
        if highest > 1.001:  # some hosts' rounding reaches 1.0000001
            raise ValueError(
                f"CAMs up to {highest:.3g}, where scores reach 1 and thresholds lie from 0 to 1; normalise each map, "
                "as by its maximum, before it is saved"
            )
        return self.planes


def list_cams(folder: str | Path, *, masks: bool = False) -> dict[str, Path]:
    """Image names to the CAM files of a folder, sorted; with `masks`, to its PNGs where it holds no CAMs.

    Raises:
        FileNotFoundError: where there is no such folder, or nothing of that kind in it.
        ValueError: where it holds CAMs of two kinds, or two files of one image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith("."))  # a kill leaves such files
    if {".npy", ".npz"} <= {path.suffix for path in inside}:
        raise ValueError(f"{folder} holds .npy and .npz files, CAMs of two hosts: give each a folder of its own")
    found = [path for path in inside if path.suffix in (".npy", ".npz")]
    if masks and not found:
        found = [path for path in inside if path.suffix == ".png"]
    if not found:
        raise FileNotFoundError(
            f"{folder} holds no CAMs: expected .npy or .npz files" + (", or masks as .png" if masks else "")
        )
    names = ImageNames()
    return {names.of(path): path for path in found}


def chosen_cams(folder: str | Path, image_list: str | Path | None = None) -> dict[str, Path]:
    """The CAM files of a folder, or those of the images of a list alone; each of them must be there.

    Raises:
        FileNotFoundError: where there is no such folder, or an image of the list has no CAMs.
    """
    found = list_cams(folder)
    if image_list is None:
        return found
    names = read_image_list(image_list)
    missing = [name for name in names if name not in found]
    if missing:
        raise FileNotFoundError(f"{folder} has no CAMs of {len(missing)} images of {image_list}, such as {missing[0]}")
    return {name: found[name] for name in names}


def read_image_list(path: str | Path) -> list[str]:
    """Image names of a list file, each once; what lines may hold, and what it raises, see `read_image_paths`."""
    return list(dict.fromkeys(map(image_name, read_image_paths(path))))


def read_cams(path: str | Path) -> Cams:
    """Reads a CAM file of any host, or a PNG of labels; what it holds says whose it is.

    Raises:
        OSError: where it can't be read.
        ValueError: where it is damaged, holds more than data, or holds something else than CAMs.
    """
    path = Path(path)
    try:
        if path.suffix == ".png":
            return _read_labels(path)
        maps, class_index, form = _read_npz(path) if path.suffix == ".npz" else _read_dictionary(read_pickled(path))
        _check_count(len(maps), len(class_index))
        planes = [np.asarray(plane, dtype=np.float32) for plane in maps]
        cams = Cams(planes, _whole_numbers(class_index), form)
    except Exception as error:  # what damaged bytes raise, nobody can list
        if isinstance(error, OSError) and error.filename is not None:
            raise
        if str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is damaged, or no CAM file: {reason(error)}") from error
    if not all(np.isfinite(plane.sum()) for plane in planes):  # a sum is quick, and keeps NaN and infinity
        raise ValueError(f"{path}: NaN or infinite values")
    return cams


def write_cams(path: str | Path, cams: Cams, source_time: int | None = None) -> None:
    """Writes a CAM file as the host of `cams.format` writes it; maps must be at full size for `clims`, `weaktr`.

    Args:
        path: of the file.
        cams: what it shall hold.
        source_time: see `replacing`.

    Raises:
        OSError: where it can't be written; an older file of that name stays as it was.
    """
    if cams.format == "fma":
        # Its evaluation and its seeding read these two; logits and attention are its network's alone.
        content: Any = {"cam": cams.maps, "fg_cls": np.array(cams.class_index, dtype=np.int64)}
    elif cams.format == "clims":
        import torch

        height, width = cams.size or (0, 0)
        strided = [resized(plane, -(-height // 4), -(-width // 4)) for plane in cams.planes]
        keys = torch.tensor(cams.class_index, dtype=torch.int64)
        small = torch.from_numpy(np.stack(strided) if strided else cams.maps)
        content = {"keys": keys, "cam": small, "high_res": cams.maps}
    else:
        content = dict(zip(cams.class_index, cams.planes, strict=True))
    with replacing(path, source_time) as temporary, temporary.open("wb") as file:
        if cams.format == "fma":
            np.savez(file, **content)
        else:
            np.save(file, np.array(content, dtype=object), allow_pickle=True)


def resized(plane: Plane, height: int, width: int) -> Plane:
    """Bilinear resampling of a map `[h, w]`, corners not aligned."""
    import cv2

    if plane.shape == (height, width):
        return plane
    return np.asarray(cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR), dtype=np.float32)


def _min_max(plane: Plane) -> Plane:
    positive = np.maximum(plane, 0)
    low, high = positive.min(), positive.max()
    return (positive - low) / (high - low + np.float32(EPS))


def _check_count(maps: int, classes: int) -> None:
    if not maps == classes <= MAX_CLASSES:
        raise ValueError(f"expected a map for each class, and {MAX_CLASSES} at most, got {maps} for {classes} classes")


def _whole_numbers(class_index: Iterable[Any]) -> tuple[int, ...]:
    classes = tuple(class_index)
    if not all(float(k).is_integer() for k in classes):
        raise ValueError(f"expected classes as whole numbers, got {shown(list(classes))}")
    return tuple(map(int, classes))


def _read_npz(path: Path) -> tuple[Any, Any, str]:
    with zipfile.ZipFile(path) as archive:
        (maps, itemsize), (classes, _) = _declared(archive, "cam", 3), _declared(archive, "fg_cls", 1)
        _check_count(maps[0], classes[0])
        _check_size(path, maps, itemsize)
        return _unpacked(archive, "cam"), _unpacked(archive, "fg_cls"), "fma"


def _declared(archive: zipfile.ZipFile, name: str, dimensions: int) -> tuple[tuple[int, ...], int]:
    """Shape, and bytes of a number, of an array in an `.npz`, before any of it is unpacked."""
    with archive.open(f"{name}.npy") as file:
        shape, _, dtype = read_header(file)
    if len(shape) != dimensions or dtype.kind not in "fiub":
        raise ValueError(f"{name}: expected numbers in {dimensions} dimensions, got {dtype} {shown(list(shape))}")
    return shape, dtype.itemsize


def _unpacked(archive: zipfile.ZipFile, name: str) -> NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))


def _check_size(path: Path, shape: Sequence[int], itemsize: int) -> None:
    longest = max(_MAX_BYTES, 4 * path.stat().st_size)  # what isn't compressed is never refused
    if math.prod(shape) * max(itemsize, 4) > longest:
        raise ValueError(f"maps of {' x '.join(map(str, shape))} pixels would take more than {longest >> 20} MiB")


def _read_dictionary(found: Any) -> tuple[Any, Any, str]:
    if not isinstance(found, dict):
        raise ValueError(f"expected a dictionary of CAMs, got {type(found).__name__}")
    if "keys" in found and "high_res" in found:
        return found["high_res"], found["keys"], "clims"
    if not all(isinstance(key, int) for key in found):
        raise ValueError(f"expected the keys `keys` and `high_res`, or numbers of classes, got {shown(list(found))}")
    return list(found.values()), list(found), "weaktr"


def _read_labels(path: Path) -> Cams:
    mask = read_mask(path)
    labels = [value for value in np.unique(mask).tolist() if 0 < value < 255]
    _check_size(path, (len(labels), *mask.shape), 4)
    return Cams([(mask == label).astype(np.float32) for label in labels], tuple(k - 1 for k in labels), "labels")
