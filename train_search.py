"""Search an architecture: alpha on the validation half, weights on the training half (Eq. 4, 8).

    python train_search.py --w01 10                     # digits without a GPU, CIFAR-10 with one
    python train_search.py --gate softmax               # the DARTS baseline
    python train_search.py --space s2                   # a chain of inverted bottlenecks
    python train_search.py --dataset folder --data DIR  # your pictures: DIR/train/<class>/*, DIR/test/<class>/*
    python train_search.py --resume RUN                 # go on with a run that was stopped
    python train_search.py --resume RUN --threshold 0.8 # derive again from a run's gates, without searching

Leaves in the run's folder: genotype.json, metrics.csv, figures/, gates.npz (normal, reduce: (epochs, edges, operations), or in
S2 layers: (epochs, layers, choices), NaN where there is no such choice; primitives: the operations' names).
"""
import argparse
import io
import math
import shlex
import warnings

import numpy as np
import torch
import torch.nn.functional as F

import data
import genotypes
from fair_darts import (Architect, discrete_chain_gates, discrete_gates, discretize, discretize_chain, dominant_choices,
                        dominant_operations, frozen, strongest, zero_one_loss, zero_one_loss_l1)
from flags import RUN_DEFAULTS, Parser, add_flags, add_run_flags, main, number, one_of, refuse, resumed_settings
from model_search import Network, NetworkS2
from operations import frozen_statistics
from runs import Precision, Run, Task, choose_device, cosine

# The published recipe on CIFAR-10. data.RECIPES has what other sets change; flags override both.
RECIPE = dict(epochs=50, batch_size=128, init_channels=16, layers=8, nodes=4, train_portion=0.5,
              learning_rate=0.005, learning_rate_min=0.001, momentum=0.9, weight_decay=3e-4, grad_clip=5.0,
              arch_learning_rate=3e-3, arch_beta1=0.9, arch_weight_decay=1e-3, w01=10.0, threshold=0.85,
              primitives=",".join(genotypes.PRIMITIVES))
# What DARTS does otherwise. Its rule (Eq. 3) is argmax, with no threshold.
SOFTMAX = dict(batch_size=64, learning_rate=0.025, arch_learning_rate=3e-4, arch_beta1=0.5, w01=0.0, threshold=0.0)
OTHER = dict(space="s1", gate="sigmoid", zero_one_loss="l2", unrolled=False, edges_per_node=2, ops_per_edge=1, width=1.0,
             ops_per_layer=1, gap_every=5, figures_every=10, dataset=None,
             data="data", image_size=32, skip_bad_images=False, **RUN_DEFAULTS)
CELL_FLAGS = {"primitives", "edges_per_node", "ops_per_edge", "init_channels", "layers", "nodes"}
CHAIN_FLAGS = {"width", "ops_per_layer"}
MAY_CHANGE = {"epochs", "threshold", "edges_per_node", "ops_per_edge", "ops_per_layer", "device", "data", "checkpoint_minutes",
              "gap_every", "figures_every"}


def flags():
    positive, rate, share = number(int, 1), number(float, 0), number(float, 0, 1, open_ends=True)
    parser = Parser(__doc__)
    others = {"softmax": SOFTMAX, **{name: recipe.search for name, recipe in data.RECIPES.items()}}
    add_flags(parser, {**OTHER, **RECIPE}, others,
        space=(one_of(SPACES), "s1, cells, or s2, a chain of inverted bottlenecks"),
        gate=(one_of(["sigmoid", "softmax"]), "sigmoid (Eq. 6), or softmax (Eq. 2) with DARTS's recipe"),
        w01=(rate, "weight of the zero-one loss (Eq. 8)"),
        primitives=(operation_names, "s1: operations to choose from, separated by commas"),
        zero_one_loss=(one_of(["l2", "l1"]), "l2 (Eq. 7) or l1 (Eq. 9)"),
        threshold=(number(float, 0, 1), "gates from here up are kept (Sec. 4.2); 0: argmax (Eq. 3)"),
        edges_per_node=(positive, "s1: edges kept for each node, at most"),
        ops_per_edge=(positive, "s1: operations kept on each edge, at most"),
        ops_per_layer=(positive, "s2: choices kept in each layer, at most"),
        gap_every=(number(int, 0), "epochs between measurements of the discretisation gap; 0: never"),
        figures_every=(number(int, 0), "epochs between drawings of the figures; 0: never"),
        unrolled=(bool, "second-order steps on alpha, as in DARTS"),
        dataset=(one_of(data.RECIPES), f"one of {', '.join(data.RECIPES)}"),
        data=(str, "folder of the downloaded sets, or of your pictures"),
        image_size=(number(int, 8), "side to which your pictures are brought, in pixels"),
        skip_bad_images=(bool, "leave out files that cannot be used as pictures"),
        train_portion=(share, "part of the training set that trains the weights"),
        epochs=(positive, "passes over that part"),
        batch_size=(number(int, 2), "pictures in a step"),
        init_channels=(number(int, 2), "s1: channels of the first cells"),
        layers=(positive, "s1: cells"),
        nodes=(number(int, 1, 4), "s1: nodes in a cell"),
        width=(number(float, 0, open_ends=True), "s2: factor of all channels"),
        learning_rate=(rate, "of the weights, at the start of a cosine"),
        learning_rate_min=(rate, "of the weights, at its end"),
        momentum=(rate, "of the weights"),
        weight_decay=(rate, "of the weights"),
        grad_clip=(number(float, 0, open_ends=True), "largest norm of the weights' gradient"),
        arch_learning_rate=(rate, "of the alphas (Adam)"),
        arch_beta1=(share, "Adam's first beta; the second is 0.999"),
        arch_weight_decay=(rate, "of the alphas"))
    add_run_flags(parser)
    return parser


def operation_names(text):
    """A type for argparse: distinct names out of PRIMITIVES, separated by commas; returned in the order of PRIMITIVES."""
    names = text.split(",")
    for name in names:
        one_of(genotypes.PRIMITIVES)(name)
    if len(set(names)) < len(names):
        raise argparse.ArgumentTypeError(f"{next(n for n in names if names.count(n) > 1)!r} is named twice")
    return ",".join(name for name in genotypes.PRIMITIVES if name in names)


class S1:
    """The space of cells, as a search needs it."""

    def __init__(self, s):
        self.settings, self.primitives = s, s.primitives.split(",")

    def network(self, classes, channels, size):
        s = self.settings
        return Network(s.init_channels, classes, s.layers, s.nodes, channels, s.gate, self.primitives)

    def genotype(self, gates):
        s = self.settings
        return discretize(*gates, s.threshold, s.edges_per_node, s.ops_per_edge, self.primitives)

    def discrete_gates(self, genotype, gates):
        return [discrete_gates(edges, g, self.primitives) for edges, g in zip(genotype, gates)]

    def dominant(self, gates):
        """{cell: names of its dominant operations}"""
        return {cell: [edge.op for edge in dominant_operations(g, self.primitives)]
                for cell, g in zip(genotypes.Genotype._fields, gates)}

    def arrays(self, gates):  # (epochs, 2, edges, operations)
        return {"normal": gates[:, 0], "reduce": gates[:, 1]}

    def shortfall(self, genotype, gates):
        """Why `genotype` is none: a line and a threshold that would give one; or None."""
        s = self.settings
        best = {cell: max(strongest(g, primitives=self.primitives), key=lambda found: found[1])
                for cell, g in zip(genotypes.Genotype._fields, gates)}
        short = [f"{cell} cell: {gate:.4f}, {edge.op} from state {edge.source} to node {edge.node}"
                 for cell, (edge, gate) in best.items() if gate < s.threshold]
        if short:
            return (f"no gate of a cell reaches --threshold {s.threshold}; the nearest is, {'; '.join(short)}. Search longer, with "
                    "a larger --w01 or --arch_learning_rate, or derive again from the gates recorded:",
                    math.floor(100 * min(gate for _, gate in best.values())) / 100)
        for cell, edges in genotype._asdict().items():
            if not edges:
                return (f"the {cell} cell is empty: all its edges whose gate reaches --threshold {s.threshold} leave nodes that "
                        "nothing enters. Derive again with a lower one:", round(max(0.01, s.threshold - 0.1), 2))
        return None


class S2:
    """The space of chains, as a search needs it."""
    primitives = genotypes.CHOICES

    def __init__(self, s):
        self.settings = s

    def network(self, classes, channels, size):
        return NetworkS2(classes, channels, self.settings.gate, self.settings.width, size)

    def genotype(self, gates):
        return discretize_chain(gates[0], self.settings.threshold, self.settings.ops_per_layer)

    def discrete_gates(self, genotype, gates):
        return [discrete_chain_gates(genotype).to(gates[0])]

    def dominant(self, gates):
        return {"layers": dominant_choices(gates[0])}

    def arrays(self, gates):  # (epochs, 1, layers, choices)
        layers = gates[:, 0].clone()
        layers[:, ~torch.tensor(genotypes.SAME_SHAPE), genotypes.IDENTITY] = torch.nan
        return {"layers": layers}

    def shortfall(self, genotype, gates):
        return None  # a layer without a gate at the threshold is the identity, or its best choice


SPACES = {"s1": S1, "s2": S2}


class Search(Task):
    """A search: the network, the optimisers of weights and alphas, the batches of both halves, the gates of each epoch."""

    def __init__(self, s, dataset, device):
        torch.manual_seed(s.seed)
        self.space = SPACES[s.space](s)
        self.network = self.space.network(len(dataset.classes), *dataset.images.shape[1:3]).to(device)
        self.sgd = torch.optim.SGD(self.network.weights(), s.learning_rate, s.momentum, weight_decay=s.weight_decay)
        self.precision = Precision(device, s.amp)
        self.network.recompute = s.recompute
        if s.compile:
            self.network.compile()
        penalty = {"l2": zero_one_loss, "l1": zero_one_loss_l1}[s.zero_one_loss]
        self.architect = Architect(self.network, s.arch_learning_rate, (s.arch_beta1, 0.999), s.arch_weight_decay,
                                   s.w01, penalty, self.precision.autocast, self.precision.loss_scale)
        images, labels, mean, std = (t.to(device) for t in (dataset.images, dataset.labels, dataset.mean, dataset.std))
        recipe = data.RECIPES[dataset.name]
        halves = [half.to(device) for half in data.split(len(labels), s.train_portion, s.seed)]
        self.train, self.validation = [
            data.Batches(images[half], labels[half], mean, std, s.batch_size, recipe.padding, recipe.flip, 0,
                         data.generator(s.seed, stream)) for stream, half in enumerate(halves, 2)]
        self.gates = []  # of each epoch: (2, edges, operations) in S1, (1, layers, choices) in S2
        super().__init__(s, len(self.train))

    def parts(self):
        return {"network": self.network, "sgd": self.sgd, "adam": self.architect.optimizer, "train": self.train,
                "validation": self.validation, "scaler": self.precision.scaler}

    def begin(self, epoch):
        s = self.settings
        self.network.train()
        for group in self.sgd.param_groups:
            group["lr"] = cosine(epoch, s.epochs, s.learning_rate, s.learning_rate_min)

    def step(self):
        """Alpha on a batch of the validation half, then the weights on one of the training half."""
        images, labels = self.train.next()
        if self.settings.unrolled:
            val_loss, penalty = self.architect.step_unrolled(*self.validation.next(), images, labels, self.sgd)
        else:
            val_loss, penalty = self.architect.step(*self.validation.next())
        self.sgd.zero_grad()
        with frozen(self.network.alphas):
            with self.precision.autocast():
                logits = self.network(images)
            loss = F.cross_entropy(logits, labels)
            norm = self.precision.descend(loss, self.sgd, self.network.weights(), self.settings.grad_clip)
        figures = [val_loss, penalty, loss.detach(), (logits.argmax(1) == labels).sum()]
        return loss.detach(), figures, [norm, *(alpha.detach().sum() for alpha in self.network.alphas)]

    def finish(self, means):
        val_loss, penalty, train_loss, hits = means
        gates = self.network.all_gates().detach()
        threshold = self.settings.threshold or RECIPE["threshold"]
        skips = {"skips_" + part: ops.count("skip_connect") for part, ops in self.space.dominant(self.last_gates()).items()}
        return dict(
            epoch=len(self.rows) + 1, train_loss=train_loss, train_accuracy=100 * hits / self.settings.batch_size,
            valid_loss=val_loss, valid_accuracy=self.test(), penalty=penalty, gate_min=gates.min().item(),
            gate_max=gates.max().item(), gates_above=int((gates >= threshold).sum()),
            gates_below=int((gates <= 1 - threshold).sum()), **skips, **self.gap(), learning_rate=self.sgd.param_groups[0]["lr"])

    def last_gates(self):
        return torch.stack([g.detach().cpu() for g in self.network.gates()])

    def close(self, row):
        self.gates.append(self.last_gates())
        super().close(row)

    def test(self):
        """Accuracy of the supernet on the validation half, in percent."""
        self.network.eval()
        return self.accuracy()

    @torch.no_grad()
    def accuracy(self, gates=None):
        v = self.validation
        hits = sum((self.network(images, gates).argmax(1) == labels).sum()
                   for images, labels in data.in_order(v.images, v.labels, v.mean, v.std))
        return 100 * hits.item() / len(v.labels)

    def gap(self):
        """The discretisation gap (Insight 2): accuracies on the validation half, in percent, with the gates as they are and
        with those of the genotype, 0 and 1; by batch statistics, since the running ones belong to the former gates. None
        where it is not the epoch for it."""
        s, epoch = self.settings, len(self.rows) + 1
        if not s.gap_every or (epoch % s.gap_every and epoch != s.epochs):
            return dict(soft_accuracy=None, discrete_accuracy=None)
        gates = [g.detach() for g in self.network.gates()]
        discrete = self.space.discrete_gates(self.space.genotype(gates), gates)
        self.network.train()
        with frozen_statistics():
            return dict(soft_accuracy=self.accuracy(gates), discrete_accuracy=self.accuracy(discrete))

    def line(self, row):
        skips = ", ".join(f"{name[6:]} {count}" for name, count in row.items() if name.startswith("skips_"))
        return ("train loss {train_loss:.4f} acc {train_accuracy:.2f}%  valid loss {valid_loss:.4f} "
                "acc {valid_accuracy:.2f}%  L01 {penalty:.4f}  gates {gate_min:.3f} to {gate_max:.3f}, {gates_above} "
                "above, {gates_below} below  dominant skips: {skips}"
                + "  gap {soft_accuracy:.2f}% - {discrete_accuracy:.2f}%" * (row["soft_accuracy"] is not None)
                ).format(**row, skips=skips)

    def save_results(self, run):
        file = io.BytesIO()
        np.savez(file, **self.space.arrays(torch.stack(self.gates)), primitives=self.space.primitives)
        run.write("gates.npz", file.getvalue())
        every, done = self.settings.figures_every, len(self.rows)
        if every and done % every == 0 and done < self.settings.epochs:
            draw_figures(run)

    def state_dict(self):
        return {**super().state_dict(), "gates": self.gates}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.gates = state["gates"]


def draw_figures(run):
    """Draw what is recorded so far. Whatever goes wrong, the search goes on."""
    try:
        import visualize
        visualize.draw_run(run.folder)
    except Exception as error:
        warnings.warn(f"no figures: {type(error).__name__}: {error}")


def derive(run, s, gates):
    """Write and print the genotype of the last gates, see Search.gates. Returns the exit code."""
    space = SPACES[s.space](s)
    genotype = space.genotype(gates)
    short = space.shortfall(genotype, gates)
    if short:
        why, threshold = short
        run.log(f"{why}\npython train_search.py --resume {shlex.quote(run.folder)} --threshold {threshold}")
        return 1
    run.write("genotype.json", genotypes.to_json(genotype))
    command = ["python", "train_eval.py", "--arch", run.path("genotype.json"), "--dataset", s.dataset]
    for name in ("data", "image_size") + ("width",) * (s.space == "s2"):
        if getattr(s, name) != OTHER[name]:
            command += ["--" + name, str(getattr(s, name))]
    if s.skip_bad_images:
        command.append("--skip_bad_images")
    if s.figures_every:
        draw_figures(run)
    run.log(f"{genotype}\n{shlex.join(command)}")
    return 0


def carry_out(run, task, settings, dataset):
    """Search from where `task` is. Returns the exit code."""
    run.log(f"run: {run.folder}  dataset: {dataset.name}, {len(task.train.labels)} + {len(task.validation.labels)} pictures "
            f"{tuple(dataset.images.shape[1:])}  supernet: {sum(w.numel() for w in task.network.weights()):,} weights  "
            f"device: {task.train.images.device}")
    return run.go_on(task, settings) or derive(run, task.settings, task.gates[-1])


def go_on(run, settings):
    state = run.load_checkpoint()
    s = argparse.Namespace(**settings)
    if state and len(state["rows"]) == s.epochs:
        return derive(run, s, state["gates"][-1])
    device = choose_device(s.device)
    dataset = data.load_again(run, settings, device)
    task = Search(s, dataset, device)
    if state:
        run.restore(task, state)
    return carry_out(run, task, settings, dataset)


def search():
    parser = flags()
    given = parser.parse_args()
    if "resume" in given:
        with Run.open(given["resume"], "train_search") as run:
            return go_on(run, resumed_settings(run, parser, given, MAY_CHANGE))
    if given.get("space") == "s2":
        refuse(given, CELL_FLAGS, "is of the space s1")
    else:
        refuse(given, CHAIN_FLAGS, "is of --space s2")
    device = choose_device(given.get("device", "auto"))
    dataset, why = data.load_asked(given, device)
    settings = {**OTHER, **RECIPE, **data.RECIPES[dataset.name].search,
                **(SOFTMAX if given.get("gate") == "softmax" else {}), **given, "dataset": dataset.name}
    count = len(dataset.labels)
    train_count = len(data.split(count, settings["train_portion"], 0)[0])
    data.check_batch(settings["batch_size"], min(train_count, count - train_count))
    task = Search(argparse.Namespace(**settings), dataset, device)
    with Run.create("train_search", settings, data.fingerprint(dataset)) as run:
        if why:
            run.log(f"dataset: {why}")
        return carry_out(run, task, settings, dataset)


if __name__ == "__main__":
    main(search)
