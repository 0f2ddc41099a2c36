"""
Time the steps of instruct.py: rows/s, the shapes of batches, and the steps that stall.

    python -m bench.tuning config/laptop.toml

It takes the keys of instruct.py. What it trains is thrown away.
"""
import statistics

from tqdm import tqdm

import config
from config.machine import find_machine
from dna.tasks import read_examples
from instruct import (InstructConfig, encode_rows, load_for_prompts, make_batches,
                      max_prompt_len, plan)
from train import forward_backward, make_optimizers, update, wrap_model

WARMUP, STEPS = 10, 50


def time_steps(model, batches, cfg, machine):
    """Tune for some steps -> seconds of each, rows of each, and the set of all shapes"""
    optimizers = make_optimizers(model, cfg, machine)
    ddp_model = wrap_model(model, cfg, machine, flops=0)
    seconds, rows, shapes = [], [], set()
    model.train()
    for step in tqdm(range(WARMUP + STEPS), disable=None if machine.is_main else True):
        start = machine.now()
        micro_batches = batches(step)
        forward_backward(ddp_model, micro_batches, machine)
        update(model, optimizers, cfg.learning_rate, cfg.grad_clip, machine)
        seconds.append(machine.now() - start)
        rows.append(sum(len(idx) for idx, *_ in micro_batches))
        shapes |= {tuple(t.shape for t in batch) for batch in micro_batches}
    return seconds[WARMUP:], rows[WARMUP:], shapes


def main(argv):
    # the model, and rows as instruct.py makes them
    cfg = config.from_command_line(InstructConfig, "instruct", argv)
    machine = find_machine(cfg)
    model, tok, _ = load_for_prompts(cfg.init_from, machine.device, cfg.dropout)
    examples, T = read_examples(cfg.tasks), model.config.block_size
    choices = sorted({choice for e in examples for choice in e.get("choices", [])})
    rows = encode_rows(examples, tok, T, max_prompt_len(tok, choices, T))
    cfg = plan(rows, cfg, machine, model)
    batches = make_batches(rows, tok, cfg, machine, T)

    # a step stalls if it takes twice the median: something was compiled, or planned
    seconds, n_rows, shapes = time_steps(model, batches, cfg, machine)
    median = statistics.median(seconds)
    stalled = [s for s in seconds if s > 2 * median]
    if machine.is_main:
        print(f"{sum(n_rows) / sum(seconds):,.0f} rows/s, {1000 * median:,.1f} ms per "
              "step")
        print(f"stalled: {len(stalled)} of {len(seconds)} steps, for "
              f"{sum(stalled):.2f} s in all; {len(shapes)} shapes")
    machine.close()


if __name__ == "__main__":
    config.run(main)
