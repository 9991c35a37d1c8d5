"""The paper's claims, put to the test by a grid of searches and trainings.

    python reproduce.py                  # --scale laptop: digits, two operations;
                                         # under an hour on two cores
    python reproduce.py --scale paper    # the published recipe on CIFAR-10, which needs
                                         # a GPU and days

Writes reproduction.md and figures/. Complete runs are used as they are; runs that were
stopped are resumed.
"""
import os
import signal
import statistics
import subprocess
import sys
import time
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

import train_eval
import train_search
import visualize
from flags import Parser, UserError, check_settings, main, number, one_of, path_name
from folders import read_metrics
from genotypes import write_whole
from records import all_gates, dominant_counts, measured_gaps, read
from runs import Run

# The settings in which the searches differ. Gates without a penalty have no reason to reach a
# threshold, so they are discretised by argmax (Eq. 3).
ARMS = {"softmax": ["--gate", "softmax", "--w01", "0", "--threshold", "0"],
        "sigmoid": ["--gate", "sigmoid", "--w01", "0", "--threshold", "0"],
        "l01": ["--gate", "sigmoid", "--w01", "10"],
        "l1": ["--gate", "sigmoid", "--w01", "10", "--zero_one_loss", "l1"]}
NAMES = {"softmax": "softmax", "sigmoid": "sigmoid", "l01": "sigmoid, L01",
         "l1": "sigmoid, L'01"}

# search, train: flags of every search, of every training; threads: CPU threads of one run
Scale = namedtuple("Scale", "search train seeds threads")
SCALES = {
    # chosen on seed 0, so that it ends in time and the gates reach 0 or 1; the seeds reported
    # are others
    "laptop": Scale(
        ["--dataset", "digits", "--primitives", "skip_connect,sep_conv_3x3", "--init_channels", "8",
         "--layers", "8", "--batch_size", "64", "--epochs", "50", "--learning_rate", "0.005",
         "--arch_learning_rate", "0.01", "--arch_beta1", "0.9", "--gap_every", "10",
         "--figures_every", "0"],
        ["--dataset", "digits", "--layers", "8", "--epochs", "20"], seeds=3, threads=1),
    "paper": Scale(["--dataset", "cifar10", "--gap_every", "5"], ["--dataset", "cifar10"],
                   seeds=3, threads=None),
}

# accuracies: test accuracy of the trained networks, by seed, None where a search left no genotype
Outcome = namedtuple("Outcome", "records accuracies")


# ---------------------------------------------------------------- the runs

def plan(scale, root):
    """[(folder of the search, its flags, folder of the training, its flags)]

    Seed by seed, so that an interrupted grid has about as many runs of each setting.
    """
    s = SCALES[scale]
    for seed in map(str, range(1, s.seeds + 1)):
        for arm, flags in ARMS.items():
            search = os.path.join(root, f"{scale}-{arm}-{seed}")
            genotype = os.path.join(search, "genotype.json")
            yield (search, [*s.search, *flags, "--seed", seed],
                   search + "-eval", [*s.train, "--seed", seed, "--arch", genotype])


def complete(folder, script, flags):
    """Whether the run in `folder` has done all its epochs. Raises UserError if it has
    other flags."""
    if not os.path.lexists(folder):
        return False
    parser = (train_search if script == "train_search" else train_eval).flags()
    run = Run.open(folder, script)
    settings = check_settings(run, parser)
    for name, value in parser.parse_args(flags).items():
        if settings[name] != value and name != "arch":
            raise UserError(f"{folder!r} has --{name} {settings[name]}, not {value}: "
                            "remove it, or give other --runs")
    try:
        return len(read_metrics(folder)) >= settings["epochs"]
    except FileNotFoundError:
        return False


def execute(script, folder, flags, threads):
    """Start or resume a run, unless it is complete. Raises UserError where it fails."""
    if complete(folder, script, flags):
        return
    path = os.path.abspath(folder)
    if os.path.exists(path):
        arguments = ["--resume", path]
    else:
        runs, name = os.path.split(path)
        arguments = [*flags, "--runs", runs, "--name", name]
    environment = dict(os.environ)
    if threads:
        environment["OMP_NUM_THREADS"] = str(threads)
    script_path = os.path.join(os.path.dirname(os.path.abspath(__file__)), script + ".py")
    done = subprocess.run([sys.executable, script_path, *arguments], env=environment,
                          capture_output=True, text=True)
    if not complete(folder, script, flags):  # a search without a genotype is complete as well
        raise UserError(f"{script}.py {' '.join(arguments)} ended with {done.returncode}: "
                        f"{done.stderr.strip() or done.stdout[-200:]}")


def search_and_train(item, threads):
    search, search_flags, training, training_flags = item
    execute("train_search", search, search_flags, threads)
    if os.path.exists(os.path.join(search, "genotype.json")):
        execute("train_eval", training, training_flags, threads)


def collect(scale, root):
    """{arm: Outcome} of complete runs."""
    items = list(plan(scale, root))
    outcomes = {}
    for index, arm in enumerate(ARMS):
        records, accuracies = [], []
        for search, _, training, _ in items[index::len(ARMS)]:
            records.append(read(search))
            accuracies.append(best_accuracy(training) if os.path.isdir(training) else None)
        outcomes[arm] = Outcome(records, accuracies)
    return outcomes


def best_accuracy(folder):
    return max(row["test_accuracy"] for row in read_metrics(folder))


# ---------------------------------------------------------------- the claims

def skips(record, first, last):
    """The mean count of dominant skips in the normal cell, epochs first to last - 1."""
    counts = dominant_counts(record.gates["normal"], record.primitives)
    return counts[first:last, record.primitives.index("skip_connect")].mean()


def distance_from_uniform(record):
    """The mean distance of the last gates from 1 / operations."""
    return np.abs(all_gates(record)[-1] - 1 / len(record.primitives)).mean()


def share_decided(record, reach=0.15):
    """The share of the last gates within `reach` of 0 or 1, in percent."""
    last = all_gates(record)[-1]
    return 100 * (np.minimum(last, 1 - last) <= reach).mean()


def decision_epoch(record):
    """The epoch after which half of the gates are outside 0.25 to 0.75; inf: never."""
    left = (np.abs(all_gates(record) - 0.5) > 0.25).mean(1) >= 0.5
    return int(left.argmax()) + 1 if left.any() else float("inf")


def last_gap(record):
    """The discretisation gap at the end, in points."""
    _, soft, discrete = measured_gaps(record)[-1]
    return soft - discrete


def spread(values, digits=1):
    """'mean ± standard deviation' of the values that are not None."""
    values = [value for value in values if value is not None]
    if not values:
        return "none"
    if float("inf") in values:
        return ", ".join("never" if value == float("inf") else f"{value:.{digits}f}"
                         for value in values)
    deviation = statistics.stdev(values) if len(values) > 1 else 0
    return f"{statistics.mean(values):.{digits}f} ± {deviation:.{digits}f}"


def mean(values):
    values = [value for value in values if value is not None]
    return statistics.mean(values) if values else float("nan")


# fixed before the runs
CRITERIA = (
    "(a) the count rises under softmax and does not rise with L01; (b) under softmax a distance of "
    "at most 0.1, with L01 at least 75 % of the gates; (c) the earlier epoch; (d) with L01 less "
    "than half of softmax's gap; (e) the higher accuracy; always by the means over the seeds, "
    "however wide their spread")


def claims(outcomes):
    """[(claim, what was measured, whether it held by CRITERIA)]"""
    records = {arm: outcome.records for arm, outcome in outcomes.items()}
    epochs = len(records["l01"][0].rows)
    tenth = max(1, epochs // 10)
    early = {arm: [skips(r, 0, tenth) for r in records[arm]] for arm in records}
    late = {arm: [skips(r, epochs - tenth, epochs) for r in records[arm]] for arm in records}
    change = "; ".join(f"{NAMES[arm]} {spread(early[arm])} → {spread(late[arm])}"
                       for arm in records)
    uniform = [distance_from_uniform(r) for r in records["softmax"]]
    decided = {arm: [share_decided(r) for r in records[arm]] for arm in records}
    decision = {arm: [decision_epoch(r) for r in records[arm]] for arm in ("l01", "l1")}
    gaps = {arm: [last_gap(r) for r in records[arm]] for arm in records}
    accuracies = {arm: outcome.accuracies for arm, outcome in outcomes.items()}

    def each(values, digits=1):
        return "; ".join(f"{NAMES[arm]} {spread(values[arm], digits)}" for arm in values)

    return [
        ("(a) Dominant skips grow under softmax and not under sigmoid (Fig. 1)",
         "dominant skips in the normal cell, first tenth of the epochs → last tenth: " + change,
         mean(late["softmax"]) > mean(early["softmax"])
         and mean(late["l01"]) <= mean(early["l01"])),
        ("(b) Softmax ends near uniform, sigmoid with L01 within reach of 0 and 1 (Fig. 4)",
         f"mean distance from uniform under softmax {spread(uniform, 2)}; "
         f"gates within 0.15 of 0 or 1, %: {each(decided)}",
         mean(uniform) <= 0.1 and mean(decided["l01"]) >= 75),
        ("(c) L'01 decides earlier than L01 (Fig. 5)",
         f"epoch at which half of the gates have left 0.25 to 0.75: {each(decision)}",
         mean(decision["l1"]) < mean(decision["l01"])),
        ("(d) The discretisation gap is large under softmax and argmax, small with L01 and "
         "threshold (Insight 2)",
         f"validation accuracy lost, points: {each(gaps)}",
         mean(gaps["l01"]) < mean(gaps["softmax"]) / 2),
        ("(e) The derived networks, trained alike, keep their order: L01 above softmax",
         f"best test accuracy, %: {each(accuracies, 2)}",
         mean(accuracies["l01"]) > mean(accuracies["softmax"])),
    ]


# ---------------------------------------------------------------- the page

def page(scale, outcomes, hours):
    """The text of reproduction.md."""
    s = SCALES[scale]
    epochs = len(outcomes["l01"].records[0].rows)
    rows = [f"| {claim} | {measured} | {'yes' if held else 'no'} |"
            for claim, measured, held in claims(outcomes)]
    lines = [
        "# What the paper claims, and what was measured", "",
        f"Written by `python reproduce.py --scale {scale}`: {len(ARMS)} settings, seeds 1 to "
        f"{s.seeds} each, {epochs} epochs of search, then the training of what was found; "
        f"{60 * hours:.0f} minutes of computing in all, summed over the runs. Mean ± standard "
        "deviation over the seeds; where it held, it held *here*, at this scale.", "",
        "| claim | measured | held here |", "|---|---|---|", *rows, "",
        f"Held means: {CRITERIA}.", "",
        f"Settings of all searches: `{' '.join(s.search)}`, and of each:", "",
        *(f"- {NAMES[arm]}: `{' '.join(flags)}`" for arm, flags in ARMS.items()), "",
        f"Settings of all trainings: `{' '.join(s.train)}`. A search whose gates reach no "
        "threshold leaves no genotype: then there is nothing to train, and its gap is that to a "
        "network without edges.", "",
        "![Dominant skips](figures/reproduction_dominant.png)", "",
        "![Final gates, seed 1](figures/reproduction_heatmap.png)", "",
        "![Discretisation gap](figures/reproduction_gap.png)", ""]
    return "\n".join(lines)


def write_page(scale, root, output):
    """Writes reproduction.md and its figures from complete runs."""
    outcomes = collect(scale, root)
    records = [record for outcome in outcomes.values() for record in outcome.records]
    first = [outcome.records[0] for outcome in outcomes.values()]  # of seed 1
    drawings = {**visualize.comparison_of(records),
                "heatmap": lambda: visualize.draw_heatmap(*first)}
    drawings = {"reproduction_" + name: draw for name, draw in drawings.items()}
    visualize.save(drawings, os.path.join(output, "figures"))
    rows = [row for record in records for row in record.rows]
    for _, _, training, _ in plan(scale, root):
        if os.path.isdir(training):
            rows += read_metrics(training)
    hours = sum(row["seconds"] for row in rows) / 3600
    write_whole(os.path.join(output, "reproduction.md"), page(scale, outcomes, hours))


def reproduce():
    parser = Parser(__doc__)
    parser.add_argument("--scale", type=one_of(SCALES),
                        help="laptop (the default) or paper: they differ only in settings")
    parser.add_argument("--runs", type=path_name, metavar="DIR",
                        help="folder in which the runs are kept (default runs)")
    parser.add_argument("--output", type=path_name, metavar="DIR",
                        help="folder of reproduction.md and figures/ (default .)")
    parser.add_argument("--jobs", type=number(int, 1), metavar="N",
                        help="runs at once (default: one a core for laptop, else 1)")
    given = {"scale": "laptop", "runs": "runs", "output": ".", **parser.parse_args()}
    name, root, output = given["scale"], given["runs"], given["output"]
    threads = SCALES[name].threads
    jobs = given.get("jobs") or (os.cpu_count() // threads if threads else 1)
    items, start = list(plan(name, root)), time.monotonic()
    for search, flags, training, training_flags in items:  # all are checked before any starts
        complete(search, "train_search", flags)
        complete(training, "train_eval", training_flags[:-2])
    pool = ThreadPoolExecutor(jobs)
    tasks = [pool.submit(search_and_train, item, threads) for item in items]
    try:
        for item, task in zip(tqdm(items, "runs", disable=not sys.stdout.isatty()), tasks):
            task.result()
            minutes = (time.monotonic() - start) / 60
            print(f"{item[0]}: done after {minutes:.1f} minutes", flush=True)
    except KeyboardInterrupt:  # the runs have received it too, and save
        pool.shutdown(cancel_futures=True)
        print(f"stopped; go on: python reproduce.py --scale {name} --runs {root}")
        return 128 + signal.SIGINT
    finally:
        pool.shutdown(cancel_futures=True)
    write_page(name, root, output)
    print(os.path.join(output, "reproduction.md"))
    return 0


if __name__ == "__main__":
    main(reproduce)
