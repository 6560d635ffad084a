"""`semples prompts`: looks at learned prompts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from semples_plugin.cli.arguments import add_clip, add_command, whole_number

if TYPE_CHECKING:
    from semples_plugin.clip.frozen import FrozenClip
    from semples_plugin.prompts import BackgroundPrompts

CLIP = ("ViT-B-32-quickgelu", "openai")


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    prompts = add_command(
        commands, "prompts", "look at learned prompts: where CLIP sees them, and which words are near"
    )
    actions = prompts.add_subparsers(dest="action", metavar="show|words", required=True)
    words = add_command(actions, "words", "name the words nearest to each class's prompt")
    words.add_argument("--vocabulary", help="text file with one word a line (default: some 120 words of scenes)")
    words.add_argument("--count", type=whole_number, default=5, help="words per class")
    show = add_command(actions, "show", "draw where CLIP sees a class's prompt, its label, and texts of your own")
    show.add_argument("--class", dest="class_name", required=True, help="class name")
    show.add_argument("--images", nargs="+", required=True, help="images")
    show.add_argument("--beside", nargs="+", default=[], metavar="TEXT", help="hand-written background prompts")
    show.add_argument("--out", default="prompt.png", help="picture to write")
    for parser in (words, show):
        parser.add_argument("prompts", help="prompts.safetensors, or the release's btp.pth with --classes")
        parser.add_argument("--classes", help="text file of class names, or a preset; prompts.safetensors has its own")
        add_clip(parser)
    words.set_defaults(run=name_words)
    show.set_defaults(run=draw)


def name_words(options: argparse.Namespace) -> None:
    """`semples prompts words`."""
    from semples_plugin.viz.prompt_maps import nearest_words
    from semples_plugin.viz.tables import format_words

    prompts, clip = load_prompts(options)
    print(format_words(nearest_words(prompts, clip, vocabulary_of(options, clip), options.count)))


def draw(options: argparse.Namespace) -> None:
    """`semples prompts show`."""
    from semples_plugin.data.images import read_image
    from semples_plugin.viz.overlays import check_picture_name, draw_grid, write_picture
    from semples_plugin.viz.prompt_maps import draw_prompt

    check_picture_name(options.out)
    prompts, clip = load_prompts(options)
    rows = [draw_prompt(prompts, clip, options.class_name, read_image(path), options.beside)
            for path in options.images]  # fmt: skip
    write_picture(options.out, draw_grid([[p for _, p in row] for row in rows], [c for c, _ in rows[0]]))
    print(f"wrote {options.out}")


def vocabulary_of(options: argparse.Namespace, clip: FrozenClip) -> Sequence[str]:
    """The words to look for near prompts: the given ones, or those that the CLIP knows."""
    from semples_plugin.clip.tiny import TINY_CLIP
    from semples_plugin.demo.data import CONTEXTS, OBJECTS
    from semples_plugin.utils.atomic_files import read_lines

    if getattr(options, "vocabulary", None):
        return [line.strip() for line in read_lines(options.vocabulary) if line.strip()]
    if clip.name == TINY_CLIP:  # it knows no other words
        return (*OBJECTS, *CONTEXTS)
    from semples_plugin.viz.prompt_maps import VOCABULARY

    return VOCABULARY


def load_prompts(options: argparse.Namespace) -> tuple[BackgroundPrompts, FrozenClip]:
    """The prompts, checked to belong to the CLIP, and that CLIP: the given one, or the one that the file names."""
    from semples_plugin.clip.frozen import FrozenClip
    from semples_plugin.data.image_labels import read_class_names
    from semples_plugin.prompts import BackgroundPrompts

    prompts = BackgroundPrompts.load(options.prompts)
    if prompts.class_names is None and options.classes is None:
        raise ValueError(f"{options.prompts} doesn't say its classes, as the release's files don't: give --classes")
    name, pretrained = _named_clip(prompts.clip_name)
    clip = FrozenClip.load(options.clip or name, options.pretrained or pretrained, device=options.device)
    prompts.check_belongs_to(clip, prompts.class_names or read_class_names(options.classes))
    return prompts.to(clip.device), clip


def _named_clip(name: str | None) -> tuple[str, str]:
    """Name and weights of what `FrozenClip.name` says; the release's CLIP where that is none that can be loaded."""
    from semples_plugin.clip.tiny import TINY_CLIP

    if name == TINY_CLIP:
        return "demo", ""
    if name is not None and name.startswith("local-dir:"):
        return name, CLIP[1]
    architecture, _, weights = (name or "").partition("/")
    return (architecture, weights) if weights else CLIP
