"""
GPT-2: a key-value cache, the network, its loss, generation, checkpoints.

    model = GPT(GPTConfig(vocab_size=8192, block_size=256))
    logits, _ = model(idx)
    _, loss = model(idx, targets)
    for token in model.generate([12, 7, 5], max_new_tokens=20, stop=0): ...

The network is that of Radford et al. (2019), "Language Models are Unsupervised Multitask
Learners": learned positions, LayerNorm before each part of a block, GELU in its tanh
form, biases everywhere, an LM head tied to the token embedding. Parameters have the
names of the published GPT-2, whose files tools/gpt2.py converts. The part below the
double line is ours, not GPT-2's: it adds to the embedding of each DNA token the motifs
that end in it, and its place.

Shapes: B batch, T time (tokens), P cached tokens, such as a shared prefix, S keys (the
cached tokens and the new ones), C channels (n_embd), H heads, D head size (C / H), V
vocabulary, M motif filters, R tokens at the end of T, K choices.
"""
import math
import os
from dataclasses import asdict, dataclass

import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    vocab_size: int = 50257     # ids of the tokenizer
    block_size: int = 1024      # context length, in tokens
    n_layer: int = 12           # blocks
    n_head: int = 12            # attention heads per block
    n_embd: int = 768           # channels
    dropout: float = 0.0        # share of activations zeroed in training
    motifs: int = 0             # number of motif filters on DNA; 0: plain GPT-2


# --------------------------------------------------------------------------------------
# The cache

class Cache:
    """Keys and values of the tokens read so far, with their positions and ids.

    A token attends to the tokens at positions up to its own. Padding is at the position
    PADDING, so no real token attends to it. BaseEmbedding reads the ids, because a motif
    can begin in a cached token. The cache may begin with one row (B=1), a prefix that all
    rows share. Later it has B rows, which continue it.
    """
    PADDING = 1 << 30

    def __init__(self):
        self.layers = {}            # layer -> (keys, values), each (B or 1, H, S, D)
        self.position = None        # (B or 1, S)
        self.ids = None             # (B or 1, S), -1 for padding

    @property
    def size(self):
        """S, how many tokens are cached"""
        return 0 if self.position is None else self.position.size(1)

    def append(self, idx, position, branches=()):
        """Append new tokens, idx (B, T), at their positions (B, T), or (1, T) if the
        cached positions have one row too. branches: as in GPT.hidden(); nothing can be
        appended after them

        -> the ids of all tokens (B, S), -1 for padding; and which of the S keys each new
        token attends to, bool (B or 1, 1, T, S)
        """
        ids = idx.masked_fill(position == self.PADDING, -1)
        positions = position
        if self.position is not None:
            ids = torch.cat([self.ids.expand(len(ids), -1), ids], dim=1)
            positions = self.position.expand(len(position), -1)
            positions = torch.cat([positions, position], dim=1)
        self.ids, self.position = ids, positions

        # tree attention (Miao et al., 2023, SpecInfer): the last tokens are branches, and
        # among these each attends only to itself
        mask = positions[:, None, None, :] <= position[:, None, :, None]
        if n := sum(branches):
            blocks = [torch.ones(size, size, device=idx.device) for size in branches]
            mask[..., -n:, -n:] &= torch.block_diag(*blocks).bool()
        return ids, mask

    def extend(self, layer, k, v):
        """Append the k, v (B, H, T, D) of a layer's new tokens.

        -> all of the layer's k, v (B, H, S, D)
        """
        if layer in self.layers:
            k, v = (torch.cat([old.expand(len(new), -1, -1, -1), new], dim=2)
                    for old, new in zip(self.layers[layer], (k, v)))
        self.layers[layer] = k, v
        return k, v


# --------------------------------------------------------------------------------------
# The network

class CausalSelfAttention(nn.Module):

    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)   # query, key, value
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, mask=None, cache=None, last=None):
        """-> (B, R, C), what the last R tokens read; by default all"""
        B, T, C = x.shape
        R = last or T
        # (B, T, 3C) -> three of (B, H, T, D)
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
                   for part in self.c_attn(x).split(C, dim=2))
        if cache is not None:
            k, v = cache.extend(self.layer, k, v)                   # (B, H, S, D)

        # (B, H, R, D) x (B, H, D, S) -> (B, H, R, S), x (B, H, S, D) -> (B, H, R, D)
        y = attention(q[:, :, -R:], k, v, mask, self.dropout if self.training else 0.0)

        # the heads side by side again
        y = y.transpose(1, 2).reshape(B, R, C)
        return F.dropout(self.c_proj(y), self.dropout, self.training)


class MLP(nn.Module):

    def __init__(self, config):
        super().__init__()
        self.dropout = config.dropout
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x):
        x = gelu(self.c_fc(x))
        return F.dropout(self.c_proj(x), self.dropout, self.training)


class Block(nn.Module):

    def __init__(self, config, layer):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = CausalSelfAttention(config, layer)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x, mask=None, cache=None, last=None):
        y = self.attn(self.ln_1(x), mask, cache, last)
        x = x[:, -y.size(1):] + y
        x = x + self.mlp(self.ln_2(x))
        return x


class GPT(nn.Module):

    def __init__(self, config):
        super().__init__()
        if config.n_embd % config.n_head:
            raise ValueError(f"n_embd={config.n_embd} cannot be divided among "
                             f"n_head={config.n_head} heads: choose a multiple")
        self.config = config
        self.transformer = nn.ModuleDict(dict(
            wte=nn.Embedding(config.vocab_size, config.n_embd),     # tokens
            wpe=nn.Embedding(config.block_size, config.n_embd),     # positions
            h=nn.ModuleList(Block(config, layer) for layer in range(config.n_layer)),
            ln_f=nn.LayerNorm(config.n_embd),
        ))
        if config.motifs:
            self.transformer.bases = BaseEmbedding(config)
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight           # tied
        self._init_weights()

    def _init_weights(self):
        """As GPT-2: normal with std 0.02. What is added to the residual stream starts
        smaller, so that the variance of the stream does not grow with the number of
        blocks (each adds to it twice)."""
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                is_residual = name.endswith("c_proj.weight")
                nn.init.normal_(p, std=residual_std if is_residual else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    @property
    def device(self):
        return self.lm_head.weight.device

    def num_params(self):
        """Number of parameters. The tied LM head counts once. Embeddings of positions
        and of places do not count, because they take part in no matrix product."""
        return sum(p.numel() for name, p in self.named_parameters()
                   if not name.endswith(("wpe.weight", "places.weight")))

    def flops_per_token(self, T):
        """FLOPs to train on one token in rows of T tokens: 6 per parameter, plus
        12 n_layer C T for attention (Chowdhery et al., 2022, PaLM, appendix B). Motif
        filters count once, although each is applied at several bases."""
        c = self.config
        return 6 * self.num_params() + 12 * c.n_layer * c.n_embd * T

    def embed(self, idx, position, ids, branches=()):
        """idx: (B, T) the tokens
        position: (B or 1, T)
        ids: (B, S) the cached tokens and these, -1 for padding, for BaseEmbedding, which
            reads back beyond idx
        branches: as in hidden()
        -> (B, T, C). Under autocast the residual stream uses the autocast dtype, which
        halves its memory.
        """
        # padding has a position beyond the context; clamp it: nothing attends to padding
        positions = self.transformer.wpe(position.clamp(max=self.config.block_size - 1))
        x = self.transformer.wte(idx) + positions
        if self.config.motifs:
            # a motif may begin before its branch, so each branch is read behind the
            # shared tokens, without the other branches
            n = sum(branches)
            shared, *parts = ids.split([ids.size(1) - n, *branches], dim=1)
            added = [self.transformer.bases(shared, idx.size(1) - n)]
            for part in parts:
                row = torch.cat([shared, part], dim=1)
                added.append(self.transformer.bases(row, part.size(1)))
            x = x + torch.cat(added, dim=1)
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        return F.dropout(x, self.config.dropout, self.training)

    def hidden(self, idx, position=None, cache=None, last=None, branches=()):
        """The states before the LM head.

        idx: (B, T) token ids
        position: (B, T), or (1, T) if the cached positions have one row too; by default
            the tokens follow the cached ones, which then must have one row and no padding
        cache: a Cache of the tokens before these, to which these are appended
        last: R, if only the states of the last R tokens are needed. The last block is
            computed only for those.
        branches: idx ends in several continuations of the same tokens, and these are
            their lengths. None of them sees another one. They need a cache and positions.
        -> (B, T, C), or (B, R, C)

        ValueError if the tokens do not fit into the context.
        """
        P, T = 0 if cache is None else cache.size, idx.size(1)
        needed = P + T - sum(branches) + max(branches, default=0)
        if needed > self.config.block_size:
            raise ValueError(f"{needed} tokens do not fit into "
                             f"block_size={self.config.block_size}")
        if position is None:
            position = torch.arange(P, P + T, device=idx.device)[None]
        if cache is None and last:
            cache = Cache()         # its mask allows for fewer queries than keys
        ids, mask = idx, None
        if cache is not None:
            ids, mask = cache.append(idx, position, branches)
        x = self.embed(idx, position, ids, branches)
        for block in self.transformer.h[:-1]:
            x = block(x, mask, cache)
        if last:
            mask = mask[:, :, -last:]
        x = self.transformer.h[-1](x, mask, cache, last)
        return self.transformer.ln_f(x)

    def forward(self, idx, targets=None, prefix=None):
        """
        idx: (B, T) token ids
        targets: (B, R) the id that should follow each of the last R tokens, -1 where
            none is learned
        prefix: (P,) tokens that all rows begin with, without a loss; computed only once

        -> without targets the logits (B, T, V), and None; with targets None, and the
        mean loss in nats. (Returning the logits too would make a compiled model allocate
        an all-zero gradient for them.)
        """
        cache = None
        if prefix is not None and len(prefix):
            cache = Cache()
            self.hidden(prefix[None], cache=cache)
        if targets is None:
            return self.lm_head(self.hidden(idx, cache=cache)), None

        R = targets.size(1)
        x = self.hidden(idx, cache=cache, last=R if R < idx.size(1) else None)
        logits, targets = self.lm_head(x.flatten(0, 1)).float(), targets.flatten()
        total = F.cross_entropy(logits, targets, ignore_index=-1, reduction="sum")
        # a batch without any target has the loss 0, not 0 / 0
        return None, total / (targets != -1).sum().clamp(min=1)

    # -- scoring and generation, on a cache

    @torch.inference_mode()
    def log_likelihoods(self, prompts, choices, P=None):
        """How likely each choice is as the response to each prompt.

        prompts: B lists of ids, of any lengths
        choices: K lists of ids, each with its stop token at the end
        P: how many ids of the prompts are computed only once: at most common_prefix(),
            which is the default where there are several
        -> log-likelihoods in nats (B, K), and whether greedy decoding would write that
        choice, bool (B, K)
        """
        # the prefix
        cache = Cache()
        if P is None:
            P = common_prefix(prompts) if len(prompts) > 1 else 0
        if P:
            self.hidden(torch.tensor([prompts[0][:P]], device=self.device), cache=cache)

        # what follows in each row: the rest of the prompt, padded on the right, then a
        # branch for each choice, without its last id, which nothing follows
        shortest, longest = min(map(len, prompts)), max(map(len, prompts))
        branches = [i for choice in choices for i in choice[:-1]]
        idx = torch.tensor([p[P:] + [0] * (longest - len(p)) + branches for p in prompts],
                           device=self.device)

        # its positions. A branch follows the prompt
        lengths = torch.tensor([len(p) for p in prompts], device=self.device)[:, None]
        position = torch.arange(P, longest, device=self.device)
        position = torch.where(position < lengths, position, Cache.PADDING)
        sizes = [len(choice) - 1 for choice in choices]
        steps = torch.cat([torch.arange(size, device=self.device) for size in sizes])
        position = torch.cat([position, lengths + steps], dim=1)

        # the states from the last token of the shortest prompt on, and of each branch
        n = longest - shortest + 1
        x = self.hidden(idx, position, cache, last=n + sum(sizes), branches=sizes)
        x, *states = x.split([n, *sizes], dim=1)
        first = x.take_along_dim((lengths - shortest)[..., None], dim=1)    # (B, 1, C)

        # the log-probability of each id of a choice, and whether it is the highest. They
        # are in float32, because in bfloat16 two of them are often equal
        nats, greedy = [], []
        for choice, rest in zip(choices, states):
            with torch.autocast(x.device.type, enabled=False):
                logits = self.lm_head(torch.cat([first, rest], dim=1).float())
            log_p = F.log_softmax(logits, dim=-1)                           # (B, T, V)
            ids = torch.tensor(choice, device=self.device)[:, None]
            found = log_p.gather(2, ids.expand(len(prompts), -1, -1))       # (B, T, 1)
            nats.append(found.sum(dim=(1, 2)))
            greedy.append((found == log_p.amax(dim=-1, keepdim=True)).all(dim=(1, 2)))
        return torch.stack(nats, dim=1), torch.stack(greedy, dim=1)

    @torch.inference_mode()
    def generate(self, prompt, max_new_tokens, temperature=1.0, top_k=None, stop=None,
                 generator=None):
        """Continue `prompt`, a list of at least one id; yields the new ids one by one.
        When the context is full, its older half is forgotten.

        temperature: logits are divided by it before drawing; 0 is greedy decoding
        top_k: draw only among the k most likely tokens
        stop: the token, usually <|endoftext|>, after which generation ends
        generator: a torch.Generator on the model's device, for the draws
        """
        ids, cache = list(prompt), Cache()
        for _ in range(max_new_tokens):
            if len(ids) > self.config.block_size:
                ids, cache = ids[-(self.config.block_size // 2):], Cache()
            # all ids at first, then the newest one
            new = torch.tensor([ids[cache.size:]], device=self.device)
            logits = self.lm_head(self.hidden(new, cache=cache, last=1))    # (1, 1, V)
            token = choose(logits[0, 0].float(), temperature, top_k, generator)
            ids.append(token)
            yield token
            if token == stop:
                return


def common_prefix(rows):
    """rows: lists of ids -> how many ids they all begin with, never a whole row"""
    # the first and the last row in sorted order share the shortest prefix
    first, last = min(rows), max(rows)
    shortest = min(map(len, rows)) - 1
    return next((i for i in range(shortest) if first[i] != last[i]), max(0, shortest))


def choose(logits, temperature, top_k, generator=None):
    """logits (V,) -> the id of the next token"""
    if temperature == 0:
        return logits.argmax().item()
    if top_k is not None and top_k < len(logits):
        logits = logits.masked_fill(logits < logits.topk(top_k).values[-1], -math.inf)
    p = F.softmax(logits / temperature, dim=-1)
    return torch.multinomial(p, 1, generator=generator).item()


# --------------------------------------------------------------------------------------
# PyTorch has these two functions. On some devices they are slow or wrong, so they are
# written out here.

def attention(q, k, v, mask, dropout):
    """Scaled dot-product attention.

    q: (B, H, R, D); k, v: (B, H, S, D)
    mask: bool, broadcast to (B, H, R, S): which keys each token attends to; None: causal,
        for R = S
    -> (B, H, R, D)
    """
    # In bfloat16 on a CPU PyTorch's fused kernel leaves the bfloat16 units idle and
    # takes two to three times as long. On MPS it has been silently wrong.
    if q.device.type == "mps" or q.device.type == "cpu" and q.dtype == torch.bfloat16:
        if mask is None:
            T = q.size(2)
            mask = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
        bias = torch.zeros_like(mask, dtype=q.dtype).masked_fill(~mask, -math.inf)
        scores = q / math.sqrt(q.size(-1)) @ k.transpose(-2, -1) + bias    # (B, H, T, S)
        return F.dropout(F.softmax(scores, dim=-1), dropout) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout,
                                          is_causal=mask is None)


def gelu(x):
    """GELU in its tanh form (Hendrycks & Gimpel, 2016)."""
    # 1 + tanh(u) = 2 sigmoid(2u), and torch.compile vectorizes the sigmoid about twice
    # as fast on a CPU
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x ** 3))
    return F.gelu(x, approximate="tanh")


# --------------------------------------------------------------------------------------
# Checkpoints

def save_checkpoint(path, model, **more):
    """Write the model, its config and `more` (tensors, numbers, strings, dicts and lists
    of them). OSError if the file cannot be written, as on a full disk."""
    state = {"model": model.state_dict(), "model_config": asdict(model.config), **more}
    try:
        with open(path, "wb") as f:
            torch.save(state, f)
    except RuntimeError as e:       # torch turns some errors of the system into this
        raise OSError(f"{path}: {e}") from None


def load_checkpoint(path, device="cpu", dropout=0.0):
    """-> (model on `device`, the whole checkpoint as a dict on the CPU)

    FileNotFoundError if there is none, ValueError if it is damaged or of another
    network.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such checkpoint: train a model or give "
                                "another folder")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as e:      # damaged bytes can make the unpickler raise anything
        raise ValueError(f"{path}: not a complete checkpoint ({type(e).__name__}): "
                         "was it cut short in copying?") from None
    try:
        if state["model_config"].pop("kmer", 0):
            raise ValueError(f"{path}: a model with k-mers: ae9d0bb is the last commit "
                             "that reads it")
        model = GPT(GPTConfig(**state["model_config"] | {"dropout": dropout}))
        # a tensor too few or too many is an error, so no part of a network gets lost
        model.load_state_dict(state["model"], strict=True)
    except (KeyError, TypeError, AttributeError, IndexError, RuntimeError) as e:
        raise ValueError(f"{path}: a checkpoint, but not of this network: train it "
                         "anew, or use the code that wrote it "
                         f"({type(e).__name__}: {e})") from None
    return model.to(device), state


# ======================================================================================
# What DNA tokens get in addition

class BaseEmbedding(nn.Module):
    r"""The motifs that end in a DNA token, and the token's place.

    BPE cuts a motif differently in different surroundings, and wpe counts tokens, not
    bases. So a token's embedding tells neither which motif ends there nor where in the
    DNA it lies. Here each filter matches a motif of up to WIDTH bases. It reads the run
    of DNA up to each of the last ENDS bases of the token. What it finds is added up over
    these bases and projected to the channels. An embedding of the token's place is
    added. The place is the number of bases before the token in its run.

    A single line break does not end a run, because a prompt breaks its DNA in the middle
    (fold() in dna/tasks.py). Any other token that is not DNA ends it.

        token                   GATT       \n    ACA              CC
        place                   0          -     4                7
        what the filters read   G          -     GATTA            GATTACAC
                                GA               GATTAC           GATTACACC
                                GAT              GATTACA
                                GATT
    """
    WIDTH = 11          # bases that a filter reads
    ENDS = 8            # a longer token is read at its last 8 bases; few tokens have more
    READ = WIDTH + ENDS - 1         # bases that the filters of a token read together
    LONGEST = 24        # a longer token counts as its last 24 bases
    PLACES = 512        # places from 511 on have the same embedding

    def __init__(self, config):
        super().__init__()
        self.dropout = config.dropout
        self.filters = nn.Linear(4 * self.WIDTH, config.motifs)
        # no bias: a token that is not DNA gets nothing
        self.c_proj = nn.Linear(config.motifs, config.n_embd, bias=False)
        self.places = nn.Embedding(self.PLACES, config.n_embd)
        # of each token: how many bases (0 if it is not DNA), and which ones, as 0 to 3
        self.register_buffer("length", torch.zeros(config.vocab_size, dtype=torch.long))
        self.register_buffer("spelling", torch.zeros(config.vocab_size, self.LONGEST,
                                                     dtype=torch.long))
        self.register_buffer("line_break", torch.tensor(-1))

    def read_vocab(self, vocab, line_break):
        """vocab: {token: id}; line_break: the id of a line break. Until this is called,
        no token is DNA."""
        self.line_break.fill_(line_break)
        for token, i in vocab.items():
            if token and set(token) <= set("ACGT"):
                bases = ["ACGT".index(base) for base in token[-self.LONGEST:]]
                self.length[i] = len(bases)
                self.spelling[i, :len(bases)] = torch.tensor(bases)

    def forward(self, ids, T):
        """ids: (B, S) all tokens so far, -1 for padding -> (B, T, C) of the last T"""
        # n: the bases of each token. is_run: the tokens that end no run, which are DNA,
        # the first line break after it, and padding, because it can stand between a
        # prompt and its continuation. run: the bases of its run up to the end of each
        # token
        n = self.length[ids.clamp(min=0)] * (ids >= 0)                      # (B, S)
        is_break = ids == self.line_break
        breaks = since(is_break.cumsum(dim=1), n > 0)
        is_run = (n > 0) | (ids < 0) | is_break & (breaks == 1)
        end = n.cumsum(dim=1)                   # the bases of the row, up to there
        run = since(end, ~is_run)

        # the READ bases up to the end of each of the T tokens: the token that each lies
        # in, and its index there. Those before the first base of the row have negative
        # numbers, and are left out below
        last = slice(ids.size(1) - T, None)
        back = torch.arange(self.READ, 0, -1, device=ids.device)
        at = end[:, last, None] - back          # (B, T, READ), bases of the row from 0
        token = torch.searchsorted(end, at.flatten(1), right=True)
        index = at - (end - n).gather(1, token).view(at.shape)
        read = self.spelling[ids.gather(1, token).view(at.shape), index.clamp(min=0)]

        # one-hot; a base before the run is all zeros
        n, run = n[:, last, None], run[:, last, None]                       # (B, T, 1)
        one_hot = (F.one_hot(read, 4) * (back <= run)[..., None]).flatten(2)

        # a convolution over these bases as one product. The matrix (ENDS M, 4 READ) has
        # the filters at each of their ENDS shifts
        w = self.filters.weight                                             # (M, 4 WIDTH)
        shifted = torch.cat([F.pad(w, (4 * i, 4 * (self.ENDS - 1 - i)))
                             for i in range(self.ENDS)])
        fit = F.linear(one_hot.to(w.dtype), shifted, self.filters.bias.repeat(self.ENDS))

        # ReLU. torch.compile runs fit + |fit| twice as fast, because the backward pass
        # needs no stored mask. Without it, ReLU in place is faster
        if torch.compiler.is_compiling():
            fit = (fit + fit.abs()) / 2
        else:
            fit.relu_()

        # the sum over the token's bases. A filter that ends before the token does not
        # count. The factor 2 stays for models that were trained with fit + |fit|
        inside = 2 * (back[-self.ENDS:] <= n).to(fit.dtype)         # (B, T, ENDS)
        fit = fit.unflatten(2, (self.ENDS, -1))                     # (B, T, ENDS, M)
        motifs = (inside[:, :, None] @ fit)[:, :, 0]                # (B, T, M)
        motifs = F.dropout(motifs, self.dropout, self.training)
        places = self.places((run - n)[..., 0].clamp(max=self.PLACES - 1))
        return self.c_proj(motifs) + places * (n > 0)


def since(count, reset):
    """count: (B, S), which never falls; reset: bool (B, S)
    -> what was counted after the last reset (B, S)"""
    return count - torch.where(reset, count, 0).cummax(dim=1).values
