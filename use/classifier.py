"""A trained network, in use.

    classifier = load("runs/NAME")       # an nn.Module, in eval mode
    probabilities = classifier(pictures) # uint8 (B, C, H, W), or float from 0 to 1
"""
import os
from argparse import Namespace

import torch
import torch.nn as nn

from engine.flags import UserError
from engine.folders import read_tensors, reading
from spaces import read


def build(s, num_classes, shape):
    """The network of train_eval.py's settings `s` for pictures of `shape` (C, H, W)."""
    space, genotype = read(s.arch)
    return space.derived(s, genotype, num_classes, shape)


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
    state = read_weights(path)
    with reading(path):
        weights = state["network"]  # not a copy: it holds the versions of its modules, too
        for name in [name for name in weights if name.startswith("auxiliary.")]:
            del weights[name]
        with torch.device("meta"):
            network = build(Namespace(**{**state["settings"], "auxiliary": False}),
                            len(state["classes"]), state["shape"])
        network.load_state_dict(weights, assign=True)
        classifier = Classifier(network, *(state[key] for key in (
            "classes", "mean", "std", "shape")))
    return classifier.requires_grad_(False).eval()


def weights_of(network, run, epoch, accuracy):
    """What a file of weights holds."""
    dataset = run.dataset
    return {"network": network.state_dict(), "settings": vars(run.s), "epoch": epoch,
            "accuracy": accuracy, "classes": dataset.classes, "mean": dataset.mean,
            "std": dataset.std, "shape": run.config["shape"]}


def read_weights(path):
    """What `weights_of` gave and train_eval.py has written to a path. Raises
    UserError."""
    if os.path.isdir(path):
        path = os.path.join(path, "weights.pt")
    try:
        state = read_tensors(path)
    except FileNotFoundError:
        raise UserError(f"there is no file {path!r}: give the folder of a training that has done "
                        "an epoch, or its weights.pt or best.pt") from None
    if not isinstance(state, dict) or "classes" not in state:
        raise UserError(f"{path} cannot be read: it holds no weights of train_eval.py")
    return state
