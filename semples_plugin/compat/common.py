"""Corrections that more than one host needs."""

from __future__ import annotations

from typing import Any


def fill_packaging(module: Any) -> None:
    """`from pkg_resources import packaging`: setuptools no longer brings pkg_resources."""
    import packaging
    import packaging.version

    module.packaging = packaging


def restore_numpys_old_types(numpy: Any) -> None:
    """`np.int` and the like, which were Python's own types."""
    for kind in (int, float, object):
        if kind.__name__ not in numpy.__dict__:
            setattr(numpy, kind.__name__, kind)


def restore_cubic(image: Any) -> None:
    """`Image.CUBIC`, which Pillow calls BICUBIC now."""
    image.CUBIC = image.BICUBIC
