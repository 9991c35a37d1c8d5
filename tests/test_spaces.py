"""The spaces: what is published of them; S1 by its interface; S2: its blocks by hand,
its shapes, its discretisation; NAS-Bench-201: what is known of its cells, its
networks."""
import hashlib
import itertools
from argparse import Namespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import fair_darts
import genotypes
import model_eval
import train_eval
from spaces import SPACES, nasbench201, published, read, s2
from spaces.s2 import ChainGenotype
from speed import accelerate
from test_fair_darts import batch, close, normal

S1, S2, NB201 = SPACES.values()
# of the repr of each, taken when it was equal to the one in its authors' repository, but for what
# genotypes.py says, and for the order of edges in SNAS. GDAS's last edge leaves state 1 in its
# authors' others/GDAS/lib/nas/genotypes.py and lib/nas_infer_model/DXYs/genotypes.py; state 2 in
# Fair DARTS's fairdarts/genotypes.py is a slip
DIGESTS = {
    "FairDARTS_a": "3a0dfc3c5b71ba1a", "FairDARTS_b": "2308130890f01ca6",
    "FairDARTS_c": "504afe1887a9e62f", "FairDARTS_d": "38b41e949f2e970b",
    "FairDARTS_e": "d1c2197b78bcd461", "FairDARTS_f": "090e035d22058e6d",
    "FairDARTS_g": "79912049ccc90e18", "DARTS_V1": "36baa5dd841b7aaa",
    "DARTS_V2": "012db98f2f76d1bd", "P_DARTS": "b3ce39265b165bd0",
    "PC_DARTS": "9e43ad9bc8e92e4d", "SNAS": "25968c822a593c91", "GDAS": "9ef0842baff09bda",
    "FairNAS_A": "6290258a8e156314"}


def test_published_genotypes_are_as_published():
    assert DIGESTS == {name: hashlib.sha256(repr(genotype).encode()).hexdigest()[:16]
                       for name, (_, genotype) in published().items()}
    assert genotypes.GDAS.reduce[-1] == ("sep_conv_5x5", 5, 1)


# ---------------------------------------------------------------- S1

def test_pictures_of_more_than_64_pixels_are_for_other_networks():
    s = Namespace(init_channels=4, layers=3, auxiliary=False)
    with torch.device("meta"):
        kinds = [type(S1.derived(s, genotypes.FairDARTS_a, 10, (3, size, size)))
                 for size in (63, 64, 65)]
    assert kinds == [model_eval.NetworkCIFAR, model_eval.NetworkCIFAR, model_eval.NetworkImageNet]
    for space in S1, NB201:
        s = Namespace(space="x", primitives="skip_connect,avg_pool_3x3", image_size=65)
        assert "64 pixels or fewer" in space.problem(s, "imagenet")
        s.image_size = 64
        assert space.problem(s, "imagenet") is None


@pytest.mark.parametrize("count", [1, 2, 3])
def test_edges_that_are_kept_have_the_best_gates_of_their_node(count):
    gates = torch.rand(9, 7, generator=torch.Generator().manual_seed(0))
    expected = [float(row in sorted(rows, key=lambda row: -max(gates[row]))[:count])
                for rows in ((0, 1), (2, 3, 4), (5, 6, 7, 8)) for row in rows]
    assert S1.kept_edges(gates, count, genotypes.PRIMITIVES).flatten().tolist() == expected


# ---------------------------------------------------------------- S2

@pytest.mark.parametrize("expansion, kernel, residual", [(3, 3, True), (6, 7, False)])
def test_inverted_bottleneck_by_hand(expansion, kernel, residual):
    torch.manual_seed(0)
    block = s2.chain_operation(f"mb{expansion}_k{kernel}", 8, 8, 1, residual).double()
    x, _ = batch(9, channels=8)
    expand, depthwise, project = [w for w in block.parameters() if w.ndim == 4]
    y = normal(F.conv2d(x, expand)).clamp(0, 6)
    y = normal(F.conv2d(y, depthwise, None, 1, kernel // 2, 1, 8 * expansion)).clamp(0, 6)
    y = normal(F.conv2d(y, project))
    assert len(depthwise) == 8 * expansion and depthwise.shape[2] == kernel
    assert close(block(x), y + x if residual else y)


def test_shapes_of_chains():
    """Channels: the nearest multiple of 8, from the middle up, not below 8. Strides:
    fewer for small pictures, the last ones of five."""
    assert [s2.scaled(channels, 0.5) for channels in (2, 16, 22, 24, 38, 40, 56, 1280)] == [
        8, 8, 8, 16, 16, 24, 32, 640]
    for size, halvings in ((224, 5), (65, 5), (64, 3), (32, 2), (28, 1), (16, 1), (15, 0), (8, 0)):
        assert s2.chain_strides(size).count(2) == halvings
    assert s2.chain_strides(224)[1:] == [stride for _, stride in s2.CHAIN]
    assert [i for i, stride in enumerate(s2.chain_strides(32)) if stride == 2] == [7, 15]


def test_discretize_chain():
    gates = torch.full((19, 7), 0.1)
    chain = s2.discretize_chain(gates)  # no gate at the threshold
    assert chain.layers[:2] == [("mb3_k3",), ("skip_connect",)]
    gates[0, 4], gates[1, 2], gates[3, [0, 5, 6]] = 0.7, 0.84, torch.tensor([0.85, 0.95, 0.9])
    chain = s2.discretize_chain(gates)
    assert chain.layers[:4] == [("mb6_k5",), ("skip_connect",), ("mb3_k3",), ("mb6_k7",)]
    assert s2.discretize_chain(gates, ops_per_layer=2).layers[3] == ("mb6_k7", "skip_connect")
    assert s2.discretize_chain(gates, ops_per_layer=9).layers[3] == (
        "mb3_k3", "mb6_k7", "skip_connect")
    gates[4, 2] = 0.75
    assert s2.discretize_chain(gates, threshold=0.75).layers[4] == ("mb3_k7",)
    gates[2, 6] = 0.99  # no choice there
    assert s2.discretize_chain(gates, ops_per_layer=9).layers[2] == ("mb3_k3",)
    [discrete] = S2.discrete_gates(chain, [gates], s2.CHOICES)
    assert discrete[3].tolist() == [0, 0, 0, 0, 0, 1, 0]
    weights = torch.softmax(torch.randn(19, 7, generator=torch.Generator().manual_seed(0)), 1)
    weights[:, 6][~torch.tensor(s2.SAME_SHAPE)] = torch.nan
    expected = [(s2.CHOICES[int(row[:7 if same else 6].argmax())],)
                for row, same in zip(weights, s2.SAME_SHAPE)]
    assert s2.discretize_chain(weights, threshold=0).layers == expected
    assert S2.dominant(weights, s2.CHOICES) == [names[0] for names in expected]


def test_published_sizes():
    """FairNAS-A, with 1,000 classes at 224x224; the benchmark's cell of all 3x3, of 16
    channels, five cells a stage."""
    assert train_eval.count(s2.NetworkS2(s2.FairNAS_A), (3, 224, 224)) == (
        4_651_352, 0, 388_122_848)
    network = nasbench201.NetworkNB201(cell_of(*["nor_conv_3x3"] * 6))
    assert train_eval.count(network, (3, 32, 32))[:2] == (1_531_546, 0)


def test_derived_chain_equals_the_supernet_with_its_gates():
    torch.manual_seed(0)
    supernet = s2.SupernetS2(10, 3, width=0.1, image_size=16).double()
    layers = [(("mb3_k3", "mb6_k7", "skip_connect") if same else ("mb6_k3", "mb3_k5"))
              if index % 3 else ("mb6_k5",)
              for index, same in enumerate(s2.SAME_SHAPE)]
    layers[1] = ("skip_connect",)
    genotype = ChainGenotype(layers)
    network = s2.NetworkS2(genotype, 10, 0, 0.1, image_size=16).double()
    network.stem.load_state_dict(supernet.stem.state_dict())
    network.head.load_state_dict(supernet.head.state_dict())
    for layer, names, searched in zip(network.layers, genotype.layers, supernet.layers):
        for op, name in zip(layer.operations, names):
            other = searched.operations[s2.CHOICES.index(name)]
            op.load_state_dict(other.state_dict(), strict=False)  # without affine batch norm
    images, labels = batch(8, 3)
    gates = S2.discrete_gates(genotype, supernet.compute_gates(), s2.CHOICES)
    assert close(network(images)[0], supernet(images, gates))
    accelerate(network, recompute=True)
    F.cross_entropy(network(images)[0], labels).backward()
    assert all(w.grad is not None for w in network.parameters())
    images = torch.randn(4, 1, 8, 8)
    for options in dict(squeeze=True), dict(h_swish=True, dropout=0.5):
        other = s2.NetworkS2(genotype, 7, width=0.1, in_channels=1, image_size=8, **options)
        assert other(images)[0].shape == (4, 7) and other(images)[1] is None
        assert any("squeeze" in name for name, _ in other.named_parameters()) == (
            "squeeze" in options)
    assert not torch.equal(other(images)[0], other(images)[0])  # dropout
    assert torch.equal(other.eval()(images)[0], other(images)[0])


def test_absent_choices_count_nowhere():
    network = s2.SupernetS2(10, 1, width=0.1, image_size=8)
    present = network.present
    assert (~present).sum() == 6 and present[:, :6].all()
    assert network.all_gates().shape == (127,) and (network.all_gates() == 0.5).all()
    assert (network.compute_gates()[0][~present] == 0).all()
    with torch.no_grad():
        network.alphas[0][present] = torch.linspace(-3, 3, 127)
    images, labels = batch(8, 6, 1)
    gates = network.all_gates().detach()
    _, penalty = fair_darts.Architect(network, 0.1, w01=10.0).step(images.float(), labels)
    assert penalty.item() == pytest.approx(-((gates - 0.5) ** 2).sum().item() / 127, abs=1e-6)
    assert ((network.alphas[0] == 0) == ~present).all()
    [gates] = s2.SupernetS2(10, 1, "softmax", 0.1, 8).compute_gates()
    assert gates.sum(1).allclose(torch.ones(19)) and (gates[~present] == 0).all()


# ---------------------------------------------------------------- NAS-Bench-201

def cell_of(*names):
    return nasbench201.CellGenotype([genotypes.Edge(op, *edge) for op, edge in zip(
        names, nasbench201.EDGES) if op != "none"])


def test_every_cell_of_the_benchmark():
    """There and back by its text. Exactly those that nothing passes through guess;
    paths by the adjacency matrix: the entry (0, 3) of the sum of its powers."""
    texts, skips, blocked, table = set(), [], 0, nasbench201.accuracies().ravel()
    for names, accuracy in zip(itertools.product(nasbench201.OPS, repeat=6), table, strict=True):
        genotype, adjacency = cell_of(*names), np.zeros((4, 4), int)
        for op, (node, source) in zip(names, nasbench201.EDGES):
            adjacency[source, node] = op != "none"
        passes = (adjacency + adjacency @ adjacency + adjacency @ adjacency @ adjacency)[0, 3] > 0
        assert passes == (accuracy != 10) == nasbench201.is_connected(genotype.cell)
        assert len(texts) % 20 or not passes or read(str(genotype)) == (NB201, genotype)
        blocked += not passes
        texts.add(str(genotype))
        skips.append(names.count("skip_connect"))
    assert blocked == 341 and len(texts) == 15_625
    # the figures that are known of it; not those that NAS-Bench-201's authors measured
    assert table.max() == 94.07 and np.median(table) == 90.41
    means = [round(table[np.array(skips) == count].mean(), 1) for count in range(7)]
    assert means == [85.6, 87.2, 87.7, 86.5, 82.7, 75.4, 60.8]
    assert NB201.known(cell_of(*["skip_connect"] * 6)) == {
        "benchmark_accuracy": 60.78, "benchmark_rank": 15_145, "genotype_skips": 6}
    assert NB201.known(cell_of(*["nor_conv_3x3"] * 6))["benchmark_accuracy"] == 93.24
    best = [*itertools.product(nasbench201.OPS, repeat=6)][table.argmax()]
    assert NB201.known(cell_of(*best))["benchmark_rank"] == 1


def test_discretize_edges():
    primitives = ["avg_pool_3x3", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "none"]
    gates = torch.tensor([[0.1, 0.2, 0.9, 0.1, 0.3],     # 0 to 1
                          [0.86, 0.2, 0.1, 0.87, 0.3],   # 0 to 2
                          [0.84, 0.84, 0.1, 0.1, 0.1],   # 1 to 2
                          [0.1, 0.2, 0.3, 0.1, 0.95],    # 0 to 3
                          [0.85, 0.85, 0.1, 0.1, 0.1],   # 1 to 3
                          [0.1, 0.86, 0.1, 0.1, 0.1]])   # 2 to 3
    kept = nasbench201.discretize_edges(gates, 0.85, primitives)
    assert str(kept) == ("|nor_conv_1x1~0|+|nor_conv_3x3~0|none~1|+|none~0|avg_pool_3x3~1|"
                         "skip_connect~2|")
    assert str(nasbench201.discretize_edges(gates, 0, primitives)) == (
        "|nor_conv_1x1~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|none~0|avg_pool_3x3~1|skip_connect~2|")
    assert NB201.dominant(gates, primitives) == [
        "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3", "none", "avg_pool_3x3", "skip_connect"]
    [ones] = NB201.discrete_gates(kept, [gates], primitives)
    assert ones.nonzero().tolist() == [[0, 2], [1, 3], [4, 0], [5, 1]]
    assert len(nasbench201.discretize_edges(torch.full((6, 5), 0.5), 0.5).cell) == 6  # from it up
    gates[3:] = 0.5  # nothing reaches the output
    assert nasbench201.discretize_edges(gates, 0.85, primitives).cell == []


@pytest.mark.parametrize("names", [
    ["nor_conv_3x3", "skip_connect", "avg_pool_3x3", "none", "nor_conv_1x1", "nor_conv_3x3"],
    ["none", "none", "nor_conv_3x3", "skip_connect", "none", "avg_pool_3x3"],
    ["none"] * 6])
def test_derived_cells_equal_the_supernet_with_their_gates(names):
    torch.manual_seed(0)
    primitives = [*nasbench201.OPS]
    supernet = nasbench201.SupernetNB201(4, 2, 10, 3, "sigmoid", primitives).double()
    genotype = cell_of(*names)
    network = nasbench201.NetworkNB201(genotype, 4, 2).double()
    state = {name: value for name, value in supernet.state_dict().items()
             if ".edges." not in name and name != "alphas.0"}
    for cell in (0, 1, 3, 4, 6, 7):  # 2 and 5 are residual blocks
        for index, (op, *edge) in enumerate(genotype.cell):
            row, column = nasbench201.EDGES.index((*edge,)), primitives.index(op)
            operation = supernet.cells[cell].edges[row].operations[column]
            state.update({f"cells.{cell}.operations.{index}.{name}": value
                          for name, value in operation.state_dict().items()})
    lacking, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected and all(name.endswith(("2.weight", "2.bias")) for name in lacking)
    images, _ = batch(8, 3)
    gates = NB201.discrete_gates(genotype, supernet.compute_gates(), primitives)
    expected = supernet(images, gates)
    assert close(network(images)[0], expected)
    for recompute in False, True:
        assert close(accelerate(network, recompute)(images)[0], expected)
        assert close(accelerate(supernet, recompute)(images, gates), expected)


def test_a_mixture_by_hand():
    """One node of a searched cell, each operation by torch's functions."""
    torch.manual_seed(0)
    cell = nasbench201.SearchedCell(4, [*nasbench201.OPS]).double()
    images, _ = batch(8, channels=4)
    gates = torch.zeros(6, 5, dtype=torch.float64)
    gates[3] = torch.arange(1, 6, dtype=torch.float64) / 10  # from the input to the output
    one, three = [cell.edges[3].operations[column][1].weight for column in (2, 3)]
    ones = torch.ones(1, 1, 3, 3, dtype=torch.float64)
    count = F.conv2d(torch.ones_like(images[:, :1]), ones, padding=1)
    pooled = F.conv2d(images, ones.expand(4, 1, 3, 3), padding=1, groups=4) / count
    expected = (0.1 * pooled + 0.2 * images + 0.3 * normal(F.conv2d(images.relu(), one))
                + 0.4 * normal(F.conv2d(images.relu(), three, padding=1)))
    assert close(cell(images, gates), expected)
