"""Work on several processes ends when it should, and says why."""

import os
import platform
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from semples_plugin.utils.parallel import in_parallel

SLOW = """
import os, sys, time
from semples_plugin.utils.parallel import in_parallel

def work(i):
    print(os.getpid(), flush=True)
    time.sleep(60)

if __name__ == "__main__":
    list(in_parallel(work, range(8), 2, chunk=1))
"""


def kill_at(item: int) -> int:
    if item == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return item


def test_a_killed_worker_is_told_in_a_sentence():
    assert list(in_parallel(abs, range(-8, 0), 2, chunk=1)) == list(range(8, 0, -1))
    with pytest.raises(ChildProcessError, match=r"one of 2 processes was killed.* fewer workers"):
        list(in_parallel(kill_at, range(8), 2, chunk=1))


def page_faults(_: int) -> int:
    """Of taking and giving back an image's memory ten times."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        _maps = [np.ones((375, 500), np.float32) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's malloc")
def test_workers_keep_the_memory_of_an_image_for_the_next():
    pages = 3 * 375 * 500 * 4 // resource.getpagesize()
    assert max(in_parallel(page_faults, range(8), 2, chunk=1)) < 4 * pages


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("first", ["", "import torch\n"], ids=["forked", "spawned"])
def test_workers_end_with_a_parent_that_is_killed(tmp_path, first):
    (tmp_path / "slow.py").write_text(first + SLOW)
    parent = subprocess.Popen(
        [sys.executable, tmp_path / "slow.py"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    parent.kill()
    parent.wait()
    until = time.monotonic() + 20
    while any(map(alive, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert not any(map(alive, workers))
