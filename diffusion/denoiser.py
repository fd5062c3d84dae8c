"""A trained denoiser together with what it was trained for, and the files it lives in."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..kernels import MLPShape
from . import files
from .errors import UserError
from .models import BlockMLP, ConditionalMLP, Perceptron, new_mlp
from .sampling import Samples, sample
from .schedules import Schedule


@dataclass(frozen=True)
class Denoiser:
    """A trained model, ready to draw samples; what :func:`load` returns.

    Args:
        model: predicts the noise of (point, timestep feature).
        schedule: that it was trained with.
        classifier: of noisy points, if there is one to guide with.
    """

    model: Perceptron
    schedule: Schedule
    classifier: Perceptron | None = None

    def sample(self, n: int, **options: Any) -> Samples:
        """:func:`~flashpoint.diffusion.sample` from this model.

        With a ``label`` a conditional model is told it; any other is guided by the classifier.

        Args:
            n: number of samples.
            **options: of :func:`~flashpoint.diffusion.sample`.
        """
        told = isinstance(self.model, ConditionalMLP) or options.get("label") is None
        if self.classifier is not None and not told:
            options.setdefault("classifier", self.classifier)
        return sample(self.model, self.schedule, n, **options)

    def save(self, path: str | Path) -> None:
        """Writes the model, as ``.safetensors`` with schedule and architecture, or as ``.pt``.

        A ``.pt`` file is the plain ``state_dict``: whoever loads it must know the schedule.

        Args:
            path: the format follows from its suffix.

        Raises:
            ValueError: another suffix, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix == ".safetensors":
            files.write_atomically(path, to_safetensors(self.model, self.schedule))
        elif path.suffix == ".pt":
            files.save(path, self.model.state_dict())
        else:
            raise UserError(f"file {path} must end in .safetensors or .pt")


def load(
    path: str | Path, *, schedule: Schedule | None = None, activation: str | None = None
) -> Denoiser:
    """A ready model from the folder of a run, or from a file.

    Args:
        path: a run's folder, with its ``config.json`` and ``checkpoints/``; a folder with
            ``denoiser.safetensors`` and perhaps ``classifier.safetensors``; a ``.safetensors``
            file; or a ``.pt`` file.
        schedule: that the model was trained with, for a ``.pt`` file outside a run's folder.
        activation: of a ``.pt`` file's network, where the weights do not tell; None is PReLU where
            there is a slope and ReLU otherwise.

    Raises:
        ValueError: the path does not exist or holds no model, or the schedule is not known.
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_dir():
        return _load_folder(path)
    if path.suffix == ".safetensors":
        return Denoiser(*from_safetensors(path.read_bytes(), f"file {path}"))
    if path.suffix != ".pt":
        raise UserError(f"{path} must be a folder, a .safetensors file or a .pt file")
    config = _config(path.parent.parent) if path.parent.name == "checkpoints" else None
    if config is not None:
        schedule = schedule or Schedule(**config["schedule"])
        activation = activation or config.get(path.stem, {}).get("activation")
    if schedule is None:
        raise UserError(f"schedule must be given: file {path} has none and lies in no run's folder")
    return Denoiser(files.load_mlp(path, activation), schedule)


def _load_folder(folder: Path) -> Denoiser:
    for suffix, inside in ((".pt", folder / "checkpoints"), (".safetensors", folder)):
        path = inside / f"denoiser{suffix}"
        if path.is_file():
            denoiser, other = load(path), path.with_stem("classifier")
            classifier = load(other).model if other.is_file() else None
            return Denoiser(denoiser.model, denoiser.schedule, classifier)
    raise UserError(
        f"folder {folder} holds no model: neither checkpoints/denoiser.pt nor denoiser.safetensors"
    )


def _config(folder: Path) -> dict[str, Any] | None:
    """The settings of a run; None if the folder is not a run's."""
    path = folder / "config.json"
    if not path.is_file():
        return None
    try:
        config = json.loads(path.read_text())
        Schedule(**config["schedule"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"file {path} does not hold the settings of a run") from error
    return config


def _tensors(model: Perceptron) -> dict[str, Tensor]:
    """Parameters and buffers, each once: the shared activation has one name here."""
    return {name: x.detach() for name, x in (*model.named_parameters(), *model.named_buffers())}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in tensors.items()}


def description(model: Perceptron, schedule: Schedule) -> dict[str, str]:
    """Architecture and schedule as the metadata of a file."""
    network = {"layout": type(model).__name__, **asdict(model.shape)}
    return {"network": json.dumps(network), "schedule": json.dumps(asdict(schedule))}


def to_safetensors(model: Perceptron, schedule: Schedule) -> bytes:
    """Content of a ``.safetensors`` file with architecture and schedule in its metadata."""
    tensors = {name: x.contiguous() for name, x in _tensors(model).items()}
    return _safetensors().save(tensors, {"format": "pt", **description(model, schedule)})


def from_safetensors(content: bytes, name: str) -> tuple[Perceptron, Schedule]:
    """The inverse of :func:`to_safetensors`.

    Args:
        content: of the file.
        name: of the file, for messages.

    Raises:
        ValueError: it is damaged, or not written by :func:`to_safetensors`.
    """
    try:
        tensors = _safetensors().load(content)
    except Exception as error:
        raise UserError(f"{name} is no safetensors file, or damaged") from error
    # The format: eight bytes with the length of a JSON header, the header, the tensors.
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    metadata = header.get("__metadata__", {})
    if not metadata.keys() >= {"network", "schedule"}:
        raise UserError(f"{name} does not say its network and schedule in its metadata")
    try:
        model = _new_model(json.loads(metadata["network"]), tensors)
        schedule = Schedule(**json.loads(metadata["schedule"]))
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name} describes no network and schedule of this package") from error
    wanted = _tensors(model)
    if _shapes(wanted) != _shapes(tensors):
        raise UserError(f"{name} holds other tensors than its metadata says")
    for key, x in wanted.items():
        x.copy_(tensors[key])
    return model, schedule


def _new_model(network: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Perceptron:
    network = dict(network)
    layout, widths = network.pop("layout"), tuple(network.pop("widths"))
    shape = MLPShape(widths, **network)
    if layout == "BlockMLP":
        return BlockMLP(widths[0], widths[-1], widths[1:-1])
    return new_mlp(shape, tensors.get("class_features"))


def _safetensors():
    try:
        import safetensors.torch
    except ImportError:
        raise UserError('safetensors is not installed; pip install "flashpoint[export]"') from None
    return safetensors.torch
