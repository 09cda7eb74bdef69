"""Every measured figure of the README and of the pages stands in the table that it names."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.tables import BEGIN, END
from tests.figures import Block, blocks, measured, wrong

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
# Sizes there are the layout of files, in bytes.
LAYOUT = {"format.md"}
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").glob("*.md")) if page.name not in LAYOUT),
]

TABLE = """# A table

| system | bytes | us |
|---|---|---|
| ours | 141 | 1,365.2 |
| dense | 56,448 | 5.647e+04 |
"""


def written(page: Path) -> str:
    """Return what was written by hand: the list of tables is `tests/test_tables.py`'s."""
    head, _, rest = page.read_text().partition(BEGIN)
    return head + rest.partition(END)[2]


def check(page: str, folder: Path) -> list[str]:
    return [error for block in blocks(page) for error in wrong(block, folder)]


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "sizes.md").write_text(TABLE)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_figures_stand_in_a_table(page: Path) -> None:
    errors = [
        f"{page.name}:{block.line}: {error}"
        for block in blocks(written(page))
        for error in wrong(block, RESULTS)
    ]
    assert not errors, "\n".join(errors)


def test_ours_samples_faster_than_every_other_library() -> None:
    """The one claim of the README that no figure tells: whole rows are compared."""
    assert "faster than every other library's buffer" in (ROOT / "README.md").read_text()
    table = (RESULTS / "peers.md").read_text().partition("| game |")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    taken = {
        cells[0]: [float(us.replace(",", "")) for us in cells[5].split("/")]
        for cells in rows
        if len(cells) > 5 and re.fullmatch(r"[\d,]+ / [\d,]+", cells[5])
    }
    ours = taken["compressarray delta"]
    others = {
        name: us for name, us in taken.items() if not name.startswith(("compressarray", "numpy"))
    }
    assert len(others) >= 10
    for name, us in others.items():
        assert all(mine < theirs for mine, theirs in zip(ours, us, strict=True)), name


def test_the_rule_finds_what_to_check() -> None:
    marked = [block for page in PAGES for block in blocks(written(page)) if block.mark]
    assert len(marked) >= 15
    assert sum(map(len, map(measured, marked))) >= 100


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_table_that_changes_is_noticed(page: Path, tmp_path: Path) -> None:
    """Every block that names tables fails when all figures of these are others."""
    for table in RESULTS.glob("*.md"):
        changed = re.sub(
            r"\d[\d,]*(\.\d+)?", lambda found: f"{found[0]}7", table.read_text()
        )  # each at least ten times what it was, or another in the last place
        (tmp_path / table.name).write_text(changed)
    for block in blocks(written(page)):
        if block.mark and re.search(r"(?:^|; ?)[a-z][\w-]*(?:\[|,|;|$)", block.mark):
            assert wrong(block, tmp_path), f"{page.name}:{block.line}"


@pytest.mark.parametrize(
    "page",
    [
        "<!-- figures: sizes[ours] -->\n\nOurs takes 141 bytes and 1,365 us.",
        "<!-- figures: sizes[ours | dense]; 400 = 56448 / 141 -->\n\n400 times less than 56,448.",
        "<!-- figures: sizes[ours]; 1.4 = 1365.2 / 1000; given: 256 -->\n\n256 take 1.4 ms.",
        "<!-- figures: sizes -->\n\n| what | bytes |\n|---|---|\n| a | 141 |\n",
        "<!-- figures: published: https://a.org -->\n\nThey say 3 times ([there](https://a.org)).",
        "No figure, 84x84 pixels, `3 MB` of code, version 2.9.",
        "```sh\nmake  # 3 MB\n```",
        "| what | of |\n|---|---|\n| chapters | 4 |",
    ],
)
def test_what_is_right_passes(page: str, results: Path) -> None:
    assert check(page, results) == []


@pytest.mark.parametrize(
    ("page", "error"),
    [
        ("It takes 141 bytes.", "141: from which table"),
        ("| what | us |\n|---|---|\n| a | 3 |", "3: from which table"),
        ("<!-- figures: sizes[ours] -->\n\nIt takes 142 bytes.", "142 stands in no table"),
        ("<!-- figures: sizes[ours] -->\n\nIt takes 56,448 bytes.", "56,448 stands in no"),
        ("<!-- figures: sizes[theirs] -->\n\nIt takes 3 bytes.", "no row 'theirs'"),
        ("<!-- figures: gone -->\n\nIt takes 3 bytes.", "gone.md"),
        ("<!-- figures: sizes; 300 = 56448 / 141 -->\n\n300 times.", "is 400"),
        ("<!-- figures: sizes; 400 = 56400 / 141 -->\n\n400 times.", "56400 of .* in no table"),
        ("<!-- figures: sizes[ours] -->\n\nIt takes 1,364 us.", "1,364 stands in no"),
        ("<!-- figures: sizes[ours]; given: 9 -->\n\nIt takes 141 bytes.", "9 is named, and does"),
    ],
)
def test_what_is_wrong_is_told(page: str, error: str, results: Path) -> None:
    told = check(page, results)
    assert len(told) >= 1
    assert re.search(error, told[0])


def test_a_mark_is_of_the_next_block_alone(results: Path) -> None:
    page = "<!-- figures: sizes -->\n\nIt takes 141 bytes.\n\nAnd 142 bytes.\n"
    assert list(blocks(page)) == [
        Block("It takes 141 bytes.", 3, "sizes"),
        Block("And 142 bytes.", 5, None),
    ]
    assert check(page, results) == ["142: from which table?"]
