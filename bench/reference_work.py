"""The yardstick of the nightly gate: plain PyTorch work that never changes.

FROZEN. It imports nothing of flashpoint, so no change of flashpoint can make it faster or slower;
its hash is in every record, and a baseline made with another hash is refused. What is compared from
night to night is the time of ours over the time of this, measured in turn: clocks, drivers and
neighbours move both.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

POINTS, TIMESTEPS, WIDTHS = 5000, 500, (3, 256, 256, 256, 256, 2)


def network(device: torch.device) -> nn.Sequential:
    """The STATES denoiser: linear layers with one shared PReLU."""
    torch.manual_seed(0)
    act, layers = nn.PReLU(), []
    for width_in, width_out in pairwise(WIDTHS):
        layers += [nn.Linear(width_in, width_out), act]
    return nn.Sequential(*layers[:-1]).to(device)


class Training:
    """Training steps of so many rows: draw, noise, forward, backward, AdamW, weight average."""

    def __init__(self, rows: int, device: torch.device):
        self.rows, self.device = rows, device
        self.net = network(device)
        self.parameters = list(self.net.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1e-3, fused=True, capturable=device.type == "cuda"
        )
        self.points = torch.randn(POINTS, 2, device=device)
        beta = torch.linspace(1e-4, 0.02, TIMESTEPS, device=device)
        self.alpha_bar = (1 - beta).cumprod(0)
        self.feature = torch.linspace(-1, 1, TIMESTEPS, device=device)[:, None]

    def step(self) -> Tensor:
        """One step; returns its loss."""
        index = torch.randint(POINTS, (self.rows,), device=self.device)
        t = torch.randint(TIMESTEPS, (self.rows,), device=self.device)
        eps = torch.randn(self.rows, 2, device=self.device)
        a = self.alpha_bar[t, None]
        x_t = a.sqrt() * self.points[index] + (1 - a).sqrt() * eps
        loss = F.mse_loss(self.net(torch.cat((x_t, self.feature[t]), dim=1)), eps)
        for parameter, grad in zip(
            self.parameters, torch.autograd.grad(loss, self.parameters), strict=True
        ):
            parameter.grad = grad
        self.optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 0.002)
        return loss


class Sampling:
    """So many DDPM steps of so many rows."""

    def __init__(self, rows: int, steps: int, device: torch.device):
        self.rows, self.steps, self.device = rows, steps, device
        self.net = network(device)
        self.beta = torch.linspace(1e-4, 0.02, TIMESTEPS, dtype=torch.float64).tolist()
        self.alpha_bar = (1 - torch.tensor(self.beta)).cumprod(0).tolist()

    @torch.no_grad()
    def chain(self) -> Tensor:
        """The last ``steps`` steps of the reverse process, from noise."""
        x = torch.randn(self.rows, 2, device=self.device)
        for t in reversed(range(self.steps)):
            beta, alpha_bar = self.beta[t], self.alpha_bar[t]
            feature = torch.full((self.rows, 1), 2 * t / (TIMESTEPS - 1) - 1, device=self.device)
            eps = self.net(torch.cat((x, feature), dim=1))
            x = (x - beta / (1 - alpha_bar) ** 0.5 * eps) / (1 - beta) ** 0.5
            x = x + beta**0.5 * torch.randn_like(x)
        return x
