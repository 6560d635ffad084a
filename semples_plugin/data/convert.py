"""`semples convert`: CAMs from one host's format to another's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from tqdm import tqdm

from semples_plugin.data.cam_files import FORMATS, chosen_cams, list_cams, read_cams, write_cams
from semples_plugin.data.image_names import image_name
from semples_plugin.data.images import check_images, find_image, image_size
from semples_plugin.utils.atomic_files import CHANGED, claim_folder, is_made_of


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
    found, out = chosen_cams(folder, image_list), Path(out)
    if out.resolve() == Path(folder).resolve():
        raise ValueError(f"{out} is the folder of the CAMs themselves; choose another")
    if images is not None:
        check_images(images, found)
    elif to != "fma" and all(path.suffix == FORMATS["fma"] for path in found.values()):
        raise ValueError(f"{folder} doesn't say how large its images are: give --images FOLDER")
    sources = {path.stem: path for path in list_cams(folder).values()}

    def is_own(path: Path) -> bool:
        source = sources.get(path.stem)
        if source is None or path.suffix != FORMATS[to] or not is_made_of(path, source):
            return False
        try:
            there, size = read_cams(path), None
            if source.suffix == FORMATS["fma"] != path.suffix and images is not None:
                size = image_size(find_image(images, image_name(path)))
        except (OSError, ValueError):
            return False
        return there.format == to and (size is None or there.size in (None, size))

    claim_folder(out, is_own)
    failed: dict[str, str] = {}
    for name, path in tqdm(found.items(), f"to {to}", unit="image", disable=not progress):
        target = out / f"{path.stem}{FORMATS[to]}"
        if target.exists():  # of an interrupted call
            continue
        try:
            source_time, cams = path.stat().st_mtime_ns, read_cams(path)
            if cams.format == "fma" and to != "fma":
                if images is None:
                    raise ValueError(f"{path} doesn't say how large its image is: give --images FOLDER")
                scores = cams.scores(*image_size(find_image(images, name)))
                cams = replace(cams, planes=scores)
            write_cams(target, replace(cams, format=to), source_time)
        except (OSError, ValueError) as error:
            failed[name] = str(error)
    for name, path in found.items():
        if name not in failed and not is_made_of(out / f"{path.stem}{FORMATS[to]}", path):
            failed[name] = CHANGED
    return failed
