"""PPO on Atari games, with the rollout's observations compressed.

Paper: Schulman et al., "Proximal Policy Optimization Algorithms", arXiv 1707.06347.
Settings, layout, log names and the loop follow CleanRL's `ppo_atari.py`.

Where observations live is a flag, and changes memory and speed only; with one seed and device the
weights come out the same bit for bit:

- `--obs-storage compressed`: a `DiffFrameArray` of uint8 stacks stands where the buffer stood;
- `--obs-storage indexed`: `IndexedFrameStack` stores each new frame once and emits frame indices,
  which are what the rollout keeps. With `--codec raw` this is the paper's "Half", with
  `--codec sparse` its "Full" (Differentially Encoded Observation Spaces, arXiv 2310.01767);
- `--obs-storage dense`: float32 stacks on the device, as in CleanRL, and nothing of ours near them.

The games run in ALE's own vector environment, autoreset SAME_STEP. Next to CleanRL's wrappers:

- the same: no-ops at reset (30), frame skip 4 with max over the last two, FIRE at reset, rewards by
  sign, no sticky actions, a lost life ends the episode for the learner while the game goes on, and
  episodic returns are those of whole games with unclipped rewards;
- departures: frames are ALE's own grayscale, then resized (CleanRL resizes RGB); a new game's stack
  is padded with zeros (CleanRL repeats the first frame); at a lost life nothing is reset or
  pressed, so the stack runs on and the agent has to press FIRE itself.

As in CleanRL an episode's end is not bootstrapped, whether it terminated or was truncated.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import sys
import time
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import ale_py
import gymnasium as gym
import numpy as np
import torch
import torch.nn as nn
import torch.optim as optim
import tyro
from torch.distributions.categorical import Categorical
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

if TYPE_CHECKING:
    from compressarray import DiffFrameArray

gym.register_envs(ale_py)

STACK = (4, 84, 84)  # one observation
STACK_BYTES = 4 * 84 * 84  # as uint8: the dense base that ratios are given against


@dataclass
class Args:
    exp_name: str = os.path.basename(__file__)[: -len(".py")]
    """the name of this experiment"""
    seed: int = 1
    """seed of the experiment"""
    torch_deterministic: bool = True
    """if toggled, `torch.backends.cudnn.deterministic=True`"""
    torch_threads: int = 0
    """threads torch computes with on the CPU (0: torch's own choice)"""
    cuda: bool = True
    """if toggled, a GPU is used where there is one"""
    track: bool = False
    """if toggled, this experiment is tracked with Weights and Biases"""
    wandb_project_name: str = "compressarray"
    """the wandb's project name"""
    wandb_entity: str | None = None
    """the entity (team) of wandb's project"""
    capture_video: bool = False
    """whether to record what the first environment's agent sees (`videos/{run_name}/*.gif`)"""
    save_model: bool = False
    """whether to save the model (`runs/{run_name}/{exp_name}.cleanrl_model`) and evaluate it"""
    eval_episodes: int = 10
    """games the saved model plays at the end"""
    checkpoint_every: int = 1000
    """iterations between checkpoints (`runs/{run_name}/checkpoint.pt`; 0: only one at the end)"""
    resume: str | None = None
    """path of a checkpoint to go on from; a new --total-timesteps is annealed over as a whole"""
    quiet: bool = False
    """if toggled, no progress bar, no table and no picture"""

    # Where observations live
    obs_storage: Literal["compressed", "indexed", "dense"] = "compressed"
    """a DiffFrameArray of stacks, frame indices with each frame once, or CleanRL's dense floats"""
    codec: str = "delta"
    """how frames are stored: raw, sparse, delta, delta-huffman, or a numcodecs codec: zstd, ..."""
    count_changed_pixels: bool = False
    """if toggled, the N of arXiv 2310.01767's equation 3 is counted and logged"""

    # Algorithm specific arguments
    env_id: str = "ALE/Pong-v5"
    """the id of the environment, any ALE/<Game>-v5"""
    total_timesteps: int = 10_000_000
    """total timesteps of the experiments, in agent steps (four emulator frames each)"""
    learning_rate: float = 2.5e-4
    """the learning rate of the optimizer"""
    num_envs: int = 8
    """the number of parallel game environments"""
    num_steps: int = 128
    """the number of steps to run in each environment per policy rollout"""
    max_episode_frames: int = 108_000
    """emulator frames after which a game is truncated"""
    anneal_lr: bool = True
    """toggle learning rate annealing over all iterations"""
    gamma: float = 0.99
    """the discount factor gamma"""
    gae_lambda: float = 0.95
    """the lambda for the general advantage estimation"""
    num_minibatches: int = 4
    """the number of mini-batches"""
    update_epochs: int = 4
    """the K epochs to update the policy"""
    norm_adv: bool = True
    """toggles advantages normalization"""
    clip_coef: float = 0.1
    """the surrogate clipping coefficient"""
    clip_vloss: bool = True
    """toggles whether or not to use a clipped loss for the value function"""
    ent_coef: float = 0.01
    """coefficient of the entropy"""
    vf_coef: float = 0.5
    """coefficient of the value function"""
    max_grad_norm: float = 0.5
    """the maximum norm for the gradient clipping"""
    target_kl: float | None = None
    """the target KL divergence threshold"""

    # to be filled in runtime
    batch_size: tyro.conf.Suppress[int] = 0
    """the batch size (computed in runtime)"""
    minibatch_size: tyro.conf.Suppress[int] = 0
    """the mini-batch size (computed in runtime)"""
    num_iterations: tyro.conf.Suppress[int] = 0
    """the number of iterations (computed in runtime)"""


# Learning depends on all but these: with the others changed a checkpoint is not gone on from.
MAY_CHANGE = {
    *("exp_name", "torch_threads", "cuda", "track", "wandb_project_name", "wandb_entity"),
    *("capture_video", "save_model", "eval_episodes", "checkpoint_every", "resume", "quiet"),
    *("obs_storage", "codec", "count_changed_pixels", "total_timesteps", "num_iterations"),
}


def fail(message: object) -> None:
    """End the script with one line on stderr and a non-zero exit status."""
    sys.exit(f"ppo_atari.py: error: {' '.join(str(message).split())}")


def parse_args(argv: list[str] | None = None) -> Args:
    """Read the command line; a wrong flag is answered with one line."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            args = tyro.cli(Args, args=argv, description=__doc__.split("\n\n")[0])
    except SystemExit as stop:
        if not stop.code:
            raise  # --help
        # tyro draws a box: a title, what is wrong, a ruler, hints.
        lines = [line.strip("│╭╮╰╯ ") for line in said.getvalue().splitlines()]
        wrong = re.split("─{5,}", " ".join(lines[1:]))[0].strip(". ")
        near = [line.split()[0] for line in lines if line.startswith("--")]
        if near and wrong.startswith("Unrecognized"):
            wrong += f" (did you mean {near[0]}?)"
        fail(f"{wrong}; see --help")
    return check_args(args)


def check_args(args: Args) -> Args:
    """Refuse settings that cannot work and fill in what follows from the others."""
    at_least = {
        "num_envs": 1, "num_steps": 1, "num_minibatches": 1, "update_epochs": 1, "seed": 0,
        "total_timesteps": 1, "max_episode_frames": 4, "eval_episodes": 1, "checkpoint_every": 0,
        "torch_threads": 0, "learning_rate": 0, "gamma": 0, "gae_lambda": 0, "clip_coef": 0,
        "ent_coef": 0, "vf_coef": 0, "max_grad_norm": 0,
    }  # fmt: skip
    for name, least in at_least.items():
        if not getattr(args, name) >= least:  # NaN is not either
            flag = "--" + name.replace("_", "-")
            fail(f"{flag} {getattr(args, name)} must be at least {least}")
    if args.seed >= 2**31:
        fail(f"--seed {args.seed} must be below {2**31}, the largest that ALE takes")
    args.batch_size = args.num_envs * args.num_steps
    args.minibatch_size = args.batch_size // args.num_minibatches
    args.num_iterations = args.total_timesteps // args.batch_size
    if args.minibatch_size < 2:
        fail(
            f"--num-minibatches {args.num_minibatches} must be at most {args.batch_size // 2}, so "
            f"that each holds two of the {args.batch_size} steps of a rollout"
        )
    if args.num_iterations < 1:
        fail(
            f"--total-timesteps {args.total_timesteps} must be at least {args.batch_size}, one "
            f"rollout of --num-envs {args.num_envs} times --num-steps {args.num_steps}"
        )
    return args


class LearnerSignals(gym.vector.VectorWrapper):
    """Rewards by sign, a lost life as an end, and the statistics of whole games in `info`."""

    def reset(self, *, seed=None, options=None):
        observations, info = self.env.reset(seed=seed, options=options)
        self.returns = np.zeros(self.num_envs)
        self.lengths = np.zeros(self.num_envs, dtype=np.int64)
        self.lives = info["lives"]
        return observations, info

    def step(self, actions):
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        self.returns += rewards
        self.lengths += 1
        over = terminations | truncations
        info["episode"] = {"r": self.returns.copy(), "l": self.lengths.copy()}
        info["_episode"] = over
        self.returns[over] = 0
        self.lengths[over] = 0
        # Some games show no lives left for a while before they are over: that end comes by itself.
        life_lost = (info["lives"] > 0) & (info["lives"] < self.lives) & ~over
        self.lives = info["lives"]
        return observations, np.sign(rewards), terminations | life_lost, truncations, info


class ChangedPixels(gym.vector.VectorWrapper):
    """Counts the N of arXiv 2310.01767's equation 3: the changed pixels its scheme would store.

    Of every four frames of a lane the first is stored raw, and of the others the pixels in which
    they differ from it; N is their number over as many of the newest frames as a rollout has. A
    frame of which more than a quarter changed is raw there, too, and counts as a quarter, whose
    four bytes a pixel come to the frame's.
    """

    def __init__(self, env: gym.vector.VectorEnv, n_frames: int, group: int):
        super().__init__(env)
        self.counts = np.zeros((n_frames, self.num_envs), dtype=np.int32)
        self.group, self.seen, self.now, self.largest = group, 0, 0, 0

    def reset(self, *, seed=None, options=None):
        observations, info = self.env.reset(seed=seed, options=options)
        self.count(observations)
        return observations, info

    def step(self, actions):
        observations, *outcome = self.env.step(actions)
        self.count(observations)
        return observations, *outcome

    def count(self, observations: np.ndarray) -> None:
        H, W = observations.shape[-2:]
        frames = observations.reshape(self.num_envs, -1, H, W)[:, -1]
        changed = np.zeros(self.num_envs, dtype=np.int32)
        if self.seen % self.group == 0:
            self.references = frames.copy()
        else:
            differ = np.count_nonzero(frames != self.references, axis=(1, 2))
            changed[:] = np.minimum(differ, H * W // 4)
        slot = self.seen % len(self.counts)
        self.now += int(changed.sum() - self.counts[slot].sum())
        self.largest = max(self.largest, self.now)
        self.counts[slot] = changed
        self.seen += 1

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs for the count to go on."""
        counts = torch.from_numpy(self.counts[: self.seen].copy())
        return {"counts": counts, "seen": self.seen, "now": self.now, "largest": self.largest}

    def restore(self, state: dict[str, Any]) -> None:
        self.counts[: len(state["counts"])] = state["counts"].numpy()
        self.now, self.largest = state["now"], state["largest"]
        # With the next group of frames: what it is compared with has to be a new one.
        self.seen = -(-state["seen"] // self.group) * self.group


class PlainFrames(gym.vector.VectorWrapper):
    """ALE's stacks of one frame, (num_envs, 1, 84, 84), as frames, (num_envs, 84, 84).

    PPO never looks at the observation that ends an episode: without it in `info`, the wrapper
    outside has one frame per lane and step to store, and a rollout needs no room for more.
    """

    def __init__(self, env):
        super().__init__(env)
        self.single_observation_space = gym.spaces.Box(0, 255, STACK[1:], np.uint8)
        self.observation_space = gym.vector.utils.batch_space(
            self.single_observation_space, self.num_envs
        )

    def reset(self, *, seed=None, options=None):
        observations, info = self.env.reset(seed=seed, options=options)
        return observations[:, 0], info

    def step(self, actions):
        observations, rewards, terminations, truncations, info = self.env.step(actions)
        info.pop("final_obs", None)
        return observations[:, 0], rewards, terminations, truncations, info


def make_env(args: Args, num_envs: int, stack_num: int = 4) -> gym.vector.VectorEnv:
    """Build ALE's vector environment for one game."""
    if not re.fullmatch(r"ALE/\w+-v5", args.env_id):
        fail(f"--env-id {args.env_id!r} must be an ALE/<Game>-v5, for example ALE/Pong-v5")
    try:
        return gym.make_vec(
            args.env_id,
            num_envs=num_envs,
            vectorization_mode="vector_entry_point",
            autoreset_mode=gym.vector.AutoresetMode.SAME_STEP,
            stack_num=stack_num,
            max_num_frames_per_episode=args.max_episode_frames,
            repeat_action_probability=0.0,
            reward_clipping=False,  # LearnerSignals clips: episodic returns are unclipped
            noop_max=30,
            use_fire_reset=True,
        )
    except gym.error.Error as error:
        fail(f"--env-id {args.env_id}: {error}")
    except (OSError, AssertionError) as error:
        fail(f"--env-id {args.env_id}: its ROM is missing or damaged ({error}); see ALE_ROMS_DIR")


class NetworkInputs:
    """uint8 stacks to the float tensors that the network takes, in memory that is used again."""

    def __init__(self, rows: int, device: torch.device):
        self.uint8 = np.empty((rows, *STACK), dtype=np.uint8)
        self.float32 = torch.empty((rows, *STACK), device=device)
        self.decodes_there = device.type == "cuda"

    def from_stacks(self, stacks: np.ndarray) -> torch.Tensor:
        # A GPU is sent bytes and makes floats of them itself.
        return self.float32[: len(stacks)].copy_(torch.from_numpy(stacks).to(self.float32.device))

    def from_indices(self, frames: DiffFrameArray, indices: np.ndarray) -> torch.Tensor:
        if self.decodes_there:
            from compressarray import DeviceError

            try:
                stacks = frames.gather(indices, device=self.float32.device)
                return self.float32[: len(indices)].copy_(stacks)
            except DeviceError as error:
                print(f"frames are decoded on the CPU, and copied: {error}", file=sys.stderr)
                self.decodes_there = False
        return self.from_stacks(frames.gather(indices, out=self.uint8[: len(indices)]))


class Storage(NamedTuple):
    """What holds a rollout's observations, and the way in and out of it."""

    envs: gym.vector.VectorEnv
    """the environments, which `indexed` wraps"""
    obs: torch.Tensor | DiffFrameArray | np.ndarray
    """the buffer, (num_steps, num_envs, ...)"""
    receive: Callable
    """from what the environments return to what `obs` takes"""
    load: Callable
    """from what `obs` returns to the network's input, in memory that the next call may reuse"""
    frames: DiffFrameArray | None
    """the array that holds the pixels; None where they are dense"""

    def nbytes_stored(self) -> int:
        """Bytes that the rollout's observations take up now, indices included."""
        pixels = self.frames.nbytes_stored if self.frames is not None else 0
        return pixels + (0 if self.obs is self.frames else self.obs.nbytes)


def make_storage(args: Args, envs: gym.vector.VectorEnv, device: torch.device) -> Storage:
    rollout = (args.num_steps, args.num_envs)
    if args.obs_storage == "dense":
        obs = torch.zeros(rollout + STACK).to(device)
        return Storage(envs, obs, lambda x: torch.Tensor(x).to(device), lambda x: x, None)

    # Imported here, so that a dense run has none of it in memory.
    try:
        from compressarray import DiffFrameArray
        from wrappers.vector import IndexedFrameStack
    except ModuleNotFoundError as error:
        fail(f"--obs-storage {args.obs_storage}: {error}; in the repository: pip install -e .")

    # One frame through the codec: numcodecs has some that want other data or lose bits.
    frame = (np.arange(84 * 84) % 251).astype(np.uint8).reshape(STACK[1:])
    try:
        probe = DiffFrameArray((4, *STACK[1:]), codec=args.codec)
        stored = probe.gather(probe.append(frame))
    except Exception as error:
        fail(f"--codec {args.codec}: {error}")
    if not np.array_equal(stored, frame):
        fail(f"--codec {args.codec}: it is not lossless")

    inputs = NetworkInputs(max(args.minibatch_size, args.num_envs), device)
    if args.obs_storage == "compressed":
        obs = DiffFrameArray(rollout + STACK, dtype=np.uint8, codec=args.codec)
        return Storage(envs, obs, lambda x: x, inputs.from_stacks, obs)
    envs = IndexedFrameStack(
        PlainFrames(envs),
        stack_size=STACK[0],
        capacity=args.num_steps + STACK[0],  # the first stack, then a frame a step
        padding_type="zero",
        codec=args.codec,
    )
    obs = np.zeros((*rollout, STACK[0]), dtype=np.int64)
    load = partial(inputs.from_indices, envs.frames)
    return Storage(envs, obs, lambda x: x, load, envs.frames)


def layer_init(layer, std=2**0.5, bias_const=0.0):
    torch.nn.init.orthogonal_(layer.weight, std)
    torch.nn.init.constant_(layer.bias, bias_const)
    return layer


class Agent(nn.Module):
    def __init__(self, num_actions: int):
        super().__init__()
        self.network = nn.Sequential(
            layer_init(nn.Conv2d(4, 32, 8, stride=4)),
            nn.ReLU(),
            layer_init(nn.Conv2d(32, 64, 4, stride=2)),
            nn.ReLU(),
            layer_init(nn.Conv2d(64, 64, 3, stride=1)),
            nn.ReLU(),
            nn.Flatten(),
            layer_init(nn.Linear(64 * 7 * 7, 512)),
            nn.ReLU(),
        )
        self.actor = layer_init(nn.Linear(512, num_actions), std=0.01)
        self.critic = layer_init(nn.Linear(512, 1), std=1)

    def get_value(self, x):
        return self.critic(self.network(x / 255.0))

    def get_action_and_value(self, x, action=None):
        hidden = self.network(x / 255.0)
        probs = Categorical(logits=self.actor(hidden))
        if action is None:
            action = probs.sample()
        return action, probs.log_prob(action), probs.entropy(), self.critic(hidden)


def compute_gae(rewards, values, dones, next_value, next_done, gamma, gae_lambda):
    """Generalised advantage estimation; `dones[t]` says that step t begins an episode."""
    advantages = torch.zeros_like(rewards)
    last = 0
    for t in reversed(range(len(rewards))):
        final = t == len(rewards) - 1
        going_on = 1.0 - (next_done if final else dones[t + 1])
        value_after = next_value if final else values[t + 1]
        delta = rewards[t] + gamma * value_after * going_on - values[t]
        advantages[t] = last = delta + gamma * gae_lambda * going_on * last
    return advantages


def update_policy(args, agent, optimizer, rng, load, b_obs, b_actions, b_logprobs, b_advantages,
                  b_returns, b_values):  # fmt: skip
    """Optimise the policy and value network on one rollout; returns the losses to be logged."""
    b_inds = np.arange(args.batch_size)
    clipfracs = []
    for _ in range(args.update_epochs):
        rng.shuffle(b_inds)
        for start in range(0, args.batch_size, args.minibatch_size):
            mb_inds = b_inds[start : start + args.minibatch_size]
            _, newlogprob, entropy, newvalue = agent.get_action_and_value(
                load(b_obs[mb_inds]), b_actions.long()[mb_inds]
            )
            logratio = newlogprob - b_logprobs[mb_inds]
            ratio = logratio.exp()
            with torch.no_grad():  # see http://joschu.net/blog/kl-approx.html
                old_approx_kl = (-logratio).mean()
                approx_kl = ((ratio - 1) - logratio).mean()
                clipfracs.append(((ratio - 1.0).abs() > args.clip_coef).float().mean().item())

            mb_advantages = b_advantages[mb_inds]
            if args.norm_adv:
                mb_advantages = (mb_advantages - mb_advantages.mean()) / (
                    mb_advantages.std() + 1e-8
                )

            # Policy loss
            clipped_ratio = torch.clamp(ratio, 1 - args.clip_coef, 1 + args.clip_coef)
            pg_loss = torch.max(-mb_advantages * ratio, -mb_advantages * clipped_ratio).mean()

            # Value loss
            newvalue = newvalue.view(-1)
            v_loss = (newvalue - b_returns[mb_inds]) ** 2
            if args.clip_vloss:
                v_clipped = b_values[mb_inds] + torch.clamp(
                    newvalue - b_values[mb_inds], -args.clip_coef, args.clip_coef
                )
                v_loss = torch.max(v_loss, (v_clipped - b_returns[mb_inds]) ** 2)
            v_loss = 0.5 * v_loss.mean()

            entropy_loss = entropy.mean()
            loss = pg_loss - args.ent_coef * entropy_loss + v_loss * args.vf_coef
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), args.max_grad_norm)
            optimizer.step()
        if args.target_kl is not None and approx_kl > args.target_kl:
            break

    y_pred, y_true = b_values.cpu().numpy(), b_returns.cpu().numpy()
    var_y = np.var(y_true)
    return {
        "value_loss": v_loss.item(),
        "policy_loss": pg_loss.item(),
        "entropy": entropy_loss.item(),
        "old_approx_kl": old_approx_kl.item(),
        "approx_kl": approx_kl.item(),
        "clipfrac": np.mean(clipfracs),
        "explained_variance": np.nan if var_y == 0 else 1 - np.var(y_true - y_pred) / var_y,
    }


def get_random_states(rng: np.random.Generator) -> dict:
    return {
        "python": random.getstate(),
        "numpy": rng.bit_generator.state,
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_states(rng: np.random.Generator, states: dict) -> None:
    random.setstate(states["python"])
    rng.bit_generator.state = states["numpy"]
    torch.set_rng_state(states["torch"])
    if states["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["cuda"])


CHECKPOINT = {"args", "agent", "optimizer", "random_states", "iteration", "global_step", "history"}


def save_checkpoint(path, args, agent, optimizer, rng, iteration, global_step, history):
    """Write everything that going on needs; a crash leaves the checkpoint before."""
    checkpoint = {
        "args": asdict(args),
        "agent": agent.state_dict(),
        "optimizer": optimizer.state_dict(),
        "random_states": get_random_states(rng),
        "iteration": iteration,
        "global_step": global_step,
        "history": history,
    }
    unfinished = path.with_suffix(".unfinished")
    torch.save(checkpoint, unfinished)
    os.replace(unfinished, path)


def load_checkpoint(args: Args) -> dict:
    """Read `--resume`'s checkpoint, or end with a line that says why it cannot be gone on from."""
    try:
        checkpoint = torch.load(args.resume, map_location="cpu", weights_only=True)
        missing = CHECKPOINT - checkpoint.keys()
    except Exception as error:
        fail(f"--resume {args.resume}: not a checkpoint of this script ({error})".split("\n")[0])
    if missing:
        fail(f"--resume {args.resume}: not a checkpoint of this script (it lacks {missing})")
    then = checkpoint["args"]
    changed = [
        f"--{name.replace('_', '-')} {now} (was {then.get(name)})"
        for name, now in vars(args).items()
        if name not in MAY_CHANGE and now != then.get(name)
    ]
    if changed:
        fail(f"--resume {args.resume}: made with other settings: {', '.join(changed)}")
    if checkpoint["iteration"] >= args.num_iterations:
        fail(
            f"--resume {args.resume}: it has {checkpoint['global_step']} steps already; give a "
            f"larger --total-timesteps than {args.total_timesteps}"
        )
    return checkpoint


class VideoRecorder:
    """What the first lane's agent sees, as GIFs of episodes 0, 1, 8, 27, ... 1000, 2000, ..."""

    def __init__(self, folder: Path):
        self.folder, self.episode, self.frames = folder, 0, []
        folder.mkdir(parents=True, exist_ok=True)

    def add(self, frame: np.ndarray) -> None:
        k = self.episode
        if k % 1000 == 0 or (k < 1000 and round(k ** (1 / 3)) ** 3 == k):
            self.frames.append(zlib.compress(frame.astype(np.uint8).tobytes(), 1))

    def end_episode(self) -> None:
        if self.frames:
            from PIL import Image

            images = (
                Image.fromarray(np.frombuffer(zlib.decompress(f), np.uint8).reshape(STACK[1:]))
                for f in self.frames
            )
            path = self.folder / f"rl-video-episode-{self.episode}.gif"
            # 15 agent steps are a second of the game.
            next(images).save(path, save_all=True, append_images=images, duration=67, loop=0)
        self.episode, self.frames = self.episode + 1, []


def evaluate(model_path: Path, args: Args, device: torch.device) -> list[float]:
    """Let a saved model play; returns the episodic returns of `args.eval_episodes` games."""
    num_envs = min(args.eval_episodes, args.num_envs)
    envs = LearnerSignals(make_env(args, num_envs))
    agent = Agent(envs.single_action_space.n).to(device)
    agent.load_state_dict(torch.load(model_path, map_location=device, weights_only=True))
    agent.eval()
    # Each lane has its share to play: the first games to end would be the short ones.
    share = np.full(num_envs, args.eval_episodes // num_envs)
    share[: args.eval_episodes % num_envs] += 1
    episodic_returns: list[float] = []
    next_obs, _ = envs.reset(seed=args.seed)
    while share.any():
        with torch.no_grad():
            actions = agent.get_action_and_value(torch.Tensor(next_obs).to(device))[0]
        next_obs, _, _, _, infos = envs.step(actions.cpu().numpy())
        for lane in np.flatnonzero(infos["_episode"] & (share > 0)):
            share[lane] -= 1
            episodic_returns.append(float(infos["episode"]["r"][lane]))
            number = len(episodic_returns) - 1
            tqdm.write(f"eval_episode={number}, episodic_return={episodic_returns[-1]}")
    envs.close()
    return episodic_returns


def where(args: Args) -> str:
    return "dense" if args.obs_storage == "dense" else f"{args.obs_storage} ({args.codec})"


def draw(path: Path, args: Args, history: dict) -> None:
    """The learning curve and the memory over time, as one picture."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    figure.suptitle(f"PPO, {args.env_id}, seed {args.seed}, observations {where(args)}")
    steps, returns = np.array(history["episodes"], dtype=float).reshape(-1, 4).T[:2]
    left.plot(steps, returns, ".", ms=3, alpha=0.4, label="one game")
    lately = [returns[max(0, i - 19) : i + 1].mean() for i in range(len(returns))]
    left.plot(steps, lately, label="mean of the last 20")
    left.legend()
    left.set(xlabel="agent steps", ylabel="episodic return")
    memory = np.array(history["memory"], dtype=float).reshape(-1, 2)
    dense = args.batch_size * STACK_BYTES / 1e6
    right.plot(memory[:, 0], memory[:, 1] / 1e6, label=f"this run, {where(args)}")
    right.axhline(dense, ls="--", color="gray", label="uint8 stacks")
    right.axhline(4 * dense, ls=":", color="gray", label="float32 stacks (CleanRL)")
    right.set(xlabel="agent steps", ylabel="MB of the rollout's observations", yscale="log")
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def peak_rss() -> str:
    """The highest resident memory of this process so far."""
    try:
        import resource
    except ImportError:  # not on Windows
        return "unknown here"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:,.0f} MB"


def table(args: Args, sps: float, stored_bytes: int) -> str:
    each = stored_bytes / args.batch_size
    rows = [
        ("observations", where(args)),
        ("steps per second (SPS)", f"{sps:,.0f}"),
        ("bytes per observation", f"{each:,.1f}"),
        ("times smaller than uint8 stacks", f"{STACK_BYTES / each:,.2f} ({STACK_BYTES:,} B each)"),
        (
            "than CleanRL's float32 stacks",
            f"{4 * STACK_BYTES / each:,.2f} ({4 * STACK_BYTES:,} B each)",
        ),
        ("rollout's observations", f"{stored_bytes / 1e6:,.3f} MB for {args.batch_size:,}"),
        ("peak RSS of the process", peak_rss()),
    ]
    return "\n".join(f"{name:<32}  {value}" for name, value in rows)


def train(args: Args) -> dict:
    """Train, log and save; returns what a test or a benchmark may ask about."""
    run_name = f"{args.env_id.replace('/', '-')}__{args.exp_name}__{args.seed}__{int(time.time())}"
    if (Path("runs") / run_name).exists():  # another run began within the same second
        run_name += f"_{time.time_ns() % 1_000_000_000:09d}"
    run_dir = Path("runs") / run_name
    checkpoint = load_checkpoint(args) if args.resume else None

    # TRY NOT TO MODIFY: seeding
    random.seed(args.seed)
    rng = np.random.default_rng(args.seed)  # shuffles the minibatches
    torch.manual_seed(args.seed)
    torch.backends.cudnn.deterministic = args.torch_deterministic
    if args.torch_threads:
        torch.set_num_threads(args.torch_threads)
    device = torch.device("cuda" if torch.cuda.is_available() and args.cuda else "cpu")

    # env and observation storage setup
    stack_num = 1 if args.obs_storage == "indexed" else STACK[0]
    games = make_env(args, args.num_envs, stack_num)
    # Before anything that takes long: with an empty cache, kernels are compiled for a while.
    bar = tqdm(
        total=args.num_iterations * args.batch_size,
        initial=checkpoint["global_step"] if checkpoint is not None else 0,
        unit="step",
        disable=args.quiet,
        mininterval=0.5 if sys.stderr.isatty() else 10,
    )
    counter = None
    if args.count_changed_pixels:
        games = counter = ChangedPixels(games, args.num_steps, STACK[0])
    with logging_redirect_tqdm():  # what is said meanwhile goes above the bar
        storage = make_storage(args, games, device)
    obs, receive, load = storage.obs, storage.receive, storage.load
    envs = LearnerSignals(storage.envs)

    agent = Agent(envs.single_action_space.n).to(device)
    optimizer = optim.Adam(agent.parameters(), lr=args.learning_rate, eps=1e-5)

    if args.track:
        try:
            import wandb
        except ImportError:
            fail("--track needs the wandb package: pip install wandb")
        wandb.init(
            project=args.wandb_project_name,
            entity=args.wandb_entity,
            sync_tensorboard=True,
            config=vars(args),
            name=run_name,
            save_code=True,
        )
    writer = SummaryWriter(str(run_dir))
    settings = "\n".join(f"|{key}|{value}|" for key, value in vars(args).items())
    writer.add_text("hyperparameters", f"|param|value|\n|-|-|\n{settings}")
    video = VideoRecorder(Path("videos") / run_name) if args.capture_video else None

    # ALGO Logic: Storage setup
    rollout = (args.num_steps, args.num_envs)
    actions = torch.zeros(rollout + envs.single_action_space.shape).to(device)
    logprobs = torch.zeros(rollout).to(device)
    rewards = torch.zeros(rollout).to(device)
    dones = torch.zeros(rollout).to(device)
    values = torch.zeros(rollout).to(device)

    # start the game, or go on from a checkpoint with new games
    global_step, iterations_done = 0, 0
    history: dict[str, Any] = {"episodes": [], "memory": []}
    if checkpoint is not None:
        agent.load_state_dict(checkpoint["agent"])
        optimizer.load_state_dict(checkpoint["optimizer"])
        set_random_states(rng, checkpoint["random_states"])
        global_step, iterations_done = checkpoint["global_step"], checkpoint["iteration"]
        history = checkpoint["history"]
        if counter is not None and "changed_pixels" in history:
            counter.restore(history["changed_pixels"])
    # One run's lanes never share a seed: global_step grows by more than there are lanes.
    next_obs, _ = envs.reset(seed=(args.seed + global_step) % (2**31 - args.num_envs))
    next_obs = receive(next_obs)
    next_done = torch.zeros(args.num_envs).to(device)

    bar.unpause()  # what came before counts for no step's time
    first_step, start_time = global_step, time.time()
    iteration_s = []
    for iteration in range(iterations_done + 1, args.num_iterations + 1):
        iteration_start = time.perf_counter()
        # Annealing the rate if instructed to do so.
        if args.anneal_lr:
            frac = 1.0 - (iteration - 1.0) / args.num_iterations
            optimizer.param_groups[0]["lr"] = frac * args.learning_rate

        for step in range(args.num_steps):
            global_step += args.num_envs
            obs[step] = next_obs
            dones[step] = next_done

            # ALGO LOGIC: action logic
            with torch.no_grad():
                network_input = load(next_obs)
                action, logprob, _, value = agent.get_action_and_value(network_input)
                values[step] = value.flatten()
            actions[step] = action
            logprobs[step] = logprob
            if video is not None:
                video.add(network_input[0, -1].cpu().numpy())

            # execute the game and log data
            next_obs, reward, terminations, truncations, infos = envs.step(action.cpu().numpy())
            next_obs = receive(next_obs)
            next_done = torch.Tensor(terminations | truncations).to(device)
            rewards[step] = torch.tensor(reward).to(device).view(-1)

            for lane in np.flatnonzero(infos["_episode"]):
                episodic_return = float(infos["episode"]["r"][lane])
                episodic_length = int(infos["episode"]["l"][lane])
                history["episodes"].append(
                    (global_step, episodic_return, episodic_length, int(lane))
                )
                writer.add_scalar("charts/episodic_return", episodic_return, global_step)
                writer.add_scalar("charts/episodic_length", episodic_length, global_step)
                if video is not None and lane == 0:
                    video.end_episode()

        # bootstrap value if not done
        with torch.no_grad():
            next_value = agent.get_value(load(next_obs)).flatten()
            advantages = compute_gae(
                rewards, values, dones, next_value, next_done, args.gamma, args.gae_lambda
            )
            returns = advantages + values

        # flatten the batch and optimize the policy and value network
        losses = update_policy(
            args,
            agent,
            optimizer,
            rng,
            load,
            obs.reshape((-1, *obs.shape[2:])),
            actions.reshape((-1, *envs.single_action_space.shape)),
            logprobs.reshape(-1),
            advantages.reshape(-1),
            returns.reshape(-1),
            values.reshape(-1),
        )
        iteration_s.append(time.perf_counter() - iteration_start)

        # TRY NOT TO MODIFY: record data for plotting purposes
        sps = (global_step - first_step) / (time.time() - start_time)
        nbytes_stored = storage.nbytes_stored()
        history["memory"].append((global_step, nbytes_stored))
        writer.add_scalar("charts/learning_rate", optimizer.param_groups[0]["lr"], global_step)
        for name, loss in losses.items():
            writer.add_scalar(f"losses/{name}", loss, global_step)
        writer.add_scalar("charts/SPS", int(sps), global_step)
        writer.add_scalar("storage/nbytes_stored", nbytes_stored, global_step)
        ratio = args.batch_size * STACK_BYTES / nbytes_stored
        writer.add_scalar("storage/compression_ratio", ratio, global_step)
        if counter is not None:
            history["changed_pixels"] = counter.state()
            writer.add_scalar("storage/changed_pixels", counter.now, global_step)
        lately = [episode[1] for episode in history["episodes"][-20:]]
        bar.set_postfix_str(
            f"SPS {sps:.0f}, return {np.mean(lately) if lately else np.nan:.1f}, "
            f"observations {nbytes_stored / 1e6:.2f} MB",
            refresh=False,
        )
        bar.update(args.batch_size)
        if iteration == args.num_iterations or (
            args.checkpoint_every and iteration % args.checkpoint_every == 0
        ):
            save_checkpoint(
                run_dir / "checkpoint.pt",
                args,
                agent,
                optimizer,
                rng,
                iteration,
                global_step,
                history,
            )
    bar.close()
    envs.close()
    if video is not None:
        video.end_episode()

    eval_returns = None
    if args.save_model:
        model_path = run_dir / f"{args.exp_name}.cleanrl_model"
        torch.save(agent.state_dict(), model_path)
        tqdm.write(f"model saved to {model_path}")
        eval_returns = evaluate(model_path, args, device)
        for number, episodic_return in enumerate(eval_returns):
            writer.add_scalar("eval/episodic_return", episodic_return, number)
    if not args.quiet:
        draw(run_dir / "training.png", args, history)
        print(f"{table(args, sps, nbytes_stored)}\npicture, logs, checkpoint: {run_dir}/")
    writer.close()
    return {
        "run_dir": run_dir,
        "agent": agent,
        "optimizer": optimizer,
        "history": history,
        "frames": storage.frames,
        "nbytes_stored": nbytes_stored,
        "iteration_s": iteration_s,
        "eval_returns": eval_returns,
    }


def main(argv: list[str] | None = None) -> None:
    try:
        train(parse_args(argv))
    except KeyboardInterrupt:
        sys.exit("ppo_atari.py: interrupted; --resume goes on from a checkpoint, if there is one")


if __name__ == "__main__":
    main()
