"""
Ask a model about files of sequences: sample.py --predict, --explain, --compare,
--score, --embed.

A file is FASTA, or a table with a column `sequence`. It may be packed (gzip, xz,
bzip2), and - is standard input. (`bedtools getfasta` makes FASTA of a BED file, and
`bcftools consensus` of a VCF file.) Results are in the order of the file. They are
written to --output (gzipped if its name ends in .gz), or else printed. A .csv file has
commas, any other has tabs.

A column means the same in each use:

    name            of the record, or the word that a pair's names begin with
    start, end      of a window, in letters from 0, the end excluded, as in BED
    position        of a letter, from 1
    label           the likeliest choice. With several tasks it is TASK:label
    a choice        its probability, as a share of all choices; TASK:CHOICE likewise
    bits            that the model needs for the bases of stretches of eight or more
    bases           in such stretches
    note            what was not read of the sequence

The functions take `s`, the Session that sample.py has loaded, `cfg`, which is the keys,
and questions, each an example without its input.

Shapes: N sequences, K choices, L letters, B batch, T time (tokens), C channels.
"""
import csv
import gzip
import io
import itertools
import math
import os
import re
import shlex
import sys
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from bpe import SHORTEST
from config import check_output, read_json, replacing, require
from dna.read import (BLOCK, clean_dna, is_dna, read_fasta, read_lines, read_table,
                      stretches)
from instruct import encode_prompts, label_probabilities


@dataclass
class AnalyzeConfig:
    # The question
    instruction: str = ""           # what to do
    task: tuple = ()                # in its place: tasks of the model's tuning, by name
                                    # or pattern, such as tf_*; all of them: all
    choices: tuple = ()             # its answers, if the model was not tuned on it
    # Files of sequences, for one of these uses
    predict: str = ""               # file: the label of each sequence, and probabilities
    window: int = 0                 # letters that predict reads at a time; 0: a record
    stride: int = 0                 # from one window's start to the next; 0: a window
    explain: str = ""               # file or sequence: the bases that a label depends on
    compare: tuple = ()             # two files: reference and alternative alleles. Those
                                    # whose names begin with the same word are a pair.
                                    # Or one file with both, each reference first.
    score: str = ""                 # file: bits and bits per base of each sequence
    positions: bool = False         # score each base
    embed: str = ""                 # file: mean hidden states, to --output=NAME.npy
    output: str = ""                # file for the result; .gz is packed


# --------------------------------------------------------------------------------------
# Files

def read_records(path, longest=None):
    """Stream a FASTA file or a table -> (name, sequence), ambiguous letters included. A
    sequence of `longest` letters or more comes in parts, the last one shorter."""
    path = "/dev/stdin" if path == "-" else path
    lines = (pair for pair in read_lines(path, longest or -1) if not pair[1].isspace())
    first = next(lines)
    lines = itertools.chain([first], lines)
    if first[1].startswith((">", ";")):
        yield from read_fasta(lines, path, longest)
    else:
        # the parts of a line are one again
        lines = ((number, "".join(part for _, part in parts))
                 for number, parts in itertools.groupby(lines, lambda pair: pair[0]))
        for name, sequence, *_ in read_table(lines, path, labelled=False):
            size = longest or len(sequence) + 1
            for start in range(0, len(sequence) + 1, size):
                yield name, sequence[start:start + size]


def windows(records, window, stride):
    """Cut records into windows of `window` letters that begin every `stride` letters.
    The last one is shorter where the record ends in it.

    records: (name, sequence), in parts of BLOCK letters, the last one shorter
    -> (name, start, end), sequence; from 0, the end excluded
    """
    overlap = max(0, window - stride)
    start, text = 0, ""
    for name, part in records:
        # a window ends here, or the record does. Its last letters may have been in the
        # window before.
        text += part
        is_end = len(part) < BLOCK
        while (len(text) >= max(window, stride)
               or is_end and (start == 0 or len(text) > overlap)):
            sequence = text[:window]
            yield (name, start, start + len(sequence)), sequence
            start, text = start + stride, text[stride:]
        if is_end:
            start, text = 0, ""


@contextmanager
def written(path):
    """-> a text file to write to: `path` when all is complete, or standard output"""
    if path in ("", "-"):
        yield sys.stdout
        return
    with replacing(path) as temporary:
        opened = gzip.open if path.endswith(".gz") else open
        with opened(temporary, "wt", encoding="utf-8", newline="") as f:
            yield f
    print(f"wrote {path}")


def write_table(path, rows):
    """Write a stream of rows, the first of which has the names of the columns. Numbers
    that are not whole get six decimals."""
    with written(path) as f:
        separator = "," if path.removesuffix(".gz").endswith(".csv") else "\t"
        table = csv.writer(f, delimiter=separator, lineterminator="\n")
        for row in rows:
            table.writerow(f"{c:.6f}" if isinstance(c, float) else c for c in row)


# --------------------------------------------------------------------------------------
# What is read of a sequence

def count_bases(sequence):
    """-> how many bases are in stretches"""
    return sum(map(len, stretches(sequence)))


def note(sequence, kept=None, is_dna=True, length=None):
    """-> what to know of the result of a sequence or of another text, or "". kept: how
    many of its letters were read, from its beginning; by default all. length: that of
    the sequences that the model was tuned on"""
    remarks = []
    if is_dna and not stretches(sequence):
        remarks.append(f"no {SHORTEST} bases in a row")
    ambiguous = len(re.findall("[^ACGT]", sequence))
    if is_dna and ambiguous:
        remarks.append(f"{ambiguous:,} of {len(sequence):,} letters are ambiguous")
    if is_dna and length and not length / 2 <= len(sequence) <= 2 * length:
        remarks.append(f"tuned on sequences of {length:,} bases")
    if kept is not None and kept < len(sequence):
        remarks.append(f"only the first {kept:,} of {len(sequence):,} letters were read")
    return "; ".join(remarks)


# --------------------------------------------------------------------------------------
# Labels

def prompt(s, question, input):
    """-> the ids of the prompt of a question about an input, and how many letters of the
    input are in it. ValueError if not even the instruction fits"""
    example = question | {"input": input}
    (ids,), (kept,) = encode_prompts(s.tok, [example], s.max_len)
    require(ids is not None,
            f"the instruction does not fit into {s.max_len} tokens: shorten it")
    return ids, kept


def ask(s, question, sequences, what, exact=True):
    """Ask a question about each sequence. what: a word for the progress bar, "" for
    none; exact: as in label_probabilities()

    -> log-probabilities of the choices, float64 (N, K), nan where a sequence has too
    few bases in a row to be DNA; and how many letters of each sequence were read
    """
    asked = [i for i, sequence in enumerate(sequences)
             if stretches(sequence) or not question.get("is_dna", True)]
    examples = [question | {"input": sequences[i]} for i in asked]
    answers = label_probabilities(s.model, s.tok, examples, s.max_len, s.machine, what,
                                  exact=exact)
    require(None not in answers,
            f"the instruction does not fit into {s.max_len} tokens: shorten it")
    log_p = np.full((len(sequences), len(question["choices"])), np.nan)
    kept = list(map(len, sequences))
    for i, answer in zip(asked, answers):
        log_p[i], kept[i] = answer.log_p, answer.kept
    return log_p, kept


class Prediction(NamedTuple):
    label: str              # the likeliest choice; "" where a sequence is too short
    probability: float      # of the label, as a share of all choices; nan without one
    probabilities: dict     # {choice: its share}
    note: str               # what to know of it, such as that the sequence was cut
    kept: int               # how many letters were read, from the beginning


def predictions(s, question, sequences, what):
    """-> list with a Prediction per sequence. Arguments as in ask()"""
    log_p, kept = ask(s, question, sequences, what)
    found = []
    for p, sequence, n in zip(np.exp(log_p).tolist(), sequences, kept):
        remarks = note(sequence, n, question.get("is_dna", True), question.get("length"))
        shares = dict(zip(question["choices"], p))
        label = "" if math.isnan(p[0]) else max(shares, key=shares.get)
        probability = shares.get(label, math.nan)
        found.append(Prediction(label, probability, shares, remarks, n))
    return found


CHUNK = 8192        # sequences that predict() reads at a time


def prefixed(columns, question, questions):
    """-> the columns of a question, with its task's name if there are several"""
    prefix = f"{question['task']}:" if len(questions) > 1 else ""
    return [prefix + column for column in columns]


def predict(s, cfg, questions):
    """-> rows of a table: the likeliest label of each sequence or window, and all
    labels' probabilities. A sequence that is cut would be judged by its beginning, so a
    record must fit whole."""
    # about how many bases a prompt holds, measured on random DNA
    dna = "".join(np.random.default_rng(0).choice(list("ACGT"), size=32 * s.max_len))
    holds = min(prompt(s, question, dna)[1] for question in questions)
    fix = f"a prompt holds about {holds:,} bases"
    require(cfg.window <= holds, f"window={cfg.window}: {fix}")

    # the rows: where each is, and its sequence
    if cfg.window:
        columns = ["name", "start", "end"]
        rows = windows(read_records(cfg.predict, BLOCK), cfg.window,
                       cfg.stride or cfg.window)
    else:
        columns = ["name"]
        rows = (((name,), sequence) for name, sequence in read_records(cfg.predict))
    for question in questions:
        columns += prefixed(["label", *question["choices"]], question, questions)

    # an empty file is an error before the first line is written
    rows = itertools.chain([next(rows)], rows)
    yield [*columns, "note"]

    # their answers
    with tqdm(desc="predicting", unit=" rows", disable=None) as bar:
        while chunk := list(itertools.islice(rows, CHUNK)):
            _, sequences = zip(*chunk)
            answers = [predictions(s, q, sequences, "") for q in questions]
            for (place, sequence), *found in zip(chunk, *answers):
                require(cfg.window or all(a.kept == len(sequence) for a in found),
                        f"{cfg.predict}: {place[0]}: {len(sequence):,} letters, and "
                        f"{fix}: cut it, as --window={holds} does")
                cells = [cell for a in found
                         for cell in (a.label, *a.probabilities.values())]
                notes = dict.fromkeys(a.note for a in found if a.note)
                yield [*place, *cells, "; ".join(notes)]
            bar.update(len(chunk))


# --------------------------------------------------------------------------------------
# How often labels are right

def track_record(s):
    """-> {task: how the model did on its held-out rows}, {} where its folder has no
    scores:

    {"mcc", "right": "right 78 of 100 times",
     "labels": {label: the same, of the rows that the model gave this label},
     "no_better": "no better than always saying no", or "" where it is better}
    """
    path = os.path.join(s.folder, "scores.json")
    tasks = read_json(path)["tasks"] if os.path.exists(path) else {}
    record = {}
    for task, scores in tasks.items():
        if labels := scores["labels"]:
            confusion = np.array(scores["confusion"])
            of_labels = map(times, confusion.diagonal(), confusion.sum(axis=0))
            no_better = ""
            if scores["accuracy"] <= scores["majority"]:
                _, most_frequent = max(zip(confusion.sum(axis=1), labels))
                no_better = f"no better than always saying {most_frequent}"
            record[task] = {"mcc": scores["mcc"], "no_better": no_better,
                            "right": times(confusion.trace(), confusion.sum()),
                            "labels": dict(zip(labels, of_labels))}
    return record


def times(right, of):
    """(312, 400) -> "right 78 of 100 times"; (3, 4) -> "right 3 of 4 times" """
    out_of = min(of, 100)
    return f"right {right / max(of, 1) * out_of:.0f} of {out_of} times"


# --------------------------------------------------------------------------------------
# Which bases a label depends on

def log_odds(log_p, k):
    """log-probabilities (N, K) -> log(p / (1 - p)) of choice k (N,), precise even
    where p is near 1"""
    return log_p[:, k] - np.logaddexp.reduce(np.delete(log_p, k, axis=1), axis=1)


def mutation_effects(s, question, sequence):
    """In-silico mutagenesis: each base that the prompt holds is replaced by the three
    others. (Where a sequence is cut and both strands are read, only the bases of the
    given strand's prompt are.)

    -> index of the likeliest choice; its log-odds; what replacing a letter with A,
    C, G or T adds to them (L, 4), for the L letters that are read. ValueError where a
    sequence has too few bases in a row to be DNA
    """
    # the sequence itself, then its mutants
    require(stretches(sequence), f"no answer: {note(sequence)}")
    _, kept = prompt(s, question, sequence)
    at = [(i, j) for i in range(kept)
          for j, base in enumerate("ACGT") if base != sequence[i]]
    mutants = [sequence[:i] + "ACGT"[j] + sequence[i + 1:] for i, j in at]
    log_p, _ = ask(s, question, [sequence, *mutants], "explaining", exact=False)

    # the change of the log-odds
    k = log_p[0].argmax()
    odds = log_odds(log_p, k)
    changes = np.zeros((kept, 4))
    for (i, j), mutant_odds in zip(at, odds[1:]):
        changes[i, j] = mutant_odds - odds[0]
    return k, odds[0], changes


def mean_changes(sequence, changes):
    """(L, 4) -> the mean over the bases that differ from the sequence's own (L,)"""
    others = [4 - (base in "ACGT") for base in sequence[:len(changes)]]
    return changes.sum(axis=1) / others


def marks(means):
    """(L,) -> a mark per base, on the scale of the largest mean change. # says that
    replacing it lowers the log-odds by at least half of that, : by a fifth; + raises
    them by a fifth"""
    most = np.abs(means).max(initial=1e-9)
    return "".join("#" if x <= -0.5 else ":" if x <= -0.2 else "+" if x >= 0.2 else " "
                   for x in means / most)


def show(sequence, means):
    """Print a sequence, 60 bases a line, with marks below it."""
    signs = marks(means)
    for start in range(0, len(signs), 60):
        line, below = sequence[start:start + 60], signs[start:start + 60]
        print(f"{start + 1:6}  {line}\n{'':8}{below}".rstrip())


LEGEND = ("Replacing the base lowers the log-odds of the label: # by at least half of "
          "the largest change,\n: by a fifth; + raises them by a fifth.")


def tell(s, question, name, sequence):
    """Print which bases the label of a sequence depends on -> rows of the table"""
    k, odds, changes = mutation_effects(s, question, sequence)
    label, remarks = question["choices"][k], note(sequence, len(changes))
    print(f"{name}: {label}, log-odds {odds:.2f}" + (remarks and f" ({remarks})"))
    show(sequence, mean_changes(sequence, changes))
    asked = question.get("task", question["instruction"])
    return [(name, asked, label, i, sequence[i - 1], *x)
            for i, x in enumerate(changes.tolist(), start=1)]


def explain(s, cfg, questions):
    """Show which bases the labels of each sequence depend on, and write the changes."""
    # a file, or a sequence
    path, output = cfg.explain, cfg.output
    if os.path.exists(path) or not is_dna(path.upper().replace("U", "T")):
        records = read_records(path)
    else:
        records = [("sequence", clean_dna(path, "explain"))]

    rows = [["name", "question", "label", "position", "base", *"ACGT"]]
    for name, sequence in records:
        if not stretches(sequence):
            print(f"{name}: no label ({note(sequence)})")
            continue
        for question in questions:
            rows += tell(s, question, name, sequence)
    print(LEGEND)
    if output:
        write_table(output, rows)
        if output != "-":
            print(f"next: python -m tools.plot --explain {shlex.quote(output)}")


# --------------------------------------------------------------------------------------
# Bits

@torch.inference_mode()
def token_bits(s, ids):
    """ids (T,) -> the bits that the model needs for each token of a document (T,)"""
    T = s.model.config.block_size
    ids = torch.tensor([s.tok.eot, *ids], device=s.model.device)
    nats = []
    # windows overlap by half. Each token counts once, with half a context before it or
    # more.
    for start in range(0, max(1, len(ids) - 1 - T // 2), T // 2):
        window = ids[start:start + T + 1]
        logits, _ = s.model(window[None, :-1])
        loss = F.cross_entropy(logits[0].float(), window[1:], reduction="none")
        nats += loss[T - T // 2 if start else 0:].tolist()
    return np.array(nats) / math.log(2)


def base_bits(s, sequence):
    """How many bits the model needs for each base: few where the sequence resembles
    what the model was trained on. Each stretch of A, C, G, T is a document. The bases
    of a token share its bits.

    -> (L,), nan for the letters between the stretches
    """
    bits, start = np.full(len(sequence), np.nan), 0
    for stretch in stretches(sequence):
        start = sequence.index(stretch, start)
        ids = s.tok.encode(stretch)
        lengths = np.array([len(s.tok.bytes_of[i]) for i in ids])
        shares = token_bits(s, ids) / lengths
        bits[start:start + len(stretch)] = np.repeat(shares, lengths)
        start += len(stretch)
    return bits


def total(bits):
    """(L,) -> the sum of the bits, nan where no base has any"""
    return np.nansum(bits) if np.isfinite(bits).any() else math.nan


def score(s, cfg, questions):
    """-> rows of a table: bits and bits per base of each sequence, or the bits of each
    base"""
    if cfg.positions:
        yield "name", "position", "base", "bits"
        print("the bases of a token share its bits", file=sys.stderr)
    else:
        yield "name", "bits", "bits_per_base", "bases", "note"
    records = read_records(cfg.score)
    for name, sequence in tqdm(records, "scoring", unit=" rows", disable=None):
        bits, bases = base_bits(s, sequence), count_bases(sequence)
        if cfg.positions:
            for i, base in enumerate(sequence):
                yield name, i + 1, base, bits[i]
        else:
            bits = total(bits)
            yield name, bits, bits / max(bases, 1), bases, note(sequence)


# --------------------------------------------------------------------------------------
# Pairs of alleles

def read_pairs(paths):
    """-> for each pair the word that both names begin with, the names (reference,
    alternative) and the sequences, in the order of the first file"""
    alleles = {}
    for path in paths:
        for name, sequence in read_records(path):
            alleles.setdefault(name.split()[0], []).append((path, name, sequence))

    # a pair is once in each of two files, or twice in one
    for word, pair in alleles.items():
        places = [path for path, *_ in pair]
        counts = " and ".join(f"{places.count(path)} times in {path}" for path in paths)
        require(places == [paths[0], paths[-1]], f"{word} is there {counts}: a pair is "
                "once in each of two files, or twice in one, the reference first")
    return [(word, *list(zip(*pair))[1:]) for word, pair in alleles.items()]


def align(ref, alt):
    """-> indices of the letters that both alleles have: in ref (n,) and in alt (n,)

    Alleles of one length differ by substitutions. Other alleles share what is before an
    insertion or deletion, and what is behind it.
    """
    before = len(ref)
    if len(ref) != len(alt):
        before = len(os.path.commonprefix([ref, alt]))      # of any two texts
    behind = len(os.path.commonprefix([ref[before:][::-1], alt[before:][::-1]]))
    return [np.r_[:before, len(allele) - behind:len(allele)] for allele in (ref, alt)]


def shared_bits(s, ref, alt):
    """-> the bits of the bases that both alleles have, (n,) in ref and (n,) in alt"""
    # what is ambiguous in one becomes so in the other, so both have the same stretches
    at_ref, at_alt = align(ref, alt)
    ref, alt = np.array(list(ref)), np.array(list(alt))
    is_base = np.isin([ref[at_ref], alt[at_alt]], list("ACGT")).all(axis=0)
    ref[at_ref[~is_base]] = alt[at_alt[~is_base]] = "N"

    bits_ref = base_bits(s, "".join(ref))[at_ref]
    bits_alt = base_bits(s, "".join(alt))[at_alt]
    in_both = np.isfinite(bits_ref + bits_alt)
    return bits_ref[in_both], bits_alt[in_both]


def compare(s, cfg, questions):
    """-> rows of a table: the bits of both alleles of each pair and their difference,
    and with questions the same of the probability of each label"""
    # the probability of each label, (2N, all K)
    pairs = read_pairs(cfg.compare)
    sequences = [sequence for *_, pair in pairs for sequence in pair]
    labels, p, kept = [], np.zeros((len(sequences), 0)), list(map(len, sequences))
    for question in questions:
        log_p, read = ask(s, question, sequences, "predicting")
        labels += prefixed(question["choices"], question, questions)
        p, kept = np.hstack([p, np.exp(log_p)]), list(map(min, kept, read))

    # three columns of the bits, and of each label
    columns = ["name", "name_ref", "name_alt", "bases_ref", "bases_alt", "bases_both"]
    columns += [f"{what}_{part}" for what in ("bits", *labels)
                for part in ("ref", "alt", "difference")]
    yield [*columns, "note"]
    pairs = tqdm(pairs, desc="scoring", unit=" pairs", disable=None)
    for i, (name, names, (ref, alt)) in enumerate(pairs):
        bits_ref, bits_alt = shared_bits(s, ref, alt)
        before = np.append(total(bits_ref), p[2 * i])                       # (1 + K,)
        after = np.append(total(bits_alt), p[2 * i + 1])
        values = np.stack([before, after, after - before], axis=1).ravel()

        # what to know of them
        remarks = []
        if len(ref) != len(alt):
            remarks = [f"lengths differ: {len(ref):,} and {len(alt):,} letters"]
        for part, sequence, n in zip(("ref", "alt"), (ref, alt), kept[2 * i:]):
            if text := note(sequence, n):
                remarks.append(f"{part}: {text}")
        bases = count_bases(ref), count_bases(alt), len(bits_ref)
        yield [name, *names, *bases, *values, "; ".join(remarks)]


# --------------------------------------------------------------------------------------
# Embeddings

BATCH = 64      # windows


@torch.inference_mode()
def mean_states(s, sequences):
    """-> the mean of the final hidden states over the tokens of each sequence's
    stretches of A, C, G, T, float32 (N, C); nan where there are none. A stretch that
    is longer than the context is read in windows of that size."""
    T, windows = s.model.config.block_size - 1, []
    for i, sequence in enumerate(sequences):
        for ids in s.tok.encode_batch(stretches(sequence)):
            windows += [(i, ids[start:start + T]) for start in range(0, len(ids), T)]
    windows.sort(key=lambda window: len(window[1]))

    sums = torch.zeros(len(sequences), s.model.config.n_embd)
    counts = torch.zeros(len(sequences), 1)
    starts = range(0, len(windows), BATCH)
    for start in tqdm(starts, desc="embedding", unit=" batches", disable=None):
        batch = windows[start:start + BATCH]
        ids = [torch.tensor([s.tok.eot, *ids.tolist()]) for _, ids in batch]
        idx = pad_sequence(ids, batch_first=True).to(s.model.device)
        x = s.model.hidden(idx).cpu()                                       # (B, T, C)
        for (i, ids), states in zip(batch, x):
            # neither <|endoftext|> nor padding
            sums[i] += states[1:len(ids) + 1].sum(dim=0)
            counts[i] += len(ids)
    return (sums / counts).numpy()


def embed(s, cfg, questions):
    """Write the sequences' mean states as NAME.npy, and their names, one a line, as
    NAME.names.txt. Notes are printed."""
    names, sequences = zip(*read_records(cfg.embed))
    for name, sequence in zip(names, sequences):
        if remarks := note(sequence):
            print(f"{name}: {remarks}", file=sys.stderr)
    vectors = mean_states(s, sequences)
    with written(cfg.output.removesuffix(".npy") + ".names.txt") as f:
        f.writelines(f"{name}\n" for name in names)
    # np.save() wants a file with a position, which a pipe has not
    array = io.BytesIO()
    np.save(array, vectors)
    with replacing(cfg.output) as temporary, open(temporary, "wb") as f:
        f.write(array.getvalue())
    print(f"wrote {cfg.output}")


# --------------------------------------------------------------------------------------

# What predict, compare and score find becomes a table. The others write their own files.
USES = {"predict": predict, "explain": explain, "compare": compare, "score": score,
        "embed": embed}


def check(cfg, use):
    """ValueError or OSError if a use cannot work, found before a model is loaded"""
    require(use != "embed" or cfg.output.endswith(".npy"),
            "embed: say where the vectors go: --output=NAME.npy")
    require(use in USES or not cfg.output,
            f"--output goes with one of --{', --'.join(USES)}: give one too")
    pairs = ("window", "predict"), ("stride", "window"), ("positions", "score")
    for key, of in pairs:
        require(getattr(cfg, of) or not getattr(cfg, key),
                f"--{key} goes with --{of}: give both")
    require(len(cfg.compare) <= 2,
            f"compare: {len(cfg.compare)} files: give two, or one of pairs")
    if cfg.output not in ("", "-"):
        # where a link leads to, it is written
        folder = os.path.dirname(os.path.realpath(cfg.output))
        require(os.path.isdir(folder), f"output={cfg.output}: no such folder")
        check_output(cfg.output, cfg.compare or [getattr(cfg, use)])


def run(s, cfg, use, questions):
    """use: one of USES; questions: what sample.chosen_questions() says"""
    require(questions or use not in ("predict", "explain"),
            f"--{use} needs a --task, or an --instruction and its --choices")
    for question in questions:
        require(len(question["choices"]) > 1, "what are the answers? The model was not "
                "tuned on this question: give its --choices=A,B")
        if cfg.instruction and "task" in question:
            print(f"asked as {question['task']}", file=sys.stderr)
    rows = USES[use](s, cfg, questions)
    if rows:
        write_table(cfg.output, rows)
    asked = cfg.task or cfg.instruction
    if use in ("score", "compare") and s.questions and not asked:
        print("warning: this model was tuned to answer: bits per base belong to the "
              "pretrained one, by its --out_dir", file=sys.stderr)
