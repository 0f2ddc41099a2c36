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

import numpy as np
import regex
from tqdm import tqdm

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
           r"| ?(?:[^\P{L}ACGT]|(?!" + RUN + r")[ACGT])+"   # words; [^\P{L}ACGT]: other letters
           r"| ?\p{N}+"                                     # numbers
           r"| ?[^\s\p{L}\p{N}]+"                           # punctuation
           r"|\s+(?!\S)|\s+")                               # white space

SPLITS = {
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
COMPLETE = {GPT2_PATTERN, SPLITS["mixed"], SPLITS["mixed6"], SPLITS["mixed1"]}

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
    """-> the UTF-8 of a text, of half a surrogate pair too (a str may hold one)"""
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
        # The most frequent pair; of several, the one of the smaller ids
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

    vocab, merges, pattern, specials: as given to __init__
    split: the name of the pattern in SPLITS, or "custom"
    bytes_of: {id: bytes of the token}
    eot: the id of <|endoftext|>, or None
    unknown: the bytes without a token, which encode() drops as the `tokenizers` library does.
        b"" for every tokenizer trained here, and then decode() restores any text; the DNAHLM
        paper's, for one, restores only texts without these bytes.
    """

    def __init__(self, vocab, merges, pattern, specials=(END_OF_TEXT,)):
        """vocab: {token in printable form: id}; merges: [(left, right, new id), ...]; pattern:
        the regular expression of the split, or None for no split; specials: tokens of `vocab`
        that stand for themselves and not for bytes"""
        self.vocab, self.merges, self.pattern, self.specials = vocab, merges, pattern, specials
        self.split = next((name for name, p in SPLITS.items() if p == pattern), "custom")
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
        pieces, end = [], 0
        for match in self._regex.finditer(text):
            pieces += text[end:match.start()], match[0]
            end = match.end()
        pieces.append(text[end:])
        return [piece for piece in pieces if piece]

    @classmethod
    def train(cls, docs, vocab_size, split="mixed", verbose=False):
        """Learn a vocabulary of `vocab_size` ids from `docs`, an iterable of str.

        The merges are those of plain_train, and of the `tokenizers` library. A text too small
        for so many merges gives fewer ids. With `verbose`, each merge is printed.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split} is not one of {', '.join(SPLITS)}")
        if vocab_size < len(FIRST_IDS):
            raise ValueError(f"vocab_size={vocab_size} is too small: 256 bytes and {END_OF_TEXT} "
                             f"make {len(FIRST_IDS)}")

        # Count the pieces, then learn from the counts.
        vocab, merges = dict(FIRST_IDS), []
        counts = count_pieces(docs, cls(vocab, [], SPLITS[split]))
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
        return cls(vocab, merges, SPLITS[split])

    def encode(self, text):
        """-> list of ids: of each piece, those of plain_encode. Never a special token: a text that
        spells <|endoftext|> is only text."""
        return self.encode_batch([text])[0].tolist()

    def encode_batch(self, texts):
        """texts: list of str -> list of integer arrays, the ids of each text. Much faster than
        text by text: each distinct word is encoded once, and all of them on all cores."""
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
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                      "use_regex": False}
        split = {"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated",
                 "invert": False}
        name = {i: token for token, i in self.vocab.items()}
        return {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": self.vocab[s], "content": s, "single_word": False,
                              "lstrip": False, "rstrip": False, "normalized": False,
                              "special": True} for s in self.specials],
            "normalizer": None,
            "pre_tokenizer": byte_level if self.pattern is None else
                             {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": None,
            "decoder": byte_level | {"add_prefix_space": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": self.vocab,
                      "merges": [[name[left], name[right]] for left, right, _ in self.merges]},
        }

    def save(self, path):
        """Write a tokenizer.json: the whole file or nothing."""
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=1)
        with open(f"{path}.tmp", "w", encoding="utf-8") as f:
            f.write(text)
        os.replace(f"{path}.tmp", path)

    @classmethod
    def load(cls, path, sha256=None):
        """Read a tokenizer.json, ours or another byte-level BPE. It gives the ids that the library
        gives, or a ValueError names the setting that stands in the way. With `sha256`, any other
        file than the one with which data or a model were made is refused too."""
        with open(path, "rb") as f:
            raw = f.read()
        if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256:
            raise ValueError(f"{path}: not the tokenizer that the rest was made with (its sha256 "
                             f"should begin with {sha256[:12]}): put the right one back")
        try:
            return cls(*read_settings(json.loads(raw)))
        except regex.error as e:
            reason = f"its Split pattern does not compile: {e}"
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
            reason = str(e) if isinstance(e, ValueError) else f"{type(e).__name__}: {e}"
        raise ValueError(f"{path}: not a byte-level BPE that can be read here: {reason}")


# ================================================================================================
# Speed. Everything below gives exactly the merges and ids of plain BPE; tests/test_bpe.py holds
# it to that. (At the very end: how the tokenizer.json of other programs is read.)
#
# Training and encoding work on all pieces at once, as two numpy arrays with a cell per byte:
#
#     head[i]  the token that starts at byte i, or empty
#     tail[i]  the token that ends at byte i (valid only where a token ends)
#
# Neighbours are then found by arithmetic: after a token at i comes the one that starts at
# i + length[head[i]], before it the one that ends at i - 1. One empty cell separates two
# pieces. A merge writes three cells. For example "banana", where "a" and "n" are merged at
# i=1 and i=3:
#
#     head   b   a  n  a  n  a        b  an   .  an   .  a
#     tail   b   a  n  a  n  a   ->   b   .  an   .  an  a
#
# (a.take(i) is a[i], only faster.)

BLOCK = 1 << 20             # cells at a time, so that temporary arrays stay small

# A word is white space and what follows it, up to the next white space. No piece of the COMPLETE
# patterns crosses the start of a word, so a word has the same pieces wherever it occurs, and
# each distinct word is split only once. (`re` is twice as fast here as `regex`, but takes
# \x1c-\x1f for white space.)
WORD = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|\s+")


def split_words(text, pattern):
    """-> the words of a text; the whole text, if pieces of `pattern` might cross words"""
    return WORD.findall(text) if pattern in COMPLETE else [text] if text else []


def lay_out(pieces, byte_id, empty):
    """Pieces, a list of bytes -> (text, head, tail, ends): the bytes, with one more before,
    between and after the pieces; the two arrays; the empty cell after each piece"""
    text = np.frombuffer(b"\0" + b"\0".join(pieces) + b"\0", dtype=np.uint8)
    sizes = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    ends = np.cumsum(sizes + 1)
    head = byte_id.astype(np.min_scalar_type(empty)).take(text)
    head[0] = head[-1] = empty
    head[ends] = empty
    return text, head, head.copy(), ends


def index_in_run(first):
    """[1, 0, 0, 1, 1, 0] -> [0, 1, 2, 0, 0, 1]: count up from every True"""
    index = np.arange(len(first))
    return index - np.maximum.accumulate(np.where(first, index, 0))


# ------------------------------------------------------------------------------------------------
# Fast training: each pair has a list of its positions and a count that is kept up to date

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

    Each merge yields a new byte string. For once a stretch of text is one token, no merge has
    crossed its edges, so the merges inside depend on its own bytes only: the same bytes become
    one token everywhere, or nowhere.
    """
    corpus = Corpus(counts, vocab_size)
    pairs = Pairs(corpus)
    for new in range(len(FIRST_IDS), vocab_size):
        best = pairs.pop()
        if best is None:
            return
        left, right, count, at = best
        pairs.update_counts(left, right, new, *corpus.merge(at, left, right, new))
        yield left, right, new, count


class Corpus:
    """The distinct pieces of a training text.

    head, tail: (cells,) the two arrays; empty: their value where there is no token
    length: (empty + 1,) bytes of each token
    weights: how often the piece around each cell occurs. Repeated pieces come first; the last
    entry, 1, serves all the cells after them.
    """

    def __init__(self, counts, vocab_size):
        pieces = sorted(counts, key=counts.get, reverse=True)
        repeated = [piece for piece in pieces if counts[piece] > 1]
        weights = [1] + [counts[piece] for piece in repeated] + [1]
        cells = [1] + [len(piece) + 1 for piece in repeated] + [1]
        self.weights = np.repeat(weights, cells)

        byte_id = np.array([FIRST_IDS[name] for name in BYTE_NAME])
        self.empty = vocab_size
        self.length = np.zeros(vocab_size + 1, dtype=np.int64)
        self.length[byte_id] = 1
        _, self.head, self.tail, _ = lay_out(pieces, byte_id, self.empty)

    def pairs(self, start, stop):
        """-> (left, right, at): all pairs that start in a range of cells, and where"""
        at = np.flatnonzero(self.head[start:stop] != self.empty) + start
        left = self.head.take(at).astype(np.int64)
        right = self.head.take(at + self.length.take(left))
        pair = np.flatnonzero(right != self.empty)
        return left.take(pair), right.take(pair), at.take(pair)

    def still_there(self, at, left, right):
        """Keep the positions where the pair still occurs. Tokens only ever grow: two tokens
        found where they once were have been there all along."""
        at = at.take(np.flatnonzero(self.head.take(at) == left))
        return at.take(np.flatnonzero(self.head.take(at + self.length[left]) == right))

    def merge(self, at, left, right, new):
        """Write the token `new` over the pair (left, right) at the sorted positions `at`
        -> (at, x, y): the positions of `new`, the tokens before it and those after it"""
        # AAAAA has the pair AA at 0, 1, 2, 3: merge those at 0 and 2.
        if left == right:
            first = np.append(True, np.diff(at) != self.length[left])
            at = at[index_in_run(first) % 2 == 0]
        self.length[new] = self.length[left] + self.length[right]
        self.head[at] = new
        self.head[at + self.length[left]] = self.empty
        self.tail[at + (self.length[new] - 1)] = new
        return at, self.tail.take(at - 1), self.head.take(at + self.length[new])


class Pairs:
    """The pairs worth merging: their counts, their positions, and a heap with the most frequent.

    A pair's count only ever falls, because a merge changes neighbours and so makes new pairs.
    Pairs below `floor` therefore need not be kept: when the others are used up, the floor is
    lowered and the pairs, by then far fewer, are read from the text again. A pair is known by
    its code, left * base + right. For sorting, code and position share 64 bits.
    """

    def __init__(self, corpus):
        cells, ids = len(corpus.head), len(corpus.length)
        if cells >= 1 << 32 or ids * ids * cells >= 1 << 62:
            raise ValueError(f"{cells} bytes are too many for a vocabulary of {ids - 1}: "
                             "train the tokenizer on a smaller sample")
        self.corpus, self.base, self.bits = corpus, ids, cells.bit_length()
        self.read()

    def keys(self, left, right, at):
        """-> (n,) the code of each pair and, in the low bits, its position"""
        return (left * self.base + right) << self.bits | at

    def read(self):
        """Find all pairs in the text and keep those whose count is near the highest."""
        self.count, self.positions, self.heap, self.floor = {}, {}, [], 1
        cells, n = len(self.corpus.head), 0
        keys = np.empty(cells, dtype=np.int64)
        for start in range(0, cells, BLOCK):
            found = self.keys(*self.corpus.pairs(start, min(start + BLOCK, cells)))
            keys[n:n + len(found)] = found
            n += len(found)
        if n:
            groups = self.group(keys[:n])
            self.floor = max(1, int(groups[1].max()) // 8)
            self.keep(*groups)

    def group(self, keys):
        """Sort the keys by pair -> (codes, counts, starts, at): the pair codes[g] occurs
        counts[g] times, at the positions at[starts[g]:starts[g + 1]]"""
        keys.sort()
        at = (keys & ((1 << self.bits) - 1)).astype(np.uint32)
        keys >>= self.bits
        starts = np.append(0, np.flatnonzero(keys[1:] != keys[:-1]) + 1)
        weights = self.corpus.weights.take(at, mode="clip")
        counts = np.add.reduceat(weights, starts)
        return keys.take(starts), counts, np.append(starts, len(at)), at

    def keep(self, codes, counts, starts, at):
        """Remember the pairs that are frequent enough."""
        kept = np.flatnonzero(counts >= self.floor)
        columns = codes[kept], counts[kept], starts[kept], starts[kept + 1]
        for code, count, start, stop in zip(*(column.tolist() for column in columns)):
            self.count[code], self.positions[code] = count, at[start:stop]
            heapq.heappush(self.heap, (-count, code))

    def pop(self):
        """-> (left, right, count, sorted positions) of the most frequent pair, ties to the
        smaller ids; None when no pair is left"""
        while self.heap or self.floor > 1:
            if not self.heap:
                self.read()
                continue
            count_when_pushed, code = heapq.heappop(self.heap)
            count, at = self.count.pop(code), self.positions.pop(code)
            if count == -count_when_pushed:
                left, right = divmod(code, self.base)
                at = self.corpus.still_there(at.astype(np.int64), left, right)
                return left, right, count, at
            if count >= self.floor:             # it has fallen: put it back, further down
                self.count[code], self.positions[code] = count, at
                heapq.heappush(self.heap, (-count, code))
        return None

    def update_counts(self, left, right, new, at, x, y):
        """Count what a merge has changed: x left right y has become x new y, so (x, new)
        replaces (x, left), and (new, y) replaces (right, y)."""
        # Two adjacent new tokens form one pair: count it once, from the left one.
        has_x = np.flatnonzero((x != self.corpus.empty) & (x != new))
        has_y = np.flatnonzero(y != self.corpus.empty)
        x, y = x.take(has_x).astype(np.int64), y.take(has_y)
        before = self.keys(x, new, at.take(has_x) - self.corpus.length.take(x))
        after = self.keys(new, y.astype(np.int64), at.take(has_y))
        if len(before) + len(after) == 0:
            return
        codes, counts, starts, at = self.group(np.concatenate((before, after)))

        # Each new pair replaces as many of an older one, which may not be kept.
        first, second = np.divmod(codes, self.base)
        first, second = np.where(first == new, right, first), np.where(second == new, left, second)
        replaced = first * self.base + second
        for code, count in zip(replaced.tolist(), counts.tolist()):
            if code in self.count:
                self.count[code] -= count
        self.keep(codes, counts, starts, at)


# ------------------------------------------------------------------------------------------------
# Fast encoding: many merges in one pass, over all pieces at once

class PairRanks:
    """A table that looks up many pairs at once: the code of a pair -> the rank of its merge.

    Each code has a slot by its hash. Of 16 slots at least 15 are empty, and the few codes that
    find theirs taken are kept apart, sorted, for a binary search.
    """

    def __init__(self, codes):
        """codes: (n,) of the merges, in the order of their ranks"""
        bits = (16 * len(codes)).bit_length()
        self.shift = np.uint64(64 - bits)
        self.no_merge = len(codes)
        self.slots = np.full(1 << bits, self.no_merge, dtype=np.int32)

        # Of several codes for a slot, the last stays: the one of the lowest rank, the most used.
        ranks = np.arange(len(codes))
        self.slots[self.slot(codes)[::-1]] = ranks[::-1]
        rest = np.flatnonzero(self.slots[self.slot(codes)] != ranks)
        self.rest = np.append(rest[np.argsort(codes[rest])], self.no_merge)
        self.codes = np.append(codes, -1)               # of "no merge" too

    def slot(self, codes):
        # Fibonacci hashing (Knuth): the top bits of a product with 2**64 / the golden ratio
        product = codes.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (product >> self.shift).view(np.int64)

    def find(self, codes):
        """-> (n,) the rank of each pair; no_merge where there is none"""
        ranks = self.slots.take(self.slot(codes))
        wrong = np.flatnonzero((self.codes.take(ranks) != codes) & (ranks < self.no_merge))
        others = codes.take(wrong)
        rest = self.rest.take(self.codes.take(self.rest[:-1]).searchsorted(others))
        ranks[wrong] = np.where(self.codes.take(rest) == others, rest, self.no_merge)
        return ranks


def levels(merges):
    """-> the level of each merge. A level is a stretch of the list of merges in which none
    needs what another one makes."""
    level, made, result = 0, set(), []
    for left, right, new in merges:
        if left in made or right in made:
            level += 1
            made.clear()
        made.add(new)
        result.append(level)
    return result


def winners(mine, left, right):
    """-> (n,) which pairs of a level are merged now: those of lower rank than both of the pairs
    they overlap. mine, left, right: (n,) the ranks of the pairs, sorted by position, and of the
    pairs to the left and right of each"""
    wins = (mine < left) & (mine < right)

    # A token that repeats, as in AAAAA, makes a run of equal pairs: every other one is merged,
    # if the first of them wins.
    twins = left == mine
    if twins.any():
        index = index_in_run(~twins)
        first_wins = (mine < left).take(np.arange(len(mine)) - index)
        wins = first_wins & (mine <= right) & (index % 2 == 0)
    return wins


class Encoder:
    """The merges of a tokenizer as tables.

    Replaying 50,000 merges one by one takes as many passes over the text. But the merges of a
    level do not need each other: one pass does them all, and there are only a few dozen levels.
    Within a level, order matters only where two pairs overlap: there the lower rank wins.
    """

    def __init__(self, tok):
        self.tok, self.empty = tok, len(tok)
        self.byte_id = np.array([tok.vocab.get(name, self.empty) for name in BYTE_NAME])
        self.length = np.ones(self.empty + 1, dtype=np.int64)   # an empty cell is 1 long too
        for i, token in tok.bytes_of.items():
            self.length[i] = len(token)

        # The rank of a merge is its index. The last entry of each table stands for "no merge".
        merges = np.array(tok.merges, dtype=np.int64).reshape(-1, 3)
        self.no_merge = len(merges)
        self.product = np.append(merges[:, 2], self.empty)      # rank -> new token
        self.ranks = PairRanks(merges[:, 0] * len(self.length) + merges[:, 1])
        first = self.byte_id.repeat(256) * len(self.length)
        self.rank_of_bytes = self.ranks.find(first + np.tile(self.byte_id, 256))

        level = levels(tok.merges)
        self.n_levels = level[-1] + 1 if level else 0
        dtype = np.min_scalar_type(self.n_levels)
        self.level_of = np.array(level + [self.n_levels], dtype=dtype)

    def encode_batch(self, texts):
        """list of str -> list of arrays of ids. Each distinct word is encoded once."""
        # Texts as numbers of their words, which are counted up as they come.
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
        text, head, tail, ends = lay_out(pieces, self.byte_id, self.empty)

        # For each cell: the rank of the merge of its token with the next one, and its level.
        rank = np.full(len(text), self.no_merge, dtype=np.int32)
        rank[1:-1] = self.rank_of_bytes.take(text[1:-1].astype(np.uint16) << 8 | text[2:])
        rank[ends] = rank[ends - 1] = self.no_merge
        level = self.level_of.take(rank)

        # A merge makes two new pairs, (x, new) and (new, y), whose turn comes in later levels.
        base = len(self.length)
        for now in range(self.n_levels):
            at = self.merge_level(now, head, tail, rank, level)
            new = head.take(at).astype(np.int64)
            x = tail.take(at - 1).astype(np.int64)
            y = head.take(at + self.length.take(new))
            for start, codes in ((at - self.length.take(x), x * base + new),
                                 (at, new * base + y)):
                found = self.ranks.find(codes)
                pair = np.flatnonzero(found < self.no_merge)
                start, found = start.take(pair), found.take(pair)
                rank[start], level[start] = found, self.level_of.take(found)

        at = np.flatnonzero(head != self.empty)
        return head.take(at), np.searchsorted(at, np.append(0, ends))

    def merge_level(self, now, head, tail, rank, level):
        """Do all merges of the level `now` -> the positions of the tokens made"""
        # `level` also marks pairs that have gone since; `rank` knows better.
        at = np.flatnonzero(level == now)
        at = at.take(np.flatnonzero(self.level_of.take(rank.take(at)) == now))
        made = [at[:0]]
        while len(at):
            mine = rank.take(at)
            left = at - self.length.take(tail.take(at - 1))
            right = at + self.length.take(head.take(at))
            wins = winners(mine, rank.take(left), rank.take(right))

            # Write the three cells of each merge; the pair and those it overlaps are gone.
            won = np.flatnonzero(wins)
            here, left, right = at.take(won), left.take(won), right.take(won)
            new = self.product.take(mine.take(won))
            head[here], head[right] = new, self.empty
            tail[here + self.length.take(new) - 1] = new
            rank[left] = rank[here] = rank[right] = self.no_merge
            made.append(here)

            # Of the others, those that are still pairs have another chance.
            at = at.take(np.flatnonzero(~wins))
            at = at.take(np.flatnonzero(rank.take(at) < self.no_merge))
        return np.concatenate(made)


# ------------------------------------------------------------------------------------------------
# Reading a tokenizer.json: what gives the library's ids here, and what is refused

TYPES = {dict: "an object", list: "a list", str: "text"}

# A pattern that Oniguruma, the library's engine, and Python's `regex` read alike: without ^ and $,
# which Oniguruma matches at line breaks, without \w, \b, \h, sets within sets, most (? groups.
ESCAPE = r"\\(?:[pP]\{\w+\}|[sSdDrnt]|\W)"
COMMON_SYNTAX = regex.compile(
    rf"(?:{ESCAPE}|\[\^?(?:{ESCAPE}|[^\\\[\]&]|&(?!&))+\]|\(\?(?:i?:|>|<?[=!])|\((?!\?)"
    r"|\{\d*,?\d*\}(?![+?])|[^\\\[\](){}^$]|\))*")


def entry(settings, key, kind):
    """-> settings[key]; ValueError if it is not of the type `kind`"""
    value = settings.get(key) if isinstance(settings, dict) else None
    if not isinstance(value, kind):
        raise ValueError(f"{key} is {json.dumps(value):.60}, not {TYPES[kind]}")
    return value


def expect(settings, where, **supported):
    """ValueError for a setting with which the library would give other ids than we do"""
    for key, values in supported.items():
        if settings.get(key, values[0]) not in values:
            raise ValueError(f"{where}{key} is {json.dumps(settings[key]):.60}; supported: "
                             f"{' or '.join(map(json.dumps, values))}")


def read_settings(file):
    """The content of a tokenizer.json -> (vocab, merges, pattern, specials), as of a Tokenizer"""
    model = entry(file, "model", dict)
    expect(file, "", normalizer=[None], truncation=[None], padding=[None])
    expect(file.get("post_processor") or {}, "post_processor.", type=["ByteLevel"])
    expect(model, "model.", type=["BPE"], dropout=[None, 0], unk_token=[None],
           continuing_subword_prefix=[None, ""], end_of_word_suffix=[None, ""],
           byte_fallback=[False], ignore_merges=[False])
    vocab, specials = read_vocab(file, model)
    merges = read_merges(model, vocab, specials)
    return vocab, merges, split_pattern(file.get("pre_tokenizer")), specials


def read_vocab(file, model):
    """-> {token: id}, special tokens"""
    vocab, specials = dict(entry(model, "vocab", dict)), []
    for token in entry({"added_tokens": []} | file, "added_tokens", list):
        content = entry(token, "content", str)
        expect({"special": False} | token, f"added token {content!r}: ", special=[True])
        specials.append(content)
        if vocab.setdefault(content, token["id"]) != token["id"]:
            raise ValueError(f"special token {content!r} has two ids")

    # One id is one token, spelled in the names of its bytes.
    owner = {}
    for token, i in vocab.items():
        if type(i) is not int or not 0 <= i < 1 << 24:
            raise ValueError(f"the id of token {token!r} is {json.dumps(i):.60}")
        if owner.setdefault(i, token) != token:
            raise ValueError(f"tokens {owner[i]!r} and {token!r} have the same id, {i}")
        if token not in specials and not set(token) <= NAME_BYTE.keys():
            raise ValueError(f"token {token!r} is not spelled in GPT-2's names of bytes")
    return vocab, tuple(specials)


def read_merges(model, vocab, specials):
    """-> [(left, right, new), ...] as ids"""
    # Each merge makes a new token of two earlier ones, which is what fast encoding relies on.
    merges, known = [], vocab.keys() & NAME_BYTE.keys()
    for pair in entry(model, "merges", list):
        left, right = pair.split(" ") if isinstance(pair, str) else pair
        if not {left, right} <= known or left + right in known or left + right not in vocab:
            raise ValueError(f"merge {len(merges) + 1}, {left!r} and {right!r}, does not make a "
                             "new token of the vocabulary out of two earlier ones")
        known.add(left + right)
        merges.append((vocab[left], vocab[right], vocab[left + right]))
    if known & set(specials):
        raise ValueError(f"special token {min(known & set(specials))!r} is a token of text too")
    return merges


def split_pattern(pre_tokenizer):
    """The "pre_tokenizer" of a tokenizer.json -> a regular expression, or None for no split"""
    pre_tokenizer = pre_tokenizer or {"type": "null"}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    types = " + ".join(step["type"] for step in steps)
    if types not in ("ByteLevel", "Split + ByteLevel"):
        raise ValueError(f"pre_tokenizer is {types}; supported: ByteLevel or Split + ByteLevel")
    byte_level = {"use_regex": True} | steps[-1]        # the library's default
    expect(byte_level, "ByteLevel.", add_prefix_space=[False], use_regex=[True, False])
    if len(steps) == 1:
        return GPT2_PATTERN if byte_level["use_regex"] else None

    split = steps[0]
    expect(byte_level, "ByteLevel after Split: ", use_regex=[False])
    expect(split, "Split.", behavior=["Isolated"], invert=[False])
    pattern = entry(split, "pattern", dict).get("Regex")
    if not isinstance(pattern, str) or not COMMON_SYNTAX.fullmatch(pattern):
        raise ValueError(f"Split.pattern {json.dumps(split['pattern'])} is not a Regex that "
                         "Python's `regex` and the library read alike")
    return pattern
