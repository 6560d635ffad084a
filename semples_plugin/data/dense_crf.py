"""A dense CRF (Krähenbühl and Koltun, NeurIPS 2011) after labels, as for pseudo masks, or after a network's scores."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semples_plugin.utils.extras import how_to_install

CONFIDENCE = 0.7  # of a label before the CRF, as IRNet and its descendants have it
_LEAST = 1e-3  # a class whose probability is lower in all pixels can't win one, and costs as much time as any other


class Kernels(NamedTuple):
    """The two pairwise terms: widths in pixels and in grey levels, and weights."""

    smooth_width: float
    smooth_weight: float
    width: float
    colour_width: float
    weight: float


OF_LABELS = Kernels(smooth_width=3, smooth_weight=3, width=50, colour_width=5, weight=10)
"""IRNet's and its descendants', after the labels of pseudo masks."""
OF_SCORES = Kernels(smooth_width=1, smooth_weight=3, width=67, colour_width=3, weight=4)
"""DeepLab v2's on ResNet-101, after a segmentation network."""


def refine_labels(labels: NDArray[np.uint8], image: NDArray[np.uint8], iterations: int) -> NDArray[np.uint8]:
    """Labels after a dense CRF that believes each with 0.7 and moves boundaries to the image's edges.

    Args:
        labels: `[H, W]`, 0 background.
        image: RGB `[H, W, 3]`.
        iterations: of mean-field inference.
    """
    values, index = np.unique(labels, return_inverse=True)
    if len(values) < 2:
        return labels
    unary = np.full((len(values), labels.size), -np.log((1 - CONFIDENCE) / (len(values) - 1)), dtype=np.float32)
    unary[index.reshape(-1), np.arange(labels.size)] = -np.log(CONFIDENCE)
    return values[_marginals(unary, image, iterations, OF_LABELS).argmax(0)]


def refine_scores(
    probabilities: NDArray[np.float32], image: NDArray[np.uint8], iterations: int, kernels: Kernels = OF_SCORES
) -> NDArray[np.uint8]:
    """Labels `[H, W]` after a dense CRF over a segmentation network's probabilities.

    Classes that reach 0.001 in no pixel are left out, which changes no label and saves their time.

    Args:
        probabilities: `[C, H, W]`, which sum to 1 over the at most 255 classes.
        image: RGB `[H, W, 3]`.
        iterations: of mean-field inference; 10 is usual.
        kernels: pairwise terms.

    Raises:
        ImportError: where `pydensecrf2` is missing.
        ValueError: where the image is of another size.
    """
    if image.shape[:2] != probabilities.shape[1:]:
        raise ValueError(f"scores of {probabilities.shape[1:]} pixels, where the image has {image.shape[:2]}")
    classes = np.flatnonzero(probabilities.max((1, 2)) >= _LEAST)
    if len(classes) == 1:
        return np.full(image.shape[:2], classes[0], np.uint8)
    unary = -np.log(np.maximum(probabilities[classes], 1e-8)).reshape(len(classes), -1).astype(np.float32)
    return classes[_marginals(unary, image, iterations, kernels).argmax(0)].astype(np.uint8)


def import_crf() -> Any:
    """`pydensecrf.densecrf`; an `ImportError` says how to install it."""
    try:
        import pydensecrf.densecrf
    except ImportError as error:
        raise ImportError(
            f"the CRF needs one more package, which exists for Python 3.10 to 3.12: {how_to_install('crf')}"
        ) from error
    return pydensecrf.densecrf


def _marginals(
    unary: NDArray[np.float32], image: NDArray[np.uint8], iterations: int, kernels: Kernels
) -> NDArray[np.float32]:
    """Marginals `[C, H, W]` from energies `[C, H W]`."""
    height, width = image.shape[:2]
    field = import_crf().DenseCRF2D(width, height, len(unary))
    field.setUnaryEnergy(np.ascontiguousarray(unary))
    field.addPairwiseGaussian(sxy=kernels.smooth_width, compat=kernels.smooth_weight)
    field.addPairwiseBilateral(
        sxy=kernels.width,
        srgb=kernels.colour_width,
        rgbim=np.require(image, requirements=["C", "W"]),
        compat=kernels.weight,
    )
    return np.asarray(field.inference(iterations)).reshape(len(unary), height, width)
