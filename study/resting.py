"""Where a gate settles when it gets no gradient from the data: the zero-one loss pushes
it out, Adam's weight decay on alpha holds it back."""
import torch

from fair_darts import PENALTIES, zero_one_loss


def resting_gate(w01, count, weight_decay, penalty=zero_one_loss):
    """Where a gate above 1/2 settles when it gets no gradient from the data: there the
    push of the penalty, for Eq. 7 w01 / count * 2 * (z - 1/2) * z * (1 - z), is
    weight_decay * alpha.

    count: N, the number of all gates. Below 1/2 it is the mirror image, 1 - z. 0.5 if
    no gate leaves 1/2; nearly 1 without weight decay. Of weight decay as an L2 term of
    the gradient (Adam; AdamW's gates go on to 0.9998), while L_val's gradient has
    little noise.
    """
    low, high = 0.5 + 1e-6, 1 - 1e-12
    if w01 <= needed_w01(low, count, weight_decay, penalty):
        return 0.5
    for _ in range(60):  # bisection
        middle = (low + high) / 2
        moves_on = w01 > needed_w01(middle, count, weight_decay, penalty)
        low, high = (middle, high) if moves_on else (low, middle)
    return low


def needed_w01(gate, count, weight_decay, penalty=zero_one_loss):
    """The w01 with which `resting_gate` is `gate`, above 1/2."""
    alpha = torch.logit(torch.tensor([gate], dtype=torch.float64)).requires_grad_()
    [slope] = torch.autograd.grad(penalty(torch.sigmoid(alpha)), alpha)  # of one gate
    return (weight_decay * alpha * count / -slope).item()


def note(s, count):
    """A line if such gates cannot reach the threshold, or None. count: of all gates."""
    setting = count, s.arch_weight_decay, PENALTIES[s.zero_one_loss]
    rest = resting_gate(s.w01, *setting)
    if s.gate == "softmax" or s.threshold <= max(0.5, rest):
        return None
    remedy = ("lower --threshold" if s.threshold >= 1
              else f"--w01 {needed_w01(s.threshold, *setting):.2f} brings them to it")
    return (f"note: gates that get no gradient from the data settle at {rest:.3f} and "
            f"{1 - rest:.3f}, short of --threshold {s.threshold}; {remedy}")
