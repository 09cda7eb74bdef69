"""A real small sweep: killed in the middle and gone on with, and all that is made of its runs."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from experiments import analysis, plotting, results
from experiments.__main__ import main
from experiments.folders import RunFolder, elapsed_s
from experiments.running import parse_indices

ROOT = Path(__file__).parents[1]
STEPS = 700
SWEEP = {
    "script": ["medqn_uniform"],
    "method": [{"algorithm": ["medqn"], "consod_end": [4]}, {"algorithm": ["dqn"]}],
    "total_timesteps": [STEPS],
    "max_episode_steps": [60],
    "learning_starts": [100],
    "eval_every": [200],
    "eval_episodes": [1],
    "checkpoint_every": [100],
}


def start(*arguments):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "experiments", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
        start_new_session=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """Two configurations, two runs each; the first two runs were killed once in the middle."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "small.json").write_text(json.dumps(SWEEP))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        process = start("run", "small.json", "--indices", "1-2", "--jobs", "2")
        run = RunFolder(folder / "logs" / "small" / "1")
        deadline = time.monotonic() + 120
        while not run.checkpoints() and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGKILL)  # the runner and both scripts
        process.communicate()
        cut_off = run.last_checkpoint()[1]["global_step"]
        assert 0 < cut_off < STEPS
        assert run.finished() is None
        process = start("run", "small.json", "--runs", "2", "--jobs", "2")
        out = process.communicate(timeout=300)[0]
        assert process.returncode == 0, out
    return folder, cut_off, out


@pytest.fixture
def inside(sweep, monkeypatch):
    monkeypatch.chdir(sweep[0])
    return sweep[0]


def test_what_was_killed_was_gone_on_with(sweep):
    folder, cut_off, out = sweep
    assert f"[small 1] MeDQN(U), MountainCar, seed 1: goes on at step {cut_off:,}" in out
    assert "[small 3] MeDQN(U), MountainCar, seed 2: begins, 700 steps" in out
    assert "[small] 4 finished" in out
    for index in range(1, 5):
        run = results.load_run(RunFolder(folder / "logs" / "small" / str(index)))
        assert (run.state, run.steps) == ("finished", STEPS)
        assert run.test["Step"].tolist() == [0, 200, 400, 600]
        steps = run.train["Step"].to_numpy()
        assert (np.diff(steps) > 0).all()
        assert steps[-1] > STEPS - 61
        assert run.details["peak_rss_bytes"] > 50e6
        assert run.details["pieces"] == (2 if index <= 2 else 1)
        log = (run.path / "log.txt").read_text().splitlines()
        # As MeDQN's logs end, so that what reads those reads these.
        assert float(log[-2].split(" ")[-2]) == pytest.approx(
            run.details["peak_rss_bytes"] / 1e6, abs=0.01
        )
        assert float(log[-1].split(" ")[-2]) == pytest.approx(
            run.details["elapsed_s"] / 60, abs=0.01
        )
    assert not list(folder.glob("logs/small/*/runs/*/replay-*"))


def test_finished_runs_are_not_run_again(inside, capsys):
    before = sorted(inside.glob("logs/small/1/runs/*"))
    main(["run", "small.json", "--index", "1"])
    assert "finished: 700 steps before" in capsys.readouterr().out
    assert sorted(inside.glob("logs/small/1/runs/*")) == before


def test_status(inside, capsys):
    main(["status", "small.json", "--runs", "3"])
    out = capsys.readouterr().out
    assert out == "5: not begun\n6: not begun\nsmall: 4 of 6 finished\n"
    main(["status", "small.json", "--runs", "3", "--quiet"])
    assert parse_indices(capsys.readouterr().out.strip()) == [5, 6]


def test_another_experiments_folder_is_refused(inside, capsys):
    with pytest.raises(SystemExit):
        main(["run", "small.json", "--index", "1", "gamma=0.5"])
    out = capsys.readouterr().out
    assert "refused: logs/small/1 holds a run with gamma 0.99, not 0.5; give another --logs" in out
    other = inside / "other.json"
    other.write_text(json.dumps(SWEEP))
    (inside / "logs" / "other").mkdir()
    os.symlink(inside / "logs" / "small" / "1", inside / "logs" / "other" / "1")
    with pytest.raises(SystemExit):
        main(["run", "other.json", "--index", "1"])
    assert "holds a run of another experiment, 'small'" in capsys.readouterr().out
    (inside / "logs" / "other" / "1").unlink()
    (inside / "logs" / "other").rmdir()


def test_one_that_fails_leaves_the_others_alone(inside, capsys, tmp_path):
    flags = ["--logs", str(tmp_path), "total_timesteps=150", "eval_every=0"]
    with pytest.raises(SystemExit):
        main(["run", "small.json", "--indices", "1,3", *flags, "env_id=[NoSuch-v0,MountainCar-v0]"])
    out = capsys.readouterr().out
    assert "[small 1] failed: exit status 1 (medqn_uniform.py: error: --env-id NoSuch-v0" in out
    assert "[small 3] finished: 150 steps" in out
    assert "[small] 1 failed, 1 finished" in out
    main(["status", "small.json", "--logs", str(tmp_path)])
    assert "1: begun, without a checkpoint, failed with exit status 1" in capsys.readouterr().out


def test_a_run_that_runs_is_not_run_twice(inside, tmp_path, capsys):
    import fcntl

    folder = tmp_path / "small" / "1"
    folder.mkdir(parents=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(SystemExit):
            main(["run", "small.json", "--index", "1", "--logs", str(tmp_path)])
    assert "refused" in (out := capsys.readouterr().out)
    assert "it is running already" in out


def test_stopping_in_time_is_no_failure(inside, tmp_path, capsys):
    flags = ["--logs", str(tmp_path), "stop_after_minutes=0.0001"]
    main(["run", "small.json", "--index", "2", *flags])
    out = capsys.readouterr().out
    assert "stopped: at step" in out
    assert "of 700, to be gone on with" in out
    assert RunFolder(tmp_path / "small" / "2").finished() is None
    run = results.load_runs([tmp_path])[0]
    assert (run.state, 0 < run.steps < STEPS) == ("unfinished", True)


def test_a_cluster_that_ends_us_ends_the_scripts(inside, tmp_path):
    import fcntl

    process = start("run", "small.json", "--index", "2", "--logs", str(tmp_path))
    folder = RunFolder(tmp_path / "small" / "2")
    deadline = time.monotonic() + 120
    while not folder.checkpoints() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.terminate()
    out = process.communicate(timeout=60)[0]
    assert process.returncode == 1
    assert "the same command goes on with what is not finished" in out
    with (folder.path / "lock").open("w") as lock:  # nobody holds it any more
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert 0 < folder.last_checkpoint()[1]["global_step"] < STEPS


def test_damaged_checkpoints_are_passed_over(inside, tmp_path):
    source = inside / "logs" / "small" / "1"
    folder = RunFolder(tmp_path / "1")
    for number, path in enumerate(sorted(source.glob("runs/*/checkpoint.pt"))):
        copy = folder.path / "runs" / str(number) / "checkpoint.pt"
        copy.parent.mkdir(parents=True)
        copy.write_bytes(path.read_bytes())
        os.utime(copy, (1e9 + number, 1e9 + number))
    newest, checkpoint = folder.last_checkpoint()
    assert checkpoint["global_step"] == STEPS
    newest.write_bytes(newest.read_bytes()[:1000])
    assert folder.last_checkpoint()[1]["global_step"] < STEPS
    (newest.parents[1] / "0" / "checkpoint.pt").write_bytes(b"")
    assert folder.last_checkpoint() is None


# ---------------------------------------------------------------- analysis


def test_analyze_against_the_runs_themselves(inside, capsys):
    main(["analyze", "small.json"])
    assert "written: logs/small/0/results_Test.csv" in capsys.readouterr().out
    for which, last, file in (("Test", 5, "evaluations"), ("Train", 10, "episodes")):
        table = pd.read_csv(f"logs/small/0/results_{which}.csv")
        assert sorted(table["Config Index"]) == [1, 2]
        assert {"method/algorithm", "method/consod_end"} <= set(table.columns)
        assert "seed" not in table.columns
        for _, row in table.iterrows():
            values = []
            for index in (row["Config Index"], row["Config Index"] + 2):
                checkpoints = RunFolder(inside / "logs" / "small" / str(index))
                history = checkpoints.last_checkpoint()[1]["history"][file]
                returns = [each[1] for each in history][-last:]
                values.append(sum(returns) / len(returns))
            mean = (values[0] + values[1]) / 2
            assert row["Return (mean)"] == pytest.approx(mean)
            deviation = (((values[0] - mean) ** 2 + (values[1] - mean) ** 2) / 2) ** 0.5
            assert row["Return (se)"] == pytest.approx(deviation / 2**0.5)
            assert row["Return (max)"] == max(values)
            assert row["Runs"] == 2
        assert table["Return (mean)"].is_monotonic_decreasing


def test_gather_has_medqns_columns(inside, capsys):
    main(["gather", "logs/small", "--out", "all.csv", "--which", "Train"])
    table = pd.read_csv("all.csv")
    assert list(table.columns) == [
        *("agent_id", "environment_name", "eval_episode_return", "frame", "normalized_return"),
        "seed",
    ]
    assert sorted(set(table["seed"])) == [0, 1]
    assert set(table["environment_name"]) == {"mountain_car"}
    assert set(table["agent_id"]) == {"MeDQN(U)", "DQN"}
    episodes = pd.read_csv("logs/small/3/result_Train.csv")
    mine = table[(table["agent_id"] == "MeDQN(U)") & (table["seed"] == 1)]
    assert mine["eval_episode_return"].tolist() == episodes["Return"].tolist()
    assert mine["frame"].tolist() == episodes["Step"].tolist()


@pytest.mark.parametrize("command", ["memory", "time"])
def test_figures_and_histograms(command, inside, capsys):
    main([command, "small.json"])
    out = capsys.readouterr().out
    assert "of 4 runs: max " in out
    assert Path(f"logs/small/0/{command}_info.png").read_bytes().startswith(b"\x89PNG")


def test_plots_of_several_experiments(inside, capsys, tmp_path):
    for extra in ([], ["--best", "--estimator", "median", "--error", "sd", "--which", "Train"]):
        main(["plot", "logs/small", "logs/small/1", "--out", "curves.png", *extra])
        assert Path("curves.png").read_bytes().startswith(b"\x89PNG")
    main(["plot", "logs/small", "--out", "curves.pdf"])
    assert Path("curves.pdf").read_bytes().startswith(b"%PDF")


def test_the_report_needs_nothing_beside(inside, capsys):
    main(["report", "small.json"])
    page = Path("logs/small/0/report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "4 of 4 runs are finished" in page
    assert "method/consod_end" in page
    assert 'src="http' not in page and "href" not in page  # noqa: PT018
    assert str(inside) not in page


def test_damaged_results_are_left_out(inside, capsys, tmp_path):
    import shutil

    shutil.copytree("logs/small", tmp_path / "small")
    (tmp_path / "small" / "1" / "result_Test.csv").write_text("Env,Step\nx,y\n")
    (tmp_path / "small" / "2" / "config.json").write_text("{")
    (tmp_path / "small" / "3" / "result_Train.csv").unlink()
    main(["analyze", str(tmp_path / "small")])
    said = capsys.readouterr()
    assert said.err.count("left out: ") == said.err.count("\n") == 3
    table = pd.read_csv(tmp_path / "small" / "0" / "results_Test.csv")
    assert table["Config Index"].tolist() == [2]
    assert table["Runs"].tolist() == [1]
    (tmp_path / "small" / "4" / "finished.json").write_text("3")  # then its checkpoint is read
    (tmp_path / "small" / "4" / "pieces.jsonl").write_text('{"event": "st\n[]\n')
    run = results.load_run(RunFolder(tmp_path / "small" / "4"))
    assert (run.state, run.steps, len(run.test)) == ("unfinished", STEPS, 4)
    shutil.copytree("logs/small/1", tmp_path / "other" / "1")
    config = json.loads(Path("logs/small/1/config.json").read_text()) | {"experiment": "other"}
    (tmp_path / "other" / "1" / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        SystemExit, match="holds several experiments, other, small: name the folder"
    ):
        main(["analyze", str(tmp_path)])
    (tmp_path / "small" / "4" / "config.json").write_text("[]")
    with pytest.raises(SystemExit, match="there is no run in it that can be read"):
        main(["report", str(tmp_path / "small")])


# ---------------------------------------------------------------- figures from hand-made runs


def made(steps, values, agent="A", env="Pong", run=0, number=1, **settings):
    config = {
        "experiment": "e", "agent": agent, "env": env, "run": run, "number": number, "index": 1,
        "script": "qrdqn_atari", "flags": {}, "values": settings,
        "settings": {"obs_storage": "dense", "buffer_size": 1, **settings},
    }  # fmt: skip
    table = pd.DataFrame({"Env": env, "Agent": agent, "Step": steps, "Return": values})
    memory = pd.DataFrame({"Step": [], "Bytes": []})
    return results.Run(Path("x"), config, "finished", table, table, memory, 1, {})


def test_curves_by_hand():
    runs = [made([1, 2, 3], [0.0, 2.0, 4.0]), made([1, 2, 3], [4.0, 2.0, 9.0], run=1)]
    steps, middle, spread = plotting.curve(runs, "Test", 1, "mean", "se")
    assert steps.tolist() == [1, 2, 3]
    assert middle.tolist() == [2, 2, 6.5]
    np.testing.assert_allclose(spread, np.array([2, 0, 2.5]) / 2**0.5)
    _, middle, spread = plotting.curve(runs, "Test", 2, "mean", "sd")
    # smoothed over two: 0, 1, 3 and 4, 3, 5.5
    assert middle.tolist() == [2, 2, 4.25]
    np.testing.assert_allclose(spread, [2, 1, 1.25])
    at_once = [made([5, 5, 6], [0.0, 2.0, 4.0])]  # two lanes' episodes end at one step
    assert [x.tolist() for x in plotting.curve(at_once, "Test", 2, "mean", "se")[:2]] == [
        [5, 6], [1, 3],
    ]  # fmt: skip
    runs.append(made([1, 2, 3], [100.0, 2.0, 5.0], run=2))
    assert plotting.curve(runs, "Test", 1, "median", "se")[1].tolist() == [4, 2, 5]


def test_curves_of_runs_with_other_steps_and_lengths():
    runs = [made([0, 10], [0.0, 10.0]), made([0, 20], [0.0, 20.0], run=1)]
    steps, middle, spread = plotting.curve(runs, "Test", 1, "mean", "se")
    np.testing.assert_allclose(middle, steps)  # both lie on one line
    np.testing.assert_allclose(spread, 0, atol=1e-9)
    assert (steps[0], steps[-1]) == (0, 20)  # the longer one goes on alone
    runs[0] = dataclasses.replace(runs[0], steps=20)  # its last return stands to its end
    steps, middle, _ = plotting.curve(runs, "Test", 1, "mean", "se")
    np.testing.assert_allclose(middle, (np.minimum(steps, 10) + steps) / 2)
    assert plotting.curve([made([], [])], "Test", 1, "mean", "se")[0].size == 0


def test_normalized_returns():
    table = analysis.gather([made([5], [14.6]), made([5], [3.0], env="Unknown")])
    assert table["normalized_return"].tolist()[0] == pytest.approx(1)
    assert np.isnan(table["normalized_return"].tolist()[1])
    assert table["frame"].tolist() == [20, 20]
    assert analysis.snake_case("NameThisGame") == "name_this_game"


def test_labels_tell_apart_what_differs():
    runs = [made([1], [1], buffer_size=10**6), made([1], [1], buffer_size=10**5)]
    assert [analysis.label_within(run, runs) for run in runs] == [
        "A (m = 1,000,000)",
        "A (m = 100,000)",
    ]
    assert analysis.label_within(runs[0], runs[:1]) == "A"


def test_the_best_settings():
    runs = [
        *(made([1], [value], run=k, number=1) for k, value in enumerate([1.0, 9.0])),
        *(made([1], [value], run=k, number=2) for k, value in enumerate([6.0, 6.0])),
        made([1], [0.0], env="Qbert", number=3),
    ]
    assert analysis.best_runs(runs, "Test") == runs[2:]


def test_time_of_pieces():
    pieces = [
        {"event": "start", "time": 100, "from_time": None},  # killed after its checkpoint at 130
        {"event": "start", "time": 200, "from_time": 130},
        {"event": "end", "time": 250},
        {"event": "start", "time": 300, "from_time": 250},
        {"event": "end", "time": 301},
    ]
    assert elapsed_s(pieces) == 30 + 50 + 1
    assert elapsed_s([]) == 0


def test_an_empty_histories_tables():
    tables = RunFolder(Path("x")).tables({}, {"env": "E", "agent": "A", "script": "ppo_atari"})
    assert all(table.empty for table in tables.values())
