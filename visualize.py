"""The paper's figures, drawn from the files that a search leaves in its folder.

    python visualize.py RUN           # the figures of one search -> RUN/figures/
    python visualize.py RUN RUN ...   # the same runs side by side -> comparison/
    python visualize.py FairDARTS_a   # its cells -> FairDARTS_a_normal.png, _reduce.png
"""
import io
import os
import zipfile
from collections import namedtuple

import matplotlib
import numpy as np
import torch
from matplotlib.colors import to_rgba_array
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from matplotlib.path import Path

import fair_darts
import genotypes
from flags import MAY_CHANGE, Parser, UserError, check_settings, main, path_name
from folders import read_metrics
from operations import OPS
from runs import Run

# Okabe and Ito's colours, which colour-blind readers can tell apart; the strongest for the skip
COLOURS = {
    "max_pool_3x3": "#F0E442", "avg_pool_3x3": "#E69F00", "skip_connect": "#D55E00",
    "sep_conv_3x3": "#56B4E9", "sep_conv_5x5": "#0072B2", "dil_conv_3x3": "#009E73",
    "dil_conv_5x5": "#CC79A7", "mb3_k3": "#F0E442", "mb3_k5": "#E69F00", "mb3_k7": "#CC79A7",
    "mb6_k3": "#56B4E9", "mb6_k5": "#0072B2", "mb6_k7": "#009E73"}
# for operations that are not in the table, in the order of OPS
MORE_COLOURS = ["#000000", "#882255", "#999999", "#44AA99", "#661100", "#999933", "#332288"]
LINE_COLOURS = ["#000000", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#D55E00"]
matplotlib.rcParams.update({
    "figure.constrained_layout.use": True, "figure.titlesize": 10, "savefig.dpi": 110,
    "font.size": 8, "axes.titlesize": 10, "lines.linewidth": 1.4, "lines.markersize": 3,
    "axes.prop_cycle": matplotlib.cycler(color=LINE_COLOURS)})
CENTRED = {"ha": "center", "va": "center"}
MARKS = ("e: others of its node's edges are better  o: another operation of its edge is better\n"
         "t: below the threshold  p: pruned, since nothing enters the node that it leaves")
PARTS = {"normal": "normal cell", "reduce": "reduction cell", "layers": "all layers"}

# gates: {part: (epochs, edges or layers, operations)}, NaN where a layer does not have the choice;
# rows: the metrics of each epoch; genotype: None where there is none; name: of its folder
Record = namedtuple("Record", "settings primitives gates rows genotype name")
# Settings that do not change what a search finds, or by chance alone
SILENT = {*MAY_CHANGE, "name", "runs", "seed", "recompute", "compile"} - {
    "epochs", "threshold", "edges_per_node", "ops_per_edge", "ops_per_layer"}


def read(folder):
    """The Record of the search in `folder`, all of it checked against its settings. Raises
    UserError."""
    import train_search  # not at the top, since it imports this file
    run = Run.open(folder, "train_search")
    settings = check_settings(run, train_search.flags())
    primitives = settings["primitives"].split(",")
    parts, edges = ("normal", "reduce"), settings["nodes"] * (settings["nodes"] + 3) // 2
    if settings["space"] == "s2":
        primitives, parts, edges = list(genotypes.CHOICES), ("layers",), len(genotypes.CHAIN)
    try:
        rows = read_metrics(folder)
        if not {*train_search.GAP, "rho", "seconds"} <= rows[0].keys():
            raise UserError(f"{run.path('metrics.csv')} has not the columns of a search")
        shape = len(rows), edges, len(primitives)
        gates = read_gates(run, parts, shape, primitives)
    except FileNotFoundError as error:
        raise UserError(f"{folder!r} is not a search that has done an epoch: it has no "
                        f"{os.path.basename(error.filename)}") from None
    path, genotype = run.path("genotype.json"), None
    if os.path.exists(path):
        genotype = genotypes.load(path)
        kind = genotypes.ChainGenotype if settings["space"] == "s2" else genotypes.Genotype
        items = [item for part in genotype for item in part]  # each an Edge, or a layer's choices
        fits = isinstance(genotype, kind) and (
            kind is genotypes.ChainGenotype or all(
                edge.op in primitives and edge.node < settings["nodes"] + 2 for edge in items))
        if not fits:
            raise UserError(f"{path} is of another space than the search")
    name = os.path.basename(os.path.abspath(folder))
    return Record(settings, primitives, gates, rows, genotype, name)


def read_gates(run, parts, shape, primitives):
    """{part: array} of gates.npz. Sizes are checked before memory is taken. Raises UserError,
    FileNotFoundError."""
    path = run.path("gates.npz")
    try:
        with zipfile.ZipFile(path) as file:
            if sum(info.file_size for info in file.infolist()) > 8 * np.prod(shape) + 10000:
                raise ValueError("it is too large")
        with np.load(path, allow_pickle=False) as arrays:
            content = {name: arrays[name] for name in arrays}
        if content["run"] != run.config["id"] or content["primitives"].tolist() != primitives:
            raise ValueError("it is of another run")
        gates = {part: content[part] for part in parts}
        for array in gates.values():
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"its arrays are not {shape} of float32")
            if ((array < 0) | (array > 1)).any() or "layers" not in parts and np.isnan(array).any():
                raise ValueError("its gates are not from 0 to 1")
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged archive makes zipfile and numpy raise many kinds
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path} is not what a search writes: {reason}") from None
    return gates


# ---------------------------------------------------------------- what is drawn

def names_of(records):
    """What tells runs apart: gate and penalty, and the other settings in which those of the same
    gate and penalty differ; where all are alike, the names of their folders."""
    names = []
    for record in records:
        alike = [other.settings for other in records if setting(other) == setting(record)]
        differ = [f"{key} {value}" for key, value in record.settings.items() if key not in SILENT
                  and any(other[key] != value for other in alike)]
        names.append(", ".join([setting(record), *differ]))
    return names if len(set(names)) > 1 else [record.name for record in records]


def setting(record):
    """The gate and the penalty of a run, in a few words."""
    gate, w01, penalty = (record.settings[key] for key in ("gate", "w01", "zero_one_loss"))
    return gate if gate == "softmax" or not w01 else f"{gate}, w01 {w01:g}, {penalty}"


def colour(op):
    if op in COLOURS:
        return COLOURS[op]
    position = list(OPS).index(op) if op in OPS else -1
    return MORE_COLOURS[position % len(MORE_COLOURS)]


def dominant_names(gates, primitives):
    """The dominant operations: two for each node of a cell, or one for each layer."""
    if tuple(primitives) == genotypes.CHOICES:
        return fair_darts.dominant_choices(np.nan_to_num(gates, nan=-1))
    return [edge.op for edge in fair_darts.dominant_operations(gates, primitives)]


def dominant_counts(gates, primitives):
    """How often each is dominant: (epochs, rows, operations) -> (epochs, operations)"""
    names = [dominant_names(epoch, primitives) for epoch in gates]
    return np.array([[epoch.count(op) for op in primitives] for epoch in names])


def all_gates(record):
    """The gates of all parts, without choices that are not there: (epochs, gates)"""
    gates = np.concatenate([part.reshape(len(part), -1) for part in record.gates.values()], axis=1)
    return gates[:, ~np.isnan(gates[0])]


def gate_histogram(record, bins=40):
    """The share of the gates in each of `bins` equal parts of 0 to 1: (bins, epochs)"""
    return np.stack([np.histogram(gates, bins, (0, 1))[0] / len(gates)
                     for gates in all_gates(record)], axis=1)


def kept_gates(record, part):
    """Which gates the genotype keeps: (edges, operations) of bool."""
    last = torch.as_tensor(record.gates[part][-1])
    if record.genotype is None:
        return np.zeros(last.shape, bool)
    if part == "layers":
        return fair_darts.discrete_chain_gates(record.genotype).bool().numpy()
    edges = getattr(record.genotype, part)
    return fair_darts.discrete_gates(edges, last, record.primitives).bool().numpy()


def reasons(record, part):
    """Why gates that round to 1 are not kept: (edges, operations) of one of MARKS, or ""."""
    gates, kept = torch.as_tensor(record.gates[part][-1]).nan_to_num(-1), kept_gates(record, part)
    s, marks = record.settings, np.full(kept.shape, "", dtype=object)
    edges = np.ones((len(kept), 1)) if part == "layers" else fair_darts.kept_edges(
        gates, s["edges_per_node"], record.primitives).numpy()
    most = s["ops_per_layer" if part == "layers" else "ops_per_edge"]
    better = gates.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # ranks
    for row, column in fair_darts.rounded(gates, s["gate"]).nonzero().tolist():
        if not kept[row, column]:
            marks[row, column] = ("e" if not edges[row, 0] else "o" if better[row, column] >= most
                                  else "t" if gates[row, column] < s["threshold"] else "p")
    return marks


def row_names(record, part):
    """What the rows of a part's gates are called."""
    count = record.gates[part].shape[1]
    if part == "layers":
        return [f"layer {layer}" for layer in range(count)]
    return [f"{source} → {node}" for node, source in edge_names(count)]


def edge_names(count):
    """[(node, source)] of the rows of a matrix of `count` edges."""
    return [(node, source) for node in range(2, count + 2) for source in range(node)][:count]


def measured_gaps(record):
    """[(epoch, soft accuracy, discrete accuracy)] of the epochs with a measured gap."""
    return [(row["epoch"], row["soft_accuracy"], row["discrete_accuracy"])
            for row in record.rows if None not in (row.get("soft_accuracy"),
                                                   row.get("discrete_accuracy"))]


def cell_layout(edges, last_node=genotypes.LAST_NODE):
    """Places in a drawing: ({state or "out": (x, y)}, [(Edge, x, y of its label)]).

    The states stand in a row. Each edge is an arc above or below them, short ones near;
    every arc has a height of its own, so that no two labels can meet.
    """
    points = {state: (3.0 * state, 0.0) for state in range(last_node + 1)}
    points["out"] = (3.0 * (last_node + 1), 0.0)
    labels = []
    for index, edge in enumerate(sorted(edges, key=lambda e: (e.node - e.source, e))):
        height = 1.5 + 0.6 * (index // 2)
        y = height if index % 2 == 0 else -height
        labels.append((edge, 1.5 * (edge.source + edge.node), y))
    return points, labels


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
    for axes, (part, gates) in zip(panels, record.gates.items()):
        counts = dominant_counts(gates, record.primitives)
        counts = np.concatenate([counts, counts[-1:]])  # to the end of the last epoch
        axes.stackplot(edges, [counts[:, record.primitives.index(op)] for op in order],
                       labels=order, colors=[colour(op) for op in order], step="post")
        over_epochs(axes, f"Dominant operations, {PARTS[part]}", whole_numbers="both",
                    xlim=(edges[0], edges[-1]), ylim=(0, counts[0].sum()))
    panels[0].set_ylabel("operations")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", reverse=True)
    if "layers" in record.gates:
        pixels = [to_rgba_array([colour(op) for op in dominant_names(epoch, record.primitives)])
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
    rows, columns = np.max([record.gates[part].shape[1:] for record, part, _ in parts], axis=0)
    figure = Figure((max(6.5, len(parts) * (0.8 + 0.5 * columns)) + 1.2, 2.2 + 0.3 * rows))
    panels = figure.subplots(1, len(parts), squeeze=False)[0]
    for axes, (record, part, name) in zip(panels, parts):
        gates, kept = record.gates[part][-1], kept_gates(record, part)
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
    figure.colorbar(image, ax=panels, label="gate", fraction=0.03, pad=0.01)
    figure.suptitle("Final gates; framed: kept by the genotype; marked: high, but not kept")
    figure.supxlabel(MARKS, fontsize=8)
    return figure


def draw_penalty(record):
    """Fig. 5: the penalties and their slopes, by the gate and by alpha, and what became of the
    gates; dashed: where those come to rest that the data leave alone."""
    figure = Figure((11, 5.4))
    panels = figure.subplot_mosaic([["value", "slope", "push"], ["gates"] * 3])
    z = torch.linspace(0, 1, 401, requires_grad=True)
    for name, penalty in fair_darts.PENALTIES.items():
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
        rest = fair_darts.resting_gate(s["w01"], all_gates(record).shape[1],
                                       s["arch_weight_decay"],
                                       fair_darts.PENALTIES[s["zero_one_loss"]])
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


def draw_cell(edges, title):
    """A cell as a graph, from inputs to output; nodes that no edge enters are grey."""
    points, labels = cell_layout(edges)
    heights = [-1.2, 1.2, *(y for _, _, y in labels)]
    bottom, top, right = min(heights) - 0.5, max(heights) + 0.5, points["out"][0]
    figure = Figure((0.62 * (right + 2.4), 0.62 * (top - bottom) + 0.5))
    axes = figure.subplots()
    axes.set(xlim=(-1.2, right + 1.2), ylim=(bottom, top), aspect="equal", title=title)
    axes.set_axis_off()
    u = np.linspace(-1, 1, 100)
    for edge, x, y in labels:
        (start, _), (end, _) = points[edge.source], points[edge.node]
        arc = np.stack([x + u * (end - start) / 2, y * (1 - u ** 2)], axis=1)
        arc = arc[np.hypot(arc[:, 0] - end, arc[:, 1]) > 0.44]  # the arrow ends at the circle
        axes.add_patch(FancyArrowPatch(path=Path(arc), arrowstyle="-|>", mutation_scale=14,
                                       color=colour(edge.op), linewidth=1.8, zorder=2))
        axes.text(x, y, edge.op, zorder=4, **CENTRED, bbox={
            "boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour(edge.op)})
    names = {0: "c(k-2)", 1: "c(k-1)", "out": "c(k)"}
    entered = {edge.node for edge in edges}
    for state, (x, y) in points.items():
        face, line = ("white", "black") if state in {*names, *entered} else ("#DDDDDD", "#999999")
        axes.add_patch(Circle((x, y), 0.42, facecolor=face, edgecolor=line, zorder=5))
        axes.text(x, y, names.get(state, state), color=line, zorder=6, fontsize=7, **CENTRED)
        if state in entered:  # a line below the nodes: the concatenation
            axes.plot([x, x, right, right], [y, -0.62, -0.62, 0], color="#BBBBBB", zorder=1)
    return figure


def draw_chain(genotype):
    """A chain of S2, a column for each layer: its blocks, as high as their kernels."""
    figure = Figure((11, 3.2))
    axes = figure.subplots()
    top = 0
    for layer, names in enumerate(genotype.layers):
        bottom = 0
        for name in names:
            height = 0.35 if name == "skip_connect" else int(name[-1]) / 5
            axes.bar(layer, height, 0.7, bottom, color=colour(name), edgecolor="black")
            axes.text(layer, bottom + height + 0.06, name.replace("_connect", ""), rotation=90,
                      ha="center", va="bottom", fontsize=7)
            bottom += height + 1
        top = max(top, bottom)
        if layer > 0:
            axes.annotate("", (layer - 0.35, 0.17), (layer - 0.65, 0.17),
                          arrowprops={"arrowstyle": "-|>", "color": "#888888"})
    labels = [f"{layer}\n{channels}" + ("\n/2" if stride == 2 else "")
              for layer, (channels, stride) in enumerate(genotypes.CHAIN)]
    axes.set_xticks(range(len(labels)), labels)
    axes.set(title="Chain: layer, output channels, /2 where it halves the size",
             ylim=(0, top), yticks=[], frame_on=False)
    return figure


# ---------------------------------------------------------------- figures of several runs

def draw_bands(axes, records, curve):
    """For the runs of each name the mean of their curves, {epoch: value}, and a band from the
    least to the most, over the epochs that all of them have."""
    names = names_of(records)
    for index, name in enumerate(dict.fromkeys(names)):
        curves = [curve(record) for record, other in zip(records, names) if other == name]
        epochs = sorted(set.intersection(*map(set, curves)))
        values = np.array([[found[epoch] for epoch in epochs] for found in curves])
        if epochs:
            axes.fill_between(epochs, values.min(0), values.max(0), color=f"C{index}", alpha=0.2,
                              linewidth=0)
            axes.plot(epochs, values.mean(0), "o-", color=f"C{index}", label=name, markersize=3)


def compare_dominant(records):
    """Fig. 1: how many dominant operations are skip connections: mean, least and most."""
    figure = Figure((9, 3.4))
    parts = max((record.gates for record in records), key=len)
    panels = figure.subplots(1, len(parts), sharey=True, squeeze=False)[0]
    for axes, part in zip(panels, parts):
        def skips(record):
            if part not in record.gates or "skip_connect" not in record.primitives:
                return {}
            counts = dominant_counts(record.gates[part], record.primitives)
            return dict(enumerate(counts[:, record.primitives.index("skip_connect")], 1))

        over_epochs(axes, f"Dominant skip connections, {PARTS[part]}", whole_numbers="both")
        draw_bands(axes, records, skips)
        axes.set_ylim(bottom=0)
    panels[0].set_ylabel("operations")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    return figure


def compare_gap(records):
    """Insight 2: the discretisation gap: mean, least and most."""
    figure = Figure((7.5, 3.4))
    axes = figure.subplots()
    draw_bands(axes, records, lambda record: {
        epoch: soft - discrete for epoch, soft, discrete in measured_gaps(record)})
    epochs = sorted({epoch for record in records for epoch, *_ in measured_gaps(record)})
    over_epochs(axes, "Discretisation gap", ylabel="validation accuracy lost (points)",
                xticks=epochs)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
    return figure


def figures_of(record):
    """{file name: function that draws it} of one run."""
    drawings = {"dominant": lambda: draw_dominant(record), "gates": lambda: draw_gates(record),
                "heatmap": lambda: draw_heatmap(record), "penalty": lambda: draw_penalty(record),
                "gap": lambda: draw_gap(record)}
    if record.genotype:
        drawings.update(parts_of(record.genotype, "cell_" if "normal" in record.gates else ""))
    return drawings


def parts_of(genotype, prefix):
    """{file name: function that draws it} of an architecture."""
    if isinstance(genotype, genotypes.ChainGenotype):
        return {prefix + "chain": lambda: draw_chain(genotype)}
    return {prefix + "normal": lambda: draw_cell(genotype.normal, "Normal cell"),
            prefix + "reduce": lambda: draw_cell(genotype.reduce, "Reduction cell")}


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
            genotypes.write_whole(paths[-1], content.getvalue())
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
            genotype = genotypes.get(what[0])
        except genotypes.GenotypeError as error:
            raise UserError(f"no folder of a run, and {error}") from None
        name = what[0] if what[0] in genotypes.PUBLISHED else "cell"
        drawings, folder = parts_of(genotype, name + "_"), "."
    for path in save(drawings, given.get("output", folder)):
        print(path)


if __name__ == "__main__":
    main(visualize)
