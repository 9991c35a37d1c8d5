"""The paper's figures, drawn from the files that a search leaves in its folder.

    python -m study.visualize RUN           # the figures of one search -> RUN/figures/
    python -m study.visualize RUN RUN ...   # the same runs side by side -> comparison/
    python -m study.visualize FairDARTS_a   # -> FairDARTS_a_normal.png, _reduce.png
"""
import io
import os

import spaces
from engine.flags import Parser, UserError, main
from engine.folders import write_whole
from study.draw_cells import parts_of
from study.figures import FIGURES, SIDE_BY_SIDE
from study.records import read


def figures_of(*records):
    """(file name, Figure or None) of one run, or of several together."""
    for name, draw in (FIGURES if len(records) == 1 else SIDE_BY_SIDE).items():
        yield name, draw(*records)
    if len(records) == 1 and records[0].genotype:
        yield from parts_of(records[0].genotype, "cell_").items()


def save(figures, folder):
    """Write (file name, Figure or None) as PNG files into `folder`; returns their
    paths."""
    os.makedirs(folder, exist_ok=True)
    paths = []
    for name, figure in figures:
        if figure is not None:
            content = io.BytesIO()
            figure.savefig(content, format="png")
            paths.append(os.path.join(folder, name + ".png"))
            write_whole(paths[-1], content.getvalue())
    return paths


def draw_run(folder):
    """All figures of the search in `folder`, into its figures/; returns their paths."""
    return save(figures_of(read(folder)), os.path.join(folder, "figures"))


def visualize():
    parser = Parser(__doc__)
    parser.add_argument("what", nargs="+", metavar="RUN", help="searches, or one architecture")
    parser.add_argument("--output", metavar="DIR", help="where the figures go")
    given = parser.parse_args()
    first, *others = given["what"]
    if others or os.path.isdir(first):
        figures = figures_of(*map(read, given["what"]))
        folder = os.path.join(first, *(["..", "comparison"] if others else ["figures"]))
    else:
        (_, genotype), folder = spaces.read(first), "."
        figures = parts_of(genotype, (first if first.isidentifier() else "cell") + "_").items()
        if not figures:
            raise UserError(f"{first} is a chain, of which there is nothing to draw")
    print(*save(figures, given.get("output", os.path.normpath(folder))), sep="\n")


if __name__ == "__main__":
    main(visualize)
