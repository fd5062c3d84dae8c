"""Logs of a training: what callbacks are told, and those that write files.

* :mod:`.callbacks`: the protocol.
* :mod:`.tables`: files of CSV and of JSON lines.
* :mod:`.tensorboard`: TensorBoard's own files.
* :mod:`.in_folder`: the logs in the folder of a run.
"""

from .callbacks import Callback, CallbackError, check_callbacks
from .in_folder import OWN_LOGS, check_logs, logs_in
from .tables import CSVLog, JSONLog
from .tensorboard import TensorBoardLog

__all__ = [
    "OWN_LOGS",
    "CSVLog",
    "Callback",
    "CallbackError",
    "JSONLog",
    "TensorBoardLog",
    "check_callbacks",
    "check_logs",
    "logs_in",
]
