"""What the layouts of data for the hosts have in common: links, lists, and masks from COCO's polygons."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from semples_plugin.data.coco_json import read_coco
from semples_plugin.data.image_names import image_name
from semples_plugin.data.images import write_mask
from semples_plugin.utils.atomic_files import replacing


def layout_parser(module: str, about: str, host: str, masks: str) -> tuple[argparse.ArgumentParser, Any]:
    """The parser of a host's layouts, `voc SOURCE CHECKOUT` and `coco SOURCE CHECKOUT --masks FOLDER`, and these two.

    Args:
        module: of the host's layout, below this package.
        about: its docstring.
        host: its name.
        masks: values of COCO's ground truth.
    """
    parser = argparse.ArgumentParser(prog=f"python -m semples_plugin.recipes.{module}", description=about)
    commands = parser.add_subparsers(dest="data", required=True)
    for name in ("voc", "coco"):
        command = commands.add_parser(name, help=f"make {name.upper()} where {host} looks for it, in its checkout")
        command.add_argument("source", help="the data set's folder")
        command.add_argument("checkout", help=f"{host}'s")
    commands.choices["coco"].add_argument("--masks", required=True, help=f"folder of ground truth, ID.png with {masks}")
    return parser, commands


def link(target: Path, path: Path) -> None:
    """A link at `path`, in place of an earlier one.

    Raises:
        FileNotFoundError: where there is no target.
        FileExistsError: where a file or folder is there that is no link.
    """
    if not target.exists():
        raise FileNotFoundError(f"there is no {target}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_symlink():
        raise FileExistsError(f"{path} is no link, and stays: move it away")
    path.unlink(missing_ok=True)
    path.symlink_to(target.absolute())


def write_list(lines: Iterable[str], path: Path) -> None:
    """A text file of these lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def annotated_images(instances: Path, class_names: Sequence[str], count: int | None) -> dict[str, set[int]]:
    """The first `count` images of COCO's JSON that show a class, by name, and the classes, from 0, that each shows."""
    present, _ = read_coco(instances, tuple(class_names))
    shown = [name for name, classes in sorted(present.items()) if classes]
    return {name: set(present[name]) for name in shown[:count]}


def draw_coco_masks(
    instances: Path, out: Path, names: Sequence[str], value_of: Callable[[dict[str, Any]], int]
) -> None:
    """Masks of some images from the polygons of COCO's JSON, smaller objects over larger ones.

    The published masks may differ from them where objects overlap.

    Args:
        instances: COCO's JSON.
        out: folder to write `ID.png` to.
        names: of the images.
        value_of: category of the JSON to its value in the masks; background is 0.
    """
    import cv2

    content: dict[str, Any] = json.loads(instances.read_bytes())
    values = {category["id"]: value_of(category) for category in content["categories"]}
    wanted = set(names)
    images = {image["id"]: image for image in content["images"] if image_name(image["file_name"]) in wanted}
    masks = {key: np.zeros((image["height"], image["width"]), np.uint8) for key, image in images.items()}
    for item in sorted(content["annotations"], key=lambda item: -item["area"]):
        if item["image_id"] in masks and isinstance(item["segmentation"], list):  # a crowd has no polygons
            polygons = [np.reshape(points, (-1, 2)).round().astype(np.int32) for points in item["segmentation"]]
            cv2.fillPoly(masks[item["image_id"]], polygons, values[item["category_id"]])
    out.mkdir(parents=True, exist_ok=True)
    for key, mask in masks.items():
        write_mask(out / f"{image_name(images[key]['file_name'])}.png", mask)
