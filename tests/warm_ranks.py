"""Ranks of a run in warm processes, which find each other as torchrun lets them."""

import os
import time
from contextlib import ExitStack
from datetime import timedelta

from torch.distributed import TCPStore

from . import warm_python


def run_ranks(number, arguments, cwd=None, env=None, timeout=300):
    """Runs a program on several ranks; returns of each what subprocess.run would.

    When one fails, the others are told to stop, as torchrun does.
    """
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False,
                     timeout=timedelta(seconds=timeout))  # fmt: skip
    shared = (os.environ if env is None else env) | {
        "WORLD_SIZE": str(number), "LOCAL_WORLD_SIZE": str(number), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
    }  # fmt: skip
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                warm_python.Popen(arguments, cwd, shared | {"RANK": str(n), "LOCAL_RANK": str(n)})
            )
            for n in range(number)
        ]
        end = time.monotonic() + timeout
        # What they print until then fits into the buffers of their streams.
        while any(rank.poll() is None for rank in ranks) and time.monotonic() < end:
            if any(rank.returncode for rank in ranks):
                for rank in ranks:
                    rank.terminate()
                break
            time.sleep(0.05)
        return [warm_python.finished(rank, max(0, end - time.monotonic())) for rank in ranks]
