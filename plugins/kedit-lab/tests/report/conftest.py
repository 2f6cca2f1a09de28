"""What the tests of the report share: runs that were never made, and a browser."""

import sys
from contextlib import ExitStack
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest


def beside(name):
    """Return a module that lies beside this one; test folders are no packages."""
    spec = spec_from_file_location(
        f"kedit_lab_report_{name}", Path(__file__).with_name(f"{name}.py")
    )
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def made():
    """Return the maker of runs: ``made.two_methods()``, ``made.run(made.cell("rome"))``."""
    return beside("made_runs")


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """Return a headless browser."""
    browsers = beside("browser")
    if browsers.MISSING:
        pytest.skip(f"no browser to look at the report with: {browsers.MISSING}")
    with ExitStack() as held:
        try:
            one = held.enter_context(browsers.browser(tmp_path_factory.mktemp("profile")))
        except browsers.NoBrowserError as error:
            pytest.skip(f"the browser does not start: {error}")
        yield one
