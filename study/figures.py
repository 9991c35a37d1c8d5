"""The paper's figures of one search, and of several side by side."""
import functools

import numpy as np

from engine.flags import leave

try:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ModuleNotFoundError as error:
    leave(error)

from fair_darts import PENALTIES
from study.draw_cells import CENTRED, colour
from study.measures import known_curve, random_mean
from study.records import all_gates, dominant_counts, kept_gates, names_of, setting
from study.resting import resting_gate

LINE_COLOURS = ["#000000", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#D55E00"]
matplotlib.rcParams.update({
    "figure.constrained_layout.use": True, "figure.titlesize": 10, "savefig.dpi": 110,
    "font.size": 8, "axes.titlesize": 10, "lines.linewidth": 1.4, "lines.markersize": 3,
    "axes.prop_cycle": matplotlib.cycler(color=LINE_COLOURS)})
PARTS = {"normal": "normal cell", "reduce": "reduction cell", "layers": "all layers"}


def over_epochs(axes, title, whole_numbers="x", **settings):
    axes.set(title=title, xlabel="epoch", **settings)
    axes.locator_params(whole_numbers, integer=True, min_n_ticks=1)


def draw_dominant(record):
    """Fig. 2, in S2 Fig. 1: the dominant operations over epochs."""
    figure, known = Figure((9, 3.2)), "benchmark_rank" in record.rows[0]
    panels = figure.subplots(1, len(record.gates) + known, sharey=not known, squeeze=False)[0]
    for axes, part in zip(panels, record.gates):
        stack_dominant(axes, record, part, f"Dominant operations, {PARTS[part]}")
    panels[0].set_ylabel("operations")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", reverse=True)
    if known:
        panels[1].plot(*zip(*columns("benchmark_accuracy")(record).items()), "o-")
        over_epochs(panels[1], "Accuracy of what would be derived", ylabel="test accuracy (%)")
    return figure


def stack_dominant(axes, record, part, title):
    edges = np.arange(len(record.rows) + 1) + 0.5  # between the epochs
    # the skip connections lowest, where heights are easy to compare
    order = sorted(record.primitives, key=lambda op: op != "skip_connect")
    counts = dominant_counts(record, part)
    counts = np.concatenate([counts, counts[-1:]])  # to the end of the last epoch
    axes.stackplot(edges, [counts[:, record.primitives.index(op)] for op in order], labels=order,
                   colors=[colour(op) for op in order], step="post")
    over_epochs(axes, title, whole_numbers="both", xlim=(edges[0], edges[-1]),
                ylim=(0, counts[0].sum()))


def plot_gates(axes, record, paths, title):
    """paths: (operations, epochs)"""
    for op, path in zip(record.primitives, paths):
        width = 2.4 if op == "skip_connect" else 1.1
        axes.plot(range(1, len(path) + 1), path, "o-", color=colour(op), label=op,
                  linewidth=width, markersize=width, zorder=width)
    over_epochs(axes, title, ylim=(0, 1), yticks=(0, 0.5, 1))


def draw_pair(*records):
    """Fig. 2 and 3 in a row for each search: its dominant operations, and the gates of
    the edge on which in the first search a skip connection leads most."""
    [part, *_], first = records[0].gates, records[0]
    if any("skip_connect" not in record.primitives or len(record.primitives) < 2
           or record.space is not first.space
           or record.gates[part].shape[1] != first.gates[part].shape[1] for record in records):
        return None
    last, skip = first.gates[part][-1], first.primitives.index("skip_connect")
    row = np.nanargmax(last[:, skip] - np.delete(last, skip, 1).max(1))
    figure = Figure((8, 0.5 + 2.5 * len(records)))
    for axes, record, name in zip(figure.subplots(len(records), 2, squeeze=False), records,
                                  names_of(records)):
        stack_dominant(axes[0], record, part, f"{name}\nDominant operations, {PARTS[part]}")
        axes[0].set_ylabel("operations")
        plot_gates(axes[1], record, record.gates[part][:, row].T,
                   f"Gates of {record.space.row_names(row + 1)[row]}")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def draw_gates(record):
    """Fig. 3: the gates over epochs, a panel for each edge or layer."""
    names = record.space.row_names(next(iter(record.gates.values())).shape[1])
    if "layers" in record.gates:
        places = [divmod(layer, 5) for layer in range(len(names))]
    else:  # a line for each node
        edges = record.space.edges(len(names))
        places = [(node - edges[0][0], source) for node, source in edges]
    rows, across = np.max(places, axis=0) + 1
    figure = Figure((3 + 1.1 * across * len(record.gates), 1.2 + 1.25 * rows))
    halves = figure.subfigures(1, len(record.gates), squeeze=False)[0]
    for half, (part, gates) in zip(halves, record.gates.items()):
        half.suptitle(f"Gates over epochs, {PARTS[part]}")
        half.supylabel("gate")
        for (row, column), name, paths in zip(places, names, gates.transpose(1, 2, 0)):
            axes = half.add_subplot(rows, across, row * across + column + 1)
            plot_gates(axes, record, paths, name)
            axes.label_outer()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center",
                  ncols=len(record.primitives))
    return figure


def draw_heatmap(*records):
    """Fig. 4: the final gates, edges by operations, a row of panels for each search."""
    names = names_of(records) if len(records) > 1 else [setting(records[0])]
    wide = max(len(record.gates) for record in records)
    rows, columns = np.max([part.shape[1:] for record in records for part in record.gates.values()],
                           axis=0)
    figure = Figure((max(6.5, wide * (0.8 + 0.5 * columns)) + 1.2,
                     0.6 + len(records) * (1.6 + 0.3 * rows)))
    panels = figure.subplots(len(records), wide, squeeze=False)
    for line, record, name in zip(panels, records, names):
        for axes in line[len(record.gates):]:
            axes.axis("off")
        for axes, part in zip(line, record.gates):
            gates, kept = record.gates[part][record.epoch - 1], kept_gates(record, part)
            image = axes.imshow(gates, vmin=0, vmax=1, cmap="cividis", aspect="auto")
            for row, column in np.argwhere(~np.isnan(gates)):
                ink = "white" if gates[row, column] < 0.55 else "black"
                axes.text(column, row, f"{gates[row, column]:.2f}", color=ink, fontsize=7,
                          **CENTRED)
            for row, column in np.argwhere(kept):
                axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False,
                                         edgecolor="#D55E00", linewidth=2))
            axes.set_xticks(range(gates.shape[1]), record.primitives, rotation=40, ha="right")
            axes.set_yticks(range(len(gates)), record.space.row_names(len(gates)))
            axes.set_title(f"{name}\n{PARTS[part]}", fontsize=9)
    figure.colorbar(image, ax=panels, label="gate", fraction=0.03, pad=0.01, aspect=30)
    figure.suptitle("Final gates; framed: kept by the genotype")
    return figure


def draw_penalty(record):
    """Fig. 5: all gates over epochs; dashed: where they settle without the data."""
    figure, s, gates = Figure((8, 3.4)), record.s, all_gates(record)
    axes = figure.subplots()
    shares = np.stack([np.histogram(epoch, 40, (0, 1))[0] for epoch in gates], 1) / gates.shape[1]
    image = axes.imshow(np.ma.masked_equal(100 * shares, 0), origin="lower", aspect="auto",
                        cmap="cividis", vmin=0, interpolation="nearest",
                        extent=(0.5, len(gates) + 0.5, 0, 1))
    if s.gate == "sigmoid":
        rest = resting_gate(s.w01, gates.shape[1], s.arch_weight_decay, PENALTIES[s.zero_one_loss])
        for height in {rest, 1 - rest}:
            axes.axhline(height, color="#D55E00", linestyle="--", linewidth=1.5)
    over_epochs(axes, f"All gates over epochs, {setting(record)}", ylabel="gate")
    figure.colorbar(image, ax=axes, label="% of gates")
    return figure


def draw_gap(record):
    """Insight 2: the accuracy of the supernet, and what the genotype's gates cost."""
    rows = [row for row in record.rows if row["soft_accuracy"] is not None]
    if not rows:
        return None
    figure = Figure((7, 3.4))
    axes, epochs = figure.subplots(), [row["epoch"] for row in rows]
    level = np.array([row["discrete_accuracy"] for row in rows])
    axes.plot(epochs, level, "s--", color="black", label="gates of the genotype, 0 and 1")
    for name, label, shade in (("operations", "the choice of operations", "#E69F00"),
                               ("edges", "the choice of edges", "#F0E442"),
                               ("rounding", "rounding", "#56B4E9")):
        above = level + [row["gap_" + name] for row in rows]
        axes.fill_between(epochs, level, above, color=shade, label=f"lost by {label}")
        level = above
    axes.plot(epochs, level, "o-", color="black", label="gates as they are")
    over_epochs(axes, f"Discretisation gap, {setting(record)}", ylim=(0, 102),
                ylabel="validation accuracy (%)")
    axes.set_xticks(epochs)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", reverse=True)
    return figure


def columns(*names):
    """A curve: from a Record to the sum of columns of metrics.csv, {epoch: value}."""
    return lambda record: {row["epoch"]: sum(row[name] for name in names)
                           for row in record.rows if row.get(names[0]) is not None}


def draw_curves(label, share, panels, *records):
    """A panel for each of {title: curve} that a record has: each run as a thin line,
    for those of each setting the median and a band between the quartiles, over the
    epochs that all of them have. None without a panel. share: whether the panels stand
    side by side and share an axis from 0; else one stands below the other."""
    names, found = names_of(records), {title: [*map(curve, records)]
                                       for title, curve in panels.items()}
    found = {title: paths for title, paths in found.items() if any(paths)}
    if not found:
        return None
    count, lines = len(found), {}
    figure = Figure((2.4 + 3.4 * count, 3.6) if share else (7, 1 + 2.2 * count))
    every = figure.subplots(*((1, count) if share else (count, 1)), squeeze=False,
                            sharey=share).ravel()
    for axes, (title, paths) in zip(every, found.items()):
        for index, name in enumerate(dict.fromkeys(names)):
            own = [path for path, other in zip(paths, names) if other == name]
            epochs = sorted(set.intersection(*map(set, own)))
            if epochs:
                values = np.array([[path[epoch] for epoch in epochs] for path in own])
                low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
                axes.plot(epochs, values.T, color=f"C{index}", alpha=0.25, linewidth=0.4)
                axes.fill_between(epochs, low, high, color=f"C{index}", alpha=0.2, linewidth=0)
                [lines[name]] = axes.plot(epochs, middle, "o-", color=f"C{index}")
        over_epochs(axes, title)
    if share:
        every[0].set_ylim(bottom=min(0, *(axes.dataLim.y0 for axes in every)))  # ends scaling
    figure.supylabel(label, fontsize=8)
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=3)
    return figure


def draw_derived(*records):
    """What argmax would derive, where it can be looked up; dashed: the mean of random
    cells."""
    figure = draw_curves("what argmax would derive", False, {
        "Test accuracy (%)": functools.partial(known_curve, "benchmark_accuracy"),
        "Skips": functools.partial(known_curve, "genotype_skips")}, *records)
    if figure:
        known = next(record for record in records if record.s.space == "nasbench201")
        figure.axes[0].axhline(random_mean(known), color="grey", linestyle="--", linewidth=1)
    return figure


SELECTION = "gap_edges", "gap_operations"
CURVATURE = functools.partial(draw_curves, "largest eigenvalue", True, {  # RobustDARTS, Fig. 4
    "Curvature by alpha": columns("curvature")})
# {file name: function of a Record, or of several, that draws a figure, or returns None}
FIGURES = {"dominant": draw_dominant, "gates": draw_gates, "heatmap": draw_heatmap,
           "penalty": draw_penalty, "gap": draw_gap, "curvature": CURVATURE}
SIDE_BY_SIDE = {
    "pair": draw_pair, "heatmap": draw_heatmap, "curvature": CURVATURE,
    "dominant": functools.partial(draw_curves, "dominant skip connections", True, {
        title: columns("skips_" + part) for part, title in PARTS.items()}),  # Fig. 2, in S2 Fig. 1
    "gap": functools.partial(draw_curves, "validation accuracy (points)", True, {  # Insight 2
        "Lost by rounding": columns("gap_rounding"), "Lost by selection": columns(*SELECTION),
        "Lost by both": columns("gap_rounding", *SELECTION)}),
    "derived": draw_derived}
