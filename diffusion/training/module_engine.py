"""Training of a user's own network in the loop of :mod:`.engine`: the same draws, rates and update.

The network runs by autograd, eager or compiled; its parameters are views of one flat buffer, which
one call of AdamW updates. On CUDA the steps are captured in a graph if the network allows it.
"""

import copy
import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...kernels import Workspace
from ...kernels.cuda import capture_if_possible, side_stream
from ...kernels.default_state import methods_in_default_state
from ...kernels.philox import child_seed
from ...kernels.q_sample.batches import Batches
from ...kernels.q_sample.reference import Draw, target_and_weight
from ...kernels.reduce_grad.reference import empty_parts
from ...kernels.train_step.reference import label_loss, target_loss
from ..errors import UserError
from ..own_networks import check_differentiable, check_is_own, check_own_network
from .distributed import Ranks
from .engine import GRAPH_STEPS, Engine
from .task import Task

_RANDOM = 3  # stream of what a network draws itself; 0 to 2 are weights, draws and validation


@methods_in_default_state
class ModuleEngine(Engine):
    """Trains one own network, in place; see :mod:`..own_networks` for what it takes and returns.

    The network is in ``train()`` mode. Buffers, such as the statistics of BatchNorm, and parameters
    without gradient are saved with the state as they are. Several ranks start from the network of
    the first one; from then on each has buffers of its own. What the network draws from PyTorch's
    generators, as Dropout does, follows from the task's seed and goes on after
    :meth:`load_state_dict`; the global random state stays as it was.

    Args:
        task: the training.
        module: the network.
        device, ranks: see :class:`.Engine`.
        compile: True runs the network through ``torch.compile``.

    Attributes:
        module: the network being trained.

    Raises:
        ValueError: the module is no such network, or has nothing to train.
    """

    def __init__(
        self,
        task: Task,
        module: nn.Module,
        *,
        device: str | torch.device | None = None,
        ranks: Ranks | None = None,
        compile: bool = False,
    ):
        check_trainable(task, module)
        task.describe(module)
        self.module = module
        super().__init__([task], device=device, ranks=ranks)
        for owner, name, view in self.views():
            getattr(owner, name).data = view
        self._forward: Callable[..., Tensor] = torch.compile(module) if compile else module
        recipe = task.recipe
        self._batches = [
            Batches(self.data, self.seeds, recipe.batch_size, recipe.refresh, first, rows)
            for first, rows in self._chunks
        ]
        self._holds = True  # until a graph turns out not to hold a step
        seed = child_seed(child_seed(task.seed, _RANDOM), self.ranks.rank)
        kinds = {torch.device("cpu"), self.device}
        self._random = {
            kind.type: torch.Generator(kind).manual_seed(seed).get_state() for kind in kinds
        }

    def _initial_parameters(self) -> Tensor:
        self.module.to(self.device)
        if self.ranks.size > 1:
            self._take_first_network()
        self._names = [name for name, p in self.module.named_parameters() if p.requires_grad]
        shapes = [self.module.get_parameter(name).shape for name in self._names]
        self._ends = torch.tensor([shape.numel() for shape in shapes]).cumsum(0).tolist()
        self._shapes = shapes
        trained = [self.module.get_parameter(name).detach().flatten() for name in self._names]
        return torch.cat(trained)[None]

    @torch.no_grad()
    def _take_first_network(self) -> None:
        """Makes all ranks start from the network of the first: each may have drawn its own."""
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            first = tensor.detach().contiguous()
            self.ranks.take_first(first)
            tensor.copy_(first)

    def _new_workspace(self) -> Workspace:
        return Workspace(empty_parts(self.parameters, 1, 1, self.parameters.shape[1] + 2), None, ())

    def views(self, flat: Tensor | None = None) -> Iterator[tuple[nn.Module, str, Tensor]]:
        """Yields owner and name of each trained Parameter, and its view of a flat buffer.

        Args:
            flat: float32 [P]; None is :attr:`parameters`.
        """
        flat = self.parameters[0] if flat is None else flat
        for name, part in zip(self._names, self._parts(flat), strict=True):
            owner, _, own_name = name.rpartition(".")
            yield self.module.get_submodule(owner), own_name, part

    def _parts(self, flat: Tensor) -> list[Tensor]:
        """Returns the part of each Parameter of a flat buffer [P]."""
        starts = [0, *self._ends[:-1]]
        return [
            flat[start:end].view(shape)
            for start, end, shape in zip(starts, self._ends, self._shapes, strict=True)
        ]

    def check_module(self, module: nn.Module) -> None:
        """Raises :class:`UserError` unless it is the network that is trained, whole."""
        if module is not self.module:
            raise UserError("trainer.module must stay the network that it was given, got another")
        names = [name for name, p in module.named_parameters() if p.requires_grad]
        if names != self._names:
            changed = ", ".join(sorted(set(names) ^ set(self._names))) or "another order"
            raise UserError(f"trainer.module must keep its parameters, changed: {changed}")

    def run(self, steps: int, on_step: Callable[[int], None] | None = None) -> None:
        """Trains for so many steps, at most to the end of the recipe.

        Args:
            steps: number of steps.
            on_step: called with the number of steps done after each step, or each graph of them.
        """
        self.check_module(self.module)
        self._trained = [self.module.get_parameter(name) for name in self._names]
        self.module.train()
        super().run(steps, on_step)

    def _advance(self, most: int) -> int:
        with self._own_random_numbers():  # not those of callbacks between the steps
            return super()._advance(most)

    @contextmanager
    def _own_random_numbers(self) -> Iterator[None]:
        """Makes PyTorch's generators go on with this run's numbers while the block runs."""
        on_cuda = self.device.type == "cuda"
        with torch.random.fork_rng(devices=[self.device] if on_cuda else []):
            torch.set_rng_state(self._random["cpu"])
            if on_cuda:
                torch.cuda.set_rng_state(self._random["cuda"], self.device)
            try:
                yield
            finally:
                self._random["cpu"] = torch.get_rng_state()
                if on_cuda:
                    self._random["cuda"] = torch.cuda.get_rng_state(self.device)

    @property
    def _captures(self) -> bool:
        return self.device.type == "cuda" and self._batches[0].fused and self._holds

    def _capture(self) -> None:
        with side_stream() as stream:  # where libraries allocate what a capture must not
            self._do_steps(1)
        self._graph = capture_if_possible(lambda: self._do_steps(GRAPH_STEPS), stream)
        self._holds = self._graph is not None

    def _sums(self, step: Tensor) -> Tensor:
        sums = self.workspace.sums
        sums.zero_()
        for batches in self._batches:
            if batches.rows:
                self._add_sums(batches, *batches.draw(step))
        return sums

    def _add_sums(self, batches: Batches, x_t: Tensor, draw: Draw) -> None:
        """Adds gradient, loss and number of terms of some rows to the sums."""
        given = [x_t[0], draw.t[0].clone()]  # a network may change what it is given
        if draw.condition is not None:
            given.append(draw.condition[0].clone())
        with torch.enable_grad():
            out = self._forward(*given).float()
        loss, grad, count = self._loss(out.detach()[None], batches, draw)
        grads = torch.autograd.grad(out, self._trained, grad[0], allow_unused=True)
        sums = self.workspace.sums[0, 0]
        for part, each in zip(self._parts(sums[:-2]), grads, strict=True):
            if each is not None:  # the network did not use a parameter in this step
                part += each
        sums[-2] += loss[0]
        sums[-1] += count[0] if isinstance(count, Tensor) else count

    def _loss(
        self, out: Tensor, batches: Batches, draw: Draw
    ) -> tuple[Tensor, Tensor, Tensor | int]:
        """Returns the loss [1] of outputs [1, B, ...], its gradient, and the number of terms."""
        task = self.tasks[0]
        outputs = task.points.num_classes if task.classify else task.points.dim
        if out.shape != (1, batches.rows, outputs):
            raise UserError(
                f"model must return [{batches.rows}, {outputs}] for {batches.rows} rows, "
                f"got {list(out.shape[1:])}"
            )
        if task.classify:
            return label_loss(out, batches.labels(draw), draw.live)
        x_0 = batches.clean(draw)
        target, weight = target_and_weight(x_0, self.data.forward_table, draw.t, draw.eps)
        return target_loss(out, target, weight, draw.live)

    def averaged(self, model: int) -> nn.Module:
        """Returns a copy of the network with its averaged weights, in ``eval()`` mode on the CPU.

        Buffers are those of the last step.

        Args:
            model: 0, the number of the one network.
        """
        network = copy.deepcopy(self.module)
        with torch.no_grad():
            for name, part in zip(self._names, self._parts(self.state.ema[model]), strict=True):
                network.get_parameter(name).copy_(part)
        return network.cpu().eval()

    def _kept(self) -> dict[str, Tensor]:
        """Returns what is not trained but belongs to the network: buffers and fixed parameters."""
        fixed = {name: p for name, p in self.module.named_parameters() if not p.requires_grad}
        return fixed | dict(self.module.named_buffers())

    def state_dict(self) -> dict[str, Any]:
        """Returns everything that :meth:`load_state_dict` needs to go on as if never stopped."""
        kept = {name: x.detach().to("cpu", copy=True) for name, x in self._kept().items()}
        random = {kind: state.clone() for kind, state in self._random.items()}
        model = {"model": self._digest(), "buffers": kept, "random": random}
        return {**super().state_dict(), **model}

    def _digest(self) -> Tensor:
        """Returns the digest of names and shapes of all the network's tensors, uint8 [32]."""
        tensors = {**dict(self.module.named_parameters()), **self._kept()}
        text = repr([(name, list(x.shape), name in self._names) for name, x in tensors.items()])
        return torch.tensor([*hashlib.sha256(text.encode()).digest()]).byte()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes back to a saved state.

        Raises:
            ValueError: it is no such state, or that of another network, seed, recipe, schedule or
                number of steps.
        """
        missing = {"model", "buffers", "random"} - set(state)
        if missing:
            raise UserError(
                f"the saved state is none of an own network's training: it lacks {min(missing)}"
            )
        if not torch.equal(state["model"], self._digest()):
            raise UserError(
                "the saved state belongs to a run with another model: names or shapes of its "
                "parameters or buffers differ"
            )
        super().load_state_dict(state)
        with torch.no_grad():
            for name, x in self._kept().items():
                x.copy_(state["buffers"][name])
        self._random |= {kind: x for kind, x in state["random"].items() if kind in self._random}


def check_trainable(task: Task, module: nn.Module) -> None:
    """Raises :class:`UserError` unless a module can be trained for a task."""
    check_is_own("model", module)
    if not any(p.requires_grad for p in module.parameters()):
        raise UserError("model must have parameters to train, got none that requires a gradient")
    if not (task.conditional or task.classify) and getattr(module, "num_classes", None):
        raise UserError(
            "p_uncond must be given in the recipe of a model with num_classes, which takes them"
        )
    points = task.points
    classes = points.num_classes if task.conditional else None
    outputs = points.num_classes if task.classify else points.dim
    check_own_network("model", module, task.schedule, points.dim, outputs, classes)
    check_differentiable("model", module, task.schedule, points.dim, classes)
