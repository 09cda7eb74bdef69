"""The scripts that experiments run: their flags, the words of configurations, what runs leave."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

from experiments.sweeps import Configuration, ConfigurationError, flatten, seed_of

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Script:
    """A training script.

    Attributes
    ----------
    module : str
        Where its ``Args`` are.
    agent : str
        What the algorithm is called in tables.
    memory : tuple of str
        Columns of the rows in ``history["memory"]`` of its checkpoints.
    frames_per_step : int
        Emulator or simulator frames of one step.
    file : str
        From the repository's root.
    """

    module: str
    agent: str
    memory: tuple[str, ...]
    frames_per_step: int
    file: str


_STORED_FIRST = ("Step", "Bytes", "Transitions")
SCRIPTS = {
    "ppo_atari": Script(
        "cleanrl_scripts.ppo_atari", "PPO", ("Step", "Bytes"), 4, "cleanrl_scripts/ppo_atari.py"
    ),
    "qrdqn_atari": Script(
        "cleanrl_scripts.qrdqn_atari", "QR-DQN", _STORED_FIRST, 4, "cleanrl_scripts/qrdqn_atari.py"
    ),
    "medqn_atari": Script(
        "cleanrl_scripts.medqn_atari", "MeDQN(R)", _STORED_FIRST, 4,
        "cleanrl_scripts/medqn_atari.py",
    ),
    "medqn_uniform": Script(
        "cleanrl_scripts.medqn_uniform", "MeDQN(U)", _STORED_FIRST, 1,
        "cleanrl_scripts/medqn_uniform.py",
    ),
    "drqv2_dmc": Script(
        "cleanrl_scripts.drqv2_dmc", "DrQ-v2", ("Step", "Transitions", "Bytes"), 2,
        "cleanrl_scripts/drqv2_dmc.py",
    ),
    "drqv2_disk": Script(
        "cleanrl_scripts.drqv2_dmc", "DrQ-v2", ("Step", "Transitions", "Bytes"), 2,
        "experiments/drqv2_disk.py",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """What one run is: a script and the flags that are given to it.

    Attributes
    ----------
    script : str
        A key of `SCRIPTS`.
    flags : dict
        By the names of the script's ``Args``.
    """

    script: str
    flags: dict[str, Any]

    @property
    def settings(self) -> Any:
        """The script's ``Args``, those that were not given filled in as the script does."""
        module = importlib.import_module(SCRIPTS[self.script].module)
        try:
            return module.parse_args(self.command_line())
        except SystemExit as stop:
            raise ConfigurationError(f"{stop.code}") from stop

    @property
    def agent(self) -> str:
        """The algorithm's name."""
        return "DQN" if self.flags.get("algorithm") == "dqn" else SCRIPTS[self.script].agent

    @property
    def env(self) -> str:
        """The game or task, as tables name it."""
        return short_name(self.settings.env_id)

    def command_line(self) -> list[str]:
        """The flags as one would type them."""
        typed = []
        for name, value in self.flags.items():
            flag = name.replace("_", "-")
            if isinstance(value, bool):
                typed.append(f"--{flag}" if value else f"--no-{flag}")
            else:
                typed += [f"--{flag}", str(value)]
        return typed


def short_name(env_id: str) -> str:
    """``ALE/Pong-v5``, ``PongNoFrameskip-v4`` and ``Pong`` are Pong."""
    return re.sub(r"^(ALE|MinAtar)/|(NoFrameskip)?-v\d+$", "", env_id)


def ale_name(env: str) -> str:
    return f"ALE/{short_name(env)}-v5"


@cache
def known_flags(script: str) -> dict[str, Any]:
    """Names and types of a script's flags."""
    arguments = importlib.import_module(SCRIPTS[script].module).Args
    types = get_type_hints(arguments)
    return {field.name: types[field.name] for field in fields(arguments)}


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (did you mean X?)``, or nothing where no name is near."""
    found = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f" (did you mean {found[0]!r}?)" if found else ""


def make_job(name: str, configuration: Configuration, given: dict[str, Any]) -> Job:
    """Translate a configuration into a script and its flags.

    Parameters
    ----------
    name : str
        Of the experiment, for messages.
    given : dict
        Flags from the command line; they stand above the configuration.

    Raises
    ------
    ConfigurationError
        For what the script does not know, with the nearest that it does.
    """
    values = configuration.values
    if "script" in values:
        script, flags = from_flags(name, values)
    elif "alg" in values:
        script, flags = from_paper(name, values)
    elif "agent" in values:
        script, flags = from_medqn(name, values)
    else:
        raise ConfigurationError(
            f"{name}: it must have a 'script' ({', '.join(SCRIPTS)}), an 'agent' as MeDQN's files "
            "have, or an 'alg' as the paper's have"
        )
    flags = {**flags, "seed": seed_of(configuration)} | given
    known = known_flags(script)
    for flag in flags:
        if flag not in known:
            raise ConfigurationError(f"{name}: {script}.py knows no {flag!r}{nearest(flag, known)}")
    return Job(script, {flag: typed(value, known[flag]) for flag, value in flags.items()})


def typed(value: Any, kind: Any) -> Any:
    """1e6 as a number of steps is 1000000: files write whole numbers as floats."""
    whole = isinstance(value, float) and value.is_integer()
    return int(value) if whole and "int" in str(kind) and "float" not in str(kind) else value


def from_flags(name: str, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """``script``, and its flags by their own names; dicts around them group and do no more."""
    leaves = dict(flatten(values))
    script = leaves.pop("script")
    if script not in SCRIPTS:
        raise ConfigurationError(f"{name}: script {script!r} is unknown{nearest(script, SCRIPTS)}")
    flags: dict[str, Any] = {}
    for path, value in leaves.items():
        flag = path.rpartition("/")[2]
        if flag in flags:
            raise ConfigurationError(f"{name}: {flag!r} stands in it twice, once as {path}")
        flags[flag] = value
    flags.pop("generate_random_seed", None)
    flags.pop("seeds", None)
    return script, flags


# Words of qlan3/MeDQN's files that are flags of medqn_atari.py under another name.
MEDQN_FLAGS = {
    "env/scale_obs": "scale_obs",
    "env/train_num": "num_envs",
    "env/test_num": "eval_episodes",
    "agent/eps_start": "start_e",
    "agent/eps_end": "end_e",
    "agent/eps_test": "eval_epsilon",
    "agent/consod_start": "consod_start",
    "agent/consod_end": "consod_end",
    "agent/consod_epoch": "consod_epochs",
    "save_model": "save_model",
    "n_step": "n_step",
    "batch_size": "batch_size",
    "target_update_steps": "target_network_frequency",
    "buffer_size": "buffer_size",
    "discount": "gamma",
    "optimizer/kwargs/lr": "learning_rate",
}
# Words with one value that this script can do, or that are the runner's business.
MEDQN_FIXED = {"frames_stack": 4, "optimizer/name": "Adam", "gradient_clip": -1}
MEDQN_OURS = {"device", "show_progress", "resume_from_log", "generate_random_seed", "seed"}
MEDQN_COMPUTED = {
    *("env/name", "agent/name", "agent/eps_steps", "epoch", "step_per_epoch"),
    *("step_per_collect", "update_per_step", "save_interval"),
}


def from_medqn(name: str, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The words of MeDQN's own files."""
    leaves = dict(flatten(values))
    known = {*MEDQN_FLAGS, *MEDQN_FIXED, *MEDQN_OURS, *MEDQN_COMPUTED}
    # Flags of the script itself may stand beside them at the top.
    own = {key: leaves.pop(key) for key in list(leaves)
           if key not in known and key in known_flags("medqn_atari")}  # fmt: skip
    for key in leaves:
        if key not in known:
            raise ConfigurationError(f"{name}: {key!r} is unknown{nearest(key, known)}")
    missing = [key for key in ("env/name", "agent/name", "epoch", "step_per_epoch")
               if key not in leaves]  # fmt: skip
    if missing:
        raise ConfigurationError(f"{name}: it has no {missing[0]!r}")
    algorithms = {"DQN": "dqn", "MeDQN_Real": "medqn"}
    agent = leaves["agent/name"]
    if agent not in algorithms:
        raise ConfigurationError(
            f"{name}: agent/name {agent!r} is unknown{nearest(agent, algorithms)}"
        )
    for key, value in MEDQN_FIXED.items():
        if leaves.get(key, value) != value:
            raise ConfigurationError(f"{name}: {key} {leaves[key]!r} must be {value!r} here")
    if leaves.get("env/name") and short_name(leaves["env/name"]) == "Breakout":
        leaves["n_step"] = 1  # as their code does
    steps = int(leaves["epoch"] * leaves["step_per_epoch"])
    flags = {
        "algorithm": algorithms[agent],
        "env_id": ale_name(leaves["env/name"]),
        "total_timesteps": steps,
        "eval_every": int(leaves["step_per_epoch"]),
    }
    flags |= {flag: leaves[key] for key, flag in MEDQN_FLAGS.items() if key in leaves}
    flags["scale_obs"] = bool(flags.get("scale_obs", False))
    if flags["algorithm"] == "dqn":
        for flag in ("consod_start", "consod_end", "consod_epochs"):
            flags.pop(flag, None)
    if "agent/eps_steps" in leaves:
        flags["exploration_fraction"] = leaves["agent/eps_steps"] / steps
    if "update_per_step" in leaves:
        flags["train_frequency"] = round(1 / leaves["update_per_step"])
        collected = leaves.get("step_per_collect", -1)
        if collected not in (-1, flags["train_frequency"]):
            raise ConfigurationError(
                f"{name}: step_per_collect {collected} must be -1, or the "
                f"{flags['train_frequency']} steps of an update"
            )
    if "save_interval" in leaves:
        flags["checkpoint_every"] = int(leaves["save_interval"] * leaves["step_per_epoch"])
    return "medqn_atari", flags | own


# What the paper calls compressed, and what else may stand there: how frames are stored.
COMPRESS = {
    False: {"obs_storage": "dense"},
    True: {"obs_storage": "indexed", "codec": "sparse"},
    "half": {"obs_storage": "indexed", "codec": "raw"},
    "full": {"obs_storage": "indexed", "codec": "sparse"},
    "delta": {"obs_storage": "indexed", "codec": "delta"},
    "delta-huffman": {"obs_storage": "indexed", "codec": "delta-huffman"},
}
PAPER_SCRIPTS = {"PPO": "ppo_atari", "QRDQN": "qrdqn_atari", "DRQV2": "drqv2_dmc"}
PAPER_FLAGS = {
    "PPO/n_envs": "num_envs",
    "PPO/n_steps": "num_steps",
    "PPO/n_epochs": "update_epochs",
    "PPO/learning_rate": "learning_rate",
    "PPO/clip_range": "clip_coef",
    "PPO/vf_coef": "vf_coef",
    "PPO/ent_coef": "ent_coef",
    "QRDQN/n_envs": "num_envs",
    "QRDQN/exploration_fraction": "exploration_fraction",
    "QRDQN/buffer_size": "buffer_size",
}
PAPER_EVAL = {"eval/eval_freq": "eval_every", "eval/n_eval_episodes": "eval_episodes"}
PAPER_OURS = {
    *("alg", "env", "seeds", "compress", "n_stack", "log", "tensorboard_log", "verbose"),
    *("eval/n_envs", "eval/deterministic", "PPO/batch_size", "QRDQN/optimize_memory_usage"),
}


def from_paper(name: str, values: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The words of the paper's own files; ``disk`` as ``compress`` is DrQ-v2's published replay."""
    leaves = dict(flatten(values))
    alg, compress = str(leaves["alg"]), leaves["compress"]
    if alg.upper() not in PAPER_SCRIPTS:
        raise ConfigurationError(f"{name}: alg {alg!r} is unknown{nearest(alg, PAPER_SCRIPTS)}")
    alg = alg.upper()
    script = PAPER_SCRIPTS[alg]
    if compress == "disk" and alg == "DRQV2":
        script, storage = "drqv2_disk", {}
    elif compress in COMPRESS:
        storage = COMPRESS[compress]
    else:
        raise ConfigurationError(
            f"{name}: compress {compress!r} must be one of {', '.join(map(str, COMPRESS))}"
            ", or disk with DRQV2"
        )
    stack = 3 if alg == "DRQV2" else 4
    if leaves.get("n_stack", stack) != stack:
        raise ConfigurationError(f"{name}: n_stack {leaves['n_stack']} must be {stack} with {alg}")
    if leaves.get("QRDQN/optimize_memory_usage", False):
        raise ConfigurationError(f"{name}: QRDQN.optimize_memory_usage must be false")
    known = {*PAPER_FLAGS, *PAPER_EVAL, *PAPER_OURS}
    own = {key: value for key, value in leaves.items()
           if key not in known and key in known_flags(script)}  # fmt: skip
    flags = {**storage, "count_changed_pixels": True}
    for key, value in leaves.items():
        section, _, flag = key.rpartition("/")
        if section in PAPER_SCRIPTS and section != alg:
            continue  # of another algorithm
        if key in PAPER_FLAGS:
            flags[PAPER_FLAGS[key]] = value
        elif section == alg and key not in known and flag in known_flags(script):
            flags[flag] = value
        elif key in PAPER_EVAL:
            if script != "ppo_atari":  # PPO's curves are those of training
                flags[PAPER_EVAL[key]] = value
        elif key not in known and key not in own:
            names = {*known, *known_flags(script)}
            raise ConfigurationError(f"{name}: {key!r} is unknown{nearest(key, names)}")
    if alg == "PPO":
        flags["anneal_lr"] = False
        batch = leaves.get("PPO/batch_size", 256)
        rollout = flags.get("num_envs", 8) * flags.get("num_steps", 128)
        if rollout % batch:
            raise ConfigurationError(
                f"{name}: PPO.batch_size {batch} must divide the {rollout} steps of a rollout"
            )
        flags["num_minibatches"] = rollout // batch
    else:
        flags["preset"] = "paper"
    if alg == "QRDQN" and "eval/deterministic" in leaves and not leaves["eval/deterministic"]:
        flags["eval_epsilon"] = 0.01
    env = str(leaves["env"])
    flags["env_id"] = env if alg == "DRQV2" else ale_name(env)
    return script, flags | own
