"""Writing files so that a full disk or an interrupt never costs what was there before, nor mixes two runs."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: str | Path, source_time: int | None = None) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name once the block has ended without an exception.

    Args:
        path: of the file that is made or replaced.
        source_time: where it is made from another file, that one's `st_mtime_ns` from before it was read; the new file
            gets it as its own time, for `is_made_of`.

    Raises:
        OSError: as the block raises it, with `path` for its name; the temporary file is gone then, an older `path`
            intact.
    """
    path = Path(path).resolve()  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    # Its name is short, so that it may be written where `path` may be, and hidden from those who list the folder.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".new-", suffix=path.suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # some file systems report a full disk only here
        umask = os.umask(0)
        os.umask(umask)
        # mkstemp's files are private; a colleague should be able to read ours, unless the older one was private too.
        temporary.chmod(path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~umask)
        if source_time is not None:
            os.utime(temporary, ns=(source_time, source_time))
        temporary.replace(path)
    except OSError as error:
        if error.errno and error.filename in (None, name):  # a full disk gives no name, and nobody knows the temporary
            error.filename = str(path)
        raise
    finally:
        temporary.unlink(missing_ok=True)


def claim_folder(folder: Path, ending: str, settings: Mapping[str, Any]) -> None:
    """Writes down of what a folder is made, which is to be filled, and perhaps filled further by a later call.

    That goes beside the folder, into `FOLDER.settings.json`: hosts take every file in a folder for one of its kind.

    Args:
        folder: it may not exist yet.
        ending: of the files that it is filled with.
        settings: of what they are made; anything JSON knows.

    Raises:
        ValueError: where the folder holds files of other settings, or of unknown ones.
    """
    wanted = json.loads(json.dumps(settings))
    path = folder.resolve().with_name(f"{folder.resolve().name}.settings.json")
    there = {file.suffix for file in folder.glob("*") if not file.name.startswith(".")}
    if not there or (ending not in there and not path.is_file()):
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(wanted, indent=2) + "\n")
        return
    if not path.is_file():
        raise ValueError(
            f"{folder} holds {ending} files already, which would be taken for some of this run's: choose another folder"
        )
    try:
        made = json.loads(path.read_text())
        differ = [name for name in wanted if made.get(name) != wanted[name]]
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{path} can't be read ({error}): choose another folder, or empty this one") from error
    if differ:
        sides = ", ".join(f"{name} {made.get(name)} and not {wanted[name]}" for name in differ)
        raise ValueError(f"{folder} was made with {sides}: choose another folder, or empty this one")


def is_made_of(target: Path, source: Path) -> bool:
    """Whether a file is there, and `replacing` wrote it from the other one as that is now: it has the same time then.

    A newer time would say less: a folder that is copied over another one brings older files, with other contents.
    """
    if not target.exists():
        return False
    made, there = target.stat().st_mtime_ns, source.stat().st_mtime_ns
    return made in (there, there - there % 10**9)  # some file systems keep whole seconds
