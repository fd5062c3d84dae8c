"""Sampling with classifier-free guidance, by a denoiser whose weights are new."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ..diffusion import class_table
from ..diffusion.models import seeded_mlp
from ..kernels import Condition, Network, sample_chain
from ..kernels.philox import seed_tensor
from .problem import Chain, Problem
from .timing import Work
from .workloads import CLASSES

_CHECK_ROWS, _CHECK_STEPS = 2048, 20


class ClassifierFree:
    """A conditional denoiser of the shape of the problem's, and its chains on a device."""

    def __init__(self, problem: Problem, device: torch.device):
        self.problem, self.device = problem, device
        self.class_features = class_table(CLASSES)  # [C + 1, E]
        dim, *rest = problem.denoiser.shape.widths
        widths = (dim + self.class_features.shape[1], *rest)
        shape = replace(problem.denoiser.shape, widths=widths)
        self.network = seeded_mlp(shape, 0, self.class_features).network()

    def work(self, chain: Chain, rows: int) -> Work:
        """Returns ``sample_chain`` alone as a work, from given noise, all of it on the device."""
        return self._chain(chain, torch.randn(1, rows, 2, device=self.device))

    def error(self) -> float:
        """Returns the relative error against float64 of a chain without noise."""
        chain = self.problem.chain(_CHECK_STEPS, "ddim", guided=True)
        generator = torch.Generator().manual_seed(0)
        x_T = torch.randn(1, _CHECK_ROWS, 2, generator=generator)
        expected = self._chain(chain, x_T.double())()
        found = self._chain(chain, x_T.to(self.device))().to(expected)
        return ((found - expected).abs().max() / expected.abs().max()).item()

    def _chain(self, chain: Chain, x_T: Tensor) -> Callable[[], Tensor]:
        """Returns a function that computes x_0 [1, rows, 2] as x_T says, its dtype and device."""
        parameters, shape = self.network
        denoiser = Network(parameters.to(x_T), shape)
        table, features = (part[None].to(x_T) for part in chain)
        labels = torch.arange(x_T.shape[1], device=x_T.device)[None] % CLASSES
        condition = Condition(self.class_features[None].to(x_T), labels, free=True)
        seed = seed_tensor(0, x_T.device)
        call = partial(sample_chain, denoiser, x_T, table, features, seed=seed, condition=condition)
        return lambda: call()[0]
