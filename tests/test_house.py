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


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def imports(path):
    """-> the names that a file imports, wherever in the file: {"config", "numpy", ...}"""
    return set(re.findall(r"^\s*(?:import|from) (\w+)", read(path), re.MULTILINE))


def test_the_root_has_the_six_and_no_seventh():
    assert sorted(path for path in FILES if "/" not in path) == sorted(f"{name}.py" for name in SIX)


@pytest.mark.parametrize("path", FILES)
def test_arrows_run_one_way(path):
    room = path.split("/")[0].removesuffix(".py")
    assert imports(path) & MAY_IMPORT.keys() - {room} <= MAY_IMPORT[room]
    assert room == "bench" or not PEERS & imports(path)


PAGES = ["README.md", "Makefile", *(path for pattern in ("lessons/*.md", "results/*.md", "results/*.sh",
                                                         "models/*/README.md", "bench/*.sh")
                                    for path in glob.glob(pattern, root_dir=ROOT))]
COMMAND = re.compile(r"python3? (?:-m )?((?:bench|tools|lessons|dna)\.\w+|\w+\.py)((?: [^`\n|&#]+)?)")


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_exist(page):
    """A page of the notebook that tells what a script of the past did names its commit in that line."""
    for line in read(page).replace("\\\n", " ").splitlines():
        for name, arguments in COMMAND.findall(line):
            if re.search(r"\b[0-9a-f]{7}\b", line):
                continue
            path = name if name.endswith(".py") else name.replace(".", "/") + ".py"
            assert path in FILES, line
            source = "".join(read(file) for file in (path, "train.py", "instruct.py", "tools/analyze.py"))
            for key in re.findall(r" --(\w+)", arguments):
                if key == "structure":
                    continue        # a key that the lesson adds
                assert re.search(rf'"--{key}"|^    {key}: |"{key}":', source, re.MULTILINE), (key, line)


@pytest.mark.parametrize("page", [page for page in PAGES if page.endswith(".md")])
def test_the_links_of_a_page_lead_somewhere(page):
    for target in re.findall(r"\]\((?!http)([^)#\s]+)", read(page)):
        assert os.path.exists(os.path.join(ROOT, os.path.dirname(page), target)), target
