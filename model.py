"""
GPT-2: the network, its loss, generation, and its weights in and out.

    model = GPT(GPTConfig(vocab_size=8192, block_size=256, n_layer=6, n_head=6, n_embd=384))
    logits, loss = model(idx, targets)
    idx = model.generate(idx, max_new_tokens=20, stop=0)

The network is the one of Radford et al. (2019), "Language Models are Unsupervised Multitask
Learners": learned positions, LayerNorm before each part, GELU by tanh, biases everywhere, the head
tied to the token embedding. Parameters have the names of the published GPT-2.

In shapes: B batch, T time (tokens), C channels (n_embd), H heads, D head size (C / H), V vocabulary.
"""
import contextlib
import json
import math
import os
import pickle
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.nn as nn
from torch.nn import functional as F


@dataclass
class GPTConfig:
    vocab_size: int = 50257     # ids of the tokenizer
    block_size: int = 1024      # the longest context, in tokens
    n_layer: int = 12           # blocks
    n_head: int = 12            # attention heads in each block
    n_embd: int = 768           # channels
    dropout: float = 0.0        # share of activations zeroed in training


class Cache:
    """Keys and values of the tokens read so far, so that generation computes each token once.

    Rows may be of different lengths: a token sees what stands at its own position and before, so
    what lies beyond (padding, or tokens taken back) is never looked at.
    """

    def __init__(self, max_length):
        self.max_length = max_length
        self.keys, self.values = [], []     # for each layer (B, H, max_length, D)

    def update(self, layer, k, v, position):
        """Store k, v (B, H, T, D) of the tokens at `position` (B, T).
        -> all keys, all values, and which of them each token sees (B, 1, T, max_length)"""
        if layer == len(self.keys):
            B, H, _, D = k.shape
            self.keys.append(k.new_zeros(B, H, self.max_length, D))
            self.values.append(v.new_zeros(B, H, self.max_length, D))
        keys, values = self.keys[layer], self.values[layer]
        row = torch.arange(len(position), device=k.device)[:, None]
        keys[row, :, position] = k.transpose(1, 2)
        values[row, :, position] = v.transpose(1, 2)
        seen = torch.arange(self.max_length, device=k.device) <= position[..., None]
        return keys, values, seen[:, None]

    def repeat(self, B):
        """Make B rows of the only one."""
        self.keys = [k.repeat(B, 1, 1, 1) for k in self.keys]
        self.values = [v.repeat(B, 1, 1, 1) for v in self.values]


class Prefix:
    """Keys and values of the tokens that all rows of a training batch begin with. They are computed
    once, as a row of their own, and all rows see them; gradients flow back through them."""

    def __init__(self):
        self.keys, self.values = [], []     # for each layer (1, H, P, D), with P tokens in common

    def update(self, layer, k, v, position):
        """The first time in each layer k, v are the prefix's own, (1, H, P, D); then the rows',
        (B, H, T, D), at `position` (B, T). -> as Cache.update"""
        if layer == len(self.keys):
            self.keys.append(k)
            self.values.append(v)
        else:
            k = torch.cat([self.keys[layer].expand(len(k), -1, -1, -1), k], dim=2)
            v = torch.cat([self.values[layer].expand(len(v), -1, -1, -1), v], dim=2)
        seen = torch.arange(k.size(2), device=k.device) <= position[..., None]
        return k, v, seen[:, None]


def attention(q, k, v, seen, dropout):
    """F.scaled_dot_product_attention written out, in products of matrices.

    q: (B, H, T, D); k, v: (B, H, keys, D)
    seen: (..., T, keys) which keys each token sees; None: those up to its own
    -> (B, H, T, D)
    """
    if seen is None:
        T = q.size(2)
        seen = torch.ones(T, T, dtype=torch.bool, device=q.device).tril()
        if torch.compiler.is_compiling():
            # In four parts: most of what a token does not see is then not computed at all, which
            # makes a step 1 or 2% shorter with a context of 256, 10% with 1,024. Not compiled, the
            # copies that this takes cost more than it saves.
            n = math.ceil(T / 4)
            return torch.cat([attention(q[:, :, i:i + n], k[:, :, :i + n], v[:, :, :i + n],
                                        seen[i:i + n, :i + n], dropout) for i in range(0, T, n)], dim=2)
    unseen = torch.zeros_like(seen, dtype=q.dtype).masked_fill(~seen, -math.inf)
    scores = q / math.sqrt(q.size(-1)) @ k.transpose(-2, -1) + unseen       # (B, H, T, keys)
    return F.dropout(F.softmax(scores, dim=-1), dropout) @ v


class CausalSelfAttention(nn.Module):

    def __init__(self, config, layer):
        super().__init__()
        self.layer = layer
        self.n_head = config.n_head
        self.dropout = config.dropout
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)   # query, key, value in one
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, position=None, cache=None):
        B, T, C = x.shape
        # (B, T, 3C) -> three of (B, H, T, D)
        q, k, v = (part.view(B, T, self.n_head, C // self.n_head).transpose(1, 2)
                   for part in self.c_attn(x).split(C, dim=2))
        dropout = self.dropout if self.training else 0.0
        seen = None         # which keys each token sees: all before it, if nothing else is said
        if cache is not None:
            k, v, seen = cache.update(self.layer, k, v, position)
        if q.device.type == "cpu" and q.dtype == torch.bfloat16:
            # The fused kernel of a CPU leaves its bfloat16 units idle, and takes about twice as
            # long (three times where the context is short).
            y = attention(q, k, v, seen, dropout)
        else:
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=seen is None,
                                               dropout_p=dropout)
        y = y.transpose(1, 2).reshape(B, T, C)      # the heads side by side again
        return F.dropout(self.c_proj(y), self.dropout, self.training)


def gelu(x):
    """GELU by its tanh formula (Hendrycks & Gimpel, 2016). Since 1 + tanh(u) = 2 sigmoid(2u), it can
    be said by the sigmoid, which the compiler makes twice as fast on a CPU: 4% of a training step."""
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x ** 3))
    return F.gelu(x, approximate="tanh")


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

    def forward(self, x, position=None, cache=None):
        x = x + self.attn(self.ln_1(x), position, cache)
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
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)
        self.lm_head.weight = self.transformer.wte.weight           # tied
        self._init_weights()

    def _init_weights(self):
        """As GPT-2: normal of 0.02, and less for what is added to the residual stream, so that its
        variance does not grow with the number of blocks (two additions each)."""
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layer)
        for name, p in self.named_parameters():
            if name.endswith("c_proj.weight"):
                nn.init.normal_(p, std=residual_std)
            elif p.dim() == 2:
                nn.init.normal_(p, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    @property
    def device(self):
        return self.lm_head.weight.device

    def num_params(self):
        """Parameters, the tied head counted once and the positions not at all: they are looked up
        and added, and cost no matrix product."""
        return sum(p.numel() for p in self.parameters()) - self.transformer.wpe.weight.numel()

    def flops_per_token(self, length):
        """Floating-point operations to train on one token of a text of `length` tokens: 6 for each
        parameter, and attention's 12 L C T (Chowdhery et al., 2022, PaLM, appendix B)."""
        c = self.config
        return 6 * self.num_params() + 12 * c.n_layer * c.n_embd * length

    def training_flops(self, idx, targets, weights=None, prefix=None):
        """Floating-point operations to train on a batch as forward() would be given it, which leaves
        out the head where the weights are 0, and computes a prefix once."""
        shared = 0 if prefix is None else prefix.numel()
        tokens, computed = shared + idx.numel(), idx.numel()
        if weights is not None:
            computed = (weights > 0).sum().item()
        return tokens * self.flops_per_token(shared + idx.size(1)) \
            - 6 * self.lm_head.weight.numel() * (tokens - computed)

    def hidden(self, idx, position=None, cache=None):
        """idx (B, T) -> the state of each token before the head (B, T, C)"""
        T = idx.size(1)
        if T > self.config.block_size:
            raise ValueError(f"{T} tokens do not fit into block_size={self.config.block_size}")
        if position is None:
            position = torch.arange(T, device=idx.device).expand_as(idx)
        x = self.transformer.wte(idx) + self.transformer.wpe(position)
        x = F.dropout(x, self.config.dropout, self.training)
        for block in self.transformer.h:
            x = block(x, position, cache)
        return self.transformer.ln_f(x)

    def forward(self, idx, targets=None, weights=None, prefix=None, position=None, cache=None):
        """
        idx: (B, T) token ids
        targets: (B, T) the id that should follow each token, -1 where there is nothing to learn
        weights: (B, T) how much each target counts; all the same if not given. Where it is 0 the
            head is not computed, which in tuning, with few answers among many prompts, saves much
        prefix: (P,) tokens that stand before all rows and have no loss; they are computed once
        position: (B, T) where each token stands in its row; from 0 on if not given
        cache: what came before, a Cache; with it, `position` must be given

        -> logits (B, T, V), None with weights; and the loss, the mean over all targets in nats,
        None without targets
        """
        if prefix is not None:
            P, T = len(prefix), idx.size(1)
            place, cache = torch.arange(P + T, device=idx.device), Prefix()
            self.hidden(prefix[None], place[None, :P], cache)
            position = place[P:].expand_as(idx)
        x = self.hidden(idx, position, cache)
        if targets is None:
            return self.lm_head(x), None
        if weights is None:
            logits = self.padded_head(x) if x.is_cuda else self.lm_head(x)
            total = F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten(),
                                    ignore_index=-1, reduction="sum")
            # A batch without any target has the loss 0, not 0 / 0.
            return logits, total / (targets != -1).sum().clamp(min=1)
        counts = (weights > 0) & (targets != -1)
        weights = weights[counts]
        each = F.cross_entropy(self.lm_head(x[counts]).float(), targets[counts], reduction="none")
        return None, (each * weights).sum() / weights.sum().clamp(min=1e-9)

    def padded_head(self, x):
        """x (B, T, C) -> logits (B, T, V) by a product whose size is a multiple of 128, which is what
        GPUs are fast at: the vocabulary is filled up, and the surplus cut off again."""
        weight = F.pad(self.lm_head.weight, (0, 0, 0, -self.config.vocab_size % 128))
        return F.linear(x, weight)[..., :self.config.vocab_size]

    # -- generation

    def read(self, rows, room):
        """Read rows of ids, a list of B lists of any lengths, into a new cache with `room` for that
        many tokens a row. What all rows begin with is computed once.
        -> logits of what follows each row (B, V), the cache, lengths (B,)"""
        P = common_prefix(rows) if len(rows) > 1 else 0
        lengths = torch.tensor([len(row) for row in rows], device=self.device)
        cache = Cache(room)
        if P:
            place = torch.arange(P, device=self.device)[None]
            self.hidden(torch.tensor([rows[0][:P]], device=self.device), place, cache)
            cache.repeat(len(rows))
        idx = torch.zeros(len(rows), max(map(len, rows)) - P, dtype=torch.long)
        for b, row in enumerate(rows):
            idx[b, :len(row) - P] = torch.tensor(row[P:])
        position = torch.arange(P, P + idx.size(1), device=self.device).expand_as(idx)
        x = self.hidden(idx.to(self.device), position, cache)
        last = x[torch.arange(len(rows), device=self.device), lengths - P - 1]      # (B, C)
        return self.lm_head(last), cache, lengths

    @torch.inference_mode()
    def log_likelihoods(self, prompts, choices):
        """How likely each of `choices` (lists of ids, <|endoftext|> at the end) is as the response to
        each of `prompts` (lists of ids), of any lengths. The prompts are read once; each choice is
        then laid over the one before in the cache.

        -> log-likelihoods in nats (B, number of choices); and whether it is what the model would
        write, taking the likeliest token each time: bool of the same shape"""
        room = max(map(len, prompts)) + max(map(len, choices))
        first, cache, lengths = self.read(prompts, room)
        nats, greedy = [], []
        for choice in choices:
            ids = torch.tensor(choice, device=self.device).expand(len(prompts), -1)     # (B, T)
            logits = first[:, None]
            if len(choice) > 1:
                position = lengths[:, None] + torch.arange(len(choice) - 1, device=self.device)
                rest, _ = self(ids[:, :-1], position=position, cache=cache)
                logits = torch.cat([logits, rest], dim=1)                               # (B, T, V)
            each = F.log_softmax(logits.float(), dim=-1).gather(2, ids[..., None])
            nats.append(each.sum(dim=(1, 2)))
            greedy.append((logits.argmax(dim=-1) == ids).all(dim=1))
        return torch.stack(nats, dim=1), torch.stack(greedy, dim=1)

    @torch.inference_mode()
    def generate(self, prompts, max_new_tokens, temperature=1.0, top_k=None, stop=None,
                 use_cache=True, generator=None):
        """Continue each of `prompts`, a list of lists of ids (at least one), of any lengths.

        temperature: 0 takes the likeliest token each time; otherwise logits are divided by it
        top_k: draw among the k likeliest tokens only
        stop: the id behind which a row ends, usually <|endoftext|>
        use_cache: without it everything is computed anew for each token, to the same result
        generator: a torch.Generator on the model's device, for the draws

        -> a list of new ids for each prompt, `stop` included where it was reached. When a context
        is full its older half is forgotten.
        """
        was_training = self.training
        self.eval()
        block_size = self.config.block_size
        rows = [list(p) for p in prompts]
        new = [[] for _ in prompts]
        ended = [False] * len(prompts)
        cache = None
        for left in range(max_new_tokens, 0, -1):
            if cache is None:
                rows = [r if len(r) <= block_size else r[-(block_size // 2):] for r in rows]
                room = min(block_size, max(map(len, rows)) + left)
                logits, cache, lengths = self.read(rows, room)
            else:
                logits = self(chosen, position=lengths[:, None], cache=cache)[0][:, -1]
                lengths = lengths + 1
            chosen = choose(logits.float(), temperature, top_k, generator)      # (B, 1)
            for b, token in enumerate(chosen[:, 0].tolist()):
                rows[b].append(token)
                if not ended[b]:
                    new[b].append(token)
                    ended[b] = token == stop
            if all(ended):
                break
            if not use_cache or int(lengths.max()) == block_size:
                cache = None
        self.train(was_training)
        return new

    # -- weights in and out

    @classmethod
    def from_gpt2(cls, path):
        """Read a GPT-2 `model.safetensors` in the `transformers` library's layout, with its
        `config.json` beside it. path: the file, or its folder"""
        folder = path if os.path.isdir(path) else os.path.dirname(path)
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as f:
            c = json.load(f)
        model = cls(GPTConfig(vocab_size=c["vocab_size"], block_size=c["n_positions"],
                              n_layer=c["n_layer"], n_head=c["n_head"], n_embd=c["n_embd"]))
        path = os.path.join(folder, "model.safetensors") if os.path.isdir(path) else path
        tensors = {name.removeprefix("transformer."): tensor
                   for name, tensor in read_safetensors(path).items()}
        with torch.no_grad():
            for name, p in model.transformer.named_parameters():
                if name not in tensors:
                    raise ValueError(f"{path}: no tensor {name}: not a GPT-2 of {c['n_layer']} "
                                     "layers, as its config.json says")
                tensor = tensors[name].T if is_conv1d(name) else tensors[name]
                if tensor.shape != p.shape:
                    raise ValueError(f"{path}: {name} is {tuple(tensor.shape)}, not "
                                     f"{tuple(p.shape)}, as its config.json says")
                p.copy_(tensor)
        return model

    def save_gpt2(self, folder):
        """Write `model.safetensors` and `config.json`, for `transformers` to load. With the
        tokenizer.json beside them the folder is complete."""
        os.makedirs(folder, exist_ok=True)
        tensors = {f"transformer.{name}": p.detach().T if is_conv1d(name) else p.detach()
                   for name, p in self.transformer.named_parameters()}
        write_safetensors(os.path.join(folder, "model.safetensors"), tensors)
        c = self.config
        config = dict(model_type="gpt2", architectures=["GPT2LMHeadModel"], vocab_size=c.vocab_size,
                      n_positions=c.block_size, n_ctx=c.block_size, n_embd=c.n_embd,
                      n_layer=c.n_layer, n_head=c.n_head, activation_function="gelu_new",
                      layer_norm_epsilon=1e-5, resid_pdrop=c.dropout, embd_pdrop=c.dropout,
                      attn_pdrop=c.dropout, bos_token_id=0, eos_token_id=0,
                      tie_word_embeddings=True)
        with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as f:
            json.dump(config, f, indent=2)


def common_prefix(rows):
    """-> how many ids the rows, lists of ids, begin with in common; the last of each not counted"""
    first, last = min(rows), max(rows)      # in the order of a dictionary the most unlike ones
    shortest = min(map(len, rows)) - 1
    return next((i for i in range(shortest) if first[i] != last[i]), max(0, shortest))


def choose(logits, temperature, top_k, generator=None):
    """Draw one token for each row of logits (B, V) -> (B, 1)"""
    if temperature == 0:
        return logits.argmax(-1, keepdim=True)
    if top_k is not None and top_k < logits.size(-1):
        kth = logits.topk(top_k).values[:, [-1]]
        logits = logits.masked_fill(logits < kth, float("-inf"))
    return torch.multinomial(F.softmax(logits / temperature, dim=-1), 1, generator=generator)


def is_conv1d(name):
    """The published GPT-2 keeps these four matrices as (in, out); nn.Linear has (out, in)."""
    return name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight"))


# A .safetensors file is the length of a JSON header (8 bytes, little-endian), the header, which
# says of each tensor its dtype, shape and place, and the tensors' raw bytes.

SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_safetensors(path):
    """-> {name: float32 tensor} of the floating-point tensors in the file"""
    try:
        raw = np.memmap(path, mode="r")
        size = int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8:8 + size].tobytes())
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            if entry["dtype"] in SAFETENSORS_DTYPES:
                start, end = entry["data_offsets"]
                data = torch.from_numpy(np.array(raw[8 + size + start:8 + size + end]))
                data = data.view(SAFETENSORS_DTYPES[entry["dtype"]])
                tensors[name] = data.view(entry["shape"]).float()
        return tensors
    except (ValueError, KeyError, TypeError, RuntimeError) as e:
        raise ValueError(f"{path}: not a whole .safetensors file ({e})") from None


def write_safetensors(path, tensors):
    """tensors: {name: tensor}, written as float32 under `path`, at once or not at all"""
    header, place = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape),
                        "data_offsets": [place, place + 4 * tensor.numel()]}
        place += 4 * tensor.numel()
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)         # the tensors begin at a multiple of eight
    with open(f"{path}.tmp", "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            f.write(tensor.float().contiguous().cpu().numpy().tobytes())
    os.replace(f"{path}.tmp", path)


# ----------------------------------------------------------------------------------------------
# Checkpoints

def save_checkpoint(path, model, **more):
    """Write the model, its config and `more` (tensors, numbers, strings, dicts and lists of them)
    under `path`, at once or not at all: where the run is killed meanwhile, or the disk is full, the
    older file stays as it was. OSError where it cannot be written"""
    state = {"model": model.state_dict(), "model_config": asdict(model.config), **more}
    try:
        with open(f"{path}.tmp", "wb") as f:
            torch.save(state, f)
            f.flush()
            os.fsync(f.fileno())        # on the disk itself, before the older file gives way
        os.replace(f"{path}.tmp", path)
    except (OSError, RuntimeError) as e:
        with contextlib.suppress(OSError):
            os.remove(f"{path}.tmp")
        # Of torch's words and the system's, the system's are the clearer.
        reason = next((r for r in (e, e.__context__) if isinstance(r, OSError)), e)
        raise OSError(f"{path}: cannot be written ({reason}); what stood there before is whole: make "
                      "room, and go on with --resume") from None


def load_checkpoint(path, device="cpu", dropout=0.0):
    """-> (model, the whole checkpoint as a dict)"""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such checkpoint: train a model first, or give "
                                "another folder")
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        model = GPT(GPTConfig(**state["model_config"] | {"dropout": dropout}))
        model.load_state_dict(state["model"])
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, ValueError,
            pickle.UnpicklingError) as e:
        raise ValueError(f"{path}: not a whole checkpoint of this model ({type(e).__name__}): was "
                         "it cut short in copying?") from None
    return model.to(device), state
