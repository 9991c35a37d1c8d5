"""Read a search by what its operations are worth, not by their gates.

    python -m study.strength RUN --tune 5   # five epochs of training between two edges

After DARTS-PT (Wang et al., ICLR 2021): edges come in a random order. On each, every
operation is left out in turn; the one without which the supernet loses most is kept. In
S1 each node then keeps two edges likewise. What is lost is the cross entropy of the
validation half, by batch statistics (there: accuracy, which has ties), with the weights
of the checkpoint. Writes RUN/genotype_strength.json, or genotype_strength_tune5.json.
"""
import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

from engine import batches
from engine.data import load_again
from engine.flags import Parser, UserError, main, number
from engine.loop import progress_bar
from engine.script import old_run
from fair_darts import edge_row
from spaces import to_json
from speed import accelerate
from study import cures


def gates_of(network, present):
    """The gates of the operations that are `present`, bool (rows, operations) for each
    part; the others' are 0. Under softmax those of an edge share what is left."""
    return [network.gates_of(alphas.masked_fill(~there, -torch.inf)).nan_to_num(0)
            for alphas, there in zip(network.alphas, present)]


def keep_strongest(present, loss, generator, between):
    """Leaves one operation `present` on each edge, that without which loss(part, row,
    op) is largest, and calls between() after each edge."""
    edges = [(part, row) for part, there in enumerate(present) for row in range(len(there))]
    for index in torch.randperm(len(edges), generator=generator).tolist():
        part, row = edges[index]
        ops = present[part][row].nonzero().flatten().tolist()
        best = max(ops, key=lambda op: loss(part, row, op))
        present[part][row] = torch.arange(present[part].shape[1]) == best
        between()


def keep_strongest_edges(present, loss, nodes, count):
    """Leaves `count` edges into each of S1's nodes, likewise."""
    for part, there in enumerate(present):
        for node in range(2, nodes + 2):
            rows = range(edge_row(node, 0), edge_row(node, node))
            there[sorted(rows, key=lambda row: loss(part, row))[:-count]] = False


def read_by_strength(run, tune):
    """The genotype of the Run, whose checkpoint and dataset are loaded."""
    s, network = run.s, run.supernet(cures.gate_of(run.s)).to(run.device).train()
    network.load_state_dict(run.checkpoint["network"])
    if not s.plain:
        accelerate(network)
    (train, validation), weights = batches.halves(run), network.weights()
    sgd = torch.optim.SGD(weights, s.learning_rate / 10, s.momentum, weight_decay=s.weight_decay)
    present = [getattr(network, "present", torch.ones_like(alphas, dtype=torch.bool)).clone()
               for alphas in network.alphas]

    @torch.no_grad()
    def loss(part, row, op=slice(None)):
        less = [there.clone() for there in present]
        less[part][row, op] = False
        gates = gates_of(network, less)
        return sum(F.cross_entropy(network(images, gates), labels, reduction="sum").item()
                   for images, labels in validation.pictures.in_order())

    def between():
        for _ in range(tune * len(train)):
            images, labels = train.next()
            sgd.zero_grad()
            gates = [gates.detach() for gates in gates_of(network, present)]
            F.cross_entropy(network(images, gates), labels).backward()
            clip_grad_norm_(weights, s.grad_clip)
            sgd.step()
        if bar is not None:
            bar.update()

    with progress_bar(sum(map(len, present)), 0, "edges") as bar:
        keep_strongest(present, loss, batches.generator(s.seed, 4), between)
    if "edges_per_node" in run.space.SEARCH_FLAGS:
        keep_strongest_edges(present, loss, s.nodes, s.edges_per_node)
    return cures.genotype(s, [there.float() for there in present], ops_per_edge=1, ops_per_layer=1,
                          keep_skips=-1)


def strength():
    parser = Parser(__doc__, {"flags": {
        "tune": (0, number(int, 0), "epochs of training the weights between two edges"),
        "device": (None, str, "auto, cpu, cuda, cuda:1, mps; without it the search's"),
        "data": (None, str, "where the pictures are now")}})
    parser.add_argument("run", metavar="RUN", help="the folder of a search")
    given = {"tune": 0, **parser.parse_args()}
    with old_run("train_search", given["run"], given) as run:
        run.read_checkpoint()
        if not run.checkpoint:
            raise UserError(f"{run.folder!r} has no checkpoint yet: go on with the search first")
        load_again(run)
        genotype = read_by_strength(run, given["tune"])
        suffix = f"_tune{given['tune']}" if given["tune"] else ""
        run.write(f"genotype_strength{suffix}.json", to_json(genotype))
        print(genotype)


if __name__ == "__main__":
    main(strength)
