"""Networks and a recorder for tests of the perceptron's operators."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WIDTHS = (3, 5, 4, 2)


class Recorder(TorchDispatchMode):
    """Records the names of the operators that run, and the precisions of flashpoint::mlp."""

    def __init__(self):
        super().__init__()
        self.names, self.precisions = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(func._schema.name)
        if func is torch.ops.flashpoint.mlp.default:
            self.precisions.append(args[7])
        return func(*args, **(kwargs or {}))
