"""Texts and files of genotypes: what is read, and what is refused in one line."""
import pytest

import fair_darts
import genotypes
from genotypes import Edge, Genotype
from spaces import SPACES, GenotypeError, read, to_json

PUBLISHED = {name: (space, genotype) for space in SPACES.values()
             for name, genotype in space.PUBLISHED.items()}
LOG_OF_DARTS = (
    "2018-06-01 genotype = Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('skip_connect', 0), ('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=range(2, 6), "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), "
    "('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], "
    "reduce_concat=[2, 3, 4, 5])")


def test_genotypes_are_read_and_written(tmp_path):
    path = tmp_path / "genotype.json"
    cell = SPACES["nasbench201"], read("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|"
                                       "avg_pool_3x3~2|")[1]
    for name, (space, genotype) in {**PUBLISHED, "a cell": cell}.items():
        path.write_text(to_json(genotype))
        for text in (str(genotype), repr(genotype), str(path), str(tmp_path),
                     *([name] if name in PUBLISHED else [])):
            assert read(text) == (space, genotype)
        assert space is not SPACES["s1"] or all(
            fair_darts.prune(edges) == edges for edges in genotype)
    assert read(LOG_OF_DARTS) == (SPACES["s1"], genotypes.DARTS_V1)


def test_idle_edges_are_dropped_and_named():
    g = genotypes.FairDARTS_g
    text = str(Genotype([*g.normal, Edge("skip_connect", 4, 3)], g.reduce))  # as it was published
    with pytest.warns(UserWarning,
                      match=r"normal cell: edge \('skip_connect', 4, 3\) dropped.*node 3"):
        assert read(text)[1] == g


GOOD = "[('skip_connect', 2, 0)]"


def cells(normal, reduce=GOOD, more=""):
    return f"Genotype(normal={normal}, reduce={reduce}{more})"


@pytest.mark.parametrize("text, message", [
    ("FairDARTS_A", "did you mean 'FairDARTS_a'"), ("PDARTS", "did you mean 'P_DARTS'"),
    ("zzz", "choose from"),
    (cells("[('sep_conv_3x4', 2, 0)]"), r"normal cell, edge \('sep_conv_3x4', 2, 0\): unknown "
     "operation; did you mean 'sep_conv_3x3'"),
    (cells(GOOD, "[('skip_connect', 2, 2)]"), r"reduce cell, edge \('sk.* 2\): .* from 0 to 1"),
    (cells("[('skip_connect', 6, 0)]"), "node from 2 to 5"),
    (cells("[('skip_connect', 2, -1)]"), "from 0 to 1"),
    (cells("[('skip_connect', 2, True)]"), "from 0 to 1"),
    (cells("[('skip_connect', 0)]"), "two for each node"),
    (cells("[('skip_connect', 2, 0), ('skip_connect', 0)]"), "expected"),
    (cells("[('skip_connect', 2, 0)] + 2 * [1]"), "cannot read"),
    (cells("[('skip_connect', 2, 0), ('skip_connect', 2, 0)]"), "edge .* is named twice"),
    (cells("[]"), "normal cell: it has no edge"),
    (cells("[('skip_connect', 4, 3)]"), "no edge that comes from an input"),
    (cells(GOOD, GOOD, ", normal_concat=[3]"), r"edge \('skip_connect', 2, 0\): .*leaves out"),
    (cells("range(1000000000)"), "normal cell"), (f"Genotype(normal={GOOD})", "exactly two cells"),
    *[(text, "cannot read") for text in (
        cells("__import__('os').mkdir('x')"), cells("open('x', 'w')"), cells("[1] * 10**9"),
        "Genotype(" + "(" * 10000, "Genotype(a\0b", "|none~0|", "|", "||+||+||",
        "|nor_conv_3x3~1|+|none~0|none~1|+|none~0|none~1|none~2|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|none~3|")],
    ("|nor_conv_5x5~0|+|none~0|none~1|+|none~0|none~1|none~2|", "cell, edge .*unknown operation"),
    *[(f"CellGenotype(cell={cell})", message) for cell, message in (
        (3, "a list of edges"), ("[('skip_connect', 1)]", "op, node, source"),
        ("[('max_pool_3x3', 1, 0)]", "unknown operation"), ("[([], 1, 0)]", "unknown operation"),
        ("[('skip_connect', 1, 1)]", "from 0 to 0"), ("[('none', True, 0)]", "from 1 to 3"),
        ("[('skip_connect', 1, 0), ('none', 1, 0)]", "cell, edge .*: .*two operations"))],
    *[(f"ChainGenotype(layers={layers})", message) for layers, message in (
        ([], "19 layers, got 0"), (3, "19 layers, got int"), ("[()] * 19", "cannot read"),
        ([("mb3_k3",)] * 18 + [()], "layer 18, .*different ones"),
        ([("mb3_k3", "mb3_k3")] * 19, "layer 0, .*different ones"),
        ([("mb3_k4",)] * 19, "layer 0, .*ones of mb3_k3, mb"),
        ([("skip_connect",)] * 19, "layer 0, .*no identity, for"))],
    *[(text, "unknown architecture") for text in (
        "nowhere.json", "a\0b", "/", "x\ny", "\ud800", "x/" * 3000, "")],
], ids=lambda text: ascii(text[:40]))
def test_bad_genotypes_are_refused_in_one_line(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GenotypeError, match=message) as error:
        read(text)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())  # no code ran


@pytest.mark.parametrize("content", [
    "", "[]", "\xff", "[" * 100000, '{"normal": [[1]]}', '{"normal": [null], "reduce": []}',
    '{"normal": [["skip_connect", 2.0, 0]], "reduce": []}'])
def test_bad_genotype_files_are_refused(content, tmp_path):
    (tmp_path / "genotype.json").write_text(content, encoding="latin1")
    with pytest.raises(GenotypeError, match="genotype.json: "):
        read(str(tmp_path / "genotype.json"))
