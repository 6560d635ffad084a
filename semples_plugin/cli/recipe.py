"""`semples recipe`: every command from a fresh machine to a table of the paper."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from semples_plugin.cli.arguments import Parser, add_command, whole_number

if TYPE_CHECKING:
    from semples_plugin.recipes.jobs import Job
    from semples_plugin.recipes.recipe import Recipe


def add(commands: Any) -> None:
    """Adds the command to the parser's commands."""
    parser = add_command(
        commands,
        "recipe",
        "run all steps of a table of the paper, or print their commands",
        "A recipe is a list of commands, from the host's clone to a segmentation network's mIoU. Paths are set once, "
        'in semples.toml (lines such as voc = "/data/VOC2012") or by --set.',
    )
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True, parser_class=Parser)
    actions.add_parser("list", help="name the recipes").set_defaults(run=run_list)
    show = _add_action(actions, "show", "print the commands, to be run by hand")
    _add_choice(show)
    show.set_defaults(run=run_show)
    run = _add_action(actions, "run", "run the commands, skip what is done, and go on where it stopped")
    _add_choice(run)
    run.set_defaults(run=run_run)
    report = _add_action(
        actions,
        "report",
        "write the paper's figures beside the measured ones: report.json and report.html",
        seeds="report seeds 0 to N - 1 (default: all that ran)",
    )
    report.set_defaults(run=run_report, seeds=None)


def _add_action(
    actions: Any, name: str, summary: str, seeds: str = "run with seeds 0 to N - 1"
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = actions.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}."
    )
    parser.add_argument("recipe", metavar="NAME", help="of a recipe, see `semples recipe list`")
    parser.add_argument("--seeds", type=whole_number, default=1, metavar="N", help=seeds)
    parser.add_argument("--settings", metavar="FILE", help="TOML file of names and values (default: semples.toml)")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="a path or value")
    parser.add_argument(
        "--miniature",
        action="store_true",
        help="a few images and steps on a CPU, to try every command; no figure comes out of that",
    )
    return parser


def _add_choice(parser: argparse.ArgumentParser) -> None:
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    choice.add_argument("--from", dest="start", metavar="STEP", help="this step and all that follow")


def run_list(options: argparse.Namespace) -> None:
    """`semples recipe list`."""
    from semples_plugin.recipes.book import RECIPES

    width = max(map(len, RECIPES))
    for name, recipe in RECIPES.items():
        hours = sum(step.hours for step in recipe.steps_of(miniature=False))
        print(f"{name:{width}}  {recipe.table}: {recipe.about}; about {hours:.0f} h on one modern GPU, an estimate")


def run_show(options: argparse.Namespace) -> None:
    """`semples recipe show`."""
    from semples_plugin.recipes.show import format_settings, format_steps

    recipe, jobs = _load(options, options.seeds)
    chosen = _choose(jobs, options)
    if len(chosen) == len(jobs):
        print(format_settings(recipe, jobs[0].settings) + "\n")
    print(format_steps(chosen))


def run_run(options: argparse.Namespace) -> int:
    """`semples recipe run`."""
    from semples_plugin.recipes.jobs import seeds_on_disk
    from semples_plugin.recipes.report import format_rows, report, write_report
    from semples_plugin.recipes.run import run_jobs

    recipe, jobs = _load(options, options.seeds)
    chosen = _choose(jobs, options)
    again = _again(options)
    try:
        run_jobs(recipe, jobs, chosen, again)
    except KeyboardInterrupt:
        print(f"\nsemples recipe: interrupted; nothing that is done is lost, and `{again}` goes on", file=sys.stderr)
        return 130
    on_disk = max(options.seeds, seeds_on_disk(jobs[0].settings.folder))  # of earlier runs, which aren't lost
    recipe, jobs = _load(options, on_disk)
    content = report(recipe, jobs, options.miniature)
    _, page = write_report(content, jobs[0].settings.folder)
    print(format_rows(content))
    print(f"wrote {page}")
    return 0


def run_report(options: argparse.Namespace) -> None:
    """`semples recipe report`."""
    from semples_plugin.recipes.jobs import seeds_on_disk
    from semples_plugin.recipes.report import format_rows, report, write_report

    recipe, jobs = _load(options, options.seeds or 1)
    if options.seeds is None:
        recipe, jobs = _load(options, seeds_on_disk(jobs[0].settings.folder))
    content = report(recipe, jobs, options.miniature)
    paths = write_report(content, jobs[0].settings.folder)
    print(format_rows(content))
    print(f"wrote {paths[0]} and {paths[1]}")


def _load(options: argparse.Namespace, seeds: int) -> tuple[Recipe, list[Job]]:
    from semples_plugin.recipes.book import load_recipe
    from semples_plugin.recipes.jobs import jobs_of
    from semples_plugin.recipes.settings import read_given

    recipe = load_recipe(options.recipe)
    given = read_given(recipe, options.settings, options.set)
    return recipe, jobs_of(recipe, given, seeds, options.miniature)


def _choose(jobs: Sequence[Job], options: argparse.Namespace) -> list[Job]:
    """The jobs of `--only`, of `--from`, or all."""
    names = list(dict.fromkeys(job.step.name for job in jobs))
    for name in (*(options.only or []), *filter(None, [options.start])):
        if name not in names:
            raise ValueError(f"there is no step {name!r}; expected one of {', '.join(names)}")
    allowed = options.only or names[names.index(options.start or names[0]) :]
    return [job for job in jobs if job.step.name in allowed]


def _again(options: argparse.Namespace) -> str:
    """The command line that goes on."""
    words = ["semples", "recipe", "run", options.recipe]
    words += ["--seeds", str(options.seeds)] if options.seeds > 1 else []
    words += ["--miniature"] if options.miniature else []
    words += ["--only", *options.only] if options.only else []
    words += ["--from", options.start] if options.start else []
    words += ["--settings", options.settings] if options.settings else []
    words += ["--set", *options.set] if options.set else []
    return shlex.join(words)
