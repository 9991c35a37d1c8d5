"""The loop of a run that cannot be lost. Its folder holds config.json (settings,
command lines, versions, the dataset), log.txt, metrics.csv (a row an epoch),
checkpoint.pt, and the script's own results, see folders.py. A script's loop is

    with run:
        run.track(network=network, sgd=sgd, ...)    # what a checkpoint holds; loads it
        for epoch in run.epochs():                  # those left, until run.over()
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
from engine.folders import Folder

LOOP = ("random", "rows", "done", "sums", "seconds", "machine")  # of a checkpoint


class Stopped(Exception):
    """SIGINT or SIGTERM has asked the run to end."""


class Run(Folder):
    """A folder and the loop that fills it. .rows: the metrics of the epochs that are
    done; .over: whether no epoch is left; .between_epochs: called when one is done and
    written."""

    def __init__(self, folder, config):
        super().__init__(folder, config)
        self.rows, self.tracked, self.checkpoint = [], {}, None
        self.over = lambda: len(self.rows) >= self.config["settings"]["epochs"]
        self.between_epochs = lambda: None
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
            if kind is not None and issubclass(kind, OSError):
                raise error
            expected = UserError, KeyboardInterrupt, SystemExit
            if kind and not issubclass(kind, expected) and not is_out_of_memory(error):
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

    def resume(self, settings):
        """Take over settings that have changed, which `track` writes when all is read,
        and read the checkpoint, if there is one. Raises UserError."""
        with processes.rank_0_first():
            for name in os.listdir(self.folder):
                if name.endswith(".part"):  # of a process that was killed
                    os.remove(self.path(name))
        self.changed = settings != self.config["settings"]
        if self.changed:
            self.config["settings"] = settings
            self.config["commands"].append(sys.argv)
        try:
            self.checkpoint = self.load("checkpoint.pt", LOOP)
            self.restore(self, "loop", {"loop": self.checkpoint})
        except FileNotFoundError:  # it was stopped before its first
            pass

    def check_fingerprint(self, fingerprint):
        """Raises UserError where the dataset is not the one that the run began with."""
        if fingerprint != self.config["fingerprint"]:
            raise UserError(f"the dataset is not the one that the run {self.folder!r} began with: "
                            f"its fingerprint is {fingerprint}, not {self.config['fingerprint']}; "
                            "name the right folder by --data")

    # ------------------------------------------------------------ the loop

    def track(self, **parts):
        """Names what a checkpoint holds, each with a state_dict, and loads it where
        there is a checkpoint. From here on, signals end the run as said above. Raises
        UserError."""
        if self.checkpoint:
            for name, part in parts.items():
                self.restore(part, name, self.checkpoint)
            set_generators(self.checkpoint["random"])
        else:
            processes.differ()
        self.tracked, self.checkpoint = parts, None
        reset_peak_memory(self.device())
        if self.changed:
            self.write_config()
        for what, now in (("threads", torch.get_num_threads()), ("processes", processes.size())):
            if self.config[what] != now:
                warnings.warn(f"the run began with {self.config[what]} {what}, now there are "
                              f"{now}: it goes on, but not bit for bit")
        for number in (signal.SIGINT, signal.SIGTERM):
            self.former_handlers[number] = signal.signal(number, self.receive)

    def restore(self, part, name, state):
        """Bring `part` to what `state` holds under `name`. Raises UserError."""
        try:
            if isinstance(part, torch.optim.Optimizer):
                check_optimizer(part, state[name])
            part.load_state_dict(state[name])
        except Exception as error:  # whatever a crafted state makes of it
            fault = " ".join(str(error).split())[:200]
            fault = f"it lacks {fault}" if isinstance(error, KeyError) else fault
            raise UserError(f"what {self.folder!r} holds does not fit its settings: "
                            f"{fault}") from None

    def load_state_dict(self, state):
        """Where the loop was. What is raised here, `restore` reports."""
        rows, done, sums, seconds = (state[key] for key in ("rows", "done", "sums", "seconds"))
        self.machine = dict(state["machine"])
        if not isinstance(rows, list) or [row["epoch"] for row in rows] != list(
                range(1, len(rows) + 1)):
            raise ValueError("the epochs of its rows are not 1, 2, ...")
        for row in rows:
            if row.keys() != rows[0].keys() or "seconds" not in row or not all(
                    value is None or type(value) in (int, float) and math.isfinite(value)
                    for value in row.values()):
                raise ValueError("its rows are not numbers in the same columns")
        if type(done) is not int or not 0 <= done < 2**31 or bool(done) != bool(sums):
            raise ValueError(f"{done!r} is no number of steps")
        if type(seconds) is not float or not 0 <= seconds < math.inf:
            raise ValueError(f"{seconds!r} is no number of seconds")
        for cpu, cuda in state["random"]:
            torch.Generator().set_state(cpu)  # or it raises
            if not (cuda is None or cuda.dtype == torch.uint8):
                raise ValueError("no state of a generator")
        if not state["random"]:
            raise ValueError("it has no state of a generator")
        self.rows, self.done, self.seconds = list(rows), done, seconds
        self.sums = {name: float(value) for name, value in sums.items()}

    def receive(self, number, frame):
        if self.signal and number == signal.SIGINT and processes.size() == 1:  # torchrun repeats it
            raise KeyboardInterrupt  # the second time: at once
        self.signal = number

    def stop_if_asked(self):
        """Raises Stopped where a rank has received a signal; all ranks agree."""
        self.signal = processes.maximum(self.signal)
        if self.signal:
            raise Stopped

    def epochs(self):
        """The epochs that are left, from 0, each until its `end_epoch`."""
        while not self.over():
            yield len(self.rows)
            if not self.over():
                self.between_epochs()

    def steps(self, count):
        """The steps that are left of `count` in this epoch, with a progress bar where
        stdout is a terminal. After each, it may save, or stop."""
        self.count, saved = count, time.monotonic()
        self.begun = saved - self.seconds
        settings = self.config["settings"]
        with progress_bar(count, self.done, self.title()) as self.bar:
            while self.done < count:
                yield self.done
                self.done += 1
                if self.bar is not None:
                    self.bar.update()
                read = self.done % settings["log_every"] == 0
                if processes.size() > 1 and not read:
                    continue  # ranks agree, and wait for each other, now and then
                self.stop_if_asked()
                if processes.maximum(time.monotonic() - saved
                                     >= 60 * settings["checkpoint_minutes"]):
                    self.save_checkpoint()
                    saved = time.monotonic()
                elif read:
                    self.read_figures()
        self.read_figures()
        self.stop_if_asked()
        if "network" in self.tracked:
            processes.average_statistics(self.tracked["network"])

    def column(self, name):
        """A metric of every epoch. Raises UserError."""
        if self.rows and name not in self.rows[0]:
            raise UserError(f"the epochs that {self.folder!r} holds have no column {name}")
        return [row[name] for row in self.rows]

    def title(self):
        return f"epoch {len(self.rows) + 1}/{self.config['settings']['epochs']}"

    def add(self, norm, *others, **figures):
        """Sum up what a step has computed: `figures`, scalar tensors, the first of them
        the loss. The `norm` of the gradient and `others`, tensors, have to be finite,
        too; with a scaler, which leaves out such a step, the norm may be infinite.
        Nobody waits for the device."""
        precision = self.tracked.get("precision")
        scaled = precision is not None and precision.scaler.is_enabled()
        others = others if scaled else (norm, *others)
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
            settings = self.config["settings"]
            rates = [f"--{name}" for name in ("learning_rate", "arch_learning_rate")
                     if name in settings]
            raise UserError(
                f"the loss or a gradient is not finite in epoch {len(self.rows) + 1}, step "
                f"{self.done} or before; the last checkpoint is of before and stays. Start a new "
                f"run with a lower {' or '.join(rates)}"
                + (", or without --amp" if settings["amp"] else ""))
        self.sums = dict(zip(self.names, values))
        trouble = "precision" in self.tracked and self.tracked["precision"].trouble()
        if trouble and not self.troubled:  # said once
            self.troubled = True
            self.log(f"note: {trouble}")
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
        self.seconds = time.monotonic() - self.begun
        title = self.title()
        if self.rows and self.rows[0].keys() != {*row, "seconds"}:
            raise UserError(f"the epochs that {self.folder!r} holds have other columns than "
                            f"{', '.join(row)}")
        self.rows.append({**row, "seconds": round(self.seconds, 2)})
        self.done, self.sums, self.totals, self.seconds = 0, {}, None, 0.0
        text = io.StringIO()
        writer = csv.DictWriter(text, self.rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        self.write("metrics.csv", text.getvalue())
        self.save_checkpoint()
        self.log(f"{title}  {self.rows[-1]['seconds']:.1f} s  {lines}")

    def device(self):
        """That of the network, or the CPU."""
        network = self.tracked.get("network")
        return torch.device("cpu") if network is None else next(network.parameters()).device

    def save_checkpoint(self):
        """Of all that is tracked. machine: what computed it, and its largest memory."""
        self.read_figures()
        if self.done:
            self.seconds = time.monotonic() - self.begun
        memory = max(peak_memory(self.device()), self.machine.get("memory", 0))
        self.machine = {"device": name_of(self.device()), "memory": memory}
        if "network" in self.tracked:
            processes.average_statistics(self.tracked["network"])
        self.save("checkpoint.pt", {
            "random": processes.gather(generators()), "rows": self.rows, "done": self.done,
            "sums": self.sums, "seconds": self.seconds, "machine": self.machine,
            **{name: part.state_dict() for name, part in self.tracked.items()}})


def generators():
    """The states of this rank's generators: on the CPU, on its GPU."""
    return [torch.get_rng_state(),
            torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None]


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
    if not sys.stdout.isatty() or processes.rank() > 0:
        return contextlib.nullcontext()
    try:
        from tqdm import tqdm
    except ImportError:
        return contextlib.nullcontext()
    return tqdm(total=count, initial=done, desc=title, leave=False)


def check_optimizer(optimizer, state):
    """Raises where `state` is not of this optimizer: load_state_dict would take it, and
    a step would fail."""
    own = optimizer.state_dict()["param_groups"]
    for group, like in zip(state["param_groups"], own, strict=True):
        if {**group, "lr": 0} != {**like, "lr": 0} or not 0 <= group["lr"] < math.inf:
            raise ValueError("an optimizer has other settings")
    names = {"momentum_buffer"} if "momentum" in own[0] else {"step", "exp_avg", "exp_avg_sq"}
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for index, values in state["state"].items():
        shape = weights[index].shape
        if values.keys() != names or values.get("step", torch.tensor(0)) < 0 or not all(
                value.shape == (() if name == "step" else shape) and value.isfinite().all()
                and value.layout == torch.strided and value.dtype == torch.float32
                for name, value in values.items()):
            raise ValueError("what an optimizer keeps of a weight is not of its shape and type")
