"""The whole way, as a user walks it: each script as a command, on files of the user's own."""
import json
import os
import random
import re
import subprocess
import sys

import pytest

import config

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(config.__file__)))


def command(script, *args, cwd):
    """script: train.py, or -m with the module as the first of args"""
    script = script if script == "-m" else f"{ROOT}/{script}"
    return subprocess.run([sys.executable, script, *args], cwd=cwd, capture_output=True, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT})


def own_files(folder):
    """A small user's folder: a genome in lower case, prose, a task, general instructions"""
    rng = random.Random(0)

    def dna(n):
        return "".join(rng.choices("acgt", k=n))

    (folder / "genome.fa").write_text("".join(f">contig{i}\n{dna(3000)}\n" for i in range(100)))
    (folder / "prose.txt").write_text("\n\n".join(
        f"Gene {i} was read {i * 7} times by the cell." for i in range(8000)))
    for split, n in (("train", 400), ("dev", 40)):
        os.makedirs(folder / "tasks/poly", exist_ok=True)
        with open(folder / f"tasks/poly/{split}.csv", "w") as f:
            f.write("sequence,label\n")
            for i in range(n):
                f.write(f"{dna(20)}{'A' * 20 if i % 2 else dna(20)},{'tail' if i % 2 else 'none'}\n")
    (folder / "chat.jsonl").write_text("".join(
        json.dumps({"instruction": f"Count to {i}.", "output": f"{i}"}) + "\n" for i in range(50)))
    (folder / "mine.toml").write_text("""
[prepare]
dna = ["genome.fa"]
english = ["prose.txt"]
tasks = ["tasks", "chat.jsonl"]
data_dir = "data"
vocab_size = 400
val_fraction = 0.05
[train]
data_dir = "data"
out_dir = "out"
n_layer = 2
n_head = 2
n_embd = 32
block_size = 192
batch_size = 8
max_steps = 30
eval_interval = 15
[instruct]
init_from = "out"
out_dir = "tuned"
tasks = ["data/tasks/poly.train.json", "data/tasks/chat.json"]
eval_tasks = ["data/tasks/poly.dev.json"]
epochs = 8.0
gradient_accumulation_steps = 1
learning_rate = 3e-3
warmup_steps = 10
[sample]
out_dir = "tuned"
""")


def test_whole_way(tmp_path):
    own_files(tmp_path)
    for script, made in [("prepare.py", "data/train.bin"), ("train.py", "out/best.pt"),
                         ("instruct.py", "tuned/scores.json"), ("sample.py", None)]:
        done = command(script, "mine.toml", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        if made:
            assert (tmp_path / made).exists()
            folder = os.path.dirname(made)
            assert done.stdout.splitlines()[-1].startswith(f"wrote {folder}; next: python ")
    scores = json.loads((tmp_path / "tuned/scores.json").read_text())["tasks"]["poly"]
    assert scores["n"] == 40 and scores["majority"] == 0.5
    assert scores["accuracy"] >= 0.9 and abs(scores["accuracy"] - scores["exact_match"]) <= 0.05
    # The tuned folder is a whole model: alone, elsewhere, it answers.
    os.rename(tmp_path / "tuned", tmp_path / "moved")
    done = command("sample.py", "--out_dir=moved", "--instruction=" + json.loads(
        (tmp_path / "data/tasks/poly.dev.json").read_text())[0]["instruction"],
        "--input=" + "ACGTGCTAGCTGATCGATCG" + "A" * 20, cwd=tmp_path)
    assert re.fullmatch(r"asked as poly, of 40 bases\ntail: \d+\.\d% "
                        r"\(right \d+ of \d+ times on held-out rows\)\n", done.stdout)


@pytest.mark.parametrize("script,args,message", [
    ("prepare.py", ["--dna=none.fa"], "none.fa: no such file"),
    ("prepare.py", ["--dna=empty.fa"], "empty.fa: an empty file"),
    ("prepare.py", ["--dna=protein.fa"], "protein.fa: line 2: 'L' is no nucleotide"),
    ("prepare.py", ["--tasks=broken.jsonl"], "broken.jsonl: line 2, column 2: broken JSON"),
    ("prepare.py", ["--vocabsize=9"], "unknown key vocabsize: did you mean vocab_size?"),
    ("prepare.py", ["--vocab_size=many"], "vocab_size='many' is not a whole number"),
    ("train.py", ["none.toml"], "none.toml: neither a .toml preset nor"),
    ("train.py", ["--data_dir=none"], "none/meta.json: no such file: run prepare.py"),
    ("instruct.py", ["--init_from=none", "--tasks=good.json", "--eval_tasks=other.json"],
     "none/best.pt: no such checkpoint"),
    ("instruct.py", ["--tasks=half.json", "--eval_tasks=other.json"],
     "half.json: example 1: no output"),
    ("-m", ["tools.tokens", "show", "none.json", "ACGT"], "none.json"),
])
def test_one_clear_line(tmp_path, script, args, message):
    (tmp_path / "empty.fa").write_text("")
    (tmp_path / "protein.fa").write_text(">p\nMKLVAAG\n")
    (tmp_path / "broken.jsonl").write_text('{"instruction": "a", "output": "b"}\n{oops\n')
    (tmp_path / "half.json").write_text('[{"instruction": "a"}]')
    (tmp_path / "good.json").write_text('[{"instruction": "a", "output": "b"}]')
    (tmp_path / "other.json").write_text('[{"instruction": "c", "output": "d"}]')
    before = sorted(os.listdir(tmp_path))
    done = command(script, *args, cwd=tmp_path)
    assert done.returncode == 1
    assert message in done.stderr and done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert [n for n in sorted(os.listdir(tmp_path)) if n != "data"] == before


def test_toy_reaches_its_accuracy():
    """What `make toy` left behind, where it has been run."""
    path = os.path.join(ROOT, "out/toy-instruct/scores.json")
    if not os.path.exists(path):
        pytest.skip("run `make toy` first")
    with open(path) as f:
        tasks = json.load(f)["tasks"]
    assert set(tasks) >= {"promoter", "core_promoter", "splice", "tf"}
    for scores in tasks.values():
        assert scores["majority"] <= 0.6 and scores["accuracy"] >= 0.9
        assert abs(scores["exact_match"] - scores["accuracy"]) <= 0.02
