"""Batches of many sizes and layouts need no more compiled kernels than one batch.

Perceptrons have other tiles, so other kernels, for many rows than for few, and in fp16 another
backward kernel for most rows.
"""

import json

import pytest

from .processes import run_compiled

PRELUDE = """
import json
from collections import Counter

import torch
from flashpoint.kernels import Guide, MLPShape, Network, resources
from flashpoint.kernels.mlp import kernel as mlp
from flashpoint.kernels.q_sample import kernel as q_sample
from flashpoint.kernels.reverse_step import kernel as reverse_step
from flashpoint.kernels.sample_chain.kernel import draw_prior, sample_chain

FEW = (1, 2, 15, 16, 17, 63, 64, 65, 100, 128, 1000, 1024, 1999, 2000, 2047, 2048, 2049, 4096, 8448)
MANY = (8449, 9999, 10_000)
MOST = (16_385, 16_500)  # programs do not measure a gradient of y of more than 32,768 numbers
table = torch.zeros(1, 16_500 * 8 + 1)  # batches are cut out of it, aligned or not

def dense(rows, width):
    return table[:, : rows * width].view(1, rows, width)

def misaligned(rows, width):
    return table[:, 1 : 1 + rows * width].view(1, rows, width)

def transposed(rows, width):
    return table[:, : rows * width].view(1, width, rows).mT

def every_second(rows, width):
    return table[:, : 2 * rows * width].view(1, rows, 2 * width)[..., ::2]

def expanded(rows, width):
    return table[:, :1, None].expand(1, rows, width)

def labels(rows, shift):
    return torch.zeros(1, rows + 1, dtype=torch.int64)[:, shift : shift + rows]

def compiled(call, layouts, sizes):
    cases = {f"{layout.__name__} {rows}": lambda rows=rows, layout=layout: call(layout, rows)
             for layout in layouts for rows in sizes}
    launches = resources.launches(90, cases).values()
    print(json.dumps(Counter(launch.kernel for launch in launches)))
"""

PERCEPTRON = """
shape = MLPShape((3, 32, 32, 2))
weights, biases, slope = shape.unpack(torch.zeros(1, shape.num_parameters))
layers = (*weights, *biases, slope)

def call(layout, rows):
    y, saved = mlp.forward(layout(rows, 3), layers, shape, "fp16")
    mlp.backward(layout(rows, 2), saved, shape, "fp16")
"""

CHAIN = """
shape, judge = MLPShape((3, 32, 2)), MLPShape((3, 32, 5))
networks = [Network(torch.zeros(1, shape.num_parameters), shape) for shape in (shape, judge)]
seed = torch.zeros(1, dtype=torch.int64)

def call(layout, rows):
    x = torch.zeros(1, rows, 2)
    draw_prior(x, seed, 0)
    guide = Guide(networks[1], labels(rows, layout is misaligned))
    sample_chain(networks[0], layout(rows, 2), layout(rows, 4), layout(rows, 1), seed, guide,
                 None, 0, 0, "fp16")
"""

ELEMENTWISE = """
def call(layout, rows):
    x, shift = layout(rows, 2), int(layout is misaligned)
    q_sample.q_sample(x, misaligned(30, 5), labels(rows, shift), dense(rows, 2))
    reverse_step.reverse_step(dense(rows, 2), x, dense(1, 4)[0], x, x)
"""


def perceptron(sets, strides, backward_sets):
    """Returns how often each kernel is compiled."""
    return {
        "operand_kernel": 1,
        "forward_kernel": sets * strides,
        "backward_kernel": backward_sets * strides,
        "weight_gradient_kernel": sets,
        "reduce_kernel": 1,
    }


@pytest.mark.parametrize(
    ("call", "layouts", "sizes", "expected"),
    [
        *(
            (PERCEPTRON, layouts, sizes, perceptron(sets, strides, backward_sets))
            for sizes, sets, backward_sets in (
                ("FEW", 1, 1), ("MANY", 1, 1), ("FEW + MANY + MOST", 2, 3)
            )
            for layouts, strides in (
                ("dense, misaligned", 1),
                # Columns one after the other, or any others.
                ("dense, misaligned, transposed, every_second, expanded", 2),
            )
        ),
        (
            CHAIN,
            "dense, misaligned, transposed, every_second",
            "FEW + MANY",
            {
                "prior_kernel": 1,
                "operand_kernel": 2,  # two networks
                "chain_kernel": 2,  # tiles of 64 rows, and of 128 for many
            },
        ),
        (
            ELEMENTWISE,
            "dense, misaligned, transposed, every_second, expanded",
            "FEW + MANY",
            {"noise_kernel": 1, "reverse_kernel": 1},
        ),
    ],
    ids=["dense-few", "any-layout-few", "dense-many", "any-layout-many", "dense", "any-layout",
         "chain", "elementwise"],
)  # fmt: skip
def test_batches_of_other_sizes_need_no_other_kernels(call, layouts, sizes, expected):
    done = run_compiled("-c", f"{PRELUDE}{call}\ncompiled(call, ({layouts},), {sizes})")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == expected
