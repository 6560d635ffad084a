"""The digest of a file's content, by which one that was made or changed since is told from another."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_of(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file's content.

    Raises:
        OSError: where it can't be read.
    """
    whole = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(2**20):
            whole.update(block)
    return whole.hexdigest()
