"""Other cures of collapse, in one view (Sec. 3 and 4 of the paper): it needs an unfair
advantage of skip connections and an exclusive competition. A cure breaks one of the
two, or the search ends in time, or its genotype is repaired.

    skip_dropout, skip_noise    the advantage: skips are disturbed while searching
    max_skips, max_curvature_ratio  the search stops before the collapse
    keep_skips                  the genotype is repaired after it
    shared_softmax              the competition: of some operations alone

All of them are off by default.
"""
import functools
import importlib.util
import math
import statistics
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F

from engine.flags import UserError, number, one_of, some_of
from model_search import MixedOperation
from spaces import CANDIDATES, SPACES

WINDOW, DISTANCE, FIRST = 5, 4, 11  # of RobustDARTS's rule, see `outcome`
CURE_FLAGS = {
    "single_level": (False, bool, "alpha and the weights on the same batches, of all training "
                     "pictures (DARTS's ablation)"),
    "arch_start": (0, number(int, 0), "epochs before the first step of alpha"),
    "skip_dropout": (0.0, number(float, 0, 0.999), "dropout on skip connections, falling"),
    "skip_dropout_schedule": ("linear", one_of(["linear", "pdarts"]), "to 0 in a line, or as in "
                              "P-DARTS: in a line until --arch_start, from there anew, by exp"),
    "skip_noise": (0.0, number(float, 0), "deviation of Gaussian noise on skip connections, "
                   "falling to 0"),
    "noise_epochs": (0, number(int, 0), "epochs until the noise is 0; 0: all"),
    "shared_softmax": ("", some_of(["", *CANDIDATES]),
                       "these operations share a softmax, the others have gates of their own"),
    "max_skips": (0, number(int, 0), "stop when argmax would derive a normal cell of more than X "
                  "skips; 0: never"),
    "keep_skips": (-1, number(int, -1), "derive a normal cell of at most X skips; -1: of any "
                   "number"),
    "curvature_every": (0, number(int, 0), "epochs between measurements of the curvature; 0: "
                        "never, or with --max_curvature_ratio 2"),
    "max_curvature_ratio": (0.0, number(float, 0), "stop when the curvature has grown by this "
                            "factor; 0: never"),
}


def check(s):
    """Raises UserError where settings do not go together."""
    names, known = shared_names(s), SPACES[s.space].primitives(s)
    if names and (s.gate == "softmax" or len(names) < 2 or not set(names) <= set(known)):
        raise UserError(f"--shared_softmax {s.shared_softmax}: it requires --gate sigmoid, and two "
                        f"or more of {','.join(known)}")
    if s.curvature_every and importlib.util.find_spec("scipy") is None:
        raise UserError("--curvature_every requires scipy, which is not installed: pip install -r "
                        "requirements.txt")
    if s.max_curvature_ratio and not s.curvature_every:
        raise UserError("--max_curvature_ratio requires --curvature_every: leave it out, or give 2")
    if s.max_curvature_ratio and s.epochs < first_stop(s.curvature_every):
        raise UserError(f"--max_curvature_ratio could end no search of --epochs {s.epochs} with "
                        f"--curvature_every {s.curvature_every}: it takes "
                        f"{first_stop(s.curvature_every)} epochs")
    if s.arch_start >= s.epochs:
        raise UserError(f"--arch_start {s.arch_start}: alpha would have no step in --epochs "
                        f"{s.epochs}")


def defaults(given):
    """The defaults that the flags `given` change."""
    return {"curvature_every": 2} if given.get("max_curvature_ratio") else {}


# ---------------------------------------------------------------- a softmax shared by some

def shared_names(s):
    return s.shared_softmax.split(",") if s.shared_softmax else []


def shared_mask(s):
    """Which operations share a softmax, bool (operations,); None where none do."""
    names = shared_names(s)
    return torch.tensor([op in names for op in SPACES[s.space].primitives(s)]) if names else None


def gate_of(s):
    """The gate of a supernet: a name, or a function from alphas to gates."""
    mask = shared_mask(s)
    return s.gate if mask is None else SharedSoftmax(mask)


class SharedSoftmax(nn.Module):
    """Gates: a softmax of the operations `shared`, a sigmoid of each of the others."""

    def __init__(self, shared):
        super().__init__()
        self.register_buffer("shared", shared, persistent=False)  # goes where the network goes

    def forward(self, alphas):
        return torch.where(self.shared, torch.softmax(
            alphas.masked_fill(~self.shared, -torch.inf), -1), torch.sigmoid(alphas))


# ---------------------------------------------------------------- skips, disturbed

class DisturbedSkip(nn.Identity):
    """The identity of a supernet, whose passes vary (see speed/graphs.py). While training, elements are dropped with probability
    .dropout (P-DARTS), the others scaled so that the mean stays; then Gaussian noise of
    deviation .noise is added. Both follow from .seed alone, in whatever order the edges
    are computed."""
    dropout, noise, seed, varies = 0.0, 0.0, 0, True

    def forward(self, x):  # (B, C, H, W) -> the same
        if not (self.training and (self.dropout or self.noise)):
            return x
        device = x.device if x.is_cuda else torch.device("cpu")
        generator = torch.Generator(device).manual_seed(self.seed)
        if self.dropout:
            kept = torch.rand(x.shape, generator=generator, device=device) >= self.dropout
            x = x * kept.to(x.device, x.dtype) / (1 - self.dropout)
        if self.noise:
            noise = torch.randn(x.shape, generator=generator, device=device)
            x = x + self.noise * noise.to(x.device, x.dtype)
        return x


def disturb(network, architect, s):
    """Let the skips of a supernet be disturbed anew in each pass, if `s` asks for it,
    and in all passes of a step of alpha alike, for finite differences compare them; and
    let alpha wait."""
    network.skips, network.same_draws, network.waits = [], False, False
    if s.skip_dropout or s.skip_noise:
        for mixed in network.modules():
            if isinstance(mixed, MixedOperation):
                network.skips += [op for op in mixed.operations if type(op) is nn.Identity]
        for skip in network.skips:
            skip.__class__ = DisturbedSkip
        network.register_forward_pre_hook(draw_seeds)
        architect.step = functools.partial(step_of_same_draws, network, architect.step)
    if s.arch_start:
        architect.step = functools.partial(step_or_wait, architect, architect.step)


def step_or_wait(architect, step, images, labels, *unrolled):
    """A step of alpha; before --arch_start only what it would have returned."""
    if not architect.network.waits:
        return step(images, labels, *unrolled)
    with torch.no_grad():
        loss = F.cross_entropy(architect.network(images), labels)
        return loss, architect.penalty(architect.network.all_gates())


def draw_seeds(network, inputs=None):
    """Before each pass: new seeds, drawn from the generator that checkpoints keep."""
    if network.training and not network.same_draws and any(
            skip.dropout or skip.noise for skip in network.skips):
        seeds = torch.randint(2**62, (len(network.skips),)).tolist()
        for skip, seed in zip(network.skips, seeds):
            skip.seed = seed


def step_of_same_draws(network, step, *batches):
    draw_seeds(network)
    network.same_draws = True
    try:
        return step(*batches)
    finally:
        network.same_draws = False


def set_rates(network, s, epoch):
    """What is so in `epoch`, from 0: alpha waits; the skips' noise falls by half a
    cosine over --noise_epochs, their dropout as `dropout_rate` says."""
    network.waits = epoch < s.arch_start
    done = min(1.0, epoch / (s.noise_epochs or s.epochs))
    for skip in network.skips:
        skip.dropout = s.skip_dropout * dropout_rate(s, epoch)
        skip.noise = s.skip_noise * 0.5 * (1 + math.cos(math.pi * done))


def dropout_rate(s, epoch):
    """The share of --skip_dropout that is left. "linear", of our own: 1 at first, 0
    after the last epoch. "pdarts", its scripts' rule: while alpha waits, a line that
    ends at 0 in the last epoch; from --arch_start on exp(-0.2 * epochs since)."""
    if s.skip_dropout_schedule == "linear":
        return 1 - epoch / s.epochs
    if epoch < s.arch_start:
        return (s.epochs - epoch - 1) / s.epochs
    return math.exp(-0.2 * (epoch - s.arch_start))


@contextmanager
def undisturbed(network):
    """Within it, skips are what they are."""
    skips = getattr(network, "skips", ())  # none of a supernet that `disturb` has not seen
    rates = [(skip.dropout, skip.noise) for skip in skips]
    for skip in skips:
        skip.dropout = skip.noise = 0.0
    try:
        yield
    finally:
        for skip, (dropout, noise) in zip(skips, rates):
            skip.dropout, skip.noise = dropout, noise


# ---------------------------------------------------------------- when to stop

def outcome(s, rows):
    """(epoch, why): the epoch whose gates count, from 1, and why the search is over;
    None while it is not. rows: the metrics of each epoch.

    --max_skips N (DARTS+, the first of its two criteria; the other, a ranking of alphas
    that stays the same, is not here): as soon as argmax would derive more than N skips;
    the epoch before counts (the first, if there is none).
    --max_curvature_ratio R: see `stop_by_curvature`.
    """
    for index, row in enumerate(rows):
        skips = row.get("derived_skips") or 0
        if s.max_skips and skips > s.max_skips:
            return max(index, 1), (f"argmax would derive {skips:.0f} skip connections after epoch "
                                   f"{index + 1}, --max_skips {s.max_skips}")
    if s.max_curvature_ratio:
        curvatures = {int(row["epoch"]): row["curvature"] for row in rows
                      if row.get("curvature") is not None}
        found = stop_by_curvature(curvatures, s.max_curvature_ratio, s.curvature_every, s.epochs)
        if found:
            return found
    return (len(rows), None) if len(rows) >= s.epochs else None


def stop_by_curvature(curvatures, ratio, every, epochs):
    """RobustDARTS's rule: (epoch that counts, why), or None. curvatures: {epoch, from
    1: value}.

    A measurement's local average is the mean of the five that it is the last of, and
    belongs to the epoch of the third of them. As soon as it is above `ratio` times that
    of four measurements before, whose epoch counts, if that is the 11th or later. The
    last epoch's ends nothing.
    """
    measured = sorted(epoch for epoch in curvatures if epoch < epochs)
    values = [curvatures[epoch] for epoch in measured]
    averages = [statistics.fmean(values[max(0, end - WINDOW):end])
                for end in range(1, len(values) + 1)]
    for last in range(DISTANCE, len(averages)):
        epoch = measured[last] - every * (WINDOW // 2 + DISTANCE)
        now, before = averages[last], averages[last - DISTANCE]
        if epoch >= FIRST and now > ratio * before > 0:
            return epoch, (f"the curvature is {now / before:.2f} times that of epoch {epoch}, "
                           f"--max_curvature_ratio {ratio:g}")
    return None


def first_stop(every):
    """How many epochs a search must have that --max_curvature_ratio can end."""
    measured = 1 + every * math.ceil((FIRST - 1) / every) + every * (WINDOW // 2 + DISTANCE)
    return measured + 1


# ---------------------------------------------------------------- the genotype

def genotype(network, s, gates, **changed):
    """The genotype of the `gates` by the settings `s`, or `changed` ones, with at most
    --keep_skips skips in its normal cell (P-DARTS), or in its layers: the weakest gives
    way to the next best operation of its node, until no more are left."""
    settings = {**vars(s), **changed}
    rules, limit = {name: settings[name] for name in SPACES[s.space].RULES}, settings["keep_skips"]
    if limit < 0 or "skip_connect" not in network.primitives:
        return network.genotype(**rules, gates=gates)
    gates = [matrix.detach().clone() for matrix in gates]
    column = network.primitives.index("skip_connect")
    skip = gates[0][:, column]  # a view
    while True:
        result = network.genotype(**rules, gates=gates)
        kept = kept_skips(network, s, result, gates)
        if kept.sum() <= limit:
            return result
        skip[skip.masked_fill(~kept, torch.inf).argmin()] = -1  # no choice


def derived_skips(network, s, gates):
    """How many skips argmax (Eq. 3) would derive: normal cell, in S2 all layers."""
    if "skip_connect" not in network.primitives:
        return 0
    found = genotype(network, s, gates, threshold=0, keep_skips=-1)
    return int(kept_skips(network, s, found, gates).sum())


def kept_skips(network, s, genotype, gates):
    """On which rows of the first matrix of gates a skip is kept: bool, (rows,)"""
    kept = SPACES[s.space].discrete_gates(genotype, gates, network.primitives)[0]
    return kept[:, network.primitives.index("skip_connect")] > 0
