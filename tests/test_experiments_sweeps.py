"""Which configuration an index names, against tables worked out by hand; wrong files and words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from experiments.__main__ import main
from experiments.running import parse_indices
from experiments.scripts import make_job
from experiments.sweeps import ConfigurationError, Sweep, load_sweep, seed_of
from tests.effort import examples

CONFIGS = Path(__file__).parents[1] / "experiments" / "configs"


def write(path, text):
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


# ---------------------------------------------------------------- indices

NESTED = {
    "a": [1, {"b": [2, 3], "c": [4, {"d": [5, 6]}]}, 7],
    "e": ["x", "y"],
}
# a has 1 + 2 * (1 + 2) + 1 = 8 choices, e two; within the dict b changes before c.
BY_HAND = [
    {"a": 1, "e": "x"},
    {"a": {"b": 2, "c": 4}, "e": "x"},
    {"a": {"b": 3, "c": 4}, "e": "x"},
    {"a": {"b": 2, "c": {"d": 5}}, "e": "x"},
    {"a": {"b": 3, "c": {"d": 5}}, "e": "x"},
    {"a": {"b": 2, "c": {"d": 6}}, "e": "x"},
    {"a": {"b": 3, "c": {"d": 6}}, "e": "x"},
    {"a": 7, "e": "x"},
    {"a": 1, "e": "y"},
    {"a": {"b": 2, "c": 4}, "e": "y"},
    {"a": {"b": 3, "c": 4}, "e": "y"},
    {"a": {"b": 2, "c": {"d": 5}}, "e": "y"},
    {"a": {"b": 3, "c": {"d": 5}}, "e": "y"},
    {"a": {"b": 2, "c": {"d": 6}}, "e": "y"},
    {"a": {"b": 3, "c": {"d": 6}}, "e": "y"},
    {"a": 7, "e": "y"},
]


def test_a_table_worked_out_by_hand():
    sweep = Sweep("nested", "medqn", NESTED)
    assert len(sweep) == 16
    for run in range(3):
        for number, values in enumerate(BY_HAND, 1):
            configuration = sweep[number + 16 * run]
            assert configuration.values == values
            assert (configuration.number, configuration.run) == (number, run)
            assert configuration.index == number + 16 * run


def all_of(tree):
    """Every combination, by growing them key by key: what stands first is repeated fastest."""
    combinations = [{}]
    for key, choices in tree.items():
        values = []
        for choice in choices:
            values += all_of(choice) if isinstance(choice, dict) else [choice]
        combinations = [each | {key: value} for value in values for each in combinations]
    return combinations


assert all_of(NESTED) == BY_HAND  # the oracle itself, by hand

leaves = st.integers(0, 3) | st.booleans() | st.sampled_from(["p", "q"]) | st.none()


def trees(choices):
    return st.dictionaries(
        st.sampled_from("abc"), st.lists(choices, min_size=1, max_size=3), min_size=1, max_size=3
    )


@settings(max_examples=examples(60))
@given(trees(leaves | trees(leaves | trees(leaves))))
def test_indices_against_growing_all(tree):
    sweep, combinations = Sweep("drawn", "medqn", tree), all_of(tree)
    n = len(combinations)
    assert len(sweep) == n
    for index in {1, 2, n // 2 + 1, n, n + 1, 2 * n, 2 * n + 1}:
        configuration = sweep[index]
        assert configuration.values == combinations[(index - 1) % n]
        assert configuration.run == (index - 1) // n


@pytest.mark.parametrize(
    ("name", "n"),
    [("dqn.json", 10), ("medqn.json", 60), ("paper_atari.yaml", 60), ("paper_dmc.yaml", 8)],
)
def test_shipped_files(name, n, capsys):
    main(["count", str(CONFIGS / name)])
    assert capsys.readouterr().out == f"{Path(name).stem}: {n} configurations\n"


@pytest.mark.parametrize(
    ("index", "game", "lambda_end", "epochs", "every"),
    [  # the rows that the published figure shows (qlan3/MeDQN: gather_results.py)
        (36, "Qbert", 2, 1, 20),
        (52, "BattleZone", 4, 1, 40),
        (53, "DoubleDunk", 4, 1, 40),
        (54, "NameThisGame", 4, 1, 40),
        (40, "Phoenix", 2, 1, 20),
        (1, "Qbert", 4, 2, 10),
        (60, "Phoenix", 2, 1, 40),
    ],
)
def test_medqns_indices(index, game, lambda_end, epochs, every):
    sweep, _ = load_sweep(CONFIGS / "medqn.json")
    seeds = set()
    for run in range(3):
        job = make_job("medqn", sweep[index + 60 * run], {})
        args = job.settings
        assert args.env_id == f"ALE/{game}-v5"
        assert (args.consod_start, args.consod_end, args.consod_epochs) == (
            0.01,
            lambda_end,
            epochs,
        )
        assert (args.train_frequency, args.buffer_size) == (every, 100_000)
        assert (args.total_timesteps, args.eval_every) == (12_500_000, 100_000)
        assert (args.eval_episodes, args.eval_epsilon, args.n_step) == (5, 0, 3)
        assert args.exploration_fraction * args.total_timesteps == 1_000_000
        assert (args.checkpoint_every, args.target_network_frequency) == (500_000, 500)
        assert (job.agent, job.env) == ("MeDQN(R)", game)
        seeds.add(args.seed)
    assert len(seeds) == 3


def test_dqns_indices():
    sweep, _ = load_sweep(CONFIGS / "dqn.json")
    for index in range(1, 11):
        job = make_job("dqn", sweep[index], {})
        assert job.settings.buffer_size == (1_000_000 if index <= 5 else 100_000)
        assert (job.settings.algorithm, job.settings.train_frequency) == ("dqn", 10)
        assert job.agent == "DQN"
    assert make_job("dqn", sweep[6], {}).env == make_job("dqn", sweep[1], {}).env == "Qbert"


def test_the_papers_indices():
    sweep, _ = load_sweep(CONFIGS / "paper_atari.yaml")
    said = []
    for index in (1, 10, 11, 21, 31, 60, 61, 241):
        job = make_job("paper", sweep[index], {})
        args = job.settings
        codec = "" if args.obs_storage == "dense" else args.codec
        said.append((job.agent, job.env, args.obs_storage, codec, args.seed))
        assert args.total_timesteps == 10_000_000
        assert args.count_changed_pixels
    assert said == [
        ("PPO", "Asteroids", "dense", "", 0),
        ("PPO", "SpaceInvaders", "dense", "", 0),
        ("PPO", "Asteroids", "indexed", "sparse", 0),
        ("PPO", "Asteroids", "indexed", "delta", 0),
        ("QR-DQN", "Asteroids", "dense", "", 0),
        ("QR-DQN", "SpaceInvaders", "indexed", "delta", 0),
        ("PPO", "Asteroids", "dense", "", 1),
        ("PPO", "Asteroids", "dense", "", 4),
    ]
    ppo = make_job("paper", sweep[1], {}).settings
    assert (ppo.num_envs, ppo.num_steps, ppo.update_epochs, ppo.minibatch_size) == (8, 128, 4, 256)
    assert (ppo.anneal_lr, ppo.learning_rate, ppo.clip_coef) == (False, 2.5e-4, 0.1)
    qrdqn = make_job("paper", sweep[31], {}).settings
    assert (qrdqn.buffer_size, qrdqn.learning_starts) == (100_000, 50_000)
    assert (qrdqn.eval_every, qrdqn.eval_episodes, qrdqn.eval_epsilon) == (50_000, 3, 0)
    with pytest.raises(ConfigurationError, match=r"index 301 is run 6 .* 5 seeds"):
        seed_of(sweep[301])


def test_every_shipped_configuration_is_one_that_its_script_takes():
    for path in sorted(CONFIGS.iterdir()):
        sweep, _ = load_sweep(path)
        for index in range(1, len(sweep) + 1):
            if path.stem.endswith("dmc"):
                pytest.importorskip("dm_control", exc_type=ImportError)
            assert make_job(path.stem, sweep[index], {}).settings.seed >= 0


def test_seeds():
    counted = Sweep("s", "medqn", {"seed": [7], "a": [1, 2]})
    assert [seed_of(counted[i]) for i in (1, 2, 3, 4, 5)] == [7, 7, 8, 8, 9]
    drawn = Sweep("s", "medqn", {"seed": [7], "a": [1, 2], "generate_random_seed": [True]})
    seeds = [seed_of(drawn[i]) for i in range(1, 9)]
    assert len(set(seeds)) == 8
    assert seeds == [seed_of(drawn[i]) for i in range(1, 9)]


# ---------------------------------------------------------------- overrides


def test_overrides_of_the_file_and_of_the_script():
    path = CONFIGS / "medqn.json"
    sweep, given = load_sweep(
        path, ["agent.consod_end=1", "buffer_size=[10,20]", "max_episode_frames=400"]
    )
    assert len(sweep) == 60 // 2 * 2
    assert given == {"max_episode_frames": 400}
    args = make_job("medqn", sweep[31], given).settings
    assert (args.consod_end, args.buffer_size, args.max_episode_frames) == (1, 20, 400)

    sweep, given = load_sweep(path, ["learning_starts=[40,50]"])  # the slowest to change
    assert len(sweep) == 120
    assert [make_job("medqn", sweep[i], given).settings.learning_starts for i in (60, 61)] == [
        40,
        50,
    ]

    sweep, given = load_sweep(CONFIGS / "paper_atari.yaml", ["PPO.n_steps=64", "alg=PPO"])
    assert len(sweep) == 30
    assert make_job("paper", sweep[1], given).settings.num_steps == 64
    sweep, given = load_sweep(CONFIGS / "paper_atari.yaml", ["--seeds=[9,8]", "--torch-threads=1"])
    assert [make_job("paper", sweep[i], given).settings.seed for i in (1, 61)] == [9, 8]
    assert make_job("paper", sweep[1], given).settings.torch_threads == 1


# ---------------------------------------------------------------- what is wrong


SMALL = {"script": ["medqn_uniform"], "learning_rate": [0.1, 0.2]}


@pytest.mark.parametrize(
    ("name", "text", "flags", "says"),
    [
        ("no.json", None, [], r"no\.json: No such file"),
        ("a.json", '{"a": [1],\n "b": [2,}', [], r"a\.json, line 2, column 10: "),
        ("a.json", "[1, 2]", [], "a dict of lists is needed, not a list"),
        ("a.json", '{"seed": [1], "seed": [2]}', [], "the key 'seed' stands twice"),
        ("a.json", SMALL | {"seed": 3}, [], r"seed is 3, and must be a list .* \[3\]"),
        ("a.json", SMALL | {"g": [{"seed": 3}]}, [], r"g/seed is 3, and must be a list"),
        ("a.json", SMALL | {"seed": []}, [], "seed is an empty list"),
        ("a.json", SMALL | {"learnig_rate": [1]}, [], "no 'learnig_rate' .did you mean 'learning"),
        ("a.json", SMALL | {"g": [{"learning_rate": [1]}]}, [], "'learning_rate' stands .* twice"),
        ("a.json", {"script": ["medqn"]}, [], "script 'medqn' is unknown .did you mean 'medqn_"),
        ("a.json", {"seed": [1]}, [], "it must have a 'script'"),
        ("a.json", SMALL, ["gama=0.9"], r"no 'gama' \(did you mean 'gamma'\?\)"),
        ("a.json", SMALL, ["gamma"], "'gamma' must be key=value"),
        ("a.yaml", "alg: PPO\n  env: 3", [], r"a\.yaml, line 2, column 6: mapping values"),
        ("a.yaml", "alg: PPO\nenv: Pong\nseeds: [0]", [], "it has no 'compress'"),
        ("a.yaml", "alg: PPO\nenv: Pong\ncompress: true\nseeds: 3", [], "seeds 3 must be a list"),
        ("a.yaml", "alg: DQN\nenv: Pong\ncompress: true\nseeds: [0]", [], "'QRDQN'"),
        ("a.yaml", "alg: PPO\nenv: Pong\ncompress: some\nseeds: [0]", [], "compress 'some'"),
        (
            "a.yaml", "alg: PPO\nenv: Pong\ncompress: true\nseeds: [0]\nPPO: {n_step: 5}", [],
            "'PPO/n_step' is unknown .did you mean 'PPO/n_steps'",
        ),
        ("a.yaml", "alg: PPO\nenv: ${x}\ncompress: true\nseeds: [0]", [], "'x' not found"),
    ],
)  # fmt: skip
def test_one_line_on_what_is_wrong(name, text, flags, says, tmp_path):
    path = tmp_path / name
    if text is not None:
        write(path, text)
    with pytest.raises(SystemExit, match=says) as stop:
        main(["count", str(path), *flags])
    assert "\n" not in stop.value.code
    assert stop.value.code.startswith("experiments: error: ")


def test_medqns_words_that_are_wrong(tmp_path):
    published = json.loads((CONFIGS / "medqn.json").read_text())
    for change, says in (
        ({"epochs": [3]}, "'epochs' is unknown .did you mean 'epoch'"),
        ({"frames_stack": [3]}, "frames_stack 3 must be 4 here"),
        ({"gradient_clip": [5]}, "gradient_clip 5 must be -1 here"),
        ({"step_per_collect": [7]}, "step_per_collect 7 must be -1, or the 10 steps"),
    ):
        sweep, _ = load_sweep(write(tmp_path / "m.json", published | change))
        with pytest.raises(ConfigurationError, match=says):
            make_job("m", sweep[1], {})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["run", "FILE", "--index", "0"], "index 0 must be at least 1"),
        (["run", "FILE", "--index", "x"], "invalid int value"),
        (["run", "FILE", "--indices", "5-2"], "'5-2' must begin at 1 or more and go upwards"),
        (["run", "FILE", "--indices", "a"], "'a' must be like 1-60"),
        (["run", "FILE", "--jobs", "0"], "--jobs 0 must be at least 1"),
        (["status", "FILE", "--runs", "0"], "--runs 0 must be at least 1"),
        (["rn", "FILE"], "invalid choice: 'rn'"),
        (["analyze", "FILE"], "there are no runs in logs"),
        (["plot", "nowhere", "--out", "a.png"], "nowhere: there is no such folder"),
        (["plot", ".", "--out", "a.png"], "no run has evaluations, so there is nothing to show"),
        (["gather", ".", "--out", "a.csv", "--which", "Train"], "no run has episodes of training"),
    ],
)
def test_one_line_on_a_wrong_command(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "small.json", SMALL)
    with pytest.raises(SystemExit) as stop:
        main([str(path) if each == "FILE" else each for each in arguments])
    out = capsys.readouterr().out
    said = stop.value.code if isinstance(stop.value.code, str) else out
    assert says in said
    assert said.strip().count("\n") == 0
    assert not (tmp_path / "logs").exists()


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        ("3", [3]),
        ("1-4", [1, 2, 3, 4]),
        ("1-300:60", [1, 61, 121, 181, 241]),
        ("9,1-2,2", [9, 1, 2]),
    ],
)
def test_indices(text, indices):
    assert parse_indices(text) == indices
