"""Names of operations, genotypes, and the published architectures.

A genotype is two cells. A cell has two input states, 0 and 1 (the outputs of the two
cells before it), and the nodes 2 to 5. Each edge applies one operation to the state
that it leaves and adds the result to the node that it enters. The cell's output is the
concatenation of its nodes; a node that no edge enters is no part of the cell.

A new architecture: paste what a search, or DARTS, prints after `NAME = `: --arch NAME.
"""
from collections import namedtuple

PRIMITIVES = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5",
              "dil_conv_3x3", "dil_conv_5x5")
MAX_POOL, AVG_POOL, SKIP, SEP_3, SEP_5, DIL_3, DIL_5 = PRIMITIVES
Edge = namedtuple("Edge", "op node source")


class Genotype(namedtuple("Genotype", "normal reduce")):  # two lists of Edge
    def __new__(cls, normal, reduce, **concat):  # which DARTS prints as well; spaces.read checks it
        genotype = super().__new__(cls, normal, reduce)
        genotype.concat = concat
        return genotype


# FairDARTS-a to -g, of xiaomi-automl/FairDARTS. There the normal cells of c and g have one more
# skip connection, which leaves node 3, which no edge enters; the published network ignores it.
FairDARTS_a = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_5, 2, 1), Edge(MAX_POOL, 4, 0), Edge(SEP_3, 5, 0)],
    reduce=[Edge(MAX_POOL, 2, 0), Edge(AVG_POOL, 2, 1), Edge(AVG_POOL, 3, 0), Edge(DIL_5, 3, 1),
            Edge(AVG_POOL, 4, 0), Edge(SEP_5, 4, 1), Edge(SKIP, 5, 0), Edge(SKIP, 5, 1)])
FairDARTS_b = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_3, 2, 1), Edge(SEP_3, 3, 1), Edge(DIL_3, 4, 0),
            Edge(SEP_5, 4, 1), Edge(DIL_5, 5, 1)],
    reduce=[Edge(SKIP, 2, 0), Edge(DIL_3, 2, 1), Edge(SKIP, 3, 0), Edge(DIL_3, 3, 1),
            Edge(MAX_POOL, 4, 0), Edge(SEP_3, 4, 1), Edge(SKIP, 5, 2), Edge(MAX_POOL, 5, 0)])
FairDARTS_c = Genotype(
    normal=[Edge(MAX_POOL, 2, 0), Edge(SEP_5, 2, 1), Edge(DIL_3, 4, 0), Edge(DIL_5, 4, 2),
            Edge(SEP_3, 5, 0)],
    reduce=[Edge(DIL_3, 2, 1), Edge(DIL_5, 2, 0), Edge(DIL_3, 3, 0), Edge(SEP_3, 3, 1),
            Edge(SEP_5, 4, 0), Edge(SEP_5, 4, 3), Edge(SEP_5, 5, 0), Edge(SKIP, 5, 1)])
FairDARTS_d = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_5, 2, 1), Edge(DIL_3, 3, 1), Edge(MAX_POOL, 3, 0),
            Edge(DIL_3, 4, 0), Edge(DIL_3, 4, 1), Edge(SEP_3, 5, 0), Edge(DIL_5, 5, 1)],
    reduce=[Edge(MAX_POOL, 2, 0), Edge(SEP_5, 2, 1), Edge(AVG_POOL, 3, 0), Edge(DIL_5, 3, 2),
            Edge(DIL_3, 4, 3), Edge(AVG_POOL, 4, 0), Edge(AVG_POOL, 5, 0), Edge(SKIP, 5, 3)])
FairDARTS_e = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_3, 2, 1), Edge(DIL_3, 4, 1), Edge(DIL_3, 4, 2),
            Edge(DIL_3, 5, 0), Edge(DIL_5, 5, 1)],
    reduce=[Edge(MAX_POOL, 2, 1), Edge(MAX_POOL, 2, 0), Edge(MAX_POOL, 3, 1), Edge(MAX_POOL, 3, 0),
            Edge(SEP_5, 4, 1), Edge(MAX_POOL, 4, 0), Edge(AVG_POOL, 5, 0), Edge(DIL_5, 5, 1)])
FairDARTS_f = Genotype(
    normal=[Edge(MAX_POOL, 2, 0), Edge(SEP_3, 2, 1), Edge(DIL_3, 3, 1), Edge(SEP_5, 4, 1),
            Edge(SEP_3, 5, 0), Edge(SEP_3, 5, 1)],
    reduce=[Edge(MAX_POOL, 2, 0), Edge(MAX_POOL, 2, 1), Edge(MAX_POOL, 3, 0), Edge(DIL_3, 3, 1),
            Edge(DIL_3, 4, 2), Edge(MAX_POOL, 4, 0), Edge(MAX_POOL, 5, 0), Edge(SEP_3, 5, 1)])
FairDARTS_g = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_3, 2, 1), Edge(SEP_5, 4, 1), Edge(DIL_3, 5, 0),
            Edge(SEP_3, 5, 1)],
    reduce=[Edge(AVG_POOL, 2, 1), Edge(SKIP, 2, 0), Edge(SKIP, 3, 2), Edge(MAX_POOL, 3, 1),
            Edge(SEP_5, 4, 3), Edge(MAX_POOL, 4, 0), Edge(DIL_3, 5, 1), Edge(DIL_3, 5, 4)])

# The architectures that the paper compares with, from their authors' repositories: quark0/darts,
# chenxin061/pdarts, yuhuixu1993/PC-DARTS (PC_DARTS_cifar), SNAS-Series/SNAS-Series (SNAS_mild),
# D-X-Y/AutoDL-Projects (GDAS_V1, whose last edge is another one in the repository of Fair DARTS)
DARTS_V1 = Genotype(
    normal=[Edge(SEP_3, 2, 1), Edge(SEP_3, 2, 0), Edge(SKIP, 3, 0), Edge(SEP_3, 3, 1),
            Edge(SKIP, 4, 0), Edge(SEP_3, 4, 1), Edge(SEP_3, 5, 0), Edge(SKIP, 5, 2)],
    reduce=[Edge(MAX_POOL, 2, 0), Edge(MAX_POOL, 2, 1), Edge(SKIP, 3, 2), Edge(MAX_POOL, 3, 0),
            Edge(MAX_POOL, 4, 0), Edge(SKIP, 4, 2), Edge(SKIP, 5, 2), Edge(AVG_POOL, 5, 0)])
DARTS_V2 = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_3, 2, 1), Edge(SEP_3, 3, 0), Edge(SEP_3, 3, 1),
            Edge(SEP_3, 4, 1), Edge(SKIP, 4, 0), Edge(SKIP, 5, 0), Edge(DIL_3, 5, 2)],
    reduce=[Edge(MAX_POOL, 2, 0), Edge(MAX_POOL, 2, 1), Edge(SKIP, 3, 2), Edge(MAX_POOL, 3, 1),
            Edge(MAX_POOL, 4, 0), Edge(SKIP, 4, 2), Edge(SKIP, 5, 2), Edge(MAX_POOL, 5, 1)])
P_DARTS = Genotype(
    normal=[Edge(SKIP, 2, 0), Edge(DIL_3, 2, 1), Edge(SKIP, 3, 0), Edge(SEP_3, 3, 1),
            Edge(SEP_3, 4, 1), Edge(SEP_3, 4, 3), Edge(SEP_3, 5, 0), Edge(DIL_5, 5, 4)],
    reduce=[Edge(AVG_POOL, 2, 0), Edge(SEP_5, 2, 1), Edge(SEP_3, 3, 0), Edge(DIL_5, 3, 2),
            Edge(MAX_POOL, 4, 0), Edge(DIL_3, 4, 1), Edge(DIL_3, 5, 1), Edge(DIL_5, 5, 3)])
PC_DARTS = Genotype(
    normal=[Edge(SEP_3, 2, 1), Edge(SKIP, 2, 0), Edge(SEP_3, 3, 0), Edge(DIL_3, 3, 1),
            Edge(SEP_5, 4, 0), Edge(SEP_3, 4, 1), Edge(AVG_POOL, 5, 0), Edge(DIL_3, 5, 1)],
    reduce=[Edge(SEP_5, 2, 1), Edge(MAX_POOL, 2, 0), Edge(SEP_5, 3, 1), Edge(SEP_5, 3, 2),
            Edge(SEP_3, 4, 0), Edge(SEP_3, 4, 3), Edge(SEP_3, 5, 1), Edge(SEP_3, 5, 2)])
SNAS = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_3, 2, 1), Edge(SKIP, 3, 0), Edge(DIL_3, 3, 1),
            Edge(SKIP, 4, 1), Edge(SKIP, 4, 0), Edge(SKIP, 5, 0), Edge(SEP_3, 5, 1)],
    reduce=[Edge(MAX_POOL, 2, 0), Edge(MAX_POOL, 2, 1), Edge(MAX_POOL, 3, 1), Edge(SKIP, 3, 2),
            Edge(SKIP, 4, 2), Edge(MAX_POOL, 4, 1), Edge(MAX_POOL, 5, 0), Edge(DIL_5, 5, 2)])
GDAS = Genotype(
    normal=[Edge(SKIP, 2, 0), Edge(SKIP, 2, 1), Edge(SKIP, 3, 0), Edge(SEP_5, 3, 2),
            Edge(SEP_3, 4, 3), Edge(SKIP, 4, 0), Edge(SEP_5, 5, 4), Edge(SEP_3, 5, 3)],
    reduce=[Edge(SEP_5, 2, 0), Edge(SEP_3, 2, 1), Edge(SEP_5, 3, 2), Edge(SEP_5, 3, 1),
            Edge(DIL_5, 4, 2), Edge(SEP_3, 4, 1), Edge(SEP_5, 5, 0), Edge(SEP_5, 5, 1)])
