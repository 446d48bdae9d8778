# make study   the whole study: environment, stages, tables, claims          make smoke   the same, tiny, in a throw-away clone
# make test    environment, chapters and tests; make test-slow: the rest      make tables  render the tables again from reports/
# make demo    after make study: all tasks on a page in a browser
# make lab     the book in JupyterLab                                       make clean   remove what the study made
# make site    book, study and library as pages to read offline, in build/site
# make thorough    the study with more seeds, in a clone, into reports/thorough     make rerun   the same with other seeds, into reports/rerun
# make beyond      what the paper does not have, with more seeds, in a clone, into reports/beyond
# make faults      the study disturbed on purpose: killed, without disk and memory, given damaged files; an hour
# make benchmark   the paper's model and detector, published files, the price of equal weights everywhere, of balancing and of encoders; 40 minutes, 12 GB of disk
SHELL := bash
# The first Python that is new enough; `make PYTHON=…` chooses another.
PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help study test test-slow smoke thorough beyond rerun tables benchmark faults demo site lab clean
help:
	@head -9 $(firstword $(MAKEFILE_LIST)) | sed 's/^# //'

study: .venv/ready
	@echo "make study: what is out of date is run (nothing is: seconds; empty cache: see README.md)"
	python -m vl12in1.study.parallel
	python -m vl12in1.study.timeline
	dvc repro
	@cat reports/index.md
	python -m vl12in1.study.reproduction
	@printf '\nmake study: written to reports/\n'; ls reports/index.md reports/table_*.md reports/figure_*.png

test: .venv/ready
	@echo "make test: chapters, properties, parity and the pipeline, with two workers"
	python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: .venv/ready
	@echo "make test-slow: what make test leaves out, and every property with five times as many examples"
	python -m pytest -n 2 --dist worksteal -m "slow or hypothesis" --hypothesis-profile slow

smoke: .venv/ready
	bash .ci/smoke

thorough beyond rerun: .venv/ready
	@echo "make $@: the last commit with more seeds, in build/$@; stopped and begun again, it goes on"
	python -m vl12in1.study.thorough $@
	dvc repro --single-item views table_rerun index
	python -m vl12in1.study.front
	@cat reports/$@/index.md
	python -m vl12in1.study.reproduction reports/$@
	@printf '\nmake $@: written to reports/\n'; ls -d reports/$@ reports/index.md reports/table_rerun.md

tables: .venv/ready
	@echo "make tables: from the metrics in reports/, without data, weights or training"
	python -m vl12in1.study.parallel --tables
	@ls reports/index.md reports/table_*.md reports/figure_*.png

benchmark: .venv/ready
	@echo "make benchmark: model and detector at the paper's size; published features and annotations, written and read; after make study, weights on other processors, ways to balance and encoders"
	mkdir -p build
	python -m vl12in1.study.notebooks run benchmark_step
	python -m vl12in1.study.notebooks run benchmark_features
	python -m vl12in1.study.notebooks run benchmark_files
	python -m vl12in1.study.notebooks run benchmark_pictures
	python -m vl12in1.study.notebooks run benchmark_bytes
	python -m vl12in1.study.notebooks run benchmark_balancing
	python -m vl12in1.study.notebooks run benchmark_encoders
	@cat reports/benchmarks/*.md

faults: .venv/ready
	@echo "make faults: a study killed a hundred times, work without disk and memory, 100,000 damaged files; an hour"
	python -m vl12in1.study.notebooks run benchmark_faults kills=100 trials=30 inputs=2500
	@cat reports/benchmarks/faults.md

demo: .venv/demo
	@echo "make demo: all twelve tasks, answered by one model of the study, on a page in a browser; Ctrl-C ends it"
	python -m vl12in1.command demo

site: .venv/docs
	@echo "make site: book, study and library as pages, in build/site; about two minutes, nothing is run"
	rm -rf build/site
	python docs/build.py build/site
	@echo "make site: open build/site/index.html in a browser; no network is needed"

lab: .venv/lab
	jupyter lab nbs

clean:
	@echo "make clean: removing build, executed, runs and data; dvc checkout brings back what DVC's cache holds of them"
	rm -rf build executed runs data
	@echo "make clean: kept .venv and .dvc/cache; remove them by hand to begin from nothing"

.venv/ready: constraints.txt pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; install one, or say make PYTHON=/path/to/python"; exit 1; }
	@echo "make: building .venv with $$($(PYTHON) --version), once, about two minutes"
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet $$(grep '^torch==' constraints.txt)
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[study,dev]'
	.venv/bin/pip check
	@touch $@

.venv/lab: .venv/ready
	.venv/bin/pip install --quiet --constraint constraints.txt --editable '.[lab]'
	@touch $@

.venv/demo: .venv/ready constraints-demo.txt
	.venv/bin/pip install --quiet --constraint constraints.txt --constraint constraints-demo.txt --editable '.[demo]'
	@touch $@

.venv/docs: .venv/ready constraints-docs.txt
	.venv/bin/pip install --quiet --constraint constraints.txt --constraint constraints-docs.txt --editable '.[docs]'
	@touch $@
