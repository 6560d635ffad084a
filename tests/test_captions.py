"""Text on pictures: alphabets, and characters that no font has."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import cv2
import matplotlib
import numpy as np
import pytest
from matplotlib.font_manager import fontManager

from semples_plugin.viz import captions
from semples_plugin.viz.captions import LINE_HEIGHT, draw_text
from semples_plugin.viz.overlays import draw_grid

FONTS = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
SCRIPT_G = "\u210a"  # STIX has it, DejaVu Sans hasn't


@pytest.fixture
def fonts_of_machine(monkeypatch, tmp_path):
    """Puts fonts on the machine, as paths, in place of what is there, and OpenCV's among them or not."""

    def install(*paths, opencv=False):
        monkeypatch.setattr(fontManager, "ttflist", [SimpleNamespace(fname=str(path)) for path in paths])
        monkeypatch.setattr(captions._OpenCvFont, "exists", lambda: opencv)
        captions._font_with.cache_clear()

    yield install
    captions._font_with.cache_clear()


def drawn(text):
    canvas = np.full((LINE_HEIGHT, 400, 3), 255, np.uint8)
    right = draw_text(canvas, text, 8, 0, (0, 0, 0))
    ink = np.flatnonzero((canvas < 128).any((0, 2)))
    assert not len(ink) or (ink[0] >= 7 and ink[-1] <= right + 1)
    return canvas


def same(text, other):
    return np.array_equal(drawn(text), drawn(other))


@pytest.mark.parametrize("name", ["жук", "café", "βάρκα", "قطة", "größe"])
def test_names_of_other_alphabets_are_drawn(name):
    assert not same(name, "".join(letter if letter.isascii() else "?" for letter in name))
    assert not same(name, name.encode("ascii", "backslashreplace").decode())
    assert not same(name, name[:-1]) and not same(name, name[::-1])
    grid = draw_grid([[np.zeros((40, 40, 3), np.uint8)]], [name], cell=100)
    expected = np.full((LINE_HEIGHT, grid.shape[1], 3), 255, np.uint8)
    draw_text(expected, name, 8, 0, (40, 40, 40))
    assert np.array_equal(grid[:LINE_HEIGHT], expected)


def test_an_accent_of_its_own_is_the_same_letter():
    assert same("cafe\u0301", "caf\u00e9")


def test_what_no_font_has_is_drawn_as_its_escape(fonts_of_machine):
    fonts_of_machine(FONTS / "LastResortHE-Regular.ttf")  # matplotlib's own, with a box for each character
    for character, escape in (
        ("\u732b", r"\u732b"),
        (SCRIPT_G, r"\u210a"),
        ("\U0010fffd", r"\U0010fffd"),
        ("\udcff", r"\udcff"),  # of a file's name that isn't UTF-8
        ("\n", r"\n"),
        ("\u00a0", " "),
    ):
        assert same(f"a{character}b", f"a{escape}b")


def test_fonts_of_the_machine_help_out(fonts_of_machine, tmp_path):
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    shutil.copy(FONTS / "STIXGeneral.ttf", tmp_path / "stix.ttf")
    fonts_of_machine(tmp_path / "broken.ttf", tmp_path / "missing.ttf", tmp_path / "stix.ttf")
    assert not same(f"a{SCRIPT_G}b", r"a\u210ab") and not same(f"a{SCRIPT_G}b", "ab")
    assert (drawn(f"{SCRIPT_G}b") < 128).sum() > (drawn(SCRIPT_G) < 128).sum() > 20
    assert same("\u732b", r"\u732b")  # STIX lacks it, too


@pytest.mark.skipif(not hasattr(cv2, "FontFace"), reason="OpenCV 5 has a font of its own")
def test_opencvs_font_has_chinese(fonts_of_machine):
    fonts_of_machine(opencv=True)
    assert not same("猫", r"\u732b") and not same("猫", "?") and not same("猫", "犬")
    assert np.array_equal(drawn("a猫b")[:, :15], drawn("ab")[:, :15])
    canvas = np.full((2 * LINE_HEIGHT, 30, 3), 255, np.uint8)
    assert draw_text(canvas, "猫犬日本語", 8, 0, (0, 0, 0)) == 8 + 5 * 11
    assert (canvas[LINE_HEIGHT:] == 255).all() and (canvas[:, :8] == 255).all()  # no second line
    assert same("ก\U0001f9ff", r"\u0e01\U0001f9ff")  # which it lacks


def test_text_ends_at_the_border():
    canvas = np.full((LINE_HEIGHT + 10, 30, 3), 255, np.uint8)
    assert draw_text(canvas, "a name longer than its picture", 8, 5, (0, 0, 0)) > 100
    assert (canvas[5:] < 128).any() and (canvas[:5] == 255).all()
    assert draw_text(canvas, "", 8, 0, (0, 0, 0)) == 8
