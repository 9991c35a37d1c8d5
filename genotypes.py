"""Genotypes: names of operations, published architectures, reading and writing.

In the space S1 a genotype is two cells. A cell has two input states, 0 and 1 (the
outputs of the two cells before it), and the nodes 2 to 5. Each edge applies one
operation to the state that it leaves and adds the result to the node that it enters.
The cell's output is the concatenation of its nodes; a node that no edge enters is no
part of the cell. In the space S2 a genotype is a chain of 19 layers. Each layer names
one of the CHOICES, or several, whose outputs are added.

    >>> get("FairDARTS_a").normal[0]
    Edge(op='sep_conv_3x3', node=2, source=0)
"""
import ast
import contextlib
import difflib
import json
import os
import random
import reprlib
import secrets
import warnings
from collections import namedtuple

PRIMITIVES = ("max_pool_3x3", "avg_pool_3x3", "skip_connect", "sep_conv_3x3", "sep_conv_5x5",
              "dil_conv_3x3", "dil_conv_5x5")
Edge = namedtuple("Edge", "op node source")
Genotype = namedtuple("Genotype", "normal reduce")  # two lists of Edge
LAST_NODE = 5

# S2: inverted bottlenecks of expansion 3 or 6 and kernel 3, 5 or 7, and the identity
CHOICES = ("mb3_k3", "mb3_k5", "mb3_k7", "mb6_k3", "mb6_k5", "mb6_k7", "skip_connect")
IDENTITY = CHOICES.index("skip_connect")
ChainGenotype = namedtuple("ChainGenotype", "layers")  # a list: for each layer a tuple of names
CHAIN_INPUT = 16  # channels
CHAIN = [  # output channels and stride of each layer
    (32, 2), (32, 1), (40, 2), (40, 1), (40, 1), (40, 1), (80, 2), (80, 1), (80, 1), (80, 1),
    (96, 1), (96, 1), (96, 1), (96, 1), (192, 2), (192, 1), (192, 1), (192, 1), (320, 1)]
# whether a layer keeps its input's shape: then it may be the identity, and blocks add their input
SAME_SHAPE = [stride == 1 and channels == before
              for (channels, stride), (before, _) in zip(CHAIN, [(CHAIN_INPUT, 1), *CHAIN])]


class GenotypeError(ValueError):
    """A text or file that is no genotype; the message, one line, names the edge."""


MAX_POOL, AVG_POOL, SKIP, SEP_3, SEP_5, DIL_3, DIL_5 = PRIMITIVES

# FairDARTS-a to -g. As published, c and g have one more edge in the normal cell: a skip connection
# that leaves node 3, which no edge enters. The published network ignores it; here it is left out.
FairDARTS_a = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_5, 2, 1), Edge(MAX_POOL, 4, 0), Edge(SEP_3, 5, 0)],
    reduce=[Edge(MAX_POOL, 2, 0), Edge(AVG_POOL, 2, 1), Edge(AVG_POOL, 3, 0), Edge(DIL_5, 3, 1),
            Edge(AVG_POOL, 4, 0), Edge(SEP_5, 4, 1), Edge(SKIP, 5, 0), Edge(SKIP, 5, 1)])
FairDARTS_b = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_3, 2, 1), Edge(SEP_3, 3, 1), Edge(DIL_3, 4, 0),
            Edge(SEP_5, 4, 1), Edge(DIL_5, 5, 1)],
    reduce=[Edge(SKIP, 2, 0), Edge(DIL_3, 2, 1), Edge(SKIP, 3, 0), Edge(DIL_3, 3, 1),
            Edge(MAX_POOL, 4, 0), Edge(SEP_3, 4, 1), Edge(SKIP, 5, 2), Edge(MAX_POOL, 5, 0)])
FairDARTS_c = Genotype(
    normal=[Edge(MAX_POOL, 2, 0), Edge(SEP_5, 2, 1), Edge(DIL_3, 4, 0), Edge(DIL_5, 4, 2),
            Edge(SEP_3, 5, 0)],
    reduce=[Edge(DIL_3, 2, 1), Edge(DIL_5, 2, 0), Edge(DIL_3, 3, 0), Edge(SEP_3, 3, 1),
            Edge(SEP_5, 4, 0), Edge(SEP_5, 4, 3), Edge(SEP_5, 5, 0), Edge(SKIP, 5, 1)])
FairDARTS_d = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_5, 2, 1), Edge(DIL_3, 3, 1), Edge(MAX_POOL, 3, 0),
            Edge(DIL_3, 4, 0), Edge(DIL_3, 4, 1), Edge(SEP_3, 5, 0), Edge(DIL_5, 5, 1)],
    reduce=[Edge(MAX_POOL, 2, 0), Edge(SEP_5, 2, 1), Edge(AVG_POOL, 3, 0), Edge(DIL_5, 3, 2),
            Edge(DIL_3, 4, 3), Edge(AVG_POOL, 4, 0), Edge(AVG_POOL, 5, 0), Edge(SKIP, 5, 3)])
FairDARTS_e = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_3, 2, 1), Edge(DIL_3, 4, 1), Edge(DIL_3, 4, 2),
            Edge(DIL_3, 5, 0), Edge(DIL_5, 5, 1)],
    reduce=[Edge(MAX_POOL, 2, 1), Edge(MAX_POOL, 2, 0), Edge(MAX_POOL, 3, 1), Edge(MAX_POOL, 3, 0),
            Edge(SEP_5, 4, 1), Edge(MAX_POOL, 4, 0), Edge(AVG_POOL, 5, 0), Edge(DIL_5, 5, 1)])
FairDARTS_f = Genotype(
    normal=[Edge(MAX_POOL, 2, 0), Edge(SEP_3, 2, 1), Edge(DIL_3, 3, 1), Edge(SEP_5, 4, 1),
            Edge(SEP_3, 5, 0), Edge(SEP_3, 5, 1)],
    reduce=[Edge(MAX_POOL, 2, 0), Edge(MAX_POOL, 2, 1), Edge(MAX_POOL, 3, 0), Edge(DIL_3, 3, 1),
            Edge(DIL_3, 4, 2), Edge(MAX_POOL, 4, 0), Edge(MAX_POOL, 5, 0), Edge(SEP_3, 5, 1)])
FairDARTS_g = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_3, 2, 1), Edge(SEP_5, 4, 1), Edge(DIL_3, 5, 0),
            Edge(SEP_3, 5, 1)],
    reduce=[Edge(AVG_POOL, 2, 1), Edge(SKIP, 2, 0), Edge(SKIP, 3, 2), Edge(MAX_POOL, 3, 1),
            Edge(SEP_5, 4, 3), Edge(MAX_POOL, 4, 0), Edge(DIL_3, 5, 1), Edge(DIL_3, 5, 4)])

# The architectures that the paper compares with
DARTS_V1 = Genotype(
    normal=[Edge(SEP_3, 2, 1), Edge(SEP_3, 2, 0), Edge(SKIP, 3, 0), Edge(SEP_3, 3, 1),
            Edge(SKIP, 4, 0), Edge(SEP_3, 4, 1), Edge(SEP_3, 5, 0), Edge(SKIP, 5, 2)],
    reduce=[Edge(MAX_POOL, 2, 0), Edge(MAX_POOL, 2, 1), Edge(SKIP, 3, 2), Edge(MAX_POOL, 3, 0),
            Edge(MAX_POOL, 4, 0), Edge(SKIP, 4, 2), Edge(SKIP, 5, 2), Edge(AVG_POOL, 5, 0)])
DARTS_V2 = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_3, 2, 1), Edge(SEP_3, 3, 0), Edge(SEP_3, 3, 1),
            Edge(SEP_3, 4, 1), Edge(SKIP, 4, 0), Edge(SKIP, 5, 0), Edge(DIL_3, 5, 2)],
    reduce=[Edge(MAX_POOL, 2, 0), Edge(MAX_POOL, 2, 1), Edge(SKIP, 3, 2), Edge(MAX_POOL, 3, 1),
            Edge(MAX_POOL, 4, 0), Edge(SKIP, 4, 2), Edge(SKIP, 5, 2), Edge(MAX_POOL, 5, 1)])
P_DARTS = Genotype(
    normal=[Edge(SKIP, 2, 0), Edge(DIL_3, 2, 1), Edge(SKIP, 3, 0), Edge(SEP_3, 3, 1),
            Edge(SEP_3, 4, 1), Edge(SEP_3, 4, 3), Edge(SEP_3, 5, 0), Edge(DIL_5, 5, 4)],
    reduce=[Edge(AVG_POOL, 2, 0), Edge(SEP_5, 2, 1), Edge(SEP_3, 3, 0), Edge(DIL_5, 3, 2),
            Edge(MAX_POOL, 4, 0), Edge(DIL_3, 4, 1), Edge(DIL_3, 5, 1), Edge(DIL_5, 5, 3)])
PC_DARTS = Genotype(
    normal=[Edge(SEP_3, 2, 1), Edge(SKIP, 2, 0), Edge(SEP_3, 3, 0), Edge(DIL_3, 3, 1),
            Edge(SEP_5, 4, 0), Edge(SEP_3, 4, 1), Edge(AVG_POOL, 5, 0), Edge(DIL_3, 5, 1)],
    reduce=[Edge(SEP_5, 2, 1), Edge(MAX_POOL, 2, 0), Edge(SEP_5, 3, 1), Edge(SEP_5, 3, 2),
            Edge(SEP_3, 4, 0), Edge(SEP_3, 4, 3), Edge(SEP_3, 5, 1), Edge(SEP_3, 5, 2)])
SNAS = Genotype(
    normal=[Edge(SEP_3, 2, 0), Edge(SEP_3, 2, 1), Edge(SKIP, 3, 0), Edge(DIL_3, 3, 1),
            Edge(SKIP, 4, 1), Edge(SKIP, 4, 0), Edge(SKIP, 5, 0), Edge(SEP_3, 5, 1)],
    reduce=[Edge(MAX_POOL, 2, 0), Edge(MAX_POOL, 2, 1), Edge(MAX_POOL, 3, 1), Edge(SKIP, 3, 2),
            Edge(SKIP, 4, 2), Edge(MAX_POOL, 4, 1), Edge(MAX_POOL, 5, 0), Edge(DIL_5, 5, 2)])
GDAS = Genotype(
    normal=[Edge(SKIP, 2, 0), Edge(SKIP, 2, 1), Edge(SKIP, 3, 0), Edge(SEP_5, 3, 2),
            Edge(SEP_3, 4, 3), Edge(SKIP, 4, 0), Edge(SEP_5, 5, 4), Edge(SEP_3, 5, 3)],
    reduce=[Edge(SEP_5, 2, 0), Edge(SEP_3, 2, 1), Edge(SEP_5, 3, 2), Edge(SEP_5, 3, 1),
            Edge(DIL_5, 4, 2), Edge(SEP_3, 4, 1), Edge(SEP_5, 5, 0), Edge(SEP_5, 5, 2)])

# A published model of the space S2
FairNAS_A = ChainGenotype(layers=[(name,) for name in (
    "mb3_k7 mb3_k3 mb3_k7 mb6_k3 mb6_k7 mb3_k3 mb3_k3 mb6_k7 mb6_k7 mb3_k5 mb6_k3 mb3_k5 mb3_k5 "
    "mb6_k3 mb6_k3 mb6_k7 mb6_k3 mb6_k7 mb6_k5").split()])

PUBLISHED = {name: value for name, value in list(globals().items())
             if isinstance(value, (Genotype, ChainGenotype))}


def get(text):
    """The Genotype or ChainGenotype that `text` means. Raises GenotypeError.

    text: a published name ("FairDARTS_a"), the path of a genotype.json, a
        "ChainGenotype(...)", or a "Genotype(...)" as this project, DARTS and Fair DARTS
        print it: edges (op, node, source), or pairs (op, source), two for each node.
    """
    if text in PUBLISHED:
        return PUBLISHED[text]
    if "Genotype(" in text:
        return _checked(_parse(text))
    if os.path.isfile(text):
        return load(text)
    raise GenotypeError(f"unknown architecture {_short(text)}: {nearest(text, PUBLISHED)}; "
                        "a path to a genotype.json or a 'Genotype(...)' text works too")


def load(path):
    """The Genotype or ChainGenotype in a JSON file. Raises GenotypeError."""
    try:
        with open(path) as file:
            return _checked(json.load(file))
    except GenotypeError as error:
        raise GenotypeError(f"{path}: {error}") from None
    except OSError as error:
        raise GenotypeError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):  # not JSON, or not even text
        raise GenotypeError(f"{path}: not a JSON file") from None


def to_json(genotype):
    """`genotype` as JSON: {"normal": [[op, node, source], ...], "reduce": [...]},
    or {"layers": [[name, ...], ...]} for a chain."""
    return json.dumps(genotype._asdict(), indent=1)


def save(genotype, path):
    """Write `genotype` to `path` as JSON."""
    write_whole(path, to_json(genotype))


def write_whole(path, content):
    """Write a file whole or not at all. content: text or bytes. Raises OSError."""
    if isinstance(content, str):
        content = content.encode(errors="backslashreplace")
    part = f"{path}.{secrets.token_hex(4)}.part"
    try:
        with open(part, "xb") as file:  # a new file: no link is followed
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise


def prune(edges):
    """`edges` without those that leave a node which no edge enters, until none does."""
    while True:
        states = {0, 1} | {edge.node for edge in edges}
        kept = [edge for edge in edges if edge.source in states]
        if len(kept) == len(edges):
            return kept
        edges = kept


def random_genotype(counts, primitives, seed, accepted=lambda genotype: True, tries=10000):
    """A Genotype of counts[0] and counts[1] edges, each cell drawn uniformly from those that
    a search can leave: at most two edges into a node, none from a node that nothing enters;
    the first that is `accepted`. Raises GenotypeError where none of so many `tries` is.
    """
    dice = random.Random(seed)
    for _ in range(tries):
        genotype = Genotype(*(_random_cell(count, primitives, dice) for count in counts))
        if accepted(genotype):
            return genotype
    raise GenotypeError(f"none of {tries:,} random genotypes is of the kind that is asked for")


def _random_cell(count, primitives, dice):
    edges = [(node, source) for node in range(2, LAST_NODE + 1) for source in range(node)]
    while True:
        cell = [Edge(dice.choice(primitives), *edge) for edge in sorted(dice.sample(edges, count))]
        entered = [edge.node for edge in cell]
        if max(map(entered.count, entered)) <= 2 and prune(cell) == cell:
            return cell


def nearest(word, names):
    """'did you mean ...?' with the name most like `word`; if none is, all `names`."""
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower()[:100], lower, 1)
    return f"did you mean {lower[close[0]]!r}?" if close else "choose from " + ", ".join(names)


def _parse(text):
    """{field: value} of the genotype that `text` ends with; parsed, never executed."""
    kind = ChainGenotype if "ChainGenotype(" in text else Genotype
    text = text[text.index(kind.__name__ + "("):].strip()
    try:
        call = ast.parse(text, mode="eval").body
        fields = {keyword.arg: _value(keyword.value) for keyword in call.keywords}
        if not set(kind._fields) <= set(fields):
            raise ValueError
        return fields
    except Exception:  # a wrong text makes ast raise nearly anything
        raise GenotypeError(
            f"cannot read {_short(text)}: expected Genotype(normal=[('sep_conv_3x3', 2, 0), ...], "
            "reduce=[...]) or ChainGenotype(layers=[('mb3_k7',), ...])") from None


def _value(node):
    """The value of a parsed expression; only Edge and range are called."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    if isinstance(node, ast.Call):
        function = {"Edge": Edge, "range": range}[node.func.id]
        return function(*[_value(item) for item in node.args],
                        **{item.arg: _value(item.value) for item in node.keywords})
    return ast.literal_eval(node)


def _checked(fields):
    """The Genotype or ChainGenotype of {field: value}, every part checked."""
    names = set(fields) if isinstance(fields, dict) else set()
    if names == {"layers"}:
        return ChainGenotype(_checked_layers(fields["layers"]))
    if names - {"normal_concat", "reduce_concat"} != {"normal", "reduce"}:
        raise GenotypeError("a genotype has exactly two cells, 'normal' and 'reduce'")
    all_nodes = range(2, LAST_NODE + 1)
    return Genotype(*[_checked_cell(cell, fields[cell], fields.get(cell + "_concat", all_nodes))
                      for cell in Genotype._fields])


def _checked_layers(layers):
    if not isinstance(layers, list) or len(layers) != len(CHAIN):
        got = len(layers) if isinstance(layers, list) else _short(layers)
        raise GenotypeError(f"a chain has {len(CHAIN)} layers, got {got}")
    for layer, (names, same_shape) in enumerate(zip(layers, SAME_SHAPE)):
        where = f"layer {layer}, {_short(names)}: "
        if not isinstance(names, list) or not names:
            raise GenotypeError(where + "expected a list of one or more choices")
        for name in names:
            if name not in CHOICES:
                raise GenotypeError(where + f"unknown choice; {nearest(str(name), CHOICES)}")
            if name == "skip_connect" and not same_shape:
                raise GenotypeError(where + "no identity here: the layer changes the shape")
        if len(set(names)) < len(names):
            raise GenotypeError(where + "a choice is named twice")
    return [tuple(names) for names in layers]


def _checked_cell(cell, items, concat):
    """The edges of a cell, checked and pruned. concat: the nodes of its output."""
    if not isinstance(items, list):
        raise GenotypeError(f"{cell} cell: expected a list of edges, got {_short(items)}")
    if len(items) % 2 == 0 and all(isinstance(item, list) and len(item) == 2 for item in items):
        items = [(op, 2 + index // 2, source) for index, (op, source) in enumerate(items)]
    edges = []
    for edge in (_checked_edge(cell, item) for item in items):
        if edge in edges:
            raise GenotypeError(f"{cell} cell, edge {tuple(edge)}: it is named twice")
        edges.append(edge)
    kept = prune(edges)
    if not kept:
        reason = "it has no edge that comes from an input" if edges else "it has no edge"
        raise GenotypeError(f"{cell} cell: {reason}")
    for edge in edges:
        if edge not in kept:
            warnings.warn(f"{cell} cell: edge {tuple(edge)} dropped, "
                          f"since nothing enters node {edge.source}")
        elif not isinstance(concat, (list, range)) or edge.node not in concat:
            raise GenotypeError(
                f"{cell} cell, edge {tuple(edge)}: {cell}_concat leaves out node {edge.node}, "
                "but a cell's output is the concatenation of all its nodes")
    return kept


def _checked_edge(cell, item):
    from operations import OPS  # not at the top, since operations.py imports this file
    if not isinstance(item, (list, tuple)) or len(item) != 3:
        raise GenotypeError(f"{cell} cell, edge {_short(item)}: expected (op, node, source), "
                            "or pairs (op, source), two for each node")
    op, node, source = item
    where = f"{cell} cell, edge {_short((op, node, source))}: "
    if op not in list(OPS):
        raise GenotypeError(where + f"unknown operation; {nearest(str(op), OPS)}")
    if type(node) is not int or not 2 <= node <= LAST_NODE:
        raise GenotypeError(where + f"it must enter a node from 2 to {LAST_NODE}")
    if type(source) is not int or not 0 <= source < node:
        raise GenotypeError(
            where + f"it must leave a state from 0 to {node - 1}, before node {node}")
    return Edge(op, node, source)


def _short(value):
    try:
        return reprlib.repr(value).replace("\n", " ")
    except ValueError:  # Python does not print numbers of thousands of digits
        return "a number of thousands of digits"
