"""
Instruction tuning: one model, many tasks, and a score for each.

    python instruct.py                                        # the toy world, after train.py
    python instruct.py config/laptop.toml --leave_out='mouse_1,EMP_H4' --scores=out/left_out.json
    python instruct.py config/laptop.toml --classify --out_dir=out/laptop-classify
    python instruct.py --init_from=out/laptop-instruct --epochs=0 --eval_tasks='my/*.json'
    python instruct.py --compare=out/laptop-instruct,out/laptop-classify

A row is a prompt, the response and <|endoftext|>. The loss is on the response (and on the prompt
too, as far as prompt_loss_weight says), so that the model learns to answer and then to stop.
Beside what train.py writes, out_dir gets scores.json.

In shapes: B batch, T time (tokens), V vocabulary.
"""
import fnmatch
import glob
import json
import math
import os
import re
import shutil
import warnings
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import config
from bpe import Tokenizer
from config.machine import find_machine
from model import GPT, common_prefix, load_checkpoint
from prepare import IUPAC, encode_prompts, read_alpaca, reverse_complement, window_numbers
from train import RunConfig, fit, prepare_out_dir, resume_from


@dataclass
class InstructConfig(RunConfig):
    out_dir: str = "out/toy-instruct"   # folder to write to
    init_from: str = "out/toy"      # folder of the model to start from
    tasks: list[str] = field(default_factory=lambda: ["data/toy/tasks/*.train.json"])       # Alpaca files to tune on
    eval_tasks: list[str] = field(default_factory=lambda: ["data/toy/tasks/*.test.json"])   # Alpaca files to score
    leave_out: list[str] = field(default_factory=list)      # tasks, by name or pattern, not to tune on
    general: list[str] = field(default_factory=list)        # Alpaca files of other instructions, to tune on too
    general_share: float = 0.1      # their share of the rows
    balance: float = 0.0            # 0: a task counts by its rows, 1: all tasks alike, 0.5: between
    epochs: float = 2.0             # times through the tasks; 0: only score init_from
    max_steps: int = 0              # steps of the optimizer; 0: as epochs says
    batch_size: int = 16            # rows a micro-step; all of them ask the same, so:
    gradient_accumulation_steps: int = 4    # micro-steps a step, those of all processes together
    optimizer: str = "adamw"        # muon (of the blocks' matrices, the rest by AdamW) or adamw
    eval_interval: int = 250        # steps between evaluations, each with a checkpoint
    prompt_loss_weight: float = 0.0     # of a prompt token; a response token has 1
    val_fraction: float = 0.02      # share of the rows held out of tuning to choose best.pt by
    either_strand: list[str] = field(default_factory=lambda: ["tf*", "mouse_*", "EMP_*"])   # tasks, by pattern, with the same answer on both strands
    reverse_complement: float = 0.0     # chance that a training row of those is read on the other strand
    both_strands: bool = False      # score those as the mean of what the two strands say
    shots: int = 0                  # worked examples in each prompt, from the training rows of its task
    nearest: bool = False           # those most like the sequence in their 6-mers, not any
    classify: bool = False          # for comparison: a linear head on the last token, one model a task
    floors: bool = True             # after tuning score 6-mers and the untuned model too
    scores: str = ""                # file to write scores to; scores.json in out_dir if not given
    compare: list[str] = field(default_factory=list)    # only print these folders' scores side by side; A+B: their mean
    compile: str = "no"             # auto, yes, no: torch.compile; the lengths of rows vary


# ----------------------------------------------------------------------------------------------
# Rows

def read_tasks(patterns):
    """Alpaca files, by name or pattern -> list of records, each with its "task": the file's name
    where the record has none"""
    records = []
    for pattern in patterns:
        paths = sorted(glob.glob(pattern))
        if not paths:
            raise FileNotFoundError(f"{pattern}: no such file: run prepare.py with --tasks first")
        for path in paths:
            name = os.path.basename(path).split(".")[0]
            records += [{"task": name} | r for r in read_alpaca(path)]
    return records


class Row(NamedTuple):
    prompt: np.ndarray      # ids
    response: np.ndarray    # ids, the last of them <|endoftext|>
    task: str = ""
    asks: str = ""          # the instruction: rows that ask the same begin alike
    other: "Row | None" = None      # the same with its DNA read on the other strand


def among(name, patterns):
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def by_task(records):
    """-> {task: places of its records in the list}, in the order of the names"""
    places = {}
    for i, r in enumerate(records):
        places.setdefault(r["task"], []).append(i)
    return dict(sorted(places.items()))


def is_dna(text):
    return re.fullmatch(f"[{IUPAC}]+", text) is not None


def other_strand(records, patterns):
    """-> for each record the same one with its DNA read on the other strand, None where its task is
    not among the patterns or its input is no DNA"""
    return [r | {"input": reverse_complement(r["input"])}
            if among(r["task"], patterns) and is_dna(r["input"]) else None for r in records]


def show(record, n):
    """-> the input of a record with its first n worked examples, the nearest last:
    AACG: promoter
    TTGA: Non-promoter
    GATT"""
    shots = record.get("shots", [])[:n][::-1]
    return "".join(f"{sequence}: {label}\n" for sequence, label in shots) + record["input"]


def encode_records(records, tok, block_size):
    """-> a Row for each record, its response with <|endoftext|> at the end.

    Where the two do not fit into block_size, worked examples are left out; where it is still too
    long the end of the input is cut off, never the answer; what does not fit even without its input
    is left out, as None. How many there were is printed.
    """
    responses = [np.append(r, np.asarray(tok.eot, r.dtype))
                 for r in tok.encode_batch([r["output"] for r in records])]
    rooms = [block_size - len(r) for r in responses]
    shots = np.array([len(r.get("shots", [])) for r in records], dtype=int)
    asked = shots.sum()
    places = np.flatnonzero(shots)      # of the records that may have too many examples
    while len(places):
        prompts, _ = encode_prompts(tok, [(records[i]["instruction"], show(records[i], shots[i]))
                                          for i in places], [10 ** 9] * len(places))
        places = [i for i, p in zip(places, prompts) if len(p) > rooms[i] and shots[i]]
        shots[places] -= 1
    if asked:
        print(f"{shots.sum() / len(records):.1f} worked examples a prompt fit into {block_size} tokens, "
              f"of {asked / len(records):.1f}")
    prompts, trimmed = encode_prompts(
        tok, [(r["instruction"], show(r, n)) for r, n in zip(records, shots)], rooms)
    if trimmed:
        print(f"{trimmed:,} of {len(records):,} inputs were trimmed to fit into {block_size} tokens")
    if left_out := sum(p is None for p in prompts):
        print(f"{left_out:,} of {len(records):,} records do not fit into {block_size} tokens even "
              "without their input, and were left out")
    return [Row(prompt, response, r["task"], r["instruction"]) if prompt is not None else None
            for prompt, response, r in zip(prompts, responses, records)]


def encode_strands(records, patterns, encode):
    """-> encode(records), Rows or None; and for tasks among the patterns row.other is the other
    strand's"""
    rows = encode(records)
    turned = other_strand(records, patterns)
    places = [i for i, r in enumerate(turned) if r is not None]
    for i, other in zip(places, encode([turned[i] for i in places])):
        if rows[i] is not None:
            rows[i] = rows[i]._replace(other=other)
    return rows


def rows_to_tune(records, encode, cfg):
    """-> the rows to tune on, with what stands on the other strand where that is asked for"""
    rows = encode_strands(records, cfg.either_strand if cfg.reverse_complement else [], encode)
    return [r for r in rows if r is not None]


def rows_to_score(records, encode, cfg):
    """-> a row, or None, for each record to score, likewise"""
    return encode_strands(records, cfg.either_strand if cfg.both_strands else [], encode)


def collate(rows, prompt_loss_weight):
    """Rows -> idx, targets, weights (B, T), padded to the longest row, and the prefix (P,), the tokens
    that all prompts begin with, which the rows are without. Row i's target at t is its token at
    t + 1; padding has the target -1. Where prompts have a loss, there is no prefix."""
    P = common_prefix([r.prompt.tolist() for r in rows]) if prompt_loss_weight == 0 else 0
    T = max(len(r.prompt) + len(r.response) for r in rows) - P - 1
    idx = torch.zeros(len(rows), T, dtype=torch.long)
    targets = torch.full((len(rows), T), -1)
    weights = torch.zeros(len(rows), T)
    for i, (prompt, response, *_) in enumerate(rows):
        ids = torch.from_numpy(np.concatenate([prompt[P:], response]).astype(np.int64))
        idx[i, :len(ids) - 1] = ids[:-1]
        targets[i, :len(ids) - 1] = ids[1:]
        weights[i, :len(prompt) - P - 1] = prompt_loss_weight
        weights[i, len(prompt) - P - 1:len(ids) - 1] = 1.0
    if not P:
        return idx, targets, weights
    return idx, targets, weights, torch.from_numpy(rows[0].prompt[:P].astype(np.int64))


class Batches:
    """Batches of rows that ask the same and are of similar length: so almost nothing is padding, and
    the words that all begin with are computed once. (A step of the optimizer should be several such
    batches: with one alone the model swings from task to task.) Every row of a task comes once
    before any comes again; batch k is a function of the seed and k alone.

    shares: {task: its share of the rows}; as many as there are if not given
    turn: the probability with which row.other, if there is one, is taken in place of a row
    """

    POOL = 50       # batches that are sorted together: fewer is more random, more is less padding

    def __init__(self, rows, batch_size, seed, shares=None, turn=0.0):
        self.rows, self.batch_size, self.seed, self.turn = rows, batch_size, seed, turn
        self.lengths = np.array([len(r.prompt) + len(r.response) for r in rows])
        numbers = {}        # of each instruction
        self.asks = np.array([numbers.setdefault(r.asks, len(numbers)) for r in rows])
        members = {}        # rows of each task
        for i, r in enumerate(rows):
            members.setdefault(r.task, []).append(i)
        self.members = [np.array(m) for m in members.values()]
        counts = [len(m) for m in self.members] if shares is None else \
            [len(rows) * shares[name] for name in members]
        # Rounded so that together they are as many as before.
        self.counts = np.diff(np.round(np.cumsum([0, *counts])).astype(int))
        self.n = math.ceil(self.counts.sum() / batch_size)
        self.epoch = None

    def draw(self, epoch):
        """-> the rows of an epoch, by number: of each task as many as its share, which go on where
        those of the epoch before have ended"""
        drawn = []
        for t, (members, count) in enumerate(zip(self.members, self.counts)):
            rounds, places = np.divmod(np.arange(epoch * count, (epoch + 1) * count), len(members))
            for r in np.unique(rounds):
                order = np.random.default_rng((self.seed, t, r)).permutation(members)
                drawn.append(order[places[rounds == r]])
        return np.concatenate(drawn)

    def order(self, epoch):
        """-> the batches of an epoch, a list of arrays of row numbers"""
        rng = np.random.default_rng((self.seed, epoch))
        drawn = rng.permutation(self.draw(epoch))
        drawn = drawn[np.argsort(self.asks[drawn], kind="stable")]
        groups = np.split(drawn, np.flatnonzero(np.diff(self.asks[drawn])) + 1)
        # What is left of each group when whole batches have been taken goes together.
        whole = [g[:len(g) // self.batch_size * self.batch_size] for g in groups]
        rest = np.concatenate([g[len(w):] for g, w in zip(groups, whole)])
        batches = []
        for group in [*whole, rng.permutation(rest)]:
            size = self.POOL * self.batch_size
            for pool in np.split(group, range(size, len(group), size)):
                by_length = pool[np.argsort(self.lengths[pool], kind="stable")]
                batches += np.split(by_length, range(self.batch_size, len(pool), self.batch_size))
        batches = [b for b in batches if len(b)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def __getitem__(self, k):
        epoch, place = divmod(k, self.n)
        if epoch != self.epoch:
            self.epoch, self.batches = epoch, self.order(epoch)
        rows = [self.rows[i] for i in self.batches[place]]
        if self.turn:
            turned = np.random.default_rng((self.seed, epoch, place)).random(len(rows)) < self.turn
            rows = [row.other or row if t else row for row, t in zip(rows, turned)]
        return rows

    def padding(self):
        """-> the share of padding among the tokens that the first epoch computes"""
        computed = padded = 0
        for batch in self.order(0):
            lengths = self.lengths[batch]
            P = common_prefix([self.rows[i].prompt.tolist() for i in batch])
            computed += P + len(batch) * (lengths.max() - P)
            padded += (lengths.max() - lengths).sum()
        return padded / computed


def task_shares(records, general, cfg):
    """-> {task: its share of the rows}: cfg.general_share for the general records together, the rest
    for the others; among those as large as a task is to the power of 1 - balance. None where that
    is as they are."""
    if not general and cfg.balance == 0:
        return None
    shares = {}
    share = cfg.general_share if general else 0.0
    for part, share in ((records, 1 - share), (general, share)):
        weights = {name: n ** (1 - cfg.balance) for name, n in Counter(r["task"] for r in part).items()}
        shares |= {name: share * w / sum(weights.values()) for name, w in weights.items()}
    return shares


# ----------------------------------------------------------------------------------------------
# Worked examples, and what 6-mers know

K = 6       # bases of the words that are counted


def count_kmers(sequences):
    """DNA -> how often each of the 4,096 words of six bases stands in it: (n, 4096) uint8"""
    counts = np.zeros((len(sequences), 4 ** K), dtype=np.uint8)
    for row, sequence in zip(counts, sequences):
        words = window_numbers(sequence.encode(), K).astype(np.int64)
        row[:] = np.bincount(words, minlength=4 ** K).clip(max=255)
    return counts


def most_similar(queries, known, k):
    """queries (Q, 4096), known (N, 4096): counts -> (Q, k) which of the known are nearest to each,
    by the cosine of the counts' square roots, the nearest first"""
    def unit(counts):
        return F.normalize(torch.from_numpy(counts).float().sqrt(), dim=1)

    nearest = []
    for q in unit(queries).split(1024):
        found = torch.cat([q @ unit(known[i:i + 8192]).T for i in range(0, len(known), 8192)], dim=1)
        nearest.append(found.topk(k, dim=1).indices)
    return torch.cat(nearest).numpy()


def add_shots(records, known, cfg):
    """-> the records with "shots": cfg.shots pairs (sequence, label) of the known records of their
    task, at random or, with cfg.nearest, those most like them in their 6-mers, the nearest first. A
    record is no example for itself, nor is its other strand."""
    records = list(records)
    pools = by_task(known)
    for task, places in tqdm(by_task(records).items(), desc="worked examples", unit=" tasks",
                             disable=None):
        places = [i for i in places if records[i].get("choices")]
        pool = [known[i] for i in pools.get(task, [])]
        if not places or not pool:
            continue
        # A few more than asked for, since the record itself may be among them.
        n = min(len(pool), cfg.shots + 4)
        if cfg.nearest:
            found = most_similar(count_kmers([records[i]["input"] for i in places]),
                                 count_kmers([r["input"] for r in pool]), n)
        else:
            rng = np.random.default_rng((cfg.seed, len(places)))
            found = rng.integers(len(pool), size=(len(places), n))
        for i, row in zip(places, found):
            own = {records[i]["input"], reverse_complement(records[i]["input"])}
            shots = [(pool[j]["input"], pool[j]["output"]) for j in dict.fromkeys(row.tolist())
                     if pool[j]["input"] not in own]
            records[i] = records[i] | {"shots": shots[:cfg.shots]}
    return records


def kmer_floor(train, test, labels):
    """What the DNA's six-letter words say without any model of language: a linear model (multinomial
    logistic regression) on the square roots of their counts, its weight decay chosen on a tenth of
    the training records. train, test: records; labels: list of them -> confusion matrix on `test`"""
    def sparse(counts):
        """(n, 4096) -> the roots of the counts as a sparse matrix"""
        places = np.nonzero(counts)
        roots = np.sqrt(counts[places], dtype=np.float32)
        with warnings.catch_warnings(action="ignore"):      # of torch's that this layout is new
            return torch.sparse_coo_tensor(np.stack(places), roots, counts.shape).to_sparse_csr()

    def fit_linear(x, xt, y, decay):
        """xt: x transposed, for the gradient"""
        weight, bias = torch.zeros(x.size(1), len(labels)), torch.zeros(len(labels))
        optimizer = torch.optim.LBFGS([weight, bias], max_iter=40, line_search_fn="strong_wolfe")

        def closure():
            logits = x @ weight + bias
            error = (logits.softmax(dim=1) - F.one_hot(y, len(labels))) / len(y)
            # By hand, for autograd is many times slower with a sparse matrix.
            weight.grad, bias.grad = xt @ error + 2 * decay * weight, error.sum(dim=0)
            return F.cross_entropy(logits, y) + decay * (weight ** 2).sum()

        optimizer.step(closure)
        return lambda x: (x @ weight + bias).argmax(dim=1)

    y = torch.tensor([labels.index(r["output"]) for r in train])
    counts = count_kmers([r["input"] for r in train])
    order = np.random.default_rng(0).permutation(len(train))
    held_out, rest = order[:len(train) // 10 + 1], order[len(train) // 10 + 1:]
    x, known = sparse(counts[rest]), sparse(counts[held_out])
    xt = x.t().to_sparse_csr()
    right = {}
    for decay in (1e-3, 3e-3, 1e-2, 3e-2):
        predicted = fit_linear(x, xt, y[rest], decay)(known)
        right[decay] = (predicted == y[held_out]).sum().item()
    x = sparse(counts)
    predict = fit_linear(x, x.t().to_sparse_csr(), y, max(right, key=right.get))
    asked = sparse(count_kmers([r["input"] for r in test]))
    return confusion_matrix([r["output"] for r in test], [labels[i] for i in predict(asked)], labels)


# ----------------------------------------------------------------------------------------------
# Scores

def confusion_matrix(true, predicted, labels):
    """Two lists of labels -> (true label, predicted label) counts, in the order of `labels`"""
    confusion = np.zeros((len(labels), len(labels)))
    for t, p in zip(true, predicted):
        confusion[labels.index(t), labels.index(p)] += 1
    return confusion


def matthews(confusion):
    """Matthews correlation coefficient of a confusion matrix (true class, predicted class), for any
    number of classes (Gorodkin, 2004, "Comparing two K-category assignments by a K-category
    correlation coefficient"); 0 where all are of one class or predicted as one"""
    confusion = np.asarray(confusion, dtype=float)
    true, predicted, n = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum()
    spread = math.sqrt(n ** 2 - (true ** 2).sum()) * math.sqrt(n ** 2 - (predicted ** 2).sum())
    return float((confusion.trace() * n - true @ predicted) / spread) if spread else 0.0


def summarize(confusion):
    """-> accuracy, mcc and its 95% interval by the bootstrap: of 1,000 test sets of the same size,
    drawn from this one with replacement. (Which is to draw the cells of the matrix.)"""
    n = int(confusion.sum())
    if not n:
        return {"accuracy": None, "mcc": None, "mcc_interval": None}
    drawn = np.random.default_rng(0).multinomial(n, confusion.ravel() / n, size=1000)
    values = [matthews(d.reshape(confusion.shape)) for d in drawn]
    return {"accuracy": confusion.trace() / n, "mcc": matthews(confusion),
            "mcc_interval": np.percentile(values, [2.5, 97.5]).tolist()}


def majority(records):
    """-> the accuracy of always giving the commonest answer"""
    return max(Counter(r["output"] for r in records).values()) / len(records)


def labels_of(records):
    """-> all choices that the records have"""
    return sorted({c for r in records for c in r.get("choices", [])})


def score_task(model, tok, records, rows, cfg, machine, bar):
    """-> the scores of the records of one task, over all processes"""
    labels = labels_of(records)
    confusion, exact = np.zeros((len(labels), len(labels))), 0
    mine = [i for i in range(machine.rank, len(rows), machine.world) if rows[i] is not None]
    # Rows that ask the same go together, and among them those of like length. Without choices there
    # is only the right answer to look at, which is each row's own.
    mine.sort(key=lambda i: (records[i]["instruction"], records[i].get("choices", []), len(rows[i].prompt)))
    batches, last = [], None
    for i in mine:
        key = (records[i]["instruction"], records[i].get("choices", [i]))
        if key != last or len(batches[-1]) == 4 * cfg.batch_size:
            batches.append([])
        batches[-1].append(i)
        last = key
    for batch in batches:
        choices = records[batch[0]].get("choices") or [records[batch[0]]["output"]]
        ids = [c.tolist() + [tok.eot] for c in tok.encode_batch(choices)]
        with machine.autocast():
            nats, greedy = model.log_likelihoods([rows[i].prompt.tolist() for i in batch], ids)
            chances = nats.softmax(dim=1)
            if turned := [b for b, i in enumerate(batch) if rows[i].other]:
                prompts = [rows[batch[b]].other.prompt.tolist() for b in turned]
                chances[turned] += model.log_likelihoods(prompts, ids)[0].softmax(dim=1)
        best = chances.argmax(dim=1).tolist()
        for b, i in enumerate(batch):
            exact += greedy[b, choices.index(records[i]["output"])].item()
            if labels:
                confusion[labels.index(records[i]["output"]), labels.index(choices[best[b]])] += 1
        bar.update(len(batch))
    n, exact, *cells = machine.sum(len(mine), exact, *confusion.ravel())
    return {"n": int(n), **summarize(np.array(cells).reshape(confusion.shape)),
            "exact_match": exact / n if n else None, "majority": majority(records)}


def score(model, tok, records, cfg, machine):
    """-> {task: its scores}. accuracy and mcc take the likeliest of the choices. exact_match is
    whether the model, left alone, would write the right answer and then <|endoftext|>: whether at
    each token of it, given those before, that is the likeliest. majority is always giving the
    commonest answer."""
    model.eval()
    rows = rows_to_score(records, lambda r: encode_records(r, tok, model.config.block_size), cfg)
    scores = {}
    with tqdm(total=len(records), desc="scoring", unit=" rows",
              disable=None if machine.is_main else True) as bar:
        for name, places in by_task(records).items():
            scores[name] = score_task(model, tok, [records[i] for i in places],
                                      [rows[i] for i in places], cfg, machine, bar)
    return scores


def add_floors(scores, train, test, tok, cfg, machine):
    """Add to each task's scores what a linear model on 6-mers gets, tuned on the same records, and
    what the model gets that tuning began with. (The first process alone has use for them.)"""
    untuned, _ = load_checkpoint(os.path.join(cfg.init_from, "best.pt"), machine.device)
    zero_shot = score(untuned, tok, test, replace(cfg, both_strands=False), machine)
    if not machine.is_main:
        return
    train_places, test_places = by_task(train), by_task(test)
    for name in tqdm(scores, desc="6-mers", unit=" tasks", disable=None):
        scores[name]["zero_shot_mcc"] = zero_shot[name]["mcc"]
        known = [train[i] for i in train_places.get(name, [])]
        asked = [test[i] for i in test_places[name]]
        labels = labels_of(asked)
        if len(known) > 20 and labels and all(is_dna(r["input"]) and r["output"] in labels
                                              for r in known + asked):
            scores[name]["kmer_mcc"] = matthews(kmer_floor(known, asked, labels))


COLUMNS = {"n": "n", "accuracy": "accuracy", "mcc": "mcc", "mcc_interval": "95% interval",
           "exact_match": "exact match", "majority": "majority", "kmer_mcc": "6-mers' mcc",
           "zero_shot_mcc": "zero-shot mcc"}


def with_means(scores, **more):
    """-> what scores.json holds"""
    result = {"tasks": scores}
    for key in ("accuracy", "mcc", "kmer_mcc", "zero_shot_mcc"):
        known = [s[key] for s in scores.values() if s.get(key) is not None]
        if known or key in ("accuracy", "mcc"):
            result[f"mean_{key}"] = sum(known) / len(known) if known else None
    return result | more


def table(result):
    """What scores.json holds -> a table as text, with the columns that there is something for"""
    mean = {key: result.get(f"mean_{key}") for key in COLUMNS}
    rows = {name + ("" if s.get("tuned", True) else " *"): s for name, s in result["tasks"].items()}
    rows["mean"] = mean
    columns = [key for key in COLUMNS if any(s.get(key) is not None for s in rows.values())]
    width = max(map(len, rows))
    lines = [f"{'task':{width}}" + "".join(f"{COLUMNS[c]:>15}" for c in columns)]

    def cell(key, value):
        if value is None:
            return ""
        if key == "n":
            return f"{value:,}"
        return "{:.3f} {:.3f}".format(*value) if key == "mcc_interval" else f"{value:.3f}"

    for name, s in rows.items():
        lines.append(f"{name:{width}}" + "".join(f"{cell(c, s.get(c)):>15}" for c in columns))
    if any(not s.get("tuned", True) for s in rows.values()):
        lines.append("* not tuned on")
    return "\n".join(lines)


def compare(paths):
    """The mcc of several runs side by side, as text; in the last line the mean over the tasks that
    all of them have. paths: scores.json files or folders of them; of several joined by + it gives
    the mean and the standard deviation."""
    columns = []        # for each path {task: its mcc in each of the runs}
    for path in paths:
        runs = []
        for file in path.split("+"):
            file = os.path.join(file, "scores.json") if os.path.isdir(file) else file
            with open(file, encoding="utf-8") as f:
                try:
                    runs.append({name: s["mcc"] for name, s in json.load(f)["tasks"].items()})
                except (json.JSONDecodeError, KeyError, TypeError):
                    raise ValueError(f"{file}: not a scores.json that instruct.py wrote") from None
        columns.append({name: [run[name] for run in runs] for name in runs[0]
                        if all(run.get(name) is not None for run in runs)})
    names = sorted({name for column in columns for name in column})
    if shared := [name for name in names if all(name in column for column in columns)]:
        last = f"mean of {len(shared)}"
        for column in columns:
            column[last] = np.mean([column[name] for name in shared], axis=0).tolist()
        names.append(last)
    width = max(map(len, names))

    def cell(found):
        spread = f" ± {np.std(found, ddof=1):.3f}" if len(found) > 1 else ""
        return f"{np.mean(found):.3f}{spread}" if found else ""

    lines = [f"column {i}: {path}" for i, path in enumerate(paths, start=1)]
    lines += ["", f"{'mcc':{width}}" + "".join(f"{i:>15}" for i in range(1, len(paths) + 1))]
    lines += [f"{name:{width}}" + "".join(f"{cell(column.get(name, [])):>15}" for column in columns)
              for name in names]
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------
# Tuning

def tune(model, cfg, machine, rows, make_batch, tokenizer, extra, shares=None):
    """Tune `model` on rows, of which some are held out -> the best model there was, by those.
    make_batch(rows): -> the arguments of model()
    tokenizer: path of the file; extra: what checkpoints hold besides; shares: as in Batches"""
    order = np.random.default_rng(cfg.seed).permutation(len(rows))
    n_val = max(1, int(len(rows) * cfg.val_fraction))
    if n_val >= len(rows):
        raise ValueError(f"{', '.join(cfg.tasks)}: {len(rows)} rows are too few to tune on")
    held_out = Batches([rows[i] for i in order[:n_val]], cfg.batch_size, cfg.seed)
    train = Batches([rows[i] for i in order[n_val:]], cfg.batch_size, cfg.seed, shares,
                    cfg.reverse_complement)
    accumulation = cfg.gradient_accumulation_steps
    if not cfg.max_steps:
        cfg = replace(cfg, max_steps=math.ceil(cfg.epochs * train.n / accumulation))
    if machine.is_main:
        print(f"{len(train.rows):,} rows of {len({r.task for r in rows})} tasks, "
              f"{train.lengths.mean():.0f} tokens each; padding {train.padding():.1%}")

    def batches(step):
        return [make_batch(train[step * accumulation + m])
                for m in range(machine.rank, accumulation, machine.world)]

    def evaluate():
        nats = count = 0.0
        for k in range(machine.rank, held_out.n, machine.world):
            batch = [t.to(machine.device) for t in make_batch(held_out[k])]
            _, targets, *weights = batch
            n = (weights[0] if weights else targets != -1).sum().item()
            with machine.autocast():
                nats += model(*batch)[1].item() * n
            count += n
        nats, count = machine.sum(nats, count)
        return {"val_loss": nats / count, "bits_per_base": None, "bits_per_byte": None}

    resumed = None
    if cfg.resume:
        model, resumed = resume_from(cfg, machine, extra["tokenizer_sha256"])
    prepare_out_dir(cfg, machine, tokenizer)
    fit(model, cfg, machine, batches, evaluate, extra, resumed)
    if machine.world > 1:
        dist.barrier()
    best = torch.load(os.path.join(cfg.out_dir, "best.pt"), machine.device, weights_only=True)
    model.load_state_dict(best["model"])
    return model


class Classifier(GPT):
    """The network with a linear head on its last token in place of the one that writes: what the
    paper compares instruction tuning with."""

    def __init__(self, config, n_labels):
        super().__init__(config)
        self.head = nn.Linear(config.n_embd, n_labels)

    def forward(self, idx, targets):
        """idx (B, T); targets (B, T): -1, and at each row's last token its label
        -> logits (B, labels), and the loss, the mean in nats"""
        last = targets != -1
        logits = self.head(self.hidden(idx)[last])
        return logits, F.cross_entropy(logits.float(), targets[last])

    def training_flops(self, idx, targets):
        """As GPT's, without the head that writes"""
        each = self.flops_per_token(idx.size(1)) - 6 * self.lm_head.weight.numel()
        return idx.numel() * each


def classification_rows(records, labels, tok, block_size):
    """-> a Row for each record: its input between two <|endoftext|>, cut at the end where it is too
    long, and the number of its label as the response"""
    rows = []
    for r, ids in zip(records, tok.encode_batch([r["input"] for r in records])):
        ids = [tok.eot, *ids[:block_size - 2].tolist(), tok.eot]
        rows.append(Row(np.array(ids), np.array([labels.index(r["output"])]), r["task"]))
    return rows


def collate_labels(rows):
    """Rows -> idx, targets (B, T), padded to the longest, for a Classifier"""
    T = max(len(r.prompt) for r in rows)
    idx = torch.zeros(len(rows), T, dtype=torch.long)
    targets = torch.full((len(rows), T), -1)
    for i, r in enumerate(rows):
        idx[i, :len(r.prompt)] = torch.from_numpy(r.prompt)
        targets[i, len(r.prompt) - 1] = int(r.response[0])
    return idx, targets


def classify(pretrained, tok, train, test, cfg, machine, tokenizer, extra):
    """Classification tuning: for each task a copy of the pretrained model -> {task: its scores}, which
    its own folder gets as soon as they are known: --resume goes on with the first task that has none."""
    scores, test_places = {}, by_task(test)
    for name, places in by_task(train).items():
        known, asked = [train[i] for i in places], [test[i] for i in test_places.get(name, [])]
        labels = labels_of(known + asked)
        if not asked or not labels:
            continue
        one = replace(cfg, out_dir=os.path.join(cfg.out_dir, name), resume=False)
        file = os.path.join(one.out_dir, "scores.json")
        if cfg.resume and os.path.exists(file):
            with open(file, encoding="utf-8") as f:
                written = json.load(f)
            if written["config"] == asdict(one):
                scores[name] = written["tasks"][name]
                continue
        if cfg.resume and machine.is_main:      # what there is of this task is not at its end
            shutil.rmtree(one.out_dir, ignore_errors=True)
        if machine.world > 1:
            dist.barrier()
        torch.manual_seed(cfg.seed)
        model = Classifier(replace(pretrained.config, dropout=cfg.dropout), len(labels)).to(machine.device)
        model.load_state_dict(pretrained.state_dict(), strict=False)

        def encode(records):
            return classification_rows(records, labels, tok, model.config.block_size)

        model = tune(model, one, machine, rows_to_tune(known, encode, cfg), collate_labels, tokenizer,
                     extra).eval()

        def chances(rows):
            with machine.autocast(), torch.inference_mode():
                logits, _ = model(*(t.to(machine.device) for t in collate_labels(rows)))
            return logits.float().softmax(dim=1)

        rows = sorted(rows_to_score(asked, encode, cfg), key=lambda r: len(r.prompt))
        mine = rows[machine.rank::machine.world]
        confusion = np.zeros((len(labels), len(labels)))
        for i in range(0, len(mine), 4 * cfg.batch_size):
            batch = mine[i:i + 4 * cfg.batch_size]
            found = chances(batch)
            if turned := [b for b, r in enumerate(batch) if r.other]:
                found[turned] += chances([batch[b].other for b in turned])
            confusion += confusion_matrix([int(r.response[0]) for r in batch],
                                          found.argmax(dim=1).tolist(), range(len(labels)))
        confusion = np.array(machine.sum(*confusion.ravel())).reshape(confusion.shape)
        scores[name] = {"n": len(asked), **summarize(confusion), "majority": majority(asked)}
        if machine.is_main:     # the scores are wanted, and so many models would fill the disk
            config.write_json(file, with_means({name: scores[name]}, config=asdict(one)))
            for checkpoint in ("last.pt", "best.pt"):
                os.remove(os.path.join(one.out_dir, checkpoint))
    return scores


# ----------------------------------------------------------------------------------------------

def main(argv):
    cfg = config.from_command_line(InstructConfig, "instruct", argv)
    if cfg.compare:
        print(compare(cfg.compare))
        return
    tuning = cfg.epochs > 0 or cfg.max_steps > 0
    train = read_tasks(cfg.tasks) if tuning or cfg.shots else []
    test = read_tasks(cfg.eval_tasks)
    general = read_tasks(cfg.general) if tuning else []
    machine = find_machine(cfg)
    path = os.path.join(cfg.init_from, "best.pt")
    model, state = load_checkpoint(path, machine.device, cfg.dropout)
    tokenizer = os.path.join(cfg.init_from, "tokenizer.json")
    tok = Tokenizer.load(tokenizer, state["tokenizer_sha256"])
    extra = {"tokenizer_sha256": state["tokenizer_sha256"]}

    def encode(records):
        return encode_records(records, tok, model.config.block_size)

    if cfg.shots:
        test = add_shots(test, train, cfg)
        train = add_shots(train, train, cfg) if tuning else []
    tuned = [r for r in train if not among(r["task"], cfg.leave_out)]
    if tuning and not tuned:
        raise ValueError(f"leave_out={','.join(cfg.leave_out)}: no task is left to tune on")
    if tuning and cfg.classify:
        scores = classify(model, tok, tuned, test, cfg, machine, tokenizer, extra)
    else:
        if tuning:
            # sample.py gives the chances of the choices of tasks that the model knows
            extra["choices"] = [list(c) for c in sorted({tuple(r.get("choices", ())) for r in tuned})]
            rows = rows_to_tune(tuned + general, encode, cfg)
            model = tune(model, cfg, machine, rows,
                         lambda rows: collate(rows, cfg.prompt_loss_weight), tokenizer, extra,
                         task_shares(tuned, general, cfg))
        scores = score(model, tok, test, cfg, machine)
    if tuning:
        for name in scores:
            scores[name]["tuned"] = any(r["task"] == name for r in tuned)
        if cfg.floors:
            add_floors(scores, train, test, tok, cfg, machine)
    out_dir = cfg.out_dir if tuning else cfg.init_from
    if machine.is_main:
        file = cfg.scores or os.path.join(out_dir, "scores.json")
        result = with_means(scores, config=asdict(cfg))
        config.write_json(file, result)
        print("\n" + table(result) + "\n")
        given = "" if out_dir == "out/toy-instruct" else f" --out_dir={out_dir}"
        print(f"wrote {cfg.scores or out_dir}; next: " + (
            f"python instruct.py --compare={file}, and other runs behind a comma" if cfg.classify
            else f"python sample.py{given}, with --chat to talk to it"))
    if machine.world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    config.run(main)
