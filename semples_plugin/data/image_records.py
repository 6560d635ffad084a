"""What images were when something was made of them, kept in a file, to tell later which have changed since."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from semples_plugin.utils.file_digest import sha256_of


class ImageRecords:
    """Sizes, times and digests of images, one in a line, to which processes append at the same time.

    Args:
        path: of the file, which need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, name: str, seen: list[Any]) -> None:
        """Keeps what `look` said of an image.

        Raises:
            OSError: where it can't be written.
        """
        try:
            with self.path.open("ab", buffering=0) as file:  # one write, so that lines of processes stay whole
                file.write(f"\n{json.dumps([name, *seen])}".encode())  # after what a kill may have cut short
        except OSError as error:
            error.filename = str(self.path)  # a full disk gives no name
            raise

    def changed(self, images: Mapping[str, Path]) -> list[str]:
        """Names of those images that are others than when they were last added; one that is gone didn't change.

        Raises:
            OSError: where a file can't be read.
        """
        last = self._read()
        known = {name: path for name, path in images.items() if name in last and path.is_file()}
        touched = [name for name, path in known.items() if _short(path) != last[name][:2]]
        return [name for name in touched if sha256_of(known[name]) != last[name][2]]

    def _read(self) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = {}
        for line in self.path.read_bytes().splitlines() if self.path.exists() else ():
            try:
                name, size, time, digest = json.loads(line)
                found[str(name)] = [size, time, digest]
            except (ValueError, TypeError):  # an empty line, or one that was cut short
                continue
        return found


def look(path: Path) -> list[Any]:
    """Size, time of the last change, and digest of a file; `ImageRecords.changed` reads the digest where those differ.

    Raises:
        OSError: where it can't be read.
    """
    return [*_short(path), sha256_of(path)]


def _short(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]
