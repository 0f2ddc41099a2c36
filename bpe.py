"""
A byte-level BPE tokenizer for DNA and English: train, encode, decode, save, load, show.

    tok = Tokenizer.train(["the cell", "ACGTACGTACGT"], vocab_size=300)
    tok.encode("ACGTACGT in the cell")     # -> list of ids
    tok.decode(ids)                        # -> the same text

BPE starts from the 256 bytes and again and again joins the commonest pair of neighbours into one
new token. What may be a neighbour is decided before, by cutting text into pieces: no pair reaches
over the edge of a piece. That cut, a regular expression, is where DNA and English are kept apart.

Both training and encoding work on the whole text at once, as two numpy arrays with a cell a byte:

    head[i]  the token that starts at byte i, or empty
    tail[i]  the token that ends at byte i   (read only where a token really ends)

so a token's neighbours are found by arithmetic alone: the next one starts at i + length[head[i]],
the one before is tail[i - 1]. Between two pieces lies one empty cell. To merge a pair is to write
three cells. For example, "banana", where the merge of "a" and "n" is applied at i=1 and i=3:

    head   b   a  n  a  n  a        b  an   .  an   .  a
    tail   b   a  n  a  n  a   ->   b   .  an   .  an  a
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

# ----------------------------------------------------------------------------------------------
# The modality boundary.
#
# DNA is a run of eight or more of the capital letters A, C, G, T, wherever it stands: after a
# space, a newline, an N, within a word. Anything shorter is English: CAT, TATA, GATTACA. Eight is
# long enough that no word of prose is taken for DNA, short enough that no sequence worth reading
# is missed. The rule looks at the run alone, never at what is around it, and a space before a run
# stays outside (in English a space belongs to the word after it), so the same DNA always gives the
# same tokens. The price: DNA in lower case is English; prepare.py upper-cases what it reads.

RUN = "[ACGT]{8}"

# The rest is read as GPT-2 reads it, but that a word ends where a run of DNA begins.
ENGLISH = (r"'(?:[sdmt]|ll|ve|re)"                                # contractions
           r"| ?(?:[^\P{L}ACGT]|(?!" + RUN + r")[ACGT])+"         # words (\P{L}: not a letter)
           r"| ?\p{N}+"                                           # numbers
           r"| ?[^\s\p{L}\p{N}]+"                                 # punctuation
           r"|\s+(?!\S)|\s+")                                     # white space

SPLITS = {
    # BPE over runs of any length
    "mixed": r"[ACGT]{8,}|" + ENGLISH,
    # runs in words of six: the first six of a run, then six at a time behind six others
    "mixed6": r"(?=" + RUN + r")[ACGT]{6}|(?<=[ACGT]{6})[ACGT]{1,6}|" + ENGLISH,
    # base by base: the first of a run, then one at a time behind another
    "mixed1": r"(?=" + RUN + r")[ACGT]|(?<=[ACGT])[ACGT]|" + ENGLISH,
    # no boundary at all, as in the DNAHLM paper: the whole document is one piece
    "none": None,
}

# What the `tokenizers` library cuts by when a file says only ByteLevel(use_regex=True).
GPT2_PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# White space and what follows it up to the next. (Of `re`, which reads this twice as fast as `regex`
# but counts \x1c-\x1f as white space too.)
WORD = re.compile(r"[^\S\x1c-\x1f]*[\S\x1c-\x1f]+|\s+")

END_OF_TEXT = "<|endoftext|>"


def byte_to_unicode():
    """GPT-2's printable name for each byte: bytes that print stand for themselves, the others are
    counted up from 256, so that a space is 'Ġ' and a newline 'Ċ'. -> list of 256 characters"""
    names, spare = [], 256
    for b in range(256):
        if chr(b).isprintable() and chr(b) != " ":
            names.append(chr(b))
        else:
            names.append(chr(spare))
            spare += 1
    return names


BYTE_NAME = byte_to_unicode()
NAME_BYTE = {name: b for b, name in enumerate(BYTE_NAME)}


# ----------------------------------------------------------------------------------------------
# The two arrays

BLOCK = 1 << 20                             # cells at a time: what they need stays in the cache
POOL = ThreadPoolExecutor(os.cpu_count())   # while numpy computes, other threads may run


def in_blocks(function, n):
    """-> [function(start, stop), ...] for each block of n cells, on all cores. Not to be called from
    within a function that runs in the pool itself: it would wait for its own place."""
    if n <= BLOCK:
        return [function(0, n)]
    starts = range(0, n, BLOCK)
    return list(POOL.map(function, starts, [min(start + BLOCK, n) for start in starts]))


def lay_out(pieces, byte_id, empty):
    """Pieces of bytes -> (text, head, tail, ends): the bytes, with a cell before, between and
    behind the pieces; the two arrays, where these cells are empty; the empty cell behind each
    piece."""
    text = np.frombuffer(b"\0" + b"\0".join(pieces) + b"\0", dtype=np.uint8)
    ends = np.cumsum(np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces)) + 1)
    head = np.empty(len(text), dtype=np.min_scalar_type(empty))
    for start in range(0, len(text), BLOCK):
        head[start:start + BLOCK] = byte_id.take(text[start:start + BLOCK])
    head[0] = head[-1] = empty
    head[ends] = empty
    return text, head, head.copy(), ends


def without_overlaps(at, step):
    """Sorted positions of a pair of equal tokens, `step` bytes each -> those that are merged, from
    the left: in AAAAA the pair AA stands at 0, 1, 2, 3 and is merged at 0 and 2."""
    first_of_run = np.ones(len(at), dtype=bool)
    first_of_run[1:] = np.diff(at) != step
    return at[place_in_run(first_of_run) % 2 == 0]


def place_in_run(first_of_run):
    """[1, 0, 0, 1, 1, 0] -> [0, 1, 2, 0, 0, 1]: counts up from every True"""
    index = np.arange(len(first_of_run))
    return index - np.maximum.accumulate(np.where(first_of_run, index, 0))


# ----------------------------------------------------------------------------------------------
# Training. Every merge needs the commonest pair, and where it stands. The first few dozen, of
# pairs that stand everywhere, are found by reading the whole text; the thousands after them by
# lists of positions. Both count alike, and so the result is the same wherever one stops and the
# other begins.

SCAN_SHARE = 512        # a pair is common if it is a larger part of the text than this, 1/512


class Text:
    """A training text.

    head, tail: (cells,) the two arrays; empty: their value where no token stands
    length: (empty + 1,) bytes of each token
    weights: how often the piece around each cell occurs. The repeated pieces come first; the last
    entry, 1, is for all the cells behind them.
    """

    def __init__(self, counts, byte_id, vocab_size):
        pieces = sorted(counts, key=counts.get, reverse=True)
        repeated = [piece for piece in pieces if counts[piece] > 1]
        self.weights = np.repeat([1] + [counts[p] for p in repeated] + [1],
                                 [1] + [len(p) + 1 for p in repeated] + [1])
        self.empty = vocab_size
        _, self.head, self.tail, _ = lay_out(pieces, byte_id, self.empty)
        self.length = np.zeros(vocab_size + 1, dtype=np.int64)
        self.length[byte_id] = 1
        self.first_new = int(byte_id.max()) + 1

    def weigh(self, at):
        return self.weights.take(at, mode="clip")

    def scan(self, left, right):
        """-> the sorted positions of a pair, found by reading the whole text"""
        step = int(self.length[left])

        def find(start, stop):
            first, second = self.head[start:stop], self.head[start + step:stop + step]
            return np.flatnonzero((first == left) & (second == right)) + start

        return np.concatenate(in_blocks(find, len(self.head) - step))

    def still(self, at, left, right):
        """Of the positions where a pair once stood, those where it stands now. Tokens only ever
        grow: the same two tokens at the same place have been there all along."""
        at = at.take(np.flatnonzero(self.head.take(at) == left))
        return at.take(np.flatnonzero(self.head.take(at + self.length[left]) == right))

    def merge(self, at, left, right, new):
        """Write token `new` over the pair (left, right) at the sorted positions `at`.
        -> (at, before, behind): where it stands now, and its neighbours there"""
        if left == right:
            at = without_overlaps(at, self.length[left])
        self.length[new] = self.length[left] + self.length[right]

        def write(start, stop):
            where = at[start:stop]
            self.head[where] = new
            self.head[where + self.length[left]] = self.empty
            self.tail[where + (self.length[new] - 1)] = new

        in_blocks(write, len(at))
        return at, self.tail.take(at - 1), self.head.take(at + self.length[new])


def merge_common(text, vocab_size):
    """The first merges: as long as the commonest pair is a large part of the text.

    All pairs are counted once, in a square table. A merge of `left` and `right` then changes only
    the counts around it: where x stood before it, there is one (x, left) less and one (x, new)
    more, and the same behind it.  -> merges, a list of (left, right, new)
    """
    first = text.first_new
    size = min(vocab_size, first + 256)                 # rows and columns; `first` is for "empty"

    def count(start, stop):
        ids = np.minimum(text.head[start:stop + 1], first).astype(np.int64)
        codes = ids[:-1] * (first + 1) + ids[1:]
        weights = text.weigh(np.arange(start, start + len(codes)))
        return np.bincount(codes, weights, minlength=(first + 1) ** 2).astype(np.int64)

    table = np.zeros((size, size), dtype=np.int64)
    table[:first, :first] = sum(in_blocks(count, len(text.head))) \
        .reshape(first + 1, first + 1)[:first, :first]

    merges = []
    for new in range(first, size):
        left, right = divmod(int(table.argmax()), size)  # the first of equals: the smaller ids
        if table[left, right] <= len(text.head) // SCAN_SHARE:
            break
        merges.append((left, right, new))
        at, before, behind = text.merge(text.scan(left, right), left, right, new)
        weights = text.weigh(at)
        before = np.bincount(before, weights, minlength=size)[:size].astype(np.int64)
        behind = np.bincount(behind, weights, minlength=size)[:size].astype(np.int64)
        table[:, new] += before
        table[new, :] += behind
        # Where the neighbour is the new token too, a (right, left) went, seen from both sides.
        table[new, new] = before[new]
        before[right] += before[new]
        before[new] = behind[new] = 0
        table[:, left] -= before
        table[right, :] -= behind
        table[left, right] = 0
    return merges


class Pairs:
    """The pairs worth merging: their counts, where they stand, and a heap with the commonest on top.

    A pair's count only ever falls, because whatever is merged gets new neighbours and so makes new
    pairs. For the same reason pairs below `floor` need not be kept: when the others are used up,
    the floor is lowered and the pairs are read off the text again. A pair is known by its code,
    left * base + right; a position too goes into the same 64 bits, as numpy sorts integers fastest.
    """

    def __init__(self, text):
        self.text = text
        self.base = np.uint64(len(text.length))
        self.bits = np.uint64(len(text.head).bit_length())
        self.read()

    def keys(self, left, right, at):
        """-> (n,) the code of each pair and, in the low bits, its position"""
        return (left * self.base + right) << self.bits | at.view(np.uint64)

    def group(self, keys):
        """Sort the keys by pair -> (codes, counts, starts, ends, at): pair g is codes[g] and stands
        at at[starts[g]:ends[g]]"""
        keys.sort()
        at = np.empty(len(keys), dtype=np.uint32)

        def bounds(start, stop):
            at[start:stop] = keys[start:stop] & ((np.uint64(1) << self.bits) - np.uint64(1))
            codes = keys[start:stop + 1] >> self.bits
            return np.flatnonzero(codes[1:] != codes[:-1]) + (start + 1)

        starts = np.concatenate([[0], *in_blocks(bounds, len(keys))])
        ends = np.append(starts[1:], len(keys))
        counts = np.add.reduceat(self.text.weigh(at), starts)
        return keys.take(starts) >> self.bits, counts, starts, ends, at

    def read(self):
        """Find all pairs in the text and keep those near to the commonest."""
        text = self.text
        self.count, self.places, self.heap, self.floor = {}, {}, [], 1

        def find(start, stop):
            at = np.flatnonzero(text.head[start:stop] != text.empty) + start
            left = text.head.take(at)
            right = text.head.take(at + text.length.take(left))
            pair = np.flatnonzero(right != text.empty)
            return self.keys(left.take(pair), right.take(pair), at.take(pair))

        keys = np.concatenate(in_blocks(find, len(text.head)))
        if len(keys):
            groups = self.group(keys)
            self.floor = max(1, int(groups[1].max()) // 16)
            self.keep(*groups)

    def keep(self, codes, counts, starts, ends, at):
        """Remember the pairs that are common enough."""
        for g in np.flatnonzero(counts >= self.floor).tolist():
            code, count = int(codes[g]), int(counts[g])
            self.count[code], self.places[code] = count, at[starts[g]:ends[g]]
            heapq.heappush(self.heap, (-count, code))

    def pop(self):
        """-> ((left, right), sorted positions) of the commonest pair, ties to the smaller pair of
        ids; None when the text has no pair left"""
        while self.heap or self.floor > 1:
            if not self.heap:
                self.read()
                continue
            once, code = heapq.heappop(self.heap)       # what its count was when it was put there
            count, places = self.count.pop(code), self.places.pop(code)
            if count == -once:
                left, right = divmod(code, int(self.base))
                return (left, right), self.text.still(places.astype(np.int64), left, right)
            if count >= self.floor:
                self.count[code], self.places[code] = count, places
                heapq.heappush(self.heap, (-count, code))
        return None

    def merged(self, left, right, new, at, before, behind):
        """Count what a merge has changed. As in the table of `merge_common`, each pair with `new` in
        it takes the place of one with `left` or `right`."""
        # Twice the new token in a row is one pair, not two: it is taken from the one on the left.
        has_left = np.flatnonzero((before != self.text.empty) & (before != new))
        has_right = np.flatnonzero(behind != self.text.empty)
        before, behind = before.take(has_left), behind.take(has_right)
        keys = np.concatenate((
            self.keys(before, np.uint64(new), at.take(has_left) - self.text.length.take(before)),
            self.keys(np.uint64(new), behind, at.take(has_right))))
        if len(keys) == 0:
            return
        codes, counts, *places = self.group(keys)
        first, second = np.divmod(codes, self.base)
        gone = np.where(first == new, right, first) * self.base + \
            np.where(second == new, left, second)
        for code, count in zip(gone.tolist(), counts.tolist()):
            if code in self.count:
                self.count[code] -= count
        self.keep(codes, counts, *places)


def learn_merges(counts, byte_id, vocab_size):
    """The BPE training loop.

    counts: {piece (bytes): how often it occurs}; byte_id: (256,) the id of each byte
    -> the merges in order, a list of (left, right, new), where `new` counts up from the bytes' ids

    No two merges make the same bytes, so that one byte string is one token. For where a stretch of
    text has become one token, nothing was ever merged across its edges; what happened inside it was
    the work of its own bytes alone, and the same wherever these bytes became one token.
    """
    text = Text(counts, byte_id, vocab_size)
    if len(text.head) >= 2 ** 32 or (vocab_size + 1) ** 2 * len(text.head) >= 2 ** 63:
        raise ValueError(f"a vocabulary of {vocab_size} on {len(text.head)} bytes is more than a "
                         "64-bit key can count: train the tokenizer on a smaller sample")
    merges = merge_common(text, vocab_size)
    pairs = Pairs(text)
    for new in tqdm(range(text.first_new + len(merges), vocab_size), desc="learning merges",
                    unit=" merges", disable=None):
        best = pairs.pop()
        if best is None:
            break
        (left, right), at = best
        merges.append((left, right, new))
        pairs.merged(left, right, new, *text.merge(at, left, right, new))
    return merges


# ----------------------------------------------------------------------------------------------
# The tokenizer

class RankTable:
    """A hash table from pairs to ranks that answers for many pairs at once.

    codes: (n,) left * base + right of each merge, in their order. A code goes to the slot that its
    hash names, or to the next free one behind it; seven of eight slots stay free.
    """

    def __init__(self, codes):
        self.shift = np.uint64(64 - (8 * len(codes) + 1).bit_length())
        size = 1 << (64 - int(self.shift))
        self.code = np.full(size + len(codes) + 1, -1, dtype=np.int64)      # by slot; -1: free
        self.rank = np.full(len(self.code), len(codes), dtype=np.int32)
        waiting, slot = np.arange(len(codes)), self.slot(codes)
        while len(waiting):
            free = self.code[slot] == -1
            self.code[slot[free]] = codes[waiting[free]]        # of two for one slot the last stays
            placed = self.code[slot] == codes[waiting]
            self.rank[slot[placed]] = waiting[placed]
            waiting, slot = waiting[~placed], slot[~placed] + 1

    def slot(self, codes):
        # Fibonacci hashing (Knuth): the top bits of a product with 2**64 / the golden ratio
        return (codes.view(np.uint64) * np.uint64(0x9E3779B97F4A7C15) >> self.shift).view(np.int64)

    def find(self, codes):
        """-> (n,) the rank of each pair; where there is none, the number of merges"""
        slot = self.slot(codes)
        found = self.code.take(slot)
        ranks = self.rank.take(slot)
        wrong = np.flatnonzero(found != codes)
        ranks[wrong] = self.rank[-1]
        wrong = wrong.take(np.flatnonzero(found.take(wrong) != -1))
        slot, codes = slot.take(wrong), codes.take(wrong)
        while len(wrong):                       # another pair's slot: look in the next one
            slot += 1
            found = self.code.take(slot)
            right = np.flatnonzero(found == codes)
            ranks[wrong.take(right)] = self.rank.take(slot.take(right))
            on = np.flatnonzero((found != codes) & (found != -1))
            wrong, slot, codes = wrong.take(on), slot.take(on), codes.take(on)
        return ranks


class Tokenizer:
    """Ids, merges and a split pattern. The ids: <|endoftext|>, the bytes, one for each merge."""

    def __init__(self, vocab, merges, pattern, specials=(END_OF_TEXT,)):
        """vocab: {token in printable form: id}; merges: [(left, right, new)] as ids, in order;
        pattern: the regular expression that cuts text into pieces, or None for no cut; specials:
        those of the vocabulary that stand for themselves and not for bytes"""
        self.vocab, self.merges, self.pattern, self.specials = vocab, merges, pattern, specials
        self.eot = vocab.get(END_OF_TEXT)
        self.bytes_of = {i: token.encode() if token in specials
                         else bytes(NAME_BYTE[c] for c in token) for token, i in vocab.items()}
        self.split = next((name for name, p in SPLITS.items() if p == pattern), "custom")
        self._cut = regex.compile(pattern) if pattern else None
        self._words_known = self.split in ("mixed", "mixed6", "mixed1") or pattern == GPT2_PATTERN
        self._prepare_encoding()

    def __len__(self):
        return max(self.vocab.values()) + 1

    @classmethod
    def train(cls, docs, vocab_size, split="mixed"):
        """Learn a vocabulary of `vocab_size` ids from `docs`, an iterable of str.

        The merge with the highest count comes next; ties go to the smaller pair of ids. So the same
        text always gives the same tokenizer, the one that the `tokenizers` library gives too. A
        text too small for so many merges gives fewer ids.
        """
        if split not in SPLITS:
            raise ValueError(f"split={split} is not one of {', '.join(SPLITS)}")
        if vocab_size < 257:
            raise ValueError(f"vocab_size={vocab_size} is too small: 256 bytes and {END_OF_TEXT} "
                             "make 257")
        vocab = {END_OF_TEXT: 0} | {name: i for i, name in enumerate(sorted(BYTE_NAME), start=1)}
        tok = cls(vocab, [], SPLITS[split])
        words, counts = Counter(), Counter()
        for doc in docs:
            words.update(tok.words(doc))
        while words:
            word, n = words.popitem()
            for piece in tok.cut(word):
                counts[piece.encode("utf-8", "surrogatepass")] += n
        merges = learn_merges(counts, tok.byte_id, vocab_size) if counts else []
        name = {i: token for token, i in vocab.items()}
        for left, right, new in merges:
            name[new] = name[left] + name[right]
            vocab[name[new]] = new
        return cls(vocab, merges, SPLITS[split])

    # -- encoding

    def cut(self, text):
        """-> the pieces of `text`, a list of str; together they are the text again"""
        return self._cut.findall(text) if self._cut else [text] if text else []

    def words(self, text):
        """-> `text` cut before every white space that follows something else. No piece reaches over
        such a place, so a word is cut into the same pieces wherever it stands: every different word
        is cut, and encoded, only once. Known of our own patterns; a strange one gets the whole text.
        """
        return WORD.findall(text) if self._words_known else [text] if text else []

    def _prepare_encoding(self):
        """Tables that answer: which merge, if any, joins two neighbours, and when is its turn?"""
        self.byte_id = np.full(256, -1, dtype=np.int64)
        for token, i in self.vocab.items():
            if len(token) == 1:
                self.byte_id[NAME_BYTE[token]] = i
        self.unknown = bytes(np.flatnonzero(self.byte_id < 0).tolist())
        self.empty = len(self)
        self.length = np.ones(self.empty + 1, dtype=np.int64)       # an empty cell is 1 long too
        for i, text in self.bytes_of.items():
            self.length[i] = len(text)

        # The rank of a merge is its place in the order; "no merge" ranks behind all of them.
        merges = np.array(self.merges, dtype=np.int64).reshape(-1, 3)
        self.never = len(merges)
        self.made_by = np.append(merges[:, 2], self.empty)              # rank -> new token
        self.ranks = RankTable(merges[:, 0] * len(self.length) + merges[:, 1])
        first, second = np.divmod(np.arange(65536), 256)
        self.rank_of_bytes = self.ranks.find(
            self.byte_id[first] * len(self.length) + self.byte_id[second])

        # A generation is a stretch of merges none of which needs what another of them makes.
        made, generation = set(), 0
        self.generation = np.zeros(len(merges) + 1, dtype=np.int64)     # by rank
        for rank, (left, right, new) in enumerate(self.merges):
            if left in made or right in made:
                generation += 1
                made.clear()
            made.add(new)
            self.generation[rank] = generation
        self.generation[-1] = self.n_generations = generation + 1
        self.generation = self.generation.astype(np.min_scalar_type(self.n_generations))

    def _encode_pieces(self, pieces):
        """Replay the merges, in the order they were learnt, over all pieces at once.
        pieces: list of bytes -> (ids of all pieces in a row, (n + 1,) the bounds of each piece)

        A merge a step would be 50,000 steps. But where none of a generation's merges needs what
        another makes, the order matters only between neighbours that want the same token: there
        the lower rank wins. So a generation is done at once, and there are but a few dozen.
        """
        if self.unknown:        # bytes without a token, in a vocabulary that is not ours: dropped
            pieces = [p.translate(None, delete=self.unknown) for p in pieces]
        text, head, tail, ends = lay_out(pieces, self.byte_id, self.empty)
        # rank[i]: of the merge of the token at i and the one behind it; turn[i]: its generation
        rank = np.full(len(text), self.never, dtype=np.int32)
        rank[1:-1] = self.rank_of_bytes.take(text[1:-1].astype(np.uint16) << 8 | text[2:])
        rank[ends] = rank[ends - 1] = self.never
        turn = self.generation.take(rank)

        for generation in range(self.n_generations):
            at = np.flatnonzero(turn == generation)
            at = at.take(np.flatnonzero(self.generation.take(rank.take(at)) == generation))
            merged = []
            while len(at):
                mine = rank.take(at)
                before = at - self.length.take(tail.take(at - 1))
                behind = at + self.length.take(head.take(at))
                rank_before, rank_behind = rank.take(before), rank.take(behind)
                wins = (mine < rank_before) & (mine < rank_behind)
                twins = rank_before == mine     # a token that repeats, such as AAAAA: of a run of
                if twins.any():                 # equal pairs every other one is merged
                    place = place_in_run(~twins)
                    run_wins = (mine < rank_before).take(np.arange(len(at)) - place)
                    wins = run_wins & (mine <= rank_behind) & (place % 2 == 0)
                winners = np.flatnonzero(wins)
                here, behind = at.take(winners), behind.take(winners)
                new = self.made_by.take(mine.take(winners))
                head[here], head[behind] = new, self.empty
                tail[here + self.length.take(new) - 1] = new
                rank[before.take(winners)] = rank[here] = rank[behind] = self.never
                merged.append(here)
                at = at.take(np.flatnonzero(~wins))
                at = at.take(np.flatnonzero(rank.take(at) < self.never))    # still a pair
            if not merged:
                continue
            # The pairs that the new tokens make with their neighbours. All rank higher, since no
            # merge comes before those that make its two tokens.
            at = np.concatenate(merged)
            new = head.take(at).astype(np.int64)
            before, behind = tail.take(at - 1).astype(np.int64), head.take(at + self.length.take(new))
            for place, codes in ((at - self.length.take(before), before * len(self.length) + new),
                                 (at, new * len(self.length) + behind)):
                found = self.ranks.find(codes)
                pairs = np.flatnonzero(found < self.never)
                place, found = place.take(pairs), found.take(pairs)
                rank[place], turn[place] = found, self.generation.take(found)

        at = np.flatnonzero(head != self.empty)
        return head.take(at), np.searchsorted(at, np.append(0, ends))

    def _encode_words(self, words):
        """-> (ids of all words in a row, (n + 1,) the bounds of each word)"""
        cuts = [self.cut(word) for word in words]
        ids, bounds = self._encode_pieces([piece.encode("utf-8", "surrogatepass")
                                           for pieces in cuts for piece in pieces])
        return ids, bounds[np.cumsum([0] + [len(pieces) for pieces in cuts])]

    def encode_batch(self, texts):
        """texts: list of str -> list of arrays of ids, one for each text. Much faster than text by
        text: equal words are encoded once, and the different ones in large batches, on all cores.
        """
        number = defaultdict(itertools.count().__next__)    # of each word: counted up as they come
        sequence, stops = [], []                    # the texts as numbers, and where each ends
        for text in texts:
            sequence.extend(map(number.__getitem__, self.words(text)))
            stops.append(len(sequence))
        batches, room = [[]], BLOCK
        for word in number:
            if len(word) > room and batches[-1]:
                batches.append([])
                room = BLOCK
            batches[-1].append(word)
            room -= len(word)
        parts = list(POOL.map(self._encode_words, batches))
        ids = np.concatenate([ids for ids, _ in parts])
        # Put each text together: token k of word w is ids[first[w] + k].
        n_tokens = np.concatenate([np.diff(bounds) for _, bounds in parts])
        first = np.cumsum(n_tokens) - n_tokens
        sequence = np.array(sequence, dtype=np.int64)
        n_tokens = n_tokens.take(sequence)
        ends = np.append(0, np.cumsum(n_tokens))
        source = np.repeat(first.take(sequence) - ends[:-1], n_tokens) + np.arange(ends[-1])
        ids, stops = ids.take(source), ends.take(stops).tolist()
        return [ids[start:stop] for start, stop in zip([0] + stops, stops)]

    def encode(self, text):
        """-> list of ids. Never a special token: text that spells <|endoftext|> is only text."""
        return self.encode_batch([text])[0].tolist()

    # -- decoding

    def decode_bytes(self, ids):
        """-> the bytes of `ids`; special tokens are spelt out. An unknown id is a KeyError."""
        return b"".join(self.bytes_of[int(i)] for i in ids)

    def decode(self, ids):
        """-> the text of `ids`; bytes that are no UTF-8, as when a character is cut in two, become
        the replacement character"""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    # -- the file, in the layout of the `tokenizers` library

    def to_json(self):
        byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                      "use_regex": False}
        cut = {"type": "Split", "pattern": {"Regex": self.pattern}, "behavior": "Isolated",
               "invert": False}
        name = {i: token for token, i in self.vocab.items()}
        return {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": self.vocab[s], "content": s, "single_word": False,
                              "lstrip": False, "rstrip": False, "normalized": False,
                              "special": True} for s in self.specials],
            "normalizer": None,
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, byte_level]}
                             if self.pattern else byte_level,
            "post_processor": None,
            "decoder": byte_level | {"add_prefix_space": True, "use_regex": True},
            "model": {"type": "BPE", "dropout": None, "unk_token": None,
                      "continuing_subword_prefix": None, "end_of_word_suffix": None,
                      "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
                      "vocab": self.vocab,
                      "merges": [[name[left], name[right]] for left, right, _ in self.merges]},
        }

    def save(self, path):
        text = json.dumps(self.to_json(), ensure_ascii=False, indent=1)
        with open(f"{path}.tmp", "w", encoding="utf-8") as f:
            f.write(text)
        os.replace(f"{path}.tmp", path)

    @classmethod
    def load(cls, path, sha256=None):
        """Read a tokenizer.json, ours or another byte-level BPE in the same layout. With `sha256`,
        refuse a file other than the one that data or a model was made with."""
        with open(path, "rb") as f:
            raw = f.read()
        if sha256 is not None and hashlib.sha256(raw).hexdigest() != sha256:
            raise ValueError(f"{path}: not the tokenizer that the rest was made with (its sha256 "
                             f"should begin with {sha256[:12]}): put the right one back")
        try:
            file = json.loads(raw)
            model = file["model"]
            vocab = model["vocab"]
            pairs = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
            merges = [(vocab[left], vocab[right], vocab[left + right]) for left, right in pairs]
            specials = tuple(t["content"] for t in file["added_tokens"])
            vocab |= {t["content"]: t["id"] for t in file["added_tokens"]}
            pattern = pattern_of(file["pre_tokenizer"])
            made = {new: rank for rank, (_, _, new) in enumerate(merges)}
            if len(made) < len(merges):
                raise ValueError("two of its merges make the same token")
            if any(made.get(part, -1) > made[new] for *parts, new in merges for part in parts):
                raise ValueError("a merge comes before the merge that makes one of its parts")
            return cls(vocab, merges, pattern, specials)
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f"{path}: not a byte-level BPE tokenizer.json "
                             f"({type(e).__name__}: {e})") from None


def pattern_of(pre_tokenizer):
    """The split pattern that a tokenizer.json's "pre_tokenizer" stands for."""
    if pre_tokenizer["type"] == "Sequence":
        split, byte_level = pre_tokenizer["pretokenizers"]
        if split["type"] == "Split" and byte_level["type"] == "ByteLevel":
            return split["pattern"]["Regex"]
    if pre_tokenizer["type"] != "ByteLevel":
        raise ValueError("its pre-tokenizer is neither ByteLevel nor Split and ByteLevel")
    return GPT2_PATTERN if pre_tokenizer["use_regex"] else None
