"""Many runs of the scripts, several at once; those that are complete are kept, those
that were stopped go on."""
import argparse
import os
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import train_eval
import train_search
from engine.flags import UserError, check_settings
from engine.folders import read_metrics
from engine.loop import Run
from study import cures, hold

Task = namedtuple("Task", "folder script flags")
SCRIPTS = {"train_search": train_search.SCRIPT, "train_eval": train_eval.SCRIPT}
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def complete(folder, script, flags):
    """Whether the run in `folder` has done all its epochs. Raises UserError if it has
    other flags."""
    if script == "study.hold":
        return hold.read(folder) is not None
    if not os.path.lexists(folder):
        return False
    parser = SCRIPTS[script].parser()
    run = Run.open(folder, script)
    settings = check_settings(run.config["settings"], run.path("config.json"), parser)
    if "--arch" in flags and flags[-1].endswith(".json") and not os.path.exists(flags[-1]):
        flags = flags[:-2]  # a file that the search has yet to write
    for name, value in parser.parse_args(flags).items():
        if settings[name] != value:
            raise UserError(f"{folder!r} has --{name} {settings[name]}, not {value}: "
                            "remove it, or give other --runs")
    try:
        rows = read_metrics(folder)
    except FileNotFoundError:
        return False
    over = (len(rows) >= settings["epochs"] if script == "train_eval"
            else cures.outcome(argparse.Namespace(**settings), rows) is not None)
    return over and os.path.exists(run.path("report.md"))  # what a run writes last


def execute(task, threads):
    """Start or resume a run, unless it is complete. Raises UserError where it fails."""
    folder, script, flags = task
    path = os.path.abspath(folder)
    command = [os.path.join(ROOT, script + ".py")]
    if script == "study.hold":
        command, arguments = ["-m", script], [path]
    elif os.path.exists(path):
        arguments = ["--resume", path]
    else:
        runs, name = os.path.split(path)
        arguments = [*flags, "--runs", runs, "--name", name]
    environment = dict(os.environ)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    done = subprocess.run([sys.executable, *command, *arguments], env=environment,
                          capture_output=True, text=True,
                          cwd=ROOT if script == "study.hold" else None)
    if not complete(*task):  # a search without a genotype is complete as well
        raise UserError(f"{script} {' '.join(arguments)} ended with {done.returncode}: "
                        f"{done.stderr.strip() or done.stdout[-200:]}")


def execute_all(tasks, later, jobs, threads):
    """Execute those of the `tasks` that are not complete, `jobs` at once, and say what
    is left.
    later: how many others follow, at most."""
    tasks = {task.folder: task for task in tasks}.values()
    waiting = [task for task in tasks if not complete(*task)]
    print(f"{len(waiting)} of {len(tasks)} runs to do, then at most {later} others", flush=True)
    start, pool = time.monotonic(), ThreadPoolExecutor(jobs)
    try:
        started = [(task, pool.submit(execute, task, threads)) for task in waiting]
        for done, (task, future) in enumerate(started, 1):
            future.result()
            minutes = (time.monotonic() - start) / 60
            print(f"{task.folder}: done; {len(waiting) - done} of these left, about "
                  f"{minutes / done * (len(waiting) - done):.0f} minutes", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
