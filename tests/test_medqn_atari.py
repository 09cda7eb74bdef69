"""MeDQN's script: its losses against loops, DQN as its limit, and one learning for all storages."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cleanrl_scripts import medqn_atari, qrdqn_atari
from compressarray import ReplayBuffer

ROOT = Path(__file__).parents[1]

# Small settings of a real game whose episodes are short; the ring turns three times.
NUM_ENVS, BUFFER_SIZE, STEPS = 2, 96, 320
SMALL = [
    *("--quiet", "--torch-threads", "1", "--seed", "2", "--env-id", "ALE/Breakout-v5"),
    *("--num-envs", str(NUM_ENVS), "--buffer-size", str(BUFFER_SIZE), "--batch-size", "8"),
    *("--train-frequency", "20", "--target-network-frequency", "5", "--n-step", "3"),
    *("--exploration-fraction", "0.9", "--learning-rate", "1e-3", "--max-episode-frames", "240"),
    *("--eval-every", "0"),
]
MEDQN = ["--consod-start", "0.5", "--consod-end", "2", "--consod-epochs", "2"]


def train(*flags, steps=STEPS):
    args = medqn_atari.parse_args([*SMALL, "--total-timesteps", str(steps), *flags])
    return medqn_atari.train(args)


def learned(result):
    """Every bit that learning leaves behind: weights and the optimiser's state."""
    optimizer = result["optimizer"].state_dict()
    tensors = {
        f"{network}.{name}": t
        for network in ("q_network", "target_network")
        for name, t in result[network].state_dict().items()
    }
    for number, state in optimizer["state"].items():
        tensors |= {f"optimizer.{number}.{name}": t for name, t in state.items()}
    return {name: t.numpy().tobytes() for name, t in tensors.items()}


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("dense"))
        result = train("--obs-storage", "dense", *MEDQN)
    return SimpleNamespace(learned=learned(result), history=result["history"])


# ---------------------------------------------------------------- settings


def test_settings_are_the_published_ones():
    """Against qlan3/MeDQN's configurations and the rows of them that its figure shows."""
    best = {
        "Qbert": (20, 2), "BattleZone": (40, 4), "DoubleDunk": (40, 4), "NameThisGame": (40, 4),
        "Phoenix": (20, 2),
    }  # fmt: skip
    for game, (train_frequency, consod_end) in best.items():
        args = medqn_atari.parse_args(["--env-id", f"ALE/{game}-v5"])
        assert (args.train_frequency, args.consod_end) == (train_frequency, consod_end)
        assert (args.consod_start, args.consod_epochs, args.buffer_size) == (0.01, 1, 100_000)
        args = medqn_atari.parse_args(["--env-id", f"ALE/{game}-v5", "--algorithm", "dqn"])
        assert (args.train_frequency, args.buffer_size) == (10, 1_000_000)
        assert (args.consod_start, args.consod_end, args.consod_epochs) == (0, 0, 1)
        assert (args.total_timesteps, args.batch_size, args.n_step) == (12_500_000, 32, 3)
        assert (args.learning_rate, args.gamma, args.target_network_frequency) == (1e-4, 0.99, 500)
        assert (args.start_e, args.end_e, args.learning_starts) == (1, 0.05, 32)
        assert args.exploration_fraction * args.total_timesteps == 1_000_000
        assert (args.eval_every, args.eval_episodes, args.eval_epsilon) == (100_000, 5, 0)
        assert not args.scale_obs
    assert medqn_atari.parse_args(["--env-id", "ALE/Breakout-v5"]).n_step == 1


def test_the_network_sees_bytes_as_they_are_or_divided():
    torch.manual_seed(0)
    plain, scaled = medqn_atari.QNetwork(4), medqn_atari.QNetwork(4, scale_obs=True)
    scaled.load_state_dict(plain.state_dict())
    stacks = torch.randint(0, 256, (2, 4, 84, 84), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(plain(stacks), plain.network(stacks.float()))
        assert torch.equal(scaled(stacks), plain.network(stacks.float() / 255))


# ---------------------------------------------------------------- losses against loops


class Tabular(torch.nn.Module):
    """Q-values by a number that stands for the observation."""

    def __init__(self, values):
        super().__init__()
        self.values = torch.nn.Parameter(torch.tensor(values))

    def forward(self, numbers):
        return self.values[numbers]


class Draws:
    """Batches in the order in which they were made, and how many have been drawn."""

    def __init__(self, batches):
        self.batches, self.drawn = batches, 0

    def sample(self, batch_size):
        self.drawn += 1
        return self.batches[self.drawn - 1]


def make_batches(rng, n_batches, batch, states, actions):
    def one():
        return medqn_atari.Batch(
            obs=torch.tensor(rng.integers(states, size=batch)),
            action=torch.tensor(rng.integers(actions, size=batch)),
            reward=torch.tensor(rng.normal(size=batch)),
            next_obs=torch.tensor(rng.integers(states, size=batch)),
            terminated=torch.tensor(rng.random(batch) < 0.3),
            discount=torch.tensor(rng.choice([0.9, 0.81, 0.729], size=batch)),
        )

    return [one() for _ in range(n_batches)]


@pytest.mark.parametrize("epochs", [1, 2, 3])
@pytest.mark.parametrize("weight", [0.0, 0.7])
def test_updates_against_a_loop(epochs, weight):
    """Values after several updates by plain gradient descent, worked out entry by entry."""
    rng = np.random.default_rng(0)
    states, actions, batch, updates, frequency, rate = 6, 3, 5, 4, 3, 0.1
    q, kept = rng.normal(size=(2, states, actions))
    q_network, target_network = Tabular(q), Tabular(kept)
    optimizer = torch.optim.SGD(q_network.parameters(), lr=rate)
    draws = Draws(make_batches(rng, updates * (1 + epochs), batch, states, actions))
    args = SimpleNamespace(
        batch_size=batch, consod_epochs=epochs, target_network_frequency=frequency
    )

    done, number = 0, 0
    for _ in range(updates):
        # the script's
        before = done
        done, logs = medqn_atari.update_network(
            args, q_network, target_network, optimizer, draws, weight, done
        )
        assert done == before + epochs

        # the loop's
        td = draws.batches[number]
        number += 1
        y = []
        for b in range(batch):
            y.append(td.reward[b].item())
            if not td.terminated[b]:
                y[b] += td.discount[b].item() * max(kept[td.next_obs[b]])
        for step in range(before, before + epochs):
            if step % frequency == 0:
                kept = q.copy()
            gradient = np.zeros_like(q)
            td_loss = 0.0
            for b in range(batch):
                s, a = td.obs[b].item(), td.action[b].item()
                td_loss += (y[b] - q[s, a]) ** 2 / batch
                gradient[s, a] -= 2 * (y[b] - q[s, a]) / batch
            consolidation_loss = 0.0
            if weight:
                others = draws.batches[number]
                number += 1
                for b in range(batch):
                    s = others.obs[b].item()
                    for a in range(actions):
                        distance = q[s, a] - kept[s, a]
                        consolidation_loss += distance**2 / (batch * actions)
                        gradient[s, a] += weight * 2 * distance / (batch * actions)
            q = q - rate * gradient
        np.testing.assert_allclose(q_network.values.detach(), q, rtol=1e-10)
        np.testing.assert_array_equal(target_network.values.detach().numpy().shape, kept.shape)
        np.testing.assert_allclose(target_network.values.detach(), kept, rtol=1e-10)
        assert logs["td_loss"].item() == pytest.approx(td_loss, rel=1e-9)
        if weight:
            assert logs["consolidation_loss"].item() == pytest.approx(consolidation_loss, rel=1e-9)
    assert draws.drawn == number  # without a weight no states are drawn
    if epochs > 1:
        assert consolidation_loss > 0 or not weight


def test_the_weight_grows_over_the_whole_training(monkeypatch):
    seen = []

    def note(args, q_network, target_network, optimizer, rb, weight, gradient_steps):
        seen.append(weight)
        return gradient_steps, {}

    monkeypatch.setattr(medqn_atari, "update_network", note)
    train("--obs-storage", "dense", "--consod-start", "0.25", "--consod-end", "4", steps=160)
    steps = [step for step in range(1, 161) if step % 20 == 0 and step > 32]
    assert seen == pytest.approx([0.25 + (4 - 0.25) * step / 160 for step in steps])


def test_the_target_is_copied_by_gradient_steps(monkeypatch):
    """Every fifth gradient step, counted from the first on, whatever the steps of the games."""
    copies = []
    update = medqn_atari.update_network

    def watched(args, q_network, target_network, optimizer, rb, weight, gradient_steps):
        load = target_network.load_state_dict
        step = optimizer.step
        state = {"now": gradient_steps}

        def noted(weights):
            copies.append(state["now"])
            return load(weights)

        def stepped():
            state["now"] += 1
            return step()

        with monkeypatch.context() as patch:
            patch.setattr(target_network, "load_state_dict", noted)
            patch.setattr(optimizer, "step", stepped)
            return update(args, q_network, target_network, optimizer, rb, weight, gradient_steps)

    monkeypatch.setattr(medqn_atari, "update_network", watched)
    train("--obs-storage", "dense", *MEDQN, steps=200)  # nine updates of two steps
    assert copies == [0, 5, 10, 15]


# ---------------------------------------------------------------- the same learning


@pytest.mark.parametrize("codec", ["sparse", "delta", "delta-huffman"])
@pytest.mark.parametrize("storage", ["compressed", "indexed"])
def test_the_same_learning(storage, codec, dense):
    result = train("--obs-storage", storage, "--codec", codec, *MEDQN)
    assert learned(result) == dense.learned
    assert result["history"]["episodes"] == dense.history["episodes"]
    ended = np.bincount([lane for *_, lane in dense.history["episodes"]], minlength=NUM_ENVS)
    assert (ended >= 2).all(), ended
    assert len(result["buffer"]) == BUFFER_SIZE < STEPS / 3


def test_without_weight_and_with_one_epoch_it_is_dqn(dense):
    dqn = learned(train("--algorithm", "dqn"))
    medqn = ["--consod-start", "0", "--consod-end", "0", "--consod-epochs", "1"]
    assert learned(train("--algorithm", "medqn", *medqn, "--obs-storage", "dense")) == dqn
    assert dqn != dense.learned


def test_dqn_beside_a_dqn_written_out(monkeypatch):
    """The weights of a training are those that DQN's own few lines make of its batches."""
    batches = []
    sample = ReplayBuffer.sample

    def noted(self, batch_size):
        batch = sample(self, batch_size)
        batches.append([t.clone() if torch.is_tensor(t) else t for t in batch[:6]])
        return batch

    monkeypatch.setattr(ReplayBuffer, "sample", noted)
    result = train("--algorithm", "dqn", steps=200)

    torch.manual_seed(2)
    network, target = medqn_atari.QNetwork(4), medqn_atari.QNetwork(4)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    for number, (obs, action, reward, next_obs, terminated, discount) in enumerate(batches):
        if number == 0:  # the first target is computed before the first copy; both are equal
            target.load_state_dict(network.state_dict())
        with torch.no_grad():
            y = reward + discount * (1 - terminated) * target(next_obs).max(dim=1).values
        if number % 5 == 0:
            target.load_state_dict(network.state_dict())
        q = network(obs)[torch.arange(len(obs)), action.long()]
        optimizer.zero_grad()
        ((q - y) ** 2).mean().backward()
        optimizer.step()
    assert len(batches) == 9
    for name, weights in result["q_network"].state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], weights, rtol=1e-5, atol=1e-6)


def test_another_seed_learns_something_else(dense):
    result = train("--obs-storage", "dense", "--seed", "3", *MEDQN)
    assert learned(result) != dense.learned


def test_evaluations_leave_learning_alone(dense):
    result = train(*MEDQN, "--eval-every", "160", "--eval-episodes", "2")
    assert learned(result) == dense.learned
    assert [step for step, _ in result["history"]["evaluations"]] == [0, 160, 320]


def test_dense_leaves_the_library_alone(monkeypatch):
    code = f"""
import sys
from cleanrl_scripts import medqn_atari
medqn_atari.main({[*SMALL, "--total-timesteps", "80", "--obs-storage", "dense"]})
assert not {{"compressarray", "wrappers", "numba"}} & set(sys.modules)
"""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_shared_parts_are_those_of_qrdqn():
    """What is not the algorithm's reads as in the other script, so that the two diff cleanly."""

    def between(script, first, last):
        text = Path(script.__file__).read_text().replace(Path(script.__file__).name, "SCRIPT")
        return text[text.index(first) : text.index(last)]

    for first, last in (
        ("class LearnerSignals", "class ChangedPixels"),
        ("    def __init__(self, env: gym.vector", "class QNetwork"),
        ("def get_random_states", "CHECKPOINT = {"),
        ("def load_checkpoint", "    return episodic_returns"),
    ):
        assert between(medqn_atari, first, last) == between(qrdqn_atari, first, last)


# ---------------------------------------------------------------- checkpoints and what is left


@pytest.mark.parametrize(("storage", "codec"), [("dense", "delta"), ("indexed", "delta-huffman")])
def test_every_resume_is_identical(storage, codec, tmp_path_factory):
    flags = ["--obs-storage", storage, "--codec", codec, *MEDQN]
    run_dir = train(*flags, steps=200)["run_dir"].resolve()
    checkpoint = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    assert (checkpoint["global_step"], checkpoint["gradient_steps"]) == (200, 18)
    resume = ["--resume", str(run_dir / "checkpoint.pt")]
    first, second = (learned(train(*flags, *resume, steps=260)) for _ in range(2))
    assert first == second

    # Where the count of gradient steps is lost, the target is copied at other times.
    folder = tmp_path_factory.mktemp("changed")
    torch.save(checkpoint | {"gradient_steps": 17}, folder / "checkpoint.pt")
    shutil.copytree(run_dir / "replay", folder / "replay")
    changed = train(*flags, "--resume", str(folder / "checkpoint.pt"), steps=260)
    assert learned(changed) != first


def test_saved_model_logs_and_picture(capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [flag for flag in SMALL if flag != "--quiet"]
    more = ["--save-model", "--eval-episodes", "2", "--capture-video", "--count-changed-pixels"]
    args = medqn_atari.parse_args(
        [*flags, "--total-timesteps", "300", "--eval-every", "150", *MEDQN, *more]
    )
    result = medqn_atari.train(args)
    run_dir = result["run_dir"]
    assert run_dir.name.startswith("ALE-Breakout-v5__medqn_atari__2__")
    state_dict = torch.load(run_dir / "medqn_atari.cleanrl_model", weights_only=True)
    assert all(torch.equal(t, result["q_network"].state_dict()[k]) for k, t in state_dict.items())
    assert len(result["eval_returns"]) == 2

    out = capsys.readouterr().out
    assert "MeDQN(R)" in out
    assert "steps per second (SPS)" in out
    assert (run_dir / "training.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(Path("videos", run_dir.name).glob("*.gif"))) > 0

    log = EventAccumulator(str(run_dir))
    log.Reload()
    assert set(log.Tags()["scalars"]) >= {
        *("charts/SPS", "charts/episodic_return", "charts/epsilon", "charts/evaluation_return"),
        *("charts/consolidation_weight", "losses/td_loss", "losses/q_values"),
        *("losses/consolidation_loss", "storage/nbytes_stored", "storage/compression_ratio"),
        *("storage/changed_pixels", "eval/episodic_return"),
    }
    assert result["history"]["changed_pixels"]["largest"] > 0


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--env-id", "ALE/Qbrt-v5"], "Did you mean: `Qbert`"),
        (["--algorithm", "ddqn"], "'medqn', 'dqn'"),
        (["--consod-epochs", "0"], "--consod-epochs 0 must be at least 1"),
        (["--consod-end", "-1"], "--consod-end -1.0 must be at least 0"),
        (["--consod-start", "nan"], "--consod-start nan must be at least 0"),
        (
            ["--algorithm", "dqn", "--consod-end", "2"],
            "--consod-end 2.0 is MeDQN.s: .* it is 0",
        ),
        (["--algorithm", "dqn", "--consod-epochs", "2"], "--consod-epochs 2 is MeDQN's"),
        (["--buffer-size", "5"], "--buffer-size 5 must be at least 6"),
        (["--consd-end", "2"], "did you mean --consod-end"),
        (["--resume", "nothing.pt"], r"nothing\.pt: not a checkpoint"),
    ],
)
def test_one_helpful_line(flags, says):
    with pytest.raises(SystemExit, match=says) as stop:
        medqn_atari.main([*SMALL, "--total-timesteps", "128", *flags])
    assert isinstance(stop.value.code, str)
    assert "\n" not in stop.value.code
    assert stop.value.code.startswith("medqn_atari.py: error: ")
    assert not Path("runs").exists()


def test_a_checkpoint_of_the_other_algorithm():
    run_dir = train(*MEDQN, steps=80)["run_dir"]
    with pytest.raises(SystemExit, match=r"--algorithm dqn \(was medqn\)"):
        train("--algorithm", "dqn", "--resume", str(run_dir / "checkpoint.pt"), steps=160)
