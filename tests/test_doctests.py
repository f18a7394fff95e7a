"""Every example in a docstring of kdjax runs and says what it says, in every module there is."""

import doctest
import importlib
import inspect
import pkgutil
import re

import pytest

import kdjax

MODULES = ["kdjax", *(module.name for module in pkgutil.walk_packages(kdjax.__path__, "kdjax."))]


class _Finder(doctest.DocTestFinder):
    """Finds functions that the shape-checking hook has wrapped, too: the plain finder takes those for foreign."""

    def _from_module(self, module, object):
        return getattr(inspect.unwrap(object), "__module__", None) == module.__name__


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name):
    module = importlib.import_module(name)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    for test in _Finder().find(module, name):
        runner.run(test)
    written = len(re.findall(r"^\s*>>> ", inspect.getsource(module), flags=re.MULTILINE))
    assert runner.tries == written, f"{name} writes {written} examples and {runner.tries} were found and run"
    assert runner.failures == 0, f"{runner.failures} of {name}'s examples fail; the output above says which"
