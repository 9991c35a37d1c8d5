"""The paper's figures, drawn from the files that a search leaves in its folder.

    python -m study.visualize RUN           # the figures of one search -> RUN/figures/
    python -m study.visualize RUN RUN ...   # the same runs side by side -> comparison/
    python -m study.visualize FairDARTS_a   # -> FairDARTS_a_normal.png, _reduce.png
"""
import functools
import io
import os

from engine.flags import Parser, UserError, main
from engine.folders import write_whole
from spaces import GenotypeError, read as read_genotype
from study import figures
from study.draw_cells import parts_of
from study.records import read


def figures_of(*records):
    """{file name: function that draws it} of one run, or of several together."""
    curves = {name: functools.partial(figures.draw_curves, records, *rest)
              for name, rest in figures.CURVES.items()}
    if len(records) > 1:
        return {"pair": functools.partial(figures.draw_pair, *records),
                "heatmap": functools.partial(figures.draw_heatmap, *records), **curves}
    [record] = records
    drawings = {name: functools.partial(draw, record) for name, draw in figures.FIGURES.items()}
    cells = parts_of(record.genotype, "cell_") if record.genotype else {}
    return {**drawings, "curvature": curves["curvature"], **cells}


def save(drawings, folder):
    """Draw {name: function} into PNG files in `folder`; returns their paths."""
    os.makedirs(folder, exist_ok=True)
    paths = []
    for name, draw in drawings.items():
        figure, content = draw(), io.BytesIO()
        if figure is not None:
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
    if others:
        drawings = figures_of(*map(read, given["what"]))
        folder = os.path.join(os.path.dirname(os.path.normpath(first)), "comparison")
    elif os.path.isdir(first):
        drawings, folder = figures_of(read(first)), os.path.join(first, "figures")
    else:
        try:
            (_, genotype), folder = read_genotype(first), "."
        except GenotypeError as error:
            raise UserError(f"no folder of a run, and {error}") from None
        drawings = parts_of(genotype, (first if first.isidentifier() else "cell") + "_")
        if not drawings:
            raise UserError(f"{first} is a chain, of which there is nothing to draw")
    print(*save(drawings, given.get("output", folder)), sep="\n")


if __name__ == "__main__":
    main(visualize)
