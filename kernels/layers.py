"""This folder as a kernel for Hugging Face's ``kernels`` package.

``metadata.json`` makes the folder a build variant that ``LocalLayerRepository`` loads, and here are
its layers. Each is a ``forward`` without state that ``kernelize`` puts in place of a module's own::

    perceptron = LocalLayerRepository(Path("kernels"), layer_name="FusedPerceptron")
    with use_kernel_mapping({"FusedPerceptron": {"cuda": perceptron}}):
        kernelize(model, mode=Mode.TRAINING | Mode.TORCH_COMPILE)
"""

from torch import Tensor, nn

from ._perceptrons import run_layers

__all__ = ["FusedPerceptron"]


class FusedPerceptron(nn.Module):
    """For an ``nn.Sequential`` of Linear layers with one kind of activation between them.

    Should the layers not be such a perceptron, or one that the kernels do not cover, they run one
    by one.
    """

    can_torch_compile = True
    has_backward = True

    def forward(self, x: Tensor) -> Tensor:
        """y [..., out] of x [..., in]."""
        # self is the Sequential that is kernelized.
        return run_layers(self, x)  # type: ignore[arg-type]
