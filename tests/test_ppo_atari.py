"""PPO's script: the same learning under every storage, and what its flags promise."""

from __future__ import annotations

import random
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cleanrl_scripts import ppo_atari

ROOT = Path(__file__).parents[1]
CODECS = ["raw", "sparse", "delta", "delta-huffman", "zstd"]

# Small settings of a real game whose episodes are short.
NUM_ENVS, NUM_STEPS, ITERATIONS = 2, 32, 10
SMALL = [
    *("--quiet", "--torch-threads", "1", "--env-id", "ALE/Breakout-v5"),
    *("--num-envs", str(NUM_ENVS), "--num-steps", str(NUM_STEPS)),
    *("--num-minibatches", "2", "--update-epochs", "1", "--max-episode-frames", "560"),
]


def train(*flags, iterations=2):
    steps = str(iterations * NUM_ENVS * NUM_STEPS)
    return ppo_atari.train(ppo_atari.parse_args([*SMALL, "--total-timesteps", steps, *flags]))


def learned(result):
    """Every bit that learning leaves behind: weights and the optimiser's state."""
    optimizer = result["optimizer"].state_dict()
    tensors = {f"agent.{name}": t for name, t in result["agent"].state_dict().items()}
    for number, state in optimizer["state"].items():
        tensors |= {f"optimizer.{number}.{name}": t for name, t in state.items()}
    return {name: t.numpy().tobytes() for name, t in tensors.items()}, optimizer["param_groups"]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("dense"))
        result = train("--obs-storage", "dense", iterations=ITERATIONS)
    return SimpleNamespace(learned=learned(result), episodes=result["history"]["episodes"])


def assert_two_episodes_per_lane(episodes):
    ended = np.bincount([lane for *_, lane in episodes], minlength=NUM_ENVS)
    assert (ended >= 2).all(), ended


def test_dense_learns_at_all(dense):
    assert_two_episodes_per_lane(dense.episodes)
    torch.manual_seed(1)
    weights, _ = dense.learned
    fresh = ppo_atari.Agent(4).state_dict()
    assert all(weights[f"agent.{name}"] != t.numpy().tobytes() for name, t in fresh.items())


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("storage", ["compressed", "indexed"])
def test_the_same_learning(storage, codec, dense):
    result = train("--obs-storage", storage, "--codec", codec, iterations=ITERATIONS)
    assert learned(result) == dense.learned
    assert result["history"]["episodes"] == dense.episodes

    # It was a test only if the ring has turned and what was compressed was thrown away again.
    frames, stats = result["frames"], result["frames"].stats()
    if storage == "indexed":
        assert (frames.lane_counts >= 3 * frames.shape[0]).all()
    else:
        assert result["history"]["memory"][-1][0] >= 3 * frames.shape[0] * frames.shape[1]
    assert stats["gops_closed"] > 0
    if stats["gop_length"] > 1:
        assert stats["gops_evicted"] > 0
    else:  # frames by themselves are no GOPs: of those put away, few are still there
        assert stats["gops_closed"] > 3 * stats["chunks"]
    assert_two_episodes_per_lane(result["history"]["episodes"])


def test_another_seed_learns_something_else(dense):
    result = train("--obs-storage", "dense", "--seed", "2", iterations=ITERATIONS)
    assert learned(result) != dense.learned


def test_dense_leaves_the_library_alone(monkeypatch):
    code = f"""
import sys
from cleanrl_scripts import ppo_atari
ppo_atari.main({[*SMALL, "--total-timesteps", "64", "--obs-storage", "dense"]})
assert not {{"compressarray", "wrappers", "numba"}} & set(sys.modules)
"""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- the algorithm


def test_gae_against_a_loop():
    rng = np.random.default_rng(0)
    T, n, gamma, lam = 9, 3, 0.97, 0.9
    rewards, values = rng.normal(size=(2, T, n))
    dones = rng.random((T, n)) < 0.3
    next_value, next_done = rng.normal(size=n), np.array([True, False, False])

    expected = np.zeros((T, n))
    for lane in range(n):
        all_values = [*values[:, lane], next_value[lane]]
        begins = [*dones[:, lane], next_done[lane]]  # step t begins an episode
        for t in range(T):
            weight = 1.0
            for k in range(t, T):  # the sum of discounted TD errors, up to the episode's end
                after = 0.0 if begins[k + 1] else gamma * all_values[k + 1]
                expected[t, lane] += weight * (rewards[k, lane] + after - all_values[k])
                if begins[k + 1]:
                    break
                weight *= gamma * lam

    as_tensor = [torch.from_numpy(np.asarray(x, dtype=np.float64)) for x in (
        rewards, values, dones, next_value, next_done
    )]  # fmt: skip
    actual = ppo_atari.compute_gae(*as_tensor, gamma, lam)
    np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-12, atol=1e-12)


def test_signals_beside_the_plain_environment():
    args = ppo_atari.parse_args([*SMALL, "--max-episode-frames", "400"])
    plain = ppo_atari.make_env(args, 3)
    envs = ppo_atari.LearnerSignals(ppo_atari.make_env(args, 3))
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
            lost, truncated = lost + life_lost, truncated + bool(truncs[lane])
            if over:
                returns[lane], lengths[lane] = 0.0, 0
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
    torch.save(ppo_atari.get_random_states(rng), tmp_path / "states.pt")
    then = draws()
    assert draws() != then
    states = torch.load(tmp_path / "states.pt", weights_only=True)
    ppo_atari.set_random_states(rng, states)
    assert draws() == then


def test_two_resumes_of_one_checkpoint_are_identical(tmp_path):
    path = str(train("--codec", "delta-huffman")["run_dir"] / "checkpoint.pt")
    before = torch.load(path, weights_only=True)
    assert (before["iteration"], before["global_step"]) == (2, 2 * NUM_ENVS * NUM_STEPS)

    first = train("--resume", path, iterations=4)
    second = train("--resume", path, "--obs-storage", "indexed", "--codec", "raw", iterations=4)
    assert learned(first) == learned(second)
    assert first["history"]["episodes"] == second["history"]["episodes"]
    assert first["history"]["memory"][:2] == before["history"]["memory"]
    after = torch.load(first["run_dir"] / "checkpoint.pt", weights_only=True)
    assert (after["iteration"], after["global_step"]) == (4, 4 * NUM_ENVS * NUM_STEPS)

    # Everything that was saved counts: with any of it changed the resume comes out otherwise.
    def change(name):
        other = torch.load(path, weights_only=True)
        match name:
            case "agent":
                other["agent"]["actor.bias"] += 1e-3
            case "optimizer":
                other["optimizer"]["state"][0]["exp_avg"] += 1e-3
            case "torch" | "numpy":
                torch.manual_seed(99)
                states = ppo_atari.get_random_states(np.random.default_rng(99))
                other["random_states"][name] = states[name]
            case "global_step":  # the environments are seeded from it
                other["global_step"] += NUM_ENVS
        torch.save(other, tmp_path / "other.pt")
        return train("--resume", str(tmp_path / "other.pt"), iterations=4)

    for name in ("agent", "optimizer", "torch", "numpy", "global_step"):
        assert learned(change(name)) != learned(first), name


def test_checkpoints_are_written_along_the_way(monkeypatch):
    saved = []
    monkeypatch.setattr(ppo_atari, "save_checkpoint", lambda *args: saved.append(args[-3]))
    train("--obs-storage", "dense", "--checkpoint-every", "2", iterations=5)
    assert saved == [2, 4, 5]
    saved.clear()
    train("--obs-storage", "dense", "--checkpoint-every", "0", iterations=5)
    assert saved == [5]


# ---------------------------------------------------------------- what a run leaves behind


def test_saved_model_logs_and_picture(capsys):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    flags = [flag for flag in SMALL if flag != "--quiet"]
    args = ppo_atari.parse_args(
        [*flags, "--total-timesteps", "640", "--save-model", "--eval-episodes", "3"]
    )
    result = ppo_atari.train(args)
    run_dir = result["run_dir"]
    assert run_dir.parent == Path("runs")
    assert run_dir.name.startswith("ALE-Breakout-v5__ppo_atari__1__")

    state_dict = torch.load(run_dir / "ppo_atari.cleanrl_model", weights_only=True)
    assert all(torch.equal(t, result["agent"].state_dict()[k]) for k, t in state_dict.items())
    assert state_dict.keys() == result["agent"].state_dict().keys()
    assert len(result["eval_returns"]) == 3

    out = capsys.readouterr().out
    assert out.count("episodic_return=") == 3
    assert "steps per second (SPS)" in out
    assert "28,224" in out
    assert "112,896" in out
    assert "peak RSS" in out
    each = result["nbytes_stored"] / args.batch_size
    assert f"{28224 / each:,.2f}" in out
    assert (run_dir / "training.png").read_bytes().startswith(b"\x89PNG")

    log = EventAccumulator(str(run_dir))
    log.Reload()
    assert set(log.Tags()["scalars"]) >= {
        *("charts/SPS", "charts/episodic_return", "charts/episodic_length", "charts/learning_rate"),
        *("losses/value_loss", "losses/policy_loss", "losses/entropy", "losses/approx_kl"),
        *("losses/old_approx_kl", "losses/clipfrac", "losses/explained_variance"),
        *("storage/nbytes_stored", "storage/compression_ratio", "eval/episodic_return"),
    }
    assert [e.value for e in log.Scalars("eval/episodic_return")] == result["eval_returns"]
    stored = log.Scalars("storage/nbytes_stored")[-1].value
    assert stored == result["nbytes_stored"] == result["frames"].nbytes_stored


@pytest.mark.parametrize("storage", ["dense", "compressed", "indexed"])
def test_nbytes_stored_counts_indices_too(storage):
    result = train("--obs-storage", storage)
    if storage == "dense":
        assert result["nbytes_stored"] == NUM_STEPS * NUM_ENVS * 4 * 28_224
    else:
        indices = NUM_STEPS * NUM_ENVS * 4 * 8 if storage == "indexed" else 0
        assert result["nbytes_stored"] == result["frames"].nbytes_stored + indices


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


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("checkpoint"))
        return (train("--obs-storage", "dense")["run_dir"] / "checkpoint.pt").resolve()


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
        (["--total-timesteps", "10"], "must be at least 64, one rollout"),
        (["--num-minibatches", "33"], "must be at most 32"),
        (["--seed", "-3"], "--seed -3"),
        (["--learning-rate", "nan"], "--learning-rate nan must be at least 0"),
        (["--resume", "nothing.pt"], "nothing.pt: not a checkpoint"),
        (["--resume", str(ROOT / "pyproject.toml")], "not a checkpoint"),
        (["--resume", "CHECKPOINT"], "larger --total-timesteps than 128"),
        (["--resume", "CHECKPOINT", "--gamma", "0.9"], r"--gamma 0.9 \(was 0.99\)"),
        (["--resume", "CHECKPOINT", "--env-id", "ALE/Pong-v5"], "--env-id ALE/Pong-v5"),
    ],
)
def test_one_helpful_line(flags, says, checkpoint):
    flags = [str(checkpoint) if flag == "CHECKPOINT" else flag for flag in flags]
    with pytest.raises(SystemExit, match=says) as stop:
        ppo_atari.main([*SMALL, "--total-timesteps", "128", *flags])
    assert isinstance(stop.value.code, str)  # printed to stderr; the exit status is 1
    assert "\n" not in stop.value.code
    assert stop.value.code.startswith("ppo_atari.py: error: ")
    assert not Path("runs").exists()  # nothing is left behind


def test_resume_from_another_file_of_torch(tmp_path):
    torch.save({"args": {}}, tmp_path / "other.pt")
    with pytest.raises(SystemExit, match=r"other\.pt: not a checkpoint of this script .*optimizer"):
        ppo_atari.main([*SMALL, "--resume", str(tmp_path / "other.pt")])


def test_missing_rom(monkeypatch, tmp_path):
    monkeypatch.setenv("ALE_ROMS_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match=r"ROM is missing.*ALE_ROMS_DIR"):
        ppo_atari.main([*SMALL, "--total-timesteps", "128"])


def test_track_without_wandb(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit, match="pip install wandb"):
        ppo_atari.main([*SMALL, "--total-timesteps", "128", "--obs-storage", "dense", "--track"])


def test_exit_status_of_the_process():
    script = ROOT / "cleanrl_scripts" / "ppo_atari.py"
    done = subprocess.run(
        [sys.executable, script, "--env-id", "ALE/NoSuchGame-v5", "--obs-storage", "dense"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "NoSuchGame" in done.stderr
