"""
Instruction tuning: one model, many tasks, and a score for each.

    python instruct.py                                  # the toy world, after train.py
    python instruct.py config/own.toml                  # a table of your own
    python instruct.py config/laptop.toml --leave_out='mouse_1,EMP_*' --out_dir=out/x
    python instruct.py --init_from=models/laptop --epochs=0 --out_dir=out/scores

The last one only scores. Unless --eval_tasks names other files, the rows to score are
in NAME.test.json beside each NAME.train.json, or else in NAME.dev.json.

A row is a prompt, the response and <|endoftext|>. The loss is on the latter two, so the
model learns to answer and then to stop. out_dir gets what train.py writes, and
scores.json.

Where both strands have the same answer ("either_strand" in the tasks), the model is
tuned on both, and a label has the mean of its probabilities on both.

Shapes: B batch, T time (tokens), P tokens of the shared prefix, R tokens at the end of
T, K choices.
"""
import fnmatch
import functools
import hashlib
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
from config.machine import find_machine, should_compile
from dna.metrics import add_baselines, judge, table, with_means
from dna.read import is_dna
from dna.tasks import (alpaca_parts, alpaca_prompt, by_task, find_files, find_leaks,
                       fold, other_strand, read_examples, scored_beside)
from model import common_prefix, load_checkpoint
from train import (NEW_RUN, RunConfig, check_no_run, count_targets, fit, load_model,
                   open_out_dir, resume_from)


@dataclass
class InstructConfig(RunConfig):
    init_from: str = "out/toy"      # folder of the model to start from
    out_dir: str = "out/toy-instruct"   # folder to write to
    tasks: tuple = ("data/toy/tasks/*.train.json",)     # Alpaca files to tune on
    eval_tasks: tuple = ()          # Alpaca files to score; none: test or dev of tasks
    leave_out: tuple = ()           # tasks, by name or pattern, not to tune on
    balance: float = 0.0            # 0: a task counts by its rows, 1: all tasks alike
    epochs: float = 2.0             # passes over the rows; 0: only score init_from
    min_steps: int = 0              # so many steps even if epochs says fewer
    max_steps: int = 0              # of the optimizer; 0: as many as epochs says
    gradient_accumulation_steps: int = 4    # micro-batches per step, over all processes
    optimizer: str = "adamw"        # muon (the blocks' matrices) or adamw
    learning_rate: float = 2e-3     # the highest, reached after the warmup
    eval_interval: int = 250        # steps between evaluations, each with a checkpoint
    prompt_loss: bool = False       # a loss on the prompt too, as in the paper
    undo_merges: float = 0.0        # most of a row's DNA tokens that are split in two
    val_fraction: float = 0.02      # share of the rows held out, to choose best.pt
    mix_instructions: bool = False  # in a batch, for a GPU: few shapes, no prefix
    compile: str = "no"             # auto, yes, no: torch.compile, which takes minutes


# --------------------------------------------------------------------------------------
# From an example to ids. An example is a dict with "instruction" and "input", with
# "output" and "task", and with "choices" if the answer is one of several.

def encode_prompts(tok, examples, max_len):
    """Encode the prompts of examples. One of more than max_len ids loses the end of its
    input.

    -> a list with an array of ids per prompt, None where not even the instruction fits;
    and a list that says how many letters of each input are in its prompt
    """
    # instructions repeat, and each is encoded once
    parts = {(e["instruction"], bool(e["input"])) for e in examples}
    texts = sorted({text for part in parts for text in alpaca_parts(*part)})
    ids_of = dict(zip(texts, tok.encode_batch(texts)))

    # the input is encoded apart from what is before and after it, so the cut is a slice
    prompts, kept = [], []
    inputs = tok.encode_batch([fold(e["input"]) for e in examples])
    for e, ids in zip(examples, inputs):
        before, after = map(ids_of.get, alpaca_parts(e["instruction"], bool(e["input"])))
        room = max_len - len(before) - len(after)
        fits = room >= 0
        prompts.append(np.concatenate([before, ids[:room], after]) if fits else None)

        # the line break of fold() is no letter
        is_cut = fits and room < len(ids)
        text = tok.decode(ids[:room]).replace("\n", "") if is_cut else e["input"]
        kept.append(len(text))
    return prompts, kept


def max_prompt_len(tok, choices, block_size):
    """-> the most tokens that a prompt may have: the context less the longest choice
    and its stop token, or less an eighth of the context where there are no choices.
    It is one limit for all rows, so the cut of an input tells nothing about its
    answer."""
    longest = max((len(ids) + 1 for ids in tok.encode_batch(choices)),
                  default=block_size // 8)
    require(longest <= block_size // 2, f"a choice is {longest} tokens long, of "
            f"block_size={block_size}: shorten it")
    return block_size - longest


class Row(NamedTuple):
    prompt: np.ndarray      # ids
    response: np.ndarray    # ids, <|endoftext|> at the end
    task: str
    instruction: str        # rows that share it share a prefix


def encode_rows(examples, tok, block_size, max_len):
    """-> a Row for each example that fits into block_size tokens, in their order. An
    input is cut so that its prompt has at most max_len tokens."""
    prompts, _ = encode_prompts(tok, examples, max_len)
    responses = tok.encode_batch([e["output"] for e in examples])
    rows = []
    for e, prompt, response in zip(examples, prompts, responses):
        if prompt is not None and len(prompt) + len(response) < block_size:
            response = np.append(response, [tok.eot])
            rows.append(Row(prompt, response, e["task"], e["instruction"]))
    if n := len(examples) - len(rows):
        print(f"{n:,} of {len(examples):,} examples do not fit into the context: left "
              "out")
    return rows


def print_room(tok, examples, max_len):
    """Say about how long an input may be to fit into a prompt, and how many are
    longer."""
    for kind, unit in ((True, "bases"), (False, "characters of text")):
        inputs = [e["input"] for e in examples if is_dna(e["input"]) == kind]
        text = "".join(inputs[:1000])
        if text:
            # how much is left of an input that is too long
            endless = examples[0] | {"input": (text * max_len)[:32 * max_len]}
            _, (room,) = encode_prompts(tok, [endless], max_len)
            n_cut = sum(len(input) > room for input in inputs)
            print(f"a prompt holds about {room:,} {unit}; {n_cut:,} of {len(inputs):,} "
                  "inputs are longer")
            if n_cut:
                print("These lose their end: cut them around what matters, or pretrain "
                      "with a larger block_size")


# --------------------------------------------------------------------------------------
# A tuned model knows prompts of one form

def prompt_form():
    """-> the prompt of a fixed example, whose DNA is long enough to be folded. A
    tuned model's checkpoint holds it, as "prompt"."""
    return alpaca_prompt("Is it a promoter?", "GATTACA" * 5)


def check_prompt(state, folder):
    """ValueError if a checkpoint was tuned on prompts of another form than this code
    writes. A pretrained model, which has no questions, has seen no prompts."""
    require("prompt" in state or "questions" not in state,
            f"{folder}: tuned before models stored the form of their prompts: use it "
            "with commit 9eba337, or tune it again")
    require(state.get("prompt", prompt_form()) == prompt_form(),
            f"{folder}: this code writes prompts in another form than the model was "
            "tuned on: undo the change of dna/tasks.py, or tune the model again")


def load_for_prompts(folder, device="cpu", dropout=0.0):
    """As train.load_model(), for whoever makes prompts of alpaca_prompt()'s form"""
    model, tok, state = load_model(folder, device, dropout)
    check_prompt(state, folder)
    return model, tok, state


# --------------------------------------------------------------------------------------
# Batches

def epoch_batches(rows, batch_size, balance, seed, mix_instructions=False):
    """-> the batches of an epoch, lists of indices of rows, a function of the seed
    alone. Rows with the same instruction (unless they are mixed) and of similar
    length go together: little padding, and a long shared prefix. balance: as in the
    config; a task that is drawn more often than it has rows repeats them."""
    rng = np.random.default_rng(seed)
    members = defaultdict(list)
    for i, row in enumerate(rows):
        members[row.task].append(i)

    # how many rows of each task, together as many as there are
    share = np.array([len(m) ** (1 - balance) for m in members.values()])
    bounds = np.round(np.cumsum([0, *share]) / share.sum() * len(rows)).astype(int)
    drawn = np.concatenate([np.resize(rng.permutation(m), n)
                            for m, n in zip(members.values(), np.diff(bounds))])

    # shuffle first, so that ties are random; sort by the length of the prompt alone,
    # because that of the response would give the label away
    drawn = sorted(rng.permutation(drawn).tolist(), key=lambda i: (
        "" if mix_instructions else rows[i].instruction, len(rows[i].prompt)))
    batches = [drawn[i:i + batch_size] for i in range(0, len(drawn), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def dna_parts(tok):
    """-> the two tokens that each DNA token was merged from, (V, 2); -1 for bases and
    for tokens that are not DNA"""
    parts = np.full((len(tok), 2), -1)
    for left, right, new in tok.merges:
        if set(tok.decode([new])) <= set("ACGT"):
            parts[new] = left, right
    return parts


def undo_merges(rows, rng, parts, most, block_size):
    """Split some DNA tokens of a batch's rows into the two that each was merged from. So
    a row is cut differently whenever it is drawn, and the model cannot learn it by its
    tokens. (BPE-dropout, Provilkov et al., 2020, leaves out merges while it encodes.)

    The share of tokens that are split is drawn for each batch, from 0 to `most`. So the
    model also sees rows as they are when it is asked, and rows of one length stay so.
    A row that would not fit into block_size tokens stays as it is.
    """
    share = rng.uniform(0, most)
    drawn = []
    for row in rows:
        # which tokens are split
        ids = row.prompt
        can_split = rng.permutation(np.flatnonzero(parts[ids, 0] >= 0))
        is_split = np.zeros(len(ids), dtype=bool)
        is_split[can_split[:round(share * len(can_split))]] = True

        # each counts twice; then the copies become the parts
        prompt = np.repeat(ids, 1 + is_split)
        second = np.cumsum(1 + is_split)[is_split] - 1
        prompt[second - 1], prompt[second] = parts[ids[is_split]].T
        fits = len(prompt) + len(row.response) <= block_size
        drawn.append(row._replace(prompt=prompt) if fits else row)
    return drawn


# Each new shape of a batch costs time: oneDNN plans its products, or a GPU's kernels are
# compiled. So the prefix and the rest of the rows have multiples of so many tokens.
ROUND_TO, ROUND_MIXED_TO = 8, 32


def collate(rows, block_size, prompt_loss=False, mix_instructions=False):
    """Rows -> the arguments of GPT.forward():

    idx (B, T), without the prefix; padded on the right
    targets (B, R), the ids of the responses, -1 for what else the last R tokens predict
    prefix (P,), which all prompts share; none where instructions are mixed

    With prompt_loss the prompts have targets too, and there is no prefix.
    """
    # the prefix
    unit = ROUND_MIXED_TO if mix_instructions else ROUND_TO
    P = common_prefix([row.prompt.tolist() for row in rows]) // unit * unit
    if prompt_loss or mix_instructions:
        P = 0

    # the tokens after it, and the index of each row's first token with a target
    T = max(len(row.prompt) + len(row.response) for row in rows) - P - 1
    T = min(math.ceil(T / unit) * unit, block_size - P)
    begins = [0 if prompt_loss else len(row.prompt) - P - 1 for row in rows]

    # the ids
    idx = torch.zeros(len(rows), T, dtype=torch.long)
    targets = torch.full((len(rows), T), -1)
    for i, (row, begin) in enumerate(zip(rows, begins)):
        ids = np.concatenate([row.prompt[P:], row.response]).astype(np.int64)
        ids = torch.from_numpy(ids)
        idx[i, :len(ids) - 1] = ids[:-1]
        targets[i, begin:len(ids) - 1] = ids[begin + 1:]
    prefix = torch.from_numpy(rows[0].prompt[:P].astype(np.int64))
    return idx, targets[:, min(begins) // unit * unit:], prefix


# --------------------------------------------------------------------------------------
# The probability of each label

class Answer(NamedTuple):
    log_p: np.ndarray       # log-probability of each choice (K,), relative to the others
    is_greedy: np.ndarray   # whether greedy decoding would write it and stop, bool (K,)
    kept: int               # how many letters of the input were in the prompt


def choices_of(example):
    """An example without choices has one, its output: is it what the model writes?"""
    return example.get("choices") or [example["output"]]


# On one core a matrix product of so many rows or more rounds each row in the same way,
# however many there are.
FEWEST = 16


def label_probabilities(model, tok, examples, max_len, machine, what, batch_size=256,
                        exact=False):
    """How likely each choice is as the answer to an example. Where both strands have
    the same answer, the probability is the mean of both.

    max_len: the most tokens that a prompt may have
    what: a word for the progress bar, "" for none
    batch_size: about how many rows are computed at a time, divided among the cores
    exact: an answer is the same to the last digit, whatever else is asked with it. All
        examples must have the same instruction.
    -> a list with an Answer per example, None where it does not fit into the context
    """
    # the prompts, those of the other strand at the end
    rows = examples + other_strand(examples)
    prompts, kept = encode_prompts(tok, rows, max_len)
    texts = sorted({choice for e in rows for choice in choices_of(e)})
    ids_of = {text: [*ids.tolist(), tok.eot]
              for text, ids in zip(texts, tok.encode_batch(texts))}

    # which rows may share a batch: those with the same choices and similar lengths.
    # Lengths within 4 stay in their order, because neighbours, such as the mutants of a
    # sequence, may have a long prefix in common. An exact answer allows no padding, and
    # only the prefix that all prompts have.
    unit, P = 4, None
    if exact and rows:
        before, _ = alpaca_parts(rows[0]["instruction"], bool(rows[0]["input"]))
        unit, P = 1, len(tok.encode(before))
    groups = defaultdict(list)
    for i, (e, prompt) in enumerate(zip(rows, prompts)):
        longest = max(len(ids_of[choice]) for choice in choices_of(e))
        if prompt is not None and len(prompt) + longest <= model.config.block_size:
            key = tuple(choices_of(e)), len(prompt) // unit
            groups[key].append(i)

    # the batches. Rows with the same instruction stand side by side, because they share
    # a longer prefix
    batches = []
    size = max(FEWEST, batch_size // machine.workers())
    for _, members in sorted(groups.items()):
        members.sort(key=lambda i: rows[i]["instruction"])
        batches += [members[start:start + size]
                    for start in range(0, len(members), size)]

    # their answers
    def answer(batch):
        ids = [prompts[i].tolist() for i in batch]
        if exact:
            ids += ids[:1] * (FEWEST - len(ids))
        choices = [ids_of[choice] for choice in choices_of(rows[batch[0]])]
        with machine.autocast():
            nats, is_greedy = model.log_likelihoods(ids, choices, P)
        log_p = nats.cpu().double().log_softmax(dim=1).numpy()
        return zip(batch, log_p, is_greedy.cpu().numpy())

    answers = [None] * len(rows)
    with tqdm(total=len(rows), desc=what, unit=" rows",
              disable=None if what and machine.is_main else True) as bar:
        for found in machine.map(answer, batches):
            for i, log_p, is_greedy in found:
                answers[i] = Answer(log_p, is_greedy, kept[i])
                bar.update()

    # the mean of both strands
    both = [i for i, e in enumerate(examples) if e.get("either_strand")]
    for i, other in zip(both, answers[len(examples):]):
        if answers[i] and other:
            log_p = np.logaddexp(answers[i].log_p, other.log_p) - math.log(2)
            answers[i] = answers[i]._replace(log_p=log_p,
                                             kept=min(answers[i].kept, other.kept))
    return answers[:len(examples)]


# --------------------------------------------------------------------------------------
# Scores

def score(model, tok, examples, max_len, cfg, machine):
    """-> {task: what score_task() says}"""
    # each process answers its share; without gradients there is memory for more rows
    model.eval()
    share = examples[machine.rank::machine.world]
    found = label_probabilities(model, tok, share, max_len, machine, "scoring",
                                4 * cfg.batch_size)
    answers = [None] * len(examples)
    for rank, part in enumerate(machine.gather(found)):
        answers[rank::machine.world] = part

    answered = by_task([e | {"answer": a} for e, a in zip(examples, answers)])
    return {task: score_task(answered[task]) for task in sorted(answered)}


def score_task(examples):
    """Score a task's examples, each with its "answer".

    -> {n, exact_match, majority, and what judge() says}. exact_match is the share
    that greedy decoding answers rightly and then stops. majority is the accuracy of
    always giving the most frequent answer. The rest takes the likeliest choice, and
    leaves out examples without choices.
    """
    answered = [e for e in examples if e["answer"]]
    exact = [e["answer"].is_greedy[choices_of(e).index(e["output"])] for e in answered]
    most_frequent = max(Counter(e["output"] for e in examples).values())

    judged = [e for e in answered if e.get("choices")]
    labels = sorted({choice for e in examples for choice in e.get("choices", [])})
    chosen = [e["choices"][e["answer"].log_p.argmax()] for e in judged]
    return {"n": len(answered), **judge([e["output"] for e in judged], chosen, labels),
            "exact_match": sum(exact) / len(exact) if exact else None,
            "majority": most_frequent / len(examples)}


# --------------------------------------------------------------------------------------
# Tuning

def examples_to_tune(cfg, test):
    """-> the examples of cfg.tasks, without the tasks to leave out, and without those
    that give an example of `test` away"""
    examples = read_examples(cfg.tasks)
    names, left_out = {e["task"] for e in examples}, set()
    for pattern in cfg.leave_out:
        matched = fnmatch.filter(names, pattern)
        require(matched, f"leave_out={pattern}: no task of this name: there are "
                f"{', '.join(sorted(names))}")
        left_out.update(matched)
    examples = [e for e in examples if e["task"] not in left_out]

    leaks = find_leaks(examples, test)
    if leaks:
        print(f"{len(leaks):,} of {len(examples):,} rows overlap with rows of "
              "eval_tasks: left out")
    examples = [e for i, e in enumerate(examples) if i not in leaks]
    require(examples, f"{', '.join(cfg.tasks)}: nothing is left to tune on")
    return examples


def hold_out(examples, cfg):
    """-> (validation examples, training examples). Reverse complements are added to the
    training examples alone, so that none is of a held-out example."""
    order = np.random.default_rng(cfg.seed).permutation(len(examples))
    n_val = max(1, int(len(examples) * cfg.val_fraction))
    train = [examples[i] for i in order[n_val:]]
    return [examples[i] for i in order[:n_val]], train + other_strand(train)


def mean_length(rows):
    """-> tokens of a row, prompt and response, on average"""
    return sum(len(row.prompt) + len(row.response) for row in rows) / len(rows)


def plan(rows, cfg, machine, model):
    """-> cfg with its max_steps, and with compile=yes or no in place of auto"""
    if not cfg.max_steps:
        n = math.ceil(len(rows) / cfg.batch_size)
        steps = math.ceil(cfg.epochs * n / cfg.gradient_accumulation_steps)
        cfg = replace(cfg, max_steps=max(cfg.min_steps, steps))

    # a prefix is counted in each row, so the run's FLOPs are estimated too high
    T = mean_length(rows)
    rows_per_step = cfg.gradient_accumulation_steps * cfg.batch_size
    flops = cfg.max_steps * rows_per_step * T * model.flops_per_token(T)
    return replace(cfg, compile="yes" if should_compile(cfg, machine, flops) else "no")


def make_batches(rows, tok, cfg, machine, block_size):
    """-> batches(step), this process's micro-batches of a step, as fit() wants them. An
    epoch has n batches: batch k of the run is batch k % n of epoch k // n."""
    n = math.ceil(len(rows) / cfg.batch_size)
    parts = dna_parts(tok) if cfg.undo_merges else None

    @functools.lru_cache(maxsize=1)
    def epoch(e):
        return epoch_batches(rows, cfg.batch_size, cfg.balance, (cfg.seed, e),
                             cfg.mix_instructions)

    def batch(k):
        drawn = [rows[i] for i in epoch(k // n)[k % n]]
        if cfg.undo_merges:
            rng = np.random.default_rng((cfg.seed, 0, k))
            drawn = undo_merges(drawn, rng, parts, cfg.undo_merges, block_size)
        return collate(drawn, block_size, cfg.prompt_loss, cfg.mix_instructions)

    def micro_batches(step):
        accumulation = cfg.gradient_accumulation_steps
        first = step * accumulation
        share = range(first + machine.rank, first + accumulation, machine.world)
        return [batch(k) for k in share]

    # while a step is computed, a thread makes the batches of the next one
    thread, coming = ThreadPoolExecutor(1), {}

    def batches(step):
        now = coming.pop(step, None) or thread.submit(micro_batches, step)
        coming[step + 1] = thread.submit(micro_batches, step + 1)
        return now.result()

    return batches


def held_out_loss(model, rows, cfg, machine):
    """rows: {task: its held-out rows} -> nats per token of the responses, over all
    processes. It is the mean over tasks, as in the scores: a task of many rows does
    not choose best.pt alone."""
    losses = []
    for members in rows.values():
        nats, count = 0.0, 0
        batches = epoch_batches(members, cfg.batch_size, 0.0, 0, cfg.mix_instructions)
        for batch in batches[machine.rank::machine.world]:
            batch = collate([members[i] for i in batch], model.config.block_size,
                            cfg.prompt_loss, cfg.mix_instructions)
            n = count_targets(batch)
            with machine.autocast():
                nats += model(*machine.to_device(batch))[1].item() * n
            count += n
        nats, count = machine.sum(nats, count)
        losses.append(nats / count)
    return float(np.mean(losses))


def tune(model, tok, examples, max_len, cfg, machine, extra):
    """Tune `model` on examples, some of which are held out -> the model with the
    lowest loss on those. extra: as in train.fit()"""
    # rows, to tune on and held out
    block_size = model.config.block_size
    val, train = (encode_rows(part, tok, block_size, max_len)
                  for part in hold_out(examples, cfg))
    require(val and train,
            f"{', '.join(cfg.tasks)}: {len(examples)} rows are too few to tune on")
    val_rows = {task: [row for row in val if row.task == task]
                for task in sorted({row.task for row in val})}
    if machine.is_main:
        print(f"{len(train):,} rows of {len({row.task for row in train})} tasks, "
              f"{mean_length(train):.0f} tokens each")

    # batches and their loss
    cfg = plan(train, cfg, machine, model)
    batches = make_batches(train, tok, cfg, machine, block_size)

    def evaluate():
        return {"val_loss": held_out_loss(model, val_rows, cfg, machine)}

    # train, from the start or from where a run was stopped
    start = NEW_RUN
    if cfg.resume:
        model, start = resume_from(cfg, machine, extra)
        check_prompt(start, cfg.out_dir)
    with open_out_dir(cfg, machine, os.path.join(cfg.init_from, "tokenizer.json")):
        fit(model, cfg, machine, batches, evaluate, extra, start)
    machine.barrier()
    return load_checkpoint(os.path.join(cfg.out_dir, "best.pt"), machine.device)[0]


def describe_tuning(train, test, max_len, cfg):
    """-> what checkpoints hold besides the model: fingerprints for --resume; the
    form of the prompts; and for sample.py a question per task, in the words of the
    test rows, with the other wordings that it was tuned on and the length of its usual
    input"""
    tuned = by_task(train)
    # each task's last example: a test row where there is one
    last = {e["task"]: e for e in train + test if e.get("choices")}
    questions = {task: {"instruction": e["instruction"], "choices": e["choices"],
                        "is_dna": is_dna(e["input"]),
                        "either_strand": e.get("either_strand", False),
                        "wordings": sorted({t["instruction"] for t in tuned[task]}),
                        "length": int(np.median([len(t["input"]) for t in tuned[task]]))}
                 for task, e in last.items() if task in tuned}
    data = json.dumps([max_len, train]).encode()
    tokenizer = os.path.join(cfg.init_from, "tokenizer.json")
    return {"tokenizer_sha256": config.file_sha256(tokenizer),
            "data_sha256": hashlib.sha256(data).hexdigest(),
            "prompt": prompt_form(), "questions": questions}


# --------------------------------------------------------------------------------------
# The run

def check_out_dir(cfg):
    """ValueError if what is in out_dir would be overwritten, OSError if nothing can be
    written there"""
    config.check_output(os.path.join(cfg.out_dir, "scores.json"))
    same = os.path.realpath(cfg.out_dir) == os.path.realpath(cfg.init_from)
    if cfg.epochs:
        require(not same, f"out_dir={cfg.out_dir} is init_from, whose weights would be "
                "overwritten: give another out_dir")
        check_no_run(cfg)
    else:
        holds_model = os.path.exists(os.path.join(cfg.out_dir, "best.pt"))
        require(same or not holds_model, f"out_dir={cfg.out_dir} holds another model "
                f"than init_from={cfg.init_from}, and its scores.json would be "
                "overwritten: give another out_dir")


def main(argv):
    # examples, machine and model
    cfg = config.from_command_line(InstructConfig, "instruct", argv)
    check_out_dir(cfg)
    scored = find_files(cfg.eval_tasks) or scored_beside(find_files(cfg.tasks))
    require(scored or cfg.epochs, "nothing to score: give eval_tasks")
    test = read_examples(scored)
    train = examples_to_tune(cfg, test) if cfg.epochs else []
    machine = find_machine(cfg)
    model, tok, _ = load_for_prompts(cfg.init_from, machine.device, cfg.dropout)

    # room for the longest choice, in tuning and in scoring alike
    choices = sorted({choice for e in train + test for choice in e.get("choices", [])})
    max_len = max_prompt_len(tok, choices, model.config.block_size)

    if machine.is_main:
        print_room(tok, test + train, max_len)

    # score, tune, score again
    scores = score(model, tok, test, max_len, cfg, machine)
    if cfg.epochs:
        before = scores
        extra = describe_tuning(train, test, max_len, cfg)
        model = tune(model, tok, train, max_len, cfg, machine, extra)
        scores = score(model, tok, test, max_len, cfg, machine)
        tuned = {e["task"] for e in train}
        for task, s in scores.items():
            s |= {"tuned": task in tuned, "zero_shot_mcc": before[task]["mcc"]}

    # the table, and scores.json
    path = os.path.join(cfg.out_dir, "scores.json")
    if machine.is_main and scores:
        add_baselines(scores, scored)
        result = with_means(scores, config=asdict(cfg))
        print(f"\n{table(result)}\n")
        os.makedirs(cfg.out_dir, exist_ok=True)
        config.write_json(path, result)
    if machine.is_main:
        wrote, folder, use = path, cfg.init_from, "--chat"
        if cfg.epochs:
            wrote = folder = cfg.out_dir
            use = "--predict=new.csv" if len(extra["questions"]) == 1 else use
        command = config.next_command("sample", argv, out_dir=folder)
        print(f"wrote {wrote}; next: {command} {use}")
    machine.close()


if __name__ == "__main__":
    config.run(main)
