"""What a search measures: accuracies, gates, the discretisation gap; and how it says so."""
import io

import numpy as np
import torch

import cures
import data
import kernels
import parallel
from fair_darts import PENALTIES, encoding_gap, needed_w01, resting_gate, rounded, split_gap

# Columns of metrics.csv, in the epochs in which the gap is measured
GAP = ("soft_accuracy", "discrete_accuracy", "gap_rounding", "gap_edges", "gap_operations")


class GateHistory:
    """All gates of every epoch, for gates.npz."""

    def __init__(self, network, run):
        self.network, self.run = network, run
        self.epochs = []  # of each: (2, edges, operations) in S1, (1, layers, choices) in S2

    def now(self):
        return torch.stack([g.detach().cpu() for g in self.network.compute_gates()])

    def append(self):
        self.epochs.append(self.now())

    def to_bytes(self):
        gates = torch.stack(self.epochs, 1)
        if self.network.present is not None:
            gates[:, :, ~self.network.present.cpu()] = torch.nan
        file = io.BytesIO()
        np.savez(file, **dict(zip(self.network.parts, gates)), run=self.run.config["id"],
                 primitives=self.network.primitives)
        return file.getvalue()

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        like, epochs = self.now(), list(state["epochs"])
        if len(epochs) != len(self.run.rows) or not all(
                gates.shape == like.shape and gates.dtype == like.dtype
                and gates.layout == like.layout and ((gates >= 0) & (gates <= 1)).all()
                for gates in epochs):
            raise ValueError("its gates are not from 0 to 1, or of another shape or number")
        self.epochs = epochs


@torch.no_grad()
def accuracy(run, network, half, gates=None):
    """Accuracy of the supernet on the pictures of `half`, in percent."""
    batches = data.in_order(half.images, half.labels, half.mean, half.std)
    hits = sum(((network(images, gates).argmax(1) == labels).sum()
                for images, labels in run.watched(batches)), half.labels.new_zeros(()))
    return 100 * parallel.total(hits).item() / len(half.labels)


@torch.no_grad()
def gap(run, network, half, s):
    """The discretisation gap (Insight 2): accuracies on `half`, in percent, with the gates as
    they are and with those of the genotype, 0 and 1, and the gap's parts. By batch statistics:
    the running ones belong to the former gates. {} where a cell of the genotype is empty."""
    genotype = cures.genotype(network, s)
    if not all(genotype):
        return {}
    soft = network.compute_gates()
    hard = [rounded(gates, network.gate, network.shared) for gates in soft]
    edges, discrete = network.kept_edges(s.edges_per_node), network.discrete_gates(genotype)

    def times(gates, masks):
        return [g * mask for g, mask in zip(gates, masks)]

    network.train()
    with kernels.frozen_statistics(network), parallel.alone(), cures.undisturbed(network):
        found = [accuracy(run, network, half, gates) for gates in (
            soft, times(soft, edges), times(soft, discrete), hard, times(hard, edges), discrete)]
    parts = zip(("gap_rounding", "gap_edges", "gap_operations"), split_gap(*found))
    return dict(soft_accuracy=found[0], discrete_accuracy=found[-1], **dict(parts))


def count_gates(network, threshold):
    """Columns of metrics.csv: how far the gates have come, and the dominant skips (Fig. 1)."""
    gates = network.all_gates().detach()
    rho = encoding_gap(torch.cat(network.compute_gates()).detach(), network.gate, network.present,
                       network.shared)
    columns = dict(gate_min=gates.min().item(), gate_max=gates.max().item(), rho=rho.item(),
                   gates_above=None, gates_below=None)
    if threshold:  # argmax has none
        columns["gates_above"] = int((gates >= threshold).sum())
        columns["gates_below"] = int((gates <= 1 - threshold).sum())
    return {**columns, **{"skips_" + part: names.count("skip_connect")
                          for part, names in network.dominant_operations().items()}}


def note_resting_gate(run, s, network):
    """Say so where gates that the data leave alone cannot reach the threshold."""
    if s.gate == "softmax" or s.threshold <= 0.5:
        return
    setting = network.all_gates().numel(), s.arch_weight_decay, PENALTIES[s.zero_one_loss]
    rest = resting_gate(s.w01, *setting)
    if rest < s.threshold:
        cure = ("lower --threshold" if s.threshold >= 1
                else f"--w01 {needed_w01(s.threshold, *setting):.2f} brings them to it")
        run.log(f"note: gates that the data leave alone come to rest at {rest:.3f} and "
                f"{1 - rest:.3f}, short of --threshold {s.threshold}; {cure}")


def describe(row, s):
    """The line of an epoch."""
    parts = ["train loss {train_loss:.4f} acc {train_accuracy:.2f}%",
             "valid loss {valid_loss:.4f} acc {valid_accuracy:.2f}%",
             s.zero_one_loss + " penalty {penalty:.4f}",
             "gates {gate_min:.3f} to {gate_max:.3f}, rho {rho:.2f}"]
    if row["gates_above"] is not None:
        parts[-1] += ", {gates_above} above, {gates_below} below"
    skips = [f"{name[6:]} {row[name]}" for name in row if name.startswith("skips_")]
    parts.append("dominant skips: " + ", ".join(skips))
    if row["soft_accuracy"] is not None:
        parts.append("gap, by batch statistics: {soft_accuracy:.2f}% - {discrete_accuracy:.2f}%, "
                     "rounding {gap_rounding:.0f}, selection {selection:.0f}")
        row = {**row, "selection": row["gap_edges"] + row["gap_operations"]}
    if row.get("curvature") is not None:
        parts.append("curvature {curvature:.3g}")
    return "  ".join(parts).format(**row)
