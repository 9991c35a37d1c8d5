"""A trained network, in use: what train_eval.py writes is read, checked and called.

    classifier = load("runs/NAME")       # an nn.Module, in eval mode
    probabilities = classifier(pictures) # uint8 (B, C, H, W), or float from 0 to 1
"""
import argparse
import os

import torch
import torch.nn as nn

from engine import texts
from engine.flags import UserError
from engine.folders import read_sealed
from spaces import SPACES, of_genotype

# What a file of weights holds: where they were tested, and what pictures they are for
WEIGHTS = ("network", "epoch", "accuracy", "classes", "mean", "std", "shape")
# The settings that make a network another one, which weights do not fit, and their types
NETWORK = dict(arch=str, init_channels=int, layers=int, stage_cells=int, auxiliary=bool,
               width=float, squeeze=bool, h_swish=bool, dropout=float)


def genotype_of(text):
    """The genotype that a text means, of any space. Raises GenotypeError."""
    return texts.get(text, SPACES.values())


def architecture(text):
    """A text, as the same for every spelling: the kind of the flag --arch."""
    try:
        return str(genotype_of(text))
    except texts.GenotypeError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build(s, num_classes, shape):
    """The network of train_eval.py's settings `s` for pictures of `shape` (C, H, W)."""
    genotype = genotype_of(s.arch)
    return of_genotype(genotype).derived(s, genotype, num_classes, shape)


class Classifier(nn.Module):
    """A trained network, in use. in: pictures (B, C, H, W), uint8 from 0 to 255 or
    float from 0 to 1; out: probabilities (B, classes). .classes: their names; .shape:
    (C, H, W) of training.
    """

    def __init__(self, network, classes, mean, std, shape):
        super().__init__()
        self.network, self.classes, self.shape = network, classes, shape
        self.register_buffer("mean", mean[:, None, None])  # of values from 0 to 255
        self.register_buffer("std", std[:, None, None])

    def forward(self, pictures):
        values = pictures.float() * (1 if pictures.dtype == torch.uint8 else 255)
        logits, _ = self.network((values - self.mean) / self.std)
        return logits.softmax(1)


def load(path):
    """The Classifier in a file of weights, on the CPU, in eval mode, without its
    auxiliary head.

    path: RUN/weights.pt, of the last epoch, RUN/best.pt, of the one that was best on
    the test set, or RUN, which is the former. Raises UserError.
    """
    state, s = read_weights(path)
    s.auxiliary = False
    weights = state["network"]  # not a copy: it holds the versions of its modules, too
    for name in [name for name in weights if name.startswith("auxiliary.")]:
        del weights[name]
    try:
        with torch.device("meta"):  # no memory before the weights are seen to fit
            network = build(s, len(state["classes"]), state["shape"])
        network.load_state_dict(weights, assign=True)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"{path} cannot be read: its weights are not of its architecture: "
                        f"{' '.join(str(error).split())[:200]}") from None
    classifier = Classifier(network, *(state[key] for key in ("classes", "mean", "std", "shape")))
    return classifier.requires_grad_(False).eval()


def weights_of(network, dataset, run, epoch, accuracy):
    """What a file of weights holds."""
    return {"network": network.state_dict(), "epoch": epoch, "accuracy": accuracy,
            "classes": dataset.classes, "mean": dataset.mean, "std": dataset.std,
            "shape": run.config["shape"], "torch": run.config["torch"]}


def read_weights(path):
    """What train_eval.py has written to a path, and its settings. Raises UserError."""
    if os.path.isdir(path):
        path = os.path.join(path, "weights.pt")
    try:
        state = read_sealed(path, "train_eval", WEIGHTS)
    except FileNotFoundError:
        raise UserError(f"there is no file {path!r}: give the folder of a training that has done "
                        "an epoch, or its weights.pt or best.pt") from None
    try:
        check_weights(state)
    except Exception as error:  # whatever a crafted file makes of it
        raise UserError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from None
    return state, argparse.Namespace(**state["settings"])


def check_weights(state):
    """Raises where they are no weights of train_eval.py."""
    network, classes, shape, settings = (state[key] for key in (
        "network", "classes", "shape", "settings"))
    fitting = (
        all(type(name) is str and is_finite(value) for name, value in network.items())
        and isinstance(classes, list) and classes and all(type(name) is str for name in classes)
        and isinstance(shape, list) and [*map(type, shape)] == [int] * 3
        and shape[0] in (1, 3) and 8 <= shape[1] == shape[2] <= 10**4
        and all(is_finite(state[key]) and state[key].shape == (shape[0],)
                for key in ("mean", "std"))
        and (state["std"] > 0).all() and type(state["epoch"]) is int
        and type(state["accuracy"]) is float and 0 <= state["accuracy"] <= 100
        and all(type(settings[name]) is kind for name, kind in NETWORK.items())
        and 1 <= settings["layers"] <= len(network)  # a cell has more than one tensor
        and 1 <= settings["stage_cells"] <= len(network)
        and 2 <= settings["init_channels"] <= 10**6 and 0 < settings["width"] < 1000)
    if not fitting:
        raise ValueError("what it holds are no weights of train_eval.py")
    genotype_of(settings["arch"])


def is_finite(value):
    """Whether it is a dense tensor of finite float32, or of a batch norm's counts."""
    return (torch.is_tensor(value) and value.layout == torch.strided
            and (value.dtype == torch.float32 and bool(value.isfinite().all())
                 or value.dtype == torch.int64 and value.ndim == 0))


def read_best(run):
    """What RUN/best.pt holds. Raises UserError."""
    try:
        best = run.load("best.pt", WEIGHTS)
    except FileNotFoundError:
        raise UserError(f"{run.folder!r} has no best.pt: it stopped before its first epoch was "
                        "done") from None
    if type(best["epoch"]) is not int:
        raise UserError(f"{run.path('best.pt')} cannot be read: {best['epoch']!r} is no epoch")
    return best
