"""Fonts for names in any script: matplotlib's own, else an installed one that has the letters."""

from __future__ import annotations

import functools
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_warned: list[str] = []  # the letters of the warning, once it was given


def font_file(text: str) -> str:
    """Return the file of the font that has the most letters of ``text``.

    That is DejaVu Sans, part of matplotlib, where it has them all (Latin, Greek, Cyrillic); else,
    for Chinese, say, the best of the installed ones. Warns, once, if none has them all: the
    others will be drawn as boxes.
    """
    return _best_font(frozenset(filter(str.isprintable, text)))


def use_fonts_with_letters(figure: Figure) -> None:
    """Let every text of the figure that DejaVu Sans cannot write fall back on a font that can."""
    from matplotlib.font_manager import get_font
    from matplotlib.text import Text

    for text in figure.findobj(Text):
        missing = frozenset(filter(str.isprintable, text.get_text())) - _letters(_dejavu())
        if missing:
            other = get_font(_best_font(missing)).family_name
            text.set_fontfamily([*text.get_fontfamily(), other])


@functools.lru_cache(maxsize=1024)
def _best_font(letters: frozenset[str]) -> str:
    best, most = _dejavu(), len(letters & _letters(_dejavu()))
    if most < len(letters):
        for file in _installed():
            has = len(letters & _letters(file))
            if has > most:
                best, most = file, has
            if most == len(letters):
                break
    if most < len(letters):
        _warn_once("".join(sorted(letters - _letters(best))))
    return best


def _warn_once(letters: str) -> None:
    if not _warned:
        _warned.append(letters)
        warnings.warn(
            f"no installed font has the letters {letters}, which are drawn as boxes, as others may "
            "be: install one that does, such as Noto Sans CJK for Chinese, Japanese and Korean",
            stacklevel=2,
        )


@functools.cache
def _dejavu() -> str:
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@functools.cache
def _installed() -> list[str]:
    """Return the fonts' files, upright ones of normal weight and without serifs first."""
    from matplotlib.font_manager import FontEntry, fontManager

    def rank(font: FontEntry) -> tuple[bool, int, bool, str]:
        weight = font.weight if isinstance(font.weight, int) else 400
        sans = "sans" in font.name.lower() or "gothic" in font.name.lower()
        return font.style != "normal", abs(weight - 400), not sans, font.name

    # Last Resort, part of matplotlib, has boxes for all letters.
    fonts = [font for font in fontManager.ttflist if not font.name.startswith("Last Resort")]
    return [font.fname for font in sorted(fonts, key=rank)]


@functools.lru_cache(maxsize=64)
def _letters(file: str) -> frozenset[str]:
    from matplotlib.ft2font import FT2Font

    try:
        font = FT2Font(file)
    except (OSError, RuntimeError):  # a damaged file, or gone since the list was made
        return frozenset()
    # Fonts of bitmaps, such as those of coloured emoji, cannot be drawn at every size.
    return frozenset(map(chr, font.get_charmap()) if font.scalable else ())
