"""`write_cams_of`: CAMs of any model at several scales, with and without a flip, as files."""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from tqdm import tqdm

from semples_plugin.adapters.base import WrappedCams, evaluating, without_ddp
from semples_plugin.data.new_cam_files import NewCamFiles, Planes
from semples_plugin.masks import check_kind
from semples_plugin.prompt_learning.work_dir import digest
from semples_plugin.regularizer import IMAGENET_MEAN, IMAGENET_STD
from semples_plugin.utils.checks import check_number, check_tensor, check_triple
from semples_plugin.utils.file_digest import sha256_of
from semples_plugin.utils.text import shown

CamModel = nn.Module | WrappedCams | Callable[[Tensor], Tensor]
_THREADS = 4  # read images and write CAMs while the model computes


def write_cams_of(
    model: CamModel,
    images: str | Path,
    out: str | Path,
    labels: Mapping[str, ArrayLike],
    names: Iterable[str] | None = None,
    *,
    scales: Sequence[float] = (1.0, 0.5, 1.5, 2.0),
    flips: bool = True,
    kind: str | None = None,
    format: str = "weaktr",
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    batch_size: int = 4,
    device: str | torch.device | None = None,
    origin: str | Path | None = None,
    progress: bool = True,
) -> dict[str, str]:
    """Writes a CAM file for each image: the present classes, averaged over scales and flips, at the image's size.

    Each view's CAMs become non-negative as `kind` says, are flipped back, resampled bilinearly to the image's size and
    summed; then each class is divided by its maximum over the image ("min-max": brought to [0, 1] by minimum and
    maximum). Hosts add 1e-5 to the divisor, which flattens CAMs of that size; here only a map without a positive value
    stays zero. Images are scaled by antialiased bicubic resampling, before they are normalised. Without a flip or a
    scale but 1.0 that is an ordinary pass.

    An interrupted call goes on where it was: finished files are whole, and two files in the folder say how and of which
    images they were made. Processes with different `names` may write into one folder at the same time.

    Args:
        model: maps normalised images `[N, 3, h, w]` of any size to CAMs `[N, K, h', w']`: a module, the result of
            `wrap`, a module's method, or a function. A module is in eval mode meanwhile; those inside a function
            are its owner's business.
        images: folder of the images.
        out: folder for the CAM files, and nothing else.
        labels: image name to multi-hot `[K]`, as `load_image_labels` reads them. An image without a label gets a
            file without CAMs, unread.
        names: of the images, as `read_image_list` reads them; by default all that have labels.
        scales: factors of the images' height and width.
        flips: whether each scale is also seen mirrored.
        kind: of the model's CAMs, see `ClassMasks.of_kind`: "logits", "sigmoid", "relu" or "min-max"; by default
            that of `wrap`, or "relu".
        format: of the files, one of `semples_plugin.data.cam_files.FORMATS`.
        mean, std: of the images that the model was trained with, RGB in [0, 1].
        batch_size: images of one size that are computed together, each with its flip; on a CPU more than one gains
            nothing.
        device: for the images; by default the module's, or the CPU for a function.
        origin: name of the model, such as its checkpoint's, of which a digest is kept where it is a file; by default a
            digest of the module's weights.
        progress: show a progress bar.

    Returns:
        Image name to what was wrong, of the images without CAMs, which a warning names, too.

    Raises:
        FileNotFoundError: where there are no images.
        OSError: where a file can't be written.
        TypeError: for a model that can't be called, or a function without `origin`.
        ValueError: where an option is out of its range, images have no labels, the model's CAMs are of another shape,
            or `out` holds CAMs of another model, of other settings, or of images that changed since.

    >>> from tempfile import TemporaryDirectory
    >>> from PIL import Image
    >>> model = torch.nn.Conv2d(3, 2, kernel_size=8, stride=8)
    >>> with TemporaryDirectory() as folder:
    ...     Image.new("RGB", (50, 37)).save(f"{folder}/2007_000032.jpg")
    ...     labels = {"2007_000032": np.array([0, 1])}
    ...     failed = write_cams_of(model, folder, f"{folder}/cams", labels, progress=False)
    ...     sorted(path.name for path in Path(f"{folder}/cams").iterdir())
    ['2007_000032.npy', 'write_cams_of.images.jsonl', 'write_cams_of.json']
    """
    kind = kind or (model.kind if isinstance(model, WrappedCams) else "relu")
    check_options(scales, kind, batch_size)
    network, module = _network_of(model)
    if origin is None and module is None:
        raise TypeError("origin: a function doesn't tell its weights; give their name, such as the checkpoint's path")
    files = NewCamFiles(images, out, labels, names, format)
    statistics = check_triple("mean", mean), check_triple("std", std, positive=True)
    settings = {
        "model": _digest_of_weights(module) if origin is None else _digest_of_origin(origin),
        "images": str(Path(images).resolve()),
        "labels": _digest_of(labels),
        "scales": [float(scale) for scale in scales],
        "flips": bool(flips),
        "kind": kind,
        "format": format,
        "mean, std": [list(triple) for triple in statistics],
    }
    files.claim(settings)
    with _evaluating(module) as own_device:
        views = Views(network, tuple(scales), flips, kind, *statistics, torch.device(device or own_device))
        failed = _write_all(views, files, batch_size, progress)
    if failed:
        first = next(iter(failed))
        warnings.warn(f"{len(failed)} images have no CAMs, such as {first}: {failed[first]}", stacklevel=2)
    return failed


@dataclass(frozen=True)
class Views:
    """CAMs over scales and flips of a batch of images of one size.

    Attributes:
        network: maps normalised images `[N, 3, h, w]` to CAMs `[N, K, h', w']`.
        scales, flips, kind, mean, std: see `write_cams_of`.
        device: of the images that the network gets.
    """

    network: Callable[[Tensor], Tensor]
    scales: tuple[float, ...]
    flips: bool
    kind: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    device: torch.device

    def scores(self, pixels: NDArray[np.uint8], labels: NDArray[np.bool_]) -> Tensor:
        """Scores `[P, H, W]` in [0, 1], on the CPU, of the present classes of RGB images, in row-major order.

        Args:
            pixels: `[N, H, W, 3]`.
            labels: `[N, K]`, with P classes that are present, at least one.
        """
        height, width = pixels.shape[1:3]
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float() / 255
        image_index, class_index = (index.to(self.device) for index in torch.from_numpy(labels).nonzero(as_tuple=True))
        total = torch.zeros(len(image_index), height, width, device=self.device)
        for scale in self.scales:
            cams = self._cams(images, scale, labels.shape[1])
            for view, flipped in zip(cams.split(len(images)), (False, True), strict=False):
                maps = view[image_index, class_index]
                maps = maps.flip(2) if flipped else maps
                total += F.interpolate(maps[:, None], (height, width), mode="bilinear", align_corners=False)[:, 0]
        if self.kind == "min-max":
            total -= total.amin((1, 2), keepdim=True)
        highest = total.amax((1, 2), keepdim=True)
        return (total / highest.masked_fill(highest == 0, 1)).cpu()

    def _cams(self, images: Tensor, scale: float, num_classes: int) -> Tensor:
        """CAMs `[N, K, h, w]`, or with flips `[2 N, K, h, w]`, of images in [0, 1] at a scale."""
        if scale != 1:
            size = [max(round(scale * side), 1) for side in images.shape[2:]]
            images = F.interpolate(images, size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
        mean, std = images.new_tensor([self.mean, self.std]).view(2, 3, 1, 1)
        images = (images - mean) / std
        if self.flips:
            images = torch.cat([images, images.flip(3)])
        cams = check_tensor("the model's CAMs", self.network(images), shape="[N, K, h, w]").float()
        if cams.shape[:2] != (len(images), num_classes):
            raise ValueError(
                f"the model's CAMs: expected [{len(images)}, {num_classes}, h, w], as labels have {num_classes}, "
                f"got {list(cams.shape)}; neither has a column for the background, and COCO's have 80 or 90"
            )
        if self.kind == "logits":
            return cams.sigmoid()
        return cams.relu() if self.kind == "relu" else cams


def _write_all(views: Views, files: NewCamFiles, batch_size: int, progress: bool) -> dict[str, str]:
    """Writes all CAM files that don't exist yet; image name to what was wrong."""
    pending, total = files.pending(), len(files.labels)
    failed: dict[str, str] = {}
    with (
        ThreadPoolExecutor(_THREADS) as pool,
        tqdm(total=total, initial=total - len(pending), desc="CAMs", unit="image", disable=not progress) as bar,
    ):
        empty = [name for name in pending if not files.labels[name].any()]
        writing = [pool.submit(files.write, name, []) for name in empty]
        labelled = [name for name in pending if files.labels[name].any()]
        groups: dict[tuple[int, int], list[str]] = {}
        for name, size in zip(labelled, pool.map(files.size, labelled), strict=True):
            if isinstance(size, str):
                failed[name] = size
            else:
                groups.setdefault(size, []).append(name)
        parts = [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]
        _finish(writing, bar)
        bar.update(len(failed))
        for read in _ahead(pool, files.read, parts):
            good = {name: pixels for name, pixels in read.items() if not isinstance(pixels, str)}
            wrong = {name: what for name, what in read.items() if isinstance(what, str)}
            planes = _planes(views, good, files.labels)
            infinite = [name for name, maps in planes.items() if not all(np.isfinite(plane).all() for plane in maps)]
            wrong.update(dict.fromkeys(infinite, "the model's CAMs are NaN or infinite"))
            _finish(writing, bar)
            writing = [pool.submit(files.write, name, maps) for name, maps in planes.items() if name not in wrong]
            failed.update(wrong)
            bar.update(len(wrong))
        _finish(writing, bar)
    return failed


def _planes(
    views: Views, images: Mapping[str, NDArray[np.uint8]], labels: Mapping[str, NDArray[np.bool_]]
) -> dict[str, Planes]:
    """Image name to scores `[H, W]` of its present classes, of images of one size."""
    if not images:
        return {}
    present = np.stack([labels[name] for name in images])
    scores = iter(views.scores(np.stack(list(images.values())), present).numpy())
    return {name: [next(scores) for _ in range(count)] for name, count in zip(images, present.sum(1), strict=True)}


def _ahead(pool: ThreadPoolExecutor, function: Callable[[Any], Any], items: Sequence[Any]) -> Iterator[Any]:
    """Results in the order of the items, two of which are computed while one is used."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > 2:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _finish(writing: list[Future[None]], bar: tqdm) -> None:
    """Waits for files, and raises what their writing raised."""
    for future in writing:
        future.result()
        bar.update()
    writing.clear()


def check_options(scales: Sequence[float], kind: str, batch_size: int) -> None:
    """Raises a `TypeError` or a `ValueError` for an option that isn't as `write_cams_of` says."""
    check_kind(kind)
    if isinstance(scales, str) or not isinstance(scales, Sequence) or not len(scales):
        raise TypeError(f"scales: expected factors, such as (1.0, 0.5, 1.5, 2.0), got {shown(scales)}")
    for scale in scales:
        check_number("scales", scale, 0, above=True)
    if len(set(scales)) < len(scales):
        raise ValueError(f"scales: expected each once, got {shown(list(scales))}")
    check_number("batch_size", batch_size, 1, whole=True)


def _network_of(model: Any) -> tuple[Callable[[Tensor], Tensor], nn.Module | None]:
    """What to call, and the module whose weights and mode count: the model itself, or the owner of a method."""
    if isinstance(model, WrappedCams):
        model = model.model
    if isinstance(model, nn.Module):
        network = without_ddp(model)
        return network, network
    if not callable(model):
        raise TypeError(f"model: expected a module or a function from images to CAMs, got {type(model).__name__}")
    owner = getattr(model, "__self__", None)
    return model, owner if isinstance(owner, nn.Module) else None


@contextmanager
def _evaluating(module: nn.Module | None) -> Iterator[torch.device]:
    if module is None:
        with torch.no_grad():
            yield torch.device("cpu")
    else:
        with evaluating(module) as device:
            yield device


def _digest_of(labels: Mapping[str, ArrayLike]) -> str:
    """Tells one set of labels from another, whatever images of it are chosen."""
    content = "\n".join(f"{name} {np.asarray(labels[name]).nonzero()[0].tolist()}" for name in sorted(labels))
    return digest(content)


def _digest_of_weights(module: nn.Module | None) -> str:
    state = {} if module is None else module.state_dict()
    return f"weights {digest(*(value for _, value in sorted(state.items()) if isinstance(value, Tensor)))}"


def _digest_of_origin(origin: str | Path) -> str:
    """The model's name, with its content where it is a file: a checkpoint may be written anew under its name."""
    return f"{origin} {sha256_of(origin)[:16]}" if Path(origin).is_file() else str(origin)
