"""
Other prompts, as data: task files with few-shot examples in the input, or another instruction.

    python -m bench.few_shot data/laptop/tasks data/laptop/nearest --shots=3 --nearest
    python -m bench.few_shot data/laptop/tasks data/laptop/shots --shots=3 --init_from=out/laptop
    python -m bench.few_shot data/laptop/tasks data/laptop/reworded --reworded

Each .json file of the first folder is written to the second one under the same name, to be given
to instruct.py as tasks and eval_tasks. Few-shot examples are training rows of the same task, put
in front of the sequence, the nearest last:

    GGGCTATAAAAGGC: promoter
    GATTACAGATTACA: Non-promoter
    GATTACAGATTACC

No record is its own example, nor is its reverse complement. A longer prompt is cut at the end of
its input by instruct.py, which is where the sequence now is; with --init_from each prompt has only
as many examples as fit into the context of that model. With --rows=1500 at most so many training
rows of each file are written, drawn at random; their examples are among all.

With --nearest the vote of the examples alone is scored too, without a model: a baseline, in
scores/nearest.json of the first folder. All baselines there are copied to the second one, because
they do not depend on prompts.
"""
import argparse
import os
import random
import re
import shutil
from collections import Counter

from torch.nn import functional as F
from tqdm import tqdm

import config
from bench.kmers import kmer_roots, score_labels, write_scores
from config.read import reverse_complement
from gpt2 import load_model
from metrics import table, with_means
from prepare import write_records
from tasks import (HELD_OUT_TEMPLATE, TEMPLATES, by_task, encode_prompts, is_dna, is_scored,
                   max_prompt_len, read_tasks)


# ----------------------------------------------------------------------------------------------
# Few-shot examples

def most_similar(queries, known, k):
    """Lists of DNA -> for each query the k known sequences with the highest cosine of the square
    roots of 6-mer counts: their indices, the nearest first"""
    x = kmer_roots(known)
    squares = x.values().double().square().cumsum(0)
    norm = F.pad(squares, (1, 0))[x.crow_indices()].diff().sqrt().float().clamp(min=1e-9)
    nearest = []
    for start in range(0, len(queries), 1024):
        # a query's own norm changes no order
        q = kmer_roots(queries[start:start + 1024]).to_dense()
        cosine = (x @ q.T).T / norm                                 # (queries, known)
        nearest += cosine.topk(k, dim=1).indices.tolist()
    return nearest


def find_examples(records, train, args):
    """Records of one task, its training records -> for each record a list of up to args.shots
    examples (sequence, label), the nearest first"""
    known = list({r["input"]: r for r in train}.values())       # each sequence once
    k = min(len(known), args.shots + 2)     # two more: the record and its reverse complement
    if args.nearest:
        found = most_similar([r["input"] for r in records], [r["input"] for r in known], k)
    else:
        rng = random.Random(args.seed)
        found = [rng.sample(range(len(known)), k) for _ in records]
    examples = []
    for r, indices in zip(records, found):
        own = r["input"], reverse_complement(r["input"])
        pairs = [(known[i]["input"], known[i]["output"]) for i in indices]
        examples.append([pair for pair in pairs if pair[0] not in own][:args.shots])
    return examples


def with_examples(record, examples):
    """-> the record with examples, the nearest first, in its input. Such a text has no reverse
    complement."""
    if not examples:
        return record
    lines = [f"{sequence}: {label}" for sequence, label in reversed(examples)]
    record = record | {"input": "\n".join([*lines, record["input"]])}
    return {key: value for key, value in record.items() if key != "either_strand"}


def drop_examples(records, examples, tok, max_len):
    """-> the examples without those, the least similar first, for which a prompt of at most max_len
    tokens has no room"""
    examples = list(examples)
    todo = [i for i, found in enumerate(examples) if found]
    while todo:
        asked = [with_examples(records[i], examples[i]) for i in todo]
        prompts, _ = encode_prompts(tok, [(r["instruction"], r["input"]) for r in asked],
                                    max_len=10 ** 9)
        todo = [i for i, prompt in zip(todo, prompts) if len(prompt) > max_len]
        for i in todo:
            examples[i] = examples[i][:-1]
        todo = [i for i in todo if examples[i]]
    return examples


def score_votes(records, examples):
    """-> the scores of the most frequent label among the examples, of the nearest one in a tie"""
    labels = sorted({c for r in records for c in r["choices"]})
    votes = [Counter(label for _, label in found).most_common(1)[0][0] for found in examples]
    return score_labels([labels.index(r["output"]) for r in records],
                        [labels.index(vote) for vote in votes], len(labels))


# ----------------------------------------------------------------------------------------------
# Another instruction

def reworded(record):
    """-> the record with the prompt template that no training row has; as it is, if its instruction
    is not of the first template"""
    pattern = re.escape(TEMPLATES[0])
    for key in ("what", "choices"):
        pattern = pattern.replace(rf"\{{{key}\}}", f"(?P<{key}>.+)")
    found = re.fullmatch(pattern, record["instruction"])
    if not found:
        return record
    return record | {"instruction": HELD_OUT_TEMPLATE.format(**found.groupdict())}


# ----------------------------------------------------------------------------------------------
# Folders

def read_folder(folder):
    """-> {file name: its records}"""
    names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))
    if not names:
        raise ValueError(f"{folder}: no .json files: give the tasks folder that prepare.py wrote")
    return {name: read_tasks([os.path.join(folder, name)]) for name in names}


def room_for_prompts(init_from, files):
    """-> the tokenizer of a model, and the most tokens that instruct.py gives a prompt for it"""
    model, tok, _ = load_model(init_from)
    records = [r for part in files.values() for r in part]
    choices = sorted({c for r in records for c in r.get("choices", [])})
    return tok, max_prompt_len(tok, choices, model.config.block_size)


def add_examples(files, args):
    """{file name: records} -> the same with examples; and {task: scores of the examples' votes}"""
    def usable(r):
        return bool(r.get("choices")) and is_dna(r["input"])

    train = by_task(r for name, records in files.items() if not is_scored(name)
                    for r in records if usable(r))
    rng = random.Random(args.seed)
    files = {name: rng.sample(records, args.rows)
             if not is_scored(name) and args.rows and args.rows < len(records) else records
             for name, records in files.items()}
    tok, max_len = room_for_prompts(args.init_from, files) if args.init_from else (None, None)

    votes, wanted, given = {}, 0, 0
    for name in tqdm(files, desc="few-shot examples", unit=" files", disable=None):
        records = files[name] = list(files[name])
        for task, known in train.items():
            # all records of a task in this file
            indices = [i for i, r in enumerate(records) if r["task"] == task and usable(r)]
            members = [records[i] for i in indices]
            examples = find_examples(members, known, args) if members else []
            if members and is_scored(name) and task not in votes and all(examples):
                votes[task] = score_votes(members, examples)

            # put in front what there is room for
            wanted += sum(map(len, examples))
            if tok:
                examples = drop_examples(members, examples, tok, max_len)
            given += sum(map(len, examples))
            for i, r, found in zip(indices, members, examples):
                records[i] = with_examples(r, found)
    if not wanted:
        raise ValueError(f"{args.folder}: no training rows with choices and DNA for examples")
    print(f"{given:,} examples" + (f" of {wanted:,} fit into {max_len} tokens" if tok else ""))
    return files, votes


def main(argv):
    # arguments
    parser = argparse.ArgumentParser(prog="python -m bench.few_shot", description="other prompts")
    parser.add_argument("folder", help="of task files, such as prepare.py writes")
    parser.add_argument("out", help="folder to write to")
    parser.add_argument("--shots", type=int, default=0, help="few-shot examples per prompt")
    parser.add_argument("--nearest", action="store_true", help="those most similar in 6-mers")
    parser.add_argument("--init_from", help="folder of a model: no more examples than it can read")
    parser.add_argument("--rows", type=int, help="at most so many training rows a file")
    parser.add_argument("--reworded", action="store_true",
                        help="give scored rows an instruction that no training row has")
    parser.add_argument("--seed", type=int, default=1337, help="of the examples drawn at random")
    args = parser.parse_args(argv)
    if args.shots < 1 and not args.reworded or args.nearest and args.shots < 1:
        raise ValueError("nothing to do: give --shots=3 (or another number), or --reworded")
    if os.path.realpath(args.folder) == os.path.realpath(args.out):
        raise ValueError(f"{args.out}: its own files would be overwritten: give another folder")

    # other prompts
    files, votes = read_folder(args.folder), {}
    if args.reworded:
        before = files
        files = {name: [reworded(r) for r in records] if is_scored(name) else records
                 for name, records in files.items()}
        if files == before:
            raise ValueError(f"{args.folder}: no scored rows with an instruction of prepare.py")
    if args.shots:
        files, votes = add_examples(files, args)

    # write them, and the baselines beside them
    os.makedirs(args.out, exist_ok=True)
    for name, records in files.items():
        write_records(os.path.join(args.out, name), records)
    scores = os.path.join(args.folder, "scores")
    if args.nearest:
        write_scores(os.path.join(scores, "nearest.json"), votes, shots=args.shots)
        print(f"the vote of the nearest {args.shots}:\n\n{table(with_means(votes))}\n")
    if os.path.isdir(scores):
        shutil.copytree(scores, os.path.join(args.out, "scores"), dirs_exist_ok=True)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    config.run(main)
