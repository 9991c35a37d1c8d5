"""How many skips a genotype has by chance: where all operations are worth the same."""
import argparse
import functools

import torch

import fair_darts
from fair_darts import discretize
from spaces import s1
from study import cures

DEVIATION = 0.1  # of alphas: near where they begin


def skip_share(record):
    """The share of skips in the normal cell that argmax derives where alphas are
    exchangeable: independent, normal, the same for all operations. By symmetry 1 /
    operations, unless some of them share a softmax."""
    s = argparse.Namespace(**record.settings)
    if not s.shared_softmax:
        return 1 / len(record.primitives)
    return simulate(tuple(record.primitives), s.gate, s.shared_softmax, s.nodes)


@functools.cache
def simulate(primitives, gate, shared_softmax, nodes, draws=2000, seed=0):
    """The mean over so many `draws` of the alphas of a cell."""
    s = argparse.Namespace(gate=gate, shared_softmax=shared_softmax, space="s1", nodes=nodes,
                           primitives=",".join(primitives))
    gate, generator = cures.gate_of(s), torch.Generator().manual_seed(seed)
    skips = edges = 0
    for _ in range(draws):
        alphas = DEVIATION * torch.randn(s1.rows(s), len(primitives), generator=generator)
        found = gate(alphas) if callable(gate) else fair_darts.gates(alphas, gate)
        cell = discretize(found, found, threshold=0, primitives=primitives).normal
        skips += [edge.op for edge in cell].count("skip_connect")
        edges += len(cell)
    return skips / edges
