"""Search spaces by name. Each is a module that offers

    PARTS                   the names of its matrices of gates, as in gates.npz
    GENOTYPE, PUBLISHED     the class of its genotypes, and those known by a name
    SEARCH_FLAGS, EVAL_FLAGS  the flags that not all spaces have
    SEARCH_DEFAULTS, EVAL_DEFAULTS  the defaults that it changes, {flag: value}
    CANDIDATES              a dictionary whose keys are the names of all its operations
    RULES                   the settings that the genotype() of its supernet takes
    problem(s, dataset)     what is wrong with the settings `s` of a search, or None
    supernet(s, num_classes, shape, gate)  the network to search, of the settings `s`
    derived(s, genotype, num_classes, shape)  the network that a genotype stands for
    primitives(s), rows(s)  the columns and the number of rows of a matrix of gates
    row_names(count)        what its rows are called in figures
    dominant(gates, primitives)  names of a matrix's dominant operations (Fig. 1, 2)
    kept_edges(gates, edges_per_node, primitives)  (rows, 1), 1: edges that may be kept
    discrete_gates(genotype, gates, primitives)  the gates of a genotype, 0 and 1
    checked(fields)         the genotype of {field: value}; raises ValueError
    from_text(text)         its own text by str() there and back; raises ValueError
    known(genotype)         what is known untrained, {column of metrics.csv: value}
"""
from collections import ChainMap

from spaces import nasbench201, s1, s2

SPACES = {"s1": s1, "s2": s2, "nasbench201": nasbench201}
# Those of all, in the order of the spaces; what is added to one is in here
CANDIDATES = ChainMap(*(space.CANDIDATES for space in reversed(SPACES.values())))


def of_genotype(genotype):
    """The space of a genotype."""
    return next(space for space in SPACES.values() if isinstance(genotype, space.GENOTYPE))


def foreign(space, kind):
    """{flag: the name of a space that has it} of the flags that `space` does not have.
    kind: "SEARCH_FLAGS" or "EVAL_FLAGS"."""
    own = getattr(space, kind)
    return {flag: name for name, other in reversed(SPACES.items())
            for flag in getattr(other, kind) - own}
