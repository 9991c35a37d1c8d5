"""How a script begins: a new run of the flags given, or one that goes on."""
import importlib.util
import sys
from argparse import Namespace

import torch

from engine import data, recipes
from engine.devices import choose_device
from engine.flags import Parser, resumed_settings
from engine.loop import Run

# What a run does without where a package is not installed
OPTIONAL = {"tqdm": "the progress bar", "matplotlib": "figures"}


def parser_of(description, table, kind, presets={}):
    """The Parser of a script with this table of flags. kind: its half of a Recipe,
    "search" or "eval"; presets: {name: {flag: value}}, for the help."""
    differ = {name: getattr(found, kind) for name, found in recipes.RECIPES.items()}
    parser = Parser(description + recipes.RULE, table, {**presets, **differ})
    parser.add_argument("--resume", metavar="RUN", help="folder of a run to go on with")
    return parser


def new_run(script, defaults, kind, given, fixed, check):
    """A new Run of the flags `given`; `defaults` holds where its dataset's recipe
    does not change them. fixed: flags that no recipe changes; check(s, dataset) raises
    UserError."""
    device = choose_device(given.get("device", "auto"))
    dataset, why = data.load_asked(given, device)
    suggested = {name: value for name, value in getattr(recipes.recipe(dataset), kind).items()
                 if name not in fixed}
    s = Namespace(**{**defaults, **suggested, **given, "dataset": dataset.name})
    check(s, dataset)
    torch.set_num_threads(s.threads or torch.get_num_threads())
    run = Run.create(script, s, fingerprint=data.fingerprint(dataset), classes=dataset.classes,
                     shape=list(dataset.images.shape[1:]))
    run.device, run.dataset = device, dataset
    if why:
        run.log(f"dataset: {why}")
    if suggested or s.dataset in ("folder", "npz", "imagenet"):
        run.log(recipes.describe(dataset, s, suggested))
    unneeded = [f"--{name}" for name in ("recompute", "graphs") if s.plain and getattr(s, name)]
    if unneeded:
        run.log(f"left out, since --plain computes as the pages say: {', '.join(unneeded)}")
    missing = [f"{what} ({package})" for package, what in OPTIONAL.items()
               if importlib.util.find_spec(package) is None]
    if missing:
        run.log(f"left out, since the package is not installed: {', '.join(missing)}; pip install "
                "-r requirements.txt")
    return run


def old_run(script, folder, given):
    """The Run in `folder`, with what may change as `given`, still without its
    dataset."""
    run = Run.open(folder, script)
    settings = resumed_settings(run, given)
    run.changed = settings != vars(run.s)
    run.s = Namespace(**settings)
    if run.changed:
        run.config["commands"].append(sys.argv)
    torch.set_num_threads(run.s.threads or torch.get_num_threads())
    run.device = choose_device(run.s.device)
    return run
