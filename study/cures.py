"""Other cures of collapse, in one view (Sec. 3 and 4 of the paper): it needs an unfair advantage of
skip connections and an exclusive competition. A cure breaks one of the two, or the search ends
in time, or its genotype is repaired.

    skip_dropout, skip_noise    the advantage: skips are disturbed while searching
    max_skips, max_curvature_ratio  the search stops before the collapse
    keep_skips                  the genotype is repaired after it
    shared_softmax              the competition: of some operations alone

All of them are off by default.
"""
import functools
import importlib.util
import math
from contextlib import contextmanager

import torch
import torch.nn as nn

from engine.flags import UserError, number, some_of
from model_search import MixedOperation
from operations import OPS
from spaces import SPACES, s2

WINDOW, DISTANCE, FIRST = 5, 4, 10  # of RobustDARTS's rule, see `outcome`
CURE_FLAGS = {
    "single_level": (False, bool, "alpha on the batches of the weights, too (DARTS's ablation)"),
    "skip_dropout": (0.0, number(float, 0, 0.999), "dropout on skip connections, falling to 0"),
    "skip_noise": (0.0, number(float, 0), "deviation of Gaussian noise on skip connections, "
                   "falling to 0"),
    "noise_epochs": (0, number(int, 0), "epochs until the noise is 0; 0: all"),
    "shared_softmax": ("", some_of(dict.fromkeys(["", *OPS, *s2.CHOICES])),
                       "these operations share a softmax, the others have gates of their own"),
    "max_skips": (0, number(int, 0), "stop when the normal cell has X dominant skips; 0: never"),
    "keep_skips": (-1, number(int, -1), "derive a normal cell of at most X skips; -1: of any "
                   "number"),
    "curvature_every": (0, number(int, 0), "epochs between measurements of the curvature; 0: "
                        "never"),
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
        raise UserError("--max_curvature_ratio requires --curvature_every: give it 1, for example")
    if s.max_curvature_ratio and s.epochs // s.curvature_every < WINDOW + DISTANCE:
        raise UserError(f"--curvature_every {s.curvature_every}: --max_curvature_ratio requires "
                        f"{WINDOW + DISTANCE} measurements, more than there are in --epochs "
                        f"{s.epochs}")


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
    return s.gate if mask is None else functools.partial(shared_gates, mask)


def shared_gates(shared, alphas):
    """A softmax of the operations that are `shared`, a sigmoid of each of the others."""
    shared = shared.to(alphas.device)
    return torch.where(shared, torch.softmax(alphas.masked_fill(~shared, -torch.inf), -1),
                       torch.sigmoid(alphas))


# ---------------------------------------------------------------- skips, disturbed

class DisturbedSkip(nn.Identity):
    """The identity of a supernet. While training, elements are dropped with probability .dropout
    (P-DARTS), the others scaled so that the mean stays; then Gaussian noise of deviation .noise
    is added. Both follow from .seed alone, in whatever order the edges are computed."""
    dropout, noise, seed = 0.0, 0.0, 0

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
    """Let the skips of a supernet be disturbed anew in each pass, if `s` asks for it; and in all
    passes of a step of alpha alike, for finite differences compare them."""
    network.skips, network.same_draws = [], False
    if not (s.skip_dropout or s.skip_noise):
        return
    for mixed in network.modules():
        if isinstance(mixed, MixedOperation):
            network.skips += [op for op in mixed.operations if type(op) is nn.Identity]
    for skip in network.skips:
        skip.__class__ = DisturbedSkip
    network.register_forward_pre_hook(draw_seeds)
    architect.step = functools.partial(step_of_same_draws, network, architect.step)


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
    """The skips' dropout falls to 0 in a line over all epochs, their noise by half a cosine over
    --noise_epochs."""
    done = min(1.0, epoch / (s.noise_epochs or s.epochs))
    for skip in network.skips:
        skip.dropout = s.skip_dropout * (1 - epoch / s.epochs)
        skip.noise = s.skip_noise * 0.5 * (1 + math.cos(math.pi * done))


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
    """(epoch, why): the epoch whose gates count, from 1, and why the search is over; None while it
    is not. rows: the metrics of each epoch.

    --max_skips N (DARTS+): as soon as N operations that dominate the normal cell are skips; the
    epoch before counts (the first, if there is none).
    --max_curvature_ratio R (RobustDARTS): as soon as the curvature, the mean of five
    measurements, is R times that four measurements before; the epoch in the middle of those
    counts, from the 10th on.
    """
    for index, row in enumerate(rows):
        skips = row.get("skips_" + SPACES[s.space].PARTS[0]) or 0
        if s.max_skips and skips >= s.max_skips:
            return max(index, 1), (f"{skips:.0f} dominant skip connections after epoch "
                                   f"{index + 1}, --max_skips {s.max_skips}")
    measured = [(row["epoch"], row["curvature"]) for row in rows
                if row.get("curvature") is not None]
    for last in range(WINDOW + DISTANCE, len(measured) + 1):
        now, before = (sum(value for _, value in measured[end - WINDOW:end]) / WINDOW
                       for end in (last, last - DISTANCE))
        epoch = int(measured[last - DISTANCE - WINDOW // 2 - 1][0])
        if s.max_curvature_ratio and epoch >= FIRST and now > s.max_curvature_ratio * before > 0:
            return epoch, (f"the curvature is {now / before:.2f} times that of epoch {epoch}, "
                           f"--max_curvature_ratio {s.max_curvature_ratio:g}")
    return (len(rows), None) if len(rows) >= s.epochs else None


# ---------------------------------------------------------------- the genotype

def genotype(network, s, gates, limit=None):
    """The genotype of the `gates`, with at most `limit` (--keep_skips) skips in its normal cell
    (P-DARTS), or in its layers: the weakest gives way to the next best operation of its node,
    until no more are left."""
    space = SPACES[s.space]
    rules = {name: getattr(s, name) for name in space.RULES}
    limit = s.keep_skips if limit is None else limit
    if limit < 0 or "skip_connect" not in network.primitives:
        return network.genotype(**rules, gates=gates)
    gates = [matrix.detach().clone() for matrix in gates]
    column = network.primitives.index("skip_connect")
    skip = gates[0][:, column]  # a view
    while True:
        result = network.genotype(**rules, gates=gates)
        kept = space.discrete_gates(result, gates, network.primitives)[0][:, column] > 0
        if kept.sum() <= limit:
            return result
        skip[skip.masked_fill(~kept, torch.inf).argmin()] = -1  # no choice
