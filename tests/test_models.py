"""A packed model answers as the checkpoint does."""
import json
import os

import pytest

import instruct
import sample
from conftest import SMALL, listing
from tools import pack
from train import load_model

RUN = [arg for arg in SMALL if arg.split("=")[0] in ("--batch_size", "--device", "--dtype")]


@pytest.fixture(scope="module")
def tuned(toy, tmp_path_factory):
    """-> a folder with a model of a few steps of tuning, scored"""
    out = str(tmp_path_factory.mktemp("tuned") / "out")
    instruct.main([*RUN, f"--init_from={toy}/out", f"--out_dir={out}", "--max_steps=3",
                   f"--tasks={toy}/data/tasks/*.train.json", "--warmup_steps=1",
                   f"--eval_tasks={toy}/data/tasks/tf.test.json"])
    return out


def scores_of(init_from, toy, out_dir):
    instruct.main([*RUN, f"--init_from={init_from}", "--epochs=0", f"--out_dir={out_dir}",
                   f"--eval_tasks={toy}/data/tasks/tf.test.json"])
    with open(out_dir / "scores.json", encoding="utf-8") as f:
        return json.load(f)["tasks"]["tf"]


def test_a_packed_model_scores_and_answers(toy, tuned, tmp_path, capsys):
    pack.main([tuned, str(tmp_path / "box")])
    assert sorted(os.listdir(tmp_path / "box")) == [
        "best.pt", "config.json", "scores.json", "tokenizer.json"]
    model, _, state = load_model(tmp_path / "box")
    questions = state["questions"]
    assert list(questions) == ["core_promoter", "promoter", "splice", "tf"]
    with open(f"{toy}/data/tasks/tf.train.json", encoding="utf-8") as f:
        assert questions["tf"]["wordings"] == sorted({row["instruction"] for row in json.load(f)})
    before = scores_of(tuned, toy, tmp_path / "before")
    after = scores_of(tmp_path / "box", toy, tmp_path / "after")
    assert before["n"] == after["n"] and abs(before["accuracy"] - after["accuracy"]) < 0.2
    capsys.readouterr()
    sample.main([f"--out_dir={tmp_path / 'box'}", "--instruction=" + questions["tf"]["instruction"],
                 "--input=" + "ACGTTGCA" * 12, "--device=cpu", "--max_new_tokens=2"])
    assert "asked as tf, of 96 bases" in capsys.readouterr().out


def test_packing_refuses(tuned, tmp_path):
    before = listing(tuned)
    with pytest.raises(ValueError, match="that is where the model is"):
        pack.main([tuned, tuned + "/."])
    with pytest.raises(ValueError, match="give two folders"):
        pack.main([tuned])
    with pytest.raises(FileNotFoundError, match="best.pt: no such checkpoint"):
        pack.main([str(tmp_path), str(tmp_path / "box")])
    assert listing(tuned) == before and not os.path.exists(tmp_path / "box")


