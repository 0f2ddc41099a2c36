"""
Time the steps of train.py beside a plain float32 loop over the GPT-2 of the
`transformers` library. Both have the same shape, rows and AdamW. Each runs in a process
of its own, in turn.

    pip install transformers
    python -m bench.vs_transformers config/laptop.toml --optimizer=adamw

Takes the keys of train.py. A step is one micro-batch. k-mers are left out, because the
library does not have them.
"""
import importlib.util
import math
import statistics
import sys

import torch

import config
from bench.step import now, run_worker
from config import require
from config.machine import find_machine
from model import GPT, GPTConfig
from train import (TrainConfig, Windows, forward_backward, make_optimizers, open_bin,
                   read_data, update, wrap_model)

ROUNDS, WARMUP, STEPS = 3, 3, 12


def ours(cfg, vocab_size, machine):
    """-> a function that takes one step as train.py does: compiled, in the machine's
    fast dtype"""
    model = GPT(GPTConfig(vocab_size, cfg.block_size, cfg.n_layer, cfg.n_head,
                          cfg.n_embd)).to(machine.device)
    optimizers = make_optimizers(model, cfg, machine)
    ddp_model = wrap_model(model, cfg, machine, flops=math.inf)

    def step(idx, targets):
        forward_backward(ddp_model, [(idx, targets)], machine)
        update(model, optimizers, cfg.learning_rate, cfg.grad_clip)
    return step


def theirs(cfg, vocab_size, machine):
    """-> a function that takes one step as users of the library write it"""
    from transformers import GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab_size, n_positions=cfg.block_size, n_layer=cfg.n_layer,
        n_head=cfg.n_head, n_embd=cfg.n_embd,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0,
        eos_token_id=0)).to(machine.device)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate)

    def step(idx, targets):
        idx = idx.to(machine.device)
        # the library shifts the targets itself
        model(idx, labels=idx).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


MAKERS = {"nanoDNAHLM": ours, "transformers": theirs}


def measure(make, cfg):
    """-> the median seconds of a step"""
    meta, _ = read_data(cfg.data_dir)
    ids = open_bin(cfg.data_dir, "train.bin", meta)
    windows = Windows(ids, cfg.block_size, cfg.seed)
    machine, seconds = find_machine(cfg), []
    step = make(cfg, meta["vocab_size"], machine)
    for k in range(WARMUP + STEPS):
        rows = windows.rows(k * cfg.batch_size, cfg.batch_size)
        start = now(machine)
        step(*rows)
        seconds.append(now(machine) - start)
    return statistics.median(seconds[WARMUP:])


def main(argv):
    # a worker: measure("nanoDNAHLM", keys of train.py)
    if argv and argv[0] in MAKERS:
        cfg = config.from_command_line(TrainConfig, "train", argv[1:])
        print(measure(MAKERS[argv[0]], cfg))
        return

    # the workers, interleaved
    cfg = config.from_command_line(TrainConfig, "train", argv)
    require(importlib.util.find_spec("transformers"),
            "transformers is missing, to compare with: pip install transformers")
    seconds = {name: [] for name in MAKERS}
    for _ in range(ROUNDS):
        for name in MAKERS:
            printed = run_worker([sys.executable, "-m", "bench.vs_transformers", name,
                                  *argv])
            seconds[name].append(float(printed.split()[-1]))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    for name in MAKERS:
        rate, ms = cfg.batch_size * cfg.block_size / median[name], 1000 * median[name]
        ratio = median["transformers"] / median[name]
        print(f"{name:13} {rate:8,.0f} tokens/s, {ms:,.1f} ms per step, "
              f"{ratio:.2f} times as fast as transformers")


if __name__ == "__main__":
    config.run(main)
