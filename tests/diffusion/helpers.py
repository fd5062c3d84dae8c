"""Functions that several tests share."""

import torch
from click.testing import CliRunner

from flashpoint.diffusion import states_points
from flashpoint.diffusion.cli import main

STATES = states_points(250)


def flashpoint(*arguments):
    """Runs a command in this process; returns click's result."""
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def smooth(model):
    """Makes the weights smaller, so that the network is as smooth as trained denoisers are."""
    with torch.no_grad():
        for layer in model.linears():
            layer.weight.mul_(0.7)
    return model
