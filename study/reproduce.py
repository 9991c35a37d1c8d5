"""The paper's claims, put to the test by searches of several settings and seeds.

    python -m study.reproduce digits       # the paper's claims: two hours on two cores
    python -m study.reproduce cures --seeds 2       # cures of collapse; fewer seeds
    python -m study.reproduce digits -- --epochs 5  # what follows goes to every search
    python -m study.reproduce nasbench201 -- --dataset folder --data DIR \\
        --image_size 16 --train_fraction 0 --valid_fraction 0
    python -m study.reproduce --random 20           # random genotypes, trained, ranked

Writes NAME.md, or random.md, beside the runs. Finished runs are used as they are,
stopped ones go on. Who adds an experiment adds it to study/experiments.py.
"""
import math
import os
import random
import shlex
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

import spaces
from engine.flags import Parser, UserError, main, number
from engine.folders import Folder, read_metrics, write_whole
from engine.report import count
from fair_darts import prune
from genotypes import PRIMITIVES, Edge, Genotype
from model_eval import NetworkCIFAR
from study.experiments import EXPERIMENTS
from study.measures import value
from study.records import read, read_again

LEVEL = 0.05
RULE = """\
A claim *held* if the 95 % interval (Student's t over the seeds) of the difference lies above 0
**and** the sign-flip test rejects at 5 % after Holm's correction for all claims of this page; it
did *not hold* if the same is so below 0; otherwise it is *undecided*. Both sides of a difference
have the same seed. A seed without a value (no genotype) is counted: with one, a claim cannot have
held. This was fixed in the code before the runs."""


def words_of(flags):
    return [word for name, value in flags.items() for word in ("--" + name, str(value))]


def run_all(runs, jobs):
    """Do what is left of the runs {folder: script and its flags}, `jobs` at once.
    Raises UserError where one fails, or was started by other flags."""
    commands = {}
    for folder, (script, *words) in runs.items():
        if os.path.lexists(folder):
            former = Folder.open(folder, script).config["commands"][0][1:]
            if former[:len(words)] != words:
                raise UserError(f"{folder!r} was started by other flags, {shlex.join(former)}: "
                                "remove it, or give other --runs")
            command = ["--resume", folder]
        else:
            command = [*words, "--runs", os.path.dirname(folder), "--name",
                       os.path.basename(folder)]
        commands[os.path.join(folder, "report.md")] = [script, *command]
    do_all(commands, jobs)


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


def records_of(name, experiment, s, extra):
    """{arm: [Record of each seed]}, once all runs are done. s: settings; extra: words
    for each search."""
    plan, count = [], s["seeds"] or experiment.seeds  # (arm, its Arm, seed, folder)
    for arm, a in experiment.arms.items():
        searches = a.of if a.of and a.of not in experiment.arms else f"{name}-{a.of or arm}"
        plan += [(arm, a, seed, os.path.join(s["runs"], f"{searches}-{seed}")) for seed in range(
            experiment.first, experiment.first + min(count, a.seeds or count))]
    run_all({folder: ["train_search", *words_of({**experiment.flags, **a.flags}), *extra, "--seed",
                      str(seed)] for _, a, seed, folder in plan if a.of is None}, s["jobs"])
    for then in dict.fromkeys(a.then for _, a, _, _ in plan if a.then):  # one locks a run's folder
        do_all({os.path.join(folder, then[0]): [*then[1:], folder]
                for _, a, _, folder in plan if a.then == then}, s["jobs"])
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


def differences(claim, records):
    """The claim's difference for each seed, None where a side has no value. records:
    {arm: [Record of each seed]}"""
    sides = [[value(claim.measure, record) for record in records[arm]]
             for arm in (claim.arm, claim.against) if arm]
    return [None if None in pair else pair[0] - sum(pair[1:]) for pair in zip(*sides)]


def present(values):
    return [number for number in values if number is not None]


def interval(values):
    """Mean and half of the 95 % interval (Student's t) of values that are not None."""
    from scipy.stats import sem, t
    values = present(values)
    if len(values) < 2:
        return (values or [math.nan])[0], math.inf
    return float(np.mean(values)), float(t.ppf(0.975, len(values) - 1) * sem(values))


def sign_flip(values):
    """The p-value of the two-sided sign-flip test. Exact up to 16 values; of more, by
    100,000 seeded draws."""
    from scipy.stats import permutation_test
    values = present(values)
    if len(values) < 2 or not any(values):
        return 1.0
    return float(permutation_test((np.asarray(values, float),), np.mean, vectorized=True,
                                  permutation_type="samples", n_resamples=10**5,
                                  rng=np.random.default_rng(0)).pvalue)


def holm(p_values):
    """The p-values of several tests, corrected by Holm: each times the number of those
    that are not smaller, none below that of a smaller one."""
    steps = [(p, p * (len(p_values) - rank)) for rank, p in enumerate(sorted(p_values))]
    return [min(1, max(step for other, step in steps if other <= p)) for p in p_values]


def verdict(values, corrected):
    """'held', 'not held' or 'undecided', by RULE. corrected: the p-value."""
    mean, half = interval(values)
    if corrected < LEVEL and mean - half > 0 and None not in values:
        return "held"
    return "not held" if corrected < LEVEL and mean + half < 0 else "undecided"


def table(head, *rows):
    """Lines of a table; head, rows: texts of their cells."""
    return ["| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows)]


def page(experiment, records, command):
    """The text of NAME.md. records: {arm: [Record of each seed]}"""
    found = [differences(claim, records) for claim in experiment.claims]
    tests, claims, arms = [*map(sign_flip, found)], [], []
    for claim, values, p, corrected in zip(experiment.claims, found, tests, holm(tests)):
        mean, half = interval(values)
        claims += [[claim.text, f"{len(present(values))} of {len(values)}", f"{mean:.3f}",
                    f"{mean - half:.3f} to {mean + half:.3f}", f"{p:.4f}", f"{corrected:.4f}",
                    verdict(values, corrected)]]
    for arm, own in records.items():
        arms += [[arm]]
        for measure in experiment.measures.values():
            values = [value(measure, record) for record in own]
            arms[-1] += ["{:.2f} ± {:.2f} ({})".format(*interval(values), len(present(values)))]
    lines = [
        f"# {experiment.title}", "", f"Written by `{command}`: seeds from {experiment.first} on. "
        "What held, held *here*, at this scale.", "",
        *table(["claim", "seeds", "difference", "95 % interval", "p", "p, Holm", "verdict"],
               *claims), "", RULE, "", experiment.notes, "", "## Arms", "",
        "Mean ± half of the 95 % interval (number of seeds).", "",
        *table(["", *experiment.measures], *arms), "",
        f"All searches: `train_search.py {shlex.join(words_of(experiment.flags))}`.", ""]
    for arm, (flags, of, then, _) in experiment.arms.items():
        how = f"with `{shlex.join(words_of(flags))}`" if flags else "as they are"
        lines += [f"- {arm}: " + (f"{of}'s searches, read " if of else "") + (
            f"by `python -m {shlex.join(then[1:])} RUN`" if then else how)]
    return "\n".join([*lines, ""])


def random_cell(dice, count=8, primitives=PRIMITIVES):
    """Drawn uniformly from the cells of so many edges that a search can leave: at most
    two edges into a node, none from a node that nothing enters."""
    edges = spaces.SPACES["s1"].edges(14)
    while True:
        cell = [Edge(dice.choice(primitives), *edge) for edge in sorted(dice.sample(edges, count))]
        entered = [edge.node for edge in cell]
        if max(map(entered.count, entered)) <= 2 and prune(cell) == cell:
            return cell


def macs_of(genotype):
    """Millions of multiply-accumulates at the published size, see report.count."""
    with torch.device("meta"):
        return count(NetworkCIFAR(genotype, auxiliary=False), (3, 32, 32))[2] / 1e6


def random_page(s, extra):
    """Train random genotypes, by the settings s; the text of their ranking."""
    def accepted(genotype):
        skips = [edge.op for edge in genotype.normal].count("skip_connect")
        return s["skips"] in (None, skips) and (
            s["macs"] is None or s["macs"][0] <= macs_of(genotype) <= s["macs"][1])

    drawn, runs = {}, {}
    for seed in range(s["random"]):
        dice, folder = random.Random(seed), os.path.join(s["runs"], f"random-{seed}")
        tries = (Genotype(random_cell(dice), random_cell(dice)) for _ in range(10_000))
        genotype = drawn[folder] = next(filter(accepted, tries), None)
        if genotype is None:
            raise UserError("none of 10,000 random genotypes has these --skips and --macs")
        runs[folder] = ["train_eval", "--dataset", "digits", *extra, "--seed", str(seed), "--arch",
                        str(genotype)]
    run_all(runs, s["jobs"])
    rows = sorted(((read_metrics(folder)[-1]["test_accuracy"], macs_of(genotype), folder, genotype)
                   for folder, genotype in drawn.items()), reverse=True)
    return "\n".join(["# Random genotypes, trained alike", "", *table(
        ["last epoch, %", "MACs at the published size, M", "run", "genotype"],
        *([f"{accuracy:.2f}", f"{macs:.1f}", f"`{folder}`", f"`{genotype}`"]
          for accuracy, macs, folder, genotype in rows)), ""])


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
    if (name in EXPERIMENTS) == ("random" in given):
        raise UserError(f"give an experiment, {', '.join(EXPERIMENTS)}, or --random X")
    if s["random"]:
        text = random_page(s, extra)
    else:
        command = shlex.join(["python", "-m", "study.reproduce", *sys.argv[1:]])
        text = page(EXPERIMENTS[name], records_of(name, EXPERIMENTS[name], s, extra), command)
    path = os.path.join(s["runs"], name + ".md")
    write_whole(path, text)
    print(path)


if __name__ == "__main__":
    main(reproduce)
