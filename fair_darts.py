"""The method of Fair DARTS (arXiv 1911.12126), equation by equation.

Eq. 2   DARTS: the operations of an edge compete, their weights are softmax(alpha)
Eq. 3   DARTS: each edge keeps the operation of the largest weight
Eq. 4   alpha minimises the validation loss, the weights w minimise the training loss
Eq. 6   Fair DARTS: every operation has a gate of its own, sigmoid(alpha)
Eq. 7   the zero-one loss L01 drives gates to 0 or 1; Eq. 9: its L1 form acts too early
Eq. 8   alpha minimises L_val(w*(alpha), alpha) + w01 * L01

Alphas and gates of one cell type are a matrix: a row an edge, ordered by the node that
it enters, then by the state that it leaves; a column an operation, in the order of
genotypes.PRIMITIVES or of the `primitives` given.
"""
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch.func import functional_call

from genotypes import PRIMITIVES, Edge, Genotype


def gates(alphas, kind="sigmoid"):
    """A gate for every operation, from 0 to 1: (edges, operations) -> the same shape.

    kind: "sigmoid", independent gates (Eq. 6), or "softmax", which compete (Eq. 2).
    """
    return GATES[kind](alphas)


def zero_one_loss(gates):
    """Eq. 7: -(1/N) * sum of (gate - 0.5)^2; at 0.5 flat and 0, at 0 and 1 -0.25."""
    return -((gates - 0.5) ** 2).mean()


def zero_one_loss_l1(gates):
    """Eq. 9: -(1/N) * sum of |gate - 0.5|; its slope is ±1/N once a gate leaves 0.5, so
    gates go to 0 or 1 before the network has learnt which operations help."""
    return -(gates - 0.5).abs().mean()


GATES = {"sigmoid": torch.sigmoid, "softmax": lambda alphas: torch.softmax(alphas, -1)}
PENALTIES = {"l2": zero_one_loss, "l1": zero_one_loss_l1}  # the values of --zero_one_loss


@contextmanager
def frozen(parameters):
    """Within it the `parameters` need no gradient, and no work for one is done."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def gradients(loss, inputs):
    """d loss / d input for each of the inputs; 0 where there is no dependence."""
    return torch.autograd.grad(loss, inputs, materialize_grads=True)


class Architect:
    """The optimiser of alpha (Eq. 8): Adam on L_val + w01 * L01.

    network: a model_search.Network, or a module with .alphas, .weights(), .all_gates().
    penalty: a function of all gates. gradients: of a loss and its inputs, as above;
    update: does a step of the optimizer.
    """

    def __init__(self, network, learning_rate=3e-3, betas=(0.9, 0.999), weight_decay=1e-3,
                 w01=10.0, penalty=zero_one_loss, gradients=gradients,
                 update=lambda optimizer: optimizer.step()):
        self.network, self.w01, self.penalty = network, w01, penalty
        self.gradients, self.update = gradients, update
        self.weights, self.alphas = network.weights(), list(network.alphas)
        self.optimizer = torch.optim.Adam(self.alphas, learning_rate, betas,
                                          weight_decay=weight_decay, fused=True)

    def step(self, images, labels, train_images=None, train_labels=None, sgd=None):
        """One step of Adam. First order: the weights are taken as constant, but batch
        norm's statistics move, as in DARTS. With a training batch and SGD: `unrolled`.

        images: (B, C, H, W), labels: (B,), of the validation half. Returns the
        validation loss and the penalty, two scalar tensors.
        """
        if sgd is not None:
            grads, loss, penalty = self.unrolled(images, labels, train_images, train_labels, sgd)
        else:
            with frozen(self.weights):
                loss, penalty = self.losses(images, labels)
                grads = self.gradients(loss + self.w01 * penalty, self.alphas)  # Eq. 8
        for alpha, grad in zip(self.alphas, grads):
            alpha.grad = grad
        self.update(self.optimizer)
        self.optimizer.zero_grad()
        return loss.detach(), penalty.detach()

    def losses(self, images, labels):
        """The validation loss, and the penalty of all gates."""
        loss = F.cross_entropy(self.network(images), labels)
        return loss, self.penalty(self.network.all_gates())

    def unrolled(self, images, labels, train_images, train_labels, sgd, radius=1e-2):
        """The gradients of L_val(w') + w01 * L01 for each alpha (DARTS, Sec. 2.3),
        where w' = w - rate * (momentum * v + g + decay * w) and g = grad_w L_train(w,
        alpha). By the chain rule, with r = grad_w' L_val(w'), they are

            grad_alpha (L_val(w') + w01 * L01) - rate * d/dalpha (g . r)

        and the last factor is the central difference of grad_alpha L_train over w +-
        eps * r, divided by 2 eps. Returns them, the validation loss and the penalty.
        Leaves weights and batch-norm statistics as they were.

        sgd: for its rate, momentum and weight decay; radius: eps times the length of r.
        """
        names = {w: name for name, w in self.network.named_parameters()}
        weights, group = {names[w]: w for w in self.weights}, sgd.param_groups[0]
        g = self.gradients(self.loss(weights, train_images, train_labels), self.weights)
        moved = {}
        for (name, w), grad in zip(weights.items(), g):
            v = sgd.state.get(w, {}).get("momentum_buffer", 0)  # 0 before the first step of SGD
            step = grad + group["weight_decay"] * w.detach() + group["momentum"] * v
            moved[name] = (w.detach() - group["lr"] * step).requires_grad_()

        loss = self.loss(moved, images, labels)
        penalty = self.penalty(self.network.all_gates())
        grads = self.gradients(loss + self.w01 * penalty, [*self.alphas, *moved.values()])
        direct, r = grads[:len(self.alphas)], grads[len(self.alphas):]
        eps = radius / torch.cat([v.flatten() for v in r]).norm()
        ends = []
        for sign in (1, -1):
            nearby = {name: w.detach() + sign * eps * v for (name, w), v in zip(weights.items(), r)}
            ends.append(self.gradients(self.loss(nearby, train_images, train_labels), self.alphas))
        grads = [d - group["lr"] * (plus - minus) / (2 * eps)
                 for d, plus, minus in zip(direct, *ends)]
        return grads, loss, penalty

    def loss(self, weights, images, labels):
        """Cross entropy of the network with other `weights` (name -> tensor)."""
        buffers = {name: b.clone() for name, b in self.network.named_buffers()}  # they change
        logits = functional_call(self.network, {**weights, **buffers}, (images,))
        return F.cross_entropy(logits, labels)


# ---------------------------------------------------------------- discretisation

def strongest(gates, edges_per_node=2, ops_per_edge=1, primitives=PRIMITIVES):
    """For each node its `edges_per_node` edges of the highest best gate, and on each of
    these the `ops_per_edge` best operations.

    gates: (edges, operations) of one cell type. Returns [(Edge, gate)], by node, then
    source, then gate; among equals the lower index counts as better.
    """
    pairs = []
    for node, rows in by_node(gates):
        ranked, order = rows.sort(dim=1, descending=True, stable=True)
        kept = ranked[:, 0].sort(descending=True, stable=True).indices[:edges_per_node]
        for source in sorted(kept.tolist()):
            for gate, op in zip(ranked[source, :ops_per_edge].tolist(), order[source].tolist()):
                pairs.append((Edge(primitives[op], node, source), gate))
    return pairs


def by_node(gates):
    """(node, rows of its incoming edges): node n has n, from each state before."""
    gates, node = torch.as_tensor(gates), 2
    while len(gates):
        yield node, gates[:node]
        gates, node = gates[node:], node + 1


def discretize(normal, reduce, threshold=0.85, edges_per_node=2, ops_per_edge=1,
               primitives=PRIMITIVES):
    """The Genotype of the gates of both cell types, each (edges, operations).

    Sec. 4.2: of the operations that `strongest` finds, those whose gate is at least
    `threshold` (the paper's sigma_threshold); then edges that leave a node which
    nothing enters are dropped. A cell may come out empty. threshold=0 is DARTS's rule
    (Eq. 3): argmax on the two best edges of each node.
    """
    cells = []
    for gates in (normal, reduce):
        pairs = strongest(gates, edges_per_node, ops_per_edge, primitives)
        cells.append(prune([edge for edge, gate in pairs if gate >= threshold]))
    return Genotype(*cells)


def prune(edges):
    """`edges` without those that leave a node which no edge enters, until none does."""
    states = {0, 1} | {edge.node for edge in edges}
    kept = [edge for edge in edges if edge.source in states]
    return edges if len(kept) == len(edges) else prune(kept)


def edge_row(node, source):
    """The row of alphas and gates of the edge from state `source` to node `node`."""
    return node * (node - 1) // 2 - 1 + source  # 2 + ... + (node - 1) edges before
