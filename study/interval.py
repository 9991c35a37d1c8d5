"""What several seeds say of a mean: its 95 % interval, and two tests."""
import math
import statistics

import numpy as np


def interval(values):
    """Mean and half of the 95 % interval (Student's t); inf of a single value."""
    from scipy.stats import t as student
    if len(values) < 2:
        return statistics.mean(values) if values else math.nan, math.inf
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), student.ppf(0.975, len(values) - 1) * error


def sign_flip(values, alternative="two-sided"):
    """The p-value of the exact sign-flip test: how often the mean is as far from 0
    where each value's sign is a coin's. alternative: "two-sided" or "greater". Exact up
    to 20 values."""
    from scipy.stats import permutation_test
    if len(values) < 2 or not any(values):
        return 1.0
    found = permutation_test((np.asarray(values, float),), np.mean, permutation_type="samples",
                             vectorized=True, n_resamples=2**20, alternative=alternative,
                             rng=np.random.default_rng(0))
    return float(found.pvalue)


def holm(p_values):
    """The p-values of several tests, corrected by Holm: each times the number of those
    that are not smaller, none below that of a smaller one."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected
