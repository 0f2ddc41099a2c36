"""float16: the loss is scaled, and a step whose gradient overflows is skipped. All on a CPU."""
import functools
import json
import math

import pytest
import torch
from conftest import TINY, TUNING, merge
from test_train import (gradients, in_two_processes, lopsided, lopsided_model, read_log, same, torchrun,
                        weights)

import instruct
import train
from config.machine import Machine
from model import load_checkpoint
from train import TrainConfig, forward_backward, update

CPU = torch.device("cpu")


def run(folder, out, *args):
    train.main(merge(*TINY, "--block_size=64", f"--data_dir={folder}/data", f"--out_dir={out}",
                     "--log_interval=1", "--dtype=float16", *args))


def state(out):
    return load_checkpoint(f"{out}/last.pt")[1]


@pytest.fixture
def scaler(monkeypatch):
    """-> a function that gives the scaler of runs to come other settings"""
    real = torch.amp.GradScaler
    return lambda **settings: monkeypatch.setattr(torch.amp, "GradScaler", functools.partial(real, **settings))


# -- a step

def test_only_float16_has_a_scale():
    assert [Machine(CPU, dtype).scaler.is_enabled() for dtype in (
        torch.float32, torch.bfloat16, torch.float16)] == [False, False, True]


def test_gradients_are_those_of_float32():
    """Of several micro-batches, with any scale, and clipped after they are scaled down"""
    exact, expected = gradients(lopsided_model(), lopsided(8))
    for scale in (1.0, 2.0 ** 12):
        model, machine = lopsided_model(), Machine(CPU, torch.float16)
        machine.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        loss, accumulated = gradients(model, lopsided(3), machine)
        assert loss.item() == pytest.approx(exact.item(), rel=1e-3)
        assert (accumulated / scale - expected).norm() < 0.01 * expected.norm()
        optimizers = train.make_optimizers(model, TrainConfig(), machine)
        norm = update(model, optimizers, 1e-3, grad_clip=0.1, machine=machine)
        assert norm.item() == pytest.approx(expected.norm().item(), rel=0.01)


def test_the_weights_follow_unscaled_and_clipped_gradients(monkeypatch):
    seen = []
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: seen.append(torch.cat(
        [p.grad.flatten() for group in self.param_groups for p in group["params"]]).norm().item()))
    model, machine = lopsided_model(), Machine(CPU, torch.float16)
    optimizers = train.make_optimizers(model, TrainConfig(optimizer="adamw"), machine)
    forward_backward(model, lopsided(8), machine)
    assert update(model, optimizers, 1e-3, grad_clip=0.1, machine=machine) > 0.2
    assert seen == [pytest.approx(0.1, rel=1e-3)]


@pytest.mark.parametrize("planted", ["transformer.wte.weight", "transformer.h.0.mlp.c_fc.weight"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_an_overflow_in_one_optimizer_skips_both(planted, value):
    model, machine = lopsided_model(), Machine(CPU, torch.float16)
    optimizers = train.make_optimizers(model, TrainConfig(), machine)
    forward_backward(model, lopsided(8), machine)
    assert update(model, optimizers, 1e-2, 1.0, machine).isfinite()

    def everything():
        # copied: a state_dict shares the tensors
        return [{k: v.clone() for k, v in model.state_dict().items()}] + [
            {k: v.clone() for k, v in state.items()} for o in optimizers for state in o.state.values()]

    before = everything()
    forward_backward(model, lopsided(8), machine)
    model.get_parameter(planted).grad[0, 0] = value
    assert update(model, optimizers, 1e-2, 1.0, machine) is None
    assert all(map(same, everything(), before)) and machine.scaler.get_scale() == 2.0 ** 15

    # the next step is as if nothing had been
    forward_backward(model, lopsided(8), machine)
    assert update(model, optimizers, 1e-2, 1.0, machine).isfinite()
    assert not any(map(same, everything(), before))


def test_small_gradients_move_matrices_as_large_ones_do():
    """Muon multiplies in float16, whose smallest number is 6e-8."""
    torch.manual_seed(0)
    start, grad, moved = torch.randn(24, 16), torch.randn(24, 16), []
    for dtype, size in ((torch.float32, 1.0), (torch.float16, 1e-9)):
        p = torch.nn.Parameter(start.clone())
        p.grad = size * grad
        optimizer = train.Muon({"attn.c_attn.weight": p}, 0.1, 0.1, dtype)
        optimizer.step()
        moved.append((p - start).detach())
    assert (moved[1] - moved[0]).norm() < 0.1 * moved[0].norm()


# -- a run

def test_a_run_has_the_loss_of_float32(tiny, tmp_path):
    args = ["--max_steps=8", "--eval_interval=4", "--gradient_accumulation_steps=2"]
    for dtype in ("float16", "float32"):
        run(tiny, tmp_path / dtype, *args, f"--dtype={dtype}")
    half, exact = (read_log(tmp_path / dtype) for dtype in ("float16", "float32"))
    assert len(half) == len(exact) == 10
    for a, b in zip(half, exact):
        key = "loss" if "loss" in b else "val_loss"
        assert a[key] == pytest.approx(b[key], rel=2e-3) and a["step"] == b["step"]
    assert state(tmp_path / "float32")["scaler"] == {}
    assert state(tmp_path / "float16")["scaler"]["_growth_tracker"] == 8


def test_resumed_equals_uninterrupted(tiny, tmp_path, scaler):
    """To the bit, with the scale and how long it has held"""
    scaler(init_scale=2.0 ** 24)
    args = ["--max_steps=20", "--eval_interval=4", "--dropout=0.1"]
    run(tiny, tmp_path / "whole", *args)
    with pytest.MonkeyPatch.context() as patch:
        real = train.learning_rate
        patch.setattr(train, "learning_rate", lambda step, cfg: 1 / 0 if step == 17 else real(step, cfg))
        with pytest.raises(ZeroDivisionError):
            run(tiny, tmp_path / "parts", *args)
    half_way = state(tmp_path / "parts")["scaler"]
    assert 1 < half_way["scale"] < 2.0 ** 24 and half_way["_growth_tracker"] > 0
    run(tiny, tmp_path / "parts", *args, "--resume")
    assert read_log(tmp_path / "parts") == read_log(tmp_path / "whole")
    assert same(weights(tmp_path / "parts"), weights(tmp_path / "whole"))
    assert state(tmp_path / "parts")["scaler"] == state(tmp_path / "whole")["scaler"]


def test_an_overflow_is_said_and_logged(tiny, tmp_path, scaler, capsys):
    scaler(init_scale=2.0 ** 24)
    run(tiny, tmp_path, "--max_steps=20", "--eval_interval=10", "--log_interval=3")
    log, printed = read_log(tmp_path), capsys.readouterr().out
    skipped = [line for line in log if line.get("skipped")]
    n = len(skipped)
    assert n > 3 and skipped == [{"step": i + 1, "skipped": True, "scale": 2.0 ** (23 - i)} for i in range(n)]
    assert (f"\nstep {n}: skipped, its gradient overflows float16; the loss is now scaled by "
            f"{2 ** (24 - n):,}\n") in printed

    # the tokens of skipped steps count; such a step has no loss to log
    losses = [line for line in log if "loss" in line]
    assert [line["step"] for line in losses if line["step"] <= n] == []
    assert losses[-1]["step"] == 20 and losses[-1]["tokens"] == 20 * 4 * 64
    assert all(math.isfinite(x) for line in log for x in line.values() if x is not None)


def test_a_run_that_float16_cannot_hold_ends(tiny, tmp_path, scaler, monkeypatch):
    real = torch.amp.GradScaler.scale
    monkeypatch.setattr(torch.amp.GradScaler, "scale", lambda self, loss: real(self, loss) * math.inf)
    scaler(init_scale=4.0)
    with pytest.raises(ValueError, match="float16 cannot hold the gradient at step 3: .*--dtype=float32; "
                                         ".*keeps the last good checkpoint"):
        run(tiny, tmp_path, "--max_steps=9", "--eval_interval=9")


def test_another_dtype_may_continue(tiny, tmp_path):
    """A run that began on another machine, or before there was a scale"""
    for steps, dtype in ((1, "float32"), (2, "float16"), (3, "float32"), (4, "float16")):
        run(tiny, tmp_path, f"--max_steps={steps}", f"--dtype={dtype}", *["--resume"] * (steps > 1))
    older = torch.load(tmp_path / "last.pt")
    del older["scaler"]
    torch.save(older, tmp_path / "last.pt")
    run(tiny, tmp_path, "--max_steps=5", "--resume")
    assert state(tmp_path)["step"] == 5


def test_tuning_and_scores_in_float16(tiny, tmp_path):
    tasks, scores = f"{tiny}/data/tasks", []
    for dtype in ("float32", "float16"):
        instruct.main(merge(*TUNING, f"--init_from={tiny}/out", f"--out_dir={tmp_path}/{dtype}", "--max_steps=3",
                            f"--tasks={tasks}/x.train.json", f"--eval_tasks={tasks}/x.test.json",
                            f"--dtype={dtype}"))
        scores.append([line["val_loss"] for line in read_log(tmp_path / dtype) if "val_loss" in line])
        assert json.loads((tmp_path / f"{dtype}/scores.json").read_text())["tasks"]["x"]["n"] == 8
    assert scores[1] == pytest.approx(scores[0], rel=5e-3) and scores[1] != scores[0]


# -- several processes

TWO = """
import sys
sys.path.insert(0, {tests!r})
from test_train import lopsided, lopsided_model
import torch
import train
from config.machine import find_machine
from train import TrainConfig, forward_backward, update
cfg = TrainConfig(device="cpu", dtype="float16", gradient_accumulation_steps=2)
machine, model = find_machine(cfg), lopsided_model()
machine.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
optimizers, norms = train.make_optimizers(model, cfg, machine), []
ddp_model = torch.nn.parallel.DistributedDataParallel(model)
for step in range(3):
    hook = model.lm_head.weight.register_hook(
        lambda grad: grad * float("inf") if step == 1 and machine.rank == 1 else grad)
    forward_backward(ddp_model, lopsided(4)[machine.rank::2], machine)
    norm = update(model, optimizers, 1e-2, 1.0, machine)
    norms.append(None if norm is None else norm.item())
    hook.remove()
found = machine.gather((norms, machine.scaler.get_scale(), model.lm_head.weight.sum().item()))
if machine.is_main:
    torch.save(found, {path!r})
machine.close()
"""


def test_an_overflow_in_one_process_skips_the_step_in_all(tmp_path):
    first, second = in_two_processes(TWO, tmp_path)
    norms, scale, _ = first
    assert first == second and scale == 512
    assert norms[1] is None and math.isfinite(norms[0]) and math.isfinite(norms[2])


def test_two_processes_equal_one(tiny, tmp_path):
    args = ["--max_steps=4", "--eval_interval=2", "--gradient_accumulation_steps=2"]
    run(tiny, tmp_path / "one", *args)
    process = torchrun(*merge(*TINY, "--block_size=64", f"--data_dir={tiny}/data", "--log_interval=1",
                              "--dtype=float16", *args, f"--out_dir={tmp_path}/two"))
    assert process.communicate()[1] is not None and process.returncode == 0
    one, two = read_log(tmp_path / "one"), read_log(tmp_path / "two")
    assert len(one) == len(two) == 6
    for a, b in zip(one, two):
        assert a.keys() == b.keys() and a == pytest.approx(b, rel=1e-2)
