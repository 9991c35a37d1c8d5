"""What is measured, recorded and said of a search as it goes on."""
import functools
import io
import warnings
from importlib.util import find_spec

import numpy as np
import torch

from engine import processes
from engine.advice import explain_empty_cell
from engine.flags import number
from study import cures, resting
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
                f"{tuple(run.config['shape'])}  device: {run.device}")
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
            row["curvature"] = cures.curvature(self.plain(), *batch, s.arch_weight_decay)
        self.epochs.append(torch.stack([g.detach().cpu() for g in network.compute_gates()]))
        gates, file = torch.stack(self.epochs, 1), io.BytesIO()
        if hasattr(network, "present"):
            gates[:, :, ~network.present.cpu()] = torch.nan
        np.savez(file, **dict(zip(network.parts, gates)), primitives=network.primitives)
        self.run.write("gates.npz", file.getvalue())
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
        above = ", {gates_above} above, {gates_below} below" if self.s.threshold else ""
        skips = [f"{part} {row['skips_' + part]}" for part in self.network.parts]
        lines = ["train loss {train_loss:.4f} acc {train_accuracy:.2f}%  "
                 "valid loss {valid_loss:.4f} acc {valid_accuracy:.2f}%",
                 self.s.zero_one_loss + " penalty {penalty:.4f}  gates {gate_min:.2f} to "
                 "{gate_max:.2f}, rho {rho:.2f}" + above + "  dominant skips: " + ", ".join(skips)]
        if "benchmark_rank" in row:
            lines.append(f"derived {self.derived()}: " + "{benchmark_accuracy:.2f}%, rank "
                         "{benchmark_rank:,}, {genotype_skips} skips")
        if row["soft_accuracy"] is not None:
            lines.append("gap, by batch statistics: {soft_accuracy:.2f}% - {discrete_accuracy:.2f}"
                         "%, rounding {gap_rounding:.0f}, selection "
                         f"{row['gap_edges'] + row['gap_operations']:.0f}")
        if row["curvature"] is not None:
            lines.append("curvature {curvature:.3g}")
        return "\n  ".join(lines).format(**row)

    def draw_now_and_then(self):
        every = self.s.figures_every
        if every and len(self.run.rows) % every == 0 and not self.over():
            self.draw()

    def draw(self):
        """Draw what is recorded so far. Whatever goes wrong, the search goes on."""
        if self.s.figures_every and processes.rank() == 0 and find_spec("matplotlib"):
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
        weights = sum(w.numel() for w in self.network.weights())
        return {"supernet": f"{weights:,} weights, {self.network.all_gates().numel()} gates",
                "validation accuracy": f"{self.run.rows[-1]['valid_accuracy']:.2f}% in the last "
                                       "epoch, of the supernet"}

    def state_dict(self):
        return {"epochs": self.epochs}

    def load_state_dict(self, state):
        self.epochs = list(state["epochs"])
