"""What a space offers to search, training and figures, and what most have in common."""
import torch

LARGE = 64  # pixels: pictures with longer sides have ImageNet's networks and augmentation


class Space:
    """A space; s: settings of a script. Its gates are matrices, a row an edge or a
    layer, a column an operation. What each has of its own besides:

    PARTS: the names of the matrices of gates, as in gates.npz
    GENOTYPE: the class of its genotypes
    PUBLISHED: {name: value}, where those stand that are known by a name
    CANDIDATES: its keys are the names of all operations
    supernet(s, num_classes, shape, gate): to search, for pictures of `shape` (C, H, W)
    derived(s, genotype, num_classes, shape): the network that a genotype stands for
    genotype(s, gates): of the matrices of gates, by the rules in `s`
    checked(fields): the genotype of {field: value}; a GenotypeError names the edge
    row_names(count): what the rows are called in figures
    discrete_gates(genotype, gates, primitives): its matrices of gates, 0 and 1
    """
    SEARCH_FLAGS = EVAL_FLAGS = frozenset()     # the flags that not all spaces have
    SEARCH_DEFAULTS, EVAL_DEFAULTS = {}, {}     # what it changes of their defaults

    def problem(self, s, dataset):
        """What is wrong with the settings of a search, or None."""

    def primitives(self, s):
        """The columns of a matrix of gates."""
        return s.primitives.split(",")

    def dominant(self, gates, primitives):
        """Names of a matrix's dominant operations: the best of each row, the first of
        equals (Fig. 1)."""
        rows = torch.as_tensor(gates).nan_to_num(-1).tolist()
        return [primitives[row.index(max(row))] for row in rows]

    def kept_edges(self, gates, edges_per_node, primitives):
        """(rows, 1), 1: edges that may be kept."""
        return torch.ones_like(gates[:, :1])

    def known(self, genotype):
        """What is known of it without training: {column of metrics.csv: value}"""
        return {}
