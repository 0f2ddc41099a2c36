# make toy: the whole way on the toy world, anew. make test: all tests.
# Both create .venv first.
PYTHON ?= python3
ENV = .venv/bin/python

toy: .venv/ready
	$(ENV) prepare.py
	$(ENV) -m tools.kmers data/toy/tasks
	$(ENV) train.py --overwrite
	$(ENV) instruct.py --overwrite
	$(ENV) sample.py

test: .venv/ready
	$(ENV) -m pytest -q

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(ENV) -m pip install -q -r requirements.txt
	touch $@

clean:
	rm -rf .venv data/toy out/toy out/toy-instruct

.PHONY: toy test clean
