"""Pages of HTML from the templates of this folder."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from semples_plugin.utils.atomic_files import replacing
from semples_plugin.version import __version__


def render(template: str, **content: Any) -> str:
    """The page of a template; what is put into it is escaped, unless it is `Markup`."""
    return _environment().get_template(template).render(version=__version__, **content)


def write_page(path: str | Path, page: str) -> None:
    """Writes a page; paths that a locale without UTF-8 couldn't decode become what their bytes say.

    Raises:
        OSError: where it can't be written; an older file stays as it was.
    """
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="surrogateescape")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("semples_plugin", "viz"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["slug"] = lambda title: re.sub(r"\W+", "-", title.lower())
    environment.filters["formulas"] = _formulas
    return environment


def _formulas(text: str) -> Markup:
    """`L_prompt^T` and the like, as a formula is set.

    >>> print(_formulas("+ L_prompt^T < L_match"))
    + <i>L</i><sub>prompt</sub><sup>T</sup> &lt; <i>L</i><sub>match</sub>
    """
    html = re.sub(r"\b([A-Z])_([a-z]+)", r"<i>\1</i><sub>\2</sub>", str(escape(text)))
    return Markup(re.sub(r"\^(\w)", r"<sup>\1</sup>", html))
