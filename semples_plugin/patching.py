"""`semples patch`: puts SemPLeS into a host, says whether it is in, takes it out; only where that is safe.

CLIMS and WeakTr get a patch, by git; FMA-WSSS gets three config files, one per stage, and nothing of its own changes.
"""

from __future__ import annotations

import re
import subprocess
from contextlib import suppress
from pathlib import Path

from semples_plugin.adapters.options import STAGES

PATCHES = Path(__file__).parent / "patches"
COMMITS = {
    "clims": "f9546d32ad9b4545577eebdc9e4d879aff3366d7",
    "weaktr": "3457ad3d052a2f65320671cd9fc801b5c9dcb5c6",
    "fma-wsss": "112437ec2026cf93a79690d2a2b8b0541407178b",
}


def patch(host: str, checkout: str | Path, action: str = "apply") -> str:
    """Applies, checks or reverts a host's patch.

    Args:
        host: "clims", "weaktr" or "fma-wsss".
        checkout: the host's git checkout.
        action: "apply", "check" or "revert".

    Returns:
        What was done or found, in a sentence.

    Raises:
        ValueError: where the checkout is another project, at another commit or changed in the files that the patch
            touches, or is patched (not patched) already; nothing has been changed then.
    """
    checkout, commit = Path(checkout), COMMITS[host]
    if not checkout.is_dir():
        raise FileNotFoundError(f"there is no folder {checkout}")
    if _git(checkout, "--version") is None:
        raise ValueError("git is not installed, or not on the PATH")
    top = _git(checkout, "rev-parse", "--show-toplevel")
    if top is None:
        raise ValueError(f"{checkout} is no git checkout; clone {host} with git, an unpacked archive has no commits")
    if Path(top).resolve() != checkout.resolve():
        raise ValueError(f"{checkout} is a folder inside of the checkout; give {top}")
    if _git(checkout, "cat-file", "-e", commit) is None:
        raise ValueError(f"{checkout} has no commit {commit[:12]}: it is not {host}, or a shallow clone of a later one")
    return _configs(checkout, action) if host == "fma-wsss" else _patch(host, checkout, action)


def _require_commit(host: str, checkout: Path) -> None:
    head, commit = _git(checkout, "rev-parse", "HEAD") or "none", COMMITS[host]
    if head != commit:
        raise ValueError(
            f"{checkout} is at commit {head[:12]}; the patch is for {commit[:12]}: git -C {checkout} checkout "
            f"{commit[:12]}"
        )


def _patch(host: str, checkout: Path, action: str) -> str:
    file, touched = PATCHES / f"{host}.patch", touched_files(host)
    # Whether it is in is asked of the files, so that a patch that was committed is found and comes out as well.
    if _git(checkout, "apply", "--unidiff-zero", "--reverse", "--check", str(file)) is not None:
        if action == "apply":
            raise ValueError(f"{checkout} is patched already; semples patch {host} {checkout} --revert takes it out")
        if action == "check":
            return f"{checkout} is patched: {', '.join(touched)}"
        _git(checkout, "apply", "--unidiff-zero", "--reverse", str(file))
        return f"took the patch out of {', '.join(touched)}"
    ours = [name for name in touched if _mentions_us(checkout / name)]
    if ours:
        raise ValueError(
            f"{checkout} is half patched, or lines of the patch were edited: {', '.join(ours)}; git -C {checkout} "
            f"checkout {COMMITS[host][:12]} -- {' '.join(ours)} gives the host's own files back, and discards all "
            "changes in them"
        )
    if action == "revert":
        raise ValueError(f"{checkout} is not patched; there is nothing to take out")
    _require_commit(host, checkout)
    changed = _git(checkout, "status", "--porcelain", "--", *touched)
    if changed:
        raise ValueError(
            f"{checkout} has local changes in files that the patch touches ({' '.join(changed.split())}); commit or "
            "stash them first"
        )
    if action == "check":
        return f"{checkout} is not patched; the patch fits"
    if _git(checkout, "apply", "--unidiff-zero", str(file)) is None:
        raise ValueError(f"git could not apply {file} to {checkout}; see git apply --unidiff-zero --check {file}")
    return (
        f"patched {', '.join(touched)}; --semples in the host's own script now chooses a stage, see {PATCHES}/README.md"
    )


def _configs(checkout: Path, action: str) -> str:
    text = (PATCHES / "fma_wsss.py").read_text(encoding="utf-8")
    files = [checkout / "configs/semples" / stage / "cfg.py" for stage in STAGES]
    there = [file for file in files if file.exists()]
    edited = [file for file in there if file.read_text(encoding="utf-8") != text]
    names, kept = ", ".join(map(str, there)), ", ".join(map(str, edited))
    if action == "check":
        if not there:
            _require_commit("fma-wsss", checkout)
            return f"{checkout} has no config of SemPLeS's yet; it fits"
        missing = ", ".join(str(file) for file in files if file not in there)
        notes = [f"edited: {kept}"] * bool(kept) + [f"missing: {missing}"] * bool(missing)
        return "; ".join([f"{checkout} has {names}", *notes])
    if action == "apply":
        _require_commit("fma-wsss", checkout)
        if there:
            raise ValueError(f"{names}: there already; semples patch fma-wsss {checkout} --revert takes them out")
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return f"wrote {', '.join(map(str, files))}, which build on configs/VOC/cls/cfg.py; see {PATCHES}/README.md"
    if not there:
        raise ValueError(f"{checkout} has no config of SemPLeS's; there is nothing to take out")
    gone = [file for file in there if file not in edited]
    for file in gone:
        file.unlink()
        with suppress(OSError):  # what else a user keeps there stays
            file.parent.rmdir()
            file.parent.parent.rmdir()
    notes = [f"took out {', '.join(map(str, gone))}"] * bool(gone)
    return "; ".join(notes + [f"left {kept}, edited since it was written: delete it yourself"] * bool(kept))


def touched_files(host: str) -> list[str]:
    """Files of CLIMS or WeakTr that its patch changes, relative to the checkout."""
    return re.findall(r"^\+\+\+ b/(.+)$", (PATCHES / f"{host}.patch").read_text(), re.MULTILINE)


def _mentions_us(file: Path) -> bool:
    return file.is_file() and "semples_plugin" in file.read_text(encoding="utf-8", errors="replace")


def _git(checkout: Path, *arguments: str) -> str | None:
    """Standard output of a git command, None where it failed or there is no git."""
    command = ["git", "-C", str(checkout), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return result.stdout.strip() if result.returncode == 0 else None
