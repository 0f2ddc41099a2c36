"""What a GPU asks of the code, proved without one: no waiting in a step, one graph, few compilations,
and how much memory a step takes, by tensors without data (of the device meta, or fake)."""
import contextlib
import glob
import os
import re
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func, min_cut_rematerialization_partition
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._inductor.decomposition import select_decomp_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import config
import model as model_module
import train
from train import forward_backward, update
from config.machine import Machine
from model import GPT, GPTConfig
from prepare import PrepareConfig
from train import TrainConfig, total_nats

SMALL = GPTConfig(vocab_size=61, block_size=64, n_layer=2, n_head=2, n_embd=32)
ROOT = os.path.dirname(os.path.abspath(train.__file__))
GPT2 = f"{ROOT}/config/gpt2.toml"
V, GB = 50048, 1e9


def tokens(*shape):
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(1))


def pretraining(B=4, T=64):
    ids = tokens(B, T + 1)
    return ids[:, :-1], ids[:, 1:]


def tuning(B, T, P=0, answer=3):
    """As collate() in instruct.py makes them: rows of different lengths, answers at their ends"""
    idx, targets = tokens(B, T), torch.full((B, T), -1)
    for i in range(B):
        end = T - i % 5
        targets[i, end - answer:end] = 1 + i % 7
    return idx, targets[:, T - 8:], torch.arange(P)


BATCHES = {"pretraining": pretraining(), "tuning": tuning(8, 40), "a prefix": tuning(8, 40, P=9)}


# -- a step does not wait

class Meta(Machine):
    def autocast(self):
        return contextlib.nullcontext()


@pytest.mark.parametrize("optimizer, motifs", [("muon", 0), ("adamw", 0), ("muon", 8)])
@pytest.mark.parametrize("name", BATCHES)
def test_a_step_never_waits_for_the_device(name, optimizer, motifs, monkeypatch):
    """Tensors of the device meta have no data: reading a number off one (item, tolist) or asking how
    many are not zero raises, and so would whatever makes a program wait for its GPU."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)       # meta has none
    machine, cfg = Meta(torch.device("meta"), torch.float32), TrainConfig(optimizer=optimizer)
    model = GPT(replace(SMALL, motifs=motifs)).to("meta")
    optimizers = train.make_optimizers(model, cfg, machine)
    for _ in range(2):
        forward_backward(model, [BATCHES[name]] * 2, machine)
        assert all(p.grad is not None for p in model.parameters())
        update(model, optimizers, 1e-3, 1.0, machine)
    loss = model(*machine.to_device(BATCHES[name]))[1]
    for reads in (loss.item, loss.tolist, loss.nonzero, lambda: bool(loss > 0)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            reads()


@pytest.mark.parametrize("motifs", [0, 8])
def test_scoring_waits_only_for_its_results(motifs, monkeypatch):
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    monkeypatch.setattr(torch, "autocast", lambda *args, **more: contextlib.nullcontext())
    model = GPT(replace(SMALL, motifs=motifs)).to("meta")
    nats, greedy = model.log_likelihoods([[1, 2, 3], [1, 2, 4, 5]], [[7, 0], [8, 9, 0], [8]])
    assert nats.shape == greedy.shape == (2, 3) and nats.is_meta


# -- one graph, few compilations

@pytest.mark.parametrize("motifs", [0, 8])
@pytest.mark.parametrize("name", BATCHES)
def test_a_step_is_one_graph(name, motifs):
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        report = torch._dynamo.explain(GPT(replace(SMALL, motifs=motifs)))(*BATCHES[name])
    assert (report.graph_count, report.graph_break_count) == (1, 0), report.break_reasons


def compilations(batches):
    """-> how often torch.compile compiles the model for these"""
    torch._dynamo.reset()
    counter, model = CompileCounter(), GPT(SMALL)
    compiled = torch.compile(model, backend=counter)
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16):
            compiled(*batch)[1].backward()
    return counter.frame_count


def test_pretraining_compiles_once():
    assert compilations([pretraining()] * 3) == 1


def test_tuning_compiles_a_handful_of_times():
    """First for one shape, then for all lengths of rows and answers, then for a smaller last batch"""
    lengths = [(8, 40, 3), (8, 32, 2), (8, 48, 4), (8, 64, 5), (5, 40, 3), (3, 56, 2)]
    assert compilations([tuning(B, T, answer=n) for B, T, n in lengths]) == 3


# -- what is computed stays the same

def flat_gradients(model, batch, autocast=True):
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = model(*batch)[1]
    loss.backward()
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


def test_a_residual_stream_in_bfloat16():
    """Half the memory traffic, and the gradient of float32"""
    torch.manual_seed(0)
    model = GPT(GPTConfig(vocab_size=61, block_size=64, n_layer=12, n_head=2, n_embd=64))
    ids = tokens(2, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.embed(ids, torch.arange(8), ids).dtype == torch.bfloat16
    assert model.embed(ids, torch.arange(8), ids).dtype == torch.float32
    exact, expected = flat_gradients(model, pretraining(8), autocast=False)
    loss, gradient = flat_gradients(model, pretraining(8))
    assert loss == pytest.approx(exact, rel=1e-3)
    assert F.cosine_similarity(gradient, expected, dim=0) > 0.9999


def test_answers_only_are_the_same_loss():
    """With targets of the last tokens as with targets of -1 before them"""
    model = GPT(SMALL)
    idx, targets, _ = tuning(8, 40)
    loss, gradient = flat_gradients(model, (idx, targets), autocast=False)
    everywhere = F.pad(targets, (32, 0), value=-1)
    expected_loss, expected = flat_gradients(model, (idx, everywhere), autocast=False)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    torch.testing.assert_close(gradient, expected, atol=1e-6, rtol=1e-4)


# -- memory, in bytes of tensors without data

def bytes_of(nodes):
    """-> bytes of what some nodes of a graph compute"""
    values = [node.meta["val"] for node in nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    return sum(v.numel() * v.element_size() for v in values)


def compiled_step(B, L, T=1024):
    """-> the graphs of forward and backward pass of a micro-batch of GPT-2 small with L layers in
    bfloat16, as torch.compile divides them"""
    graphs = []

    def keep(graph, inputs):
        graphs.append(graph.graph)
        return make_boxed_func(graph.forward)

    backend = aot_autograd(fw_compiler=keep, bw_compiler=keep, decompositions=select_decomp_table(),
                           partition_fn=min_cut_rematerialization_partition)
    torch._dynamo.reset()
    with FakeTensorMode(allow_non_fake_inputs=True):
        model = GPT(GPTConfig(V, T, L, n_head=12, n_embd=768))
        idx = torch.zeros(B, T, dtype=torch.long)
        with torch.autocast("cpu", torch.bfloat16):
            loss = torch.compile(model, backend=backend)(idx, idx)[1]
        loss.backward()
    return graphs


def stated_gigabytes():
    """-> {rows: GB of activations}, as the preset says"""
    with open(GPT2, encoding="utf-8") as f:
        return {int(rows): float(gb) for rows, gb in re.findall(r"(\d+) rows take ([\d.]+) GB", f.read())}


def test_memory_of_a_step(monkeypatch):
    """At its peak, where the backward pass begins, there is what the forward pass has kept, the logits
    among it, and their gradient. Twelve layers are two and ten times what the second adds."""
    monkeypatch.setattr(model_module, "attention", lambda q, k, v, mask, dropout:      # as on a GPU
                        F.scaled_dot_product_attention(q, k, v, is_causal=True))
    B = config.from_command_line(TrainConfig, "train", [GPT2]).batch_size
    kept = []
    for L in (1, 2):
        forward, backward = compiled_step(B, L)
        inputs = set(forward.find_nodes(op="placeholder"))
        kept.append(bytes_of(set(forward.output_node().args[0]) - inputs - {None}))
    peak = kept[1] + 10 * (kept[1] - kept[0]) + 2 * B * 1024 * V
    stated = stated_gigabytes()
    assert stated[B] == pytest.approx(peak / GB, rel=0.1)
    assert stated[B // 2] == pytest.approx(peak / 2 / GB, rel=0.1)
    assert stated[B // 4] == pytest.approx(peak / 4 / GB, rel=0.1)

    # the only gradient that comes from outside is that of the loss, not one of the logits
    outside = [node for node in backward.find_nodes(op="placeholder") if "tangents" in node.name]
    assert [node.meta["val"].numel() for node in outside] == [1]


def test_evaluation_holds_less_than_training():
    """Evaluation is not compiled: it has the logits in bfloat16, in float32, and their log-softmax."""
    shapes = []

    def model(idx, targets):
        shapes.append(idx.shape)
        return None, torch.tensor(0.0)

    model.config = GPTConfig(V, 1024)
    cfg, ids = config.from_command_line(TrainConfig, "train", [GPT2]), np.arange(20_000) % 50_000
    assert total_nats(model, ids, cfg, Meta(torch.device("cpu"), torch.float32), eot=0)[1] == 19_999
    assert set(shapes) == {(4, 1024)}
    assert (2 + 4 + 4) * 4 * 1024 * V < min(stated_gigabytes().values()) * GB


# -- the preset

def test_the_preset_for_a_gpu():
    cfg = config.from_command_line(TrainConfig, "train", [GPT2])
    assert cfg.batch_size * cfg.gradient_accumulation_steps * cfg.block_size == 131_072
    assert 200e6 < 131_072 * cfg.max_steps < 220e6
    assert config.from_command_line(PrepareConfig, "prepare", [GPT2]).vocab_size == V
    assert V % 128 == 0


@pytest.mark.parametrize("preset", glob.glob(f"{ROOT}/config/*.toml"))
def test_no_preset_pretrains_with_dropout(preset):
    """It costs a GPU a tenth of its time, and a few epochs do not need it."""
    assert config.from_command_line(TrainConfig, "train", [preset]).dropout == 0


@pytest.mark.parametrize("card", [16, 24])
def test_smaller_cards_take_the_same_step(card):
    """In more micro-batches, with a quarter of the memory to spare"""
    with open(GPT2, encoding="utf-8") as f:
        rows, accumulation = map(int, re.search(
            rf"A card of {card} GB wants batch_size = (\d+) and gradient_accumulation_steps = (\d+)", f.read()).groups())
    cfg = config.from_command_line(TrainConfig, "train", [GPT2])
    assert rows * accumulation == cfg.batch_size * cfg.gradient_accumulation_steps
    assert 2 + stated_gigabytes()[rows] < 0.75 * card


# -- everything by one command

# A python that notes what it is asked to do. Pretraining is stopped, until it is resumed.
STUB = """#!/usr/bin/env bash
if [[ "$2" == *tomllib* ]]; then exec {python} "$@"; fi
echo "${{*//$'\\n'/ }}" >>{folder}/asked
case "$*" in
*train.py*--resume*) printf 'step 20: val_loss 2.7500\\nstep 40: val_loss 2.5000\\n' ;;
*max_steps=100*) echo "step 100: val_loss 3.2500" ;;
*train.py*) mkdir -p {folder}/base; touch {folder}/base/last.pt; exit 1 ;;
*--dropout=0.1*) echo "error: no such thing" >&2; exit 1 ;;
*bench.step*) printf '1,000 tokens/s, 5.0 ms per step\\nMFU 40.0%% of 989 TFLOP/s\\n' ;;
esac
"""
PRESET = """
[prepare]
dna = ["{folder}/genome.fa"]
english = ["{folder}/english.txt"]
tasks = ["{folder}/tasks"]
data_dir = "{folder}/data"
vocab_size = 300
val_fraction = 0.3
[train]
data_dir = "{folder}/data"
out_dir = "{folder}/base"
n_layer = 1
n_head = 2
n_embd = 16
block_size = 416
batch_size = 4
max_steps = 20
eval_interval = 10
device = "cpu"
compile = "no"
[instruct]
init_from = "{folder}/base"
out_dir = "{folder}/tuned"
tasks = ["{folder}/data/tasks/*.train.json"]
eval_tasks = ["{folder}/data/tasks/*.dev.json"]
batch_size = 4
mix_instructions = true
max_steps = 10
device = "cpu"
"""


def run_all(folder, python, **env):
    """-> the exit status of bench/gpu.sh, and what it printed"""
    (folder / "preset.toml").write_text(PRESET.format(folder=folder))
    done = subprocess.run(["bash", f"{ROOT}/bench/gpu.sh", f"{folder}/preset.toml", f"{folder}/logs"],
                          env=os.environ | {"PYTHON": str(python)} | env, text=True, capture_output=True)
    return done.returncode, done.stdout + done.stderr


def rows_of(table):
    """-> {stage: its state, seconds and figures}, as the table has them"""
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    assert re.fullmatch(r"\| stage +\| state +\| seconds \| figures \|", lines[0]), lines
    rows = [line.strip("| ").split("|", 1) for line in lines[2:]]
    return {name.strip(): rest.strip() for name, rest in rows}


def test_one_command_goes_on_where_it_was_cut_off(tmp_path):
    stub = tmp_path / "python"
    stub.write_text(STUB.format(python=sys.executable, folder=tmp_path))
    stub.chmod(0o755)
    assert "The time is up" in run_all(tmp_path, stub, LIMIT="0")[1]
    assert not (tmp_path / "asked").exists()
    status, printed = run_all(tmp_path, stub)
    table = rows_of(printed)
    assert status == 1 and "MFU 40.0% of 989 TFLOP/s" in table["step"]
    assert "error: no such thing" in table["step-dropout"]
    failed = [name for name, line in table.items() if line.startswith("failed")]
    assert failed == ["step-dropout", "pretraining"] and list(table)[-1] == "pretraining"

    # the second time only what was not done, and training is resumed
    (tmp_path / "asked").unlink()
    status, printed = run_all(tmp_path, stub)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert "--dropout=0.1" in asked[0] and re.search("train.py .*--resume", asked[1])
    table = rows_of(printed)
    assert status == 1 and table["pretraining"].startswith("done") and table["pretraining"].endswith("| step 40: val_loss 2.5000")
    assert table["100-float16"].endswith("| step 100: val_loss 3.2500")
    assert [name for name, line in table.items() if not line.startswith("done")] == ["step-dropout"]


@pytest.mark.skipif(not os.environ.get("GPU_SH"), reason="GPU_SH=1: minutes on a busy machine")
def test_one_command_on_a_cpu(tmp_path):
    """All stages of it, with a network of two thousand parameters"""
    rng = np.random.default_rng(0)
    dna = ["".join(rng.choice(list("ACGT"), size=60)) for _ in range(100)]
    (tmp_path / "genome.fa").write_text("".join(
        f">r{i}\n{''.join(rng.choice(list('ACGT'), size=6000))}\n" for i in range(20)))
    (tmp_path / "english.txt").write_text("\n\n".join(
        f"Gene {i} was read {i * i} times by the cell." for i in range(2500)))
    (tmp_path / "tasks/tf/0").mkdir(parents=True)
    for name, part in (("train", dna[:80]), ("dev", dna[80:])):
        rows = "".join(f"{s},{i % 2}\n" for i, s in enumerate(part))
        (tmp_path / f"tasks/tf/0/{name}.csv").write_text(f"sequence,label\n{rows}")
    status, printed = run_all(tmp_path, sys.executable, OMP_NUM_THREADS="1")
    table = rows_of(printed)
    assert status == 0 and all(line.startswith("done") for line in table.values()), printed
    assert "tokens/s" in table["step"] and "stalled" in table["tuning-step"]
    assert "mean" in table["tuning"] and len(table) == 21
    assert "overflows" not in table["100-float16"] and "val_loss" in table["100-float16"]
