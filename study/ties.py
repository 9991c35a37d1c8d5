"""Gates kept by a hair: kept ones, and how near their rejected rivals are."""
import json
import math
import os

import torch

from fair_darts import edge_row, strongest

MARGIN = 0.005
PUBLISHED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "published_gates.json")


def published_gates():
    """The gates of eight searches that the authors have published: [{"normal",
    "reduce"}], each (14, 7)."""
    with open(PUBLISHED, encoding="utf-8") as file:
        return [{part: torch.tensor(rows) for part, rows in search.items()}
                for search in json.load(file)["gates"]]


def kept_unpruned(gates, threshold=0.85, edges_per_node=2, ops_per_edge=1):
    """[(Edge, gate)] of the gates (edges, operations) of one cell type that are kept,
    before edges are pruned; .op is the column."""
    pairs = strongest(gates, edges_per_node, ops_per_edge, range(gates.shape[1]))
    return [(edge, gate) for edge, gate in pairs if gate >= threshold]


def leads(gates, threshold=0.85, edges_per_node=2, ops_per_edge=1):
    """How far each of `kept_unpruned` is from the nearest of its rejected rivals: other
    operations of its edge, and the best one of each edge into its node that is not
    among the best."""
    best = kept_unpruned(gates, -math.inf, edges_per_node, ops_per_edge)
    rows, found = {edge_row(edge.node, edge.source) for edge, _ in best}, []
    for edge, gate in kept_unpruned(gates, threshold, edges_per_node, ops_per_edge):
        of_edge = gates[edge_row(edge.node, edge.source)].sort(descending=True).values
        of_node = [gates[row].max().item() for source in range(edge.node)
                   if (row := edge_row(edge.node, source)) not in rows]
        rivals = of_edge[ops_per_edge:].tolist() + of_node
        found.append(min((gate - rival for rival in rivals), default=math.inf))
    return found


def near_ties(gates, *rules, margin=MARGIN):
    """(kept gates with a rejected rival within `margin`, kept gates), by `rules`, see
    leads."""
    found = leads(torch.as_tensor(gates), *rules)
    return sum(lead <= margin for lead in found), len(found)


def published_ties():
    """{part: (near ties, kept gates, mean open gates)} of the published gates."""
    searches, totals = published_gates(), {}
    for part in ("normal", "reduce"):
        counts = [(*near_ties(search[part]), int((search[part] >= 0.5).sum()))
                  for search in searches]
        near, kept, opened = map(sum, zip(*counts))
        totals[part] = near, kept, opened / len(searches)
    return totals
