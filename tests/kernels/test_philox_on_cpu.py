"""Random numbers on a CPU: the fast forms give the bits of the plain ones."""

import threading

import pytest
import torch

from flashpoint.kernels.philox import (
    Stream,
    normal_rows,
    normals,
    permute,
    philox4x32,
    random_words,
    walk,
)
from flashpoint.kernels.philox.permutation import domain, plain_permute
from flashpoint.kernels.philox.reference import box_muller
from flashpoint.kernels.philox.rounds import philox_rounds

ROWS = (0, 1, 63, 65, 600, 4096, 20_001)
SEEDS = torch.tensor([2**63 - 1, 0, 2**40 + 3])


def numbers(shape, bits=63):
    """Returns integers of so many bits, int64, the same in each run."""
    generator = torch.Generator().manual_seed(sum(shape) + bits)
    return torch.randint(0, 2**bits - 1, shape, generator=generator)


def plain_words(seed, stream, step, element, words):
    """Returns random words by the plain rounds, one counter written out for each block."""
    element = element.expand(len(seed), -1)[..., None]  # [M, R, 1]
    blocks = (int(stream) << 24) + torch.arange(-(-words // 4))
    step = step[..., None] if isinstance(step, torch.Tensor) else torch.tensor([step])
    counter = torch.broadcast_tensors(element % 2**32, (element >> 32) % 2**32, step, blocks)
    key = torch.stack((seed % 2**32, seed >> 32))[..., None, None]
    return torch.stack(philox_rounds(counter, key)).permute(1, 2, 3, 0).flatten(2)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("models", [1, 3])
@pytest.mark.parametrize("stream", [Stream.DRAW, Stream.CLASS])
def test_words_are_those_of_the_plain_rounds(rows, models, stream):
    seed = SEEDS[:models]
    elements = torch.arange(rows), numbers((rows,)), numbers((models, rows)), -numbers((rows,))
    steps = 0, 2**32 - 1, torch.tensor(7), torch.tensor([9]), numbers((models, rows), 32)
    for element in elements:
        for step in (*steps, numbers((models, 1), 32)):
            got = random_words(seed, stream, step, element, 7)
            assert torch.equal(got, plain_words(seed, stream, step, element, 7))


@pytest.mark.parametrize("models", [2, 700])
def test_words_of_many_models_are_those_of_the_plain_rounds(models):
    seed, element = numbers((models,)), numbers((models, 5))
    got = random_words(seed, Stream.NOISE, 3, element, 4)
    assert torch.equal(got, plain_words(seed, Stream.NOISE, 3, element, 4))


@pytest.mark.parametrize("shape", [(), (5,), (3, 3), (2, 0), (2, 3, 1)])
def test_keys_may_be_shared_or_of_each_counter(shape):
    counter = numbers((4, *shape), 32)
    for key in (numbers((2,), 32), numbers((2, *shape[-1:]), 32), numbers((2, *shape), 32)):
        got = philox4x32(counter, key)
        assert got.shape == counter.shape
        assert torch.equal(got, torch.stack(philox_rounds(counter, key)))


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("dim", [0, 1, 2, 3, 7])
def test_normals_are_those_of_the_plain_form(rows, dim):
    words = random_words(SEEDS, Stream.PRIOR, 0, numbers((rows,)), 8)
    for some in (words, words.contiguous(), words.transpose(0, 1)):
        assert torch.equal(normals(some, dim), box_muller(some[..., : dim + dim % 2], dim))
    assert torch.equal(normals(words), box_muller(words, 8))


def test_the_default_dtype_changes_nothing():
    want = normal_rows(3, Stream.PRIOR, 0, torch.arange(65), 3)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(normal_rows(3, Stream.PRIOR, 0, torch.arange(65), 3), want)
    finally:
        torch.set_default_dtype(torch.float32)


def test_normals_of_every_cell_are_those_of_the_plain_form():
    for start in range(0, 2**24, 2**20):
        cells = torch.arange(start, start + 2**20) << 8
        words = torch.stack((cells, cells.flip(0) ^ (5 << 20)), dim=-1)
        assert torch.equal(normals(words), box_muller(words, 2))


def test_threads_draw_what_each_would_alone():
    def draw(thread):
        for _ in range(20):
            drawn[thread].append(normal_rows(thread, Stream.DRAW, 1, torch.arange(3000), 2))

    drawn = [[] for _ in range(4)]
    threads = [threading.Thread(target=draw, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for thread, results in enumerate(drawn):
        want = normal_rows(thread, Stream.DRAW, 1, torch.arange(3000), 2)
        assert len(results) == 20
        assert all(torch.equal(result, want) for result in results)


def test_a_transform_sees_the_plain_form():
    rows = torch.arange(5)

    def draw(step):
        return normal_rows(torch.tensor([3]), Stream.DRAW, step, rows, 2)

    steps = torch.tensor([[1], [2]])
    want = torch.stack([draw(step) for step in steps])
    assert torch.equal(torch.func.vmap(draw)(steps), want)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("n", [1, 2, 65, 2**20 + 1, 2**62])
@pytest.mark.parametrize("models", [1, 3])
def test_orders_are_those_of_the_plain_form(rows, n, models):
    keys = numbers((models, 8), 32)
    sizes = [max(1, n - 5 * model) for model in range(models)]
    index = torch.stack([numbers((rows,)) % size for size in sizes])
    domains = [domain(size) for size in sizes]
    want = plain_permute(index, domains, keys)
    assert torch.equal(walk.permute(index, domains, keys), want)
    seed, epoch = SEEDS[:models], torch.arange(models)[:, None]
    keys = random_words(seed, Stream.ORDER, epoch, torch.arange(2), 4).flatten(1)
    assert torch.equal(permute(index, sizes, seed, epoch), plain_permute(index, domains, keys))
