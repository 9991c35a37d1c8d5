"""What claims measure of searches and trainings, and the rule of their verdicts."""
import functools
from collections import namedtuple

import numpy as np

from fair_darts import PENALTIES
from study import ties
from study.chance import skip_share
from study.interval import holm, interval, sign_flip
from study.records import all_gates, dominant_counts, last_gates
from study.resting import resting_gate

# Of a seed. record: of its search; trained, random: accuracies on the test set, epoch by epoch, of
# the derived network and of a random one; size: millions of parameters and of MACs of the former;
# held: see hold.py; genotypes: those trained, of which `trained` is the mean; None: not trained, no
# genotype, not measured
Result = namedtuple("Result", "record trained random size held genotypes", defaults=(None,) * 5)


# ---------------------------------------------------------------- what is measured
# Each of a Result; None where there is no such thing.

def of_skips(measure):
    """The measure, None where skip connections are no candidates."""
    @functools.wraps(measure)
    def measured(result):
        return measure(result) if "skip_connect" in result.record.primitives else None
    return measured


@of_skips
def skips_beyond_chance(result):
    """Dominant skips in the normal cell, mean of the last tenth of the epochs, less
    their share by chance: 8 / operations."""
    record = result.record
    counts = dominant_counts(record, "normal")
    late = counts[-max(1, len(counts) // 10):]
    return float(late[:, record.primitives.index("skip_connect")].mean()
                 - late[0].sum() / len(record.primitives))


@of_skips
def derived_skips(result):
    """The share of skips in the genotype's normal cell, less chance, see chance.py."""
    genotype = result.record.genotype
    if genotype is None:
        return None
    names = [edge.op for edge in genotype.normal]
    return names.count("skip_connect") / len(names) - skip_share(result.record)


def skips_off_chance(result):
    """How far it is from chance, whichever way: fewer skips are not fairer."""
    share = derived_skips(result)
    return share and abs(share)


def counted_epoch(result):
    """The epoch whose gates gave the genotype."""
    return result.record.epoch if result.record.genotype else None


def counted(result):
    """The metrics of the epoch that counts, see cures.outcome."""
    return result.record.rows[result.record.epoch - 1]


def rho(result):
    """See study.gap.encoding_gap."""
    return counted(result)["rho"]


def decision_epoch(result):
    """The epoch after which half of the gates, 0.5 at first, are outside 0.25 to 0.75.
    Never: one more than there were."""
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


def whole_gap(result):
    """Both: what the supernet loses as its gates become those of the genotype."""
    parts = rounding(result), selection(result)
    return None if None in parts else sum(parts)


def by_learning(result):
    """How much lower the others' mean gate ends with skip held high than with skip held
    low, by learning alone, see hold.py."""
    return result.held and -result.held["learning"]


def by_arithmetic(result):
    """And what the gates' sum gives before anything is learnt."""
    return result.held and -result.held["arithmetic"]


def ties_of(part):
    """A measure: the share of the `part`'s kept gates that have a rejected rival within
    0.005, see ties.py."""
    def near_ties(result):
        s = result.record.settings
        near, kept = ties.near_ties(
            last_gates(result.record, part), *(s[rule] for rule in result.record.space.RULES))
        return near / kept if kept else None
    return near_ties


def off_rest(result):
    """The median of the reduction cell's open gates, less resting.resting_gate."""
    gates, s = last_gates(result.record, "reduce"), result.record.settings
    if not s["w01"] or not (gates > 0.5).any():
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


def parameters(result):
    """Of the trained network, in millions, without its auxiliary head."""
    return result.size and result.size[0]


def macs(result):
    """Its multiply-accumulates, in millions."""
    return result.size and result.size[1]


OF_NETWORKS = {last_accuracy, best_accuracy, last_over_random, best_over_random}


# ---------------------------------------------------------------- the verdicts

# The claim is that the measure, over the seeds of `arm`, is above 0; or that it is above that of
# the same seeds of the arm `against`; with a margin, that it is within it. p-values are corrected
# for all claims of a family.
Claim = namedtuple("Claim", "text measure arm against margin family", defaults=(None, None, ""))
# What the seeds say of a claim. values: of each seed, None where a side has no value; mean, half:
# of the 95 % interval of those that there are; p: of the sign-flip test, corrected: by Holm
Finding = namedtuple("Finding", "claim values mean half p corrected verdict")
LEVEL = 0.05
RULE = (
    "A claim *held* if the 95 % interval (Student's t over the seeds) of the difference lies above "
    "0 **and** the exact sign-flip test rejects at 5 % after Holm's correction for {of}; it did "
    "*not hold* if the same is so below 0; otherwise it is *undecided*. With a margin, the "
    "interval has to lie within it, and the test to reject both ends of it. Both sides of a "
    "difference have the same seed. A seed without a value (no genotype) is counted: with one, a "
    "claim cannot have held")


def find(claims, results):
    """The Finding of each claim. results: {arm: [Result of each seed]}."""
    values = [differences(claim, results) for claim in claims]
    p_values = [p_value([v for v in found if v is not None], claim.margin)
                for claim, found in zip(claims, values)]
    findings, corrected_p = [], [0.0] * len(claims)
    for family in {claim.family for claim in claims}:
        places = [index for index, claim in enumerate(claims) if claim.family == family]
        for index, corrected in zip(places, holm([p_values[index] for index in places])):
            corrected_p[index] = corrected
    for claim, found, p, corrected in zip(claims, values, p_values, corrected_p):
        mean, half = interval([value for value in found if value is not None])
        findings.append(Finding(claim, found, mean, half, p, corrected,
                                verdict(found, corrected, claim.margin)))
    return findings


def differences(claim, results):
    """The claim's difference for each seed, None where a side has no value."""
    values = [claim.measure(result) for result in results[claim.arm]]
    if claim.against is None:
        return values
    others = [claim.measure(result) for result in results[claim.against]]
    return [None if None in pair else pair[0] - pair[1] for pair in zip(values, others)]


def p_value(values, margin=None):
    """Of the sign-flip test; with a margin the larger one of two: that the mean is
    above -margin, and below margin."""
    if margin is None:
        return sign_flip(values)
    return max(sign_flip([margin + sign * value for value in values], "greater")
               for sign in (1, -1))


def verdict(values, corrected, margin=None):
    """'held', 'not held' or 'undecided', by RULE. corrected: the p-value."""
    mean, half = interval([value for value in values if value is not None])
    low, high = mean - half, mean + half
    if margin is not None:
        inside = -margin < low and high < margin and corrected < LEVEL and None not in values
        return "held" if inside else "not held" if low > margin or high < -margin else "undecided"
    if corrected < LEVEL and low > 0 and None not in values:
        return "held"
    return "not held" if corrected < LEVEL and high < 0 else "undecided"
