"""Search: alpha on the validation half, the weights on the training half (Eq. 4, 8).

    python train_search.py --w01 10                     # digits; with a GPU CIFAR-10
    python train_search.py --gate softmax               # the DARTS baseline
    python train_search.py --space s2                   # a chain of bottlenecks
    python train_search.py --space nasbench201          # cells of known accuracy
    python train_search.py --dataset folder --data DIR  # docs/your-pictures.md
    python train_search.py --resume RUN                 # go on with a stopped run
    python train_search.py --resume RUN --threshold 0.8 # only derive again

Writes to the run's folder genotype.json, metrics.csv, report.md, figures/, gates.npz
(docs/resuming.md).
"""
import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

from engine import batches, data
from engine.advice import training_command
from engine.devices import set_learning_rate
from engine.flags import RUN_FLAGS, UserError, main, number, one_of, refuse, some_of
from engine.precision import Precision, full_float32
from engine.report import write_report
from engine.script import new_run, old_run, parser_of
from fair_darts import GATES, PENALTIES, Architect, frozen
from genotypes import PRIMITIVES
from spaces import CANDIDATES, SPACES, foreign, to_json
from speed import accelerate
from study import cures
from study.watch import WATCH_FLAGS, Watch


def search(run):
    """The search of `run`, from its start or its checkpoint. Returns the exit code."""
    s, device = run.s, run.device
    torch.manual_seed(s.seed)
    network = run.supernet(cures.gate_of(s)).to(device)
    weights, precision = network.weights(), Precision(device, s.amp, network)
    architect = Architect(
        network, s.arch_learning_rate, (s.arch_beta1, 0.999), s.arch_weight_decay, s.w01,
        PENALTIES[s.zero_one_loss], precision.gradients, precision.step)
    sgd = torch.optim.SGD(weights, s.learning_rate, s.momentum, weight_decay=s.weight_decay,
                          fused=True)
    skips = cures.DisturbedSkips(network, s)
    if not s.plain:
        accelerate(network, s.recompute, s.graphs)
    train, validation = batches.halves(run)
    watch = Watch(run, network, skips, sgd, validation, train)
    run.track(network=network, sgd=sgd, adam=architect.optimizer, train=train,
              validation=validation, precision=precision, gates=watch)
    watch.begin()

    for epoch in run.epochs(until=watch.over):  # until all are done, or a cure ends the search
        set_learning_rate(sgd, epoch, s.epochs, s.learning_rate, s.learning_rate_min)
        skips.begin_epoch(epoch)
        network.train()
        for _ in run.steps(len(train)):
            images, labels = train.next()

            # alpha, on the validation half: Eq. 8, with Eq. 7 or 9
            batch = (images, labels) if s.single_level else validation.next()
            unrolled = (images, labels, sgd) if s.unrolled else ()
            with skips.same_draws(), full_float32(s.unrolled):
                if epoch >= s.arch_start:
                    valid_loss, penalty = architect.step(*batch, *unrolled)
                else:  # it waits
                    with torch.no_grad():
                        valid_loss, penalty = architect.losses(*batch)

            # the weights, on the training half: Eq. 4
            sgd.zero_grad()
            with frozen(network.alphas):
                logits = network(images)
                loss = F.cross_entropy(logits, labels)
                precision.backward(loss, sgd)
            norm = clip_grad_norm_(weights, s.grad_clip)
            precision.step(sgd)

            run.add(norm, *network.alphas, train_loss=loss, valid_loss=valid_loss, penalty=penalty,
                    train_accuracy=100 * (logits.argmax(1) == labels).float().mean())

        row = watch.measure(epoch)
        run.end_epoch(row, watch.lines(row))
        watch.draw_now_and_then()
    return derive(run, watch)


def derive(run, watch):
    """Write and print the genotype of the gates that count. Returns the exit code."""
    genotype, advice = watch.genotype()
    if advice:  # a cell is empty
        result, flag = advice
        command = f"{run.resume_command()} {flag}"
        run.remove("genotype.json")  # that of other settings
    else:
        result, command = f"`{genotype}`", training_command(run)
        run.write("genotype.json", to_json(genotype))
    watch.draw()
    write_report(run, {**watch.report(), "genotype": result}, command)
    run.log(f"{result.strip('`')}\n{command}")
    return 1 if advice else 0


# ---------------------------------------------------------------- the command line

positive, rate = number(int, 1), number(float, 0)
share = number(float, 0, 1, open_ends=True)
# The defaults are the published recipe on CIFAR-10; engine/recipes.py has what other sets change.
FLAGS = {
    "the paper": {
        "w01": (10.0, rate, "weight of the zero-one loss (Eq. 8)"),
        "gate": ("sigmoid", one_of(GATES), "sigmoid (Eq. 6), or softmax (Eq. 2) by DARTS's recipe"),
        "zero_one_loss": ("l2", one_of(PENALTIES), "l2 (Eq. 7), l1 (Eq. 9)"),
        "unrolled": (False, bool, "second-order steps on alpha, as in DARTS"),
        "space": ("s1", one_of(SPACES), "s1, two cells; s2, a chain; nasbench201, one cell"),
        "primitives": (",".join(PRIMITIVES), some_of(CANDIDATES), "cells: candidate operations; "
                       "nasbench201: all of its own but none"),
        "init_channels": (16, number(int, 2, 10**6), "cells: channels of the first ones"),
        "layers": (8, number(int, 1, 10**4), "s1: cells"),
        "nodes": (4, number(int, 1, 4), "s1: nodes in a cell"),
        "width": (1.0, number(float, 0, 1000, open_ends=True), "s2: factor of all channels"),
        "stage_cells": (5, positive, "nasbench201: cells in each of three stages")},
    "discretisation": {
        "threshold": (0.85, number(float, 0, 1), "gates from here up are kept; 0: argmax (Eq. 3)"),
        "edges_per_node": (2, positive, "s1: edges kept for each node, at most"),
        "ops_per_edge": (1, positive, "s1: operations kept on each edge, at most"),
        "ops_per_layer": (1, positive, "s2: choices kept in each layer, at most")},
    "data": {
        **data.DATA_FLAGS,
        "train_portion": (0.5, share, "part of the training set that trains the weights"),
        "train_fraction": (0.0, number(float, 0, 1), "instead: this share of each class"),
        "valid_fraction": (0.0, number(float, 0, 1), "with it: the share of each class for alpha")},
    "training": {
        "epochs": (50, positive, "passes over the part that trains the weights"),
        "batch_size": (128, number(int, 2), "pictures in a step"),
        "learning_rate": (0.005, rate, "of the weights, at the start of a cosine"),
        "learning_rate_min": (0.001, rate, "of the weights, at the end of the cosine"),
        "momentum": (0.9, rate, "of the weights"),
        "weight_decay": (3e-4, rate, "of the weights"),
        "grad_clip": (5.0, number(float, 0, open_ends=True), "largest norm of their gradient"),
        "arch_learning_rate": (3e-3, rate, "of the alphas (Adam)"),
        "arch_beta1": (0.9, share, "Adam's first beta; the second is 0.999"),
        "arch_weight_decay": (1e-3, rate, "of the alphas")},
    "cures of collapse": cures.CURE_FLAGS,
    "the run": {**WATCH_FLAGS, **RUN_FLAGS},
}
# What DARTS does otherwise on CIFAR-10. Its rule (Eq. 3) is argmax, with no threshold.
SOFTMAX = dict(batch_size=64, learning_rate=0.025, arch_learning_rate=3e-4, arch_beta1=0.5,
               w01=0.0, threshold=0.0)
PARSER = parser_of(__doc__, FLAGS, "search", {"softmax": SOFTMAX})


def command():
    given = PARSER.parse_args()
    if "resume" in given:
        return go_on(given)
    space = SPACES[given.get("space", "s1")]
    unused = foreign(space, "SEARCH_FLAGS")
    for flag, owner in unused.items():
        refuse(given, [flag], f"belongs to --space {owner}")
    recipe = SOFTMAX if given.get("gate") == "softmax" else {}
    curvature = {"curvature_every": 2} if given.get("max_curvature_ratio") else {}
    defaults = {**PARSER.defaults, **space.SEARCH_DEFAULTS, **recipe, **curvature}
    with new_run("train_search", defaults, "search", given, unused, check) as run:
        return search(run)


def go_on(given):
    """--resume: a search that has ended derives again, without its pictures."""
    with old_run("train_search", given["resume"], given) as run:
        run.read_checkpoint()
        if cures.outcome(run.s, run.rows):
            watch = Watch(run, run.supernet(cures.gate_of(run.s)))
            run.track(network=watch.network, gates=watch)
            return derive(run, watch)
        data.load_again(run)
        return search(run)


def check(s, dataset):
    if problem := SPACES[s.space].problem(s, dataset.name):
        raise UserError(problem)
    cures.check(s)
    batches.check_batch(s.batch_size, min(map(len, batches.parts(s, dataset.labels))))


if __name__ == "__main__":
    main(command)
