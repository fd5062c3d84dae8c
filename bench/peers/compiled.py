"""PyTorch through ``torch.compile``, which compiles the draw, the loss and the reverse step."""

import torch

from ..problem import Batch
from .eager import Eager
from .graph import Graph


class Compiled(Eager):
    """Eager PyTorch whose pieces are compiled; AdamW stays fused.

    Args:
        mode: mode of ``torch.compile``; ``reduce-overhead`` adds its CUDA graphs.
    """

    def __init__(self, problem, device, precision, mode: str = "default"):
        super().__init__(problem, device, precision)
        # Sizes differ from work to work, and each gets code of its own.
        options = {"mode": mode, "dynamic": False}
        torch._dynamo.config.recompile_limit = 64
        self.draw = torch.compile(self.draw, **options)
        self.loss = torch.compile(self.loss, **options)
        self.reverse = torch.compile(self.reverse, **options)
        # CUDA graphs of torch.compile reuse their outputs' memory.
        self.keeps_outputs = mode != "reduce-overhead"

    def step(self, batch: Batch, classify: bool) -> torch.Tensor:
        if not self.keeps_outputs:
            batch = Batch(*(part.clone() for part in batch))
            torch.compiler.cudagraph_mark_step_begin()
        return super().step(batch, classify)

    @torch.no_grad()
    def run_chain(self, chain, x, labels, noisy):
        if self.keeps_outputs:
            return super().run_chain(chain, x, labels, noisy)
        table, features = (part.to(self.device, self.dtype) for part in chain)
        with self.arithmetic():
            for c, feature in zip(table, features, strict=True):
                torch.compiler.cudagraph_mark_step_begin()
                z = torch.randn_like(x) if noisy else torch.zeros_like(x)
                x = self.reverse(x, c, feature, z, labels).clone()
        return x


class CompiledGraph(Compiled, Graph):
    """Compiled pieces, captured in a CUDA graph by hand: the strongest form of PyTorch."""
