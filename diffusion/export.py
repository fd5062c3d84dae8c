"""Export of networks to files that other software runs.

The exported function is y = f(x, t), or y = f(x, t, label) for a conditional model, with points x
float32 [N, d], t and label int64 [N] and any N. It returns what a denoiser predicts, or the logits
of a classifier. It holds the table of timestep features. Architecture, schedule, prediction and its
levels, standardisation and names of the classes are in the file's metadata. Every export is run,
and compared with the network, before the file is written.
"""

import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from ..kernels.default_state import in_default_state
from . import files
from .checkpoints import Denoiser, from_safetensors, metadata_of, to_safetensors
from .choices import EXPORTS
from .data import Standardisation
from .errors import UserError, check_choice
from .models import ConditionalMLP, Perceptron, check_weights
from .schedules import Schedule, check_schedule

_TOLERANCE = 1e-5  # relative to the largest output, in float32
_CHECKED_ROWS = (1, 7, 256)
_NAMES = ("x", "t", "label")

_Inputs = tuple[Tensor, ...]
_Run = Callable[..., Tensor]


class TimestepModel(nn.Module):
    """A network as a function of points and timesteps, with the table of features inside.

    Args:
        model: takes (point, timestep feature), and labels if it is conditional.
        schedule: the forward process that it was trained with.
    """

    time_features: Tensor

    def __init__(self, model: Perceptron, schedule: Schedule):
        super().__init__()
        self.model = model
        self.register_buffer("time_features", schedule.time_features.float())

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Returns the network's output [N, ...] for x [N, d] at t [N]; label C means no class."""
        inputs = torch.cat((x, self.time_features[t]), dim=1)
        return self.model(inputs) if label is None else self.model(inputs, label)

    def example(self, rows: int) -> _Inputs:
        """Returns random x and t, and labels for a conditional model."""
        generator, model = torch.Generator().manual_seed(rows), self.model
        total, features = self.time_features.shape
        dim = model.shape.widths[0] - features
        t = torch.randint(total, (rows,), generator=generator)
        if not isinstance(model, ConditionalMLP):
            return torch.randn(rows, dim, generator=generator), t
        x = torch.randn(rows, dim - model.class_features.shape[1], generator=generator)
        return x, t, torch.randint(model.num_classes + 1, (rows,), generator=generator)


@in_default_state
def export_model(
    model: Perceptron,
    schedule: Schedule,
    format: str,
    path: str | Path,
    *,
    standardisation: Standardisation | None = None,
    class_names: Sequence[str] = (),
) -> float:
    """Writes a network in another format, after a run of the exported function.

    With a standardisation the network sees (x - mean) / std of a user's points x, and so does
    whoever runs the file: mean and std are in its metadata.

    Args:
        model: a denoiser, or a classifier of noisy points. If it is trained or loaded by this
            package, its ``prediction`` goes into the metadata.
        schedule: the forward process that it was trained with.
        format: ``safetensors``, ``onnx`` (checked with onnxruntime) or ``torch.export``.
        path: the file.
        standardisation: the map from a user's points to those of the network, for the metadata.
        class_names: names of the classes, for the metadata.

    Returns:
        The largest difference of the exported function from the model, relative to the largest
        output where that is more than 1.

    Raises:
        ValueError: the model is none of this package's or its weights are not finite, it predicts
            something else than the schedule says, the format is unknown or its package not
            installed, the exported function differs from the model by more than rounding, or the
            file cannot be written.
    """
    check_choice("format", format, EXPORTS)
    if not isinstance(model, Perceptron):
        raise UserError(
            f"model must be a network of this package, got {type(model).__name__}; torch.export "
            "exports a network of your own"
        )
    check_schedule(schedule)
    check_weights("model", *model.parameters())
    model = copy.deepcopy(model).float()  # files hold float32
    plain = TimestepModel(model, schedule).cpu().eval()
    known = Denoiser(model, schedule, None, standardisation, tuple(class_names))
    if format == "safetensors":
        content = to_safetensors(known, model.prediction)
        read = from_safetensors(content, "the export")
        run: _Run = TimestepModel(read.model, read.schedule)
    else:
        make = _onnx if format == "onnx" else _torch_export
        with _quietly():
            content, run = make(plain, metadata_of(known, model.prediction))
    difference = max(_difference(plain, run, plain.example(rows)) for rows in _CHECKED_ROWS)
    if not difference <= _TOLERANCE:
        raise UserError(
            f"the {format} file would differ from the model by {difference:.1e}, more than "
            f"{_TOLERANCE:.0e}; nothing was written"
        )
    files.write_atomically(Path(path), content)
    return difference


@torch.no_grad()
def _difference(plain: TimestepModel, run: _Run, inputs: _Inputs) -> float:
    want = plain(*inputs)
    return ((run(*inputs) - want).abs().max() / want.abs().max().clamp(min=1)).item()


def _program(plain: TimestepModel) -> torch.export.ExportedProgram:
    inputs, batch = plain.example(2), torch.export.Dim("batch")
    return torch.export.export(plain, inputs, dynamic_shapes=tuple({0: batch} for _ in inputs))


def _torch_export(plain: TimestepModel, metadata: dict[str, str]) -> tuple[bytes, _Run]:
    buffer = io.BytesIO()
    torch.export.save(_program(plain), buffer, extra_files=metadata)
    content = buffer.getvalue()
    return content, torch.export.load(io.BytesIO(content)).module()


def _onnx(plain: TimestepModel, metadata: dict[str, str]) -> tuple[bytes, _Run]:
    try:
        import onnxruntime
        import onnxscript  # noqa: F401  # for torch.onnx
    except ImportError:
        raise UserError('onnx is not installed; pip install "flashpoint[export]"') from None
    names = _NAMES[: len(plain.example(1))]
    program = torch.onnx.export(
        _program(plain), dynamo=True, verbose=False, input_names=names, output_names=["y"]
    )
    assert program is not None  # with dynamo=True the exporter always returns one
    program.model.metadata_props.update(metadata)
    content = program.model_proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(*inputs: Tensor) -> Tensor:
        given = {name: x.numpy() for name, x in zip(names, inputs, strict=True)}
        return torch.from_numpy(session.run(["y"], given)[0])

    return content, run


@contextmanager
def _quietly() -> Iterator[None]:
    """Silences torch's warnings about packages and classes of its exporters."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)
