"""JAX, with the whole loop as one ``lax.scan`` under ``jit``, so the host gives one command."""

from functools import partial

import jax
import jax.numpy as jnp
import torch
from jax import lax

from ..problem import EMA_DECAY, LEARNING_RATE, WEIGHT_DECAY
from ..timing import Runner
from .base import Peer

# The most training steps in one scan, and the most rows of all its steps together. A step of a
# large batch takes so long that a scan of a single step costs nothing, and 50 would take too long.
SCAN_STEPS, _SCAN_ROWS = 50, 1_000_000
_BETAS, _EPS = (0.9, 0.999), 1e-8


class JaxScan(Peer):
    """Parameters, optimiser state and random key stay on the device between calls.

    Raises:
        RuntimeError: JAX has no device of this kind.
    """

    def __init__(self, problem, device, precision):
        super().__init__(problem, device, precision)
        self.target = jax.devices("gpu" if device.type == "cuda" else "cpu")[0]
        self.matmul = {"tf32": "tensorfloat32", "fp32": "float32", "half": None}[precision]
        self.points, self.labels = self.put(problem.points.data), self.put(problem.points.labels)
        self.alpha_bar = self.put(problem.schedule.alpha_bar)
        self.features = self.put(problem.schedule.time_features)
        self.start = {
            classify: self.state_of(problem.network(classify)) for classify in (False, True)
        }

    def put(self, tensor: torch.Tensor):
        if tensor.is_floating_point():
            tensor = tensor.float()
        return jax.device_put(tensor.detach().cpu().numpy(), self.target)

    def state_of(self, model):
        """Returns parameters ([weights], [biases], slope), moments, averaged weights, step."""
        linears = [layer for layer in model.model if isinstance(layer, torch.nn.Linear)]
        parameters = (
            [self.put(layer.weight.T) for layer in linears],
            [self.put(layer.bias) for layer in linears],
            self.put(model.act.weight),
        )
        zeros = jax.tree.map(jnp.zeros_like, parameters)
        return parameters, zeros, zeros, parameters, jnp.zeros((), jnp.int32)

    # The functions that JAX traces.

    def network(self, parameters, x):
        weights, biases, slope = parameters
        half = self.precision == "half"
        for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if half:
                x, weight, bias = (part.astype(jnp.bfloat16) for part in (x, weight, bias))
            x = x @ weight + bias
            if layer < len(weights) - 1:
                x = jnp.where(x >= 0, x, slope.astype(x.dtype) * x)
        return x.astype(jnp.float32)

    def loss(self, parameters, batch, classify):
        x_0, label, t, eps = batch
        a = self.alpha_bar[t][:, None]
        x_t = jnp.sqrt(a) * x_0 + jnp.sqrt(1 - a) * eps
        y = self.network(parameters, jnp.concatenate((x_t, self.features[t]), axis=1))
        if classify:
            return -jnp.take_along_axis(jax.nn.log_softmax(y), label[:, None], axis=1).mean()
        return jnp.square(y - eps).mean()

    def step(self, state, batch, classify):
        """Takes a step of AdamW (Loshchilov and Hutter 2019, algorithm 2) and of the average."""
        parameters, first, second, average, count = state
        loss, grad = jax.value_and_grad(self.loss)(parameters, batch, classify)
        count, (b1, b2) = count + 1, _BETAS
        first = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, first, grad)
        second = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, second, grad)
        rate = LEARNING_RATE / (1 - b1**count)

        def updated(p, m, v):
            root = jnp.sqrt(v / (1 - b2**count)) + _EPS
            return p * (1 - LEARNING_RATE * WEIGHT_DECAY) - rate * m / root

        parameters = jax.tree.map(updated, parameters, first, second)
        average = jax.tree.map(lambda a, p: a + (1 - EMA_DECAY) * (p - a), average, parameters)
        return (parameters, first, second, average, count), loss

    def batch_of(self, index, t, key):
        return self.points[index], self.labels[index], t, jax.random.normal(key, (len(t), 2))

    def fresh(self, key, rows):
        keys = jax.random.split(key, 3)
        index = jax.random.randint(keys[0], (rows,), 0, len(self.points))
        t = jax.random.randint(keys[1], (rows,), 0, len(self.alpha_bar))
        return self.batch_of(index, t, keys[2])

    def reverse(self, x, row, labels):
        """Takes one reverse step with the coefficients of x, eps, z and the guidance."""
        c, feature, key = row
        feature = jnp.broadcast_to(feature, (len(x), 1))
        eps = self.network(self.start[False][0], jnp.concatenate((x, feature), axis=1))
        if labels is not None:

            def log_p(x):
                logits = self.network(self.start[True][0], jnp.concatenate((x, feature), axis=1))
                return jnp.take_along_axis(
                    jax.nn.log_softmax(logits), labels[:, None], axis=1
                ).sum()

            eps = eps - c[3] * jax.grad(log_p)(x)
        z = 0.0 if key is None else c[2] * jax.random.normal(key, x.shape)
        return c[0] * x + c[1] * eps + z, None

    # The protocol of a peer.

    def arithmetic(self):
        return jax.default_matmul_precision(self.matmul)

    def losses(self, batches, classify):
        state, found = self.start[classify], []
        step = jax.jit(partial(self.step, classify=classify))
        for batch in batches:
            with self.arithmetic():
                state, loss = step(state, tuple(map(self.put, batch)))
            found.append(float(loss))
        return found

    def end_of(self, chain, x_T, labels):
        labels = None if labels is None else self.put(labels)
        table, features = map(self.put, chain)

        @jax.jit
        def run(x):
            rows = (table, features, None)
            return lax.scan(lambda x, row: self.reverse(x, row, labels), x, rows)[0]

        with self.arithmetic():
            return torch.from_numpy(jax.device_get(run(self.put(x_T))).copy())

    def runner(self, loop, carry, works: int) -> Runner:
        """Returns a runner of ``carry = loop(carry)``, which reuses the memory of the carry."""
        with self.arithmetic():
            loop = jax.jit(loop, donate_argnums=0).lower(carry).compile()
        box = [carry]

        def run() -> None:
            box[0] = loop(box[0])

        return Runner(run, works, lambda: jax.block_until_ready(box[0]))

    def copied(self, classify: bool):
        """Returns a copy of a start whose memory may be donated, and a random key."""
        state = jax.tree.map(jnp.copy, self.start[classify])
        # JAX cannot donate one buffer twice, so the copies are distinct.
        return jax.device_put((state, jax.random.key(0)), self.target)

    def training(self, rows, classify=False):
        steps = max(1, min(SCAN_STEPS, _SCAN_ROWS // rows))

        def loop(carry):
            def body(carry, _):
                state, key = carry
                key, now = jax.random.split(key)
                return (self.step(state, self.fresh(now, rows), classify)[0], key), None

            return lax.scan(body, carry, None, steps)[0]

        return self.runner(loop, self.copied(classify), steps)

    def epoch(self, rows, steps):
        pairs = len(self.points) * len(self.alpha_bar)

        def loop(carry):
            state, key = carry
            key, shuffle, noise = jax.random.split(key, 3)
            order = jax.random.permutation(shuffle, pairs)[: rows * steps].reshape(steps, rows)

            def body(state, row):
                pair, key = row
                index, t = pair % len(self.points), pair // len(self.points)
                return self.step(state, self.batch_of(index, t, key), classify=False)[0], None

            return lax.scan(body, state, (order, jax.random.split(noise, steps)))[0], key

        return self.runner(loop, self.copied(classify=False), 1)

    def sampling(self, chain, rows, labels=None):
        labels = None if labels is None else self.put(labels)
        table, features = map(self.put, chain)

        def loop(carry):
            _, key = carry
            key, start, noise = jax.random.split(key, 3)
            keys = jax.random.split(noise, len(table))
            x = jax.random.normal(start, (rows, 2))
            x, _ = lax.scan(lambda x, row: self.reverse(x, row, labels), x, (table, features, keys))
            return x, key

        carry = jax.device_put((jnp.zeros((rows, 2)), jax.random.key(0)), self.target)
        return self.runner(loop, carry, 1)
