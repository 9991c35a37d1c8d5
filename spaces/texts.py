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
    try:
        return reprlib.repr(value).replace("\n", " ")
    except ValueError:  # Python does not print numbers of thousands of digits
        return "a number of thousands of digits"


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
