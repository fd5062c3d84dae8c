"""The MLP: the state_dict of existing checkpoints, and the flat form of the kernels."""

import pytest
import torch
from torch import nn

from flashpoint.diffusion import MLP, UserError
from flashpoint.diffusion.models import seeded_mlp
from flashpoint.kernels.mlp import reference


def test_state_dict_has_the_keys_of_existing_checkpoints():
    state = MLP(3, 2, [8, 16]).state_dict()
    assert set(state) == {
        "act.weight", "model.0.weight", "model.0.bias", "model.1.weight", "model.2.weight",
        "model.2.bias", "model.3.weight", "model.4.weight", "model.4.bias",
    }  # fmt: skip
    assert state["act.weight"].data_ptr() == state["model.3.weight"].data_ptr()


def test_a_checkpoint_loads_strictly_and_saves_back_the_same():
    source, target = MLP(3, 5, [4, 6]), MLP(3, 5, [4, 6])
    nn.init.constant_(source.act.weight, -0.53)
    target.load_state_dict(source.state_dict(), strict=True)
    saved, loaded = source.state_dict(), target.state_dict()
    assert list(saved) == list(loaded)
    assert all(torch.equal(saved[key], loaded[key]) for key in saved)


@pytest.mark.parametrize("hidden", [(), (7,), (8, 16, 4)])
def test_flat_form_computes_the_same_and_goes_back(hidden):
    model = MLP(3, 2, hidden)
    parameters, shape = model.network()
    x = torch.randn(6, 3)
    with torch.no_grad():
        y = reference.mlp(x[None], shape.unpack(parameters), shape)[0]
    torch.testing.assert_close(y, model(x))
    other = MLP(3, 2, hidden).load_flat(parameters[0])
    assert torch.equal(other(x), model(x))


def test_a_seeded_model_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    a, b, c = (seeded_mlp((3, 8, 2), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(4, 3)
    assert torch.equal(a(x), b(x))
    assert not torch.equal(a(x), c(x))


def test_wrong_widths_are_named():
    with pytest.raises(ValueError, match="widths must be"):
        MLP(3, 0, [4])
    with pytest.raises(UserError, match="flat must be"):
        MLP(3, 2, [4]).load_flat(torch.zeros(3))
