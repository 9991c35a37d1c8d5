"""The loop of a run that cannot be lost. Its folder holds config.json (settings,
command lines, versions, the dataset), log.txt, metrics.csv (a row an epoch),
checkpoint.pt, and the script's own results, see folders.py. A script's loop is

    with run:
        run.track(network=network, sgd=sgd, ...)    # what a checkpoint holds; loads it
        for epoch in run.epochs():                  # those that are left
            for _ in run.steps(count):              # those that are left in the epoch
                run.add(loss=loss, ...)             # sums up
            run.end_epoch(row, lines)

SIGINT and SIGTERM are heeded between two steps, or two batches of `run.watched`: the
run saves, says how to go on and ends. Resumed, it computes what it would have computed,
bit for bit.
"""
import contextlib
import csv
import io
import math
import os
import signal
import sys
import time
import warnings

import torch

from engine import processes
from engine.devices import name_of, peak_memory, reset_peak_memory
from engine.flags import UserError, is_out_of_memory, reason
from engine.folders import Folder, read_tensors, reading


class Stopped(Exception):
    """SIGINT or SIGTERM has asked the run to end."""


class Run(Folder):
    """A folder and the loop that fills it. .rows: the metrics of the epochs that are
    done; .device: what computes them; .dataset: what they are of."""
    device, dataset = torch.device("cpu"), None

    def __init__(self, folder, s, config):
        super().__init__(folder, s, config)
        self.rows, self.tracked, self.checkpoint = [], {}, None
        self.done, self.count, self.sums, self.seconds = 0, 0, {}, 0.0  # of the epoch in progress
        self.totals, self.begun = None, 0.0  # of the epoch's figures, on the device; when it began
        self.machine, self.troubled = {}, False  # see `save_checkpoint`, `read_figures`
        self.changed, self.signal, self.former_handlers, self.bar = False, 0, {}, None

    def __exit__(self, kind, error, trace):
        if self.bar is not None:
            self.bar.close()
        try:
            if kind is Stopped:
                self.save_checkpoint()
                self.log(f"stopped in epoch {len(self.rows) + 1} after step {self.done} "
                         f"of {self.count}; go on:\n{self.resume_command()}")
                sys.exit(128 + self.signal)
            if isinstance(error, OSError):
                raise error
            expected = UserError, KeyboardInterrupt, SystemExit
            if error and not isinstance(error, expected) and not is_out_of_memory(error):
                print(f"unexpected error; the last checkpoint is whole, go on with: "
                      f"{self.resume_command()}", file=sys.stderr)
        except OSError as error:
            raise UserError(f"{reason(error)}; the checkpoint before it is whole, go on with: "
                            + self.resume_command()) from None
        finally:
            for number, handler in self.former_handlers.items():
                signal.signal(number, handler)
            for tracked in self.tracked.values():
                if hasattr(tracked, "close"):
                    tracked.close()
            if self.descriptor is not None:
                os.close(self.descriptor)

    def read_checkpoint(self):
        """What was written last, if anything was. Raises UserError."""
        with processes.rank_0_first():
            for name in os.listdir(self.folder):
                if name.endswith(".part"):  # of a process that was killed
                    os.remove(self.path(name))
        with contextlib.suppress(FileNotFoundError):  # it was stopped before its first
            self.checkpoint = read_tensors(self.path("checkpoint.pt"))
        if self.checkpoint:
            with reading(self.path("checkpoint.pt")):
                for name in ("rows", "done", "sums", "seconds", "machine"):
                    setattr(self, name, self.checkpoint[name])

    # ------------------------------------------------------------ the loop

    def track(self, **parts):
        """Names what a checkpoint holds, each with a state_dict, and loads it where
        there is a checkpoint. From here on, signals end the run as said above. Raises
        UserError."""
        if self.checkpoint:
            with reading(self.path("checkpoint.pt")):
                for name, part in parts.items():
                    part.load_state_dict(self.checkpoint[name])
                set_generators(self.checkpoint["random"])
        else:
            processes.differ()
        self.tracked, self.checkpoint = parts, None
        reset_peak_memory(self.device)
        if self.changed:
            self.write_config()
        for what, now in (("threads", torch.get_num_threads()), ("processes", processes.size())):
            if self.config[what] != now:
                warnings.warn(f"the run began with {self.config[what]} {what}, now there are "
                              f"{now}: it goes on, but not bit for bit")
        for number in (signal.SIGINT, signal.SIGTERM):
            self.former_handlers[number] = signal.signal(number, self.receive)

    def receive(self, number, frame):
        if self.signal and number == signal.SIGINT and processes.size() == 1:  # torchrun repeats it
            raise KeyboardInterrupt  # the second time: at once
        self.signal = number

    def stop_if_asked(self):
        """Raises Stopped where a rank has received a signal; all ranks agree."""
        self.signal = max(processes.gather(self.signal))
        if self.signal:
            raise Stopped

    def epochs(self, until=lambda: False):
        """The epochs that are left, from 0, each until its `end_epoch`. until: whether
        the run has ended before its last."""
        while len(self.rows) < self.s.epochs and not until():
            yield len(self.rows)

    def steps(self, count):
        """The steps that are left of `count` in this epoch, with a progress bar where
        stdout is a terminal. After each, it may save, or stop."""
        self.count, saved = count, time.monotonic()
        self.begun = saved - self.seconds
        with progress_bar(count, self.done, self.title()) as self.bar:
            while self.done < count:
                yield self.done
                self.done += 1
                if self.bar is not None:
                    self.bar.update()
                read = self.done % self.s.log_every == 0
                if processes.size() > 1 and not read:
                    continue  # ranks agree, and wait for each other, now and then
                self.stop_if_asked()
                late = time.monotonic() - saved >= 60 * self.s.checkpoint_minutes
                if any(processes.gather(late)):
                    self.save_checkpoint()
                    saved = time.monotonic()
                elif read:
                    self.read_figures()
        self.read_figures()
        self.stop_if_asked()
        if "network" in self.tracked:
            processes.average_statistics(self.tracked["network"])

    def column(self, name):
        """A metric of every epoch."""
        return [row[name] for row in self.rows]

    def title(self):
        return f"epoch {len(self.rows) + 1}/{self.s.epochs}"

    def add(self, norm, *others, **figures):
        """Sum up what a step has computed: `figures`, scalar tensors, the first of them
        the loss. The `norm` of the gradient and `others`, tensors, have to be finite,
        too; with a scaler, which leaves out such a step, the norm may be infinite.
        Nobody waits for the device."""
        precision = self.tracked.get("precision")
        if precision is None or not precision.scaler.is_enabled():
            others = norm, *others
        values = torch.stack([value.detach().sum() for value in (*figures.values(), *others)])
        values = values.to(torch.float32 if values.device.type == "mps" else torch.float64)
        if self.totals is None and self.sums:
            self.totals = values.new_tensor([*self.sums.values()] + [0.0] * len(others))
        self.totals = values if self.totals is None else self.totals + values
        self.names = list(figures)

    def read_figures(self):
        """Read what was added, mean of all ranks. Raises UserError if not finite."""
        if self.totals is None:
            return
        values = processes.average([self.totals])[0].tolist()
        if not all(map(math.isfinite, values)):
            rates = [f"--{name}" for name in ("learning_rate", "arch_learning_rate")
                     if hasattr(self.s, name)]
            raise UserError(
                f"the loss or a gradient is not finite in epoch {len(self.rows) + 1}, step "
                f"{self.done} or before; the last checkpoint is of before and stays. Start a new "
                f"run with a lower {' or '.join(rates)}"
                + (", or without --amp" if self.s.amp else ""))
        self.sums = dict(zip(self.names, values))
        trouble = "precision" in self.tracked and self.tracked["precision"].trouble()
        if trouble and not self.troubled:  # said once
            self.log(f"note: {trouble}")
            self.troubled = True
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{values[0] / self.done:.3f}")

    def means(self):
        """The means of what was added over the steps of this epoch."""
        return {name: value / self.done for name, value in self.sums.items()}

    def watched(self, batches):
        """The same batches; a signal between them ends a run of one process."""
        for batch in batches:
            if processes.size() == 1:
                self.stop_if_asked()
            yield batch

    def end_epoch(self, row, lines):
        """Keep the epoch's `row` of metrics, save a checkpoint, and print `lines`."""
        title, seconds = self.title(), round(time.monotonic() - self.begun, 2)
        self.rows.append({**row, "seconds": seconds})
        self.done, self.sums, self.totals, self.seconds = 0, {}, None, 0.0
        text = io.StringIO()
        writer = csv.DictWriter(text, self.rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self.write("metrics.csv", text.getvalue())
        self.save_checkpoint()
        self.log(f"{title}  {seconds:.1f} s  {lines}")

    def save_checkpoint(self):
        """Of all that is tracked. machine: what computed it, and its largest memory."""
        self.read_figures()
        if self.done:
            self.seconds = time.monotonic() - self.begun
        if "network" in self.tracked:
            processes.average_statistics(self.tracked["network"])
        memory = max(peak_memory(self.device), self.machine.get("memory", 0))
        self.machine = {"device": name_of(self.device), "memory": memory}
        cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        self.save("checkpoint.pt", {
            "random": processes.gather([torch.get_rng_state(), cuda]), "rows": self.rows,
            "done": self.done, "sums": self.sums, "seconds": self.seconds, "machine": self.machine,
            **{name: part.state_dict() for name, part in self.tracked.items()}})


def set_generators(states):
    """Go on with this rank's random draws; new ones for another number of ranks."""
    same = len(states) == processes.size()
    cpu, cuda = states[processes.rank() if same else 0]
    torch.set_rng_state(cpu)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)
    if not same:
        processes.differ()


def progress_bar(count, done, title):
    """A context: a progress bar, or None if stdout is no terminal or without tqdm."""
    if sys.stdout.isatty() and processes.rank() == 0:
        with contextlib.suppress(ImportError):
            from tqdm import tqdm
            return tqdm(total=count, initial=done, desc=title, leave=False)
    return contextlib.nullcontext()
