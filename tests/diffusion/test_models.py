"""The MLP: the state_dict of existing checkpoints, and the flat form of the kernels."""

import pytest
import torch
from torch import nn

from flashpoint.diffusion import MLP, BlockMLP, ConditionalMLP, UserError, class_table, files
from flashpoint.diffusion.checkpoints import load_mlp, mlp_of_state
from flashpoint.diffusion.models import seeded_mlp
from flashpoint.kernels import MLPShape
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


NETWORKS = {
    "no hidden layer": lambda: MLP(3, 2, ()),
    "one hidden layer": lambda: MLP(3, 2, (7,)),
    "PReLU": lambda: MLP(3, 2, (8, 16, 4)),
    "SiLU": lambda: MLP(3, 2, (64, 128, 128), activation="silu"),
    "ReLU": lambda: MLP(3, 2, (64,), activation="relu"),
    "linear input": lambda: MLP(3, 2, (8, 8, 8), activation="relu", linear_input=True),
    "classic": lambda: BlockMLP(3, 2),
    "only an input layer": lambda: BlockMLP(3, 2, (5,)),
    "conditional": lambda: ConditionalMLP(3, 2, (8, 4), class_features=class_table(5)),
    "sinusoidal classes": lambda: ConditionalMLP(
        3, 2, (8, 4), class_features=class_table(5, "sinusoidal"), activation="relu",
        linear_input=True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_flat_form_computes_the_same_and_goes_back(name):
    model, other = NETWORKS[name](), NETWORKS[name]()
    parameters, shape = model.network()
    x = torch.randn(6, 3)
    inputs = x
    if isinstance(model, ConditionalMLP):
        inputs = torch.cat((x, model.class_features[5].expand(6, -1)), dim=1)
    with torch.no_grad():
        y = reference.mlp(inputs[None], shape.unpack(parameters), shape)[0]
    torch.testing.assert_close(y, model(x))
    assert not torch.equal(other(x), model(x))
    assert torch.equal(other.load_flat(parameters[0])(x), model(x))


@pytest.mark.parametrize("name", NETWORKS)
def test_a_saved_network_opens_as_what_it_was(name, tmp_path):
    model = NETWORKS[name]()
    files.save(tmp_path / "net.pt", model.state_dict())
    activation = model.shape.activation if name == "SiLU" else None
    opened = load_mlp(tmp_path / "net.pt", activation)
    assert type(opened) is type(model)
    assert opened.shape == model.shape
    before, after = model.state_dict(), opened.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_classic_layout_converts_both_ways():
    classic = BlockMLP(3, 2, (6, 6, 6))
    assert list(classic.state_dict()) == [
        "inblock.weight", "inblock.bias", "midblocks.0.linear.weight", "midblocks.0.linear.bias",
        "midblocks.1.linear.weight", "midblocks.1.linear.bias", "outblock.weight", "outblock.bias",
    ]  # fmt: skip
    model, x = classic.to_mlp(), torch.randn(5, 3)
    assert torch.equal(model(x), classic(x))
    back = BlockMLP.from_mlp(model).state_dict()
    assert all(torch.equal(back[key], value) for key, value in classic.state_dict().items())
    with pytest.raises(UserError, match="ReLU and a linear input"):
        BlockMLP.from_mlp(MLP(3, 2, [6]))


def test_the_classic_network_is_a_linear_layer_then_relu_blocks():
    model, x = BlockMLP(3, 2, (6, 5)), torch.randn(4, 3)
    block = model.midblocks[0].linear
    hidden = torch.relu((x @ model.inblock.weight.T + model.inblock.bias) @ block.weight.T
                        + block.bias)  # fmt: skip
    torch.testing.assert_close(model(x), hidden @ model.outblock.weight.T + model.outblock.bias)
    assert BlockMLP(3, 2).shape.widths == (3, 128, 128, 128, 128, 128, 128, 2)


def test_a_learned_class_embedding_is_a_part_of_the_first_layer():
    model = ConditionalMLP(3, 2, [8], class_features=class_table(4))
    x, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 3, 4, 4])
    first = model.model[0]
    embedding = torch.nn.functional.embedding(labels, first.weight[:, 3:].T)  # [6, 8]
    hidden = model.act(x @ first.weight[:, :3].T + first.bias + embedding)
    torch.testing.assert_close(model(x, labels), model.model[2](hidden))
    assert torch.equal(model(x)[4:], model(x, labels)[4:])
    assert model.num_classes == 4


def test_class_tables():
    assert torch.equal(class_table(3), torch.eye(4))
    table = class_table(3, "sinusoidal")
    assert table.shape == (4, 16)
    torch.testing.assert_close(table[:, 0], torch.arange(4).float().sin())
    with pytest.raises(UserError, match="did you mean 'learned'"):
        class_table(3, "learnt")
    with pytest.raises(UserError, match="num_classes must be at least 1"):
        class_table(0)


def test_what_is_no_network_is_named():
    with pytest.raises(UserError, match="no state_dict"):
        mlp_of_state({"a": torch.zeros(3)})
    with pytest.raises(UserError, match="another architecture"):
        mlp_of_state({**MLP(3, 2, [4]).state_dict(), "more": torch.zeros(1)})
    with pytest.raises(UserError, match="activation must be one of"):
        MLP(3, 2, [4], activation="swish")
    with pytest.raises(UserError, match="class_features must be"):
        ConditionalMLP(3, 2, class_features=torch.zeros(1, 4))


def test_a_seeded_model_leaves_the_global_random_state_alone():
    before = torch.get_rng_state()
    a, b, c = (seeded_mlp(MLPShape((3, 8, 2)), seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    x = torch.randn(4, 3)
    assert torch.equal(a(x), b(x))
    assert not torch.equal(a(x), c(x))


@pytest.mark.parametrize("network", [MLP, BlockMLP])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a", 2), "input_dim must be an integer, got 'a'"),
        ((0, 2), "input_dim must be at least 1, got 0"),
        ((3, 2.5), "output_dim must be an integer, got 2.5"),
        ((3, True), "output_dim must be an integer, got True"),
        ((3, 2, 8), "hidden_layers must be widths, got 8"),
        ((3, 2, None), "hidden_layers must be widths, got None"),
        ((3, 2, "88"), "hidden_layers must be an integer, got '8'"),
        ((3, 2, [8, -1]), "hidden_layers must be at least 1, got -1"),
    ],
)
def test_wrong_widths_are_named(network, arguments, message):
    with pytest.raises(UserError, match=message) as error:
        network(*arguments)
    assert "\n" not in str(error.value)


def test_what_cannot_be_written_in_blocks_is_named():
    with pytest.raises(UserError, match="hidden_layers must be at least one width, got none"):
        BlockMLP(3, 2, [])
    for model in (None, torch.nn.Linear(3, 2)):
        with pytest.raises(UserError, match="model must be an MLP, got"):
            BlockMLP.from_mlp(model)
    for flat, given in ((None, "NoneType"), (torch.zeros(3), r"\[3\]")):
        with pytest.raises(UserError, match=rf"flat must be a tensor \[.* got {given}"):
            BlockMLP(3, 2).load_flat(flat)
