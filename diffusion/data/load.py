"""Points of a user's file."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ...kernels.default_state import in_default_state
from ..errors import UserError
from .columns import listed
from .labels import alike, numbered
from .points import Points
from .reading import read_content
from .standardisation import Standardisation

_FAR, _SMALL = 5.0, 0.2  # beyond these, means and standard deviations are not of order one


@in_default_state
def load_points(
    path: str | Path,
    labels: str | None = None,
    standardise: bool | Standardisation = False,
    say: Callable[[str], None] = print,
) -> Points:
    """Reads a point cloud from a file.

    ``.pt`` and ``.npz`` hold points under one of the keys data, points, samples, X, x and arr_0,
    and labels under label, labels, class, classes, target, targets or y; ``.pt`` may hold a tensor,
    an array or a pair of them too. ``.npy`` holds an array [N, d], or one with named fields.
    ``.csv``, ``.tsv`` and ``.txt`` hold one point per line, with or without a header, between
    commas, semicolons, tabs or spaces. A column of one of the names above holds labels, but y is a
    coordinate beside x. Labels are optional everywhere. They are whole numbers or words; those that
    are not 0, 1, ... become the names of the classes, in ascending order. ``.pt`` and ``.npz`` may
    hold names for labels 0, 1, ... under the key class_names.

    Args:
        path: the file; its suffix says its format.
        labels: column, or key, of the labels; ``none`` for no labels; None finds it by its name.
        standardise: maps the points to mean 0 and standard deviation 1 in each dimension, before
            they are rounded to float32; or the map to use.
        say: called with a line of text about what was taken for what.

    Raises:
        ValueError: the file is missing, of another type, unreadable, its content is no point
            cloud (see :class:`Points`) or may be read in two ways.
    """
    if not isinstance(standardise, (bool, Standardisation)):
        given = type(standardise).__name__
        raise UserError(f"standardise must be True, False or a Standardisation, got {given}")
    content = read_content(path, labels)
    path = Path(path)
    data, chosen = torch.from_numpy(content.data), None
    names: tuple[str, ...] = ()
    lines = [content.taken] if content.taken else []
    if content.labels is not None:
        known = content.class_names
        chosen, names = numbered(content.labels, path.name, content.where, known)
        if names and not known:
            lines.append(f"classes {listed(names)}")
        lines += [f"classes {' and '.join(group)} differ in case alone" for group in alike(names)]
    # Checked in full precision, before any rounding.
    points = Points(data, chosen, names, path.name, columns=content.columns)
    if standardise is False:
        points, more = _as_it_came(points, path.name)
    else:
        by = Standardisation.of(data) if standardise is True else standardise
        points = points.standardised(by)
        more = [f"standardised: {by}; samples are in the file's units"] * (standardise is True)
    for line in [*lines, *more]:
        say(f"{path.name}: {line}")
    return replace(points, name=path.stem)


def _as_it_came(points: Points, file: str) -> tuple[Points, list[str]]:
    """Returns the points in float32, and a warning if they are not of order one."""
    data = points.data
    largest = data.abs().max().item()
    if largest > torch.finfo(torch.float32).max:
        raise UserError(f"{file}: points up to {largest:.3g} do not fit float32: standardise them")
    std, mean = torch.std_mean(data, dim=0, correction=0)
    points = replace(points, data=data.float())
    if _is_of_order_one(mean, std):
        return points, []
    warning = (
        f"warning: the points have {Standardisation.of(data)}; a diffusion model needs points of "
        "order one: standardise them"
    )
    return points, [warning]


def _is_of_order_one(mean: Tensor, std: Tensor) -> bool:
    widest = std.max().item()
    return mean.abs().max().item() <= _FAR and (widest == 0 or _SMALL <= widest <= _FAR)
