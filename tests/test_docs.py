"""The documentation: its code runs, its table is right, every public name has an entry, and the site asks no network."""

import inspect
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import chromium
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from cases import CASES, NOT_LOSSES

import kdjax.runs.compare  # noqa: F401  (to be patched)
from kdjax import connectors, losses

ROOT = Path(__file__).parents[1]
STRATEGIES = sorted({*(ROOT / "docs" / "strategies").glob("*.md")} - {ROOT / "docs" / "strategies" / "index.md"})
PAGES = sorted(
    {*(ROOT / "docs").glob("*.md")} - {ROOT / "docs" / "common-mistakes.md"}
)  # which test_experiments_common_mistakes.py runs
ROWS = {case.name: case for case in CASES}


@pytest.mark.parametrize("page", PAGES + STRATEGIES, ids=lambda page: page.name)
def test_code_in_pages_runs(page, monkeypatch):
    names: dict = {}
    text = page.read_text()
    if "report.html" not in text:  # it takes longer than the comparison
        monkeypatch.setattr(
            sys.modules["kdjax.runs.compare"], "report_at_end", lambda *run: "No report: this is a test."
        )
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL):
        exec(compile(block, page.name, "exec"), names)


def test_the_first_pages_show_code():
    assert (ROOT / "docs" / "index.md").read_text().count("```python") == 2
    assert (ROOT / "docs" / "guide.md").read_text().count("```python") >= 1


@pytest.mark.parametrize("page", STRATEGIES, ids=lambda page: page.name)
def test_each_way_to_distil_has_one_example_that_can_fail_and_a_row(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)
    assert len(blocks) == 1
    assert "assert " in blocks[0]
    assert len(page.read_text().splitlines()) <= 120
    assert f"({page.name})" in (page.parent / "index.md").read_text()


# | loss | compares | shapes | needs | batch | work | memory | mind | paper |
TABLE = [
    (found[1], [cell.strip() for cell in line.strip("|").split("|")])
    for line in (ROOT / "docs" / "guide.md").read_text().splitlines()
    if (found := re.match(r"\| \[`(\w+)`\]\[kdjax\.losses\.\1\] \|", line))
]


def accepts_another_width(case):
    """Whether the teacher's last axis may have another size than the student's."""
    arrays = [jnp.asarray(a, jnp.float32 if a.dtype == float else None) for a in case.make(np.random.default_rng(0), 4)]
    for _, teacher in case.pairs:
        arrays[teacher] = arrays[teacher][..., 1:]
    try:
        case.function(*arrays, **case.keywords)
    except (ValueError, jaxtyping.TypeCheckError):
        return False
    return True


def test_the_table_has_each_loss_once():
    assert sorted(name for name, _ in TABLE) == sorted(set(losses.__all__) - set(NOT_LOSSES))


@pytest.mark.parametrize(("name", "cells"), TABLE, ids=[name for name, _ in TABLE])
def test_the_table_says_what_is_so(name, cells):
    _, _, shapes, needs, batch, _, _, _, paper = cells
    function = getattr(losses, name)
    assert batch == ("whole" if ROWS[name].couples_batch else "own")
    assert ("labels" in needs) == ("labels" in inspect.signature(function).parameters)
    assert re.search(r"\((.*)\)", paper)[1] in function.__doc__
    if (
        name != "top_k_kl" and ROWS[name].pairs
    ):  # its stored arrays have a width of their own; and one network has no other
        assert accepts_another_width(ROWS[name]) == ("any" in shapes and "same channels" not in shapes)


@pytest.mark.parametrize("name", sorted(losses.__all__))
def test_every_loss_has_its_formula(name):
    assert ("$$" in getattr(losses, name).__doc__) == (name not in {"Bank", "init_bank", "draw_negatives"})


@pytest.mark.parametrize("room", [losses, connectors], ids=lambda room: room.__name__)
def test_every_name_has_one_entry(room):
    entries = "\n".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    written = re.findall(rf"^::: {re.escape(room.__name__)}\.(\w+)$", entries, flags=re.MULTILINE)
    assert sorted(written) == sorted(room.__all__)


class _Fetched(HTMLParser):
    """What a browser fetches by itself on opening a page: not the links that a reader may follow."""

    def __init__(self):
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        if tag == "link" and named.get("rel") not in ("canonical", "prev", "next"):
            self.addresses.append(named["href"])
        self.addresses += [named[name] for name in ("src", "srcset", "data", "poster") if name in named and tag != "a"]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    built = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_fetches_nothing_from_elsewhere(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 14
    for page in pages:
        fetched = _Fetched()
        fetched.feed(page.read_text())
        assert fetched.addresses
        for address in fetched.addresses:
            assert not re.match(r"(\w+:)?//", address) or address.startswith("data:"), f"{page.name} fetches {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", style.read_text()), (
            f"{style.name} fetches something"
        )


def test_formulas_are_drawn_by_the_browser(site):
    formulas = 0
    for page in site.rglob("*.html"):
        text = page.read_text()
        formulas += text.count('<div class="formula"><math')
        assert "arithmatex" not in text, f"{page.name} has a formula that was not converted"
        # latex2mathml writes a command that it does not know as it stands.
        for mathml in re.findall(r"<math.*?</math>", text, flags=re.DOTALL):
            assert not re.search(r"[\\$]", mathml), f"{page.name}: {mathml}"
    assert formulas >= len(ROWS)


def test_no_command_has_become_prose(site):
    for page in site.rglob(
        "*.html"
    ):  # Markdown takes an indented block right after a list for the list's next paragraph
        assert not re.search(r"<(p|li)>\s*(pip install|python|kdjax) [^<]*(--|\.py|-e )", page.read_text()), page.name


def found_by(browser, page, word):
    """How many results the search of a page that was just opened shows."""
    browser.open(page, 390)
    browser.ask("document.querySelector('#__search').click()")
    browser.ask(f"document.querySelector('.md-search__input').value = {word!r}")
    for _ in range(200):
        browser.ask("document.querySelector('.md-search__input').dispatchEvent(new Event('keyup', {bubbles: true}))")
        if found := browser.ask("document.querySelectorAll('.md-search-result__item').length"):
            return found
        time.sleep(0.1)
    return 0


@pytest.mark.skipif(chromium.FOUND is None, reason="needs Chromium, such as Debian's package chromium")
def test_the_first_pages_fit_a_phone_and_the_search_works_from_disk(site):
    with chromium.Browser() as browser:
        for name in ("getting-started", "coming-from-pytorch", "coming-from-keras", "faq", "benchmarks", "index"):
            assert browser.open(site / f"{name}.html", 390) == []
            assert browser.ask("document.documentElement.scrollWidth") <= 390, name
        # lunr may fail at some words alone, for what other pages say: mkdocs.yml, separator.
        for word in ("temperature", "int8", "soft_target_kl"):
            assert found_by(browser, site / "index.html", word) > 3, word
