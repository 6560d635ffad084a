"""How fast `semples eval` is, its start-up included: beside reading the files, and beside a loop per threshold.

    python examples/eval_speed.py --repeats 4    # 1,464 images as VOC's train list has: some 3 GB in a temporary folder

Writes CAMs of 3 classes at 500 x 375 pixels in WeakTr's format with palette masks, then times, one after the other,
each as a process of its own and with the files in the system's cache: a loop that reads all files as a host does, and
nothing else; and the command `python -m semples_plugin eval` with its 100 thresholds. The same loop is also timed
within this process, whose memory is warm and which has started long ago: nothing can read quicker. With `--loops N`
also a loop over N thresholds, scaled to 100, whose figures must equal the command's. Memory is that of the largest
process.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from semples_plugin.data.cam_files import Cams, write_cams
from semples_plugin.evaluation.folders import THRESHOLDS

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
    os.sync()  # else the system writes while others are timed


def read(folder: Path, count: int) -> Iterator[tuple[dict[int, np.ndarray], np.ndarray]]:
    """CAM files and masks, as a host reads them."""
    for n in range(count):
        cams = np.load(folder / "cams" / f"{n:04}.npy", allow_pickle=True).item()
        yield cams, np.asarray(Image.open(folder / "masks" / f"{n:04}.png"))


def read_all(folder: Path, count: int) -> None:
    for _ in read(folder, count):
        pass


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
    """Wall clock, and processor time of this process and those that it started."""
    begun, used = time.perf_counter(), sum(os.times()[:4])
    yield
    seconds[name], seconds[f"{name}, processor"] = time.perf_counter() - begun, sum(os.times()[:4]) - used


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1464, help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=1, help="of reading and judging (default: %(default)s)")
    parser.add_argument("--loops", type=int, default=0, help="thresholds of the slow loop (default: none)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="default: one per core")
    parser.add_argument("--read", action="store_true", help="read the files of --folder once, and nothing else")
    parser.add_argument("--folder", type=Path, help="where the files go, and stay (default: a temporary folder)")
    options = parser.parse_args()
    if options.read:
        return read_all(options.folder, options.images)
    with tempfile.TemporaryDirectory() as temporary:
        folder, count = options.folder or Path(temporary), options.images
        if not (folder / "cams").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            write_world(folder, count)
        command = [sys.executable, "-m", "semples_plugin", "eval", folder / "cams", "--masks", folder / "masks",
                   "--out", folder / "out", "--workers", str(options.workers), "--quiet"]  # fmt: skip
        reading = [sys.executable, __file__, "--read", "--folder", folder, "--images", str(count)]
        read_all(folder, count)  # the first walk brings the files into the system's cache, for all alike
        seconds: dict[str, float] = {}
        for _ in range(options.repeats):
            with timed(seconds, "warm"):
                read_all(folder, count)
            with timed(seconds, "reading"):
                subprocess.run(reading, check=True)
            with timed(seconds, "eval"):
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            print(f"{count} images, {len(THRESHOLDS)} thresholds: semples eval {seconds['eval']:.2f} s (processor "
                  f"{seconds['eval, processor']:.2f} s), {seconds['eval'] / seconds['reading']:.2f} x reading "
                  f"({seconds['reading']:.2f} s) and {seconds['eval'] / seconds['warm']:.2f} x reading in a warm "
                  f"process ({seconds['warm']:.2f} s)", flush=True)  # fmt: skip
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"memory of its largest process: {peak:.2f} GiB")
        if options.loops:
            curve = json.loads((folder / "out" / "eval.json").read_text())["cams"]["curve"]
            with timed(seconds, "loop"):
                for place in np.linspace(20, 60, options.loops).astype(int):
                    assert loop(folder, count, THRESHOLDS[place]) == curve[str(THRESHOLDS[place])]
            slow = seconds["loop"] * len(THRESHOLDS) / options.loops
            print(f"a loop over the thresholds: {slow:.0f} s, {slow / seconds['eval']:.0f} x semples eval")


if __name__ == "__main__":
    main()
