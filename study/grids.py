"""What study.reproduce compares: settings of grids, claims, tables and figures."""
import functools
from collections import namedtuple

from genotypes import PRIMITIVES
from study import claims, compare, figures, hold, ties
from study.chance import skip_share
from study.claims import Claim

# of: the arm whose searches it reads again, as if they had had these flags as well; held: see
# hold.py; seeds: so many at most; networks: makes [(genotype, flags)] of its trainings from the
# {arm: Record} of a seed, the seed, and a function from those two to a network's size; without it
# what the search has found is trained
Arm = namedtuple("Arm", "name flags held of seeds networks", defaults=(False, None, None, None))
# Flags of every search, further ones of single arms, those of every training, whether what is
# found is trained, names of arms, CPU threads of one run
Scale = namedtuple("Scale", "search more train networks arms threads")
# prefix: of the runs' folders; first: seed of those that are reported, which chose nothing;
# tables: {heading: {column: (measure, digits)}}; of {arm: [Result of each seed]} notes makes a
# text, figures {name: (caption, function that draws it)}; how: {scale: further lines of how it was
# done}; pictures: makes the grid on the pictures in a folder, with a folder for its runs; random:
# whether a random network is trained beside each; seeds: how many by default; valid: makes
# [(condition, whether it is met)] of the Results, without which nothing is decided; further: makes
# lines for the page of them, files makes {name: text} to lie beside it
Grid = namedtuple("Grid", "page prefix first title arms scales claims notes tables figures how "
                  "pictures random seeds valid further files",
                  defaults=(None, True, 9, None, None, None))

# Gates without a penalty have no reason to reach a threshold, so they are discretised by argmax
# (Eq. 3).
SOFTMAX = ["--gate", "softmax", "--w01", "0", "--threshold", "0"]
SIGMOID = ["--gate", "sigmoid", "--w01", "0", "--threshold", "0"]
WITHOUT_SKIP = [op for op in PRIMITIVES if op != "skip_connect"]
NETWORKS = {
    "accuracy, last epoch, %": (claims.last_accuracy, 2),
    "− random": (claims.last_over_random, 2),
    "accuracy, best epoch, %": (claims.best_accuracy, 2),
    "− random, best": (claims.best_over_random, 2),
    "parameters, M": (claims.parameters, 3), "MACs, M": (claims.macs, 2)}
DIGITS, CIFAR10 = (["--dataset", name, "--figures_every", "0"] for name in ("digits", "cifar10"))
# what --gate softmax would change of Fair DARTS's rates (DARTS's recipe)
ALIKE = ["--batch_size", "128", "--learning_rate", "0.005", "--arch_learning_rate", "0.003",
         "--arch_beta1", "0.9"]


def records(results, *arms):
    return [result.record for arm in arms for result in results[arm]]


def primitives(operations):
    return ["--primitives", ",".join(operations)]


# ---------------------------------------------------------------- the paper's claims

ARMS = {
    "softmax": Arm("softmax", SOFTMAX, held=True),
    "sigmoid": Arm("sigmoid", SIGMOID, held=True),
    "l01": Arm("L01", ["--w01", "10"]),
    "l1": Arm("L'01", ["--w01", "10", "--zero_one_loss", "l1"]),
    # the pressure on a gate is w01 / N: fewer operations, less w01
    "noskip": Arm("L01 without skip_connect", [
        *primitives(WITHOUT_SKIP), "--w01", f"{10 * len(WITHOUT_SKIP) / len(PRIMITIVES):.4f}"]),
    "darts": Arm("softmax, DARTS's recipe", ["--gate", "softmax"])}
SCALES = {
    "laptop": Scale(DIGITS, {"softmax": ["--arch_beta1", "0.9"]}, ["--dataset", "digits"],
                    False, ["softmax", "sigmoid", "l01", "l1"], 1),
    "paper": Scale(CIFAR10, {"softmax": ALIKE}, ["--dataset", "cifar10"], True, list(ARMS), None)}

CLAIMS = [
    Claim("(a) Under softmax more dominant operations are skips than by chance (Fig. 1, 2)",
          claims.skips_beyond_chance, "softmax"),
    Claim("(a) and more than with sigmoid", claims.skips_beyond_chance, "softmax", "sigmoid"),
    Claim("(a) Where skip is held high, the others' gates learn to be lower than where it is held "
          "low: softmax (Insight 1)", claims.by_learning, "softmax"),
    Claim("(a) the same: sigmoid", claims.by_learning, "sigmoid"),
    Claim("(b) The gates end nearer to 0 and 1 with L01 than under softmax (Fig. 4): rho",
          claims.rho, "softmax", "l01"),
    Claim("(c) L'01 decides earlier than L01 (Fig. 5), in epochs",
          claims.decision_epoch, "l01", "l1"),
    Claim("(d) Rounding the gates costs more under softmax than with L01 (Insight 2), in points",
          claims.rounding, "softmax", "l01"),
    Claim("(d) The whole gap, rounding and selection, is larger under softmax than with L01",
          claims.whole_gap, "softmax", "l01"),
    Claim("(e) L01's networks, trained alike, are better than random ones",
          claims.last_over_random, "l01"),
    Claim("(e) and better than softmax's", claims.last_accuracy, "l01", "softmax"),
    Claim("(e) and better than those of softmax by DARTS's recipe",
          claims.last_accuracy, "l01", "darts"),
    Claim("(f) Open gates settle where the formula says, within 0.01: L01",
          claims.off_rest, "l01", None, 0.01),
    Claim("(f) the same: L'01", claims.off_rest, "l1", None, 0.01),
    Claim("(g) Networks of the space with skip_connect are better than those without",
          claims.last_accuracy, "l01", "noskip")]


def claims_figures(results):
    first = [results[arm][0].record for arm in ("softmax", "sigmoid", "l01", "l1")]
    every = "softmax", "sigmoid", "l01", "l1"
    return {
        "reproduction_dominant": (
            "Dominant skips over epochs",
            lambda: compare.dominant(records(results, "softmax", "sigmoid", "l01"))),
        "reproduction_heatmap": (
            "Final gates of the first seed", lambda: figures.draw_heatmap(*first)),
        "reproduction_gap": (
            "Lost by rounding, by selection, and by both",
            lambda: compare.gap(records(results, *every))),
        "reproduction_ties": (
            "Sorted gates, kept ones marked: published searches, and those of L01 here",
            lambda: compare.ties(records(results, "l01")))}


def claims_notes(results):
    return CLAIMS_NOTES.format(**ties.published_ties(), steps=hold.STEPS, height=f"{hold.HEIGHT:g}")


CLAIMS_NOTES = """\
(b) and (c) are nearly so by construction: L01 pushes gates to 0 and 1 whatever is learnt, and the
slope of L'01 is larger at the start. Under softmax skip held high lowers the others by arithmetic,
for the weights of an edge sum to 1; (a) is about what learning adds, and with sigmoid there is
nothing else. Never counts as one epoch more than there were in (c). At `--scale paper` softmax has
Fair DARTS's rates; DARTS's own recipe is an arm of its own, with a claim of its own.

**Ties.** All open gates come to rest at one value (f). So the penalty decides which gates are
open, and noise which of them are kept: what Fair DARTS takes out of the gap by rounding comes back
by selection. {reduce[0]} of the {reduce[1]} gates kept in the reduction cells of the authors'
eight published searches have a rejected rival within 0.005, where {reduce[2]:.0f} of 98 are open;
{normal[0]} of the {normal[1]} gates kept in the normal cells, where {normal[2]:.0f} are. A genotype
of such gates says which operations are open; which two edges and which one operation of each it
keeps, says little, and another seed keeps others.

**What was asked before.** The first page of this repository asked whether dominant skips grow
under softmax and not with sigmoid, as in Fig. 1 and 2, and recorded no: on digits, with seven
operations, there were 0.9 ± 0.6 fewer than by chance under softmax (five seeds). The claims were
then posed otherwise: with two operations (2.2 ± 1.8 beyond chance under softmax, 2.0 ± 0.9 with
sigmoid, no difference) and by the others' gates where skip leads (0.04 ± 0.04, undecided). The
latter was ill-posed: where skip leads the others are weak even if alphas know nothing of each
other, by 0.28 of their deviation. So here the counts are claims again, and skip's effect is an
intervention (`python -m study.hold RUN`): the finished search goes on for {steps} steps with skip's
alpha held at {height} in the normal cell, and again at -{height}. Rounding alone was asked, and
held; the whole gap, 81.0 points under softmax and 82.6 with L01, was not asked. Trained networks
were asked: L01's against random ones (-0.1 ± 1.4 points), against softmax's (-0.2 ± 1.2), against
those without skip_connect (-0.1 ± 1.4), all undecided, for on digits every network is right on 98
to 99 %. They are left to `--scale paper`."""


# ---------------------------------------------------------------- the cures

CURE_ARMS = {
    "softmax": Arm("softmax, no cure", [*SOFTMAX, "--curvature_every", "2"]),
    "limit": Arm("its search, ended at a number of skips (DARTS+)", [], of="softmax"),
    "kept": Arm("its genotype, surplus skips replaced (P-DARTS)", [], of="softmax"),
    "curvature": Arm("its search, ended as the curvature grows (RobustDARTS)",
                     ["--max_curvature_ratio", "1.3"], of="softmax"),
    "late": Arm("softmax, alpha from epoch 11 on", [*SOFTMAX, "--arch_start", "10"]),
    "dropout": Arm("the same, and dropout on skips (P-DARTS)", [
        *SOFTMAX, "--arch_start", "10", "--skip_dropout", "0.4", "--skip_dropout_schedule",
        "pdarts"]),
    "noise": Arm("noise on skips", [*SOFTMAX, "--skip_noise", "1"]),
    "shared": Arm("sigmoid for skips, softmax for the others", SIGMOID),
    "sigmoid": Arm("sigmoid for all", SIGMOID),
    "l01": Arm("sigmoid and L01 (Fair DARTS)", [])}
THREE = ["skip_connect", "sep_conv_3x3", "dil_conv_3x3"]
CURE_SCALES = {
    "laptop": Scale(
        [*DIGITS, *primitives(THREE), "--learning_rate", "0.005", "--arch_learning_rate", "0.05",
         "--arch_beta1", "0.9"],
        {"noise": ["--noise_epochs", "15"], "shared": ["--shared_softmax", ",".join(THREE[1:])],
         "l01": ["--w01", f"{10 * len(THREE) / len(PRIMITIVES):.4f}"],
         "limit": ["--max_skips", "3"], "kept": ["--keep_skips", "3"]},
        ["--dataset", "digits"], False, list(CURE_ARMS), 1),
    "paper": Scale(
        [*CIFAR10, *ALIKE],
        {"noise": ["--noise_epochs", "30"],
         "shared": ["--shared_softmax", ",".join(WITHOUT_SKIP)], "l01": ["--w01", "10"],
         "limit": ["--max_skips", "2"], "kept": ["--keep_skips", "2"]},
        ["--dataset", "cifar10"], True, list(CURE_ARMS), None)}
CURES = {"dropout": "late", "noise": "softmax", "shared": "softmax", "sigmoid": "softmax",
         "l01": "softmax"}
CURE_CLAIMS = [
    Claim("Softmax's genotypes have more skips than by chance", claims.derived_skips, "softmax"),
    *(Claim(f"{CURE_ARMS[arm].name}: nearer to chance than {CURE_ARMS[against].name}",
            claims.skips_off_chance, against, arm) for arm, against in CURES.items()),
    *(Claim(f"{CURE_ARMS[arm].name}: better networks than {CURE_ARMS[against].name}",
            claims.last_accuracy, arm, against) for arm, against in CURES.items())]
CURE_TABLES = {
    "Searches": {
        "epoch of the genotype": (claims.counted_epoch, 1),
        "share of skips in the genotype − chance": (claims.derived_skips, 2),
        "its distance from chance": (claims.skips_off_chance, 2), "rho": (claims.rho, 2),
        "lost by rounding, points": (claims.rounding, 1),
        "by selection": (claims.selection, 1), "by both": (claims.whole_gap, 1)},
    "Networks, trained alike": NETWORKS}


def cures_figures(results):
    """Skips over epochs, the curvature under softmax, a picture of each quantity."""
    names = {arm: CURE_ARMS[arm].name for arm in results}
    shown = [arm for arm in results if CURE_ARMS[arm].of is None]
    drawn = {
        "cures_dominant": ("Dominant skips over epochs", lambda: compare.dominant(
            records(results, *shown), [names[arm] for arm in shown for _ in results[arm]])),
        "cures_curvature": ("Largest eigenvalue over epochs, softmax", lambda: compare.curvature(
            records(results, "softmax")))}
    for measure, title in (
            (claims.derived_skips, "Share of skips in the genotype's normal cell, less chance"),
            (claims.rounding, "Lost by rounding (points)"),
            (claims.whole_gap, "Lost by rounding and selection (points)"),
            (claims.last_accuracy, "Test accuracy after the last epoch (%)"),
            (claims.last_over_random, "Test accuracy, less that of a random network (points)")):
        values = {names[arm]: [*map(measure, found)] for arm, found in results.items()}
        if any(value is not None for found in values.values() for value in found):
            drawn[f"cures_{measure.__name__}"] = (
                title, functools.partial(compare.arms, title, values))
    return drawn


def cures_notes(results):
    chance = {}
    for record in (found[0].record for found in results.values()):
        if "skip_connect" in record.primitives:
            shared = record.settings["shared_softmax"] and "a softmax shared by all but skip"
            kind = f"{shared or record.settings['gate']}, {len(record.primitives)} operations"
            chance[kind] = f"{kind}: {skip_share(record):.2f}"
    return CURES_NOTES.format(chance="; ".join(chance.values()))


CURES_NOTES = """\
The paper's view (Sec. 3 and 4): collapse needs an unfair advantage of skip connections and an
exclusive competition. Dropout and noise break the advantage; sigmoid breaks the competition, for
skips alone where the other operations share a softmax. Fewer skips are not better: 0 would be
fair, so what is claimed is a share *nearer to chance*.

Chance: the share of skips that argmax derives where alphas are exchangeable (independent, normal,
alike for all operations); by symmetry 1 / operations, and by simulation where some of them share
a softmax: {chance}.
Where the others share a softmax, a sigmoid's 1/2 meets shares of 1/2 of two operations, or 1/6 of
six: such a space is biased from the start.

Three rows are not searches of their own: they read softmax's again, ended earlier or with its
genotype repaired. Both sides of a comparison would be one search, so nothing is claimed of them.
RobustDARTS's rule measures every second epoch and looks from the 11th on, so that in 25 epochs it
can end a search once, after the 23rd. DARTS+ has a second criterion, a ranking of alphas that
stays the same, which is not here. P-DARTS's dropout has its authors' schedule (in a line for the
10 epochs before alpha moves, then anew, by exp), but one stage in place of three; it is compared
with a softmax whose alpha moves as late.

**Where collapse was seen.** On digits, in one of three settings: with seven operations dominant
skips stay below chance, with two they are 2 above it under softmax and with sigmoid alike, with
these three they take over under softmax.

**What was asked before.** A former page (five seeds, 21 to 25, no correction for 17 claims) took
fewer skips than softmax's for a success, and every cure but RobustDARTS's stop held; but dropout
(-0.21), noise (-0.16) and L01 (-0.28) had come out below chance. It also trained the networks: all
were right on 98 to 99 %, no verdict was possible; the best were DARTS+'s (99.1 %), of genotypes of
epoch 3.8 on average, nearly untrained. Its rules of P-DARTS, DARTS+ and RobustDARTS were not quite
their authors'."""


# ---------------------------------------------------------------- both

SCALED = "w01 is scaled by the number of gates, N / 196."
HOW = {"laptop": ["The settings were chosen on seeds below 30, which are not reported, none by the "
                  "accuracy of a derived network.", SCALED], "paper": [SCALED]}
GRIDS = {
    "claims": Grid(
        "reproduction.md", "claims-", 31, "What the paper claims, and what was measured", ARMS,
        SCALES, CLAIMS, claims_notes, {
            "Searches": {
                "rho": (claims.rho, 2), "half decided at epoch": (claims.decision_epoch, 1),
                "lost by rounding, points": (claims.rounding, 1),
                "by selection": (claims.selection, 1), "by both": (claims.whole_gap, 1),
                "dominant skips beyond chance": (claims.skips_beyond_chance, 1),
                "open gates − resting gate": (claims.off_rest, 4)},
            "Skip held high, less held low: how much lower the others' mean gate is": {
                "by arithmetic": (claims.by_arithmetic, 3), "by learning": (claims.by_learning, 3)},
            "Kept gates with a rejected rival within 0.005": {
                "normal cell": (claims.ties_of("normal"), 2),
                "reduction cell": (claims.ties_of("reduce"), 2)},
            "Networks, trained alike": NETWORKS}, claims_figures, HOW),
    "cures": Grid(
        "cures.md", "cures-", 51, "Cures of collapse, and what was measured", CURE_ARMS,
        CURE_SCALES, CURE_CLAIMS, cures_notes, CURE_TABLES, cures_figures, HOW)}


def claims_of(grid, scale):
    """The claims that the runs of a scale can decide."""
    s = grid.scales[scale]
    return [claim for claim in grid.claims
            if {claim.arm, claim.against} - {None} <= set(s.arms)
            and (s.networks or claim.measure not in claims.OF_NETWORKS)]


def own_flags(grid, scale, arm):
    return [*grid.arms[arm].flags, *grid.scales[scale].more.get(arm, [])]
