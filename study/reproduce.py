"""The paper's claims, put to the test by searches of several settings and seeds.

    python -m study.reproduce digits       # the paper's claims: two hours on two cores
    python -m study.reproduce cures --seeds 2       # cures of collapse; fewer seeds
    python -m study.reproduce digits -- --epochs 5  # what follows goes to every search
    python -m study.reproduce nasbench201 -- --dataset folder --data DIR \\
        --image_size 16 --train_fraction 0 --valid_fraction 0
    python -m study.reproduce --random 20           # random genotypes, trained, ranked
    python -m study.reproduce --random 20 --skips 2 --macs 300-400 -- --epochs 5

Writes NAME.md, or random.md, beside the runs. Finished runs are used as they are,
stopped ones go on. Who adds an experiment adds it to study/experiments.py.
"""
import os
import random
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import torch

import spaces
from engine.flags import Parser, UserError, main, number, refuse
from engine.folders import Folder, read_metrics, write_whole
from engine.report import count
from fair_darts import prune
from genotypes import PRIMITIVES, Edge, Genotype
from model_eval import NetworkCIFAR
from spaces.s1 import LAST_NODE
from study.claims import RULE, differences, holm, interval, present, sign_flip, verdict
from study.experiments import EXPERIMENTS
from study.measures import value
from study.records import read, read_again


# ---------------------------------------------------------------- the runs

def words_of(flags):
    return [word for name, value in flags.items() for word in ("--" + name, str(value))]


def run_all(runs, jobs):
    """Do what is left of the runs {folder: script and its flags}, `jobs` at once.
    Raises UserError where one fails, or was started by other flags."""
    left = {}
    for folder, (script, *words) in runs.items():
        done = os.path.join(folder, "report.md")  # of a search without a genotype, too
        if not os.path.lexists(folder):
            root, name = os.path.split(folder)
            left[done] = [script, *words, "--runs", root, "--name", name]
            continue
        former = Folder.open(folder, script).config["commands"][0][1:]
        if former[:len(words)] != words:
            raise UserError(f"{folder!r} was started by other flags, {shlex.join(former)}: remove "
                            "it, or give other --runs")
        left[done] = [script, "--resume", folder]
    do_all(left, jobs)


def do_all(commands, jobs):
    """Run the commands {file: words} whose files are not there, `jobs` at once."""
    def do(path):
        done = subprocess.run([sys.executable, "-m", *left[path]], capture_output=True, text=True)
        if not os.path.exists(path):
            raise UserError(f"{shlex.join(left[path])} ended with {done.returncode}: "
                            f"{done.stderr.strip() or done.stdout[-200:]}")
        return path

    left = {path: words for path, words in commands.items() if not os.path.exists(path)}
    print(f"{len(left)} of {len(commands)} runs to do", flush=True)
    with ThreadPoolExecutor(jobs) as pool:
        try:
            for done, path in enumerate(pool.map(do, left), 1):
                print(f"{path}: done; {len(left) - done} left", flush=True)
        except KeyboardInterrupt:  # the runs have received it too, and save
            print("they save and stop; the same command goes on", flush=True)
            raise


def records_of(name, experiment, root, seeds, jobs, extra):
    """{arm: [Record of each seed]}, once all runs are done. extra: words for each
    search."""
    plan = []  # (arm, its Arm, seed, folder)
    for arm, a in experiment.arms.items():
        searches = a.of if a.of and a.of not in experiment.arms else f"{name}-{a.of or arm}"
        plan += [(arm, a, seed, os.path.join(root, f"{searches}-{seed}")) for seed in range(
            experiment.first, experiment.first + min(seeds, a.seeds or seeds))]
    run_all({folder: ["train_search", *words_of({**experiment.flags, **a.flags}), *extra, "--seed",
                      str(seed)] for _, a, seed, folder in plan if a.of is None}, jobs)
    do_all({os.path.join(folder, a.then[0]): [*a.then[1:], folder]
            for _, a, _, folder in plan if a.then}, jobs)
    records = {arm: [] for arm in experiment.arms}
    for arm, a, _, folder in plan:
        record = read(folder)
        if a.then:
            _, genotype = spaces.read(os.path.join(folder, a.then[0]))
            record = record._replace(genotype=genotype)
        elif a.of:
            record = read_again(record, a.flags)
        records[arm].append(record)
    return records


# ---------------------------------------------------------------- the page

def row(*cells):
    return "| " + " | ".join(cells) + " |"


def spread(values):
    """'mean ± half of the 95 % interval (number)' of those that are not None."""
    values = present(values)
    mean, half = interval(values)
    error = f" ± {half:.2f}" if len(values) > 1 else ""
    return f"{mean:.2f}{error} ({len(values)})" if values else "–"


def page(experiment, records, command):
    """The text of NAME.md. records: {arm: [Record of each seed]}"""
    found = [differences(claim, records) for claim in experiment.claims]
    tests = [sign_flip(present(values)) for values in found]
    lines = [f"# {experiment.title}", "", f"Written by `{command}`: seeds from {experiment.first} "
             "on. What held, held *here*, at this scale.", "",
             row("claim", "seeds", "difference", "95 % interval", "p", "p, Holm", "verdict"),
             row(*["---"] * 7)]
    for claim, values, p, corrected in zip(experiment.claims, found, tests, holm(tests)):
        mean, half = interval(present(values))
        lines += [row(claim.text, f"{len(present(values))} of {len(values)}", f"{mean:.3f}",
                      f"{mean - half:.3f} to {mean + half:.3f}", f"{p:.4f}", f"{corrected:.4f}",
                      verdict(values, corrected))]
    lines += ["", RULE, "", experiment.notes, "", "## Arms", "",
              "Mean ± half of the 95 % interval (number of seeds).", "",
              row("", *experiment.measures), row(*["---"] * (len(experiment.measures) + 1))]
    for arm, own in records.items():
        lines += [row(arm, *(spread([value(measure, record) for record in own])
                             for measure in experiment.measures.values()))]
    lines += ["", f"All searches: `train_search.py {shlex.join(words_of(experiment.flags))}`.", ""]
    for arm, (flags, of, then, _) in experiment.arms.items():
        how = f"`{shlex.join(words_of(flags))}`" if flags else "they are"
        if of:
            how = f"{of}'s searches, " + (f"read by `python -m {shlex.join(then[1:])} RUN`" if then
                                          else f"as {'if with ' if flags else ''}{how}")
        lines += [f"- {arm}: {how}"]
    return "\n".join([*lines, ""])


# ---------------------------------------------------------------- random genotypes

def random_cell(dice, count=8, primitives=PRIMITIVES):
    """Drawn uniformly from the cells of so many edges that a search can leave: at most
    two edges into a node, none from a node that nothing enters."""
    edges = [(node, source) for node in range(2, LAST_NODE + 1) for source in range(node)]
    while True:
        cell = [Edge(dice.choice(primitives), *edge) for edge in sorted(dice.sample(edges, count))]
        entered = [edge.node for edge in cell]
        if max(map(entered.count, entered)) <= 2 and prune(cell) == cell:
            return cell


def macs_of(genotype):
    """Millions of multiply-accumulates at the published size, see report.count."""
    with torch.device("meta"):
        return count(NetworkCIFAR(genotype, auxiliary=False), (3, 32, 32))[2] / 1e6


def random_page(root, count, skips, bounds, jobs, extra):
    """Train `count` random genotypes; the text of their ranking. skips: so many in the
    normal cell; bounds: least and most millions of MACs; None: any."""
    def accepted(genotype):
        return skips in (None, [edge.op for edge in genotype.normal].count("skip_connect")) and (
            bounds is None or bounds[0] <= macs_of(genotype) <= bounds[1])

    drawn, runs = {}, {}
    for seed in range(count):
        dice, folder = random.Random(seed), os.path.join(root, f"random-{seed}")
        tries = (Genotype(random_cell(dice), random_cell(dice)) for _ in range(10_000))
        genotype = drawn[folder] = next(filter(accepted, tries), None)
        if genotype is None:
            raise UserError("none of 10,000 random genotypes has these --skips and --macs")
        runs[folder] = ["train_eval", "--dataset", "digits", *extra, "--seed", str(seed), "--arch",
                        str(genotype)]
    run_all(runs, jobs)
    rows = sorted(((read_metrics(folder)[-1]["test_accuracy"], macs_of(genotype), folder, genotype)
                   for folder, genotype in drawn.items()), reverse=True)
    return "\n".join(["# Random genotypes, trained alike", "",
                      row("last epoch, %", "MACs at the published size, M", "run", "genotype"),
                      row(*["---"] * 4),
                      *("| {:.2f} | {:.1f} | `{}` | `{}` |".format(*found) for found in rows), ""])


def span(text):
    least, most = text.split("-")
    return float(least), float(most)


FLAGS = {"flags": {
    "seeds": (None, number(int, 1), "how many of each arm"),
    "random": (None, number(int, 1), "train so many random genotypes instead"),
    "skips": (None, number(int, 0), "of --random: skip connections in the normal cell"),
    "macs": (None, span, "of --random: millions at the published size, LEAST-MOST"),
    "runs": ("runs", str, "folder of the runs and the page"),
    "jobs": (os.cpu_count(), number(int, 1), "runs at once")}}


def reproduce():
    words = [*sys.argv[1:], "--"]
    parser, place = Parser(__doc__, FLAGS), words.index("--")
    parser.add_argument("name", nargs="?", help=", ".join(EXPERIMENTS))
    given, extra = parser.parse_args(words[:place]), words[place + 1:-1]
    name, s = given.get("name", "random"), {**parser.defaults, **given}
    if name not in EXPERIMENTS and "random" not in given or {"random", "name"} <= given.keys():
        raise UserError(f"give an experiment, {', '.join(EXPERIMENTS)}, or --random X")
    refuse(given, ["skips", "macs"] if name in EXPERIMENTS else ["seeds"], f"is not of {name}")
    if name in EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        seeds = s["seeds"] or experiment.seeds
        records = records_of(name, experiment, s["runs"], seeds, s["jobs"], extra)
        again = ["python", "-m", "study.reproduce", name, "--seeds", str(seeds), "--", *extra]
        text = page(experiment, records, shlex.join(again).removesuffix(" --"))
    else:
        text = random_page(s["runs"], s["random"], s["skips"], s["macs"], s["jobs"], extra)
    path = os.path.join(s["runs"], name + ".md")
    write_whole(path, text)
    print(path)


if __name__ == "__main__":
    main(reproduce)
