"""What a GPU asks of the code, proved without one: no waiting in a step, one graph, few compilations,
and how much memory a step takes, by tensors without data (of the device meta, or fake)."""
import contextlib
import copy
import os
import re

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import config
import model as model_module
import train
from bench.step import forward_backward, update
from config.machine import Machine
from model import GPT, GPTConfig
from train import TrainConfig, total_nats

SMALL = GPTConfig(vocab_size=61, block_size=64, n_layer=2, n_head=2, n_embd=32)
GPT2 = os.path.join(os.path.dirname(config.__file__), "gpt2.toml")
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
    at = (targets.flatten() != -1).nonzero()[:, 0]
    return idx, targets.flatten()[at], torch.arange(P), at


BATCHES = {"pretraining": pretraining(), "tuning": tuning(8, 40), "a prefix": tuning(8, 40, P=9)}


# -- a step does not wait

class Meta(Machine):
    def autocast(self):
        return contextlib.nullcontext()


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("name", BATCHES)
def test_a_step_never_waits_for_the_device(name, optimizer, monkeypatch):
    """Tensors of the device meta have no data: reading a number off one (item, tolist) or asking how
    many are not zero raises, and so would whatever makes a program wait for its GPU."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)       # meta has none
    machine, cfg = Meta(torch.device("meta"), torch.float32), TrainConfig(optimizer=optimizer)
    model = GPT(SMALL).to("meta")
    optimizers = train.make_optimizers(model, cfg, machine)
    for _ in range(2):
        forward_backward(model, [BATCHES[name]] * 2, machine)
        assert all(p.grad is not None for p in model.parameters())
        update(model, optimizers, 1e-3, grad_clip=1.0)
    loss = model(*machine.to_device(BATCHES[name]))[1]
    for reads in (loss.item, loss.tolist, loss.nonzero, lambda: bool(loss > 0)):
        with pytest.raises((RuntimeError, NotImplementedError)):
            reads()


# -- one graph, few compilations

@pytest.mark.parametrize("name", BATCHES)
def test_a_step_is_one_graph(name):
    torch._dynamo.reset()
    with torch.autocast("cpu", torch.bfloat16):
        found = torch._dynamo.explain(GPT(SMALL))(*BATCHES[name])
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


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
    with torch.autocast("cpu", torch.bfloat16):
        assert model.embed(tokens(2, 8), torch.arange(8)).dtype == torch.bfloat16
    assert model.embed(tokens(2, 8), torch.arange(8)).dtype == torch.float32
    exact, expected = flat_gradients(model, pretraining(8), autocast=False)
    loss, found = flat_gradients(model, pretraining(8))
    assert loss == pytest.approx(exact, rel=1e-3)
    assert F.cosine_similarity(found, expected, dim=0) > 0.9999


def test_answers_only_are_the_same_loss():
    """With `at` as with targets of -1 elsewhere"""
    model = GPT(SMALL)
    idx, targets, _, at = tuning(8, 40)
    everywhere = torch.full((8 * 40,), -1).index_put((at,), targets).view(8, 40)
    loss, found = flat_gradients(model, (idx, targets, None, at), autocast=False)
    expected_loss, expected = flat_gradients(model, (idx, everywhere), autocast=False)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
