"""Eager PyTorch captured in a CUDA graph by hand, so that launches cost the host nothing."""

from ..timing import Runner, from_graph
from .eager import Eager

TRAINING_STEPS = 20  # in one graph


class Graph(Eager):
    """Training steps, and whole chains, as CUDA graphs."""

    def training(self, rows, classify=False):
        return from_graph(super().training(rows, classify).run, TRAINING_STEPS)

    def epoch(self, rows, steps):
        # A permutation cannot be captured, so the rows of an epoch are drawn like fresh ones.
        graph = self.training(rows)
        replays = -(-steps // graph.works)

        def work() -> None:
            for _ in range(replays):
                graph.run()

        return Runner(work)

    def sampling(self, chain, rows, labels=None):
        return from_graph(super().sampling(chain, rows, labels).run, works=1)
