"""Layers for Hugging Face's ``kernels`` package, for which this folder is a kernel.

``metadata.json`` makes the folder a build variant that ``LocalLayerRepository`` loads, and this
module holds its layers. Each is a ``forward`` without state, with which ``kernelize`` replaces a
module's own::

    perceptron = LocalLayerRepository(Path("kernels"), layer_name="FusedPerceptron")
    with use_kernel_mapping({"FusedPerceptron": {"cuda": perceptron}}):
        kernelize(model, mode=Mode.TRAINING | Mode.TORCH_COMPILE)
"""

from torch import Tensor, nn

from ._perceptrons import run_layers

__all__ = ["FusedPerceptron"]


class FusedPerceptron(nn.Module):
    """The forward pass of an ``nn.Sequential`` of Linear layers with one kind of activation.

    Layers that form no such perceptron, or one that the kernels do not cover, run one by one.
    """

    can_torch_compile = True
    has_backward = True

    def forward(self, x: Tensor) -> Tensor:
        """Returns y [..., out] of x [..., in]."""
        # Under kernelize, self is the Sequential.
        return run_layers(self, x)  # type: ignore[arg-type]
