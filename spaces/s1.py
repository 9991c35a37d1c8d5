"""The space S1, DARTS's cells, for what works on any space; its code is the root."""
import torch

import genotypes
from fair_darts import dominant_operations, edge_row, strongest
from model_eval import LARGE, NetworkCIFAR, NetworkImageNet
from model_search import Network
from operations import OPS

PARTS, GENOTYPE, PUBLISHED = Network.parts, genotypes.Genotype, genotypes.PUBLISHED
RULES = "threshold", "edges_per_node", "ops_per_edge"
SEARCH_FLAGS = {"primitives", "edges_per_node", "ops_per_edge", "init_channels", "layers", "nodes"}
EVAL_FLAGS = {"init_channels", "layers", "auxiliary", "auxiliary_weight", "drop_path_prob",
              "drop_path_on"}
SEARCH_DEFAULTS, EVAL_DEFAULTS, CANDIDATES = {}, {}, OPS


def supernet(s, num_classes, shape, gate):
    """For pictures of `shape` (C, H, W)."""
    return Network(s.init_channels, num_classes, s.layers, s.nodes, shape[0], gate, primitives(s))


def derived(s, genotype, num_classes, shape):
    """For pictures of more than 64 pixels the network that DARTS has for ImageNet."""
    if shape[1] > LARGE:
        return NetworkImageNet(genotype, s.init_channels, num_classes, s.layers, s.auxiliary)
    return NetworkCIFAR(genotype, s.init_channels, num_classes, s.layers, s.auxiliary, shape[0])


def problem(s, dataset, ops=OPS):
    for op in primitives(s):
        if op not in ops:
            return (f"--primitives {op} is no operation of --space {s.space}; choose from "
                    f"{', '.join(ops)}")
    if dataset == "imagenet" and s.image_size > LARGE:
        return (f"the cells of {s.space} are searched on pictures of {LARGE} pixels or fewer, not "
                f"{s.image_size}: give --space s2 or --image_size 32")


def primitives(s):
    return s.primitives.split(",")


def rows(s):
    return s.nodes * (s.nodes + 3) // 2


def row_names(count):
    return [f"{source} → {node}" for node in range(2, count + 2)
            for source in range(node)][:count]


def dominant(gates, primitives):
    return [edge.op for edge in dominant_operations(gates, primitives)]


def kept_edges(gates, edges_per_node, primitives):
    kept = torch.zeros_like(gates[:, :1])
    for edge, _ in strongest(gates, edges_per_node, primitives=primitives):
        kept[edge_row(edge.node, edge.source)] = 1
    return kept


def discrete_gates(genotype, gates, primitives):
    found = [torch.zeros_like(matrix) for matrix in gates]
    for matrix, edges in zip(found, genotype):
        for op, node, source in edges:
            matrix[edge_row(node, source), primitives.index(op)] = 1
    return found


def known(genotype):
    return {}
