"""What a skip connection does to the others: a finished search goes on with skip held
high, and again with skip held low.

    python -m study.hold RUN   # RUN/held.json; RUN itself stays as it is
"""
import argparse
import json

import torch
import torch.nn.functional as F
from torch.nn.utils import clip_grad_norm_

from engine import batches, data
from engine.flags import Parser, UserError, main
from engine.loop import LOOP, Run
from fair_darts import PENALTIES, Architect, frozen
from spaces import SPACES
from speed import accelerate
from study import cures

HEIGHT = 2.0  # skip's alpha, on all edges of the normal cell, and minus that
STEPS = 110  # ten epochs of the digits


def hold(folder, height, steps):
    """The normal cell's gates after so many `steps` of the search in `folder` from its
    end, at its last rates, with skip's alpha held at `height`, and the gates before the
    first step. By first-order steps, whatever its own were, and without its cures.
    Raises UserError."""
    run = Run.open(folder, "train_search")
    s = argparse.Namespace(**run.config["settings"])
    if s.space != "s1" or "skip_connect" not in s.primitives.split(","):
        raise UserError(f"{folder!r}: skip can be held in a search of --space s1 whose "
                        "--primitives have skip_connect")
    device = torch.device("cpu")
    dataset = data.load_again(run, run.config["settings"], device)
    torch.manual_seed(s.seed)
    network = SPACES[s.space].supernet(s, len(dataset.classes), run.config["shape"],
                                       cures.gate_of(s))
    weights, column = network.weights(), network.primitives.index("skip_connect")
    architect = Architect(network, s.arch_learning_rate, (s.arch_beta1, 0.999),
                          s.arch_weight_decay, s.w01, PENALTIES[s.zero_one_loss])
    sgd = torch.optim.SGD(weights, s.learning_rate, s.momentum, weight_decay=s.weight_decay,
                          fused=True)
    train, validation = batches.halves(s, dataset, device)
    try:
        state = run.load("checkpoint.pt", LOOP)
    except FileNotFoundError:
        raise UserError(f"{folder!r} has no checkpoint: it stopped before its first epoch was "
                        "done") from None
    for name, part in dict(network=network, sgd=sgd, adam=architect.optimizer, train=train,
                           validation=validation).items():
        run.restore(part, name, state)
    accelerate(network)
    skip = network.alphas[0].detach()[:, column]  # a view
    skip.fill_(height)
    before = network.compute_gates()[0].detach()
    for _ in range(steps):
        architect.step(*validation.next())
        skip.fill_(height)
        images, labels = train.next()
        sgd.zero_grad()
        with frozen(network.alphas):
            F.cross_entropy(network(images), labels).backward()
        clip_grad_norm_(weights, s.grad_clip)
        sgd.step()
    return network.compute_gates()[0].detach(), before


def effect(folder, height=HEIGHT, steps=STEPS):
    """How the mean gate of the other operations differs, with skip high less with skip
    low: {"arithmetic": before the first step, "learning": what the steps add}."""
    def others(gates):
        return gates[:, columns].mean().item()

    names = Run.open(folder, "train_search").config["settings"]["primitives"].split(",")
    columns = [column for column, name in enumerate(names) if name != "skip_connect"]
    (high, high_before), (low, low_before) = (hold(folder, value, steps)
                                              for value in (height, -height))
    arithmetic = others(high_before) - others(low_before)
    return {"arithmetic": arithmetic, "learning": others(high) - others(low) - arithmetic}


def read(folder):
    """RUN/held.json, {"arithmetic", "learning": numbers}, or None. Raises UserError."""
    run = Run.open(folder, "train_search")
    try:
        with open(run.path("held.json"), encoding="utf-8") as file:
            kept = json.load(file)
        if (kept["id"], kept["height"], kept["steps"]) == (run.config["id"], HEIGHT, STEPS):
            return {name: float(kept[name]) for name in ("arithmetic", "learning")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{run.path('held.json')} is of another run or another version of this code, "
                    "or was edited: remove it")


def hold_run():
    parser = Parser(__doc__)
    parser.add_argument("run", metavar="RUN", help="folder of a search of s1 that has ended")
    folder = parser.parse_args()["run"]
    with Run.open(folder, "train_search") as run:
        found = effect(folder, HEIGHT, STEPS)
        run.write("held.json", json.dumps({"id": run.config["id"], "height": HEIGHT,
                                           "steps": STEPS, **found}))
    print(f"the others' mean gate, skip held high less low: by arithmetic "
          f"{found['arithmetic']:.4f}, by learning {found['learning']:.4f}")
    return 0


if __name__ == "__main__":
    main(hold_run)
