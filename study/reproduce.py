"""The paper's claims, put to the test by a grid of searches and trainings.

    python -m study.reproduce               # on digits: two hours on two cores
    python -m study.reproduce --seeds 2     # less of it
    python -m study.reproduce --grid cures  # cures of collapse, in an hour
    python -m study.reproduce --grid nasbench201 --data DIR  # what collapse costs
    python -m study.reproduce --grid collapse --data DIR     # ... on new seeds
    python -m study.reproduce --grid pictures --data DIR     # ... of trained cells
    python -m study.reproduce --random 20   # random genotypes, trained alike and ranked
    python -m study.reproduce --random 20 --skips 2 --macs 1-2  # only such
    python -m study.reproduce --scale paper # CIFAR-10, as published: a GPU and days

Writes reproduction.md (cures.md; nasbench201.md and recorded_searches.json;
collapse.md; pictures.md) and figures/ to docs/. Complete runs are used as they are;
runs that were stopped are resumed.
"""
import argparse
import functools
import hashlib
import os
import shlex
import signal

import torch

import train_eval
from engine.flags import Parser, UserError, main, number, one_of, path_name, refuse
from engine.folders import read_config, read_metrics, write_whole
from engine.recipes import RECIPES
from genotypes import PRIMITIVES
from study import collapse, grids, hold, pictures, visualize
from study.claims import Result
from study.grids import own_flags
from study.many_runs import SCRIPTS, Task, complete, execute_all
from study.pages import page
from study.random_genotypes import random_genotype
from study.records import read, read_again
from use import classifier


GRIDS = {**grids.GRIDS, "nasbench201": collapse.GRID, "collapse": collapse.AGAIN,
         "pictures": pictures.GRID}


# ---------------------------------------------------------------- the runs

def searches(grid, scale, root, seeds):
    """{(arm, seed): Task}, seed by seed, of arms that have searches of their own."""
    s = grid.scales[scale]
    return {(arm, seed): Task(
        os.path.join(root, f"{grid.prefix}{scale}-{arm}-{seed}"), "train_search",
        [*s.search, *own_flags(grid, scale, arm), "--seed", str(seed)])
        for seed, arm in pairs(grid, s, seeds) if grid.arms[arm].of is None}


def pairs(grid, s, seeds):
    """(seed, arm) of all Results, seed by seed."""
    return [(grid.first + index, arm) for index in range(seeds) for arm in s.arms
            if index < (grid.arms[arm].seeds or seeds)]


def mended(grid, scale, arm):
    """The settings with which the searches of another arm are read again."""
    return SCRIPTS["train_search"].parser().parse_args(own_flags(grid, scale, arm))


def training(grid, scale, folder, seed, genotype, flags=()):
    return Task(folder + "-eval", "train_eval", [
        *grid.scales[scale].train, *flags, "--seed", str(seed), "--arch", str(genotype)])


def networks(grid, scale, records, arm, seed):
    """[(genotype, flags)] of the trainings of an arm's seed."""
    build = grid.arms[arm].networks
    if build:
        return build({name: record for (name, other), record in records.items() if other == seed},
                     seed, functools.partial(size_of, grid, scale))
    found = records[arm, seed].genotype
    return [(found, [])] if found else []


def random_training(grid, scale, root, record, seed):
    """Of a random genotype with as many edges as that of the search. Those of the same
    numbers and seed are one."""
    counts = [len(cell) for cell in record.genotype]
    name = "-".join(map(str, (scale, "random", len(record.primitives), *counts, seed)))
    return training(grid, scale, os.path.join(root, grid.prefix + name), seed,
                    random_genotype(counts, record.primitives, seed))


def run_grid(grid, scale, root, output, seeds, jobs, command):
    """Search, measure, train, and write the page."""
    s, tasks = grid.scales[scale], searches(grid, scale, root, seeds)
    held = {key: Task(task.folder, "study.hold", []) for key, task in tasks.items()
            if grid.arms[key[0]].held}
    for task in tasks.values():  # all are checked before any starts
        complete(*task)
    os.makedirs(output, exist_ok=True)  # or fails before the work
    later = 2 * seeds * len(s.arms) if s.networks else 0
    execute_all(tasks.values(), len(held) + later, jobs, s.threads)
    execute_all(held.values(), later, jobs, s.threads)

    own = {key: read(task.folder) for key, task in tasks.items()}
    records = {}
    for seed, arm in pairs(grid, s, seeds):
        of = grid.arms[arm].of
        records[arm, seed] = (own[arm, seed] if of is None else
                              read_again(own[of, seed], mended(grid, scale, arm)))
    trained, random, built = {}, {}, {}
    for (arm, seed), record in records.items():
        nets = networks(grid, scale, records, arm, seed) if s.networks else []
        if nets:
            folder = os.path.join(root, f"{grid.prefix}{scale}-{arm}-{seed}")
            built[arm, seed] = nets
            trained[arm, seed] = [
                training(grid, scale, folder + f"-{index}" * (index > 0), seed, *net)
                for index, net in enumerate(nets)]
            if grid.random:
                random[arm, seed] = [random_training(grid, scale, root, record, seed)]
    later = [task for tasks in (*trained.values(), *random.values()) for task in tasks]
    execute_all(later, 0, jobs, s.threads)

    rows = {task.folder: read_metrics(task.folder) for task in later}  # random ones are shared
    results = {}
    for key, record in records.items():
        accuracies = [mean_of([[row["test_accuracy"] for row in rows[task.folder]]
                               for task in others[key]]) if key in others else None
                      for others in (trained, random)]
        nets = built.get(key)
        results.setdefault(key[0], []).append(Result(
            record, *accuracies,
            mean_of([size_of(grid, scale, *net) for net in nets]) if nets else None,
            hold.read(held[key].folder) if key in held else None,
            [genotype for genotype, _ in nets] if nets else None))
    seconds = sum(row["seconds"] for run in (
        *rows.values(), *(record.rows for record in own.values())) for row in run)
    drawings = grid.figures(results)
    visualize.save({name: draw for name, (_, draw) in drawings.items()},
                   os.path.join(output, "figures"))
    for name, text in (grid.files(results) if grid.files else {}).items():
        write_whole(os.path.join(output, name), text)
    config = read_config(tasks["softmax", grid.first].folder)
    path = os.path.join(output, grid.page)
    write_whole(path, page(grid, scale, results, command, drawings, config, seconds / 3600))
    print(path)
    return 0


def mean_of(lists):
    """The mean of lists of numbers, place by place."""
    return [sum(values) / len(values) for values in zip(*lists)]


# ---------------------------------------------------------------- random search

def size_of(grid, scale, genotype, flags=()):
    """Millions of parameters, without the auxiliary head, and of multiply-accumulates
    of the network that the trainings of `scale` build, with further `flags`."""
    parser = train_eval.SCRIPT.parser()
    given = parser.parse_args([*grid.scales[scale].train, *flags])
    s = {**parser.defaults(), **RECIPES[given["dataset"]].eval, **given, "arch": str(genotype)}
    side = s["image_size"]
    shape = (1, 8, 8) if given["dataset"] == "digits" else (3, side, side)
    with torch.device("meta"):
        network = classifier.build(argparse.Namespace(**s), 10, shape)
        weights, head, macs = train_eval.count(network, shape)
    return (weights - head) / 1e6, macs / 1e6


def random_search(grid, scale, root, output, count, skips, macs, jobs):
    """Train `count` random genotypes of eight edges a cell, and write and print their
    ranking.
    skips: as many in the normal cell; macs: (least, most) of the network, in millions;
        None: any.
    """
    os.makedirs(output, exist_ok=True)  # or fails before the work

    def accepted(genotype):
        found = [edge.op for edge in genotype.normal].count("skip_connect")
        return skips in (None, found) and (
            macs is None or macs[0] <= size_of(grid, scale, genotype)[1] <= macs[1])

    tries = 10000 if macs is None else 500  # a network is built for each
    drawn = [random_genotype((8, 8), PRIMITIVES, seed, accepted, tries)
             for seed in range(grid.first, grid.first + count)]
    tasks = []
    for index, genotype in enumerate(drawn, grid.first):
        # named after what was drawn: other --skips or --macs are other runs
        mark = hashlib.sha256(str(genotype).encode()).hexdigest()[:8]
        folder = os.path.join(root, f"{scale}-drawn-{index}-{mark}")
        tasks.append(training(grid, scale, folder, index, genotype))
    execute_all(tasks, 0, jobs, grid.scales[scale].threads)
    rows = []
    for task, genotype in zip(tasks, drawn):
        found = [row["test_accuracy"] for row in read_metrics(task.folder)]
        _, macs = size_of(grid, scale, genotype)
        rows.append((found[-1], max(found), macs, task.folder, genotype))
    rows.sort(key=lambda row: -row[0])
    lines = ["| last epoch, % | best, % | MACs (M) | run | genotype |", "|---" * 5 + "|"]
    lines += [f"| {last:.2f} | {best:.2f} | {size:.2f} | {folder} | `{genotype}` |"
              for last, best, size, folder, genotype in rows]
    path = os.path.join(output, "random.md")
    write_whole(path, "\n".join(["# Random genotypes, trained alike", "", *lines, ""]))
    for last, best, size, folder, _ in rows:
        print(f"{last:6.2f}%  best {best:6.2f}%  {size:.2f} M MACs  {folder}")
    print(path)
    return 0


def span(text):
    """LEAST-MOST, two numbers."""
    parts = text.split("-")
    if len(parts) != 2:
        raise argparse.ArgumentTypeError(f"expected LEAST-MOST, two numbers, got {text!r}")
    least, most = (number(float, 0)(part) for part in parts)
    if least > most:
        raise argparse.ArgumentTypeError(f"expected LEAST-MOST, got {text!r}")
    return least, most


def reproduce():
    parser = Parser(__doc__)
    parser.add_argument("--grid", type=one_of(GRIDS),
                        help="claims (the default); cures: of collapse, beside each other; "
                             "nasbench201: what collapse costs; collapse: the same of two "
                             "arms, on new seeds; pictures: a collapsed cell on real pictures")
    parser.add_argument("--data", type=path_name, metavar="DIR",
                        help="of nasbench201, collapse and pictures: a folder train/CLASS/*, "
                             "test/CLASS/* with CIFAR-10's pictures, which are then of 16 pixels "
                             "(default but for pictures: a tenth of CIFAR-10)")
    parser.add_argument("--scale", type=one_of(GRIDS["claims"].scales),
                        help="laptop (the default) or paper: they differ only in settings")
    parser.add_argument("--seeds", type=number(int, 1, 1000), metavar="N",
                        help="seeds of each setting (default 9, with which twelve claims can be "
                             "decided after Holm's correction; for pictures 12, collapse 15)")
    parser.add_argument("--random", type=number(int, 1, 10**5), metavar="K",
                        help="train K random genotypes instead, and rank them")
    parser.add_argument("--skips", type=number(int, 0, 8), metavar="N",
                        help="of --random: skip connections in the normal cell")
    parser.add_argument("--macs", type=span, metavar="LEAST-MOST",
                        help="of --random: of the network, in millions")
    parser.add_argument("--runs", type=path_name, metavar="DIR",
                        help="folder in which the runs are kept (default runs)")
    parser.add_argument("--output", type=path_name, metavar="DIR",
                        help="folder of the page and of figures/ (default docs)")
    parser.add_argument("--jobs", type=number(int, 1), metavar="N",
                        help="runs at once (default: one a core for laptop, else 1)")
    given = parser.parse_args()
    if "random" in given:
        refuse(given, ["grid", "seeds", "data"], "is not of --random")
    else:
        refuse(given, ["skips", "macs"], "is of --random")
    given = {"grid": "claims", "scale": "laptop", "runs": "runs", "output": "docs", **given}
    grid, scale = GRIDS[given["grid"]], given["scale"]
    seeds = given.get("seeds", grid.seeds)
    if scale not in grid.scales:
        raise UserError(f"--scale {scale} is not of --grid {given['grid']}: leave it out")
    if grid.pictures and scale == "laptop":
        grid = grid.pictures(grid, given.get("data"), given["runs"])
    elif "data" in given:
        raise UserError(f"--data is not of --grid {given['grid']} --scale {scale}: leave it out")
    threads = grid.scales[scale].threads
    jobs = given.get("jobs") or (os.cpu_count() // threads if threads else 1)
    command = f"python -m study.reproduce --grid {given['grid']} --scale {scale} --seeds {seeds}"
    command += f" --data {shlex.quote(given['data'])}" if "data" in given else ""
    places = grid, scale, given["runs"], given["output"]
    try:
        if "random" in given:
            return random_search(*places, given["random"], given.get("skips"),
                                 given.get("macs"), jobs)
        return run_grid(*places, seeds, jobs, command)
    except KeyboardInterrupt:  # the runs have received it too, and save
        print("stopped; the same command goes on")
        return 128 + signal.SIGINT


if __name__ == "__main__":
    main(reproduce)
