"""Texts of genotypes, and what is said of wrong ones. Nothing that is read is run."""
import ast
import difflib
import re
import reprlib

from genotypes import Edge


class GenotypeError(Exception):
    """A text or file that is no genotype; the message, one line, names the edge."""


def nearest(word, names):
    """'did you mean ...?' with the name most like `word`; if none is, all `names`."""
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(word.lower()[:100], lower, 1)
    return f"did you mean {lower[close[0]]!r}?" if close else "choose from " + ", ".join(names)


def short(value):
    """For a message."""
    return reprlib.repr(value).replace("\n", " ")


def parse(text):
    """{field: value} of the Genotype(...), ChainGenotype(...) or CellGenotype(...) that
    `text` ends with; parsed, never run. Raises GenotypeError."""
    try:
        call = ast.parse(text[re.search(r"\w*Genotype\(", text).start():].strip(), mode="eval").body
        return {keyword.arg: value_of(keyword.value) for keyword in call.keywords}
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


def checked_edges(cell, items, ops, nodes):
    """The edges (op, node, source) of a cell, each an operation of `ops` from a state
    before to one of the `nodes`. Raises GenotypeError."""
    if not isinstance(items, list):
        raise GenotypeError(f"{cell}: expected a list of edges, got {short(items)}")
    edges = []
    for item in items:
        if not isinstance(item, (list, tuple)) or len(item) != 3:
            raise GenotypeError(f"{cell}, edge {short(item)}: expected (op, node, source), "
                                "or in S1 pairs (op, source), two for each node")
        op, node, source = item
        where = f"{cell}, edge {short((op, node, source))}: "
        if op not in list(ops):
            raise GenotypeError(where + f"unknown operation; {nearest(str(op), ops)}")
        if type(node) is not int or node not in nodes:
            raise GenotypeError(where + f"it must enter a node from {nodes[0]} to {nodes[-1]}")
        if type(source) is not int or source not in range(node):
            raise GenotypeError(where + f"it must leave a state from 0 to {node - 1}, before node "
                                f"{node}")
        edges.append(Edge(op, node, source))
    return edges
