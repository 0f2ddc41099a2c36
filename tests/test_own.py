"""A table of one's own: from a CSV to a model that predicts, by the two commands of the README."""
import json
import os
import random
import shutil
import subprocess
import sys

import pytest

import config
import instruct
import prepare
from conftest import write

ROOT = os.path.dirname(os.path.dirname(config.__file__))
WORDS = ("TGACGTCA", "GCCATCTT")


def planted(n, seed):
    """-> n rows (sequence, label) of 100 to 200 random bases. Half of them have label 1: there both words
    are planted, in any order, without overlap."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        bases = rng.choices("ACGT", k=rng.randint(100, 200))
        if i % 2:
            half = len(bases) // 2
            for start, word in zip((0, half), rng.sample(WORDS, 2)):
                at = start + rng.randrange(half - len(word))
                bases[at:at + len(word)] = word
        rows.append(("".join(bases), i % 2))
    return rows


def csv(rows):
    return "sequence,label\n" + "".join(f"{sequence},{label}\n" for sequence, label in rows)


def test_it_wants_a_table(tmp_path, monkeypatch):
    """Without one it does not make the toy world."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="enhancers.csv: no such file"):
        prepare.main([f"{ROOT}/config/own.toml"])
    assert not os.listdir()


@pytest.mark.slow
def test_two_commands(tmp_path):
    """300 rows become a model that is right on 600 fresh ones."""
    shutil.copytree(f"{ROOT}/models/laptop-pretrained", tmp_path / "models/laptop-pretrained")
    write(tmp_path / "enhancers.csv", csv(planted(300, 0)))
    preset = f"{ROOT}/config/own.toml"
    for script, *args in (("prepare.py", "--tasks=enhancers.csv"), ("instruct.py",)):
        done = subprocess.run([sys.executable, f"{ROOT}/{script}", preset, *args], cwd=tmp_path,
                              capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) < 20
    assert done.stdout.endswith("--predict=new.csv\n")

    # fresh rows, asked as the held-out ones are
    dev = instruct.read_examples([str(tmp_path / "data/own/tasks/enhancers.dev.json")])[0]
    fresh = [dev | {"input": sequence, "output": str(label)} for sequence, label in planted(600, 1)]
    write(tmp_path / "fresh.json", json.dumps(fresh))
    instruct.main([f"--init_from={tmp_path}/out/own", "--epochs=0", f"--eval_tasks={tmp_path}/fresh.json",
                   f"--out_dir={tmp_path}/scores"])
    assert config.read_json(tmp_path / "scores/scores.json")["mean_mcc"] > 0.8
