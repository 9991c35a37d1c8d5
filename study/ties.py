"""Gates kept by a hair: kept ones, and how near their rejected rivals are."""
import json
import os

import torch

from fair_darts import edge_row, strongest

PUBLISHED = os.path.join(os.path.dirname(os.path.abspath(__file__)), "published_gates.json")


def published_gates():
    """The gates of eight searches that the authors have published: [{"normal",
    "reduce"}], each (14, 7)."""
    with open(PUBLISHED, encoding="utf-8") as file:
        return [{part: torch.tensor(rows) for part, rows in search.items()}
                for search in json.load(file)["gates"]]


def near_ties(gates, threshold=0.85, margin=0.005):
    """(kept gates with a rejected rival within `margin`, kept gates) of one cell type,
    (edges, operations). Rivals: other operations of its edge, and the best one of each
    edge into its node that is not among the two best."""
    best = strongest(gates)
    rows = [edge_row(edge.node, edge.source) for edge, _ in best]
    leads = []
    for (edge, gate), row in zip(best, rows):
        others = [edge_row(edge.node, source) for source in range(edge.node)]
        rivals = [gates[row].topk(2).values[1],
                  *(gates[other].max() for other in others if other not in rows)]
        leads += [gate - max(rivals).item()] if gate >= threshold else []
    return sum(lead <= margin for lead in leads), len(leads)


def published_ties():
    """{part: (near ties, kept gates, mean open gates)} of the published gates."""
    searches, totals = published_gates(), {}
    for part in ("normal", "reduce"):
        near, kept = map(sum, zip(*(near_ties(search[part]) for search in searches)))
        opened = sum(int((search[part] >= 0.5).sum()) for search in searches)
        totals[part] = near, kept, opened / len(searches)
    return totals
