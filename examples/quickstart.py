"""Train a diffusion model of five US states, draw samples of each state, and measure them.

python examples/quickstart.py            minutes on two CPU cores
python examples/quickstart.py --quick    seconds, with samples of poor quality
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import flashpoint.diffusion as fd
from flashpoint.diffusion import plots


def train(points: fd.Points, schedule: fd.Schedule, recipe: fd.Recipe, classify: bool) -> fd.MLP:
    """Trains a denoiser, or a classifier of noisy points."""
    trainer = fd.Trainer(points, schedule, recipe, classify=classify)
    while trainer.step < trainer.total_steps:
        trainer.run(trainer.total_steps // 5)
        loss = trainer.losses[-50:].mean().item()
        print(f"  step {trainer.step:5} of {trainer.total_steps}, loss {loss:.4f}")
    return trainer.model()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and samples")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/quickstart"), help="folder of the figure"
    )
    arguments = parser.parse_args()

    points, schedule = fd.states_points(), fd.Schedule(num_steps=500)
    recipes, n, num_steps = fd.RECIPES["fast"], 1000, None
    if arguments.quick:
        recipes = [replace(r, steps=150, batch_size=512, ema_decay=0.9) for r in recipes]
        n, num_steps = 200, 20
    print("denoiser")
    denoiser = train(points, schedule, recipes[0], classify=False)
    print("classifier of noisy points, for guidance")
    classifier = train(points, schedule, recipes[1], classify=True)

    labels = torch.arange(points.num_classes).repeat_interleave(n)
    x = fd.sample(
        denoiser, schedule, len(labels), classifier=classifier, label=labels, num_steps=num_steps
    ).x.cpu()
    groups = [x[labels == label] for label in range(points.num_classes)]
    for label, group in enumerate(groups):
        result = fd.evaluate(group, points, label=label, repeats=10)
        print(f"{points.class_name(label):>10}: {result.purity:.1%} in the state, "
              f"NLL {result.nll:.3f} (the data's own {result.nll_data:.3f})")  # fmt: skip
    arguments.out.mkdir(parents=True, exist_ok=True)
    plots.conditional(groups, points, arguments.out / "samples.png")
    print(f"the picture is {arguments.out / 'samples.png'}")


if __name__ == "__main__":
    main()
