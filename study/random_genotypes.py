"""Random architectures, to compare with those that a search has found."""
import random

from engine.flags import UserError
from fair_darts import prune
from genotypes import LAST_NODE, Edge, Genotype


def random_genotype(counts, primitives, seed, accepted=lambda genotype: True, tries=10000):
    """A Genotype of counts[0] and counts[1] edges, each cell drawn uniformly from those
    that a search can leave: at most two edges into a node, none from a node that
    nothing enters; the first of so many `tries` that is `accepted`. Raises UserError."""
    dice = random.Random(seed)
    for _ in range(tries):
        genotype = Genotype(*(random_cell(count, primitives, dice) for count in counts))
        if accepted(genotype):
            return genotype
    raise UserError(f"none of {tries:,} random genotypes is of the kind that is asked for")


def random_cell(count, primitives, dice):
    edges = [(node, source) for node in range(2, LAST_NODE + 1) for source in range(node)]
    while True:
        cell = [Edge(dice.choice(primitives), *edge) for edge in sorted(dice.sample(edges, count))]
        entered = [edge.node for edge in cell]
        if max(map(entered.count, entered)) <= 2 and prune(cell) == cell:
            return cell
