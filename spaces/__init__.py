"""Search spaces by name, which offer what `space.Space` says; texts of genotypes."""
import json
import os
from collections import ChainMap

from spaces import nasbench201, s1, s2
from spaces.texts import GenotypeError, choose, fields_of, short

SPACES = {"s1": s1.S1(), "s2": s2.S2(), "nasbench201": nasbench201.NB201()}
# Those of all, in the order of the spaces; what is added to one is in here
CANDIDATES = ChainMap(*(space.CANDIDATES for space in reversed(SPACES.values())))


def foreign(space, kind):
    """{flag: the name of a space that has it} of the flags that `space` does not have.
    kind: "SEARCH_FLAGS" or "EVAL_FLAGS"."""
    own = getattr(space, kind)
    return {flag: name for name, other in reversed(SPACES.items())
            for flag in getattr(other, kind) - own}


def published():
    """{name: (space, genotype)} of those that stand in the code of a space."""
    return {name: (space, genotype) for space in SPACES.values()
            for name, genotype in space.PUBLISHED.items() if isinstance(genotype, space.GENOTYPE)}


def read(text):
    """(space, genotype) that a text means. Raises GenotypeError.

    text: a published name ("FairDARTS_a"), the folder of a search, or a file or text
        that holds one: "Genotype(...)" as this project, DARTS and others print it, of
        edges (op, node, source) or of pairs (op, source), two for each node or a list
        for each; its fields as JSON; "|nor_conv_3x3~0|+|...|" of NAS-Bench-201.
    """
    known, path = published(), os.path.expanduser(text)
    if text in known:
        genotype = known[text][1]
        return checked({**fields_of(repr(genotype)), **getattr(genotype, "concat", {})})
    if os.path.isdir(path):
        path = os.path.join(path, "genotype.json")
    if os.path.isfile(path):
        try:
            with open(path, encoding="utf-8", errors="replace") as file:
                return checked(fields_of(file.read()))
        except (GenotypeError, OSError) as error:
            raise GenotypeError(f"{path}: {error}") from None
    fields = fields_of(text)
    if fields:
        return checked(fields)
    if os.sep in path or path.endswith(".json"):
        raise GenotypeError(f"there is no file {path!r}; a search writes its genotype.json when it "
                            "ends")
    raise GenotypeError(
        f"unknown architecture {short(text)}: {choose(text, known)}; or give a search's folder, a "
        "file that holds a genotype, or its text, 'Genotype(...)' or '|nor_conv_3x3~0|+|...'")


def checked(fields):
    """(space, genotype) of {field: value}, every part checked. Raises GenotypeError."""
    for space in SPACES.values():
        own, besides = {*space.GENOTYPE._fields}, {"normal_concat", "reduce_concat"}
        if own <= fields.keys() and not any(fields[name] for name in fields.keys() - own - besides):
            return space, space.checked(fields)
    raise GenotypeError("no genotype found, which has exactly two cells, 'normal' and 'reduce'")


def to_json(genotype):
    """`genotype` as JSON: {"normal": [[op, node, source], ...], "reduce": [...]}, or in
    another space its own fields."""
    return json.dumps(genotype._asdict(), indent=1)
