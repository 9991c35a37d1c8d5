"""What a search has recorded: read as a whole, counted, told apart."""
import os
from argparse import Namespace
from collections import namedtuple

import numpy as np
import torch

import spaces
from engine.flags import MAY_CHANGE, UserError
from engine.folders import Folder, read_metrics, reading
from spaces import nasbench201
from study import cures
from study.gap import GAP

# space: a spaces.space.Space; gates: {part: (epochs, rows, operations)}, NaN where a layer does not
# have the choice; rows: the metrics of each epoch; epoch: the one whose gates count, from 1, see
# cures.outcome; genotype: None where there is none
Record = namedtuple("Record", "folder settings space primitives gates rows epoch genotype")
# Settings that do not change what a search finds, or by chance alone
SILENT = {*MAY_CHANGE, "name", "runs", "seed", "recompute"} - {
    "epochs", "threshold", "edges_per_node", "ops_per_edge", "ops_per_layer", "keep_skips"}


def read(folder):
    """The Record of the search in `folder`. Raises UserError, whatever is wrong."""
    run = Folder.open(folder, "train_search")
    try:
        with reading(folder):
            rows, path = read_metrics(folder), run.path("genotype.json")
            with np.load(run.path("gates.npz"), allow_pickle=False) as file:
                gates = {part: file[part][:len(rows)] for part in run.space.PARTS}
            genotype = spaces.read(path)[1] if os.path.exists(path) else None
            epoch, _ = cures.outcome(run.s, rows) or (len(rows), None)
            return Record(folder, vars(run.s), run.space, run.space.primitives(run.s), gates, rows,
                          epoch, genotype)
    except FileNotFoundError as error:
        raise UserError(f"{folder!r} is not a search that has done an epoch: it has no "
                        f"{os.path.basename(error.filename)}") from None


def read_again(record, changed):
    """The Record as it would be if its search had had the settings `changed`, which end
    it earlier or change its genotype alone."""
    settings = {**record.settings, **changed}
    s = Namespace(**settings)
    epoch, _ = cures.outcome(s, record.rows) or (len(record.rows), None)
    gates = [torch.as_tensor(part[epoch - 1]) for part in record.gates.values()]
    genotype, rows = cures.genotype(s, gates), list(record.rows)
    if genotype != cures.genotype(s, gates, keep_skips=-1):  # its gap was not measured
        rows[epoch - 1] = {**rows[epoch - 1], **dict.fromkeys(GAP)}
    return record._replace(settings=settings, epoch=epoch, rows=rows,
                           genotype=genotype if all(genotype) else None)


def names_of(records):
    """What tells runs apart: gate and penalty, and the other settings in which those of
    the same gate and penalty differ; where all are alike, the names of their
    folders."""
    names = []
    for record in records:
        alike = [other.settings for other in records if setting(other) == setting(record)]
        differ = [f"{key} {value}" for key, value in record.settings.items() if key not in SILENT
                  and any(other.get(key) != value for other in alike)]
        names.append(", ".join([setting(record), *differ]))
    if len(set(names)) > 1:
        return names
    return [os.path.basename(os.path.abspath(record.folder)) for record in records]


def setting(record):
    """The gate and the penalty of a run, in a few words."""
    gate, w01, penalty = (record.settings[key] for key in ("gate", "w01", "zero_one_loss"))
    return gate if gate == "softmax" or not w01 else f"{gate}, w01 {w01:g}, {penalty}"


def dominant_counts(record, part):
    """How often each operation is dominant: (epochs, operations)"""
    names = [record.space.dominant(gates, record.primitives) for gates in record.gates[part]]
    return np.array([[epoch.count(op) for op in record.primitives] for epoch in names])


def all_gates(record):
    """The gates of all parts, without choices that are not there: (epochs, gates)"""
    gates = np.concatenate([part.reshape(len(part), -1) for part in record.gates.values()], axis=1)
    return gates[:, ~np.isnan(gates[0])]


def known_curve(record, column):
    """Of a space whose architectures are known, what argmax (Eq. 3) would derive after
    each epoch: {epoch: one of space.known's columns}"""
    found = [nasbench201.discretize_edges(gates, 0, record.primitives)
             for gates in record.gates["normal"]]
    return {epoch: record.space.known(cell)[column] for epoch, cell in enumerate(found, 1)}


def last_gates(record, part):
    """Those that the genotype was derived from: (edges, operations)"""
    return record.gates[part][record.epoch - 1]


def kept_gates(record, part):
    """Which gates the genotype keeps: (edges, operations) of bool."""
    last = {name: torch.as_tensor(last_gates(record, name)) for name in record.gates}
    if record.genotype is None:
        return np.zeros(last[part].shape, bool)
    kept = record.space.discrete_gates(record.genotype, [*last.values()], record.primitives)
    return dict(zip(last, kept))[part].bool().numpy()
