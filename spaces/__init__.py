"""Search spaces by name. Each is a module that offers

    PARTS                   the names of its matrices of gates, as in gates.npz
    GENOTYPE, PUBLISHED     the class of its genotypes, and those known by a name
    SEARCH_FLAGS, EVAL_FLAGS  the flags that are of this space alone
    RULES                   the settings that the genotype() of its supernet takes
    supernet(s, num_classes, shape, gate)  the network to search, of the settings `s`
    derived(s, genotype, num_classes, shape)  the network that a genotype stands for
    primitives(s), rows(s)  the columns and the number of rows of a matrix of gates
    dominant(gates, primitives)  names of the dominant operations of one matrix (Fig. 1, 2)
    kept_edges(gates, edges_per_node, primitives)  (rows, 1), 1 for the edges that may be kept
    discrete_gates(genotype, gates, primitives)  the gates as a genotype has them, 0 and 1
    checked(fields)         the genotype of {field: value}; raises ValueError
"""
from spaces import s1, s2

SPACES = {"s1": s1, "s2": s2}


def of_genotype(genotype):
    """The space of a genotype."""
    return next(space for space in SPACES.values() if isinstance(genotype, space.GENOTYPE))
