"""The report's page: one file of HTML without a script, whose colours, figures and tables fit light, dark and a phone."""

import html
from collections.abc import Sequence
from string import Template

from kdjax.runs.report._style import PALETTE, Drawn, as_svg

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>$title</title>
<style>
:root { color-scheme: light dark; --ground: #ffffff; --card: #f6f8fa; --line: #d0d7de; --soft: #57606a; $light }
@media (prefers-color-scheme: dark) {
  :root { --ground: #15191e; --card: #1d232a; --line: #39424c; --soft: #a3adb8; $dark }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem clamp(0.8rem, 3vw, 2.5rem) 3rem; max-width: 76rem; background: var(--ground);
  color: var(--ink); font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; margin: 0.3rem 0; line-height: 1.2; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 0.6rem; padding-top: 0.6rem; border-top: 1px solid var(--line); }
p { margin: 0.4rem 0; max-width: 60rem; }
.verdict { font-size: 1.1rem; }
small, figcaption, dd, .note { color: var(--soft); }
small { display: block; font-weight: normal; font-size: 0.78rem; line-height: 1.3; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); gap: 1rem; }
.figures.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 20rem), 1fr)); }
.figures.whole { grid-template-columns: minmax(0, 1fr); }
figure { margin: 0; padding: 0.8rem; background: var(--card); border: 1px solid var(--line); border-radius: 0.5rem;
  min-width: 0; }
figure > svg { display: block; width: 100%; height: auto; margin: 0 auto; }
figcaption { font-size: 0.88rem; margin-top: 0.4rem; }
figcaption b { display: block; color: var(--ink); font-weight: 600; }
svg text { font-family: "DejaVu Sans", Verdana, sans-serif !important; }
svg image, img { image-rendering: pixelated; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; }
.results { width: 100%; font-size: 0.92rem; }
.results td.code { min-width: 14rem; overflow-wrap: anywhere; }
.results th, .results td { padding: 0.35rem 0.55rem; text-align: left; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: normal; }
.results thead th { font-weight: 600; }
.results th[scope=row] { min-width: 8.5rem; font-weight: 600; }
td.number, .cards .short { font-variant-numeric: tabular-nums; white-space: nowrap; }
td.code, dd { font-family: ui-monospace, monospace; font-size: 0.85rem; overflow-wrap: anywhere; }
.range { white-space: nowrap; }
.key { display: inline-block; width: 0.7em; height: 0.7em; margin-right: 0.4em; border-radius: 2px; }
.key.teacher, .bar .teacher { background: var(--teacher); }
.key.alone, .bar .alone { background: var(--alone); }
.key.distilled, .bar .distilled { background: var(--distilled); }
.key.teacher { border-radius: 0; } .key.distilled { border-radius: 50%; }
.pictures, .cards { list-style: none; margin: 0; padding: 0; display: grid; gap: 0.7rem; }
.pictures { grid-template-columns: repeat(auto-fill, minmax(5.2rem, 1fr)); text-align: center; }
.cards { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.pictures li, .cards li > div { display: flex; flex-direction: column; align-items: center; gap: 0.2rem; }
.cards li { display: flex; gap: 0.7rem; align-items: center; min-width: 0; }
.pictures img, .cards img { width: 4.6rem; height: auto; border-radius: 3px; }
.cards li > div { flex: none; width: 5.6rem; font-size: 0.85rem; text-align: center; }
.cards table { flex: 1; min-width: 0; font-size: 0.85rem; }
.cards th { text-align: left; font-weight: normal; white-space: nowrap; }
.cards th, .cards td { padding: 0.12rem 0.3rem; }
.cards .wrong td { font-weight: 700; }
.bar { width: 34%; } .bar b { display: block; height: 0.6rem; min-width: 1px; border-radius: 2px; }
.maps { font-size: 0.75rem; text-align: center; }
.maps td { padding: 0.15rem; } .maps th { font-weight: normal; padding: 0.15rem 0.3rem; }
.maps img { width: clamp(4.4rem, 8vw, 6.5rem); height: auto; display: block; }
@media (max-width: 38rem) {
  .results { font-size: 0.78rem; } .results small { font-size: 0.68rem; }
  .results th, .results td { padding: 0.3rem 0.22rem; }
  .results td.code { min-width: 7.5rem; font-size: 0.7rem; }
  .results th[scope=row] { min-width: 5.9rem; } .results td.number { white-space: normal; }
}
dl { margin: 0; } dt { font-weight: 600; } dd { margin: 0 0 0.6rem; min-width: 0; }
</style>
</head>
<body>
<header><p class="note">kdjax: report of a distillation</p><h1>$title</h1>
$verdict
<p class="note">$about</p></header>
<main>
$sections
</main>
</body>
</html>
""")


def page(title: str, verdict: Sequence[str], about: str, sections: Sequence[str]) -> str:
    """The whole page; `title`, `verdict` and `about` are plain text, `sections` of `section`."""
    colours = [" ".join(f"--{name}: {pair[mode]};" for name, pair in PALETTE.items()) for mode in (0, 1)]
    said = "\n".join(f'<p class="verdict">{html.escape(line[0].upper() + line[1:])}.</p>' for line in verdict)
    return _PAGE.substitute(
        title=html.escape(title),
        verdict=said,
        about=html.escape(about),
        light=colours[0],
        dark=colours[1],
        sections="\n".join(one for one in sections if one),
    )


def section(title: str, *parts: str | Sequence[Drawn]) -> str:
    """A heading and what stands under it, figures side by side where there is room; nothing without any."""
    inside = "\n".join(part if isinstance(part, str) else _figures(part) for part in parts if part)
    return f"<section>\n<h2>{html.escape(title)}</h2>\n{inside}\n</section>" if inside else ""


def _figures(drawn: Sequence[Drawn]) -> str:
    kind = " whole" if any(one.html for one in drawn) else " three" if len(drawn) == 3 else ""
    return f'<div class="figures{kind}">{"".join(_figure(one) for one in drawn)}</div>'


def _figure(drawn: Drawn) -> str:
    shown = drawn.html or as_svg(drawn)
    said = f"<b>{html.escape(drawn.title)}</b> {html.escape(drawn.finding)}"
    return f'<figure id="{html.escape(drawn.name)}">{shown}<figcaption>{said}</figcaption></figure>\n'
