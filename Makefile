# Everything runs from a venv that tests/setup/environment.py makes where jobs' users may enter it, with the wheel
# built from this checkout in it; it installs what is missing and costs next to nothing when nothing is.

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
# One at a time: the parts of `test` share a machine with two cores and print to one terminal.
.NOTPARALLEL:

PYTHON := /usr/bin/python3
# exec: a signal for make's child is one for the program, not for a shell in between.
# ON=trixie, ON=forky: on that release of Debian, with its Slurm and Python.
IN_ENVIRONMENT := exec $(if $(ON),$(PYTHON) tests/setup/roots.py $(ON)) $(PYTHON) tests/setup/environment.py
# A cluster's test mostly waits: four files at a time take less than half the time of one, on two cores. WORKERS= for one
# at a time. In their order, the short files of tests/unit come last and keep all four busy to the end.
WORKERS := --numprocesses=4 --dist=loadfile --no-loadscope-reorder
# -I keeps the checkout off sys.path: the tests import the installed wheel, never the tree.
PYTEST := $(IN_ENVIRONMENT) python -I -m pytest $(WORKERS)
# Tests' and examples' own helpers.
WITH_HELPERS := PYTHONPATH="$(CURDIR)/tests"

# A Debian without Python: all else is installed by Python.
setup demo docs bench vm soak crowd fuzz lock licenses sbom audit newer-qrmi test test-unit test-slurm test-booted lint: | $(PYTHON)
$(PYTHON):
	@echo "  setup     installing Debian's Python"
	@apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends python3 >/dev/null

.PHONY: help
help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*  ## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

.PHONY: setup
setup:  ## install what the other targets need (they all do so themselves)
	@$(IN_ENVIRONMENT)

.PHONY: demo
demo:  ## run a Bell pair through a throwaway Slurm cluster and an emulated QPU; KEEP=1 leaves them up
	@KEEP="$(KEEP)" $(WITH_HELPERS) $(IN_ENVIRONMENT) python -P examples/demo.py

.PHONY: demo-stop
demo-stop:  ## stop what `make demo KEEP=1` has left up
	@$(WITH_HELPERS) exec $(PYTHON) -P -m slurm.cluster stop

.PHONY: test
test:  ## run all checks and tests, and those of Slurm's behavior on other releases too; ARGS='-k name' goes to pytest
	@exec $(PYTHON) tests/setup/releases.py $(WORKERS) $(ARGS)

.PHONY: test-unit
test-unit:  ## run the tests that need no Slurm
	@$(PYTEST) tests --ignore=tests/slurm --ignore=tests/booted $(ARGS)

.PHONY: test-slurm
test-slurm:  ## run the tests on real Slurm clusters; ON=trixie or ON=forky on that Debian's Slurm, in a root made for it
	@$(PYTEST) tests/slurm $(ARGS)

.PHONY: test-booted
test-booted:  ## run the tests of a node that boots under systemd, in containers
	@$(PYTEST) tests/booted $(ARGS)

# One at a time, with what they measure; ARGS='-k reset' goes to pytest.
.PHONY: vm
vm:  ## run the tests of a booted node in a virtual machine, which is reset under a job; slow: no hardware helps
	@$(IN_ENVIRONMENT) python -I -m pytest -v --capture=no --durations=0 -o faulthandler_timeout=0 tests/booted/vm.py $(ARGS)

.PHONY: bench
bench:  ## measure what the hooks cost, against none and any other plugin; ARGS='--quick', '--plugin PATH,ARGS', '--json FILE'
	@$(WITH_HELPERS) $(IN_ENVIRONMENT) python -P tests/bench/bench.py $(ARGS)

.PHONY: docs
docs:  ## write the pages that are made from the code: the environment, the codes of validate-config, the man pages
	@PYTHONPATH="$(CURDIR)/docs" $(IN_ENVIRONMENT) python -P docs/generate.py

JOBS ?= 300
.PHONY: soak
soak:  ## run JOBS=300 short QPU jobs while calls fail and processes die; nothing may leak or drain
	@$(WITH_HELPERS) $(IN_ENVIRONMENT) python -P -m slurm.soak --jobs $(JOBS)

CROWD ?= 200
.PHONY: crowd
crowd:  ## start CROWD=200 QPU jobs on one node at once; each has to acquire once, and few hooks may work at a time
	@$(WITH_HELPERS) $(IN_ENVIRONMENT) python -P -m slurm.crowd --jobs $(CROWD) $(ARGS)

MINUTES ?= 5
.PHONY: fuzz
fuzz:  ## feed what reads users' text with faulty input for MINUTES=5; fuzzers, sanitizers, valgrind
	@exec $(PYTHON) -P tests/fuzz/fuzz.py $(MINUTES)

.PHONY: lock licenses sbom audit
lock licenses sbom audit:  ## write requirements.lock, docs/third-party-licenses.md, build/sbom.cdx.json; look for known vulnerabilities
	@$(WITH_HELPERS) exec $(PYTHON) -P -m setup.supply_chain $@

.PHONY: newer-qrmi
newer-qrmi:  ## tell whether a newer QRMI is out than the one that the tests ran with
	@$(WITH_HELPERS) exec $(PYTHON) -P -m setup.supply_chain $@

.PHONY: lint
lint:  ## check style, types, the Lua files and the stub's compiler warnings
	@$(IN_ENVIRONMENT) ruff check --quiet --output-format=concise
	@$(IN_ENVIRONMENT) ruff format --check --quiet
	@$(IN_ENVIRONMENT) mypy --no-error-summary
	@report=$$(luacheck --quiet --no-color --config cli_filter/.luacheckrc cli_filter/*.lua) || { echo "$$report"; exit 1; }
	@mkdir -p build && $(MAKE) --always-make --silent -C cli_filter BUILD_DIR="$(CURDIR)/build"
