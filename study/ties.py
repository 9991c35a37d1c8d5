"""Gates kept by a hair: kept ones, and how near their rejected rivals are."""
import json
import os

import torch

from fair_darts import edge_row, strongest


def published_gates():
    """The gates of eight searches that the authors have published: [{"normal",
    "reduce"}], each (14, 7)."""
    with open(os.path.join(os.path.dirname(__file__), "published_gates.json")) as file:
        return [{part: torch.tensor(rows) for part, rows in search.items()}
                for search in json.load(file)["gates"]]


def leads(gates):
    """How far each kept gate of one cell type, (edges, operations), is from the nearest
    of its rejected rivals: other operations of its edge, and the best one of each edge
    into its node that is not among the two best."""
    best, found = strongest(gates), []
    rows = [edge_row(edge.node, edge.source) for edge, _ in best]
    for (edge, gate), row in zip(best, rows):
        others = {edge_row(edge.node, source) for source in range(edge.node)} - {*rows}
        rivals = [gates[row].topk(2).values[1], *(gates[other].max() for other in others)]
        found += [gate - max(rivals).item()] if gate >= 0.85 else []
    return found


def published_ties(margin=0.005):
    """Of the published gates {part: (kept ones with a rejected rival within `margin`,
    kept ones, open ones, mean of the searches)}."""
    totals, searches = {}, published_gates()
    for part in ("normal", "reduce"):
        found = [lead for search in searches for lead in leads(search[part])]
        opened = sum((search[part] >= 0.5).sum().item() for search in searches) / len(searches)
        totals[part] = sum(lead <= margin for lead in found), len(found), opened
    return totals
