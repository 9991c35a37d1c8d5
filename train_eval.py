"""Train the network of a genotype from scratch, and test it.

    python train_eval.py --arch FairDARTS_a               # digits without a GPU, CIFAR-10 with one
    python train_eval.py --arch runs/NAME/genotype.json --dataset folder --data DIR
    python train_eval.py --resume RUN                     # go on with a run that was stopped
    python train_eval.py --evaluate RUN                   # test the best weights of a run
    python train_eval.py --init RUN --dataset folder --data DIR  # fine-tune its last weights
    python train_eval.py --export RUN                     # model.pt2, and model.onnx

Leaves in the run's folder: weights.pt (of the last epoch), best.pt (of the best test accuracy),
both for predict.py and model_eval.load; metrics.csv, report.md.
"""
import argparse
import functools
import shlex

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_
from torch.utils.flop_counter import FlopCounterMode

import data
import export
import genotypes
import kernels
import parallel
import recipes
from devices import Precision, choose_device, prepare_network, set_learning_rate
from flags import (RUN_FLAGS, Parser, UserError, main, number, one_of, path_name, refuse,
                   resumed_settings)
from model_eval import build, read_weights
from recipes import RECIPES
from report import write_report
from runs import Run

positive, rate, part = number(int, 1), number(float, 0), number(float, 0, 0.999)
# The defaults are the published recipe on CIFAR-10; RECIPES has what other sets change.
FLAGS = {
    "arch": (None, str, "a published name, a path to genotype.json, or the text of a genotype"),
    "init": ("", path_name, "start from these weights (RUN or its best.pt), fine-tuning"),
    "dataset": (None, one_of(RECIPES), f"one of {', '.join(RECIPES)}"),
    "data": ("data", path_name, "folder of the downloaded sets, or of your pictures"),
    "image_size": (32, number(int, 8), "side to which your pictures are brought, in pixels"),
    "skip_bad_images": (False, bool, "leave out files that cannot be used as pictures"),
    "stream": (False, bool, "read your pictures from their files as they are asked for"),
    "workers": (2, number(int, 0, 256), "processes that read them"),
    "epochs": (600, positive, "passes over the training set"),
    "batch_size": (96, number(int, 2), "pictures in a step"),
    "accumulate": (1, number(int, 1, 1000), "batches in a step, one after the other"),
    "init_channels": (36, number(int, 2, 10**6), "cells: channels of the first ones"),
    "layers": (20, number(int, 1, 10**4), "cells: how many"),
    "width": (1.0, number(float, 0, 1000, open_ends=True), "chains: factor of all channels"),
    "dropout": (0.2, part, "chains: before the classifier"),
    "squeeze": (False, bool, "chains: squeeze-and-excitation in every block"),
    "h_swish": (False, bool, "chains: h-swish in place of ReLU6"),
    "learning_rate": (0.025, rate, "at the start of a cosine that ends at 0"),
    "gamma": (0.0, number(float, 0, 1), "instead: the rate's factor for every epoch"),
    "label_smooth": (0.0, part, "share of the labels' weight that goes to all classes"),
    "momentum": (0.9, rate, "of SGD"),
    "weight_decay": (3e-4, rate, "of SGD"),
    "grad_clip": (5.0, number(float, 0, open_ends=True), "largest norm of the gradient"),
    "auxiliary": (True, bool, "cells: an auxiliary head at two thirds of the depth"),
    "auxiliary_weight": (0.4, rate, "weight of its loss"),
    "cutout": (True, bool, "a random square of each picture blanked"),
    "cutout_length": (16, positive, "its side, in pixels"),
    "drop_path_prob": (0.2, part, "cells: share of paths dropped at the end, rising from 0"),
    "drop_path_on": ("node", one_of(["node", "edge"]), "cells: a path is the sum that enters a "
                     "node, as published, or an edge, as in DARTS"),
    **RUN_FLAGS,
}
CELL_FLAGS = {"init_channels", "layers", "auxiliary", "auxiliary_weight", "drop_path_prob",
              "drop_path_on"}
CHAIN_FLAGS = {"width", "dropout", "squeeze", "h_swish"}
# What makes a network another one, which weights do not fit
NETWORK_FLAGS = ("arch", "init_channels", "layers", "auxiliary", "width", "squeeze", "h_swish")


def train(run, s, dataset):
    """The training of `run` with the settings `s`, from its start or its checkpoint. Returns the
    exit code."""
    device = choose_device(s.device)
    torch.manual_seed(s.seed)
    network = build(s, len(dataset.classes), dataset.images.shape[1:]).to(device)
    if s.init and run.checkpoint is None:
        start_from(s.init, network, run)
    network.recompute, network.drop_path_on = s.recompute, s.drop_path_on
    prepare_network(run, network, device, (s.batch_size, *dataset.images.shape[1:]))
    sgd = torch.optim.SGD(network.parameters(), s.learning_rate, s.momentum,
                          weight_decay=s.weight_decay, fused=True)
    precision = Precision(device, s.amp)
    cross_entropy = functools.partial(F.cross_entropy, label_smoothing=s.label_smooth)
    scaler, (batches, test_set) = precision.scaler, prepare(s, dataset, device)
    run.track(network=network, sgd=sgd, train=batches, scaler=scaler)
    parameters, head, macs = count(network, dataset.images.shape[1:])
    run.log(f"run: {run.folder}  dataset: {dataset.name}, {len(dataset.labels)} + "
            f"{len(dataset.test_labels)} pictures {tuple(dataset.images.shape[1:])}  device: "
            f"{device}\n{parameters:,} parameters, {parameters - head:,} without the auxiliary "
            f"head, {macs / 1e6:.2f} M MACs: {s.arch}")

    for epoch in run.epochs():
        set_learning_rate(sgd, epoch, s.epochs, s.learning_rate, gamma=s.gamma)
        network.drop_path_prob = s.drop_path_prob * epoch / s.epochs
        network.train()
        for _ in run.steps(len(batches)):
            sgd.zero_grad()
            figures = []
            for images, labels in zip(*(t.chunk(s.accumulate) for t in batches.next())):
                with precision.autocast():
                    logits, auxiliary_logits = network(images)
                loss = total = cross_entropy(logits, labels)
                if auxiliary_logits is not None:
                    total = loss + s.auxiliary_weight * cross_entropy(auxiliary_logits, labels)
                scaler.scale(total / s.accumulate).backward()
                hits = (logits.argmax(1) == labels).float().mean()
                figures.append(torch.stack([loss, hits, total]).detach())
            parallel.average_gradients(network.parameters())
            scaler.unscale_(sgd)
            norm = clip_grad_norm_(network.parameters(), s.grad_clip)
            scaler.step(sgd)
            scaler.update()

            # a scaler leaves out a step whose norm is not finite
            loss, hits, total = torch.stack(figures).mean(0)
            run.add(total, *([] if scaler.is_enabled() else [norm]), train_loss=loss,
                    train_accuracy=100 * hits)

        parallel.average_statistics(network)
        test_loss, test_accuracy, test_top5 = test(network,
                                                   run.watched(data.in_order(*test_set)))
        row = {"epoch": epoch + 1, **run.means(), "test_loss": test_loss,
               "test_accuracy": test_accuracy, "test_top5": test_top5,
               "learning_rate": sgd.param_groups[0]["lr"],
               "drop_path_prob": network.drop_path_prob}
        weights = {"network": network.state_dict(), "epoch": epoch + 1,
                   "accuracy": test_accuracy, "classes": dataset.classes,
                   "mean": dataset.mean, "std": dataset.std,
                   "shape": list(dataset.images.shape[1:]), "torch": run.config["torch"]}
        run.save("weights.pt", weights)
        if all(test_accuracy > former for former in run.column("test_accuracy")):
            run.save("best.pt", weights)
        run.end_epoch(row, "train loss {train_loss:.4f} acc {train_accuracy:.2f}%  "
                           "test loss {test_loss:.4f} acc {test_accuracy:.2f}% top-5 "
                           "{test_top5:.2f}%".format(**row))

    accuracies = run.column("test_accuracy")
    best = max(accuracies)
    found = (f"{accuracies[-1]:.2f}% in the last epoch; best {best:.2f}% in epoch "
             f"{accuracies.index(best) + 1}, chosen on the test set")
    write_report(run, device, {
        "architecture": f"`{s.arch}`", "parameters": f"{parameters:,}, {parameters - head:,} "
        "without the auxiliary head", "MACs": f"{macs / 1e6:.2f} M", "test accuracy": found},
        f"python predict.py {shlex.quote(run.folder)} IMAGE")
    run.log(f"test accuracy {found}; test that one again: "
            f"python train_eval.py --evaluate {shlex.quote(run.folder)}")
    return 0


def start_from(path, network, run):
    """Load the weights of another training; those of a head for another number of classes
    stay as they are. Raises UserError."""
    state, _ = read_weights(path)
    own, given = network.state_dict(), state["network"]
    new = [name for name in own if name.endswith(("classifier.weight", "classifier.bias"))
           and name in given and own[name].shape != given[name].shape]
    if own.keys() != given.keys() or any(
            own[name].shape != given[name].shape for name in own if name not in new):
        raise UserError(f"--init {path}: the weights are of another network, for pictures "
                        f"{tuple(state['shape'])}")
    given.update({name: own[name] for name in new})
    network.load_state_dict(given)
    head = (f"; the head is new, for it was of {len(state['classes'])} classes" if new else "")
    run.log(f"starts from {path}, epoch {state['epoch']}, test accuracy "
            f"{state['accuracy']:.2f}%{head}")


def prepare(s, dataset, device):
    """Endless training batches, and (images, labels, mean, std) of the test set."""
    mean, std, images, labels, *test_set = (t.to(device) for t in (
        dataset.mean, dataset.std, dataset.images, dataset.labels, dataset.test_images,
        dataset.test_labels))
    recipe = recipes.recipe(dataset)
    batches = data.Batches(images, labels, mean, std, s.batch_size * s.accumulate, recipe.padding,
                           recipe.flip, s.cutout_length if s.cutout else 0,
                           data.generator(s.seed, 2))
    return batches, (*test_set, mean, std)


@torch.no_grad()
def test(network, batches):
    """(mean cross entropy, accuracy, top-5 accuracy, both in percent) on (images, labels)."""
    network.eval()
    sums = torch.zeros(4, device=next(network.parameters()).device)
    for images, labels in batches:
        logits, _ = network(images)
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (B, 5)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss, best[:, 0].sum(), best.sum(), loss.new_tensor(len(labels))])
    loss, hits, hits5, count = parallel.total(sums).tolist()
    return loss / count, 100 * hits / count, 100 * hits5 / count


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
    return Parser(__doc__ + recipes.RULE, FLAGS,
                  {name: recipe.eval for name, recipe in RECIPES.items()})


def start(parser, given):
    """A new run with the flags `given`."""
    kept = {}
    if given.get("init"):
        state, former = read_weights(given["init"])
        kept = {name: getattr(former, name) for name in NETWORK_FLAGS}
        for name, value in kept.items():
            if given.get(name, value) != value:
                raise UserError(f"--{name} {given[name]} contradicts --init {given['init']}, which "
                                f"has {value}: leave the flag out")
        given = {"arch": kept["arch"], "image_size": state["shape"][1], **given}
    if "arch" not in given:
        raise UserError("--arch is missing: give a published name (FairDARTS_a), the path of a "
                        "genotype.json or the text of a genotype")
    chain = isinstance(genotypes.get(given["arch"]), genotypes.ChainGenotype)
    other = CELL_FLAGS if chain else CHAIN_FLAGS
    refuse(given, other, "is for architectures of cells, and this one is a chain" if chain
           else "is for chains, and this architecture is of cells")
    dataset, why = data.load_asked(given, choose_device(given.get("device", "auto")))
    found = recipes.recipe(dataset).eval
    settings = {**parser.defaults(), **found, **kept, **given,
                "dataset": dataset.name}
    s = argparse.Namespace(**settings)
    data.check_batch(s.batch_size, len(dataset.labels) // s.accumulate)
    with (Run.create("train_eval", settings, **data.facts(dataset)) as run,
          kernels.stock(s.plain)):
        if why:
            run.log(f"dataset: {why}")
        if s.dataset == "folder":
            run.log(recipes.describe(dataset, settings, found.keys() - other))
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
    network = build(s, len(dataset.classes), dataset.images.shape[1:]).to(device)
    if type(best["epoch"]) is not int:
        raise UserError(f"{run.path('best.pt')} cannot be read: {best['epoch']!r} is no epoch")
    run.restore(network, "network", best)
    _, test_set = prepare(s, dataset, device)
    with kernels.stock(s.plain):
        loss, accuracy, top5 = test(network, data.in_order(*test_set))
    if parallel.rank() == 0:
        print(f"{run.folder}: weights of epoch {best['epoch']}  test loss {loss:.4f} "
              f"acc {accuracy:.2f}% top-5 {top5:.2f}%")


def train_or_test():
    parser = flags()
    parser.add_argument("--resume", metavar="RUN", help="folder of a run to go on with")
    parser.add_argument("--evaluate", metavar="RUN", help="folder of a run to test")
    parser.add_argument("--export", metavar="RUN", help="folder of a run to export")
    given = parser.parse_args()
    if "arch" in given:
        given["arch"] = str(genotypes.get(given["arch"]))
    if "export" in given:
        folder = given.pop("export")
        refuse(given, given, "does not go with --export")
        return export.export(folder)
    if "evaluate" in given:
        refuse(given, ["resume"], "and --evaluate are two things")
        return evaluate(parser, given)
    return resume(parser, given) if "resume" in given else start(parser, given)


if __name__ == "__main__":
    main(train_or_test)
