"""Search spaces by name, which offer what `space.Space` says; texts of genotypes."""
import json
import os
from collections import ChainMap

from spaces import nasbench201, s1, s2
from spaces.texts import GenotypeError, nearest, parse, short

SPACES = {"s1": s1.S1(), "s2": s2.S2(), "nasbench201": nasbench201.NB201()}
# Those of all, in the order of the spaces; what is added to one is in here
CANDIDATES = ChainMap(*(space.CANDIDATES for space in reversed(SPACES.values())))


def foreign(space, kind):
    """{flag: the name of a space that has it} of the flags that `space` does not have.
    kind: "SEARCH_FLAGS" or "EVAL_FLAGS"."""
    own = getattr(space, kind)
    return {flag: name for name, other in reversed(SPACES.items())
            for flag in getattr(other, kind) - own}


def read(text):
    """(space, genotype) that a text means. Raises GenotypeError.

    text: a published name ("FairDARTS_a"), the path of a genotype.json or of a search,
        or a "Genotype(...)" as this project, DARTS and Fair DARTS print it: edges (op,
        node, source), or pairs (op, source), two for each node; of another space, as
        `print` shows it, for NAS-Bench-201 "|nor_conv_3x3~0|+|...|+|...|".
    """
    published = {name: (space, genotype) for space in SPACES.values()
                 for name, genotype in space.PUBLISHED.items()}
    if text in published:
        return published[text]
    if text.startswith("|"):
        return checked(nasbench201.fields_of(text))
    if "Genotype(" in text:
        return checked(parse(text))
    if os.path.isdir(text):
        text = os.path.join(text, "genotype.json")
    if not os.path.isfile(text):
        raise GenotypeError(f"unknown architecture {short(text)}: {nearest(text, published)}; "
                            "a path to a genotype.json or a 'Genotype(...)' text works too")
    try:
        with open(text) as file:
            return checked(json.load(file))
    except (GenotypeError, OSError) as error:
        raise GenotypeError(f"{text}: {error}") from None
    except (ValueError, RecursionError):  # not JSON, or not even text
        raise GenotypeError(f"{text}: not a JSON file") from None


def checked(fields):
    """(space, genotype) of {field: value}, every part checked. Raises GenotypeError."""
    names = set(fields) if isinstance(fields, dict) else set()
    for space in SPACES.values():
        if names - {"normal_concat", "reduce_concat"} == set(space.GENOTYPE._fields):
            return space, space.checked(fields)
    raise GenotypeError("a genotype has exactly two cells, 'normal' and 'reduce'")


def to_json(genotype):
    """`genotype` as JSON: {"normal": [[op, node, source], ...], "reduce": [...]}, or in
    another space its own fields."""
    return json.dumps(genotype._asdict(), indent=1)
