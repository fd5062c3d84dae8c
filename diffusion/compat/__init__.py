"""The interfaces of other code: schedulers like those of diffusers, and the classic exercise.

* :mod:`.schedulers`: DDPM and DDIM as scheduler objects with the interface of diffusers.
* :mod:`.euler`: Euler's and Heun's method.
* :mod:`.dpm_solver`: DPM-Solver and DPM-Solver++.
* :mod:`.flow`: Euler's method for flow matching.
* :mod:`.classic`: the data set class and the network of the classic STATES exercise.
"""

from .classic import BlockMLP, States
from .dpm_solver import DPMSolverMultistepScheduler
from .euler import EulerDiscreteScheduler, HeunDiscreteScheduler
from .flow import FlowMatchEulerDiscreteScheduler
from .schedulers import DDIMScheduler, DDPMScheduler

__all__ = [
    "BlockMLP",
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "States",
]
