"""
Time the steps of train.py beside a plain float32 loop over the GPT-2 of the
`transformers` library. Both have the same shape, rows and AdamW.

    pip install transformers
    python -m bench.vs_transformers config/laptop.toml --optimizer=adamw

It takes the keys of train.py. A step is one micro-batch.
"""
import importlib.util
import math
import statistics
from dataclasses import replace

import torch

import config
from bench import in_turn
from config import require
from config.machine import find_machine
from train import (TrainConfig, forward_backward, make_optimizers, new_model,
                   open_windows, read_data, update, wrap_model)

ROUNDS, WARMUP, STEPS = 3, 3, 12


def ours(cfg, tok, machine):
    """-> a function that takes one step as train.py does: compiled, in the machine's
    fast dtype"""
    model = new_model(cfg, tok, machine)
    optimizers = make_optimizers(model, cfg, machine)
    ddp_model = wrap_model(model, cfg, machine, flops=math.inf)

    def step(idx, targets):
        forward_backward(ddp_model, [(idx, targets)], machine)
        update(model, optimizers, cfg.learning_rate, cfg.grad_clip, machine)
    return step


def theirs(cfg, tok, machine):
    """-> a function that takes one step as users of the library write it"""
    from transformers import GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=len(tok), n_positions=cfg.block_size, n_layer=cfg.n_layer,
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


def measure(name, cfg):
    """-> the median seconds of a step. name: one of MAKERS"""
    meta, tok = read_data(cfg.data_dir)
    windows = open_windows(cfg, meta)
    machine, seconds = find_machine(cfg), []
    step = MAKERS[name](cfg, tok, machine)
    for k in range(WARMUP + STEPS):
        rows = windows.rows(k * cfg.batch_size, cfg.batch_size)
        start = machine.now()
        step(*rows)
        seconds.append(machine.now() - start)
    return statistics.median(seconds[WARMUP:])


def main(argv):
    require(importlib.util.find_spec("transformers"),
            "transformers is missing, to compare with: pip install transformers")
    # the library has no motif filters
    cfg = config.from_command_line(TrainConfig, "train", argv)
    cfg = replace(cfg, motifs=0, dropout=0.0)
    seconds = in_turn(measure, MAKERS, ROUNDS, cfg)
    median = {name: statistics.median(times) for name, times in seconds.items()}
    for name in MAKERS:
        rate, ms = cfg.batch_size * cfg.block_size / median[name], 1000 * median[name]
        ratio = median["transformers"] / median[name]
        print(f"{name:13} {rate:8,.0f} tokens/s, {ms:,.1f} ms per step, "
              f"{ratio:.2f} times as fast as transformers")


if __name__ == "__main__":
    config.run(main)
