# make toy: the whole way on the toy world.
# make check: the tests to run between two edits, in under half a minute.
# make test: all tests but the fuzzer and the kills, in a few minutes.
# make torture: 10,000 mutated inputs, and 50 kills of each script.
# Each creates .venv first.
PYTHON ?= python3
ENV = .venv/bin/python

toy: .venv/ready
	$(ENV) prepare.py
	$(ENV) -m tools.kmers data/toy/tasks
	$(ENV) train.py --overwrite
	$(ENV) instruct.py --overwrite
	$(ENV) sample.py --out_dir=out/toy-instruct --task=core_promoter \
		--input=TTGGACGCCCTATAAAAGGAAATCTCATGACTCAGCATCTAATTCATGGTTTCTGTTCAT

check: .venv/ready
	$(ENV) -m pytest -q -m "not slow and not torture" --ignore=tests/test_gpu.py

test: .venv/ready
	$(ENV) -m pytest -q

torture: .venv/ready
	FUZZ=10000 KILLS=50 $(ENV) -m pytest -q -m torture

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(ENV) -m pip install -q -r requirements.txt
	touch $@

clean:
	rm -rf .venv data/toy out/toy out/toy-instruct

.PHONY: toy check test torture clean
