"""Train the network of a genotype from scratch, and test it.

    python train_eval.py --arch FairDARTS_a                     # digits without a GPU, CIFAR-10 with one
    python train_eval.py --arch runs/NAME/genotype.json --dataset folder --data DIR
    python train_eval.py --resume RUN                           # go on with a run that was stopped
    python train_eval.py --evaluate RUN                         # test the best weights of a run

Leaves in the run's folder: best.pt (the weights of the best test accuracy), metrics.csv.
"""
import argparse
import shlex

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

import data
import genotypes
from flags import (RUN_DEFAULTS, Parser, UserError, add_flags, add_run_flags, main, number, one_of, refuse,
                   resumed_settings)
from model_eval import NetworkCIFAR, NetworkS2
from runs import Precision, Run, Task, choose_device, cosine

# The published recipe on CIFAR-10. data.RECIPES has what other sets change; flags override both.
RECIPE = dict(epochs=600, batch_size=96, init_channels=36, layers=20, learning_rate=0.025, momentum=0.9,
              weight_decay=3e-4, grad_clip=5.0, auxiliary=True, auxiliary_weight=0.4, cutout=True, cutout_length=16,
              drop_path_prob=0.2, width=1.0, dropout=0.2, squeeze=False, h_swish=False)
OTHER = dict(arch=None, dataset=None, data="data", image_size=32, skip_bad_images=False, **RUN_DEFAULTS)
CELL_FLAGS = {"init_channels", "layers", "auxiliary", "auxiliary_weight", "drop_path_prob"}
CHAIN_FLAGS = {"width", "dropout", "squeeze", "h_swish"}
MAY_CHANGE = {"epochs", "device", "data", "checkpoint_minutes"}


def flags():
    positive, rate = number(int, 1), number(float, 0)
    parser = Parser(__doc__)
    add_flags(parser, {**OTHER, **RECIPE}, {name: recipe.eval for name, recipe in data.RECIPES.items()},
        arch=(str, "a published name, the path of a genotype.json, or the text of a genotype"),
        dataset=(one_of(data.RECIPES), f"one of {', '.join(data.RECIPES)}"),
        data=(str, "folder of the downloaded sets, or of your pictures"),
        image_size=(number(int, 8), "side to which your pictures are brought, in pixels"),
        skip_bad_images=(bool, "leave out files that cannot be used as pictures"),
        epochs=(positive, "passes over the training set"),
        batch_size=(number(int, 2), "pictures in a step"),
        init_channels=(number(int, 2), "cells: channels of the first ones"),
        layers=(positive, "cells: how many"),
        width=(number(float, 0, open_ends=True), "chains: factor of all channels"),
        dropout=(number(float, 0, 0.999), "chains: before the classifier"),
        squeeze=(bool, "chains: squeeze-and-excitation in every block"),
        h_swish=(bool, "chains: h-swish in place of ReLU6"),
        learning_rate=(rate, "at the start of a cosine that ends at 0"),
        momentum=(rate, "of SGD"),
        weight_decay=(rate, "of SGD"),
        grad_clip=(number(float, 0, open_ends=True), "largest norm of the gradient"),
        auxiliary=(bool, "cells: an auxiliary head at two thirds of the depth"),
        auxiliary_weight=(rate, "weight of its loss"),
        cutout=(bool, "a random square of each picture blanked"),
        cutout_length=(positive, "its side, in pixels"),
        drop_path_prob=(number(float, 0, 0.999), "cells: share of dropped paths in the last epoch, rising from 0"))
    add_run_flags(parser)
    parser.add_argument("--evaluate", metavar="RUN", help="folder of a run to test, without training")
    return parser


def count(network, shape):
    """(parameters, those of the auxiliary head, multiply-accumulates of convolutions and linear layers for one
    picture of `shape`, without the auxiliary head)."""
    head = sum(w.numel() for w in network.auxiliary.parameters()) if network.auxiliary is not None else 0
    network.eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(torch.zeros(1, *shape, device=next(network.parameters()).device))
    return sum(w.numel() for w in network.parameters()), head, counter.get_total_flops() // 2  # 2 flops a MAC


def build(s, dataset, device):
    torch.manual_seed(s.seed)
    genotype, classes, (channels, size) = genotypes.get(s.arch), len(dataset.classes), dataset.images.shape[1:3]
    if isinstance(genotype, genotypes.ChainGenotype):
        return NetworkS2(genotype, classes, s.dropout, s.width, s.squeeze, s.h_swish, channels, size).to(device)
    return NetworkCIFAR(genotype, s.init_channels, classes, s.layers, s.auxiliary, channels).to(device)


@torch.no_grad()
def test(network, images, labels, mean, std):
    """(mean cross entropy, accuracy in percent)"""
    network.eval()
    loss = hits = 0
    for batch, targets in data.in_order(images, labels, mean, std):
        logits, _ = network(batch)
        loss += F.cross_entropy(logits, targets, reduction="sum")
        hits += (logits.argmax(1) == targets).sum()
    return loss.item() / len(labels), 100 * hits.item() / len(labels)


class Training(Task):
    """A training: the network, its optimiser, the batches."""

    def __init__(self, s, dataset, device):
        self.network, self.precision = build(s, dataset, device), Precision(device, s.amp)
        self.network.recompute = s.recompute
        if s.compile:
            self.network.compile()
        self.sgd = torch.optim.SGD(self.network.parameters(), s.learning_rate, s.momentum,
                                   weight_decay=s.weight_decay)
        images, labels, mean, std, *test_set = (t.to(device) for t in (
            dataset.images, dataset.labels, dataset.mean, dataset.std, dataset.test_images, dataset.test_labels))
        self.test_set = (*test_set, mean, std)
        recipe = data.RECIPES[dataset.name]
        self.train = data.Batches(images, labels, mean, std, s.batch_size, recipe.padding, recipe.flip,
                                  s.cutout_length if s.cutout else 0, data.generator(s.seed, 2))
        super().__init__(s, len(self.train))

    def parts(self):
        return {"network": self.network, "sgd": self.sgd, "train": self.train, "scaler": self.precision.scaler}

    def begin(self, epoch):
        s = self.settings
        self.network.train()
        self.network.drop_path_prob = s.drop_path_prob * epoch / s.epochs
        for group in self.sgd.param_groups:
            group["lr"] = cosine(epoch, s.epochs, s.learning_rate)

    def step(self):
        images, labels = self.train.next()
        with self.precision.autocast():
            logits, auxiliary_logits = self.network(images)
        loss = total = F.cross_entropy(logits, labels)
        if auxiliary_logits is not None:
            total = loss + self.settings.auxiliary_weight * F.cross_entropy(auxiliary_logits, labels)
        self.sgd.zero_grad()
        norm = self.precision.descend(total, self.sgd, self.network.parameters(), self.settings.grad_clip)
        return loss.detach(), [loss.detach(), (logits.argmax(1) == labels).sum()], [total.detach(), norm]

    def finish(self, means):
        train_loss, hits = means
        test_loss, test_accuracy = test(self.network, *self.test_set)
        return dict(epoch=len(self.rows) + 1, train_loss=train_loss, train_accuracy=100 * hits / self.settings.batch_size,
                    test_loss=test_loss, test_accuracy=test_accuracy, learning_rate=self.sgd.param_groups[0]["lr"],
                    drop_path_prob=self.network.drop_path_prob)

    def best(self):
        """The row of the best test accuracy, the first of equals."""
        return max(self.rows, key=lambda row: row["test_accuracy"])

    def line(self, row):
        return ("train loss {train_loss:.4f} acc {train_accuracy:.2f}%  test loss {test_loss:.4f} "
                "acc {test_accuracy:.2f}%").format(**row)

    def save_results(self, run):
        if self.best() is self.rows[-1]:
            run.save("best.pt", {"network": self.network.state_dict(), "epoch": len(self.rows)})


def evaluate(parser, given):
    """Test the best weights of a run."""
    run = Run.open(given["evaluate"], "train_eval")
    settings = resumed_settings(run, parser, given, {"device", "data"})
    s, device = argparse.Namespace(**settings), choose_device(settings["device"])
    dataset = data.load_again(run, settings, device)
    network = build(s, dataset, device)
    try:
        best = run.load("best.pt", ("network", "epoch"))
    except FileNotFoundError:
        raise UserError(f"{run.folder!r} has no best.pt: it stopped before its first epoch was done") from None
    run.restore(network, best["network"])
    loss, accuracy = test(network, *(t.to(device) for t in (dataset.test_images, dataset.test_labels, dataset.mean,
                                                            dataset.std)))
    print(f"{run.folder}: weights of epoch {best['epoch']}  test loss {loss:.4f} acc {accuracy:.2f}%")


def carry_out(run, task, settings, dataset):
    """Train from where `task` is. Returns the exit code."""
    shape = dataset.images.shape[1:]
    parameters, head, macs = count(task.network, shape)
    run.log(f"run: {run.folder}  dataset: {dataset.name}, {len(dataset.labels)} + {len(dataset.test_labels)} pictures "
            f"{tuple(shape)}  device: {task.train.images.device}\n{parameters:,} parameters, {parameters - head:,} without the "
            f"auxiliary head, {macs / 1e6:.2f} M MACs: {task.settings.arch}")
    code = run.go_on(task, settings)
    if code:
        return code
    best = task.best()
    run.log(f"best test accuracy {best['test_accuracy']:.2f}% in epoch {best['epoch']}; test it again: "
            f"python train_eval.py --evaluate {shlex.quote(run.folder)}")
    return 0


def train():
    parser = flags()
    given = parser.parse_args()
    if "arch" in given:
        given["arch"] = str(genotypes.get(given["arch"]))
    if "evaluate" in given:
        return evaluate(parser, given)
    if "resume" in given:
        with Run.open(given["resume"], "train_eval") as run:
            settings, state = resumed_settings(run, parser, given, MAY_CHANGE), run.load_checkpoint()
            device = choose_device(settings["device"])
            dataset = data.load_again(run, settings, device)
            task = Training(argparse.Namespace(**settings), dataset, device)
            if state:
                run.restore(task, state)
            return carry_out(run, task, settings, dataset)
    if "arch" not in given:
        raise UserError("--arch is missing: give a published name (FairDARTS_a), the path of a genotype.json or "
                        "the text of a genotype")
    if isinstance(genotypes.get(given["arch"]), genotypes.ChainGenotype):
        refuse(given, CELL_FLAGS, "is for architectures of cells, and this one is a chain")
    else:
        refuse(given, CHAIN_FLAGS, "is for chains, and this architecture is of cells")
    device = choose_device(given.get("device", "auto"))
    dataset, why = data.load_asked(given, device)
    settings = {**OTHER, **RECIPE, **data.RECIPES[dataset.name].eval, **given, "dataset": dataset.name}
    data.check_batch(settings["batch_size"], len(dataset.labels))
    task = Training(argparse.Namespace(**settings), dataset, device)
    with Run.create("train_eval", settings, data.fingerprint(dataset)) as run:
        if why:
            run.log(f"dataset: {why}")
        return carry_out(run, task, settings, dataset)


if __name__ == "__main__":
    main(train)
