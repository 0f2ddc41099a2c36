"""The house rules: files that are read in an afternoon, and arrows that run one way."""
import ast
import glob
import os
import re

import pytest

import config

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(config.__file__)))
SIX = ["bpe", "model", "prepare", "train", "instruct", "sample"]
LIBRARIES = {"torch", "numpy", "regex", "tqdm"}

# What of ours each room may import.
MAY_IMPORT = {"config": set(), "model": set(), "metrics": set(), "tokenizer_json": set(),
              "bpe": {"tokenizer_json"}, "gpt2": {"model", "bpe"},
              "tasks": {"config"}, "record": {"model", "config"},
              "prepare": {"tasks", "bpe", "config"},
              "train": {"record", "model", "bpe", "config"},
              "instruct": {"train", "record", "tasks", "metrics", "gpt2", "model", "bpe", "config"},
              "analyze": {"tasks", "model", "bpe", "config"},
              "sample": {"analyze", "tasks", "gpt2", "model", "bpe", "config"}}


def read(path):
    with open(os.path.join(ROOT, path), encoding="utf-8") as f:
        return f.read()


def sources(*folders):
    """-> {path from the root: text} of the Python files in the root and the folders"""
    paths = [path for folder in ("", *folders) for path in glob.glob(os.path.join(ROOT, folder, "*.py"))]
    return {os.path.relpath(path, ROOT): read(path) for path in paths}


def test_files_are_short():
    """What is above the double line of bpe.py is to be read; below it the same is done fast."""
    texts = {name: read(f"{name}.py") for name in MAY_IMPORT if name != "config"}
    lines = {name: text.count("\n") for name, text in texts.items()}
    above = {name: text.split("\n# ====")[0].count("\n") for name, text in texts.items()}
    assert sum(lines[name] for name in SIX) <= 2520 and sum(lines.values()) <= 3850
    assert sum(above[name] for name in SIX) <= 2200 and max(above.values()) <= 520
    assert len(read("README.md").splitlines()) <= 165


@pytest.mark.parametrize("path, text", sources("config", "bench", "lessons", "results").items())
def test_functions_and_lines_are_short(path, text):
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno < 60, node.name
    lines = [line for line in text.splitlines() if line.strip()]
    assert sum(map(len, lines)) / len(lines) < 58
    assert max(map(len, lines)) <= 105


@pytest.mark.parametrize("path, text", sources("config").items())
def test_imports(path, text):
    room = os.path.dirname(path) or path.removesuffix(".py")
    found = re.findall(r"^\s*(?:import|from) (\w+)", text, re.MULTILINE)
    ours = {name for name in found if name in MAY_IMPORT or name in ("bench", "lessons", "results")}
    assert ours - {room} <= MAY_IMPORT[room]
    peers = {"tokenizers", "transformers", "tiktoken", "sklearn", "pandas", "matplotlib"}
    assert not peers & set(found)


WORDS = ["commonest", "worked example", "asked otherwise", "six-letter word"]


@pytest.mark.parametrize("word", WORDS)
def test_terms_are_those_of_the_field(word):
    texts = sources("config", "bench", "lessons", "results") | {
        path: read(path) for path in ("README.md", "lessons/bpe.md", "results/README.md")}
    assert not [path for path, text in texts.items() if word in text.lower()]
