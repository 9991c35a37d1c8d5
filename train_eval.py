"""Train the network of a genotype from scratch, and test it.

    python train_eval.py --arch FairDARTS_a               # digits without a GPU, CIFAR-10 with one
    python train_eval.py --arch runs/NAME/genotype.json --dataset folder --data DIR
    python train_eval.py --resume RUN                     # go on with a run that was stopped
    python train_eval.py --evaluate RUN                   # test the best weights of a run

Leaves in the run's folder: best.pt (the weights of the best test accuracy), metrics.csv.
"""
import argparse
import shlex

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

import data
import genotypes
import kernels
from flags import (RUN_FLAGS, Parser, UserError, main, number, one_of, path_name, refuse,
                   resumed_settings)
from model_eval import NetworkCIFAR, NetworkS2
from runs import Precision, Run, choose_device, set_learning_rate

positive, rate, part = number(int, 1), number(float, 0), number(float, 0, 0.999)
# The defaults are the published recipe on CIFAR-10; data.RECIPES has what other sets change.
FLAGS = {
    "arch": (None, str, "a published name, a path to genotype.json, or the text of a genotype"),
    "dataset": (None, one_of(data.RECIPES), f"one of {', '.join(data.RECIPES)}"),
    "data": ("data", path_name, "folder of the downloaded sets, or of your pictures"),
    "image_size": (32, number(int, 8), "side to which your pictures are brought, in pixels"),
    "skip_bad_images": (False, bool, "leave out files that cannot be used as pictures"),
    "epochs": (600, positive, "passes over the training set"),
    "batch_size": (96, number(int, 2), "pictures in a step"),
    "init_channels": (36, number(int, 2, 10**6), "cells: channels of the first ones"),
    "layers": (20, number(int, 1, 10**4), "cells: how many"),
    "width": (1.0, number(float, 0, 1000, open_ends=True), "chains: factor of all channels"),
    "dropout": (0.2, part, "chains: before the classifier"),
    "squeeze": (False, bool, "chains: squeeze-and-excitation in every block"),
    "h_swish": (False, bool, "chains: h-swish in place of ReLU6"),
    "learning_rate": (0.025, rate, "at the start of a cosine that ends at 0"),
    "momentum": (0.9, rate, "of SGD"),
    "weight_decay": (3e-4, rate, "of SGD"),
    "grad_clip": (5.0, number(float, 0, open_ends=True), "largest norm of the gradient"),
    "auxiliary": (True, bool, "cells: an auxiliary head at two thirds of the depth"),
    "auxiliary_weight": (0.4, rate, "weight of its loss"),
    "cutout": (True, bool, "a random square of each picture blanked"),
    "cutout_length": (16, positive, "its side, in pixels"),
    "drop_path_prob": (0.2, part, "cells: share of paths dropped at the end, rising from 0"),
    **RUN_FLAGS,
}
CELL_FLAGS = {"init_channels", "layers", "auxiliary", "auxiliary_weight", "drop_path_prob"}
CHAIN_FLAGS = {"width", "dropout", "squeeze", "h_swish"}


def train(run, s, dataset):
    """The training of `run` with the settings `s`, from its start or its checkpoint. Returns the
    exit code."""
    device = choose_device(s.device)
    network = build(s, dataset, device)
    network.recompute = s.recompute
    if s.compile:
        network.compile()
    sgd = torch.optim.SGD(network.parameters(), s.learning_rate, s.momentum,
                          weight_decay=s.weight_decay, fused=True)
    precision = Precision(device, s.amp)
    scaler, (batches, test_set) = precision.scaler, prepare(s, dataset, device)
    run.track(network=network, sgd=sgd, train=batches, scaler=scaler)
    parameters, head, macs = count(network, dataset.images.shape[1:])
    run.log(f"run: {run.folder}  dataset: {dataset.name}, {len(dataset.labels)} + "
            f"{len(dataset.test_labels)} pictures {tuple(dataset.images.shape[1:])}  device: "
            f"{device}\n{parameters:,} parameters, {parameters - head:,} without the auxiliary "
            f"head, {macs / 1e6:.2f} M MACs: {s.arch}")

    for epoch in run.epochs():
        set_learning_rate(sgd, epoch, s.epochs, s.learning_rate)
        network.drop_path_prob = s.drop_path_prob * epoch / s.epochs
        network.train()
        for _ in run.steps(len(batches)):
            images, labels = batches.next()
            with precision.autocast():
                logits, auxiliary_logits = network(images)
            loss = total = F.cross_entropy(logits, labels)
            if auxiliary_logits is not None:
                total = loss + s.auxiliary_weight * F.cross_entropy(auxiliary_logits, labels)
            sgd.zero_grad()
            scaler.scale(total).backward()
            scaler.unscale_(sgd)
            norm = clip_grad_norm_(network.parameters(), s.grad_clip)
            scaler.step(sgd)
            scaler.update()

            # a scaler leaves out a step whose norm is not finite
            run.add(total.detach(), *([] if scaler.is_enabled() else [norm]),
                    train_loss=loss.detach(),
                    train_accuracy=100 * (logits.argmax(1) == labels).float().mean())

        test_loss, test_accuracy = test(network, run.watched(data.in_order(*test_set)))
        row = {"epoch": epoch + 1, **run.means(), "test_loss": test_loss,
               "test_accuracy": test_accuracy, "learning_rate": sgd.param_groups[0]["lr"],
               "drop_path_prob": network.drop_path_prob}
        if all(test_accuracy > former for former in run.column("test_accuracy")):
            run.save("best.pt", {"network": network.state_dict(), "epoch": epoch + 1})
        run.end_epoch(row, "train loss {train_loss:.4f} acc {train_accuracy:.2f}%  "
                           "test loss {test_loss:.4f} acc {test_accuracy:.2f}%".format(**row))

    accuracies = run.column("test_accuracy")
    best = max(accuracies)
    run.log(f"best test accuracy {best:.2f}% in epoch {accuracies.index(best) + 1}; test it "
            f"again: python train_eval.py --evaluate {shlex.quote(run.folder)}")
    return 0


def build(s, dataset, device):
    """The network of --arch for the pictures of `dataset`."""
    torch.manual_seed(s.seed)
    genotype, classes = genotypes.get(s.arch), len(dataset.classes)
    channels, size = dataset.images.shape[1:3]
    if isinstance(genotype, genotypes.ChainGenotype):
        return NetworkS2(genotype, classes, s.dropout, s.width, s.squeeze, s.h_swish, channels,
                         size).to(device)
    return NetworkCIFAR(genotype, s.init_channels, classes, s.layers, s.auxiliary,
                        channels).to(device)


def prepare(s, dataset, device):
    """Endless training batches, and (images, labels, mean, std) of the test set."""
    mean, std, images, labels, *test_set = (t.to(device) for t in (
        dataset.mean, dataset.std, dataset.images, dataset.labels, dataset.test_images,
        dataset.test_labels))
    recipe = data.RECIPES[dataset.name]
    batches = data.Batches(images, labels, mean, std, s.batch_size, recipe.padding, recipe.flip,
                           s.cutout_length if s.cutout else 0, data.generator(s.seed, 2))
    return batches, (*test_set, mean, std)


@torch.no_grad()
def test(network, batches):
    """(mean cross entropy, accuracy in percent) on (images, labels)."""
    network.eval()
    loss = hits = count = 0
    for images, labels in batches:
        logits, _ = network(images)
        loss += F.cross_entropy(logits, labels, reduction="sum")
        hits += (logits.argmax(1) == labels).sum()
        count += len(labels)
    return loss.item() / count, 100 * hits.item() / count


def count(network, shape):
    """(parameters, those of the auxiliary head, multiply-accumulates of convolutions and linear
    layers for one picture of `shape`, without the auxiliary head)."""
    head = 0
    if network.auxiliary is not None:
        head = sum(w.numel() for w in network.auxiliary.parameters())
    network.eval()
    picture = torch.zeros(1, *shape, device=next(network.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(picture)
    macs = counter.get_total_flops() // 2  # 2 flops a MAC
    return sum(w.numel() for w in network.parameters()), head, macs


# ---------------------------------------------------------------- the command line

def flags():
    return Parser(__doc__, FLAGS, {name: recipe.eval for name, recipe in data.RECIPES.items()})


def start(parser, given):
    """A new run with the flags `given`."""
    if "arch" not in given:
        raise UserError("--arch is missing: give a published name (FairDARTS_a), the path of a "
                        "genotype.json or the text of a genotype")
    if isinstance(genotypes.get(given["arch"]), genotypes.ChainGenotype):
        refuse(given, CELL_FLAGS, "is for architectures of cells, and this one is a chain")
    else:
        refuse(given, CHAIN_FLAGS, "is for chains, and this architecture is of cells")
    dataset, why = data.load_asked(given, choose_device(given.get("device", "auto")))
    settings = {**parser.defaults(), **data.RECIPES[dataset.name].eval, **given,
                "dataset": dataset.name}
    data.check_batch(settings["batch_size"], len(dataset.labels))
    s = argparse.Namespace(**settings)
    with (Run.create("train_eval", settings, **data.facts(dataset)) as run,
          kernels.stock(s.plain)):
        if why:
            run.log(f"dataset: {why}")
        return train(run, s, dataset)


def resume(parser, given):
    """Go on with a run."""
    with Run.open(given["resume"], "train_eval") as run:
        settings = resumed_settings(run, parser, given)
        s = argparse.Namespace(**settings)
        dataset = data.load_again(run, settings, choose_device(s.device))
        run.resume(settings)
        with kernels.stock(s.plain):
            return train(run, s, dataset)


def evaluate(parser, given):
    """Test the best weights of a run."""
    run = Run.open(given["evaluate"], "train_eval")
    settings = resumed_settings(run, parser, given)
    s, device = argparse.Namespace(**settings), choose_device(settings["device"])
    try:
        best = run.load("best.pt", ("network", "epoch"))
    except FileNotFoundError:
        raise UserError(f"{run.folder!r} has no best.pt: it stopped before its first epoch was "
                        "done") from None
    dataset = data.load_again(run, settings, device)
    network = build(s, dataset, device)
    if type(best["epoch"]) is not int:
        raise UserError(f"{run.path('best.pt')} cannot be read: {best['epoch']!r} is no epoch")
    run.restore(network, "network", best)
    _, test_set = prepare(s, dataset, device)
    with kernels.stock(s.plain):
        loss, accuracy = test(network, data.in_order(*test_set))
    print(f"{run.folder}: weights of epoch {best['epoch']}  test loss {loss:.4f} "
          f"acc {accuracy:.2f}%")


def train_or_test():
    parser = flags()
    parser.add_argument("--resume", metavar="RUN", help="folder of a run to go on with")
    parser.add_argument("--evaluate", metavar="RUN", help="folder of a run to test")
    given = parser.parse_args()
    if "arch" in given:
        given["arch"] = str(genotypes.get(given["arch"]))
    if "evaluate" in given:
        refuse(given, ["resume"], "and --evaluate are two things")
        return evaluate(parser, given)
    return resume(parser, given) if "resume" in given else start(parser, given)


if __name__ == "__main__":
    main(train_or_test)
