"""Drawings of architectures, and the colours of operations."""
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.path import Path

import genotypes
from operations import OPS
from spaces import nasbench201, s2

# Okabe and Ito's colours, which colour-blind readers can tell apart; the strongest for the skip
COLOURS = {
    "max_pool_3x3": "#F0E442", "avg_pool_3x3": "#E69F00", "skip_connect": "#D55E00",
    "sep_conv_3x3": "#56B4E9", "sep_conv_5x5": "#0072B2", "dil_conv_3x3": "#009E73",
    "dil_conv_5x5": "#CC79A7", "mb3_k3": "#F0E442", "mb3_k5": "#E69F00", "mb3_k7": "#CC79A7",
    "mb6_k3": "#56B4E9", "mb6_k5": "#0072B2", "mb6_k7": "#009E73", "nor_conv_1x1": "#56B4E9",
    "nor_conv_3x3": "#0072B2", "none": "#999999"}
# for operations that are not in the table, in the order of OPS
MORE_COLOURS = ["#000000", "#882255", "#999999", "#44AA99", "#661100", "#999933", "#332288"]
CENTRED = {"ha": "center", "va": "center"}
STATES = {0: "c(k-2)", 1: "c(k-1)", "out": "c(k)"}  # what DARTS calls inputs and output


def colour(op):
    position = [*OPS].index(op) if op in OPS else -1
    return COLOURS.get(op, MORE_COLOURS[position % len(MORE_COLOURS)])


def cell_layout(edges, last_node=genotypes.LAST_NODE):
    """Places in a drawing: ({state or "out": (x, y)}, [(Edge, x, y of its label)]).

    The states stand in a row. Each edge is an arc above or below them, short ones near;
    every arc has a height of its own, so that no two labels can meet.
    """
    states = [*range(last_node + 1), "out"]
    points = {state: (3.0 * place, 0.0) for place, state in enumerate(states)}
    labels = []
    for index, edge in enumerate(sorted(edges, key=lambda e: (e.node - e.source, e))):
        height = 1.5 + 0.6 * (index // 2)
        y = height if index % 2 == 0 else -height
        labels.append((edge, 1.5 * (edge.source + edge.node), y))
    return points, labels


def draw_cell(edges, title, names=STATES, last_node=genotypes.LAST_NODE):
    """A cell as a graph, from inputs to output; nodes that no edge enters are grey.
    names: of the inputs and of the output, {state or "out": name}; without "out" the
    last node is the output."""
    points, labels = cell_layout(edges, last_node)
    if "out" not in names:
        del points["out"]
    heights = [-1.7, 1.7, *(y + sign for _, _, y in labels for sign in (-0.5, 0.5))]
    bottom, top, right = min(heights), max(heights), max(points.values())[0]
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
    entered = {edge.node for edge in edges}
    for state, (x, y) in points.items():
        face, line = ("white", "black") if state in {*names, *entered} else ("#DDDDDD", "#999999")
        axes.add_patch(Circle((x, y), 0.42, facecolor=face, edgecolor=line, zorder=5))
        axes.text(x, y, names.get(state, state), color=line, zorder=6, fontsize=7, **CENTRED)
        if state in entered and "out" in names:  # a line below the nodes: the concatenation
            axes.plot([x, x, right, right], [y, -0.62, -0.62, 0], color="#BBBBBB", zorder=1)
    return figure


def draw_chain(genotype):
    """A chain of S2, a column for each layer, of the blocks that it sums."""
    figure = Figure((11, 2 + max(map(len, genotype.layers))))
    axes = figure.subplots()
    for layer, names in enumerate(genotype.layers):
        for row, name in enumerate(names):
            axes.bar(layer, 0.9, 0.9, row, color=colour(name), edgecolor="black")
            axes.text(layer, row + 0.45, name.replace("_connect", ""), rotation=90, **CENTRED)
    labels = [f"{layer}\n{channels}" + ("\n/2" if stride == 2 else "")
              for layer, (channels, stride) in enumerate(s2.CHAIN)]
    axes.set_xticks(range(len(labels)), labels)
    axes.set(title="Chain: layer, output channels, /2 where it halves the size", yticks=[],
             frame_on=False)
    return figure


def parts_of(genotype, prefix):
    """{file name: function that draws it} of an architecture."""
    if isinstance(genotype, s2.ChainGenotype):
        return {prefix + "chain": lambda: draw_chain(genotype)}
    if isinstance(genotype, nasbench201.CellGenotype):
        return {prefix + "normal": lambda: draw_cell(genotype.cell, "Cell", {0: "in", 3: "out"}, 3)}
    return {prefix + "normal": lambda: draw_cell(genotype.normal, "Normal cell"),
            prefix + "reduce": lambda: draw_cell(genotype.reduce, "Reduction cell")}
