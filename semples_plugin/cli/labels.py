"""`semples labels`: image labels from masks, COCO's JSON or a CSV."""

from __future__ import annotations

import argparse
from typing import Any

from semples_plugin.cli.arguments import add_command


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "labels",
        "make cls_labels.npy from masks, COCO's JSON or a CSV",
        "Writes the image labels that CLIMS, IRNet and WeakTr read, and prints how many images show each "
        "class. SOURCE is a folder of PNG masks (0 background, k + 1 class k, 255 ignored), COCO's instances JSON (its "
        "classes in the order of their ids, and COCO_train2014_ taken off the images' names), or a CSV of "
        "image,class[,class...] rows, with or without a header that begins with `image`.",
    )
    parser.add_argument("source", help="masks, .json or .csv")
    parser.add_argument(
        "--classes",
        help="text file with one class name a line, in label order, or a preset (voc, coco, release-voc, release-coco "
        "with WeakTr's 90 columns); classes.txt beside SOURCE is found, JSON brings its own",
    )
    parser.add_argument("--out", default="cls_labels.npy", help="file to write; an existing one stays")
    parser.add_argument(
        "--keys", choices=("name", "integer"), default="name", help="2007_000032 for WeakTr, 2007000032 for CLIMS"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """`semples labels`."""
    from semples_plugin.data.image_labels import classes_beside, read_class_names
    from semples_plugin.data.make_labels import describe, make_labels

    classes = options.classes
    if classes is None and not options.source.endswith(".json"):
        classes = classes_beside(options.source)
    class_names = None if classes is None else read_class_names(classes)
    print(describe(*make_labels(options.source, options.out, class_names, options.keys)))
    style = "integers, CLIMS's" if options.keys == "integer" else "names, WeakTr's"
    print(f"wrote {options.out}; its keys are {style} style")
