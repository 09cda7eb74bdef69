"""Whether the figures of a page stand in the tables that it names.

A *block* is what stands between two blank lines: a paragraph, a list, a table. A *measured figure*
is a number in digits with a unit of memory, time or speed, or a ratio (`UNIT`), or a number in a
table whose header has such a unit, or with a comma or a point in any table. A block with one needs a mark before it:

    <!-- figures: peers[compressarray delta | numpy frame ring], first_use; 50 = 7102 / 141; given: 256 -->

Its parts, in any order:

- tables of `benchmarks/results`, without `.md`; in brackets the rows, by what they begin with;
- `figure = expression`: what follows from them by arithmetic, rounded as it is written;
- `given: ...`: settings and sizes that nobody measured, such as 256 transitions;
- `published: URL`: figures that others published there; the block leads to it.

Then every number of the block has to be one of a table's, rounded to as many places as the page
writes, or one of the others. What is neither in digits nor in such a block makes no claim.
"""  # noqa: E501

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

NUMBER = r"(?<![\w.,/-])\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?(?!(?!x\b)\w|/|-\w|\.\d)"
UNIT = (
    r"(?:(?:kilo|mega|giga)?bytes?|[KMG]i?B|us|µs|microseconds?|ms|milliseconds?|s|seconds?|minutes?|hours?"
    r"|x(?! ?\d)|times|%|per cent|(?:steps|transitions|frames) a second|steps/s)(?!\w)"
)  # fmt: skip
OPERATORS: dict[type, Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


@dataclass
class Block:
    text: str
    line: int
    mark: str | None


def blocks(page: str) -> Iterator[Block]:
    """What stands between blank lines, without code; marks go to the block that follows them."""
    mark, lines, fenced = None, [], False
    for number, line in enumerate([*page.splitlines(), ""], 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and line.strip() and not (line.startswith("    ") and not lines):
            lines.append(line)
            continue
        if not lines:
            continue
        text = "\n".join(lines)
        if marked := re.fullmatch(r"<!-- figures: (.*?) -->", text, re.DOTALL):
            mark = marked[1]
        elif not text.startswith(("#", "<!--")):
            yield Block(plain(text), number - len(lines), mark)
            mark = None
        lines = []


def plain(text: str) -> str:
    """Leave out what is no prose: code, pictures, where links lead to."""
    text = re.sub(r"`[^`]*`|!\[[^\]]*\]\([^)]*\)", "", text)
    return re.sub(r"\]\([^)]*\)", "]", text)


def numbers(text: str) -> list[str]:
    return [found.rstrip(",") for found in re.findall(NUMBER, text)]


def value(number: str) -> float:
    return float(number.replace(",", ""))


def measured(block: Block) -> list[str]:
    """Return the figures that need a source."""
    rows = block.text.splitlines() or [""]
    if rows[0].startswith("|"):
        if not re.search(rf"(?<!\w){UNIT}", rows[0]):
            exact = [number for number in numbers(block.text) if re.search(r"[,.]", number)]
            return [*re.findall(rf"({NUMBER})[ -]?{UNIT}", block.text), *exact]
        return [
            number for row in rows[2:] for cell in row.split("|")[2:] for number in numbers(cell)
        ]
    return re.findall(rf"({NUMBER})[ -]?{UNIT}", block.text)  # fmt: skip


def rows_of(source: str, results: Path) -> str:
    """Return a table's text, or those rows of it that are named."""
    name, _, rows = source.partition("[")
    text = (results / f"{name.strip()}.md").read_text()
    if not rows:
        return text
    kept = []
    for label in (each.strip() for each in rows.rstrip("] ").split("|")):
        of_label = [
            line for line in text.splitlines() if re.match(rf"\|\s*{re.escape(label)}\s*\|", line)
        ]
        if not of_label:
            raise ValueError(f"{name}.md has no row {label!r}")
        kept += of_label
    return "\n".join(kept)


def places(number: str) -> int:
    return len(number.partition(".")[2])


def is_rounded(number: str, exact: float, *, zeros: bool = False) -> bool:
    """Whether a number is an exact one, rounded to its places; with `zeros`, at its end."""
    digits = places(number)
    if zeros and not digits and (ending := re.search(r"0+$", number.replace(",", ""))):
        digits = -len(ending[0])
    return abs(value(number) - exact) <= 0.5 * 10.0**-digits * (1 + 1e-9)  # fmt: skip


def evaluate(expression: str, known: Callable[[float], bool]) -> float:
    """Compute, and see to it that every operand is known."""

    def of(node: ast.AST) -> float:
        if isinstance(node, ast.Expression):
            return of(node.body)
        if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
            return OPERATORS[type(node.op)](of(node.left), of(node.right))
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
            if not known(float(node.value)):
                raise ValueError(f"{node.value} of {expression!r} is in no table named")
            return float(node.value)
        raise ValueError(f"{expression!r} is no arithmetic")

    return of(ast.parse(expression.strip().replace(",", ""), mode="eval"))


# Conversions, not figures.
UNITS = (10.0, 100.0, 1e3, 1e6, 1e9)


def wrong(block: Block, results: Path) -> list[str]:
    """Say what of a block stands in no table that it names."""
    if block.mark is None:
        return [f"{number}: from which table?" for number in measured(block)]
    said, given, tables = numbers(block.text), [], ""
    derived: list[tuple[str, str]] = []
    for part in (part.strip() for part in block.mark.split(";")):
        if part.startswith("given:"):
            given += numbers(part)
        elif part.startswith("published:"):
            return []
        elif "=" in part:
            figure, _, expression = part.partition("=")
            derived.append((figure.strip(), expression))
        else:
            for source in re.findall(r"[\w-]+(?:\[[^\]]*\])?", part):
                try:
                    tables += rows_of(source, results) + "\n"
                except (OSError, ValueError) as error:
                    return [str(error)]
    exact = [value(number) for number in numbers(re.sub(r"[()%x]", " ", tables))]
    known = {*UNITS, *exact, *map(value, given)}
    errors = []
    for figure, expression in derived:
        try:
            result = evaluate(expression, known.__contains__)
        except ValueError as error:
            errors.append(str(error))
            continue
        if not is_rounded(figure, result, zeros=True):
            errors.append(f"{figure} = {expression.strip()} is {result:,.4g}")
        known.add(value(figure))
    operands = {value(each) for _, expression in derived for each in numbers(expression)}
    named = [*given, *(figure for figure, _ in derived)]
    unused = [each for each in named if each not in said and value(each) not in operands]
    errors += [f"{each} is named, and does not stand there" for each in unused]
    for number in said:
        known_otherwise = number in dict(derived) or number in given
        if not known_otherwise and not any(is_rounded(number, each) for each in exact):
            errors.append(f"{number} stands in no table named")
    return errors
