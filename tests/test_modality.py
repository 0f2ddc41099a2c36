"""A third modality: the lines that lessons/bpe.md shows, applied to a copy of the project."""
import json
import os
import random
import re
import shutil
import subprocess
import sys

import pytest
from conftest import SMALL, random_dna, write
from test_house import ROOT, SIX
from test_lessons import NODE

from bpe import GPT2_PATTERN, MODALITIES, Tokenizer

if "structure" in MODALITIES:
    pytest.skip("this project has the lesson's lines already", allow_module_level=True)

STRUCTURES = ["((((....))))", "..((((...))))..", "(((..(((...)))...(((....)))..)))", "........"]


def lesson_patches():
    """-> [(file, context lines, lines with what is added), ...], a patch for each block of the lesson"""
    with open(f"{ROOT}/lessons/bpe.md", encoding="utf-8") as f:
        section = f.read().split("## A third modality")[1].split("\n## ")[0]
    blocks = re.split(r"```diff\n(.*?)```\n", section, flags=re.DOTALL)
    patches, name = [], None
    for prose, block in zip(blocks[::2], blocks[1::2]):
        name = (re.findall(r"`(\w+\.py)`", prose) or [name])[-1]
        lines = block.splitlines()
        assert all(line[0] in " +" for line in lines)
        patches.append((name, [line[1:] for line in lines if line[0] == " "], [line[1:] for line in lines]))
    return patches


def apply(folder, patches):
    for name, context, lines in patches:
        path = folder / name
        text = path.read_text(encoding="utf-8")
        context, lines = "\n".join(context) + "\n", "\n".join(lines) + "\n"
        assert text.count(context) == 1, f"{name}: the lesson's context is there {text.count(context)} times: {context}"
        path.write_text(text.replace(context, lines), encoding="utf-8")


def some_structures(n):
    """n lines, each a structure of four hairpins, a blank line between them"""
    rng = random.Random(0)
    sizes = [(rng.randrange(3, 12), rng.randrange(3, 9)) for _ in range(4 * n)]
    hairpins = ["(" * stem + "." * loop + ")" * stem + ".." for stem, loop in sizes]
    return "\n\n".join("".join(hairpins[i:i + 4]) for i in range(0, len(hairpins), 4))


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """-> a folder with a copy of the project that has the lesson's lines, data/three and out/three"""
    folder = tmp_path_factory.mktemp("project")
    for name in SIX:
        shutil.copy(f"{ROOT}/{name}.py", folder)
    for name in ("config", "dna", "tools"):
        shutil.copytree(f"{ROOT}/{name}", folder / name)
    apply(folder, lesson_patches())

    rng = random.Random(1)
    words = "the gene a promoter of human cells binds DNA ( and is read by an enzyme ) .".split()
    english = "\n\n".join(" ".join(rng.choices(words, k=40)) for _ in range(300))
    dna = write(folder / "dna.fa", "".join(f">{i}\n{random_dna(5_000, i)}\n" for i in range(10)))
    files = [f"--dna={dna}", f"--english={write(folder / 'english.txt', english)}",
             f"--structure={write(folder / 'structures.txt', some_structures(600))}"]
    run(folder, "prepare.py", *files, "--data_dir=data/three", "--vocab_size=400", "--val_fraction=0.5")
    run(folder, "train.py", *SMALL, "--data_dir=data/three", "--out_dir=out/three", "--max_steps=4",
        "--eval_interval=2", "--log_interval=1")
    return folder


def run(folder, *argv):
    """-> (stdout, stderr) of a Python command in a folder"""
    env = os.environ | {"PYTHONPATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *argv], cwd=folder, env=env, text=True, capture_output=True,
                          encoding="utf-8")
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_at_most_ten_lines_of_two_files():
    patches = lesson_patches()
    added = [line for _, context, lines in patches for line in lines if line not in context]
    assert {name for name, _, _ in patches} == {"bpe.py", "prepare.py"} and 3 <= len(added) <= 10
    assert all(len(line) < 90 for line in added)


def test_prepared_trained_and_evaluated(project):
    with open(project / "data/three/meta.json", encoding="utf-8") as f:
        meta = json.load(f)
    assert meta["modalities"] == {"dna": "base", "english": "byte", "structure": "symbol"}
    held_out = meta["bins"]["val_structure.bin"]
    assert held_out["symbols"] > 10_000 and held_out["bases"] == held_out["bytes"] == 0
    assert 0 < held_out["tokens"] < held_out["symbols"] / 2

    with open(project / "out/three/log.jsonl", encoding="utf-8") as f:
        evaluations = [line for line in map(json.loads, f) if "val_loss" in line]
    assert len(evaluations) >= 2
    for line in evaluations:
        assert all(0 < line[f"bits_per_{unit}"] < 9 for unit in ("base", "byte", "symbol"))


SAME_TOKENS = """
import json, sys
from bpe import Tokenizer
tok = Tokenizer.load("data/three/tokenizer.json")
assert tok.split == "mixed" and len(tok) == 400
for run in json.loads(sys.argv[1]) + ["ACGTACGTAC"]:
    alone = tok.encode(run)
    assert len(alone) < len(run)
    for before in ["", " ", "\\n", "the", " the", "!", ": ", "12", "N", "é", "'s", "((x"]:
        for after in ["", " ", "\\n", " end", "x", "!", "7", "N"]:
            assert tok.encode(before + run + after) == tok.encode(before) + alone + tok.encode(after), (before, run)
for text in ["f(x) = (a + b).", "wait ... (what?)", "(.)(.)"]:
    assert tok.split_text(text) == Tokenizer(tok.vocab, [], sys.argv[2]).split_text(text)
"""


def test_a_structure_has_the_same_tokens_everywhere(project):
    out, err = run(project, "-c", SAME_TOKENS, json.dumps(STRUCTURES), GPT2_PATTERN)
    assert (out, err) == ("", "")


OLD_TOKENIZER = """
import json, sys
from bpe import COMPLETE, PATTERNS, Tokenizer
for path, texts in json.loads(sys.argv[1]).items():
    tok = Tokenizer.load(path)
    assert tok.pattern in COMPLETE and tok.pattern not in PATTERNS.values()
    print(json.dumps([tok.pattern, [tok.encode(text) for text in texts]]))
"""


TEXTS = ["The TATA box: GGCTATAAAAGGGC.", *STRUCTURES, "wait........ (what?) ((((....)))) ACGTACGTAC"]


def test_an_older_tokenizer_keeps_its_pattern(project):
    path = f"{ROOT}/models/laptop/tokenizer.json"
    tok = Tokenizer.load(path)
    out, err = run(project, "-c", OLD_TOKENIZER, json.dumps({path: TEXTS}))
    assert json.loads(out) == [tok.pattern, [tok.encode(text) for text in TEXTS]]
    assert err == ""


NEW_TOKENIZER = """
import json, sys
from bpe import Tokenizer
tok = Tokenizer.load("data/three/tokenizer.json")
print(json.dumps([tok.encode(text) for text in json.loads(sys.argv[1])]))
"""


def test_a_newer_tokenizer_is_read_with_a_note(project, capsys):
    tok = Tokenizer.load(f"{project}/data/three/tokenizer.json")
    note, = capsys.readouterr().err.splitlines()
    assert "its split is none of bpe.py's" in note
    ids = json.loads(run(project, "-c", NEW_TOKENIZER, json.dumps(TEXTS))[0])
    assert [tok.encode(text) for text in TEXTS] == ids


def test_tokens_show_has_it_too(project):
    out, _ = run(project, "-m", "tools.tokens", "show", "data/three/tokenizer.json", "fold ((((....))))")
    assert re.search(r" structure .* symbols per token", out)


MODALITIES_OF = """
import json, sys
from bpe import Tokenizer
from tools.tokens import modalities
tok = Tokenizer.load("data/three/tokenizer.json")
print(json.dumps([modalities(tok, text) for text in json.loads(sys.argv[1])]))
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node, to run JavaScript")
def test_the_page_has_it_too(project):
    run(project, "-m", "tools.tokens", "show", "data/three/tokenizer.json", "x", "--html=page.html")
    page = (project / "page.html").read_text(encoding="utf-8")
    data, script = re.findall(r'id="(?:data|bpe)">(.*?)</script>', page, re.DOTALL)
    (project / "page.js").write_text(script + NODE, encoding="utf-8")
    texts = [*STRUCTURES, "The RNA GGGGAAAACCCC (that is ((((....)))) ) folds.((((....))))ACGTACGTAC"]
    answers = subprocess.run(["node", "page.js", data], input=json.dumps(texts), cwd=project,
                             capture_output=True, text=True, encoding="utf-8", check=True).stdout
    of_page = [[token[:2] for token in answer[1]] for answer in json.loads(answers)]    # mixed, all merges
    assert of_page == json.loads(run(project, "-c", MODALITIES_OF, json.dumps(texts))[0])
    assert {kind for _, kind in of_page[-1]} == {"dna", "english", "structure", "other"}
