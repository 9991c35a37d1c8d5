"""The method of Fair DARTS (arXiv 1911.12126), equation by equation.

Eq. 2   DARTS: the operations of an edge compete, their weights are softmax(alpha)
Eq. 3   DARTS: each edge keeps the operation of the largest weight
Eq. 4   alpha minimises the validation loss, the weights w minimise the training loss
Eq. 6   Fair DARTS: every operation has a gate of its own, sigmoid(alpha)
Eq. 7   the zero-one loss L01 drives gates to 0 or 1;  Eq. 9: its L1 form decides too early
Eq. 8   alpha minimises L_val(w*(alpha), alpha) + w01 * L01

Alphas and gates of one cell type are a matrix: a row an edge, ordered by the node that it
enters, then by the state that it leaves; a column an operation, in the order of
genotypes.PRIMITIVES or of the `primitives` given. In the space S2 there is one matrix: a row
a layer, a column a choice, in the order of genotypes.CHOICES.
"""
import math
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch.func import functional_call

import parallel
from genotypes import (CHOICES, IDENTITY, PRIMITIVES, SAME_SHAPE, ChainGenotype, Edge, Genotype,
                       prune)


def gates(alphas, kind="sigmoid", present=None, shared=None):
    """The gate of every operation, within 0 and 1: (edges, operations) -> the same shape.

    kind: "sigmoid", independent gates (Eq. 6), or "softmax", a competition on each edge (Eq. 2).
    present: bool, which operations there are; the gates of the others are 0, without gradient.
    shared: bool, (operations,): a sigmoid's operations that compete by a softmax of their own.
    """
    if present is not None:
        alphas = alphas.masked_fill(~present, -torch.inf)
    if kind == "softmax":
        return torch.softmax(alphas, -1)
    if shared is None:
        return torch.sigmoid(alphas)
    return torch.where(shared, torch.softmax(alphas.masked_fill(~shared, -torch.inf), -1),
                       torch.sigmoid(alphas))


def mask_of(names, primitives):
    """Which of the `primitives` are among `names`, bool (operations,); None if there are none."""
    return torch.tensor([name in names for name in primitives]) if names else None


def zero_one_loss(gates):
    """Eq. 7: -(1/N) * sum of (gate - 0.5)^2; 0 at 0.5, where it is flat; -0.25 at 0 and 1, which
    weight decay keeps the gates from, see `resting_gate`."""
    return -((gates - 0.5) ** 2).mean()


def zero_one_loss_l1(gates):
    """Eq. 9: -(1/N) * sum of |gate - 0.5|; its slope is 1 from the start, so gates go to
    0 or 1 before the network has learnt which operations help."""
    return -(gates - 0.5).abs().mean()


PENALTIES = {"l2": zero_one_loss, "l1": zero_one_loss_l1}  # the values of --zero_one_loss


def push(gate, penalty=zero_one_loss):
    """-d penalty / d alpha of one gate alone; for Eq. 7: 2 * (z - 1/2) * z * (1 - z)."""
    alpha = torch.logit(torch.tensor([gate], dtype=torch.float64)).requires_grad_()
    [slope] = torch.autograd.grad(penalty(torch.sigmoid(alpha)), alpha)
    return -slope.item()


def resting_gate(w01, count, weight_decay, penalty=zero_one_loss):
    """Where a gate above 1/2 comes to rest that the data leave alone: the zero-one loss pushes it
    out, Adam's weight decay on alpha holds it back, and they balance where

        w01 * push(z) / count = weight_decay * logit(z)

    count: N, the number of all gates. Below 1/2 it is the mirror image, 1 - z. 0.5 if no gate
    leaves 1/2; 1.0 without weight decay.
    """
    def goes_on(gate):
        return w01 * push(gate, penalty) / count > weight_decay * math.log(gate / (1 - gate))

    low, high = 0.5 + 1e-6, 1 - 1e-12
    if not goes_on(low):
        return 0.5
    if goes_on(high):
        return 1.0
    for _ in range(60):  # bisection
        middle = (low + high) / 2
        low, high = (middle, high) if goes_on(middle) else (low, middle)
    return low


def needed_w01(gate, count, weight_decay, penalty=zero_one_loss):
    """The w01 with which `resting_gate` is `gate`, above 1/2."""
    return weight_decay * math.log(gate / (1 - gate)) * count / push(gate, penalty)


@contextmanager
def frozen(parameters):
    """Within it the `parameters` need no gradient, so that none of the work for one is done."""
    parameters = list(parameters)
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


class Architect:
    """The optimiser of alpha (Eq. 8): Adam on L_val + w01 * L01.

    network: a model_search.Network, or what has its .alphas, .weights(), .all_gates() and
    .recompute. autocast: makes the context of the forward passes. loss_scale: gives the factor
    that keeps float16 gradients above zero; with it, a step that is not finite is left out.
    """

    def __init__(self, network, learning_rate=3e-3, betas=(0.9, 0.999), weight_decay=1e-3,
                 w01=10.0, penalty=zero_one_loss, autocast=nullcontext, loss_scale=None):
        self.network, self.w01, self.penalty = network, w01, penalty
        self.weights = network.weights()
        self.autocast, self.loss_scale = autocast, loss_scale
        self.optimizer = torch.optim.Adam(network.alphas, learning_rate, betas,
                                          weight_decay=weight_decay, fused=True)

    def step(self, images, labels):
        """First order: the weights count as constant.

        images: (B, C, H, W), labels: (B,), of the validation half. Returns the validation loss
        and the penalty, two scalar tensors.
        """
        with frozen(self.weights):
            with self.autocast():
                logits = self.network(images)
            loss, penalty = F.cross_entropy(logits, labels), self.penalty(self.network.all_gates())
            gradients = self._gradients(loss + self.w01 * penalty, list(self.network.alphas))
        self._descend(gradients)
        return loss.detach(), penalty.detach()

    def step_unrolled(self, images, labels, train_images, train_labels, optimizer, radius=1e-2):
        """Second order (DARTS, Sec. 2.3): the weights count as w'(alpha), one step from w.

        optimizer: the SGD of the weights, for its rate, momentum and weight decay; radius: the
        length of the finite difference. Leaves weights and batch-norm statistics as they were.
        Returns as `step` does.
        """
        gradients, loss, penalty = self.unrolled_gradient(images, labels, train_images,
                                                          train_labels, optimizer, radius)
        self._descend(gradients)
        return loss, penalty

    def unrolled_gradient(self, images, labels, train_images, train_labels, optimizer,
                          radius=1e-2):
        """The gradients of L_val(w') + w01 * L01 for each alpha, where
        w' = w - rate * (momentum * v + g + decay * w) and g = grad_w L_train(w, alpha).
        By the chain rule, with r = grad_w' L_val(w'), they are

            grad_alpha (L_val(w') + w01 * L01) - rate * d/dalpha (g . r)

        and the last factor is the central difference of grad_alpha L_train over w +- eps * r,
        divided by 2 eps. Returns them, the validation loss and the penalty.
        """
        alphas = list(self.network.alphas)
        names = {w: name for name, w in self.network.named_parameters()}
        weights = {names[w]: w for w in self.weights}
        group = optimizer.param_groups[0]
        loss = self._loss(weights, train_images, train_labels)
        gradients = self._gradients(loss, list(weights.values()))
        moved = {}
        for (name, w), g in zip(weights.items(), gradients):
            velocity = optimizer.state[w].get("momentum_buffer") if w in optimizer.state else None
            step = g + group["weight_decay"] * w.detach()
            if velocity is not None:
                step = step + group["momentum"] * velocity
            moved[name] = (w.detach() - group["lr"] * step).requires_grad_()

        loss = self._loss(moved, images, labels)
        penalty = self.penalty(self.network.all_gates())
        result = self._gradients(loss + self.w01 * penalty, alphas + list(moved.values()))
        direct, r = result[:len(alphas)], result[len(alphas):]
        eps = radius / torch.cat([v.flatten() for v in r]).norm()
        ends = []
        for sign in (1, -1):
            nearby = {name: w.detach() + sign * eps * v for (name, w), v in zip(weights.items(), r)}
            ends.append(self._gradients(self._loss(nearby, train_images, train_labels), alphas))
        gradients = [d - group["lr"] * (plus - minus) / (2 * eps)
                     for d, plus, minus in zip(direct, *ends)]
        return gradients, loss.detach(), penalty.detach()

    def _loss(self, weights, images, labels):
        """Cross entropy of the network with `weights` (name -> tensor) in place of its own."""
        buffers = {name: b.clone() for name, b in self.network.named_buffers()}  # they change
        # in the backward pass, where --recompute would run, these weights are gone again
        recompute, self.network.recompute = self.network.recompute, False
        with self.autocast():
            logits = functional_call(self.network, {**weights, **buffers}, images)
        self.network.recompute = recompute
        return F.cross_entropy(logits, labels)

    def _gradients(self, loss, inputs):
        scale = self.loss_scale() if self.loss_scale else 1.0
        gradients = torch.autograd.grad(loss * scale, inputs, materialize_grads=True)
        return [gradient / scale for gradient in parallel.average(gradients)]

    def _descend(self, gradients):
        if self.loss_scale and not all(gradient.isfinite().all() for gradient in gradients):
            return
        for alpha, gradient in zip(self.network.alphas, gradients):
            alpha.grad = gradient
        self.optimizer.step()
        self.optimizer.zero_grad()


# ---------------------------------------------------------------- discretisation

def strongest(gates, edges_per_node=2, ops_per_edge=1, primitives=PRIMITIVES):
    """For each node, the `ops_per_edge` best operations of the edges whose best gate is highest.

    gates: (edges, operations) of one cell type. Returns [(Edge, gate)], by node, then source,
    then gate; among equals the lower index counts as better.
    """
    gates = torch.as_tensor(gates)
    found, first, node = [], 0, 2
    while first < len(gates):  # node n is entered by n edges, one from each state before it
        best, order = gates[first:first + node].sort(dim=1, descending=True, stable=True)
        kept = best[:, 0].sort(descending=True, stable=True).indices[:edges_per_node]
        for source in sorted(kept.tolist()):
            for gate, op in zip(best[source, :ops_per_edge].tolist(), order[source].tolist()):
                found.append((Edge(primitives[op], node, source), gate))
        first, node = first + node, node + 1
    return found


def dominant_operations(gates, primitives=PRIMITIVES):
    """The dominant operations of one cell type (Fig. 1, 2): a list of Edge, two a node."""
    return [edge for edge, _ in strongest(gates, primitives=primitives)]


def discretize(normal, reduce, threshold=0.85, edges_per_node=2, ops_per_edge=1,
               primitives=PRIMITIVES):
    """The Genotype of the gates of both cell types, each (edges, operations).

    Sec. 4.2: of the operations that `strongest` finds, those whose gate is at least
    `threshold` (the paper's sigma_threshold); then edges that leave a node which nothing enters
    are dropped. A cell may come out empty. threshold=0 is DARTS's rule (Eq. 3): argmax on the
    two best edges of each node.
    """
    cells = []
    for gates in (normal, reduce):
        found = strongest(gates, edges_per_node, ops_per_edge, primitives)
        cells.append(prune([edge for edge, gate in found if gate >= threshold]))
    return Genotype(*cells)


def discrete_gates(edges, like, primitives=PRIMITIVES):
    """The gates of one cell type as its genotype has them: 1 for each Edge of `edges`, 0
    elsewhere; shaped as `like`."""
    gates = torch.zeros_like(like)
    for op, node, source in edges:
        gates[edge_row(node, source), primitives.index(op)] = 1
    return gates


def edge_row(node, source):
    """The row of alphas and gates that belongs to the edge from state `source` to node `node`."""
    return node * (node - 1) // 2 - 1 + source  # 2 + ... + (node - 1) edges enter nodes before


def discretize_chain(gates, threshold=0.85, ops_per_layer=1):
    """The ChainGenotype of the gates of S2, (layers, choices).

    Each layer keeps the choices whose gate is at least `threshold`, the best `ops_per_layer` of
    them; where there is none, the identity if it is a choice, else the best. threshold=0 is
    argmax (Eq. 3). What has a gate below 0 is no choice.
    """
    layers = []
    for values, same_shape in zip(torch.as_tensor(gates).tolist(), SAME_SHAPE):
        choices = [choice for choice in range(len(CHOICES) if same_shape else IDENTITY)
                   if values[choice] >= 0]
        order = sorted(choices, key=lambda choice: -values[choice])
        kept = [choice for choice in order[:ops_per_layer] if values[choice] >= threshold]
        kept = kept or [IDENTITY if IDENTITY in choices else order[0]]
        layers.append(tuple(CHOICES[choice] for choice in sorted(kept)))
    return ChainGenotype(layers)


def dominant_choices(gates):
    """The dominant choice of each layer of S2: the best one, the first of equals."""
    return [names[0] for names in discretize_chain(gates, threshold=0).layers]


def discrete_chain_gates(genotype):
    """The gates of S2 as a ChainGenotype has them, 0 and 1: (layers, choices)."""
    return torch.tensor([[float(name in names) for name in CHOICES] for names in genotype.layers])


# ---------------------------------------------------------------- the gap, taken apart

def rounded(gates, kind="sigmoid", shared=None):
    """Each gate at the nearer end: 1 from 1/2 up; of a softmax, 1 where it is largest. (edges,
    operations) -> 0 and 1"""
    if kind == "sigmoid" and shared is None:
        return (gates >= 0.5).to(gates)
    rivals = gates if shared is None else gates.masked_fill(~shared, -1)
    best = F.one_hot(rivals.argmax(-1), gates.shape[-1]).to(gates)
    return best if shared is None else torch.where(shared, best, (gates >= 0.5).to(gates))


def encoding_gap(found, kind="sigmoid", present=None, shared=None):
    """rho, what Insight 2 is about: mean |gate - rounded gate|, relative to that of the first
    gates, 1/2 for a sigmoid and (2 / K) * (1 - 1 / K) for a softmax of K operations.

    found: the gates, (edges, operations); present, shared: see `gates`.
    """
    def distance(values):
        distances = (values - rounded(values, kind, shared)).abs()
        return (distances if present is None else distances[present]).mean()

    return distance(found) / distance(gates(torch.zeros_like(found), kind, present, shared))


def kept_edges(gates, edges_per_node=2, primitives=PRIMITIVES):
    """1 for each edge among the best of its node, else 0: (edges, operations) -> (edges, 1)"""
    kept = torch.zeros_like(gates[:, :1])
    for edge, _ in strongest(gates, edges_per_node, primitives=primitives):
        kept[edge_row(edge.node, edge.source)] = 1
    return kept


def split_gap(g, ge, gs, r, re, s):
    """The discretisation gap A(g) - A(s) in three parts that sum up to it: (rounding, edges,
    operations).

    The arguments are accuracies A, with gates as they are and rounded (g, r), of the best edges
    alone (ge, re), of the genotype alone (gs, s). Rounding is measured with all gates and with
    those of the genotype, the selection of edges, then of operations, before and after rounding;
    each is the mean of both.
    """
    rounding = ((g - r) + (gs - s)) / 2
    edges = ((g - ge) + (r - re)) / 2
    operations = ((ge - gs) + (re - s)) / 2
    return rounding, edges, operations
