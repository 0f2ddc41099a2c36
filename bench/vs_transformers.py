"""
Time the steps of train.py beside a plain float32 loop over the `transformers` library's GPT-2: the
same shape, rows and AdamW, each in a process of its own, in turns.

    pip install transformers
    python -m bench.vs_transformers config/laptop.toml --data_dir=data/laptop
"""
import math
import statistics
import subprocess
import sys
import time

import torch

import config
import train
from config.machine import find_machine
from model import GPT, GPTConfig

ROUNDS, WARM_UP, STEPS = 3, 3, 12


def ours(cfg, vocab_size):
    """-> a function that takes one step as train.py does, compiled"""
    machine = find_machine(cfg)
    model = GPT(GPTConfig(vocab_size=vocab_size, block_size=cfg.block_size, n_layer=cfg.n_layer,
                          n_head=cfg.n_head, n_embd=cfg.n_embd))
    optimizers = train.make_optimizers(model, cfg, machine)
    runner = train.make_runner(model, cfg, machine, flops=math.inf)

    def step(idx, targets):
        train.forward_backward(runner, [(idx, targets)], machine)
        train.update(model, optimizers, cfg.learning_rate, cfg.grad_clip)
    return step


def theirs(cfg, vocab_size):
    """-> a function that takes one step as the library's users write it"""
    from transformers import GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab_size, n_positions=cfg.block_size, n_layer=cfg.n_layer, n_head=cfg.n_head,
        n_embd=cfg.n_embd, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0, eos_token_id=0))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=cfg.learning_rate)

    def step(idx, targets):
        model(idx, labels=idx).loss.backward()      # the library shifts the targets itself
        torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return step


def measure(make, cfg):
    """-> the median seconds of a step"""
    meta, _ = train.read_data(cfg.data_dir)
    windows = train.Windows(train.open_bin(cfg.data_dir, "train.bin", meta), cfg.block_size, cfg.seed)
    step, seconds = make(cfg, meta["vocab_size"]), []
    for k in range(WARM_UP + STEPS):
        rows = windows.rows(k * cfg.batch_size, cfg.batch_size)
        start = time.perf_counter()
        step(*rows)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP:])


def main(argv):
    makers = {"train.py": ours, "transformers": theirs}
    if argv and argv[0] in makers:
        print(measure(makers[argv[0]], config.from_command_line(train.TrainConfig, "train", argv[1:])))
        return
    cfg = config.from_command_line(train.TrainConfig, "train", argv)
    seconds = {name: [] for name in makers}
    for _ in range(ROUNDS):
        for name in makers:
            run = subprocess.run([sys.executable, "-m", "bench.vs_transformers", name, *argv], text=True, check=True,
                                 stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
            seconds[name].append(float(run.stdout.split()[-1]))
    median = {name: statistics.median(found) for name, found in seconds.items()}
    for name in makers:
        print(f"{name:13} {cfg.batch_size * cfg.block_size / median[name]:8,.0f} tokens a second, "
              f"{median[name] * 1000:,.1f} ms a step; "
              f"{median['transformers'] / median[name]:.2f} times transformers")


if __name__ == "__main__":
    config.run(main)
