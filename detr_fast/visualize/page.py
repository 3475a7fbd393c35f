"""One page per run: a self-contained HTML file with its figures inside, which loads nothing."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from PIL import Image

_STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; margin: 0 auto;
       max-width: 1200px; padding: 1rem; }
h1 { font-size: 1.6rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ddd; }
p { margin: .4rem 0; }
.wide { overflow-x: auto; margin: .6rem 0; }
.wide img { display: block; width: 100%; height: auto; }
.figure img { min-width: 680px; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
td, th { padding: .2rem .8rem .2rem 0; text-align: left; border-bottom: 1px solid #eee;
         overflow-wrap: break-word; }
td.number, th.number { text-align: right; }
.tables { display: flex; flex-wrap: wrap; gap: 1rem 3rem; align-items: flex-start; }
.tables > .wide { min-width: 0; max-width: 100%; }
.figures { display: flex; flex-wrap: wrap; gap: .5rem 1.5rem; margin: .8rem 0; }
.figures div { min-width: 6rem; }
.figures b { display: block; font-size: 1.5rem; }
nav a { margin-right: .9rem; white-space: nowrap; }
"""


@dataclass
class Page:
    """A page that is built section by section."""

    title: str
    _sections: list[tuple[str, list[str]]] = field(default_factory=list)

    def section(self, title: str) -> None:
        """Begin a section."""
        self._sections.append((title, []))

    def text(self, text: str) -> None:
        self._add(f"<p>{html.escape(text)}</p>")

    def numbers(self, numbers: Mapping[str, str]) -> None:
        """Add a few important numbers, in large type."""
        parts = (f"<div><b>{html.escape(v)}</b>{html.escape(k)}</div>" for k, v in numbers.items())
        self._add(f'<div class="figures">{"".join(parts)}</div>')

    def tables(self, *tables: tuple[Sequence[str], Sequence[Sequence[str]]]) -> None:
        """Add tables (head, rows), side by side where there is room; numbers are right-aligned."""
        parts = []
        for head, rows in tables:
            right = [
                bool(rows) and all(_is_number(row[column]) for row in rows)
                for column in range(len(head))
            ]
            lines = [_row("th", head, right), *(_row("td", row, right) for row in rows)]
            parts.append(f'<div class="wide"><table>{"".join(lines)}</table></div>')
        self._add(f'<div class="tables">{"".join(parts)}</div>')

    def picture(self, picture: Image.Image, text: str, photograph: bool = False) -> None:
        """Add a picture, inside the page. ``text`` describes it to those who cannot see it.

        Args:
            photograph: store it as JPEG, a quarter of the size, and let it shrink on a small
                screen; a figure, with small print, is scrolled instead.
        """
        buffer = io.BytesIO()
        kind = "jpeg" if photograph else "png"
        # Without subsampling: thin lines would lose their colour.
        options = {"quality": 88, "subsampling": 0} if photograph else {}
        picture.convert("RGB").save(buffer, kind.upper(), **options)
        data = base64.b64encode(buffer.getvalue()).decode()
        shape = f'width="{picture.width}" height="{picture.height}"'
        style = f' style="max-width:{picture.width}px"'
        self._add(
            f'<div class="wide{"" if photograph else " figure"}"><img alt="{html.escape(text)}" '
            f'{shape}{style} src="data:image/{kind};base64,{data}"></div>'
        )

    def html(self) -> str:
        """Return the whole page."""
        links = " ".join(
            f'<a href="#s{i}">{html.escape(name)}</a>' for i, (name, _) in enumerate(self._sections)
        )
        body = "".join(
            f'<section id="s{i}"><h2>{html.escape(name)}</h2>{"".join(parts)}</section>\n'
            for i, (name, parts) in enumerate(self._sections)
        )
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{_STYLE}</style></head>\n"
            f"<body><h1>{html.escape(self.title)}</h1><nav>{links}</nav>\n{body}</body></html>\n"
        )

    def _add(self, part: str) -> None:
        if not self._sections:
            raise ValueError("a page needs a section before its first part")
        self._sections[-1][1].append(part)


def _is_number(text: str) -> bool:
    try:
        float(text.replace(",", ""))
    except ValueError:
        return text in ("", "-")
    return True


def _row(tag: str, cells: Sequence[str], right: Sequence[bool]) -> str:
    parts = (
        f"<{tag}{' class=number' if number else ''}>{html.escape(cell)}</{tag}>"
        for cell, number in zip(cells, right, strict=True)
    )
    return f"<tr>{''.join(parts)}</tr>"
