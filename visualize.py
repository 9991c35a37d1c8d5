"""The paper's figures, drawn from what a search recorded (config.json, gates.npz, metrics.csv, genotype.json).

    python visualize.py RUN           # dominant, gates, heatmap, penalty, gap, cells or chain -> RUN/figures/
    python visualize.py RUN RUN ...   # the same runs side by side -> comparison/ beside the first
    python visualize.py FairDARTS_a   # the cells of an architecture -> FairDARTS_a_normal.png, _reduce.png
"""
import io
import json
import os
from collections import namedtuple

import numpy as np
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Rectangle
from matplotlib.path import Path
from matplotlib.ticker import MaxNLocator

import fair_darts
import genotypes
from flags import Parser, UserError, main
from genotypes import GenotypeError
from runs import read_metrics, write_whole

# Okabe and Ito's colours, which colour-blind readers can tell apart: one an operation, the strongest for the skip
COLOURS = {"max_pool_3x3": "#F0E442", "avg_pool_3x3": "#E69F00", "skip_connect": "#D55E00", "sep_conv_3x3": "#56B4E9",
           "sep_conv_5x5": "#0072B2", "dil_conv_3x3": "#009E73", "dil_conv_5x5": "#CC79A7",
           "mb3_k3": "#F0E442", "mb3_k5": "#E69F00", "mb3_k7": "#CC79A7", "mb6_k3": "#56B4E9", "mb6_k5": "#0072B2",
           "mb6_k7": "#009E73"}
SETTING_COLOURS = ["#000000", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#D55E00"]
PARTS = {"normal": "normal cell", "reduce": "reduction cell", "layers": "all layers"}

# gates: {part: (epochs, edges, operations)}, the parts being cells, or in S2 the layers, where NaN marks a choice that is not
# there; rows: the metrics, numbers or None; genotype: None where there is none
Record = namedtuple("Record", "name settings primitives gates rows genotype")


def read(folder):
    """The Record of the search in `folder`. Raises UserError."""
    try:
        with open(os.path.join(folder, "config.json")) as file:
            settings = json.load(file)["settings"]
        with np.load(os.path.join(folder, "gates.npz"), allow_pickle=False) as arrays:
            gates = {part: arrays[part] for part in PARTS if part in arrays}
            primitives = arrays["primitives"].tolist()
        rows = read_metrics(folder)
        settings["gate"], settings["w01"], settings["zero_one_loss"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder!r} is not a search that has done an epoch: " + " ".join(str(error).split())[:200]) from None
    path = os.path.join(folder, "genotype.json")
    genotype = genotypes.load(path) if os.path.exists(path) else None
    return Record(os.path.basename(os.path.normpath(folder)), settings, primitives, gates, rows, genotype)


# ---------------------------------------------------------------- what is drawn

def setting(record):
    """What tells a run apart from those of another kind, in a few words."""
    s = record.settings
    if s["gate"] == "softmax" or not s["w01"]:
        return s["gate"]
    return f"{s['gate']}, {s['w01']:g} {'L01' if s['zero_one_loss'] == 'l2' else chr(76) + chr(39) + '01'}"


def dominant_names(gates, primitives):
    """The dominant operations (Fig. 1, 2) of one part at one epoch: two a node, or in S2 one a layer."""
    if tuple(primitives) == genotypes.CHOICES:
        return fair_darts.dominant_choices(np.nan_to_num(gates, nan=-1))
    return [edge.op for edge in fair_darts.dominant_operations(gates, primitives)]


def dominant_counts(gates, primitives):
    """How often each operation is dominant: (epochs, edges, operations) -> (epochs, operations)"""
    names = [dominant_names(epoch, primitives) for epoch in gates]
    return np.array([[epoch.count(op) for op in primitives] for epoch in names])


def all_gates(record):
    """The gates of all parts that there are: (epochs, gates)"""
    values = np.concatenate([gates.reshape(len(gates), -1) for gates in record.gates.values()], 1)
    return values[:, ~np.isnan(values[0])]


def gate_histogram(record, bins=40):
    """The share of all gates in each of `bins` equal parts of 0 to 1: (bins, epochs); every column sums to 1."""
    return np.stack([np.histogram(v, bins, (0, 1))[0] / len(v) for v in all_gates(record)], 1)


def kept_gates(record, part):
    """Which gates the genotype kept: (edges, operations) of bool."""
    last = torch.as_tensor(record.gates[part][-1])
    if record.genotype is None:
        return np.zeros(last.shape, bool)
    if part == "layers":
        return fair_darts.discrete_chain_gates(record.genotype).bool().numpy()
    return fair_darts.discrete_gates(getattr(record.genotype, part), last, record.primitives).bool().numpy()


def row_names(record, part):
    """What the rows of a part's gates are called."""
    count = record.gates[part].shape[1]
    if part == "layers":
        return [f"layer {layer}" for layer in range(count)]
    return [f"{source} → {node}" for node, source in edge_names(count)]


def edge_names(count):
    """[(node, source)] of the rows of a matrix of `count` edges."""
    pairs, node = [], 2
    while len(pairs) < count:
        pairs += [(node, source) for source in range(node)]
        node += 1
    return pairs


def measured_gaps(record):
    """[(epoch, soft accuracy, discrete accuracy)] of the epochs at which the gap was measured."""
    return [(row["epoch"], row["soft_accuracy"], row["discrete_accuracy"]) for row in record.rows
            if row.get("soft_accuracy") is not None]


def cell_layout(edges, last_node=genotypes.LAST_NODE):
    """Where a cell's parts are drawn: ({state or "out": (x, y)}, [(Edge, x, y of its label)]).

    Every edge runs through a lane of its own, the short ones near the nodes: so no two labels can meet.
    """
    points = {0: (0.0, 0.7), 1: (0.0, -0.7), **{node: (3.0 * (node - 1), 0.0) for node in range(2, last_node + 1)}}
    points["out"] = (3.0 * last_node, 0.0)
    lanes, labels = {1: 0, -1: 0}, []
    for edge in sorted(edges, key=lambda e: (points[e.node][0] - points[e.source][0], e)):
        side = 1 if edge.source == 0 else -1 if edge.source == 1 else min((1, -1), key=lanes.get)
        lanes[side] += 1
        labels.append((edge, (points[edge.source][0] + points[edge.node][0]) / 2, side * (0.9 + 0.6 * lanes[side])))
    return points, labels


def whole_numbers(*axis, ticks=8):
    for one in axis:
        one.set_major_locator(MaxNLocator(ticks, integer=True))


# ---------------------------------------------------------------- figures of one run

def draw_dominant(record):
    """Fig. 1, 2: the dominant operations over epochs, a panel a cell type; in S2 also those of each layer."""
    figure = Figure((9, 3.2), layout="constrained")
    epochs = np.arange(len(record.rows) + 1) + 0.5
    order = sorted(record.primitives, key=lambda op: op != "skip_connect")  # skips lowest, where heights compare
    panels = figure.subplots(1, 2, sharey=len(record.gates) > 1)
    for axes, (part, gates) in zip(panels, record.gates.items()):
        counts = dominant_counts(gates, record.primitives)
        areas = [np.append(counts[:, record.primitives.index(op)], counts[-1, record.primitives.index(op)]) for op in order]
        axes.stackplot(epochs, areas, labels=order, colors=[COLOURS[op] for op in order], step="post")
        axes.set(title=f"Dominant operations, {PARTS[part]}", xlabel="epoch", xlim=(epochs[0], epochs[-1]),
                 ylim=(0, counts[0].sum()))
        whole_numbers(axes.xaxis, axes.yaxis)
    panels[0].set_ylabel("operations")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", reverse=True, fontsize=8)
    if "layers" in record.gates:
        names = [dominant_names(epoch, record.primitives) for epoch in record.gates["layers"]]
        colours = np.array([[to_rgb(COLOURS[op]) for op in epoch] for epoch in names])  # (epochs, layers, 3)
        panels[1].imshow(colours.transpose(1, 0, 2), aspect="auto", interpolation="nearest",
                         extent=(epochs[0], epochs[-1], len(names[0]) - 0.5, -0.5))
        panels[1].set(title="Dominant operation of each layer", xlabel="epoch", ylabel="layer")
        whole_numbers(panels[1].xaxis, panels[1].yaxis)
    return figure


def draw_gates(record):
    """Fig. 3: the path of every gate, a panel an edge, laid out as the cells are: a row a node, a column a source; in S2 a
    panel a layer."""
    if "layers" in record.gates:
        rows, columns, offsets = 4, 5, {"layers": 0}
        places = [divmod(layer, columns) for layer in range(record.gates["layers"].shape[1])]
    else:
        pairs = edge_names(record.gates["normal"].shape[1])
        rows = pairs[-1][0] - 1
        columns, offsets = 2 * (rows + 1), {"normal": 0, "reduce": rows + 1}
        places = [(node - 2, source) for node, source in pairs]
    figure = Figure((3 + 1.1 * columns, 1.2 + 1.25 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    epochs = np.arange(1, len(record.rows) + 1)
    for axes in grid.flat:
        axes.set_axis_off()
    for part, gates in record.gates.items():
        for row, (name, (line, place)) in enumerate(zip(row_names(record, part), places)):
            axes = grid[line, offsets[part] + place]
            axes.set_axis_on()
            for column, op in enumerate(record.primitives):
                skip = op == "skip_connect"
                axes.plot(epochs, gates[:, row, column], color=COLOURS[op], linewidth=2.4 if skip else 1.1, label=op,
                          zorder=3 if skip else 2, marker="o" if len(epochs) == 1 else None, markersize=3)
            axes.set(ylim=(0, 1), yticks=(0, 0.5, 1))
            axes.tick_params(labelsize=7, labelbottom=line == rows - 1, labelleft=place == 0)
            axes.set_title(name, fontsize=8, pad=2)
            axes.set_xlabel("epoch" if line == rows - 1 else "", fontsize=7)
            axes.set_ylabel("gate" if place == 0 else "", fontsize=7)
    whole_numbers(axes.xaxis, ticks=4)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=len(record.primitives), fontsize=8)
    figure.suptitle("Gates over epochs" + (", source → node: normal cell (left), reduction cell (right)"
                                           if "normal" in record.gates else " of every layer"), fontsize=10)
    return figure


def _heatmap(axes, record, part, size):
    gates, kept = record.gates[part][-1], kept_gates(record, part)
    image = axes.imshow(gates, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (row, column), value in np.ndenumerate(gates):
        if not np.isnan(value):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=size,
                      color="white" if value < 0.55 else "black")
        if kept[row, column]:
            axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor="#D55E00", linewidth=2))
    axes.set_xticks(range(len(record.primitives)), record.primitives, rotation=40, ha="right", fontsize=size)
    axes.set_yticks(range(len(gates)), row_names(record, part), fontsize=size)
    return image


def draw_heatmap(*records):
    """Fig. 4: the final gates, edges by operations; those that the genotype keeps are framed."""
    panels = [(record, part) for record in records for part in record.gates]
    width = 0.8 + max(len(record.primitives) for record in records) * 0.5
    rows = max(gates.shape[1] for record in records for gates in record.gates.values())
    figure = Figure((max(4.5, len(panels) * width) + 1.2, 1.8 + 0.3 * rows), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (record, part) in zip(grid, panels):
        image = _heatmap(axes, record, part, 7)
        axes.set_title((f"{setting(record)}\n" if len(records) > 1 else "") + PARTS[part], fontsize=9)
    figure.colorbar(image, ax=list(grid), label="gate", fraction=0.03, pad=0.01)
    figure.suptitle("Final gates; framed: kept by the genotype", fontsize=10)
    return figure


def draw_penalty(record):
    """Fig. 5: both penalties and their slopes, and what became of the gates."""
    figure = Figure((9, 5.4), layout="constrained")
    (values, slopes), (histogram, _) = figure.subplots(2, 2)
    figure.delaxes(_)
    histogram.set_subplotspec(figure.axes[0].get_gridspec()[1, :])
    z = np.linspace(0, 1, 401)
    for name, value, slope, style in (("L01 (Eq. 7)", -(z - 0.5) ** 2, -2 * (z - 0.5), "-"),
                                      ("L'01 (Eq. 9)", -abs(z - 0.5), -np.sign(z - 0.5), "--")):
        values.plot(z, value, style, color="#0072B2" if style == "-" else "#D55E00", label=name)
        slopes.plot(z, slope, style, color="#0072B2" if style == "-" else "#D55E00", label=name)
    values.set(title="Penalty of one gate", xlabel="gate z", ylabel="N × penalty")
    slopes.set(title="Its slope", xlabel="gate z", ylabel="N × d penalty / dz")
    values.legend(fontsize=8)
    share = gate_histogram(record)
    image = histogram.imshow(np.ma.masked_equal(100 * share, 0), origin="lower", aspect="auto", cmap="cividis", vmin=0,
                             interpolation="nearest", extent=(0.5, len(record.rows) + 0.5, 0, 1))
    histogram.set(title=f"All gates over epochs, {setting(record)}", xlabel="epoch", ylabel="gate z")
    figure.colorbar(image, ax=histogram, label="% of gates")
    return figure


def draw_gap(record):
    """Insight 2: accuracy of the supernet with its gates as they are, and with those of the genotype."""
    measured = measured_gaps(record)
    if not measured:
        return None
    epochs, soft, discrete = zip(*measured)
    figure = Figure((6, 3.4), layout="constrained")
    axes = figure.subplots()
    axes.plot(epochs, soft, "o-", color="#0072B2", label="gates as they are")
    axes.plot(epochs, discrete, "s--", color="#D55E00", label="gates of the genotype, 0 and 1")
    axes.fill_between(epochs, soft, discrete, color="#999999", alpha=0.3, label="discretisation gap")
    axes.set(title=f"Discretisation gap, {setting(record)}", xlabel="epoch", ylabel="validation accuracy (%)", ylim=(0, 102))
    whole_numbers(axes.xaxis)
    axes.legend(fontsize=8, loc="best")
    return figure


def draw_cell(edges, title):
    """A cell as a graph: inputs left, nodes in order, output right; nodes that nothing enters are grey."""
    points, labels = cell_layout(edges)
    heights = [y for _, _, y in labels]
    top, bottom = max([1.2, *heights]) + 0.5, min([-1.2, *heights]) - 0.5
    width = points["out"][0]
    figure = Figure((0.62 * (width + 2.4), 0.62 * (top - bottom) + 0.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-1.2, width + 1.2), ylim=(bottom, top), aspect="equal", title=title)
    axes.set_axis_off()
    entered = {edge.node for edge in edges}
    for node in entered:  # the concatenation, on a line below the nodes
        (x, y), out = points[node], points["out"][0]
        axes.plot([x, x, out, out], [y, -0.62, -0.62, 0], color="#BBBBBB", linewidth=1.5, zorder=1)
    for edge, x, y in labels:
        (x0, y0), (x1, y1) = points[edge.source], points[edge.node]
        span = x1 - x0
        rim = 0.44 / np.hypot(0.1 * span, y - y1)  # the arrow ends where the node's circle begins
        end = x1 - rim * 0.1 * span, y1 + rim * (y - y1)
        curve = Path([(x0, y0), (x0 + 0.1 * span, y), (x - 0.25 * span, y), (x, y),
                      (x + 0.25 * span, y), (x1 - 0.1 * span, y), end], [Path.MOVETO] + [Path.CURVE4] * 6)
        axes.add_patch(FancyArrowPatch(path=curve, arrowstyle="-|>", mutation_scale=14, color=COLOURS[edge.op],
                                       linewidth=1.8, zorder=2))
        axes.text(x, y, edge.op, ha="center", va="center", fontsize=8, zorder=4,
                  bbox=dict(boxstyle="round,pad=0.2", facecolor="white", edgecolor=COLOURS[edge.op]))
    names = {0: "c(k-2)", 1: "c(k-1)", "out": "c(k)"}
    for state, (x, y) in points.items():
        alone = isinstance(state, int) and state > 1 and state not in entered
        axes.add_patch(Circle((x, y), 0.42, facecolor="#DDDDDD" if alone else "white", zorder=5,
                              edgecolor="#999999" if alone else "black"))
        axes.text(x, y, names.get(state, state), ha="center", va="center", zorder=6, fontsize=7 if state in names else 9,
                  color="#888888" if alone else "black")
    return figure


def draw_chain(genotype):
    """A chain of S2 as a row of blocks, as wide as their expansion and as high as their kernel; several in a layer are
    summed up."""
    figure = Figure((11, 3.2), layout="constrained")
    axes, x, highest = figure.subplots(), 0.0, 0.0
    for layer, (names, (channels, stride)) in enumerate(zip(genotype.layers, genotypes.CHAIN)):
        y = 0.0
        for name in names:
            height = 0.35 if name == "skip_connect" else int(name[-1]) / 5
            axes.add_patch(Rectangle((x, y), 0.8, height, facecolor=COLOURS[name], edgecolor="black", linewidth=0.8))
            axes.text(x + 0.4, y + height + 0.06, name.replace("_connect", ""), ha="center", va="bottom", fontsize=7, rotation=90)
            y += height + 1.0
        highest = max(highest, y)
        axes.text(x + 0.4, -0.12, f"{layer}\n{channels}" + "\n/2" * (stride == 2), ha="center", va="top", fontsize=7)
        if layer:
            axes.annotate("", (x, 0.17), (x - 0.4, 0.17), arrowprops=dict(arrowstyle="-|>", color="#888888"))
        x += 1.2
    axes.set(xlim=(-0.3, x), ylim=(-1, highest), title="Chain: layer, output channels, /2 where it halves the size")
    axes.set_axis_off()
    return figure


# ---------------------------------------------------------------- figures of several runs

def _by_setting(records):
    """[(Record, its colour, its label or None where another of its setting has it)]"""
    names = list(dict.fromkeys(map(setting, records)))
    seen = set()
    for record in records:
        name = setting(record)
        yield record, SETTING_COLOURS[names.index(name) % len(SETTING_COLOURS)], None if name in seen else name
        seen.add(name)


def compare_dominant(records):
    """Fig. 1: how many dominant operations are skip connections, a line a run."""
    figure = Figure((9, 3.4), layout="constrained")
    panels = figure.subplots(1, max(len(record.gates) for record in records), sharey=True, squeeze=False)[0]
    for index, (record, colour, name) in enumerate(_by_setting(records)):
        for axes, (part, gates) in zip(panels, record.gates.items()):
            if "skip_connect" in record.primitives:
                skips = dominant_counts(gates, record.primitives)[:, record.primitives.index("skip_connect")]
                axes.plot(np.arange(1, len(skips) + 1), skips + 0.05 * (index - len(records) / 2), color=colour, label=name,
                          linewidth=1.4, marker="o" if len(skips) == 1 else None)  # a little apart, so that none is hidden
            axes.set(title=f"Dominant skip connections, {PARTS[part]}", xlabel="epoch")
            whole_numbers(axes.xaxis, axes.yaxis)
    panels[0].set_ylabel("operations")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


def compare_gap(records):
    """Insight 2: the discretisation gap, a line a run."""
    figure = Figure((7.5, 3.4), layout="constrained")
    axes = figure.subplots()
    for record, colour, name in _by_setting(records):
        if measured_gaps(record):
            epochs, soft, discrete = zip(*measured_gaps(record))
            axes.plot(epochs, np.subtract(soft, discrete), "o-", color=colour, label=name, markersize=4)
    axes.set(title="Discretisation gap", xlabel="epoch", ylabel="validation accuracy lost (points)")
    whole_numbers(axes.xaxis)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    return figure


# ---------------------------------------------------------------- files

def figures_of(record):
    """{file name: function that draws it} of one run."""
    drawings = {"dominant": lambda: draw_dominant(record), "gates": lambda: draw_gates(record),
                "heatmap": lambda: draw_heatmap(record), "penalty": lambda: draw_penalty(record),
                "gap": lambda: draw_gap(record)}
    if record.genotype:
        drawings.update(parts_of(record.genotype, "cell_" if "normal" in record.gates else ""))
    return drawings


def parts_of(genotype, prefix):
    """{file name: function that draws it} of a genotype."""
    if isinstance(genotype, genotypes.ChainGenotype):
        return {prefix + "chain": lambda: draw_chain(genotype)}
    return {prefix + cell: lambda cell=cell: draw_cell(getattr(genotype, cell), PARTS[cell].capitalize())
            for cell in genotype._fields}


def comparison_of(records):
    return {"dominant": lambda: compare_dominant(records), "heatmap": lambda: draw_heatmap(*records),
            "gap": lambda: compare_gap(records)}


def save(drawings, folder):
    """Draw {name: function} into PNG files in `folder`; returns their paths."""
    os.makedirs(folder, exist_ok=True)
    paths = []
    for name, draw in drawings.items():
        figure = draw()
        if figure is not None:
            content = io.BytesIO()
            figure.savefig(content, format="png", dpi=110)
            paths.append(os.path.join(folder, name + ".png"))
            write_whole(paths[-1], content.getvalue())
    return paths


def draw_run(folder):
    """All figures of the search in `folder`, into its figures/; returns their paths."""
    return save(figures_of(read(folder)), os.path.join(folder, "figures"))


def visualize():
    parser = Parser(__doc__)
    parser.add_argument("what", nargs="+", metavar="RUN", help="folders of searches, or one architecture")
    parser.add_argument("--output", metavar="DIR", help="where the figures go")
    given = parser.parse_args()
    what, output = given["what"], given.get("output")
    if len(what) > 1:
        drawings = comparison_of([read(folder) for folder in what])
        output = output or os.path.join(os.path.dirname(os.path.normpath(what[0])), "comparison")
    elif os.path.isdir(what[0]):
        drawings, output = figures_of(read(what[0])), output or os.path.join(what[0], "figures")
    else:
        try:
            genotype = genotypes.get(what[0])
        except GenotypeError as error:
            raise UserError(f"no folder of a run, and {error}") from None
        drawings, output = parts_of(genotype, (what[0] if what[0] in genotypes.PUBLISHED else "cell") + "_"), output or "."
    for path in save(drawings, output):
        print(path)


if __name__ == "__main__":
    main(visualize)
