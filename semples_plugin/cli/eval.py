"""`semples eval`: judges CAMs by ground truth."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semples_plugin.cli.arguments import add_command
from semples_plugin.cli.judging import add_judging, add_strata, judge, judge_strata
from semples_plugin.cli.messages import keep_earlier

if TYPE_CHECKING:
    from semples_plugin.evaluation.comparison import Comparison
    from semples_plugin.evaluation.folders import FolderEvaluation


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "eval",
        "judge CAMs by ground truth, at all background scores in one pass",
        "CAMS is a folder of .npy files of CLIMS, IRNet, WeakTr or MCTformer, of .npz files of FMA-WSSS, or of pseudo "
        "masks as .png. Further folders are compared with the first, on the images that all have, with a bootstrap "
        "over images that says whether a gain is noise.",
    )
    add_judging(parser)
    add_strata(parser)
    parser.add_argument("--images", help="folder of the images, for the strata of contrast")
    parser.add_argument(
        "--out",
        default="eval-out",
        help="folder for eval.json (all figures), images.csv (IoU per image) and curve.png; earlier ones are kept as "
        "NAME.before",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """`semples eval`."""
    from semples_plugin.evaluation.comparison import compare
    from semples_plugin.evaluation.folders import write_evaluation
    from semples_plugin.viz.curves import write_curve
    from semples_plugin.viz.tables import describe_gain, describe_judgement, format_classes

    if options.images:
        _check_images(options)
    evaluations, titles, status = judge(options, "; eval.json lists all")
    gains = {
        title: compare(evaluations[0], evaluation)
        for title, evaluation in zip(titles[1:], evaluations[1:], strict=True)
    }
    content = {title: evaluation.to_dict() for title, evaluation in zip(titles, evaluations, strict=True)}
    for title, gain in gains.items():
        content[title]["beside the first"] = _gain_to_dict(gain)
    keep_earlier(*(Path(options.out) / name for name in ("eval.json", "images.csv", "curve.png")))
    write_evaluation(options.out, content, evaluations, titles)
    write_curve(Path(options.out) / "curve.png", evaluations, titles)

    print(format_classes(evaluations, titles))
    for title, evaluation in zip(titles, evaluations, strict=True):
        print(f"{title}: {describe_judgement(evaluation)}")
    print(
        f"Classes are those of {options.classes}, and background; one that ground truth and predictions lack doesn't "
        "count."
    )
    if any(evaluation.chosen_here for evaluation in evaluations):
        print(
            "The background score was chosen on the ground truth that it is reported on; to report a figure, choose it "
            "on other images and give --setting."
        )
    for title, gain in gains.items():
        print(f"{title} beside {titles[0]}: {describe_gain(gain)}")
    if options.strata:  # what has been found is written and printed by now
        status = max(status, _add_strata(options, content, evaluations, titles))
    print(f"wrote eval.json, images.csv and curve.png to {options.out}")
    return status


def _check_images(options: argparse.Namespace) -> None:
    """What would fail at the end fails before the work."""
    from semples_plugin.data.cam_files import list_cams
    from semples_plugin.data.images import check_images

    if not options.strata:
        raise ValueError("--images: the strata of contrast alone look at images: give --strata, too")
    check_images(options.images, list_cams(options.cams[0], masks=True))


def _add_strata(
    options: argparse.Namespace,
    content: dict[str, dict[str, Any]],
    evaluations: Sequence[FolderEvaluation],
    titles: Sequence[str],
) -> int:
    """Prints the strata and puts them into eval.json, too; returns the exit status."""
    from semples_plugin.evaluation.folders import write_figures
    from semples_plugin.viz.strata import format_strata

    strata, status = judge_strata(options, evaluations, "; eval.json lists all")
    for e, title in enumerate(titles):
        content[title]["strata"] = strata.to_dict(e)
    write_figures(options.out, content)
    print(f"\n{format_strata(strata, titles)}\n")
    return status


def _gain_to_dict(gain: Comparison) -> dict[str, Any]:
    """A comparison as eval.json holds it."""
    return {
        "images": gain.images,
        "gain": gain.miou[1] - gain.miou[0],
        "interval": [gain.low, gain.high],
        "better on": gain.above,
    }
