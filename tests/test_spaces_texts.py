"""Texts and files of genotypes: what is read, and what is refused in one line."""
import json
import warnings
from argparse import Namespace
from types import SimpleNamespace

import pytest
import torch

import fair_darts
import genotypes
import train_eval
import train_search
from engine import flags
from genotypes import Edge, Genotype
from model_eval import NetworkCIFAR
from spaces import SPACES, GenotypeError, published, read, to_json
from spaces.nasbench201 import CellGenotype
from tests.common import refused

PUBLISHED = published()
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


def pairs(genotype, *weight):
    """As DARTS has the cells, or the first code of GDAS, whose pairs have a weight."""
    return {cell: [(op, source, *weight) for op, _, source in edges]
            for cell, edges in genotype._asdict().items()}


def text_of(cells, more=""):
    return "Genotype(" + ", ".join(f"{cell}={edges}" for cell, edges in cells.items()) + more + ")"


NESTED = {cell: list(zip(edges[::2], edges[1::2])) for cell, edges in pairs(genotypes.GDAS).items()}
FOREIGN = {
    "AutoDL-Projects": (text_of(NESTED, ",  # step (4)\n connectN=None, connects=None\n"),
                        genotypes.GDAS),
    "GDAS": (text_of(pairs(genotypes.GDAS, 0.13), ", normal_concat=range(2, 6)"), genotypes.GDAS),
    "nodes of one to three edges, as of a sampled network": (
        "Genotype(normal=[[('skip_connect', 0)], [('sep_conv_3x3', 1)], [('max_pool_3x3', 1), "
        "('sep_conv_3x3', 2), ('skip_connect', 0)]], normal_concat=list(range(2, 6)), "
        "reduce=[[('skip_connect', 0)]], normal_bottleneck='')",
        Genotype([Edge("skip_connect", 2, 0), Edge("sep_conv_3x3", 3, 1),
                  Edge("max_pool_3x3", 4, 1), Edge("sep_conv_3x3", 4, 2),
                  Edge("skip_connect", 4, 0)], [Edge("skip_connect", 2, 0)])),
    "quoted": (f"best: `{LOG_OF_DARTS}`,\n", genotypes.DARTS_V1),
    "JSON": (json.dumps({**pairs(genotypes.DARTS_V1), "normal_concat": [2, 3, 4, 5]}),
             genotypes.DARTS_V1),
    "JSON inside": (json.dumps({"rank": 2, "note": None, "genotype": pairs(genotypes.DARTS_V1)}),
                    genotypes.DARTS_V1),
    "NAS-Bench-201": ("best is [Structure(4 nodes with |none~0|+|none~0|none~1|+|nor_conv_3x3~0|"
                      "none~1|none~2|)], acc 1", CellGenotype([Edge("nor_conv_3x3", 3, 0)]))}


@pytest.mark.parametrize("name", FOREIGN)
def test_genotypes_as_others_write_them(name, tmp_path):
    """As a text, in a file, and in a log that holds several, of which the last
    counts."""
    text, genotype = FOREIGN[name]
    assert read(text)[1] == genotype
    path = tmp_path / "log.txt"
    path.write_text(text)
    assert read(str(path))[1] == genotype
    if "Genotype(" in text:
        path.write_text(f"epoch 1 {genotypes.SNAS}\nepoch 2 {text}\nvalid_acc 97\n")
        with pytest.warns(UserWarning, match="of 2 genotypes the last one is read"):
            assert read(str(path))[1] == genotype


def test_an_operation_twice_between_the_same_states():
    """RelativeNAS (EMI-Group/RelativeNAS), whose authors count 3.93 M parameters."""
    text = """Genotype(normal=[('sep_conv_3x3', 0), ('dil_conv_5x5', 1), ('sep_conv_3x3', 1),
        ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('sep_conv_5x5', 1), ('skip_connect', 0),
        ('sep_conv_3x3', 0)], normal_concat=range(2, 6), reduce=[('avg_pool_3x3', 1),
        ('max_pool_3x3', 1), ('dil_conv_5x5', 1), ('max_pool_3x3', 1), ('avg_pool_3x3', 3),
        ('skip_connect', 1), ('dil_conv_5x5', 3), ('sep_conv_3x3', 1)])"""
    with pytest.warns(UserWarning, match=r"normal cell, edge \('sep_conv_3x3', 3, 1\): it is there "
                      "2 times, each with weights of its own"):
        genotype = read(text)[1]
    assert genotype.normal[2:4] == [Edge("sep_conv_3x3", 3, 1)] * 2
    parameters, head, _ = train_eval.count(NetworkCIFAR(genotype), (3, 32, 32))
    assert parameters - head == 3_928_222
    with pytest.warns(UserWarning, match="2 times"):
        assert read(str(genotype))[1] == genotype


def test_what_is_pasted_into_the_code_of_a_space_is_found_by_its_name(monkeypatch):
    """Also as DARTS prints it, whose concatenation is checked."""
    for pasted in genotypes.SNAS, Genotype(**pairs(genotypes.SNAS), normal_concat=range(2, 6)):
        monkeypatch.setattr(genotypes, "mine", pasted, raising=False)
        assert read("mine") == (SPACES["s1"], genotypes.SNAS)
    monkeypatch.setitem(pasted.concat, "reduce_concat", [3, 4, 5])
    with pytest.raises(GenotypeError, match="reduce_concat leaves out node 2"):
        read("mine")


def test_idle_edges_are_dropped_and_named():
    g = genotypes.FairDARTS_g
    text = str(Genotype([*g.normal, Edge("skip_connect", 4, 3)], g.reduce))  # as it was published
    with pytest.warns(UserWarning,
                      match=r"normal cell, edge \('skip_connect', 4, 3\): dropped.*node 3"):
        assert read(text)[1] == g


GOOD = "[('skip_connect', 2, 0)]"


def cells(normal, reduce=GOOD, more=""):
    return f"Genotype(normal={normal}, reduce={reduce}{more})"


@pytest.mark.parametrize("text, message", [
    ("FairDARTS_A", "did you mean 'FairDARTS_a'"), ("PDARTS", "did you mean 'P_DARTS'"),
    ("GDAS_V1", r"did you mean 'GDAS'\?"), ("DARTS", r"mean 'DARTS_V1' or 'DARTS_V2'\?"),
    ("zzz", r"choose from FairDARTS_a, .* search's folder, a file .* 'Genotype\(...\)' or '\|nor_"),
    (cells("[('sep_conv_3x4', 2, 0)]"), r"normal cell, edge \('sep_conv_3x4', 2, 0\): unknown "
     "operation; did you mean 'sep_conv_3x3'"),
    (cells(GOOD, "[('skip_connect', 2, 2)]"), r"reduce cell, edge \('sk.* 2\): .* from 0 to 1"),
    (cells("[('skip_connect', 6, 0)]"), "node from 2 to 5"),
    (cells("[('skip_connect', 2, -1)]"), "from 0 to 1"),
    (cells("[('skip_connect', 2, True)]"), "from 0 to 1"),
    (cells("[('skip_connect', 0)]"), "two for each node"),
    (cells("[('skip_connect', 2, 0), ('skip_connect', 0)]"), "expected"),
    (cells("[('skip_connect', 2, 0)] + 2 * [1]"), "cannot read"),
    (cells([("skip_connect", 0), ("sep_conv_7x7", 0)] * 5), "it has 5 nodes, but here 4 are "),
    (cells(GOOD, "None"), "reduce cell: expected a list of edges, got None"),
    (cells(GOOD, GOOD, ", connectN=2"), "exactly two cells"),
    (cells("[]"), "normal cell: it has no edge"),
    (cells("[('skip_connect', 4, 3)]"), "no edge that comes from an input"),
    (cells(GOOD, GOOD, ", normal_concat=[3]"), r"edge \('skip_connect', 2, 0\): .*leaves out"),
    (cells("range(1000000000)"), "normal cell"), (f"Genotype(normal={GOOD})", "exactly two cells"),
    *[(text, "cannot read") for text in (
        cells("__import__('os').mkdir('x')"), cells("open('x', 'w')"), cells("[1] * 10**9"),
        "Genotype(" + "(" * 10000, "Genotype(" + "x" * 10**5, "Genotype(a\0b", "|none~0|",
        "||+||+||",
        "|nor_conv_3x3~1|+|none~0|none~1|+|none~0|none~1|none~2|",
        "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|none~3|")],
    ("~/nowhere.json", "there is no file '/.*/nowhere.json'"),
    (pytest.__file__, "init__.py: no genotype found"),
    ("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|none~2|", "nothing passes through the cell"),
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
        "a\0b", "x\ny", "\ud800", "", "|")],
    *[(text, "there is no file '" + text) for text in (
        "nowhere.json", "/", "x/" * 3000, "runs/" + "a" * 60)],
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


@pytest.mark.parametrize("script, flag, near", [
    *[(script, flag, near) for script in (train_search, train_eval) for flag, near in {
        "--gpu": "did you mean '--device'?", "--save": "did you mean '--name'?", "--foo": "",
        "--report_freq": "did you mean '--log_every'?", "--set": "did you mean '--dataset'?",
        "--batch-size": "did you mean '--batch_size'?", "--note": "", "x": ""}.items()],
    (train_eval, "--model_path", "did you mean '--evaluate'?"), (train_search, "--model_path", ""),
    (train_search, "--gap", "did you mean '--gap_every'?"), (train_eval, "--w01", "")])
def test_suggested_flags(script, flag, near, monkeypatch, capsys):
    assert refused(capsys, monkeypatch, script, flag, 1).endswith(
        f"error: unknown argument {flag!r}; {near}; --help lists all flags".replace("; ; ", "; "))


@pytest.mark.parametrize("script", [train_search, train_eval])
def test_each_flag_that_resume_may_change(script):
    """A run's other settings contradict it."""
    run = SimpleNamespace(s=Namespace(**script.PARSER.defaults), folder="RUN")
    for flag in script.PARSER.defaults:
        if flag in flags.MAY_CHANGE:
            changed = flags.resumed_settings(run, {flag: 10**6})
            assert changed == {**vars(run.s), flag: 10**6}
        else:
            with pytest.raises(flags.UserError, match=f"--{flag} 1000000 contradicts"):
                flags.resumed_settings(run, {flag: 10**6})


def test_a_note_is_said_once(monkeypatch, capsys):
    monkeypatch.setattr("warnings.showwarning", None)  # put back afterwards
    with warnings.catch_warnings(action="always"), pytest.raises(SystemExit):
        flags.main(lambda: [warnings.warn(text) for text in ("a", "b", "a")] and None)
    assert capsys.readouterr().err == "note: a\nnote: b\n"


def test_an_unknown_gate_is_an_error():
    with pytest.raises(KeyError, match="Softmax"):
        fair_darts.gates(torch.zeros(2, 2), "Softmax")


def test_what_was_frozen_before_stays_frozen():
    first, second = torch.ones(1, requires_grad=True), torch.ones(1)
    with fair_darts.frozen([first, second]):
        assert not first.requires_grad
    assert first.requires_grad and not second.requires_grad
