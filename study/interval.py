"""The 95 % interval of a mean, which figures show and claims are judged by."""
import math
import statistics


def interval(values):
    """Mean and half of the 95 % interval (Student's t); inf of a single value."""
    from scipy.stats import t as student
    if len(values) < 2:
        return statistics.mean(values) if values else math.nan, math.inf
    error = statistics.stdev(values) / math.sqrt(len(values))
    return statistics.mean(values), student.ppf(0.975, len(values) - 1) * error
