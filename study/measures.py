"""What an experiment measures: columns of metrics.csv, or functions of a Record. None
where there is no such thing."""
import numpy as np

from spaces import nasbench201
from study.records import all_gates, dominant_counts

# The share of skips that argmax derives in S1 where alphas are normal, alike and independent, of
# three operations of which the two that are no skips share a softmax. By simulation.
SHARED_CHANCE = 0.192


def value(measure, record):
    """The column `measure` of the epoch that counts, or measure(record)."""
    return measure(record) if callable(measure) else record.rows[record.epoch - 1].get(measure)


def whole_gap(record):
    """The discretisation gap, by rounding and by selection, in points."""
    soft = value("soft_accuracy", record)
    return None if soft is None else soft - value("discrete_accuracy", record)


def skips_beyond_chance(record):
    """Dominant skips in the normal cell, mean of the last tenth of the epochs, less
    their share by chance: 8 / operations."""
    counts = dominant_counts(record, "normal")
    late = counts[-max(1, len(counts) // 10):]
    skips = late[:, record.primitives.index("skip_connect")].mean()
    return float(skips - late[0].sum() / len(record.primitives))


def decision_epoch(record):
    """The epoch after which half of the gates, 0.5 at first, are outside 0.25 to 0.75;
    never: one more than there were."""
    if record.s.gate == "softmax":
        return None
    left = (np.abs(all_gates(record) - 0.5) > 0.25).mean(1) >= 0.5
    return int([*left, True].index(True)) + 1


def skip_share(record):
    """The share of skips in the genotype's normal cell, less chance."""
    chance = SHARED_CHANCE if record.s.shared_softmax else 1 / len(record.primitives)
    names = [edge.op for edge in record.genotype.normal] if record.genotype else []
    return names.count("skip_connect") / len(names) - chance if names else None


def skips_off_chance(record):
    """How far it is from chance, whichever way: fewer skips are not fairer."""
    return record.genotype and abs(skip_share(record))


# ---------------------------------------------------------------- NAS-Bench-201: looked up

def known(column):
    """A measure: a column of what is known of the genotype."""
    return lambda record: record.genotype and record.space.known(record.genotype)[column]


accuracy = known("benchmark_accuracy")  # in percent


def random_mean(record):
    """The mean accuracy of all cells of the operations that were searched."""
    columns = [[*nasbench201.OPS].index(op) for op in record.primitives]
    return nasbench201.accuracies()[np.ix_(*[columns] * len(nasbench201.EDGES))].mean()


def over_random(record):
    """The accuracy less that of random cells."""
    return record.genotype and accuracy(record) - random_mean(record)


def ends_below(record):
    """1 where it is worse than the mean of random cells, else 0."""
    return record.genotype and float(over_random(record) < 0)


def known_curve(column, record):
    """What is known of the cell that argmax (Eq. 3) would derive, whatever the
    threshold, after each epoch: {epoch: one of space.known's columns}; {} elsewhere."""
    if record.s.space != "nasbench201":
        return {}
    found = [nasbench201.discretize_edges(gates, 0, record.primitives)
             for gates in record.gates["normal"]]
    return {epoch: record.space.known(cell)[column] for epoch, cell in enumerate(found, 1)}


def by_argmax(record):
    return known_curve("benchmark_accuracy", record)[record.epoch]


def decline(record):
    """By argmax: mean accuracy of the first third of the epochs, less that of the last
    third; None of a search that was ended."""
    if record.epoch < len(record.rows):
        return None
    values = [*known_curve("benchmark_accuracy", record).values()]
    third = max(1, len(values) // 3)
    return float(np.mean(values[:third]) - np.mean(values[-third:]))
