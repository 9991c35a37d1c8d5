"""What a search tells its user to do next."""
import math
import shlex

from engine.data import DATA_FLAGS


def training_command(run):
    """How to train what a search has found."""
    s = run.s
    command = ["python", "train_eval.py", "--arch", run.path("genotype.json"),
               "--dataset", s.dataset]
    defaults = {**{name: DATA_FLAGS[name][0] for name in ("data", "image_size")},
                **({"width": 1.0} if s.space == "s2" else {})}
    for name, default in defaults.items():
        if getattr(s, name) != default:
            command += ["--" + name, str(getattr(s, name))]
    command += ["--" + name for name in ("stream", "skip_bad_images") if getattr(s, name)]
    return shlex.join(command)


def explain_empty_cell(parts, s, gates, derive):
    """Why a genotype has an empty cell, (a line, a flag that would give one), or None.

    parts: what the matrices of `gates` are called; derive: makes the genotype of these
    gates, by changed settings if any.
    """
    empty = [part for part, edges in zip(parts, derive()) if not edges]
    if not empty:
        return None
    if s.keep_skips >= 0 and all(derive(keep_skips=-1)):
        return (f"the {empty[0]} cell is empty, for --keep_skips {s.keep_skips} leaves it nothing. "
                "Derive again with more:", f"--keep_skips {s.keep_skips + 1}")
    steps = {math.floor(100 * gate) / 100 for matrix in gates for gate in matrix.flatten().tolist()}
    lower = [step for step in steps if step < s.threshold and all(derive(threshold=step))]
    if lower:
        return (f"the {empty[0]} cell is empty: too few gates reach --threshold {s.threshold}. "
                "Derive again with a lower one:", f"--threshold {max(lower)}")
    return (f"the {empty[0]} cell is empty, and no threshold gives one: none is the best operation "
            "of too many edges. Search without it (--primitives), or go on:",
            f"--epochs {2 * s.epochs}")
