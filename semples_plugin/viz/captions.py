"""Text on pictures, in any alphabet for which there is a font."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

LINE_HEIGHT = 26
"""Pixels of a line of text."""
_BASELINE = 18  # pixels from the top of a line to where its letters stand
_SIZE = 11  # pixels per em

Line = NDArray[np.uint8]
Colour = tuple[int, int, int]


def draw_text(canvas: NDArray[np.uint8], text: str, left: int, top: int, colour: Colour) -> int:
    """Draws a line of text; what lies outside of the canvas is cut off.

    A character that no font has is drawn as its escape, such as \\u0e01.

    Args:
        canvas: RGB `[H, W, 3]`, drawn into.
        text: any string, also of other alphabets.
        left, top: of the line, which is `LINE_HEIGHT` pixels high.
        colour: RGB.

    Returns:
        Where the text ends, in pixels from the left.
    """
    line = canvas[top : top + LINE_HEIGHT]
    drawable = "".join(map(_drawable, unicodedata.normalize("NFC", text)))
    for font, characters in groupby(drawable, _font_with):
        left += (font or _default_font()).draw(line, "".join(characters), left, colour)
    return left


def _drawable(character: str) -> str:
    """The character itself, a plain space for any other space, or its escape."""
    if unicodedata.category(character) == "Zs":
        return " "
    if character.isprintable() and _font_with(character):
        return character
    return character.encode("unicode_escape").decode("ascii")


class _Font(Protocol):
    def has(self, character: str) -> bool:
        """Whether it can draw the character."""

    def draw(self, line: Line, text: str, left: int, colour: Colour) -> int:
        """Draws into RGB `[LINE_HEIGHT, W, 3]`, and returns the width of the text."""


@cache
def _font_with(character: str) -> _Font | None:
    """The first font that has a character; None where there is none."""
    return next((font for font in _fonts() if font.has(character)), None)


def _fonts() -> Iterator[_Font]:
    """All fonts; those that take long to look for come last."""
    yield _default_font()
    if _OpenCvFont.exists():
        yield _OpenCvFont()
    yield from map(_FileFont, _system_fonts())


def _default_font() -> _FileFont:
    """DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more."""
    return _FileFont(str(_matplotlib_data() / "fonts" / "ttf" / "DejaVuSans.ttf"))


def _system_fonts() -> list[str]:
    """Paths of this machine's fonts, without matplotlib's: one of these has a box for every character."""
    from matplotlib.font_manager import fontManager

    shipped = _matplotlib_data()
    return sorted({font.fname for font in fontManager.ttflist if shipped not in Path(font.fname).parents})


def _matplotlib_data() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path())


@dataclass(frozen=True)
class _FileFont:
    """A font of a file, drawn by Pillow."""

    path: str

    def has(self, character: str) -> bool:
        return ord(character) in _code_points(self.path)

    def draw(self, line: Line, text: str, left: int, colour: Colour) -> int:
        from PIL import Image, ImageDraw

        font = _load(self.path)
        image = Image.fromarray(np.ascontiguousarray(line))
        ImageDraw.Draw(image).text((left, _BASELINE), text, fill=colour, font=font, anchor="ls")
        line[:] = np.asarray(image)
        return round(font.getlength(text))


@cache
def _code_points(path: str) -> frozenset[int]:
    """What a font can draw; nothing where it can't be read, or not be scaled, as some emojis."""
    from matplotlib.ft2font import FT2Font

    try:
        _load(path)
        return frozenset(FT2Font(path).get_charmap())
    except (OSError, RuntimeError, ValueError):
        return frozenset()


@cache
def _load(path: str) -> FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.truetype(path, _SIZE)


@dataclass(frozen=True)
class _OpenCvFont:
    """The font within OpenCV 5, which has Chinese, Japanese and Korean; what it lacks it draws as question marks."""

    @staticmethod
    def exists() -> bool:
        import cv2

        return hasattr(cv2, "FontFace")

    def has(self, character: str) -> bool:
        drawn, unknown = np.zeros((2, LINE_HEIGHT, 2 * LINE_HEIGHT, 3), np.uint8)
        self.draw(drawn, character, 0, (255, 255, 255))
        self.draw(unknown, "?", 0, (255, 255, 255))
        return not np.array_equal(drawn, unknown)

    def draw(self, line: Line, text: str, left: int, colour: Colour) -> int:
        import cv2

        # OpenCV begins a new line at the border; behind this one there is none within reach.
        wide = np.pad(line, ((0, 0), (0, left + 2 * _SIZE * len(text)), (0, 0)))
        (right, _), _ = cv2.putText(wide, text, (left, _BASELINE), colour, cv2.FontFace("uni"), _SIZE)
        line[:] = wide[:, : line.shape[1]]
        return int(right) - left
