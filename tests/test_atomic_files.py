"""A disk that is full while a file is written costs that file's new content and nothing else."""

import contextlib
import os
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from semples_plugin import BackgroundPrompts
from semples_plugin.data.cam_files import FORMATS, Cams, write_cams
from semples_plugin.data.images import write_mask
from semples_plugin.prompt_learning.work_dir import WorkDir
from semples_plugin.utils import atomic_files
from semples_plugin.utils.atomic_files import check_writable, claim_folder, replacing, set_aside
from semples_plugin.viz.overlays import write_picture

NOISE = np.random.default_rng(0).integers(1, 200, (64, 64, 3), dtype=np.uint8)
MAPS = np.random.default_rng(0).random((2, 64, 64), dtype=np.float32)


def plain(path):
    with replacing(path) as temporary, temporary.open("wb") as file:
        np.save(file, MAPS)  # numpy gives its error no number here


WRITERS = {
    "array.npy": plain,
    "mask.png": lambda path: write_mask(path, NOISE[:, :, 0]),
    "picture.png": lambda path: write_picture(path, NOISE),
    "prompts.safetensors": lambda path: BackgroundPrompts(2, 30, 64).save(path),
    "state.pt": lambda path: WorkDir(path.parent, {}, None).write_state({"vectors": torch.randn(1000)}),
    **{
        f"{form}{suffix}": lambda path, form=form: write_cams(path, Cams(MAPS, (0, 1), form))
        for form, suffix in FORMATS.items()
    },
}


@contextlib.contextmanager
def full_disk():
    """No file gets longer than 2000 bytes; what is raised then differs from that of a full disk in its number alone."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_is_an_os_error_that_names_the_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"older")
    with full_disk(), pytest.raises(OSError, match=f"{name}.*is the disk full|File too large: '.*{name}'"):
        WRITERS[name](path)
    assert path.read_bytes() == b"older"
    assert [file.name for file in tmp_path.iterdir()] == [name]
    WRITERS[name](path)
    assert len(path.read_bytes()) > 2000


def test_a_folder_is_claimed_without_harm_to_the_run_that_fills_it(tmp_path, monkeypatch):
    (tmp_path / "theirs.png").touch()
    with replacing(tmp_path / "a.png", source_time=10**18) as temporary:  # of another run
        temporary.write_bytes(b"a")
        for own in (False, True):  # another command is refused, the same one goes on
            with contextlib.nullcontext() if own else pytest.raises(ValueError, match="holds 1 files"):
                claim_folder(tmp_path, lambda _, own=own: own)
            assert temporary.exists()
    left = tmp_path / ".new-00000000.png"
    left.touch()
    os.utime(left, (0, 0))  # as `replacing` does just before the end
    claim_folder(tmp_path, lambda _: True)
    assert left.exists() and (tmp_path / "a.png").read_bytes() == b"a"
    # The run that left it was killed.
    monkeypatch.setattr(atomic_files, "time", SimpleNamespace(time=lambda: time.time() + 3700))
    with pytest.raises(ValueError, match="holds 2 files"):
        claim_folder(tmp_path, lambda _: False)
    assert left.exists()
    claim_folder(tmp_path, lambda _: True)
    assert not left.exists()


def test_odd_paths_are_told_by_the_name_that_the_user_knows(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    places = {
        f"{tmp_path}/{'a' * 300}": f"File name too long.*{'a' * 300}'|into {tmp_path} .File name too long",
        f"{tmp_path}/folder": f"expected a file's path, {tmp_path}/folder is a folder",
        f"{tmp_path}/file/x": f"Not a directory: '{tmp_path}/file'|into {tmp_path}/file .Not a directory",
        f"{tmp_path}/file/x/y": "Not a directory",
        f"{tmp_path}/loop": "Too many levels of symbolic links",
        f"{tmp_path}/pipe": f"expected a file's path, {tmp_path}/pipe is a device, a pipe or a socket",
        "/proc/x": "No such file or directory",
    }
    for path, message in places.items():
        for attempt in (plain, lambda path: check_writable("--out", path)):
            with pytest.raises(OSError, match=message) as caught:
                attempt(path)
            text = str(caught.value)
            assert ".new-" not in text and " -> " not in text and "/tmp" not in text.replace(str(tmp_path), "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "loop", "pipe"]


def test_only_files_are_set_aside_unless_all_is_kept(tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    assert set_aside(folder) is None and folder.is_dir()  # a user's, given where a file's path was expected
    for content in "ab":
        file.write_text(content)
        assert set_aside(file) == tmp_path / "file.before"
    assert (tmp_path / "file.before").read_text() == "b" and not file.exists()
    file.write_text("c")
    assert set_aside(file, keep_all=True) == tmp_path / "file.before2"
    assert set_aside(folder, keep_all=True) == tmp_path / "folder.before" and not folder.exists()
    assert set_aside(file, keep_all=True) is None
