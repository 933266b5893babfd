# `make demo`: does FST work, and do LP and FT fail? On embedded images. `make test`: the tests. Each target sets up .venv first.
PYTHON ?= python3.11
VENV := .venv
BIN := $(abspath $(VENV))/bin
READY := $(VENV)/.ready
# One call at a time, as `make --jobs` asks for several.
DEBIAN := flock Makefile sh -c 'apt-get update && apt-get install -y --no-install-recommends "$$@"' install
export PATH := $(BIN):$(PATH)

.DEFAULT_GOAL := help
DEMO := $(addprefix reports/demo/,overview.md figure1.png index.html)
.PHONY: help environment demo digits test test-full test-methods test-cluster test-browser test-latex docs lint format requirements clean-environment

help:
	@echo "make demo         four attacks, seven defenses, on embedded photographs: a table, a plot and a page; minutes, CPU, no download"
	@echo "make digits       FST's Table 1 on embedded handwritten digits: minutes, CPU, no download"
	@echo "make test         the tests that every change must pass: minutes"
	@echo "make test-full    matrices, many random examples, attacks, kills and outages, played through (those with two users need root)"
	@echo "make test-methods each attack and each defense on small real images (root, to install photographs; Debian)"
	@echo "make test-cluster the tests of the cluster profiles, on a real SLURM set up on this machine (root; Debian)"
	@echo "make test-browser the tests of the HTML report in Chromium (root, to install it; Debian)"
	@echo "make test-latex   the tests of the documents, with TeX Live's basic packages, installed if need be (root; Debian)"
	@echo "make docs         the documentation as a site, build/docs/index.html, and the tests of what it shows"
	@echo "make lint         ruff, snakefmt and snakemake --lint"
	@echo "make environment  only .venv, from envs/lock.txt, each file checked by its hash"
	@echo "make requirements envs/*.txt anew: the newest versions that pyproject.toml allows, and their hashes"

environment: $(READY)

$(READY): envs/lock.txt pyproject.toml
	$(PYTHON) -m venv $(VENV) || { $(DEBIAN) python3-venv && $(PYTHON) -m venv $(VENV); }
	awk '/^[^ ]/ {uv = /^uv==/} uv' envs/lock.txt >$(VENV)/uv.txt
	$(BIN)/python -m pip install --quiet --require-hashes --requirement $(VENV)/uv.txt
	# A quarter of pip's time. It does not read pip's settings, so where it finds no registry pip may.
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes --requirement envs/lock.txt || \
	  $(BIN)/python -m pip install --quiet --require-hashes --requirement envs/lock.txt
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(BIN)/python -m depoison schema
	@touch $@

demo: environment
	@begun=$$(date +%s); snakemake -- $(DEMO); \
	  took=$$(($$(date +%s) - begun)); echo "made in $$((took / 60)) min $$((took % 60)) s:"; printf '  %s\n' $(DEMO)

digits: environment
	snakemake -- reports/digits/table1.md

# The tests of a marker, whose files alone are read: the asserts of all take twenty seconds to rewrite.
MARKED = pytest -m $(1) $$(grep --files-with-matches mark.$(1) tests/*.py)
SPREAD := --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
test: environment
	pytest $(SPREAD)

test-full: environment
	pytest -m "drill or (hypothesis and not latex)" --hypothesis-profile many $(SPREAD)

test-methods: environment
	test -d /usr/share/datasets/fashion-mnist || $(DEBIAN) dataset-fashion-mnist
	$(call MARKED,methods)

# Beside the environment: Snakemake looks at every plugin when it starts, and nobody needs the documentation's packages to work.
$(VENV)/%/.ready: envs/%.txt $(READY)
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target $(@D) --require-hashes --requirement $<
	@touch $@

test-cluster: $(VENV)/cluster/.ready
	command -v slurmctld munged || $(DEBIAN) slurm-wlm munge
	$(call MARKED,cluster)

test-browser: environment
	command -v chromium && command -v chromedriver || $(DEBIAN) chromium chromium-driver
	$(call MARKED,browser)

test-latex: environment
	command -v pdflatex && command -v pdftotext || $(DEBIAN) texlive-latex-base texlive-latex-recommended poppler-utils
	$(call MARKED,latex) --numprocesses auto --maxprocesses 8

docs: $(VENV)/docs/.ready
	PYTHONPATH=$(abspath $(<D)) python -m sphinx --fail-on-warning --quiet --fresh-env --doctree-dir build/doctrees docs build/docs
	PYTHONPATH=$(abspath $(<D)) $(call MARKED,docs)

lint: environment
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow/rules
	snakemake --lint
	depoison check

format: environment
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow/rules

# Versions and hashes anew: the newest that the ranges of pyproject.toml allow, for every platform.
COMPILE := uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
  --custom-compile-command "make requirements"
requirements: environment
	$(COMPILE) --extra pipeline --extra test --output-file envs/lock.txt pyproject.toml
	$(COMPILE) --no-deps --output-file envs/cluster.txt envs/cluster.in
	$(COMPILE) --constraints envs/lock.txt $$(sed -n 's/^\([^ =]*\)==.*/--no-emit-package \1/p' envs/lock.txt) \
	  --output-file envs/docs.txt envs/docs.in

clean-environment:
	rm -rf $(VENV)
