"""What a space offers to search, training and figures, and what most have in common."""
import torch

LARGE = 64  # pixels: pictures with longer sides have ImageNet's networks and augmentation


class Space:
    """A space; s: settings of a script. Its gates are matrices, a row an edge or a
    layer, a column an operation."""
    PARTS = ("normal",)       # the names of the matrices of gates, as in gates.npz
    GENOTYPE = None           # the class of its genotypes
    PUBLISHED = {}            # {name: value}, where those stand that are known by a name
    CANDIDATES = {}           # its keys are the names of all operations
    SEARCH_FLAGS = EVAL_FLAGS = frozenset()     # the flags that not all spaces have
    SEARCH_DEFAULTS, EVAL_DEFAULTS = {}, {}     # what it changes of their defaults

    def problem(self, s, dataset):
        """What is wrong with the settings of a search, or None."""

    def supernet(self, s, num_classes, shape, gate):
        """The network to search, for pictures of `shape` (C, H, W)."""

    def derived(self, s, genotype, num_classes, shape):
        """The network that a genotype stands for."""

    def genotype(self, s, gates):
        """Of the matrices of gates, by the rules in `s`."""

    def checked(self, fields):
        """The genotype of {field: value}. A GenotypeError names the edge."""

    def primitives(self, s):
        """The columns of a matrix of gates."""
        return s.primitives.split(",")

    def row_names(self, count):
        """What the rows are called in figures."""

    def dominant(self, gates, primitives):
        """Names of a matrix's dominant operations: the best of each row, the first of
        equals (Fig. 1)."""
        rows = torch.as_tensor(gates).nan_to_num(-1).tolist()
        return [primitives[row.index(max(row))] for row in rows]

    def kept_edges(self, gates, edges_per_node, primitives):
        """(rows, 1), 1: edges that may be kept."""
        return torch.ones_like(gates[:, :1])

    def discrete_gates(self, genotype, gates, primitives):
        """The matrices of gates, 0 and 1, that stand for a genotype."""

    def known(self, genotype):
        """What is known of it without training: {column of metrics.csv: value}"""
        return {}
