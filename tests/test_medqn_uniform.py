"""MeDQN(U)'s script: losses and drawn states against loops, and what its flags promise."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cleanrl_scripts import medqn_uniform

SMALL = ["--quiet", "--seed", "2", "--learning-starts", "40", "--exploration-steps", "200"]
SMALL += ["--max-episode-steps", "60", "--target-network-frequency", "30"]


def train(*flags, steps=300):
    args = medqn_uniform.parse_args([*SMALL, "--total-timesteps", str(steps), *flags])
    return medqn_uniform.train(args)


def weights(result):
    return {name: t.numpy().tobytes() for name, t in result["q_network"].state_dict().items()}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# What qlan3/Explorer's configurations hold; of lists any value will do.
CONTROL = {
    "total_timesteps": [100_000], "learning_rate": [1e-2, 3e-3, 1e-3, 3e-4, 1e-4],
    "buffer_size": [32], "target_network_frequency": [100], "batch_size": [32], "start_e": [1],
    "end_e": [0.01], "exploration_steps": [1000], "learning_starts": [1000], "max_grad_norm": [5],
    "train_frequency": [1, 2, 4, 8], "consod_epochs": [4, 2, 1], "consod_start": [0.01],
    "consod_end": [4, 2, 1], "gamma": [0.99],
}  # fmt: skip
MINATAR = CONTROL | {
    "total_timesteps": [5_000_000], "learning_rate": [3e-3, 1e-3, 3e-4, 1e-4, 3e-5],
    "target_network_frequency": [300], "end_e": [0.1], "exploration_steps": [100_000],
    "learning_starts": [5000], "max_grad_norm": [0], "train_frequency": [4, 8, 16, 32],
    "consod_epochs": [2, 1], "consod_end": [4, 2],
}  # fmt: skip


@pytest.mark.parametrize(
    ("env_id", "grid"),
    [
        ("MountainCar-v0", CONTROL | {"max_episode_steps": [1000]}),
        ("Acrobot-v1", CONTROL | {"max_episode_steps": [None]}),
        ("MinAtar/Breakout-v1", MINATAR),
    ],
)
def test_settings_are_rows_of_the_published_grids(env_id, grid):
    args = vars(medqn_uniform.parse_args(["--env-id", env_id]))
    assert {name: args[name] for name, values in grid.items() if args[name] not in values} == {}


def test_states_are_drawn_between_the_bounds():
    rng = np.random.default_rng(0)
    sampler = medqn_uniform.StateSampler((3,))
    seen = rng.normal(size=(50, 3)).astype(np.float32)
    for obs in seen:
        sampler.see(obs)
    states = sampler.sample(20_000, rng)
    assert states.dtype == np.float32
    low, high = [min(seen[:, d]) for d in range(3)], [max(seen[:, d]) for d in range(3)]
    for d in range(3):
        assert (low[d] <= states[:, d]).all()
        assert (states[:, d] <= high[d]).all()
        shares = np.histogram(states[:, d], bins=10, range=(low[d], high[d]))[0] / len(states)
        np.testing.assert_allclose(shares, 0.1, atol=0.01)  # four standard deviations and more


def test_whole_states_are_drawn_whole():
    rng = np.random.default_rng(0)
    sampler = medqn_uniform.StateSampler((2, 2))
    sampler.see(np.array([[0, 3], [1, 1]], np.float32))
    sampler.see(np.array([[1, 5], [1, 0]], np.float32))
    states = sampler.sample(4000, rng)
    for place, values in {(0, 0): [0, 1], (0, 1): [3, 4, 5], (1, 0): [1], (1, 1): [0, 1]}.items():
        drawn, counts = np.unique(states[(slice(None), *place)], return_counts=True)
        assert drawn.tolist() == values
        np.testing.assert_allclose(counts / 4000, 1 / len(values), atol=0.05)
    sampler.see(np.array([[1, 5], [1, 0.5]], np.float32))
    assert (sampler.sample(100, rng) != np.rint(sampler.sample(100, rng))).any()


@pytest.mark.parametrize("env_id", ["MountainCar-v0", "MinAtar/Breakout-v1"])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_updates_against_a_loop(weight, env_id):
    """Gradient steps on tables of values, worked out entry by entry; Huber's loss for MinAtar."""
    rng = np.random.default_rng(0)
    states, actions, n, epochs, rate = 6, 3, 4, 3, 0.3
    q, kept = rng.normal(size=(2, states, actions)) * 2

    class Tabular(torch.nn.Module):
        def __init__(self, values):
            super().__init__()
            self.values = torch.nn.Parameter(torch.tensor(values))

        def forward(self, obs):
            return self.values[obs[:, 0].long()]

    batch = medqn_uniform.Batch(
        torch.tensor(rng.integers(states, size=(n, 1))).float(),
        torch.tensor(rng.integers(actions, size=n)),
        torch.tensor(rng.normal(size=n)),
        torch.tensor(rng.integers(states, size=(n, 1))).float(),
        torch.tensor([0.0, 1.0, 0.0, 0.0], dtype=torch.float64),
    )
    drawn = [rng.integers(states, size=(n, 1)).astype(np.float32) for _ in range(epochs)]
    left = list(drawn)
    args = SimpleNamespace(
        batch_size=n, gamma=0.9, consod_epochs=epochs, max_grad_norm=0, env_id=env_id
    )
    network, target = Tabular(q), Tabular(kept)
    logs = medqn_uniform.update_network(
        args,
        network,
        target,
        torch.optim.SGD(network.parameters(), lr=rate),
        SimpleNamespace(batch=lambda *_: batch),
        SimpleNamespace(sample=lambda *_: left.pop(0)),
        None,
        weight,
    )
    y = [batch.reward[b].item() for b in range(n)]
    for b in range(n):
        if not batch.terminated[b]:
            y[b] += 0.9 * max(kept[int(batch.next_obs[b])])
    huber = env_id.startswith("MinAtar")
    for epoch in range(epochs):
        gradient, loss = np.zeros_like(q), 0.0
        for b in range(n):
            s, a = int(batch.obs[b]), int(batch.action[b])
            u = q[s, a] - y[b]
            if huber:
                loss += (u * u / 2 if abs(u) < 1 else abs(u) - 0.5) / n
                gradient[s, a] += max(-1, min(1, u)) / n
            else:
                loss += u * u / n
                gradient[s, a] += 2 * u / n
            for a in range(actions):
                s = int(drawn[epoch][b, 0])
                gradient[s, a] += weight * 2 * (q[s, a] - kept[s, a]) / (n * actions)
        q = q - rate * gradient
    np.testing.assert_allclose(network.values.detach(), q, rtol=1e-6)
    assert logs["td_loss"].item() == pytest.approx(loss, rel=1e-6)
    assert len(left) == (0 if weight else epochs)


def test_the_newest_transitions_are_kept():
    rng = np.random.default_rng(0)
    memory = medqn_uniform.NewestTransitions(5, (2,), torch.device("cpu"))
    rows = [(rng.random(2, np.float32), t % 3, t / 8, rng.random(2, np.float32), t % 4 == 0)
            for t in range(12)]  # fmt: skip
    for t, row in enumerate(rows):
        memory.add(*row)
        newest = rows[max(0, t - 4) : t + 1]
        batch = memory.batch(32, rng)
        held = sorted(zip(*(x.tolist() for x in batch), strict=True))
        assert held == sorted((a.tolist(), b, c, d.tolist(), float(e)) for a, b, c, d, e in newest)
    drawn = memory.batch(3, rng)
    assert set(drawn.reward.tolist()) <= {row[2] for row in rows[-5:]}
    assert len(drawn.reward) == 3


def test_without_weight_and_with_one_epoch_it_is_dqn():
    flags = ["--buffer-size", "64", "--batch-size", "16"]
    medqn = ["--consod-start", "0", "--consod-end", "0", "--consod-epochs", "1"]
    dqn = weights(train("--algorithm", "dqn", *flags))
    assert weights(train("--algorithm", "medqn", *flags, *medqn)) == dqn
    assert weights(train("--algorithm", "medqn", *flags, *medqn[:-1], "2")) != dqn
    assert weights(train("--algorithm", "medqn", *flags, "--consod-epochs", "1")) != dqn


def test_the_weight_grows_over_the_whole_training(monkeypatch):
    seen = []

    def note(*args):
        seen.append(args[-1])
        return {}

    monkeypatch.setattr(medqn_uniform, "update_network", note)
    train("--consod-start", "0.25", "--consod-end", "4", steps=100)
    assert seen == pytest.approx([0.25 + 3.75 * step / 100 for step in range(41, 101)])


def test_every_resume_is_identical():
    run_dir = train("--checkpoint-every", "0", steps=200)["run_dir"]
    flags = ["--resume", str(run_dir / "checkpoint.pt")]
    first, second = (train(*flags) for _ in range(2))
    assert weights(first) == weights(second)
    assert first["memory"].added == 300
    assert np.isfinite(first["sampler"].low).all()
    assert len(first["history"]["episodes"]) == 4  # the one that ran at the checkpoint began anew
    other = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    other["sampler"]["low"] -= 1
    torch.save(other, "other.pt")
    assert weights(train("--resume", "other.pt")) != weights(first)


def test_what_a_run_leaves(capsys):
    flags = [*SMALL[1:], "--total-timesteps", "200", "--eval-every", "100", "--save-model"]
    flags += ["--eval-episodes", "1", "--env-id", "Acrobot-v1"]
    args = medqn_uniform.parse_args(flags)
    result = medqn_uniform.train(args)
    assert [step for step, _ in result["history"]["evaluations"]] == [0, 100, 200]
    assert "MeDQN(U), Acrobot-v1" in capsys.readouterr().out
    assert (result["run_dir"] / "training.png").exists()
    assert (result["run_dir"] / "medqn_uniform.cleanrl_model").exists()


def test_minatar_learns():
    pytest.importorskip("minatar", exc_type=ImportError)
    flags = ["--env-id", "MinAtar/Breakout-v1"]
    result = train(*flags)
    assert result["sampler"].whole
    assert result["q_network"](torch.zeros(2, 10, 10, 4)).shape == (2, 3)
    assert weights(result) == weights(train(*flags))


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--env-id", "MountainCr-v0"], "Did you mean: `MountainCar`"),
        (["--env-id", "Pendulum-v1"], "DQN's are discrete"),
        (["--consod-end", "-1"], "--consod-end -1.0 must be at least 0"),
        (["--algorithm", "dqn", "--consod-end", "2"], "--consod-end 2.0 is MeDQN's"),
        (["--resume", "nothing.pt"], r"nothing\.pt: not a checkpoint"),
        (["--leraning-rate", "1"], "did you mean --learning-rate"),
    ],
)
def test_one_helpful_line(flags, says):
    with pytest.raises(SystemExit, match=says) as stop:
        medqn_uniform.main([*SMALL, "--total-timesteps", "128", *flags])
    assert "\n" not in stop.value.code
    assert not Path("runs").exists()


def test_minatar_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "minatar", None)
    monkeypatch.setitem(sys.modules, "minatar.gym", None)
    with pytest.raises(SystemExit, match="pip install minatar"):
        train("--env-id", "MinAtar/Breakout-v1")
