"""`semples prompts`: looks at learned prompts."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from semples_plugin.cli.arguments import add_clip, add_command, whole_number

if TYPE_CHECKING:
    from semples_plugin.clip.frozen import FrozenClip
    from semples_plugin.prompts import BackgroundPrompts

RELEASE_CLIP = ("ViT-B-32-quickgelu", "openai")
"""Name and weights of the CLIP of prompts that don't say theirs, as the release's don't."""


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(commands, "prompts", "look at learned prompts: where CLIP sees them, and which words are near")
    actions = parser.add_subparsers(dest="action", metavar="show|words", required=True)
    _add_words(actions)
    _add_show(actions)


def _add_words(actions: Any) -> None:
    parser = add_command(actions, "words", "name the words nearest to each class's prompt")
    parser.add_argument("--vocabulary", help="text file with one word a line (default: some 120 words of scenes)")
    parser.add_argument("--count", type=whole_number, default=5, help="words per class")
    _add_prompts(parser)
    parser.set_defaults(run=print_words)


def _add_show(actions: Any) -> None:
    parser = add_command(actions, "show", "draw where CLIP sees a class's prompt, its label, and texts of your own")
    parser.add_argument("--class", dest="class_name", required=True, help="class name")
    parser.add_argument("--images", nargs="+", required=True, help="images")
    parser.add_argument("--beside", nargs="+", default=[], metavar="TEXT", help="hand-written background prompts")
    parser.add_argument("--out", default="prompt.png", help="picture to write")
    _add_prompts(parser)
    parser.set_defaults(run=draw_maps)


def _add_prompts(parser: argparse.ArgumentParser) -> None:
    """The options of `load_prompts`."""
    parser.add_argument("prompts", help="prompts.safetensors, or the release's btp.pth with --classes")
    parser.add_argument("--classes", help="text file of class names, or a preset; prompts.safetensors has its own")
    add_clip(parser)


def print_words(options: argparse.Namespace) -> None:
    """`semples prompts words`."""
    from semples_plugin.viz.prompt_maps import nearest_words
    from semples_plugin.viz.tables import format_words

    prompts, clip = load_prompts(options)
    vocabulary = _read_words(options.vocabulary) if options.vocabulary else default_vocabulary(clip)
    print(format_words(nearest_words(prompts, clip, vocabulary, options.count)))


def draw_maps(options: argparse.Namespace) -> None:
    """`semples prompts show`."""
    from semples_plugin.data.images import read_image
    from semples_plugin.viz.overlays import check_picture_name, draw_grid, write_picture
    from semples_plugin.viz.prompt_maps import draw_prompt

    check_picture_name(options.out)
    prompts, clip = load_prompts(options)
    rows, captions = [], []
    for path in options.images:
        maps = draw_prompt(prompts, clip, options.class_name, read_image(path), options.beside)
        captions = [caption for caption, _ in maps]
        rows.append([picture for _, picture in maps])
    write_picture(options.out, draw_grid(rows, captions))
    print(f"wrote {options.out}")


def default_vocabulary(clip: FrozenClip) -> Sequence[str]:
    """The words to look for near prompts: words of scenes, or those that the demo's CLIP knows."""
    from semples_plugin.clip.tiny import TINY_CLIP

    if clip.name == TINY_CLIP:
        from semples_plugin.demo.data import CONTEXTS, OBJECTS

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
    name, pretrained = _source_of_clip(prompts.clip_name)
    clip = FrozenClip.load(options.clip or name, options.pretrained or pretrained, device=options.device)
    prompts.check_belongs_to(clip, prompts.class_names or read_class_names(options.classes))
    return prompts.to(clip.device), clip


def _read_words(path: str) -> list[str]:
    from semples_plugin.utils.atomic_files import read_lines

    words = [line.strip() for line in read_lines(path)]
    return [word for word in words if word]


def _source_of_clip(clip_name: str | None) -> tuple[str, str]:
    """What `FrozenClip.load` takes for the CLIP of this `FrozenClip.name`; the release's where none can be loaded."""
    from semples_plugin.clip.tiny import TINY_CLIP

    if clip_name == TINY_CLIP:
        return "demo", RELEASE_CLIP[1]
    if clip_name is None:
        return RELEASE_CLIP
    if clip_name.startswith("local-dir:"):
        return clip_name, RELEASE_CLIP[1]
    architecture, _, weights = clip_name.partition("/")
    return (architecture, weights) if weights else RELEASE_CLIP
