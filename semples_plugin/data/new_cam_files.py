"""A folder of CAM files that a model makes: of which images, with which settings, and which are still to come."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semples_plugin.data.cam_files import FORMATS, Cams, write_cams
from semples_plugin.data.image_names import ImageNames
from semples_plugin.data.image_records import ImageRecords, look
from semples_plugin.data.images import check_images, find_image, image_size, read_image
from semples_plugin.utils.atomic_files import claim_folder, replacing
from semples_plugin.utils.text import reason, shown

Planes = Sequence[NDArray[np.float32]]
SETTINGS = "write_cams_of.json"
"""The file beside the CAMs that says how they were made."""
IMAGES = "write_cams_of.images.jsonl"
"""The file beside the CAMs that says what the images were."""


class NewCamFiles:
    """The images, what is present in each, and the CAM files to make.

    Args:
        images: folder of the images.
        out: folder of the CAM files.
        labels: image name to multi-hot `[K]`.
        names: of the images; by default all that have labels.
        format_: of the files, one of `FORMATS`.

    Attributes:
        labels: image name to what is present `[K]`, bool, of the chosen images.

    Raises:
        FileNotFoundError: where there are no images.
        TypeError: for labels or names of another kind.
        ValueError: where images have no labels, or labels aren't multi-hot.
    """

    def __init__(
        self,
        images: str | Path,
        out: str | Path,
        labels: Mapping[str, ArrayLike],
        names: Iterable[str] | None,
        format_: str,
    ) -> None:
        if format_ not in FORMATS:
            raise ValueError(f"format: expected one of {', '.join(FORMATS)}, got {shown(format_)}")
        self.images, self.out, self.format = Path(images), Path(out), format_
        self._records, self._seen = ImageRecords(self.out / IMAGES), dict[str, list[Any]]()
        self.labels = _chosen_labels(labels, names)
        check_images(images, self.labels)

    def claim(self, settings: Mapping[str, Any]) -> None:
        """Makes the folder, or takes one of CAMs that were made with the same settings, plain values by name.

        Raises:
            OSError: where nothing can be written into it.
            ValueError: where it holds anything else, or CAMs of images that changed since.
        """
        path = self.out / SETTINGS
        if path.exists():
            _check_settings(path, settings)
        claim_folder(
            self.out, lambda file: path.exists() and file.name in (SETTINGS, IMAGES, f"{file.stem}{self._suffix}")
        )
        self._check_unchanged()
        if not path.exists():
            with replacing(path) as temporary:
                temporary.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")

    def _check_unchanged(self) -> None:
        made = [name for name, label in self.labels.items() if label.any() and self._target(name).exists()]
        changed = self._records.changed({name: find_image(self.images, name) for name in made})
        if changed:
            raise ValueError(
                f"{self.out} holds CAMs of {len(changed)} images that changed since they were made, such as "
                f"{find_image(self.images, changed[0])}: remove their CAM files, such as "
                f"{self._target(changed[0]).name}, to have them made again, or choose another folder"
            )

    def pending(self) -> list[str]:
        """Names of the images without CAMs."""
        return [name for name in self.labels if not self._target(name).exists()]

    def size(self, name: str) -> tuple[int, int] | str:
        """Height and width of an image, or what is wrong with it."""
        try:
            return image_size(find_image(self.images, name))
        except (OSError, ValueError) as error:
            return str(error)

    def read(self, names: Sequence[str]) -> dict[str, NDArray[np.uint8] | str]:
        """The pixels `[H, W, 3]` of images, or what is wrong with each."""
        read: dict[str, NDArray[np.uint8] | str] = {}
        for name in names:
            try:
                path = find_image(self.images, name)
                self._seen[name] = look(path)  # before it is read: a change meanwhile is noticed
                read[name] = read_image(path)
            except (OSError, ValueError) as error:
                read[name] = str(error)
        return read

    def write(self, name: str, planes: Planes) -> None:
        """Writes an image's CAMs, scores `[H, W]` of its present classes."""
        if name in self._seen:  # first, so that no CAMs are without it
            self._records.add(name, self._seen.pop(name))
        # The file's time is the present, not the image's: pseudo masks tell by it that CAMs were made again.
        write_cams(self._target(name), Cams(planes, tuple(self.labels[name].nonzero()[0].tolist()), self.format))

    @property
    def _suffix(self) -> str:
        return FORMATS[self.format]

    def _target(self, name: str) -> Path:
        return self.out / f"{name}{self._suffix}"


def _chosen_labels(labels: Mapping[str, ArrayLike], names: Iterable[str] | None) -> dict[str, NDArray[np.bool_]]:
    """Image name to what is present `[K]`, of the chosen images."""
    if not isinstance(labels, Mapping):
        raise TypeError(f"labels: expected image names and multi-hot labels, got {type(labels).__name__}")
    if isinstance(names, (str, Path)):
        raise TypeError(f"names: expected image names; read_image_list reads them from {shown(str(names))}")
    unique = ImageNames()
    chosen = list(dict.fromkeys(unique.of(name) for name in (labels if names is None else names)))
    if not chosen:
        raise ValueError("names: expected at least one image, got none")
    missing = [name for name in chosen if name not in labels]
    if missing:
        raise ValueError(f"labels: {len(missing)} of {len(chosen)} images have none, such as {missing[0]}")
    present = {name: np.asarray(labels[name]) for name in chosen}
    for name, label in present.items():
        if label.ndim != 1 or label.dtype.kind not in "fiub" or not np.isin(label, (0, 1)).all():
            raise ValueError(f"labels: expected multi-hot labels [K] of 0 and 1 for {name}, got {shown(label)}")
    if len({len(label) for label in present.values()}) > 1:
        raise ValueError("labels: expected labels of one length K, got several")
    return {name: label.astype(bool) for name, label in present.items()}


def _check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    try:
        earlier = json.loads(path.read_text(encoding="utf-8"))
        changed = [key for key in settings if earlier.get(key) != settings[key]]
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} doesn't say how the CAMs beside it were made ({reason(error)})") from error
    if changed:
        key = changed[0]
        raise ValueError(
            f"{path.parent} holds CAMs made with {key} {shown(earlier.get(key))}, where this call has "
            f"{shown(settings[key])}: choose another folder, or empty this one"
        )
