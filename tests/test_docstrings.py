"""The examples in the docstrings of public names are there, and what they say is what comes out."""

import doctest
import inspect
import sys

import pytest

import semples_plugin
from semples_plugin import BackgroundPrompts, ClassMasks, Preset, SemPLeSRegularizer, functional

PUBLIC = {name: getattr(semples_plugin, name) for name in semples_plugin.__all__ if name != "__version__"}
METHODS = [
    ClassMasks.from_dense,
    ClassMasks.from_pairs,
    ClassMasks.normalized,
    ClassMasks.max_normalized,
    SemPLeSRegularizer.__call__,
    SemPLeSRegularizer.prompt_losses,
    BackgroundPrompts.for_clip,
    BackgroundPrompts.save,
    BackgroundPrompts.load,
    Preset.with_,
    Preset.build_regularizer,
]
FUNCTIONS = [
    value for _, value in inspect.getmembers(functional, inspect.isfunction) if not value.__name__.startswith("_")
]
MODULES = sorted({value.__module__ for value in (functional.similarity, *PUBLIC.values())})
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples_of(value) -> list[doctest.Example]:
    return doctest.DocTestParser().get_examples(value.__doc__ or "")


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_say(name):
    results = doctest.testmod(sys.modules[name], optionflags=OPTIONS)
    assert results.failed == 0
    assert results.attempted > 0 or name not in {PUBLIC[public].__module__ for public in PUBLIC}


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_has_an_example(name):
    assert examples_of(PUBLIC[name])


@pytest.mark.parametrize("function", [*METHODS, *FUNCTIONS], ids=lambda function: function.__qualname__)
def test_what_a_reader_calls_first_has_an_example(function):
    assert examples_of(function)


def test_the_package_shows_its_public_names_alone():
    assert {"functional", "masks", "clip"} <= set(vars(semples_plugin))  # imported by now, and yet
    assert dir(semples_plugin) == sorted(semples_plugin.__all__)
