"""The notebook: it is what its page says, and its cells run, on a small world."""
import importlib
import os
import re
import shlex
import sys
import types

import bpe
import config
from dna import toy as toy_world
from lessons import notebook
from tools import plot

ROOT = os.path.dirname(os.path.abspath(bpe.__file__))
# Added to a command of the page, to make it small
SMALL = {"train": ["--n_layer=1", "--n_head=1", "--n_embd=16", "--device=cpu", "--dtype=float32",
                   "--compile=no"],
         "instruct": ["--device=cpu", "--dtype=float32"], "sample": ["--device=cpu"]}


def test_the_notebook_is_made_from_its_page():
    """If it is not: python -m lessons.notebook"""
    assert config.read_json(notebook.NOTEBOOK) == notebook.notebook(notebook.read_cells())


def test_cells_are_text_and_code_in_turn(tmp_path, monkeypatch):
    cells = notebook.notebook(["# Hello", "x = 1\nx", "The end."])["cells"]
    assert [cell["cell_type"] for cell in cells] == ["markdown", "code", "markdown"]
    assert cells[1]["source"] == ["x = 1\n", "x"] and cells[1]["outputs"] == []
    page = notebook.read_cells()
    assert len(page) % 2 == 1 and not any("```" in text for text in page)
    monkeypatch.setattr(notebook, "NOTEBOOK", str(tmp_path / "n.ipynb"))
    notebook.main([])
    assert config.read_json(tmp_path / "n.ipynb")["nbformat"] == 4


def run_command(line, names):
    """What the shell would: {x} in a line is the value of x."""
    name, *args = shlex.split(eval(f"f{line!r}", names))[1:]
    if name == "-m":
        name, *args = args
    if name == "tools.plot" and not plot.Figure:
        return
    name = name.removesuffix(".py")
    importlib.import_module(name).main([*args, *SMALL.get(name, [])])


def test_its_cells_run(tmp_path, monkeypatch, capsys):
    """From top to bottom. Its two numbers are smaller; all else is as in the page."""
    monkeypatch.setattr(toy_world, "GENES", 200)
    monkeypatch.setattr(toy_world, "TEST_GENES", 12)
    prose = toy_world.python_prose()[:1000]
    monkeypatch.setattr(toy_world, "python_prose", lambda: prose)

    # a copy of the project, opened in its folder lessons
    (tmp_path / "lessons").mkdir()
    for name in ("bpe.py", "models"):
        os.symlink(f"{ROOT}/{name}", tmp_path / name)
    monkeypatch.chdir(tmp_path / "lessons")
    monkeypatch.setenv("PATH", os.environ["PATH"])

    # what a notebook has; matplotlib asks for the version
    shown = []
    display = types.ModuleType("IPython.display")
    display.HTML = display.Image = shown.append
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    sys.modules["IPython"].version_info = (9, 0)
    names = {}
    names["run_command"] = lambda line: run_command(line, names)

    for code in notebook.read_cells()[1::2]:
        code = code.replace("steps = 300", "steps = 2").replace("epochs = 2", "epochs = 0.01")
        code = re.sub(r"^%pip .*", "", code, flags=re.MULTILINE)
        code = re.sub(r"^( *)!(.*)", lambda m: f"{m[1]}run_command({m[2]!r})", code,
                      flags=re.MULTILINE)
        exec(compile(code, code, "exec"), names)
    out = capsys.readouterr().out
    assert names["steps"] == 2 and names["epochs"] == 0.01
    assert "asked as splice, of 60 bases" in out and "asked as prom_core_tata, of 70 bases" in out
    assert "before" in out and len(re.findall(r"^\w+ +[\w -]+: \d+\.\d%$", out, re.MULTILINE)) > 27
    page, *pictures = shown
    assert "makeTokenizer" in page and len(pictures) == 3
    assert plot.Figure is None or all(map(os.path.exists, pictures))
