"""
Instruction tuning: one model, many tasks, and a score for each.

    python instruct.py                                        # the toy world, after train.py
    python instruct.py --init_from=out/laptop --out_dir=out/laptop-instruct \\
        --tasks='data/laptop/tasks/*.train.json' --eval_tasks='data/laptop/tasks/*.dev.json'
    python instruct.py --init_from=out/laptop --epochs=0 --eval_tasks=...       # only score

A row is a prompt, the response and <|endoftext|>. The loss is on the response (and on the prompt
too, as far as prompt_loss_weight says), so that the model learns to answer and then to stop.
Beside what train.py writes, out_dir gets scores.json.

In shapes: B batch, T time (tokens), V vocabulary.
"""
import glob
import math
import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.distributed as dist
from torch.nn import functional as F
from tqdm import tqdm

import config
from bpe import Tokenizer, encode_prompts
from model import load_checkpoint
from prepare import read_alpaca
from train import RunConfig, find_machine, fit, prepare_out_dir, resume_from


@dataclass
class InstructConfig(RunConfig):
    out_dir: str = "out/toy-instruct"   # folder to write to
    init_from: str = "out/toy"      # folder of the model to start from
    tasks: list[str] = field(default_factory=lambda: ["data/toy/tasks/*.train.json"])       # Alpaca files to tune on
    eval_tasks: list[str] = field(default_factory=lambda: ["data/toy/tasks/*.test.json"])   # Alpaca files to score
    epochs: float = 1.0             # times through the tasks; 0: only score init_from
    max_steps: int = 0              # steps of the optimizer; 0: as epochs says
    batch_size: int = 16            # rows a micro-step
    optimizer: str = "adamw"        # muon (of the blocks' matrices, the rest by AdamW) or adamw
    eval_interval: int = 250        # steps between evaluations, each with a checkpoint
    prompt_loss_weight: float = 0.0     # of a prompt token; a response token has 1
    val_fraction: float = 0.02      # share of the rows held out of tuning to choose best.pt by
    max_new_tokens: int = 32        # longest answer in exact_match, in tokens
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


def encode_records(records, tok, block_size):
    """-> a row (prompt ids, response ids) for each record, the response with <|endoftext|>.

    Where the two do not fit into block_size the end of the input is cut off, never the answer; what
    does not fit even without its input is left out, as None. How many there were is printed.
    """
    responses = [r.tolist() + [tok.eot] for r in tok.encode_batch([r["output"] for r in records])]
    prompts, trimmed = encode_prompts(tok, [(r["instruction"], r["input"]) for r in records],
                                      [block_size - len(r) for r in responses])
    if trimmed:
        print(f"{trimmed:,} of {len(records):,} inputs were trimmed to fit into {block_size} tokens")
    if left_out := sum(p is None for p in prompts):
        print(f"{left_out:,} of {len(records):,} records do not fit into {block_size} tokens even "
              "without their input, and were left out")
    return [(p, r) if p is not None else None for p, r in zip(prompts, responses)]


def collate(rows, prompt_loss_weight):
    """Rows (prompt, response) -> idx, targets, weights (B, T), padded to the longest row. Row i's
    target at t is its token at t + 1; padding has the target -1."""
    T = max(len(prompt) + len(response) for prompt, response in rows) - 1
    idx = torch.zeros(len(rows), T, dtype=torch.long)
    targets = torch.full((len(rows), T), -1)
    weights = torch.zeros(len(rows), T)
    for i, (prompt, response) in enumerate(rows):
        ids = torch.tensor(prompt + response)
        idx[i, :len(ids) - 1] = ids[:-1]
        targets[i, :len(ids) - 1] = ids[1:]
        weights[i, :len(prompt) - 1] = prompt_loss_weight
        weights[i, len(prompt) - 1:len(ids) - 1] = 1.0
    return idx, targets, weights


class Batches:
    """Batches of rows of similar length, so that almost nothing is padding. Every row once before
    any comes again; batch k is a function of the seed and k alone."""

    POOL = 50       # batches that are sorted together: fewer is more random, more is less padding

    def __init__(self, rows, batch_size, seed):
        self.lengths = np.array([len(prompt) + len(response) for prompt, response in rows])
        self.rows, self.batch_size, self.seed = rows, batch_size, seed
        self.n = math.ceil(len(rows) / batch_size)
        self.epoch = None

    def order(self, epoch):
        """-> the batches of an epoch, a list of arrays of row numbers"""
        rng = np.random.default_rng((self.seed, epoch))
        shuffled = rng.permutation(len(self.rows))
        pools = np.split(shuffled, range(self.POOL * self.batch_size, len(shuffled),
                                         self.POOL * self.batch_size))
        by_length = np.concatenate([p[np.argsort(self.lengths[p], kind="stable")] for p in pools])
        batches = np.split(by_length, range(self.batch_size, len(by_length), self.batch_size))
        return [batches[i] for i in rng.permutation(len(batches))]

    def __getitem__(self, k):
        epoch, place = divmod(k, self.n)
        if epoch != self.epoch:
            self.epoch, self.batches = epoch, self.order(epoch)
        return [self.rows[i] for i in self.batches[place]]

    def padding(self):
        """-> the share of padding in the first epoch"""
        padded = sum(self.lengths[b].max() * len(b) for b in self.order(0))
        return 1 - self.lengths.sum() / padded


# ----------------------------------------------------------------------------------------------
# Scores

@torch.inference_mode()
def choice_log_likelihoods(model, prompts, choices):
    """The log-likelihood, in nats, of each of `choices` (lists of ids, <|endoftext|> at the end) as
    the response to each of `prompts` (lists of ids) -> (B, number of choices). The prompts are read
    once; each choice is then laid over the one before in the cache."""
    room = max(map(len, prompts)) + max(map(len, choices))
    logits, cache, lengths = model.read(prompts, room)
    first = F.log_softmax(logits.float(), dim=-1)                           # (B, V)
    columns = []
    for choice in choices:
        total = first[:, choice[0]]
        if len(choice) > 1:
            ids = torch.tensor(choice, device=model.device).expand(len(prompts), -1)
            position = lengths[:, None] + torch.arange(len(choice) - 1, device=model.device)
            logits, _ = model(ids[:, :-1], position=position, cache=cache)
            rest = F.log_softmax(logits.float(), dim=-1)                    # (B, T, V)
            total = total + rest.gather(2, ids[:, 1:, None]).sum(dim=(1, 2))
        columns.append(total)
    return torch.stack(columns, dim=1)


def matthews(confusion):
    """Matthews correlation coefficient of a confusion matrix (true class, predicted class), for any
    number of classes (Gorodkin, 2004, "Comparing two K-category assignments by a K-category
    correlation coefficient"); 0 where all are of one class or predicted as one"""
    confusion = np.asarray(confusion, dtype=float)
    true, predicted, n = confusion.sum(axis=1), confusion.sum(axis=0), confusion.sum()
    spread = math.sqrt(n ** 2 - (true ** 2).sum()) * math.sqrt(n ** 2 - (predicted ** 2).sum())
    return float((confusion.trace() * n - true @ predicted) / spread) if spread else 0.0


def score_task(model, tok, records, rows, cfg, machine, bar):
    """-> the scores of the records of one task, over all processes"""
    labels = sorted({c for r in records for c in r.get("choices", [])})
    confusion, exact = np.zeros((len(labels), len(labels))), 0
    mine = [i for i in range(machine.rank, len(rows), machine.world) if rows[i] is not None]
    # Rows of the same choices go together, and among them those of like length.
    mine.sort(key=lambda i: (records[i].get("choices", []), len(rows[i][0])))
    batches, last = [], None
    for i in mine:
        choices = records[i].get("choices", [])
        if choices != last or len(batches[-1]) == cfg.batch_size:
            batches.append([])
        batches[-1].append(i)
        last = choices
    for batch in batches:
        prompts, choices = [rows[i][0] for i in batch], records[batch[0]].get("choices", [])
        with machine.autocast():
            answers = model.generate(prompts, cfg.max_new_tokens, temperature=0, stop=tok.eot)
            if choices:
                ids = [c.tolist() + [tok.eot] for c in tok.encode_batch(choices)]
                best = choice_log_likelihoods(model, prompts, ids).argmax(dim=1).tolist()
        exact += sum(answer == rows[i][1] for i, answer in zip(batch, answers))
        for i, b in zip(batch, best if choices else []):
            confusion[labels.index(records[i]["output"]), labels.index(choices[b])] += 1
        bar.update(len(batch))
    n, exact, *cells = machine.sum(len(mine), exact, *confusion.ravel())
    confusion = np.array(cells).reshape(confusion.shape)
    scored = confusion.sum()
    return {"n": int(n),
            "accuracy": confusion.trace() / scored if scored else None,
            "mcc": matthews(confusion) if scored else None,
            "exact_match": exact / n if n else None,
            "majority": max(Counter(r["output"] for r in records).values()) / len(records)}


def score(model, tok, records, rows, cfg, machine):
    """-> what scores.json holds. accuracy and mcc take the likeliest of the choices, exact_match is
    free greedy generation up to <|endoftext|>, majority is always giving the commonest answer."""
    model.eval()
    tasks = {}
    for i, r in enumerate(records):
        tasks.setdefault(r["task"], []).append(i)
    scores = {}
    with tqdm(total=len(rows), desc="scoring", unit=" rows",
              disable=None if machine.is_main else True) as bar:
        for name, members in sorted(tasks.items()):
            scores[name] = score_task(model, tok, [records[i] for i in members],
                                      [rows[i] for i in members], cfg, machine, bar)
    result = {"tasks": scores}
    for key in ("accuracy", "mcc"):
        known = [s[key] for s in scores.values() if s[key] is not None]
        result[f"mean_{key}"] = sum(known) / len(known) if known else None
    return result


def table(scores):
    """-> the scores as text"""
    columns = ("n", "accuracy", "mcc", "exact_match", "majority")
    width = max(len(name) for name in ["task", *scores["tasks"]])
    lines = [f"{'task':{width}}" + "".join(f"{c:>13}" for c in columns)]
    mean = {"accuracy": scores["mean_accuracy"], "mcc": scores["mean_mcc"]}
    for name, s in [*scores["tasks"].items(), ("mean", mean)]:
        cells = ["" if s.get(c) is None else f"{s[c]:,}" if c == "n" else f"{s[c]:.3f}"
                 for c in columns]
        lines.append(f"{name:{width}}" + "".join(f"{c:>13}" for c in cells))
    return "\n".join(lines)


# ----------------------------------------------------------------------------------------------

def main(argv):
    cfg = config.from_command_line(InstructConfig, "instruct", argv)
    tuning = cfg.epochs > 0 or cfg.max_steps > 0
    train_records = read_tasks(cfg.tasks) if tuning else []
    eval_records = read_tasks(cfg.eval_tasks)
    machine = find_machine(cfg)
    path = os.path.join(cfg.init_from, "best.pt")
    model, state = load_checkpoint(path, machine.device, cfg.dropout)
    tokenizer = os.path.join(cfg.init_from, "tokenizer.json")
    tok = Tokenizer.load(tokenizer, state["tokenizer_sha256"])
    block_size = model.config.block_size

    if tuning:
        rows = [r for r in encode_records(train_records, tok, block_size) if r is not None]
        order = np.random.default_rng(cfg.seed).permutation(len(rows))
        n_val = max(1, int(len(rows) * cfg.val_fraction))
        if n_val >= len(rows):
            raise ValueError(f"{', '.join(cfg.tasks)}: {len(rows)} rows are too few to tune on")
        held_out = Batches([rows[i] for i in order[:n_val]], cfg.batch_size, cfg.seed)
        train = Batches([rows[i] for i in order[n_val:]], cfg.batch_size, cfg.seed)
        accumulation = cfg.gradient_accumulation_steps
        if not cfg.max_steps:
            cfg.max_steps = math.ceil(cfg.epochs * train.n / accumulation)
        if machine.is_main:
            print(f"{len(train.rows):,} rows of {len({r['task'] for r in train_records})} tasks, "
                  f"{train.lengths.mean():.0f} tokens each; padding {train.padding():.1%}")

        def batches(step):
            return [collate(train[step * accumulation + m], cfg.prompt_loss_weight)
                    for m in range(machine.rank, accumulation, machine.world)]

        def evaluate():
            nats = tokens = 0.0
            for k in range(machine.rank, held_out.n, machine.world):
                idx, targets, weights = (t.to(machine.device) for t in collate(held_out[k], 0.0))
                with machine.autocast():
                    nats += model(idx, targets, weights)[1].item() * weights.sum().item()
                tokens += weights.sum().item()
            nats, tokens = machine.sum(nats, tokens)
            return {"val_loss": nats / tokens, "bits_per_base": None, "bits_per_byte": None}

        resumed = None
        if cfg.resume:
            model, resumed = resume_from(cfg, machine, state["tokenizer_sha256"])
        prepare_out_dir(cfg, machine, tokenizer)
        fit(model, cfg, machine, batches, evaluate,
            {"tokenizer_sha256": state["tokenizer_sha256"]}, resumed)
        if machine.world > 1:
            dist.barrier()
        model, _ = load_checkpoint(os.path.join(cfg.out_dir, "best.pt"), machine.device)
    else:
        cfg.out_dir = cfg.init_from

    scores = score(model, tok, eval_records, encode_records(eval_records, tok, block_size), cfg,
                   machine)
    if machine.is_main:
        config.write_json(os.path.join(cfg.out_dir, "scores.json"),
                          scores | {"eval_tasks": cfg.eval_tasks})
        print("\n" + table(scores) + "\n")
        print(f"wrote {cfg.out_dir}; next: python sample.py"
              + ("" if cfg.out_dir == "out/toy-instruct" else f" --out_dir={cfg.out_dir}")
              + ", with --chat to talk to it")
    if machine.world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    config.run(main)
