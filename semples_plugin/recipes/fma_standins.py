"""What stands in for downloads in a miniature run of FMA-WSSS: `python -m semples_plugin.recipes.fma_standins --help`.

`clip` writes a small CLIP, untrained, in OpenAI's file format, as FMA-WSSS loads it; `semples run fma-wsss -m ...`
starts it, in FMA-WSSS's checkout. `segments` writes superpixels in place of SAM's segments, and `masks` ground truth
from COCO's polygons in place of the published masks. No figure comes out of any of them.
"""

from __future__ import annotations

import argparse
import importlib
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from semples_plugin.data.cam_files import read_image_list
from semples_plugin.data.image_labels import read_class_names
from semples_plugin.data.images import read_image
from semples_plugin.recipes.layout import annotated_images, draw_coco_masks
from semples_plugin.utils.atomic_files import replacing

SEGMENTS = 24


def write_clip(path: str | Path, checkout: str | Path = ".") -> None:
    """Writes a CLIP of FMA-WSSS's own class with patches of 16 pixels and few weights, as a TorchScript archive."""
    import torch

    sys.path[:0] = [str(Path(checkout, "src").absolute()), str(Path(checkout, "src/libs").absolute())]
    model = importlib.import_module("clip.model")
    torch.manual_seed(0)
    clip = model.CLIP(64, 224, 2, 128, 16, 77, 49408, 64, 1, 2).eval()
    example = (torch.zeros(1, 3, 224, 224), torch.ones(1, 77, dtype=torch.int64))
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with replacing(Path(path)) as temporary:
        torch.jit.trace(clip, example, check_trace=False).save(str(temporary))


def write_segments(images: str | Path, names: Sequence[str], out: str | Path) -> None:
    """Writes a file of segments for each image, as FMA-WSSS keeps SAM's: boolean masks, without overlap."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    for name in tqdm(names, "segments", unit="image"):
        image = read_image(Path(images) / f"{name}.jpg")
        parts = superpixels(image)
        segments = [
            {
                "segmentation": parts == k,
                "segmentation_mode": "binary_mask",
                "img_hw": parts.shape,
                "area": int((parts == k).sum()),
                "level": 2,  # a whole, of SAM's three
                "predicted_iou": 1.0,
                "stability_score": 1.0,
            }
            for k in np.unique(parts)
        ]
        with replacing(out / f"{name}.pkl") as temporary:
            temporary.write_bytes(pickle.dumps(segments))


def superpixels(image: NDArray[np.uint8], count: int = SEGMENTS) -> NDArray[np.int64]:
    """Numbers `[H, W]` of at most `count` clusters of an image `[H, W, 3]` by colour and place."""
    import cv2

    height, width = image.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    colours = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2LAB), (0, 0), 3).reshape(-1, 3)
    place = np.stack([rows.ravel() * 255 / height, columns.ravel() * 255 / width], axis=1)
    features = np.concatenate([colours, place], axis=1).astype(np.float32)
    cv2.setRNGSeed(0)
    few = np.random.default_rng(0).permutation(len(features))[:4000]
    ends = (cv2.TERM_CRITERIA_MAX_ITER, 10, 0.0)
    _, _, centres = cv2.kmeans(features[few], count, np.empty(0, np.int32), ends, 1, cv2.KMEANS_PP_CENTERS)
    distances = ((features[:, None] - centres) ** 2).sum(2)
    return distances.argmin(1).reshape(height, width)


def draw_masks(instances: str | Path, out: str | Path, count: int) -> list[str]:
    """Masks of the first `count` images that show a class: 0 to 80; their names."""
    class_names = tuple(read_class_names("coco"))
    names = list(annotated_images(Path(instances), class_names, count))
    draw_coco_masks(Path(instances), Path(out), names, lambda category: class_names.index(category["name"]) + 1)
    return names


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m semples_plugin.recipes.fma_standins", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    command = commands.add_parser("clip", help="a small, untrained CLIP")
    command.add_argument("out", help="file to write, such as pretrains/CLIP/16.pt")
    command = commands.add_parser("segments", help="superpixels")
    command.add_argument("images", help="folder of NAME.jpg")
    command.add_argument("out", help="folder to write NAME.pkl to")
    command.add_argument("--list", required=True, help="of image names")
    command = commands.add_parser("masks", help="ground truth of a few images of COCO")
    command.add_argument("coco", help="COCO's folder, of annotations/")
    command.add_argument("out", help="folder to write ID.png to")
    command.add_argument("--images", type=int, default=8, metavar="N", help="of each split (default: %(default)s)")
    options = parser.parse_args()
    if options.what == "clip":
        write_clip(options.out)
    elif options.what == "segments":
        write_segments(options.images, read_image_list(options.list), options.out)
    else:
        for split in ("train", "val"):
            draw_masks(Path(options.coco) / f"annotations/instances_{split}2014.json", options.out, options.images)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
