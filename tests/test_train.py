"""Pretraining: data order, evaluation, schedule, checkpoints, two processes."""
import glob
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import SMALL, listing, merge, write

import config
import instruct
import train
from config.machine import Machine
from model import GPT, GPTConfig, load_checkpoint
from tools import pack
from train import (TrainConfig, Windows, learning_rate, load_model, read_data,
                   total_nats)

ROOT = os.path.dirname(os.path.abspath(train.__file__))
CPU = Machine(torch.device("cpu"), torch.float32)


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


def test_what_a_run_will_take(tiny, tmp_path, monkeypatch, capsys):
    """At a usual share of the peak, for the steps that are left; then as it was measured"""
    flops = 4 * 64 * load_model(f"{tiny}/out")[0].flops_per_token(64)
    args = ["--block_size=64", "--n_layer=1", "--n_head=1", "--n_embd=8"]
    monkeypatch.setattr(Machine, "matmul_rate", lambda self: flops / train.USUAL_MFU / 90)
    for steps, left, minutes in ((3, 3, "04:30"), (5, 2, "03:00")):
        run(tiny, tmp_path, f"--max_steps={steps}", *args, *["--resume"] * (steps == 5))
        printed = capsys.readouterr().out
        assert (f"\nstep {steps - left} of {steps}: about {minutes} to go, for {left * 256} tokens, "
                f"{left * flops:.1e} FLOPs at 40% of ") in printed
        assert re.search(rf"\nstep {steps - left + 2} of {steps}: about 00:\d\d to go\n", printed)


def test_modalities_are_those_of_meta_json(toy, tmp_path):
    """Any names and units: the words dna and english stand in no code of train.py."""
    data = tmp_path / "data"
    shutil.copytree(f"{toy}/data", data)
    meta = json.loads((data / "meta.json").read_text())
    meta["modalities"] = {"music": "note", "dna": "base"}
    os.rename(data / "val_english.bin", data / "val_music.bin")
    english = meta["bins"].pop("val_english.bin")
    meta["bins"]["val_music.bin"] = english | {"notes": 2 * english["bytes"]}
    (data / "meta.json").write_text(json.dumps(meta))
    run(data, tmp_path / "out", "--max_steps=20", "--eval_interval=10", f"--data_dir={data}")
    last, usual = read_log(tmp_path / "out")[-1], read_log(f"{toy}/out")[-1]
    assert last["bits_per_note"] == usual["bits_per_byte"] / 2
    assert last["bits_per_base"] == usual["bits_per_base"] and last["val_loss"] == pytest.approx(usual["val_loss"])

    del meta["modalities"]      # as an older prepare.py wrote it
    (data / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(ValueError, match="meta.json: damaged, or from an older prepare.py: run prepare.py again"):
        read_data(data)


def test_next_line_leads_to_the_same_data(tmp_path):
    """Never from own data to the toy's tasks, or into the toy's folders, whatever the data are called"""
    data = tmp_path / "my [data]"
    write(data / "tasks/x.train.json", "[]")
    command = shlex.split(train.command_after(TrainConfig(data_dir=str(data), out_dir="out/mine"), []))
    *start, pattern = command
    assert start == ["python", "instruct.py", "--init_from=out/mine", "--out_dir=out/mine-instruct"]
    assert glob.glob(pattern.removeprefix("--tasks=")) == [str(data / "tasks/x.train.json")]
    (data / "tasks/x.train.json").unlink()
    command = train.command_after(TrainConfig(data_dir=str(data), out_dir="out/mine"), [])
    assert command == "python sample.py --out_dir=out/mine"


def test_schedule():
    cfg = TrainConfig(learning_rate=1.0, warmup_steps=4, max_steps=44)
    rates = [learning_rate(step, cfg) for step in range(45)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[44] == 0 and np.allclose(np.diff(rates[4:]), -0.025)
    # a short run warms up for a tenth of its steps
    cfg = TrainConfig(learning_rate=1.0, warmup_steps=40, max_steps=20)
    assert [learning_rate(step, cfg) for step in (0, 1, 2, 11, 20)] == [0.5, 1.0, 1.0, 0.5, 0.0]
    assert learning_rate(0, TrainConfig(learning_rate=1.0, max_steps=1)) == 1.0


# -- optimizers

@pytest.mark.parametrize("shape", [(1, 8, 8), (5, 8, 32), (2, 48, 16)])
def test_orthogonalize(shape):
    """Singular values near one, singular vectors as they were."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, before, v = torch.linalg.svd(x, full_matrices=False)
    result = u.mT @ train.orthogonalize(x) @ v.mT                # diagonal, if they are
    values = result.diagonal(dim1=1, dim2=2)
    assert before.max() / before.min() > 2 and 0.6 < values.min() and values.max() < 1.3
    assert (result - torch.diag_embed(values)).abs().max() < 1e-3


def test_muon_is_that_of_torch():
    """But for c_attn, which is three matrices here."""
    torch.manual_seed(0)
    start, grads = torch.randn(24, 16), torch.randn(3, 24, 16)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    thirds = [torch.nn.Parameter(part.clone()) for part in start.split(8)]
    c_attn = torch.nn.Parameter(start.clone())
    options = {"weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    pairs = [(train.Muon({"mlp.c_fc.weight": ours}, 0.1, 0.1, torch.bfloat16),
              torch.optim.Muon([theirs], 0.1, **options)),
             (train.Muon({"attn.c_attn.weight": c_attn}, 0.1, 0.1, torch.bfloat16),
              torch.optim.Muon(thirds, 0.1, **options))]
    for grad in grads:
        ours.grad = theirs.grad = c_attn.grad = grad
        for third, part in zip(thirds, grad.split(8)):
            third.grad = part
        for optimizer, torchs in pairs:
            optimizer.step()
            torchs.step()
    assert torch.allclose(ours, theirs, atol=0.01) and not torch.allclose(ours, start, atol=0.1)
    assert torch.allclose(c_attn, torch.cat(thirds), atol=0.01)


def test_optimizers_share_all_parameters():
    model = GPT(GPTConfig(vocab_size=11, block_size=8, n_layer=2, n_head=1, n_embd=8))
    for optimizer, n in (("muon", 2), ("adamw", 1)):
        optimizers = train.make_optimizers(model, TrainConfig(optimizer=optimizer), CPU)
        held = [p for o in optimizers for g in o.param_groups for p in g["params"]]
        assert len(optimizers) == n and len(held) == len({id(p) for p in held}) \
            == len(list(model.parameters()))
        decayed = [p for o in optimizers for g in o.param_groups for p in g["params"]
                   if g["weight_decay"]]
        assert {p.dim() for p in decayed} == {2}


def test_adamw_trains_and_resumes_too(toy, tmp_path):
    args = ["--max_steps=4", "--eval_interval=2", "--optimizer=adamw"]
    run(toy, tmp_path / "whole", *args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "learning_rate", lambda step, cfg: math.nan if step == 2 else 1e-3)
        with pytest.raises(ValueError):
            run(toy, tmp_path / "parts", *args)
    with pytest.raises(ValueError, match="began with optimizer=adamw, not muon"):
        run(toy, tmp_path / "parts", *args[:2], "--resume", "--optimizer=muon")
    run(toy, tmp_path / "parts", *args, "--resume")
    assert load_checkpoint(tmp_path / "parts/last.pt")[1]["step"] == 4


# -- checkpoints and resuming

def run(toy, out, *args):
    train.main(merge(*SMALL, f"--data_dir={toy}/data", f"--out_dir={out}", "--log_interval=1", *args))


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
    run(toy, tmp_path / "parts", *args, "--resume")
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert same(weights(tmp_path / "parts", "best.pt"), weights(tmp_path / "whole", "best.pt"))


def test_intervals_change_nothing_but_the_log(toy, tmp_path):
    run(toy, tmp_path / "a", "--max_steps=6", "--eval_interval=1", "--dropout=0.1")
    run(toy, tmp_path / "b", "--max_steps=6", "--eval_interval=6", "--dropout=0.1", "--log_interval=3")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert read_log(tmp_path / "a")[-2:] == read_log(tmp_path / "b")[-2:]


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU takes a compiler")
def test_compiled_runs_are_the_same_twice(toy, tmp_path):
    for out in ("a", "b"):
        run(toy, tmp_path / out, "--max_steps=8", "--dropout=0.1", "--compile=yes", "--dtype=auto")
    assert same(weights(tmp_path / "a"), weights(tmp_path / "b"))
    assert read_log(tmp_path / "a") == read_log(tmp_path / "b")


def test_best_is_not_overwritten_by_worse(tiny, tmp_path, monkeypatch):
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(train, "evaluate_bins", lambda *args: {"val_loss": next(losses)})
    run(tiny, tmp_path, "--max_steps=3", "--eval_interval=1", "--block_size=64")
    best = load_checkpoint(tmp_path / "best.pt")[1]
    assert best["step"] == 2 and best["best"] == 1.0


def test_a_bad_loss_stops_the_run(toy, tmp_path, monkeypatch):
    """Lost in the sixth step; the next line of the log finds it, before anything is saved."""
    monkeypatch.setattr(train, "learning_rate", lambda step, cfg: math.nan if step == 5 else 1e-3)
    with pytest.raises(ValueError, match="the loss is nan at step 8: .*keeps the last good"):
        run(toy, tmp_path, "--max_steps=20", "--eval_interval=5", "--log_interval=4")
    last = load_checkpoint(tmp_path / "last.pt")[1]
    assert last["step"] == 5 and all(t.isfinite().all() for t in last["model"].values())


def test_a_last_bad_step_is_not_saved(toy, tmp_path, monkeypatch):
    """Lost in the update of the step before a checkpoint, whose own loss was still good."""
    monkeypatch.setattr(train, "learning_rate", lambda step, cfg: math.nan if step == 9 else 1e-3)
    with pytest.raises(ValueError, match="the validation loss is nan at step 10"):
        run(toy, tmp_path, "--max_steps=20", "--eval_interval=5")
    assert load_checkpoint(tmp_path / "last.pt")[1]["step"] == 5


def test_an_infinite_gradient_stops_the_run(toy, tmp_path, monkeypatch):
    real = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *a: real(*a) * math.inf)
    with pytest.raises(ValueError, match="the gradient is inf at step 3"):
        run(toy, tmp_path, "--max_steps=20", "--log_interval=3")
    assert not os.path.exists(tmp_path / "last.pt")


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_how_to_go_on(toy, tmp_path, signum):
    args = ["--max_steps=12", "--eval_interval=4", "--log_interval=5"]
    run(toy, tmp_path / "whole", *args)
    real = train.learning_rate

    def press(step, cfg):
        if step == 5:
            os.kill(os.getpid(), signum)
        return real(step, cfg)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "learning_rate", press)
        with pytest.raises(SystemExit, match="stopped at step 6: --resume continues"):
            run(toy, tmp_path / "parts", *args)
    run(toy, tmp_path / "parts", *args, "--resume")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")


def test_a_run_is_not_overwritten(toy, tmp_path):
    """Finished or not: only --overwrite deletes it."""
    run(toy, tmp_path, "--max_steps=2")
    before = listing(tmp_path)
    ways = f"{tmp_path} holds a run already: --resume continues it, another --out_dir keeps it, --overwrite deletes it"
    with pytest.raises(ValueError, match=ways):
        run(toy, tmp_path, "--max_steps=3")
    with pytest.raises(ValueError, match="--resume, --overwrite: give only one"):
        run(toy, tmp_path, "--max_steps=3", "--resume", "--overwrite")
    os.remove(tmp_path / "last.pt")         # as in a packed model
    with pytest.raises(ValueError, match="holds a run already: another --out_dir keeps it, --overwrite deletes it"):
        run(toy, tmp_path, "--max_steps=3")
    assert before | listing(tmp_path) == before
    with pytest.MonkeyPatch.context() as patch:     # leaves nothing to resume, if it dies early
        patch.setattr(train, "fit", lambda *a: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(toy, tmp_path, "--max_steps=3", "--overwrite")
    assert sorted(os.listdir(tmp_path)) == ["config.json", "log.jsonl", "tokenizer.json"]
    run(toy, tmp_path, "--max_steps=3")     # a run without a checkpoint is none
    assert load_checkpoint(tmp_path / "last.pt")[1]["step"] == 3


def test_two_runs_do_not_share_a_folder(toy, tmp_path):
    """Not even before the first checkpoint. A lock ends with its process."""
    hold = f"import config, time\nwith config.locked({str(tmp_path)!r}):\n    print('locked', flush=True)\n    time.sleep(100)"
    process = subprocess.Popen([sys.executable, "-c", hold], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match="another run is writing to it"):
        run(toy, tmp_path, "--max_steps=2")
    assert os.listdir(tmp_path) == []
    process.kill()
    process.wait()
    run(toy, tmp_path, "--max_steps=2")
    assert load_checkpoint(tmp_path / "last.pt")[1]["step"] == 2


def test_where_there_are_no_locks(toy, tmp_path, monkeypatch):
    """Windows has no fcntl; some network drives refuse flock."""
    monkeypatch.setattr(config, "fcntl", None)
    run(toy, tmp_path, "--max_steps=2")
    monkeypatch.undo()
    monkeypatch.setattr(config.fcntl, "flock", lambda *a: os.close(-1))
    run(toy, tmp_path, "--max_steps=2", "--overwrite")


def test_resuming_a_finished_run_writes_nothing(toy, tmp_path, capsys):
    run(toy, tmp_path, "--max_steps=2")
    before = listing(tmp_path)
    capsys.readouterr()
    run(toy, tmp_path, "--max_steps=2", "--resume", "--log_interval=2")
    printed = capsys.readouterr().out
    assert "last.pt is at step 2 already: more max_steps would continue it" in printed
    assert "wrote" not in printed and printed.splitlines()[-1].startswith("next: python instruct.py")
    assert listing(tmp_path) == before


def test_a_full_disk_says_what_is_left(toy, tmp_path, monkeypatch):
    real = train.save_checkpoint

    def full(path, *args, step, **more):
        if step > ends[0]:
            raise OSError("No space left on device")
        real(path, *args, step=step, **more)

    monkeypatch.setattr(train, "save_checkpoint", full)
    for ends, hint in (([0], "Free some space and start again"),
                       ([2], "and continue with --resume from the one before it, which is intact")):
        with pytest.raises(OSError, match=f"best.pt: cannot be written, is the disk full. .No space.*{hint}"):
            run(toy, tmp_path, "--max_steps=4", "--eval_interval=2")


# -- model folders

def test_a_folder_whose_files_do_not_belong_together_is_refused(toy, tmp_path):
    """Rather than to answer with ids of other tokens, or with ids that have none"""
    for name in ("best.pt", "tokenizer.json"):
        shutil.copy(f"{toy}/out/{name}", tmp_path)
    state, text = torch.load(tmp_path / "best.pt"), (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text + " ")
    with pytest.raises(ValueError, match="tokenizer.json: not the tokenizer that"):
        load_model(tmp_path)
    (tmp_path / "tokenizer.json").write_text(text)
    torch.save({k: v for k, v in state.items() if k != "tokenizer_sha256"}, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="best.pt: it does not say which tokenizer is its own"):
        load_model(tmp_path)
    state["model_config"]["vocab_size"] += 60
    for name in ("transformer.wte.weight", "lm_head.weight"):
        state["model"][name] = torch.cat([state["model"][name], torch.zeros(60, 16)])
    torch.save(state, tmp_path / "best.pt")
    with pytest.raises(ValueError, match="best.pt: 460 ids, but its tokenizer has 400"):
        load_model(tmp_path)


# -- gradient accumulation

def lopsided(rows):
    """-> micro-batches of so many rows each, of 8 rows with responses of 2 and of 41 tokens"""
    idx = torch.randint(61, (8, 50), generator=torch.Generator().manual_seed(1))
    targets = torch.full((8, 50), -1)
    for i in range(8):
        targets[i, -(2 if i < 4 else 41):] = 1 + i
    return list(zip(idx.split(rows), targets.split(rows)))


def gradients(model, micro_batches, machine=CPU):
    model.zero_grad()
    loss = train.forward_backward(model, micro_batches, machine)
    return loss, torch.cat([p.grad.flatten() for p in model.parameters()])


def lopsided_model():
    torch.manual_seed(0)
    return GPT(GPTConfig(vocab_size=61, block_size=64, n_layer=2, n_head=2, n_embd=32))


def test_accumulated_gradients_are_those_of_one_large_batch():
    """Not a mean of means, which would weigh short responses as much as long ones"""
    model = lopsided_model()
    loss, expected = gradients(model, lopsided(8))
    for rows in (4, 3):
        part_loss, accumulated = gradients(model, lopsided(rows))
        assert part_loss.item() == pytest.approx(loss.item(), rel=1e-5)
        torch.testing.assert_close(accumulated, expected, atol=1e-6, rtol=1e-4)


TWO = """
import sys
sys.path.insert(0, {tests!r})
from test_train import gradients, lopsided, lopsided_model
import torch
from config.machine import find_machine
from train import TrainConfig
machine = find_machine(TrainConfig(device="cpu", dtype="float32", gradient_accumulation_steps=2))
model = torch.nn.parallel.DistributedDataParallel(lopsided_model())
loss, accumulated = gradients(model, lopsided(4)[machine.rank::2], machine)
loss = machine.sum(loss)[0] / 2
if machine.is_main:
    torch.save((loss, accumulated), {path!r})
machine.close()
"""


def in_two_processes(script, tmp_path):
    """-> what a script, whose {tests} and {path} are filled in, has saved at {path}"""
    path = tmp_path / "two.py"
    path.write_text(script.format(tests=os.path.dirname(__file__), path=str(tmp_path / "x.pt")))
    process = torchrun(script=str(path))
    assert process.communicate()[1] is not None and process.returncode == 0
    return torch.load(tmp_path / "x.pt")


def test_two_processes_accumulate_as_one(tmp_path):
    loss, accumulated = in_two_processes(TWO, tmp_path)
    expected_loss, expected = gradients(lopsided_model(), lopsided(8))
    assert loss == pytest.approx(expected_loss.item(), rel=1e-5)
    torch.testing.assert_close(accumulated, expected, atol=1e-6, rtol=1e-4)


# -- several processes

def test_two_processes_equal_one(toy, tmp_path, small):
    args = [*small, f"--data_dir={toy}/data", "--max_steps=6", "--eval_interval=3",
            "--log_interval=1", "--gradient_accumulation_steps=2"]
    train.main([*args, f"--out_dir={tmp_path}/one"])
    process = torchrun(*args, f"--out_dir={tmp_path}/two")
    assert process.communicate()[1] is not None and process.returncode == 0
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert len(one) == len(two) == 8
    for a, b in zip(one, two):
        assert a.keys() == b.keys() and a == pytest.approx(b, rel=1e-4)


def torchrun(*args, script=f"{ROOT}/train.py"):
    """-> a job of two processes"""
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone",
                             "--nproc_per_node=2", script, *map(str, args)],
                            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": ROOT}, text=True,
                            stderr=subprocess.PIPE, start_new_session=True)


def wait_for_a_line(path, process):
    """Wait until there is something in a log."""
    for _ in range(600):
        if os.path.exists(path) and os.path.getsize(path):
            return
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.1)


def children(process):
    """-> the process ids of a job's workers"""
    pids = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], text=True,
                           capture_output=True).stdout
    return [int(pid) for pid in pids.split()]


@pytest.mark.skipif(shutil.which("ps") is None, reason="ps says which processes are whose")
def test_a_process_that_dies_ends_the_job(toy, tmp_path, small):
    process = torchrun(*small, f"--data_dir={toy}/data", f"--out_dir={tmp_path}", "--log_interval=1",
                       "--max_steps=100000", "--eval_interval=100000",
                       "--gradient_accumulation_steps=2")
    wait_for_a_line(tmp_path / "log.jsonl", process)
    os.kill(max(children(process)), signal.SIGKILL)
    _, errors = process.communicate(timeout=100)
    assert process.returncode != 0 and "SIGKILL" in errors


def test_ctrl_c_stops_all_processes_together(toy, tmp_path, small):
    """Ctrl-C in a terminal reaches torchrun and its workers alike."""
    args = [*small, f"--data_dir={toy}/data", f"--out_dir={tmp_path}", "--log_interval=1",
            "--max_steps=100000", "--eval_interval=100000", "--gradient_accumulation_steps=2"]
    process = torchrun(*args)
    wait_for_a_line(tmp_path / "log.jsonl", process)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    step = load_checkpoint(tmp_path / "last.pt")[1]["step"]
    assert f"stopped at step {step}: --resume continues" in errors
    assert step == read_log(tmp_path)[-1]["step"]


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
             (["--n_head=3"], "n_embd=16 cannot be divided among n_head=3"),
             (["--device=cuda:77"], "device=cuda:77: no such device here"),
             (["--device=gpu"], "device=gpu: no such device"),
             (["--dtype=int8"], "dtype=int8 is not one of"),
             (["--compile=perhaps"], "compile=perhaps is not one of"),
             (["--optimizer=sgd"], "optimizer=sgd is not one of"),
             (["--resume"], "no such checkpoint"),
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


def test_resuming_another_run_is_refused(toy, tmp_path):
    """Whatever would change the run; what only watches it, or where it ends, may change."""
    run(toy, tmp_path / "out", "--max_steps=2")
    before = listing(tmp_path / "out")
    for arg, message in [("--n_layer=3", "began with n_layer=2, not 3"),
                         ("--batch_size=5", "began with batch_size=4, not 5"),
                         ("--seed=2", "began with seed=1337, not 2"),
                         ("--dropout=0.1", "began with dropout=0.0, not 0.1")]:
        with pytest.raises(ValueError, match=f"last.pt: {message}: resume with the conf"):
            run(toy, tmp_path / "out", "--max_steps=4", "--resume", arg)

    # other data: the same tokenizer with another meta.json, and another tokenizer
    data = tmp_path / "data"
    shutil.copytree(f"{toy}/data", data)
    meta = (data / "meta.json").read_text()
    (data / "meta.json").write_text(meta + " ")
    with pytest.raises(ValueError, match="began with another data: resume with the files"):
        run(toy, tmp_path / "out", "--max_steps=4", "--resume", f"--data_dir={data}")
    assert listing(tmp_path / "out") == before
    run(toy, tmp_path / "out", "--max_steps=4", "--resume", "--eval_interval=1", "--log_interval=3")
    assert load_checkpoint(tmp_path / "out/last.pt")[1]["step"] == 4


def test_motifs_from_pretraining_to_an_answer(toy, tmp_path):
    """They are trained, resumed to the bit, tuned, and packed."""
    args = ["--motifs=8", "--max_steps=6", "--eval_interval=3"]
    run(toy, tmp_path / "whole", *args)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "learning_rate", lambda step, cfg: 1 / 0 if step == 4 else learning_rate(step, cfg))
        with pytest.raises(ZeroDivisionError):
            run(toy, tmp_path / "parts", *args)
    run(toy, tmp_path / "parts", *args, "--resume")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))

    # all parts of it have learned, and it knows what is DNA
    model, tok, _ = load_model(f"{tmp_path}/whole")
    cfg = config.from_command_line(TrainConfig, "train", [*SMALL, "--motifs=8"])
    before, bases = train.new_model(cfg, tok, CPU).transformer.bases, model.transformer.bases
    for (name, p), q in zip(bases.named_parameters(), before.parameters()):
        assert (p - q).abs().max() > 1e-3, name
    lengths = {i: len(token) for token, i in tok.vocab.items() if token and set(token) <= set("ACGT")}
    assert bases.length.tolist() == [lengths.get(i, 0) for i in range(len(tok))] and len(lengths) > 20
    assert tok.decode([bases.line_break.item()]) == "\n"

    tuned = f"--out_dir={tmp_path}/tuned"
    instruct.main([f"--init_from={tmp_path}/whole", tuned, f"--tasks={toy}/data/tasks/tf.train.json",
                   f"--eval_tasks={toy}/data/tasks/tf.test.json", "--max_steps=2", "--device=cpu"])
    pack.main([f"{tmp_path}/tuned", f"{tmp_path}/packed"])
    counts = [json.loads((tmp_path / name / "scores.json").read_text())["tasks"]["tf"]["n"]
              for name in ("tuned", "packed")]
    packed, _, state = load_model(str(tmp_path / "packed"))
    assert counts == [24, 24] and packed.config.motifs == 8 and "tf" in state["questions"]
    assert torch.equal(packed.transformer.bases.spelling, bases.spelling)
