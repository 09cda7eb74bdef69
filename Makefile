# Needs python3 and make. Every target sets up what it needs in $(VENV), once.
#
#   make run PYTHON=python3.12                     another Python (3.10 to 3.13)
#   make run PIP_ARGS="--extra-index-url <url>"    anything pip takes, e.g. where PyTorch's CPU builds are
#   make run RUN_ARGS="--env-id ALE/Breakout-v5"   other flags for the script
#   make run-qrdqn QRDQN_ARGS="--n-step 3"         other flags for that one
#   make run-dmc DMC_ARGS="--full-compress"    the same for DrQ-v2's
#   make run-ray RAY_ARGS="--address auto --num-runners 100"   the same for the distributed one, on a cluster
#   make run-sb3 SB3_ARGS="--steps 100000"     the same for Stable-Baselines3's training
#   make test PYTEST_ARGS="-k lossless -x"         other flags for pytest
#   make bench-replay BENCH_ARGS=--quick           other flags for a benchmark
#   make tables TABLES_ARGS=--list                 what it would run, and for how long
#   make paper EXPERIMENT_ARGS="--runs logs"       other flags for what python -m experiments does

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= dev
CONSTRAINTS ?= constraints.txt
PIP_ARGS ?=
PYTEST_ARGS ?=
BENCH_ARGS ?=
TABLES_ARGS ?=
EXPERIMENT_ARGS ?=
SWEEP ?= experiments/configs/small_control.json
RUN_ARGS ?= --env-id ALE/Pong-v5 --total-timesteps 36864 --save-model --eval-episodes 2
QRDQN_ARGS ?= --env-id ALE/Pong-v5 --total-timesteps 10000 --learning-starts 2000 \
	--exploration-fraction 0.5 --buffer-size 10000 --save-model --eval-episodes 2
DMC_ARGS ?= --env-id walker_walk --preset paper --total-timesteps 1500 --buffer-size 1500 \
	--learning-starts 1300 --random-steps 1300 --batch-size 16 --eval-every 1400 --eval-episodes 1

RAY_ARGS ?= --env-id ALE/Pong-v5 --num-runners 2 --total-timesteps 12000 --learning-starts 2000 \
	--buffer-size 12000 --batch-size 32 --samples-per-insert 2
SB3_PRESET ?= pong-ppo
SB3_ARGS ?= --steps 4096 --n-eval-envs 0 --learning-starts 2000
VIZDOOM_ARGS ?= --steps 1024 --episodes 4

BIN = $(VENV)/bin
READY = $(VENV)/.ready
PYTEST = $(BIN)/python -m pytest
# A file's tests stay together: they share what is trained once.
PARALLEL = -n auto --maxprocesses 4 --dist loadfile
# Fails where dm_control is there and no OpenGL library renders for it.
GL = $(BIN)/python -c 'from importlib.util import find_spec as f; from wrappers import dm_control as d; f("dm_control") and d.choose_gl()'

# Without the settings of those whose tests they are.
SUBSTITUTED = PYTHONPATH=$(CURDIR)/tests/hosts $(CURDIR)/$(PYTEST) -c /dev/null --rootdir . -p no:cacheprovider \
	-p substituted -q

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help test-wheel run run-qrdqn run-dmc run-ray run-ray-here bench-ray bench-ray-here run-sb3 run-vizdoom run-vizdoom-here gl test test-portable test-long test-lowest \
	test-hosts test-hosts-sb3 test-hosts-sb3-here test-hosts-sb3-own \
	test-hosts-sb3-own-here test-hosts-ray test-hosts-ray-here lint format format-check type \
	check bench bench-peers bench-codecs bench-ppo bench-replay bench-million bench-dmc bench-memory \
	bench-first-use bench-files bench-files-here bench-worlds bench-worlds-here bench-sb3 bench-sb3-here report-sb3 \
	report-sb3-here tables learning bench-rllib bench-rllib-here bench-zstd-objects bench-zstd-objects-here \
	wheels-cuda test-cuda record-cuda bench-cuda bench-cuda-scripts \
	docs docs-here sweep paper medqn clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-20s %s\n", $$1, $$2 }' Makefile

# The stamp is older than what it was made from when that has changed: then install again.
$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' || { \
		echo "error: Python 3.10 to 3.13 is needed, and $(PYTHON) is not one. Name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		if [ -n "$$CI" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -qq -y python3-venv; \
		else \
			echo "error: $(PYTHON) comes without venv. Install it and try again: sudo apt install python3-venv" >&2; exit 1; \
		fi
	@echo "Setting up $(VENV) ..."
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -c $(CONSTRAINTS) "setuptools>=77"
	@$(BIN)/python -m pip install -q $(PIP_ARGS) -c $(CONSTRAINTS) --no-build-isolation -e ".[$(EXTRAS)]"
	@touch $@

run: $(READY) ## train PPO on Pong for about two minutes, and show speed and memory
	$(BIN)/python cleanrl_scripts/ppo_atari.py $(RUN_ARGS)

run-qrdqn: $(READY) ## train QR-DQN on Pong for about two minutes, and show speed and memory
	$(BIN)/python cleanrl_scripts/qrdqn_atari.py $(QRDQN_ARGS)

run-dmc: $(READY) gl ## DrQ-v2 on walker walk for about two minutes: what it does, not yet learning
	$(BIN)/python cleanrl_scripts/drqv2_dmc.py $(DMC_ARGS)

SB3_EXAMPLE = $(BIN)/python examples/sb3/atari.py
run-sb3: $(READY) ## Stable-Baselines3 for a minute (SB3_PRESET=pong-ppo, mspacman-ppo or mspacman-dqn)
	$(SB3_EXAMPLE) train --preset $(SB3_PRESET) $(SB3_ARGS)
	$(SB3_EXAMPLE) evaluate --preset $(SB3_PRESET) --episodes 4 --n-envs 2
	$(SB3_EXAMPLE) watch --preset $(SB3_PRESET)
	$(SB3_EXAMPLE) report

# In the environment of the tests on Ray.
RAY_HERE = VENV=.venv-hosts-ray EXTRAS=hosts-ray CONSTRAINTS=constraints-hosts-ray.txt
run-ray: ## distributed QR-DQN on Pong for about a minute, with two runners on Ray
	@$(MAKE) --no-print-directory run-ray-here $(RAY_HERE)

run-ray-here: $(READY)
	$(BIN)/python cleanrl_scripts/apex_qrdqn_atari.py $(RAY_ARGS)

run-vizdoom: ## Stable-Baselines3 on ViZDoom for a minute each: pictures, and masks of what they show
	@$(MAKE) --no-print-directory run-vizdoom-here VENV=.venv-vizdoom EXTRAS=vizdoom

run-vizdoom-here: $(READY)
	$(BIN)/python examples/sb3/doom.py --see screen $(VIZDOOM_ARGS)
	$(BIN)/python examples/sb3/doom.py --see labels $(VIZDOOM_ARGS)

# The DeepMind Control Suite renders with an OpenGL library of the system's.
gl: $(READY)
	@$(GL) 2>/dev/null || { \
		if [ -n "$$CI" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -qq -y libegl1 libgl1-mesa-dri libosmesa6; \
		fi; \
		said=$$($(GL) 2>&1) || { echo "$$said" | tail -n 1 | sed 's/^[A-Za-z]*Error/error/' >&2; exit 1; }; \
	}

test: $(READY) gl ## run the tests
	$(PYTEST) $(PARALLEL) $(PYTEST_ARGS)

# Without pdep and pext, which numba is told by the name of a plain processor.
test-portable: $(READY) ## run the tests of the codecs for a processor without BMI2
	NUMBA_CPU_NAME=generic NUMBA_CPU_FEATURES= $(PYTEST) tests/test_words.py tests/test_copies.py tests/test_fuzz.py tests/test_array_machine.py tests/test_large_frames.py $(PARALLEL) $(PYTEST_ARGS)

test-long: $(READY) gl ## run the property tests with a hundred times the examples
	HYPOTHESIS_PROFILE=long $(PYTEST) $(PARALLEL) -m hypothesis $(PYTEST_ARGS)

# With this machine's Python alone: the environments are made for it, and go.
test-wheel: ## build wheel and sdist, install them into an empty environment, run README's first example
	$(PYTHON) tests/wheel.py $(PIP_ARGS)

test-lowest: ## run the library's tests (no scripts) on the oldest supported dependencies
	$(MAKE) test VENV=.venv-lowest EXTRAS=test CONSTRAINTS=constraints-lowest.txt

# In environments of their own: the hosts are large, and nothing else needs them. Their warnings are
# not ours to mend.
test-hosts: test-hosts-sb3 test-hosts-ray ## run our buffers in other libraries' own programs (minutes)

test-hosts-sb3: ## the same in SBX and RL Zoo
	@$(MAKE) --no-print-directory test-hosts-sb3-here VENV=.venv-hosts-sb3 EXTRAS=hosts-sb3 CONSTRAINTS=constraints-hosts-sb3.txt

test-hosts-sb3-here: $(READY)
	$(PYTEST) -W default tests/hosts/test_sbx.py tests/hosts/test_rl_zoo.py $(PYTEST_ARGS)

# Of checkouts of the two at the versions in constraints-hosts-sb3.txt, or near them.
test-hosts-sb3-own: ## their own tests, with our buffers in place of theirs (SB3=<path> CONTRIB=<path>)
	@$(MAKE) --no-print-directory test-hosts-sb3-own-here VENV=.venv-hosts-sb3 EXTRAS=hosts-sb3 CONSTRAINTS=constraints-hosts-sb3.txt

test-hosts-sb3-own-here: $(READY)
	@test -d "$(SB3)/tests" -a -d "$(CONTRIB)/tests" || { \
		echo "error: SB3=$(SB3) and CONTRIB=$(CONTRIB) are to be checkouts of stable-baselines3 and of sb3-contrib" >&2; exit 1; }
	cd "$(SB3)" && $(SUBSTITUTED) $(addprefix tests/test_,her.py buffers.py n_step_replay.py save_load.py dict_env.py) $(PYTEST_ARGS)
	cd "$(CONTRIB)" && $(SUBSTITUTED) $(addprefix tests/test_,lstm.py invalid_actions.py save_load.py dict_env.py) $(PYTEST_ARGS)

test-hosts-ray: ## our buffers in Ray's RLlib, which wants a Gymnasium of its own (minutes)
	@$(MAKE) --no-print-directory test-hosts-ray-here $(RAY_HERE)

test-hosts-ray-here: $(READY)
	$(PYTEST) -W default tests/hosts/ray $(PYTEST_ARGS)

lint: $(READY) ## look for mistakes
	$(BIN)/ruff check .

format: $(READY) ## format the code in place
	$(BIN)/ruff format .

format-check: $(READY)
	$(BIN)/ruff format --check .

type: $(READY) ## check the library's types
	$(BIN)/mypy

check: format-check lint type test ## everything to pass before a pull request

# Sets up the environments of all the others, too.
tables: $(READY) ## all tables anew, one after the other; goes on where it was cut off (five hours)
	$(BIN)/python -m benchmarks.tables $(TABLES_ARGS)

# In an environment of their own: the other libraries are large, and nothing else needs them.
bench: ## ours beside other replay buffers: size, speed, right pixels (three quarters of an hour)
	@$(MAKE) --no-print-directory bench-peers VENV=.venv-bench EXTRAS=bench

bench-peers: $(READY)
	$(BIN)/python -m benchmarks.bench_peers $(BENCH_ARGS)

bench-codecs: $(READY) ## bytes per frame and microseconds to append and gather, per codec
	$(BIN)/python -m benchmarks.bench_codecs $(BENCH_ARGS)

bench-ppo: $(READY) ## PPO's rollout memory and speed on ten games, beside the paper's
	$(BIN)/python -m benchmarks.bench_ppo $(BENCH_ARGS)

bench-replay: $(READY) ## QR-DQN's replay memory and speed on ten games, beside the paper's
	$(BIN)/python -m benchmarks.bench_replay $(BENCH_ARGS)

bench-million: $(READY) ## a million transitions of Pong: resident memory, adding, sampling
	$(BIN)/python -m benchmarks.bench_million $(BENCH_ARGS)

bench-dmc: $(READY) gl ## DrQ-v2's replay memory and speed on two tasks, beside the paper's (an hour)
	$(BIN)/python -m benchmarks.bench_dmc $(BENCH_ARGS)

bench-memory: $(READY) ## growth of resident memory beside nbytes_stored
	$(BIN)/python -m benchmarks.bench_memory $(BENCH_ARGS)

bench-first-use: $(READY) ## seconds and memory of first use, with an empty and a filled kernel cache
	$(BIN)/python -m benchmarks.bench_first_use $(BENCH_ARGS)

# In an environment of its own, like `bench`: the worlds are large, and nothing else needs them.
bench-worlds: ## worlds that scroll, turn, flicker or are noisy, beside zstd and video (ten minutes)
	@$(MAKE) --no-print-directory bench-worlds-here VENV=.venv-worlds EXTRAS=worlds

bench-worlds-here: $(READY)
	$(BIN)/python -m benchmarks.bench_worlds $(BENCH_ARGS)

# In the environment of `bench`: beside other libraries' files.
bench-files: ## files and checkpoints of a million transitions, beside other libraries'
	@$(MAKE) --no-print-directory bench-files-here VENV=.venv-bench EXTRAS=bench

bench-files-here: $(READY)
	$(BIN)/python -m benchmarks.bench_files $(BENCH_ARGS)

# In the environment of `bench`: beside sb3-extra-buffers.
bench-sb3: ## replay buffers of Stable-Baselines3: memory, files, adding, drawing (BENCH_ARGS=--quick)
	@$(MAKE) --no-print-directory bench-sb3-here VENV=.venv-bench EXTRAS=bench

# In the environment of `bench`: what they return depends on the binding.
bench-zstd-objects: ## memory of the objects that zstd's bindings return
	@$(MAKE) --no-print-directory bench-zstd-objects-here VENV=.venv-bench EXTRAS=bench

bench-zstd-objects-here: $(READY)
	$(BIN)/python -m benchmarks.bench_zstd_objects $(BENCH_ARGS)

bench-rllib: ## RLlib's episode replay buffers and ours: memory, adding, sampling
	@$(MAKE) --no-print-directory bench-rllib-here $(RAY_HERE)

bench-rllib-here: $(READY)
	$(BIN)/python -m benchmarks.bench_rllib $(BENCH_ARGS)

learning: $(READY) ## learning curves of one training on a GPU, drawn from what it logged
	$(BIN)/python -m benchmarks.learning

bench-ray: ## runners on Ray: bytes over the wire, transitions a second, drawing meanwhile (four minutes)
	@$(MAKE) --no-print-directory bench-ray-here $(RAY_HERE)

bench-ray-here: $(READY)
	$(BIN)/python -m benchmarks.bench_ray $(BENCH_ARGS)

# In an environment of its own: nothing else needs what builds it.
docs: ## build the site, into build/site
	@$(MAKE) --no-print-directory docs-here VENV=.venv-docs EXTRAS=docs

docs-here: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/site/index.html"

# In an environment of its own: beside sb3-extra-buffers, with ViZDoom.
report-sb3: ## memory and speed by method and kind of picture, beside sb3-extra-buffers (ten minutes)
	@$(MAKE) --no-print-directory report-sb3-here VENV=.venv-report EXTRAS=report-sb3

report-sb3-here: $(READY)
	$(BIN)/python -m benchmarks.report_sb3 $(BENCH_ARGS)

bench-sb3-here: $(READY)
	$(BIN)/python -m benchmarks.bench_sb3 $(BENCH_ARGS)

# For a machine with a GPU: beside the PyTorch that it has, be its Python the system's or itself an
# environment's, and without a network from a folder of wheels (WHEELS=wheels-cuda).
CUDA_VENV ?= .venv-cuda
CUDA_READY = $(CUDA_VENV)/.ready
CUDA_PIP = $(CUDA_VENV)/bin/python -m pip install -q $(if $(WHEELS),--no-index --find-links $(WHEELS),$(PIP_ARGS))
CUDA_NEEDS = "setuptools>=77" "gymnasium>=1.1,<2" "hypothesis>=6.131,<7" "numba>=0.61" "numcodecs>=0.13.1,<1" \
	"numpy>=2.1,<3" "pytest>=9,<10"
CUDA_SCRIPTS_NEED = "ale-py>=0.12,<0.13" "matplotlib>=3.10,<4" "pillow>=11" "tensorboard>=2.20,<3" "tqdm>=4.66,<5" \
	"tyro>=1.0,<2"

$(CUDA_READY): pyproject.toml
	$(PYTHON) -m venv --clear $(CUDA_VENV)
	$(PYTHON) -c 'import sys; print(*(each for each in sys.path if each.endswith("-packages")), sep="\n")' \
		>"$$($(CUDA_VENV)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/machine.pth"
	$(CUDA_PIP) $(CUDA_NEEDS)
	$(CUDA_PIP) --no-deps --no-build-isolation -e .
	@$(CUDA_VENV)/bin/python -c 'import torch' 2>/dev/null || $(CUDA_PIP) torch
	@touch $@

wheels-cuda: ## what the targets for a GPU need, for a machine without a network: WHEELS=wheels-cuda there
	$(PYTHON) -m pip download -q $(PIP_ARGS) -d wheels-cuda $(CUDA_NEEDS) $(CUDA_SCRIPTS_NEED)

test-cuda: $(CUDA_READY) ## on a GPU: what is decoded there is what the CPU decodes
	$(CUDA_VENV)/bin/python -m pytest tests/gpu -q -p no:cacheprovider $(PYTEST_ARGS)

record-cuda: $(READY) ## ten games' frames for bench-cuda, into build/cuda-frames (some minutes)
	$(BIN)/python -m benchmarks.bench_cuda record

bench-cuda: $(CUDA_READY) ## on a GPU: microseconds until a batch is there, and memory, of ways to keep frames
	$(CUDA_VENV)/bin/python -m benchmarks.bench_cuda run $(BENCH_ARGS)

bench-cuda-scripts: $(CUDA_READY) ## on a GPU: steps a second of the scripts by storage, and equal weights
	@$(CUDA_VENV)/bin/python -c 'import ale_py, tyro' 2>/dev/null || $(CUDA_PIP) $(CUDA_SCRIPTS_NEED)
	$(CUDA_VENV)/bin/python -m benchmarks.bench_cuda scripts $(BENCH_ARGS)

sweep: $(READY) ## a small real sweep on two cores: runs, tables, a page
	$(BIN)/python -m experiments run $(SWEEP) --jobs 2 $(EXPERIMENT_ARGS)
	$(BIN)/python -m experiments analyze $(SWEEP)
	$(BIN)/python -m experiments report $(SWEEP)

paper: $(READY) ## the compression paper's tables and figures, ours beside them (small runs, if none)
	$(BIN)/python -m experiments paper $(EXPERIMENT_ARGS)

medqn: $(READY) ## MeDQN's figure, and the memory of its replay buffers (small runs, if none)
	$(BIN)/python -m experiments medqn $(EXPERIMENT_ARGS)

clean: ## remove the virtual environments and caches, and keep runs/
	rm -rf .venv .venv-bench .venv-docs .venv-hosts-ray .venv-hosts-sb3 .venv-lowest .venv-report .venv-vizdoom .venv-worlds build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
