"""What a search has recorded: read and checked as a whole, counted, told apart."""
import argparse
import os
import zipfile
from collections import namedtuple

import numpy as np
import torch

from engine import texts
from engine.flags import MAY_CHANGE, UserError
from engine.folders import read_metrics
from engine.loop import Run
from fair_darts import PENALTIES
from spaces import SPACES, of_genotype
from study import cures
from study.gap import GAP, rounded

# space: a module of spaces; gates: {part: (epochs, rows, operations)}, NaN where a layer does not
# have the choice; rows: the metrics of each epoch; epoch: the one whose gates count, from 1, see
# cures.outcome; genotype: None where there is none; name: of its folder
Record = namedtuple("Record", "settings space primitives gates rows epoch genotype name")
# Settings that do not change what a search finds, or by chance alone
SILENT = {*MAY_CHANGE, "name", "runs", "seed", "recompute"} - {
    "epochs", "threshold", "edges_per_node", "ops_per_edge", "ops_per_layer", "keep_skips"}
# The settings that figures and claims read
READ = dict(space=str, gate=str, w01=float, zero_one_loss=str, primitives=str, nodes=int,
            epochs=int, threshold=float, edges_per_node=int, ops_per_edge=int, ops_per_layer=int,
            keep_skips=int, max_skips=int, max_curvature_ratio=float, shared_softmax=str,
            arch_weight_decay=float)


def read(folder):
    """The Record of the search in `folder`. Raises UserError, whatever is wrong."""
    run = Run.open(folder, "train_search")
    try:
        return read_search(run)
    except FileNotFoundError as error:
        raise UserError(f"{folder!r} is not a search that has done an epoch: it has no "
                        f"{os.path.basename(error.filename)}") from None
    except UserError:
        raise
    except Exception as error:  # whatever a damaged or edited file makes of it
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder!r} cannot be read as a search: {type(error).__name__}: "
                        f"{reason}") from None


def read_search(run):
    settings, path = dict(run.config["settings"]), run.path("genotype.json")
    for name, kind in READ.items():
        if kind is float and type(settings[name]) is int:
            settings[name] = float(settings[name])
        if type(settings[name]) is not kind or kind is int and abs(settings[name]) >= 2**63:
            raise ValueError(f"config.json: {name} is {settings[name]!r}")
    if settings["gate"] not in ("sigmoid", "softmax") or settings["zero_one_loss"] not in PENALTIES:
        raise ValueError("config.json: unknown gate or zero_one_loss")
    s, space = argparse.Namespace(**settings), SPACES[settings["space"]]
    primitives = list(space.primitives(s))
    rows = read_metrics(run.folder)
    empty = space.GENOTYPE(*([] for _ in space.GENOTYPE._fields))
    columns = {*GAP, "rho", "curvature", "seconds", *space.known(empty),
               *("skips_" + part for part in space.PARTS)}
    if not columns <= rows[0].keys():
        raise UserError(f"{run.path('metrics.csv')} lacks the columns of a search")
    gates = read_gates(run, space, (len(rows), space.rows(s), len(primitives)), primitives)
    genotype = texts.load(path, SPACES.values()) if os.path.exists(path) else None
    if genotype and not all(genotype):
        raise UserError(f"{path} has an empty cell")
    if genotype and (of_genotype(genotype) is not space or not fits(genotype, s, primitives)):
        raise UserError(f"{path} is of another space than the search")
    epoch, _ = cures.outcome(s, rows) or (len(rows), None)
    name = os.path.basename(os.path.abspath(run.folder))
    return Record(settings, space, primitives, gates, rows, epoch, genotype, name)


def read_again(record, mend):
    """The Record as it would be if its search had had the settings `mend`, which end it
    earlier or change its genotype alone."""
    settings = {**record.settings, **mend}
    s = argparse.Namespace(**settings)
    epoch, _ = cures.outcome(s, record.rows) or (len(record.rows), None)
    gates = [torch.as_tensor(part[epoch - 1]) for part in record.gates.values()]
    with torch.device("meta"):
        network = record.space.supernet(s, 2, (3, 8, 8), cures.gate_of(s))
    genotype = cures.genotype(network, s, gates)
    rows = record.rows
    if genotype != cures.genotype(network, s, gates, keep_skips=-1):  # its gap was not measured
        rows = [*rows[:epoch - 1], {**rows[epoch - 1], **dict.fromkeys(GAP)}, *rows[epoch:]]
    return record._replace(settings=settings, epoch=epoch, rows=rows,
                           genotype=genotype if all(genotype) else None)


def fits(genotype, s, primitives):
    """Whether the search could have found it: cells of its operations and nodes."""
    return hasattr(genotype, "layers") or all(
        edge.op in primitives and edge.node < s.nodes + 2 for cell in genotype for edge in cell)


def read_gates(run, space, shape, primitives):
    """{part: array} of gates.npz. Sizes are checked before memory is taken. Raises
    ValueError, FileNotFoundError, and what zipfile and numpy do."""
    path = run.path("gates.npz")
    with zipfile.ZipFile(path) as file:
        if sum(info.file_size for info in file.infolist()) > 8 * np.prod(shape) + 10000:
            raise ValueError("gates.npz is too large")
    with np.load(path, allow_pickle=False) as arrays:
        content = {name: arrays[name] for name in arrays}
    if content["run"] != run.config["id"] or content["primitives"].tolist() != primitives:
        raise ValueError("gates.npz is of another run")
    gates = {part: content[part] for part in space.PARTS}
    for part, array in gates.items():
        if array.shape != shape or array.dtype != np.float32:
            raise ValueError(f"gates.npz: its arrays are not {shape} of float32")
        absent = np.isnan(array) if part == "layers" else np.zeros(shape, bool)
        if not (((array >= 0) & (array <= 1)) | absent).all():
            raise ValueError("gates.npz: its gates are not from 0 to 1")
    return gates


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
    return names if len(set(names)) > 1 else [record.name for record in records]


def setting(record):
    """The gate and the penalty of a run, in a few words."""
    gate, w01, penalty = (record.settings[key] for key in ("gate", "w01", "zero_one_loss"))
    return gate if gate == "softmax" or not w01 else f"{gate}, w01 {w01:g}, {penalty}"


def dominant_names(record, gates):
    """The dominant operations of one epoch's gates: two for each node of a cell, or one
    for each layer."""
    return record.space.dominant(gates, record.primitives)


def dominant_counts(record, part):
    """How often each operation is dominant: (epochs, operations)"""
    names = [dominant_names(record, epoch) for epoch in record.gates[part]]
    return np.array([[epoch.count(op) for op in record.primitives] for epoch in names])


def all_gates(record):
    """The gates of all parts, without choices that are not there: (epochs, gates)"""
    gates = np.concatenate([part.reshape(len(part), -1) for part in record.gates.values()], axis=1)
    return gates[:, ~np.isnan(gates[0])]


def known_curve(record, column):
    """Of a space whose architectures are known, what argmax (Eq. 3) would derive after
    each epoch: {epoch: one of space.known's columns}"""
    found = [record.space.discretize_edges(gates, 0, record.primitives)
             for gates in record.gates["normal"]]
    return {epoch: record.space.known(cell)[column] for epoch, cell in enumerate(found, 1)}


def gate_histogram(record, bins=40):
    """The share of the gates in each of `bins` equal parts of 0 to 1: (bins, epochs)"""
    return np.stack([np.histogram(gates, bins, (0, 1))[0] / len(gates)
                     for gates in all_gates(record)], axis=1)


def last_gates(record, part):
    """Those that the genotype was derived from: (edges, operations)"""
    return record.gates[part][record.epoch - 1]


def kept_gates(record, part):
    """Which gates the genotype keeps: (edges, operations) of bool."""
    last = [torch.as_tensor(last_gates(record, name)) for name in record.gates]
    if record.genotype is None:
        return np.zeros(last[0].shape, bool)
    kept = record.space.discrete_gates(record.genotype, last, record.primitives)
    return kept[list(record.gates).index(part)].bool().numpy()


def reasons(record, part):
    """Why gates that round to 1 are not kept: (edges, operations) of MARKS, or ""."""
    gates = torch.as_tensor(last_gates(record, part)).nan_to_num(-1)
    kept, s = kept_gates(record, part), argparse.Namespace(**record.settings)
    marks = np.full(kept.shape, "", dtype=object)
    edges = record.space.kept_edges(gates, s.edges_per_node, record.primitives).numpy()
    most = s.ops_per_layer if part == "layers" else s.ops_per_edge
    better = gates.argsort(dim=1, descending=True, stable=True).argsort(dim=1)  # ranks
    limited = s.keep_skips >= 0 and part != "reduce"
    for row, column in rounded(gates, s.gate, cures.shared_mask(s)).nonzero().tolist():
        if not kept[row, column]:
            skip = record.primitives[column] == "skip_connect"
            marks[row, column] = ("e" if not edges[row, 0] else "o" if better[row, column] >= most
                                  else "t" if gates[row, column] < s.threshold
                                  else "k" if limited and skip else "p")
    return marks
