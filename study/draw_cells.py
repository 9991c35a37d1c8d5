"""Drawings of architectures, and the colours of operations."""
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch
from matplotlib.path import Path

import genotypes
from spaces import nasbench201
from spaces.s1 import LAST_NODE

# Okabe and Ito's colours, which colour-blind readers can tell apart; the strongest for the skip
COLOURS = {
    "max_pool_3x3": "#F0E442", "avg_pool_3x3": "#E69F00", "skip_connect": "#D55E00",
    "sep_conv_3x3": "#56B4E9", "sep_conv_5x5": "#0072B2", "dil_conv_3x3": "#009E73",
    "dil_conv_5x5": "#CC79A7", "mb3_k3": "#F0E442", "mb3_k5": "#E69F00", "mb3_k7": "#CC79A7",
    "mb6_k3": "#56B4E9", "mb6_k5": "#0072B2", "mb6_k7": "#009E73", "nor_conv_1x1": "#56B4E9",
    "nor_conv_3x3": "#0072B2", "none": "#999999"}
# for operations that are not in the table
MORE_COLOURS = ["#000000", "#882255", "#44AA99", "#661100", "#999933", "#332288"]
CENTRED = {"ha": "center", "va": "center"}
STATES = {0: "c(k-2)", 1: "c(k-1)", "out": "c(k)"}  # what DARTS calls inputs and output


def colour(op):
    return COLOURS.get(op) or MORE_COLOURS[sum(map(ord, op)) % len(MORE_COLOURS)]


def draw_cell(edges, title, names=STATES, last_node=LAST_NODE):
    """A cell as a graph, its states in a row; those that no edge enters are grey. Each
    edge is an arc above or below them, short ones near; every arc has a height of its
    own, so that no two labels can meet. names: of the inputs and of the output, {state
    or "out": name}; without "out" the last node is the output."""
    places = {state: 3.0 * state for state in range(last_node + 1)}
    if "out" in names:
        places["out"] = 3.0 * len(places)
    edges = sorted(edges, key=lambda e: (e.node - e.source, e))
    heights = [(1.5 + 0.6 * (index // 2)) * (-1) ** index for index in range(len(edges))]
    bottom, top, right = min(-1.2, *heights) - 0.5, max(1.2, *heights) + 0.5, max(places.values())
    figure = Figure((0.62 * (right + 2.4), 0.62 * (top - bottom) + 0.5))
    axes = figure.subplots()
    axes.set(xlim=(-1.2, right + 1.2), ylim=(bottom, top), aspect="equal", title=title)
    axes.set_axis_off()
    u = np.linspace(-1, 1, 100)
    for edge, height in zip(edges, heights):
        start, end = places[edge.source], places[edge.node]
        middle = (start + end) / 2
        arc = np.stack([middle + u * (end - start) / 2, height * (1 - u ** 2)], axis=1)
        arc = arc[np.hypot(arc[:, 0] - end, arc[:, 1]) > 0.44]  # the arrow ends at the circle
        axes.add_patch(FancyArrowPatch(path=Path(arc), arrowstyle="-|>", mutation_scale=14,
                                       color=colour(edge.op), linewidth=1.8, zorder=2))
        axes.text(middle, height, edge.op, zorder=4, **CENTRED, bbox={
            "boxstyle": "round,pad=0.2", "facecolor": "white", "edgecolor": colour(edge.op)})
    entered = {edge.node for edge in edges}
    for state, x in places.items():
        face, line = ("white", "black") if state in {*names, *entered} else ("#DDDDDD", "#999999")
        axes.add_patch(Circle((x, 0), 0.42, facecolor=face, edgecolor=line, zorder=5))
        axes.text(x, 0, names.get(state, state), color=line, zorder=6, fontsize=7, **CENTRED)
        if state in entered and "out" in names:  # a line below the nodes: the concatenation
            axes.plot([x, x, right, right], [0, -0.62, -0.62, 0], color="#BBBBBB", zorder=1)
    return figure


def parts_of(genotype, prefix):
    """{file name: Figure} of an architecture of cells."""
    if isinstance(genotype, nasbench201.CellGenotype):
        return {prefix + "normal": draw_cell(genotype.cell, "Cell", {0: "in", 3: "out"}, 3)}
    if isinstance(genotype, genotypes.Genotype):
        return {prefix + "normal": draw_cell(genotype.normal, "Normal cell"),
                prefix + "reduce": draw_cell(genotype.reduce, "Reduction cell")}
    return {}  # a chain is its text, or the heatmap's framed gates
