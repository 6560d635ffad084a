"""Files that are made from the CAM files of a folder, one from each, as `convert` and `pseudo-masks` make them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from semples_plugin.data.cam_files import FORMATS, Cams, chosen_cams, list_cams
from semples_plugin.data.images import check_images, find_image, image_size
from semples_plugin.utils.atomic_files import CHANGED, claim_folder, is_made_of


class DerivedFiles:
    """Which files are made from which, and whether one that exists is up to date.

    Args:
        folder: of CAM files.
        out: folder of the files to make.
        suffix: of the files to make.
        images: folder of the images, where their sizes or pixels are needed.
        image_list: text file of image names, to make files of these alone.

    Attributes:
        cam_files: image name to CAM file, of the chosen images.
        targets: image name to the file to make, of the same images.

    Raises:
        FileNotFoundError: where there are no CAMs.
        ValueError: where `out` is `folder`.
    """

    def __init__(
        self,
        folder: str | Path,
        out: str | Path,
        suffix: str,
        images: str | Path | None = None,
        image_list: str | Path | None = None,
    ) -> None:
        self.folder, self.out, self.images = Path(folder), Path(out), images
        self.cam_files = chosen_cams(folder, image_list)
        if self.out.resolve() == self.folder.resolve():
            raise ValueError(f"{out} is the folder of the CAMs themselves; choose another")
        self.targets = {name: self.out / f"{path.stem}{suffix}" for name, path in self.cam_files.items()}
        # An earlier call may have chosen other images.
        self._sources = {f"{path.stem}{suffix}": path for path in list_cams(folder).values()}

    def check_images(self, sizes_needed: bool) -> None:
        """Checks that the images exist, or that nobody needs their sizes.

        Raises:
            FileNotFoundError: where the folder of images is missing, or holds none of them.
            ValueError: where sizes are needed, the CAM files don't tell them, and there is no folder of images.
        """
        if self.images is not None:
            check_images(self.images, self.cam_files)
        elif sizes_needed and all(path.suffix == FORMATS["fma"] for path in self.cam_files.values()):
            raise ValueError(f"{self.folder} doesn't say how large its images are: give --images FOLDER")

    def claim(self, is_own: Callable[[Path], bool]) -> None:
        """Makes the folder, or takes one in which `is_own` holds for every file, see `claim_folder`."""
        claim_folder(self.out, is_own)

    def pending(self) -> list[str]:
        """Names of the images whose files don't exist yet."""
        return [name for name, target in self.targets.items() if not target.exists()]

    def source_of(self, target: Path) -> Path | None:
        """The CAM file that a file of this name is made from."""
        return self._sources.get(target.name)

    def is_current(self, target: Path) -> bool:
        """Whether a file was made from its CAM file as that is now."""
        source = self.source_of(target)
        return source is not None and is_made_of(target, source)

    def image_of(self, name: str) -> Path | None:
        """Where the image is, or would be; None without a folder of images."""
        return None if self.images is None else find_image(self.images, name)

    def changed(self, names: Iterable[str], is_own: Callable[[Path], bool]) -> dict[str, str]:
        """What to say of the images whose files, just made, are another's or of CAMs that changed since."""
        return {name: CHANGED for name in names if not is_own(self.targets[name])}


def size_of_image(cams: Cams, cam_file: Path, image: Path | None) -> tuple[int, int]:
    """Height and width of the image that CAMs belong to.

    Raises:
        FileNotFoundError: where the image is missing.
        ValueError: where it can't be read, or where there is none and the CAMs don't tell its size.
    """
    if image is not None:
        return image_size(image)
    if cams.format == "fma" or cams.size is None:
        raise ValueError(f"{cam_file} doesn't say how large its image is: give --images FOLDER")
    return cams.size
