"""The text of an architecture, read and checked: a published name, a path to
genotype.json, or a "Genotype(...)" text. Nothing that is read is executed.

    >>> get("FairDARTS_a").normal[0]
    Edge(op='sep_conv_3x3', node=2, source=0)

`spaces`: modules of further spaces, whose genotypes are read as well, see
spaces/__init__.py.
"""
import ast
import json
import os
import reprlib
import warnings

from engine.flags import UserError, nearest
from fair_darts import prune
from genotypes import LAST_NODE, PUBLISHED, Edge, Genotype
from operations import OPS


class GenotypeError(UserError, ValueError):
    """A text or file that is no genotype; the message, one line, names the edge."""


def get(text, spaces=()):
    """The genotype that `text` means. Raises GenotypeError.

    text: a published name ("FairDARTS_a"), the path of a genotype.json, or a
        "Genotype(...)" as this project, DARTS and Fair DARTS print it: edges (op, node,
        source), or pairs (op, source), two for each node; of another space, as `print`
        shows it, for NAS-Bench-201 "|nor_conv_3x3~0|+|...|+|...|".
    """
    published = dict(PUBLISHED)
    for space in spaces:
        published.update(space.PUBLISHED)
    if text in published:
        return published[text]
    readers = [space.from_text for space in spaces if hasattr(space, "from_text")]
    if text.startswith("|") and readers:
        return own_text(text, *readers)
    if "Genotype(" in text:
        return checked(parse(text, spaces), spaces)
    if os.path.isfile(text):
        return load(text, spaces)
    raise GenotypeError(f"unknown architecture {short(text)}: {nearest(text, published)}; "
                        "a path to a genotype.json or a 'Genotype(...)' text works too")


def own_text(text, from_text):
    """The genotype of a text like those of NAS-Bench-201. Raises GenotypeError."""
    try:
        return from_text(text)
    except ValueError as error:
        raise GenotypeError(str(error)) from None


def load(path, spaces=()):
    """The genotype in a JSON file. Raises GenotypeError."""
    try:
        with open(path) as file:
            return checked(json.load(file), spaces)
    except GenotypeError as error:
        raise GenotypeError(f"{path}: {error}") from None
    except OSError as error:
        raise GenotypeError(f"{path}: {error.strerror}") from None
    except (ValueError, RecursionError):  # not JSON, or not even text
        raise GenotypeError(f"{path}: not a JSON file") from None


def to_json(genotype):
    """`genotype` as JSON: {"normal": [[op, node, source], ...], "reduce": [...]}, or in
    another space its own fields."""
    return json.dumps(genotype._asdict(), indent=1)


def parse(text, spaces):
    """{field: value} of the genotype that `text` ends with; parsed, never executed."""
    kinds = {space.GENOTYPE.__name__: space.GENOTYPE for space in spaces}
    name = next((name for name in kinds if name + "(" in text and name != "Genotype"), "Genotype")
    try:
        call = ast.parse(text[text.index(name + "("):].strip(), mode="eval").body
        fields = {keyword.arg: value_of(keyword.value) for keyword in call.keywords}
        if not set(kinds.get(name, Genotype)._fields) <= set(fields):
            raise ValueError
        return fields
    except Exception:  # a wrong text makes ast raise nearly anything
        raise GenotypeError(
            f"cannot read {short(text)}: expected Genotype(normal=[('sep_conv_3x3', 2, 0), ...], "
            "reduce=[...]) or ChainGenotype(layers=[('mb3_k7',), ...])") from None


def value_of(node):
    """The value of a parsed expression; only Edge and range are called."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return [value_of(item) for item in node.elts]
    if isinstance(node, ast.Call):
        function = {"Edge": Edge, "range": range}[node.func.id]
        return function(*[value_of(item) for item in node.args],
                        **{item.arg: value_of(item.value) for item in node.keywords})
    return ast.literal_eval(node)


def checked(fields, spaces):
    """The genotype of {field: value}, every part checked."""
    names = set(fields) if isinstance(fields, dict) else set()
    for space in spaces:
        if space.GENOTYPE is not Genotype and names == set(space.GENOTYPE._fields):
            try:
                return space.checked(fields)
            except ValueError as error:
                raise GenotypeError(str(error)) from None
    if names - {"normal_concat", "reduce_concat"} != {"normal", "reduce"}:
        raise GenotypeError("a genotype has exactly two cells, 'normal' and 'reduce'")
    all_nodes = range(2, LAST_NODE + 1)
    return Genotype(*[checked_cell(cell, fields[cell], fields.get(cell + "_concat", all_nodes))
                      for cell in Genotype._fields])


def checked_cell(cell, items, concat):
    """The edges of a cell, checked and pruned. concat: the nodes of its output."""
    if not isinstance(items, list):
        raise GenotypeError(f"{cell} cell: expected a list of edges, got {short(items)}")
    if len(items) % 2 == 0 and all(isinstance(item, list) and len(item) == 2 for item in items):
        items = [(op, 2 + index // 2, source) for index, (op, source) in enumerate(items)]
    edges = []
    for edge in (checked_edge(cell, item) for item in items):
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


def checked_edge(cell, item):
    if not isinstance(item, (list, tuple)) or len(item) != 3:
        raise GenotypeError(f"{cell} cell, edge {short(item)}: expected (op, node, source), "
                            "or pairs (op, source), two for each node")
    op, node, source = item
    where = f"{cell} cell, edge {short((op, node, source))}: "
    if op not in list(OPS):
        raise GenotypeError(where + f"unknown operation; {nearest(str(op), OPS)}")
    if type(node) is not int or not 2 <= node <= LAST_NODE:
        raise GenotypeError(where + f"it must enter a node from 2 to {LAST_NODE}")
    if type(source) is not int or not 0 <= source < node:
        raise GenotypeError(
            where + f"it must leave a state from 0 to {node - 1}, before node {node}")
    return Edge(op, node, source)


def short(value):
    try:
        return reprlib.repr(value).replace("\n", " ")
    except ValueError:  # Python does not print numbers of thousands of digits
        return "a number of thousands of digits"
