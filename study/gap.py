"""The discretisation gap (Insight 2) and its parts."""
import torch
import torch.nn as nn
import torch.nn.functional as F

from engine import processes
from spaces import SPACES
from study import cures

# Columns of metrics.csv, in the epochs in which the gap is measured
GAP = ("soft_accuracy", "discrete_accuracy", "gap_rounding", "gap_edges", "gap_operations")


def rounded(gates, shared):
    """Each gate at the nearer end: 1 from 1/2 up; of a softmax, 1 where it is largest.
    (edges, operations) -> 0 and 1. shared: see cures.sharing."""
    shared = shared.to(gates.device)
    best = gates.masked_fill(~shared, -1).argmax(-1)
    return torch.where(shared, F.one_hot(best, gates.shape[-1]), gates >= 0.5).to(gates)


def encoding_gap(gates, first, present, shared):
    """rho, what Insight 2 is about: mean |gate - rounded gate|, relative to that of the
    `first` gates, of alphas 0: 1/2 for a sigmoid, (2 / K) * (1 - 1 / K) for a softmax
    of K operations. gates, first: (edges, operations); present: which there are."""
    now, before = ((values - rounded(values, shared)).abs()[present].mean()
                   for values in (gates, first))
    return now / before if before else now  # of one operation: 0


@torch.no_grad()
def accuracy(run, network, half, gates=None):
    """Accuracy of the supernet on the Pictures of `half`, in percent."""
    hits = sum(((network(images, gates).argmax(1) == labels).sum()
                for images, labels in run.watched(half.in_order())), half.labels.new_zeros(()))
    return 100 * processes.total(hits).item() / len(half.labels)


@torch.no_grad()
def gap(run, network, half, skips):
    """Columns of GAP: accuracies on `half`, in percent, with the gates as they are and
    with those of the genotype, 0 and 1, and three parts that sum up to the gap. By
    batch statistics: the running ones are of the former gates. {} where a cell of the
    genotype is empty.

    Rounding is measured with all gates and with those of the genotype, the selection of
    edges, then of operations, before and after rounding; each is the mean of both.
    """
    s, soft, primitives = run.s, network.compute_gates(), network.primitives
    genotype = cures.genotype(s, soft)
    if not all(genotype):
        return {}
    hard = [rounded(gates, cures.sharing(s)) for gates in soft]
    edges = [run.space.kept_edges(gates, s.edges_per_node, primitives) for gates in soft]
    discrete = run.space.discrete_gates(genotype, soft, primitives)

    def times(gates, masks):
        return [matrix * mask for matrix, mask in zip(gates, masks)]

    network.train()
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    with (cures.temporarily(norms, momentum=0.0),  # the running statistics stay
          cures.temporarily(skips.skips, dropout=0.0, noise=0.0)):
        g, ge, gs, r, re, d = [accuracy(run, network, half, gates) for gates in (
            soft, times(soft, edges), times(soft, discrete), hard, times(hard, edges), discrete)]
    return dict(zip(GAP, (g, d, ((g - r) + (gs - d)) / 2, ((g - ge) + (r - re)) / 2,
                          ((ge - gs) + (re - d)) / 2)))


@torch.no_grad()
def count_gates(network, s):
    """Columns of metrics.csv: how far the gates have come, skips that argmax would
    derive, and dominant ones (Fig. 2; in S2 Fig. 1)."""
    space, gates, matrices = SPACES[s.space], network.all_gates(), network.compute_gates()
    zeros = torch.zeros_like(torch.cat(list(network.alphas)))
    present = getattr(network, "present", zeros == 0)
    first = network.gates_of(zeros.masked_fill(~present, -torch.inf))
    rho = encoding_gap(torch.cat(matrices), first, present, cures.sharing(s))
    above, below = gates >= s.threshold, gates <= 1 - s.threshold
    return {"gate_min": gates.min().item(), "gate_max": gates.max().item(), "rho": rho.item(),
            "gates_above": int(above.sum()) if s.threshold else None,  # argmax has none
            "gates_below": int(below.sum()) if s.threshold else None,
            "derived_skips": cures.derived_skips(s, matrices),
            **{"skips_" + part: space.dominant(matrix, network.primitives).count("skip_connect")
               for part, matrix in zip(network.parts, matrices)}}
