"""Pictures of CAMs: overlays and captioned grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semples_plugin.data.images import voc_palette
from semples_plugin.utils.atomic_files import replacing

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
ERRORS: dict[str, Colour] = {
    "found": (46, 160, 90),
    "missed object": (45, 105, 215),
    "background taken for an object": (215, 45, 45),
    "another class": (245, 165, 35),
}
# Of the classes of one image, where `ERRORS` stand beside them: none looks like one of those.
CLASSES: tuple[Colour, ...] = (
    (235, 60, 200), (60, 225, 225), (250, 250, 250), (140, 80, 160), (250, 245, 110), (120, 70, 30), (255, 175, 205),
)  # fmt: skip
_CAPTION, _GAP = 26, 8
_INK = (40, 40, 40)


def overlay_cam(image: Picture, cam: NDArray[np.floating], opacity: float = 0.55) -> Picture:
    """A CAM as a heat map over its image.

    Args:
        image: RGB `[H, W, 3]`.
        cam: `[h, w]` in [0, 1]; resampled bilinearly to the image.
        opacity: of the heat map.
    """
    import cv2

    size = (image.shape[1], image.shape[0])
    resized = cv2.resize(np.asarray(cam, dtype=np.float32), size, interpolation=cv2.INTER_LINEAR)
    heat = cv2.applyColorMap((255 * resized.clip(0, 1)).astype(np.uint8), cv2.COLORMAP_TURBO)[:, :, ::-1]
    return (image * (1 - opacity) + heat * opacity).round().astype(np.uint8)


def overlay_mask(
    image: Picture, mask: NDArray[np.integer], opacity: float = 0.65, palette: Picture | None = None
) -> Picture:
    """A mask of labels over its image.

    Args:
        image: RGB `[H, W, 3]`.
        mask: `[H, W]`, 0 background (left as it is), 1 to 255.
        opacity: of the colours.
        palette: colours `[256, 3]` of the labels; PASCAL VOC's by default.
    """
    palette = voc_palette() if palette is None else palette
    shade = np.where((mask > 0)[..., None], opacity, 0.0)
    dimmed = image * np.where((mask > 0)[..., None], 1.0, 0.6)
    return (dimmed * (1 - shade) + palette[mask] * shade).round().astype(np.uint8)


def outline_labels(image: Picture, labels: NDArray[np.uint8], palette: Picture) -> Picture:
    """The borders of labelled regions over an image, in the labels' colours on a dark line.

    Args:
        image: RGB `[H, W, 3]`.
        labels: `[H, W]`, 0 background, which has no borders of its own.
        palette: colours `[256, 3]` of the labels.
    """
    import cv2

    picture, thin = np.array(image), max(1, round(max(labels.shape) / 160))  # as wide in a grid whatever the image
    for label in np.unique(labels[labels > 0]).tolist():
        borders, _ = cv2.findContours((labels == label).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        for width, colour in ((3 * thin, _INK), (thin, tuple(palette[label].tolist()))):
            cv2.drawContours(picture, borders, -1, colour, width)
    return picture


def overlay_errors(
    image: Picture, predicted: NDArray[np.integer], mask: NDArray[np.integer], opacity: float = 0.65
) -> Picture:
    """What is right and wrong with predicted labels, in the colours of `ERRORS`; rightly background is left dim.

    Args:
        image: RGB `[H, W, 3]`.
        predicted, mask: labels `[H, W]`, 0 background; where `mask` is 255 nothing is drawn.
        opacity: of the colours.
    """
    known = mask != 255
    kinds = (
        (predicted == mask) & (mask > 0),
        (predicted == 0) & (mask > 0),
        (predicted > 0) & (mask == 0),
        (predicted != mask) & (predicted > 0) & (mask > 0),
    )
    picture = image * 0.6
    for kind, colour in zip(kinds, ERRORS.values(), strict=True):
        picture[kind & known] = image[kind & known] * (1 - opacity) + np.array(colour) * opacity
    return picture.round().astype(np.uint8)


def draw_grid(
    rows: Sequence[Sequence[Picture]],
    captions: Sequence[str],
    cell: int = 160,
    row_captions: Sequence[str] = (),
    keys: Sequence[Mapping[str, Colour]] = (),
) -> Picture:
    """Rows of pictures under captions, on white.

    Args:
        rows: RGB pictures, the same number in each row; they are scaled to fit into squares of `cell` pixels, and a
            row is as high as its highest.
        captions: one for each column.
        cell: side of a picture in pixels.
        row_captions: one above each row, or none.
        keys: what the colours in each row mean, to stand behind its caption, or none.

    Returns:
        RGB `[H, W, 3]`.
    """

    step = cell + _GAP
    scaled = [[fitted(picture, cell) for picture in row] for row in rows]
    heights = [max(picture.shape[0] for picture in row) for row in scaled]
    above = _CAPTION if row_captions else 0
    total = _CAPTION + sum(heights) + len(rows) * (_GAP + above)
    canvas = np.full((total, step * len(captions) + _GAP, 3), 255, dtype=np.uint8)
    for column, caption in enumerate(captions):
        _write(canvas, caption, _GAP + column * step, 0)
    top = _CAPTION
    for row, (pictures, row_height) in enumerate(zip(scaled, heights, strict=True)):
        if row_captions:
            right = _write(canvas, row_captions[row], _GAP, top)
            _write_key(canvas, keys[row] if keys else {}, right, top)
            top += above
        for column, picture in enumerate(pictures):
            height, width = picture.shape[:2]
            down, right = top + (row_height - height) // 2, _GAP + column * step + (cell - width) // 2
            canvas[down : down + height, right : right + width] = picture
        top += row_height + _GAP
    return canvas


def draw_legend(width: int, text: str, key: Mapping[str, Colour]) -> Picture:
    """A line of text and what colours mean, RGB `[26, width, 3]`, to be put below a grid."""
    canvas = np.full((_CAPTION, width, 3), 255, dtype=np.uint8)
    _write_key(canvas, key, _write(canvas, text, _GAP, 0), 0)
    return canvas


def _write(canvas: Picture, text: str, left: int, top: int) -> int:
    """Returns where a text that follows would begin."""
    import cv2

    font, scale = cv2.FONT_HERSHEY_SIMPLEX, 0.45
    cv2.putText(canvas, text, (left, top + 18), font, scale, _INK, 1, cv2.LINE_AA)
    return left + int(cv2.getTextSize(text, font, scale, 1)[0][0]) + 2 * _GAP


def _write_key(canvas: Picture, key: Mapping[str, Colour], left: int, top: int) -> None:
    for name, colour in key.items():
        canvas[top + 6 : top + 20, left : left + 14] = _INK  # a frame, as a colour may be white
        canvas[top + 7 : top + 19, left + 1 : left + 13] = colour
        left = _write(canvas, name, left + 20, top)


def fitted(picture: Picture, side: int) -> Picture:
    """A picture scaled so that its longer side has `side` pixels; small ones keep their pixels' edges."""
    import cv2

    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, size, interpolation=how), dtype=np.uint8)


def encode(picture: Picture, suffix: str) -> bytes:
    """An RGB picture in the format of a file's ending, such as `.png`; a `ValueError` where that can't hold it."""
    import cv2

    done, encoded = cv2.imencode(suffix, np.ascontiguousarray(picture[:, :, ::-1]))
    if not done:
        raise ValueError(f"a picture of {picture.shape[1]} x {picture.shape[0]} pixels doesn't fit into {suffix}")
    return bytes(encoded.tobytes())


def check_picture_name(path: str | Path) -> None:
    """A `ValueError` where the file's ending is no picture's."""
    import cv2

    if not cv2.haveImageWriter(str(path)):
        raise ValueError(f"{path}: expected a name that ends in a picture's format, like .png or .jpg")


def write_picture(path: str | Path, picture: Picture) -> None:
    """Writes an RGB picture in the format of the file's ending.

    Raises:
        OSError: where it can't be written; an older file of that name stays as it was.
        ValueError: where the ending is no picture's.
    """
    check_picture_name(path)
    encoded = encode(picture, Path(path).suffix)
    with replacing(path) as temporary:
        temporary.write_bytes(encoded)
