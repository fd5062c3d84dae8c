"""The interfaces of other code: schedulers like those of diffusers, and the classic exercise.

* :mod:`.schedulers`: DDPM and DDIM as scheduler objects with the interface of diffusers.
* :mod:`.classic`: the data set class and the network of the classic STATES exercise.
"""

from .classic import BlockMLP, States
from .schedulers import DDIMScheduler, DDPMScheduler

__all__ = ["BlockMLP", "DDIMScheduler", "DDPMScheduler", "States"]
