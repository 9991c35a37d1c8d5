"""Genotypes: the vocabulary of operations, the published architectures, reading and writing.

In the space S1 a genotype is two cells. A cell has two input states, 0 and 1 (the outputs of the two cells before it),
and the nodes 2 to 5. Each edge applies one operation to the state that it leaves and adds the result to the node that it
enters; the cell's output is the concatenation of its nodes. A node that no edge enters is no part of the cell.

In the space S2 a genotype is a chain of 19 layers, each of which names one of the CHOICES, or several to be summed up.

    >>> get("FairDARTS_a").normal[0]
    Edge(op='sep_conv_3x3', node=2, source=0)
"""
import ast
import difflib
import json
import os
import reprlib
import warnings
from collections import namedtuple

PRIMITIVES = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3",
              "dil_conv_5x5")
Edge = namedtuple("Edge", "op node source")
Genotype = namedtuple("Genotype", "normal reduce")  # two lists of Edge
LAST_NODE = 5

# S2: inverted bottlenecks of expansion 3 or 6 and kernel 3, 5 or 7, and the identity
CHOICES = ("mb3_k3", "mb3_k5", "mb3_k7", "mb6_k3", "mb6_k5", "mb6_k7", "skip_connect")
IDENTITY = CHOICES.index("skip_connect")
ChainGenotype = namedtuple("ChainGenotype", "layers")  # a tuple of names a layer
CHAIN = [(32, 2), (32, 1), (40, 2), (40, 1), (40, 1), (40, 1), (80, 2), (80, 1), (80, 1), (80, 1), (96, 1), (96, 1), (96, 1),
         (96, 1), (192, 2), (192, 1), (192, 1), (192, 1), (320, 1)]  # output channels and stride of each layer
CHAIN_INPUT = 16  # channels
# whether a layer keeps its input's shape, so that the identity is a choice and blocks add their input
SAME_SHAPE = [stride == 1 and channels == before
              for (channels, stride), (before, _) in zip(CHAIN, [(CHAIN_INPUT, 1), *CHAIN])]


class GenotypeError(ValueError):
    """A text or file that is no genotype; the message is one line and names the edge at fault."""


# FairDARTS-a to -g. As published, c and g have one more edge in the normal cell, a skip connection that leaves
# node 3, which nothing enters: the published network skips it when it runs, here it is left out.
FairDARTS_a = Genotype(
    normal=[Edge("sep_conv_3x3", 2, 0), Edge("sep_conv_5x5", 2, 1), Edge("max_pool_3x3", 4, 0),
            Edge("sep_conv_3x3", 5, 0)],
    reduce=[Edge("max_pool_3x3", 2, 0), Edge("avg_pool_3x3", 2, 1), Edge("avg_pool_3x3", 3, 0),
            Edge("dil_conv_5x5", 3, 1), Edge("avg_pool_3x3", 4, 0), Edge("sep_conv_5x5", 4, 1),
            Edge("skip_connect", 5, 0), Edge("skip_connect", 5, 1)])
FairDARTS_b = Genotype(
    normal=[Edge("sep_conv_3x3", 2, 0), Edge("sep_conv_3x3", 2, 1), Edge("sep_conv_3x3", 3, 1),
            Edge("dil_conv_3x3", 4, 0), Edge("sep_conv_5x5", 4, 1), Edge("dil_conv_5x5", 5, 1)],
    reduce=[Edge("skip_connect", 2, 0), Edge("dil_conv_3x3", 2, 1), Edge("skip_connect", 3, 0),
            Edge("dil_conv_3x3", 3, 1), Edge("max_pool_3x3", 4, 0), Edge("sep_conv_3x3", 4, 1),
            Edge("skip_connect", 5, 2), Edge("max_pool_3x3", 5, 0)])
FairDARTS_c = Genotype(
    normal=[Edge("max_pool_3x3", 2, 0), Edge("sep_conv_5x5", 2, 1), Edge("dil_conv_3x3", 4, 0),
            Edge("dil_conv_5x5", 4, 2), Edge("sep_conv_3x3", 5, 0)],
    reduce=[Edge("dil_conv_3x3", 2, 1), Edge("dil_conv_5x5", 2, 0), Edge("dil_conv_3x3", 3, 0),
            Edge("sep_conv_3x3", 3, 1), Edge("sep_conv_5x5", 4, 0), Edge("sep_conv_5x5", 4, 3),
            Edge("sep_conv_5x5", 5, 0), Edge("skip_connect", 5, 1)])
FairDARTS_d = Genotype(
    normal=[Edge("sep_conv_3x3", 2, 0), Edge("sep_conv_5x5", 2, 1), Edge("dil_conv_3x3", 3, 1),
            Edge("max_pool_3x3", 3, 0), Edge("dil_conv_3x3", 4, 0), Edge("dil_conv_3x3", 4, 1),
            Edge("sep_conv_3x3", 5, 0), Edge("dil_conv_5x5", 5, 1)],
    reduce=[Edge("max_pool_3x3", 2, 0), Edge("sep_conv_5x5", 2, 1), Edge("avg_pool_3x3", 3, 0),
            Edge("dil_conv_5x5", 3, 2), Edge("dil_conv_3x3", 4, 3), Edge("avg_pool_3x3", 4, 0),
            Edge("avg_pool_3x3", 5, 0), Edge("skip_connect", 5, 3)])
FairDARTS_e = Genotype(
    normal=[Edge("sep_conv_3x3", 2, 0), Edge("sep_conv_3x3", 2, 1), Edge("dil_conv_3x3", 4, 1),
            Edge("dil_conv_3x3", 4, 2), Edge("dil_conv_3x3", 5, 0), Edge("dil_conv_5x5", 5, 1)],
    reduce=[Edge("max_pool_3x3", 2, 1), Edge("max_pool_3x3", 2, 0), Edge("max_pool_3x3", 3, 1),
            Edge("max_pool_3x3", 3, 0), Edge("sep_conv_5x5", 4, 1), Edge("max_pool_3x3", 4, 0),
            Edge("avg_pool_3x3", 5, 0), Edge("dil_conv_5x5", 5, 1)])
FairDARTS_f = Genotype(
    normal=[Edge("max_pool_3x3", 2, 0), Edge("sep_conv_3x3", 2, 1), Edge("dil_conv_3x3", 3, 1),
            Edge("sep_conv_5x5", 4, 1), Edge("sep_conv_3x3", 5, 0), Edge("sep_conv_3x3", 5, 1)],
    reduce=[Edge("max_pool_3x3", 2, 0), Edge("max_pool_3x3", 2, 1), Edge("max_pool_3x3", 3, 0),
            Edge("dil_conv_3x3", 3, 1), Edge("dil_conv_3x3", 4, 2), Edge("max_pool_3x3", 4, 0),
            Edge("max_pool_3x3", 5, 0), Edge("sep_conv_3x3", 5, 1)])
FairDARTS_g = Genotype(
    normal=[Edge("sep_conv_3x3", 2, 0), Edge("sep_conv_3x3", 2, 1), Edge("sep_conv_5x5", 4, 1),
            Edge("dil_conv_3x3", 5, 0), Edge("sep_conv_3x3", 5, 1)],
    reduce=[Edge("avg_pool_3x3", 2, 1), Edge("skip_connect", 2, 0), Edge("skip_connect", 3, 2),
            Edge("max_pool_3x3", 3, 1), Edge("sep_conv_5x5", 4, 3), Edge("max_pool_3x3", 4, 0),
            Edge("dil_conv_3x3", 5, 1), Edge("dil_conv_3x3", 5, 4)])

# The architectures that the paper compares with.
DARTS_V1 = Genotype(
    normal=[Edge("sep_conv_3x3", 2, 1), Edge("sep_conv_3x3", 2, 0), Edge("skip_connect", 3, 0),
            Edge("sep_conv_3x3", 3, 1), Edge("skip_connect", 4, 0), Edge("sep_conv_3x3", 4, 1),
            Edge("sep_conv_3x3", 5, 0), Edge("skip_connect", 5, 2)],
    reduce=[Edge("max_pool_3x3", 2, 0), Edge("max_pool_3x3", 2, 1), Edge("skip_connect", 3, 2),
            Edge("max_pool_3x3", 3, 0), Edge("max_pool_3x3", 4, 0), Edge("skip_connect", 4, 2),
            Edge("skip_connect", 5, 2), Edge("avg_pool_3x3", 5, 0)])
DARTS_V2 = Genotype(
    normal=[Edge("sep_conv_3x3", 2, 0), Edge("sep_conv_3x3", 2, 1), Edge("sep_conv_3x3", 3, 0),
            Edge("sep_conv_3x3", 3, 1), Edge("sep_conv_3x3", 4, 1), Edge("skip_connect", 4, 0),
            Edge("skip_connect", 5, 0), Edge("dil_conv_3x3", 5, 2)],
    reduce=[Edge("max_pool_3x3", 2, 0), Edge("max_pool_3x3", 2, 1), Edge("skip_connect", 3, 2),
            Edge("max_pool_3x3", 3, 1), Edge("max_pool_3x3", 4, 0), Edge("skip_connect", 4, 2),
            Edge("skip_connect", 5, 2), Edge("max_pool_3x3", 5, 1)])
P_DARTS = Genotype(
    normal=[Edge("skip_connect", 2, 0), Edge("dil_conv_3x3", 2, 1), Edge("skip_connect", 3, 0),
            Edge("sep_conv_3x3", 3, 1), Edge("sep_conv_3x3", 4, 1), Edge("sep_conv_3x3", 4, 3),
            Edge("sep_conv_3x3", 5, 0), Edge("dil_conv_5x5", 5, 4)],
    reduce=[Edge("avg_pool_3x3", 2, 0), Edge("sep_conv_5x5", 2, 1), Edge("sep_conv_3x3", 3, 0),
            Edge("dil_conv_5x5", 3, 2), Edge("max_pool_3x3", 4, 0), Edge("dil_conv_3x3", 4, 1),
            Edge("dil_conv_3x3", 5, 1), Edge("dil_conv_5x5", 5, 3)])
PC_DARTS = Genotype(
    normal=[Edge("sep_conv_3x3", 2, 1), Edge("skip_connect", 2, 0), Edge("sep_conv_3x3", 3, 0),
            Edge("dil_conv_3x3", 3, 1), Edge("sep_conv_5x5", 4, 0), Edge("sep_conv_3x3", 4, 1),
            Edge("avg_pool_3x3", 5, 0), Edge("dil_conv_3x3", 5, 1)],
    reduce=[Edge("sep_conv_5x5", 2, 1), Edge("max_pool_3x3", 2, 0), Edge("sep_conv_5x5", 3, 1),
            Edge("sep_conv_5x5", 3, 2), Edge("sep_conv_3x3", 4, 0), Edge("sep_conv_3x3", 4, 3),
            Edge("sep_conv_3x3", 5, 1), Edge("sep_conv_3x3", 5, 2)])
SNAS = Genotype(
    normal=[Edge("sep_conv_3x3", 2, 0), Edge("sep_conv_3x3", 2, 1), Edge("skip_connect", 3, 0),
            Edge("dil_conv_3x3", 3, 1), Edge("skip_connect", 4, 1), Edge("skip_connect", 4, 0),
            Edge("skip_connect", 5, 0), Edge("sep_conv_3x3", 5, 1)],
    reduce=[Edge("max_pool_3x3", 2, 0), Edge("max_pool_3x3", 2, 1), Edge("max_pool_3x3", 3, 1),
            Edge("skip_connect", 3, 2), Edge("skip_connect", 4, 2), Edge("max_pool_3x3", 4, 1),
            Edge("max_pool_3x3", 5, 0), Edge("dil_conv_5x5", 5, 2)])
GDAS = Genotype(
    normal=[Edge("skip_connect", 2, 0), Edge("skip_connect", 2, 1), Edge("skip_connect", 3, 0),
            Edge("sep_conv_5x5", 3, 2), Edge("sep_conv_3x3", 4, 3), Edge("skip_connect", 4, 0),
            Edge("sep_conv_5x5", 5, 4), Edge("sep_conv_3x3", 5, 3)],
    reduce=[Edge("sep_conv_5x5", 2, 0), Edge("sep_conv_3x3", 2, 1), Edge("sep_conv_5x5", 3, 2),
            Edge("sep_conv_5x5", 3, 1), Edge("dil_conv_5x5", 4, 2), Edge("sep_conv_3x3", 4, 1),
            Edge("sep_conv_5x5", 5, 0), Edge("sep_conv_5x5", 5, 2)])

# A published model of the space S2.
FairNAS_A = ChainGenotype(layers=[(name,) for name in (
    "mb3_k7", "mb3_k3", "mb3_k7", "mb6_k3", "mb6_k7", "mb3_k3", "mb3_k3", "mb6_k7", "mb6_k7", "mb3_k5", "mb6_k3", "mb3_k5",
    "mb3_k5", "mb6_k3", "mb6_k3", "mb6_k7", "mb6_k3", "mb6_k7", "mb6_k5")])

PUBLISHED = {name: value for name, value in list(globals().items()) if isinstance(value, (Genotype, ChainGenotype))}


def get(text):
    """The Genotype or ChainGenotype that `text` means.

    text: a published name ("FairDARTS_a"), the path of a genotype.json, or a "Genotype(...)" as this project,
        DARTS and Fair DARTS print it: edges (op, node, source), or pairs (op, source), two for each node; or a
        "ChainGenotype(...)".
    Raises GenotypeError. The text is parsed, never executed.
    """
    if text in PUBLISHED:
        return PUBLISHED[text]
    if "ChainGenotype(" in text:
        return _parse_chain(text[text.index("ChainGenotype("):])
    if "Genotype(" in text:
        return _parse(text[text.index("Genotype("):])
    if os.path.isfile(text):
        return load(text)
    raise GenotypeError(f"unknown architecture {_short(text)}: {nearest(text, PUBLISHED)}; "
                        "a path to a genotype.json or a 'Genotype(...)' text works too")


def to_json(genotype):
    """`genotype` as the text of a JSON file: {"normal": [[op, node, source], ...], "reduce": ...}, or for a chain
    {"layers": [[name, ...], ...]}."""
    return json.dumps(genotype._asdict(), indent=1)


def save(genotype, path):
    """Write `genotype` to `path` as JSON, whole or not at all."""
    with open(path + ".part", "w") as file:
        file.write(to_json(genotype))
    os.replace(path + ".part", path)


def load(path):
    """The Genotype or ChainGenotype in the JSON file at `path`. Raises GenotypeError."""
    try:
        with open(path) as file:
            parts = json.load(file)
        if isinstance(parts, dict) and set(parts) == {"layers"}:
            return _checked_chain(parts["layers"])
        return _checked(parts)
    except GenotypeError as error:
        raise GenotypeError(f"{path}: {error}") from None
    except OSError as error:
        raise GenotypeError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):  # not JSON, or not even text
        raise GenotypeError(f"{path}: not a JSON file") from None


def prune(edges):
    """`edges` without those that leave a node which no edge enters, until none of them is left."""
    while True:
        states = {0, 1} | {edge.node for edge in edges}
        kept = [edge for edge in edges if edge.source in states]
        if len(kept) == len(edges):
            return kept
        edges = kept


def nearest(word, names):
    """'did you mean ...?' with the name most like `word`, or the list of `names` where none is."""
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower()[:100], lower, 1)
    return f"did you mean {lower[close[0]]!r}?" if close else "choose from " + ", ".join(names)


def _parse(text):
    """Genotype from the text of a call; only literals, Edge(...) and range(...) are understood."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        fields = {keyword.arg: keyword.value for keyword in call.keywords}
        cells = {name: [_parse_edge(item) for item in fields[name].elts] for name in Genotype._fields}
        concat = {name: _parse_nodes(fields[name + "_concat"])
                  for name in Genotype._fields if name + "_concat" in fields}
    except (SyntaxError, ValueError, TypeError, AttributeError, KeyError, RecursionError, MemoryError):
        raise GenotypeError(f"cannot read {_short(text)}: expected Genotype(normal=[('sep_conv_3x3', 2, 0), ...], "
                            "reduce=[...])") from None
    genotype = _checked(cells)
    for name, nodes in concat.items():
        for edge in getattr(genotype, name):
            if edge.node not in nodes:
                raise GenotypeError(f"{name} cell, edge {tuple(edge)}: {name}_concat leaves out node {edge.node}, "
                                    "but a cell's output is the concatenation of all its nodes")
    return genotype


def _parse_chain(text):
    try:
        call = ast.parse(text.strip(), mode="eval").body
        fields = {keyword.arg: ast.literal_eval(keyword.value) for keyword in call.keywords}
        layers = fields["layers"]
    except (SyntaxError, ValueError, TypeError, AttributeError, KeyError, RecursionError, MemoryError):
        raise GenotypeError(f"cannot read {_short(text)}: expected ChainGenotype(layers=[('mb3_k7',), ...])") from None
    return _checked_chain(layers)


def _checked_chain(raw):
    """ChainGenotype from raw layers, every choice checked."""
    if not isinstance(raw, (list, tuple)) or len(raw) != len(CHAIN):
        raise GenotypeError(f"a chain has {len(CHAIN)} layers, got " + (
            f"{len(raw)}" if isinstance(raw, (list, tuple)) else _short(raw)))
    for layer, (names, same_shape) in enumerate(zip(raw, SAME_SHAPE)):
        refusal = f"layer {layer}, {_short(names)}: "
        if not isinstance(names, (list, tuple)) or not names:
            raise GenotypeError(refusal + "expected a list of one or more choices")
        for name in names:
            if name not in CHOICES:
                raise GenotypeError(refusal + f"unknown choice; {nearest(str(name), CHOICES)}")
            if name == "skip_connect" and not same_shape:
                raise GenotypeError(refusal + "no identity here: the layer changes the shape")
        if len(set(names)) < len(names):
            raise GenotypeError(refusal + "a choice is named twice")
    return ChainGenotype([tuple(names) for names in raw])


def _parse_edge(item):
    if isinstance(item, ast.Call) and item.func.id == "Edge":
        return Edge(*map(ast.literal_eval, item.args),
                    **{keyword.arg: ast.literal_eval(keyword.value) for keyword in item.keywords})
    return ast.literal_eval(item)


def _parse_nodes(item):
    if isinstance(item, ast.Call) and item.func.id == "range":
        return range(*map(ast.literal_eval, item.args))
    return list(ast.literal_eval(item))


def _checked(cells):
    """Genotype from {"normal": raw edges, "reduce": raw edges}, every edge checked, idle ones dropped."""
    if not isinstance(cells, dict) or set(cells) != set(Genotype._fields):
        raise GenotypeError("a genotype has exactly two cells, 'normal' and 'reduce'")
    return Genotype(**{name: _checked_cell(name, cells[name]) for name in Genotype._fields})


def _checked_cell(name, raw):
    if not isinstance(raw, (list, tuple)):
        raise GenotypeError(f"{name} cell: expected a list of edges, got {_short(raw)}")
    if len(raw) % 2 and isinstance(raw[-1], (list, tuple)) and len(raw[-1]) == 2:
        raise GenotypeError(f"{name} cell, edge {_short(raw[-1])}: pairs (op, source) come two for each node")
    edges = []
    for index, item in enumerate(raw):
        refusal = f"{name} cell, edge {_short(item)}: "
        if not isinstance(item, (list, tuple)) or len(item) not in (2, 3) or len(item) != len(raw[0]):
            raise GenotypeError(refusal + "expected (op, node, source), or pairs (op, source), two for each node")
        edge = Edge(*item) if len(item) == 3 else Edge(item[0], 2 + index // 2, item[1])
        if edge.op not in PRIMITIVES:
            raise GenotypeError(refusal + f"unknown operation; {nearest(str(edge.op), PRIMITIVES)}")
        if type(edge.node) is not int or not 2 <= edge.node <= LAST_NODE:
            raise GenotypeError(refusal + f"it must enter a node from 2 to {LAST_NODE}")
        if type(edge.source) is not int or not 0 <= edge.source < edge.node:
            raise GenotypeError(refusal + f"it must leave a state from 0 to {edge.node - 1}, before node {edge.node}")
        edges.append(edge)
    kept = prune(edges)
    if not kept:
        raise GenotypeError(f"{name} cell: it has no edge" + (" that comes from an input" if edges else ""))
    for edge in edges:
        if edge not in kept:
            warnings.warn(f"{name} cell: edge {tuple(edge)} dropped, since nothing enters node {edge.source}")
    return kept


def _short(value):
    return reprlib.repr(value).replace("\n", " ")
