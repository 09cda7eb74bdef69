"""QR-DQN's script: the same learning under every storage, and what its flags promise."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch

from cleanrl_scripts import qrdqn_atari
from compressarray import ReplayBuffer

ROOT = Path(__file__).parents[1]
CODECS = ["raw", "sparse", "delta", "delta-huffman", "zstd"]

# Small settings of a real game whose episodes are short; the ring turns three times.
NUM_ENVS, BUFFER_SIZE, STEPS = 2, 96, 320
SMALL = [
    *(
        "--quiet",
        "--torch-threads",
        "1",
        "--seed",
        "2",
        "--env-id",
        "ALE/Breakout-v5",
        "--n-quantiles",
        "8",
    ),
    *("--num-envs", str(NUM_ENVS), "--buffer-size", str(BUFFER_SIZE), "--batch-size", "8"),
    *("--learning-starts", "64", "--train-frequency", "20", "--target-network-frequency", "128"),
    *("--exploration-fraction", "0.9", "--learning-rate", "1e-3", "--max-episode-frames", "240"),
]


def train(*flags, steps=128):
    args = qrdqn_atari.parse_args([*SMALL, "--total-timesteps", str(steps), *flags])
    return qrdqn_atari.train(args)


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
    return {name: t.numpy().tobytes() for name, t in tensors.items()}, optimizer["param_groups"]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def dense_run(tmp_path_factory, *flags):
    lives_lost = np.zeros(NUM_ENVS, dtype=int)

    add = qrdqn_atari.DenseReplayBuffer.add

    def add_and_count(self, obs, action, reward, terminated, truncated, next_obs, info):
        lives_lost[terminated & ~info["_episode"]] += 1
        add(self, obs, action, reward, terminated, truncated, next_obs, info)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("dense"))
        patch.setattr(qrdqn_atari.DenseReplayBuffer, "add", add_and_count)
        result = train("--obs-storage", "dense", *flags, steps=STEPS)
    return SimpleNamespace(
        learned=learned(result),
        episodes=result["history"]["episodes"],
        buffer=result["buffer"],
        lives_lost=lives_lost,
    )


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return dense_run(tmp_path_factory)


@pytest.fixture(scope="module")
def dense_3_steps(tmp_path_factory):
    return dense_run(tmp_path_factory, "--n-step", "3")


def assert_two_episodes_per_lane(episodes):
    ended = np.bincount([lane for *_, lane in episodes], minlength=NUM_ENVS)
    assert (ended >= 2).all(), ended


def assert_the_ring_turned(buffer):
    assert len(buffer) == BUFFER_SIZE
    added = buffer._transitions.counts.sum() if isinstance(buffer, ReplayBuffer) else None
    assert (added or buffer.added * NUM_ENVS) >= 3 * BUFFER_SIZE


def test_dense_learns_at_all(dense):
    assert_two_episodes_per_lane(dense.episodes)
    assert_the_ring_turned(dense.buffer)
    assert dense.buffer.added * NUM_ENVS == STEPS
    # Games that are cut short are followed by a reset, and lost lives are not.
    assert (dense.lives_lost >= 2).all(), dense.lives_lost
    torch.manual_seed(1)
    weights, _ = dense.learned
    fresh = qrdqn_atari.QNetwork(4, 8).state_dict()
    assert all(weights[f"q_network.{name}"] != t.numpy().tobytes() for name, t in fresh.items())


def test_the_loss_of_a_batch_falls():
    """Towards targets that stay, and the values of actions that were taken go to the rewards."""
    torch.manual_seed(0)
    q_network, target = (qrdqn_atari.QNetwork(4, 8) for _ in range(2))
    optimizer = torch.optim.Adam(q_network.parameters(), lr=1e-3, eps=0.01 / 16)
    draws = torch.Generator().manual_seed(1)
    obs, next_obs = torch.randint(0, 256, (2, 16, 4, 84, 84), dtype=torch.uint8, generator=draws)
    action = torch.randint(0, 4, (16,), generator=draws)
    reward = torch.randint(-1, 2, (16,), generator=draws).float()
    batch = SimpleNamespace(
        obs=obs, action=action, reward=reward, next_obs=next_obs, terminated=torch.ones(16),
        discount=torch.full((16,), 0.99),
    )  # fmt: skip
    losses = [
        qrdqn_atari.update_network(q_network, target, optimizer, batch)[0].item() for _ in range(60)
    ]
    assert losses[-1] < 0.1 * losses[0]
    with torch.no_grad():
        values = q_network(obs).mean(dim=1)[torch.arange(16), action]
    assert (values - reward).abs().max() < 0.5


def test_settings_are_rl_zoos():
    args = qrdqn_atari.parse_args([])
    assert (args.learning_rate, args.gamma, args.batch_size) == (5e-5, 0.99, 32)
    assert (args.buffer_size, args.learning_starts) == (1_000_000, 50_000)
    assert (args.train_frequency, args.target_network_frequency) == (4, 10_000)
    assert (args.start_e, args.end_e, args.exploration_fraction) == (1.0, 0.01, 0.025)
    assert (args.n_quantiles, args.num_envs, args.n_step) == (200, 1, 1)
    assert args.total_timesteps == 10_000_000
    assert (args.eval_every, args.eval_episodes, args.eval_epsilon) == (0, 10, 0.01)


def test_the_papers_preset():
    zoo, paper = (vars(qrdqn_atari.parse_args(["--preset", each])) for each in ("zoo", "paper"))
    differ = {name: value for name, value in paper.items() if value != zoo[name]}
    assert differ.pop("preset") == "paper"
    evaluation = {"eval_every": 50_000, "eval_episodes": 3, "eval_epsilon": 0}
    assert differ == {"buffer_size": 100_000, **evaluation}
    given = qrdqn_atari.parse_args(["--preset", "paper", "--buffer-size", "1000000"])
    assert (given.buffer_size, given.eval_episodes) == (1_000_000, 3)


def test_evaluations_and_counting_leave_learning_alone(dense):
    flags = ["--eval-every", "100", "--eval-episodes", "1", "--count-changed-pixels"]
    result = train("--obs-storage", "indexed", *flags, steps=STEPS)
    assert_the_same(result, dense)
    assert [step for step, _ in result["history"]["evaluations"]] == [0, 100, 200, 300]


def assert_the_same(result, dense):
    assert learned(result) == dense.learned
    assert result["history"]["episodes"] == dense.episodes
    assert_two_episodes_per_lane(result["history"]["episodes"])
    assert_the_ring_turned(result["buffer"])


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("storage", ["compressed", "indexed"])
def test_the_same_learning(storage, codec, dense):
    result = train("--obs-storage", storage, "--codec", codec, steps=STEPS)
    assert_the_same(result, dense)


@pytest.mark.parametrize("storage", ["compressed", "indexed"])
def test_the_same_learning_with_three_steps(storage, dense, dense_3_steps):
    assert dense_3_steps.learned != dense.learned
    assert_the_same(train("--obs-storage", storage, "--n-step", "3", steps=STEPS), dense_3_steps)


def test_another_seed_learns_something_else(dense):
    result = train("--obs-storage", "dense", "--seed", "3", steps=STEPS)
    assert learned(result) != dense.learned


def test_dense_leaves_the_library_alone(monkeypatch):
    code = f"""
import sys
from cleanrl_scripts import qrdqn_atari
qrdqn_atari.main({[*SMALL, "--total-timesteps", "80", "--obs-storage", "dense"]})
assert not {{"compressarray", "wrappers", "numba"}} & set(sys.modules)
"""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- the algorithm


def test_quantile_huber_loss_against_a_loop():
    rng = np.random.default_rng(0)
    batch, n, m = 3, 5, 4
    theta, y = rng.normal(size=(batch, n)) * 2, rng.normal(size=(batch, m)) * 2
    y[0, 0] = theta[0, 2]  # u = 0
    y[1, 1] = theta[1, 0] + 1  # u = kappa
    errors, gradient, total = set(), np.zeros((batch, n)), 0.0
    for b in range(batch):
        for i in range(n):
            tau = (i + 0.5) / n
            for j in range(m):
                u = y[b, j] - theta[b, i]
                weight = abs(tau - (1 if u < 0 else 0))
                inside = abs(u) <= 1
                errors.add((inside, u < 0))
                total += weight * (u * u / 2 if inside else abs(u) - 0.5) / (batch * m)
                gradient[b, i] -= weight * max(-1.0, min(1.0, u)) / (batch * m)
    assert len(errors) == 4  # both branches on both sides

    quantiles = torch.tensor(theta, requires_grad=True)
    loss = qrdqn_atari.quantile_huber_loss(quantiles, torch.tensor(y))
    loss.backward()
    assert loss.item() == pytest.approx(total, rel=1e-6)
    np.testing.assert_allclose(quantiles.grad.numpy(), gradient, rtol=1e-5, atol=1e-7)


def test_targets_against_a_loop():
    rng = np.random.default_rng(1)
    batch, n, actions = 6, 3, 4

    def table(obs):  # quantiles by a number that stands for the observation
        return values[obs]

    values = torch.tensor(rng.normal(size=(20, n, actions)), requires_grad=True)
    target_values = torch.tensor(rng.normal(size=(20, n, actions)))
    rows = qrdqn_atari.Batch(
        obs=torch.arange(batch),
        action=torch.tensor(rng.integers(actions, size=batch)),
        reward=torch.tensor(rng.normal(size=batch)),
        next_obs=torch.arange(10, 10 + batch),
        terminated=torch.tensor([False, True, False, False, True, False]),
        discount=torch.tensor([0.9, 0.9, 0.81, 0.9, 0.81, 0.729]),
    )
    y = np.zeros((batch, n))
    for b in range(batch):
        after = target_values[10 + b].numpy()
        best = max(range(actions), key=lambda a: sum(after[:, a]))
        for j in range(n):
            y[b, j] = rows.reward[b].item()
            if not rows.terminated[b]:
                y[b, j] += rows.discount[b].item() * after[j, best]
    taken = torch.stack([values[b, :, rows.action[b]] for b in range(batch)])
    expected = qrdqn_atari.quantile_huber_loss(taken, torch.tensor(y)).item()
    q_values = taken.mean(dim=1).detach()

    optimizer = torch.optim.SGD([values], lr=1.0)
    before = values.detach().clone()
    loss, q = qrdqn_atari.update_network(table, lambda obs: target_values[obs], optimizer, rows)
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    assert torch.equal(q, q_values)
    moved = (values.detach() != before).any(dim=1)  # only the actions taken
    assert moved.nonzero().tolist() == [[b, rows.action[b].item()] for b in range(batch)]


def test_epsilon_goes_down_linearly_and_stays():
    epsilons = [qrdqn_atari.linear_schedule(1, 0.2, 40, t) for t in (0, 10, 40, 1000)]
    assert epsilons == pytest.approx([1, 0.8, 0.2, 0.2])
    assert qrdqn_atari.linear_schedule(1, 0.2, 0, 0) == pytest.approx(0.2)


@pytest.mark.parametrize("num_envs", [1, 3, 5])
def test_what_is_due_happens_as_often_with_any_number_of_lanes(num_envs):
    args = SimpleNamespace(num_envs=num_envs)
    steps = range(num_envs, 301, num_envs)
    for every in (1, 2, 4, 7):
        assert sum(qrdqn_atari.due(every, step, args) for step in steps) == steps[-1] // every


@pytest.mark.parametrize("n_step", [1, 3, 9])
def test_the_dense_buffer_against_a_list(n_step):
    """Every transition in a list of all; what may be drawn is found by looking at each."""
    lanes, rows, gamma = 2, 7, 0.9
    args = qrdqn_atari.Args(buffer_size=rows * lanes, num_envs=lanes, n_step=n_step, gamma=gamma)
    args.gamma = gamma
    buffer = qrdqn_atari.DenseReplayBuffer(args, torch.device("cpu"), np.random.default_rng(5))
    rng, draws = np.random.default_rng(0), np.random.default_rng(5)
    history = []
    for step in range(40):
        stacks = rng.integers(0, 256, (2, lanes, 4, 1, 1), dtype=np.uint8)
        obs, next_obs = np.broadcast_to(stacks, (2, lanes, 4, 84, 84))
        final_obs = 255 - next_obs
        terminated, truncated = rng.random((2, lanes)) < 0.15
        action, reward = rng.integers(4, size=lanes), rng.integers(-1, 2, size=lanes)
        ended = terminated | truncated
        info = {"final_obs": final_obs} if ended.any() else {}
        buffer.add(obs, action, reward, terminated, truncated, next_obs, info)
        last_obs = np.where(ended[:, None, None, None], final_obs, next_obs)
        history.append((obs, action, reward, last_obs, terminated, ended))

        expected = []  # lane by lane, then by slot
        held = range(max(0, step + 1 - rows), step + 1)
        for lane in range(lanes):
            for t in sorted(held, key=lambda t: t % rows):
                window = [tuple(x[lane] for x in row) for row in history[t : t + n_step]]
                ends = [k for k, row in enumerate(window) if row[5]]
                if ends:
                    window = window[: ends[0] + 1]
                elif len(window) < n_step:
                    continue
                total = sum(gamma**k * float(row[2]) for k, row in enumerate(window))
                (obs, action, *_), (_, _, _, last, terminated, _) = window[0], window[-1]
                expected.append((obs, action, total, last, terminated, gamma ** len(window)))
        if not expected:
            continue
        batch = buffer.sample(32)
        numbers = draws.integers(len(expected), size=32)
        for number, *row in zip(numbers, *batch, strict=True):
            for actual, value in zip(row, expected[number], strict=True):
                np.testing.assert_array_equal(
                    actual.numpy(), np.asarray(value, actual.numpy().dtype)
                )
    assert len(buffer) == rows * lanes


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize("n_step", [1, 3])
def test_the_dense_buffer_beside_the_librarys(n_step, num_envs):
    """Equal seeds draw equal transitions, however full the ring is."""
    stacks = gym.spaces.Box(0, 255, qrdqn_atari.STACK, np.uint8)
    args = qrdqn_atari.Args(buffer_size=330, num_envs=num_envs, n_step=n_step)
    rngs = np.random.default_rng(5), np.random.default_rng(5)
    dense = qrdqn_atari.DenseReplayBuffer(args, torch.device("cpu"), rngs[0])
    buffer = ReplayBuffer(
        330, stacks, gym.spaces.Discrete(9), num_envs, n_step=n_step, device="cpu", seed=rngs[1]
    )
    rng = np.random.default_rng(0)
    obs = np.zeros((num_envs, *qrdqn_atari.STACK), np.uint8)
    for step in range(2 * 330 // num_envs):
        frames = np.broadcast_to(rng.integers(256, size=(num_envs, 1, 1)), (num_envs, 84, 84))
        next_obs = np.concatenate([obs[:, 1:], frames[:, None].astype(np.uint8)], axis=1)
        terminated, truncated = rng.random((2, num_envs)) < 0.1
        info = {"final_obs": next_obs.copy()}
        next_obs[truncated, :-1] = 0  # a reset; where a life was lost the stack runs on
        transition = (obs, rng.integers(9, size=num_envs), rng.normal(size=num_envs))
        dense.add(*transition, terminated, truncated, next_obs, info)
        buffer.add(*transition, terminated, truncated, next_obs, info, was_reset=truncated)
        obs = next_obs
        if step % 50 == 40:
            dense.cut()
            buffer.cut()
            obs = np.zeros_like(obs)
        if step >= n_step:
            batches = dense.sample(8), buffer.sample(8)
            for name in qrdqn_atari.Batch._fields:
                expected, actual = (getattr(batch, name) for batch in batches)
                assert torch.equal(actual.to(expected.dtype), expected), (step, name)


def test_signals_beside_the_plain_environment():
    args = qrdqn_atari.parse_args([*SMALL, "--max-episode-frames", "400"])
    plain = qrdqn_atari.make_env(args, 3)
    envs = qrdqn_atari.LearnerSignals(qrdqn_atari.make_env(args, 3))
    obs, info = plain.reset(seed=5)
    assert np.array_equal(envs.reset(seed=5)[0], obs)
    rng = np.random.default_rng(0)
    lives, returns, lengths = info["lives"], [0.0] * 3, [0] * 3
    lost = truncated = 0
    for _ in range(300):
        actions = rng.integers(4, size=3)
        obs, rewards, terms, truncs, info = plain.step(actions)
        obs2, rewards2, terms2, truncs2, info2 = envs.step(actions)
        assert np.array_equal(obs, obs2)
        assert np.array_equal(truncs, truncs2)
        for lane in range(3):
            returns[lane] += float(rewards[lane])
            lengths[lane] += 1
            assert rewards2[lane] == min(max(int(rewards[lane]), -1), 1)
            assert info2["episode"]["r"][lane] == returns[lane]
            assert info2["episode"]["l"][lane] == lengths[lane]
            over = bool(terms[lane] or truncs[lane])
            life_lost = not over and 0 < info["lives"][lane] < lives[lane]
            assert info2["_episode"][lane] == over
            assert terms2[lane] == (terms[lane] or life_lost)
            if over:  # what ended the episode is not the next one's first observation
                assert np.array_equal(info2["final_obs"][lane], info["final_obs"][lane])
                returns[lane], lengths[lane] = 0.0, 0
            elif life_lost:  # the game goes on from it
                assert np.array_equal(info2["final_obs"][lane], obs[lane])
            lost, truncated = lost + life_lost, truncated + bool(truncs[lane])
        lives = info["lives"]
    assert lost > 3
    assert truncated > 0
    plain.close()
    envs.close()


# ---------------------------------------------------------------- checkpoints


def test_random_states_come_back(tmp_path):
    def draws():
        return random.random(), rng.random(), torch.rand(()).item()

    rng = np.random.default_rng(7)
    rng.random()
    torch.save(qrdqn_atari.get_random_states(rng), tmp_path / "states.pt")
    then = draws()
    assert draws() != then
    states = torch.load(tmp_path / "states.pt", weights_only=True)
    qrdqn_atari.set_random_states(rng, states)
    assert draws() == then


STORAGES = [("dense", "delta"), ("compressed", "delta-huffman"), ("indexed", "delta")]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """A checkpoint of each storage, after the ring's first turn and in the middle of episodes."""
    folders = {}
    for storage, codec in STORAGES:
        folders[storage] = tmp_path_factory.mktemp(storage)
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folders[storage])
            run_dir = train("--obs-storage", storage, "--codec", codec, steps=200)["run_dir"]
            folders[storage] = run_dir.resolve()
    return folders


def resume(folder, *flags):
    return train("--resume", str(folder / "checkpoint.pt"), *flags, steps=260)


@pytest.fixture(scope="module")
def resumed(checkpoints, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("resumed"))
        result = resume(checkpoints["dense"], "--obs-storage", "dense")
        return SimpleNamespace(learned=learned(result), episodes=result["history"]["episodes"])


@pytest.mark.parametrize(("storage", "codec"), STORAGES)
def test_every_resume_is_identical(storage, codec, checkpoints, resumed):
    for _ in range(2):
        again = resume(checkpoints[storage], "--obs-storage", storage, "--codec", codec)
        assert learned(again) == resumed.learned
        assert again["history"]["episodes"] == resumed.episodes
    before = torch.load(checkpoints[storage] / "checkpoint.pt", weights_only=True)
    after = torch.load(again["run_dir"] / "checkpoint.pt", weights_only=True)
    assert (before["global_step"], after["global_step"]) == (200, 260)
    then = before["history"]["episodes"]
    assert len(then) > 0
    assert after["history"]["episodes"][: len(then)] == then
    assert after["replay"] == (1 if storage != "dense" else 260 // NUM_ENVS)
    assert not list(again["run_dir"].rglob("*.pkl"))


@pytest.mark.parametrize(
    "what",
    [
        *("q_network", "target_network", "optimizer", "torch", "numpy", "global_step"),
        *("pixels", "actions", "rewards", "generator"),
    ],
)
def test_everything_saved_counts(what, checkpoints, resumed, tmp_path):
    """With any of it changed the resume comes out otherwise."""
    folder = checkpoints["dense"]
    checkpoint = torch.load(folder / "checkpoint.pt", weights_only=True)
    buffer = qrdqn_atari.DenseReplayBuffer.restore(folder / "replay", checkpoint["replay"])
    match what:
        case "q_network" | "target_network":
            checkpoint[what]["network.9.bias"] += torch.arange(32) * 1e-3
        case "optimizer":
            checkpoint["optimizer"]["state"][0]["exp_avg"] += 1e-3
        case "torch":  # nothing of QR-DQN draws from it: that it came back is seen directly
            torch.manual_seed(99)
            checkpoint["random_states"]["torch"] = torch.get_rng_state()
            wanted = torch.rand(())
        case "numpy":
            states = qrdqn_atari.get_random_states(np.random.default_rng(99))
            checkpoint["random_states"]["numpy"] = states["numpy"]
        case "global_step":  # the environments are seeded from it
            checkpoint["global_step"] += NUM_ENVS
        case "pixels":
            buffer.obs ^= 128
        case "actions":
            buffer.actions = 3 - buffer.actions
        case "rewards":
            buffer.rewards += 1
        case "generator":
            buffer.rng = np.random.default_rng(99)
    torch.save(checkpoint, tmp_path / "checkpoint.pt")
    assert buffer.checkpoint(tmp_path / "replay") == checkpoint["replay"]
    changed = resume(tmp_path, "--obs-storage", "dense")
    if what == "torch":
        assert torch.rand(()) == wanted
    else:
        assert learned(changed) != resumed.learned


@pytest.mark.parametrize(("storage", "codec"), STORAGES)
def test_a_restored_buffer_goes_where_this_run_computes(storage, codec, checkpoints):
    flags = ["--obs-storage", storage, "--codec", codec]
    args = qrdqn_atari.parse_args([*SMALL, *flags])
    number = torch.load(checkpoints[storage] / "checkpoint.pt", weights_only=True)["replay"]
    buffer = qrdqn_atari.restore_replay(args, checkpoints[storage] / "replay", number)
    buffer.device = "meta"  # as if the checkpoint came from a machine with a GPU
    envs = qrdqn_atari.make_env(args, NUM_ENVS, 1 if storage == "indexed" else 4)
    restored = qrdqn_atari.make_storage(args, envs, torch.device("cpu"), buffer).buffer
    assert restored is buffer
    assert restored.sample(4).obs.device.type == "cpu"
    envs.close()


def test_checkpoints_are_written_along_the_way(monkeypatch):
    saved = []
    monkeypatch.setattr(qrdqn_atari, "save_checkpoint", lambda *args: saved.append(args[-2]))
    train("--obs-storage", "dense", "--checkpoint-every", "30", steps=100)
    assert saved == [30, 60, 90, 100]
    saved.clear()
    train("--obs-storage", "dense", "--checkpoint-every", "0", steps=100)
    assert saved == [100]


def test_a_crash_while_saving_leaves_the_checkpoint_before(checkpoints, monkeypatch):
    def out_of_disk(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(qrdqn_atari.os, "replace", out_of_disk)
    folder = checkpoints["dense"]
    before = torch.load(folder / "checkpoint.pt", weights_only=True)
    newer = qrdqn_atari.DenseReplayBuffer.restore(folder / "replay", before["replay"])
    newer.added += 1
    with pytest.raises(OSError, match="No space"):
        qrdqn_atari.save_checkpoint(
            folder / "checkpoint.pt",
            qrdqn_atari.Args(),
            torch.nn.Linear(1, 1),
            torch.nn.Linear(1, 1),
            torch.optim.SGD([torch.zeros(1)], lr=1),
            np.random.default_rng(0),
            newer,
            250,
            {},
        )
    assert (folder / "replay" / f"{before['replay']}.npz").exists()
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["replay"] == before["replay"]


def test_stop_after_minutes():
    result = train("--obs-storage", "dense", "--stop-after-minutes", "0.0001", steps=100_000)
    step = torch.load(result["run_dir"] / "checkpoint.pt", weights_only=True)["global_step"]
    assert NUM_ENVS <= step < 10_000
    assert result["history"]["memory"][-1][0] == step


# ---------------------------------------------------------------- what a run leaves behind


def test_saved_model_logs_and_picture(capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [flag for flag in SMALL if flag != "--quiet"]
    args = qrdqn_atari.parse_args(
        [*flags, "--total-timesteps", "600", "--save-model", "--eval-episodes", "3"]
    )
    result = qrdqn_atari.train(args)
    run_dir = result["run_dir"]
    assert run_dir.parent == Path("runs")
    assert run_dir.name.startswith("ALE-Breakout-v5__qrdqn_atari__2__")

    state_dict = torch.load(run_dir / "qrdqn_atari.cleanrl_model", weights_only=True)
    assert all(torch.equal(t, result["q_network"].state_dict()[k]) for k, t in state_dict.items())
    assert state_dict.keys() == result["q_network"].state_dict().keys()
    assert len(result["eval_returns"]) == 3

    out = capsys.readouterr().out
    assert out.count("episodic_return=") == 3
    assert "steps per second (SPS)" in out
    assert "28,224" in out
    assert "56,448" in out
    assert "peak RSS" in out
    each = result["nbytes_stored"] / BUFFER_SIZE
    assert f"{28224 / each:,.2f}" in out
    assert (run_dir / "training.png").read_bytes().startswith(b"\x89PNG")

    log = EventAccumulator(str(run_dir))
    log.Reload()
    assert set(log.Tags()["scalars"]) >= {
        *("charts/SPS", "charts/episodic_return", "charts/episodic_length", "charts/epsilon"),
        *("losses/td_loss", "losses/q_values", "storage/nbytes_stored"),
        *("storage/compression_ratio", "eval/episodic_return"),
    }
    assert [e.value for e in log.Scalars("eval/episodic_return")] == result["eval_returns"]
    stored = log.Scalars("storage/nbytes_stored")[-1].value
    # The checkpoint at the end makes it keep in mind what changes.
    assert stored == result["nbytes_stored"]
    assert stored == pytest.approx(result["buffer"].nbytes_stored, abs=1024)


def test_nbytes_stored_of_dense_is_what_was_written():
    result = train("--obs-storage", "dense", steps=80)
    each = 2 * 28_224 + 8 + 4 + 1 + 1
    assert result["nbytes_stored"] == 80 * each


@pytest.mark.parametrize("storage", ["dense", "compressed", "indexed"])
def test_capture_video(storage):
    from PIL import Image

    result = train("--capture-video", "--obs-storage", storage, "--max-episode-frames", "120")
    videos = sorted(Path("videos", result["run_dir"].name).glob("*.gif"))
    assert [path.name for path in videos] == [f"rl-video-episode-{k}.gif" for k in (0, 1)]
    with Image.open(videos[0]) as video:
        assert video.size == (84, 84)
        assert 10 < video.n_frames <= 31  # equal frames are shown longer, not again
        assert len(video.getcolors()) > 2


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--env-id", "ALE/Pongo-v5"], "Did you mean: `Pong`"),
        (["--env-id", "Pong-v5"], "for example ALE/Pong-v5"),
        (["--env-id", "CartPole-v1"], "for example ALE/Pong-v5"),
        (["--codc", "raw"], "did you mean --codec?"),
        (["--num-envs", "two"], "'two'"),
        (["--num-envs", "0"], "--num-envs 0 must be at least 1"),
        (["--obs-storage", "sparse"], "'compressed', 'indexed', 'dense'"),
        (["--codec", "nosuch"], "--codec nosuch: .*delta"),
        (["--codec", "nosuch", "--obs-storage", "indexed"], "--codec nosuch: .*delta"),
        (["--codec", "packbits"], "--codec packbits: .*only lossless codecs"),
        (["--codec", "quantize"], "--codec quantize: "),
        (["--seed", "-3"], "--seed -3"),
        (["--gamma", "1.1"], "--gamma 1.1 must be at most 1"),
        (["--end-e", "2"], "--end-e 2.0 must be at most 1"),
        (["--learning-rate", "nan"], "--learning-rate nan must be at least 0"),
        (["--buffer-size", "1"], "--buffer-size 1 must be at least 2, --n-step 1 times --num-envs"),
        (["--n-step", "65"], "--buffer-size 96 must be at least 130, --n-step 65"),
        (["--n-step", "33"], "--learning-starts 64 must be at least 66, --n-step 33"),
        (
            ["--obs-storage", "dense", "--buffer-size", "10000000000"],
            "--buffer-size 10000000000: dense stacks .* 564,480.0 GB",
        ),
        (["--resume", "nothing.pt"], "nothing.pt: not a checkpoint"),
        (["--resume", str(ROOT / "pyproject.toml")], "not a checkpoint"),
        (["--resume", "CHECKPOINT"], "larger --total-timesteps than 128"),
        (["--resume", "CHECKPOINT", "--gamma", "0.9"], r"--gamma 0.9 \(was 0.99\)"),
        (["--resume", "CHECKPOINT", "--env-id", "ALE/Pong-v5"], "--env-id ALE/Pong-v5"),
        (["--resume", "CHECKPOINT", "--obs-storage", "indexed"], r"indexed \(was compressed\)"),
    ],
)
def test_one_helpful_line(flags, says, checkpoints):
    if "--resume" in flags:
        flags = [*flags, "--codec", "delta-huffman"]
    checkpoint = str(checkpoints["compressed"] / "checkpoint.pt")
    flags = [checkpoint if flag == "CHECKPOINT" else flag for flag in flags]
    with pytest.raises(SystemExit, match=says) as stop:
        qrdqn_atari.main([*SMALL, "--total-timesteps", "128", *flags])
    assert isinstance(stop.value.code, str)  # printed to stderr; the exit status is 1
    assert "\n" not in stop.value.code
    assert stop.value.code.startswith("qrdqn_atari.py: error: ")
    assert not Path("runs").exists()  # nothing is left behind


def test_resume_from_another_file_of_torch(tmp_path):
    torch.save({"args": {}}, tmp_path / "other.pt")
    with pytest.raises(SystemExit, match=r"other\.pt: not a checkpoint of this script .*optimizer"):
        qrdqn_atari.main([*SMALL, "--resume", str(tmp_path / "other.pt")])


def test_resume_without_the_replay_buffer(checkpoints, tmp_path):
    path = tmp_path / "checkpoint.pt"
    path.write_bytes((checkpoints["compressed"] / "checkpoint.pt").read_bytes())
    flags = ["--codec", "delta-huffman", "--total-timesteps", "300", "--resume", str(path)]
    with pytest.raises(SystemExit, match=r"replay buffer cannot be read .*no checkpoints in"):
        qrdqn_atari.main([*SMALL, *flags])


def test_missing_rom(monkeypatch, tmp_path):
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match=r"ROM is missing.*ALE_ROMS_DIR"):
        qrdqn_atari.main([*SMALL, "--total-timesteps", "128"])


def test_track_without_wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match="pip install wandb"):
        qrdqn_atari.main([*SMALL, "--total-timesteps", "128", "--obs-storage", "dense", "--track"])


def test_exit_status_of_the_process():
    script = ROOT / "cleanrl_scripts" / "qrdqn_atari.py"
    done = subprocess.run(
        [sys.executable, script, *SMALL, "--env-id", "ALE/NoSuchGame-v5"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "NoSuchGame" in done.stderr
