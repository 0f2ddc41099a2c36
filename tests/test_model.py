"""The network: against arithmetic done by hand and by numpy, and against `transformers`."""
import math
import os
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import model as model_module
from bpe import Tokenizer
from config import replacing
from conftest import GUE_FOLDERS, example, random_dna
from dna.tasks import alpaca_prompt, describe, fold, wordings
from instruct import encode_prompts
from model import (GPT, BaseEmbedding, Cache, GPTConfig, choose, common_prefix, load_checkpoint,
                   save_checkpoint)
from train import load_model

SMALL = GPTConfig(vocab_size=61, block_size=32, n_layer=2, n_head=2, n_embd=16)


# DNA of one to thirty bases, a line break, two of them, and what is no DNA, in no order
NAMES = list(dict.fromkeys([
    *"AxCGT\n", "GATT", "ACA", "CC", "TTGACGTCA", "GATTACAGAT" * 3, "\n\n", " ", "<|endoftext|>",
    *(a + b + c for a in "ACG" for b in "ACGT" for c in "ACGT")]))
VOCAB = {name: i for i, name in enumerate(NAMES)}


def make_gpt(**more):
    torch.manual_seed(0)
    gpt = GPT(replace(SMALL, **more))
    if gpt.config.motifs:
        gpt.transformer.bases.read_vocab(VOCAB, VOCAB["\n"])
    with torch.no_grad():       # away from the zeros and ones that it starts from
        for p in gpt.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return gpt.eval()


@pytest.fixture
def gpt():
    return make_gpt()


@pytest.fixture(params=[0, 5], ids=["plain", "motifs"])
def each_gpt(request):
    """A plain GPT-2, and one with motif filters to whom most tokens are DNA"""
    return make_gpt(motifs=request.param)


def tokens(*shape):
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(1))


# -- what DNA tokens are given besides

def spelled(*names):
    return torch.tensor([[VOCAB[name] for name in names]])


def reader():
    """-> a BaseEmbedding that tells what it reads: it adds up the one-hot windows (11 x 4) of all its
    filters, and the place is a number beside them"""
    config = GPTConfig(vocab_size=61, n_embd=45, motifs=44)
    bases = BaseEmbedding(config)
    bases.read_vocab(VOCAB, VOCAB["\n"])
    with torch.no_grad():
        for p in bases.parameters():
            p.zero_()
        bases.filters.weight.copy_(torch.eye(44))
        bases.c_proj.weight[:44] = torch.eye(44) / 2
        bases.places.weight[:, 44] = torch.arange(512)
    return bases


def windows(*texts):
    """-> the sum of the one-hot windows that end with these texts, as reader() gives it"""
    one_hot = [0.0] * 44
    for text in texts:
        for i, base in enumerate(text, start=11 - len(text)):
            one_hot[4 * i + "ACGT".index(base)] += 1
    return one_hot


def test_the_example_of_the_docstring():
    """GATT ACA CC, over two lines"""
    gatt, line_break, aca, cc = reader()(spelled("GATT", "\n", "ACA", "CC"), 4)[0].tolist()
    assert gatt == windows("G", "GA", "GAT", "GATT") + [0]
    assert line_break == [0] * 45
    assert aca == windows("GATTA", "GATTAC", "GATTACA") + [4]
    assert cc == windows("GATTACAC", "GATTACACC") + [7]


def test_long_tokens():
    """A filter reads 11 bases and ends at one of a token's last 8; a token counts as 24 bases at most,
    and from place 511 on all places are alike."""
    long = "GATTACAGAT" * 3
    last8 = [long[:end][-11:] for end in range(23, 31)]
    first, second, third = reader()(spelled(long, "CC", "TTGACGTCA"), 3)[0].tolist()
    assert first == windows(*last8) + [0]
    assert second == windows(long[-10:] + "C", long[-9:] + "CC") + [24]
    text = long + "CCTTGACGTCA"
    assert third == windows(*(text[:end][-11:] for end in range(34, 42))) + [26]
    places = reader()(spelled(*[long] * 24), 24)[0, :, 44].tolist()
    assert places == [min(24 * i, 511) for i in range(24)]


@pytest.mark.parametrize("between", [["x"], [" "], ["<|endoftext|>"], ["\n\n"], ["\n", "\n"], ["x", "\n"],
                                     ["\n", "x"], ["\n", " ", "\n"]])
def test_dna_starts_anew(between):
    """After all that is neither DNA nor the one line break in its middle"""
    x = reader()(spelled("GATT", "\n", "ACA", *between, "ACA", "\n", "CC"), 3 + len(between) + 3)[0]
    assert not x[3:-3].any()
    assert torch.equal(x[-3:], reader()(spelled("ACA", "\n", "CC"), 3)[0])


def base_by_base(bases, ids):
    """BaseEmbedding by its docstring, for one row of ids"""
    rows, run, after_dna = [], "", False
    for name in (NAMES[i] for i in ids):
        if not set(name) <= set("ACGT"):
            run = run if name == "\n" and after_dna else ""
            after_dna = False
            rows.append(torch.zeros(16))
            continue
        name, before, after_dna = name[-24:], len(run), True
        run += name
        motifs = 0
        for end in range(max(before, len(run) - 8) + 1, len(run) + 1):
            one_hot = torch.tensor(windows(run[max(0, end - 11):end]))
            motifs += 2 * F.relu(bases.filters(one_hot))
        rows.append(bases.c_proj(motifs) + bases.places.weight[min(before, 511)])
    return torch.stack(rows)


def test_bases_equal_a_loop_over_them():
    """Also of the last tokens only, with padding before or between them"""
    bases, rng = make_gpt(motifs=5).transformer.bases, random.Random(0)
    weights = [3, 1, 3, 3, 3, 9, *[3] * 5, 1, 1, 1, *[1] * 47]
    for _ in range(12):
        ids = rng.choices(range(61), weights, k=24)
        expected = base_by_base(bases, ids)
        torch.testing.assert_close(bases(torch.tensor([ids]), 24)[0], expected)
        k = rng.randrange(1, 23)
        padded = torch.tensor([[-1] * 2 + ids[:k] + [-1] * 3 + ids[k:]])
        torch.testing.assert_close(bases(padded, 24 - k)[0], expected[k:])


GUE_TOKENIZER = Tokenizer.train([random_dna(3000), "promoter TATA CAT, what is it?\n\n### Input:\n" * 9], 400)


@pytest.mark.parametrize("folder", GUE_FOLDERS)
def test_dna_is_the_same_under_every_wording(folder):
    """Whatever the instruction, the bases of the input have the same embedding."""
    tok, dna = GUE_TOKENIZER, random_dna(101, seed=5)
    gpt = GPT(replace(SMALL, vocab_size=len(tok), motifs=5))
    gpt.transformer.bases.read_vocab(tok.vocab, tok.encode("\n")[0])
    known, unseen = wordings(describe(folder, "", []))
    examples = [example(instruction, dna) for instruction in known + unseen]
    prompts = [prompt.tolist() for prompt in encode_prompts(tok, examples, 10_000)[0]]
    whole = tok.encode_batch([alpaca_prompt(e["instruction"], dna) for e in examples])
    assert prompts == [ids.tolist() for ids in whole]

    # the input, and what follows it, are the last tokens of each prompt
    dna_ids, after = tok.encode(fold(dna)), tok.encode("\n\n### Response:\n")
    T = len(dna_ids) + len(after)
    assert all(prompt[-T:] == dna_ids + after for prompt in prompts)
    longest = max(map(len, prompts))
    rows = torch.tensor([[-1] * (longest - len(prompt)) + prompt for prompt in prompts])
    embedded = gpt.transformer.bases(rows, T)
    expected = gpt.transformer.bases(torch.tensor([dna_ids + after]), T)
    torch.testing.assert_close(embedded, expected.expand_as(embedded))
    assert expected[0, :len(dna_ids)].any(dim=1).sum() == len(dna_ids) - 1      # but for the line break


def test_without_motifs_it_is_gpt2(gpt):
    """No parameter more, and the same logits to the bit as where no token is DNA"""
    assert not [name for name in gpt.state_dict() if "bases" in name]
    other = GPT(replace(SMALL, motifs=5)).eval()
    missing, unexpected = other.load_state_dict(gpt.state_dict(), strict=False)
    assert not unexpected and all(name.startswith("transformer.bases.") for name in missing)
    assert torch.equal(other(tokens(2, 32))[0], gpt(tokens(2, 32))[0])
    other.transformer.bases.read_vocab(VOCAB, VOCAB["\n"])
    assert not torch.equal(other(tokens(2, 32))[0], gpt(tokens(2, 32))[0])
    no_dna = spelled("x", "\n", " ", "<|endoftext|>", "x")
    assert torch.equal(other(no_dna)[0], gpt(no_dna)[0])


# -- exactness

def test_by_hand():
    """With a block that adds nothing, the logits are LayerNorm(wte + wpe) wte^T: pen and paper will do."""
    gpt = GPT(GPTConfig(vocab_size=2, block_size=2, n_layer=1, n_head=1, n_embd=2))
    with torch.no_grad():
        gpt.transformer.h[0].attn.c_proj.weight.zero_()
        gpt.transformer.h[0].mlp.c_proj.weight.zero_()
        gpt.transformer.wte.weight.copy_(torch.tensor([[1., 2.], [3., -1.]]))
        gpt.transformer.wpe.weight.copy_(torch.tensor([[0., 0.], [0., 5.]]))
    logits = gpt(torch.tensor([[0, 1]]))[0]
    # (1, 2) and (3, 4) are both normalized to (-1, 1); times wte: 1*-1 + 2*1 = 1, 3*-1 + -1*1 = -4
    assert torch.allclose(logits, torch.tensor([[[1., -4.], [1., -4.]]]), atol=1e-3)
    # -log softmax: log(1 + e^5) for token 1, log(1 + e^-5) for token 0
    loss = gpt(torch.tensor([[0, 1]]), torch.tensor([[1, 0]]))[1]
    by_hand = (math.log(1 + math.exp(5)) + math.log(1 + math.exp(-5))) / 2
    assert loss.item() == pytest.approx(by_hand, abs=1e-4)


def numpy_gpt2(w, idx, n_head):
    """GPT-2 for one row of ids, from the formulas."""
    def norm(x, name):
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
        return x * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = w["transformer.wte.weight"][idx] + w["transformer.wpe.weight"][:len(idx)]
    for layer in range(SMALL.n_layer):
        h = f"transformer.h.{layer}"
        q, k, v = np.split(linear(norm(x, f"{h}.ln_1"), f"{h}.attn.c_attn"), 3, axis=1)
        heads = []
        for q1, k1, v1 in zip(*(np.split(m, n_head, axis=1) for m in (q, k, v))):
            scores = q1 @ k1.T / math.sqrt(q1.shape[1])
            scores[np.triu_indices(len(idx), k=1)] = -np.inf
            e = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(e / e.sum(1, keepdims=True) @ v1)
        x = x + linear(np.concatenate(heads, axis=1), f"{h}.attn.c_proj")
        u = linear(norm(x, f"{h}.ln_2"), f"{h}.mlp.c_fc")
        u = 0.5 * u * (1 + np.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u ** 3)))
        x = x + linear(u, f"{h}.mlp.c_proj")
    return norm(x, "transformer.ln_f") @ w["transformer.wte.weight"].T


def test_equals_numpy(gpt):
    w = {name: p.double().numpy() for name, p in gpt.state_dict().items()}
    idx = tokens(1, 20)
    assert np.allclose(gpt(idx)[0][0].detach(), numpy_gpt2(w, idx[0].numpy(), 2), atol=1e-4)


def test_a_folder_without_a_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="best.pt: no such checkpoint"):
        load_model(tmp_path)


def test_attention_written_out(gpt):
    """On a CPU in bfloat16 attention is written out: the same result, up to rounding."""
    idx = tokens(3, 32)
    exact = gpt(idx)[0]
    assert (gpt.bfloat16()(idx)[0] - exact).abs().max() < 0.02 * exact.abs().max()


def test_gelu_by_sigmoid(monkeypatch):
    x = torch.linspace(-8, 8, 1001)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert torch.allclose(model_module.gelu(x), F.gelu(x, approximate="tanh"), atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_causal(each_gpt, dtype):
    """Changing token t changes no logits before t, and those at t."""
    gpt, idx = each_gpt.to(dtype), tokens(1, 32)
    before = gpt(idx)[0]
    for t in (0, 7, 31):
        other = idx.clone()
        other[0, t] = (other[0, t] + 1) % 61
        after = gpt(other)[0]
        assert torch.equal(after[0, :t], before[0, :t])
        assert not torch.allclose(after[0, t], before[0, t])


# -- the loss

def test_loss_ignores_masked_targets(gpt):
    idx, targets = tokens(2, 8), tokens(2, 8).flip(1)
    targets[0, 3:] = -1
    loss = gpt(idx, targets)[1]
    each = -gpt(idx)[0].log_softmax(-1).gather(2, targets.clamp(min=0)[..., None])[..., 0]
    assert loss.item() == pytest.approx((each[0, :3].sum() + each[1].sum()).item() / 11, rel=1e-5)


def test_a_prefix_changes_nothing(each_gpt):
    """The same loss and gradients as with whole rows, of which the prefix has no targets"""
    gpt = each_gpt
    idx, targets = tokens(3, 20), tokens(3, 20).flip(1)
    idx[:, :7] = idx[0, :7]
    targets[:, :9] = -1
    targets[1, 15:] = -1
    gradients = []
    for batch in ((idx, targets), (idx, targets[:, 9:]), (idx[:, 7:], targets[:, 7:], idx[0, :7]),
                  (idx[:, 7:], targets[:, 9:], idx[0, :7])):
        gpt.zero_grad()
        loss = gpt(*batch)[1]
        loss.backward()
        gradients.append([loss.detach()] + [p.grad.clone() for p in gpt.parameters()])
    for part in gradients[1:]:
        for a, b in zip(part, gradients[0]):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_only_the_last_tokens_are_computed(gpt, monkeypatch):
    """Where only these have targets: in the last block, and in the head. What is returned beside a
    loss is no logits, which would need memory and a gradient."""
    shapes = {}

    def watch(name, module):
        forward = module.forward
        monkeypatch.setattr(module, "forward", lambda x: shapes.setdefault(name, []).append(x.shape[:-1])
                            or forward(x))

    watch("head", gpt.lm_head)
    watch("first", gpt.transformer.h[0].mlp)
    watch("last", gpt.transformer.h[-1].mlp)
    idx = tokens(2, 8)
    assert gpt(idx, idx[:, 5:])[0] is None
    assert gpt(idx)[0].shape == (2, 8, gpt.config.vocab_size)
    assert shapes == {"first": [(2, 8), (2, 8)], "last": [(2, 3), (2, 8)], "head": [(6,), (2, 8)]}


def test_last_states_are_those_of_all(each_gpt):
    """With and without a cache"""
    gpt = each_gpt.eval()
    idx = tokens(2, 12)
    whole = gpt.hidden(idx)
    for R in (1, 5, 12):
        cache = Cache()
        torch.testing.assert_close(gpt.hidden(idx, last=R), whole[:, -R:])
        torch.testing.assert_close(gpt.hidden(idx[:, :7], cache=cache, last=min(R, 7)),
                                   whole[:, :7][:, -R:])
        # the cache still has all tokens
        torch.testing.assert_close(gpt.hidden(idx[:, 7:], cache=cache, last=min(R, 5)),
                                   whole[:, 7:][:, -R:])


@pytest.mark.parametrize("prefix", [None, torch.arange(5)])
def test_nothing_to_learn_gives_no_nan(each_gpt, prefix):
    gpt = each_gpt
    _, loss = gpt(tokens(2, 8), torch.full((2, 8), -1), prefix)
    loss.backward()
    assert loss.item() == 0
    assert all(torch.isfinite(p.grad).all() for p in gpt.parameters() if p.grad is not None)


def test_overfits_one_batch():
    torch.manual_seed(0)
    gpt = GPT(SMALL)
    idx = tokens(4, 17)
    optimizer = torch.optim.AdamW(gpt.parameters(), lr=1e-2)
    for _ in range(150):
        loss = gpt(idx[:, :-1], idx[:, 1:])[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05


def test_initial_loss_is_that_of_guessing():
    torch.manual_seed(0)
    loss = GPT(SMALL)(tokens(8, 32), tokens(8, 32).flip(1))[1].item()
    assert loss == pytest.approx(math.log(61), abs=0.05)


def test_num_params():
    C = 16
    block = 4 * C + (3 * C * C + 3 * C) + (C * C + C) + (4 * C * C + 4 * C) + (4 * C * C + C)
    assert GPT(SMALL).num_params() == 61 * C + 2 * block + 2 * C
    filters = 5 * 4 * 11 + 5 + 5 * C        # but not the places, nor how tokens are spelled
    assert GPT(replace(SMALL, motifs=5)).num_params() == GPT(SMALL).num_params() + filters


# -- the cache, scoring and generation

def test_common_prefix():
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2, 3, 9]]) == 2
    assert common_prefix([[1, 2], [1, 2, 3]]) == 1      # something is left of the shorter row
    assert common_prefix([[7], [7]]) == 0


def test_mask_by_hand():
    """One cached row of two tokens, then two rows that continue it, the second one padded"""
    def append(ids, position, branches=()):
        ids, mask = cache.append(torch.tensor(ids), torch.tensor(position), branches)
        return ids.tolist(), mask.int().tolist()

    cache, pad = Cache(), Cache.PADDING
    assert append([[7, 8]], [[0, 1]]) == ([[7, 8]], [[[[1, 0], [1, 1]]]])
    assert append([[9, 5], [9, 0]], [[2, 3], [2, pad]]) == (
        [[7, 8, 9, 5], [7, 8, 9, -1]], [[[[1, 1, 1, 0], [1, 1, 1, 1]]], [[[1, 1, 1, 0], [1, 1, 1, 1]]]])
    # what comes after the padding does not attend to it, nor to the other of two branches
    assert append([[6, 1, 2], [6, 1, 2]], [[4, 4, 5], [3, 3, 4]], [1, 2]) == (
        [[7, 8, 9, 5, 6, 1, 2], [7, 8, 9, -1, 6, 1, 2]],
        [[[[1, 1, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 0, 1, 1]]],
         [[[1, 1, 1, 0, 1, 0, 0], [1, 1, 1, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 1]]]])


def greedy(gpt, prompt, n, **more):
    return list(gpt.generate(prompt, n, temperature=0, **more))


def test_cache_changes_nothing(each_gpt):
    """Prompts shorter and longer than the context, generated beyond it, with and without the cache"""
    gpt = each_gpt
    for prompt, n in (([5], 40), ([1, 2, 3], 9), (list(range(31)), 20), (list(range(50)), 20)):
        ids = list(prompt)
        for token in greedy(gpt, prompt, n):
            if len(ids) > 32:
                ids = ids[-16:]
            assert token == gpt(torch.tensor([ids]))[0][0, -1].argmax().item()
            ids.append(token)


def test_log_likelihoods(each_gpt):
    """With the shared cache and prompts of different lengths the same as row by row without"""
    gpt = each_gpt
    prompts = [[1, 2, 3, 4], [1, 2, 9], [1, 2, 3, 4, 5, 6, 7, 8]]
    choices = [[7], [7, 8, 0], [30, 31, 0], greedy(gpt, prompts[1], 3)]
    nats, would_write = gpt.log_likelihoods(prompts, choices)
    for i, p in enumerate(prompts):
        for j, c in enumerate(choices):
            log_p = gpt(torch.tensor([p + c]))[0][0].log_softmax(-1)
            alone = sum(log_p[len(p) - 1 + t, token].item() for t, token in enumerate(c))
            assert nats[i, j].item() == pytest.approx(alone, abs=1e-4)
            assert would_write[i, j].item() == (greedy(gpt, p, len(c)) == c)
    assert would_write[1, 3]
    # only one choice at a time must fit behind a prompt
    gpt.log_likelihoods([[1] * 29], [[1], [1, 2, 3, 4], [5, 6, 7, 8]])
    with pytest.raises(ValueError, match="33 tokens do not fit into block_size=32"):
        gpt.log_likelihoods([[1] * 30], [[1], [1, 2, 3, 4]])


def test_stops(gpt):
    free = greedy(gpt, [1], 20)
    assert greedy(gpt, [1], 20, stop=free[4]) == free[:free.index(free[4]) + 1]
    assert greedy(gpt, [1], 0) == []


def test_choose():
    logits = torch.tensor([0.0, 3.0, 2.0, -1.0])
    assert choose(logits, 0, None) == 1
    assert {choose(logits, 1.0, 2) for _ in range(100)} == {1, 2}
    assert draws(7) == draws(7) != draws(8)


def draws(seed):
    torch.manual_seed(0)
    return list(GPT(SMALL).generate([1], 20, generator=torch.Generator().manual_seed(seed)))


# -- files

def test_checkpoint_of_a_compiled_model_loads_uncompiled(gpt, tmp_path):
    compiled = torch.compile(gpt, backend="eager")
    compiled(tokens(1, 9))
    save_checkpoint(tmp_path / "a.pt", gpt, step=3)
    again, state = load_checkpoint(tmp_path / "a.pt")
    assert state["step"] == 3 and torch.equal(again.eval()(tokens(1, 9))[0], gpt(tokens(1, 9))[0])


def test_killed_in_a_save_keeps_the_older(gpt, tmp_path, monkeypatch):
    path = tmp_path / "last.pt"
    save_checkpoint(path, gpt, step=1)

    def dies(state, file):
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(model_module.torch, "save", dies)
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        save_checkpoint(temporary, gpt, step=2)
    assert load_checkpoint(path)[1]["step"] == 1


def test_a_full_disk_keeps_the_older(gpt, tmp_path):
    """The file may not grow beyond 20 kB, as where the disk is full."""
    resource = pytest.importorskip("resource")
    path = tmp_path / "last.pt"
    save_checkpoint(path, gpt, step=1)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"), replacing(path) as temporary:
            save_checkpoint(temporary, gpt, step=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert os.listdir(tmp_path) == ["last.pt"] and path.read_bytes() == before


@pytest.mark.parametrize("size", [0, 10, 5000])
def test_checkpoint_cut_short(gpt, tmp_path, size):
    path = tmp_path / "last.pt"
    save_checkpoint(path, gpt)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="last.pt: not a complete checkpoint"):
        load_checkpoint(path)


def test_refusals(tmp_path):
    with pytest.raises(ValueError, match="n_embd=10 cannot be divided among n_head=3"):
        GPT(GPTConfig(n_embd=10, n_head=3))
    with pytest.raises(ValueError, match="33 tokens do not fit into block_size=32"):
        GPT(SMALL)(tokens(1, 33))
    with pytest.raises(ValueError, match="33 tokens do not fit into block_size=32"):
        GPT(SMALL)(tokens(2, 3), tokens(2, 3), tokens(30))
    with pytest.raises(FileNotFoundError, match="no such checkpoint"):
        load_checkpoint(str(tmp_path / "none.pt"))


def test_motifs_in_a_file(tmp_path):
    """With what each token is spelled, which no tokenizer is needed for"""
    gpt = make_gpt(motifs=5)
    save_checkpoint(tmp_path / "best.pt", gpt)
    again = load_checkpoint(tmp_path / "best.pt")[0].eval()
    assert again.config.motifs == 5 and torch.equal(again(tokens(2, 32))[0], gpt(tokens(2, 32))[0])


def test_a_checkpoint_from_before_the_motifs(gpt, tmp_path):
    """One with k-mers is refused by a line that says who reads it; one without is plain GPT-2."""
    save_checkpoint(tmp_path / "x.pt", gpt)
    state = torch.load(tmp_path / "x.pt")
    del state["model_config"]["motifs"]
    for kmer in (0, 6):
        state["model_config"]["kmer"] = kmer
        torch.save(state, tmp_path / f"{kmer}.pt")
    again = load_checkpoint(tmp_path / "0.pt")[0]
    assert torch.equal(again.eval()(tokens(1, 9))[0], gpt(tokens(1, 9))[0])
    with pytest.raises(ValueError, match="^[^\n]*6.pt: a model with k-mers: ae9d0bb is the last[^\n]*$"):
        load_checkpoint(tmp_path / "6.pt")


def test_a_tensor_too_many_is_refused(gpt, tmp_path):
    """As where LayerNorm was replaced by RMSNorm, which has no bias: not another network without a word"""
    save_checkpoint(tmp_path / "x.pt", gpt)
    state = torch.load(tmp_path / "x.pt")
    state["model"]["transformer.ln_f.other"] = torch.zeros(16)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="(?s)x.pt: a checkpoint, but not of this network.*ln_f.other"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_checkpoint_of_another_program(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "x.pt")
    torch.save([1, 2], tmp_path / "y.pt")
    for name in ("x.pt", "y.pt"):
        with pytest.raises(ValueError, match=f"{name}: a checkpoint, but not of this network"):
            load_checkpoint(tmp_path / name)
