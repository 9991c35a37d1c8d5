"""docs/walkthrough.ipynb: it is what docs/walkthrough.py says, it runs, and it computes
what README and pages quote."""
import re
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="pip install -r requirements-docs.txt")
nbclient = pytest.importorskip("nbclient", reason="pip install -r requirements-docs.txt")

DOCS = Path(__file__).parent.parent / "docs"


def printed(notebook):
    """All texts that its cells have printed."""
    return "".join(output.get("text", "") for cell in notebook.cells if cell.cell_type == "code"
                   for output in cell.outputs)


def test_the_committed_page_is_the_script_and_was_executed():
    script, page = (jupytext.read(DOCS / f"walkthrough.{kind}") for kind in ("py", "ipynb"))
    assert [(cell.cell_type, cell.source) for cell in script.cells] == [
        (cell.cell_type, cell.source) for cell in page.cells]
    assert len(page.cells) <= 46
    code = [cell for cell in page.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [*range(1, len(code) + 1)]
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    longest = max(len(output.get("text", "").split("\n")) for cell in code
                  for output in cell.outputs)
    assert longest <= 40  # a screen


def test_the_root_is_shown_and_not_copied():
    text = (DOCS / "walkthrough.py").read_text()
    for name in ("fair_darts", "model_search", "model_eval", "operations"):
        for line in (DOCS.parent / f"{name}.py").read_text().split("\n"):
            assert len(line.strip()) < 60 or line.strip() not in text, line


@pytest.mark.slow
def test_it_runs_and_computes_what_is_quoted():
    page = jupytext.read(DOCS / "walkthrough.py")
    nbclient.NotebookClient(page, timeout=600, resources={"metadata": {"path": DOCS}}).execute()
    text, committed = printed(page), printed(jupytext.read(DOCS / "walkthrough.ipynb"))
    readme = (DOCS.parent / "README.md").read_text()
    for quoted, computed in (
            ("0.9356", "by the balance 0.9356"), ("w01 = 3.81", "threshold 0.85: 3.81"),
            ("0.9354 to 0.9361", "from 0.9354 to 0.9361"), ("62 of the 64", "reduce: 62 of 64")):
        assert quoted in " ".join(readme.split()) and computed in text and computed in committed
    # what does not come from training must be the same everywhere
    for part in ("2,837,208 parameters", "alpha ends at", "own penalty: gates settle at"):
        assert [line for line in text.split("\n") if part in line] == [
            line for line in committed.split("\n") if part in line]
    numbers = re.findall(r"(held|not held|undecided) +(\S+)", text)
    assert numbers == re.findall(r"(held|not held|undecided) +(\S+)", committed) and numbers
