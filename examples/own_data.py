"""Train on your own points, of any dimension, from a file; sample, measure and save.

    python examples/own_data.py --data FILE    .pt, .npy, .npz, .csv, .tsv or .txt
    python examples/own_data.py --quick        on an example in four dimensions

The command line does the same: ``flashpoint states --data FILE``.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

import flashpoint.diffusion as fd


def write_example(path: Path, n: int = 4000) -> None:
    """Writes two tori in four dimensions as a .csv whose last column is the label."""
    random = np.random.default_rng(0)
    label = random.integers(0, 2, n)
    a, b = random.uniform(0, 2 * np.pi, (2, n))
    radius = np.where(label == 0, 1.0, 2.0)
    x = np.stack((radius * np.cos(a), radius * np.sin(a), np.cos(b), np.sin(b)), axis=1)
    x += 0.05 * random.standard_normal(x.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savetxt(path, np.column_stack((x, label)), delimiter=",", fmt="%.6g",
               header="x,y,z,w,label", comments="")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="file of points; default: an example")
    parser.add_argument("--quick", action="store_true", help="fewer steps and samples")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/own_data"), help="folder of the results"
    )
    arguments = parser.parse_args()
    path = arguments.data
    if path is None:
        path = arguments.out / "tori.csv"
        write_example(path)

    points = fd.load_points(path, standardise=True)
    print(f"{path.name}: {len(points)} points in {points.dim} dimensions, "
          f"{points.num_classes or 'no'} classes")  # fmt: skip
    schedule, recipe = fd.Schedule(num_steps=500), fd.Recipe(hidden_layers=(256, 256, 256))
    if arguments.quick:
        recipe = fd.Recipe(300, (64, 64), batch_size=512, ema_decay=0.95)
    trainer = fd.Trainer(points, schedule, recipe)
    trainer.run(trainer.total_steps)

    n, num_steps = (500, 20) if arguments.quick else (len(points), None)
    x = fd.sample(trainer.model(), schedule, n, num_steps=num_steps).x.cpu()
    print(fd.evaluate(x, points, repeats=10).table())
    arguments.out.mkdir(parents=True, exist_ok=True)
    torch.save(trainer.model().state_dict(), arguments.out / "denoiser.pt")
    np.save(arguments.out / "samples.npy", points.in_units(x).numpy())
    print(f"{n} samples, in the file's own units, are in {arguments.out / 'samples.npy'}")


if __name__ == "__main__":
    main()
