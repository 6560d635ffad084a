"""Pictures of CAMs: overlays and captioned grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from semples_plugin.data.images import IGNORED, voc_palette
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.viz.captions import LINE_HEIGHT, draw_text

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]
ERRORS: dict[str, Colour] = {
    "found": (46, 160, 90),
    "missed object": (45, 105, 215),
    "background taken for an object": (215, 45, 45),
    "another class": (245, 165, 35),
}
# For the classes of an image, beside which `ERRORS` stand: none resembles any of those.
CLASSES: tuple[Colour, ...] = (
    (235, 60, 200),
    (60, 225, 225),
    (250, 250, 250),
    (140, 80, 160),
    (250, 245, 110),
    (120, 70, 30),
    (255, 175, 205),
)
_GAP = 8  # pixels between pictures
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
    image: Picture, labels: NDArray[np.integer], opacity: float = 0.65, palette: Picture | None = None
) -> Picture:
    """Labels over their image, as those of ground truth.

    Args:
        image: RGB `[H, W, 3]`.
        labels: `[H, W]`, 0 background (which is dimmed), 1 to 255.
        opacity: of the colours.
        palette: colours `[256, 3]` of the labels; PASCAL VOC's by default.
    """
    palette = voc_palette() if palette is None else palette
    labelled = (labels > 0)[..., None]
    shade = np.where(labelled, opacity, 0.0)
    dimmed = image * np.where(labelled, 1.0, 0.6)
    return (dimmed * (1 - shade) + palette[labels] * shade).round().astype(np.uint8)


def outline_labels(image: Picture, labels: NDArray[np.uint8], palette: Picture) -> Picture:
    """The borders of labelled regions over an image, in the labels' colours on a dark line.

    Args:
        image: RGB `[H, W, 3]`.
        labels: `[H, W]`, 0 background, which has no borders of its own.
        palette: colours `[256, 3]` of the labels.
    """
    import cv2

    picture = np.array(image)
    thin = max(1, round(max(labels.shape) / 160))  # as wide in a grid whatever the image
    for label in np.unique(labels[labels > 0]).tolist():
        borders, _ = cv2.findContours((labels == label).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, borders, -1, _INK, 3 * thin)
        cv2.drawContours(picture, borders, -1, palette[label].tolist(), thin)
    return picture


def overlay_errors(
    image: Picture, predicted: NDArray[np.integer], ground_truth: NDArray[np.integer], opacity: float = 0.65
) -> Picture:
    """What is right and wrong with predicted labels, in the colours of `ERRORS`; right background is left dim.

    Args:
        image: RGB `[H, W, 3]`.
        predicted, ground_truth: labels `[H, W]`, 0 background; where `ground_truth` is 255 nothing is drawn.
        opacity: of the colours.
    """
    known = ground_truth != IGNORED
    is_object, is_predicted = ground_truth > 0, predicted > 0
    regions = {
        "found": is_object & (predicted == ground_truth),
        "missed object": is_object & ~is_predicted,
        "background taken for an object": is_predicted & ~is_object,
        "another class": is_object & is_predicted & (predicted != ground_truth),
    }
    picture = image * 0.6
    for name, region in regions.items():
        picture[region & known] = image[region & known] * (1 - opacity) + np.array(ERRORS[name]) * opacity
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
    width = len(captions) * (cell + _GAP) + _GAP
    strips = [_draw_captions(width, captions, cell)]
    for k, row in enumerate(rows):
        if row_captions:
            strips.append(draw_legend(width, row_captions[k], keys[k] if keys else {}))
        strips.append(_draw_row(width, row, cell))
    return np.concatenate(strips)


def draw_legend(width: int, text: str, key: Mapping[str, Colour]) -> Picture:
    """A line of text and what colours mean, RGB `[26, width, 3]`, to be put above or below pictures."""
    canvas = _white(LINE_HEIGHT, width)
    left = draw_text(canvas, text, _GAP, 0, _INK) + 2 * _GAP
    for name, colour in key.items():
        canvas[6:20, left : left + 14] = _INK  # a frame, as a colour may be white
        canvas[7:19, left + 1 : left + 13] = colour
        left = draw_text(canvas, name, left + 20, 0, _INK) + 2 * _GAP
    return canvas


def _draw_captions(width: int, captions: Sequence[str], cell: int) -> Picture:
    """A line in which each column has its caption."""
    canvas = _white(LINE_HEIGHT, width)
    for column, caption in enumerate(captions):
        draw_text(canvas, caption, _GAP + column * (cell + _GAP), 0, _INK)
    return canvas


def _draw_row(width: int, pictures: Sequence[Picture], cell: int) -> Picture:
    """Pictures side by side, each in the middle of its cell, with a gap below."""
    scaled = [fitted(picture, cell) for picture in pictures]
    row_height = max(picture.shape[0] for picture in scaled)
    canvas = _white(row_height + _GAP, width)
    for column, picture in enumerate(scaled):
        height, picture_width = picture.shape[:2]
        top = (row_height - height) // 2
        left = _GAP + column * (cell + _GAP) + (cell - picture_width) // 2
        canvas[top : top + height, left : left + picture_width] = picture
    return canvas


def _white(height: int, width: int) -> Picture:
    return np.full((height, width, 3), 255, dtype=np.uint8)


def fitted(picture: Picture, side: int) -> Picture:
    """A picture scaled so that its longer side has `side` pixels; small ones keep their pixels' edges."""
    import cv2

    height, width = picture.shape[:2]
    scale = side / max(height, width)
    size = (max(round(width * scale), 1), max(round(height * scale), 1))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST
    return np.asarray(cv2.resize(picture, size, interpolation=interpolation), dtype=np.uint8)


def encode(picture: Picture, suffix: str) -> bytes:
    """An RGB picture in the format of a file's ending, such as `.png`.

    Raises:
        ValueError: where the format can't hold it.
    """
    import cv2

    fits, encoded = cv2.imencode(suffix, np.ascontiguousarray(picture[:, :, ::-1]))
    if not fits:
        raise ValueError(f"a picture of {picture.shape[1]} x {picture.shape[0]} pixels doesn't fit into {suffix}")
    return bytes(encoded.tobytes())


def check_picture_name(path: str | Path) -> None:
    """Raises a `ValueError` where a file name doesn't end in a picture's format."""
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
