"""`semples patch`: adds SemPLeS to a host's checkout, checks it, or removes it; only where that is safe.

CLIMS and WeakTr get a patch, by git; FMA-WSSS gets config files, one per data set and stage, and no file of its own
changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import semples_plugin
from semples_plugin.adapters.commits import COMMITS
from semples_plugin.utils.atomic_files import replacing
from semples_plugin.utils.git import check_root, git, head, succeeds
from semples_plugin.utils.stages import STAGES

PATCHES = Path(semples_plugin.__file__).parent / "patches"

GUIDE = "the page Hosts, docs/hosts.md in the repository"

_APPLY = ("apply", "--unidiff-zero")


def patch(host: str, checkout: str | Path, action: str = "apply") -> str:
    """Applies, checks or reverts a host's patch.

    Args:
        host: "clims", "weaktr" or "fma-wsss".
        checkout: the host's git checkout.
        action: "apply", "check" or "revert".

    Returns:
        What was done, or how things stand, in a sentence.

    Raises:
        ValueError: where the checkout is another project, at another commit or changed in the files that the
            patch touches, or is patched (not patched) already.
        OSError: where a file can't be read or written.

    Either all files change or none; after an error or an interrupt the checkout is as it was.
    """
    checkout = Path(checkout)
    _check_checkout(host, checkout)
    if host == "fma-wsss":
        return _handle_configs(checkout, action)
    return _handle_patch(host, checkout, action)


def _check_checkout(host: str, checkout: Path) -> None:
    """Raises where the folder isn't the root of a git checkout that has the host's pinned commit."""
    check_root(checkout, host)
    commit = COMMITS[host]
    if not succeeds(checkout, "cat-file", "-e", commit):
        raise ValueError(f"{checkout} has no commit {commit[:12]}: it is not {host}, or a shallow clone of a later one")


def _require_commit(host: str, checkout: Path) -> None:
    found, commit = head(checkout), COMMITS[host]
    if found != commit:
        raise ValueError(
            f"{checkout} is at commit {found[:12]}; the patch is for {commit[:12]}: git -C {checkout} checkout "
            f"{commit[:12]}"
        )


def _handle_patch(host: str, checkout: Path, action: str) -> str:
    """Applies, checks or reverts the patch of CLIMS or WeakTr."""
    # The files themselves say whether they are patched, so that a committed patch can be reverted as well.
    if succeeds(checkout, *_APPLY, "--reverse", "--check", _patch_of(host)):
        return _handle_patched(host, checkout, action)
    _refuse_half_patched(host, checkout)
    if action == "revert":
        raise ValueError(f"{checkout} is not patched; there is nothing to take out")
    _require_commit(host, checkout)
    touched = touched_files(host)
    changed = git(checkout, "status", "--porcelain", "--", *touched)
    if changed:
        raise ValueError(
            f"{checkout} has local changes in files that the patch touches ({' '.join(changed.split())}); "
            "commit or stash them first"
        )
    if action == "check":
        return f"{checkout} is not patched; the patch fits"
    _change(_patched(host, checkout))
    return f"patched {', '.join(touched)}; --semples in the host's own script now chooses a stage, see {GUIDE}"


def _handle_patched(host: str, checkout: Path, action: str) -> str:
    """The same for a checkout that has the patch."""
    touched = ", ".join(touched_files(host))
    if action == "apply":
        raise ValueError(f"{checkout} is patched already; semples patch {host} {checkout} --revert takes it out")
    if action == "check":
        return f"{checkout} is patched: {touched}"
    _change(_patched(host, checkout, "--reverse"))
    return f"took the patch out of {touched}"


def _refuse_half_patched(host: str, checkout: Path) -> None:
    ours = [name for name in touched_files(host) if _mentions_us(checkout / name)]
    if ours:
        raise ValueError(
            f"{checkout} is half patched, or lines of the patch were edited: {', '.join(ours)}; git -C {checkout} "
            f"checkout {COMMITS[host][:12]} -- {' '.join(ours)} gives the host's own files back, and discards all "
            "changes in them"
        )


def _handle_configs(checkout: Path, action: str) -> str:
    """Writes, checks or removes FMA-WSSS's config files."""
    stages = [f"{data}/{stage}" for data in ("voc", "coco") for stage in STAGES]
    sources = {**dict.fromkeys(stages, "fma_wsss.py"), "voc/sams": "fma_wsss_sams.py"}
    texts = {
        checkout / "configs/semples" / name / "cfg.py": (PATCHES / source).read_text(encoding="utf-8")
        for name, source in sources.items()
    }
    files = list(texts)
    _refuse_links(files)
    existing = [file for file in files if file.exists()]
    edited = [file for file in existing if file.read_text(encoding="utf-8", errors="replace") != texts[file]]
    if action == "apply":
        return _write_configs(checkout, texts, existing)
    if action == "check":
        return _describe_configs(checkout, files, existing, edited)
    return _remove_configs(checkout, existing, edited)


def _refuse_links(files: list[Path]) -> None:
    for file in files:
        for path in (file, *list(file.parents)[:4]):  # up to configs/
            if path.is_symlink():
                raise ValueError(f"{path} is a link, which leads to files outside of what this command may change")


def _write_configs(checkout: Path, texts: Mapping[Path, str], existing: list[Path]) -> str:
    _require_commit("fma-wsss", checkout)
    if existing:
        raise ValueError(
            f"{_listed(existing)}: there already; semples patch fma-wsss {checkout} --revert takes them out"
        )
    try:
        _change({file: text.encode() for file, text in texts.items()})
    finally:
        _remove_empty_folders([*texts])
    return f"wrote {_listed([*texts])}, which build on configs/VOC/cls/cfg.py and configs/COCO/cls/cfg.py; see {GUIDE}"


def _describe_configs(checkout: Path, files: list[Path], existing: list[Path], edited: list[Path]) -> str:
    if not existing:
        _require_commit("fma-wsss", checkout)
        return f"{checkout} has no config of SemPLeS's yet; it fits"
    notes = [f"{checkout} has {_listed(existing)}"]
    if edited:
        notes.append(f"edited: {_listed(edited)}")
    missing = [file for file in files if file not in existing]
    if missing:
        notes.append(f"missing: {_listed(missing)}")
    return "; ".join(notes)


def _remove_configs(checkout: Path, existing: list[Path], edited: list[Path]) -> str:
    if not existing:
        raise ValueError(f"{checkout} has no config of SemPLeS's; there is nothing to take out")
    unedited = [file for file in existing if file not in edited]
    _change(dict.fromkeys(unedited))
    _remove_empty_folders(unedited)
    notes = []
    if unedited:
        notes.append(f"took out {_listed(unedited)}")
    if edited:
        notes.append(f"left {_listed(edited)}, edited since it was written: delete it yourself")
    return "; ".join(notes)


def _listed(files: list[Path]) -> str:
    return ", ".join(map(str, files))


def touched_files(host: str) -> list[str]:
    """Files of CLIMS or WeakTr that its patch changes, relative to the checkout."""
    return re.findall(r"^\+\+\+ b/(.+)$", Path(_patch_of(host)).read_text(encoding="utf-8"), re.MULTILINE)


def _patch_of(host: str) -> str:
    return str(PATCHES / f"{host}.patch")


def _mentions_us(file: Path) -> bool:
    return file.is_file() and "semples_plugin" in file.read_text(encoding="utf-8", errors="replace")


def _patched(host: str, checkout: Path, *options: str) -> dict[Path, bytes]:
    """Contents of the touched files with the patch, or, with "--reverse", without it; git works on copies of them."""
    repository = git(checkout, "rev-parse", "--absolute-git-dir")
    with TemporaryDirectory() as folder:
        copies = {checkout / name: Path(folder, name) for name in touched_files(host)}
        for file, copy in copies.items():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(file.read_bytes())
        # With the checkout's --git-dir its settings, of line ends for instance, hold for the copies as well.
        git(Path(folder), f"--git-dir={repository}", "--work-tree=.", *_APPLY, *options, _patch_of(host))
        return {file: copy.read_bytes() for file, copy in copies.items()}


def _change(contents: Mapping[Path, bytes | None]) -> None:
    """Gives files their new contents, or removes them (None): all, or, after any exception, none."""
    before = {file: (_content(file), _mode(file)) for file in contents}
    try:
        with ExitStack() as stack:  # all are written before the first one takes its name
            for file, content in contents.items():
                if content is None:
                    stack.callback(file.unlink)
                else:
                    stack.enter_context(replacing(file)).write_bytes(content)
        wrong = [str(file) for file, content in contents.items() if _content(file) != content]
        if wrong:
            raise OSError(f"{', '.join(wrong)}: what was written can't be read back")
    except BaseException as error:
        lost = [str(file) for file, old in before.items() if not _put_back(file, *old)]
        if lost:
            raise OSError(f"{error}; {', '.join(lost)} could not be put back, see git status") from error
        if isinstance(error, OSError):
            raise OSError(f"{error}; nothing was changed") from error
        raise


def _put_back(file: Path, content: bytes | None, mode: int) -> bool:
    """Restores a file, or its absence (None); whether that worked."""
    with suppress(OSError):
        if _content(file) == content:
            return True
        if content is None:
            file.unlink()
            return True
        with replacing(file) as temporary:
            temporary.write_bytes(content)
        file.chmod(mode)
        return True
    return False


def _mode(file: Path) -> int:
    return file.stat().st_mode & 0o777 if file.exists() else 0


def _content(file: Path) -> bytes | None:
    return file.read_bytes() if file.exists() else None


def _remove_empty_folders(files: list[Path]) -> None:
    for file in files:
        with suppress(OSError):  # a folder that holds other files stays
            for folder in list(file.parents)[:3]:  # the stage's, the data set's, and semples/
                folder.rmdir()
