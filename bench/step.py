"""
Time a training step: tokens per second, the share of the hardware's rate, memory, where time goes.

    python -m bench.step config/laptop.toml

Takes the keys of train.py.
"""
import math
import sys
import time

import numpy as np
import torch
from tqdm import tqdm

import config
from config.machine import find_machine, listed_peak, matmul_flops
from model import GPT, GPTConfig
from train import (TrainConfig, Windows, forward_backward, learning_rate, make_optimizers,
                   make_runner, open_bin, read_data, update)

def bench(model, cfg, machine, batches, steps=20):
    """Train for some steps and throw the result away; print how fast they were, the share of the
    hardware's rate that they reached, and what their time went to. Each is a median over steps."""
    optimizers = make_optimizers(model, cfg, machine)
    runner = make_runner(model, cfg, machine, math.inf)
    times, rates = [], []

    def now():
        if machine.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    model.train()
    for step in tqdm(range(steps + 3), unit=" steps", disable=None if machine.is_main else True):
        clock = [now()]
        micro = batches(step)
        clock.append(now())
        forward_backward(runner, micro, machine)
        clock.append(now())
        update(model, optimizers, learning_rate(step, cfg), cfg.grad_clip)
        clock.append(now())
        if step >= 3:       # the first ones compile, and fill caches
            times.append(np.diff(clock))
            if not listed_peak(machine.device, machine.dtype):
                rates.append(matmul_flops(machine.device, machine.dtype, 2048))
    seconds = np.median(np.sum(times, axis=1))
    tokens, flops = machine.sum(sum(idx.numel() for idx, *_ in micro),
                                sum(model.training_flops(*batch) for batch in micro))
    peak = machine.world * np.median(rates) if rates else machine.peak
    if machine.device.type == "cuda":
        memory = torch.cuda.max_memory_allocated()
    else:
        import resource     # Unix has it
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024)
    if machine.is_main:
        print(f"{tokens / seconds:,.0f} tokens a second, {seconds * 1000:,.1f} ms a step of "
              f"{tokens:,.0f} tokens")
        print(f"MFU {flops / seconds / peak:.1%} of {peak / 1e12:.4g} TFLOP/s"
              f"{' as measured between the steps' if rates else ''}")
        print(f"peak memory {memory / 2 ** 30:.2f} GiB")
        for part, share in zip(("loading", "forward-backward", "optimizer"),
                               np.median(times, axis=0) / seconds):
            print(f"{part:17} {share:6.1%}")


def main(argv):
    cfg = config.from_command_line(TrainConfig, "train", argv)
    meta, _ = read_data(cfg.data_dir)
    machine = find_machine(cfg)
    torch.manual_seed(cfg.seed)
    model = GPT(GPTConfig(vocab_size=meta["vocab_size"], block_size=cfg.block_size,
                          n_layer=cfg.n_layer, n_head=cfg.n_head, n_embd=cfg.n_embd,
                          dropout=cfg.dropout)).to(machine.device)
    windows = Windows(open_bin(cfg.data_dir, "train.bin", meta), cfg.block_size, cfg.seed)
    rows = cfg.batch_size * cfg.gradient_accumulation_steps

    def batches(step):
        return [windows.rows(step * rows + m * cfg.batch_size, cfg.batch_size)
                for m in range(machine.rank, cfg.gradient_accumulation_steps, machine.world)]

    bench(model, cfg, machine, batches)


if __name__ == "__main__":
    config.run(main)
