"""Figures of several searches: the mean of each setting's runs, and its spread."""
import numpy as np

from fair_darts import edge_row
from study.figures import PARTS, Figure, over_epochs
from study.interval import interval
from study.records import dominant_counts, known_curve, last_gates, names_of, setting
from study.ties import kept_unpruned, published_gates


def draw_bands(axes, records, curve, names=None):
    """For the runs of each name the mean of their curves, {epoch: value}, and a band
    from the least to the most, if it does not cover too many others, over the epochs
    that all of them have. names: of each record."""
    names = names or names_of(records)
    for index, name in enumerate(dict.fromkeys(names)):
        curves = [curve(record) for record, other in zip(records, names) if other == name]
        epochs = sorted(set.intersection(*map(set, curves)))
        values = np.array([[found[epoch] for epoch in epochs] for found in curves])
        if epochs:
            if len(set(names)) <= 4:
                axes.fill_between(epochs, values.min(0), values.max(0), color=f"C{index}",
                                  alpha=0.2, linewidth=0)
            axes.plot(epochs, values.mean(0), "o-", color=f"C{index}", label=name, markersize=3)


def dominant(records, names=None):
    """Fig. 1: how many dominant operations are skip connections: mean, least and most.
    names: of each record; by default what tells them apart."""
    figure = Figure((9, 3.4))
    parts = max((record.gates for record in records), key=len)
    panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axes, part in zip(panels, parts):
        def skips(record):
            if part not in record.gates or "skip_connect" not in record.primitives:
                return {}
            counts = dominant_counts(record, part)
            return dict(enumerate(counts[:, record.primitives.index("skip_connect")], 1))

        over_epochs(axes, f"Dominant skip connections, {PARTS[part]}", whole_numbers="both")
        draw_bands(axes, records, skips, names)
    panels[0].set_ylim(bottom=0)
    panels[0].set_ylabel("operations")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def derived(records, names=None, random=None):
    """What argmax would derive after each epoch: accuracy in the space's benchmark, and
    skips.
    names: of each record; random: the mean accuracy of random cells, if it is to be
        drawn."""
    figure = Figure((8, 4.6))
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    draw_bands(above, records, lambda record: known_curve(record, "benchmark_accuracy"), names)
    draw_bands(below, records, lambda record: known_curve(record, "genotype_skips"), names)
    if random is not None:
        above.axhline(random, color="grey", linestyle="--", linewidth=1, label="random, mean")
    over_epochs(above, "What would be derived: accuracy and skips", ylabel="test accuracy (%)")
    over_epochs(below, "", ylabel="skips", whole_numbers="both")
    above.set_xlabel("")
    figure.legend(*above.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


def gap(records):
    """Insight 2: what rounding the gates costs, what the choice of edges and
    operations, and both: mean, least and most."""
    figure = Figure((11, 3.4))
    parts = {"rounding": ["rounding"], "selection": ["edges", "operations"],
             "both": ["rounding", "edges", "operations"]}
    panels = figure.subplots(1, len(parts), sharey=True)
    for axes, (name, columns) in zip(panels, parts.items()):
        def lost(record):
            return {row["epoch"]: sum(row["gap_" + column] for column in columns)
                    for row in record.rows if row["gap_rounding"] is not None}

        draw_bands(axes, records, lost)
        epochs = sorted(set().union(*map(lost, records)))
        over_epochs(axes, f"Lost by {name}", xticks=epochs)
    panels[0].set_ylim(bottom=min(0, panels[0].get_ylim()[0]))  # of all; last, for it ends scaling
    panels[0].set_ylabel("validation accuracy (points)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def curvature(records):
    """The largest eigenvalue of the Hessian by alpha: mean, least and most."""
    figure = Figure((7, 3))
    axes = figure.subplots()
    draw_bands(axes, records, lambda record: {
        row["epoch"]: row["curvature"] for row in record.rows if row["curvature"] is not None},
        [setting(record) for record in records])
    over_epochs(axes, "Curvature", ylabel="largest eigenvalue")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    return figure


def ties(records):
    """The gates of the authors' searches and of `records`, sorted, kept ones marked."""
    figure, published = Figure((10, 5)), published_gates()
    panels = figure.subplots(2, 2, sharex="col", sharey=True)
    for row, part in zip(panels, ("normal", "reduce")):
        draw_sorted(row[0], [(search[part].numpy(), ()) for search in published])
        draw_sorted(row[1], [(last_gates(record, part),
                              [record.settings[rule] for rule in record.space.RULES])
                             for record in records])
        row[0].set(title=f"{PARTS[part]}, {len(published)} published searches", ylabel="gate")
        row[1].set(title=f"{PARTS[part]}, {len(records)} searches here")
    for axes in panels[1]:
        axes.set_xlabel("rank of the gate; orange: kept")
    panels[0, 0].set_ylim(0, 1.02)
    return figure


def draw_sorted(axes, searches):
    """searches: [(gates of one cell type, the rules of ties.kept_unpruned)]"""
    for gates, rules in searches:
        kept = [edge_row(edge.node, edge.source) * gates.shape[1] + edge.op
                for edge, _ in kept_unpruned(gates, *rules)]
        order = np.argsort(gates.ravel(), kind="stable")
        heights, marked = gates.ravel()[order], np.isin(order, kept)
        axes.plot(np.flatnonzero(~marked), heights[~marked], ".", color="#999999", markersize=2)
        axes.plot(np.flatnonzero(marked), heights[marked], "o", color="#D55E00", markersize=3,
                  alpha=0.6)


def scatter(points, xlabel, ylabel):
    """{name: [(x, y)]}, a colour for each name."""
    figure = Figure((6.5, 3.6))
    axes = figure.subplots()
    for index, (name, found) in enumerate(points.items()):
        axes.plot([x for x, _ in found], [y for _, y in found], "o", color=f"C{index}", alpha=0.7,
                  label=name, markersize=4)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    figure.legend(loc="outside right center")
    return figure


def arms(title, values):
    """One measure for several settings: {name: [number or None, of each seed]}."""
    figure = Figure((8.5, 1.2 + 0.28 * len(values)))
    axes = figure.subplots()
    for row, found in enumerate(values.values()):
        found = [value for value in found if value is not None]
        mean, half = interval(found)
        axes.errorbar(mean, row, xerr=half if half < np.inf else 0, fmt="k|", markersize=12,
                      ecolor="lightgrey", elinewidth=7)
        axes.plot(found, [row] * len(found), "o", color="#0072B2", zorder=3)
    if axes.get_xlim()[0] < 0:
        axes.axvline(0, color="grey", linestyle="--", linewidth=1)
    axes.set_yticks(range(len(values)), values)
    axes.set(title=title, ylim=(len(values) - 0.5, -0.5),
             xlabel="dots: seeds, line and bar: their mean and its 95 % interval")
    return figure
