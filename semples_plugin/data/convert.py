"""`semples convert`: CAMs from one host's format to another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from semples_plugin.data.cam_files import FORMATS, read_cams, write_cams
from semples_plugin.data.derived_files import DerivedFiles, size_of_image
from semples_plugin.data.image_names import image_name
from semples_plugin.data.images import image_size


def convert_folder(
    folder: str | Path,
    out: str | Path,
    to: str,
    *,
    images: str | Path | None = None,
    image_list: str | Path | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Writes every CAM file of a folder in another host's format; an interrupted call goes on where it was.

    From `clims` and `weaktr` the full-size maps, float32, go over bit by bit, to any format. From `fma`, whose maps are
    small and raw, they become scores at full size first, as its own evaluation makes them. A file gets the time of the
    one that it is made from.

    Args:
        folder: of CAM files of any host.
        out: folder for the converted ones, and nothing else.
        to: "clims", "weaktr" or "fma", see `semples_plugin.data.cam_files`.
        images: folder of the images, for their size; needed from `fma` to the others.
        image_list: text file of image names, to convert these alone.
        progress: show a progress bar.

    Returns:
        Image name to what was wrong, of the files that could not be converted.

    Raises:
        FileNotFoundError: where there are no CAMs, or no images.
        ValueError: for an unknown format, where images are needed, or where `out` is `folder` or holds files
            that were not made of these CAMs as they are now.
    """
    if to not in FORMATS:
        raise ValueError(f"to: expected one of {', '.join(FORMATS)}, got {to!r}")
    files = DerivedFiles(folder, out, FORMATS[to], images, image_list)
    files.check_images(sizes_needed=to != "fma")
    files.claim(lambda path: files.is_current(path) and _is_conversion(path, to, files))
    failed: dict[str, str] = {}
    for name, cam_file in tqdm(files.cam_files.items(), f"to {to}", unit="image", disable=not progress):
        if files.targets[name].exists():  # of an interrupted call
            continue
        try:
            _convert(cam_file, files.targets[name], to, files.image_of(name))
        except (OSError, ValueError) as error:
            failed[name] = str(error)
    written = [name for name in files.cam_files if name not in failed]
    return {**failed, **files.changed(written, files.is_current)}


def _convert(cam_file: Path, target: Path, to: str, image: Path | None) -> None:
    source_time, cams = cam_file.stat().st_mtime_ns, read_cams(cam_file)
    if cams.format == "fma" and to != "fma":
        cams = replace(cams, planes=cams.scores(*size_of_image(cams, cam_file, image)))
    write_cams(target, replace(cams, format=to), source_time)


def _is_conversion(path: Path, to: str, files: DerivedFiles) -> bool:
    """Whether a file holds CAMs of the format, of its image's size where that decided about theirs."""
    source = files.source_of(path)
    sized_by_image = to != "fma" and source is not None and source.suffix == FORMATS["fma"]
    try:
        cams, size = read_cams(path), None
        image = files.image_of(image_name(path))
        if sized_by_image and image is not None:
            size = image_size(image)
    except (OSError, ValueError):
        return False
    return cams.format == to and (size is None or cams.size in (None, size))
