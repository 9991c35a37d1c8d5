"""Texts and files of genotypes: what is read, and what is refused in one line."""
import functools
import random
import warnings

import pytest

import fair_darts
import genotypes
from engine import texts
from engine.folders import write_whole
from genotypes import Edge, Genotype
from spaces import SPACES
from spaces.s2 import ChainGenotype

PUBLISHED = {name: genotype for space in SPACES.values()
             for name, genotype in space.PUBLISHED.items()}
get = functools.partial(texts.get, spaces=SPACES.values())
load = functools.partial(texts.load, spaces=SPACES.values())


# ---------------------------------------------------------------- genotypes

LOG_OF_DARTS = (
    "2018-06-01 genotype = Genotype(normal=[('sep_conv_3x3', 1), ('sep_conv_3x3', 0), "
    "('skip_connect', 0), ('sep_conv_3x3', 1), ('skip_connect', 0), ('sep_conv_3x3', 1), "
    "('sep_conv_3x3', 0), ('skip_connect', 2)], normal_concat=range(2, 6), "
    "reduce=[('max_pool_3x3', 0), ('max_pool_3x3', 1), ('skip_connect', 2), ('max_pool_3x3', 0), "
    "('max_pool_3x3', 0), ('skip_connect', 2), ('skip_connect', 2), ('avg_pool_3x3', 0)], "
    "reduce_concat=[2, 3, 4, 5])")


def test_genotypes_are_read_and_written(tmp_path):
    path = str(tmp_path / "genotype.json")
    for name, genotype in PUBLISHED.items():
        assert get(name) is genotype
        assert get(str(genotype)) == genotype
        write_whole(path, texts.to_json(genotype))
        assert get(path) == load(path) == genotype
        assert (isinstance(genotype, ChainGenotype)
                or all(fair_darts.prune(cell) == cell for cell in genotype))
    assert list(tmp_path.iterdir()) == [tmp_path / "genotype.json"]
    assert get(LOG_OF_DARTS) == texts.get(LOG_OF_DARTS) == genotypes.DARTS_V1
    for name in "FairNAS_A", str(PUBLISHED["FairNAS_A"]), path:  # of the cells alone
        with pytest.raises(texts.GenotypeError):
            texts.get(name)
    assert len(PUBLISHED) == 14


def test_idle_edges_are_dropped_and_named():
    g = genotypes.FairDARTS_g
    text = str(Genotype([*g.normal, Edge("skip_connect", 4, 3)], g.reduce))  # as it was published
    with pytest.warns(UserWarning,
                      match=r"normal cell: edge \('skip_connect', 4, 3\) dropped.*node 3"):
        assert get(text) == g


@pytest.mark.parametrize("text, message", [
    ("FairDARTS_A", "did you mean 'FairDARTS_a'"), ("PDARTS", "did you mean 'P_DARTS'"),
    ("zzz", "choose from"),
    ("Genotype(normal=[('sep_conv_3x4', 2, 0)], reduce=[('skip_connect', 2, 0)])",
     r"normal cell, edge \('sep_conv_3x4', 2, 0\): unknown operation; did you mean 'sep_conv_3x3'"),
    ("Genotype(normal=[('skip_connect', 2, 0)], reduce=[('skip_connect', 2, 2)])",
     r"reduce cell, edge .* from 0 to 1"),
    ("Genotype(normal=[('skip_connect', 6, 0)], reduce=[('skip_connect', 2, 0)])",
     "node from 2 to 5"),
    ("Genotype(normal=[('skip_connect', 2, -1)], reduce=[('skip_connect', 2, 0)])",
     "from 0 to 1"),
    ("Genotype(normal=[('skip_connect', 2, True)], reduce=[('skip_connect', 2, 0)])",
     "from 0 to 1"),
    ("Genotype(normal=[('skip_connect', 0)], reduce=[('skip_connect', 2, 0)])",
     "two for each node"),
    ("Genotype(normal=[('skip_connect', 2, 0), ('skip_connect', 0)], reduce=[])", "expected"),
    ("Genotype(normal=[], reduce=[('skip_connect', 2, 0)])", "normal cell: it has no edge"),
    ("Genotype(normal=[('skip_connect', 4, 3)], reduce=[('skip_connect', 2, 0)])",
     "no edge that comes from an input"),
    ("Genotype(normal=[('skip_connect', 2, 0)], normal_concat=[3], "
     "reduce=[('skip_connect', 2, 0)])", "leaves out"),
    ("Genotype(normal=__import__('os').getcwd(), reduce=[])", "cannot read"),
    ("Genotype(", "cannot read"), ("|none~0|", "cannot read"),
    ("ChainGenotype(layers=[])", "a chain has 19 layers, got 0"),
    ("ChainGenotype(layers=3)", "a chain has 19 layers, got int"),
    ("ChainGenotype(layers=[()] * 19)", "cannot read"), ("ChainGenotype()", "cannot read"),
    (f"ChainGenotype(layers={[('mb3_k3',)] * 18 + [()]})", "layer 18, .*one or more"),
    (f"ChainGenotype(layers={[('mb3_k3', 'mb3_k3')] * 19})", "named twice"),
    (f"ChainGenotype(layers={[('mb3_k4',)] * 19})", "layer 0, .*choose from mb3_k3, mb"),
    (f"ChainGenotype(layers={[('skip_connect',)] * 19})", "layer 0, .*no identity here"),
    ("Genotype(normal=[('skip_connect', 2, 0)])", "cannot read"),
    ("Genotype(normal=[('skip_connect', 0x" + "f" * 6000 + ", 0)], reduce=[])", "normal cell, e"),
    ("Genotype(normal=range(1000000000), reduce=[])", "normal cell"),
    ("Genotype(normal=[('skip_connect', 2, 0)], reduce=[('skip_connect', 2, 0)], "
     "reduce_concat=range(0, 1000000000000000, 7))", "reduce_concat"),
    *[("Genotype(" + end, "cannot read") for end in (
        "(" * 10000, "-" * 99999 + "1)", "\n", "a\0b", "normal=open('x', 'w'), reduce=[])",
        "normal=[('skip_connect', " + "9" * 6000 + ", 0)], reduce=[])",
        "normal=[('skip_connect', 2, 0)] * 10**9, reduce=[])")],
    *[(text, "unknown architecture") for text in (
        "__import__('os').mkdir('x')", "nowhere.json", "a\0b", "/", "x\ny", "\ud800", "x/" * 3000,
        "")]], ids=lambda text: ascii(text[:40]))
def test_bad_genotypes_are_refused_in_one_line(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(texts.GenotypeError, match=message) as error:
        get(text)
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())  # no code ran


@pytest.mark.parametrize("content", [
    "", "[]", "{}", "\xff", '{"normal": 3, "reduce": 3}', '{"normal": [[1]]}',
    '{"normal": [["skip_connect", 2.0, 0]], "reduce": []}', '{"normal": [null], "reduce": []}',
    "[" * 100000, '{"layers": 3}', '{"layers": [["mb3_k3"]]}'])
def test_bad_genotype_files_are_refused(content, tmp_path):
    path = tmp_path / "genotype.json"
    path.write_text(content, encoding="latin1")
    with pytest.raises(texts.GenotypeError, match="genotype.json"):
        get(str(path))


def test_any_text_gives_a_genotype_or_a_genotype_error(tmp_path):
    """1,000 texts and 200 files: published genotypes with pieces replaced, dropped or
    doubled, and noise.
    """
    dice, path = random.Random(0), tmp_path / "genotype.json"
    pieces = ["(", ")", "[", "]", ",", "'", "=", "*", "-", "{}", "None", "0", "9" * 5000, "1e999",
              "Edge", "range(9)", "normal", "reduce_concat=", "node=7", "\0", "\n", "\ud800", "é",
              "lambda: 0", "**{}", "(" * 300, "-1", "skip_connect", "NaN", "Genotype(", '"', ":",
              "true"]
    read = 0
    for trial in range(1200):
        text = str(dice.choice(list(PUBLISHED.values())))
        if trial >= 1000:
            text = texts.to_json(get(text))
        elif trial % 5 == 0:
            text = "".join(dice.choice(pieces) for _ in range(dice.randrange(9)))
        for _ in range(dice.randrange(4)):
            start = dice.randrange(len(text) + 1)
            text = (text[:start] + dice.choice(["", dice.choice(pieces)])
                    + text[start + dice.choice([0, 1, 5, 40]):])
        if trial >= 1000:
            path.write_bytes(text.encode(errors="surrogatepass"))
            text = str(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                genotype = get(text)
            assert (isinstance(genotype, (Genotype, ChainGenotype))
                    and get(str(genotype)) == genotype)
            read += 1
        except texts.GenotypeError as error:
            assert "\n" not in str(error)
    assert 120 < read < 800
