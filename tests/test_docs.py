"""README and docs: every command line is one that the code takes, every link and name
is there."""
import ast
import importlib
import re
import shlex
from decimal import Decimal
from pathlib import Path

import pytest
import torch

import train_eval
import train_search
from engine import flags

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SCRIPTS = {"train_search.py": train_search.PARSER, "train_eval.py": train_eval.PARSER}
COMMANDS = {"study.visualize": "visualize", "study.reproduce": "reproduce",
            "speed.benchmark": "benchmark", "use.predict": "predict_pictures",
            "use.export": "export_run", "study.strength": "strength"}


def command_lines():
    """(page, words) of every command in a block or between backquotes, but those of an
    older commit, which stands before them."""
    for page in PAGES:
        text = re.sub(r"\b[0-9a-f]{7}, `[^`]+`", "", page.read_text())
        blocks = [block for language, block in re.findall(r"```(\w*)\n(.*?)```", text, re.S)
                  if not language]
        prose = re.sub(r"```.*?```", "", text, flags=re.S)
        inline = [" ".join(piece.split()) for piece in re.findall(r"`([^`]+)`", prose)]
        for line in "\n".join(blocks + inline).split("\n"):
            words = shlex.split(line.split(" # ")[0])
            if "python" in words or "torchrun" in words:
                yield page.name, words


LINES = [*command_lines()]


@pytest.mark.parametrize("page, words", LINES, ids=[f"{page} {' '.join(w)}" for page, w in LINES])
def test_command_lines_are_taken(page, words, monkeypatch):
    scripts = [index for index, word in enumerate(words) if word in SCRIPTS]
    if scripts:
        words = [word for word in words if word != "..."]  # what is the reader's own
        if "--arch" in words:
            words[words.index("--arch") + 1] = "FairDARTS_a"
        SCRIPTS[words[scripts[0]]].parse_args(words[scripts[0] + 1:])
    elif "-m" in words and words[words.index("-m") + 1] != "pytest":
        place = words.index("-m") + 1
        words = words[:words.index("--")] if "--" in words else words  # flags of other commands
        module = importlib.import_module(words[place])

        class Parsed(Exception):
            pass

        def parse_args(self, arguments=None):
            flags.Parser.parse_known_args(self, words[place + 1:])
            known = {option for action in self._actions for option in action.option_strings}
            assert {word for word in words[place + 1:] if word.startswith("--")} <= known
            raise Parsed

        monkeypatch.setattr(module.Parser, "parse_args", parse_args)
        with pytest.raises(Parsed):
            getattr(module, COMMANDS[words[place]])()


@pytest.mark.slow
def test_the_method_on_one_screen_runs(capsys):
    """The README's first Python code, as it stands: at most 30 lines, of the root."""
    code = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)[1]
    assert len(code.split("\n")) <= 30
    packages = set(re.findall(r"^(?:from|import) (\w+)", code, re.M))
    assert packages == {"torch", "sklearn", "fair_darts", "model_search"}
    torch.manual_seed(0)
    exec(compile(code, "README.md", "exec"), {})
    losses = re.findall(r"validation loss (\S+),", capsys.readouterr().out)
    assert 2.3 > float(losses[0]) > float(losses[-1])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_names_are_there(page):
    text = page.read_text()
    for target, part in re.findall(r"\]\(([^)#]+)#?([^)]*)\)", text):
        if not target.startswith("https://"):
            assert (page.parent / target).exists(), target
            assert not part or f"# {part}\n" in re.sub(
                "^#+ .*", lambda heading: "# " + re.sub(r"[^\w -]", "", heading[0]).strip()
                .lower().replace(" ", "-"), (page.parent / target).read_text(), flags=re.M), part
    modules = r"(?:fair_darts|model_search|model_eval|operations|train_search|train_eval)"
    for module, name in re.findall(rf"`({modules})\.(?!py\b)([\w.]+)`", text):
        value = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)


def results(page):
    """[(verdict, numbers)] of the rows of its tables of claims."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in (ROOT / page).read_text().split("\n") if line.startswith("|")]
    return [(verdict, [Decimal(n) for cell in cells for n in re.findall(r"-?\d+\.\d+", cell)])
            for _, *cells, verdict in rows if verdict in ("held", "not held", "undecided")]


def test_what_is_quoted_is_on_the_page_of_results():
    """In its order; numbers differ by half a unit of the last quoted digit at most."""
    rows, quoted = iter(results("docs/results.md")), results("README.md")
    assert len(quoted) > 4
    for verdict, numbers in quoted:
        for known, exact in rows:
            left = iter(exact)  # which may have others, a p-value, between them
            if known == verdict and all(any(
                    abs(number - one) <= Decimal(5).scaleb(number.as_tuple().exponent - 1)
                    for one in left) for number in numbers):
                break
        else:
            raise AssertionError(f"{verdict}: {numbers}")


def test_lines_have_at_most_100_columns_and_docstrings_88():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")]:
        text = path.read_text(encoding="utf8")
        limits = [100] * len(text.split("\n"))
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (
                    ast.get_docstring(node)):
                start, end = node.body[0].lineno - 1, node.body[0].end_lineno
                limits[start:end] = [88] * (end - start)
        for number, (line, limit) in enumerate(zip(text.split("\n"), limits), 1):
            assert len(line) <= limit, f"{path}, line {number}"
