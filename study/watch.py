"""What is measured, recorded and said of a search as it goes on."""
import functools
import importlib.util
import io
import warnings

import numpy as np
import torch

from engine import processes
from engine.advice import explain_empty_cell
from engine.flags import number
from study import cures, resting
from study.curvature import curvature
from study.gap import GAP, accuracy, count_gates, gap

WATCH_FLAGS = {
    "gap_every": (5, number(int, 0), "epochs between measurements of the gap; 0: never"),
    "figures_every": (10, number(int, 0), "epochs between drawings of the figures; 0: never"),
}


class Watch:
    """Measures the supernet `network` of `run` at the end of each epoch, keeps all its
    gates, says whether a cure ends the search, and draws figures now and then. skips,
    sgd, validation, train: of a search that goes on."""

    def __init__(self, run, network, skips=None, sgd=None, validation=None, train=None):
        self.run, self.s, self.network, self.skips = run, run.s, network, skips
        self.sgd, self.validation, self.train = sgd, validation, train
        self.epochs = []  # gates of each: (parts, edges, operations); in S2 (1, layers, choices)

    def begin(self):
        """Say what is searched."""
        run = self.run
        train, validation = (len(b.pictures.labels) for b in (self.train, self.validation))
        run.log(f"run: {run.folder}  dataset: {run.dataset.name}, {train} + {validation} pictures "
                f"{tuple(run.config['shape'])}  supernet: {self.count_weights()}  "
                f"device: {run.device}")
        note = resting.note(self.s, self.network.all_gates().numel())
        if note and not run.rows:
            run.log(note)

    def over(self):
        return cures.outcome(self.s, self.run.rows) is not None

    def measure(self, epoch):
        """Measure `epoch`, from 0 on, keep its gates, and return its row of metrics."""
        s, network, done, half = self.s, self.network, epoch + 1, self.validation.pictures
        row = {"epoch": done, **self.run.means(),
               "valid_accuracy": accuracy(self.run, network.eval(), half),
               **count_gates(network, s), **self.run.space.known(self.derived()),
               **dict.fromkeys((*GAP, "curvature")),
               "learning_rate": self.sgd.param_groups[0]["lr"]}
        if s.gap_every and (done == s.epochs or done % s.gap_every == 0):
            row.update(gap(self.run, network, half, self.skips))
        if s.curvature_every and (done == s.epochs or epoch % s.curvature_every == 0):
            batch = (self.train if s.single_level else self.validation).last()
            row["curvature"] = curvature(self.plain(), *batch, s.arch_weight_decay)
        self.epochs.append(torch.stack([g.detach().cpu() for g in network.compute_gates()]))
        self.run.write("gates.npz", self.to_bytes())
        return row

    def derived(self):
        """The genotype of the gates as they are now."""
        return cures.genotype(self.s, self.network.compute_gates())

    def plain(self):
        """A copy of the supernet, not accelerated, its skips not disturbed."""
        with torch.random.fork_rng(devices=[]):
            copy = self.run.supernet(self.network.gate)
        copy.load_state_dict(self.network.state_dict())
        return copy.to(self.run.device)

    def lines(self, row):
        """What is printed of an epoch."""
        above = ("" if row["gates_above"] is None  # argmax has no threshold
                 else ", {gates_above} above, {gates_below} below")
        skips = [f"{name[6:]} {row[name]}" for name in row if name.startswith("skips_")]
        lines = ["train loss {train_loss:.4f} acc {train_accuracy:.2f}%  "
                 "valid loss {valid_loss:.4f} acc {valid_accuracy:.2f}%",
                 self.s.zero_one_loss + " penalty {penalty:.4f}  gates {gate_min:.2f} to "
                 "{gate_max:.2f}, rho {rho:.2f}" + above + "  dominant skips: " + ", ".join(skips)]
        if "benchmark_rank" in row:
            lines.append(f"derived {self.derived()}: {row['benchmark_accuracy']:.2f}%, rank "
                         f"{row['benchmark_rank']:,}, {row['genotype_skips']} skips")
        if row["soft_accuracy"] is not None:
            selection = row["gap_edges"] + row["gap_operations"]
            lines.append("gap, by batch statistics: {soft_accuracy:.2f}% - "
                         "{discrete_accuracy:.2f}%, rounding {gap_rounding:.0f}, "
                         f"selection {selection:.0f}")
        if row.get("curvature") is not None:
            lines.append("curvature {curvature:.3g}")
        return "\n  ".join(lines).format(**row)

    def draw_now_and_then(self):
        every = self.s.figures_every
        if every and len(self.run.rows) % every == 0 and not self.over():
            self.draw()

    def draw(self):
        """Draw what is recorded so far. Whatever goes wrong, the search goes on."""
        installed = importlib.util.find_spec("matplotlib")
        if self.s.figures_every and processes.rank() == 0 and installed:
            try:
                from study import visualize  # not at the top, for it needs matplotlib
                visualize.draw_run(self.run.folder)
            except Exception as error:
                warnings.warn(f"no figures: {type(error).__name__}: {error}")

    def genotype(self):
        """The genotype of the gates that count; and (why a cell is empty, a flag that
        would give one), or None."""
        epoch, why = cures.outcome(self.s, self.run.rows)
        if why:
            self.run.log(f"ended: {why}; the genotype is of epoch {epoch}")
        gates = list(self.epochs[epoch - 1])
        derive = functools.partial(cures.genotype, self.s, gates)
        return derive(), explain_empty_cell(self.network.parts, self.s, gates, derive)

    def report(self):
        """Lines of report.md."""
        gates, last = self.network.all_gates().numel(), self.run.rows[-1]["valid_accuracy"]
        return {"supernet": f"{self.count_weights()}, {gates} gates",
                "validation accuracy": f"{last:.2f}% in the last epoch, of the supernet"}

    def count_weights(self):
        return f"{sum(w.numel() for w in self.network.weights()):,} weights"

    def to_bytes(self):
        """gates.npz."""
        gates, file = torch.stack(self.epochs, 1), io.BytesIO()
        present = getattr(self.network, "present", None)
        if present is not None:
            gates[:, :, ~present.cpu()] = torch.nan
        np.savez(file, **dict(zip(self.network.parts, gates)), primitives=self.network.primitives)
        return file.getvalue()

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = list(state["epochs"])
