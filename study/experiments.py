"""The experiments of study.reproduce, as data. Their settings, seeds and claims were
fixed before their runs; results are on docs/results.md."""
from collections import namedtuple

from genotypes import PRIMITIVES
from study import measures

# flags: of every search, {name: value}; arms: {name: Arm}; first, seeds: the first seed and how
# many; measures: {column of the page: a column of metrics.csv, or a function of a Record}
Experiment = namedtuple("Experiment", "title flags arms first seeds measures claims notes")
# flags: its own; of: the arm whose searches it reads again, as if they had had its flags; then: a
# file in their folders that has the genotype, and the command that writes it; seeds: if not all
Arm = namedtuple("Arm", "flags of then seeds", defaults=(None, None, None))
# The measure, over the seeds of `arm`, is above 0, or above that of the same seeds of `against`
Claim = namedtuple("Claim", "text measure arm against", defaults=(None,))

# Without a penalty no gate has a reason to reach a threshold: argmax discretises (Eq. 3)
SOFTMAX = {"gate": "softmax", "w01": 0, "threshold": 0}
SIGMOID = {**SOFTMAX, "gate": "sigmoid"}
PDARTS = {"skip_dropout": 0.4, "skip_dropout_schedule": "pdarts"}
COMMON = {"figures_every": 0, "threads": 1}

DIGITS = Experiment(
    "What the paper claims, on digits", {"dataset": "digits", **COMMON},
    {"softmax": Arm({**SOFTMAX, "arch_beta1": 0.9}), "sigmoid": Arm(SIGMOID),
     "l01": Arm({"w01": 10}), "l1": Arm({"w01": 10, "zero_one_loss": "l1"})}, 31, 9,
    {"rho": "rho", "half decided at epoch": measures.decision_epoch,
     "lost by rounding, points": "gap_rounding",
     "by rounding and selection": measures.whole_gap,
     "dominant skips beyond chance": measures.skips_beyond_chance},
    [Claim("(a) Under softmax more dominant operations are skips than by chance (Fig. 1, 2)",
           measures.skips_beyond_chance, "softmax"),
     Claim("(a) and more than with sigmoid", measures.skips_beyond_chance, "softmax", "sigmoid"),
     Claim("(b) The gates end nearer to 0 and 1 with L01 than under softmax (Fig. 4): rho",
           "rho", "softmax", "l01"),
     Claim("(c) L'01 decides earlier than L01 (Fig. 5), in epochs", measures.decision_epoch,
           "l01", "l1"),
     Claim("(d) Rounding the gates costs more under softmax than with L01 (Insight 2), in points",
           "gap_rounding", "softmax", "l01"),
     Claim("(d) The whole gap, rounding and selection, is larger under softmax than with L01",
           measures.whole_gap, "softmax", "l01")],
    "(b) and (c) are nearly so by construction: L01 pushes gates to 0 and 1 whatever is learnt, "
    "and the slope of L'01 is larger at the start.")

THREE = ["skip_connect", "sep_conv_3x3", "dil_conv_3x3"]
CURES = {"dropout": "late", "noise": "softmax", "shared": "softmax", "sigmoid": "softmax",
         "l01": "softmax"}
CURED = Experiment(
    "Cures of collapse, on digits",
    {"dataset": "digits", **COMMON, "primitives": ",".join(THREE), "learning_rate": 0.005,
     "arch_learning_rate": 0.05, "arch_beta1": 0.9},
    {"softmax": Arm({**SOFTMAX, "curvature_every": 2}),
     "limit": Arm({"max_skips": 3}, of="softmax"),  # DARTS+
     "kept": Arm({"keep_skips": 3}, of="softmax"),  # P-DARTS
     "curvature": Arm({"max_curvature_ratio": 1.3}, of="softmax"),  # RobustDARTS
     "late": Arm({**SOFTMAX, "arch_start": 10}),
     "dropout": Arm({**SOFTMAX, "arch_start": 10, **PDARTS}),
     "noise": Arm({**SOFTMAX, "skip_noise": 1, "noise_epochs": 15}),
     "shared": Arm({**SIGMOID, "shared_softmax": ",".join(THREE[1:])}), "sigmoid": Arm(SIGMOID),
     "l01": Arm({"w01": round(10 * len(THREE) / len(PRIMITIVES), 4)})}, 51, 9,
    {"epoch of the genotype": "epoch",
     "share of skips − chance": measures.skip_share,
     "its distance from chance": measures.skips_off_chance, "rho": "rho",
     "lost by rounding, points": "gap_rounding",
     "by rounding and selection": measures.whole_gap},
    [Claim("Softmax's genotypes have more skips than by chance", measures.skip_share, "softmax"),
     *(Claim(f"{arm}: nearer to chance than {against}", measures.skips_off_chance, against, arm)
       for arm, against in CURES.items())],
    f"""Fewer skips are not better: 0 would be fair. Chance is 1/3, where the others share a
softmax {measures.SHARED_CHANCE} (alphas alike and independent). limit (DARTS+), kept (P-DARTS) and
curvature (RobustDARTS) read softmax's searches again: nothing is claimed of them.""")

NB201 = ["avg_pool_3x3", "skip_connect", "nor_conv_1x1", "nor_conv_3x3"]
WITHOUT = {"primitives": ",".join(op for op in NB201 if op != "skip_connect")}
NASBENCH201 = Experiment(
    "What collapse costs: NAS-Bench-201",
    {"space": "nasbench201", **COMMON, "gap_every": 0, "batch_size": 64, "learning_rate": 0.025,
     "arch_learning_rate": 0.003, "arch_beta1": 0.9, "epochs": 40, "init_channels": 8,
     "stage_cells": 1, "dataset": "cifar10", "train_fraction": 0.05, "valid_fraction": 0.05},
    {"softmax": Arm({**SOFTMAX, "curvature_every": 2}), "sigmoid": Arm(SIGMOID),
     "l01": Arm({"w01": 10}),
     "limit": Arm({"max_skips": 2}, of="softmax"), "kept": Arm({"keep_skips": 2}, of="softmax"),
     "curvature": Arm({"max_curvature_ratio": 1.3}, of="softmax"),
     "noise": Arm({**SOFTMAX, "skip_noise": 1, "noise_epochs": 24}),
     "late": Arm({**SOFTMAX, "arch_start": 16}),
     "dropout": Arm({**SOFTMAX, "arch_start": 16, **PDARTS}),
     "shared": Arm({**SIGMOID, "shared_softmax": WITHOUT["primitives"]}),
     "softmax_noskip": Arm({**SOFTMAX, **WITHOUT}), "l01_noskip": Arm({**WITHOUT, "w01": 7.5})},
    71, 9,
    {"accuracy, %": measures.accuracy, "− mean of random": measures.over_random,
     "by argmax, %": measures.by_argmax, "got worse by, points": measures.decline,
     "skips of 6": measures.known("genotype_skips"), "epoch of the genotype": "epoch"},
    [Claim("Under softmax the derived architectures get worse: mean accuracy of the first third "
           "of the epochs less that of the last", measures.decline, "softmax"),
     Claim("and end worse than random ones",
           lambda record: record.genotype and -measures.over_random(record), "softmax"),
     Claim("Fair DARTS's are better than softmax's", measures.accuracy, "l01", "softmax"),
     Claim("and than random ones", measures.over_random, "l01"),
     Claim("Sigmoid alone is not enough: Fair DARTS's are better than sigmoid's, both by argmax",
           measures.by_argmax, "l01", "sigmoid"),
     *(Claim(f"{arm}: better than softmax's", measures.accuracy, arm, "softmax")
       for arm in ("limit", "kept", "curvature", "noise", "shared")),
     Claim("dropout: better than late", measures.accuracy, "dropout", "late"),
     Claim("Without skip_connect: Fair DARTS's are better than softmax's", measures.accuracy,
           "l01_noskip", "softmax_noskip")],
    """Every cell of this space has been trained by others: accuracies are looked up
(spaces/nasbench201_cifar10.md). Random: of all cells of the operations searched, exact, from the
table. limit (DARTS+), kept (P-DARTS) and curvature (RobustDARTS) read softmax's searches again.""")

COLLAPSE = Experiment(
    "The central claim: NAS-Bench-201, forty pairs", NASBENCH201.flags,
    {"softmax": Arm(SOFTMAX), "l01": Arm({"w01": 10}), "sigmoid": Arm(SIGMOID, seeds=20),
     "l01_1.22": Arm({"w01": 1.22}, seeds=20)}, 201, 40,
    {"accuracy, %": measures.accuracy, "below random, share": measures.ends_below,
     "by argmax, %": measures.by_argmax, "skips of 6": measures.known("genotype_skips"),
     "empty edges of 6": lambda record: record.genotype and 6 - len(record.genotype.cell)},
    [Claim("More of softmax's searches than of Fair DARTS's end below the mean of random cells: "
           "share", measures.ends_below, "softmax", "l01"),
     Claim("Fair DARTS's cells are better than softmax's", measures.accuracy, "l01", "softmax")],
    """Fixed before any of these seeds was looked at; the first claim is the primary one. Nothing is
claimed of sigmoid, nor of l01_1.22, the paper's pressure on a gate (10 * 24 / 196).""")

# --arch_learning_rate 0: alphas stay where they start; --arch_start saves the time
UNTRAINED = {**SOFTMAX, "arch_start": 39, "arch_learning_rate": 0}
STRENGTH = ("genotype_strength.json", "study.strength")
TUNED = ("genotype_strength_tune1.json", "study.strength", "--tune", "1")
READ = Experiment(
    "Read by strength, not by alpha: NAS-Bench-201", NASBENCH201.flags,
    {"softmax": Arm({}, "collapse-softmax"), "l01": Arm({}, "collapse-l01"),
     "softmax_strength": Arm({}, "collapse-softmax", STRENGTH),
     "l01_strength": Arm({}, "collapse-l01", STRENGTH),
     "untrained": Arm(UNTRAINED, seeds=20),
     "untrained_strength": Arm({}, "untrained", STRENGTH, 20),
     "softmax_tuned": Arm({}, "collapse-softmax", TUNED, 12),
     "l01_tuned": Arm({}, "collapse-l01", TUNED, 12)}, 201, 40,
    {"accuracy, %": measures.accuracy, "below random, share": measures.ends_below,
     "− mean of random": measures.over_random, "skips of 6": measures.known("genotype_skips")},
    [Claim("Softmax's cells are better read by strength than by argmax", measures.accuracy,
           "softmax_strength", "softmax"),
     Claim("Fair DARTS's cells are better read by strength than by the threshold",
           measures.accuracy, "l01_strength", "l01"),
     Claim("Read by strength, Fair DARTS's cells are better than softmax's", measures.accuracy,
           "l01_strength", "softmax_strength"),
     Claim("With alphas never trained, cells read by strength are better than random ones",
           measures.over_random, "untrained_strength")],
    "It reads the searches of `collapse`. Nothing is claimed of the arms that are tuned.")

EXPERIMENTS = {"digits": DIGITS, "cures": CURED, "nasbench201": NASBENCH201,
               "collapse": COLLAPSE, "strength": READ}
