"""How fast `semples eval` is: against a loop per threshold, and against reading the files alone.

    python examples/eval_speed.py            # 1,464 images as VOC's train list has: some 3 GB in a temporary folder

Writes CAMs of 3 classes at 500 x 375 pixels in WeakTr's format with palette masks, then times, in this order, reading
all files, `semples eval` with its 100 thresholds, and a loop over a few thresholds, scaled to 100. Peak memory is that
of the process and its largest worker together, after `semples eval` and before the loop.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from semples_plugin.cams.files import Cams, write_cams
from semples_plugin.cams.folders import THRESHOLDS, evaluate_folder

K, CLASSES, SIZE = 20, (2, 7, 14), (375, 500)


def write_world(folder: Path, count: int) -> None:
    """Smooth CAMs with some knowledge of blocky masks."""
    random = np.random.default_rng(0)
    (folder / "masks").mkdir()
    for n in tqdm(range(count), "writing"):
        blocks = random.choice([0, *(k + 1 for k in CLASSES), 255], size=(15, 20))
        mask = np.kron(blocks, np.ones((25, 25))).astype(np.uint8)
        Image.fromarray(mask).save(folder / "masks" / f"{n:04}.png")
        right = np.stack([mask == k + 1 for k in CLASSES]).astype(np.float32)
        cams = 0.6 * random.random((3, *SIZE), dtype=np.float32) + 0.4 * right
        write_cams(folder / "cams" / f"{n:04}.npy", Cams(cams, CLASSES, "weaktr"))


def read(folder: Path, count: int) -> Iterator[tuple[dict[int, np.ndarray], np.ndarray]]:
    """CAM files and masks, as a host reads them."""
    for n in range(count):
        cams = np.load(folder / "cams" / f"{n:04}.npy", allow_pickle=True).item()
        yield cams, np.asarray(Image.open(folder / "masks" / f"{n:04}.png"))


def loop(folder: Path, count: int, threshold: float) -> float:
    """mIoU at one threshold, as hosts compute it."""
    confusion = np.zeros((K + 1, K + 1), np.int64)
    for cams, mask in read(folder, count):
        maps = np.pad(np.stack(list(cams.values())), ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
        predicted = np.pad(np.array(list(cams)) + 1, (1, 0))[maps.argmax(0)]
        known = mask < 255
        index = mask[known].astype(np.int64) * (K + 1) + predicted[known]
        confusion += np.bincount(index, minlength=confusion.size).reshape(confusion.shape)
    hits = np.diag(confusion)
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(hits / (confusion.sum(0) + confusion.sum(1) - hits)))


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1464, help="default: %(default)s")
    parser.add_argument("--loops", type=int, default=2, help="thresholds of the slow loop (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: one per core")
    parser.add_argument("--folder", type=Path, help="where the files go, and stay (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder, count = options.folder or Path(temporary), options.images
        if not (folder / "cams").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            write_world(folder, count)
        seconds: dict[str, float] = {}
        for _ in read(folder, count):  # the first walk brings the files into the system's cache, for all alike
            pass
        with timed(seconds, "reading"):
            for _ in read(folder, count):
                pass
        names = [f"class {k}" for k in range(K)]
        with timed(seconds, "eval"):
            found = evaluate_folder(folder / "cams", folder / "masks", names, workers=options.workers, progress=False)
        kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
        peak = sum(resource.getrusage(kind).ru_maxrss for kind in kinds) / 2**20
        places = np.linspace(20, 60, options.loops).astype(int)
        with timed(seconds, "loop"):
            for place in places:
                assert loop(folder, count, THRESHOLDS[place]) == found.sweep.miou[place]
        seconds["loop"] *= len(THRESHOLDS) / len(places)
    print(f"{count} images, {len(THRESHOLDS)} thresholds: reading {seconds['reading']:.1f} s, semples eval "
          f"{seconds['eval']:.1f} s ({seconds['eval'] / seconds['reading']:.2f} x reading), a loop "
          f"{seconds['loop']:.0f} s ({seconds['loop'] / seconds['eval']:.0f} x); memory {peak:.2f} GiB")  # fmt: skip


if __name__ == "__main__":
    main()
