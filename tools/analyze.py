"""
Ask a model about files of sequences: what sample.py does with --predict, --explain, --compare,
--score and --embed.

A file is FASTA, or a table with a column `sequence`; it may be packed (gzip, xz, bzip2), and - is
standard input. Results are tab-separated, in the order of the file. They are written to --output
(gzipped if its name ends in .gz), which appears when it is complete, or else printed.

Shapes: N sequences, K choices, L bases, B batch, T time (tokens), C channels.
"""
import gzip
import math
import os
import re
import sys
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from bpe import SHORTEST
from config import replacing, require
from dna.read import (clean_dna, is_dna, read_fasta, read_lines, read_table, reverse_complement,
                      stretches)
from instruct import encode_prompts

# ----------------------------------------------------------------------------------------------
# Files

def read_sequences(path, shortest=1):
    """A FASTA file or a table -> list of (name, sequence), ambiguous letters in it"""
    path = "/dev/stdin" if path == "-" else path
    lines = [(number, line) for number, line in read_lines(path) if not line.isspace()]
    if lines[0][1].startswith((">", ";")):
        named = list(read_fasta(lines, path))
    else:
        named = [(row.name, row.sequence) for row in read_table(lines, path, labelled=False)]
    for name, sequence in named:
        require(len(sequence) >= shortest, f"{path}: {name}: no sequence")
    return named


@contextmanager
def results(path):
    """-> a text file to write to: `path` when all is well and complete, or standard output"""
    if path:
        with replacing(path) as temporary:
            opened = gzip.open if path.endswith(".gz") else open
            with opened(temporary, "wt", encoding="utf-8") as f:
                yield f
        print(f"wrote {path}")
        return
    yield sys.stdout


def tsv(*cells):
    """-> a line of a result; numbers that are not whole have six decimals"""
    return "\t".join(f"{c:.6f}" if isinstance(c, float) else str(c) for c in cells) + "\n"


# ----------------------------------------------------------------------------------------------
# Questions

GUESS = "the model was not tuned on this question: its answer is a guess"


class Question(NamedTuple):
    instruction: str
    choices: tuple                  # what the answer is chosen from
    max_len: int                    # the most tokens that its prompts may have
    either_strand: bool = False     # whether both strands have the same answer


def find_question(instruction, questions):
    """-> which of the questions that the model was tuned on an instruction asks, in the same words
    or by naming all its choices; None if it asks none of them"""
    def names_all(choices):
        text = instruction
        for choice in sorted(choices, key=len, reverse=True):   # "No Mark" does not name "Mark"
            text, n = re.subn(rf"(?<!\w){re.escape(choice)}(?!\w)", "|", text)
            if not n:
                return False
        return True

    same = [q for q in questions if q["instruction"] == instruction]
    named = [q for q in questions if names_all(q["choices"])]
    return max(same or named, key=lambda q: len(q["choices"]), default=None)


def make_question(instruction, choices, questions, max_len):
    """-> the Question of an instruction, with these choices or else those of the question that it
    asks; None without an instruction"""
    if not instruction:
        return None
    known = find_question(instruction, questions)
    choices = choices or (known["choices"] if known else ())
    require(len(choices) > 1, "what are the answers? The model was not tuned on this question: "
            "give its --choices=A,B")
    if questions and not known:
        print(GUESS, file=sys.stderr)
    either_strand = known is not None and known.get("either_strand", False)
    return Question(instruction, tuple(choices), max_len, either_strand)


def encode_inputs(tok, instruction, inputs, max_len):
    """-> an array of ids per input; how many inputs were cut to fit into max_len tokens. ValueError
    where the instruction leaves no room for them"""
    (ids,), cut = encode_prompts(tok, [(instruction, inputs[0][:SHORTEST])], max_len)
    require(ids is not None and not cut,
            f"the instruction does not fit into {max_len} tokens: shorten it")
    return encode_prompts(tok, [(instruction, text) for text in inputs], max_len)


def kept_length(tok, instruction, text, max_len):
    """-> how much of an input its prompt holds, in bases or characters"""
    (cut,), _ = encode_inputs(tok, instruction, [text], max_len)
    (whole,), _ = encode_prompts(tok, [(instruction, text)], sys.maxsize)
    if len(cut) == len(whole):
        return len(text)
    # white space is not counted, as a prompt may break a line of DNA
    all_letters, kept = (len("".join(tok.decode(ids).split())) for ids in (whole, cut))
    return max(0, len(text) - all_letters + kept)


def what_was_read(tok, instruction, text, max_len):
    """-> "read 120 bases, kept the first 90" """
    note = f"read {len(text):,} {'bases' if is_dna(text) else 'characters'}"
    if is_dna(text) and (ambiguous := len(re.findall("[^ACGT]", text))):
        note += f", {ambiguous:,} of them ambiguous"
    kept = kept_length(tok, instruction, text, max_len)
    return note if kept == len(text) else f"{note}, kept the first {kept:,}"


# ----------------------------------------------------------------------------------------------
# Labels

BATCH = 64      # sequences


def batches(items, what):
    """-> lists of indices of items of similar length. Those whose lengths are within 16 stay in
    their order: neighbours, such as mutants of a sequence, may have a long prefix in common."""
    order = sorted(range(len(items)), key=lambda i: len(items[i]) // 16)
    few = len(items) <= BATCH       # done before a bar is read
    with tqdm(total=len(items), desc=what, unit=" rows", disable=few or None) as bar:
        for start in range(0, len(items), BATCH):
            batch = order[start:start + BATCH]
            yield batch
            bar.update(len(batch))


def log_probabilities(model, tok, question, sequences, what):
    """-> log-probabilities of the choices for each sequence, float64 (N, K); those of the mean of
    both strands' probabilities where both have the same answer"""
    # the prompts
    asked = list(sequences)
    if question.either_strand:
        asked += map(reverse_complement, sequences)
    prompts, n_cut = encode_inputs(tok, question.instruction, asked, question.max_len)
    if n_cut:       # each strand was counted
        print(f"{n_cut * len(sequences) // len(asked):,} of {len(sequences):,} sequences were cut at "
              f"their end, to fit into {question.max_len} tokens", file=sys.stderr)

    # their answers
    choices = [ids.tolist() + [tok.eot] for ids in tok.encode_batch(question.choices)]
    nats = torch.empty(len(asked), len(choices), dtype=torch.float64)
    for batch in batches(prompts, what):
        nats[batch] = model.log_likelihoods([prompts[i].tolist() for i in batch],
                                            choices)[0].cpu().double()
    strands = nats.log_softmax(dim=1).view(-1, len(sequences), len(choices))
    return strands.logsumexp(dim=0) - math.log(len(strands))


def log_odds(log_p, k):
    """log-probabilities (N, K) -> log(p / (1 - p)) of choice k (N,), precise even if p is near 1"""
    others = torch.cat([log_p[:, :k], log_p[:, k + 1:]], dim=1)
    return log_p[:, k] - others.logsumexp(dim=1)


def predict(model, tok, path, question, output):
    """Write the most likely label of each sequence, and the probabilities of all labels."""
    with results(output) as f:
        names, sequences = zip(*read_sequences(path))
        log_p = log_probabilities(model, tok, question, sequences, "predicting")
        f.write(tsv("name", "label", *question.choices))
        for name, p in zip(names, log_p.exp().tolist()):
            f.write(tsv(name, question.choices[p.index(max(p))], *p))


# ----------------------------------------------------------------------------------------------
# Which bases a label depends on

def mutation_effects(model, tok, question, sequence):
    """In-silico mutagenesis: each base that the prompt holds is replaced by the three others. (Of a
    sequence that is cut, the other strand's prompt holds the other end, whose bases are not tried.)
    -> the likeliest choice; its log-odds; what becomes of them with A, C, G or T at each position,
    as the difference, (L, 4)"""
    # the sequence itself, then its mutants
    kept = kept_length(tok, question.instruction, sequence, question.max_len)
    at = [(i, j) for i in range(kept) for j, base in enumerate("ACGT") if base != sequence[i]]
    mutants = [sequence[:i] + "ACGT"[j] + sequence[i + 1:] for i, j in at]
    log_p = log_probabilities(model, tok, question, [sequence, *mutants], "explaining")

    # the change of the log-odds
    k = int(log_p[0].argmax())
    odds = log_odds(log_p, k).numpy()
    changes = np.zeros((kept, 4))
    changes[tuple(np.transpose(at))] = odds[1:] - odds[0]
    return question.choices[k], odds[0], changes


def mean_changes(sequence, changes):
    """(L, 4) -> the mean over the bases that differ from the sequence's own (L,)"""
    others = [4 - (base in "ACGT") for base in sequence[:len(changes)]]
    return changes.sum(axis=1) / others


COLOURS = {"#": "1;34", ":": "36", "+": "33"}       # bold blue, cyan, yellow


def marks(means):
    """(L,) -> a mark per base, on the scale of the largest mean change, up or down: # replacing it
    lowers the log-odds by at least half of that, : by a fifth; + raises them by a fifth"""
    most = np.abs(means).max(initial=1e-9)
    return "".join("#" if x <= -0.5 else ":" if x <= -0.2 else "+" if x >= 0.2 else " "
                   for x in means / most)


def show(sequence, means):
    """Print a sequence, 60 bases a line, with marks below it, in a terminal also in colours."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    signs = marks(means)
    for start in range(0, len(signs), 60):
        line, below = sequence[start:start + 60], signs[start:start + 60]
        if colour:
            line = "".join(f"\033[{COLOURS[m]}m{base}\033[0m" if m in COLOURS else base
                           for base, m in zip(line, below))
        print(f"{start + 1:6}  {line}\n{'':8}{below}".rstrip())


def explain(model, tok, path, question, output):
    """Show which bases the label of each sequence depends on, and write the changes. `path` may be
    a sequence."""
    # a file, or a sequence
    require(os.path.exists(path) or path == "-" or not path.isalpha() or len(path) >= SHORTEST,
            f"{path}: neither a file nor DNA of {SHORTEST} bases or more")
    typed = not os.path.exists(path) and is_dna(path.upper().replace("U", "T"), SHORTEST)
    found = [("sequence", clean_dna(path, "explain"))] if typed else read_sequences(path)

    table = [tsv("name", "label", "position", "base", *"ACGT")]
    for name, sequence in found:
        label, odds, changes = mutation_effects(model, tok, question, sequence)
        print(f"{name}: {label}, log-odds {odds:.2f}")
        show(sequence, mean_changes(sequence, changes))
        table += [tsv(name, label, i, sequence[i - 1], *x)
                  for i, x in enumerate(changes.tolist(), start=1)]
    print("Replacing the base lowers the log-odds of the label: # by at least half of the largest "
          "change,\n: by a fifth; + raises them by a fifth.")
    if output:
        with results(output) as f:
            f.writelines(table)
        print(f"next: python -m tools.plot --explain {output}")


# ----------------------------------------------------------------------------------------------
# Bits

@torch.inference_mode()
def total_bits(model, tok, sequence):
    """-> the bits that the model needs for a sequence, read as a document: few if the sequence
    resembles what the model was trained on"""
    T = model.config.block_size
    ids = torch.tensor([tok.eot] + tok.encode(sequence), device=model.device)
    nats = []
    # windows overlap by half: each token counts once, with at least half a context before it
    for start in range(0, max(1, len(ids) - 1 - T // 2), T // 2):
        window = ids[start:start + T + 1]
        logits, _ = model(window[None, :-1])
        loss = F.cross_entropy(logits[0].float(), window[1:], reduction="none")
        nats += loss[T - T // 2 if start else 0:].tolist()
    return math.fsum(nats) / math.log(2)


def stretches_bits(model, tok, sequence):
    """-> total bits of the stretches between ambiguous letters, each a document, and their bases"""
    found = stretches(sequence)
    bits = math.fsum(total_bits(model, tok, s) for s in found) if found else math.nan
    return bits, sum(map(len, found))


def score(model, tok, path, question, output):
    """Write bits and bits per base of each sequence."""
    with results(output) as f:
        found = read_sequences(path, shortest=0)
        f.write(tsv("bits_per_base", "bits", "bases", "record", "note"))
        for name, sequence in tqdm(found, desc="scoring", unit=" rows", disable=None):
            bits, bases = stretches_bits(model, tok, sequence)
            note = "" if bases else "nothing to score: no 8 bases in a row"
            f.write(tsv(bits / max(bases, 1), bits, bases, name, note))


def read_pairs(paths):
    """One file whose records alternate, or two files -> (name, reference), ... and (name,
    alternative), ..."""
    require(len(paths) <= 2, f"compare: {len(paths)} files: give one of pairs, or two")
    files = [read_sequences(path) for path in paths]
    ref, alt = files if len(files) == 2 else (files[0][::2], files[0][1::2])
    require(len(ref) == len(alt), f"{', '.join(paths)}: {len(ref)} reference and {len(alt)} "
            "alternative sequences: give as many of each")
    before, after = ([name for name, _ in part] for part in (ref, alt))
    turned = len(files) == 2 and before != after and set(before) == set(after)
    require(not turned, f"{', '.join(paths)}: the same names in a different order: sort them, as the "
            "first of one is compared with the first of the other")
    return ref, alt


def compare(model, tok, paths, question, output):
    """Write the total bits of both alleles of each pair and their difference, and with a question
    the same of the probability of each label."""
    with results(output) as f:
        ref, alt = read_pairs(paths)
        sequences = [sequence for _, sequence in ref + alt]
        bar = tqdm(sequences, desc="scoring", unit=" rows", disable=None)
        values = np.array([[stretches_bits(model, tok, s)[0]] for s in bar])    # (2N, 1)
        if question:
            log_p = log_probabilities(model, tok, question, sequences, "predicting")
            values = np.hstack([values, log_p.exp().numpy()])                   # (2N, 1 + K)

        # three columns of each value
        before, after = np.split(values, 2)
        values = np.stack([before, after, after - before], axis=2).reshape(len(ref), -1)
        f.write(tsv("name", "bits_ref", "bits_alt", "difference",
                    *(f"{choice}_{part}" for choice in (question.choices if question else ())
                      for part in ("ref", "alt", "difference"))))
        f.writelines(tsv(name, *x) for (name, _), x in zip(ref, values.tolist()))


# ----------------------------------------------------------------------------------------------
# Embeddings

@torch.inference_mode()
def mean_states(model, tok, sequences):
    """-> the mean of the final hidden states over the tokens of each sequence, read as a document,
    float32 (N, C). One that is longer than the context is read in windows of that size."""
    T = model.config.block_size - 1
    windows = [(i, ids[start:start + T]) for i, ids in enumerate(tok.encode_batch(sequences))
               for start in range(0, len(ids), T)]
    total = torch.zeros(len(sequences), model.config.n_embd)
    count = torch.zeros(len(sequences), 1)
    for batch in batches([ids for _, ids in windows], "embedding"):
        part = [windows[i] for i in batch]
        ids = [torch.tensor([tok.eot, *ids.tolist()]) for _, ids in part]
        x = model.hidden(pad_sequence(ids, batch_first=True).to(model.device))      # (B, T, C)
        for (i, ids), states in zip(part, x.cpu()):
            total[i] += states[1:len(ids) + 1].sum(dim=0)       # neither <|endoftext|> nor padding
            count[i] += len(ids)
    return (total / count).numpy()


def embed(model, tok, path, question, output):
    """Write the sequences' mean states as NAME.npy, and their names, one a line, as
    NAME.names.txt."""
    require(output.endswith(".npy"), "embed: say where the vectors go: --output=NAME.npy")
    names, sequences = zip(*read_sequences(path))
    vectors = mean_states(model, tok, sequences)
    with results(output.removesuffix(".npy") + ".names.txt") as f:
        f.writelines(f"{name}\n" for name in names)
    with replacing(output) as temporary, open(temporary, "wb") as f:
        np.save(f, vectors)
    print(f"wrote {output}")
