"""The published numbers: a table for each grid, with a row for each data set.

A dash stands for a number that nobody published.
"""

Row = tuple[float | None, ...]

_FIVE_SETS = ("moons", "circles", "blobs", "manycircles", "helix")


def _table(text: str) -> dict[str, Row]:
    """Reads rows of ``name number number ...``."""
    rows = (line.split() for line in text.strip().splitlines())
    return {name: tuple(map(_number, numbers)) for name, *numbers in rows}


def _number(text: str) -> float | None:
    return None if text == "-" else float(text)


# T = 10, 50, 100, 150, 200, 500
TIMESTEPS_EMD = _table("""
    moons       39.99 28.95 27.40 29.64 30.55 44.90
    circles     34.60 31.48 33.24 34.41 38.62 42.04
    blobs       88.78 43.69 20.08 18.36 17.17 19.83
    manycircles 33.65 26.41 27.77 27.98 30.98 30.34
    helix       56.00 59.33 57.15 56.13 58.87 60.49
""")
TIMESTEPS_NLL: dict[str, Row] = {
    name: (None, None, None, None, nll, None)
    for name, nll in zip(_FIVE_SETS, (0.94, 1.01, 0.01, 0.54, 1.53), strict=True)
}

# (1e-4, 0.02), (1e-3, 0.2), (1e-5, 0.002), (1e-5, 0.02), (1e-4, 0.2), (1e-5, 0.2)
BETAS_EMD = _table("""
    moons       30.55 35.57 34.76 30.48 33.48 33.62
    circles     38.62 38.03 33.03 38.36 36.52 37.45
    blobs       17.17 20.35 62.98 17.17 19.59 19.62
    manycircles 30.98 28.75 26.55 31.82 29.40 29.92
    helix       58.87 56.25 57.31 58.29 57.34 58.72
""")

# linear, hyperbolic secant, cosine, scaled linear, sigmoid
SCHEDULES_EMD = _table("""
    sin_5_5  76.6  95.8 103.0 123.0  93.0
    helix   125.7 130.7 144.3 134.3 130.7
""")

# 100, 500, 1000, 2000 epochs
EPOCHS_EMD = _table("""
    sin_5_5 116.6 95.4 83.3 -
    helix   125.7 99.8 87.5 -
""")

# (64), (64, 64), (64, 128, 128), and two larger
COMPLEXITY_EMD = _table("""
    sin_5_5 124.4 114.8 93.2 - -
    helix   120.2 102.8 89.8 - -
""")

# w = 0, 0.25, 0.5, 1, 2, 4
GUIDANCE_EMD = _table("""
    moons       - 27.2 31.8 44.6 63.6 82.6
    circles     - 40.6 40.3 40.7 42.9 56.3
    blobs       - 20.3 26.2 39.3 55.5 77.7
    manycircles - 12.2 14.6 19.0 25.1 34.0
    helix       - 56.8 58.1 63.2 74.7 97.2
""")
GUIDANCE_ACCURACY = _table("""
    moons       - 1.00 1.00 1.00 1.00 1.00
    circles     -  .97  .99 1    1    1
    blobs       -  .95  .98  .99 1    1
    manycircles -  .92  .96  .98 1    1
    helix       -  .73  .76  .82  .88  .94
""")

# SVDD-PM
REWARD_EMD = _table("""
    moons       36.4
    circles     32.2
    blobs       63.1
    manycircles 23.0
    helix       64.2
""")
REWARD_ACCURACY = _table("""
    moons       .961
    circles     .976
    blobs       .831
    manycircles .889
    helix       .926
""")
