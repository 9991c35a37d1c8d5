"""What claims measure of searches and trainings, and the rule of their verdicts."""
import functools
from collections import namedtuple

import numpy as np

from fair_darts import PENALTIES
from study.interval import interval
from study.records import all_gates, dominant_counts, last_gates
from study.resting import resting_gate

# Of a seed. record: of its search; trained, random: accuracies on the test set, epoch by epoch, of
# the derived network and of a random one; None: not trained, or no genotype
Result = namedtuple("Result", "record trained random")
EQUAL = 1e-6  # means of gates that differ by less are equal but for rounding


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
    if leads.all() or not leads.any() or np.ptp(others.mean(1)) < EQUAL:
        return None
    return float(others[leads].mean() - others[~leads].mean())


@of_skips
def correlation(result):
    """Over the edges of the normal cell, of skip's gate with the mean of the others."""
    skip, others = skip_and_others(result.record)
    if np.ptp(others.mean(1)) < EQUAL:
        return None
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
    counts = dominant_counts(record, "normal")
    late = counts[-max(1, len(counts) // 10):]
    return float(late[:, record.primitives.index("skip_connect")].mean()
                 - late[0].sum() / len(record.primitives))


@of_skips
def derived_skips(result):
    """The share of skips in the normal cell of the genotype, less that by chance: 1 / operations.
    """
    genotype = result.record.genotype
    if genotype is None:
        return None
    names = [edge.op for edge in genotype.normal]
    return names.count("skip_connect") / len(names) - 1 / len(result.record.primitives)


def counted_epoch(result):
    """The epoch whose gates gave the genotype."""
    return result.record.epoch if result.record.genotype else None


def counted(result):
    """The metrics of the epoch that counts, see cures.outcome."""
    return result.record.rows[result.record.epoch - 1]


def curvature(result):
    """The largest eigenvalue of the Hessian by alpha, see study/curvature.py."""
    return counted(result)["curvature"]


def rho(result):
    """See study.gap.encoding_gap."""
    return counted(result)["rho"]


def decision_epoch(result):
    """The epoch after which half of the gates, 0.5 at first, are outside 0.25 to 0.75. Never: one
    more than there were."""
    if result.record.settings["gate"] == "softmax":
        return None
    left = (np.abs(all_gates(result.record) - 0.5) > 0.25).mean(1) >= 0.5
    return int(left.argmax()) + 1 if left.any() else len(left) + 1


def rounding(result):
    """The gap's part that is lost by rounding, in points; see study.gap.split_gap."""
    return counted(result)["gap_rounding"]


def selection(result):
    """And the part that is lost by the choice of edges and operations."""
    row = counted(result)
    return None if row["gap_edges"] is None else row["gap_edges"] + row["gap_operations"]


def off_rest(result):
    """The median of the open gates of the reduction cell, less study.resting.resting_gate."""
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

# The claim is that the measure, over all seeds of `arms`, is above 0; or that it is above that of
# the same seeds of the arm `against`; with a margin, that it is within it.
Claim = namedtuple("Claim", "text measure arms against margin", defaults=(None, None))
RULE = (
    "A claim *held* if the 95 % interval (Student's t over the seeds) of the difference lies above "
    "0, and did *not hold* if it lies below; otherwise it is *undecided*. Both sides of a "
    "difference have the same seed. A seed without a value (no genotype; no edge on which skip "
    "leads) is counted: with one, a claim cannot have held")


def differences(claim, results):
    """The claim's difference for each seed, None where a side has no value."""
    if claim.against is None:
        return [claim.measure(result) for arm in claim.arms for result in results[arm]]
    [arm] = claim.arms
    pairs = zip(map(claim.measure, results[arm]), map(claim.measure, results[claim.against]))
    return [None if None in pair else pair[0] - pair[1] for pair in pairs]


def verdict(values, margin=None):
    """'held', 'not held' or 'undecided', by RULE."""
    mean, half = interval([value for value in values if value is not None])
    low, high = mean - half, mean + half
    if (low > 0 if margin is None else -margin < low and high < margin) and None not in values:
        return "held"
    failed = high < 0 if margin is None else high < -margin or low > margin
    return "not held" if failed else "undecided"
