"""Making all tables: what has finished is not run again, and two never run at once."""

from __future__ import annotations

import fcntl
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from benchmarks import tables
from benchmarks.common import make_command
from benchmarks.tables import Runner, Table


def command(code: str) -> list[str]:
    return [sys.executable, "-c", code]


class Python(Table):
    """A table whose command is a line of Python."""

    def command(self, *, quick: bool = False) -> list[str]:
        return command(self.target)


def test_what_has_finished_is_left_out_for_the_same_code_alone(tmp_path, capsys):
    counts = f"with open({str(tmp_path / 'count')!r}, 'a') as file: file.write('x')"
    done, missing = Python("done", counts, "", 3), Python("missing", "pass", "", 4)
    runner = Runner(tmp_path, "a1")
    assert tables.show([done, missing], runner, quick=False, again=False) == [done, missing]
    assert "about 0 h 07 min" in capsys.readouterr().out
    assert runner.run("done", done.command(), {})

    again = Runner(tmp_path, "a1")  # another process, later
    assert tables.show([done, missing], again, quick=False, again=False) == [missing]
    out = capsys.readouterr().out
    assert re.search(r"finished .*write", out)
    assert "1 of 2 to run, about 0 h 04 min" in out
    assert tables.show([done], again, quick=False, again=True) == [done]

    other = Runner(tmp_path, "b2")
    assert tables.show([done], other, quick=False, again=False) == [done]
    assert "last time" in capsys.readouterr().out  # its minutes are known from a1
    assert (tmp_path / "count").read_text() == "x"


def test_what_failed_is_run_again(tmp_path):
    fails = command("print('what went wrong'); raise SystemExit(3)")
    runner = Runner(tmp_path, "a1")
    assert not runner.run("fails", fails, {})
    assert "what went wrong" in (tmp_path / "fails.log").read_text()
    assert not Runner(tmp_path, "a1").is_finished(fails)


def test_what_another_clone_has_made_is_left_out(tmp_path, capsys, monkeypatch):
    record = tmp_path / "made.json"
    record.write_text(json.dumps({tables.TABLES[3].name: {"commit": "a1", "minutes": 7.5}}))
    monkeypatch.setattr(tables, "MADE", record)
    some = tables.TABLES[3:5]
    assert tables.show(some, Runner(tmp_path, "a1"), quick=False, again=False) == [some[1]]
    assert tables.show(some, Runner(tmp_path, "b2"), quick=False, again=False) == list(some)
    assert "  7.5 min last time" in capsys.readouterr().out


def test_a_run_that_was_killed_is_not_finished_and_the_others_stay(tmp_path):
    finished, cut = command("pass"), command("import time; time.sleep(20)")
    Runner(tmp_path, "a1").run("finished", finished, {})
    script = (
        "from pathlib import Path\nfrom benchmarks.tables import Runner\nimport os, threading\n"
        "threading.Timer(1, os._exit, [9]).start()\n"
        f"Runner(Path({str(tmp_path)!r}), 'a1').run('cut', {cut!r}, {{}})"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tables.ROOT, check=False)
    assert done.returncode == 9
    later = Runner(tmp_path, "a1")
    assert later.is_finished(finished)
    assert not later.is_finished(cut)
    # The benchmark that was left behind still runs: no other one begins beside it.
    with pytest.raises(SystemExit, match="running already"):
        later.run("next", finished, {})


def test_two_never_run_at_once(tmp_path):
    runner = Runner(tmp_path, "a1")
    with (tmp_path / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(SystemExit, match="running already"):
            runner.run("one", command("pass"), {})
    assert runner.run("one", command("pass"), {})


def test_the_plan_names_commands_that_exist():
    targets = set(re.findall(r"^([a-z0-9-]+):", (tables.ROOT / "Makefile").read_text(), re.M))
    assert {table.target for table in tables.TABLES} <= targets
    benchmarks = {target for target in targets if re.match(r"(bench|report-sb3)", target)}
    # These need a GPU, or are what another target calls.
    benchmarks -= {"bench-peers", "bench-cuda", "bench-cuda-scripts"}
    benchmarks = {target for target in benchmarks if not target.endswith("-here")}
    assert benchmarks <= {table.target for table in tables.TABLES}


def test_an_unknown_table_is_refused():
    with pytest.raises(SystemExit, match=r"--only peer must be of learning, .*peers"):
        tables.chosen(["peer"])


def test_every_table_says_of_which_code_it_is():
    made = json.loads(tables.MADE.read_text())
    there = {path.stem for path in tables.RESULTS.glob("*.md") if "-quick" not in path.stem}
    assert there == set(made)
    assert there <= {table.name for table in (*tables.TABLES, *tables.ELSEWHERE)}
    page = tables.PAGE.read_text()
    assert tables.with_table(page, made) == page


def test_the_page_is_told(tmp_path, monkeypatch):
    page, made = tmp_path / "results.md", tmp_path / "made.json"
    page.write_text(f"before\n{tables.BEGIN}old\n{tables.END}after\n")
    monkeypatch.setattr(tables, "PAGE", page)
    monkeypatch.setattr(tables, "MADE", made)
    tables.tell(tables.TABLES[0], "abc1234", 12.4)
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| 12 | abc1234 |" in text
    assert "old" not in text
    assert json.loads(made.read_text())[tables.TABLES[0].name]["commit"] == "abc1234"


def test_the_command_line_lists_and_runs_nothing(capsys):
    before = Path(tables.MADE).read_bytes()
    assert tables.main(tables.Args(list=True, only=("codecs",))) == 0
    assert "make --no-print-directory bench-codecs" in capsys.readouterr().out
    assert Path(tables.MADE).read_bytes() == before


def test_a_table_names_the_settings_that_it_was_made_with():
    @dataclass
    class Settings:
        runners: tuple[int, ...] = (1, 2)
        games: tuple[str, ...] = ("Pong",)
        quick: bool = False

    assert make_command("bench", Settings()) == "make bench"
    made = make_command("bench", Settings((4, 8), ("Qbert", "Enduro"), quick=True))
    assert made == 'make bench BENCH_ARGS="--runners 4 8 --games Qbert Enduro --quick"'
