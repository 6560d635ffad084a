"""`semples demo`: baseline, matching, prompts and refinement in the embedded world, row by row."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from semples_plugin.clip.frozen import FrozenClip
from semples_plugin.demo.rows import ROWS
from semples_plugin.demo.table import Judgement, explain, format_table
from semples_plugin.demo.training import Recipe, World
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.checks import check_device, check_integers
from semples_plugin.version import __version__
from semples_plugin.viz.overlays import write_picture


def run_demo(
    seeds: Sequence[int],
    out: str | Path,
    device: str = "cpu",
    ablation: bool = False,
    additions: bool = False,
    *,
    recipe: Recipe | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Runs all rows for every seed and prints the table.

    Writes the prompts and, after every seed, `results.json`; of the first seed `grid.png`, `report.html`, test scenes
    and CAMs. Seeds that `results.json` holds already are taken from there, so a stopped call goes on where it was.

    Args:
        seeds: one run each; a seed decides scenes, network and order.
        out: folder for the results.
        device: of torch.
        ablation: also the rows of Table 5 with one half of (2).
        additions: also the rows of what is not the paper's.
        recipe: sizes, steps and weights; those of the published table by default.
        progress: show progress bars.

    Returns:
        What `results.json` holds: `settings`, and by seed `rows` (the `Judgement` of each), `separation` (share
        of the pairs whose background is nearer to its prompt than the object, of each row that learned prompts)
        and `seconds`.

    Raises:
        OSError: where `out` can't be written into.
        ValueError: for seeds below 0 or twice, a device that isn't there, or an `out` with results of other settings.
    """
    out, recipe = Path(out), recipe or Recipe()
    check_integers("seeds", seeds, least=0)
    out.mkdir(parents=True, exist_ok=True)  # before the work, not after it
    check_device(device)
    chosen = {"", *(["ablation"] if ablation else ()), *(["additions"] if additions else ())}
    names = [name for name, row in ROWS.items() if row.only_with in chosen]
    settings = {
        "recipe": asdict(recipe),
        "rows": names,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "version": __version__,
    }
    results = _open_results(out / "results.json", settings)
    if kept := [str(seed) for seed in seeds if str(seed) in results["seeds"]]:
        print(f"{out}/results.json has seeds {', '.join(kept)} already; without that file they are trained anew\n")
    try:
        clip = FrozenClip.load("demo", device=device)
        for seed in seeds:
            if str(seed) not in results["seeds"]:
                _run_seed(World(clip, seed, recipe, progress), names, out, results)
    except KeyboardInterrupt:
        done = ", ".join(results["seeds"]) or "none"
        print(f"seeds in {out}/results.json: {done}; the same command goes on with the others", file=sys.stderr)
        raise
    _print_results(results, seeds, names, out)
    return results


def _print_results(results: dict[str, Any], seeds: Sequence[int], names: Sequence[str], out: Path) -> None:
    """The table of the chosen seeds, what it shows, and where the rest is."""
    runs = {seed: results["seeds"][str(seed)] for seed in seeds}
    rows = {name: [Judgement(**run["rows"][name]) for run in runs.values()] for name in names}
    print(format_table(rows))
    print(f"\n{explain(rows)}")
    learned = [run.get("separation", {}) for run in runs.values()]  # version 0.2.0's first results had none
    if all(learned):
        means = ", ".join(f"{name} {fmean(one[name] for one in learned):.2f}" for name in learned[0])
        print(f"Share of the pairs whose background is nearer to its learned prompt than the object: {means}.")
    seconds = sum(run["seconds"] for run in runs.values())
    first = next(iter(results["seeds"]))
    print(f"\n{seconds:.0f} s; {out}/report.html shows seed {first}; pictures, prompts, figures and CAMs are beside it")


def _open_results(file: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """What the file holds, made with the same settings; what a new one begins with, where there is none.

    Raises:
        ValueError: where the file is damaged, or was made with other settings.
    """
    if not file.exists():
        return {"settings": settings, "seeds": {}}
    try:
        results: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        old = results.get("settings", {})
        changed = [name for name, value in settings.items() if old.get(name) != json.loads(json.dumps(value))]
    except (AttributeError, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}): delete it, or choose another --out") from error
    if changed:
        raise ValueError(
            f"{file} holds results of other settings ({', '.join(changed)}), which are not mixed or overwritten: "
            "choose another --out, or delete it"
        )
    return results


def _run_seed(world: World, names: Sequence[str], out: Path, results: dict[str, Any]) -> None:
    """Trains a seed's rows, and writes its files and, last, its figures, also into `results`."""
    started = time.perf_counter()
    rows = {name: asdict(judgement) for name, judgement in world.run(names).items()}
    world.prompts["full"].save(out / f"prompts-{world.seed}.safetensors")
    if not results["seeds"]:
        write_picture(out / "grid.png", world.draw())
        world.export(out)
    seconds = round(time.perf_counter() - started, 1)
    separation = {name: history.separation for name, history in world.histories.items()}
    run = {"rows": rows, "separation": separation, "seconds": seconds}
    seeds = {**results["seeds"], str(world.seed): run}
    with replacing(out / "results.json") as temporary:
        temporary.write_text(json.dumps({**results, "seeds": seeds}, indent=2) + "\n", encoding="utf-8")
    results["seeds"] = seeds
