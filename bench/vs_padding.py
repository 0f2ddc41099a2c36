"""
Batches by length and a shared beginning, beside what the paper did; choices on a shared cache, beside
one row a choice. Both on the same model and rows, in turns:

    python train.py config/laptop.toml --block_size=1024 --max_steps=1 --out_dir=out/wide
    python -m bench.vs_padding --init_from=out/wide --tasks='data/laptop/tasks/*.train.json'

Takes the keys of instruct.py.
"""
import os
import statistics
import time

import torch

import config
from bpe import Tokenizer
from instruct import Batches, InstructConfig, collate, encode_records, read_tasks
from model import load_checkpoint
from config.machine import find_machine
from train import forward_backward

ROUNDS = 7


def timed(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def pad_to(batch, T):
    """The batch of collate(), filled up to T tokens a row"""
    idx, targets, weights = batch
    fill = (0, T - idx.size(1))
    return (torch.nn.functional.pad(idx, fill), torch.nn.functional.pad(targets, fill, value=-1),
            torch.nn.functional.pad(weights, fill))


def show(what, ours, theirs, rows):
    """Medians over the rounds; rows: how many each of ours and theirs were for"""
    a, b = (statistics.median(n / t for t in times) for times, n in zip((ours, theirs), rows))
    print(f"{what}: {a:,.1f} rows a second, {b:,.2f} beside it: {a / b:.1f} times")


def main(argv):
    cfg = config.from_command_line(InstructConfig, "instruct", argv)
    machine = find_machine(cfg)
    model, _ = load_checkpoint(os.path.join(cfg.init_from, "best.pt"), machine.device)
    tok = Tokenizer.load(os.path.join(cfg.init_from, "tokenizer.json"))
    T = model.config.block_size
    records = read_tasks(cfg.tasks)[::20]
    rows = encode_records(records, tok, T)
    batches = Batches([r for r in rows if r is not None], cfg.batch_size, cfg.seed)

    few, ours, theirs = 4, [], []       # rows that are padded: they are slow
    for k in range(ROUNDS + 1):
        batch = batches[k]
        a = timed(lambda: forward_backward(model, [collate(batch, 0.0)], machine))
        padded = pad_to(collate(batch[:few], 1.0), T)
        b = timed(lambda: forward_backward(model, [padded], machine))
        if k:
            ours.append(a)
            theirs.append(b)
    show(f"tuning, beside rows padded to {T} with a loss on all", ours, theirs, (cfg.batch_size, few))

    model.eval()
    asked = [(r, row) for r, row in zip(records, rows) if row is not None and r.get("choices")]
    asked.sort(key=lambda a: (a[0]["instruction"], len(a[1].prompt)))
    ours, theirs, step = [], [], max(1, len(asked) // (ROUNDS + 1))
    for k in range(ROUNDS + 1):
        start = k * step
        # Some rows that ask the same, as instruct.py puts them together
        part = [(r, row) for r, row in asked[start:start + 4 * cfg.batch_size]
                if r["instruction"] == asked[start][0]["instruction"]]
        ids = [tok.encode(c) + [tok.eot] for c in part[0][0]["choices"]]
        prompts = [row.prompt.tolist() for _, row in part]

        def each_alone():
            for prompt in prompts[:few]:
                for choice in ids:
                    logits = model(torch.tensor([prompt + choice[:-1]], device=machine.device))[0]
                    chances = logits[0, len(prompt) - 1:].float().log_softmax(dim=-1)
                    sum(chances[t, i].item() for t, i in enumerate(choice))

        with machine.autocast(), torch.inference_mode():
            a = timed(lambda: model.log_likelihoods(prompts, ids)[0].tolist())
            b = timed(each_alone)
        if k:
            ours.append(a / len(prompts))
            theirs.append(b / min(few, len(prompts)))
    show("scoring, beside each choice as a row of its own", ours, theirs, (1, 1))


if __name__ == "__main__":
    config.run(main)
