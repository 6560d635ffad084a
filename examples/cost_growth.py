"""How cost grows with the number of images: time, memory and disk of the stages and of `semples eval`.

    python examples/cost_growth.py --out growth    # some minutes on one core, 2 GiB of memory; growth.json, growth.md

Measures at three sizes, each in a process of its own, the walk of (b) (with the embedded tiny CLIP, since the law
doesn't depend on the CLIP), its store and epochs (512 dimensions, as ViT-B/32 has, and a text tower of next to no
cost), and `semples eval` (on small CAMs of noise); then steps of (a), (b) and (c) with ViT-B/32 at random weights at
20, 80 and 919 classes, and `eval` on images of 375 x 500. What grows by a rate is extended to VOC, COCO and ImageNet-S.

Time is processor time of one thread. Memory is the peak of what a process has for itself (RssAnon), less what it had
before; pages of mapped files are the system's cache, which gives way to whoever needs memory.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch

import numpy as np
import open_clip
import torch

from semples_plugin import (
    BackgroundPrompts,
    ClassMasks,
    FrozenClip,
    LossWeights,
    SemPLeSRegularizer,
    learn_background_prompts,
)
from semples_plugin.data.cam_files import Cams, write_cams
from semples_plugin.data.images import write_mask
from semples_plugin.evaluation.folders import evaluate_folder

DATA_SETS = {
    "VOC": {"classes": 20, "images": 10_582, "pairs": 15_000},
    "COCO": {"classes": 80, "images": 82_081, "pairs": 240_000},
    "ImageNet-S": {"classes": 919, "images": 1_200_000, "pairs": 1_200_000},
}
SIZES = (2_000, 8_000, 32_000)
EPOCHS, BATCH = 60, 128
Row = dict[str, float]


class Memory:
    """The peak of this process's own memory while the block runs, sampled every 10 ms, in bytes above its start."""

    def __enter__(self) -> Memory:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)  # memory that was freed before is not the block's
        self.start = self.peak = self._now()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    @property
    def added(self) -> int:
        self.peak = max(self.peak, self._now())
        return self.peak - self.start

    def _watch(self) -> None:
        while not self._over.wait(0.01):
            self.peak = max(self.peak, self._now())

    @staticmethod
    def _now() -> int:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("RssAnon:")[1].split()[0]) * 1024


@contextmanager
def work_folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "work"


def learn(regularizer: SemPLeSRegularizer, batches: Iterator[Any], folder: Path | None, epochs: int) -> Row:
    """Runs (b): seconds of the walk and of an epoch, the folder's bytes after the walk, and added memory."""
    walked: Row = {}
    begun = time.process_time()

    def noted() -> Iterator[Any]:
        yield from batches
        walked["walk"] = time.process_time() - begun
        if folder is not None:
            walked["disk"] = sum(path.stat().st_size for path in folder.iterdir())

    with Memory() as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn_background_prompts(regularizer, noted(), epochs=epochs, batch_size=BATCH, work_dir=folder, progress=False)
        added = memory.added
    epoch = (time.process_time() - begun - walked["walk"]) / epochs
    return {**walked, "epoch": epoch, "memory": added}


def walk(pairs: int) -> Row:
    """The walk with the tiny CLIP, 32 images of one pair at a time, by names as a sampler's."""
    clip = FrozenClip.load("demo")
    names = [f"class {k}" for k in range(20)]
    prompts = BackgroundPrompts.for_clip(clip, names, length=4)
    regularizer = SemPLeSRegularizer(clip, names, prompts=prompts, input_mean=None, input_std=None)

    def batches() -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        for start in range(0, pairs, 32):
            images = torch.randn(32, 3, 64, 64, generator=generator)
            maps = torch.rand(32, 8, 8, generator=generator)
            classes = torch.arange(32) % 20
            image_names = [f"2008_{start + i:06}" for i in range(32)]
            yield images, ClassMasks.from_pairs(maps, torch.arange(32), classes), image_names

    with work_folder() as folder:
        return learn(regularizer, batches(), folder, epochs=1)


def wide_clip() -> FrozenClip:
    """A CLIP with features as wide as ViT-B/32's, whose towers cost next to nothing."""
    torch.manual_seed(0)
    vision = {"image_size": 32, "patch_size": 32, "width": 64, "layers": 1, "head_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1}
    return FrozenClip(open_clip.CLIP(512, vision, text), open_clip.get_tokenizer("ViT-B-32"), "wide")


def store(pairs: int, on_disk: bool = True) -> Row:
    """Store and epochs, of random features at 512 dimensions."""
    clip = wide_clip()
    names = [f"class {k}" for k in range(20)]
    prompts = BackgroundPrompts.for_clip(clip, names, length=4)
    weights = LossWeights(prompt_foreground=0.5)  # so that v_f is read, too
    regularizer = SemPLeSRegularizer(clip, names, weights=weights, prompts=prompts)

    def batches() -> Iterator[Any]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(0, pairs, 32):
            yield (*torch.rand(2, 32, 512, generator=generator), torch.arange(32) % 20)

    with work_folder() as folder:
        return learn(regularizer, batches(), folder if on_disk else None, epochs=2)


def memory_store(pairs: int) -> Row:
    """The same without a folder."""
    return store(pairs, on_disk=False)


def noise_cams(folder: Path, images: int, size: tuple[int, int], classes: int) -> None:
    random = np.random.default_rng(0)
    for n in range(images):
        maps = random.random((classes, *size), dtype=np.float32)
        write_cams(folder / "cams" / f"2008_{n:06}.npy", Cams([*maps], tuple(range(classes)), "weaktr"))
        write_mask(folder / "masks" / f"2008_{n:06}.png", random.integers(0, classes + 1, size, dtype=np.uint8))


def evaluation(images: int, size: tuple[int, int] = (24, 32), classes: int = 3) -> Row:
    """`semples eval` in one process, at its 100 thresholds."""
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(temporary)
        noise_cams(folder, images, size, classes)
        disk = sum(path.stat().st_size for path in (folder / "cams").iterdir())
        names = [f"class {k}" for k in range(20)]
        with Memory() as memory:
            begun = time.process_time()
            evaluate_folder(folder / "cams", folder / "masks", names, progress=False)
            return {"seconds": time.process_time() - begun, "memory": memory.added, "disk": disk}


def real_evaluation(images: int) -> Row:
    """The same of images as large as VOC's."""
    return evaluation(images, (375, 500))


def steps(classes: int) -> Row:
    """Steps with ViT-B/32 at random weights: (a) and (c) of 6 pairs, (b) of 128, and u_b of all classes."""
    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32", pretrained=None)
    clip = FrozenClip(model, open_clip.get_tokenizer("ViT-B-32"), "ViT-B-32")
    names = [f"class {k}" for k in range(classes)]
    found: Row = {}

    def measured(name: str, step: Callable[[], Any]) -> Any:
        with Memory() as memory:
            begun = time.process_time()
            result = step()
            found[name] = time.process_time() - begun
            found[f"{name}, memory"] = memory.added
        return result

    options = {"input_mean": None, "input_std": None, "weights": LossWeights(background=2.4, text=0.02, refine=0.05)}
    regularizer = measured("label texts", lambda: SemPLeSRegularizer(clip, names, **options))
    images, maps = torch.randn(6, 3, 224, 224), torch.rand(6, 14, 14).requires_grad_()
    masks = ClassMasks.from_pairs(maps, torch.arange(6), torch.arange(6) % classes)

    def train() -> None:
        sum(regularizer(images, masks).values()).backward()

    train()  # warm-up
    measured("(a)", train)
    measured("walk", lambda: regularizer.pair_features(images, masks))
    prompts = BackgroundPrompts.for_clip(clip, names)
    prompts.learned = True
    regularizer.prompts = prompts
    measured("u_b", regularizer.prompt_features)
    measured("(c)", train)
    drawn = torch.randint(0, classes, (BATCH,), generator=torch.Generator().manual_seed(0))
    features = torch.rand(BATCH, 512)
    measured("(b)", lambda: sum(regularizer.prompt_losses_of(features, drawn).values()).backward())
    return found


MEASUREMENTS: dict[str, tuple[Callable[[int], Row], tuple[int, ...]]] = {
    "walk": (walk, SIZES),
    "store": (store, SIZES),
    "memory_store": (memory_store, SIZES),
    "evaluation": (evaluation, (1_000, 4_000, 16_000)),
    "real_evaluation": (real_evaluation, (50, 100, 200)),
    "steps": (steps, (20, 80, 919)),
}


def measure_all(chosen: list[str], file: Path) -> dict[str, dict[str, Row]]:
    """Measures what the file doesn't have yet, and keeps it there."""
    found: dict[str, dict[str, Row]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    for name in chosen:
        for size in MEASUREMENTS[name][1]:
            if str(size) in found.setdefault(name, {}):
                continue
            command = [sys.executable, __file__, "--one", name, str(size)]
            result = subprocess.run(command, check=True, stdout=subprocess.PIPE, encoding="utf-8")
            found[name][str(size)] = json.loads(result.stdout.splitlines()[-1])
            print(name, size, found[name][str(size)], flush=True)
            file.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return found


def rate(rows: dict[str, Row], key: str) -> float:
    """What one more pair or image adds: the slope from the smallest to the largest size."""
    low, *_, high = sorted(map(int, rows))
    return (rows[str(high)][key] - rows[str(low)][key]) / (high - low)


def measured_table(found: dict[str, dict[str, Row]]) -> str:
    """The figures at three sizes."""
    lines = ["| measured | size | time | memory | disk |", "|---|---|---|---|---|"]
    titles = {
        "walk": "walk, tiny CLIP, 64 dimensions, names",
        "store": "an epoch, 512 dimensions, `work_dir`",
        "memory_store": "an epoch, 512 dimensions, in memory",
        "evaluation": "`eval`, 24 x 32",
        "real_evaluation": "`eval`, 375 x 500",
    }
    for name, title in titles.items():
        for size, row in sorted(found[name].items(), key=lambda item: int(item[0])):
            key = {"walk": "walk", "store": "epoch", "memory_store": "epoch"}.get(name, "seconds")
            disk = mebibytes(row["disk"]) if "disk" in row else "-"
            lines.append(f"| {title} | {int(size):,} | {row[key]:.1f} s | {mebibytes(row['memory'])} | {disk} |")
    for name in ("label texts", "u_b", "(a)", "(c)", "walk", "(b)"):
        for classes, row in sorted(found["steps"].items(), key=lambda item: int(item[0])):
            what = {"walk": "walk, 6 pairs", "(b)": "(b), 128 pairs"}.get(
                name, f"{name}, 6 pairs" if "(" in name else name
            )
            time_and_memory = f"{row[name]:.1f} s | {mebibytes(row[f'{name}, memory'])}"
            lines.append(f"| {what}, ViT-B/32 | {classes} classes | {time_and_memory} | - |")
    return "\n".join(lines)


def extended_table(found: dict[str, dict[str, Row]]) -> str:
    """What the rates give for whole data sets."""
    step_of = {name: found["steps"][str(sizes["classes"])] for name, sizes in DATA_SETS.items()}
    rows: dict[str, list[str]] = {}
    for name, sizes in DATA_SETS.items():
        step, pairs, images = step_of[name], sizes["pairs"], sizes["images"]
        epoch = pairs / BATCH * step["(b)"] + pairs * rate(found["store"], "epoch")
        many = sizes["classes"] > 254  # more than bytes of a mask can tell
        cells = {
            "images, pairs, classes": f"{images:,}, {pairs:,}, {sizes['classes']}",
            "(a), an epoch": hours(pairs * step["(a)"] / 6),
            "(c), an epoch": hours(pairs * step["(c)"] / 6),
            "(b), the walk": hours(pairs * step["walk"] / 6),
            f"(b), {EPOCHS} epochs": hours(EPOCHS * epoch),
            "of it reading features and measuring, at most": hours(EPOCHS * pairs * rate(found["store"], "epoch")),
            "(b), disk": mebibytes(pairs * rate(found["store"], "disk")),
            "(b), memory that grows with pairs": mebibytes(pairs * rate(found["walk"], "memory")),
            "(b), the same without `work_dir`": mebibytes(pairs * rate(found["memory_store"], "memory")),
            "`eval` of all images": "-" if many else hours(images * rate(found["real_evaluation"], "seconds")),
            "`eval`, memory that grows": "-" if many else mebibytes(images * rate(found["evaluation"], "memory")),
            "CAMs on disk": mebibytes(images * rate(found["real_evaluation"], "disk")),
        }
        for title, cell in cells.items():
            rows.setdefault(title, []).append(cell)
    lines = [f"| extended | {' | '.join(DATA_SETS)} |", f"|---|{'---|' * len(DATA_SETS)}"]
    return "\n".join([*lines, *(f"| {title} | {' | '.join(cells)} |" for title, cells in rows.items())])


def mebibytes(size: float) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def hours(seconds: float) -> str:
    return f"{seconds / 3600:,.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("growth"), help="name of the results (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), help="default: all")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SIZE"), help="measure one size, and print it")
    options = parser.parse_args()
    if options.one:
        name, size = options.one
        if name not in MEASUREMENTS or not size.isdecimal() or int(size) < 1:
            parser.error(f"--one: expected one of {', '.join(MEASUREMENTS)}, and a size from 1 up, got {name} {size}")
        torch.set_num_threads(1)
        print(json.dumps(MEASUREMENTS[name][0](int(size))))
        return
    found = measure_all(options.only, options.out.with_suffix(".json"))
    if found.keys() == MEASUREMENTS.keys():
        text = f"{measured_table(found)}\n\n{extended_table(found)}\n"
        options.out.with_suffix(".md").write_text(text, encoding="utf-8")
        print(text)


if __name__ == "__main__":
    main()
