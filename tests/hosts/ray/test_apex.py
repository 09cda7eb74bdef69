"""The distributed script trains, stops, and goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from cleanrl_scripts import apex_qrdqn_atari as script

SMALL = [
    *("--num-runners", "2", "--envs-per-runner", "2", "--buffer-size", "4000", "--quiet"),
    *("--learning-starts", "200", "--batch-size", "8", "--steps-per-request", "8"),
    *(
        "--n-quantiles",
        "11",
        "--samples-per-insert",
        "0.5",
        "--publish-frequency",
        "5",
        "--no-cuda",
    ),
]


def test_it_trains_and_goes_on_from_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = script.main([*SMALL, "--total-timesteps", "800", "--checkpoint-every", "10",
                         "--save-model"])  # fmt: skip
    assert found["inserts"] >= 800
    assert found["updates"] >= 10
    assert 0 < found["bytes_per_insert"] < 2 * 4 * 84 * 84 / 20
    folder = Path(found["folder"])
    held = torch.load(folder / "checkpoint.pt", weights_only=True)
    assert held["updates"] >= 10
    assert list(folder.glob("*.cleanrl_model"))
    more = script.main([*SMALL, "--total-timesteps", "1400", "--resume",
                        str(folder / "checkpoint.pt")])  # fmt: skip
    assert more["updates"] > held["updates"]
    assert more["inserts"] >= 1400


def test_priorities_are_those_of_the_values_at_acting():
    args = script.check_args(script.Args(num_runners=1, envs_per_runner=2, n_quantiles=3))
    args.buffer_size, args.n_step = 400, 2
    runner = script.AtariRunner(0, args)
    told = {}
    kept = []
    for _ in range(4):
        for _ in range(10):
            runner.step()
            kept.append(runner.values[-1])
        names, errors = runner.priorities()
        told |= dict(zip(names.tolist(), errors.tolist(), strict=True))
    steps = runner.buffer.get(runner.buffer.newest(80))
    reward = dict(zip(steps.index.tolist(), steps.reward.tolist(), strict=True))
    ended = dict(zip(steps.index.tolist(), (steps.terminated + steps.truncated).tolist(),
                     strict=True))  # fmt: skip
    assert sorted(told) == list(range(2 * 38))
    for name, error in told.items():
        t, lane = divmod(name, 2)
        target, goes_on = 0.0, True
        for k in range(2):
            if goes_on:
                target += args.gamma**k * reward[name + 2 * k]
                goes_on = not ended[name + 2 * k]
        if goes_on:
            target += args.gamma**2 * kept[t + 2][1][lane]
        assert error == pytest.approx(abs(target - kept[t][0][lane]), abs=1e-5)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--env-id", "Pong"], "must be an ALE/<Game>-v5"),
        (["--n-step", "0"], "--n-step 0 must be at least 1"),
        (["--buffer-size", "3"], "must be at least"),
        (["--resume", "nowhere.pt"], "--resume nowhere.pt"),
        (["--env-id", "ALE/Pang-v5"], "--env-id ALE/Pang-v5"),
    ],
)
def test_wrong_flags_are_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        script.main([*SMALL, *flags])
    assert message in str(stop.value)
    assert "\n" not in str(stop.value)
