"""The command line: tables of flags, settings, errors of one line.

A script has one table of its flags: {group: {name: (default, kind, help)}}. A kind is
str, bool, or a function that turns a text into a value or refuses it.
"""
import argparse
import functools
import math
import os
import signal
import sys
import time
import warnings

import torch

from spaces.texts import GenotypeError, choose, nearest


class UserError(Exception):
    """Something the user can fix: one line that says what is wrong, what was given and
    what would work."""


def number(kind, low, high=math.inf, open_ends=False):
    """An int or float (`kind`) from `low` to `high`, or strictly between them
    (`open_ends`); below 1e30, so that single precision holds it."""
    def parse(text):
        try:
            value = kind(text)
            if abs(value) <= 1e30 and (low < value < high
                                       or not open_ends and value in (low, high)):
                return value
        except (ValueError, OverflowError):
            pass
        bounds = f"above {low} and below {high}" if open_ends else f"from {low} to {high}"
        bounds = bounds.replace(" to inf", " up").replace(" and below inf", "")
        what = "a whole number" if kind is int else "a number"
        raise argparse.ArgumentTypeError(f"expected {what} {bounds}, got {text[:40]!r}")
    return parse


def one_of(names):
    """One of `names`."""
    def parse(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f"unknown {text[:100]!r}; {choose(text, names)}")
        return text
    return parse


def some_of(names):
    """Different ones of `names`, separated by commas; put into the order of `names`."""
    def parse(text):
        chosen = [one_of(names)(name) for name in text.split(",")]
        if len({*chosen}) < len(chosen):
            raise argparse.ArgumentTypeError(f"a name is there twice in {text[:100]!r}")
        return ",".join(name for name in names if name in chosen)
    return parse


# The flags of both scripts that say how a run is done, apart from what it computes
RUN_FLAGS = {
    "seed": (0, number(int, 0, 2**31), "of every random draw"),
    "device": ("auto", str, "auto, cpu, cuda, cuda:1, mps"),
    "threads": (0, number(int, 0, 1024), "CPU threads; 0: PyTorch's choice"),
    "plain": (False, bool, "compute everything as the pages say, by plain PyTorch: slow"),
    "amp": (False, bool, "forward passes in bfloat16, or float16 where a GPU has no bfloat16"),
    "graphs": (False, bool, "on a GPU the network as CUDA graphs: faster, in more memory"),
    "recompute": (False, bool, "compute activations again in the backward pass: less memory"),
    "checkpoint_minutes": (10.0, number(float, 0), "between checkpoints inside an epoch"),
    "log_every": (25, number(int, 1), "steps between readings of the loss from the device"),
    "runs": ("runs", os.path.expanduser, "folder in which runs are kept"),
    "name": (None, str, "the run's folder in it; without it, one named after the time"),
}
# What a resumed run may have otherwise
MAY_CHANGE = {"epochs", "threshold", "edges_per_node", "ops_per_edge", "ops_per_layer",
              "keep_skips", "device", "threads", "data", "plain", "graphs", "checkpoint_minutes",
              "log_every", "workers", "gap_every", "figures_every"}
# Flags of DARTS and its family that have another name here
RENAMED = {"--gpu": "--device", "--save": "--name", "--model_path": "--evaluate",
           "--report_freq": "--log_every", "--lr": "--learning_rate", "--genotype": "--arch",
           "--set": "--dataset", "--tmp_data_dir": "--data", "--aux_loss_weight": "--w01"}


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, which suggest the nearest flag; flags not given
    stay out of the result, a dict.

    table: the flags by groups; recipes: {recipe: {flag: value}}, the defaults that
    differ, for the help. .defaults: {flag: value}.
    """

    def __init__(self, description, table={}, recipes={}):
        super().__init__(description=description, allow_abbrev=False,
                         argument_default=argparse.SUPPRESS,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
        self.defaults = {}
        for title, flags in table.items():
            group = self.add_argument_group(title)
            for name, (default, kind, text) in flags.items():
                self.defaults[name] = default
                notes = [] if default in (None, "") else [f"default {default}"]
                notes += [f"{recipe} {values[name]}" for recipe, values in recipes.items()
                          if name in values]
                text = text.replace("%", "%%") + (f" ({'; '.join(notes)})" if notes else "")
                how = (dict(action=argparse.BooleanOptionalAction) if kind is bool
                       else dict(type=kind, metavar="X"))
                group.add_argument("--" + name, help=text, **how)

    def error(self, message):
        raise UserError(message + "; --help lists all flags")

    def parse_args(self, arguments=None):
        settings, unknown = self.parse_known_args(arguments)
        if unknown:
            flag = unknown[0].split("=")[0]
            near = flag[:1] == "-" and nearest(RENAMED.get(flag, flag), self._option_string_actions)
            self.error(f"unknown argument {flag!r}" + (f"; {near}" if near else ""))
        return vars(settings)


def refuse(given, names, why):
    """Raises UserError where one of the flags `names` is `given`."""
    for name in given:
        if name in names:
            raise UserError(f"--{name} {why}: leave it out")


def resumed_settings(run, given):
    """The run's settings with the flags `given`, which may differ in MAY_CHANGE alone.
    Raises UserError."""
    settings = vars(run.s)
    for name, value in given.items():
        if name in settings and name not in MAY_CHANGE and value != settings[name]:
            raise UserError(f"--{name} {value} contradicts the run {run.folder!r}, which has "
                            f"{settings[name]!r}: leave the flag out, or start a new run")
    if given.get("epochs", math.inf) < settings["epochs"]:
        raise UserError(f"--epochs {given['epochs']}: the run has {settings['epochs']}, which can "
                        "only be raised")
    return {**settings, **{name: value for name, value in given.items() if name in settings}}


def main(function):
    """Call a script's `function`; what the user can mend is a line on stderr and exit
    code 2."""
    rank = int(os.environ.get("RANK", 0))  # of several processes, see processes.py
    note = functools.cache(tell)  # once
    warnings.showwarning = lambda message, *_: rank == 0 and note(f"note: {message}")
    for name in ("stdout", "stderr"):  # they may be closed, or of few characters
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        code = function()
        sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        print("\nstopped at once", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (UserError, GenotypeError) as error:
        message = str(error)
    except ModuleNotFoundError as error:
        leave(error)
    except OSError as error:  # an unwritable folder, a full disk, a reader that has gone
        message = reason(error)
        if isinstance(error, BrokenPipeError):  # or Python would complain once more at its end
            sys.stdout = open(os.devnull, "w")
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        message = ("out of memory: lower --batch_size, --init_channels or --width, or use "
                   "--recompute; a checkpoint that was written stays")
    if rank > 0:  # what rank 0 finds as well, it says, and torchrun ends the others meanwhile
        time.sleep(2)
        message = f"rank {rank}: {message}"
    tell(f"{os.path.basename(sys.argv[0])}: error: {message}")
    sys.exit(2)


def leave(error):
    """Say which package is not installed, and end."""
    tell(f"{os.path.basename(sys.argv[0])}: error: {error.name} is not installed: pip install -r "
         "requirements.txt")
    sys.exit(2)


def tell(text):
    """A line on stderr."""
    print(text.replace("\n", "\\n"), file=sys.stderr)


def is_out_of_memory(error):
    """Whether memory has run out: of Python, a GPU, PyTorch's allocator on the CPU."""
    return (isinstance(error, (MemoryError, torch.OutOfMemoryError))
            or isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def first_line(error):
    """What an exception says first, or its name."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def reason(error):
    """What an OSError says, in one line."""
    return f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")
