"""`semples report`: one self-contained HTML page with the curve, the classes, the images and the prompts.

What stands on the page is put together here, how it looks is `report.html.jinja`'s.
"""

from __future__ import annotations

import base64
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup

from semples_plugin.data.images import find_image, read_image
from semples_plugin.evaluation.comparison import compare
from semples_plugin.evaluation.folders import FolderEvaluation
from semples_plugin.evaluation.strata import Strata
from semples_plugin.viz.curves import colours, draw_curve
from semples_plugin.viz.examples import OUTLINES, class_colours, describe_iou, draw_image, gain_of, ranked
from semples_plugin.viz.overlays import ERRORS, Colour, Picture, encode, fitted
from semples_plugin.viz.pages import render, write_page
from semples_plugin.viz.prompt_gains import MIN_CLASSES, describe_prompt_gains, draw_prompt_gains, prompt_gains
from semples_plugin.viz.strata import describe_strata, draw_strata, strata_tables
from semples_plugin.viz.tables import (
    COLUMNS,
    UNSEEN,
    ClassFigures,
    class_figures,
    describe_gain,
    describe_images,
    describe_setting,
    describe_words,
    format_percent,
    pluralize,
    shorten,
)

if TYPE_CHECKING:  # they import torch, which a report without prompts doesn't need
    from semples_plugin.clip.frozen import FrozenClip
    from semples_plugin.prompts import BackgroundPrompts
    from semples_plugin.viz.prompt_maps import NearWords

_SIDE = 260  # pixels of a picture in the page


@dataclass(frozen=True)
class PromptPictures:
    """Where CLIP sees a class's prompt: an image and heat maps beside it, with their captions."""

    class_name: str
    pictures: tuple[tuple[str, Picture], ...]


class _Figure(NamedTuple):
    """A picture on the page; `source` is the picture itself, as a `data:` URL."""

    caption: str
    source: str


@dataclass(frozen=True)
class _Tile:
    """A large figure at the top of the page."""

    title: str
    value: str
    note: str


@dataclass(frozen=True)
class _Bar:
    """A cell with a bar behind its text; `width` is in percent."""

    text: str
    width: str
    colour: str


@dataclass(frozen=True)
class _ClassRow:
    """A class in the table; `direction` of its gain is "up", "down" or, where there is none, ""."""

    name: str
    bars: list[_Bar]
    gain: str
    direction: str
    precision: str
    recall: str


@dataclass(frozen=True)
class _Image:
    """An image with its CAMs, or the `error` for which there are none."""

    name: str
    iou: str = ""
    colours: Mapping[str, Colour] = field(default_factory=dict)
    figures: Sequence[_Figure] = ()
    error: str = ""


@dataclass(frozen=True)
class _Gallery:
    """A section of images."""

    title: str
    images: list[_Image]


def write_report(
    path: str | Path,
    evaluations: Sequence[FolderEvaluation],
    titles: Sequence[str],
    *,
    images: str | Path | None = None,
    shown: int = 4,
    strata: Strata | None = None,
    words: Sequence[NearWords] = (),
    prompts: Sequence[PromptPictures] = (),
    refined: tuple[int, int] = (-2, -1),
    heading: str = "CAM report",
) -> None:
    """Writes the page; everything is inside, so that it can be mailed.

    Args:
        path: of the HTML file.
        evaluations: of the same images; where there are several, the one to beat comes first.
        titles: what to call them.
        images: folder of the images; without it there are no images on the page.
        shown: how many of the best and how many of the worst images.
        strata: failure strata of these evaluations.
        words: near words of the learned prompts.
        prompts: heat maps of them.
        refined: which evaluations come without and with the refinement by these prompts; a chart shows what each
            class gained, where there are classes enough.
        heading: of the page.

    Raises:
        ValueError: where there are none, or other numbers of evaluations and titles.
        OSError: where the page can't be written; an older one stays as it was.
    """
    if not evaluations or len(titles) != len(evaluations):
        raise ValueError(f"expected evaluations with a title each, got {len(evaluations)} and {len(titles)}")
    if len(evaluations) > 1 and not all(-len(evaluations) <= k < len(evaluations) for k in refined):
        raise ValueError(f"refined: expected positions among {len(evaluations)} evaluations, got {refined}")
    last = evaluations[-1]
    page = render(
        "report.html.jinja",
        heading=heading,
        evaluations=evaluations,
        titles=titles,
        images=describe_images(last, last.split and Path(last.split).name),
        tiles=_tiles(evaluations, titles),
        warnings=_warnings(evaluations, titles),
        curve=_curve(evaluations, titles),
        classes=_class_rows(evaluations),
        strata={} if strata is None else strata_tables(strata, titles),
        strata_notes=[] if strata is None else describe_strata(strata),
        strata_chart=None if strata is None else _inline(draw_strata(strata, titles)),
        galleries=[] if images is None else _galleries(evaluations, titles, images, shown),
        outlines=OUTLINES,
        errors=ERRORS,
        words=words,
        verdict=describe_words(words) if words else "",
        columns=COLUMNS,
        unseen=UNSEEN,
        ranking=_ranking(evaluations, titles, words, refined),
        prompts=[{"class_name": prompt.class_name, "figures": _figures(prompt.pictures)} for prompt in prompts],
    )
    write_page(path, page)


def prompt_panels(
    prompts: BackgroundPrompts, clip: FrozenClip, evaluation: FolderEvaluation, images: str | Path
) -> list[PromptPictures]:
    """For each class that is in a mask, where CLIP sees its prompt in the image that shows most of it.

    In place of an image that can't be read, of which a warning tells, the next one is taken.
    """
    from semples_plugin.viz.prompt_maps import draw_prompt

    panels = []
    for k, class_name in enumerate(evaluation.class_names, 1):
        areas = {name: int(c.annotated[c.classes == k].sum()) for name, c in evaluation.counts.items()}
        for name in sorted((name for name in areas if areas[name]), key=lambda name: -areas[name]):
            try:
                image = read_image(find_image(images, name))
            except (OSError, ValueError) as error:
                warnings.warn(str(error), stacklevel=2)
                continue
            panels.append(PromptPictures(class_name, tuple(draw_prompt(prompts, clip, class_name, image))))
            break
    return panels


def _tiles(evaluations: Sequence[FolderEvaluation], titles: Sequence[str]) -> list[_Tile]:
    """mIoU of each evaluation, and the gain of each but the first over the first."""
    tiles = [
        _Tile(title, f"{100 * evaluation.miou:.1f}", describe_setting(evaluation))
        for evaluation, title in zip(evaluations, titles, strict=True)
    ]
    for evaluation, title in zip(evaluations[1:], titles[1:], strict=True):
        comparison = compare(evaluations[0], evaluation)
        gain = 100 * (comparison.miou[1] - comparison.miou[0])
        verdict = describe_gain(comparison).replace(" %", "\N{NO-BREAK SPACE}%")
        tiles.append(_Tile(f"gain: {title} over {titles[0]}", f"{gain:+.2f}", verdict))
    return tiles


def _warnings(evaluations: Sequence[FolderEvaluation], titles: Sequence[str]) -> list[str]:
    """Doubts about the CAMs, and which images don't count."""
    texts = []
    for title, evaluation in zip(titles, evaluations, strict=True):
        if evaluation.doubt:
            texts.append(evaluation.doubt)
        for reason, names in (
            ("without CAMs", evaluation.missing),
            ("not judged", evaluation.failed),
            ("not in every folder", evaluation.left_out),
        ):
            if names:
                texts.append(f"{title}: {pluralize(len(names), 'image')} left out, {reason}: {shorten(names)}.")
    return texts


def _curve(evaluations: Sequence[FolderEvaluation], titles: Sequence[str]) -> Markup | None:
    """The curves as an SVG element; None where masks alone were judged, which have no background score."""
    if all(evaluation.background == "none" for evaluation in evaluations):
        return None
    return _inline(draw_curve(evaluations, titles, "svg"))


def _ranking(
    evaluations: Sequence[FolderEvaluation], titles: Sequence[str], words: Sequence[NearWords], refined: tuple[int, int]
) -> tuple[str, Markup] | None:
    """What each class gained by refinement beside its prompt's separation, as a sentence and a chart."""
    if len(evaluations) == 1 or not words:
        return None
    gains = prompt_gains([evaluations[k] for k in refined], words)
    if len(gains) < MIN_CLASSES:
        return None
    before, after = (titles[k] for k in refined)
    text = f"What {after} gained over {before}, class by class. {describe_prompt_gains(gains)}"
    return text, _inline(draw_prompt_gains(gains))


def _inline(svg: bytes) -> Markup:
    """An SVG file as an element of a page."""
    text = svg.decode()
    return Markup(text[text.index("<svg") :])


def _class_rows(evaluations: Sequence[FolderEvaluation]) -> list[_ClassRow]:
    """The classes by gain, or by IoU where there is a single evaluation; those that have none come last."""
    rows = class_figures(evaluations)
    keys = np.array([row.iou[0] if row.gain is None else row.gain for row in rows])
    return [_class_row(rows[k]) for k in np.argsort(-keys, kind="stable")]


def _class_row(row: ClassFigures) -> _ClassRow:
    bars = [
        _Bar(format_percent(iou), f"{0 if np.isnan(iou) else iou:.1f}", colour)
        for iou, colour in zip(row.iou, colours(len(row.iou)), strict=True)
    ]
    gain, direction = "", ""
    if row.gain is not None:
        gain = format_percent(row.gain, "+")
        if gain not in ("-", "0.0"):
            direction = "up" if row.gain > 0 else "down"
    return _ClassRow(row.name, bars, gain, direction, format_percent(row.precision), format_percent(row.recall))


def _galleries(
    evaluations: Sequence[FolderEvaluation], titles: Sequence[str], images: str | Path, shown: int
) -> list[_Gallery]:
    """The best and the worst images, each at most half of all."""
    names = ranked(evaluations)
    shown = min(shown, (len(names) + 1) // 2)
    best, worst = "Best images", "Worst images"
    if len(evaluations) > 1:
        over = f", {titles[-1]} over {titles[0]}"
        lost = gain_of(evaluations, names[-1]) < 0
        best, worst = f"Most gained{over}", f"{'Most lost' if lost else 'Least gained'}{over}"
    captions = ["image", "mask"]
    for title in titles:
        captions += [title, f"{title}: errors"]
    return [
        _Gallery(title, [_image(evaluations, name, images, captions) for name in chosen])
        for title, chosen in ((best, names[:shown]), (worst, names[::-1][:shown]))
    ]


def _image(evaluations: Sequence[FolderEvaluation], name: str, images: str | Path, captions: Sequence[str]) -> _Image:
    try:
        pictures = draw_image(evaluations, name, images)
    except (OSError, ValueError) as error:  # an image that can't be read costs its own row alone
        return _Image(name, error=str(error))
    figures = _figures(zip(captions, pictures, strict=True))
    return _Image(name, describe_iou(evaluations, name), class_colours(evaluations, name), figures)


def _figures(pictures: Iterable[tuple[str, Picture]]) -> list[_Figure]:
    return [_Figure(caption, _data_url(picture)) for caption, picture in pictures]


def _data_url(picture: Picture) -> str:
    """The picture itself, scaled to the page, where HTML expects an address."""
    content = encode(fitted(picture, _SIDE), ".jpg")
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()
