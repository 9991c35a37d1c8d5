"""The command line of the scripts: flags with their types, settings, errors of one line.

Both scripts, and the settings that a run keeps, are read by the same parser: whatever is refused in a flag is refused in a
file as well.
"""
import argparse
import math
import os
import signal
import sys
import warnings

from genotypes import GenotypeError, nearest


class UserError(Exception):
    """Something the user can mend: one line that says what is wrong, what was given and what would work."""


# The flags that both scripts have: what a run is, apart from what it computes
RUN_DEFAULTS = dict(seed=0, device="auto", amp=False, recompute=False, compile=False, checkpoint_minutes=10.0, runs="runs",
                    name=None)


class Parser(argparse.ArgumentParser):
    """argparse with errors of one line, which suggest the nearest flag; flags not given stay out of the result."""

    def __init__(self, description):
        super().__init__(description=description, allow_abbrev=False, argument_default=argparse.SUPPRESS,
                         formatter_class=argparse.RawDescriptionHelpFormatter)
        self.settings = set()  # the flags that make up a run

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


def folder_name(text):
    """A type for argparse: the name of one folder, not a path."""
    if text in ("", ".", "..") or os.path.basename(text) != text or "\0" in text:
        raise argparse.ArgumentTypeError(f"expected the name of a folder, got {text!r}; --runs says where it goes")
    return text


def add_flags(parser, defaults, by_dataset, **kinds):
    """One flag for each of `kinds`: name=(type, help); the help shows the default, and what it is for a dataset.

    defaults: {flag: value}; by_dataset: {dataset: {flag: value}}.
    """
    parser.settings.update(kinds)
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
        checkpoint_minutes=(number(float, 0), "between checkpoints inside an epoch; every epoch ends with one"),
        runs=(str, "folder in which runs are kept"),
        name=(folder_name, "the run's folder in it; without it, one named after the dataset and the time"))
    parser.add_argument("--resume", metavar="RUN", help="folder of a run to go on with")


def refuse(given, names, why):
    """Raises UserError where one of the flags `names` is `given`."""
    for name in given:
        if name in names:
            raise UserError(f"--{name} {why}: leave it out")


def resumed_settings(run, parser, given, may_change):
    """The run's settings with the flags `given`, which may differ in `may_change` alone. Raises UserError."""
    settings = check_settings(run, parser)
    for name, value in given.items():
        if name in settings and name not in may_change and value != settings[name]:
            raise UserError(f"--{name} {value} contradicts the run {run.folder!r}, which has {settings[name]}: leave "
                            "the flag out, or start a new run")
    if given.get("epochs", math.inf) < settings["epochs"]:
        raise UserError(f"--epochs {given['epochs']}: the run has {settings['epochs']}, which can only be raised")
    return {**settings, **{name: value for name, value in given.items() if name in settings}}


def check_settings(run, parser):
    """The settings in the run's config.json, each as the flag of its name reads it. Raises UserError."""
    kept, arguments, file = run.config["settings"], [], run.path("config.json")
    for name, value in kept.items():
        if isinstance(value, bool):
            arguments.append(f"--{'' if value else 'no-'}{name}")
        elif value is not None:
            arguments.append(f"--{name}={value}")
    lacking, unknown = parser.settings - set(kept), set(kept) - parser.settings
    if lacking or unknown:
        raise UserError(f"{file}: " + " and ".join(
            f"{what} {', '.join(sorted(names))}" for what, names in (("it lacks", lacking), ("it has", unknown)) if names)
            + "; it is of another version of this code, or was edited")
    try:
        settings = {"name": None, **parser.parse_args(arguments)}
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if set(settings) != parser.settings:
        raise UserError(f"{file}: {', '.join(sorted(parser.settings - set(settings)))} must have a value")
    return settings


def main(function):
    """Call a script's `function`, with every user error as one line on stderr and exit code 2."""
    def warn(message, *_):
        print(f"note: {message}", file=sys.stderr)
    warnings.showwarning = warn
    try:
        sys.exit(function())
    except KeyboardInterrupt:
        print("\nstopped at once", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except (UserError, GenotypeError) as error:
        message = str(error)
    except OSError as error:  # an unwritable folder, a full disk
        message = reason(error)
    print(f"{os.path.basename(sys.argv[0])}: error: {message}", file=sys.stderr)
    sys.exit(2)


def reason(error):
    """What an OSError says, in one line."""
    return f"{error.filename or ''}: {error.strerror or error}".lstrip(": ")
