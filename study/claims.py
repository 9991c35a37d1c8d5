"""What several seeds say of a claim: its interval, its test, and a verdict by a rule
that was fixed before the runs."""
import math
from collections import namedtuple

import numpy as np

from study.measures import value

# The claim is that the measure, over the seeds of `arm`, is above 0; or that it is above that of
# the same seeds of the arm `against`.
Claim = namedtuple("Claim", "text measure arm against", defaults=(None,))
LEVEL = 0.05
RULE = """\
A claim *held* if the 95 % interval (Student's t over the seeds) of the difference lies above 0
**and** the sign-flip test rejects at 5 % after Holm's correction for all claims of this page; it
did *not hold* if the same is so below 0; otherwise it is *undecided*. Both sides of a difference
have the same seed. A seed without a value (no genotype) is counted: with one, a claim cannot have
held. This was fixed in the code before the runs."""


def differences(claim, records):
    """The claim's difference for each seed, None where a side has no value. records:
    {arm: [Record of each seed]}"""
    sides = [[value(claim.measure, record) for record in records[arm]]
             for arm in (claim.arm, claim.against) if arm]
    return [None if None in pair else pair[0] - sum(pair[1:]) for pair in zip(*sides)]


def present(values):
    return [number for number in values if number is not None]


def interval(values):
    """Mean and half of the 95 % interval (Student's t); inf of a single value, nan of
    none."""
    from scipy.stats import sem, t
    if len(values) < 2:
        return (values[0], math.inf) if values else (math.nan, math.inf)
    return float(np.mean(values)), float(t.ppf(0.975, len(values) - 1) * sem(values))


def sign_flip(values):
    """The p-value of the two-sided sign-flip test: how often the mean is as far from 0
    where each value's sign is a coin's. Exact up to 16 values; of more, by 100,000
    seeded draws."""
    from scipy.stats import permutation_test
    if len(values) < 2 or not any(values):
        return 1.0
    return float(permutation_test((np.asarray(values, float),), np.mean, vectorized=True,
                                  permutation_type="samples", n_resamples=10**5,
                                  rng=np.random.default_rng(0)).pvalue)


def holm(p_values):
    """The p-values of several tests, corrected by Holm: each times the number of those
    that are not smaller, none below that of a smaller one."""
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, float)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1, np.maximum.accumulate(steps))
    return corrected.tolist()


def verdict(values, corrected):
    """'held', 'not held' or 'undecided', by RULE. corrected: the p-value."""
    mean, half = interval(present(values))
    if corrected < LEVEL and mean - half > 0 and None not in values:
        return "held"
    return "not held" if corrected < LEVEL and mean + half < 0 else "undecided"
