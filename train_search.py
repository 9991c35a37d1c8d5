"""Search an architecture: alpha on the validation half, weights on the training half (Eq. 4, 8).

    python train_search.py --w01 10                     # digits without a GPU, CIFAR-10 with one
    python train_search.py --gate softmax               # the DARTS baseline
    python train_search.py --space s2                   # a chain of inverted bottlenecks
    python train_search.py --dataset folder --data DIR  # your pictures, see README
    python train_search.py --resume RUN                 # go on with a run that was stopped
    python train_search.py --resume RUN --threshold 0.8 # derive again, without searching

Leaves in the run's folder: genotype.json, metrics.csv, report.md, figures/, gates.npz (normal,
reduce: (epochs, edges, operations), or in S2 layers: (epochs, layers, choices), NaN where there
is no such choice; primitives: the operations' names).
"""
import argparse
import math
import shlex
import warnings

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

import cures
import data
import genotypes
import kernels
import parallel
import recipes
from devices import Precision, choose_device, prepare_network, set_learning_rate
from fair_darts import PENALTIES, Architect, frozen, strongest
from flags import (RUN_FLAGS, Parser, UserError, main, number, one_of, path_name, refuse,
                   resumed_settings, some_of)
from measure import GAP, GateHistory, accuracy, count_gates, describe, gap, note_resting_gate
from model_search import Network, NetworkS2
from operations import OPS
from pictures import LARGE
from recipes import RECIPES
from report import write_report
from runs import Run

positive, rate = number(int, 1), number(float, 0)
share = number(float, 0, 1, open_ends=True)
# The defaults are the published recipe on CIFAR-10; RECIPES has what other sets change.
FLAGS = {
    "space": ("s1", one_of(["s1", "s2"]), "s1, cells, or s2, a chain of inverted bottlenecks"),
    "gate": ("sigmoid", one_of(["sigmoid", "softmax"]), "Eq. 6, or Eq. 2 with DARTS's recipe"),
    "w01": (10.0, rate, "weight of the zero-one loss (Eq. 8)"),
    "zero_one_loss": ("l2", one_of(PENALTIES), "l2 (Eq. 7), l1 (Eq. 9)"),
    "threshold": (0.85, number(float, 0, 1), "gates from here up are kept; 0: argmax (Eq. 3)"),
    "primitives": (",".join(genotypes.PRIMITIVES), some_of(OPS), "s1: candidate operations"),
    "edges_per_node": (2, positive, "s1: edges kept for each node, at most"),
    "ops_per_edge": (1, positive, "s1: operations kept on each edge, at most"),
    "ops_per_layer": (1, positive, "s2: choices kept in each layer, at most"),
    "unrolled": (False, bool, "second-order steps on alpha, as in DARTS"),
    "single_level": (False, bool, "alpha on the batches of the weights, too (DARTS's ablation)"),
    "skip_dropout": (0.0, number(float, 0, 0.999), "dropout on skip connections, falling to 0"),
    "skip_noise": (0.0, rate, "deviation of Gaussian noise on skip connections, falling to 0"),
    "noise_epochs": (0, number(int, 0), "epochs until the noise is 0; 0: all"),
    "shared_softmax": ("", some_of(dict.fromkeys(["", *OPS, *genotypes.CHOICES])),
                       "these operations share a softmax, the others have gates of their own"),
    "max_skips": (0, number(int, 0), "end at so many dominant skips in the normal cell; 0: never"),
    "keep_skips": (-1, number(int, -1), "derive with so many skips there at most; -1: with any"),
    "curvature_every": (0, number(int, 0), "epochs between measures of the curvature; 0: never"),
    "max_curvature_ratio": (0.0, rate, "end as the curvature grows by this factor; 0: never"),
    "gap_every": (5, number(int, 0), "epochs between measurements of the gap; 0: never"),
    "figures_every": (10, number(int, 0), "epochs between drawings of the figures; 0: never"),
    "dataset": (None, one_of(RECIPES), f"one of {', '.join(RECIPES)}"),
    "data": ("data", path_name, "folder of the downloaded sets, or of your pictures"),
    "image_size": (32, number(int, 8), "side to which your pictures are brought, in pixels"),
    "skip_bad_images": (False, bool, "leave out files that cannot be used as pictures"),
    "stream": (False, bool, "read your pictures from their files as they are asked for"),
    "workers": (2, number(int, 0, 256), "processes that read them, for each half"),
    "train_portion": (0.5, share, "part of the training set that trains the weights"),
    "train_fraction": (0.0, number(float, 0, 1), "instead: this share of each class for the "
                       "weights (PC-DARTS on ImageNet: 0.1)"),
    "valid_fraction": (0.0, number(float, 0, 1), "and this one for alpha (there: 0.025)"),
    "epochs": (50, positive, "passes over that part"),
    "batch_size": (128, number(int, 2), "pictures in a step"),
    "init_channels": (16, number(int, 2, 10**6), "s1: channels of the first cells"),
    "layers": (8, number(int, 1, 10**4), "s1: cells"),
    "nodes": (4, number(int, 1, 4), "s1: nodes in a cell"),
    "width": (1.0, number(float, 0, 1000, open_ends=True), "s2: factor of all channels"),
    "learning_rate": (0.005, rate, "of the weights, at the start of a cosine"),
    "learning_rate_min": (0.001, rate, "of the weights, at its end"),
    "momentum": (0.9, rate, "of the weights"),
    "weight_decay": (3e-4, rate, "of the weights"),
    "grad_clip": (5.0, number(float, 0, open_ends=True), "largest norm of the weights' gradient"),
    "arch_learning_rate": (3e-3, rate, "of the alphas (Adam)"),
    "arch_beta1": (0.9, share, "Adam's first beta; the second is 0.999"),
    "arch_weight_decay": (1e-3, rate, "of the alphas"),
    **RUN_FLAGS,
}
# What DARTS does otherwise on CIFAR-10. Its rule (Eq. 3) is argmax, with no threshold.
SOFTMAX = dict(batch_size=64, learning_rate=0.025, arch_learning_rate=3e-4, arch_beta1=0.5,
               w01=0.0, threshold=0.0)
CELL_FLAGS = {"primitives", "edges_per_node", "ops_per_edge", "init_channels", "layers", "nodes"}
CHAIN_FLAGS = {"width", "ops_per_layer"}


def search(run, s, dataset):
    """The search of `run` with the settings `s`, from its start or its checkpoint. Returns the
    exit code."""
    device = choose_device(s.device)
    torch.manual_seed(s.seed)
    network = build(s, dataset.classes, dataset.images.shape[1:]).to(device)
    network.recompute = s.recompute
    prepare_network(run, network, device, (s.batch_size, *dataset.images.shape[1:]))
    weights, precision = network.weights(), Precision(device, s.amp)
    sgd = torch.optim.SGD(weights, s.learning_rate, s.momentum, weight_decay=s.weight_decay,
                          fused=True)
    architect = Architect(network, s.arch_learning_rate, (s.arch_beta1, 0.999),
                          s.arch_weight_decay, s.w01, PENALTIES[s.zero_one_loss],
                          precision.autocast, precision.loss_scale)
    train, validation = halves(s, dataset, device)
    history, scaler = GateHistory(network, run), precision.scaler
    run.track(network=network, sgd=sgd, adam=architect.optimizer, train=train,
              validation=validation, scaler=scaler, gates=history)
    run.log(f"run: {run.folder}  dataset: {dataset.name}, {len(train.labels)} + "
            f"{len(validation.labels)} pictures {tuple(dataset.images.shape[1:])}  supernet: "
            f"{sum(w.numel() for w in weights):,} weights  device: {device}")

    if not run.rows:
        note_resting_gate(run, s, network)
    for epoch in run.epochs():
        set_learning_rate(sgd, epoch, s.epochs, s.learning_rate, s.learning_rate_min)
        cures.set_rates(network, s, epoch)
        network.train()
        for _ in run.steps(len(train)):
            images, labels = train.next()

            # alpha, on the validation half: Eq. 8, with Eq. 7 or 9
            batch = (images, labels) if s.single_level else validation.next()
            if s.unrolled:
                with cures.same_draws(network):
                    valid_loss, penalty = architect.step_unrolled(*batch, images, labels, sgd)
            else:
                valid_loss, penalty = architect.step(*batch)

            # the weights, on the training half: Eq. 4
            sgd.zero_grad()
            with frozen(network.alphas):
                with precision.autocast():
                    logits = network(images)
                loss = F.cross_entropy(logits, labels)
                scaler.scale(loss).backward()
            parallel.average_gradients(weights)
            scaler.unscale_(sgd)
            norm = clip_grad_norm_(weights, s.grad_clip)
            scaler.step(sgd)
            scaler.update()

            # a scaler leaves out a step whose norm is not finite
            others = [alpha.detach().sum() for alpha in network.alphas]
            run.add(*others, *([] if scaler.is_enabled() else [norm]), train_loss=loss.detach(),
                    valid_loss=valid_loss, penalty=penalty,
                    train_accuracy=100 * (logits.argmax(1) == labels).float().mean())

        parallel.average_statistics(network)
        done, last = epoch + 1, epoch + 1 == s.epochs
        row = {"epoch": done, **run.means(),
               "valid_accuracy": accuracy(run, network.eval(), validation),
               **count_gates(network, s.threshold), **dict.fromkeys((*GAP, "curvature")),
               "learning_rate": sgd.param_groups[0]["lr"]}
        if s.gap_every and (last or done % s.gap_every == 0):
            row.update(gap(run, network, validation, s))
        if s.curvature_every and (last or done % s.curvature_every == 0):
            row["curvature"] = cures.curvature(network, validation, s)
        history.append()
        run.write("gates.npz", history.to_bytes())
        run.end_epoch(row, describe(row, s))
        if cures.outcome(s, run.rows):  # the last epoch, or a cure ends the search
            break
        if s.figures_every and done % s.figures_every == 0:
            draw_figures(run)
    return derive(run, s, network, history)


def build(s, classes, shape):
    """The supernet for pictures of `shape` (C, H, W)."""
    if s.space == "s2":
        return cures.prepare(NetworkS2(len(classes), shape[0], s.gate, s.width, shape[1],
                                       not s.plain, **cures.options(s)))
    return cures.prepare(Network(s.init_channels, len(classes), s.layers, s.nodes, shape[0], s.gate,
                                 s.primitives.split(","), not s.plain, **cures.options(s)))


def halves(s, dataset, device):
    """The training set in two: endless batches for the weights, and for alpha."""
    images, labels, mean, std = (t.to(device) for t in (dataset.images, dataset.labels,
                                                        dataset.mean, dataset.std))
    recipe = recipes.recipe(dataset)
    for stream, half in enumerate(parts(s, dataset.labels), 2):
        half = half.to(device)
        yield data.Batches(images[half], labels[half], mean, std, s.batch_size, recipe.padding,
                           recipe.flip, 0, data.generator(s.seed, stream))


def parts(s, labels):
    """Two index tensors: the pictures for the weights, and for alpha."""
    if s.train_fraction or s.valid_fraction:
        return data.balanced(labels, s.train_fraction, s.valid_fraction, s.seed)
    return data.split(len(labels), s.train_portion, s.seed)


def draw_figures(run):
    """Draw what is recorded so far. Whatever goes wrong, the search goes on."""
    if parallel.rank() > 0:
        return
    try:
        import visualize
        visualize.draw_run(run.folder)
    except Exception as error:
        warnings.warn(f"no figures: {type(error).__name__}: {error}")


# ---------------------------------------------------------------- the genotype

def derive(run, s, network, history):
    """Write and print the genotype of the gates that count. Returns the exit code."""
    epoch, why = cures.outcome(s, run.rows)
    if why:
        run.log(f"ended: {why}; the genotype is of epoch {epoch}")
    gates = list(history.epochs[epoch - 1])
    genotype = cures.genotype(network, s, gates)
    shortfall = explain(genotype, network, s, gates)
    if shortfall:
        found, flag = shortfall
        command = f"{run.resume_command()} {flag}"
    else:
        found, command = genotype, training_command(run, s)
        run.write("genotype.json", genotypes.to_json(genotype))
    if s.figures_every:
        draw_figures(run)
    weights = sum(w.numel() for w in network.weights())
    write_report(run, network.alphas[0].device, {
        "supernet": f"{weights:,} weights, {network.all_gates().numel()} gates",
        "validation accuracy": f"{run.column('valid_accuracy')[-1]:.2f}% in the last epoch, of the "
        "supernet", "genotype": f"`{genotype}`" if not shortfall else found}, command)
    run.log(f"{found}\n{command}")
    return 1 if shortfall else 0


def training_command(run, s):
    """How to train what was found."""
    command = ["python", "train_eval.py", "--arch", run.path("genotype.json"),
               "--dataset", s.dataset]
    for name in ("data", "image_size") + (("width",) if s.space == "s2" else ()):
        if getattr(s, name) != FLAGS[name][0]:
            command += ["--" + name, str(getattr(s, name))]
    command += ["--" + name for name in ("stream", "skip_bad_images") if getattr(s, name)]
    return shlex.join(command)


def explain(genotype, network, s, gates):
    """Why a genotype has an empty cell: a line, and a flag that would give one; or None."""
    empty = [cell for cell, edges in genotype._asdict().items() if not edges]
    if not empty:
        return None
    if s.keep_skips >= 0 and all(network.genotype(**cures.rules(s), gates=gates)):
        return (f"the {empty[0]} cell is empty, for --keep_skips {s.keep_skips} leaves it nothing. "
                "Derive again with more:", f"--keep_skips {s.keep_skips + 1}")
    best = {cell: max(strongest(found, primitives=network.primitives),
                      key=lambda pair: pair[1]) for cell, found in zip(network.parts, gates)}
    short = [f"{cell} cell: {gate:.4f}, {edge.op} from state {edge.source} to node {edge.node}"
             for cell, (edge, gate) in best.items() if gate < s.threshold]
    if short:
        return (f"no gate of a cell reaches --threshold {s.threshold}; the nearest is, "
                f"{'; '.join(short)}. Search longer, with a larger --w01 or --arch_learning_rate, "
                "or derive again from the gates recorded:",
                f"--threshold {math.floor(100 * min(gate for _, gate in best.values())) / 100}")
    return (f"the {empty[0]} cell is empty: all its edges whose gate reaches --threshold "
            f"{s.threshold} leave nodes that nothing enters. Derive again with a lower one:",
            f"--threshold {round(max(0.01, s.threshold - 0.1), 2)}")


# ---------------------------------------------------------------- the command line

def flags():
    differ = {"softmax": SOFTMAX, **{name: recipe.search for name, recipe in RECIPES.items()}}
    return Parser(__doc__ + recipes.RULE, FLAGS, differ)


def start(parser, given):
    """A new run with the flags `given`."""
    chain = given.get("space") == "s2"
    other = CELL_FLAGS if chain else CHAIN_FLAGS
    refuse(given, other, "is of the space s1" if chain else "is of --space s2")
    dataset, why = data.load_asked(given, choose_device(given.get("device", "auto")))
    gate = SOFTMAX if given.get("gate") == "softmax" else {}
    found = recipes.recipe(dataset).search
    settings = {**parser.defaults(), **gate, **found, **given,
                "dataset": dataset.name}
    s = argparse.Namespace(**settings)
    cures.check(s)
    fractions = s.train_fraction, s.valid_fraction
    if bool(fractions[0]) != bool(fractions[1]) or sum(fractions) > 1:
        raise UserError("--train_fraction {} and --valid_fraction {}: both must be above 0, "
                        "together 1 at most".format(*fractions))
    if s.space == "s1" and dataset.name == "imagenet" and s.image_size > LARGE:
        raise UserError(f"the cells of s1 are searched on pictures of {LARGE} pixels or fewer, "
                        f"not {s.image_size}: give --space s2 or --image_size 32")
    data.check_batch(s.batch_size, min(map(len, parts(s, dataset.labels))))
    with (Run.create("train_search", settings, **data.facts(dataset)) as run,
          kernels.stock(s.plain)):
        if why:
            run.log(f"dataset: {why}")
        if s.dataset == "folder":
            run.log(recipes.describe(dataset, settings, found.keys() - other))
        return search(run, s, dataset)


def resume(parser, given):
    """Go on with a run; where all its epochs are done, derive its genotype again."""
    with Run.open(given["resume"], "train_search") as run:
        settings = resumed_settings(run, parser, given)
        s, device = argparse.Namespace(**settings), choose_device(settings["device"])
        run.resume(settings)
        if cures.outcome(s, run.rows):
            network = build(s, run.config["classes"], run.config["shape"])
            history = GateHistory(network, run)
            run.track(network=network, gates=history)
            return derive(run, s, network, history)
        dataset = data.load_again(run, settings, device)
        with kernels.stock(s.plain):
            return search(run, s, dataset)


def search_or_resume():
    parser = flags()
    parser.add_argument("--resume", metavar="RUN", help="folder of a run to go on with")
    given = parser.parse_args()
    return resume(parser, given) if "resume" in given else start(parser, given)


if __name__ == "__main__":
    main(search_or_resume)
