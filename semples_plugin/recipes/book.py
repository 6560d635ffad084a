"""All recipes, by name."""

from __future__ import annotations

from semples_plugin.recipes import clims, fma_wsss, weaktr
from semples_plugin.recipes.recipe import Recipe

_HOSTS = (clims, weaktr, fma_wsss)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for host in _HOSTS for recipe in host.RECIPES}
"""Name -> recipe, in the order of the list."""


def load_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        ValueError: where there is none.
    """
    if name not in RECIPES:
        raise ValueError(f"there is no recipe {name!r}; expected one of {', '.join(RECIPES)}")
    return RECIPES[name]


def all_names() -> set[str]:
    """Every name that a settings file may hold."""
    return {name for recipe in RECIPES.values() for name in (*recipe.paths, *recipe.values)}
