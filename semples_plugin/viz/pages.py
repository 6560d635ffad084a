"""Pages of HTML from the templates of this folder."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from semples_plugin.version import __version__


def render(template: str, **content: Any) -> str:
    """The page of a template; what is put into it is escaped, unless it is `Markup`."""
    return _environment().get_template(template).render(version=__version__, **content)


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
    return environment
