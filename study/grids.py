"""What study.reproduce compares: the settings of its grids, their claims, tables and figures."""
import functools
from collections import namedtuple

from genotypes import PRIMITIVES
from study import compare, figures
from study.claims import (Claim, best_accuracy, best_over_random, correlation, counted_epoch,
                    curvature, decision_epoch, derived_skips, last_accuracy, last_over_random,
                    off_rest, rho, rounding, selection, skips_beyond_chance, suppression)

# seeds: at most so many, None: all; trained: whether what is found is trained
Arm = namedtuple("Arm", "name flags seeds trained", defaults=(None, True))
# Flags of every search, further ones of single arms, those of every training; threads: CPU
# threads of one run
Scale = namedtuple("Scale", "search more train arms threads")
# prefix: of the runs' folders; first: seed of those that are reported, which chose nothing, for
# settings were tried on seeds 0 to 3, those of the cures on 11 and 12, too;
# tables: {heading: {column: (measure, digits)}};
# figures: makes {name: (caption, function that draws it)} of {arm: [Result of each seed]}
Grid = namedtuple("Grid", "page prefix first title arms scales claims notes tables figures")

# Gates without a penalty have no reason to reach a threshold, so they are discretised by argmax
# (Eq. 3).
SOFTMAX = ["--gate", "softmax", "--w01", "0", "--threshold", "0"]
SIGMOID = ["--gate", "sigmoid", "--w01", "0", "--threshold", "0"]
WITHOUT_SKIP = [op for op in PRIMITIVES if op != "skip_connect"]
ACCURACIES = {
    "accuracy, last epoch, %": (last_accuracy, 2), "− random": (last_over_random, 2),
    "accuracy, best epoch, %": (best_accuracy, 2), "− random, best": (best_over_random, 2)}
DIGITS, CIFAR10 = (["--dataset", name, "--figures_every", "0"] for name in ("digits", "cifar10"))
RATES = ["--learning_rate", "0.005", "--arch_learning_rate", "0.003"]
# what --gate softmax would change of them (DARTS's recipe)
ALIKE = ["--batch_size", "128", *RATES, "--arch_beta1", "0.9"]


def records(results, *arms):
    return [result.record for arm in arms for result in results[arm]]


def primitives(operations):
    return ["--primitives", ",".join(operations)]


# ---------------------------------------------------------------- the paper's claims

ARMS = {
    "softmax": Arm("softmax", SOFTMAX),
    "sigmoid": Arm("sigmoid", SIGMOID),
    "l01": Arm("L01", ["--w01", "10"]),
    "l1": Arm("L'01", ["--w01", "10", "--zero_one_loss", "l1"]),
    "w5": Arm("L01, w01 = 5", ["--w01", "5"], 2, False),
    "w15": Arm("L01, w01 = 15", ["--w01", "15"], 2, False),
    # the pressure on a gate is w01 / N: fewer operations, less w01
    "noskip": Arm("L01 without skip_connect", [
        *primitives(WITHOUT_SKIP), "--w01", f"{10 * len(WITHOUT_SKIP) / len(PRIMITIVES):.4f}"], 3),
    "softmax2": Arm("softmax, two operations", SOFTMAX, None, False),
    "sigmoid2": Arm("sigmoid, two operations", SIGMOID, None, False),
    "darts": Arm("softmax, DARTS's recipe", ["--gate", "softmax"])}
TWO = primitives(["skip_connect", "sep_conv_3x3"])
SMALL_TWO = [*TWO, "--layers", "8", "--epochs", "50", *RATES]
SCALES = {
    "laptop": Scale(
        DIGITS, {"softmax": ["--arch_beta1", "0.9"], "sigmoid2": SMALL_TWO,
                 "softmax2": [*SMALL_TWO, "--arch_beta1", "0.9"]},
        ["--dataset", "digits"], [arm for arm in ARMS if arm != "darts"], 1),
    "paper": Scale(
        CIFAR10, {"softmax": ALIKE, "sigmoid2": TWO, "softmax2": [*TWO, *ALIKE]},
        ["--dataset", "cifar10"], list(ARMS), None)}

CLAIMS = [
    Claim("(a) Where skip leads, the other operations are suppressed under softmax, and less with "
          "sigmoid (Insight 1)", suppression, ["sigmoid2"], "softmax2"),
    Claim("(b) The gates end nearer to 0 and 1 with L01 than under softmax (Fig. 4): rho",
          rho, ["softmax"], "l01"),
    Claim("(c) L'01 decides earlier than L01 (Fig. 5)", decision_epoch, ["l01"], "l1"),
    Claim("(d) Rounding the gates costs more under softmax than with L01 (Insight 2)",
          rounding, ["softmax"], "l01"),
    Claim("(e) L01's networks, trained alike, are better than random ones",
          last_over_random, ["l01"]),
    Claim("(e) and better than softmax's", last_accuracy, ["l01"], "softmax"),
    Claim("(f) Gates that get no gradient from the data settle where the formula says",
          off_rest, ["l01", "w5", "w15"], None, 0.01),
    Claim("(g) Networks of the space with skip_connect are better than those without",
          last_accuracy, ["l01"], "noskip")]


def claims_figures(results):
    first = [results[arm][0].record for arm in ("softmax", "sigmoid", "l01", "l1")]
    return {
        "reproduction_dominant": (
            "Dominant skips, two operations",
            lambda: compare.dominant(records(results, "softmax2", "sigmoid2"))),
        "reproduction_heatmap": (
            "Final gates of the first seed", lambda: figures.draw_heatmap(*first)),
        "reproduction_gap": (
            "Lost by rounding and by selection", lambda: compare.gap(
                records(results, "softmax", "sigmoid", "l01", "l1")))}


# ---------------------------------------------------------------- the cures

CURE_ARMS = {
    "softmax": Arm("softmax, no cure", SOFTMAX),
    "dropout": Arm("dropout on skips (P-DARTS)", [*SOFTMAX, "--skip_dropout", "0.5"]),
    "noise": Arm("noise on skips", [*SOFTMAX, "--skip_noise", "1"]),
    "limit": Arm("end at a number of skips (DARTS+)", SOFTMAX),
    # the search is softmax's, since this is about the genotype alone
    "kept": Arm("surplus skips replaced (P-DARTS)", SOFTMAX),
    "curvature": Arm("end as the curvature grows (RobustDARTS)", [
        *SOFTMAX, "--curvature_every", "1", "--max_curvature_ratio", "1.3"]),
    "shared": Arm("sigmoid for skips, softmax for the others", SIGMOID),
    "sigmoid": Arm("sigmoid for all", SIGMOID),
    "l01": Arm("sigmoid and L01 (Fair DARTS)", [])}
THREE = ["skip_connect", "sep_conv_3x3", "dil_conv_3x3"]
CURE_SCALES = {
    "laptop": Scale(
        [*DIGITS, *primitives(THREE), "--learning_rate", "0.005", "--arch_learning_rate", "0.05",
         "--arch_beta1", "0.9", "--curvature_every", "25"],
        {"limit": ["--max_skips", "4"], "kept": ["--keep_skips", "3"],
         "shared": ["--shared_softmax", ",".join(THREE[1:])],
         "l01": ["--w01", f"{10 * len(THREE) / len(PRIMITIVES):.4f}"]},
        ["--dataset", "digits"], list(CURE_ARMS), 1),
    "paper": Scale(
        [*CIFAR10, *ALIKE, "--curvature_every", "50"],
        {"limit": ["--max_skips", "2"], "kept": ["--keep_skips", "2"],
         "shared": ["--shared_softmax", ",".join(WITHOUT_SKIP)], "l01": ["--w01", "10"]},
        ["--dataset", "cifar10"], list(CURE_ARMS), None)}
CURES = [arm for arm in CURE_ARMS if arm != "softmax"]
CURE_CLAIMS = [
    Claim("Softmax's genotypes have more skips than chance gives", derived_skips, ["softmax"]),
    *(Claim(f"Fewer skips than softmax's: {CURE_ARMS[arm].name}", derived_skips, ["softmax"], arm)
      for arm in CURES),
    *(Claim(f"Better networks than softmax's: {CURE_ARMS[arm].name}", last_accuracy, [arm],
            "softmax") for arm in CURES)]
CURE_TABLES = {
    "Searches": {
        "epoch of the genotype": (counted_epoch, 1),
        "share of skips in the genotype − chance": (derived_skips, 2),
        "others where skip leads − elsewhere": (suppression, 2),
        "correlation of skip and others": (correlation, 2),
        "largest eigenvalue": (curvature, 3), "rho": (rho, 2),
        "lost by rounding, points": (rounding, 1), "lost by selection, points": (selection, 1)},
    "Networks, trained alike": ACCURACIES}


def cures_figures(results):
    """Skips over epochs, and a picture of each quantity."""
    names = {arm: CURE_ARMS[arm].name for arm in results}
    # without those whose searches are softmax's, up to where they end
    shown = [arm for arm in results if arm not in ("limit", "kept", "curvature")]
    figures = {"cures_dominant": (
        "Dominant skips over epochs", lambda: compare.dominant(
            records(results, *shown), [names[arm] for arm in shown for _ in results[arm]]))}
    for measure, title in (
            (derived_skips, "Share of skips in the genotype's normal cell, less chance"),
            (suppression, "Mean gate of the others where skip leads, less elsewhere"),
            (curvature, "Largest eigenvalue of the Hessian by alpha"),
            (rounding, "Lost by rounding (points)"), (selection, "Lost by selection (points)"),
            (last_accuracy, "Test accuracy after the last epoch (%)"),
            (last_over_random, "Test accuracy, less that of a random network (points)")):
        values = {names[arm]: [*map(measure, found)] for arm, found in results.items()}
        figures[f"cures_{measure.__name__}"] = (
            title, functools.partial(compare.arms, title, values))
    return figures


# ---------------------------------------------------------------- both

GRIDS = {
    "claims": Grid(
        "reproduction.md", "", 11, "What the paper claims, and what was measured", ARMS, SCALES,
        CLAIMS,
        "(f) held if the interval lies within ±0.01.\n\n"
        "(a): under softmax it is so by construction, for an edge's weights sum to 1; and edges on "
        "which skip leads are those with weak others, even if gates knew nothing of each other. "
        "The correlation below is free of the second. Counts of dominant skips are ranks, and do "
        "not decide. (c): never counts as one epoch more than there were.", {
            "Searches": {
                "rho": (rho, 2), "half decided at epoch": (decision_epoch, 1),
                "lost by rounding, points": (rounding, 1),
                "lost by selection, points": (selection, 1),
                "dominant skips beyond chance": (skips_beyond_chance, 1),
                "others where skip leads − elsewhere": (suppression, 2),
                "correlation of skip and others": (correlation, 2),
                "open gates − resting gate": (off_rest, 4)},
            "Networks, trained alike": ACCURACIES}, claims_figures),
    "cures": Grid(
        "cures.md", "cures-", 21, "Cures of collapse, and what was measured", CURE_ARMS,
        CURE_SCALES, CURE_CLAIMS,
        "The paper's view (Sec. 3 and 4): collapse needs an unfair advantage of skip connections "
        "and an exclusive competition. Dropout and noise break the advantage; sigmoid breaks the "
        "competition, for skips alone where the other operations share a softmax; the rest ends "
        "the search in time or repairs the genotype, and has fewer skips by construction where "
        "softmax has more than the limit.\n\n"
        "Chance: each operation on as many edges of the genotype. Eigenvalues are by alpha and "
        "so scale with the gate's slope: softmax, sigmoid and settled gates are not to be "
        "compared by them. Empty: nothing was measured at the epoch that counts, or the measure "
        "is the same by construction. All claims share softmax's runs, and of 17 intervals of "
        "95 % about one is expected to miss.", CURE_TABLES, cures_figures)}
