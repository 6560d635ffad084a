"""What SemPLeS changes on real photographs: a CAM network with image labels alone, and with each stage added.

    python examples/real_photographs.py --data VOC2012 --train train --val val --seeds 0 1 2 --out photographs

trains every row of `ROWS` once per seed, from the same start and on the same batches, judges the CAMs of the
val images by their masks, and writes into --out: `table.md` and `results.json`, `report.html` with the images
that gained and lost most, the CAMs (`semples eval` reads them, with `masks/`), networks and prompts. A run that
was stopped goes on with the same command; a row whose settings have changed is trained again.

Weights and schedules are defaults for a small CLIP and a small network, in minutes on a CPU. For CLIP's
ViT-B/32 and VOC the paper has --lambda-b 2.4 --lambda-refine 0.05, 60 epochs and a learning rate of 5e-4.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from cam_networks import load_backbone
from photograph_results import Results
from photograph_training import Experiment, Row, Settings
from torch import nn
from voc_photographs import read_dataset

from semples_plugin import FrozenClip, load_preset
from semples_plugin.cli.arguments import whole_number
from semples_plugin.data.image_labels import read_class_names

APART = {"prompt_shared": 1, "lambda_f": 1.0, "prompt_tau": 0.3, "lambda_refine": 0.8}
"""One prompt for all classes, which is kept off the objects, from harder masks: then refinement can be strong."""

ROWS = {
    "baseline": Row("image labels alone", ("baseline",)),
    "match": Row("(a) segment-label matching", ("match",)),
    "unlearned": Row("(c) refinement, prompts not learned", ("refine",)),
    "full": Row("(b) and (c), the paper's", ("prompts", "refine")),
    "apart": Row("(b) and (c), prompts kept off the objects", ("prompts", "refine"), APART),
    "best": Row("(a) beside the image labels' own loss, recommended", ("match",), {"lambda_cls": 1.0}),
}
"""The rows, by name; a row's last entry is its own settings, by their names in `photograph_training.Settings`."""


def with_earlier(names: list[str]) -> list[str]:
    """The rows of these names, and before each of them those that must be trained before."""
    chosen: dict[str, None] = {}
    for name in names:
        earlier = ROWS[name].after
        chosen |= dict.fromkeys([*(with_earlier([earlier]) if earlier else ()), name])
    return list(chosen)


def settings_of(name: str, seed: int, common: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """All that a run depends on: its own settings, and those of the run that comes before it."""
    earlier = ROWS[name].after
    return {
        **common,
        "stages": ROWS[name].stages,
        **settings.of(ROWS[name]),
        "seed": seed,
        "after": earlier and settings_of(earlier, seed, {}, settings),
    }


def run(options: argparse.Namespace) -> None:
    """Trains and judges all rows of all seeds that aren't finished yet, then writes the table and the report."""
    if not options.data.is_dir():
        raise FileNotFoundError(f"--data: there is no folder {options.data}")
    settings = Settings(**{each.name: getattr(options, each.name) for each in fields(Settings)})
    backbone = load_backbone(
        options.backbone,
        options.weights,
        size=options.size,
        train_from=options.train_from,
        train_all=options.train_all,
    )
    clip = load_clip(options)
    data = read_dataset(
        options.data,
        (options.train, options.val),
        read_class_names(options.classes),
        options.out,
        labels=options.labels,
        masks=options.masks,
        min_images=options.min_images,
        size=options.size,
        mean=backbone.mean,
        std=backbone.std,
    )
    experiment = Experiment(data, backbone, clip, settings, options.device)
    common = {
        **{name: str(getattr(options, name)) for name in ("backbone", "weights", "size", "train_from", "train_all")},
        **{"clip": clip.name, "precision": options.precision, "view_size": clip.image_size},
        **{"classes": data.class_names, "images": [digest(data.train.names), digest(data.val.names)]},
    }
    rows = with_earlier(options.rows)
    changed = {each.name: value for each in fields(settings) if (value := getattr(settings, each.name)) != each.default}
    results = Results(options.out, data, {name: ROWS[name].title for name in rows}, options.seeds, changed)
    runs = [(name, seed, settings_of(name, seed, common, settings)) for seed in options.seeds for name in rows]
    for name, seed, own in runs:
        if results.has(name, seed, own):
            print(f"{name}, seed {seed}: is in {options.out} already")
        else:
            experiment.keep_features()
            train_and_judge(experiment, results, name, seed, own)
    print(results.write_table("match"))
    results.write_report(clip)
    print(f"wrote results.json, table.md, report.html and the CAMs to {options.out}")


def train_and_judge(
    experiment: Experiment, results: Results, name: str, seed: int, settings: Mapping[str, Any]
) -> None:
    """One row of one seed; the rows before it are in the results."""

    def network_of(earlier: str) -> nn.Module:
        return results.load_network(experiment.new_network(), earlier, seed)

    results.begin(name, seed)
    begun = time.perf_counter()
    trained = experiment.train(ROWS[name], seed, f"{name}, seed {seed}", network_of)
    notes = {"seconds": time.perf_counter() - begun, **trained.notes}
    results.finish(name, seed, settings, trained.network, trained.prompts, notes)
    results.write()


def load_clip(options: argparse.Namespace) -> FrozenClip:
    """The CLIP, whose views may have another size than its own."""
    clip = load_preset("voc").load_clip(
        options.clip, options.pretrained, device=options.device, precision=options.precision
    )
    if options.view_size is not None:
        clip.image_size = (options.view_size, options.view_size)
        try:
            clip.encode_images(torch.zeros(1, 3, *clip.image_size, device=clip.device))
        except (AssertionError, RuntimeError) as error:
            raise ValueError(
                f"--view-size: {clip.name} takes images of its own size alone, as transformers do: leave it out"
            ) from error
    return clip


def digest(names: list[str]) -> str:
    """Tells one list of images from another."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="folder in VOC's layout: JPEGImages, ImageSets, SegmentationClassAug")
    add("--train", default="train", help="images to train on: a list in ImageSets/Segmentation, or a file's path")
    add("--val", default="val", help="images to judge by, likewise")
    add("--labels", type=Path, help="image labels of CLIMS, IRNet or WeakTr (default: cls_labels.npy in --data)")
    add("--masks", type=Path, help="masks to judge by (default: SegmentationClassAug or SegmentationClass in --data)")
    add("--classes", default="voc", help="a preset, or a text file with one class name a line (default: %(default)s)")
    add(
        "--min-images",
        type=whole_number,
        default=20,
        help="a class that fewer training images show counts as background",
    )
    add("--clip", help="open_clip name, or local-dir:PATH (default: ViT-B/32 with OpenAI's weights)")
    add("--pretrained", help="its tag, or the path of a weights file")
    add("--precision", default="fp32", help="of CLIP: fp32, bf16 or fp16")
    add(
        "--view-size",
        type=whole_number,
        help="side of CLIP's views, for convolutional CLIPs; less is faster (default: its own)",
    )
    add("--backbone", default="tf_efficientnet_lite0", help="one of timm's networks (default: %(default)s)")
    add("--weights", type=Path, help="its weights: a state dict, or an open_clip model with it as its image tower")
    add(
        "--train-from",
        metavar="MODULE",
        help="first module that is trained (default: after the second-last level)",
    )
    add("--train-all", action="store_true", help="train the whole backbone; nothing is kept, so steps take longer")
    add("--size", type=whole_number, default=224, help="of the photographs, in pixels (default: %(default)s)")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of classifier, batches and prompts")
    add("--rows", nargs="+", choices=ROWS, default=list(ROWS), metavar="ROW", help=f"some of {', '.join(ROWS)}")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--out", type=Path, default=Path("photographs-out"), help="folder for everything (default: %(default)s)")
    group = parser.add_argument_group("weights and schedules", "of all rows, unless a row has its own")
    for each in fields(Settings):
        option = f"--{each.name.replace('_', '-')}"
        kind = whole_number if isinstance(each.default, int) else float
        help_ = f"{each.metadata['help']} (default: {each.default:g})"
        group.add_argument(option, type=kind, default=each.default, metavar="X", help=help_)
    return parser


def main() -> None:
    command = parser()
    try:
        run(command.parse_args())
    except (OSError, ValueError) as error:
        command.exit(1, f"{command.prog}: {error}\n")


if __name__ == "__main__":
    main()
