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
from collections import Counter

import regex

import config
from bpe import BYTE_NAME, GPT2_PATTERN, PATTERNS, Tokenizer, to_bytes

RUN = "[ACGT]{8}"

MODALITIES = ("dna", "english", "both", "other")


def spell(token):
    """-> the bytes of a token as text; a byte that is only part of a character as \\xc3"""
    return token.decode("utf-8", "backslashreplace")


def modality_of(token):
    """The modality of a token by its bytes alone, as in a vocabulary: "dna" if it is A, C, G, T
    and nothing else, "both" if a run of DNA is only a part of it, "other" without any letter."""
    if regex.fullmatch(b"[ACGT]+", token):
        return "dna"
    if regex.search(RUN.encode(), token):
        return "both"
    return "english" if regex.search(rb"[A-Za-z\x80-\xff]", token) else "other"


def modalities(tok, text):
    """-> (id, modality) of each token of `text`. Here the context counts: "dna" lies in a run of
    DNA, "both" lies across its edge (possible only without a split); CAT in prose is English."""
    # Mark the bytes that lie in a run of DNA.
    data = to_bytes(text).translate(None, tok.unknown)
    inside = bytearray(len(data))
    for run in regex.finditer(RUN.encode() + b"[ACGT]*", data):
        inside[run.start():run.end()] = b"\1" * len(run[0])

    # Look which kinds of bytes each token covers.
    tokens, start = [], 0
    for i in tok.encode(text):
        token = tok.bytes_of[i]
        cover = set(inside[start:start + len(token)])
        start += len(token)
        tokens.append((i, "both" if len(cover) > 1 else "dna" if cover == {1} else
                       "other" if modality_of(token) == "other" else "english"))
    return tokens


def shares(tok, tokens):
    """-> (modality, number of tokens, a phrase about them) for each modality that occurs"""
    for kind in MODALITIES:
        sizes = [len(tok.bytes_of[i]) for i, k in tokens if k == kind]
        if sizes:
            unit = "bases" if kind == "dna" else "bytes"
            yield kind, len(sizes), (f"{len(sizes):,} tokens ({len(sizes) / len(tokens):.0%}), "
                                     f"{sum(sizes) / len(sizes):.2f} {unit} per token")


def show(tok, tokens, colour=True):
    """-> the text for a terminal and a line about each modality. The tokens alternate between two
    shades: DNA green, English blue, both red, other grey. Without `colour`, | parts them."""
    shades = {"dna": (22, 28), "english": (18, 25), "both": (88, 124), "other": (238, 242)}

    def paint(kind, shade, text):
        return f"\x1b[97;48;5;{shades[kind][shade]}m{text}\x1b[0m" if colour else text

    text = ("" if colour else "|").join(paint(kind, n % 2, spell(tok.bytes_of[i]))
                                        for n, (i, kind) in enumerate(tokens))
    legend = [paint(kind, 1, f" {kind:8}") + f" {phrase}" for kind, _, phrase in shares(tok, tokens)]
    return "\n".join([text, "", *legend])


def show_html(tok, text):
    """-> a page that works from disk, on which a class types: it has the tokenizer in it, and
    JavaScript that gives the ids of bpe.py. It opens with `text`."""
    if tok.pattern not in [*PATTERNS.values(), GPT2_PATTERN]:
        raise ValueError("the page can be made of a tokenizer with one of our splits, or GPT-2's: "
                         f"a browser may read another pattern otherwise: {tok.pattern:.60}")
    data = {"split": tok.split, "size": len(tok), "text": text, "merges": tok.merges,
            "bytes": [tok.vocab.get(name, -1) for name in BYTE_NAME], "run": RUN + "[ACGT]*",
            "patterns": {name: for_browsers(pattern)
                         for name, pattern in (PATTERNS | {tok.split: tok.pattern}).items()}}
    template = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokens.html")
    with open(template, encoding="utf-8") as f:
        page = f.read()
    return page.replace("DATA", json.dumps(data, separators=(",", ":")).replace("<", r"\u003c"))


def for_browsers(pattern):
    """White space in JavaScript has U+FEFF and lacks U+0085: name the Unicode property instead."""
    return pattern and pattern.replace(r"\s", r"\p{White_Space}").replace(r"\S", r"\P{White_Space}")


def report(tok):
    """-> lines about the vocabulary: how it is shared out, how long the tokens are, how many of
    them both modalities can use, and how many can never be produced"""
    special = {tok.vocab[token] for token in tok.specials}
    tokens = {i: token for i, token in tok.bytes_of.items() if i not in special}
    kinds = {i: modality_of(token) for i, token in tokens.items()}
    yield f"{len(tok):,} ids: {len(tok.merges):,} merges, split {tok.split}\n"

    # By modality
    yield f"{'modality':10}{'ids':>8}{'share':>8}{'mean length':>13}  longest"
    for kind in MODALITIES:
        mine = sorted((t for i, t in tokens.items() if kinds[i] == kind), key=len, reverse=True)
        if mine:
            longest = repr(spell(mine[0]))
            yield (f"{kind:10}{len(mine):8,}{len(mine) / len(tok):8.1%}"
                   f"{sum(map(len, mine)) / len(mine):13.2f}  {len(mine[0])}: {longest:.60}")

    # DNA by length
    dna = Counter(len(token) for i, token in tokens.items() if kinds[i] == "dna")
    yield "\nDNA tokens by length: " + ", ".join(f"{n}: {dna[n]:,}" for n in range(1, 13)) + \
          f", longer: {sum(dna[n] for n in dna if n > 12):,}"
    yield (f"English can use {sum(dna[n] for n in range(8)):,} of these too, shorter than a run of "
           "DNA: A, C, G, T, and what CAT is made of")

    # Tokens whose own text becomes other tokens
    texts = {i: token.decode("utf-8", "replace") for i, token in tokens.items()}
    lost = sum(ids.tolist() != [i] and texts[i].encode() == tokens[i]
               for i, ids in zip(texts, tok.encode_batch(list(texts.values()))))
    yield f"never used: {lost:,} tokens ({lost / len(tok):.1%}), whose own text encodes to others"


def read_text(text):
    """-> the content of the file of that name, of FASTA the sequences in capitals, a line each;
    where there is no such file, `text` itself, unless it looks like the name of one"""
    named = regex.search(r"^[^\s/]*/\S*$|\.(?:txt|md|fa|fasta|fna|json|csv|gz|xz)$", text)
    if not named and not os.path.isfile(text):
        return text
    with open(text, encoding="utf-8-sig") as f:
        try:
            content = f.read()
        except UnicodeDecodeError:
            raise ValueError(f"{text}: not UTF-8 text: unpack it first, or convert it") from None
    if not content.startswith(">"):
        return content
    records = regex.split(r"^>.*$", content, flags=regex.MULTILINE)[1:]
    return "\n".join("".join(record.split()).upper() for record in records)


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m tools.tokens")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("show", help="a text with its tokens in colour")
    command.add_argument("tokenizer", help="a tokenizer.json")
    command.add_argument("text", nargs="+", help="text, or a file of text or FASTA")
    command.add_argument("--html", metavar="FILE", help="write a page to type on instead")
    command = commands.add_parser("report", help="what is in a vocabulary")
    command.add_argument("tokenizer", help="a tokenizer.json")
    args = parser.parse_args(argv)

    tok = Tokenizer.load(args.tokenizer)
    if args.command == "report":
        print(*report(tok), sep="\n")
        return
    text = read_text(" ".join(args.text))
    if args.html:
        page = show_html(tok, text)
        with open(args.html, "w", encoding="utf-8") as f:
            f.write(page)
        print(f"wrote {args.html}; next: open it in a browser, and type")
        return
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(show(tok, modalities(tok, text), colour))


if __name__ == "__main__":
    config.run(main)
