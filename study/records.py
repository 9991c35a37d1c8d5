"""What a search has recorded: read as a whole, counted, told apart."""
import os
from argparse import Namespace
from collections import namedtuple

import numpy as np
import torch

import spaces
from engine.flags import MAY_CHANGE
from engine.folders import Folder, read_metrics, reading
from study import cures
from study.gap import GAP

# s: settings; space: a spaces.space.Space; gates: {part: (epochs, rows, operations)}, NaN where a
# layer does not have the choice; rows: the metrics of each epoch; epoch: the one whose gates count,
# from 1, see cures.outcome; genotype: None where there is none
Record = namedtuple("Record", "folder s space primitives gates rows epoch genotype")
# Settings that do not change what a search finds, or by chance alone
SILENT = {*MAY_CHANGE, "name", "runs", "seed", "recompute"} - {
    "epochs", "threshold", "edges_per_node", "ops_per_edge", "ops_per_layer", "keep_skips"}


def read(folder):
    """The Record of the search in `folder`. Raises UserError; FileNotFoundError if it
    has not done an epoch."""
    run = Folder.open(folder, "train_search")
    with reading(folder):
        rows, path = read_metrics(folder), run.path("genotype.json")
        with np.load(run.path("gates.npz"), allow_pickle=False) as file:
            gates = {part: file[part][:len(rows)] for part in run.space.PARTS}
        genotype = spaces.read(path)[1] if os.path.exists(path) else None
        epoch, _ = cures.outcome(run.s, rows) or (len(rows), None)
        return Record(folder, run.s, run.space, run.space.primitives(run.s), gates, rows, epoch,
                      genotype)


def read_again(record, changed):
    """The Record as if its search had had the settings `changed`, which end it earlier
    or change its genotype alone."""
    s = Namespace(**{**vars(record.s), **changed})
    epoch, _ = cures.outcome(s, record.rows) or (len(record.rows), None)
    gates = [torch.as_tensor(part[epoch - 1]) for part in record.gates.values()]
    genotype, rows = cures.genotype(s, gates), list(record.rows)
    if genotype != cures.genotype(s, gates, keep_skips=-1):  # its gap was not measured
        rows[epoch - 1] = {**rows[epoch - 1], **dict.fromkeys(GAP)}
    return record._replace(s=s, epoch=epoch, rows=rows,
                           genotype=genotype if all(genotype) else None)


def names_of(records):
    """What tells runs apart: gate and penalty, and settings in which those of the same
    two differ; where all are alike, the names of their folders."""
    names = []
    for record in records:
        alike = [vars(other.s) for other in records if setting(other) == setting(record)]
        differ = [f"{key} {value}" for key, value in vars(record.s).items() if key not in SILENT
                  and any(other.get(key) != value for other in alike)]
        names.append(", ".join([setting(record), *differ]))
    if len(set(names)) > 1:
        return names
    return [os.path.basename(os.path.abspath(record.folder)) for record in records]


def setting(record):
    """The gate and the penalty of a run, in a few words."""
    s, known = record.s, {"l2": "Fair DARTS (L01)", "l1": "sigmoid, L'01"}
    if s.gate == "softmax" or not s.w01:
        return s.gate
    return f"{known.get(s.zero_one_loss, s.zero_one_loss)}, w01 {s.w01:g}"


def dominant_counts(record, part):
    """How often each operation is dominant: (epochs, operations)"""
    names = [record.space.dominant(gates, record.primitives) for gates in record.gates[part]]
    return np.array([[epoch.count(op) for op in record.primitives] for epoch in names])


def all_gates(record):
    """The gates of all parts, without choices that are not there: (epochs, gates)"""
    gates = np.concatenate([part.reshape(len(part), -1) for part in record.gates.values()], axis=1)
    return gates[:, ~np.isnan(gates[0])]


def kept_gates(record, part):
    """Which of the gates that count the genotype keeps: (edges, operations) of bool."""
    if record.genotype is None:
        return np.zeros(record.gates[part].shape[1:], bool)
    last = [torch.as_tensor(gates[record.epoch - 1]) for gates in record.gates.values()]
    kept = record.space.discrete_gates(record.genotype, last, record.primitives)
    return kept[[*record.gates].index(part)].bool().numpy()
