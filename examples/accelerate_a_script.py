"""A diffusion script in plain PyTorch, and the two lines that make it faster.

    python examples/accelerate_a_script.py [--quick] [--rows 4096]

The training loop is timed without and with the two lines, in turn, on this device. The kernels are
for NVIDIA GPUs. On a CPU the two lines change only the class of the module, and the printed ratio
should be about 1.
"""

import argparse
import copy
import time

import numpy as np
import torch
from torch import nn

from flashpoint.kernels import accelerate  # the first line

T = 1000


class NoisePredictor(nn.Module):
    """A perceptron with SiLU that reads a point and a sinusoidal embedding of t."""

    def __init__(self, dim: int = 2, embedding: int = 32, width: int = 256):
        super().__init__()
        self.register_buffer("frequency", torch.logspace(0, -4, embedding // 2))
        self.net = nn.Sequential(
            nn.Linear(dim + embedding, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, dim),
        )  # fmt: skip

    def forward(self, x_t, t):
        angle = t[:, None] * self.frequency
        return self.net(torch.cat((x_t, angle.sin(), angle.cos()), dim=1))


def train(model: nn.Module, data: torch.Tensor, steps: int, rows: int) -> list[torch.Tensor]:
    """Trains with algorithm 1 of Ho et al. 2020 and returns the loss of each step."""
    alpha_bar = (1 - torch.linspace(1e-4, 0.02, T, device=data.device)).cumprod(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(steps):
        x_0 = data[torch.randint(len(data), (rows,), device=data.device)]
        t = torch.randint(T, (rows,), device=data.device)
        eps = torch.randn_like(x_0)
        a = alpha_bar[t, None]
        x_t = a.sqrt() * x_0 + (1 - a).sqrt() * eps
        # Half precision on a GPU, because in float32 PyTorch's own layers are fastest.
        with torch.autocast(data.device.type, torch.bfloat16, enabled=data.is_cuda):
            predicted = model(x_t, t)
        loss = nn.functional.mse_loss(predicted.float(), eps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def seconds(model: nn.Module, data: torch.Tensor, steps: int, rows: int) -> float:
    """Returns the seconds of some training steps, with all work finished at both ends."""
    synchronize = torch.cuda.synchronize if data.is_cuda else lambda: None
    synchronize()
    start = time.perf_counter()
    train(model, data, steps, rows)
    synchronize()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer steps and rounds")
    parser.add_argument("--rows", type=int, default=4096, help="rows of a batch")
    arguments = parser.parse_args()
    steps, rounds = (5, 3) if arguments.quick else (50, 15)
    rows = min(arguments.rows, 512) if arguments.quick else arguments.rows
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    angle = torch.rand(5000, device=device) * 2 * torch.pi
    data = torch.stack((angle.cos(), angle.sin()), dim=1)

    before = NoisePredictor().to(device)
    after = copy.deepcopy(before)
    print(accelerate(after))  # the second line

    losses = []
    for model in (before, after):  # this also warms up
        torch.manual_seed(0)
        losses.append(torch.stack(train(model, data, steps, rows)))
    difference = (losses[0] - losses[1]).abs().max().item()
    print(f"largest difference of the loss over {steps} steps: {difference:.1e}")

    times = np.empty((rounds, 2))
    for k in range(rounds):  # A B, then B A: a drift affects both
        for which in ((0, 1), (1, 0))[k % 2]:
            times[k, which] = seconds((before, after)[which], data, steps, rows)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    milliseconds = np.median(times, axis=0) / steps * 1e3
    print(f"{name}, {rows} rows, median of {rounds} rounds of {steps} training steps:")
    print(f"  before {milliseconds[0]:8.3f} ms a step")
    print(f"  after  {milliseconds[1]:8.3f} ms a step")
    print(f"  before / after: {np.median(times[:, 0] / times[:, 1]):.2f}")


if __name__ == "__main__":
    main()
