"""`semples report`: one self-contained HTML page with the curve, the classes, the images and the prompts."""

from __future__ import annotations

import base64
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from semples_plugin.data.images import find_image, read_image
from semples_plugin.evaluation.comparison import Comparison, compare
from semples_plugin.evaluation.folders import FolderEvaluation
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.version import __version__
from semples_plugin.viz.curves import colours, draw_curve
from semples_plugin.viz.examples import OUTLINES, class_colours, describe_iou, draw_image, gain_of, ranked
from semples_plugin.viz.overlays import ERRORS, Colour, Picture, encode, fitted
from semples_plugin.viz.tables import (
    COLUMNS,
    UNSEEN,
    counted,
    describe_gain,
    describe_images,
    describe_setting,
    describe_words,
    format_percent,
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


def write_report(
    path: str | Path,
    evaluations: Sequence[FolderEvaluation],
    titles: Sequence[str],
    *,
    images: str | Path | None = None,
    shown: int = 4,
    words: Sequence[NearWords] = (),
    prompts: Sequence[PromptPictures] = (),
    heading: str = "CAM report",
) -> None:
    """Writes the page; everything is inside, so that it can be mailed.

    Args:
        path: of the HTML file.
        evaluations: of the same images; where there are several, the one to beat comes first.
        titles: what to call them.
        images: folder of the images; without it there are no images on the page.
        shown: how many of the best and how many of the worst images.
        words: near words of the learned prompts.
        prompts: heat maps of them.
        heading: of the page.

    Raises:
        ValueError: where there are none, or other numbers of evaluations and titles.
        OSError: where the page can't be written; an older one stays as it was.
    """
    if not evaluations or len(titles) != len(evaluations):
        raise ValueError(f"expected evaluations with a title each, got {len(evaluations)} and {len(titles)}")
    comparisons = [compare(evaluations[0], one) for one in evaluations[1:]]
    parts = [_head(heading, evaluations, titles, comparisons)]
    if any(one.background != "none" for one in evaluations):
        parts.append(_section("mIoU over the background score", _svg(draw_curve(evaluations, titles, "svg"))))
    parts.append(_section("Classes", _classes(evaluations, titles)))
    if images is not None:
        parts += _images(evaluations, titles, images, shown)
    if words:
        parts.append(_section("What the prompts say", _words(words)))
    if prompts:
        parts.append(_section("Where CLIP sees them", "".join(map(_prompt, prompts))))
    body = "\n".join(parts)
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(heading)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}\n"
        f"<footer>semples-plugin {__version__}</footer>\n</main>\n</body>\n</html>\n"
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def prompt_panels(
    prompts: BackgroundPrompts, clip: FrozenClip, evaluation: FolderEvaluation, images: str | Path
) -> list[PromptPictures]:
    """For each class that is in a mask, where CLIP sees its prompt in the image that shows most of it.

    An image that can't be read is told by a warning, and the next one is taken.
    """
    from semples_plugin.viz.prompt_maps import draw_prompt

    panels = []
    for k, name in enumerate(evaluation.class_names, 1):
        shown = {image: int(c.annotated[c.classes == k].sum()) for image, c in evaluation.counts.items()}
        for image in sorted((image for image in shown if shown[image]), key=lambda image: -shown[image]):
            try:
                pixels = read_image(find_image(images, image))
            except (OSError, ValueError) as error:
                warnings.warn(str(error), stacklevel=2)
                continue
            panels.append(PromptPictures(name, tuple(draw_prompt(prompts, clip, name, pixels))))
            break
    return panels


def _head(
    heading: str, evaluations: Sequence[FolderEvaluation], titles: Sequence[str], comparisons: Sequence[Comparison]
) -> str:
    tiles = [
        (title, f"{100 * one.miou:.1f}", describe_setting(one)) for one, title in zip(evaluations, titles, strict=True)
    ]
    for title, comparison in zip(titles[1:], comparisons, strict=True):
        gain = 100 * (comparison.miou[1] - comparison.miou[0])
        verdict = describe_gain(comparison).replace(" %", "\N{NO-BREAK SPACE}%")
        tiles.append((f"gain: {title} over {titles[0]}", f"{gain:+.2f}", verdict))
    cards = "".join(
        f'<div class="tile"><h3>{escape(title)}</h3><p class="big">{value}</p><p>{escape(note)}</p></div>'
        for title, value, note in tiles
    )
    one = evaluations[-1]
    facts = (
        f"{escape(describe_images(one, one.split and Path(one.split).name))}; {len(one.class_names)} classes and "
        f"background; masks: {escape(one.ground_truth)}; CAMs: {', '.join(escape(e.folder) for e in evaluations)}."
    )
    warning = ""
    if any(e.chosen_here for e in evaluations):
        warning = (
            '<p class="warn">The background score was chosen on the masks that it is reported on. On other images it '
            "would be a little lower; give <code>--setting</code> to report at one that was chosen elsewhere.</p>"
        )
    for title, one in zip(titles, evaluations, strict=True):
        if one.doubt:
            warning += f'<p class="warn">{escape(one.doubt)}</p>'
        for what, names in (
            ("without CAMs", one.missing),
            ("not judged", one.failed),
            ("not in every folder", one.left_out),
        ):
            if names:
                text = f"{title}: {counted(len(names), 'image')} left out, {what}: {shorten(names)}."
                warning += f'<p class="warn">{escape(text)}</p>'
    return f'<h1>{escape(heading)}</h1>\n<p class="facts">{facts}</p>\n<div class="tiles">{cards}</div>\n{warning}'


def _classes(evaluations: Sequence[FolderEvaluation], titles: Sequence[str]) -> str:
    ious = [100 * e.sweep.iou[e.chosen] for e in evaluations]
    last = evaluations[-1]
    precision, recall = (100 * part[last.chosen] for part in (last.sweep.precision, last.sweep.recall))
    gain = ious[-1] - ious[0]
    names = ("background", *last.class_names)
    order = np.argsort(-(gain if len(ious) > 1 else ious[0]), kind="stable")  # NaN comes last
    head = "".join(f"<th>{escape(title)}</th>" for title in titles) + ("<th>gain</th>" if len(ious) > 1 else "")
    rows = []
    for k in order:
        cells = "".join(
            f'<td class="bar" style="--w:{0 if np.isnan(iou[k]) else iou[k]:.1f}%;--c:{colour}">'
            f"{format_percent(iou[k])}</td>"
            for iou, colour in zip(ious, colours(len(ious)), strict=True)
        )
        if len(ious) > 1:
            text = format_percent(gain[k], "+")
            way = "" if text in ("-", "0.0") else "up" if gain[k] > 0 else "down"
            cells += f'<td class="{way}">{text}</td>'
        cells += f"<td>{format_percent(precision[k])}</td><td>{format_percent(recall[k])}</td>"
        rows.append(f"<tr><th>{escape(names[k])}</th>{cells}</tr>")
    note = f"IoU, and precision and recall of {escape(titles[-1])}, in percent."
    if len(ious) > 1:
        note += f" The gain is that of {escape(titles[-1])} over {escape(titles[0])}."
    return (
        f'<p>{note}</p><div class="scroll"><table><thead><tr><th></th>{head}<th>precision</th><th>recall</th></tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _images(
    evaluations: Sequence[FolderEvaluation], titles: Sequence[str], images: str | Path, shown: int
) -> list[str]:
    names = ranked(evaluations)
    shown = min(shown, (len(names) + 1) // 2)
    captions = ["image", "mask", *(f"{title}{what}" for title in titles for what in ("", ": errors"))]
    both, lost = len(evaluations) > 1, gain_of(evaluations, names[-1]) < 0
    over = f", {titles[-1]} over {titles[0]}" if both else ""
    sections = []
    for title, part in (
        ("Most gained" if both else "Best images", names[:shown]),
        (("Most lost" if lost else "Least gained") if both else "Worst images", names[::-1][:shown]),
    ):
        rows = []
        for name in part:
            try:
                row = draw_image(evaluations, name, images)
            except (OSError, ValueError) as error:  # one bad picture costs one row
                rows.append(f"<p>{escape(name)}: {escape(str(error))}</p>")
                continue
            key = _key(class_colours(evaluations, name))
            pictures = _row(zip(captions, row, strict=True))
            rows.append(f"<h3>{escape(name)}: {describe_iou(evaluations, name)}</h3>{key}{pictures}")
        sections.append(_section(f"{title}{over}", f"<p>{escape(OUTLINES)}.</p>{_key(ERRORS)}{''.join(rows)}"))
    return sections


def _words(words: Sequence[NearWords]) -> str:
    rows = []
    for one in words:
        near = ", ".join(f"{escape(word)} <small>{cosine:.2f}</small>" for word, cosine in one.words)
        near = UNSEEN if one.unseen else near
        figures = "".join(f"<td>{value}</td>" for value in one.columns)
        rows.append(f"<tr><th>{escape(one.class_name)}</th><td>{near}</td>{figures}</tr>")
    heads = "".join(f"<th>{name}</th>" for name in COLUMNS)
    meanings = "".join(f"<li>{name}: {meaning}</li>" for name, meaning in COLUMNS.items())
    return (
        f"<p>{escape(describe_words(words))}</p>"
        "<p>Nearest words of each class's learned background prompt, and what it was near to when it had been learned:"
        f'</p><ul>{meanings}</ul><div class="scroll"><table><thead><tr><th></th><th class="left">nearest words</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _prompt(panel: PromptPictures) -> str:
    return f"<h3>{escape(panel.class_name)}</h3>{_row(panel.pictures)}"


def _key(colours: Mapping[str, Colour]) -> str:
    spans = (f'<span><i style="background:rgb{colour}"></i>{escape(name)}</span>' for name, colour in colours.items())
    return f'<p class="legend">{"".join(spans)}</p>'


def _row(pictures: Iterable[tuple[str, Picture]]) -> str:
    """Pictures in lines of equal length, of which two stand below one another where there are many."""
    pictures = list(pictures)
    wide, narrow = len(pictures) if len(pictures) <= 6 else -(-len(pictures) // 2), 3 if len(pictures) % 2 else 2
    figures = "".join(
        f'<figure><img alt="{escape(caption)}" src="{_inline(picture)}"><figcaption>{escape(caption)}</figcaption>'
        "</figure>"
        for caption, picture in pictures
    )
    return f'<div class="row" style="--wide:{wide};--narrow:{narrow}">{figures}</div>'


def _inline(picture: Picture) -> str:
    small = fitted(picture, _SIDE)
    return "data:image/jpeg;base64," + base64.b64encode(encode(small, ".jpg")).decode()


def _svg(content: bytes) -> str:
    text = content.decode()
    return f'<div class="curve">{text[text.index("<svg") :]}</div>'


def _section(title: str, content: str) -> str:
    name = re.sub(r"\W+", "-", title.lower())
    return f'<section id="{name}"><h2>{escape(title)}</h2>{content}</section>'


_STYLE = """
:root { color-scheme: light; --ink: #1c2026; --soft: #626973; --line: #e3e6ea; --paper: #fff; --tint: #f5f7f9; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--tint); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1rem 3rem; }
h1 { margin: 0 0 .25rem; font-size: 1.8rem; line-height: 1.2; }
h2 { margin: 0 0 .75rem; font-size: 1.2rem; }
h3 { margin: 1rem 0 .4rem; font-size: .95rem; }
p { margin: 0 0 .6rem; }
.facts, footer, small, figcaption { color: var(--soft); }
.facts { overflow-wrap: anywhere; font-size: .9rem; }
section, .tile { background: var(--paper); border: 1px solid var(--line); border-radius: 10px; padding: 1.1rem; }
section { margin-top: 1rem; }
.tiles { display: flex; flex-wrap: wrap; gap: 1rem; margin-top: 1rem; }
.tile { flex: 1 1 280px; }
.tile h3 { margin: 0; color: var(--soft); font-weight: 600; }
.tile .big { margin: .1rem 0 .3rem; font-size: 2.2rem; font-weight: 650; line-height: 1.1; }
.tile p:last-child { margin: 0; font-size: .85rem; color: var(--soft); }
.warn { margin-top: 1rem; padding: .7rem 1rem; border-left: 4px solid #e0a100; background: #fff8e4; border-radius: 6px }
.curve svg { display: block; width: 100%; max-width: 860px; height: auto; margin: auto; }
.scroll { overflow-x: auto; }
@media (max-width: 640px) { .scroll::before { content: "more to the right →"; font-size: .8rem; } }
code { white-space: nowrap; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th:first-child, .left, td:nth-child(2):not(.bar) { text-align: left; }
td:nth-child(2):not(.bar) { white-space: normal; min-width: 14rem; }
.bar { background: linear-gradient(color-mix(in srgb, var(--c) 28%, white) 0 0) left / var(--w) 100% no-repeat; }
.up { color: #1d7f4a; } .down { color: #b3261e; }
.legend span { display: inline-block; margin: 0 1rem .3rem 0; font-size: .85rem; }
.legend i { display: inline-block; width: .8rem; height: .8rem; margin-right: .35rem; border: 1px solid var(--soft); }
.row { display: grid; grid-template-columns: repeat(var(--wide), minmax(0, 260px)); gap: .6rem; align-items: start; }
@media (max-width: 640px) { .row { grid-template-columns: repeat(var(--narrow), minmax(0, 1fr)); } }
figure { margin: 0; } figure img { width: 100%; display: block; border-radius: 4px; }
figcaption { font-size: .8rem; }
footer { margin-top: 1.5rem; font-size: .8rem; }
"""
