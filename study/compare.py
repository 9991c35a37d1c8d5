"""Figures of several searches: what the runs of each setting do over the epochs."""
import numpy as np

from study.figures import PARTS, Figure, over_epochs
from study.measures import known_curve
from study.records import dominant_counts, names_of


def skips_of(part):
    """A curve: how many dominant operations of the `part` are skip connections."""
    return lambda record: dict(enumerate(
        dominant_counts(record, part)[:, record.primitives.index("skip_connect")], 1)) if (
        part in record.gates and "skip_connect" in record.primitives) else {}


def columns(*names):
    """A curve: the sum of columns of metrics.csv."""
    return lambda record: {row["epoch"]: sum(row[name] for name in names)
                           for row in record.rows if row[names[0]] is not None}


def known(column):
    """A curve: what argmax would derive, looked up."""
    return lambda record: known_curve(record, column) if column in record.rows[0] else {}


SELECTION = "gap_edges", "gap_operations"
# {file name: (label, whether its panels share an axis that has 0, {title: a function of a Record to
# {epoch: value}})}
CURVES = {
    "dominant": ("dominant skip connections", True, {
        title: skips_of(part) for part, title in PARTS.items()}),  # Fig. 1, 2
    "gap": ("validation accuracy (points)", True, {  # Insight 2
        "Lost by rounding": columns("gap_rounding"), "Lost by selection": columns(*SELECTION),
        "Lost by both": columns("gap_rounding", *SELECTION)}),
    "curvature": ("largest eigenvalue", True, {  # RobustDARTS, Fig. 4
        "Curvature by alpha": columns("curvature")}),
    "derived": ("what argmax would derive", False, {
        "Test accuracy (%)": known("benchmark_accuracy"), "Skips": known("genotype_skips")})}


def curves(records, label, share, panels):
    """A panel for each of {title: curve} that a record has: for the runs of each
    setting the mean, and a band from the least to the most, over the epochs that all
    of them have. None without a panel."""
    names = names_of(records)
    found = {title: [*map(curve, records)] for title, curve in panels.items()}
    found = {title: paths for title, paths in found.items() if any(paths)}
    if not found:
        return None
    figure, lines, lowest = Figure((2.4 + 3.4 * len(found), 3.6)), {}, 0
    every = figure.subplots(1, len(found), squeeze=False, sharey=share)[0]
    for axes, (title, paths) in zip(every, found.items()):
        for index, name in enumerate(dict.fromkeys(names)):
            own = [path for path, other in zip(paths, names) if other == name]
            epochs = sorted(set.intersection(*map(set, own)))
            if epochs:
                values = np.array([[path[epoch] for epoch in epochs] for path in own])
                axes.fill_between(epochs, values.min(0), values.max(0), color=f"C{index}",
                                  alpha=0.15, linewidth=0)
                [lines[name]] = axes.plot(epochs, values.mean(0), "o-", color=f"C{index}")
                lowest = min(lowest, values.min())
        over_epochs(axes, title)
    if share:
        every[0].set_ylim(bottom=lowest)  # last, for it ends scaling
    figure.supylabel(label, fontsize=8)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3)
    return figure
