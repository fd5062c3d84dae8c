"""A plugin of pytest that runs one part of the tests, so that several processes share them.

``pytest -p flashpoint.bench.pytest_part --part 2/4`` runs every fourth test, from the second. The
processes then compile different kernels at the same time.
"""

import pytest


def pytest_addoption(parser):
    """Adds the option ``--part``."""
    parser.addoption("--part", default="1/1", help="Number of this part / of all parts.")


def pytest_configure(config):
    """Notes that nothing is left out yet."""
    config.empty_part = False


@pytest.hookimpl(trylast=True)  # after the tests with other marks are gone
def pytest_collection_modifyitems(config, items):
    """Keeps the tests of this part."""
    number, parts = map(int, config.getoption("part").split("/"))
    kept = items[number - 1 :: parts]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    config.empty_part = bool(items) and not kept
    items[:] = kept


def pytest_sessionfinish(session):
    """Reports success if this part has no tests, because there are more parts than tests."""
    if session.config.empty_part and session.exitstatus == pytest.ExitCode.NO_TESTS_COLLECTED:
        session.exitstatus = pytest.ExitCode.OK
