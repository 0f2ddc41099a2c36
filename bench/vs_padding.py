"""
Time what instruct.py saves, on the same model and the same rows, in turns. Tuning: batches of
similar lengths with a shared prefix, beside rows padded to block_size. Scoring: all choices on one
cache, beside a row for each choice.

    python train.py config/laptop.toml --block_size=1024 --max_steps=1 --out_dir=out/wide
    python -m bench.vs_padding --init_from=out/wide --tasks='data/laptop/tasks/*.train.json'

It takes the keys of instruct.py.
"""
import statistics

import torch
from torch.nn.functional import pad

import config
from bench.step import now
from config import require
from config.machine import find_machine
from dna.tasks import read_examples
from instruct import (InstructConfig, collate, encode_rows, epoch_batches,
                      load_for_prompts, max_prompt_len)
from train import forward_backward

ROUNDS, WARMUP = 7, 1
FEW = 4         # rows per round of what is compared with: it is slow


def timed(work, machine):
    """-> seconds"""
    start = now(machine)
    work()
    return now(machine) - start


def show(what, ours, theirs):
    """Print the median rates over the rounds. ours, theirs: seconds per row in each round"""
    a, b = (1 / statistics.median(seconds[WARMUP:]) for seconds in (ours, theirs))
    print(f"{what}: {a:,.1f} rows/s, beside {b:,.2f} rows/s: {a / b:.1f} times as fast")


def tuning(model, rows, cfg, machine):
    """-> seconds per row to train on batches, and on rows padded to block_size with a loss on all
    their tokens"""
    batches = epoch_batches(rows, cfg.batch_size, cfg.balance, cfg.seed)
    ours, theirs = [], []
    for k in range(WARMUP + ROUNDS):
        batch = [rows[i] for i in batches[k % len(batches)]]
        seconds = timed(lambda: forward_backward(model, [collate(batch)], machine), machine)
        ours.append(seconds / len(batch))

        few = batch[:FEW]
        idx, targets = collate(few, prompt_loss=True)
        fill = (0, model.config.block_size - idx.size(1))
        padded = pad(idx, fill), pad(targets, fill, value=-1)
        seconds = timed(lambda: forward_backward(model, [padded], machine), machine)
        theirs.append(seconds / len(few))
    return ours, theirs


def score_alone(model, prompt, choice, machine):
    """-> the log-likelihood of a choice in nats, by one row without a cache"""
    row = torch.tensor([prompt + choice[:-1]], device=machine.device)
    log_p = model(row)[0][0, len(prompt) - 1:].float().log_softmax(dim=-1)
    return log_p.gather(1, torch.tensor(choice, device=machine.device)[:, None]).sum().item()


def scoring(model, tok, examples, rows, cfg, machine):
    """-> seconds per row to score all choices on one cache, and each as a whole row"""
    def each_alone():
        for prompt in prompts[:FEW]:
            for choice in choices:
                score_alone(model, prompt, choice, machine)

    # rows with the same instruction, of similar length, as instruct.py batches them
    order = sorted(range(len(rows)), key=lambda i: (rows[i].instruction, len(rows[i].prompt)))
    model.eval()
    ours, theirs = [], []
    for k in range(WARMUP + ROUNDS):
        start = k * len(order) // (WARMUP + ROUNDS)
        batch = [i for i in order[start:start + 4 * cfg.batch_size]
                 if rows[i].instruction == rows[order[start]].instruction]
        choices = [tok.encode(choice) + [tok.eot] for choice in examples[batch[0]]["choices"]]
        prompts = [rows[i].prompt.tolist() for i in batch]
        with machine.autocast(), torch.inference_mode():
            seconds = timed(lambda: model.log_likelihoods(prompts, choices), machine)
            ours.append(seconds / len(prompts))
            theirs.append(timed(each_alone, machine) / min(FEW, len(prompts)))
    return ours, theirs


def main(argv):
    cfg = config.from_command_line(InstructConfig, "instruct", argv)
    machine = find_machine(cfg)
    model, tok, _ = load_for_prompts(cfg.init_from, machine.device)
    T = model.config.block_size

    # a row in twenty, of all tasks
    examples = [e for e in read_examples(cfg.tasks) if e.get("choices")][::20]
    require(examples, f"{', '.join(cfg.tasks)}: no examples with choices")
    choices = sorted({choice for e in examples for choice in e["choices"]})
    rows = encode_rows(examples, tok, T, max_prompt_len(tok, choices, T))
    examples = [e for e, row in zip(examples, rows) if row]
    rows = [row for row in rows if row]
    show(f"tuning, beside rows padded to {T} tokens", *tuning(model, rows, cfg, machine))
    show("scoring, beside a row per choice", *scoring(model, tok, examples, rows, cfg, machine))


if __name__ == "__main__":
    config.run(main)
