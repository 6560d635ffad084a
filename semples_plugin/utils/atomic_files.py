"""Writing files so that a full disk or an interrupt costs no older file and mixes no two runs; reading text files."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from safetensors import SafetensorError

from semples_plugin.utils.text import reason

_NEW = ".new-"  # prefix of temporary files
_LEFT_AFTER = 3600  # seconds without a change, after which a temporary file belongs to a run that was killed
CHANGED = "its CAMs changed meanwhile, or another command wrote into the same folder: make it again"


@contextlib.contextmanager
def replacing(path: str | Path, source_time: int | None = None) -> Iterator[Path]:
    """A context with a temporary path beside `path`, which is renamed to `path` if the block raises no exception.

    Args:
        path: of the file that is made or replaced.
        source_time: where it is made from another file, that file's `st_mtime_ns` before it was read; the new
            file gets it as its own time, for `is_made_of`.

    Raises:
        OSError: as the block raises it, with the name of `path`, or in place of what numpy, torch and
            safetensors raise where a disk is full; the temporary file is removed then, and an older `path`
            intact.
    """
    path = _target(path)
    # The name is short, so that no limit on names allows `path` alone, and hidden in listings of the folder.
    temporary = path.with_name(f"{_NEW}{secrets.token_hex(4)}{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # some file systems report a full disk only here
        temporary.chmod(_mode_for(path))
        if source_time is not None:
            os.utime(temporary, ns=(source_time, source_time))
        temporary.replace(path)
    except (OSError, RuntimeError, SafetensorError) as error:
        if not isinstance(error, OSError) or not error.errno:  # raised by numpy, torch or safetensors
            said = reason(error).replace(temporary.name, path.name)
            raise OSError(f"{path} could not be written, is the disk full? ({said})") from error
        if error.filename in (None, str(temporary), temporary):  # a full disk gives no name
            raise type(error)(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        with contextlib.suppress(OSError):  # on a read-only file system it fails even without a file
            temporary.unlink(missing_ok=True)


def _target(path: str | Path, name: str = "") -> Path:
    """The file that a path stands for, in a folder that exists; an `OSError` where it can't be one."""
    start = f"{name}: " if name else ""
    try:
        target = Path(path).resolve()  # a link stays a link, and its file is written where it points to
    except RuntimeError as error:  # before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path)) from error
    if target.is_dir():
        raise IsADirectoryError(f"{start}expected a file's path, {target} is a folder")
    if target.exists() and not target.is_file():  # a device, which the superuser would replace by a file
        raise OSError(f"{start}expected a file's path, {target} is a device, a pipe or a socket")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), error.filename) from error
    return target


def _mode_for(path: Path) -> int:
    """Permissions of a new file: those of the file that it replaces, or what the umask allows.

    Some writers make private files, which colleagues could not read.
    """
    if path.exists():
        return path.stat().st_mode & 0o777
    umask = os.umask(0)  # can't be read otherwise
    os.umask(umask)
    return 0o666 & ~umask


def set_aside(path: Path, keep_all: bool = False) -> Path | None:
    """Renames what an earlier run left to NAME.before, so that it is neither lost nor taken for the new run's.

    Args:
        path: of a file; a link stays, and so does a folder without `keep_all`.
        keep_all: an older NAME.before stays as well, and the new one becomes NAME.before2; else it is replaced.

    Returns:
        Where it is now; None where there was nothing to set aside.
    """
    if path.is_symlink() or not (path.exists() if keep_all else path.is_file()):
        return None
    aside = path.with_name(f"{path.name}.before")
    number = 2
    while keep_all and aside.exists():
        aside, number = path.with_name(f"{path.name}.before{number}"), number + 1
    return path.replace(aside)


def check_writable(name: str, path: str | Path) -> None:
    """Makes the folder of a file that is to be written later, and tries to write into it.

    Args:
        name: of the argument or option that gives the path, for the error.
        path: of the file, which may exist.

    Raises:
        OSError: where `path` is a folder or a device, or nothing can be written beside it.
    """
    folder = Path(path).absolute().parent
    try:
        folder = _target(path, name).parent
        with tempfile.TemporaryFile(dir=folder):  # a folder's permissions don't bind the superuser
            pass
    except OSError as error:
        if not error.errno:  # our own
            raise
        message = f"{name}: nothing can be written into {folder} ({error.strerror}); give another path"
        raise type(error)(error.errno, message) from error


def read_lines(path: str | Path) -> list[str]:
    """The lines of a text file in UTF-8, with or without a byte order mark.

    Raises:
        OSError: where it can't be read.
        ValueError: for another encoding.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: expected text in UTF-8 ({error})") from error
    if "\0" in text:  # as in UTF-16 without a mark
        raise ValueError(f"{path}: expected text in UTF-8, got zero bytes")
    return text.splitlines()


def claim_folder(folder: Path, is_own: Callable[[Path], bool]) -> None:
    """Makes the folder of a run's files, or accepts that of the same run before it was interrupted.

    Args:
        folder: need not exist yet.
        is_own: whether a file in it is one that this very run would make.

    Raises:
        OSError: where the folder can't be made, or nothing can be written into it.
        ValueError: where it holds any other file, with which the run's files would be mixed.
    """
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected a folder, or none yet")
    folder.mkdir(parents=True, exist_ok=True)
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} can't be written into")
    visible = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    others = [path.name for path in visible if not is_own(path)]
    if others:
        raise ValueError(
            f"{folder} holds {len(others)} files, such as {others[0]}, that this command didn't make, or made with "
            "other settings, of other CAMs or of these before they changed: choose another folder, or empty this one"
        )
    remove_leftovers(folder)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files of killed runs from a folder, but none that another run may be writing."""
    for temporary in folder.glob(f"{_NEW}*"):
        with contextlib.suppress(FileNotFoundError):  # it was renamed or removed meanwhile
            # Not st_mtime: `replacing` sets that to the source's time just before the end.
            if time.time() - temporary.stat().st_ctime > _LEFT_AFTER:
                temporary.unlink()


def is_made_of(target: Path, source: Path) -> bool:
    """Whether `target` exists and `replacing` made it from `source` as it is now, which gave it the same time.

    A later time would not be enough: a folder copied over another one brings older files with other contents.
    """
    if not target.exists():
        return False
    target_time, source_time = target.stat().st_mtime_ns, source.stat().st_mtime_ns
    resolution = next(
        step for step in (10**9, 10**7, 10**3, 100, 1) if target_time % step == 0
    )  # of the file system, in ns
    return 0 <= source_time - target_time < resolution
