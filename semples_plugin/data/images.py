"""Reading images and masks, and writing masks."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from semples_plugin.data.image_names import file_stems
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.text import reason

if TYPE_CHECKING:
    from PIL import Image

IGNORED = 255
"""Value of the pixels of a mask that don't count."""

_NOTE = "semples"  # keyword in a PNG
_MASKS = ("PNG",)  # Pillow knows many more formats, and starts Ghostscript for one of them
_IMAGES = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP")
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")  # Pillow's names
_WIDE = {"I": "whole numbers of 32 bits", "F": "floating-point numbers"}
_MAX_PIXELS = 8192 * 8192  # of an image, whose file may be compressed a thousandfold
_SUFFIXES = (".jpg", ".png", ".jpeg", ".JPG", ".JPEG", ".PNG")


def read_mask(path: str | Path) -> NDArray[np.uint8]:
    """Class numbers `[H, W]` of a PNG, of palette or grey.

    Raises:
        FileNotFoundError: where it doesn't exist.
        ValueError: where it is no PNG, is damaged, has more than 8192 x 8192 pixels, is in colours, or in grey of 1, 2,
            4 or 16 bits.
    """
    with _opened(path, "mask in PNG", _MASKS) as image:
        coding = next((str(tile[3]) for tile in getattr(image, "tile", ())), "")
        mask = np.asarray(image)
    if coding in ("L;2", "L;4"):  # decoders make 0 to 255 of them, so that class 1 becomes 85 or 17
        raise ValueError(f"{path}: expected class numbers in bytes, got grey of {coding[2:]} bits: save it with 8")
    if mask.ndim != 2 or mask.dtype != np.uint8:
        raise ValueError(f"{path}: expected one channel of class numbers in bytes, got {mask.dtype} {list(mask.shape)}")
    return mask


def write_mask(path: str | Path, mask: NDArray[np.uint8], source_time: int | None = None, note: str = "") -> None:
    """Writes class numbers `[H, W]` as a PNG with VOC's palette.

    Args:
        path: of the file.
        mask: 0 background, k + 1 class k, 255 ignored.
        source_time: see `semples_plugin.utils.atomic_files.replacing`.
        note: kept in the file, for `read_note`.

    Raises:
        OSError: where it can't be written; an older file of that name stays as it was.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text(_NOTE, note)
    with replacing(path, source_time) as temporary:
        image = Image.fromarray(mask, mode="P")
        image.putpalette(voc_palette().flatten().tolist())
        image.save(temporary, format="PNG", pnginfo=info if note else None)


def voc_palette() -> NDArray[np.uint8]:
    """PASCAL VOC's 256 colours, RGB `[256, 3]`: the bits of a label go to the channels' high bits in turn."""
    labels = np.arange(256)
    palette = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= (((labels >> (3 * bit + channel)) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def read_note(path: str | Path) -> str:
    """The note of `write_mask`; empty without one, or where the file can't be read."""
    from PIL import Image

    try:
        with Image.open(path, formats=_MASKS) as image:
            return str(image.info.get(_NOTE, ""))
    except Exception:
        return ""


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """RGB `[H, W, 3]` of an image in one of the usual formats, of 8192 x 8192 pixels at most.

    Of 16 bits per channel the upper 8 count.

    Raises:
        FileNotFoundError: where it doesn't exist.
        ValueError: where it can't be read, or holds numbers of which nothing says what is white.
    """
    with _opened(path, "image", _IMAGES) as image:
        mode = image.mode
        pixels = np.asarray(image if mode in _GREY_16 else image.convert("RGB"))
    if mode in ("I", "F"):  # which Pillow clips at 255
        raise ValueError(f"{path}: expected 8 or 16 bits per channel, got {_WIDE[mode]}: save it with 8")
    if mode in _GREY_16:  # as Pillow does where there are three channels; grey it clips at 255
        pixels = np.repeat((pixels >> 8).astype(np.uint8)[..., None], 3, axis=2)
    return pixels


def find_image(folder: str | Path, name: str) -> Path:
    """The path of the image of that name; without one, the path that a JPEG would have, for an error to name."""
    return _find(folder, name, _SUFFIXES)


def find_mask(folder: str | Path, name: str) -> Path:
    """The path of the mask of that name; without one, the likeliest path, for an error to name."""
    return _find(folder, name, (".png",))


def check_images(folder: str | Path, names: Iterable[str]) -> None:
    """Checks that a folder holds images.

    Raises:
        FileNotFoundError: where there is no such folder, or none of the images in it.
    """
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"there is no folder {folder}")
    names = list(names)
    if not any(find_image(folder, name).exists() for name in names):
        raise FileNotFoundError(f"{folder} holds none of the {len(names)} images, such as {names[0]}.jpg")


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width, read without decoding the image; it raises what `read_image` raises."""
    with _opened(path, "image", _IMAGES) as image:
        return image.height, image.width


def _find(folder: str | Path, name: str, suffixes: Iterable[str]) -> Path:
    paths = [Path(folder) / f"{stem}{suffix}" for stem in file_stems(name) for suffix in suffixes]
    return next((path for path in paths if path.exists()), paths[0])


@contextlib.contextmanager
def _opened(path: str | Path, what: str, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    from PIL import Image  # OpenCV would give the colours of VOC's palettes, not their numbers

    try:
        with Image.open(path, formats=formats) as image:
            if image.width * image.height <= _MAX_PIXELS:
                yield image
                return
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no {what} {path}") from None
    except Exception as error:  # Pillow calls a broken PNG a syntax error, and a bomb by its name
        raise ValueError(f"{path} is damaged, or no {what}: {reason(error)}") from error
    raise ValueError(f"{path} has {image.width} x {image.height} pixels, more than 8192 x 8192: scale it down")
