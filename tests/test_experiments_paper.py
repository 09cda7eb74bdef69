"""The papers' formulas, tables and pictures, from runs made up by hand and from real frames."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import full_buffers, medqn, paper
from experiments import published as pub
from experiments.results import Run

PNG = b"\x89PNG"


def made(agent, env, storage, steps, *, returns=(1.0, 2.0), **details):
    """A run of a made-up length that holds 1,000 bytes for each of 100 observations."""
    script = {"PPO": "ppo_atari", "QR-DQN": "qrdqn_atari", "DrQ-v2": "drqv2_dmc"}
    indexed = storage not in ("dense", "disk")
    config = {
        "experiment": "e", "agent": agent, "env": env, "run": 0, "number": 1, "index": 1,
        "script": "drqv2_disk" if storage == "disk" else script.get(agent, "medqn_atari"),
        "flags": {}, "values": {},
        "settings": {
            "obs_storage": "indexed" if indexed else "dense", "codec": storage, "seed": 1,
            "batch_size": 100, "buffer_size": 100,
        },
    }  # fmt: skip
    table = pd.DataFrame(
        {"Env": env, "Agent": agent, "Step": range(len(returns)), "Return": returns}
    )
    memory = pd.DataFrame({"Step": [1], "Bytes": [100_000], "Transitions": [100]})
    return Run(Path("x"), config, "finished", table, table, memory, steps, details)


# ---------------------------------------------------------------- formulas


def test_equation_3_by_hand():
    # 8 stacks of 4: two frames raw, six pointers, ten pixels, 32 indices
    assert pub.equation_3(8, 4, 10) == 2 * 7056 + 6 * 8 + 10 * 4 + 32 * 4
    assert pub.equation_4(8, 4, 10) == 8 * 4 * 7056 / (2 * 7056 + 48 + 40 + 128)
    # every pixel of every third frame
    shared = pub.factor_of_share(3, 0.5)
    assert shared == pytest.approx(pub.equation_4(9, 3, 6 * 3528))


def test_equation_5_leaves_the_indices_out():
    """What the paper prints after equation 4 lacks f in its denominator."""
    for f in (2, 4, 10):
        for share in (0.01, 0.1, 0.25):
            n = 7056 * share
            printed = 1764 * f / ((1762 - n) / f + 2 + n)
            with_indices = 1764 * f / ((1762 - n) / f + 2 + n + f)
            assert pub.factor_of_share(f, share) == pytest.approx(with_indices)
            assert pub.factor_of_share(f, share) < printed


def test_the_papers_bases():
    assert pytest.approx(pub.TABLE_2_BASE_MB["PPO"], abs=0.05) == 1024 * 4 * 7056 / pub.MIB
    assert pytest.approx(2694, rel=2e-3) == 100_000 * 4 * 7056 / pub.MIB
    assert pytest.approx(63.5, abs=0.05) == 1e6 * pub.RGB_STACK_BYTES / pub.GB
    for agent in ("PPO", "QR-DQN"):  # the tables agree with themselves, but for rounding
        for row in pub.TABLE_2[agent].values():
            if row is pub.TABLE_2[agent]["average"]:
                continue
            ratio = pub.TABLE_2_BASE_MB[agent] / row.mb
            assert row.factor == pytest.approx(ratio, rel=0.05)
        rows = [r for name, r in pub.TABLE_2[agent].items() if name != "average"]
        average = pub.TABLE_2[agent]["average"]
        assert np.mean([row.mb for row in rows]) == pytest.approx(average.mb, abs=0.5)
        # Of the average, and not the average of the factors.
        ratio = pub.TABLE_2_BASE_MB[agent] / average.mb
        assert average.factor == pytest.approx(ratio, abs=0.06)
        assert np.mean([row.fps for row in rows]) == pytest.approx(average.fps, abs=1)


# ---------------------------------------------------------------- tables


def cells(table, first):
    """The cells of the line that begins with these."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines()]
    found = [line for line in lines if tuple(line[: len(first)]) == first]
    assert len(found) == 1
    return dict(zip(lines[0], found[0], strict=True))


def test_table_2():
    runs = [
        made("PPO", "Pong", "dense", 10**7, steps_per_s=1000.0, peak_rss_bytes=900e6),
        made("PPO", "Pong", "dense", 10**7, steps_per_s=1100.0, peak_rss_bytes=900e6),
        made("PPO", "Pong", "sparse", 10**6, steps_per_s=900.0, changed_pixels=7056),
        made("PPO", "Qbert", "delta", 500, changed_pixels=14_112),
        made("QR-DQN", "Enduro", "delta", 10**7),
    ]
    table = paper.table_2(runs, "PPO")
    row = cells(table, ("Pong",))
    assert row["paper: FPS"] == "1582, 1512"
    assert row["MB of 27.6 (x)"] == "2.0 (13.9)"
    assert row["ours: FPS none"] == "1,050 w"
    assert row["process MB none"] == "900 w"
    assert row["delta"] == "-"
    size = pub.equation_3(1024, 4, 1024 * 7056 / 100) / 2**20
    base = 1024 * 28_224 / 2**20
    assert row["equation 3, MB of 27.6 (x)"] == f"{size:.3g} ({base / size:.1f}) t"
    assert row["`sparse` holds"] == f"{1024 * 1000 / 2**20:.3g} (28.2) t"
    assert cells(table, ("Qbert",))["`delta` holds"].endswith("(28.2) r")
    assert cells(table, ("Enduro",))["ours: FPS none"] == "-"  # QR-DQN's is not PPO's
    mean = cells(table, ("average",))["equation 3, MB of 27.6 (x)"]
    other = pub.equation_3(1024, 4, 1024 * 141.12) / 2**20
    assert mean.startswith(f"{(size + other) / 2:.3g} (")
    assert mean.endswith(" r")  # the weakest
    table = paper.table_2(runs, "QR-DQN")
    assert cells(table, ("Enduro",))["`delta` holds"] == f"{100_000_000 / 2**20:.3g} (28.2) w"


def test_table_1():
    runs = [
        made("DrQ-v2", "walker_walk", "disk", 550_000, steps_per_s=50.0),
        made("DrQ-v2", "walker_walk", "sparse", 60_000, steps_per_s=40.0, changed_pixels=7056),
    ]
    table = paper.table_1(runs)
    row = cells(table, ("Full", "walker_walk"))
    assert row["paper: frames/s base, ours"] == "119, 73"
    assert row["ours: frames/s base (disk)"] == "100.0 w"
    assert row["compressed"] == "-"
    size = pub.equation_3(10**6, 3, 70_560_000) / 1e9
    assert row["equation 3, GB of 63.5 (x)"] == f"{size:.3g} ({63.504 / size:.1f}) t"
    assert row["holds, GB (x)"] == "1 (63.5) t"
    assert cells(table, ("Half", "walker_walk"))["equation 3, GB of 63.5 (x)"] == "7.07 (9.0)"
    assert cells(table, ("delta", "quadruped_walk"))["holds, GB (x)"] == "-"
    assert cells(table, ("Full", "average"))["holds, GB (x)"] == "1 (63.5) t"


def test_the_page_and_its_pictures(tmp_path, monkeypatch):
    runs = [
        made("PPO", "Pong", "dense", 2048, changed_pixels=7000),
        made("QR-DQN", "Pong", "sparse", 2048),
        made("DrQ-v2", "walker_walk", "disk", 300),
    ]
    monkeypatch.setattr(paper, "load_runs", lambda _: runs)
    paper.make_paper([tmp_path], tmp_path / "out", 1)
    page = (tmp_path / "out" / "paper.md").read_text()
    assert "3 of random play (r)" in page
    for number in (1, 2, 3, 4):
        assert f"](figure{number}.png)" in page
        assert (tmp_path / "out" / f"figure{number}.png").read_bytes().startswith(PNG)
    said = paper.caution(runs)
    assert "NOT whole trainings: at most 300 of 550,000 steps" in said
    assert "nothing of learning" in said
    assert paper.caution([made("PPO", "Pong", "dense", 10**7)]).endswith("; whole trainings")


def test_a_page_of_no_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    paper.make_paper([tmp_path / "empty"], tmp_path, 1)
    page = (tmp_path / "paper.md").read_text()
    assert "Figure 3: no runs of DrQ-v2." in page
    assert "from\n0 runs: none" in page


def test_figure_1_is_of_a_real_game():
    before, after = paper.breakout_frames()
    assert before.shape == after.shape == (84, 84)
    assert 10 < np.count_nonzero(before != after) < 200
    assert len(np.unique(after)) > 3


# ---------------------------------------------------------------- MeDQN


def test_full_buffers_are_measured_once(tmp_path, monkeypatch):
    out = tmp_path / "buffers.json"
    wanted = full_buffers.published_buffers(3000, games=("Qbert",))
    assert [(b.codec, b.transitions) for b in wanted] == [
        ("raw", 300), ("delta", 300), ("delta", 3000),
    ]  # fmt: skip
    played = full_buffers.record("Breakout", 1, 1600)  # real episodes end in it
    played.save(tmp_path / "played.npz")
    again = full_buffers.Recording.load(tmp_path / "played.npz")
    assert np.array_equal(again.frames, played.frames)
    assert len(again.steps) == 200
    assert played.final.keys() == again.final.keys() != set()
    row = full_buffers.measure(wanted[2], tmp_path / "played.npz", seed=1)  # twice the played
    assert row["transitions"] == 3000
    assert 3000 * 20 < row["nbytes_stored"] < 3000 * 1000
    rows = [
        {"game": b.game, "codec": b.codec, "transitions": b.transitions, "nbytes_stored": 10,
         "rss_growth": 20} for b in wanted
    ]  # fmt: skip
    out.write_text(json.dumps({"machine": "M", "rows": rows}))
    assert full_buffers.measure_all(wanted, out) == rows  # nothing is left to be measured


def test_medqns_page(tmp_path, monkeypatch):
    runs = []
    for agent, size, value in (("MeDQN(R)", 100_000, 4), ("DQN", 10**6, 2), ("DQN", 100_000, 1)):
        run = made(agent, "Qbert", "delta", 12_500_000, returns=[0.0, *[float(value)] * 5])
        run.settings["buffer_size"] = size
        runs.append(run)
    monkeypatch.setattr(medqn, "load_runs", lambda _: runs)
    rows = [
        {"game": "Qbert", "codec": codec, "transitions": n, "nbytes_stored": 9, "rss_growth": grown}
        for codec, n, grown in (
            ("raw", 100_000, 700e6), ("delta", 100_000, 10e6), ("delta", 10**6, 70.56e6),
        )
    ]  # fmt: skip
    buffers = tmp_path / "buffers.json"
    buffers.write_text(json.dumps({"machine": "a machine", "rows": rows}))
    monkeypatch.setattr(medqn, "MEASURED", buffers)
    medqn.make_medqn([tmp_path], tmp_path / "out", 1, None, None)
    page = (tmp_path / "out" / "medqn.md").read_text()
    assert "| Qbert | 14,128 ± 715 | 4.0 ± 0.0 (1) | 11,920 ± 831 | 2.0 ± 0.0 (1) |" in page
    assert "10,709 ± 1,509 | 1.0 ± 0.0 (1) |" in page
    assert "| Qbert | 700.0 (0.0) | 10.0 (0.0) | 70.6 (0.0) | 10.0% |" in page
    assert "Ours: whole trainings." in page
    for name in ("medqn.png", "memory.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(PNG)
    runs[0] = made("MeDQN(R)", "Qbert", "delta", 1000)
    assert medqn.caution(runs) == "NOT whole trainings: 1,000 to 12,500,000 of 12,500,000 steps"
    assert medqn.caution(runs[:1]).endswith(", which show that it works, and nothing of learning")
