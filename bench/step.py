"""
Time a training step: tokens/s, the share of the hardware's peak, memory, and where the
time goes.

    python -m bench.step config/laptop.toml
    python -m bench.step config/gpt2.toml --vocab_size=50257

It takes the keys of train.py. It trains random weights, and throws them away.
"""
import math
import statistics
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

import config
from bench import peak_rss
from config.machine import find_machine
from train import (TrainConfig, forward_backward, learning_rate, make_optimizers,
                   new_model, open_windows, read_data, update, wrap_model)

WARMUP, STEPS = 3, 20


@dataclass
class StepConfig(TrainConfig):
    vocab_size: int = 0             # of the model; 0: that of the data


# --------------------------------------------------------------------------------------
# Its time

def time_steps(model, cfg, machine, windows):
    """Train for some steps.

    -> seconds of each (steps, 3): loading, forward and backward, update; and the
    machine's FLOP/s, by the data sheet or else the median of what was measured between
    the steps
    """
    optimizers = make_optimizers(model, cfg, machine)
    ddp_model = wrap_model(model, cfg, machine, flops=math.inf)
    times, rates = [], []
    model.train()
    for step in tqdm(range(WARMUP + STEPS), disable=None if machine.is_main else True):
        clock = [machine.now()]
        micro_batches = windows.micro_batches(step, cfg, machine)
        clock.append(machine.now())
        forward_backward(ddp_model, micro_batches, machine)
        clock.append(machine.now())
        update(model, optimizers, learning_rate(step, cfg), cfg.grad_clip, machine)
        clock.append(machine.now())

        # the first steps compile and fill caches
        if step >= WARMUP:
            times.append(np.diff(clock))
            if not machine.peak:
                rates.append(machine.matmul_rate())
    return np.array(times), machine.peak or statistics.median(rates)


def peak_memory(machine):
    """-> the most bytes that this process had at once, on a GPU those of its tensors"""
    if machine.device.type == "cuda":
        return torch.cuda.max_memory_allocated()
    return peak_rss()


def bench(cfg):
    """Print how fast a step is, medians over all steps -> the trained model"""
    meta, tok = read_data(cfg.data_dir)
    windows = open_windows(cfg, meta)
    machine = find_machine(cfg)
    model = new_model(cfg, tok, machine, cfg.vocab_size)
    times, peak = time_steps(model, cfg, machine, windows)
    if machine.is_main:
        seconds = np.median(times.sum(axis=1))
        tokens = cfg.batch_size * cfg.gradient_accumulation_steps * cfg.block_size
        mfu = tokens * model.flops_per_token(cfg.block_size) / seconds / peak
        print(f"{tokens / seconds:,.0f} tokens/s, {1000 * seconds:,.1f} ms per step of "
              f"{tokens:,} tokens")
        print(f"MFU {mfu:.1%} of {peak / 1e12:.4g} TFLOP/s"
              f"{'' if machine.peak else ', as measured between the steps'}")
        print(f"peak memory {peak_memory(machine) / 2 ** 30:.2f} GiB")
        for part, share in zip(("loading", "forward, backward", "optimizer"),
                               np.median(times, axis=0) / seconds):
            print(f"{part:18}{share:6.1%}")
    machine.close()
    return model


def main(argv):
    bench(config.from_command_line(StepConfig, "train", argv))


if __name__ == "__main__":
    config.run(main)
