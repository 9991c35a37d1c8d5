"""Train the network of a genotype from scratch, and test it.

    python train_eval.py --arch FairDARTS_a               # digits; with a GPU CIFAR-10
    python train_eval.py --arch runs/NAME/genotype.json --dataset folder --data DIR
    python train_eval.py --resume RUN                     # go on with a stopped run
    python train_eval.py --evaluate RUN                   # test its best weights
    python train_eval.py --init RUN --dataset folder --data DIR  # fine-tune

Writes to the run's folder: weights.pt (last epoch), best.pt (best test accuracy),
both for use.predict, use.export and use.classifier.load; metrics.csv, report.md.
"""
import functools
import shlex

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

from engine import batches, data, processes
from engine.devices import set_learning_rate
from engine.flags import RUN_FLAGS, UserError, main, number, one_of, refuse
from engine.precision import Precision
from engine.report import count, write_report
from engine.script import new_run, old_run, parser_of
from spaces import foreign, read
from speed import accelerate
from use import classifier, finetune


def train(run):
    """The training of `run`, from its start or its checkpoint; the exit code."""
    s, device, shape = run.s, run.device, run.config["shape"]
    torch.manual_seed(s.seed)
    network = classifier.build(s, len(run.config["classes"]), shape).to(device)
    network.drop_path_on = s.drop_path_on
    if s.init and run.checkpoint is None:
        finetune.start_from(s.init, network, run)
    precision = Precision(device, s.amp, network)
    parameters, head, macs = count(network, shape)
    if not s.plain:
        accelerate(network, s.recompute, s.graphs)
    sgd = torch.optim.SGD(network.parameters(), s.learning_rate, s.momentum,
                          weight_decay=s.weight_decay, fused=True)
    cross_entropy = functools.partial(F.cross_entropy, label_smoothing=s.label_smooth)
    training, test_set = batches.training_set(run)
    run.track(network=network, sgd=sgd, train=training, precision=precision)
    run.log(f"run: {run.folder}  dataset: {run.dataset.name}, {len(run.dataset.labels)} + "
            f"{len(test_set.labels)} pictures {tuple(shape)}  device: {device}\n"
            f"{parameters:,} parameters, {parameters - head:,} without the auxiliary head, "
            f"{macs / 1e6:.2f} M MACs: {s.arch}")

    for epoch in run.epochs():
        set_learning_rate(sgd, epoch, s.epochs, s.learning_rate, gamma=s.gamma)
        if network.drop_path_prob is not None:  # cells of S1
            network.drop_path_prob = s.drop_path_prob * epoch / s.epochs
        network.train()
        for _ in run.steps(len(training)):
            sgd.zero_grad()
            sums, pairs = 0, list(zip(*(t.chunk(s.accumulate) for t in training.next())))
            for index, (images, labels) in enumerate(pairs, 1):
                logits, auxiliary_logits = network(images)
                loss = total = cross_entropy(logits, labels)
                if auxiliary_logits is not None:
                    total = loss + s.auxiliary_weight * cross_entropy(auxiliary_logits, labels)
                precision.backward(total / s.accumulate, sgd, last=index == len(pairs))
                hits = (logits.argmax(1) == labels).float().mean()
                sums = sums + torch.stack([loss, 100 * hits, total]).detach()
            norm = clip_grad_norm_(network.parameters(), s.grad_clip)
            precision.step(sgd)
            loss, accuracy, total = sums / len(pairs)
            run.add(norm, total, train_loss=loss, train_accuracy=accuracy)

        test_loss, accuracy, top5 = test(network, run.watched(test_set.in_order()))
        weights = classifier.weights_of(network, run, epoch + 1, accuracy)
        run.save("weights.pt", weights)
        if all(accuracy > former for former in run.column("test_accuracy")):
            run.save("best.pt", weights)
        row = {"epoch": epoch + 1, **run.means(), "test_loss": test_loss,
               "test_accuracy": accuracy, "test_top5": top5,
               "learning_rate": sgd.param_groups[0]["lr"],
               "drop_path_prob": network.drop_path_prob}
        run.end_epoch(row, "train loss {train_loss:.4f} acc {train_accuracy:.2f}%  test loss "
                      "{test_loss:.4f} acc {test_accuracy:.2f}% top-5 {test_top5:.2f}%"
                      .format(**row))

    accuracies = run.column("test_accuracy")
    best = max(accuracies)
    result = (f"{accuracies[-1]:.2f}% in the last epoch; best {best:.2f}% in epoch "
              f"{accuracies.index(best) + 1}, chosen on the test set")
    write_report(run, {
        "architecture": f"`{s.arch}`", "parameters": f"{parameters:,}, {parameters - head:,} "
        "without the auxiliary head", "MACs": f"{macs / 1e6:.2f} M", "test accuracy": result},
        f"python -m use.predict {shlex.quote(run.folder)} IMAGE")
    run.log(f"test accuracy {result}; test that one again: "
            f"python train_eval.py --evaluate {shlex.quote(run.folder)}")
    return 0


@torch.no_grad()
def test(network, pairs):
    """(mean cross entropy, accuracy, top-5 accuracy in percent) on (images, labels)."""
    network.eval()
    sums = torch.zeros(4, device=next(network.parameters()).device)
    for images, labels in pairs:
        logits, _ = network(images)
        best = logits.topk(min(5, logits.shape[1])).indices == labels[:, None]  # (B, 5)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss, best[:, 0].sum(), best.sum(), loss.new_tensor(len(labels))])
    loss, hits, hits5, count = processes.total(sums).tolist()
    return loss / count, 100 * hits / count, 100 * hits5 / count


# ---------------------------------------------------------------- the command line

positive, rate, part = number(int, 1), number(float, 0), number(float, 0, 0.999)
# The defaults are the published recipe on CIFAR-10; engine/recipes.py has what other sets change.
FLAGS = {
    "the network": {
        "arch": (None, lambda text: str(read(text)[1]), "a published name, the path of a search or "
                 "of a genotype.json, or the text of a genotype"),
        "init": ("", str, "start from these weights (RUN or its best.pt), fine-tuning"),
        "init_channels": (36, number(int, 2, 10**6), "cells: channels at first; nasbench201: 16"),
        "layers": (20, number(int, 1, 10**4), "cells: how many"),
        "stage_cells": (5, positive, "nasbench201: cells in each of three stages"),
        "auxiliary": (True, bool, "cells: an auxiliary head at two thirds of the depth"),
        "width": (1.0, number(float, 0, 1000, open_ends=True), "chains: factor of all channels"),
        "squeeze": (False, bool, "chains: squeeze-and-excitation in every block"),
        "h_swish": (False, bool, "chains: h-swish in place of ReLU6"),
        "dropout": (0.2, part, "chains: before the classifier")},
    "data": {
        **data.DATA_FLAGS,
        "cutout": (True, bool, "a random square of each picture blanked"),
        "cutout_length": (16, positive, "the side of that square, in pixels")},
    "training": {
        "epochs": (600, positive, "passes over the training set"),
        "batch_size": (96, number(int, 2), "pictures in a batch"),
        "accumulate": (1, number(int, 1, 1000), "batches in a step, one after the other"),
        "learning_rate": (0.025, rate, "at the start of a cosine that ends at 0"),
        "gamma": (0.0, number(float, 0, 1), "instead of a cosine: the rate's factor an epoch"),
        "momentum": (0.9, rate, "of SGD"),
        "weight_decay": (3e-4, rate, "of SGD"),
        "grad_clip": (5.0, number(float, 0, open_ends=True), "largest norm of the gradient"),
        "label_smooth": (0.0, part, "share of the labels' weight that goes to all classes"),
        "auxiliary_weight": (0.4, rate, "weight of the auxiliary head's loss"),
        "drop_path_prob": (0.2, part, "cells: share of paths dropped at the end, rising from 0"),
        "drop_path_on": ("node", one_of(["node", "edge"]), "cells: a path is the sum that enters "
                         "a node, as published, or an edge, as in DARTS")},
    "the run": RUN_FLAGS,
}
PARSER = parser_of(__doc__, FLAGS, "eval")
PARSER.add_argument("--evaluate", metavar="RUN", help="folder of a run to test")


def command():
    given = PARSER.parse_args()
    if "evaluate" in given:
        refuse(given, ["resume"], "and --evaluate are two things")
        return evaluate(old_run("train_eval", given["evaluate"], given))
    if "resume" in given:
        with old_run("train_eval", given["resume"], given) as run:
            run.read_checkpoint()
            data.load_again(run)
            return train(run)
    asked = {**(finetune.kept_settings(given) if given.get("init") else {}), **given}
    if "arch" not in asked:
        raise UserError("--arch is missing: give a published name (FairDARTS_a) or a search's run")
    space, _ = read(asked["arch"])
    unused = foreign(space, "EVAL_FLAGS")
    for flag, owner in unused.items():
        refuse(given, [flag], f"is for architectures of the space {owner}, which this one is not")
    defaults = {**PARSER.defaults, **space.EVAL_DEFAULTS}
    with new_run("train_eval", defaults, "eval", asked, unused | space.EVAL_DEFAULTS,
                 lambda s, dataset: batches.check_batch(
                     s.batch_size, len(dataset.labels), s.accumulate)) as run:
        return train(run)


def evaluate(run):
    """Test the best weights of a run."""
    data.load_again(run)
    best = classifier.read_weights(run.path("best.pt"))
    network = classifier.build(run.s, len(run.config["classes"]), run.config["shape"])
    network.to(run.device).load_state_dict(best["network"])
    Precision(run.device, run.s.amp, network)  # as it was tested in the run
    if not run.s.plain:
        accelerate(network)
    loss, accuracy, top5 = test(
        network, batches.Pictures(run.dataset, run.device, test=True).in_order())
    if processes.rank() == 0:
        print(f"{run.folder}: weights of epoch {best['epoch']}  test loss {loss:.4f} acc "
              f"{accuracy:.2f}% top-5 {top5:.2f}%")


if __name__ == "__main__":
    main(command)
