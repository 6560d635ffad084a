"""How fast `semples eval` is, beside reading the files, and beside a loop per threshold.

    python examples/eval_speed.py --repeats 4    # 1,464 images as VOC's train list has: some 3 GB in a
    temporary folder

Writes CAMs of 3 classes at 500 x 375 pixels in WeakTr's format, and ground truth, then times, one after the
other, each in its own process and with the files in the system's cache: a loop that reads all files as a host
does, and nothing else; and the command `python -m semples_plugin eval` with its 100 thresholds. The same loop
is also timed in
this process, which has started already: the lower bound of reading. With `--loops N` it also times a loop
over N thresholds, scaled to 100, whose figures must equal the command's. Memory is that of the largest
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

NUM_CLASSES = 20
CLASSES = (2, 7, 14)
"""0-based classes that every image has CAMs of."""
SIZE = (375, 500)


def write_world(folder: Path, count: int) -> None:
    """Writes `count` images' ground truth of blocks, and noisy CAMs that are higher on the right blocks."""
    random = np.random.default_rng(0)
    (folder / "masks").mkdir()
    for n in tqdm(range(count), "writing"):
        blocks = random.choice([0, *(k + 1 for k in CLASSES), 255], size=(15, 20))
        ground_truth = np.kron(blocks, np.ones((25, 25))).astype(np.uint8)
        Image.fromarray(ground_truth).save(folder / "masks" / f"{n:04}.png")
        right = np.stack([ground_truth == k + 1 for k in CLASSES]).astype(np.float32)
        cams = 0.6 * random.random((3, *SIZE), dtype=np.float32) + 0.4 * right
        write_cams(folder / "cams" / f"{n:04}.npy", Cams(cams, CLASSES, "weaktr"))
    os.sync()  # else the system writes while the programs are timed


def read(folder: Path, count: int) -> Iterator[tuple[dict[int, np.ndarray], np.ndarray]]:
    """CAMs by class, and ground truth, as a host reads them."""
    for n in range(count):
        cams = np.load(folder / "cams" / f"{n:04}.npy", allow_pickle=True).item()
        yield cams, np.asarray(Image.open(folder / "masks" / f"{n:04}.png"))


def read_all(folder: Path, count: int) -> None:
    for _ in read(folder, count):
        pass


def miou_at(folder: Path, count: int, threshold: float) -> float:
    """mIoU at one threshold, as hosts compute it."""
    size = NUM_CLASSES + 1
    confusion = np.zeros((size, size), np.int64)
    for cams, ground_truth in read(folder, count):
        maps = np.pad(np.stack(list(cams.values())), ((1, 0), (0, 0), (0, 0)), constant_values=threshold)
        labels = np.pad(np.array(list(cams)) + 1, (1, 0))  # 0: background
        predicted = labels[maps.argmax(0)]
        known = ground_truth < 255
        index = ground_truth[known].astype(np.int64) * size + predicted[known]
        confusion += np.bincount(index, minlength=confusion.size).reshape(confusion.shape)
    hits = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - hits
    with np.errstate(invalid="ignore"):
        return float(np.nanmean(hits / union))


@contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Notes wall clock, and processor time of this process and of those that it started."""
    begun, used = time.perf_counter(), processor_time()
    yield
    seconds[name] = time.perf_counter() - begun
    seconds[f"{name}, processor"] = processor_time() - used


def processor_time() -> float:
    return sum(os.times()[:4])


def compare_with_reading(folder: Path, count: int, workers: int) -> dict[str, float]:
    """Times the command and both ways to read, and prints how they compare."""
    command = [sys.executable, "-m", "semples_plugin", "eval", folder / "cams", "--gt", folder / "masks"]
    command += ["--out", folder / "out", "--workers", str(workers), "--quiet"]
    reading = [sys.executable, __file__, "--read", "--folder", folder, "--images", str(count)]
    seconds: dict[str, float] = {}
    with timed(seconds, "warm"):
        read_all(folder, count)
    with timed(seconds, "reading"):
        subprocess.run(reading, check=True)
    with timed(seconds, "eval"):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    print(
        f"{count} images, {len(THRESHOLDS)} thresholds: semples eval {seconds['eval']:.2f} s "
        f"(processor {seconds['eval, processor']:.2f} s), "
        f"{seconds['eval'] / seconds['reading']:.2f} x reading ({seconds['reading']:.2f} s) and "
        f"{seconds['eval'] / seconds['warm']:.2f} x reading in a warm process ({seconds['warm']:.2f} s)",
        flush=True,
    )
    return seconds


def compare_with_loops(folder: Path, count: int, loops: int, eval_seconds: float) -> None:
    """Times a loop over some thresholds, which must find the command's figures; the time is scaled to all of them."""
    curve = json.loads((folder / "out" / "eval.json").read_text(encoding="utf-8"))["cams"]["curve"]
    seconds: dict[str, float] = {}
    with timed(seconds, "loop"):
        for t in np.linspace(20, 60, loops).astype(int):
            assert miou_at(folder, count, THRESHOLDS[t]) == curve[str(THRESHOLDS[t])]
    slow = seconds["loop"] * len(THRESHOLDS) / loops
    print(f"a loop over the thresholds: {slow:.0f} s, {slow / eval_seconds:.0f} x semples eval")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--images", type=int, default=1464, help="default: %(default)s")
    add("--repeats", type=int, default=1, help="of reading and judging (default: %(default)s)")
    add("--loops", type=int, default=0, help="thresholds of the slow loop (default: none)")
    add("--workers", type=int, default=os.cpu_count(), help="default: one per core")
    add("--read", action="store_true", help="read the files of --folder once, and nothing else")
    add("--folder", type=Path, help="where the files go, and stay (default: a temporary folder)")
    return parser.parse_args()


def main() -> None:
    options = parse()
    if options.read:
        return read_all(options.folder, options.images)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        if not (folder / "cams").is_dir():
            folder.mkdir(parents=True, exist_ok=True)
            write_world(folder, options.images)
        read_all(folder, options.images)  # brings the files into the system's cache
        for _ in range(options.repeats):
            seconds = compare_with_reading(folder, options.images, options.workers)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
        print(f"memory of its largest process: {peak:.2f} GiB")
        if options.loops:
            compare_with_loops(folder, options.images, options.loops, seconds["eval"])


if __name__ == "__main__":
    main()
