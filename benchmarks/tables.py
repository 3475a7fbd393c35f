"""The README's tables of measurements, from the committed rows.

python -m benchmarks.tables benchmarks/results --write README.md

Each table stands between ``<!-- NAME -->`` and ``<!-- end NAME -->``, NAME being ``assignment``,
``matcher``, ``step`` or ``loader``. Without ``--write`` the tables are printed.
"""

import argparse
import re
from pathlib import Path

from benchmarks.plot import FAMILIES, FLOOR, MATCHERS, READING, SOLVERS, Row, read


def assignment_table(rows: list[Row]) -> str:
    """The headline set in float32: milliseconds of each solver."""
    rows = [row for row in rows if row["set"] == "headline" and row["dtype"] == "float32"]
    lines = table_head(
        "queries x targets", "predictions", *SOLVERS, "numpy.min", "next best / detr_fast"
    )
    for row in _ours(rows, "detr_fast"):
        mine = {
            other["variant"]: other
            for other in rows
            if (other["queries"], other["family"]) == (row["queries"], row["family"])
        }
        next_best = min(
            float(other["p50_us"])
            for name, other in mine.items()
            if name in SOLVERS and name != "detr_fast" and other["p50_us"]
        )
        lines.append(
            table_line(
                f"{row['queries']} x 1..{row['targets']}",
                FAMILIES[row["family"]],
                *(_ms(mine.get(name)) for name in (*SOLVERS, READING)),
                f"{next_best / float(row['p50_us']):.1f}",
            )
        )
    return "\n".join(lines)


def matcher_table(rows: list[Row]) -> str:
    """Six decoder layers on two threads in common sizes: milliseconds of each matcher."""
    rows = [row for row in rows if row["set"] == "sizes" and row["threads"] == "2"]
    lines = table_head("images x queries x targets up to", "predictions", *MATCHERS, "torch.exp")
    for row in _ours(rows, "FastMatcher"):
        size = ("images", "queries", "targets")
        mine = {
            other["variant"]: other
            for other in rows
            if all(other[key] == row[key] for key in ("family", *size))
        }
        lines.append(
            table_line(
                " x ".join(row[key] for key in size),
                FAMILIES[row["family"]],
                *(_ms(mine.get(name)) for name in (*MATCHERS, FLOOR)),
            )
        )
    return "\n".join(lines)


LOADERS = {
    "published loader": "published loader",
    "detr_fast": "detr_fast",
    "left for a GPU to normalise": "detr_fast, a GPU normalises",
    "with a cache": "detr_fast, cached",
}
LOADER_SETS = {
    "coco": "640 x 480, published transforms",
    "photos": "2560 x 1920, published transforms",
    "small": "640 x 480 to 320 x 240, with zoom and colours",
}


def loader_table(rows: list[Row]) -> str:
    """Images per second of each loader, with the number of workers at which it is fastest."""
    lines = table_head("pictures", *LOADERS.values())
    for set_, title in LOADER_SETS.items():
        cells = []
        for name in LOADERS:
            mine = [
                r["images_per_second"] for r in rows if (r["set"], r["variant"]) == (set_, name)
            ]
            cells.append(max(mine, key=float, default="-"))
        lines.append(table_line(title, *cells))
    return "\n".join(lines)


ALLOCATORS = {"kept": "", "default": ", C library's defaults"}


def step_table(rows: list[Row]) -> str:
    """Images per second, and memory, of whole training steps."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    lines = table_head("", *(f"{name}: images/s, MiB per image" for name in variants))
    cases = dict.fromkeys((row["precision"], row["allocator"]) for row in rows)
    for case in sorted(cases, key=lambda case: list(ALLOCATORS).index(case[1])):
        mine = {r["variant"]: r for r in rows if (r["precision"], r["allocator"]) == case}
        cells = []
        for name in variants:
            speed = f"{float(mine[name]['images_per_second']):#.3g}"
            speed = f"**{speed}**" if name == "detr_fast" else speed
            cells.append(f"{speed}, {float(mine[name]['peak_mb_per_image']):.0f}")
        lines.append(table_line(case[0] + ALLOCATORS[case[1]], *cells))
    return "\n".join(lines)


TABLES = {
    "step": ("train_step_cpu.csv", step_table),
    "loader": ("loader_cpu.csv", loader_table),
    "assignment": ("assignment_cpu.csv", assignment_table),
    "matcher": ("matcher_cpu.csv", matcher_table),
}


def render(results: Path) -> dict[str, str]:
    """The tables by name."""
    return {name: table(read(results / rows)) for name, (rows, table) in TABLES.items()}


def insert(text: str, tables: dict[str, str]) -> str:
    """``text`` with every table in its place.

    Raises:
        ValueError: if the text has no place for one.
    """
    for name, table in tables.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"no <!-- {name} --> ... <!-- end {name} -->")
        text = place.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def publish(tables: dict[str, str], path: Path | None) -> None:
    """Put the tables in their places in a file, or print them where there is none."""
    if path:
        path.write_text(insert(path.read_text(), tables))
        print(f"wrote {path}")
    else:
        print("\n\n".join(tables.values()))


def _ours(rows: list[Row], name: str) -> list[Row]:
    """Our rows by size, the kinds of predictions in a fixed order."""
    return [row for row in rows if row["variant"] == name]


def table_head(*names: str) -> list[str]:
    """The two lines that a Markdown table begins with."""
    return [table_line(*names), "|" + "---|" * len(names)]


def table_line(*cells: str) -> str:
    """A line of a Markdown table."""
    return f"| {' | '.join(cells)} |"


def _ms(row: Row | None) -> str:
    """Milliseconds to three digits, ours in bold; a dash where a rival was left out."""
    if row is None or not row["p50_us"]:
        return "-"
    time = float(row["p50_us"]) / 1000
    text = f"{time:.0f}" if time >= 100 else f"{time:#.3g}"
    return f"**{text}**" if row["variant"] in ("detr_fast", "FastMatcher") else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, help="folder with the rows")
    parser.add_argument("--write", type=Path, help="Markdown file to put the tables in")
    args = parser.parse_args()
    publish(render(args.results), args.write)


if __name__ == "__main__":
    main()
