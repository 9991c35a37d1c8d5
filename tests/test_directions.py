"""Which way imports point: the root is the paper, rooms are around it, nothing goes in
a circle."""
import ast
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("spaces", "speed", "engine", "study", "use")
SCRIPTS = ("train_search", "train_eval")
MAY_IMPORT = {"root": {"root"}, "spaces": {"root", "spaces"}, "speed": {"root", "spaces", "speed"},
              "engine": {"root", "spaces", "engine"}, "study": {"root", *ROOMS},
              "use": {"root", *ROOMS}}
COMMANDS_THAT_START_RUNS = ("study.reproduce",)


def modules():
    """{dotted name: path} of all code but tests."""
    paths = [path for path in ROOT.glob("*.py") if not path.name.startswith("test_")]
    paths += [path for room in ROOMS for path in (ROOT / room).glob("*.py")]
    return {str(path.relative_to(ROOT).with_suffix("")).replace("/", ".").removesuffix(
        ".__init__"): path for path in paths}


def imports(path, known):
    """(line, module of the project, whether inside a function) of every import."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in known else node.module for name in names]
        else:
            names = [alias.name for alias in getattr(node, "names", [])
                     if isinstance(node, ast.Import)]
        yield from ((node.lineno, name, node not in tree.body) for name in names if name in known)


def room(name):
    return name.split(".")[0] if name.split(".")[0] in ROOMS else "root"


def test_imports_point_one_way_and_in_no_circle():
    known, graph = modules(), {}
    for name, path in known.items():
        graph[name] = {other for _, other, _ in imports(path, known)} - {name}
        late = [line for line, _, inside in imports(path, known) if inside]
        assert len(late) == (name == "study.watch"), f"{name}: imports inside functions, {late}"
        if name in SCRIPTS or name == "speed.benchmark":  # commands import what they call
            continue
        for other in graph[name]:
            assert room(other) in MAY_IMPORT[room(name)], f"{name} imports {other}"
            assert other not in SCRIPTS or name in COMMANDS_THAT_START_RUNS, f"{name}: {other}"
    while graph:  # what imports nothing that is left, until nothing is left
        free = [name for name, others in graph.items() if not others & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for name in free:
            del graph[name]
