"""Pretraining: data order, evaluation, schedule, checkpoints, two processes."""
import json
import math
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

import train
from model import GPT, GPTConfig, load_checkpoint
from train import Machine, TrainConfig, Windows, learning_rate, read_data, total_nats

CPU = Machine(torch.device("cpu"), torch.float32, peak=1e9)


def read_log(folder):
    """-> the lines of log.jsonl without what depends on the clock"""
    with open(f"{folder}/log.jsonl") as f:
        return [{k: v for k, v in json.loads(line).items() if k not in ("tokens_per_second", "mfu")}
                for line in f]


def weights(folder, name="last.pt"):
    return load_checkpoint(f"{folder}/{name}")[1]["model"]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# -- data order

def test_windows_without_replacement():
    ids = np.arange(1007, dtype=np.uint16)
    windows = Windows(ids, 10, seed=1)
    for epoch in range(3):
        idx, targets = windows.rows(epoch * windows.n, windows.n)
        assert torch.equal(targets, idx + 1)
        starts = np.sort(idx[:, 0].numpy())
        assert len(set(starts)) == windows.n == 99 and set(np.diff(starts)) == {10}
    first, second = Windows(ids, 10, 1).rows(0, 99)[0], Windows(ids, 10, 1).rows(99, 99)[0]
    assert not torch.equal(first, second)
    assert not torch.equal(first, Windows(ids, 10, 2).rows(0, 99)[0])


def test_row_depends_on_seed_and_number_alone():
    ids = np.arange(1000, dtype=np.uint16)
    straight, jumping = Windows(ids, 10, 1), Windows(ids, 10, 1)
    rows = straight.rows(0, 250)[0]
    for k in (200, 3, 98, 99, 100, 249):
        assert torch.equal(jumping.rows(k, 1)[0][0], rows[k])


# -- evaluation

@pytest.mark.parametrize("n", [2, 9, 40, 41, 42, 97])
def test_total_nats_counts_every_token_once(n):
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=1, n_head=1, n_embd=8)).eval()
    ids = np.random.default_rng(0).integers(11, size=n).astype(np.uint16)
    with torch.no_grad():
        nats, tokens = total_nats(model, ids, TrainConfig(batch_size=3), CPU, eot=0)
        expected = 0.0
        for start in range(0, n - 1, 8):
            part = torch.from_numpy(ids[start:start + 9].astype(np.int64))[None]
            each = -model(part[:, :-1])[0].log_softmax(-1).gather(2, part[:, 1:, None])[..., 0]
            expected += each[part[:, 1:] != 0].sum().item()
    assert tokens == (ids[1:] != 0).sum()
    assert nats == pytest.approx(expected, rel=1e-5)


def test_an_untrained_model_knows_nothing(toy):
    """A uniform guess over V ids costs log2(V) bits a token, so bits per base follow from counts."""
    meta, tok = read_data(f"{toy}/data")
    model = GPT(GPTConfig(len(tok), 32, 1, 1, 8))
    torch.nn.init.zeros_(model.transformer.wte.weight)
    ids = train.open_bin(f"{toy}/data", "val_dna.bin", meta)
    nats, tokens = total_nats(model, ids, TrainConfig(), CPU, tok.eot)
    assert tokens == meta["bins"]["val_dna.bin"]["tokens"] - meta["bins"]["val_dna.bin"]["documents"] - 1
    assert nats == pytest.approx(tokens * math.log(len(tok)), rel=1e-5)


def test_log(toy):
    lines = read_log(f"{toy}/out")
    steps = [line for line in lines if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, 21))
    assert [line["tokens"] for line in steps] == [256 * 4 * s for s in range(1, 21)]
    assert steps[-1]["loss"] < steps[0]["loss"]
    evaluations = [line for line in lines if "val_loss" in line]
    assert [line["step"] for line in evaluations] == [10, 20]
    meta, _ = read_data(f"{toy}/data")
    last, bins, nats = evaluations[-1], meta["bins"], 0
    for name, key, size in (("dna", "bits_per_base", "bases"), ("english", "bits_per_byte", "bytes")):
        nats += last[key] * math.log(2) * bins[f"val_{name}.bin"][size]
    tokens = sum(bins[f"val_{m}.bin"]["tokens"] - bins[f"val_{m}.bin"]["documents"] - 1
                 for m in ("dna", "english"))
    assert last["val_loss"] == pytest.approx(nats / tokens)


def test_schedule():
    cfg = TrainConfig(learning_rate=1.0, warmup_steps=4, max_steps=14)
    rates = [learning_rate(step, cfg) for step in range(15)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[14] == 0 and np.allclose(np.diff(rates[4:]), -0.1)


# -- checkpoints and resuming

def run(toy, out, *args):
    from conftest import SMALL
    train.main([*SMALL, f"--data_dir={toy}/data", f"--out_dir={out}", "--log_interval=1", *args])


def test_resumed_equals_uninterrupted(toy, tmp_path):
    """Bit for bit, with dropout, from a checkpoint in the middle, though more had been logged."""
    args = ["--max_steps=12", "--eval_interval=4", "--dropout=0.1", "--gradient_accumulation_steps=2"]
    run(toy, tmp_path / "whole", *args)

    def dies(*a, **k):
        raise RuntimeError("out of power")

    with pytest.MonkeyPatch.context() as patch:     # the third checkpoint is never written
        real = train.save_checkpoint
        patch.setattr(train, "save_checkpoint", lambda path, *a, **k:
                      dies() if k["step"] == 12 else real(path, *a, **k))
        with pytest.raises(RuntimeError, match="out of power"):
            run(toy, tmp_path / "parts", *args)
    assert load_checkpoint(tmp_path / "parts/last.pt")[1]["step"] == 8
    assert read_log(tmp_path / "parts")[-1]["step"] == 12
    run(toy, tmp_path / "parts", *args, "--resume=true")
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert same(weights(tmp_path / "parts", "best.pt"), weights(tmp_path / "whole", "best.pt"))


def test_intervals_change_nothing_but_the_log(toy, tmp_path):
    run(toy, tmp_path / "a", "--max_steps=6", "--eval_interval=1", "--dropout=0.1")
    run(toy, tmp_path / "b", "--max_steps=6", "--eval_interval=6", "--dropout=0.1", "--log_interval=3")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert read_log(tmp_path / "a")[-2:] == read_log(tmp_path / "b")[-2:]


def test_best_is_not_overwritten_by_worse(toy, tmp_path):
    run(toy, tmp_path, "--max_steps=30", "--eval_interval=5", "--learning_rate=0.5")
    losses = {line["step"]: line["val_loss"] for line in read_log(tmp_path) if "val_loss" in line}
    best = load_checkpoint(tmp_path / "best.pt")[1]
    assert losses[best["step"]] == min(losses.values()) == best["best"]


def test_a_bad_loss_stops_the_run(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "learning_rate", lambda step, cfg: math.nan if step == 5 else 1e-3)
    with pytest.raises(ValueError, match="the loss is nan at step 7"):
        run(toy, tmp_path, "--max_steps=20", "--eval_interval=5")
    last = load_checkpoint(tmp_path / "last.pt")[1]
    assert last["step"] == 5 and all(t.isfinite().all() for t in last["model"].values())


def test_ctrl_c_saves_and_says_how_to_go_on(toy, tmp_path, monkeypatch):
    args = ["--max_steps=12", "--eval_interval=4"]
    run(toy, tmp_path / "whole", *args)
    real = train.learning_rate

    def press(step, cfg):
        if step == 5:
            os.kill(os.getpid(), signal.SIGINT)
        return real(step, cfg)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "learning_rate", press)
        with pytest.raises(SystemExit, match="stopped at step 6; --resume=true goes on"):
            run(toy, tmp_path / "parts", *args)
    run(toy, tmp_path / "parts", *args, "--resume=true")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))


# -- several processes

def test_two_processes_equal_one(toy, tmp_path, small):
    args = [*small, f"--data_dir={toy}/data", "--max_steps=6", "--eval_interval=3",
            "--log_interval=1", "--gradient_accumulation_steps=2"]
    train.main([*args, f"--out_dir={tmp_path}/one"])
    root = os.path.dirname(os.path.abspath(train.__file__))
    subprocess.run([sys.executable, "-m", "torch.distributed.run", "--standalone",
                    "--nproc_per_node=2", f"{root}/train.py", *args, f"--out_dir={tmp_path}/two"],
                   check=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, cwd=tmp_path)
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert len(one) == len(two) == 8
    for a, b in zip(one, two):
        assert a.keys() == b.keys() and a == pytest.approx(b, rel=1e-4)


def test_processes_share_the_rows():
    ids = np.arange(5000, dtype=np.uint16)
    windows = Windows(ids, 10, 1)
    shares = [[m for m in range(rank, 4, 2)] for rank in range(2)]
    assert sorted(sum(shares, [])) == [0, 1, 2, 3]
    rows = [windows.rows(m * 8, 8)[0] for m in range(4)]
    assert len({tuple(r.tolist()) for part in rows for r in part}) == 32


# -- refusals

def test_refusals(toy, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(f"{toy}/data", data)
    out = ["--max_steps=2", f"--out_dir={tmp_path}/out", f"--data_dir={data}"]
    cases = [(["--block_size=999999"], "too few for block_size=999999"),
             (["--device=cuda:77"], "device=cuda:77: there is no such device here"),
             (["--device=gpu"], "device=gpu: there is no such device"),
             (["--dtype=int8"], "dtype=int8 is not one of"),
             (["--compile=perhaps"], "compile=perhaps is not one of"),
             (["--resume=true"], "no such checkpoint"),
             ([f"--data_dir={tmp_path}/none"], "meta.json: no such file: run prepare.py")]
    for args, message in cases:
        with pytest.raises((ValueError, OSError), match=message):
            run(toy, *[tmp_path / "out"], *out, *args)
    assert not os.path.exists(tmp_path / "out/last.pt")

    (data / "val_dna.bin").write_bytes((data / "val_dna.bin").read_bytes()[:-10])
    with pytest.raises(ValueError, match="val_dna.bin: .* cut short"):
        run(toy, tmp_path / "out", *out)
    text = (data / "tokenizer.json").read_text(encoding="utf-8")
    (data / "tokenizer.json").write_text(text + " ", encoding="utf-8")
    with pytest.raises(ValueError, match="tokenizer.json: not the tokenizer"):
        run(toy, tmp_path / "out", *out)


def test_resuming_something_else_is_refused(toy, tmp_path):
    run(toy, tmp_path, "--max_steps=2")
    before = (tmp_path / "last.pt").read_bytes()
    with pytest.raises(ValueError, match="resume with the configuration that it began with"):
        run(toy, tmp_path, "--max_steps=4", "--resume=true", "--n_layer=3")
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    torch.save(state | {"tokenizer_sha256": "0" * 64}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        run(toy, tmp_path, "--max_steps=4", "--resume=true")
    assert len(before) > 0
