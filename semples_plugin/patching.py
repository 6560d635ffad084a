"""`semples patch`: puts a host's patch in, says whether it is in, takes it out; by git, and only where that is safe."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

PATCHES = Path(__file__).parent / "patches"
COMMITS = {
    "clims": "f9546d32ad9b4545577eebdc9e4d879aff3366d7",
    "weaktr": "3457ad3d052a2f65320671cd9fc801b5c9dcb5c6",
}


def patch(host: str, checkout: str | Path, action: str = "apply") -> str:
    """Applies, checks or reverts a host's patch.

    Args:
        host: "clims" or "weaktr".
        checkout: the host's git checkout.
        action: "apply", "check" or "revert".

    Returns:
        What was done or found, in a sentence.

    Raises:
        ValueError: where the checkout is another project, at another commit or changed in the files that the patch
            touches, or is patched (not patched) already; nothing has been changed then.
    """
    checkout, file = Path(checkout), PATCHES / f"{host}.patch"
    head = _git(checkout, "rev-parse", "HEAD")
    if head is None or _git(checkout, "cat-file", "-e", COMMITS[host]) is None:
        raise ValueError(f"{checkout} is no git checkout of {host} with its commit {COMMITS[host][:12]}")
    if head != COMMITS[host]:
        raise ValueError(
            f"{checkout} is at commit {head[:12]}; the patch is for {COMMITS[host][:12]}: git -C {checkout} checkout "
            f"{COMMITS[host][:12]}"
        )
    touched = touched_files(host)
    if _git(checkout, "apply", "--unidiff-zero", "--reverse", "--check", str(file)) is not None:
        if action == "apply":
            raise ValueError(f"{checkout} is patched already; semples patch {host} {checkout} --revert takes it out")
        if action == "check":
            return f"{checkout} is patched: {', '.join(touched)}"
        _git(checkout, "apply", "--unidiff-zero", "--reverse", str(file))
        return f"took the patch out of {', '.join(touched)}"
    changed = _git(checkout, "status", "--porcelain", "--", *touched)
    if changed:
        raise ValueError(
            f"{checkout} has local changes in files that the patch touches ({' '.join(changed.split())}); commit or "
            "stash them first"
        )
    if action == "revert":
        raise ValueError(f"{checkout} is not patched; there is nothing to take out")
    if action == "check":
        return f"{checkout} is not patched; the patch fits"
    if _git(checkout, "apply", "--unidiff-zero", str(file)) is None:
        raise ValueError(f"git could not apply {file} to {checkout}; see git apply --unidiff-zero --check {file}")
    return (
        f"patched {', '.join(touched)}; --semples in the host's own script now chooses a stage, see {PATCHES}/README.md"
    )


def touched_files(host: str) -> list[str]:
    """Files of the host that its patch changes, relative to the checkout."""
    return re.findall(r"^\+\+\+ b/(.+)$", (PATCHES / f"{host}.patch").read_text(), re.MULTILINE)


def _git(checkout: Path, *arguments: str) -> str | None:
    """Standard output of a git command, None where it failed."""
    command = ["git", "-C", str(checkout), *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    return result.stdout.strip() if result.returncode == 0 else None
