"""How a script begins: a new run of the flags given, or one that goes on."""
import argparse
import importlib.util

import torch

from engine import data, recipes
from engine.devices import choose_device
from engine.flags import Parser, refuse, resumed_settings
from engine.loop import Run

# What a run does without where a package is not installed
OPTIONAL = {"tqdm": "the progress bar", "matplotlib": "figures"}


class Script:
    """A script as a function of no argument, which main calls.

    name: of its file; table: its flags; recipe: its half of a Recipe, "search" or
    "eval"; prepare: from the flags given to those flags, the defaults that they change,
    and the names of flags that are of no use then; check(s, dataset): raises UserError;
    work(run, s, dataset): does the run and returns the exit code; presets: {name:
    {flag: value}} for the help; over(s, rows), again(run, s): whether a run has ended,
    and what to do then on --resume; evaluate(run, s, dataset): what --evaluate does.
    """

    def __init__(self, name, description, table, recipe, prepare, check, work, presets={},
                 over=None, again=None, evaluate=None):
        self.name, self.description, self.table, self.recipe = name, description, table, recipe
        self.prepare, self.check, self.work, self.presets = prepare, check, work, presets
        self.over, self.again, self.evaluate = over, again, evaluate

    def parser(self):
        """The Parser of its flags."""
        differ = {name: getattr(found, self.recipe) for name, found in recipes.RECIPES.items()}
        return Parser(self.description + recipes.RULE, self.table, {**self.presets, **differ})

    def __call__(self):
        parser = self.parser()
        parser.add_argument("--resume", metavar="RUN", help="folder of a run to go on with")
        if self.evaluate:
            parser.add_argument("--evaluate", metavar="RUN", help="folder of a run to test")
        given = parser.parse_args()
        if "evaluate" in given:
            refuse(given, ["resume"], "and --evaluate are two things")
            return self.test(parser, given)
        return self.resume(parser, given) if "resume" in given else self.start(parser, given)

    def start(self, parser, given):
        """A new run with the flags `given`."""
        given, changed, unused = self.prepare(given)
        dataset, why = data.load_asked(given, choose_device(given.get("device", "auto")))
        suggested = getattr(recipes.recipe(dataset), self.recipe)
        settings = {**parser.defaults(), **changed, **suggested, **given, "dataset": dataset.name}
        s = argparse.Namespace(**settings)
        self.check(s, dataset)
        use_threads(s)
        with Run.create(self.name, settings, **data.facts(dataset)) as run:
            if why:
                run.log(f"dataset: {why}")
            if s.dataset == "folder":
                run.log(recipes.describe(dataset, settings, suggested.keys() - unused))
            say_what_is_left_out(run)
            return self.work(run, s, dataset)

    def resume(self, parser, given):
        """Go on with a run."""
        with Run.open(given["resume"], self.name) as run:
            settings = resumed_settings(run, parser, given)
            s = argparse.Namespace(**settings)
            use_threads(s)
            device = choose_device(s.device)
            run.resume(settings)
            if self.over and self.over(s, run.rows):
                return self.again(run, s)
            dataset = data.load_again(run, settings, device)
            say_what_is_left_out(run)
            return self.work(run, s, dataset)

    def test(self, parser, given):
        """What --evaluate asks for."""
        run = Run.open(given["evaluate"], self.name)
        settings = resumed_settings(run, parser, given)
        s = argparse.Namespace(**settings)
        use_threads(s)
        dataset = data.load_again(run, settings, choose_device(s.device))
        return self.evaluate(run, s, dataset)


def use_threads(s):
    if s.threads:
        torch.set_num_threads(s.threads)


def say_what_is_left_out(run):
    settings = run.config["settings"]
    if settings["plain"] and settings["recompute"]:
        run.log("left out, since --plain computes as the pages say: --recompute")
    missing = [f"{what} ({package})" for package, what in OPTIONAL.items()
               if importlib.util.find_spec(package) is None]
    if missing:
        run.log(f"left out, since the package is not installed: {', '.join(missing)}; pip install "
                "-r requirements.txt")
