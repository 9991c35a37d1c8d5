"""The paper as tests: each holds one of its sentences, in its order.

    python -m pytest test_fair_darts.py

Read it as the second text beside the paper. Every equation is compared with the formula
written literally, in float64. It needs torch, torchvision, numpy and pytest; its last
test, a search of the digits, also scikit-learn. What surrounds the paper is tested in
tests/.
"""
import csv
import math
import sys

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call

import fair_darts
import genotypes
import model_eval
import model_search
import operations
import spaces
import train_eval
import train_search
from engine import flags
from genotypes import PRIMITIVES, Edge, Genotype
from spaces import s1
from study.resting import needed_w01, resting_gate
from study.ties import published_gates

GATES_A = published_gates()[3]  # sigmoid(alpha) of the search that gave FairDARTS_a


def close(a, b, tolerance=1e-9):
    """Whether every element of `a` is within `tolerance` of `b`, relative to the
    largest of `b` (or to 1)."""
    return (a - b).abs().max().item() <= tolerance * max(1, b.abs().max().item())


def batch(size, count=4, channels=3, classes=10, seed=0):
    random = torch.Generator().manual_seed(seed)
    return (torch.randn(count, channels, size, size, generator=random, dtype=torch.float64),
            torch.randint(0, classes, (count,), generator=random))


def small_network(seed=0):
    torch.manual_seed(seed)
    network = model_search.Network(init_channels=2, num_classes=3, layers=3, nodes=2,
                                   in_channels=1).double()
    with torch.no_grad():
        for alpha in network.alphas:
            alpha.normal_()
    return network


def gates_with(*entries, nodes=4):
    """All gates 0.1, but for the entries (op, node, source, gate)."""
    gates = torch.full((nodes * (nodes + 3) // 2, 7), 0.1)
    for op, node, source, gate in entries:
        gates[sum(range(2, node)) + source, PRIMITIVES.index(op)] = gate
    return gates


def normal(x):
    """Batch norm without scale and shift."""
    mean = x.mean((0, 2, 3), keepdim=True)
    return (x - mean) / (((x - mean) ** 2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()


def separable(x, depthwise, pointwise, stride, dilation):
    padding = dilation * (depthwise.shape[2] // 2)
    x = F.conv2d(F.relu(x), depthwise, None, stride, padding, dilation, len(depthwise))
    return normal(F.conv2d(x, pointwise))


def by_hand(name, op, x, stride, search=True):
    """DARTS's operation `name` on maps of even size, with the convolutions of `op`."""
    w = [weight for weight in op.parameters() if weight.ndim == 4]
    if name == "skip_connect" and stride == 1:
        return x
    if name == "skip_connect":
        x = F.relu(x)
        halves = F.conv2d(x, w[0], stride=2), F.conv2d(x[:, :, 1:, 1:], w[1], stride=2)
        return normal(torch.cat(halves, 1))
    if name == "max_pool_3x3":
        y = F.max_pool2d(x, 3, stride, 1)
        return normal(y) if search else y
    if name == "avg_pool_3x3":
        y = F.avg_pool2d(x, 3, stride, 1) * 9  # zeros count in it, so divide by what is inside
        y = y / (F.avg_pool2d(torch.ones_like(x), 3, stride, 1) * 9)
        return normal(y) if search else y
    if name.startswith("sep_conv"):
        return separable(separable(x, w[0], w[1], stride, 1), w[2], w[3], 1, 1)
    return separable(x, w[0], w[1], stride, 2)


# -------------------------------------------------------- Sec. 3: the supernet (Eq. 1, 2, 6)

def test_gates():
    """Eq. 2: softmax over the operations of an edge. Eq. 6: a sigmoid of each alone."""
    alphas = torch.randn(5, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for a, s, m in zip(alphas, fair_darts.gates(alphas), fair_darts.gates(alphas, "softmax")):
        for i in range(7):
            assert s[i].item() == pytest.approx(1 / (1 + math.exp(-a[i])), abs=1e-12)
            assert m[i].item() == pytest.approx(
                math.exp(a[i]) / sum(math.exp(v) for v in a), abs=1e-12)


def test_softmax_is_exclusive_and_sigmoid_is_not():
    """Insight 1: under softmax raising one alpha lowers the other gates; with sigmoid
    it leaves them."""
    alphas = torch.randn(1, 7, dtype=torch.float64)
    for kind in ("softmax", "sigmoid"):
        slopes = torch.autograd.functional.jacobian(
            lambda a: fair_darts.gates(a, kind), alphas)[0, :, 0, :]
        others = slopes[~torch.eye(7, dtype=torch.bool)]
        assert (others < 0).all() if kind == "softmax" else (others == 0).all()


def test_where_a_search_begins():
    """Sec. 4.1: alphas begin at 0, so every gate is 0.5 and no operation starts ahead;
    DARTS's at 0.001 * normal."""
    network = model_search.Network(init_channels=4, layers=3)
    assert [tuple(a.shape) for a in network.alphas] == [(14, 7), (14, 7)]
    assert network.all_gates().shape == (196,) and (network.all_gates() == 0.5).all()
    names = {id(a) for a in network.alphas} | {id(w) for w in network.weights()}
    assert len(names) == len(list(network.parameters())) == len(network.weights()) + 2
    softmax = model_search.Network(init_channels=4, layers=3, gate="softmax")
    assert all(0 < a.abs().max() < 0.01 for a in softmax.alphas)
    assert torch.cat(softmax.compute_gates()).sum(1).allclose(torch.ones(28))


def test_published_size_of_the_supernet():
    """DARTS prints 1.93 M parameters for its supernet of 16 channels and 8 cells."""
    assert sum(w.numel() for w in model_search.Network().weights()) == 1_930_618


@pytest.mark.parametrize("reduction", [False, True])
def test_searched_cell_by_hand(reduction):
    """Eq. 1, 6: a state is the sum over its edges of gate times operation; two nodes,
    five edges, values and gradients."""
    torch.manual_seed(0)
    cell = model_search.Cell(2, 6, 5, 4, reduction, False, PRIMITIVES).double()
    (x0, _), (x1, _) = batch(8, channels=6), batch(8, channels=5, seed=1)
    g = torch.rand(5, 7, dtype=torch.float64, requires_grad=True)
    s0 = normal(F.conv2d(F.relu(x0), cell.preprocess_0[1].weight))
    s1 = normal(F.conv2d(F.relu(x1), cell.preprocess_1[1].weight))

    def edge(row, x, stride):
        ops = cell.edges[row].operations
        return sum(g[row, o] * by_hand(name, ops[o], x, stride)
                   for o, name in enumerate(PRIMITIVES))

    stride = 2 if reduction else 1
    node_2 = edge(0, s0, stride) + edge(1, s1, stride)
    node_3 = edge(2, s0, stride) + edge(3, s1, stride) + edge(4, node_2, 1)
    expected, got = torch.cat([node_2, node_3], 1), cell(x0, x1, g)
    assert close(got, expected)
    target, inputs = torch.randn_like(expected), [g, *cell.parameters()]
    gradients = [torch.autograd.grad((y * target).sum(), inputs) for y in (got, expected)]
    assert all(map(close, *gradients)) and gradients[0][0].abs().min() > 1e-6


def test_a_gate_may_be_any_function_of_alphas():
    """The supernet asks of a gate only that it is a function of alphas."""
    alphas = torch.randn(14, 7)
    network = model_search.Network(2, layers=3, gate=lambda a: a.clamp(0, 1))
    with torch.no_grad():
        network.alphas[0].copy_(alphas)
    assert torch.equal(network.compute_gates()[0], alphas.clamp(0, 1))
    assert network(torch.randn(2, 3, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("op", PRIMITIVES)
def test_operations_halve_any_size_alike(op, size):
    """With stride 2 every operation halves height and width, rounded up, so that edges
    can be added."""
    for stride in (1, 2):
        out = operations.OPS[op](4, stride, True)(torch.randn(2, 4, size, size))
        assert out.shape == (2, 4, -(-size // stride), -(-size // stride))


def test_average_pooling_does_not_count_padding():
    """DARTS's average pooling divides by the pixels that are inside the picture."""
    assert torch.equal(operations.OPS["avg_pool_3x3"](1, 1, True)(torch.ones(1, 1, 4, 4)),
                       torch.ones(1, 1, 4, 4))


# -------------------------------------------------------- two levels (Eq. 3, 4, 8)

def test_softmax_rule_is_darts_parse():
    """Eq. 3: argmax on the two edges of a node whose largest weights are highest, no
    threshold."""
    alphas = torch.randn(2, 14, 7, generator=torch.Generator().manual_seed(3))
    weights = torch.softmax(alphas, 2).numpy()
    cells = []
    for cell in weights:
        edges, start = [], 0
        for node in range(2, 6):
            rows = cell[start:start + node]
            best = sorted(range(node), key=lambda source: -max(rows[source]))[:2]
            edges += [Edge(PRIMITIVES[rows[source].argmax()], node, source)
                      for source in sorted(best)]
            start += node
        cells.append(edges)
    assert fair_darts.discretize(*torch.from_numpy(weights), threshold=0) == Genotype(*cells)
    assert all(len(cell) == 8 for cell in cells)


def test_first_order_step_is_adam_on_equation_8():
    """Eq. 8: a step on alpha is Adam on the gradient of L_val + w01 * L01; it leaves
    the weights."""
    network = small_network()
    images, labels = batch(8, channels=1, classes=3)
    before = [w.detach().clone() for w in network.weights()]
    alphas = [a.detach().clone().requires_grad_() for a in network.alphas]
    twin = small_network()
    logits = functional_call(twin, {f"alphas.{i}": a for i, a in enumerate(alphas)}, images)
    gates = torch.sigmoid(torch.cat(alphas))
    loss, penalty = F.cross_entropy(logits, labels), -((gates - 0.5) ** 2).sum() / gates.numel()
    for alpha, g in zip(alphas, torch.autograd.grad(loss + 7.0 * penalty, alphas)):
        alpha.grad = g
    torch.optim.Adam(alphas, 0.01, (0.8, 0.99), weight_decay=0.1).step()
    architect = fair_darts.Architect(network, 0.01, (0.8, 0.99), weight_decay=0.1, w01=7.0)
    got = architect.step(images, labels)
    assert close(torch.stack(got), torch.stack([loss, penalty]))
    assert all(close(a, b) for a, b in zip(network.alphas, alphas))
    assert all(torch.equal(a, b) and a.grad is None for a, b in zip(network.weights(), before))


def test_a_step_on_the_weights_leaves_alpha():
    """Eq. 4: the weights descend the training loss; alpha has no gradient meanwhile."""
    network = small_network()
    images, labels = batch(8, channels=1, classes=3)
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    sgd = torch.optim.SGD(network.weights(), 0.1)
    with fair_darts.frozen(network.alphas):
        F.cross_entropy(network(images), labels).backward()
    assert all(alpha.grad is None and alpha.requires_grad for alpha in network.alphas)
    sgd.step()
    for name, value in network.named_parameters():
        assert torch.equal(value, before[name]) == ("alphas" in name), name


@pytest.mark.parametrize("steps", [0, 2])  # before and after there is a momentum
def test_unrolled_gradient_is_the_exact_one(steps):
    """DARTS, Sec. 2.3: the unrolled gradient, against double backward through one step
    of SGD, before and after there is a momentum."""
    network = small_network()
    optimizer = torch.optim.SGD(network.weights(), 0.1, momentum=0.9, weight_decay=0.05)
    (images, labels), (train_images, train_labels) = batch(8, 6, 1, 3, 1), batch(8, 6, 1, 3, 2)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(network(train_images), train_labels).backward(inputs=network.weights())
        optimizer.step()
    # exact: double backward through the update that torch.optim.SGD documents
    state = {name: value.detach().clone() for name, value in network.state_dict().items()}
    weights = {n: w.detach().clone().requires_grad_()
               for n, w in network.named_parameters() if "alphas" not in n}
    alphas = {n: a.detach().clone().requires_grad_()
              for n, a in network.named_parameters() if "alphas" in n}
    twin = small_network()
    loss = F.cross_entropy(functional_call(twin, {**weights, **alphas}, train_images), train_labels)
    moved = {}
    for (name, w), g in zip(
            weights.items(),
            torch.autograd.grad(loss, list(weights.values()), create_graph=True)):
        velocity = (optimizer.state[network.get_parameter(name)]["momentum_buffer"]
                    if steps else 0)
        moved[name] = w - 0.1 * (0.9 * velocity + g + 0.05 * w)
    val_loss = F.cross_entropy(functional_call(twin, {**moved, **alphas}, images), labels)
    penalty = fair_darts.zero_one_loss(torch.sigmoid(torch.cat(list(alphas.values()))))
    exact = torch.autograd.grad(val_loss + 10 * penalty, list(alphas.values()))
    first_order = torch.autograd.grad(
        F.cross_entropy(functional_call(twin, {**weights, **alphas}, images), labels)
        + 10 * penalty.detach(),
        list(alphas.values()))

    architect = fair_darts.Architect(network, w01=10.0)
    random = torch.get_rng_state()
    got, loss, _ = architect.unrolled(images, labels, train_images, train_labels, optimizer,
                                      radius=1e-6)
    assert loss.item() == pytest.approx(val_loss.item(), rel=1e-12)
    for g, e, f in zip(got, exact, first_order):
        assert close(g / e.abs().max(), e / e.abs().max(), 1e-6)
        # the test can tell the orders apart
        assert not close(f / e.abs().max(), e / e.abs().max(), 1e-2)
    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    architect.step(images, labels, train_images, train_labels, optimizer)
    assert all(torch.equal(state[n], v) == ("alphas" not in n)
               for n, v in network.state_dict().items())


# -------------------------------------------------------- Sec. 4.2: the zero-one loss (Eq. 7, 9)

@pytest.mark.parametrize("penalty, formula, slope", [
    (fair_darts.zero_one_loss, lambda z: -(z - 0.5) ** 2, lambda z: -2 * (z - 0.5)),
    (fair_darts.zero_one_loss_l1, lambda z: -abs(z - 0.5), lambda z: -math.copysign(1, z - 0.5))])
def test_zero_one_losses(penalty, formula, slope):
    """Eq. 7: -(1/N) sum of (z - 0.5)^2, Eq. 9: -(1/N) sum of |z - 0.5|, with slopes."""
    gates = torch.rand(28, 7, dtype=torch.float64,
                       generator=torch.Generator().manual_seed(0)).requires_grad_()
    value = penalty(gates)
    values = gates.detach().flatten().tolist()
    assert value.item() == pytest.approx(sum(map(formula, values)) / len(values), abs=1e-12)
    expected = torch.tensor([slope(z) / len(values) for z in values],
                            dtype=torch.float64).view(28, 7)
    assert close(torch.autograd.grad(value, gates)[0], expected, 1e-12)
    assert penalty(torch.full((3, 7), 0.5)) == 0  # the maximum
    assert penalty(torch.tensor([0.49, 0.51])) < 0
    assert penalty(torch.tensor([0.0, 1.0])) == formula(1.0)


@pytest.mark.parametrize("name, penalty", fair_darts.PENALTIES.items())
def test_what_the_paper_requires_of_a_zero_one_loss(name, penalty):
    """Sec. 4.2: the maximum is at 0.5 and the minima at 0 and 1; the slope is small
    near 0.5, so that gates may fluctuate, and larger away from it; it is
    differentiable. L'01 fails the second, and at 0.5, where gates start, the third."""
    z = torch.linspace(0, 1, 1001, dtype=torch.float64, requires_grad=True)
    values = torch.stack([penalty(gate) for gate in z.split(1)])
    [slopes] = torch.autograd.grad(values.sum(), z)
    assert values.argmax() == 500 and values[[0, -1]].tolist() == [values.min()] * 2
    near, away = slopes[505].abs(), slopes[900].abs()
    assert (near < 0.02 * away) == (name == "l2")
    assert slopes.isfinite().all()
    assert (abs(slopes[501] - slopes[499]) < 0.01) == (name == "l2")


def test_l1_decides_before_the_network_has_learnt():
    """Sec. 4.2, Fig. 5: L'01 pushes alpha 1 / (2 |z - 0.5|) times as hard as L01."""
    alpha = torch.tensor([0.01], dtype=torch.float64, requires_grad=True)
    z = torch.sigmoid(alpha)
    [first], [second] = (torch.autograd.grad(penalty(z), alpha, retain_graph=True) for penalty in (
        fair_darts.zero_one_loss_l1, fair_darts.zero_one_loss))
    assert (first / second).item() == pytest.approx(1 / (2 * abs(z.item() - 0.5)))


def test_where_published_gates_settle():
    """Without a gradient from the data, L01 and Adam's weight decay hold a gate at
    0.0644 or 0.9356: the medians of the published gates of FairDARTS_a are within 0.002
    of it."""
    rest = resting_gate(10, 196, 1e-3)
    gates = GATES_A["reduce"]
    assert rest == pytest.approx(0.93564, abs=5e-6)
    assert 10 * 2 * (rest - 0.5) * rest * (1 - rest) / 196 == pytest.approx(
        1e-3 * math.log(rest / (1 - rest)), rel=1e-6)
    assert gates[gates > 0.5].median().item() == pytest.approx(rest, abs=0.002)
    assert gates[gates < 0.5].median().item() == pytest.approx(1 - rest, abs=0.002)
    assert needed_w01(0.85, 196, 1e-3) == pytest.approx(3.81, abs=0.005)


# -------------------------------------------------------- Sec. 4.2: discretisation

def test_published_gates_give_the_published_genotype():
    """Sec. 4.2: the published gates, cut at sigma_threshold = 0.85, are FairDARTS_a."""
    assert GATES_A["normal"][0, 0] == 0.927 and GATES_A["reduce"][13, 6] == 0.9331
    assert fair_darts.discretize(*GATES_A.values()) == genotypes.FairDARTS_a


def test_dominant_operations():
    """Fig. 2: an operation dominates that is among the top two of all incoming edges
    of a node; both may be on one edge."""
    dominant = s1.dominant_operations(GATES_A["normal"])
    expected, first = [], 0
    for node in range(2, 6):
        every = [(gate, source, op) for source in range(node)
                 for gate, op in zip(GATES_A["normal"][first + source], PRIMITIVES)]
        first += node
        expected += [Edge(op, node, source) for _, source, op in sorted(every)[-2:]]
    assert sorted(dominant) == sorted(expected) and [e.node for e in dominant] == [
        2, 2, 3, 3, 4, 4, 5, 5]
    assert dominant[2:4] == [Edge("max_pool_3x3", 3, 0), Edge("skip_connect", 3, 0)]
    assert [edge.op for edge in dominant].count("skip_connect") == 2
    equal = s1.dominant_operations([[0.5] * 7] * 5)  # among equals the lower index
    assert [(edge.op, edge.source) for edge in equal] == [
        ("max_pool_3x3", 0), ("avg_pool_3x3", 0)] * 2


def test_discretize_cases():
    """Sec. 4.2: the threshold, two edges a node, edges that leave a node which nothing
    enters; among equals the lower index."""
    def normal(*entries, **options):
        return fair_darts.discretize(gates_with(*entries), gates_with(), **options).normal

    assert normal() == []  # nothing above the threshold
    assert normal(("sep_conv_3x3", 3, 0, 0.85)) == [Edge("sep_conv_3x3", 3, 0)]
    assert normal(("sep_conv_3x3", 3, 0, 0.5), threshold=0.5) == [
        Edge("sep_conv_3x3", 3, 0)]  # at the threshold
    isolated = (("sep_conv_3x3", 2, 0, 0.9), ("skip_connect", 4, 3, 0.99),
                ("max_pool_3x3", 5, 1, 0.9))
    assert normal(*isolated) == [Edge("sep_conv_3x3", 2, 0), Edge("max_pool_3x3", 5, 1)]
    chain = ("skip_connect", 4, 3, 0.9), ("skip_connect", 5, 4, 0.9), ("dil_conv_5x5", 2, 1, 0.9)
    assert normal(*chain) == [Edge("dil_conv_5x5", 2, 1)]
    ties = [("sep_conv_3x3", 4, source, 0.9) for source in range(4)] + [("skip_connect", 4, 1, 0.9)]
    # the lower index first
    assert normal(*ties) == [Edge("sep_conv_3x3", 4, 0), Edge("skip_connect", 4, 1)]
    # the best two edges are chosen before the threshold:
    # a third edge never replaces one that falls short
    third = [("sep_conv_3x3", 4, 0, 0.9), ("sep_conv_3x3", 4, 1, 0.89),
             ("skip_connect", 4, 2, 0.88)]
    assert normal(*third) == [Edge("sep_conv_3x3", 4, 0), Edge("sep_conv_3x3", 4, 1)]
    two = ("sep_conv_3x3", 2, 0, 0.9), ("max_pool_3x3", 2, 0, 0.95), ("dil_conv_3x3", 2, 1, 0.9)
    assert normal(*two, ops_per_edge=2) == [Edge("max_pool_3x3", 2, 0), Edge("sep_conv_3x3", 2, 0),
                                            Edge("dil_conv_3x3", 2, 1)]
    assert normal(*two, edges_per_node=1) == [Edge("max_pool_3x3", 2, 0)]


# -------------------------------------------------------- Sec. 5: the networks

MULTI = Genotype([Edge("skip_connect", 3, 0), Edge("sep_conv_3x3", 3, 0),
                  Edge("max_pool_3x3", 3, 1)],
                 [Edge("avg_pool_3x3", 2, 1), Edge("dil_conv_5x5", 5, 2),
                  Edge("skip_connect", 5, 0)])
ARCHITECTURES = {"MULTI": MULTI, **{name: getattr(genotypes, name) for name in
                                    ("FairDARTS_a", "FairDARTS_c", "DARTS_V2", "GDAS")}}


@pytest.mark.parametrize("reduction", [False, True])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_derived_cell_by_hand(name, reduction):
    """A derived cell sums the edges of a node and concatenates its nodes: missing nodes
    (a, c), all of them (DARTS_V2), a chain (GDAS), several operations on an edge
    (MULTI)."""
    torch.manual_seed(0)
    edges = ARCHITECTURES[name].reduce if reduction else ARCHITECTURES[name].normal
    cell = model_eval.Cell(edges, 6, 5, 4, reduction, False).double()
    (x0, _), (x1, _) = batch(8, channels=6), batch(8, channels=5, seed=1)
    states = {0: normal(F.conv2d(F.relu(x0), cell.preprocess_0[1].weight)),
              1: normal(F.conv2d(F.relu(x1), cell.preprocess_1[1].weight))}
    for node in range(2, 6):
        terms = [by_hand(edge.op, op, states[edge.source],
                         2 if reduction and edge.source < 2 else 1, search=False)
                 for edge, op in zip(cell.edges, cell.operations) if edge.node == node]
        if terms:
            states[node] = sum(terms)
    expected = torch.cat([states[node] for node in sorted(states) if node > 1], 1)
    assert sorted(cell.edges) == sorted(edges) and close(cell(x0, x1, 0.0), expected)


# parameters with the auxiliary head at 36 channels, 20 cells, 10 classes; MACs of convolutions and
# linear layers, in millions
COUNTED = {"FairDARTS_a": (2_837_208, 371.46), "FairDARTS_b": (3_884_304, 536.49),
           "FairDARTS_c": (3_075_240, 399.99), "FairDARTS_d": (3_841_968, 532.51),
           "FairDARTS_e": (3_120_168, 414.70), "FairDARTS_f": (3_627_480, 497.61),
           "FairDARTS_g": (3_375_480, 453.38)}
PUBLISHED_PARAMETERS = {  # millions; printed cut off, not rounded
    "FairDARTS_b": 3.88, "FairDARTS_d": 3.84, "FairDARTS_e": 3.12, "FairDARTS_f": 3.62,
    "FairDARTS_g": 3.375}


@pytest.mark.parametrize("name", COUNTED)
def test_published_sizes(name):
    """Table 2: the published numbers of parameters and multiply-accumulates."""
    network = model_eval.NetworkCIFAR(getattr(genotypes, name))
    parameters, head, macs = train_eval.count(network, (3, 32, 32))
    assert (parameters, round(macs / 1e6, 2), head) == (*COUNTED[name], 476_426)
    if name in PUBLISHED_PARAMETERS:
        digits = len(str(PUBLISHED_PARAMETERS[name]).split(".")[1])
        assert (math.floor(parameters / 1e6 * 10 ** digits) / 10 ** digits
                == PUBLISHED_PARAMETERS[name])
    if name == "FairDARTS_c":  # published as 2.59: without the head
        assert math.floor((parameters - head) / 1e4) == 259


def test_imagenet_network():
    """Table 3: the network for ImageNet, as DARTS has it."""
    network = model_eval.NetworkImageNet(genotypes.FairDARTS_b)
    parameters, head, macs = train_eval.count(network, (3, 224, 224))
    assert parameters - head == 4_865_248 and round(macs / 1e6, 1) == 541.2
    small = model_eval.NetworkImageNet(genotypes.FairDARTS_c, init_channels=8, num_classes=5,
                                       layers=3)
    logits, auxiliary = small(torch.randn(2, 3, 224, 224))
    assert logits.shape == auxiliary.shape == (2, 5)
    (logits.sum() + auxiliary.sum()).backward()
    assert small.eval()(torch.randn(1, 3, 224, 224))[1] is None


@pytest.mark.parametrize("size", [8, 15, 20, 64])
def test_derived_network_on_other_sizes(size):
    """The network takes pictures of any size and number of channels; its auxiliary head
    only trains."""
    network = model_eval.NetworkCIFAR(genotypes.FairDARTS_b, 4, 7, 3, in_channels=1)
    logits, auxiliary = network(torch.randn(3, 1, size, size))
    assert logits.shape == auxiliary.shape == (3, 7)
    assert model_eval.NetworkCIFAR(genotypes.FairDARTS_b, 4, 7, 3, auxiliary=False)(
        torch.randn(3, 3, 8, 8))[1] is None


def test_drop_path():
    """Evaluation drops whole paths of a picture and keeps the mean."""
    torch.manual_seed(0)
    x = operations.drop_path(torch.ones(20000, 1, 2, 2), 0.2)
    assert set(x.unique().tolist()) == {0.0, 1.25}
    assert (x == x[:, :, :1, :1]).all()  # whole samples
    assert x.mean().item() == pytest.approx(1, abs=0.02)
    network = model_eval.NetworkCIFAR(
        Genotype([Edge("skip_connect", 2, 0)], [Edge("skip_connect", 2, 0)]), 4, 5, 4)
    images = torch.randn(4, 3, 16, 16)
    plain = network(images)[0]
    network.drop_path_prob, network.drop_path_on = 0.9, "edge"
    changed = network(images)[0]
    assert not torch.equal(plain, changed)  # reductions are dropped
    network.cells = network.cells[:1]  # one normal cell: DARTS never drops the identity
    network.classifier = nn.Linear(4, 5)
    assert torch.equal(network(images)[0], network(images)[0])
    network.drop_path_on = "node"  # the published evaluation does
    assert not torch.equal(network(images)[0], network(images)[0])


@pytest.mark.parametrize("on", ["node", "edge"])
def test_paths_that_are_dropped(on, monkeypatch):
    """A node's sum as published, or an edge as in DARTS, against the cell by hand; none
    in use."""
    calls = []
    monkeypatch.setattr(model_eval, "drop_path", lambda x, p: calls.append(x) or x * len(calls))
    edges = [Edge("sep_conv_3x3", 2, 0), Edge("skip_connect", 2, 1), Edge("skip_connect", 3, 0),
             Edge("dil_conv_5x5", 3, 2)]
    cell = model_eval.Cell(edges, 4, 4, 4, False, False)
    a, b = torch.randn(2, 3, 4, 8, 8)
    found = cell(a, b, 0.3, on)
    s0, s1 = cell.preprocess_0(a), cell.preprocess_1(b)
    ops = cell.operations
    if on == "node":
        s2 = 1 * (ops[0](s0) + s1)
        s3 = 2 * (s0 + ops[3](s2))
    else:
        s2 = 1 * ops[0](s0) + s1
        s3 = s0 + 2 * ops[3](s2)
    assert len(calls) == 2 and close(found, torch.cat([s2, s3], 1), 1e-5)
    calls.clear()
    cell.eval()(a, b, 0.3, on)
    assert not calls


# -------------------------------------------------------- from a search to a network

def run(script, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", [script.__name__ + ".py", *map(str, arguments)])
    monkeypatch.setattr("warnings.showwarning", None)  # put back afterwards
    with pytest.raises(SystemExit) as stop:
        flags.main(script.command)
    return stop.value.code or 0


def test_a_search_ends_in_a_genotype_that_is_trained(tmp_path, monkeypatch, capsys):
    """Sec. 5, small: search, cut, train from scratch; the same seed, the same again."""
    pytest.importorskip("sklearn")
    small = ["--dataset", "digits", "--device", "cpu", "--layers", 3, "--batch_size", 100,
             "--epochs", 2, "--runs", tmp_path]
    search = ["--init_channels", 2, "--nodes", 2, "--arch_learning_rate", 0.2, "--w01", 10,
              "--figures_every", 0]
    for name in "ab":
        assert run(train_search, monkeypatch, *small, *search, "--name", name) == 0
    _, genotype = spaces.read(str(tmp_path / "a" / "genotype.json"))
    assert str(genotype) in capsys.readouterr().out and all(genotype)
    tables = [[{**row, "seconds": ""} for row in csv.DictReader(
        (tmp_path / name / "metrics.csv").open())] for name in "ab"]
    assert tables[0] == tables[1] and len(tables[0]) == 2
    assert (tmp_path / "a" / "genotype.json").read_text() == (
        tmp_path / "b" / "genotype.json").read_text()
    assert run(train_eval, monkeypatch, *small, "--init_channels", 4, "--name", "net", "--arch",
               tmp_path / "a" / "genotype.json") == 0
    assert "test accuracy " in capsys.readouterr().out
