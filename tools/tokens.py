"""
See what a tokenizer does: a text with its tokens in colour, and what is in a vocabulary.

    python -m tools.tokens show data/toy/tokenizer.json "The TATA box: GGCTATAAAAGGGC"
    python -m tools.tokens show data/toy/tokenizer.json genome.fa
    python -m tools.tokens show data/toy/tokenizer.json "Type here." --html=tokens.html
    python -m tools.tokens report data/toy/tokenizer.json
"""
import argparse
import json
import os
import sys
from itertools import cycle

import regex

import config
from bpe import (BRANCHES, BYTE_NAME, COMPLETE, MODALITIES, PATTERNS, Tokenizer,
                 spell_out, to_bytes)
from dna.read import read_fasta, read_lines

# The runs of each alphabet. All other text that has one of A to Z is English.
RUNS = {name: spell_out(BRANCHES["mixed"], modality.alphabet)
        for name, modality in MODALITIES.items() if modality.alphabet}
ENGLISH = next(name for name, modality in MODALITIES.items() if not modality.alphabet)
LETTER = regex.compile(b"[A-Za-z]")
KINDS = [*MODALITIES, "both", "other"]

# Two shades each of a terminal's 256 colours: green, blue, brown, violet; red and grey
SHADES = dict(zip(MODALITIES, cycle([(22, 28), (18, 25), (94, 130), (54, 91)])))
SHADES |= {"both": (88, 124), "other": (238, 242)}


def spell(token):
    """-> the bytes of a token as text; a part of a character as \\xc3"""
    return token.decode("utf-8", "backslashreplace")


def modality_of(token):
    """The modality of a token by its bytes alone, as in a vocabulary: that of the
    alphabet that has them all, "both" if it holds a run, "other" without A to Z"""
    for name in RUNS:
        if set(token) <= set(MODALITIES[name].alphabet.encode()):
            return name
    if any(regex.search(run.encode(), token) for run in RUNS.values()):
        return "both"
    return ENGLISH if LETTER.search(token) else "other"


def modalities(tok, text):
    """-> (id, modality) of each token of `text`. Here the context counts: CAT in prose
    is English. "both" lies across the edge of a run, possible only without a split."""
    # Mark the bytes that lie in a run: 1 for the first of RUNS, 2 for the second.
    data = to_bytes(text).translate(None, tok.unknown)
    inside = bytearray(len(data))
    for number, run in enumerate(RUNS.values(), start=1):
        for match in regex.finditer(run.encode(), data):
            inside[match.start():match.end()] = bytes([number]) * len(match[0])

    # Look which marks each token covers.
    tokens, start = [], 0
    for i in tok.encode(text):
        token = tok.bytes_of[i]
        marks = set(inside[start:start + len(token)])
        start += len(token)
        outside = ENGLISH if LETTER.search(token) else "other"
        tokens.append((i, "both" if len(marks) > 1 else [outside, *RUNS][marks.pop()]))
    return tokens


def shares(tok, tokens):
    """-> (modality, a phrase about its tokens) for each modality that occurs"""
    for kind in KINDS:
        sizes = [len(tok.bytes_of[i]) for i, k in tokens if k == kind]
        if sizes:
            unit = MODALITIES[kind].unit if kind in MODALITIES else "byte"
            yield kind, (f"{len(sizes):,} tokens ({len(sizes) / len(tokens):.0%}), "
                         f"{sum(sizes) / len(sizes):.2f} {unit}s per token")


def show(tok, tokens, colour=True):
    """-> the text for a terminal and a line about each modality. Two shades of its
    colour alternate. Without `colour`, | separates the tokens."""
    def paint(kind, shade, text):
        return f"\x1b[97;48;5;{SHADES[kind][shade]}m{text}\x1b[0m" if colour else text

    text = ("" if colour else "|").join(paint(kind, n % 2, spell(tok.bytes_of[i]))
                                        for n, (i, kind) in enumerate(tokens))
    legend = [paint(kind, 1, f" {kind:9}") + f" {phrase}"
              for kind, phrase in shares(tok, tokens)]
    return "\n".join([text, "", *legend])


def show_html(tok, text):
    """-> a page that works from disk, on which a class types. It has the tokenizer in
    it, and JavaScript that gives the ids of bpe.py. It opens with `text`.
    ValueError for a tokenizer with the split of another program"""
    if tok.pattern is not None and tok.pattern not in COMPLETE:
        raise ValueError("a page needs one of bpe.py's splits, because a browser may "
                         f"read another pattern in another way: {tok.pattern:.60}")
    modalities = {name: {"run": RUNS.get(name), "unit": modality.unit}
                  for name, modality in MODALITIES.items()}
    patterns = {name: for_browsers(pattern)
                for name, pattern in (PATTERNS | {tok.split: tok.pattern}).items()}
    data = {"split": tok.split, "size": len(tok), "text": text, "merges": tok.merges,
            "bytes": [tok.vocab.get(name, -1) for name in BYTE_NAME],
            "modalities": modalities, "patterns": patterns}
    template = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokens.html")
    with open(template, encoding="utf-8") as f:
        page = f.read()
    data = json.dumps(data, separators=(",", ":"))
    return page.replace("DATA", data.replace("<", r"\u003c"))


def for_browsers(pattern):
    """JavaScript's white space has U+FEFF and lacks U+0085: name Unicode's instead."""
    return pattern and pattern.replace(r"\s", r"\p{White_Space}") \
        .replace(r"\S", r"\P{White_Space}")


def report(tok):
    """-> lines about the vocabulary: how it is shared out, how long the tokens are, and
    how many of them can never be produced"""
    special = {tok.vocab[token] for token in tok.specials}
    tokens = {i: token for i, token in tok.bytes_of.items() if i not in special}
    kinds = {i: modality_of(token) for i, token in tokens.items()}
    yield f"{len(tok):,} ids: {len(tok.merges):,} merges, split {tok.split}\n"

    # By modality
    yield f"{'modality':10}{'ids':>8}{'share':>8}{'mean length':>13}  longest"
    for kind in KINDS:
        of_kind = [token for i, token in tokens.items() if kinds[i] == kind]
        if of_kind:
            longest = max(of_kind, key=len)
            yield (f"{kind:10}{len(of_kind):8,}{len(of_kind) / len(tok):8.1%}"
                   f"{sum(map(len, of_kind)) / len(of_kind):13.2f}"
                   f"  {len(longest)}: {repr(spell(longest)):.60}")

    # Tokens whose own text becomes other tokens
    texts = {i: token.decode("utf-8", "replace") for i, token in tokens.items()}
    unused = sum(ids.tolist() != [i] and texts[i].encode() == tokens[i]
                 for i, ids in zip(texts, tok.encode_batch(list(texts.values()))))
    yield (f"never used: {unused:,} tokens ({unused / len(tok):.1%}), "
           "whose own text encodes to others")


def read_text(text):
    """-> the content of the file of that name, of FASTA the sequences, a line each; or
    `text` itself if there is no such file and it does not look like the name of one"""
    name = r"^[^\s/]*/\S*$|\.(txt|md|fa|fasta|fna|json|csv|gz|xz)$"
    if not os.path.isfile(text) and not regex.search(name, text):
        return text
    lines = list(read_lines(text))
    if lines[0][1].startswith(">"):
        return "\n".join(sequence for _, sequence in read_fasta(lines, text))
    return "".join(line for _, line in lines)


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m tools.tokens")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("show", help="a text with its tokens in colour")
    command.add_argument("tokenizer", help="a tokenizer.json")
    command.add_argument("text", nargs="+", help="text, or a file of text or FASTA")
    command.add_argument("--html", metavar="FILE", type=os.path.expanduser,
                         help="write a page to type on instead")
    command = commands.add_parser("report", help="what is in a vocabulary")
    command.add_argument("tokenizer", help="a tokenizer.json")
    args = parser.parse_args(argv)

    tok = Tokenizer.load(args.tokenizer)
    if args.command == "report":
        print(*report(tok), sep="\n")
        return
    text = read_text(" ".join(args.text))
    if args.html:
        config.check_output(args.html, [args.tokenizer, *args.text])
        page = show_html(tok, text)
        with config.replacing(args.html) as path, open(path, "w", encoding="utf-8") as f:
            f.write(page)
        print(f"wrote {args.html}; next: open it in a browser, and type")
        return
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(show(tok, modalities(tok, text), colour))


if __name__ == "__main__":
    config.run(main)
