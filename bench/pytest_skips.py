"""Hooks of pytest that turn a skip into a failure: what is skipped is not checked.

A ``conftest.py`` imports both. Only a test with the mark ``gpu`` may be skipped.
"""

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """Fails a test that is skipped, or expected to fail, without the mark ``gpu``."""
    report = yield
    return report if "gpu" in item.keywords else _failed_if_skipped(report)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    """Fails a file that skips all of its tests while it is imported."""
    report = yield
    return _failed_if_skipped(report)


def _failed_if_skipped(report):
    if report.skipped:
        report.outcome = "failed"
        vars(report).pop("wasxfail", None)  # with it pytest does not count the failure
        report.longrepr = f"skipped without the mark gpu: {report.longrepr}"
    return report
