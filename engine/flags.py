"""The command line of the scripts: tables of flags, settings, errors of one line.

A script has one table of its flags: {group: {name: (default, kind, help)}}. A kind
turns a text into a value, or refuses it; the settings that a run keeps in config.json
are checked by the same kinds.
"""
import argparse
import difflib
import math
import os
import signal
import sys
import time
import warnings

import torch


class UserError(Exception):
    """Something the user can fix: one line that says what is wrong, what was given and
    what would work."""


def nearest(word, names):
    """'did you mean ...?' with the name most like `word`; if none is, all `names`."""
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower()[:100], lower, 1)
    return f"did you mean {lower[close[0]]!r}?" if close else "choose from " + ", ".join(names)


# ---------------------------------------------------------------- kinds of flags: str, bool, and

def number(kind, low, high=math.inf, open_ends=False):
    """An int or float (`kind`) from `low` to `high`, or strictly between them
    (`open_ends`); below 1e30, so that single precision holds it."""
    def parse(value):
        try:
            result = kind(value)
            inside = low < result < high or (not open_ends and result in (low, high))
            if abs(result) <= 1e30 and inside:
                return result
        except (ValueError, OverflowError):
            pass
        what = {int: "a whole number", float: "a number"}[kind]
        value = value if len(str(value)) < 40 else str(value)[:20] + "..."
        bounds = f"above {low} and below {high}" if open_ends else f"from {low} to {high}"
        bounds = bounds.replace(" to inf", " up").replace(" and below inf", "")
        raise argparse.ArgumentTypeError(f"expected {what} {bounds}, got {value!r}")
    parse.kind = kind
    return parse


def one_of(names):
    """One of `names`."""
    def parse(text):
        if text not in names:
            raise argparse.ArgumentTypeError(f"unknown {text[:100]!r}; {nearest(text, names)}")
        return text
    return parse


def some_of(names):
    """Different ones of `names`, separated by commas; put into the order of `names`."""
    def parse(text):
        chosen = text.split(",")
        for name in chosen:
            one_of(names)(name)
            if chosen.count(name) > 1:
                raise argparse.ArgumentTypeError(f"{name!r} is named twice")
        return ",".join(name for name in names if name in chosen)
    return parse


def path_name(text):
    """A path that the system can have."""
    try:
        if b"\0" not in os.fsencode(text) and len(os.fsencode(text)) < 4000:
            return text
    except UnicodeEncodeError:
        pass
    raise argparse.ArgumentTypeError(f"expected a path, got {text!r}")


def folder_name(text):
    """The name of one folder, not a path."""
    if text in ("", ".", "..") or os.path.basename(path_name(text)) != text or len(text) > 100:
        raise argparse.ArgumentTypeError(
            f"expected the name of a folder, got {text!r}; --runs says where it goes")
    return text


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
    "runs": ("runs", path_name, "folder in which runs are kept"),
    "name": (None, folder_name, "the run's folder in it; without it, one named after the time"),
}
# What a resumed run may have otherwise
MAY_CHANGE = {"epochs", "threshold", "edges_per_node", "ops_per_edge", "ops_per_layer",
              "keep_skips", "device", "threads", "data", "plain", "graphs", "checkpoint_minutes",
              "log_every", "workers", "gap_every", "figures_every"}


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, which suggest the nearest flag; flags not given
    stay out of the result, a dict.

    table: the flags by groups; recipes: {recipe: {flag: value}}, the defaults that
    differ, for the help. .flags: those of all groups.
    """

    def __init__(self, description, table={}, recipes={}):
        super().__init__(description=description, allow_abbrev=False,
                         argument_default=argparse.SUPPRESS,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
        self.flags = {}
        for title, flags in table.items():
            self.flags.update(flags)
            group = self.add_argument_group(title)
            for name, (default, kind, text) in flags.items():
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
            if flag.startswith("-"):
                known = nearest(flag, self._option_string_actions)
                raise UserError(f"unknown argument {flag!r}; {known}")
            raise UserError(f"unexpected argument {flag!r}; --help lists all flags")
        for name, value in vars(settings).items():
            if value == []:  # what argparse makes of --name=--
                raise UserError(f"--{name} has no value; --help lists all flags")
        return vars(settings)

    def defaults(self):
        return {name: default for name, (default, _, _) in self.flags.items()}


def refuse(given, names, why):
    """Raises UserError where one of the flags `names` is `given`."""
    for name in given:
        if name in names:
            raise UserError(f"--{name} {why}: leave it out")


# ---------------------------------------------------------------- the settings of a run

def resumed_settings(run, parser, given):
    """The run's settings with the flags `given`, which may differ in MAY_CHANGE alone.
    Raises UserError."""
    settings = check_settings(run.config["settings"], run.path("config.json"), parser)
    for name, value in given.items():
        if name in settings and name not in MAY_CHANGE and value != settings[name]:
            raise UserError(f"--{name} {value} contradicts the run {run.folder!r}, which has "
                            f"{settings[name]}: leave the flag out, or start a new run")
    if given.get("epochs", math.inf) < settings["epochs"]:
        raise UserError(f"--epochs {given['epochs']}: the run has {settings['epochs']}, which can "
                        "only be raised")
    return {**settings, **{name: value for name, value in given.items() if name in settings}}


def check_settings(kept, file, parser):
    """The settings `kept` in a `file`, each of its flag's kind. Raises UserError."""
    lacking, unknown = set(parser.flags) - set(kept), set(kept) - set(parser.flags)
    faults = [f"it lacks {', '.join(sorted(lacking))}"] if lacking else []
    faults += [f"it has {', '.join(sorted(unknown))}"] if unknown else []
    if faults:
        raise UserError(f"{file}: {' and '.join(faults)}; it is of another version of this code, "
                        "or was edited")
    return {name: check_value(file, name, parser.flags[name][1], value)
            for name, value in kept.items()}


def check_value(file, name, kind, value):
    """The value of one setting. Raises UserError."""
    expected = getattr(kind, "kind", bool if kind is bool else str)
    if value is None and name == "name":
        return None
    if value is None:
        raise UserError(f"{file}: {name} must have a value")
    if type(value) is int and expected is float:
        value = float(value) if abs(value) < 2**53 else math.nan
    try:
        if type(value) is not expected:
            words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
            raise argparse.ArgumentTypeError(f"expected {words[expected]}, got {value!r}")
        return kind(value)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{file}: --{name}: {error}") from None


# ---------------------------------------------------------------- errors

def main(function):
    """Call a script's `function`; a user error is a line on stderr and exit code 2."""
    def tell(text):
        print(text.replace("\n", "\\n"), file=sys.stderr)

    rank = int(os.environ.get("RANK", 0))  # of several processes, see processes.py

    for name in ("stdout", "stderr"):  # they may be closed, or of few characters
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
        if hasattr(getattr(sys, name), "reconfigure"):
            getattr(sys, name).reconfigure(errors="backslashreplace")
    warnings.showwarning = lambda message, *_: rank == 0 and tell(f"note: {message}")
    try:
        code = function()
        sys.stdout.flush()
        sys.exit(code)
    except KeyboardInterrupt:
        print("\nstopped at once", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except UserError as error:
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


def is_out_of_memory(error):
    """Whether memory has run out: of Python, of a GPU, of PyTorch's allocator on the CPU."""
    return (isinstance(error, (MemoryError, torch.OutOfMemoryError))
            or isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def leave(error):
    """Say which package is not installed, and end."""
    print(f"{os.path.basename(sys.argv[0])}: error: {error.name} is not installed: pip install -r "
          "requirements.txt", file=sys.stderr)
    sys.exit(2)


def first_line(error):
    """What an exception says first, or its name."""
    return str(error).strip().split("\n")[0][:200] or type(error).__name__


def reason(error):
    """What an OSError says, in one line."""
    return f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")
