"""Pieces of a self-contained HTML page: everything is inline, all text is escaped, no script is needed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from rayssl.html_report.tables import Table

_STYLE = """
:root { color-scheme: light dark; --text: #1d2126; --soft: #59616b; --page: #fff; --line: #d5dae0; --band: #f4f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e3e7ec; --soft: #a0a9b4; --page: #14171b; --line: #3a414a; --band: #1d2228; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 60rem; font: 1rem/1.5 system-ui, sans-serif; color: var(--text);
  background: var(--page); overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 1rem 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .75rem; border-top: 1px solid var(--line); }
h3 { font-size: 1.05rem; margin: 1.75rem 0 .25rem; }
p, li, figcaption, .caption { max-width: 46rem; }
.warning { padding: .5rem .75rem; border-left: 4px solid #d9680f; background: var(--band); }
.scroll { overflow-x: auto; }
.caption, figcaption { color: var(--soft); font-size: .875rem; margin: .4rem 0 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9375rem; }
th, td { padding: .3rem .75rem .3rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
thead th { border-bottom-width: 2px; white-space: nowrap; }
tbody th { font-weight: 600; white-space: nowrap; }
td { min-width: 3.5rem; white-space: nowrap; }
td.long { min-width: 10rem; white-space: normal; }
.caption + .scroll, ul + .scroll { margin-top: 1rem; }
figure { margin: 1rem 0 1.5rem; break-inside: avoid; }
figure svg { display: block; width: 100%; max-width: 36rem; height: auto; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); gap: 0 1.5rem; }
img { display: block; max-width: 100%; height: auto; image-rendering: pixelated; }
img.grid { width: 100%; max-width: 44rem; }
img.natural { width: auto; image-rendering: auto; }
.neighbours td, .neighbours th { border: 0; padding: 0 .5rem .6rem 0; font-weight: 400; font-size: .75rem;
  line-height: 1.25; min-width: 5rem; max-width: 6rem; color: var(--soft); white-space: normal; }
.neighbours thead th { padding-bottom: .2rem; }
.neighbours img { width: 5rem; margin-bottom: .15rem; }
.neighbours .same { color: var(--text); font-weight: 600; }
ul.legend { display: flex; flex-wrap: wrap; gap: .15rem 1rem; margin: .4rem 0 0; padding: 0; list-style: none;
  font-size: .8125rem; }
.swatch { display: inline-block; width: 1.4em; border-top: .25em solid; margin-right: .4em; vertical-align: middle; }
.swatch.dashed { border-top-style: dashed; }
@media print {
  :root { --text: #000; --soft: #333; --page: #fff; --line: #999; --band: #eee; color-scheme: light; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; }
  table { font-size: .875rem; }
  thead th, tbody th, td, td.long { min-width: 0; white-space: normal; }
  h2, h3 { break-after: avoid; }
  tr, .panels > * { break-inside: avoid; }
}
"""


@dataclass(frozen=True)
class Neighbour:
    """A picture among those that are near another, or that one itself."""

    source: str
    """Data URI."""
    name: str
    """Of its class; "" without one."""
    similarity: str = ""
    """As it is written; "" for the query."""
    is_same: bool = False
    """Whether it is of the query's class."""


def page(title: str, body: Iterable[str]) -> str:
    """A whole document around finished pieces."""
    return "\n".join(
        [
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>",
            *body,
            "</main>\n</body>\n</html>\n",
        ]
    )


def heading(level: int, text: str) -> str:
    """A heading, h1 to h6."""
    return f"<h{level}>{escape(text)}</h{level}>"


def paragraph(text: str, *, kind: str = "") -> str:
    """A paragraph; the kind is one of the page's classes."""
    return f"<p{_class(kind)}>{escape(text)}</p>"


def bullets(items: Sequence[str]) -> str:
    """A list, or nothing without items."""
    return f"<ul>{''.join(f'<li>{escape(item)}</li>' for item in items)}</ul>" if items else ""


def table(content: Table) -> str:
    """A table that scrolls by itself where it is wider than the screen; a row's first cell is its title."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in content.header)
    rows = "".join(f"<tr>{_row(cells)}</tr>\n" for cells in content.rows)
    # Below the scrolled part, so that the caption stays in view on a phone.
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="table">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
        f"{paragraph(content.caption, kind='caption')}"
    )


def figure(drawing: str, caption: str, *, legend: Sequence[tuple[str, str, bool]] = ()) -> str:
    """A drawing that is HTML already, a legend (label, colour, whether dashed) and a caption."""
    entries = "".join(
        f'<li><span class="swatch{" dashed" if is_dashed else ""}" style="border-color: {colour}"></span>'
        f"{escape(label)}</li>"
        for label, colour, is_dashed in legend
    )
    shown = f'\n<ul class="legend">{entries}</ul>' if entries else ""
    return f"<figure>\n{drawing}{shown}\n<figcaption>{escape(caption)}</figcaption>\n</figure>"


def image(source: str, *, text: str, kind: str = "") -> str:
    """A picture given as data URI, and what it shows for those who can't see it."""
    return f'<img{_class(kind)} src="{escape(source)}" alt="{escape(text)}">'


def panels(figures: Sequence[str]) -> str:
    """Figures side by side where there is room."""
    return f'<div class="panels">\n{"".join(f"{each}{chr(10)}" for each in figures)}</div>'


def neighbour_table(rows: Sequence[Sequence[Neighbour]], caption: str) -> str:
    """Pictures in rows, the query first; those of its class are bold."""
    most = max(len(row) for row in rows)
    titles = ("picture", "nearest", *(f"{number}." for number in range(2, most)))[:most]
    head = "".join(f'<th scope="col">{title}</th>' for title in titles)
    body = "".join(f"<tr>{''.join(map(_neighbour, row))}</tr>\n" for row in rows)
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="nearest neighbours">\n'
        f'<table class="neighbours">\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>\n</div>\n'
        f"{paragraph(caption, kind='caption')}"
    )


def _neighbour(cell: Neighbour) -> str:
    said = "<br>".join(escape(text) for text in (cell.name, cell.similarity) if text)
    kind = _class("same" if cell.is_same else "")
    return f"<td{kind}>{image(cell.source, text=cell.name or 'picture')}{said}</td>"


def _row(cells: Sequence[str]) -> str:
    long = 24  # characters that may stand in one line
    return f'<th scope="row">{escape(cells[0])}</th>' + "".join(
        f"<td{_class('long' if len(cell) > long else '')}>{escape(cell)}</td>" for cell in cells[1:]
    )


def _class(name: str) -> str:
    return f' class="{name}"' if name else ""
