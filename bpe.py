"""
A byte-level BPE tokenizer for DNA and English.

    tok = Tokenizer.train(["the cell", "ACGTACGTACGT"], vocab_size=300)
    ids = tok.encode("ACGTACGT in the cell")
    tok.decode(ids)                         # the same text again

Byte-pair encoding starts from the 256 bytes and repeatedly merges the most frequent
pair of adjacent tokens into one new token. Before that, a regular expression splits the
text into pieces, and no merge crosses the edge of a piece. The split keeps DNA and
English apart.

Read down to the double line. Below it is the same algorithm, fast.
"""
import hashlib
import heapq
import itertools
import json
import os
import re
import sys
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import regex
from tqdm import tqdm

# --------------------------------------------------------------------------------------
# The modalities
#
# The rule: eight or more capital A, C, G, T in a row are DNA; anything else is English.
#
# CAT, TATA and GATTACA are therefore English. Eight is longer than such words, and
# shorter than any sequence worth reading. The rule looks at the run alone, never at its
# surroundings. The space before a run is not part of it, although in English a space
# belongs to the word after it. So the same DNA gets the same tokens everywhere: after a
# space, after a newline, next to an N, inside a word. The price is that lower-case DNA
# is read as English; prepare.py turns it into capitals.
#
# A new modality is a new row, and the same rule holds for its alphabet.

class Modality(NamedTuple):
    alphabet: str       # the characters of its runs, none of them white space
    unit: str           # what its size is counted in: bits per base, bits per byte


MODALITIES = {
    "dna": Modality("ACGT", "base"),
    # no alphabet: all the rest
    "english": Modality("", "byte"),
}

# A run is so many characters of an alphabet in a row, or more.
SHORTEST = 8

# --------------------------------------------------------------------------------------
# The split, which follows from the modalities: a branch for each alphabet, then English

# How each split cuts a run into pieces. X stands for a character of the alphabet.
BRANCHES = {
    # BPE over runs of any length: a run is one piece
    "mixed": "X{%d,}" % SHORTEST,
    # 6-mers: the first six of a run, then up to six at a time after six others
    "mixed6": "(?=X{%d})X{6}|(?<=X{6})X{1,6}" % SHORTEST,
    # single characters: the first of a run, then one at a time after another one
    "mixed1": "(?=X{%d})X|(?<=X)X" % SHORTEST,
}


def spell_out(branch, alphabet):
    """spell_out("X{8}", "ACGT") -> "[ACGT]{8}" """
    return branch.replace("X", f"[{re.escape(alphabet)}]")


def until_run(kind, not_kind, alphabets):
    r"""-> the expression for characters of one kind. It stops where a run begins.

    kind: a class of characters; not_kind: all other characters, as [^...] lists them

    >>> print(until_run(r"\p{L}", r"\P{L}", ["ACGT", "01"]))
     ?(?:[^\P{L}ACGT]|(?![ACGT]{8})[ACGT])+
    >>> print(until_run(r"\p{N}", r"\P{N}", ["ACGT"]))
     ?\p{N}+
    """
    # Other kinds of characters cannot begin these runs.
    alphabets = [alphabet for alphabet in alphabets if regex.search(kind, alphabet)]
    if not alphabets:
        return f" ?{kind}+"
    # A character is in no alphabet, or it is in one but no run begins there.
    shared = re.escape("".join(regex.findall(kind, "".join(alphabets))))
    runs = "|".join(spell_out("X{%d}" % SHORTEST, alphabet) for alphabet in alphabets)
    return f" ?(?:[^{not_kind}{shared}]|(?!{runs})[{shared}])+"


def english(alphabets):
    """-> GPT-2's expression, but a piece ends where a run of an alphabet begins"""
    return "|".join([
        # contractions
        r"'(?:[sdmt]|ll|ve|re)",
        # words, numbers, punctuation
        until_run(r"\p{L}", r"\P{L}", alphabets),
        until_run(r"\p{N}", r"\P{N}", alphabets),
        until_run(r"[^\s\p{L}\p{N}]", r"\s\p{L}\p{N}", alphabets),
        # white space; the last of it belongs to what follows
        r"\s+(?!\S)|\s+"])


def split_patterns(alphabets):
    """-> {split: its regular expression, or None for no split}"""
    patterns = {}
    for split, branch in BRANCHES.items():
        runs = [spell_out(branch, alphabet) for alphabet in alphabets]
        patterns[split] = "|".join([*runs, english(alphabets)])

    # as in the DNAHLM paper: a whole document is one piece
    return patterns | {"none": None}


ALPHABETS = [modality.alphabet for modality in MODALITIES.values() if modality.alphabet]
PATTERNS = split_patterns(ALPHABETS)

# GPT-2's own split, which a tokenizer.json names only as "use_regex"
GPT2_PATTERN = english([])

# The fast path below relies on two properties of these patterns: they match every
# character of any text, and no piece crosses the start of a word, where white space
# begins. A tokenizer keeps its pattern when MODALITIES gets another row. So the patterns
# of fewer rows belong here too; those of no row are GPT-2's.
COMPLETE = {pattern for n in range(len(ALPHABETS) + 1)
            for pattern in split_patterns(ALPHABETS[:n]).values()} - {None}

# --------------------------------------------------------------------------------------
# Bytes and their ids

END_OF_TEXT = "<|endoftext|>"


def byte_names():
    """-> the 256 names that GPT-2 prints bytes by: a printable byte names itself, the
    others take the characters from 256 on, so that a space is 'Ġ' and a newline 'Ċ'"""
    spare = map(chr, itertools.count(256))
    characters = map(chr, range(256))
    return [c if c.isprintable() and c != " " else next(spare) for c in characters]


BYTE_NAME = byte_names()
NAME_BYTE = {name: b for b, name in enumerate(BYTE_NAME)}

# The vocabulary before any merge. <|endoftext|> is 0, and the bytes are 1 to 256 in the
# order of their names. The `tokenizers` library numbers them so, and gives the same ids.
FIRST_IDS = {token: i for i, token in enumerate([END_OF_TEXT, *sorted(BYTE_NAME)])}


def to_bytes(text):
    """-> the UTF-8 bytes of a text, lone surrogates included (a str may hold them)"""
    return text.encode("utf-8", "surrogatepass")


def byte_ids(text):
    """-> the ids of the bytes of a text, before any merge

    >>> byte_ids("an")
    [65, 78]
    """
    return [FIRST_IDS[BYTE_NAME[b]] for b in to_bytes(text)]


def token_bytes(token):
    """-> the bytes of a token in printable form: 'Ġthe' -> b' the'"""
    return bytes(NAME_BYTE[c] for c in token)


# --------------------------------------------------------------------------------------
# Plain BPE, the specification: the merges that a Tokenizer learns, and the ids that it
# gives. The Tokenizer never calls these three functions. It calls the fast ones below
# the double line, which give the same merges and ids.

def merge(ids, pair, new):
    """Replace each `pair` in a list of ids by the id `new`, from left to right.

    >>> merge([1, 2, 3, 1, 2], (1, 2), 4)
    [4, 3, 4]
    """
    out, i = [], 0
    while i < len(ids):
        if tuple(ids[i:i + 2]) == pair:
            out.append(new)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out


def plain_train(pieces, vocab_size):
    """pieces: lists of byte ids -> {(left, right): new id} in the order of learning

    >>> plain_train([byte_ids("banana")], vocab_size=259)
    {(65, 78): 257, (66, 257): 258}
    """
    merges = {}
    for new in range(len(FIRST_IDS), vocab_size):
        counts = Counter(pair for ids in pieces for pair in zip(ids, ids[1:]))
        if not counts:
            break                               # every piece is one token
        # The most frequent pair; among equals, the one with the smallest ids
        pair = min(counts, key=lambda p: (-counts[p], p))
        merges[pair] = new
        pieces = [merge(ids, pair, new) for ids in pieces]
    return merges


def plain_encode(ids, merges):
    """Of all merges that apply, do the one learned first; again, until none applies.

    >>> plain_encode(byte_ids("banana"), {(65, 78): 257, (66, 257): 258})
    [258, 257, 65]
    """
    while pairs := [pair for pair in zip(ids, ids[1:]) if pair in merges]:
        pair = min(pairs, key=merges.get)
        ids = merge(ids, pair, merges[pair])
    return ids


# --------------------------------------------------------------------------------------
# The tokenizer

class Tokenizer:
    """A vocabulary, its merges in the order they were learned, and a split pattern.

    vocab: {token in printable form: id}
    merges: [(left, right, new id), ...]; plain_encode takes {(left, right): new id}
    pattern: the regular expression of the split, or None for no split
    specials: tokens of `vocab` that stand for themselves and not for bytes
    split: the name of the pattern in PATTERNS, or "custom"
    bytes_of: {id: bytes of the token}
    eot: the id of <|endoftext|>, or None
    unknown: the bytes that have no token. encode() drops them, as the `tokenizers`
        library does. A tokenizer trained here has none; the DNAHLM paper's has some.
    """

    def __init__(self, vocab, merges, pattern, specials=(END_OF_TEXT,)):
        self.vocab, self.merges = vocab, merges
        self.pattern, self.specials = pattern, specials
        self.split = {p: name for name, p in PATTERNS.items()}.get(pattern, "custom")
        self.eot = vocab.get(END_OF_TEXT)
        self.bytes_of = {i: token.encode() if token in specials else token_bytes(token)
                         for token, i in vocab.items()}
        self.unknown = bytes(b for b, name in enumerate(BYTE_NAME) if name not in vocab)
        self._regex = None if pattern is None else regex.compile(pattern)
        self.encoder = Encoder(self)

    def __len__(self):
        return max(self.vocab.values()) + 1

    def split_text(self, text):
        """-> the pieces of `text`, a list of str; joined they are `text` again"""
        if self._regex is None:
            return [text] if text else []
        if self.pattern in COMPLETE:
            return self._regex.findall(text)

        # What lies between two matches is a piece too.
        spans = (match.span() for match in self._regex.finditer(text))
        edges = [0, *itertools.chain.from_iterable(spans), len(text)]
        return [text[i:j] for i, j in itertools.pairwise(edges) if i < j]

    @classmethod
    def train(cls, docs, vocab_size, split="mixed", verbose=False):
        """Learn a vocabulary of `vocab_size` ids from `docs`, an iterable of str.

        The merges are those of plain_train, and of the `tokenizers` library. A text too
        small for so many merges gives fewer ids. With `verbose`, each merge is printed.
        ValueError for an unknown split, or too small a vocab_size
        """
        if split not in PATTERNS:
            raise ValueError(f"split={split} is not one of {', '.join(PATTERNS)}")
        if vocab_size < len(FIRST_IDS):
            raise ValueError(f"vocab_size={vocab_size} is too small: 256 bytes and "
                             f"{END_OF_TEXT} make {len(FIRST_IDS)}")

        # Count the pieces, then learn from the counts.
        vocab, merges = dict(FIRST_IDS), []
        counts = count_pieces(docs, cls(vocab, [], PATTERNS[split]))
        learning = tqdm(learn_merges(counts, vocab_size), total=vocab_size - len(vocab),
                        desc="learning merges", unit=" merges", disable=verbose or None)

        # A new token's name is that of its two parts, joined.
        name = list(vocab)                                          # id -> name
        for left, right, new, count in learning:
            merges.append((left, right, new))
            name.append(name[left] + name[right])
            vocab[name[new]] = new
            if verbose:
                a, b, ab = (token_bytes(name[i]) for i in merges[-1])
                print(f"merge {len(merges)}: {a} + {b} = {ab}, count {count:,}")
        return cls(vocab, merges, PATTERNS[split])

    def encode(self, text):
        """-> list of ids: of each piece, those of plain_encode. A special token's name
        in a text is read as plain characters."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts):
        """list of str -> list of integer arrays, the ids of each text. This is much
        faster than one by one: each distinct word is encoded once, on all cores."""
        return self.encoder.encode_batch(texts)

    def decode_bytes(self, ids):
        """-> the bytes of `ids`; special tokens are spelled out
        ValueError for an id without a token"""
        try:
            return b"".join(self.bytes_of[int(i)] for i in ids)
        except KeyError as e:
            raise ValueError(f"id {e} has no token in this vocabulary of {len(self):,} "
                             "ids: is it the model's own tokenizer?") from None

    def decode(self, ids):
        """-> the text of `ids`; invalid UTF-8 (half a character) becomes U+FFFD"""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def save(self, path):
        """Write a tokenizer.json."""
        with open(path, "w", encoding="utf-8") as f:
            json.dump(to_json(self), f, ensure_ascii=False, indent=1)

    @classmethod
    def load(cls, path, sha256=None):
        """Read a tokenizer.json, ours or that of another byte-level BPE.

        sha256: if given, the hash that the file must have: of the tokenizer with which
            data or a model were made
        ValueError if it differs, or if the file has a setting that is not supported
        """
        with open(path, "rb") as f:
            raw = f.read()
        if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256:
            raise ValueError(f"{path}: not the tokenizer that the rest was made with: "
                             f"put back the one whose sha256 begins with {sha256[:12]}")
        try:
            tok = cls(*from_json(json.loads(raw)))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError,
                regex.error) as e:
            reason = e if isinstance(e, ValueError) else f"{type(e).__name__}: {e}"
            raise ValueError(f"{path}: not a byte-level BPE that can be read here: "
                             f"{reason}") from None
        if tok.pattern is not None and tok.pattern not in COMPLETE:
            print(f"{path}: its split is none of bpe.py's, and is used as it stands: "
                  f"{tok.pattern:.60}", file=sys.stderr)
        return tok


# --------------------------------------------------------------------------------------
# tokenizer.json, the file of the `tokenizers` library, which reads ours and gives the
# same ids. Files of other programs are read too, but not those that have other ids
# there than here.

def to_json(tok):
    """Tokenizer -> the content of its tokenizer.json"""
    name = {i: token for token, i in tok.vocab.items()}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": tok.pattern}, "behavior": "Isolated",
             "invert": False}
    both = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    added = [{"id": tok.vocab[special], "content": special, "single_word": False,
              "lstrip": False, "rstrip": False, "normalized": False, "special": True}
             for special in tok.specials]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level if tok.pattern is None else both,
        "post_processor": None,
        "decoder": byte_level | {"add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": tok.vocab,
            "merges": [[name[left], name[right]] for left, right, _ in tok.merges],
        },
    }


def from_json(file):
    """The content of a tokenizer.json -> (vocab, merges, pattern, specials) of a
    Tokenizer. ValueError (or TypeError, KeyError, AttributeError) for what is not
    supported"""
    model = file["model"]
    post_processor = file.get("post_processor") or {}
    check_settings("", file, normalizer=[None], truncation=[None], padding=[None])
    check_settings("post_processor.", post_processor, type=[None, "ByteLevel"])
    check_settings("model.", model, type=[None, "BPE"], dropout=[None, 0],
                   unk_token=[None], continuing_subword_prefix=[None, ""],
                   end_of_word_suffix=[None, ""], byte_fallback=[None, False],
                   ignore_merges=[None, False])

    # An added token that is not special would be looked for in the text.
    vocab, specials = dict(model["vocab"]), []
    for token in file.get("added_tokens", []):
        check_settings("added_tokens.", token, special=[True])
        specials.append(token["content"])
        vocab.setdefault(token["content"], token["id"])

    merges = read_merges(model["merges"], vocab, specials)
    return vocab, merges, read_split(file["pre_tokenizer"] or {"type": "null"}), specials


def check_settings(where, settings, **supported):
    """ValueError for a setting with which the library would give other ids than we do"""
    for key, values in supported.items():
        if settings.get(key) not in values:
            raise ValueError(f"{where}{key} is {json.dumps(settings.get(key)):.60}; "
                             f"supported: {' or '.join(map(json.dumps, values))}")


def read_merges(pairs, vocab, specials):
    """pairs: ["a b", ...] or [["a", "b"], ...] -> [(left, right, new), ...] as ids"""
    # Fast encoding relies on this: each merge makes a new token of two earlier ones.
    merges, made = [], vocab.keys() & NAME_BYTE.keys()
    for number, pair in enumerate(pairs, start=1):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        new = left + right
        if not {left, right} <= made or new in made or new not in vocab:
            raise ValueError(f"merge {number}, {left!r} and {right!r}, makes no new "
                             "token of the vocabulary from two earlier ones")
        made.add(new)
        merges.append((vocab[left], vocab[right], vocab[new]))

    # The library would split a text at each of these.
    if both := made.intersection(specials):
        raise ValueError(f"special token {min(both)!r} is a token of text too")
    return merges


def read_split(pre_tokenizer):
    """-> the regular expression of a pre-tokenizer, or None for no split"""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    types = " + ".join(step["type"] for step in steps)
    if types not in ("ByteLevel", "Split + ByteLevel"):
        raise ValueError(f"pre_tokenizer is {types}; "
                         "supported: ByteLevel or Split + ByteLevel")

    # ByteLevel splits as GPT-2 does unless told not to. After Split it must be told.
    split, byte_level = steps[0], {"use_regex": True} | steps[-1]
    check_settings("ByteLevel.", byte_level, add_prefix_space=[False])
    if types == "ByteLevel":
        return GPT2_PATTERN if byte_level["use_regex"] else None
    check_settings("ByteLevel.", byte_level, use_regex=[False])
    check_settings("Split.", split, behavior=["Isolated"], invert=[False])
    return split["pattern"]["Regex"]


# ======================================================================================
# Speed. Everything below gives exactly the merges and ids of plain BPE, and
# tests/test_bpe.py holds it to that.
#
# Training and encoding work on all pieces at once, in two arrays with a cell per byte:
#
#     head[i]  the token that starts at byte i, or empty
#     tail[i]  the token that ends at byte i (valid only where a token ends)
#
# Arithmetic finds the neighbours of a token at i. The one before it ends at i - 1, and
# the next one starts at i + length[head[i]]. One more cell, always empty, stands before,
# between and after the pieces. A merge writes three cells. In "banana", "a" and "n" are
# merged at i=1 and i=3 (a dot is empty in head; in tail it is an old value, never read):
#
#     head   b   a  n  a  n  a        b  an   .  an   .  a
#     tail   b   a  n  a  n  a   ->   b   .  an   .  an  a
#
# (a.take(i) is a[i], only faster.)

BLOCK = 1 << 20             # cells at a time, so that temporary arrays stay small

# A word is white space and what follows it. No piece of the COMPLETE patterns crosses
# the start of a word, so a word has the same pieces everywhere, and each distinct word
# is split only once. (`re` is twice as fast here as `regex`, but takes \x1c-\x1f for
# white space.)
WORD = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|\s+")


def split_words(text, pattern):
    """-> the words of a text, or all of it if pieces of `pattern` might cross words"""
    return WORD.findall(text) if pattern in COMPLETE else [text] if text else []


def lay_out(pieces, byte_id, empty):
    """pieces: list of bytes -> (head, tail, edges): the two arrays, and the positions
    of the empty cells before, between and after the pieces"""
    text = np.frombuffer(b"\0".join([b"", *pieces, b""]), dtype=np.uint8)
    edges = np.cumsum([0] + [len(piece) + 1 for piece in pieces])
    head = byte_id.astype(np.min_scalar_type(empty)).take(text)
    head[edges] = empty
    return head, head.copy(), edges


def index_in_run(first):
    """[1, 0, 0, 1, 1, 0] -> [0, 1, 2, 0, 0, 1]: count up from every True"""
    index = np.arange(len(first))
    return index - np.maximum.accumulate(np.where(first, index, 0))


# --------------------------------------------------------------------------------------
# Fast training: a heap of pairs, each with its count and the positions where it occurs

def count_pieces(docs, tok):
    """-> Counter of the pieces of all documents, as bytes"""
    words, counts = Counter(), Counter()
    for doc in docs:
        words.update(split_words(doc, tok.pattern))
    for word, n in words.items():
        for piece in tok.split_text(word):
            counts[to_bytes(piece)] += n
    return counts


def learn_merges(counts, vocab_size):
    """counts: {piece: how often it occurs} -> one (left, right, new, count) at a time

    No two merges make the same byte string, so each new token has a new name. If some
    bytes are one token, no earlier merge has crossed their edges. So the merges inside
    depend on these bytes alone, and are the same everywhere.
    """
    corpus = Corpus(counts, vocab_size)
    best = corpus.most_frequent()
    for new, (left, right, count, at) in zip(range(len(FIRST_IDS), vocab_size), best):
        corpus.merge(left, right, new, at)
        yield left, right, new, count


class Corpus:
    """The distinct pieces of a training text, and a heap of the pairs worth merging.

    head, tail: (cells,) the two arrays; empty: their value where there is no token
    length: (empty + 1,) bytes of each token
    weights: how often the piece around each cell occurs; the last entry, 1, serves all
        cells after it
    heap: of (-count, code, positions) of pairs; code = left * base + right
    excess: {code: by how much the count of a pair in the heap is too high}

    A merge makes pairs of the new token only, so the count of any other pair can only
    fall. A pair may come up with an old count. Then it is pushed again with its new
    count. Pairs rarer than `floor` are left out of the heap. When it runs
    empty, the floor is lowered and the text, by then much shorter, is read again.
    """

    def __init__(self, counts, vocab_size):
        byte_id = np.array([FIRST_IDS[name] for name in BYTE_NAME])
        self.empty, self.base = vocab_size, vocab_size + 1
        pieces = sorted(counts, key=counts.get, reverse=True)
        self.head, self.tail, edges = lay_out(pieces, byte_id, self.empty)
        self.heap, self.excess, self.floor = [], {}, max(2, len(self.head) // 2)

        # For sorting, code and position share 64 bits.
        self.bits = len(self.head).bit_length()
        if self.base ** 2 << self.bits >= 1 << 63:
            raise ValueError(f"{len(self.head)} bytes are too many for a vocabulary of "
                             f"{vocab_size}: train the tokenizer on a smaller sample")

        # A weight for the first cell, then for each piece and the cell after it. Pieces
        # that occur once come last, and one weight serves them all.
        self.length = np.ones(self.base, dtype=np.int64)
        repeated = sum(n > 1 for n in counts.values())
        weights = np.array([0, *(counts[piece] for piece in pieces[:repeated])])
        sizes = np.diff(edges[:repeated + 1], prepend=-1)
        self.weights = np.append(np.repeat(weights, sizes), 1)

    def most_frequent(self):
        """-> one (left, right, count, sorted positions) after another, each to be merged
        before the next is asked for. Among equal counts the smaller ids come first."""
        while self.floor > 1:
            self.floor = max(1, self.floor // 8)
            self.push(np.flatnonzero(self.head != self.empty))
            while self.heap:
                count, code, at = heapq.heappop(self.heap)
                excess = self.excess.pop(code)
                if excess:              # it goes back, further down
                    if -count - excess >= self.floor:
                        self.excess[code] = 0
                        heapq.heappush(self.heap, (count + excess, code, at))
                    continue

                # Keep the positions where the pair still occurs. (Tokens only ever
                # grow, so two that are where they once were have been there all along.)
                left, right = divmod(code, self.base)
                size = self.length[left]
                at = at.take(np.flatnonzero(self.head.take(at) == left))
                at = at.take(np.flatnonzero(self.head.take(at + size) == right))
                yield left, right, -count, at

    def push(self, keys):
        """keys: (n,) positions, overwritten. Push the frequent pairs that start there.
        -> codes and counts of all pairs that start there"""
        # Write the codes into the high bits, or -1 where there is no pair.
        for start in range(0, len(keys), BLOCK):
            at = keys[start:start + BLOCK]
            left = self.head.take(at).astype(np.int64)
            right = self.head.take(at + self.length.take(left))
            at |= (left * self.base + right) << self.bits
            at[(left == self.empty) | (right == self.empty)] = -1

        # Sorted, each pair is a stretch of the keys, with its positions in order.
        keys.sort()
        keys = keys[keys.searchsorted(0):]
        codes = keys >> self.bits
        keys &= (1 << self.bits) - 1
        starts = np.flatnonzero(np.append(True, codes[1:] != codes[:-1])[:len(codes)])
        stops = np.append(starts[1:], len(keys))
        codes = codes.take(starts)
        counts = np.add.reduceat(self.weights.take(keys, mode="clip"), starts)

        kept = np.flatnonzero(counts >= self.floor)
        columns = (codes, counts, starts, stops)
        for code, count, start, stop in zip(*(x.take(kept).tolist() for x in columns)):
            heapq.heappush(self.heap, (-count, code, keys[start:stop]))
            self.excess[code] = 0
        return codes, counts

    def merge(self, left, right, new, at):
        """Write the token `new` over (left, right) at the sorted positions `at`."""
        # AAAAA has the pair AA at 0, 1, 2, 3. Merge those at 0 and 2.
        size = self.length[left]
        if left == right:
            at = at[index_in_run(np.diff(at, prepend=0) != size) % 2 == 0]
        self.length[new] = size + self.length[right]
        self.head[at] = new
        self.head[at + size] = self.empty
        self.tail[at + (self.length[new] - 1)] = new

        # The new pairs start at the new tokens, and at other tokens before them.
        x = self.tail.take(at - 1)
        before = at - self.length.take(x)
        codes, counts = self.push(np.append(at, before[x != new]))

        # (x, new) has replaced as many of (x, left), and (new, y) of (right, y).
        first, second = np.divmod(codes, self.base)
        replaced = np.where(first == new, right, first) * self.base \
            + np.where(second == new, left, second)
        for code, count in zip(replaced.tolist(), counts.tolist()):
            if code in self.excess:
                self.excess[code] += count


# --------------------------------------------------------------------------------------
# Fast encoding: many merges in one pass, over all pieces at once

class PairRanks:
    """A table that looks up many pairs at once: pair -> the rank of its merge.

    The hash of a pair's code, left * base + right, says in which slot its rank is. At
    least 15 of 16 slots are empty. The few ranks that find their slot taken are the
    overflow, which is sorted by code for a binary search.
    """

    def __init__(self, merges, base):
        """merges: (n, 3) ids left, right, new, in the order of their ranks"""
        codes = merges[:, 0] * base + merges[:, 1]
        bits = (16 * len(codes)).bit_length()
        self.base, self.shift, self.no_merge = base, np.uint64(64 - bits), len(codes)
        self.slots = np.full(1 << bits, self.no_merge, dtype=np.int32)

        # Write backwards, so that of several ranks for a slot the lowest stays.
        ranks = np.arange(len(codes))
        self.slots[self.slot(codes)[::-1]] = ranks[::-1]
        overflow = np.flatnonzero(self.slots[self.slot(codes)] != ranks)
        self.overflow = np.append(overflow[np.argsort(codes[overflow])], self.no_merge)

        # rank -> code; -1, the last, is the code of no pair
        self.codes = np.append(codes, -1)

    def slot(self, codes):
        # The top bits of a product with this odd number (MurmurHash3's) depend on all.
        product = codes.view(np.uint64) * np.uint64(0xFF51AFD7ED558CCD)
        return (product >> self.shift).view(np.int64)

    def find(self, left, right):
        """left, right: (n,) tokens -> (n,) the rank of each pair's merge, or no_merge"""
        codes = left.astype(np.int64) * self.base + right
        ranks = self.slots.take(self.slot(codes))

        # Where another pair has the slot, look in the overflow.
        wrong = self.codes.take(ranks) != codes
        taken = np.flatnonzero(wrong & (ranks < self.no_merge))
        codes = codes.take(taken)
        sorted_codes = self.codes.take(self.overflow[:-1])
        candidates = self.overflow.take(sorted_codes.searchsorted(codes))
        same = self.codes.take(candidates) == codes
        ranks[taken] = np.where(same, candidates, self.no_merge)
        return ranks


def level_ends(merges):
    """-> the ranks at which a level ends. A level is a stretch of the list of merges
    in which none needs what another one makes."""
    ends, made = [], set()
    for rank, (left, right, new) in enumerate(merges):
        if left in made or right in made:
            ends.append(rank)
            made.clear()
        made.add(new)
    return [*ends, len(merges)]


def winners(ranks, left, right):
    """A pair is merged now if its rank is lower than those of both pairs beside it. In
    AAAAA, a run of equal pairs, every other pair is, from the left.

    ranks: (n,) of a level's pairs, by position; left, right: (n,) of the pairs beside
    -> (n,) bool
    """
    wins = (ranks < left) & (ranks <= right)

    # AAAAA is a run of equal pairs. If the first of them wins, every other one does.
    twins = np.flatnonzero(ranks == left)
    index = 1 + index_in_run(np.diff(twins, prepend=-1) != 1)
    wins[twins] = (wins[twins - index] & (index % 2 == 0)) & (ranks <= right)[twins]
    return wins


class Encoder:
    """The merges of a tokenizer as tables.

    Replayed one by one, 50,000 merges take as many passes over the text. The merges of
    a level do not need each other, so one pass does them all, and there are only a few
    dozen levels. Within a level, order matters only where two pairs overlap: there the
    lower rank wins.
    """

    def __init__(self, tok):
        self.tok, self.empty = tok, len(tok)
        self.byte_id = np.array([tok.vocab.get(name, self.empty) for name in BYTE_NAME])
        self.length = np.ones(self.empty + 1, dtype=np.int64)
        for i, token in tok.bytes_of.items():
            self.length[i] = len(token)

        # The rank of a merge is its index.
        merges = np.array(tok.merges, dtype=np.int64).reshape(-1, 3)
        self.ranks = PairRanks(merges, len(self.length))
        self.product = merges[:, 2]                             # rank -> new token
        self.level_ends = level_ends(tok.merges)

    def encode_batch(self, texts):
        """list of str -> list of arrays of ids. Each distinct word is encoded once."""
        # Number the distinct words in the order of their appearance. `sequence` has all
        # texts as word numbers; those of text i are from stops[i] to stops[i + 1].
        number = defaultdict(itertools.count().__next__)
        sequence, stops = [], [0]
        for text in texts:
            sequence.extend(map(number.__getitem__, split_words(text, self.tok.pattern)))
            stops.append(len(sequence))

        # Encode the words in batches of BLOCK characters, on all cores: while numpy
        # works, Python lets other threads run.
        words = list(number)
        blocks = np.cumsum([len(word) for word in words]) // BLOCK
        cuts = [0, *(np.flatnonzero(np.diff(blocks)) + 1), len(words)]
        batches = [words[i:j] for i, j in itertools.pairwise(cuts)]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            parts = list(pool.map(self.encode_words, batches))

        # Put each text together: token k of word w is ids[first[w] + k].
        ids, n_tokens = map(np.concatenate, zip(*parts))
        first = np.cumsum(n_tokens) - n_tokens
        sequence = np.array(sequence, dtype=np.int64)
        n_tokens = n_tokens.take(sequence)
        ends = np.append(0, np.cumsum(n_tokens))
        source = np.arange(ends[-1])
        source += np.repeat(first.take(sequence) - ends[:-1], n_tokens)
        ids, stops = ids.take(source), ends.take(stops).tolist()
        return [ids[start:stop] for start, stop in itertools.pairwise(stops)]

    def encode_words(self, words):
        """-> (ids of all words in a row, (n,) the number of ids of each word)"""
        split = [self.tok.split_text(word) for word in words]
        pieces = [to_bytes(piece).translate(None, self.tok.unknown)
                  for pieces in split for piece in pieces]
        ids, bounds = self.encode_pieces(pieces)
        return ids, np.diff(bounds[np.cumsum([0] + [len(pieces) for pieces in split])])

    def encode_pieces(self, pieces):
        """list of bytes -> (ids of all pieces in a row, (n + 1,) their bounds)"""
        head, tail, edges = lay_out(pieces, self.byte_id, self.empty)

        # For each cell: the rank of the merge of its token with the next one
        rank = self.ranks.find(head[:-1], head[1:])
        for end in self.level_ends:
            at = np.flatnonzero(rank < end)
            while len(at):
                before = at - self.length.take(tail.take(at - 1))
                after = at + self.length.take(head.take(at))
                wins = winners(rank.take(at), rank.take(before), rank.take(after))

                # Write the three cells of each merge.
                won = np.flatnonzero(wins)
                left, right = at.take(won), after.take(won)
                new = self.product.take(rank.take(left))
                size = self.length.take(new)
                head[left], head[right], tail[left + size - 1] = new, self.empty, new

                # x left right y has become x new y. Later levels merge its pairs.
                x, y = tail.take(left - 1), head.take(left + size)
                rank[right] = self.ranks.no_merge
                rank[left - self.length.take(x)] = self.ranks.find(x, new)
                rank[left] = self.ranks.find(new, y)

                # Pairs that lost have another chance if they are still there.
                at = at.take(np.flatnonzero(~wins))
                at = at.take(np.flatnonzero(rank.take(at) < end))

        at = np.flatnonzero(head != self.empty)
        return head.take(at), np.searchsorted(at, edges)
