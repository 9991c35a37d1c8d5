"""What a search has recorded: read and checked as a whole, counted, told apart."""
import argparse
import os
import zipfile
from collections import namedtuple

import numpy as np
import torch

import cures
import fair_darts
import genotypes
import measure
from flags import MAY_CHANGE, UserError, check_settings
from folders import read_metrics
from runs import Run

# gates: {part: (epochs, edges or layers, operations)}, NaN where a layer does not have the choice;
# rows: the metrics of each epoch; epoch: the one whose gates count, from 1, see cures.outcome;
# genotype: None where there is none; name: of its folder
Record = namedtuple("Record", "settings primitives gates rows epoch genotype name")
# Settings that do not change what a search finds, or by chance alone
SILENT = {*MAY_CHANGE, "name", "runs", "seed", "recompute", "compile"} - {
    "epochs", "threshold", "edges_per_node", "ops_per_edge", "ops_per_layer", "keep_skips"}


def read(folder):
    """The Record of the search in `folder`, all of it checked against its settings. Raises
    UserError."""
    import train_search  # not at the top, since it imports this file
    run = Run.open(folder, "train_search")
    settings = check_settings(run.config["settings"], run.path("config.json"), train_search.flags())
    primitives = settings["primitives"].split(",")
    parts, edges = ("normal", "reduce"), settings["nodes"] * (settings["nodes"] + 3) // 2
    if settings["space"] == "s2":
        primitives, parts, edges = list(genotypes.CHOICES), ("layers",), len(genotypes.CHAIN)
    try:
        rows = read_metrics(folder)
        dominant = {"skips_" + part for part in parts}
        if not {*measure.GAP, *dominant, "rho", "curvature", "seconds"} <= rows[0].keys():
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
    epoch, _ = cures.outcome(argparse.Namespace(**settings), rows) or (len(rows), None)
    return Record(settings, primitives, gates, rows, epoch, genotype, name)


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


def last_gates(record, part):
    """Those that the genotype was derived from: (edges, operations)"""
    return record.gates[part][record.epoch - 1]


def kept_gates(record, part):
    """Which gates the genotype keeps: (edges, operations) of bool."""
    last = torch.as_tensor(last_gates(record, part))
    if record.genotype is None:
        return np.zeros(last.shape, bool)
    if part == "layers":
        return fair_darts.discrete_chain_gates(record.genotype).bool().numpy()
    edges = getattr(record.genotype, part)
    return fair_darts.discrete_gates(edges, last, record.primitives).bool().numpy()


def reasons(record, part):
    """Why gates that round to 1 are not kept: (edges, operations) of one of MARKS, or ""."""
    gates = torch.as_tensor(last_gates(record, part)).nan_to_num(-1)
    kept = kept_gates(record, part)
    s, marks = record.settings, np.full(kept.shape, "", dtype=object)
    edges = np.ones((len(kept), 1)) if part == "layers" else fair_darts.kept_edges(
        gates, s["edges_per_node"], record.primitives).numpy()
    most = s["ops_per_layer" if part == "layers" else "ops_per_edge"]
    better = gates.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # ranks
    rivals = cures.options(argparse.Namespace(**s))["shared"]
    shared = fair_darts.mask_of(rivals, record.primitives)
    limited = s["keep_skips"] >= 0 and part != "reduce"
    for row, column in fair_darts.rounded(gates, s["gate"], shared).nonzero().tolist():
        if not kept[row, column]:
            skip = record.primitives[column] == "skip_connect"
            marks[row, column] = ("e" if not edges[row, 0] else "o" if better[row, column] >= most
                                  else "t" if gates[row, column] < s["threshold"]
                                  else "k" if limited and skip else "p")
    return marks
