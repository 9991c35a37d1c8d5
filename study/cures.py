"""Other cures of collapse, in one view (Sec. 3 and 4 of the paper): it needs an unfair
advantage of skip connections and an exclusive competition. A cure breaks one of the
two, or the search ends in time, or its genotype is repaired. All are off by default.

    skip_dropout, skip_noise        the advantage: skips are disturbed while searching
    shared_softmax                  the competition: of some operations alone
    max_skips, max_curvature_ratio  the search stops before the collapse
    keep_skips                      the genotype is repaired after it
"""
import importlib.util
import math
import statistics
from argparse import Namespace
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

from engine import processes
from engine.flags import UserError, number, one_of, some_of
from engine.precision import full_float32
from fair_darts import frozen
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
    shared, known = s.shared_softmax.split(","), SPACES[s.space].primitives(s)
    if s.shared_softmax and (
            s.gate == "softmax" or len(shared) < 2 or not set(shared) <= set(known)):
        raise UserError(f"--shared_softmax {s.shared_softmax}: it requires --gate sigmoid, and two "
                        f"or more of {','.join(known)}")
    if s.curvature_every and importlib.util.find_spec("scipy") is None:
        raise UserError("--curvature_every requires scipy, which is not installed: pip install -r "
                        "requirements.txt")
    every = s.curvature_every or 2
    fewest = 2 + every * (math.ceil((FIRST - 1) / every) + WINDOW // 2 + DISTANCE)
    if s.max_curvature_ratio and (not s.curvature_every or s.epochs < fewest):
        raise UserError(f"--max_curvature_ratio requires --curvature_every {every} and --epochs "
                        f"{fewest} or more: its rule ends no search before")
    if s.amp and (s.unrolled or s.curvature_every):
        raise UserError("--amp: the differences of --unrolled and --curvature_every are lost in 16 "
                        "bits: leave one of the two out")
    if s.arch_start >= s.epochs:
        raise UserError(f"--arch_start {s.arch_start}: alpha would have no step in --epochs "
                        f"{s.epochs}")


def sharing(s):
    """Which operations share a softmax: bool (operations,)"""
    return torch.tensor([s.gate == "softmax" or op in s.shared_softmax.split(",")
                         for op in SPACES[s.space].primitives(s)])


def gate_of(s):
    """The gate of a supernet: a name, or a function from alphas to gates."""
    return SharedSoftmax(sharing(s)) if s.shared_softmax else s.gate


class SharedSoftmax(nn.Module):
    """Gates: a softmax of the operations `shared`, a sigmoid of each of the others."""

    def __init__(self, shared):
        super().__init__()
        self.register_buffer("shared", shared, persistent=False)  # goes where the network goes

    def forward(self, alphas):
        return torch.where(self.shared, torch.softmax(
            alphas.masked_fill(~self.shared, -torch.inf), -1), torch.sigmoid(alphas))


class DisturbedSkip(nn.Identity):
    """The identity of a supernet, whose passes vary (see speed/graphs.py). While
    training, elements are dropped with probability .dropout (P-DARTS), the others
    scaled so that the mean stays; then Gaussian noise of deviation .noise is added.
    Both follow from .seed alone, in whatever order the edges are computed."""
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


class DisturbedSkips:
    """The skips of a supernet, disturbed anew in each pass if the settings `s` say so.
    Comes before accelerate."""

    def __init__(self, network, s):
        self.network, self.s, self.skips, self.same = network, s, [], False
        if s.skip_dropout or s.skip_noise:
            self.skips = [op for mixed in network.modules() if isinstance(mixed, MixedOperation)
                          for op in mixed.operations if type(op) is nn.Identity]
            for skip in self.skips:
                skip.__class__ = DisturbedSkip
            network.register_forward_pre_hook(self.draw)

    def draw(self, *_):
        """Before each pass: new seeds, from the generator that checkpoints keep."""
        if self.network.training and not self.same and any(
                skip.dropout or skip.noise for skip in self.skips):
            for skip, seed in zip(self.skips, torch.randint(2**62, (len(self.skips),)).tolist()):
                skip.seed = seed

    def same_draws(self):
        """Within it all passes are disturbed alike: finite differences compare them."""
        self.draw()
        return temporarily([self], same=True)

    def begin_epoch(self, epoch):
        """From 0. Noise falls by half a cosine over --noise_epochs, dropout as
        `dropout_rate` says."""
        done = min(1.0, epoch / (self.s.noise_epochs or self.s.epochs))
        for skip in self.skips:
            skip.dropout = self.s.skip_dropout * dropout_rate(self.s, epoch)
            skip.noise = self.s.skip_noise * 0.5 * (1 + math.cos(math.pi * done))


@contextmanager
def temporarily(things, **values):
    """Within it, attributes of all `things` have these values."""
    former = [{name: getattr(thing, name) for name in values} for thing in things]
    try:
        for thing in things:
            vars(thing).update(values)
        yield
    finally:
        for thing, own in zip(things, former):
            vars(thing).update(own)


def dropout_rate(s, epoch):
    """The share of --skip_dropout that is left. "linear", of our own: from 1 to 0 after
    the last epoch. "pdarts", its scripts' rule: while alpha waits, a line to 0 in the
    last epoch; from --arch_start on exp(-0.2 * epochs since)."""
    if s.skip_dropout_schedule == "linear":
        return 1 - epoch / s.epochs
    if epoch < s.arch_start:
        return (s.epochs - epoch - 1) / s.epochs
    return math.exp(-0.2 * (epoch - s.arch_start))


def outcome(s, rows):
    """(epoch, why): the epoch whose gates count, from 1, and why the search is over;
    None while it is not. rows: the metrics of each epoch.

    --max_skips N (DARTS+, the first of its two criteria): as soon as argmax would
    derive more than N skips; the epoch before counts (the first, if there is none).
    """
    for index, row in enumerate(rows):
        if s.max_skips and row["derived_skips"] > s.max_skips:
            return max(index, 1), (f"argmax would derive {row['derived_skips']:.0f} skips after "
                                   f"epoch {index + 1}, --max_skips {s.max_skips}")
    stopped = stop_by_curvature(s, rows) if s.max_curvature_ratio else None
    return stopped or ((len(rows), None) if len(rows) >= s.epochs else None)


def stop_by_curvature(s, rows):
    """--max_curvature_ratio R, RobustDARTS's rule: (epoch that counts, why), or None.

    A measurement's local average is the mean of the five that it is the last of, and
    belongs to the epoch of the third of them. As soon as it is above R times that of
    four measurements before, whose epoch counts, if that is the 11th or later. The last
    epoch's ends nothing, nor does one off the schedule, once the last.
    """
    measured = {int(row["epoch"]): row["curvature"] for row in rows
                if row["curvature"] is not None and row["epoch"] < s.epochs
                and (row["epoch"] - 1) % s.curvature_every == 0}
    epochs, values = [*measured], [*measured.values()]
    averages = [statistics.fmean(values[max(0, end - WINDOW):end])
                for end in range(1, len(values) + 1)]
    for last, before, now in zip(epochs[DISTANCE:], averages, averages[DISTANCE:]):
        epoch = last - s.curvature_every * (WINDOW // 2 + DISTANCE)
        if epoch >= FIRST and now > s.max_curvature_ratio * before > 0:
            return epoch, (f"the curvature is {now / before:.2f} times that of epoch {epoch}, "
                           f"--max_curvature_ratio {s.max_curvature_ratio:g}")


def curvature(plain, images, labels, weight_decay):
    """The largest eigenvalue of the Hessian of the loss on a batch by all alphas, by
    batch statistics, with the weight decay of alpha, as RobustDARTS's scripts have it.
    plain: the supernet, not accelerated, for only its operations have second
    gradients."""
    value = None
    if processes.rank() == 0:
        with full_float32():
            value = weight_decay + hessian_eigenvalue(plain.train(), images, labels)
    return processes.gather(value)[0]


def hessian_eigenvalue(network, images, labels, tolerance=1e-3):
    """Without the weight decay, within `tolerance`, relative to it, by exact products
    with the Hessian. Changes the running statistics."""
    from scipy.sparse.linalg import LinearOperator, eigsh
    alphas = list(network.alphas)
    with frozen(network.weights()):
        loss = F.cross_entropy(network(images), labels)
        # two layers are both reduction cells: the loss knows nothing of the normal alphas
        grads = torch.autograd.grad(loss, alphas, create_graph=True, materialize_grads=True)
        grads = torch.cat([grad.flatten() for grad in grads])

        def product(vector):
            vector = torch.as_tensor(vector.ravel()).to(grads)
            parts = torch.autograd.grad(grads, alphas, vector, retain_graph=True,
                                        materialize_grads=True)
            return torch.cat([part.flatten() for part in parts]).double().cpu().numpy()

        start = np.random.default_rng(0).standard_normal(len(grads))
        if not product(start).any():  # ARPACK does not start from 0
            return 0.0
        matrix = LinearOperator((len(grads), len(grads)), product, dtype=np.float64)
        [value] = eigsh(matrix, 1, which="LA", v0=start, tol=tolerance, return_eigenvectors=False)
    return float(value)


def genotype(s, gates, **changed):
    """The genotype of the `gates` by the settings `s`, or `changed` ones, with at most
    --keep_skips skips in its normal cell (P-DARTS), or in its layers: the weakest gives
    way to the next best operation of its node, until no more are left."""
    s, space = Namespace(**{**vars(s), **changed}), SPACES[s.space]
    gates = [matrix.detach().clone() for matrix in gates]
    result = space.genotype(s, gates)
    while s.keep_skips >= 0 and (kept := kept_skips(s, result, gates)).sum() > s.keep_skips:
        skip = gates[0][:, space.primitives(s).index("skip_connect")]  # a view
        skip[skip.masked_fill(~kept, torch.inf).argmin()] = -1  # no choice
        result = space.genotype(s, gates)
    return result


def derived_skips(s, gates):
    """How many skips argmax (Eq. 3) would derive: normal cell, in S2 all layers."""
    return int(kept_skips(s, genotype(s, gates, threshold=0, keep_skips=-1), gates).sum())


def kept_skips(s, genotype, gates):
    """On which rows of the first matrix of gates a skip is kept: bool, (rows,)"""
    primitives = SPACES[s.space].primitives(s)
    kept = SPACES[s.space].discrete_gates(genotype, gates, primitives)[0]
    return (kept[:, [op == "skip_connect" for op in primitives]] > 0).any(1)
