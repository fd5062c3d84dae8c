"""Train on several devices, each with its share of every batch.

    torchrun --standalone --nproc-per-node=2 examples/torchrun.py [--quick]
    python examples/torchrun.py --quick     one process, with the same losses up to rounding

Ranks communicate by NCCL on GPUs and by gloo on CPUs. The random numbers of a row depend on its
number in the whole batch, so any number of ranks draws the same rows. The command line does the
same:
``torchrun --nproc-per-node=2 -m flashpoint.diffusion train``.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

import flashpoint.diffusion as fd
from flashpoint.diffusion.training.distributed import join


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and samples")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/torchrun"), help="folder of the results"
    )
    parser.add_argument("--device", help="cpu or cuda; default: the best available")
    arguments = parser.parse_args()
    ranks, device = join(arguments.device)

    points, schedule, recipe = fd.states_points(), fd.Schedule(num_steps=500), fd.RECIPES["fast"][0]
    n, num_steps = 5000, None
    if arguments.quick:
        recipe = replace(recipe, steps=40, batch_size=256, hidden_layers=(64, 64), ema_decay=0.9)
        n, num_steps = 100, 10
    trainer = fd.Trainer(points, schedule, recipe, device=device, ranks=ranks)
    _, rows = ranks.share(recipe.batch_size)
    place = f"rank {ranks.rank} of {ranks.size}, {trainer.device}"
    print(f"{place}: {rows} of {recipe.batch_size} rows")
    trainer.run(trainer.total_steps)

    # All ranks have the same weights now, so one of them continues.
    if ranks.writes:
        print(f"mean loss of the last 20 steps: {trainer.losses[-20:].mean().item():.6f}")
        x = fd.sample(trainer.model(), schedule, n, num_steps=num_steps, device=trainer.device).x
        arguments.out.mkdir(parents=True, exist_ok=True)
        torch.save(trainer.model().state_dict(), arguments.out / "denoiser.pt")
        torch.save(x.cpu(), arguments.out / "samples.pt")
        print(f"weights and {n} samples are in {arguments.out}")
    if torch.distributed.is_initialized():
        ranks.wait()
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
