# `make lab` and `make test` do everything; `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8888
HOST ?= localhost
BROWSER ?= yes
BIN = $(VENV)/bin
CELL_TIMEOUT = 120
# A kernel starts in nbs/: a relative COURSE_DATA counts from here instead. (`abspath` would split a path at its blanks.)
ifdef COURSE_DATA
override COURSE_DATA := $(shell $(PYTHON) -c 'import os, sys; print(os.path.abspath(sys.argv[1]))' "$(COURSE_DATA)")
export COURSE_DATA
endif
# "yes" and "no" are ours; Jupyter would look for a browser of that name.
ifneq ($(filter yes no,$(BROWSER)),)
unexport BROWSER
endif
# Chapters and tests run two at a time, each on one thread: a second thread gains nothing in nets of this size, and loses
# much where cores are few. A file stays in one process. Failures stand at the end, by chapter and cell.
WORKERS ?= 2
PARALLEL = -p tools.failures -n $(WORKERS) --dist loadfile
NBVAL = -m pytest -p no:cacheprovider --nbval-lax --nbval-current-env --nbval-cell-timeout=$(CELL_TIMEOUT) --durations=8
test nbval test-colab test-lectures book recordings test-book: export OMP_NUM_THREADS = 1
test nbval test-colab test-lectures book recordings test-book: export MKL_NUM_THREADS = 1

.DEFAULT_GOAL := help
.PHONY: help lab test test-lectures nbval export check floors clean-notebooks run pages book recordings test-book gpu bench screenshot address test-colab student instructor slides lecture

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

# The guard of every target: runs only when pip has something to do. An environment without pip is half made.
define install
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "This course needs Python 3.11 or newer; $(PYTHON) is " + sys.version.split()[0] + ". Say which one to take: make PYTHON=python3.12 ...")' \
	  && $(PYTHON) -m venv --clear $(VENV); }
	@echo "Installing into $(VENV). The first time this downloads PyTorch, gigabytes: a few minutes."
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[$(1)]"
endef

# What reading takes, and what lecturing and developing take besides.
$(VENV)/.notebooks: pyproject.toml constraints.txt
	$(call install,notebooks)
	@touch $@
$(VENV)/.lectures: pyproject.toml constraints.txt
	$(call install,lectures)
	@touch $@ $(VENV)/.notebooks
$(VENV)/.installed: pyproject.toml constraints.txt
	$(call install,dev)
	@touch $@ $(VENV)/.notebooks

# What tests in a browser need besides; the browser is the system's Chromium.
$(VENV)/.browser: pyproject.toml constraints.txt
	$(call install,browser)
	@touch $@

# All of it by one run of pip.
ALL = dev,browser,lectures,book
$(VENV)/.all: pyproject.toml constraints.txt
	$(call install,$(ALL))
	@touch $@ $(addprefix $(VENV)/.,notebooks installed browser lectures book)

lab: $(VENV)/.notebooks  ## open the course in JupyterLab (PORT=8888, BROWSER=no on a server)
	$(BIN)/jupyter lab --port=$(PORT) --config=tools/jupyter_server_config.py \
	  $(if $(filter no,$(BROWSER)),--no-browser) $(if $(filter 0,$(shell id -u)),--allow-root)

# Without playwright or Chromium the browser test is skipped: then pytest collects nothing and says 5. The book and the
# lectures have their own: `test-book`, `test-lectures`.
test: $(VENV)/.installed check nbval  ## export check, nbval over every chapter, tests
	$(BIN)/python -m pytest $(PARALLEL) $(PYTEST_OPTIONS) tests --ignore=tests/browser
	$(BIN)/python -m pytest $(PYTEST_OPTIONS) tests/browser/test_browser.py || [ $$? = 5 ]

NOTEBOOKS ?= nbs
nbval: $(VENV)/.installed  ## run every chapter and its assertions (WORKERS=2 at a time; NOTEBOOKS=dist/instructor/nbs)
	$(BIN)/python $(NBVAL) $(PARALLEL) $(NOTEBOOKS)

export: $(VENV)/.installed  ## write course_lib/ from the notebooks
	$(BIN)/python tools/notebooks.py export

check: $(VENV)/.installed  ## is course_lib/ what the notebooks export? does ruff find nothing?
	$(BIN)/python tools/notebooks.py check
	$(BIN)/python -m ruff check .

floors: $(VENV)/.installed  ## which module of course_lib imports which
	$(BIN)/python tools/floors.py

clean-notebooks: $(VENV)/.installed  ## drop volatile metadata, number cells, fold set-up, link chapters
	$(BIN)/python tools/notebooks.py clean

run: $(VENV)/.installed  ## execute chapters and save them cleaned: make run NB="01 02" (all without NB)
	$(BIN)/python tools/notebooks.py run $(NB)

pages: $(VENV)/.installed  ## the chapters as they are saved, as pages for a browser, in dist/pages
	$(BIN)/python tools/pages.py

# What the book needs besides; MathJax is fetched by npm.
$(VENV)/.book: pyproject.toml constraints.txt
	$(call install,book)
	@touch $@ $(VENV)/.notebooks $(VENV)/.installed

book: $(VENV)/.book  ## all chapters as a book whose figures move without a kernel, in dist/book (DRAFT=--draft: no new recordings)
	$(BIN)/python tools/book.py $(DRAFT)

recordings: $(VENV)/.book  ## record live figures for the book, of chapters that have changed (NB="02 03": of these)
	$(BIN)/python tools/recordings.py $(NB)

test-book: $(VENV)/.book $(VENV)/.browser  ## the built book in a browser without a network: figures, words, links, accessibility
	$(BIN)/python -m pytest $(PYTEST_OPTIONS) tests/browser/test_book.py

student: $(VENV)/.installed  ## what students get: notebooks without solutions, in dist/student and a zip
	$(BIN)/python tools/editions.py student

instructor: $(VENV)/.installed  ## the same with solutions, in dist/instructor
	$(BIN)/python tools/editions.py instructor

test-lectures: $(VENV)/.lectures $(VENV)/.installed $(VENV)/.browser  ## chapters' slides in a browser (LECTURES="03 06"; all: minutes each)
	$(BIN)/python -m pytest $(PYTEST_OPTIONS) tests/browser/test_lectures.py

lecture: $(VENV)/.lectures  ## give a chapter as a lecture in JupyterLab: make lecture NB="03 06" (PORT, BROWSER=no, HOST=0.0.0.0)
	$(BIN)/python tools/lectures.py notebooks $(NB)
	$(BIN)/jupyter lab --port=$(PORT) --ip=$(HOST) --config=tools/presenter/jupyter_server_config.py \
	  $(if $(filter no,$(BROWSER)),--no-browser) $(if $(filter 0,$(shell id -u)),--allow-root)

slides: $(VENV)/.installed  ## the chapters as slides, a file each that needs no network, in dist/slides (NB="03 06")
	$(BIN)/python tools/lectures.py slides $(NB)

gpu: $(VENV)/.installed  ## what needs a GPU: tests marked gpu, benchmarks (GPU=--cpu: the same tests on the CPU)
	$(BIN)/python tools/gpu.py $(GPU)

bench: $(VENV)/.installed  ## every benchmark, a ratio table each
	for script in benchmarks/[a-z]*.py; do $(BIN)/python $$script || exit 1; done

screenshot: $(VENV)/.installed  ## the pictures in README, taken by the browser tests (that of the book after `make book`)
	SCREENSHOT=nbs/images/live-figure.png $(BIN)/python -m pytest tests/browser/test_browser.py
	SCREENSHOT=nbs/images/book.png $(BIN)/python -m pytest tests/browser/test_book.py -k first_page

address: $(VENV)/.installed  ## write the repository's address (URL=https://github.com/owner/name) into badges and installs
	$(BIN)/python tools/notebooks.py address $(URL)
	$(BIN)/python tools/notebooks.py export

# Colab's versions, in an environment of their own; Colab runs Python 3.13.
COLAB_PYTHON ?= $(shell python3.13 -c "" 2>/dev/null && echo python3.13 || echo $(PYTHON))
.venv-colab/.installed: pyproject.toml tests/colab-versions.txt
	@.venv-colab/bin/python -m pip --version >/dev/null 2>&1 || $(COLAB_PYTHON) -m venv --clear .venv-colab
	.venv-colab/bin/python -m pip install --quiet --disable-pip-version-check -c tests/colab-versions.txt -e ".[notebooks]" pytest nbval scikit-learn
	touch $@

test-colab: .venv-colab/.installed  ## chapters and package tests on Colab's versions
	.venv-colab/bin/python $(NBVAL) nbs
	.venv-colab/bin/python -m pytest tests --ignore=tests/test_export.py --ignore=tests/browser
