"""The examples in the docstrings of data/ and evaluation/ give what they say."""

import doctest
import importlib

import pytest

MODULES = {
    "data.image_names": 1,
    "data.image_labels": 1,
    "data.cam_files": 2,
    "evaluation.iou": 1,
    "evaluation.folders": 1,
    "evaluation.comparison": 1,
}
"""Modules, and in how many of their docstrings examples stand."""


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(f"semples_plugin.{name}")
    examples = [test for test in doctest.DocTestFinder().find(module) if test.examples]
    assert len(examples) == MODULES[name]
    failed, tried = doctest.testmod(module, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert failed == 0 < tried
