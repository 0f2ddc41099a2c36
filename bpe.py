"""
A byte-level BPE tokenizer for DNA and English.

    tok = Tokenizer.train(["the cell", "ACGTACGTACGT"], vocab_size=300)
    ids = tok.encode("ACGTACGT in the cell")
    tok.decode(ids)                         # the same text again

Byte-pair encoding starts from the 256 bytes and repeatedly merges the most frequent pair of
adjacent tokens into one new token. Before that, a regular expression splits the text into
pieces, and no merge crosses the edge of a piece. The split keeps DNA and English apart.

Read down to the double line. Below it is the same algorithm, fast.
"""
import hashlib
import heapq
import itertools
import json
import os
import re
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import regex
from tqdm import tqdm


class Modality(NamedTuple):
    alphabet: str       # its letters; the modality that has none takes all other text
    unit: str           # its loss is given in bits per unit


MODALITIES = {"dna": Modality("ACGT", "base"), "english": Modality("", "byte")}
SHORTEST = 8    # a run of so many letters of an alphabet is text of that modality

# ------------------------------------------------------------------------------------------------
# The split: where DNA ends and English begins
#
# The rule: eight or more capital A, C, G, T in a row are DNA; anything else is English.
#
# CAT, TATA and GATTACA are therefore English. Eight is longer than such words, and shorter than
# any sequence worth reading. The rule looks at the run alone, never at its surroundings, and the
# space before a run is not part of it (in English a space belongs to the word after it). So the
# same DNA gets the same tokens everywhere: after a space, a newline, an N, within a word. The
# price is that lower-case DNA is read as English; prepare.py turns it into capitals.

RUN = "[ACGT]{8}"

# English is split as in GPT-2, except that a word ends where a run of DNA begins.
ENGLISH = (r"'(?:[sdmt]|ll|ve|re)"                          # contractions
           r"| ?(?:[^\P{L}ACGT]|(?!" + RUN + r")[ACGT])+"   # words; [^\P{L}ACGT]: any letter but these
           r"| ?\p{N}+"                                     # numbers
           r"| ?[^\s\p{L}\p{N}]+"                           # punctuation
           r"|\s+(?!\S)|\s+")                               # white space

PATTERNS = {
    # BPE over runs of any length: [ACGT]{8,}
    "mixed": RUN.replace("}", ",}") + "|" + ENGLISH,
    # 6-mers: the first six bases of a run, then up to six at a time after six others
    "mixed6": r"(?=" + RUN + r")[ACGT]{6}|(?<=[ACGT]{6})[ACGT]{1,6}|" + ENGLISH,
    # single bases: the first of a run, then one at a time after another
    "mixed1": r"(?=" + RUN + r")[ACGT]|(?<=[ACGT])[ACGT]|" + ENGLISH,
    # no split, as in the DNAHLM paper: a whole document is one piece
    "none": None,
}

# GPT-2's own split, which a tokenizer.json names only as "use_regex".
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# These match every character of any text. A pattern from elsewhere may leave some out.
COMPLETE = {GPT2_PATTERN, PATTERNS["mixed"], PATTERNS["mixed6"], PATTERNS["mixed1"]}

# ------------------------------------------------------------------------------------------------
# Bytes and their ids

END_OF_TEXT = "<|endoftext|>"


def byte_names():
    """-> the 256 names that GPT-2 prints bytes by: a printable byte names itself, the others
    take the characters from 256 on, so that a space is 'Ġ' and a newline 'Ċ'"""
    spare = map(chr, itertools.count(256))
    characters = map(chr, range(256))
    return [c if c.isprintable() and c != " " else next(spare) for c in characters]


BYTE_NAME = byte_names()
NAME_BYTE = {name: b for b, name in enumerate(BYTE_NAME)}

# The vocabulary before any merge: <|endoftext|> is 0, the bytes are 1 to 256 in printable order.
FIRST_IDS = {token: i for i, token in enumerate([END_OF_TEXT, *sorted(BYTE_NAME)])}


def to_bytes(text):
    """-> the UTF-8 bytes of a text; a lone surrogate, which a str may hold, is encoded too"""
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


# ------------------------------------------------------------------------------------------------
# Plain BPE, the specification: the merges that a Tokenizer learns, and the ids that it gives

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
    """pieces: lists of byte ids -> {(left, right): new id} in the order the merges were learned

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


# ------------------------------------------------------------------------------------------------
# The tokenizer

class Tokenizer:
    """A vocabulary, its merges in the order they were learned, and a split pattern.

    vocab: {token in printable form: id}
    merges: [(left, right, new id), ...]; plain_encode takes them as {(left, right): new id}
    pattern: the regular expression of the split, or None for no split
    specials: tokens of `vocab` that stand for themselves and not for bytes
    split: the name of the pattern in PATTERNS, or "custom"
    bytes_of: {id: bytes of the token}
    eot: the id of <|endoftext|>, or None
    unknown: the bytes without a token, which encode() drops as the `tokenizers` library does;
        b"" for every tokenizer trained here, but not for the DNAHLM paper's
    """

    def __init__(self, vocab, merges, pattern, specials=(END_OF_TEXT,)):
        self.vocab, self.merges, self.pattern, self.specials = vocab, merges, pattern, specials
        self.split = next((name for name, p in PATTERNS.items() if p == pattern), "custom")
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

        The merges are those of plain_train, and of the `tokenizers` library. A text too small
        for so many merges gives fewer ids. With `verbose`, each merge is printed.
        """
        if split not in PATTERNS:
            raise ValueError(f"split={split} is not one of {', '.join(PATTERNS)}")
        if vocab_size < len(FIRST_IDS):
            raise ValueError(f"vocab_size={vocab_size} is too small: 256 bytes and {END_OF_TEXT} "
                             f"make {len(FIRST_IDS)}")

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
        """-> list of ids: of each piece, those of plain_encode. A special token's name in a text is
        read as plain characters."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts):
        """list of str -> list of integer arrays, the ids of each text. Much faster than one by
        one: each distinct word is encoded once, on all cores."""
        return self.encoder.encode_batch(texts)

    def decode_bytes(self, ids):
        """-> the bytes of `ids`; special tokens are spelled out. KeyError for an unknown id."""
        return b"".join(self.bytes_of[int(i)] for i in ids)

    def decode(self, ids):
        """-> the text of `ids`; invalid UTF-8, such as half a character, becomes U+FFFD"""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # -- the file, in the layout of the `tokenizers` library

    def to_json(self):
        """-> the content of a tokenizer.json, which the library reads and gives the same ids"""
        return write_settings(self.vocab, self.merges, self.pattern, self.specials)

    def save(self, path):
        """Write a tokenizer.json."""
        with open(path, "w", encoding="utf-8") as f:
            json.dump(self.to_json(), f, ensure_ascii=False, indent=1)

    @classmethod
    def load(cls, path, sha256=None):
        """Read a tokenizer.json, ours or another byte-level BPE, to give the library's ids.

        sha256: if given, the hash that the file must have: of the tokenizer with which data or a
            model were made
        ValueError if it differs, or if a setting is not supported
        """
        with open(path, "rb") as f:
            raw = f.read()
        if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256:
            raise ValueError(f"{path}: not the tokenizer that the rest was made with (its sha256 "
                             f"should begin with {sha256[:12]}): put the right one back")
        try:
            return cls(*read_settings(json.loads(raw), NAME_BYTE))
        except regex.error as e:
            reason = f"its Split pattern does not compile: {e}"
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            reason = str(e) if isinstance(e, ValueError) else f"{type(e).__name__}: {e}"
        raise ValueError(f"{path}: not a byte-level BPE that can be read here: {reason}")


# ------------------------------------------------------------------------------------------------
# tokenizer.json, the file of the `tokenizers` library: how ours is written, and how those of other
# programs are read. What would give other ids here than in the library is refused.

def write_settings(vocab, merges, pattern, specials):
    """What a Tokenizer consists of -> the content of a tokenizer.json"""
    name = {i: token for token, i in vocab.items()}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                  "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated",
             "invert": False}
    both = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False,
               "special": True}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": vocab[s], "content": s} | special for s in specials],
        "normalizer": None,
        "pre_tokenizer": byte_level if pattern is None else both,
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
            "vocab": vocab,
            "merges": [[name[left], name[right]] for left, right, _ in merges],
        },
    }


# ------------------------------------------------------------------------------------------------
# Reading

# How a message names a type
KINDS = {dict: "an object", list: "a list", str: "text"}

# The values or types with which a setting is read; None: it may also be absent.
FILE = {"model": [dict], "normalizer": [None], "truncation": [None], "padding": [None]}
MODEL = {"vocab": [dict], "merges": [list], "type": ["BPE", None], "dropout": [None, 0],
         "unk_token": [None], "continuing_subword_prefix": [None, ""],
         "end_of_word_suffix": [None, ""], "byte_fallback": [False, None],
         "ignore_merges": [False, None]}
SPLIT = {"pattern": [dict], "behavior": ["Isolated", None], "invert": [False, None]}

# A pattern that Oniguruma, the library's engine, and Python's `regex` read alike: without ^, $,
# \w, \b, \h, sets within sets, most (? groups
ESCAPE = r"\\(?:[pP]\{\w+\}|[sSdDrnt]|\W)"
COMMON_SYNTAX = regex.compile(
    rf"(?:{ESCAPE}|\[\^?(?:{ESCAPE}|[^\\\[\]&]|&(?!&))+\]|\(\?(?:i?:|>|<?[=!])|\((?!\?)"
    r"|\{\d*,?\d*\}(?![+?])|[^\\\[\](){}^$]|\))*")


def check(settings, where, supported):
    """ValueError for a setting with which the library would give other ids than we do"""
    for key, choices in supported.items():
        value = settings.get(key) if isinstance(settings, dict) else None
        if value not in choices and type(value) not in choices:
            names = [KINDS.get(choice) or json.dumps(choice) for choice in choices]
            raise ValueError(f"{where}{key} is {json.dumps(value):.60}; supported: "
                             f"{' or '.join(names)}")


def read_settings(file, byte_names):
    """The content of a tokenizer.json -> (vocab, merges, pattern, specials), as of a Tokenizer.
    ValueError (or TypeError, KeyError, AttributeError) for what is not supported.
    byte_names: {GPT-2's name of a byte: the byte}"""
    check(file, "", FILE)
    check(file["model"], "model.", MODEL)
    check(file.get("post_processor") or {"type": None}, "post_processor.",
          {"type": ["ByteLevel", None]})
    vocab, specials = read_vocab({"added_tokens": []} | file, byte_names)
    merges = read_merges(file["model"]["merges"], vocab, specials, byte_names)
    return vocab, merges, read_split(file.get("pre_tokenizer") or {"type": "null"}), specials


def read_vocab(file, byte_names):
    """-> {token: id}, special tokens"""
    check(file, "", {"added_tokens": [list]})
    vocab, specials = dict(file["model"]["vocab"]), []
    for n, token in enumerate(file["added_tokens"]):
        check(token, f"added_tokens[{n}].", {"content": [str], "special": [True]})
        specials.append(token["content"])
        if vocab.setdefault(token["content"], token["id"]) != token["id"]:
            raise ValueError(f"special token {token['content']!r} has two ids")

    # One id is one token, spelled in the names of its bytes.
    owner = {}
    for token, i in vocab.items():
        if type(i) is not int or not 0 <= i < 1 << 24:
            raise ValueError(f"the id of token {token!r} is {json.dumps(i):.60}")
        if owner.setdefault(i, token) != token:
            raise ValueError(f"tokens {owner[i]!r} and {token!r} have the same id, {i}")
        if token not in specials and not set(token) <= byte_names.keys():
            raise ValueError(f"token {token!r} is not spelled in GPT-2's names of bytes")
    return vocab, tuple(specials)


def read_merges(pairs, vocab, specials, byte_names):
    """-> [(left, right, new), ...] as ids"""
    # Each merge makes a new token of two earlier ones, which is what fast encoding relies on.
    merges, known = [], vocab.keys() & byte_names.keys()
    for pair in pairs:
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        new = left + right
        if not {left, right} <= known or new in known or new not in vocab:
            raise ValueError(f"merge {len(merges) + 1}, {left!r} and {right!r}, does not make a "
                             "new token of the vocabulary out of two earlier ones")
        known.add(new)
        merges.append((vocab[left], vocab[right], vocab[new]))
    if known & set(specials):
        raise ValueError(f"special token {min(known & set(specials))!r} is a token of text too")
    return merges


def read_split(pre_tokenizer):
    """-> the regular expression of a pre-tokenizer, or None for no split"""
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    types = " + ".join(step["type"] for step in steps)
    if types not in ("ByteLevel", "Split + ByteLevel"):
        raise ValueError(f"pre_tokenizer is {types}; supported: ByteLevel or Split + ByteLevel")

    # ByteLevel splits as GPT-2 does, unless told otherwise. After a Split it must be told so.
    has_split = len(steps) == 2
    byte_level = {"use_regex": True} | steps[-1]
    check(byte_level, "ByteLevel.", {"add_prefix_space": [False, None],
                                     "use_regex": [False] if has_split else [False, True]})
    if not has_split:
        return GPT2_PATTERN if byte_level["use_regex"] else None

    check(steps[0], "Split.", SPLIT)
    pattern = steps[0]["pattern"].get("Regex")
    if not isinstance(pattern, str) or not COMMON_SYNTAX.fullmatch(pattern):
        raise ValueError(f"Split.pattern {json.dumps(steps[0]['pattern'])} is not a Regex that "
                         "Python's `regex` and the library read alike")
    return pattern


# ================================================================================================
# Speed. Everything below gives exactly the merges and ids of plain BPE; tests/test_bpe.py holds
# it to that.
#
# Training and encoding work on all pieces at once, as two numpy arrays with a cell per byte:
#
#     head[i]  the token that starts at byte i, or empty
#     tail[i]  the token that ends at byte i (valid only where a token ends)
#
# Neighbours are found by arithmetic: after a token at i comes the one that starts at
# i + length[head[i]], before it the one that ends at i - 1. Before, between and after pieces
# is a cell more, always empty. A merge writes three cells. In "banana", "a" and "n" are merged
# at i=1 and i=3 (a dot: empty in head; in tail an old value, never read):
#
#     head   b   a  n  a  n  a        b  an   .  an   .  a
#     tail   b   a  n  a  n  a   ->   b   .  an   .  an  a
#
# (a.take(i) is a[i], only faster.)

BLOCK = 1 << 20             # cells at a time, so that temporary arrays stay small

# A word is white space and what follows it. No piece of the COMPLETE patterns crosses the start
# of a word, so a word has the same pieces everywhere, and each distinct word is split only once.
# (`re` is twice as fast here as `regex`, but takes \x1c-\x1f for white space.)
WORD = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|\s+")


def split_words(text, pattern):
    """-> the words of a text; the whole text, if pieces of `pattern` might cross words"""
    return WORD.findall(text) if pattern in COMPLETE else [text] if text else []


def lay_out(pieces, byte_id, empty):
    """Pieces, a list of bytes -> (head, tail, edges): the two arrays, and the empty cells, which
    are before, between and after the pieces"""
    text = np.frombuffer(b"\0".join([b"", *pieces, b""]), dtype=np.uint8)
    edges = np.cumsum([0] + [len(piece) + 1 for piece in pieces])
    head = byte_id.astype(np.min_scalar_type(empty)).take(text)
    head[edges] = empty
    return head, head.copy(), edges


def index_in_run(first):
    """[1, 0, 0, 1, 1, 0] -> [0, 1, 2, 0, 0, 1]: count up from every True"""
    index = np.arange(len(first))
    return index - np.maximum.accumulate(np.where(first, index, 0))


# ------------------------------------------------------------------------------------------------
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

    No two merges make the same byte string, so each new token has a new name: where bytes have
    become one token, no merge has crossed their edges, so the merges inside depend on these bytes
    only, and are the same everywhere.
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
    weights: how often the piece around each cell occurs; the last entry, 1, serves all cells after it
    heap: of (-count, code, positions) of pairs; code = left * base + right
    lost: {code: by how much the count of a pair in the heap has fallen}

    A pair's count only ever falls, as a merge makes no pairs but those of the new token. So what
    was pushed with an old count comes up too early, and goes back with the new one. And pairs below
    `floor` need not be in the heap: when the others are used up, the floor is lowered, and the
    pairs, by then far fewer, are read from the text again.
    """

    def __init__(self, counts, vocab_size):
        byte_id = np.array([FIRST_IDS[name] for name in BYTE_NAME])
        self.empty, self.base = vocab_size, vocab_size + 1
        pieces = sorted(counts, key=counts.get, reverse=True)
        self.head, self.tail, edges = lay_out(pieces, byte_id, self.empty)
        self.heap, self.lost, self.floor = [], {}, max(2, len(self.head) // 2)

        # For sorting, code and position share 64 bits.
        self.bits = len(self.head).bit_length()
        if self.base ** 2 << self.bits >= 1 << 63:
            raise ValueError(f"{len(self.head)} bytes are too many for a vocabulary of "
                             f"{vocab_size}: train the tokenizer on a smaller sample")

        # Weigh the first cell, then each piece and the cell after it. Pieces that occur once come
        # last: one weight serves them all.
        self.length = np.ones(self.base, dtype=np.int64)
        repeated = sum(n > 1 for n in counts.values())
        weights = np.array([0, *(counts[piece] for piece in pieces[:repeated])])
        self.weights = np.append(np.repeat(weights, np.diff(edges[:repeated + 1], prepend=-1)), 1)

    def most_frequent(self):
        """-> one (left, right, count, sorted positions) after another, each to be merged before
        the next is asked for; ties to the smaller ids"""
        while self.floor > 1:
            self.floor = max(1, self.floor // 8)
            self.push(np.flatnonzero(self.head != self.empty))
            while self.heap:
                count, code, at = heapq.heappop(self.heap)
                fallen = self.lost.pop(code)
                if fallen:              # it goes back, further down
                    if -count - fallen >= self.floor:
                        self.lost[code] = 0
                        heapq.heappush(self.heap, (count + fallen, code, at))
                    continue

                # Keep the positions where the pair still occurs. (Tokens only ever grow: two
                # that are where they once were have been there all along.)
                left, right = divmod(code, self.base)
                at = at.take(np.flatnonzero(self.head.take(at) == left))
                at = at.take(np.flatnonzero(self.head.take(at + self.length[left]) == right))
                yield left, right, -count, at

    def push(self, keys):
        """keys: (n,) positions, overwritten. Push the frequent pairs that start there.
        -> codes and counts of all of them"""
        # Write the codes into the high bits; where there is no pair, -1.
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
        columns = (column.take(kept).tolist() for column in (codes, counts, starts, stops))
        for code, count, start, stop in zip(*columns):
            heapq.heappush(self.heap, (-count, code, keys[start:stop]))
            self.lost[code] = 0
        return codes, counts

    def merge(self, left, right, new, at):
        """Write the token `new` over the pair (left, right) at the sorted positions `at`."""
        # AAAAA has the pair AA at 0, 1, 2, 3: merge those at 0 and 2.
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
            if code in self.lost:
                self.lost[code] += count


# ------------------------------------------------------------------------------------------------
# Fast encoding: many merges in one pass, over all pieces at once

class PairRanks:
    """A table that looks up many pairs at once: pair -> the rank of its merge.

    The code of a pair, left * base + right, has a slot by its hash. Of 16 slots at least 15 are
    empty. The few codes that find theirs taken are kept apart, sorted, for a binary search.
    """

    def __init__(self, merges, base):
        """merges: (n, 3) ids left, right, new, in the order of their ranks"""
        codes = merges[:, 0] * base + merges[:, 1]
        bits = (16 * len(codes)).bit_length()
        self.base, self.shift, self.no_merge = base, np.uint64(64 - bits), len(codes)
        self.slots = np.full(1 << bits, self.no_merge, dtype=np.int32)

        # Of several codes for a slot, the last stays: that of the lowest rank.
        ranks = np.arange(len(codes))
        self.slots[self.slot(codes)[::-1]] = ranks[::-1]
        rest = np.flatnonzero(self.slots[self.slot(codes)] != ranks)
        self.rest = np.append(rest[np.argsort(codes[rest])], self.no_merge)
        self.codes = np.append(codes, -1)               # the last: the code of no pair

    def slot(self, codes):
        # The top bits of a product with an odd number, here MurmurHash3's, depend on all bits.
        product = codes.view(np.uint64) * np.uint64(0xFF51AFD7ED558CCD)
        return (product >> self.shift).view(np.int64)

    def find(self, left, right):
        """left, right: (n,) tokens -> (n,) the rank of each pair; no_merge where there is none"""
        codes = left.astype(np.int64) * self.base + right
        ranks = self.slots.take(self.slot(codes))
        wrong = np.flatnonzero((self.codes.take(ranks) != codes) & (ranks < self.no_merge))
        others = codes.take(wrong)
        rest = self.rest.take(self.codes.take(self.rest[:-1]).searchsorted(others))
        ranks[wrong] = np.where(self.codes.take(rest) == others, rest, self.no_merge)
        return ranks


def level_ends(merges):
    """-> the ranks at which a level ends. A level is a stretch of the list of merges in which
    none needs what another one makes."""
    ends, made = [], set()
    for rank, (left, right, new) in enumerate(merges):
        if left in made or right in made:
            ends.append(rank)
            made.clear()
        made.add(new)
    return [*ends, len(merges)]


def winners(mine, left, right):
    """mine, left, right: (n,) the ranks of a level's pairs, by position, and of those to the left
    and right of each -> (n,) which are merged now: those of lower rank than both, and in a run of
    equal pairs every other one, from the left"""
    wins = (mine < left) & (mine <= right)

    # AAAAA is a run of equal pairs: if the first of them wins, every other one does.
    twins = np.flatnonzero(mine == left)
    index = 1 + index_in_run(np.diff(twins, prepend=-1) != 1)
    wins[twins] = (wins[twins - index] & (index % 2 == 0)) & (mine <= right)[twins]
    return wins


class Encoder:
    """The merges of a tokenizer as tables.

    Replayed one by one, 50,000 merges take as many passes over the text. But those of a level do
    not need each other: one pass does them all, and there are only a few dozen levels. Within a
    level, order matters only where two pairs overlap: there the lower rank wins.
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
        self.n_levels = len(self.level_ends)

    def encode_batch(self, texts):
        """list of str -> list of arrays of ids. Each distinct word is encoded once."""
        # Number the distinct words in the order of their appearance. sequence: all texts as word
        # numbers, of which text i has stops[i] to stops[i + 1].
        number = defaultdict(itertools.count().__next__)
        sequence, stops = [], [0]
        for text in texts:
            sequence.extend(map(number.__getitem__, split_words(text, self.tok.pattern)))
            stops.append(len(sequence))

        # Encode the words in batches of BLOCK characters, on all cores: numpy releases the GIL.
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
        source = np.repeat(first.take(sequence) - ends[:-1], n_tokens) + np.arange(ends[-1])
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
        """list of bytes -> (ids of all pieces in a row, (n + 1,) the bounds of each piece)"""
        head, tail, edges = lay_out(pieces, self.byte_id, self.empty)

        # For each cell: the rank of the merge of its token with the next one
        rank = self.ranks.find(head[:-1], head[1:])
        for end in self.level_ends:
            at = np.flatnonzero(rank < end)
            while len(at):
                mine = rank.take(at)
                left = at - self.length.take(tail.take(at - 1))
                right = at + self.length.take(head.take(at))
                wins = winners(mine, rank.take(left), rank.take(right))

                # Write the three cells of each merge.
                won = np.flatnonzero(wins)
                here, gone = at.take(won), right.take(won)
                new = self.product.take(mine.take(won))
                size = self.length.take(new)
                head[here], head[gone], tail[here + size - 1] = new, self.empty, new

                # Instead of x left right y there is x new y. Later levels merge its pairs.
                x, y = tail.take(here - 1), head.take(here + size)
                rank[gone] = self.ranks.no_merge
                rank[here - self.length.take(x)] = self.ranks.find(x, new)
                rank[here] = self.ranks.find(new, y)

                # Of the pairs that lost, those that are still there have another chance.
                at = at.take(np.flatnonzero(~wins))
                at = at.take(np.flatnonzero(rank.take(at) < end))

        at = np.flatnonzero(head != self.empty)
        return head.take(at), np.searchsorted(at, edges)
