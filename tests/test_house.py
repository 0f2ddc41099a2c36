"""The house rules: six files at the root, and arrows that run one way (the table of who may import
whom is the project's design)."""
import glob
import os
import re

import pytest

import config

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(config.__file__)))
SIX = ["bpe", "model", "prepare", "train", "instruct", "sample"]
PEERS = {"tokenizers", "transformers", "tiktoken", "sklearn", "pandas"}

# What of ours each room may import.
MAY_IMPORT = {
    "model": set(), "bpe": set(), "config": set(),
    "dna": {"config", "bpe"},
    "prepare": {"bpe", "config", "dna"},
    "train": {"model", "bpe", "config"},
    "instruct": {"train", "model", "bpe", "config", "dna"},
    "sample": {"instruct", "train", "model", "bpe", "config", "dna", "tools"},
    "tools": {"instruct", "train", "model", "bpe", "config", "dna"},
    "bench": {*SIX, "config", "dna", "tools"}, "lessons": {*SIX, "config", "dna", "tools"},
}
FILES = sorted(path for pattern in ("*.py", "*/*.py") for path in glob.glob(pattern, root_dir=ROOT)
               if not path.startswith(("tests/", "data/", "out/")))


def imports(path):
    """-> the names that a file imports, wherever in the file: {"config", "numpy", ...}"""
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return set(re.findall(r"^\s*(?:import|from) (\w+)", f.read(), re.MULTILINE))


def test_the_root_has_the_six_and_no_seventh():
    assert sorted(path for path in FILES if "/" not in path) == sorted(f"{name}.py" for name in SIX)


@pytest.mark.parametrize("path", FILES)
def test_arrows_run_one_way(path):
    room = path.split("/")[0].removesuffix(".py")
    assert imports(path) & MAY_IMPORT.keys() - {room} <= MAY_IMPORT[room]
    assert room == "bench" or not PEERS & imports(path)
