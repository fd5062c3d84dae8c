"""A log for TensorBoard."""

from pathlib import Path
from typing import Any

from ...kernels.default_state import methods_in_default_state
from .. import files
from ..errors import UserError
from .callbacks import Callback

EVENTS = "events.out.tfevents.*"  # names of the writer's files


@methods_in_default_state
class TensorBoardLog(Callback):
    """Writes what ``tensorboard --logdir FOLDER`` shows, each network in a folder of its name.

    Needs TensorBoard: ``pip install "flashpoint[tensorboard]"``. A training that goes on hides what
    an earlier process has left of later steps.

    Args:
        folder: the folder.
        overwrite: a new training deletes what the folder holds of the same network.

    Raises:
        ValueError: TensorBoard is not installed, or the folder cannot be written to.
    """

    def __init__(self, folder: str | Path, *, overwrite: bool = False):
        check_tensorboard()
        self.folder, self.overwrite = files.make_folder(Path(folder)), overwrite
        self._writer: Any = None

    def on_begin(self, settings: dict[str, Any]) -> None:
        """Opens the writer.

        Raises:
            ValueError: the folder holds another training of this network.
        """
        from torch.utils.tensorboard import SummaryWriter

        network, first = settings["network"], settings["first_step"]
        folder = self.folder / network
        old = list(folder.glob(EVENTS))
        if old and first == 0:
            if not self.overwrite:
                raise UserError(
                    f"folder {folder} holds the log of another {network}; take another folder, "
                    "or overwrite=True"
                )
            files.delete(old)
        self._writer = SummaryWriter(folder, purge_step=first + 1 if first else None)

    def on_log(self, step: int, values: dict[str, float]) -> None:
        """Adds a point to the curve of each number."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def on_end(self) -> None:
        """Closes the writer."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def check_tensorboard() -> None:
    """Raises :class:`UserError` if TensorBoard is not installed."""
    try:
        import torch.utils.tensorboard  # noqa: F401
    except ImportError as error:
        raise UserError(
            'tensorboard is not installed; pip install "flashpoint[tensorboard]"'
        ) from error
