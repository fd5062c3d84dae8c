"""Trained networks and the files they live in.

* ``.pt`` and ``.pth``: the plain ``state_dict``, which any PyTorch code can load.
* ``.safetensors``: the weights, with architecture, schedule and standardisation in the metadata.
"""

import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..kernels import MLPShape
from ..kernels.default_state import in_default_state, methods_in_default_state
from . import files
from .compat.classic import BlockMLP
from .data import Standardisation, class_number
from .errors import UserError
from .given import points
from .models import MLP, ConditionalMLP, Perceptron, check_prediction, new_mlp
from .own_networks import is_own, num_classes
from .run_folder import RunFolder
from .sampling import Samples, sample
from .schedules import Schedule, check_schedule, given_schedule

# What is read of a file's metadata; the levels are for other software.
_RECORDED = ("network", "schedule", "prediction", "standardisation", "class_names")


@methods_in_default_state
@dataclass(frozen=True)
class Denoiser:
    """A trained model, ready to draw samples; :func:`load` returns one.

    Args:
        model: the denoiser, which takes (point, timestep feature); or a network of your own, see
            :mod:`.own_networks`.
        schedule: the forward process that it was trained with, which says what it predicts.
        classifier: a classifier of noisy points, which guides the samples.
        standardisation: the map from a user's points to those it was trained on; None for points
            that were trained on as they came.
        class_names: names of the classes, or none.

    Raises:
        ValueError: the model was trained to predict something else than the schedule says.
    """

    model: Any
    schedule: Schedule
    classifier: Any = None
    standardisation: Standardisation | None = None
    class_names: tuple[str, ...] = ()

    def __post_init__(self):
        check_schedule(self.schedule)
        check_prediction(self.model, self.schedule)

    def sample(self, n: int, **options: Any) -> Samples:
        """Draws samples from this model, see :func:`~flashpoint.diffusion.sample`.

        A conditional model takes the ``label`` as an input; any other is guided to it by the
        classifier.

        Args:
            n: number of samples.
            **options: options of :func:`~flashpoint.diffusion.sample`. A ``label`` may be the name
                of a class, or hold the name of each sample's. ``x_T`` is noise as the model sees
                it, ``init`` holds points in the user's units.

        Returns:
            Samples and trajectory in the user's units: float64 with a standardisation, otherwise
            float32.
        """
        if "label" in options:
            options["label"] = self._numbers(options["label"])
        guided = options.get("label") is not None and not _is_conditional(self.model)
        if self.classifier is not None and guided:
            options.setdefault("classifier", self.classifier)
        if self.standardisation is not None and options.get("init") is not None:
            shape = (n, len(self.standardisation.mean))
            init = points("init", options["init"], shape, torch.float64)
            options["init"] = self.standardisation.apply(init)
        drawn = sample(self.model, self.schedule, n, **options)
        if self.standardisation is None:
            return drawn
        return Samples(*map(self.standardisation.undo, drawn))

    def label(self, given: int | str) -> int:
        """Returns the number of the class with this name or number, see :meth:`.Points.label`.

        Raises:
            ValueError: there is no such name; :meth:`sample` checks a number.
        """
        if self.class_names:
            return class_number(given, self.class_names, len(self.class_names))
        try:
            return int(given)
        except ValueError:
            raise UserError(
                f"label must be a number: classes have no names, got {given!r}"
            ) from None

    def _numbers(self, label: Any) -> Any:
        """Returns labels with numbers in place of names; those without any are as they were."""
        if isinstance(label, str):
            return self.label(label)
        several = isinstance(label, (list, tuple, np.ndarray))
        if several and any(isinstance(one, str) for one in label):
            return [self.label(one) for one in label]
        return label

    def save(self, path: str | Path) -> None:
        """Writes the model, as ``.safetensors`` with all but the classifier, or as ``.pt``.

        A ``.pt`` file is the plain ``state_dict``: whoever loads it must know the schedule and the
        standardisation.

        Args:
            path: the file; its suffix says the format.

        Raises:
            ValueError: the suffix is another one, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix == ".safetensors":
            if is_own(self.model):
                raise UserError(
                    f"file {path} must end in .pt: only its code says the architecture of a "
                    f"network of your own, got {type(self.model).__name__}"
                )
            files.write_atomically(path, to_safetensors(self, self.schedule.prediction))
        elif path.suffix == ".pt":
            files.save(path, self.model.state_dict())
        else:
            raise UserError(f"file {path} must end in .safetensors or .pt")


def _is_conditional(model: Any) -> bool:
    """Returns True for a denoiser that takes the class as an input."""
    return num_classes(model) is not None if is_own(model) else isinstance(model, ConditionalMLP)


@in_default_state
def load(
    path: str | Path, *, schedule: Schedule | None = None, activation: str | None = None
) -> Denoiser:
    """Loads a model from the folder of a run, or from a file.

    Args:
        path: a run's folder, with its ``config.json`` and ``checkpoints/``; a folder with
            ``denoiser.safetensors`` and perhaps ``classifier.safetensors``; a ``.safetensors``
            file; or a ``.pt`` or ``.pth`` file.
        schedule: the forward process that the model was trained with, for ``.pt`` files outside a
            run's folder; elsewhere it must be the recorded one. Its ``prediction`` is what the
            network predicts. Its ``time_feature`` is the form in which the network saw t; a warning
            says so where it is left at its default.
        activation: activation of a ``.pt`` file's network, where the weights do not tell; None is
            PReLU where there is a slope and ReLU otherwise.

    Raises:
        ValueError: the path does not exist or holds no model, or the schedule is not known or
            another one than was recorded.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserError(f"path must be a name or a path, got {type(path).__name__}")
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if schedule is not None:
        check_schedule(schedule)
    if path.is_dir():
        return _load_folder(path, schedule, activation)
    return _load_file(path, schedule, activation)


def _load_file(
    path: Path, schedule: Schedule | None, activation: str | None, *, stacklevel: int = 4
) -> Denoiser:
    """Loads a model from a file; the warning names the line ``stacklevel`` calls above."""
    if path.suffix == ".safetensors":
        denoiser = from_safetensors(path.read_bytes(), f"file {path}")
        _check_recorded(schedule, denoiser.schedule, path)
        return denoiser
    if path.suffix not in (".pt", ".pth"):
        raise UserError(f"{path} must be a folder, a .safetensors file or a .pt file (or .pth)")
    run = RunFolder(path.parent.parent)
    config = run.config() if path.parent.name == run.checkpoints.name else None
    standardisation, class_names = None, ()
    if config is not None:
        recorded = given_schedule(**config["schedule"])
        _check_recorded(schedule, recorded, path)
        schedule = recorded
        activation = activation or config.get(path.stem, {}).get("activation")
        standardisation, class_names = (
            standardisation_in(config),
            tuple(config.get("class_names", ())),
        )
    if schedule is None:
        raise UserError(f"schedule must be given: file {path} has none and lies in no run's folder")
    if config is None and schedule.time_feature == "linspace":
        warnings.warn(
            f"file {path} does not say how its network sees a timestep: assumed as "
            "time_feature='linspace', which is linspace(-1, 1, T); with another, samples are wrong",
            stacklevel=stacklevel,
        )
    model = load_mlp(path, activation)
    if config is not None:
        run.check_network(path.stem, model.shape.widths)
    model.prediction = schedule.prediction
    return Denoiser(model, schedule, None, standardisation, class_names)


def standardisation_in(record: Mapping[str, Any]) -> Standardisation | None:
    """Returns the standardisation that a run or a file wrote down."""
    written = record.get("standardisation")
    if written is None:
        return None
    try:
        return Standardisation(**written)
    except TypeError as error:
        raise UserError("the standardisation must hold mean and std") from error


def _check_recorded(given: Schedule | None, recorded: Schedule, path: Path) -> None:
    """Raises :class:`UserError` if a schedule is given that is not the recorded one."""
    if given is not None and given != recorded:
        raise UserError(f"schedule must be that of the training of {path}, {recorded}, got {given}")


def load_mlp(path: Path, activation: str | None = None) -> MLP | BlockMLP:
    """Loads the network of a saved ``state_dict``, in any of the layouts of :func:`mlp_of_state`.

    Args:
        path: the file.
        activation: activation of the network, where the weights do not tell; None is PReLU where
            there is a slope and ReLU otherwise.

    Raises:
        ValueError: the file cannot be read or holds another architecture.
    """
    state = _state_in(files.load(path))
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise UserError(f"file {path} holds no state_dict of an MLP")
    try:
        return mlp_of_state(state, activation)
    except UserError as error:
        raise UserError(f"file {path} holds {error}") from error


def _state_in(content: Any) -> Any:
    """Returns the ``state_dict`` in what other code saves around it or adds to its keys."""
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        return content
    for prefix in ("module.", "_orig_mod."):  # of DataParallel and of torch.compile
        if content and all(str(name).startswith(prefix) for name in content):
            content = {name.removeprefix(prefix): x for name, x in content.items()}
    return content


@torch.random.fork_rng(devices=[])
def mlp_of_state(state: dict[str, Tensor], activation: str | None = None) -> MLP | BlockMLP:
    """Returns the network that a ``state_dict`` belongs to, with its weights.

    Args:
        state: ``state_dict`` of an :class:`MLP`, a :class:`ConditionalMLP` or a :class:`BlockMLP`.
        activation: see :func:`load_mlp`.

    Raises:
        ValueError: there are no weights, or they are of another architecture.
    """
    weights = [x for key, x in state.items() if key.endswith("weight") and x.dim() == 2]
    if not weights:
        raise UserError("no state_dict of an MLP")
    dim, *hidden = (weight.shape[1] for weight in weights)
    out, table = len(weights[-1]), state.get("class_features")
    model: MLP | BlockMLP
    if "inblock.weight" in state:
        model = BlockMLP(dim, out, hidden)
    else:
        activation = activation or ("prelu" if "act.weight" in state else "relu")
        second = state.get("model.1.weight")  # of a layer, or PReLU's slope
        linear_input = second is not None and second.dim() == 2
        shape = MLPShape((dim, *hidden, out), activation, linear_input=linear_input)
        model = new_mlp(shape, table)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(f"another architecture: {' '.join(str(error).split())}") from error
    return model


def _load_folder(folder: Path, schedule: Schedule | None, activation: str | None) -> Denoiser:
    for path in (RunFolder(folder).network_file("denoiser"), folder / "denoiser.safetensors"):
        if path.is_file():
            denoiser = _load_file(path, schedule, activation, stacklevel=5)
            other = path.with_stem("classifier")
            if not other.is_file():
                return denoiser
            with warnings.catch_warnings():  # the denoiser's file has said it
                warnings.simplefilter("ignore", UserWarning)
                classifier = _load_file(other, schedule, activation)
            classifier.model.prediction = None
            return replace(denoiser, classifier=classifier.model)
    raise UserError(
        f"folder {folder} holds no model: neither checkpoints/denoiser.pt nor denoiser.safetensors"
    )


def metadata_of(denoiser: Denoiser, prediction: str | None) -> dict[str, str]:
    """Returns all but the weights as the metadata of a file: JSON by name.

    ``standardisation`` holds mean and std of the user's points x: the network sees
    (x - mean) / std. It is null for points that were trained on as they came.

    ``prediction`` says what the network predicts, and is null for a classifier. ``levels`` holds
    the numbers behind it at each timestep: the network sees signal x_0 + noise eps, and predicts
    target_signal x_0 + target_noise eps.

    Args:
        denoiser: the network, and what is known of it.
        prediction: what it predicts; None if it is a classifier.
    """
    model, map_ = denoiser.model, denoiser.standardisation
    network = {"layout": type(model).__name__, **asdict(model.shape)}
    del network["residual"]  # no layer is: versions that do not know it read the file
    content = {
        "network": network,
        "schedule": asdict(denoiser.schedule),
        "prediction": prediction,
        "standardisation": None if map_ is None else asdict(map_),
        "class_names": denoiser.class_names,
    }
    if prediction is not None:
        content["levels"] = _levels_of(denoiser.schedule)
    return {name: json.dumps(part) for name, part in content.items()}


def _levels_of(schedule: Schedule) -> dict[str, list[float]]:
    """Returns the levels and the target of each timestep [T], with the digits of float32."""
    parts = {"signal": schedule.signal, "noise": schedule.noise}
    parts |= zip(("target_signal", "target_noise"), schedule.target, strict=True)
    return {name: [float(f"{x:.9g}") for x in part.tolist()] for name, part in parts.items()}


def to_safetensors(denoiser: Denoiser, prediction: str | None) -> bytes:
    """Returns the content of a ``.safetensors`` file, all but the weights in its metadata.

    The arguments are those of :func:`metadata_of`.
    """
    tensors = {name: x.contiguous() for name, x in _tensors(denoiser.model).items()}
    return _safetensors().save(tensors, {"format": "pt", **metadata_of(denoiser, prediction)})


def from_safetensors(content: bytes, name: str) -> Denoiser:
    """Returns the network, and what else is known of it, that :func:`to_safetensors` wrote.

    Args:
        content: content of the file.
        name: name of the file, for messages.

    Raises:
        ValueError: the content is damaged, or not written by :func:`to_safetensors`.
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
        record = {key: json.loads(text) for key, text in metadata.items() if key in _RECORDED}
        model = _new_model(record["network"], tensors)
        denoiser = Denoiser(
            model,
            given_schedule(**record["schedule"]),
            standardisation=standardisation_in(record),
            class_names=tuple(record.get("class_names", ())),
        )
        # Files of older versions do not say it: their denoisers predict eps.
        model.prediction = record.get("prediction", denoiser.schedule.prediction)
        check_prediction(model, denoiser.schedule)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{name} describes no network and schedule of this package") from error
    wanted = _tensors(model)
    if _shapes(wanted) != _shapes(tensors):
        raise UserError(f"{name} holds other tensors than its metadata says")
    for key, x in wanted.items():
        x.copy_(tensors[key])
    return denoiser


def _tensors(model: Perceptron) -> dict[str, Tensor]:
    """Returns parameters and buffers, each once: the shared activation has one name here."""
    return {name: x.detach() for name, x in (*model.named_parameters(), *model.named_buffers())}


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: x.shape for name, x in tensors.items()}


@torch.random.fork_rng(devices=[])
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
