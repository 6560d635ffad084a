"""What is missing for a run of a host: packages, checkout, patch, checkpoints and data."""

from __future__ import annotations

import os
import shlex
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from importlib import import_module
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from semples_plugin.adapters.commits import COMMITS
from semples_plugin.compat.needs.data_check import DataCheck, Finding
from semples_plugin.compat.needs.items import Checkpoint, DataSet, Needs, Package
from semples_plugin.compat.needs.published import PUBLISHED
from semples_plugin.compat.run import check_checkout
from semples_plugin.utils.extras import how_to_install
from semples_plugin.utils.file_digest import sha256_of
from semples_plugin.utils.text import reason

MODULES = {"clims": "clims", "weaktr": "weaktr", "fma-wsss": "fma_wsss"}
_ROOTS = ("voc", "coco")
Roots = dict[str, Path | None]
_MAGIC = (b"PK", b"\x80")  # what torch.save and torch.jit.save begin with: a zip file or, in 2020, a pickle
_HAS_ALL = {"python_version": "3.12"}  # the newest for which all packages have a release
_SECONDS = 5  # to wait for a server


def check_host(
    host: str, checkout: str | Path, data: str | None = None, voc: str | None = None, coco: str | None = None
) -> Iterator[Finding]:
    """What is there and what is missing for a run of a host.

    Args:
        host: "clims", "weaktr" or "fma-wsss".
        checkout: the host's.
        data: "voc" or "coco", the data that is needed; left out, VOC, and COCO is looked at as optional.
        voc, coco: where the data is: for CLIMS, which takes it by an option; the others want it linked.

    Returns:
        The lines of the report, as they are found; paths in the checkout are relative to it.

    Raises:
        FileNotFoundError: where the folder is no checkout of the host, or `voc` or `coco` is none.
    """
    needs = needs_of(host)
    checkout = Path(checkout).expanduser().absolute()
    check_checkout(host, checkout, any_commit=True)
    given = {name: _given(name, folder) for name, folder in zip(_ROOTS, (voc, coco), strict=True)}
    roots = {name: checkout / needs.data[name].root if needs.data[name].root else given[name] for name in _ROOTS}
    needed = data or ("coco" if coco and not voc else "voc")
    names = [needed] if data else [needed, *(other for other in _ROOTS if other != needed)]
    findings = _findings(host, checkout, needs, names, roots, given)
    return (_below(checkout, finding) for finding in findings)


def check_data(
    host: str, checkout: str | Path, name: str, folder: str | None = None, lists: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """A data set alone, for a whole recipe: training, and the images on which it is judged.

    Args:
        host, checkout: as `check_host` takes them.
        name: "voc" or "coco".
        folder: where the data is, for CLIMS.
        lists: lists of images, host's own -> those in place of them.

    Raises:
        FileNotFoundError: where `folder` is none.
    """
    data, checkout = needs_of(host).data[name], Path(checkout).absolute()
    own = _given(name, folder)
    images = [replace(one, path=(lists or {}).get(one.path, one.path)) for one in (*data.lists, *data.judged)]
    data, roots = replace(data, lists=tuple(images)), {name: checkout / data.root if data.root else own}
    return (_below(checkout, finding) for finding in _data(host, checkout, name, data, roots, {name: own}))


def check_published(name: str, folder: Path) -> Iterator[Finding]:
    """A data set as it is published, "voc" or "coco": its folders, and what its own lists name, where it has them."""
    data = PUBLISHED[name]
    roots: Roots = {name: folder}
    lists = tuple(one for one in data.lists if _place(folder, roots, one.path).is_file())
    return DataCheck(replace(data, lists=lists), folder, lambda path: _place(folder, roots, path)).findings()


def needs_of(host: str) -> Needs:
    """What a host needs."""
    needs: Needs = import_module(f"semples_plugin.compat.needs.{MODULES[host]}").NEEDS
    return needs


def print_findings(findings: Iterable[Finding]) -> int:
    """Prints findings as they come; returns 1 where training could not begin."""
    fails = False
    for finding in findings:
        print(f"{finding.status:<9} {finding.text}", flush=True)
        fails = fails or finding.fails
    return int(fails)


def _below(checkout: Path, finding: Finding) -> Finding:
    """With paths in the checkout as they are there."""
    return replace(finding, text=finding.text.replace(f"{checkout}{os.sep}", ""))


def _findings(
    host: str, checkout: Path, needs: Needs, names: list[str], roots: Roots, given: Roots
) -> Iterator[Finding]:
    """Everything; the first of `names` is the data that is needed, and the others are optional."""
    yield from _packages(host)
    for package in (*needs.packages, *needs.data[names[0]].packages):
        yield _package(package)
    yield from _commit_and_patch(host, checkout)
    for checkpoint in (*needs.checkpoints, *needs.data[names[0]].checkpoints):
        yield _checkpoint(host, _place(checkout, roots, checkpoint.path), checkpoint)
    yield from _data(host, checkout, names[0], needs.data[names[0]], roots, given)
    for name in names[1:]:
        for finding in _data(host, checkout, name, needs.data[name], roots, given, whole=False):
            yield replace(finding, fails=False, text=f"{finding.text} (optional, for {name.upper()}'s recipes)")


def _given(name: str, folder: str | None) -> Path | None:
    """The user's folder of a data set; None where nobody said it."""
    if folder is None:
        return None
    path = Path(folder).expanduser().absolute()
    if not path.is_dir():
        raise FileNotFoundError(f"--{name}: there is no folder {path}")
    return path


def _place(checkout: Path, roots: Roots, path: str) -> Path:
    """A path of `items`, absolute; placeholders of image lists stay."""
    home = Path.home() / ".cache"
    torch_home = os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or home, "torch")
    known = {**roots, "hub": Path(torch_home, "hub", "checkpoints"), "clip": home / "clip"}
    for name, folder in known.items():
        if path.startswith(f"{{{name}}}") and folder:
            return folder.expanduser() / path.removeprefix(f"{{{name}}}").lstrip("/")
    return checkout / path


def _packages(host: str) -> Iterator[Finding]:
    """What the host's extra brings, and what the extras of those packages do; not what we need in any case."""
    from packaging.requirements import Requirement

    ours = [Requirement(line) for line in _requirements("semples-plugin")]
    known = {wanted.name for wanted in ours if not wanted.marker}
    waiting = [(wanted, host) for wanted in ours]
    while waiting:
        wanted, extra = waiting.pop(0)
        if wanted.name in known or not _is_of(wanted, extra):
            continue
        known.add(wanted.name)
        yield _requirement(host, wanted, extra)
        waiting += [(Requirement(line), name) for name in wanted.extras for line in _requirements(wanted.name)]


def _requirements(distribution: str) -> list[str]:
    try:
        return requires(distribution) or []
    except PackageNotFoundError:
        return []


def _is_of(wanted: Any, extra: str) -> bool:
    """Whether an extra brings a requirement, on this Python or on one that all packages have releases for."""
    return bool(wanted.marker) and any(
        wanted.marker.evaluate({"extra": extra, **python}) and not wanted.marker.evaluate({"extra": "", **python})
        for python in ({}, _HAS_ALL)
    )


def _requirement(host: str, wanted: Any, extra: str) -> Finding:
    install = how_to_install(host)
    try:
        found = version(wanted.name)
    except PackageNotFoundError:
        if wanted.marker.evaluate({"extra": extra}):
            return Finding("missing", f"{wanted.name} (required by {host}: {install})", True)
        return Finding(
            "missing",
            f"{wanted.name} (required by {host}, and not for this Python: take {_HAS_ALL['python_version']})",
            True,
        )
    if not wanted.specifier.contains(found, prereleases=True):
        return Finding("wrong", f"{wanted.name} {found} (expected {wanted.specifier}: {install})", True)
    return Finding("installed", f"{wanted.name} {found}")


def _package(package: Package) -> Finding:
    if find_spec(package.module):
        return Finding("installed", package.module)
    kind = "optional, for" if package.optional else "required by"
    return Finding("missing", f"{package.module} ({kind} {package.use}: {package.install})", not package.optional)


def _commit_and_patch(host: str, checkout: Path) -> Iterator[Finding]:
    from semples_plugin.adapters.patching import patch

    try:
        check_checkout(host, checkout)
        yield Finding("found", f"{checkout}, at the pinned commit {COMMITS[host][:8]}")
        patched = patch(host, checkout, "check")
    except ValueError as error:
        yield Finding("wrong", str(error), True)
        return
    if patched.endswith("fits"):
        yield Finding(
            "missing", f"SemPLeS in {checkout}, without which it trains alone: semples patch {host} {checkout}"
        )
    else:
        yield Finding("found", f"SemPLeS in it: {patched}")


def _checkpoint(host: str, path: Path, checkpoint: Checkpoint) -> Finding:
    """Whether weights are there and are what was published; where the host downloads them, whether it can."""
    needed = not checkpoint.optional
    about = f"{checkpoint.use}: {checkpoint.source}"
    if path.is_dir() and any(path.iterdir()):
        return Finding("found", f"{path}, {checkpoint.use}")
    if path.is_file():
        wrong = _damage(path, checkpoint.digest)
        if wrong:
            return Finding("wrong", f"{path} {wrong}; delete it and get it again ({about})", needed)
        return Finding("found", f"{path}, {checkpoint.use}")
    if not needed:
        return Finding("missing", f"{path} (optional, {about})")
    if not checkpoint.fetched:
        return Finding("missing", f"{path} ({about})", True)
    about = f"{checkpoint.use}, which {host} downloads from {checkpoint.source}"
    try:
        _reach(checkpoint.source)
    except OSError as error:
        why = reason(getattr(error, "reason", None) or error)  # urllib wraps it
        now = f"that can't be done now ({why}): fetch the file elsewhere and put it there"
        return Finding("missing", f"{path} ({about}; {now})", True)
    return Finding("missing", f"{path} ({about} at its first start)")


def _damage(path: Path, digest: str) -> str:
    """What is wrong with a file of weights; "" where nothing is."""
    try:
        with path.open("rb") as file:
            if not file.read(2).startswith(_MAGIC):
                return "is no file of weights, but perhaps the page of a download"
        is_whole = not digest or sha256_of(path).startswith(digest)
    except OSError as error:
        return f"can't be read ({reason(error)})"
    return "" if is_whole else "is damaged: its SHA-256 is another one"


def _reach(url: str) -> None:
    """Raises an `OSError` where a server doesn't have a file, or doesn't answer."""
    with urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=_SECONDS):
        pass


def _data(
    host: str, checkout: Path, name: str, data: DataSet, roots: Roots, given: Roots, whole: bool = True
) -> Iterator[Finding]:
    """A data set; where it isn't anywhere, one line and, with `whole`, lists and labels of the checkout."""
    root, own = roots[name], given[name]
    has_root = root is not None and root.is_dir()
    if root is None:
        option = f"semples doctor {host} {checkout} --{name} FOLDER, which is {data.option}"
        yield Finding("missing", f"{data.title}: say where it is, {option}", True)
    elif not has_root:
        parent, target = Path(data.root).parent, own or f"/path/to/{data.title.replace(' ', '')}"
        how = f"mkdir -p {parent} && ln -s {shlex.quote(str(target))} {data.root}"
        yield Finding("missing", f"{data.title}: there is no folder {root}; in {checkout}: {how}", True)
    elif data.root and own and not own.samefile(root):
        yield Finding("wrong", f"--{name}: {host} reads {data.title} from {root}, not from {own}")
    if has_root or whole:
        yield from DataCheck(data, checkout, lambda path: _place(checkout, roots, path), has_root).findings()
