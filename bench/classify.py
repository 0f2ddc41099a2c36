"""
Classification tuning: the paper's comparison. Instead of one model that writes its answers, a model
per task: a copy of the pretrained one, with a linear head on the last token.

    python -m bench.classify --epochs=1                       # the toy world, after train.py
    python -m bench.classify config/laptop.toml --out_dir=out/laptop-classify --resume

Takes the keys of instruct.py. The scores go to scores/classify.json beside the scored files, where
instruct.py finds them for its table, and are added to those of other tasks there. out_dir gets a
folder per task, with its log and scores; --resume continues with the first unfinished task.

Shapes: B batch, T time (tokens), L labels.
"""
import functools
import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

import config
from bench.kmers import read_scores, score_labels, write_scores
from bpe import Tokenizer
from config.machine import find_machine
from instruct import InstructConfig, epoch_batches, hold_out, plan_batches, records_to_tune
from metrics import table, with_means
from model import GPT, load_checkpoint
from record import open_out_dir
from tasks import Row, by_task, find_files, other_strand, read_tasks
from train import fit


@dataclass
class ClassifyConfig(InstructConfig):
    out_dir: str = "out/toy-classify"   # folder to write to, a folder per task


# ----------------------------------------------------------------------------------------------
# The network and its rows

class Classifier(GPT):
    """GPT with a linear head on the last token of each row instead of the LM head."""

    def __init__(self, config, n_labels):
        super().__init__(config)
        self.head = nn.Linear(config.n_embd, n_labels)

    def forward(self, idx, targets):
        """
        idx: (B, T) token ids
        targets: (B, T) the label at the last token of each row, -1 at all others
        -> logits (B, L), and the loss, the mean in nats
        """
        last = targets != -1
        logits = self.head(self.hidden(idx)[last])
        return logits, F.cross_entropy(logits.float(), targets[last])


def encode(records, labels, tok, block_size):
    """-> a Row per record: its input between two <|endoftext|>, cut at the end if it is too long,
    and the number of its label"""
    return [Row(np.array([tok.eot, *ids[:block_size - 2], tok.eot]),
                np.array([labels.index(r["output"])]), r["task"], "")
            for r, ids in zip(records, tok.encode_batch([r["input"] for r in records]))]


def collate(rows):
    """Rows -> idx (B, T) and targets (B, T), padded to the longest row, for a Classifier"""
    T = max(len(row.prompt) for row in rows)
    idx = torch.zeros(len(rows), T, dtype=torch.long)
    targets = torch.full((len(rows), T), -1)
    for i, row in enumerate(rows):
        idx[i, :len(row.prompt)] = torch.from_numpy(row.prompt)
        targets[i, len(row.prompt) - 1] = int(row.response[0])
    return idx, targets


# ----------------------------------------------------------------------------------------------
# One task

def tune(model, train, val, cfg, machine, extra):
    """Train a Classifier on rows -> the best one by the loss on other rows"""
    cfg, batches = plan_batches(train, cfg, machine, collate)

    def evaluate():
        nats = 0.0
        for batch in epoch_batches(val, cfg.batch_size, 0.0, 0)[machine.rank::machine.world]:
            with machine.autocast():
                loss = model(*machine.to_device(collate([val[i] for i in batch])))[1]
            nats += loss.item() * len(batch)
        return {"val_loss": machine.sum(nats)[0] / len(val)}

    open_out_dir(cfg, machine, os.path.join(cfg.init_from, "tokenizer.json"))
    fit(model, cfg, machine, batches, evaluate, extra)
    machine.barrier()
    best = torch.load(os.path.join(cfg.out_dir, "best.pt"), machine.device, weights_only=True)
    model.load_state_dict(best["model"])
    return model


@torch.inference_mode()
def probabilities(model, rows, cfg, machine):
    """-> what a Classifier says of each row, (number of rows, L)"""
    model.eval()
    found = [None] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].prompt))
    for start in range(0, len(rows), 4 * cfg.batch_size):
        batch = order[start:start + 4 * cfg.batch_size]
        with machine.autocast():
            logits, _ = model(*machine.to_device(collate([rows[i] for i in batch])))
        for i, p in zip(batch, logits.float().softmax(dim=1).cpu().numpy()):
            found[i] = p
    return np.array(found)


def classify(pretrained, tok, train, test, cfg, machine, extra):
    """Tune a copy of the pretrained model on the training records of a task -> its scores on the
    test records"""
    labels = sorted({c for r in train + test for c in r.get("choices", [])})
    rows_of = functools.partial(encode, labels=labels, tok=tok,
                                block_size=pretrained.config.block_size)

    # tune
    val, train = hold_out(train, cfg)
    torch.manual_seed(cfg.seed)
    shape = replace(pretrained.config, dropout=cfg.dropout)
    model = Classifier(shape, len(labels)).to(machine.device)
    model.load_state_dict(pretrained.state_dict(), strict=False)    # all but the new head
    model = tune(model, rows_of(train), rows_of(val), cfg, machine, extra)

    # score; every process scores all rows: they are few
    p = probabilities(model, rows_of(test), cfg, machine)
    if cfg.both_strands and other_strand(test):
        either = [bool(r.get("either_strand")) for r in test]
        p[either] += probabilities(model, rows_of(other_strand(test)), cfg, machine)
    true = [labels.index(r["output"]) for r in test]
    return score_labels(true, p.argmax(axis=1).tolist(), len(labels))


# ----------------------------------------------------------------------------------------------
# All tasks

def read_finished(cfg, extra):
    """-> the scores that a run with this config on these data left in cfg.out_dir, or None"""
    found = read_scores(os.path.join(cfg.out_dir, "scores.json"))
    same_config = json.dumps(found.get("config")) == json.dumps(asdict(cfg))
    if same_config and found["data_sha256"] == extra["data_sha256"]:
        return next(iter(found["tasks"].values()))


def run_task(task, pretrained, tok, train, test, cfg, machine, extra):
    """classify() in a folder of its own, unless an earlier run has finished it -> the scores"""
    data = hashlib.sha256(json.dumps([train, test]).encode()).hexdigest()
    one = replace(cfg, out_dir=os.path.join(cfg.out_dir, task), resume=False)
    extra = extra | {"data_sha256": data}
    if cfg.resume and (scores := read_finished(one, extra)):
        return scores
    if cfg.resume and machine.is_main:      # remove the unfinished run
        shutil.rmtree(one.out_dir, ignore_errors=True)
    machine.barrier()
    scores = classify(pretrained, tok, train, test, one, machine, extra)
    machine.barrier()

    # keep the scores; the checkpoints of so many models would fill the disk
    if machine.is_main:
        write_scores(os.path.join(one.out_dir, "scores.json"), {task: scores}, config=asdict(one),
                     data_sha256=data)
        for name in ("last.pt", "best.pt"):
            os.remove(os.path.join(one.out_dir, name))
    return scores


def main(argv):
    # records: of all tasks that have choices and rows in both sets of files
    cfg = config.from_command_line(ClassifyConfig, "instruct", argv)
    if not cfg.epochs and not cfg.max_steps:
        raise ValueError("epochs=0: a classifier has to be trained: give epochs or max_steps")
    path_of, scored = {}, []
    for path in find_files(cfg.eval_tasks):
        found = read_tasks([path])
        path_of |= dict.fromkeys((r["task"] for r in found), path)
        scored += found
    train, test = by_task(records_to_tune(cfg, scored)), by_task(scored)
    tasks = [task for task in sorted(train.keys() & test.keys())
             if len(train[task]) > 1 and all(r.get("choices") for r in train[task] + test[task])]
    if not tasks:
        raise ValueError(f"{', '.join(cfg.tasks)}: no task with choices that is in eval_tasks too")

    # machine and model
    machine = find_machine(cfg)
    model, state = load_checkpoint(os.path.join(cfg.init_from, "best.pt"), machine.device)
    tok = Tokenizer.load(os.path.join(cfg.init_from, "tokenizer.json"), state["tokenizer_sha256"])
    extra = {"tokenizer_sha256": state["tokenizer_sha256"]}

    # a classifier per task, its scores written at once
    scores = {}
    for task in tqdm(tasks, desc="classifiers", disable=None if machine.is_main else True):
        scores[task] = run_task(task, model, tok, train[task], test[task], cfg, machine, extra)
        folder = os.path.dirname(path_of[task])
        path = cfg.scores or os.path.join(folder, "scores", "classify.json")
        if machine.is_main:
            write_scores(path, read_scores(path)["tasks"] | {task: scores[task]})
    machine.close()
    if machine.is_main:
        print(f"\n{table(with_means(scores))}\n\nwrote {path}")


if __name__ == "__main__":
    config.run(main)
