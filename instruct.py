"""
Instruction tuning: one model, many tasks, and a score for each.

    python instruct.py                                        # the toy world, after train.py
    python instruct.py config/laptop.toml --leave_out='mouse_1,EMP_*' --out_dir=out/left-out
    python instruct.py --init_from=out/laptop-instruct --epochs=0 --eval_tasks='my/*.json'

The last one only scores, and writes scores.json (or scores-2.json, ...) in init_from. A row is a
prompt, the response and <|endoftext|>; the loss is on the latter two, so that the model learns to
answer and then to stop. out_dir gets what train.py writes, and scores.json.

Shapes: B batch, T time (tokens), P tokens of the shared prefix.
"""
import fnmatch
import functools
import hashlib
import itertools
import json
import math
import os
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

import config
from config import require
from config.machine import find_machine
from dna.metrics import add_baselines, judge, table, with_means
from dna.tasks import (alpaca_parts, by_task, find_files, fold, is_dna, other_strand,
                       read_examples, without_leaks)
from model import common_prefix, load_checkpoint
from train import RunConfig, fit, load_model, open_out_dir, resume_from


@dataclass
class InstructConfig(RunConfig):
    out_dir: str = "out/toy-instruct"   # folder to write to
    init_from: str = "out/toy"      # folder of the model to start from
    tasks: tuple = ("data/toy/tasks/*.train.json",)     # Alpaca files to tune on
    eval_tasks: tuple = ("data/toy/tasks/*.test.json",)     # Alpaca files or folders of CSV to score
    leave_out: tuple = ()           # tasks, by name or pattern, not to tune on
    balance: float = 0.0            # 0: a task counts by its rows, 1: all tasks alike, 0.5: between
    epochs: float = 2.0             # passes over the rows; 0: only score init_from
    max_steps: int = 0              # steps of the optimizer, in place of epochs; 0: as epochs says
    gradient_accumulation_steps: int = 4    # micro-batches per step, over all processes
    optimizer: str = "adamw"        # muon (the blocks' matrices; AdamW for the rest) or adamw
    learning_rate: float = 2e-3     # the highest, reached after the warmup
    eval_interval: int = 250        # steps between evaluations, each with a checkpoint
    prompt_loss: bool = False       # a loss on the prompt too, as in the paper
    val_fraction: float = 0.02      # share of the rows held out of tuning, to choose best.pt
    both_strands: bool = False      # tune on both strands, and score by the mean of both, where the
                                    # answer is the same
    mixed: bool = False             # mix instructions in a batch, for a GPU: few shapes, no prefix
    scores: str = ""                # file for the scores, if not scores.json in out_dir (or, where
                                    # epochs=0, in init_from)
    compile: str = "no"             # auto, yes, no: torch.compile; row lengths vary


# ----------------------------------------------------------------------------------------------
# From an example to ids

def encode_prompts(tok, asked, max_len):
    """list of (instruction, input) -> (an array of ids per prompt, how many inputs were cut)

    A prompt of more than max_len ids loses the end of its input; it is None where not even the
    instruction fits. The texts before the input, the input, and the text after it are encoded apart,
    so that the cut is a slice."""
    # instructions repeat: each is encoded once
    parts = {(instruction, bool(input)): alpaca_parts(instruction, bool(input))
             for instruction, input in asked}
    texts = list(dict.fromkeys(text for pair in parts.values() for text in pair))
    ids_of = dict(zip(texts, tok.encode_batch(texts)))

    prompts, n_cut = [], 0
    inputs = tok.encode_batch([fold(input) for _, input in asked])
    for (instruction, input), ids in zip(asked, inputs):
        before, after = (ids_of[text] for text in parts[instruction, bool(input)])
        left = max_len - len(before) - len(after)
        n_cut += 0 <= left < len(ids)
        prompts.append(np.concatenate([before, ids[:left], after]) if left >= 0 else None)
    return prompts, n_cut


def max_prompt_len(tok, choices, block_size):
    """-> the most tokens that a prompt may have: the context less the longest choice and its stop
    token, or less an eighth of the context where there are no choices"""
    longest = max((len(ids) + 1 for ids in tok.encode_batch(choices)), default=block_size // 8)
    require(longest <= block_size // 2,
            f"a choice is {longest} tokens long, of block_size={block_size}: shorten it")
    return block_size - longest


class Row(NamedTuple):
    prompt: np.ndarray      # ids
    response: np.ndarray    # ids, <|endoftext|> at the end
    task: str
    instruction: str        # rows that share it share a prefix


def encode_rows(records, tok, block_size, max_len):
    """-> a Row per record, None for one that does not fit. An input is cut so that its prompt has at
    most max_len tokens: one limit for all rows, so that the cut tells nothing about the answer."""
    asked = [(r["instruction"], r["input"]) for r in records]
    prompts, n_cut = encode_prompts(tok, asked, max_len)
    responses = tok.encode_batch([r["output"] for r in records])
    rows = [None] * len(records)
    for i, (r, prompt, response) in enumerate(zip(records, prompts, responses)):
        if prompt is not None and len(prompt) + len(response) < block_size:
            response = np.append(response, [tok.eot])
            rows[i] = Row(prompt, response, r["task"], r["instruction"])
    if n_cut:
        print(f"{n_cut:,} of {len(rows):,} inputs were cut to fit into {max_len} tokens")
    if n_left := sum(row is None for row in rows):
        print(f"{n_left:,} of {len(rows):,} records do not fit into {block_size} tokens: left out")
    return rows


# ----------------------------------------------------------------------------------------------
# Batches

def epoch_batches(rows, batch_size, balance, seed, mixed=False):
    """One epoch -> lists of row numbers, a function of the seed alone. Rows with the same
    instruction (unless `mixed`) and of similar length go together: little padding, and a long
    shared prefix. balance: as in the config; a task drawn more often than it has rows repeats
    them."""
    rng = np.random.default_rng(seed)
    members = defaultdict(list)
    for i, row in enumerate(rows):
        members[row.task].append(i)

    # how many rows of each task, together as many as there are
    share = np.array([len(m) ** (1 - balance) for m in members.values()])
    bounds = np.round(np.cumsum([0, *share]) / share.sum() * len(rows)).astype(int)
    drawn = np.concatenate([np.resize(rng.permutation(m), n)
                            for m, n in zip(members.values(), np.diff(bounds))])

    # shuffled before they are sorted, so that ties are in random order; by the prompt's length, as
    # that of the response would sort by label
    drawn = sorted(rng.permutation(drawn).tolist(), key=lambda i: (
        "" if mixed else rows[i].instruction, len(rows[i].prompt)))
    batches = [drawn[i:i + batch_size] for i in range(0, len(drawn), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


SHAPES = 32     # mixed batches are padded to a multiple of so many tokens


def collate(rows, prompt_loss=False, mixed=False):
    """Rows -> the arguments of GPT.forward():

    idx (B, T), without the prefix; padded on the right
    targets (N,), the ids of the responses
    prefix (P,), that all prompts share; none if `mixed`
    at (N,), the positions in idx.flatten() that predict them

    With prompt_loss, idx (B, T) and targets (B, T) alone: the prompts have targets too, and only the
    padding's are -1.
    """
    # the tokens
    P = 0 if prompt_loss or mixed else common_prefix([row.prompt.tolist() for row in rows])
    T = max(len(row.prompt) + len(row.response) for row in rows) - P - 1
    T = math.ceil(T / SHAPES) * SHAPES if mixed else T
    idx, targets = torch.zeros(len(rows), T, dtype=torch.long), torch.full((len(rows), T), -1)
    for i, row in enumerate(rows):
        ids = torch.from_numpy(np.concatenate([row.prompt[P:], row.response]).astype(np.int64))
        idx[i, :len(ids) - 1] = ids[:-1]
        first = 0 if prompt_loss else len(row.prompt) - P - 1
        targets[i, first:len(ids) - 1] = ids[first + 1:]
    if prompt_loss:
        return idx, targets

    # where there is something to learn, found here and not where one would wait for the GPU
    at = (targets.flatten() != -1).nonzero()[:, 0]
    return idx, targets.flatten()[at], torch.from_numpy(rows[0].prompt[:P].astype(np.int64)), at


# ----------------------------------------------------------------------------------------------
# Scores

def candidates(record):
    """What an answer is chosen from. Without choices only the right answer is looked at: would
    greedy decoding write it?"""
    return record.get("choices") or [record["output"]]


def answer(model, tok, records, max_len, cfg, machine, bar):
    """-> per record the probabilities of its candidates, and whether greedy decoding would write the
    right answer and stop; None for a record that does not fit"""
    rows = encode_rows(records, tok, model.config.block_size, max_len)
    answers = [None] * len(rows)

    # rows of a batch have the same candidates; the same instruction and length make it fast
    order = sorted([i for i, row in enumerate(rows) if row is not None], key=lambda i: (
        candidates(records[i]), rows[i].instruction, len(rows[i].prompt)))
    for choices, group in itertools.groupby(order, key=lambda i: candidates(records[i])):
        group = list(group)
        ids = [c.tolist() + [tok.eot] for c in tok.encode_batch(choices)]
        # without gradients, there is memory for four times as many rows
        for start in range(0, len(group), 4 * cfg.batch_size):
            batch = group[start:start + 4 * cfg.batch_size]
            prompts = [rows[i].prompt.tolist() for i in batch]
            with machine.autocast():
                nats, greedy = model.log_likelihoods(prompts, ids)
            for i, p, written in zip(batch, nats.softmax(dim=1).tolist(), greedy.tolist()):
                answers[i] = p, written[choices.index(records[i]["output"])]
            bar.update(len(batch))
    return answers


def answer_both_strands(model, tok, records, *rest):
    """As answer(), with the mean of both strands' probabilities where the answer is the same"""
    answers = answer(model, tok, records, *rest)
    turned = iter(answer(model, tok, other_strand(records), *rest))
    for i, r in enumerate(records):
        if r.get("either_strand"):
            other = next(turned)
            if answers[i] and other:
                answers[i] = np.mean([answers[i][0], other[0]], axis=0), answers[i][1]
    return answers


def score(model, tok, records, max_len, cfg, machine):
    """-> {task: n, exact_match, majority, and what judge() says}. exact_match is whether greedy
    decoding writes the right answer and stops; majority is the accuracy of always giving the most
    frequent answer; the rest takes the most likely choice."""
    model.eval()
    ask = answer_both_strands if cfg.both_strands else answer
    total = len(records) + cfg.both_strands * len(other_strand(records))
    bar = tqdm(total=total, desc="scoring", unit=" rows", disable=None if machine.is_main else True)
    scores = {}
    for task, members in sorted(by_task(records).items()):
        # a row per record: each label's probability, whether it was answered, whether rightly
        labels = sorted({c for r in members for c in r.get("choices", [])})
        found = np.zeros((len(members), len(labels) + 2))
        mine = range(machine.rank, len(members), machine.world)
        answers = ask(model, tok, [members[i] for i in mine], max_len, cfg, machine, bar)
        for i, a in zip(mine, answers):
            if a is not None:
                choices = members[i].get("choices", [])
                found[i, [labels.index(c) for c in choices]] = a[0][:len(choices)]
                found[i, -2:] = 1, a[1]
        found = np.reshape(machine.sum(*found.ravel()), found.shape)    # from all processes

        # what they amount to
        n, exact = found[:, -2:].sum(axis=0)
        judged = [i for i, r in enumerate(members) if found[i, -2] and r.get("choices")]
        true = np.array([labels.index(members[i]["output"]) for i in judged], dtype=int)
        most_frequent = max(Counter(r["output"] for r in members).values())
        scores[task] = {"n": int(n), **judge(found[judged, :-2], true, labels),
                        "exact_match": exact / n if n else None,
                        "majority": most_frequent / len(members)}
    bar.close()
    return scores


# ----------------------------------------------------------------------------------------------
# Tuning

def hold_out(records, cfg):
    """-> (validation records, training records). Reverse complements are added to the training
    records only after the split, so that none is of a held-out record."""
    order = np.random.default_rng(cfg.seed).permutation(len(records))
    n_val = max(1, int(len(records) * cfg.val_fraction))
    val, train = [records[i] for i in order[:n_val]], [records[i] for i in order[n_val:]]
    return val, train + other_strand(train) if cfg.both_strands else train


def plan_batches(rows, cfg, machine, collate):
    """-> (cfg with its max_steps, the function from a step to this process's micro-batches that
    fit() wants). Batch k of the run is batch k % n of epoch k // n."""
    n, accumulation = math.ceil(len(rows) / cfg.batch_size), cfg.gradient_accumulation_steps
    if not cfg.max_steps:
        cfg = replace(cfg, max_steps=math.ceil(cfg.epochs * n / accumulation))

    @functools.lru_cache(maxsize=1)
    def epoch(e):
        return epoch_batches(rows, cfg.batch_size, cfg.balance, (cfg.seed, e), cfg.mixed)

    def make(step):
        first = step * accumulation
        mine = range(first + machine.rank, first + accumulation, machine.world)
        return [collate([rows[i] for i in epoch(k // n)[k % n]]) for k in mine]

    # while a step is computed, a thread makes the batches of the next one
    thread, coming = ThreadPoolExecutor(1), {}

    def batches(step):
        now = coming.pop(step, None) or thread.submit(make, step)
        coming[step + 1] = thread.submit(make, step + 1)
        return now.result()

    return cfg, batches


def held_out_loss(model, rows, to_batch, cfg, machine):
    """-> nats per token of the responses, over all processes: the mean over tasks, as in the scores,
    so that a task of many rows does not choose best.pt alone"""
    losses = []
    for members in rows.values():
        nats, count = 0.0, 0
        batches = epoch_batches(members, cfg.batch_size, 0.0, 0, cfg.mixed)
        for batch in batches[machine.rank::machine.world]:
            batch = machine.to_device(to_batch([members[i] for i in batch]))
            n = (batch[1] != -1).sum().item()
            with machine.autocast():
                nats += model(*batch)[1].item() * n
            count += n
        nats, count = machine.sum(nats, count)
        losses.append(nats / count)
    return float(np.mean(losses))


def tune(model, tok, records, max_len, cfg, machine, extra):
    """Tune `model` on records, some of which are held out -> the best model by their loss"""
    # rows, to tune on and held out
    block_size = model.config.block_size
    require(not cfg.mixed or block_size % SHAPES == 0,
            f"mixed batches are padded to multiples of {SHAPES} tokens, of which {cfg.init_from} "
            f"has {block_size}: tune without --mixed")
    val, train = ([row for row in encode_rows(part, tok, block_size, max_len) if row]
                  for part in hold_out(records, cfg))
    require(val and train,
            f"{', '.join(cfg.tasks)}: {len(records)} rows are too few to tune on")
    val_rows = {task: [row for row in val if row.task == task]
                for task in sorted({row.task for row in val})}
    if machine.is_main:
        mean = np.mean([len(row.prompt) + len(row.response) for row in train])
        print(f"{len(train):,} rows of {len({row.task for row in train})} tasks, {mean:.0f} tokens "
              "each")

    # batches and their loss
    to_batch = functools.partial(collate, prompt_loss=cfg.prompt_loss, mixed=cfg.mixed)
    cfg, batches = plan_batches(train, cfg, machine, to_batch)

    def evaluate():
        return {"val_loss": held_out_loss(model, val_rows, to_batch, cfg, machine),
                "bits_per_base": None, "bits_per_byte": None}    # the keys of train.py's log

    # train, from the start or from where a run was stopped
    model, resumed = resume_from(cfg, machine, extra) if cfg.resume else (model, None)
    open_out_dir(cfg, machine, os.path.join(cfg.init_from, "tokenizer.json"))
    fit(model, cfg, machine, batches, evaluate, extra, resumed)
    machine.barrier()
    return load_checkpoint(os.path.join(cfg.out_dir, "best.pt"), machine.device)[0]


def records_to_tune(cfg, test):
    """-> the records of cfg.tasks, except for those to leave out and those that are scored"""
    for path in find_files(cfg.tasks):
        require(os.path.isfile(path), f"{path}: a folder: let prepare.py make instructions of it")
    records = read_examples(cfg.tasks)
    names, left_out = {r["task"] for r in records}, set()
    for pattern in cfg.leave_out:
        matched = fnmatch.filter(names, pattern)
        require(matched, f"leave_out={pattern}: no task of this name: there are "
                f"{', '.join(sorted(names))}")
        left_out.update(matched)
    tuned = without_leaks([r for r in records if r["task"] not in left_out], test)
    require(tuned, f"{', '.join(cfg.tasks)}: nothing is left to tune on")
    return tuned


def main(argv):
    # records, machine and model
    cfg = config.from_command_line(InstructConfig, "instruct", argv)
    tuning = cfg.epochs > 0
    if tuning and os.path.realpath(cfg.out_dir) == os.path.realpath(cfg.init_from):
        raise ValueError(f"out_dir={cfg.out_dir} is init_from, whose weights would be overwritten: "
                         "give another out_dir")
    if cfg.scores and not os.path.isdir(os.path.dirname(cfg.scores) or "."):
        raise ValueError(f"scores={cfg.scores}: no such folder")
    test = read_examples(cfg.eval_tasks)
    train = records_to_tune(cfg, test) if tuning else []
    machine = find_machine(cfg)
    model, tok, _ = load_model(cfg.init_from, machine.device, cfg.dropout)
    tokenizer = os.path.join(cfg.init_from, "tokenizer.json")

    # room for the longest choice, in tuning and in scoring alike
    choices = sorted({c for r in train + test for c in r.get("choices", [])})
    max_len = max_prompt_len(tok, choices, model.config.block_size)

    # what checkpoints hold besides: fingerprints for --resume, and for sample.py a question per
    # task, in the words of the test rows
    tuned = {r["task"] for r in train}
    questions = {r["task"]: {"instruction": r["instruction"], "choices": r["choices"],
                              "has_input": bool(r["input"]), "is_dna": is_dna(r["input"]),
                              "either_strand": r.get("either_strand", False)}
                 for r in train + test if r.get("choices") and r["task"] in tuned}
    extra = {"tokenizer_sha256": config.file_sha256(tokenizer), "questions": questions,
             "data_sha256": hashlib.sha256(json.dumps([max_len, train]).encode()).hexdigest()}

    # score, tune, score again
    scores = score(model, tok, test, max_len, cfg, machine)
    if tuning:
        zero_shot = scores
        model = tune(model, tok, train, max_len, cfg, machine, extra)
        scores = score(model, tok, test, max_len, cfg, machine)
        for task in scores:
            scores[task] |= {"tuned": task in tuned, "zero_shot_mcc": zero_shot[task]["mcc"]}
    if machine.is_main:
        add_baselines(scores, find_files(cfg.eval_tasks))
        result = with_means(scores, config=asdict(cfg))
        out_dir = cfg.out_dir if tuning else cfg.init_from
        path = cfg.scores or os.path.join(out_dir, "scores.json")
        n = 2
        while not tuning and not cfg.scores and os.path.exists(path):   # keep the earlier ones
            path, n = os.path.join(out_dir, f"scores-{n}.json"), n + 1
        config.write_json(path, result)
        given = "" if out_dir == InstructConfig.out_dir else f" --out_dir={out_dir}"
        print(f"\n{table(result)}\n\nwrote {out_dir if tuning and not cfg.scores else path}; next: "
              f"python sample.py{given}, with --chat to talk to it")
    machine.close()


if __name__ == "__main__":
    config.run(main)
