"""CAM files of the hosts: read without executing code, written as their own code writes them.

| format | of | what a file holds |
|---|---|---|
| `clims` | CLIMS, IRNet | `.npy` dictionary: `keys`, `cam` (stride 4), `high_res` (full size), up to 1 |
| `weaktr` | WeakTr, MCTformer | `.npy` dictionary {class: full size, min-max} |
| `fma` | FMA-WSSS | `.npz`: `cam` at CLIP's stride, as it came; `fg_cls` |

Pseudo masks are read as CAMs of 0 and 1 (`labels`), so that they are judged and drawn the same way.
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
from semples_plugin.data.images import IGNORED, read_mask
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.safe_pickle import read_header, read_pickled
from semples_plugin.utils.text import reason, shown

FORMATS = {"clims": ".npy", "weaktr": ".npy", "fma": ".npz"}
Plane = NDArray[np.float32]
EPS = 1e-7  # of FMA-WSSS's min-max normalisation
MAX_CLASSES = 254  # labels are bytes: 0 is background, 255 ignored
_MAX_BYTES = 1 << 29  # of the maps in a small .npz or PNG, which may be compressed a thousandfold
_MAX_SCORE = 1.001  # some hosts' rounding reaches 1.0000001


@dataclass(frozen=True, eq=False)
class Cams:
    """CAMs of one image.

    Attributes:
        planes: P maps `[h, w]` of one size, float32, as the file has them; other types are rounded to it.
        class_index: the P classes, 0-based, each once, 253 at most.
        format: of the file, see `FORMATS`; or "labels" for a pseudo mask.

    Raises:
        ValueError: where maps, classes or format are anything else.
    """

    planes: Sequence[Plane]
    class_index: tuple[int, ...]
    format: str

    def __post_init__(self) -> None:
        if self.format not in (*FORMATS, "labels"):
            raise ValueError(f"format: expected one of {', '.join(FORMATS)} or labels, got {shown(self.format)}")
        _check_count(len(self.planes), len(self.class_index))
        in_range = all(0 <= k < MAX_CLASSES for k in self.class_index)
        if not in_range or len(set(self.class_index)) < len(self.class_index):
            raise ValueError(
                f"expected different classes from 0 to {MAX_CLASSES - 1}, got {shown(list(self.class_index))}"
            )
        shapes = {plane.shape for plane in self.planes}
        if len(shapes) > 1 or any(len(shape) != 2 or 0 in shape for shape in shapes):
            raise ValueError(f"expected maps [h, w] of one size, got {shown(sorted(shapes))}")

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the maps; None without maps."""
        if not len(self.planes):
            return None
        height, width = self.planes[0].shape
        return height, width

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
        if self.size is not None and self.size != (height, width):
            own_height, own_width = self.size
            raise ValueError(
                f"CAMs of {own_height} x {own_width} pixels, where the image has {height} x {width}; was it scaled "
                "since?"
            )
        highest = max((float(plane.max()) for plane in self.planes if plane.size), default=0.0)
        if highest > _MAX_SCORE:
            raise ValueError(
                f"CAMs up to {highest:.3g}, where scores reach 1 and thresholds lie from 0 to 1; normalise each map, "
                "as by its maximum, before it is saved"
            )
        return self.planes


def list_cams(folder: str | Path, *, masks: bool = False) -> dict[str, Path]:
    """Image names to the CAM files of a folder, sorted.

    Args:
        folder: of CAM files.
        masks: whether its PNGs, pseudo masks, are listed where it holds no CAMs.

    Raises:
        FileNotFoundError: where there is no such folder, or nothing of that kind in it.
        ValueError: where it holds CAMs of two kinds, or two files of one image.
    """
    return {name: Path(folder) / file for name, file in name_cam_files(folder, masks=masks).items()}


def name_cam_files(folder: str | Path, *, masks: bool = False) -> dict[str, str]:
    """The same with the files' names, which take a fifth of the paths' memory."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    files = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))  # a kill leaves such files
    kinds = {Path(file).suffix for file in files}
    if {".npy", ".npz"} <= kinds:
        raise ValueError(f"{folder} holds .npy and .npz files, CAMs of two hosts: give each a folder of its own")
    wanted: tuple[str, ...] = (".npy", ".npz")
    if masks and kinds.isdisjoint(wanted):
        wanted = (".png",)
    names = ImageNames()
    cam_files = {names.of(folder / file): file for file in files if file.endswith(wanted)}
    if not cam_files:
        or_masks = ", or pseudo masks as .png" if masks else ""
        raise FileNotFoundError(f"{folder} holds no CAMs: expected .npy or .npz files{or_masks}")
    return cam_files


def chosen_cams(folder: str | Path, image_list: str | Path | None = None) -> dict[str, Path]:
    """Image names to the CAM files of a folder: of all images, or of those of a list, which must all have CAMs.

    Raises:
        FileNotFoundError: where there is no such folder, or an image of the list has no CAMs.
    """
    cam_files = list_cams(folder)
    if image_list is None:
        return cam_files
    names = read_image_list(image_list)
    missing = [name for name in names if name not in cam_files]
    if missing:
        raise FileNotFoundError(f"{folder} has no CAMs of {len(missing)} images of {image_list}, such as {missing[0]}")
    return {name: cam_files[name] for name in names}


def read_image_list(path: str | Path) -> list[str]:
    """Image names of a list file, each once; see `read_image_paths` for what a line may hold, and for errors."""
    return list(dict.fromkeys(map(image_name, read_image_paths(path))))


def read_cams(path: str | Path) -> Cams:
    """Reads a CAM file of any host, or a pseudo mask in PNG; the format is told by the content.

    Raises:
        OSError: where it can't be read.
        ValueError: where it is damaged, holds more than data, or holds anything but finite CAMs.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:  # as WeakTr saves them
        ...     maps = {3: np.zeros((2, 5), np.float32), 14: np.ones((2, 5), np.float32)}
        ...     np.save(f"{folder}/a.npy", np.array(maps, dtype=object))
        ...     cams = read_cams(f"{folder}/a.npy")
        >>> cams.format, cams.class_index, cams.maps.shape
        ('weaktr', (3, 14), (2, 2, 5))
    """
    path = Path(path)
    try:
        if path.suffix == ".png":
            return _read_labels(path)
        if path.suffix == ".npz":
            maps, class_index, format_ = _read_npz(path)
        else:
            maps, class_index, format_ = _read_dictionary(read_pickled(path))
        _check_count(len(maps), len(class_index))
        planes = [np.asarray(plane, dtype=np.float32) for plane in maps]
        cams = Cams(planes, _whole_numbers(class_index), format_)
    except Exception as error:  # damaged bytes raise nearly anything
        is_of_the_system = isinstance(error, OSError) and error.filename is not None
        if is_of_the_system or str(error).startswith(str(path)):
            raise
        raise ValueError(f"{path} is damaged, or no CAM file: {reason(error)}") from error
    if not all(np.isfinite(plane.sum()) for plane in planes):  # a sum is quick, and keeps NaN and infinity
        raise ValueError(f"{path}: NaN or infinite values")
    return cams


def write_cams(path: str | Path, cams: Cams, source_time: int | None = None) -> None:
    """Writes a CAM file as the host of `cams.format` writes it; maps must be at full size for `clims`, `weaktr`.

    Args:
        path: of the file.
        cams: of one image.
        source_time: see `replacing`.

    Raises:
        OSError: where it can't be written; an older file of that name stays as it was.

    Examples:
        >>> from tempfile import TemporaryDirectory
        >>> cams = Cams([np.ones((4, 6), np.float32)], class_index=(14,), format="weaktr")
        >>> with TemporaryDirectory() as folder:
        ...     write_cams(f"{folder}/cams/2007_000032.npy", cams)
        ...     read_cams(f"{folder}/cams/2007_000032.npy").class_index
        (14,)
    """
    if cams.format == "fma":
        # FMA-WSSS's evaluation and its seeding read these two; logits and attention are for its network alone.
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
    most = max(_MAX_BYTES, 4 * path.stat().st_size)  # what isn't compressed is never refused
    if math.prod(shape) * max(itemsize, 4) > most:
        raise ValueError(f"maps of {' x '.join(map(str, shape))} pixels would take more than {most >> 20} MiB")


def _read_dictionary(content: Any) -> tuple[Any, Any, str]:
    if not isinstance(content, dict):
        raise ValueError(f"expected a dictionary of CAMs, got {type(content).__name__}")
    if "keys" in content and "high_res" in content:
        return content["high_res"], content["keys"], "clims"
    if not all(isinstance(key, int) for key in content):
        raise ValueError(f"expected the keys `keys` and `high_res`, or numbers of classes, got {shown(list(content))}")
    return list(content.values()), list(content), "weaktr"


def _read_labels(path: Path) -> Cams:
    mask = read_mask(path)
    labels = [value for value in np.unique(mask).tolist() if 0 < value < IGNORED]
    _check_size(path, (len(labels), *mask.shape), itemsize=4)
    planes = [(mask == label).astype(np.float32) for label in labels]
    return Cams(planes, tuple(label - 1 for label in labels), "labels")
