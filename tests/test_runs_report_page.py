"""The report at the end of a comparison: the numbers of the results, nothing from elsewhere, legible at any width."""

import html
import io
import json
import re
import sys

import chromium
import numpy as np
import pytest
from comparisons import DATA, lines, run

from kdjax.metrics import mean_interval
from kdjax.runs import write_report
from kdjax.runs.report import _kept, _style

TITLE = 'digits <script>alert("1")</script> & $co'
NAMES = ("teacher", "alone", "distilled")


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    out, said = tmp_path_factory.mktemp("runs") / "run", io.StringIO()
    run(out, said, seeds=2, title=TITLE)
    return out, said.getvalue(), (out / "report.html").read_text()


def cells(page, title):
    """The row of the table of results with this title, as plain text by network."""
    row = next(one for one in re.findall(r"<tr>(.*?)</tr>", page) if re.search(rf'<th scope="row">{title}[<,]', one))
    found = re.findall(r'<td class="number">(.*?)</td>', row)
    return {
        name: html.unescape(re.sub(r"<small>.*|<.*?>", "", cell)).replace("\xa0", " ")
        for name, cell in zip(NAMES, found, strict=True)
    }


def test_the_numbers_are_those_of_the_results(finished_run):
    out, said, page = finished_run
    assert said.splitlines()[-1] == f"Report: {out / 'report.html'}"
    results = json.loads((out / "results.json").read_text())
    for title, key in (("test accuracy", "accuracy"), ("agrees with the teacher", "agreement")):
        for name, text in cells(page, title).items():
            if text:
                values = [100 * seed[name][key] for seed in results["seeds"]]
                assert text == f"{mean_interval(values):.2f}"
    assert cells(page, "parameters") == {name: f"{count:,}" for name, count in results["parameters"].items()}
    last = np.mean([100 * lines(out, "distilled", seed)[-1]["test"]["accuracy"] for seed in range(2)])
    assert f"distilled {last:.2f}." in page
    rate = re.search(r"accuracy transfer rate: (\S+) %", said)
    assert cells(page, "transfer rate")["distilled"] == (rate[1] if rate else "none")
    for word in ("soft_target_kl(temperature=4.0)", "0.7 × ", results["versions"]["jax"], "2 seeds", "n = 360"):
        assert word in page


def test_what_is_measured_again_agrees_with_the_evaluation(finished_run):
    out, _, page = finished_run
    first, (kept, arrays) = json.loads((out / "results.json").read_text())["seeds"][0], _kept.load(out)
    for name in NAMES:
        right = arrays[f"first_{name}"] == DATA[1].labels
        assert right.mean() == pytest.approx(first[name]["accuracy"], abs=1e-6)
        # In each bin of the largest probability: how sure on average, how often right.
        sure = arrays[f"sure_{name}"].astype(np.float64)
        place = np.ceil(sure * 15)
        error = sum(abs(right[place == b].sum() - sure[place == b].sum()) for b in range(1, 16)) / len(sure)
        assert float(cells(page, "ECE")[name]) == pytest.approx(100 * error, abs=0.01)
        assert (
            kept["costs"][name]["weight_bytes"]
            == 4 * json.loads((out / "results.json").read_text())["parameters"][name]
        )
    same = (arrays["first_alone"] == arrays["first_teacher"]).mean()
    assert same == pytest.approx(first["alone"]["agreement"], abs=1e-6)


def test_a_title_is_text_and_nothing_is_fetched_or_run(finished_run):
    _, _, page = finished_run
    assert "<script" not in page
    assert f"<h1>{html.escape(TITLE)}</h1>" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "url(" not in re.sub(r"url\(#", "", page)
    assert "@import" not in page


def test_every_figure_has_its_picture_axes_and_finding(finished_run):
    out, _, page = finished_run
    figures = re.findall(r'<figure id="([\w-]+)">(.*?)</figure>', page, flags=re.DOTALL)
    assert {name for name, _ in figures} == {path.stem for path in (out / "report-figures").glob("*.png")}
    assert {"learning", "terms", "weights", "numbers", "confusion-distilled", "differences", "reliability"} <= dict(
        figures
    ).keys()
    assert {"first-pictures", "test-pictures", "differing-pictures", "cka-alone", "soft-targets"} <= dict(
        figures
    ).keys()
    for name, content in figures:
        assert re.search(r"\bn = \d|seed|\d (training|test) pictures", content), name
        assert re.search(r"<figcaption><b>.+?</b> .+\.</figcaption>", content), name
        if "<svg" in content:
            assert re.search(r'<svg [^>]*role="img" aria-label="[^"]{20,}"', content), name
            assert "var(--ink)" in content, name
            assert not [light for light, _ in _style.PALETTE.values() if light in content], name
        else:
            assert content.count("<img") == len(re.findall(r'<img alt="[^"]{3,}"', content)), name
    # A wrong first choice is marked by more than a colour.
    assert "✗" in dict(figures)["differing-pictures"]
    # The dense network's maps are one pixel each: of where it looks there is nothing to see.
    assert "attention" not in dict(figures)


def test_writing_again_writes_the_same_and_measures_nothing(finished_run):
    out, _, page = finished_run
    data = (out / "report-data.npz").read_bytes()
    left_over = out / "report-figures" / ".loss.png.0a1b2c3d.tmp"  # of a writer that was killed
    left_over.touch()
    assert write_report(out).read_text() == page
    assert not left_over.exists()
    run(out, seeds=2, title=TITLE, resume=True)
    assert (out / "report-data.npz").read_bytes() == data
    assert len(data) < 200_000


@pytest.mark.parametrize(
    "change",
    [
        lambda results: results["seeds"][0].pop("alone"),
        lambda results: results.update(seeds="abc"),
        lambda results: results.update(seeds=[]),
        lambda results: results["parameters"].pop("teacher"),
    ],
)
def test_results_of_something_else_are_named(finished_run, tmp_path, change):
    results = json.loads((finished_run[0] / "results.json").read_text())
    change(results)
    (tmp_path / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=r"results\.json has no seeds or parameters of teacher, alone, distilled"):
        write_report(tmp_path)


def test_without_matplotlib_the_run_is_whole_and_says_so(finished_run, monkeypatch):
    out, _, page = finished_run
    (out / "report.html").unlink()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    said = io.StringIO()
    results = run(out, said, seeds=2, title=TITLE, resume=True)
    assert "The report was not written, since matplotlib is not installed." in said.getvalue()
    assert "distilled − alone" in said.getvalue()
    assert len(results["seeds"]) == 2
    monkeypatch.undo()
    assert write_report(out).read_text().count("<figure") == page.count("<figure")


def test_a_report_that_fails_takes_nothing_away(finished_run, monkeypatch):
    out, _, _ = finished_run
    seeds = json.loads((out / "results.json").read_text())["seeds"]
    before = [[seed[name]["accuracy"] for name in NAMES] for seed in seeds]

    def broken(*given):
        raise RuntimeError("no such colour")

    monkeypatch.setattr(_style, "as_svg", broken)
    monkeypatch.setattr("kdjax.runs.report._page.as_svg", broken)
    said = io.StringIO()
    run(out, said, seeds=2, title=TITLE, resume=True)
    assert "The report was not written: RuntimeError: no such colour" in said.getvalue()
    after = json.loads((out / "results.json").read_text())["seeds"]
    assert [[seed[name]["accuracy"] for name in NAMES] for seed in after] == before


@pytest.mark.skipif(chromium.FOUND is None, reason="needs Chromium, such as Debian's package chromium")
def test_in_a_browser_nothing_overflows_and_nothing_is_said(finished_run, tmp_path):
    page = tmp_path / "report.html"
    page.write_text(finished_run[2])
    with chromium.Browser() as browser:
        grounds = set()
        for width in (1280, 390):
            for dark in (False, True):
                assert browser.open(page, width, dark=dark) == []
                assert browser.ask("document.documentElement.scrollWidth") <= browser.ask("innerWidth") == width
                # Nothing sticks out of the page's width but what scrolls in its own container.
                wide = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.wide') && !one.closest('svg')
                    && one.getBoundingClientRect().right > innerWidth + 0.5).map(one => one.outerHTML.slice(0, 80))"""
                assert browser.ask(wide) == []
                assert browser.ask("[...document.images].every(one => one.complete && one.naturalWidth > 0)") is True
                grounds.add(browser.ask("getComputedStyle(document.body).backgroundColor"))
                assert len(browser.screenshot()) > 50_000
        assert len(grounds) == 2
