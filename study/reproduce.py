"""The paper's claims, put to the test by searches of several settings and seeds.

    python -m study.reproduce digits       # the paper's claims: two hours on two cores
    python -m study.reproduce cures --seeds 2       # cures of collapse; fewer seeds
    python -m study.reproduce digits -- --epochs 5  # what follows goes to every search
    python -m study.reproduce nasbench201 -- --dataset folder --data DIR \\
        --image_size 16 --train_fraction 0 --valid_fraction 0
    python -m study.reproduce --random 20           # random genotypes, trained, ranked
    python -m study.reproduce --random 20 --skips 2 --macs 300-400 -- --epochs 5

Writes NAME.md and NAME.png, or random.md. Finished runs are used as they are, stopped
ones go on. Who adds an experiment adds it to study/experiments.py.
"""
import os
import shlex
import signal
import subprocess
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import torch

import spaces
import train_eval
from engine.flags import Parser, UserError, main, number, refuse
from engine.folders import read_metrics, write_whole
from engine.loop import Run
from genotypes import PRIMITIVES
from model_eval import NetworkCIFAR
from study import compare, visualize
from study.claims import RULE, find, interval, present
from study.experiments import EXPERIMENTS
from study.measures import value
from study.random_genotypes import random_genotype
from study.records import read, read_again


# ---------------------------------------------------------------- the runs
# A task: (words, the file that `python -m words` writes last)

def words_of(flags):
    return [word for name, value in flags.items() for word in ("--" + name, str(value))]


def run_task(folder, *words):
    """The task of a run that is new, stopped or finished; words: the script and its
    flags. Raises UserError where the run in `folder` was started by others."""
    last = os.path.join(folder, "report.md")
    if not os.path.lexists(folder):
        runs, name = os.path.split(folder)
        return [*words, "--runs", runs, "--name", name], last
    former = Run.open(folder, words[0]).config["commands"][0]
    if former[1:len(words)] != [*words[1:]]:
        raise UserError(f"{folder!r} was started by other flags, {shlex.join(former[1:])}: remove "
                        "it, or give other --runs")
    return [words[0], "--resume", folder], last


def do_all(tasks, jobs):
    """Those of the tasks that are not done, `jobs` at once. Raises UserError where one
    fails."""
    def do(task):
        words, last = task
        done = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True)
        if not os.path.exists(last):  # a search without a genotype is finished as well
            raise UserError(f"{shlex.join(words)} ended with {done.returncode}: "
                            f"{done.stderr.strip() or done.stdout[-200:]}")
        return last

    left, start = [task for task in tasks if not os.path.exists(task[-1])], time.monotonic()
    print(f"{len(left)} of {len(tasks)} runs to do", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        for done, last in enumerate(pool.map(do, left), 1):
            minutes = (time.monotonic() - start) / 60 / done * (len(left) - done)
            print(f"{last}: done; {len(left) - done} left, about {minutes:.0f} minutes", flush=True)


def records_of(name, experiment, root, seeds, jobs, extra):
    """{arm: [Record of each seed]}, once all runs are done. extra: words for each
    search."""
    plan = [(arm, a, seed, os.path.join(root, f"{name}-{a.of or arm}-{seed}"))
            for arm, a in experiment.arms.items()
            for seed in range(experiment.first, experiment.first + min(seeds, a.seeds or seeds))]
    do_all([run_task(folder, "train_search", *words_of({**experiment.flags, **a.flags}), *extra,
                     "--seed", str(seed)) for _, a, seed, folder in plan if a.of is None], jobs)
    further = [([a.then[0], folder], os.path.join(folder, a.then[1]))
               for _, a, _, folder in plan if a.then]
    if further:
        do_all(further, jobs)
    records = {arm: [] for arm in experiment.arms}
    for arm, a, _, folder in plan:
        record = read(folder)
        if a.then:
            _, found = spaces.read(os.path.join(folder, a.then[1]))
            record = record._replace(genotype=found)
        records[arm].append(read_again(record, a.flags) if a.of and not a.then else record)
    return records


# ---------------------------------------------------------------- the page

def spread(values):
    """'mean ± half of the 95 % interval (number)' of those that are not None."""
    values = present(values)
    mean, half = interval(values)
    error = f" ± {half:.2f}" if len(values) > 1 else ""
    return f"{mean:.2f}{error} ({len(values)})" if values else "–"


def page(name, experiment, records, values, command):
    """The text of NAME.md. values: {measure: {arm: [of each seed]}}"""
    def row(*cells):
        return "| " + " | ".join(cells) + " |"

    lines = [f"# {experiment.title}", "", f"Written by `{command}`: seeds from {experiment.first} "
             "on. What held, held *here*, at this scale.", "",
             row("claim", "seeds", "difference", "95 % interval", "p", "p, Holm", "verdict"),
             row(*["---"] * 7)]
    for claim, found, mean, half, p, corrected, verdict in find(experiment.claims, records):
        lines += [row(claim.text, f"{len(present(found))} of {len(found)}", f"{mean:.3f}",
                      f"{mean - half:.3f} to {mean + half:.3f}", f"{p:.4f}", f"{corrected:.4f}",
                      verdict)]
    lines += ["", RULE, "", experiment.notes, "", "## Arms", "",
              "Mean ± half of the 95 % interval (number of seeds).", "",
              row("", *values), row(*["---"] * (len(values) + 1)),
              *(row(arm, *(spread(found[arm]) for found in values.values())) for arm in records),
              "", f"All searches: `train_search.py {shlex.join(words_of(experiment.flags))}`.", ""]
    for arm, a in experiment.arms.items():
        own = f"`{shlex.join(words_of(a.flags))}`"
        again = f"{a.of}'s searches, as if with {own}" if a.of else own
        then = f"`python -m {a.then[0]} RUN` of {a.of or own}" if a.then else again
        lines += [f"- {arm}: {then}"]
    return "\n".join([*lines, "", f"![all arms]({name}.png)", ""])


def run_experiment(name, root, output, seeds, jobs, extra):
    """Search and measure; draw NAME.png in `output`, and return the page."""
    experiment = EXPERIMENTS[name]
    seeds = seeds or experiment.seeds
    records = records_of(name, experiment, root, seeds, jobs, extra)
    values = {title: {arm: [value(measure, record) for record in found]
                      for arm, found in records.items()}
              for title, measure in experiment.measures.items()}
    visualize.save({name: lambda: compare.arms(values)}, output)
    command = ["python", "-m", "study.reproduce", name, "--seeds", str(seeds), "--", *extra]
    return page(name, experiment, records, values, shlex.join(command).removesuffix(" --"))


# ---------------------------------------------------------------- random genotypes

def macs_of(genotype):
    """Millions of multiply-accumulates at the published size, see train_eval.count."""
    with torch.device("meta"):
        return train_eval.count(NetworkCIFAR(genotype, auxiliary=False), (3, 32, 32))[2] / 1e6


def run_random(root, count, skips, bounds, jobs, extra):
    """Train `count` random genotypes of eight edges a cell, and return their ranking.

    skips: so many in the normal cell; bounds: least and most millions of MACs; None:
        any.
    """
    def accepted(genotype):
        return skips in (None, [edge.op for edge in genotype.normal].count("skip_connect")) and (
            bounds is None or bounds[0] <= macs_of(genotype) <= bounds[1])

    drawn, tasks = {}, []
    for seed in range(count):
        genotype = random_genotype((8, 8), PRIMITIVES, seed, accepted)
        mark = zlib.crc32(str(genotype).encode())  # other --skips or --macs are other runs
        folder = os.path.join(root, f"random-{seed}-{mark:08x}")
        drawn[folder] = genotype
        tasks.append(run_task(folder, "train_eval", "--dataset", "digits", *extra, "--seed",
                              str(seed), "--arch", str(genotype)))
    do_all(tasks, jobs)
    rows = sorted(((read_metrics(folder)[-1]["test_accuracy"], macs_of(genotype), folder, genotype)
                   for folder, genotype in drawn.items()), reverse=True)
    return "\n".join(["# Random genotypes, trained alike", "",
                      "| last epoch, % | MACs at the published size, M | run | genotype |",
                      "|---" * 4 + "|",
                      *("| {:.2f} | {:.1f} | `{}` | `{}` |".format(*row) for row in rows), ""])


def span(text):
    least, most = text.split("-")
    return float(least), float(most)


def reproduce():
    words = [*sys.argv[1:], "--"]
    parser, place = Parser(__doc__), words.index("--")
    parser.add_argument("name", nargs="?", help=", ".join(EXPERIMENTS))
    for name, kind, text in (
            ("seeds", number(int, 1), "how many of each arm"),
            ("random", number(int, 1), "train so many random genotypes instead"),
            ("skips", number(int, 0), "of --random: skip connections in the normal cell"),
            ("macs", span, "of --random: millions at the published size, LEAST-MOST"),
            ("runs", str, "folder in which the runs are kept (default runs)"),
            ("output", str, "folder of the page (default: that of the runs)"),
            ("jobs", number(int, 1), "runs at once (default: one a core)")):
        parser.add_argument("--" + name, type=kind, metavar="X", help=text)
    given = parser.parse_args(words[:place])
    name, root = given.get("name", "random"), given.get("runs", "runs")
    if name not in EXPERIMENTS and "random" not in given or {"random", "name"} <= given.keys():
        raise UserError(f"give an experiment, {', '.join(EXPERIMENTS)}, or --random X")
    refuse(given, ["skips", "macs"] if name in EXPERIMENTS else ["seeds"], f"is not of {name}")
    output, jobs = given.get("output", root), given.get("jobs", os.cpu_count())
    os.makedirs(output, exist_ok=True)  # or fails before the work
    try:
        text = (run_experiment(name, root, output, given.get("seeds"), jobs, words[place + 1:-1])
                if name in EXPERIMENTS else
                run_random(root, given["random"], given.get("skips"), given.get("macs"), jobs,
                           words[place + 1:-1]))
    except KeyboardInterrupt:  # the runs have received it too, and save
        print("stopped; the same command goes on")
        return 128 + signal.SIGINT
    write_whole(os.path.join(output, name + ".md"), text)
    print(os.path.join(output, name + ".md"))
    return 0


if __name__ == "__main__":
    main(reproduce)
