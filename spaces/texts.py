"""Texts of genotypes, and what is said of wrong ones. Nothing that is read is run."""
import ast
import difflib
import json
import re
import reprlib
import warnings

from genotypes import Edge

# Genotype(...), with brackets in brackets in brackets; the text of a cell of NAS-Bench-201
CALL = re.compile(r"(?:Cell|Chain)?Genotype\((?:[^()]|\((?:[^()]|\((?:[^()]|\([^()]*\))*\))*\))*\)")
CELL = re.compile(r"\|\S*\|")


class GenotypeError(Exception):
    """A text or file that is no genotype; the message, one line, names the edge."""


def nearest(word, names):
    """'did you mean ...?' with the names that begin like `word`, or with which it
    begins; else with the one most like it; '' if there is none."""
    word, plain = word.lower().strip("-")[:100], {name.lower().strip("-"): name for name in names}
    begin = [name for name in plain if word and (name.startswith(word) or word.startswith(name))]
    close = [word] if word in plain else begin or difflib.get_close_matches(word, plain, 1, 0.7)
    return f"did you mean {' or '.join(repr(plain[name]) for name in close)}?" if close else ""


def choose(word, names):
    """The same, or all `names`."""
    return nearest(word, names) or "choose from " + ", ".join(names)


def short(value):
    """For a message."""
    return reprlib.repr(value).replace("\n", " ")


def fields_of(text):
    """{field: value} of the last genotype in a text, {} if it holds none. It is parsed,
    never run. Raises GenotypeError."""
    found = CALL.findall(text) or CELL.findall(text)
    if len({*found}) > 1:
        warnings.warn(f"of {len(found)} genotypes the last one is read")
    if found and found[-1].startswith("|"):
        return {"cell": found[-1]}
    if not found and "Genotype(" not in text and not text.lstrip().startswith("{"):
        return {}
    try:
        fields = value_of(ast.parse(found[-1], mode="eval").body) if found else json.loads(text)
        return {**fields.get("genotype", fields)}
    except Exception:  # a wrong text makes ast raise nearly anything
        raise GenotypeError(f"cannot read {short(text)}: expected Genotype(normal=[('sep_conv_3x3',"
                            " 2, 0), ...], reduce=[...])") from None


def value_of(node):
    """The value of a parsed expression."""
    if isinstance(node, (ast.List, ast.Tuple)):
        return [value_of(item) for item in node.elts]
    if isinstance(node, ast.Call):
        named = {item.arg: value_of(item.value) for item in node.keywords}
        if node.func.id.endswith("Genotype"):
            return named
        function = {"Edge": Edge, "range": range, "list": lambda items: items}[node.func.id]
        return function(*[value_of(item) for item in node.args], **named)
    return ast.literal_eval(node)


def checked_edges(cell, items, ops, nodes):
    """The edges (op, node, source) of a cell, each an operation of `ops` from a state
    before to one of the `nodes`. Raises GenotypeError."""
    if not isinstance(items, list):
        raise GenotypeError(f"{cell}: expected a list of edges, got {short(items)}")
    for item in items:
        where = f"{cell}, edge {short(tuple(item) if isinstance(item, list) else item)}: "
        if not isinstance(item, (list, tuple)) or len(item) != 3:
            raise GenotypeError(where + "expected (op, node, source), or in S1 pairs (op, source), "
                                "two for each node")
        op, node, source = item
        if op not in list(ops):
            raise GenotypeError(where + f"unknown operation; {choose(str(op), ops)}")
        if type(node) is not int or node not in nodes:
            raise GenotypeError(where + f"it must enter a node from {nodes[0]} to {nodes[-1]}")
        if type(source) is not int or source not in range(node):
            raise GenotypeError(where + f"it must leave a state from 0 to {node - 1}")
    return [Edge(*item) for item in items]
