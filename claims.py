"""What the paper claims, as differences of measured figures, and the rule of the verdicts."""
import functools
import math
import statistics
from collections import namedtuple

import numpy as np
from scipy.stats import t as student

from fair_darts import PENALTIES, resting_gate
from records import all_gates, dominant_counts, last_gates

# Of a seed. record: of its search; trained, random: accuracies on the test set, epoch by epoch, of
# the derived network and of a random one; None: not trained, or no genotype
Result = namedtuple("Result", "record trained random")


# ---------------------------------------------------------------- what is measured
# Each of a Result; None where there is no such thing.

def of_skips(measure):
    """The measure, None where skip connections are no candidates."""
    @functools.wraps(measure)
    def measured(result):
        return measure(result) if "skip_connect" in result.record.primitives else None
    return measured


@of_skips
def suppression(result):
    """The mean gate of the others on the edges of the normal cell where the skip connection
    leads, less that on those where it does not."""
    skip, others = skip_and_others(result.record)
    leads = skip > others.max(1)
    if leads.all() or not leads.any():
        return None
    return float(others[leads].mean() - others[~leads].mean())


@of_skips
def correlation(result):
    """Over the edges of the normal cell, of skip's gate with the mean of the others."""
    skip, others = skip_and_others(result.record)
    return float(np.corrcoef(skip, others.mean(1))[0, 1])


def skip_and_others(record):
    """The last gates of the normal cell: (edges,), (edges, operations - 1)"""
    last, column = last_gates(record, "normal"), record.primitives.index("skip_connect")
    return last[:, column], np.delete(last, column, axis=1)


@of_skips
def skips_beyond_chance(result):
    """Dominant skips in the normal cell, mean of the last tenth of the epochs, less their share by
    chance: 8 / operations."""
    record = result.record
    counts = dominant_counts(record.gates["normal"], record.primitives)
    late = counts[-max(1, len(counts) // 10):]
    return float(late[:, record.primitives.index("skip_connect")].mean()
                 - late[0].sum() / len(record.primitives))


@of_skips
def derived_skips(result):
    """Skips in the normal cell of the genotype, less their share by chance: edges / operations."""
    genotype = result.record.genotype
    if genotype is None:
        return None
    names = [edge.op for edge in genotype.normal]
    return names.count("skip_connect") - len(names) / len(result.record.primitives)


def counted_epoch(result):
    """The epoch whose gates gave the genotype."""
    return result.record.epoch


def curvature(result):
    """The largest eigenvalue of the Hessian in alpha after the last epoch, see cures.curvature."""
    return result.record.rows[-1]["curvature"]


def rho(result):
    """See fair_darts.encoding_gap."""
    return result.record.rows[-1]["rho"]


def decision_epoch(result):
    """The epoch after which half of the gates, 0.5 at first, are outside 0.25 to 0.75. Never: one
    more than there were."""
    if result.record.settings["gate"] == "softmax":
        return None
    left = (np.abs(all_gates(result.record) - 0.5) > 0.25).mean(1) >= 0.5
    return int(left.argmax()) + 1 if left.any() else len(left) + 1


def rounding(result):
    """The last gap's part that is lost by rounding, in points; see fair_darts.split_gap."""
    return result.record.rows[-1]["gap_rounding"]


def selection(result):
    """And the part that is lost by the choice of edges and operations."""
    last = result.record.rows[-1]
    return None if last["gap_edges"] is None else last["gap_edges"] + last["gap_operations"]


def off_rest(result):
    """The median of the open gates of the reduction cell, less fair_darts.resting_gate."""
    gates, s = last_gates(result.record, "reduce"), result.record.settings
    if not s["w01"]:
        return None
    rest = resting_gate(s["w01"], all_gates(result.record).shape[1], s["arch_weight_decay"],
                        PENALTIES[s["zero_one_loss"]])
    return float(np.median(gates[gates > 0.5])) - rest


def last_accuracy(result):
    return result.trained and result.trained[-1]


def best_accuracy(result):
    """Of the best epoch, which is chosen on the test set."""
    return result.trained and max(result.trained)


def last_over_random(result):
    return result.trained and result.trained[-1] - result.random[-1]


def best_over_random(result):
    return result.trained and max(result.trained) - max(result.random)


# ---------------------------------------------------------------- the verdicts

# The claim is that the measure, over all seeds of `arms`, is above that of the same seeds of
# `against`, or above 0; with a margin, that it is within it.
Claim = namedtuple("Claim", "text measure arms against margin", defaults=(None, None))
CLAIMS = [
    Claim("(a) Where skip leads, the other operations are suppressed under softmax, and less with "
          "sigmoid (Insight 1)", suppression, ["sigmoid2"], "softmax2"),
    Claim("(b) The gates end nearer to 0 and 1 with L01 than under softmax (Fig. 4): rho",
          rho, ["softmax"], "l01"),
    Claim("(c) L'01 decides earlier than L01 (Fig. 5)", decision_epoch, ["l01"], "l1"),
    Claim("(d) Rounding the gates costs more under softmax than with L01 (Insight 2)",
          rounding, ["softmax"], "l01"),
    Claim("(e) L01's networks, trained alike, are better than random ones",
          last_over_random, ["l01"]),
    Claim("(e) and better than softmax's", last_accuracy, ["l01"], "softmax"),
    Claim("(f) Gates that the data leave alone come to rest where the formula says",
          off_rest, ["l01", "w5", "w15"], None, 0.01),
    Claim("(g) Networks of the space with skip_connect are better than those without",
          last_accuracy, ["l01"], "noskip")]
RULE = (
    "A claim *held* if the 95 % interval (Student's t over the seeds) of the difference lies above "
    "0, and did *not hold* if it lies below; otherwise it is *undecided*. Both sides of a difference "
    "have the same seed. A seed without a value (no genotype; no edge on which skip leads) is "
    "counted: with one, a claim cannot have held")


def interval(values):
    """Mean and half of the 95 % interval (Student's t); inf of a single value."""
    if len(values) < 2:
        return statistics.mean(values) if values else math.nan, math.inf
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), student.ppf(0.975, len(values) - 1) * error


def differences(claim, results):
    """The claim's difference for each seed, None where a side has no value."""
    if claim.against is None:
        return [claim.measure(result) for arm in claim.arms for result in results[arm]]
    pairs = zip(*(map(claim.measure, results[arm]) for arm in (*claim.arms, claim.against)))
    return [None if None in pair else pair[0] - pair[1] for pair in pairs]


def verdict(values, margin=None):
    """'held', 'not held' or 'undecided', by RULE."""
    mean, half = interval([value for value in values if value is not None])
    low, high = mean - half, mean + half
    if (low > 0 if margin is None else -margin < low and high < margin) and None not in values:
        return "held"
    failed = high < 0 if margin is None else high < -margin or low > margin
    return "not held" if failed else "undecided"
