"""Writing files so that a full disk or an interrupt never costs what was there before."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its name once the block has ended without an exception.

    Raises:
        OSError: as the block raises it (a full disk, say); the temporary file is gone then, an older `path` intact.
    """
    path = Path(path).resolve()  # a link stays a link
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
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
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
