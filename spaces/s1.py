"""The space S1, DARTS's cells, for what works on any space; its code is the root."""
import warnings

import torch

import genotypes
from fair_darts import by_node, discretize, edge_row, prune, strongest
from genotypes import PRIMITIVES, Edge, Genotype
from model_eval import NetworkCIFAR, NetworkImageNet
from model_search import Network
from operations import OPS
from spaces.space import LARGE, Space
from spaces.texts import GenotypeError, checked_edges

LAST_NODE = 5  # of a cell


class S1(Space):
    PARTS, GENOTYPE, PUBLISHED, CANDIDATES = Network.parts, Genotype, vars(genotypes), OPS
    SEARCH_FLAGS = {"primitives", "edges_per_node", "ops_per_edge", "init_channels", "layers",
                    "nodes"}
    EVAL_FLAGS = {"init_channels", "layers", "auxiliary", "auxiliary_weight", "drop_path_prob",
                  "drop_path_on"}

    def problem(self, s, dataset):
        for op in self.primitives(s):
            if op not in self.CANDIDATES:
                return (f"--primitives {op} is no operation of --space {s.space}; choose from "
                        f"{', '.join(self.CANDIDATES)}")
        if dataset == "imagenet" and s.image_size > LARGE:
            return (f"the cells of {s.space} are searched on pictures of {LARGE} pixels or fewer, "
                    f"not {s.image_size}: give --space s2 or --image_size 32")

    def supernet(self, s, num_classes, shape, gate):
        return Network(s.init_channels, num_classes, s.layers, s.nodes, shape[0], gate,
                       self.primitives(s))

    def derived(self, s, genotype, num_classes, shape):
        """For pictures of more than 64 pixels the network of DARTS for ImageNet."""
        if shape[1] > LARGE:
            return NetworkImageNet(genotype, s.init_channels, num_classes, s.layers, s.auxiliary)
        return NetworkCIFAR(genotype, s.init_channels, num_classes, s.layers, s.auxiliary, shape[0])

    def genotype(self, s, gates):
        return discretize(*gates, s.threshold, s.edges_per_node, s.ops_per_edge, self.primitives(s))

    def edges(self, count):
        """(node, source) of the rows of a matrix of gates."""
        return [(node, source) for node in range(2, count + 2) for source in range(node)][:count]

    def row_names(self, count):
        return [f"{source} → {node}" for node, source in self.edges(count)]

    def dominant(self, gates, primitives):
        return [edge.op for edge in dominant_operations(gates, primitives)]

    def kept_edges(self, gates, edges_per_node, primitives):
        kept = torch.zeros_like(gates[:, :1])
        for edge, _ in strongest(gates, edges_per_node, primitives=primitives):
            kept[edge_row(edge.node, edge.source)] = 1
        return kept

    def discrete_gates(self, genotype, gates, primitives):
        found = [torch.zeros_like(matrix) for matrix in gates]
        rows = self.edges(len(found[0]))
        for matrix, edges in zip(found, genotype):
            for op, node, source in edges:
                matrix[rows.index((node, source)), primitives.index(op)] = 1
        return found

    def checked(self, fields):
        nodes = range(2, LAST_NODE + 1)
        return Genotype(*[checked_cell(cell, fields[cell], fields.get(cell + "_concat", nodes))
                          for cell in Genotype._fields])


def checked_cell(cell, items, concat):
    """The edges of a cell, checked and pruned. concat: the nodes of its output."""
    edges = checked_edges(f"{cell} cell", with_nodes(cell, items), OPS, range(2, LAST_NODE + 1))
    kept = prune(edges)
    if not kept:
        reason = "it has no edge that comes from an input" if edges else "it has no edge"
        raise GenotypeError(f"{cell} cell: {reason}")
    for edge in dict.fromkeys(edges):
        where, count = f"{cell} cell, edge {tuple(edge)}: ", edges.count(edge)
        if edge not in kept:
            warnings.warn(where + f"dropped, since nothing enters node {edge.source}")
        elif not isinstance(concat, (list, range)) or edge.node not in concat:
            raise GenotypeError(where + f"{cell}_concat leaves out node {edge.node}, but a cell's "
                                "output is the concatenation of all its nodes")
        elif count > 1:
            warnings.warn(where + f"it is there {count} times, each with weights of its own")
    return kept


def with_nodes(cell, items):
    """Pairs (op, source), two for each node or a list for each, as edges; what is none
    of these as it is. Raises GenotypeError."""
    def are_pairs(edges):  # which in the first code of GDAS have a weight, too
        return isinstance(edges, list) and all(
            isinstance(edge, list)
            and [type(part) for part in edge] in ([str, int], [str, int, float]) for edge in edges)

    if are_pairs(items) and len(items) % 2 == 0:
        items = [items[index:index + 2] for index in range(0, len(items), 2)]
    if not isinstance(items, list) or not all(map(are_pairs, items)):
        return items
    if len(items) > LAST_NODE - 1:
        raise GenotypeError(f"{cell} cell: it has {len(items)} nodes, but here {LAST_NODE - 1} are "
                            "the most")
    return [(op, node, source) for node, edges in enumerate(items, 2) for op, source, *_ in edges]


def dominant_operations(gates, primitives=PRIMITIVES):
    """The dominant operations of one cell type (Fig. 2): a list of Edge. For each
    node the two of the highest gates over its incoming edges; both may be on one."""
    edges = []
    for node, rows in by_node(gates):
        best = rows.flatten().sort(descending=True, stable=True).indices[:2]
        places = [divmod(index, rows.shape[1]) for index in sorted(best.tolist())]
        edges += [Edge(primitives[op], node, source) for source, op in places]
    return edges
