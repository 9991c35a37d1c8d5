"""The paper's figures, drawn from the files that a search leaves in its folder.

    python -m study.visualize RUN           # the figures of one search -> RUN/figures/
    python -m study.visualize RUN RUN ...   # the same runs side by side -> comparison/
    python -m study.visualize FairDARTS_a   # its cells -> FairDARTS_a_normal.png, _reduce.png
"""
import io
import os

import numpy as np
import torch

from engine import texts
from engine.flags import Parser, UserError, leave, main, path_name

try:
    import matplotlib
    from matplotlib.colors import to_rgba_array
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
except ModuleNotFoundError as error:
    leave(error)

from engine.folders import write_whole
from fair_darts import PENALTIES
from genotypes import PUBLISHED
from spaces import SPACES
from study.draw_cells import CENTRED, colour, parts_of
from study.interval import interval
from study.records import (all_gates, dominant_counts, dominant_names, gate_histogram,
                           kept_gates, last_gates, names_of, read, reasons, setting)
from study.resting import resting_gate

LINE_COLOURS = ["#000000", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#D55E00"]
matplotlib.rcParams.update({
    "figure.constrained_layout.use": True, "figure.titlesize": 10, "savefig.dpi": 110,
    "font.size": 8, "axes.titlesize": 10, "lines.linewidth": 1.4, "lines.markersize": 3,
    "axes.prop_cycle": matplotlib.cycler(color=LINE_COLOURS)})
MARKS = ("e: others of its node's edges are better  o: another operation of its edge is better\n"
         "t: below the threshold  k: a skip more than --keep_skips  "
         "p: pruned, since nothing enters the node that it leaves")
PARTS = {"normal": "normal cell", "reduce": "reduction cell", "layers": "all layers"}


def row_names(record, part):
    """What the rows of a part's gates are called."""
    count = record.gates[part].shape[1]
    if part == "layers":
        return [f"layer {layer}" for layer in range(count)]
    return [f"{source} → {node}" for node, source in edge_names(count)]


def edge_names(count):
    """[(node, source)] of the rows of a matrix of `count` edges."""
    return [(node, source) for node in range(2, count + 2) for source in range(node)][:count]


# ---------------------------------------------------------------- figures of one run

def over_epochs(axes, title, whole_numbers="x", **settings):
    axes.set(title=title, xlabel="epoch", **settings)
    if "xticks" not in settings:
        axes.locator_params(whole_numbers, integer=True, min_n_ticks=1)


def draw_dominant(record):
    """Fig. 1, 2: the dominant operations over epochs; in S2 also that of each layer."""
    figure = Figure((9, 3.2))
    panels = figure.subplots(1, 2, sharey="normal" in record.gates)
    edges = np.arange(len(record.rows) + 1) + 0.5  # between the epochs
    # the skip connections lowest, where heights are easy to compare
    order = sorted(record.primitives, key=lambda op: op != "skip_connect")
    for axes, part in zip(panels, record.gates):
        counts = dominant_counts(record, part)
        counts = np.concatenate([counts, counts[-1:]])  # to the end of the last epoch
        axes.stackplot(edges, [counts[:, record.primitives.index(op)] for op in order],
                       labels=order, colors=[colour(op) for op in order], step="post")
        over_epochs(axes, f"Dominant operations, {PARTS[part]}", whole_numbers="both",
                    xlim=(edges[0], edges[-1]), ylim=(0, counts[0].sum()))
    panels[0].set_ylabel("operations")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", reverse=True)
    if "layers" in record.gates:
        pixels = [to_rgba_array([colour(op) for op in dominant_names(record, epoch)])
                  for epoch in record.gates["layers"]]
        panels[1].imshow(np.swapaxes(pixels, 0, 1), aspect="auto", interpolation="nearest",
                         extent=(edges[0], edges[-1], len(pixels[0]) - 0.5, -0.5))
        over_epochs(panels[1], "Dominant operation of each layer", whole_numbers="both",
                    ylabel="layer")
    return figure


def draw_gates(record):
    """Fig. 3: the gates over epochs, a panel for each edge or layer."""
    count = next(iter(record.gates.values())).shape[1]
    places = [(node - 2, source) for node, source in edge_names(count)]
    if "layers" in record.gates:
        places = [divmod(layer, 5) for layer in range(count)]
    rows, columns = np.max(places, axis=0) + 1
    figure = Figure((3 + 1.1 * columns * len(record.gates), 1.2 + 1.25 * rows))
    halves = figure.subfigures(1, len(record.gates), squeeze=False)[0]
    for half, (part, gates) in zip(halves, record.gates.items()):
        half.suptitle(f"Gates over epochs, {PARTS[part]}")
        half.supylabel("gate")
        names = row_names(record, part)
        for (row, column), name, paths in zip(places, names, gates.transpose(1, 2, 0)):
            axes = half.add_subplot(rows, columns, row * columns + column + 1)
            for op, path in zip(record.primitives, paths):
                width = 2.4 if op == "skip_connect" else 1.1
                axes.plot(range(1, len(path) + 1), path, "o-", color=colour(op), label=op,
                          linewidth=width, markersize=width, zorder=width)
            over_epochs(axes, name, ylim=(0, 1), yticks=(0, 0.5, 1))
            axes.label_outer()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center",
                  ncols=len(record.primitives))
    return figure


def draw_heatmap(*records):
    """Fig. 4: the final gates, edges by operations; framed: kept by the genotype; marked: why a
    high gate is not."""
    names = names_of(records) if len(records) > 1 else [setting(records[0])]
    parts = [(record, part, name) for record, name in zip(records, names)
             for part in record.gates]
    wide = max(len(record.gates) for record in records)  # a row for each record
    rows, columns = np.max([record.gates[part].shape[1:] for record, part, _ in parts], axis=0)
    figure = Figure((max(6.5, wide * (0.8 + 0.5 * columns)) + 1.2,
                     0.6 + len(records) * (1.6 + 0.3 * rows)))
    panels = figure.subplots(len(records), wide, squeeze=False)
    places = [axes for line, record in zip(panels, records) for axes in line[:len(record.gates)]]
    for axes in set(panels.flat) - set(places):
        axes.axis("off")
    for axes, (record, part, name) in zip(places, parts):
        gates, kept = last_gates(record, part), kept_gates(record, part)
        marks = reasons(record, part)
        image = axes.imshow(gates, vmin=0, vmax=1, cmap="cividis", aspect="auto")
        for (row, column), gate in np.ndenumerate(gates):
            if not np.isnan(gate):
                ink = "white" if gate < 0.55 else "black"
                axes.text(column, row, f"{gate:.2f} {marks[row, column]}".strip(), color=ink,
                          fontsize=7, **CENTRED)
            if kept[row, column]:
                axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False,
                                         edgecolor="#D55E00", linewidth=2))
        axes.set_xticks(range(gates.shape[1]), record.primitives, rotation=40, ha="right")
        axes.set_yticks(range(gates.shape[0]), row_names(record, part))
        axes.set_title(f"{name}\n{PARTS[part]}", fontsize=9)
    figure.colorbar(image, ax=panels, label="gate", fraction=0.03, pad=0.01, aspect=30)
    figure.suptitle("Final gates; framed: kept by the genotype; marked: high, but not kept")
    figure.supxlabel(MARKS, fontsize=8)
    return figure


def draw_penalty(record):
    """Fig. 5: the penalties and their slopes, by the gate and by alpha, and what became of the
    gates; dashed: where those settle that get no gradient from the data."""
    figure = Figure((11, 5.4))
    panels = figure.subplot_mosaic([["value", "slope", "push"], ["gates"] * 3])
    z = torch.linspace(0, 1, 401, requires_grad=True)
    for name, penalty in PENALTIES.items():
        values = torch.stack([penalty(gate) for gate in z.split(1)])
        [slopes] = torch.autograd.grad(values.sum(), z)
        equation, colon, _ = (penalty.__doc__ or "").partition(":")
        label = f"{name}, {equation}" if colon else name
        panels["value"].plot(z.detach(), values.detach(), label=label)
        panels["slope"].plot(z.detach(), slopes)
        panels["push"].plot(z.detach(), (slopes * z * (1 - z)).detach())
    panels["value"].set(title="Penalty of one gate", xlabel="gate z", ylabel="N × penalty")
    panels["slope"].set(title="Its slope", xlabel="gate z", ylabel="N × d penalty / dz")
    panels["push"].set(title="Its slope by alpha", xlabel="gate z",
                       ylabel="N × d penalty / d alpha")
    panels["value"].legend()
    percent = np.ma.masked_equal(100 * gate_histogram(record), 0)
    image = panels["gates"].imshow(
        percent, origin="lower", aspect="auto", cmap="cividis", vmin=0, interpolation="nearest",
        extent=(0.5, len(record.rows) + 0.5, 0, 1))
    s = record.settings
    if s["gate"] == "sigmoid":
        rest = resting_gate(s["w01"], all_gates(record).shape[1],
                                       s["arch_weight_decay"],
                                       PENALTIES[s["zero_one_loss"]])
        for height in {rest, 1 - rest}:
            panels["gates"].axhline(height, color="#D55E00", linestyle="--", linewidth=1.5)
    over_epochs(panels["gates"], f"All gates over epochs, {setting(record)}", ylabel="gate z")
    figure.colorbar(image, ax=panels["gates"], label="% of gates")
    return figure


def draw_gap(record):
    """Insight 2: the supernet's accuracy with its gates, and what cutting them to the genotype's
    costs, in its parts."""
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
    over_epochs(axes, f"Discretisation gap, {setting(record)}", ylim=(0, 102), xticks=epochs,
                ylabel="validation accuracy (%)")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", reverse=True)
    return figure


def draw_curvature(record):
    """The largest eigenvalue of the Hessian by alpha over epochs (RobustDARTS, Fig. 4)."""
    rows = [row for row in record.rows if row["curvature"] is not None]
    if not rows:
        return None
    figure = Figure((6, 3))
    axes = figure.subplots()
    axes.plot([row["epoch"] for row in rows], [row["curvature"] for row in rows], "o-")
    over_epochs(axes, f"Curvature, {setting(record)}", ylabel="largest eigenvalue")
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    return figure


# ---------------------------------------------------------------- figures of several runs

def draw_bands(axes, records, curve, names=None):
    """For the runs of each name the mean of their curves, {epoch: value}, and a band from the
    least to the most, if it does not cover too many others, over the epochs that all of them
    have. names: of each record."""
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


def compare_dominant(records, names=None):
    """Fig. 1: how many dominant operations are skip connections: mean, least and most. names: of
    each record; by default what tells them apart."""
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
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("operations")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def compare_gap(records):
    """Insight 2: what rounding the gates costs, and what the choice of edges and operations:
    mean, least and most."""
    figure = Figure((9, 3.4))
    panels = dict(zip(("rounding", "selection"), figure.subplots(1, 2, sharey=True)))
    for name, axes in panels.items():
        def lost(record):
            return {row["epoch"]: row["gap_rounding"] if name == "rounding"
                    else row["gap_edges"] + row["gap_operations"]
                    for row in record.rows if row["gap_rounding"] is not None}

        draw_bands(axes, records, lost)
        epochs = sorted(set().union(*map(lost, records)))
        over_epochs(axes, f"Lost by {name}", xticks=epochs)
        axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    panels["rounding"].set_ylabel("validation accuracy (points)")
    figure.legend(*panels["rounding"].get_legend_handles_labels(), loc="outside right center")
    return figure


def compare_arms(title, values):
    """One measure for several settings: {name: [number or None, of each seed]}."""
    figure = Figure((7, 1.2 + 0.28 * len(values)))
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


def figures_of(record):
    """{file name: function that draws it} of one run."""
    drawings = {"dominant": lambda: draw_dominant(record), "gates": lambda: draw_gates(record),
                "heatmap": lambda: draw_heatmap(record), "penalty": lambda: draw_penalty(record),
                "gap": lambda: draw_gap(record), "curvature": lambda: draw_curvature(record)}
    if record.genotype:
        drawings.update(parts_of(record.genotype, "cell_" if "normal" in record.gates else ""))
    return drawings


def comparison_of(records):
    """{file name: function that draws it} of several runs."""
    return {"dominant": lambda: compare_dominant(records),
            "heatmap": lambda: draw_heatmap(*records), "gap": lambda: compare_gap(records)}


def save(drawings, folder):
    """Draw {name: function} into PNG files in `folder`; returns their paths."""
    os.makedirs(folder, exist_ok=True)
    paths = []
    for name, draw in drawings.items():
        figure = draw()
        if figure is not None:
            content = io.BytesIO()
            figure.savefig(content, format="png")
            paths.append(os.path.join(folder, name + ".png"))
            write_whole(paths[-1], content.getvalue())
    return paths


def draw_run(folder):
    """All figures of the search in `folder`, into its figures/; returns their paths."""
    return save(figures_of(read(folder)), os.path.join(folder, "figures"))


def visualize():
    parser = Parser(__doc__)
    parser.add_argument("what", nargs="+", metavar="RUN", help="searches, or one architecture")
    parser.add_argument("--output", type=path_name, metavar="DIR", help="where the figures go")
    given = parser.parse_args()
    what = given["what"]
    if len(what) > 1:
        drawings = comparison_of([read(folder) for folder in what])
        folder = os.path.join(os.path.dirname(os.path.normpath(what[0])), "comparison")
    elif os.path.isdir(what[0]):
        drawings, folder = figures_of(read(what[0])), os.path.join(what[0], "figures")
    else:
        try:
            genotype = texts.get(what[0], SPACES.values())
        except texts.GenotypeError as error:
            raise UserError(f"no folder of a run, and {error}") from None
        name = what[0] if what[0] in {**PUBLISHED, **SPACES["s2"].PUBLISHED} else "cell"
        drawings, folder = parts_of(genotype, name + "_"), "."
    for path in save(drawings, given.get("output", folder)):
        print(path)


if __name__ == "__main__":
    main(visualize)
