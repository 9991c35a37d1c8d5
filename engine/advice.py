"""What a script tells its user to do next."""
import math
import shlex

from engine.data import DATA_FLAGS


def training_command(run, s, also=()):
    """How to train what a search has found. also: (name, default) of more settings."""
    command = ["python", "train_eval.py", "--arch", run.path("genotype.json"),
               "--dataset", s.dataset]
    defaults = {name: DATA_FLAGS[name][0] for name in ("data", "image_size")}
    for name, default in {**defaults, **dict(also)}.items():
        if getattr(s, name) != default:
            command += ["--" + name, str(getattr(s, name))]
    command += ["--" + name for name in ("stream", "skip_bad_images") if getattr(s, name)]
    return shlex.join(command)


def explain_empty_cell(genotype, network, s, gates, without_limit, rows):
    """Why a genotype has an empty cell, (a line, a flag that would give one), or None.

    gates: those that it was derived from; without_limit: the genotype without
    --keep_skips; rows: what the rows of gates are called.
    """
    empty = [part for part, edges in zip(network.parts, genotype) if not edges]
    if not empty:
        return None
    if s.keep_skips >= 0 and all(without_limit):
        return (f"the {empty[0]} cell is empty, for --keep_skips {s.keep_skips} leaves it nothing. "
                "Derive again with more:", f"--keep_skips {s.keep_skips + 1}")
    if not all(network.genotype(threshold=0, gates=gates)):
        return ("none is the best operation of so many edges that no threshold gives a cell. "
                "Search without it (--primitives), or go on:", f"--epochs {2 * s.epochs}")
    best = {}
    for part, matrix in zip(network.parts, gates):
        if "none" in network.primitives:
            matrix = matrix.clone()
            matrix[:, network.primitives.index("none")] = 0
        row, column = divmod(int(matrix.argmax()), matrix.shape[1])
        best[part] = (matrix[row, column].item(), f"{network.primitives[column]}, {rows[row]}")
    short = [f"{part} cell: {gate:.4f}, {where}" for part, (gate, where) in best.items()
             if gate < s.threshold]
    if short:
        return (f"no gate of a cell reaches --threshold {s.threshold}; the nearest is, "
                f"{'; '.join(short)}. Search longer, with a larger --w01 or --arch_learning_rate, "
                "or derive again from the gates recorded:",
                f"--threshold {math.floor(100 * min(gate for gate, _ in best.values())) / 100}")
    return (f"the {empty[0]} cell is empty: the edges whose gate reaches --threshold {s.threshold} "
            "do not lead from an input to the output. Derive again with a lower one:",
            f"--threshold {round(max(0.01, s.threshold - 0.1), 2)}")
