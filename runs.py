"""What surrounds both scripts: one run on disk, command lines, errors that a user can mend, the device.

A run is a folder:  config.json (settings, command line, versions), log.txt, metrics.csv (a row an epoch),
checkpoint.pt, and the script's own results. Files are written to a temporary name, then renamed.
"""
import argparse
import csv
import ctypes
import io
import json
import math
import os
import platform
import shlex
import sys
import time
import warnings

import torch
from tqdm import tqdm

from genotypes import GenotypeError, nearest


class UserError(Exception):
    """Something the user can mend: one line that says what is wrong, what was given and what would work."""


# The flags that both scripts have: what a run is, apart from what it computes
RUN_DEFAULTS = dict(seed=0, device="auto", amp=False, recompute=False, compile=False, runs="runs", name=None)


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, which suggest the nearest flag; flags not given stay out of the result."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise UserError(message + "; --help lists all flags")

    def parse_args(self, arguments=None):
        settings, unknown = self.parse_known_args(arguments)
        if unknown:
            flag = unknown[0].split("=")[0]
            raise UserError(f"unknown argument {flag!r}; {nearest(flag, self._option_string_actions)}"
                            if flag.startswith("-") else f"unexpected argument {flag!r}; --help lists all flags")
        return vars(settings)


def number(kind, low, high=float("inf"), open_ends=False):
    """A type for argparse: an int or float from `low` to `high`, or strictly between them (`open_ends`)."""
    def parse(text):
        try:
            value = kind(text)
            if math.isfinite(value) and (low < value < high or (not open_ends and value in (low, high))):
                return value
        except ValueError:
            pass
        what = {int: "a whole number", float: "a number"}[kind]
        bounds = f"above {low} and below {high}" if open_ends else f"from {low} to {high}"
        raise argparse.ArgumentTypeError(f"expected {what} {bounds.replace(' to inf', ' up')}, got {text!r}")
    return parse


def one_of(names):
    """A type for argparse: one of `names`."""
    def parse(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f"unknown {text!r}; {nearest(text, names)}")
        return text
    return parse


def add_flags(parser, defaults, by_dataset, **kinds):
    """One flag for each of `kinds`: name=(type, help); the help shows the default, and what it is for a dataset.

    defaults: {flag: value}; by_dataset: {dataset: {flag: value}}.
    """
    for name, (kind, text) in kinds.items():
        notes = [] if defaults[name] is None else [f"default {defaults[name]}"]
        notes += [f"{dataset} {values[name]}" for dataset, values in by_dataset.items() if name in values]
        text = text.replace("%", "%%") + (f" ({'; '.join(notes)})" if notes else "")
        if kind is bool:
            parser.add_argument("--" + name, action=argparse.BooleanOptionalAction, help=text)
        else:
            parser.add_argument("--" + name, type=kind, metavar="X", help=text)


def add_run_flags(parser):
    """The flags of RUN_DEFAULTS, and --resume."""
    add_flags(parser, RUN_DEFAULTS, {},
        seed=(number(int, 0, 2**31), "of every random draw"),
        device=(str, "auto, cpu, cuda, cuda:1, mps"),
        amp=(bool, "forward passes in bfloat16, or in float16 where a GPU has no bfloat16"),
        recompute=(bool, "compute activations again in the backward pass: far less memory, more time"),
        compile=(bool, "torch.compile: minutes to start, for long runs"),
        runs=(str, "folder in which runs are kept"),
        name=(str, "the run's folder in it; without it, one named after the dataset and the time"))
    parser.add_argument("--resume", metavar="RUN", help="folder of a run to go on with")


def main(function):
    """Call a script's `function`, with every user error as one line on stderr and exit code 2."""
    def warn(message, *_):
        print(f"note: {message}", file=sys.stderr)
    warnings.showwarning = warn
    try:
        sys.exit(function())
    except (UserError, GenotypeError) as error:
        message = str(error)
    except OSError as error:  # an unwritable folder, a full disk
        message = f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    sys.exit(2)


def choose_device(name="auto"):
    """The torch.device `name`; "auto": CUDA, else MPS (Apple), else the CPU. Raises UserError."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        name = next(kind for kind, there in available.items() if there)
    try:
        device = torch.device(name)
        if available[device.type]:
            torch.empty(0, device=device)
            if device.type == "cpu" and sys.platform == "linux":
                _keep_freed_memory()
            return device
    except (RuntimeError, KeyError):
        pass
    there = ", ".join(kind for kind, there in available.items() if there)
    raise UserError(f"--device {name!r} is not there; this machine has: {there}")


def cosine(epoch, epochs, high, low=0.0):
    """The learning rate of an epoch on half a cosine from `high`, in epoch 0, down to `low`."""
    return low + (high - low) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def progress(steps, epoch, epochs):
    """range(steps) with a progress bar, where stdout is a terminal."""
    return tqdm(range(steps), f"epoch {epoch + 1}/{epochs}", leave=False, disable=not sys.stdout.isatty())


def resumed_settings(run, given, may_change):
    """The run's settings with the flags `given`, which may differ in `may_change` alone. Raises UserError."""
    settings = run.config["settings"]
    for name, value in given.items():
        if name in settings and name not in may_change and value != settings[name]:
            raise UserError(f"--{name} {value} contradicts the run {run.folder!r}, which has {settings[name]}: leave "
                            "the flag out, or start a new run")
    return {**settings, **given}


def resume(script, given, may_change):
    """The run that the flags `given` resume, its settings and its checkpoint. Raises UserError."""
    run = Run.open(given["resume"], script)
    settings, state = resumed_settings(run, given, may_change), run.load("checkpoint.pt")
    if settings["epochs"] < len(state["rows"]):
        raise UserError(f"--epochs {settings['epochs']}: the run has done {len(state['rows'])} already")
    return run, settings, state


def _keep_freed_memory():
    """Have glibc keep freed memory, which it else returns to the system and gets back page by page at every step."""
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt:
        mallopt(trim_threshold, 2 ** 31 - 1)
        mallopt(mmap_max, 0)


class Precision:
    """Where the forward pass computes in 16 bits (`amp`): in bfloat16, or where there is none in float16, whose small
    gradients a scaler keeps above zero. Parameters, gates and losses stay float32."""

    def __init__(self, device, amp):
        self.device, self.amp = device, amp
        half = amp and device.type == "cuda" and not torch.cuda.is_bf16_supported()
        self.dtype = torch.float16 if half else torch.bfloat16
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self.loss_scale = self.scaler.get_scale if half else None

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.amp)

    def descend(self, loss, optimizer, parameters, largest_norm):
        """A step of `optimizer` on `loss`, the gradients of `parameters` clipped to a norm of `largest_norm`."""
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(parameters, largest_norm)
        self.scaler.step(optimizer)
        self.scaler.update()


class Run:
    """The folder of one run. `config`: its settings and where they came from, a dict of JSON values."""

    def __init__(self, folder, config):
        self.folder, self.config = folder, config

    @classmethod
    def create(cls, root, name, script, settings):
        """A new folder <root>/<name>, or one named after script, dataset and time. Raises UserError, OSError."""
        name = name or time.strftime(f"{script}-{settings['dataset']}-%Y%m%d-%H%M%S")
        folder = os.path.join(root, name)
        if os.path.exists(folder):
            raise UserError(f"{folder!r} exists already: give another --name, or --resume {folder} to go on with it")
        os.makedirs(folder)
        run = cls(folder, {"script": script, "settings": settings, "command": sys.argv, "torch": torch.__version__,
                           "python": platform.python_version(), "machine": platform.platform()})
        run.write("config.json", json.dumps(run.config, indent=1))
        return run

    @classmethod
    def open(cls, folder, script):
        """The run in `folder`, which `script` made. Raises UserError."""
        try:
            with open(os.path.join(folder, "config.json")) as file:
                config = json.load(file)
            made_by, _ = config["script"], config["settings"]
        except (OSError, ValueError, KeyError, TypeError):
            raise UserError(f"{folder!r} is not the folder of a run: it has no readable config.json") from None
        if made_by != script:
            raise UserError(f"{folder!r} is a run of {made_by}.py, not of {script}.py")
        return cls(folder, config)

    def path(self, name):
        return os.path.join(self.folder, name)

    def write(self, name, content):
        """Write the file `name` whole or not at all. content: text or bytes."""
        part = self.path(name + ".part")
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, self.path(name))

    def log(self, line):
        """Print a line and keep it in log.txt."""
        print(line, flush=True)
        with open(self.path("log.txt"), "a") as file:
            file.write(line + "\n")

    def write_metrics(self, rows):
        """metrics.csv from a list of dicts with the same keys."""
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        self.write("metrics.csv", text.getvalue())

    def save(self, name, state):
        """Write tensors and plain values as a torch file."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.write(name, buffer.getvalue())

    def load(self, name):
        """What `save` wrote, on the CPU; code in the file is never run. Raises UserError."""
        try:
            return torch.load(self.path(name), map_location="cpu", weights_only=True)
        except FileNotFoundError:
            raise UserError(f"{self.folder!r} has no {name}: the run stopped before its first epoch was done") from None
        except Exception as error:  # torch raises many kinds for a damaged or a foreign file
            raise UserError(f"{self.path(name)} cannot be read: {str(error).split(chr(10))[0][:200]}") from None

    def go_on(self, task, epochs):
        """Run the epochs that `task` has not done yet; after each, save it and log a line. Returns the exit code.

        task: has .rows, the metrics of each epoch done; .epoch(n), which does one and adds its row; .line(), which
        describes it; .state_dict(); and .save_results(run).
        """
        try:
            for epoch in range(len(task.rows), epochs):
                task.epoch(epoch)
                task.save_results(self)
                self.write_metrics(task.rows)
                self.save("checkpoint.pt", task.state_dict())
                self.log(f"epoch {epoch + 1}/{epochs}  {task.line()}  {task.rows[-1]['seconds']:.1f} s")
        except KeyboardInterrupt:
            self.log(f"stopped after {len(task.rows)} whole epochs; " + (
                f"go on: python {self.config['script']}.py --resume {shlex.quote(self.folder)}" if task.rows else
                "there is nothing to go on with"))
            return 130
        return 0
