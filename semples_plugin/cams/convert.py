"""`semples convert`: CAMs from one host's format to another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from semples_plugin.cams.files import FORMATS, list_cams, read_cams, write_cams
from semples_plugin.cams.pictures import find_photograph, photograph_size


def convert_folder(
    folder: str | Path, out: str | Path, to: str, *, images: str | Path | None = None, progress: bool = True
) -> dict[str, str]:
    """Writes every CAM file of a folder in another host's format; files that are there already stay.

    From `clims` and `weaktr` the full-size maps go over bit by bit, to any format. From `fma`, whose maps are small
    and raw, they become scores at full size first, as its own evaluation makes them.

    Args:
        folder: of CAM files of any host.
        out: folder for the converted ones.
        to: "clims", "weaktr" or "fma", see `semples_plugin.cams.files`.
        images: folder of the photographs, for their size; needed from `fma` to the others.
        progress: show a progress bar.

    Returns:
        Image name to what was wrong, of the files that could not be converted.

    Raises:
        FileNotFoundError: where there are no CAMs, or no folder of photographs.
        ValueError: for an unknown format, or where `out` is `folder`.
    """
    if to not in FORMATS:
        raise ValueError(f"to: expected one of {', '.join(FORMATS)}, got {to!r}")
    found, out = list_cams(folder), Path(out)
    if out.resolve() == Path(folder).resolve():
        raise ValueError(f"{out} is the folder of the CAMs themselves; choose another")
    if images is not None and not Path(images).is_dir():
        raise FileNotFoundError(f"there is no folder {images}")
    failed: dict[str, str] = {}
    for name, path in tqdm(found.items(), f"to {to}", unit="image", disable=not progress):
        target = out / f"{name}{FORMATS[to]}"
        if target.exists():
            continue
        try:
            cams = read_cams(path)
            if cams.format == "fma" and to != "fma":
                if images is None:
                    raise ValueError(f"{path} doesn't say how large its image is: give --images FOLDER")
                scores = cams.scores(*photograph_size(find_photograph(images, name)))
                cams = replace(cams, planes=scores)
            write_cams(target, replace(cams, format=to))
        except (OSError, ValueError) as error:
            failed[name] = str(error)
    return failed
