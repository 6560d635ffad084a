"""Text on pictures, in any alphabet for which there is a font."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from functools import cache
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

_SIZE = 11  # pixels per em
_BASELINE = 18  # pixels from the top of a line to where its letters stand
LINE_HEIGHT = 26
"""Pixels of a line of text."""


def draw_text(canvas: NDArray[np.uint8], text: str, left: int, top: int, colour: tuple[int, int, int]) -> int:
    """Draws a line of text; what lies outside of the canvas is cut off.

    A character that no font of this machine has is drawn as its escape, such as \\u732b.

    Args:
        canvas: RGB `[H, W, 3]`, drawn into.
        text: any string, also of other alphabets.
        left, top: of the line, which is `LINE_HEIGHT` pixels high.
        colour: RGB.

    Returns:
        Where the text ends, in pixels from the left.
    """
    from PIL import Image, ImageDraw

    line = canvas[top : top + LINE_HEIGHT]
    image = Image.fromarray(np.ascontiguousarray(line))
    pen = ImageDraw.Draw(image)
    right = float(left)
    for font, run in _runs(text):
        pen.text((round(right), _BASELINE), run, fill=colour, font=font, anchor="ls")
        right += font.getlength(run)
    line[:] = np.asarray(image)
    return round(right)


def _runs(text: str) -> Iterator[tuple[FreeTypeFont, str]]:
    """Stretches of the text, and the font of each."""
    drawable = "".join(map(_drawable, unicodedata.normalize("NFC", text)))
    for path, characters in groupby(drawable, lambda character: _font_with(character) or _default_font()):
        yield _load(path), "".join(characters)


def _drawable(character: str) -> str:
    """The character itself, a plain space for any other space, or its escape."""
    if unicodedata.category(character) == "Zs":
        return " "
    if character.isprintable() and _font_with(character):
        return character
    return character.encode("unicode_escape").decode("ascii")


@cache
def _font_with(character: str) -> str | None:
    """Path of the first font that has a character; None where there is none."""
    paths = chain([_default_font()], _system_fonts())  # the latter only where the former lacks it
    return next((path for path in paths if ord(character) in _code_points(path)), None)


def _default_font() -> str:
    """Path of DejaVu Sans, which comes with matplotlib: Latin, Greek, Cyrillic, Arabic and more."""
    return str(_matplotlib_data() / "fonts" / "ttf" / "DejaVuSans.ttf")


def _system_fonts() -> Iterator[str]:
    """Paths of this machine's fonts, without matplotlib's: one of these has a box for every character."""
    from matplotlib.font_manager import fontManager

    shipped = _matplotlib_data()
    yield from sorted({font.fname for font in fontManager.ttflist if shipped not in Path(font.fname).parents})


def _matplotlib_data() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path())


@cache
def _code_points(path: str) -> frozenset[int]:
    """Code points that a font can draw; none where it can't be read, or scaled, as some emojis can't."""
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
