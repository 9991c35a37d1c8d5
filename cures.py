"""Other cures of collapse, in one view (Sec. 3 and 4 of the paper): it needs an unfair advantage of
skip connections and an exclusive competition. A cure breaks one of the two, or the search ends
in time, or its genotype is mended.

    skip_dropout, skip_noise    the advantage: skips are disturbed while searching
    max_skips, max_curvature_ratio  the search stops before the collapse
    keep_skips                  the genotype is mended after it
    shared_softmax              the competition: of some operations alone, see fair_darts.gates

All of them are off by default. What train_search.py needs of them is here.
"""
import math
from contextlib import contextmanager

import torch
import torch.nn as nn
import torch.nn.functional as F

import data
import kernels
import parallel
from fair_darts import frozen
from flags import UserError
from genotypes import CHOICES

WINDOW, DISTANCE, FIRST = 5, 4, 10  # of RobustDARTS's rule, see `outcome`


# ---------------------------------------------------------------- skips, disturbed

class Skip(nn.Module):
    """The identity of a supernet. While training, elements are dropped with probability .dropout
    (P-DARTS), the others scaled so that the mean stays; then Gaussian noise of deviation .noise
    is added. Both follow from .seed alone, in whatever order the edges are computed."""

    def __init__(self):
        super().__init__()
        self.dropout, self.noise, self.seed = 0.0, 0.0, 0

    def forward(self, x):  # (B, C, H, W) -> the same
        if not (self.training and (self.dropout or self.noise)):
            return x
        device = x.device if x.is_cuda else torch.device("cpu")
        generator = torch.Generator(device).manual_seed(self.seed)
        shape = len(x) * parallel.size(), *x.shape[1:]  # each process has its part
        if self.dropout:
            kept = torch.rand(shape, generator=generator, device=device) >= self.dropout
            x = x * parallel.mine(kept).to(x.device, x.dtype) / (1 - self.dropout)
        if self.noise:
            noise = torch.randn(shape, generator=generator, device=device)
            x = x + self.noise * parallel.mine(noise).to(x.device, x.dtype)
        return x


def options(s):
    """What the settings `s` ask of a supernet."""
    disturbed = s.skip_dropout or s.skip_noise
    return dict(skip=Skip if disturbed else nn.Identity,
                shared=s.shared_softmax.split(",") if s.shared_softmax else ())


def prepare(network):
    """Returns the supernet, whose skips are disturbed anew in each pass."""
    network.skips = [module for module in network.modules() if isinstance(module, Skip)]
    network.same_draws = False
    if network.skips:
        network.register_forward_pre_hook(draw_seeds)
    return network


def check(s):
    """Raises UserError where settings do not go together."""
    names = options(s)["shared"]
    known = CHOICES if s.space == "s2" else s.primitives.split(",")
    if names and (s.gate == "softmax" or len(names) < 2 or not set(names) <= set(known)):
        raise UserError(f"--shared_softmax {s.shared_softmax}: it takes --gate sigmoid, and two or "
                        f"more of {','.join(known)}")
    if s.max_curvature_ratio and not s.curvature_every:
        raise UserError("--max_curvature_ratio takes --curvature_every: give it 1, for example")
    if s.max_curvature_ratio and s.epochs // s.curvature_every < WINDOW + DISTANCE:
        raise UserError(f"--curvature_every {s.curvature_every}: --max_curvature_ratio takes "
                        f"{WINDOW + DISTANCE} measurements, more than there are in --epochs "
                        f"{s.epochs}")


def draw_seeds(network, inputs):
    """Before each pass: new seeds, drawn from the generator that checkpoints keep."""
    if network.training and not network.same_draws and any(
            skip.dropout or skip.noise for skip in network.skips):
        seeds = torch.randint(2**62, (len(network.skips),)).tolist()
        for skip, seed in zip(network.skips, seeds):
            skip.seed = seed


def set_rates(network, s, epoch):
    """The skips' dropout falls to 0 in a line over all epochs, their noise by half a cosine over
    --noise_epochs."""
    done = min(1.0, epoch / (s.noise_epochs or s.epochs))
    for skip in network.skips:
        skip.dropout = s.skip_dropout * (1 - epoch / s.epochs)
        skip.noise = s.skip_noise * 0.5 * (1 + math.cos(math.pi * done))


@contextmanager
def same_draws(network):
    """Within it, all passes disturb the skips alike: finite differences compare them."""
    draw_seeds(network, None)
    network.same_draws = True
    try:
        yield
    finally:
        network.same_draws = False


@contextmanager
def undisturbed(network):
    """Within it, skips are what they are."""
    found = getattr(network, "skips", ())  # none of a supernet that `prepare` has not seen
    rates = [(skip.dropout, skip.noise) for skip in found]
    for skip in found:
        skip.dropout = skip.noise = 0.0
    try:
        yield
    finally:
        for skip, (dropout, noise) in zip(found, rates):
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
        found = row.get("skips_layers" if s.space == "s2" else "skips_normal") or 0
        if s.max_skips and found >= s.max_skips:
            return max(index, 1), (f"{found:.0f} dominant skip connections after epoch "
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

def rules(s):
    """The settings of discretisation, for the genotype() of the network."""
    names = ["threshold"]
    names += ["ops_per_layer"] if s.space == "s2" else ["edges_per_node", "ops_per_edge"]
    return {name: getattr(s, name) for name in names}


def genotype(network, s, gates=None):
    """The genotype of the network's gates, or of others, with at most --keep_skips skips in its
    normal cell (P-DARTS), or in its layers: the weakest gives way to the next best operation of
    its node, until no more are left."""
    if s.keep_skips < 0 or "skip_connect" not in network.primitives:
        return network.genotype(**rules(s), gates=gates)
    gates = [g.detach().clone() for g in gates or network.compute_gates()]
    column = network.primitives.index("skip_connect")
    skip = gates[0][:, column]  # a view
    while True:
        found = network.genotype(**rules(s), gates=gates)
        kept = network.discrete_gates(found)[0][:, column] > 0
        if kept.sum() <= s.keep_skips:
            return found
        skip[skip.masked_fill(~kept.to(skip.device), torch.inf).argmin()] = -1  # no choice


# ---------------------------------------------------------------- curvature

def curvature(network, half, s, tolerance=1e-3):
    """The largest eigenvalue of the Hessian of the validation loss by all alphas (RobustDARTS), on
    the first batch of `half`, by batch statistics; see `largest_eigenvalue`."""
    images, labels = next(data.in_order(half.images[:s.batch_size], half.labels[:s.batch_size],
                                        half.mean, half.std, s.batch_size))
    return parallel.shared(hessian_eigenvalue(network, images, labels, tolerance))


def hessian_eigenvalue(network, images, labels, tolerance):
    """Exact products with the Hessian, by the literal form: the fast one has no second gradient.
    Leaves weights, statistics and generators as they are."""
    former, alphas = (network.fast, network.recompute, network.training), list(network.alphas)
    network.fast, network.recompute = False, False
    network.train()
    with (kernels.stock(), kernels.frozen_statistics(network), frozen(network.weights()),
          undisturbed(network), parallel.alone()):
        loss = F.cross_entropy(network(images), labels)
        # two layers are both reduction cells: the loss knows nothing of the normal alphas
        slopes = torch.autograd.grad(loss, alphas, create_graph=True, materialize_grads=True)
        slopes = torch.cat([slope.flatten() for slope in slopes])

        def product(vector):
            parts = torch.autograd.grad(slopes, alphas, vector, retain_graph=True,
                                        materialize_grads=True)
            return torch.cat([part.flatten() for part in parts])

        found = largest_eigenvalue(product, slopes.detach(), tolerance)
    network.fast, network.recompute, training = former
    network.train(training)
    return found


def largest_eigenvalue(product, like, tolerance):
    """Of a symmetric matrix, known by its `product` with a vector shaped as `like`, by Lanczos's
    method: an eigenvalue is within `tolerance` of the result, relative to it."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(like.shape, generator=generator).to(like)
    vectors, diagonal, beside = [start / start.norm()], [], []
    while True:
        image = product(vectors[-1])
        diagonal.append((image @ vectors[-1]).item())
        for _ in range(2):  # orthogonal to all before, in spite of rounding
            basis = torch.stack(vectors)
            image = image - basis.T @ (basis @ image)
        length = image.norm().item()
        matrix = torch.diag(torch.tensor(diagonal, dtype=torch.float64))
        matrix += sum(torch.diag(torch.tensor(beside, dtype=torch.float64), k) for k in (-1, 1))
        values, combinations = torch.linalg.eigh(matrix)
        error = abs(length * combinations[-1, -1].item())
        if error <= tolerance * abs(values[-1].item()) or len(vectors) == len(like):
            return values[-1].item()
        vectors.append(image / length)
        beside.append(length)
