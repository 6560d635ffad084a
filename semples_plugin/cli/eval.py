"""`semples eval`: judges CAMs against the ground truth."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from semples_plugin.cli.arguments import add_command
from semples_plugin.cli.judging import add_judging, judge


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "eval",
        "judge CAMs against masks, at all background scores in one pass",
        "CAMS is a folder of .npy files of CLIMS, IRNet, WeakTr or MCTformer, of .npz files of FMA-WSSS, or of pseudo "
        "masks as .png. Further folders are compared with the first, on the images that all have, with a bootstrap "
        "over images that says whether a gain is noise.",
    )
    add_judging(parser)
    parser.add_argument(
        "--out", default="eval-out",
        help="folder for eval.json (all figures), images.csv (IoU per image) and curve.png",
    )  # fmt: skip
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """`semples eval`."""
    from semples_plugin.evaluation.comparison import compare
    from semples_plugin.evaluation.folders import write_evaluation
    from semples_plugin.viz.curves import write_curve
    from semples_plugin.viz.tables import describe_gain, describe_judgement, format_classes

    evaluations, titles, code = judge(options, "; eval.json lists all")
    content: dict[str, Any] = {title: one.to_dict() for title, one in zip(titles, evaluations, strict=True)}
    gains = [compare(evaluations[0], one) for one in evaluations[1:]]
    for title, gain in zip(titles[1:], gains, strict=True):
        content[title]["beside the first"] = {
            "images": gain.images, "gain": gain.miou[1] - gain.miou[0],
            "interval": [gain.low, gain.high], "better on": gain.above,
        }  # fmt: skip
    write_evaluation(options.out, content, evaluations, titles)
    write_curve(Path(options.out) / "curve.png", evaluations, titles)
    print(format_classes(evaluations, titles))
    for title, one in zip(titles, evaluations, strict=True):
        print(f"{title}: {describe_judgement(one)}")
    print(f"Classes are those of {options.classes}, and background; one that masks and predictions lack doesn't count.")
    if any(one.chosen_here for one in evaluations):
        print("The background score was chosen on the masks that it is reported on; to report a figure, choose it on "
              "other images and give --setting.")  # fmt: skip
    for title, gain in zip(titles[1:], gains, strict=True):
        print(f"{title} beside {titles[0]}: {describe_gain(gain)}")
    print(f"wrote eval.json, images.csv and curve.png to {options.out}")
    return code
