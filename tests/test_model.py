"""The network: against arithmetic done by hand and by numpy, and against `transformers`."""
import math
import os
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import model as model_module
from bpe import Tokenizer
from config import replacing
from model import GPT, Cache, GPTConfig, choose, common_prefix, load_checkpoint, save_checkpoint
from train import load_model

SMALL = GPTConfig(vocab_size=61, block_size=32, n_layer=2, n_head=2, n_embd=16)


@pytest.fixture
def gpt():
    torch.manual_seed(0)
    gpt = GPT(SMALL)
    with torch.no_grad():       # away from the zeros and ones that it starts from
        for p in gpt.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return gpt.eval()


def tokens(*shape):
    return torch.randint(61, shape, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def kmer_gpt():
    """A network with 3-mers, whose tokens 1 to 9 are DNA, from one to twenty bases long, and its
    vocabulary"""
    torch.manual_seed(0)
    vocab = {token: i for i, token in enumerate(
        "x A C G T AC GT TTA ACGTA CATGCATTCAGGCATACCAT CAT.".split())}
    gpt = GPT(GPTConfig(**asdict(SMALL) | {"kmer": 3}))
    gpt.transformer.kmers.read_vocab(vocab)
    with torch.no_grad():
        gpt.transformer.kmers.weight[:-1].normal_()
    return gpt.eval(), vocab


# -- k-mers

def test_a_token_gets_the_kmers_that_end_in_it(kmer_gpt):
    """Wherever tokens begin and end; not across what is no DNA; of a long token the last 16 bases"""
    gpt, vocab = kmer_gpt
    kmers, names = gpt.transformer.kmers, list(vocab)
    ids = torch.randint(11, (4, 30), generator=torch.Generator().manual_seed(3))
    embedded = kmers(ids, torch.full((4, 2), -1))
    for row, x in zip(ids.tolist(), embedded):
        text = ""
        for i, value in zip(row, x):
            expected = torch.zeros(SMALL.n_embd)
            is_dna = set(names[i]) <= set("ACGT")
            for base in names[i][-16:] if is_dna else "":
                text += base
                if len(text) >= 3:
                    expected += kmers.weight[int(text[-3:].translate(str.maketrans("ACGT", "0123")), 4)]
            text = text if is_dna else ""
            torch.testing.assert_close(value, expected)
    # the ids before count too
    torch.testing.assert_close(kmers(ids[:, 2:], ids[:, :2])[:, 2:], embedded[:, 4:])


def test_kmers_begin_at_nothing():
    """A new network with k-mers is the plain one of the same seed, until it is trained."""
    torch.manual_seed(0)
    plain = GPT(SMALL)
    torch.manual_seed(0)
    other = GPT(GPTConfig(**asdict(SMALL) | {"kmer": 3}))
    other.transformer.kmers.read_vocab({"ACGT": 5, "CC": 6})
    idx = torch.tensor([[5, 6, 5, 1, 5]])
    assert torch.equal(plain(idx)[0], other(idx)[0])
    assert other.num_params() == plain.num_params()
    other(idx, idx)[1].backward()
    # ACGT CC ACGT: the 3-mers ACG, CGT, GTC, TCC, CCA, CAC
    grad = other.transformer.kmers.weight.grad.abs().sum(dim=1)
    assert grad.nonzero()[:, 0].tolist() == [0 * 16 + 6, 17, 20, 27, 45, 53]


def test_kmers_on_a_cache(kmer_gpt):
    """Rows of different lengths, a shared prefix, DNA that goes on over its edge: all as one row"""
    gpt = kmer_gpt[0]
    ids = torch.randint(1, 10, (40,), generator=torch.Generator().manual_seed(4)).tolist()
    whole = gpt(torch.tensor([ids[:30]]))[0]
    cache = Cache()
    parts = [gpt.hidden(torch.tensor([part]), cache=cache) for part in (ids[:11], ids[11:12], ids[12:30])]
    torch.testing.assert_close(gpt.lm_head(torch.cat(parts, dim=1)), whole)

    prompts, choices = [ids[:9], ids[:14], ids[:3] + ids[20:24]], [[5, 6, 0], ids[3:6]]
    for prompt, row in zip(prompts, gpt.log_likelihoods(prompts, choices)[0]):
        for choice, nats in zip(choices, row):
            log_p = gpt(torch.tensor([prompt + choice]))[0][0, len(prompt) - 1:-1].log_softmax(-1)
            assert nats.item() == pytest.approx(log_p.gather(1, torch.tensor(choice)[:, None]).sum().item(), abs=1e-4)

    idx, targets = torch.tensor([ids[5:15], ids[25:35]]), torch.tensor([ids[6:16], ids[26:36]])
    prefix = torch.tensor(ids[:5])
    rows = torch.cat([prefix.expand(2, -1), idx], dim=1)
    masked = torch.cat([torch.full((2, 5), -1), targets], dim=1)
    torch.testing.assert_close(gpt(idx, targets, prefix)[1], gpt(rows, masked)[1])
    assert list(gpt.generate(ids[:6], 20, temperature=0)) == list(gpt.generate(ids[:6], 20, top_k=1))


def test_kmers_in_files(tmp_path):
    tok = Tokenizer.train(["ACGTACGTAACCGGTT" * 9, "a cat"], 300)
    gpt = GPT(GPTConfig(len(tok), 32, 1, 1, 8, kmer=4))
    gpt.transformer.kmers.read_vocab(tok.vocab)
    with torch.no_grad():
        gpt.transformer.kmers.weight[:-1].normal_()
    idx = torch.tensor([tok.encode("a cat ACGTACGTAACCGGTTACGT")])
    save_checkpoint(tmp_path / "best.pt", gpt)
    again = load_checkpoint(tmp_path / "best.pt")[0]
    assert again.config.kmer == 4 and torch.equal(again(idx)[0], gpt(idx)[0])


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
def test_causal(gpt, dtype):
    """Changing token t changes no logits before t, and those at t."""
    gpt, idx = gpt.to(dtype), tokens(1, 32)
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


def test_a_prefix_changes_nothing(gpt):
    """The same loss and gradients as with whole rows, of which the prefix has no targets"""
    idx, targets = tokens(3, 20), tokens(3, 20).flip(1)
    idx[:, :7] = idx[0, :7]
    targets[:, :9] = -1
    targets[1, 15:] = -1
    gradients = []
    at = (targets[:, 7:].flatten() != -1).nonzero()[:, 0]
    for batch in ((idx, targets), (idx[:, 7:], targets[:, 7:], idx[0, :7]),
                  (idx[:, 7:], targets[:, 7:].flatten()[at], idx[0, :7], at)):
        gpt.zero_grad()
        loss = gpt(*batch)[1]
        loss.backward()
        gradients.append([loss.detach()] + [p.grad.clone() for p in gpt.parameters()])
    for part in gradients[1:]:
        for a, b in zip(part, gradients[0]):
            torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)


def test_the_head_is_computed_only_where_there_is_a_target(gpt, monkeypatch):
    """And what is returned beside a loss is no logits, which would need memory and a gradient."""
    rows, head = [], gpt.lm_head.forward
    monkeypatch.setattr(gpt.lm_head, "forward", lambda x: rows.append(x.shape[:-1]) or head(x))
    idx, at = tokens(2, 8), torch.tensor([3, 5, 14])
    assert gpt(idx, idx.flatten()[at], at=at)[0] is None
    gpt(idx)
    assert rows == [(3,), (2, 8)]


@pytest.mark.parametrize("prefix", [None, torch.arange(5)])
def test_nothing_to_learn_gives_no_nan(gpt, prefix):
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


# -- the cache, scoring and generation

def test_common_prefix():
    assert common_prefix([[1, 2, 3], [1, 2, 4], [1, 2, 3, 9]]) == 2
    assert common_prefix([[1, 2], [1, 2, 3]]) == 1      # something is left of the shorter row
    assert common_prefix([[7], [7]]) == 0


def test_mask_by_hand():
    """One cached row of two tokens, then two rows that continue it, the second one padded"""
    cache = Cache()
    assert cache.append_positions(torch.tensor([[0, 1]])).int().tolist() == [[[[1, 0], [1, 1]]]]
    position = torch.tensor([[2, 3], [2, Cache.PADDING]])
    assert cache.append_positions(position).int().tolist() == [[[[1, 1, 1, 0], [1, 1, 1, 1]]],
                                                   [[[1, 1, 1, 0], [1, 1, 1, 1]]]]
    # what comes after the padding does not attend to it
    assert cache.append_positions(torch.tensor([[4], [3]])).int().tolist() == [[[[1, 1, 1, 1, 1]]],
                                                                   [[[1, 1, 1, 0, 1]]]]


def greedy(gpt, prompt, n, **more):
    return list(gpt.generate(prompt, n, temperature=0, **more))


def test_cache_changes_nothing(gpt):
    """Prompts shorter and longer than the context, generated beyond it, with and without the cache"""
    for prompt in ([5], [1, 2, 3], list(range(31)), list(range(50))):
        ids = list(prompt)
        for token in greedy(gpt, prompt, 60):
            if len(ids) > 32:
                ids = ids[-16:]
            assert token == gpt(torch.tensor([ids]))[0][0, -1].argmax().item()
            ids.append(token)


def test_log_likelihoods(gpt):
    """With the shared cache and prompts of different lengths the same as row by row without"""
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
