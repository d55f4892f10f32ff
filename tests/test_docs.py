"""The documentation: its examples run, its links lead somewhere, its pages follow the registry."""

import doctest
import re
import runpy
from pathlib import Path

import pytest

from spem.gates import GATES, gate_options

ROOT = Path(__file__).parents[1]
METHODS = ROOT / "docs" / "methods"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/**/*.md"))]
EACH_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings get where Markdown is shown."""
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@EACH_PAGE
def test_the_examples_run(page):
    """The blocks of a page follow one another, in one namespace."""
    text = page.read_text(encoding="utf-8")
    report, names = [], {"__name__": "__main__"}
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for fence in FENCE.finditer(text):
        if fence[1] != "python":
            continue
        line = text.count("\n", 0, fence.start()) + 1
        if ">>>" in fence[2]:
            test = doctest.DocTestParser().get_doctest(fence[2], names, page.name, str(page), line)
            runner.run(test, out=report.append, clear_globs=False)
            names = test.globs
        else:
            exec(compile("\n" * line + fence[2], page, "exec"), names)
    assert not runner.failures, "".join(report)


@EACH_PAGE
def test_the_links_lead_somewhere(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text):
        if "://" in target:
            continue
        file = page.parent / target if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_the_index_is_current():
    rendered = runpy.run_path(str(METHODS / "index.py"))["rendered"]()
    assert (METHODS / "README.md").read_text(encoding="utf-8") == rendered


@pytest.mark.parametrize("name", GATES)
def test_a_gate_has_a_page_with_its_options(name):
    page = (METHODS / f"{name}.md").read_text(encoding="utf-8")
    missing = [option for option in gate_options(name) if f"`{option}" not in page]
    assert not missing


def test_every_page_is_that_of_a_gate():
    assert {page.stem for page in METHODS.glob("*.md")} == {*GATES, "README"}


def test_the_pictures_are_those_that_the_script_draws(tmp_path):
    place = ROOT / "docs" / "pictures"
    script = runpy.run_path(str(place / "draw.py"))
    script["draw_diagram"](tmp_path)
    script["draw_feature_maps"](tmp_path)
    assert (tmp_path / "spem.svg").read_bytes() == (place / "spem.svg").read_bytes()
    assert (tmp_path / "max-and-min.png").stat().st_size > 50_000


def test_every_test_that_a_page_names_exists():
    text = (ROOT / "docs" / "in-your-network.md").read_text()
    named = re.findall(r"`(\w+/test_\w+\.py)`(?: `(test_\w+)`)?", text)
    assert len(named) >= 40
    for path, test in named:
        assert f"def {test}(" in (ROOT / "tests" / path).read_text() or not test, path
