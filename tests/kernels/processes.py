"""Python in a process of its own, whose kernels are compiled instead of interpreted."""

import os

from .. import warm_python


def run_compiled(*arguments, timeout=590, **environment):
    """Runs Python with these arguments and environment variables; returns the finished process."""
    variables = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return warm_python.run(arguments, env=variables | environment, timeout=timeout)
