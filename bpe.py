"""
A byte-level BPE tokenizer for DNA and English: train, encode, decode, save, load, show.

    tok = Tokenizer.train(["the cell", "ACGTACGTACGT"], vocab_size=300)
    tok.encode("ACGTACGT in the cell")     # -> list of ids
    tok.decode(ids)                        # -> the same text

    python bpe.py show data/toy/tokenizer.json "The TATA box: GGCTATAAAAGGGC"

BPE starts from the 256 bytes and again and again joins the commonest pair of neighbours into one
new token. What may be a neighbour is decided before, by cutting text into pieces: no pair reaches
over the edge of a piece. That cut, a regular expression, is where DNA and English are kept apart.

Both training and encoding work on the whole text at once, as two numpy arrays with a cell a byte:

    head[i]  the token that starts at byte i, or -1
    tail[i]  the token that ends at byte i   (read only where a token really ends)

so a token's neighbours are found by arithmetic alone: the next one starts at i + length[head[i]],
the one before is tail[i - 1]. Between two pieces lies one empty cell of -1. To merge a pair is to
write three cells. For example, "banana", where the merge of "a" and "n" is applied at i=1 and i=3:

    head   b   a  n  a  n  a        b  an  -1  an  -1  a
    tail   b   a  n  a  n  a   ->   b   .  an   .  an  a
"""
import hashlib
import heapq
import html
import json
import os
import sys
from collections import Counter, defaultdict

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

POSITION = np.uint32     # of a byte in the training text: half the memory of numpy's own int64


# ----------------------------------------------------------------------------------------------
# The two arrays

def lay_out(pieces, byte_id):
    """Pieces of bytes -> (head, tail, starts): a cell a byte, an empty cell before, between and
    behind the pieces, and where each piece starts."""
    text = np.frombuffer(b"\0" + b"\0".join(pieces) + b"\0", dtype=np.uint8)
    lengths = np.fromiter(map(len, pieces), dtype=np.int64, count=len(pieces))
    starts = np.cumsum(lengths + 1) - lengths
    head = byte_id[text]
    head[0] = -1
    head[starts + lengths] = -1
    return head, head.copy(), starts


def where_still(at, left, right, head, length):
    """Of the positions where the pair (left, right) once stood, those where it stands now. Tokens
    only ever grow, so the same token at the same start means that nothing there has changed."""
    at = at[head[at] == left]
    return at[head[at + length[left]] == right]


def without_overlaps(at, step):
    """Sorted positions of a pair of equal tokens, `step` bytes each -> those that are merged, from
    the left: in AAAAA the pair AA stands at 0, 1, 2, 3 and is merged at 0 and 2."""
    first_of_run = np.ones(len(at), dtype=bool)
    first_of_run[1:] = np.diff(at) != step
    index = np.arange(len(at))
    start_of_run = np.maximum.accumulate(np.where(first_of_run, index, 0))
    return at[(index - start_of_run) % 2 == 0]


def merge(at, left, right, new, head, tail, length):
    """Write token `new` over the pair (left, right) at the sorted positions `at`.
    -> (at, before, behind): where it now stands, and its neighbours there (-1 for none)"""
    if left == right:
        at = without_overlaps(at, length[left])
    end = at + length[new]
    head[at] = new
    head[at + length[left]] = -1
    tail[end - 1] = new
    return at, tail[at - 1], head[end]


def group(codes, at):
    """Sort positions by code -> (codes, at, bounds): group g is at[bounds[g]:bounds[g + 1]], its
    code codes[g]. Both go into one integer, because numpy sorts integers fastest."""
    if len(at) == 0:
        return codes, at, np.zeros(1, dtype=np.int64)
    bits = np.uint64(int(at.max()).bit_length())
    key = codes.astype(np.uint64) << bits
    key |= at.astype(np.uint64)
    key.sort()
    codes = (key >> bits).astype(np.int64)
    at = (key & ((np.uint64(1) << bits) - np.uint64(1))).astype(np.int64)
    bounds = np.concatenate(([0], np.flatnonzero(np.diff(codes)) + 1, [len(at)]))
    return codes[bounds[:-1]], at, bounds


# ----------------------------------------------------------------------------------------------
# Training

class Pairs:
    """The pairs worth merging: where each stands, and a heap with the commonest on top.

    A pair's count only ever falls, because whatever is merged gets new neighbours and so makes new
    pairs. A stored count is therefore an upper bound, and counting anew only the pair on top finds
    the true maximum. For the same reason pairs below `floor` need not be kept: when the others are
    used up, the floor is lowered and the pairs are read off the text again.
    """

    def __init__(self, head, length, weights):
        self.head, self.length = head, length
        self.weights = weights      # how often the piece of a cell occurs; past the end: once
        self.read()

    def weigh(self, at):
        return self.weights[np.minimum(at, len(self.weights) - 1)]

    def read(self):
        """Find all pairs in the text and keep those near to the commonest."""
        self.at, self.heap = {}, []     # {(left, right): positions}, [(-count, (left, right))]
        at = np.flatnonzero(self.head >= 0)
        left = self.head[at]
        right = self.head[at + self.length[left]]
        has_right = right >= 0
        self.add(left[has_right], right[has_right], at[has_right], lower_floor=True)

    def add(self, left, right, at, lower_floor=False):
        """Keep the pairs (left[i], right[i]) at at[i], if they are common enough."""
        base = len(self.length)
        codes, at, bounds = group(left.astype(np.int64) * base + right, at)
        counts = np.add.reduceat(self.weigh(at), bounds[:-1]) if len(at) else np.zeros(1, int)
        if lower_floor:
            self.floor = max(1, int(counts.max()) // 32)
        for g in np.flatnonzero(counts >= self.floor):
            pair = divmod(int(codes[g]), base)
            self.at[pair] = at[bounds[g]:bounds[g + 1]].astype(POSITION)
            heapq.heappush(self.heap, (-int(counts[g]), pair))

    def pop(self):
        """-> ((left, right), positions) of the commonest pair, ties to the smaller pair of ids;
        None when the text has no pair left."""
        while self.heap or self.floor > 1:
            if not self.heap:
                self.read()
                continue
            bound, pair = heapq.heappop(self.heap)
            at = where_still(self.at.pop(pair), *pair, self.head, self.length)
            count = int(self.weigh(at).sum())
            if count == -bound:
                return pair, at
            if count >= self.floor:
                self.at[pair] = at
                heapq.heappush(self.heap, (-count, pair))
        return None


def learn_merges(counts, byte_id, vocab_size):
    """The BPE training loop.

    counts: {piece (bytes): how often it occurs}; byte_id: (256,) the id of each byte
    -> the merges in order, a list of (left, right, new), where `new` counts up from the bytes' ids

    No two merges make the same bytes, so that one byte string is one token. For where a stretch of
    text has become one token, nothing was ever merged across its edges; what happened inside it was
    the work of its own bytes alone, and the same wherever these bytes became one token.
    """
    pieces = sorted(counts, key=counts.get, reverse=True)       # the repeated ones first
    repeated = [counts[p] for p in pieces if counts[p] > 1]
    head, tail, _ = lay_out(pieces, byte_id)
    cells = [1] + [len(p) + 1 for p in pieces[:len(repeated)]]
    weights = np.repeat([1] + repeated + [1], cells + [1])
    if len(head) >= 2 ** 32 or vocab_size ** 2 * len(head) >= 2 ** 64:
        raise ValueError(f"a vocabulary of {vocab_size} on {len(head)} bytes is more than a "
                         "64-bit key can count: train the tokenizer on a smaller sample")

    length = np.zeros(vocab_size, dtype=np.int64)               # bytes of each token
    length[byte_id] = 1

    merges = []
    pairs = Pairs(head, length, weights)
    for new in tqdm(range(int(byte_id.max()) + 1, vocab_size), desc="learning merges",
                    unit=" merges", disable=None):
        best = pairs.pop()
        if best is None:
            break
        (left, right), at = best
        merges.append((left, right, new))
        length[new] = length[left] + length[right]
        at, before, behind = merge(at, left, right, new, head, tail, length)
        # Twice the new token in a row is one pair, not two: leave it to the one on the left.
        has_left, has_right = (before >= 0) & (before != new), behind >= 0
        before, behind = before[has_left], behind[has_right]
        pairs.add(np.concatenate((before, np.full(len(behind), new))),
                  np.concatenate((np.full(len(before), new), behind)),
                  np.concatenate((at[has_left] - length[before], at[has_right])))
    return merges


# ----------------------------------------------------------------------------------------------
# The tokenizer

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
        counts = Counter()
        for doc in docs:
            counts.update(tok.cut(doc))
        counts = {piece.encode("utf-8", "surrogatepass"): n for piece, n in counts.items()}
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

    def _prepare_encoding(self):
        """Tables that answer: which merge, if any, joins these two neighbours?"""
        self.byte_id = np.full(256, -1, dtype=np.int32)
        for token, i in self.vocab.items():
            if len(token) == 1:
                self.byte_id[NAME_BYTE[token]] = i
        self.unknown = bytes(np.flatnonzero(self.byte_id < 0).tolist())
        self.length = np.zeros(len(self) + 1, dtype=np.int64)
        for i, text in self.bytes_of.items():
            self.length[i] = len(text)

        # The rank of a merge is its place in the order. Of two bytes: a square table. With a longer
        # token: two lists by token, of its partners on the left and on the right.
        self.rank_of_bytes = np.full((self.byte_id.max() + 1,) * 2, -1, dtype=np.int64)
        lefts, rights = defaultdict(dict), defaultdict(dict)
        for rank, (left, right, new) in enumerate(self.merges):
            if self.length[left] == self.length[right] == 1:
                self.rank_of_bytes[left, right] = rank
            lefts[right][left] = rank
            rights[left][right] = rank
        table = lambda partners: {token: (np.array(list(d)), np.array(list(d.values())))
                                  for token, d in partners.items()}
        self.left_partners, self.right_partners = table(lefts), table(rights)
        self._scratch = np.full(len(self) + 1, -1, dtype=np.int64)     # by id; [-1] stays -1

    def _ranks(self, partners, neighbours):
        """partners: (ids, ranks) of the merges that one token takes part in on one side;
        neighbours: (n,) the ids that stand there -> (n,) the rank of the merge with each, or -1"""
        if partners is None:
            return np.full(len(neighbours), -1)
        ids, ranks = partners
        self._scratch[ids] = ranks
        found = self._scratch[neighbours]
        self._scratch[ids] = -1
        return found

    def _encode_pieces(self, pieces):
        """Replay the merges, in the order they were learnt, over all pieces at once.
        pieces: list of bytes -> (ids of all pieces in a row, (n + 1,) the bounds of each piece)"""
        if self.unknown:        # bytes without a token, in a vocabulary that is not ours: dropped
            pieces = [p.translate(None, delete=self.unknown) for p in pieces]
        head, tail, starts = lay_out(pieces, self.byte_id)

        waiting, ranks_waiting = defaultdict(list), []      # {rank: [positions, ...]}, a heap

        def wait(ranks, at):
            found = ranks >= 0
            ranks, at, bounds = group(ranks[found], at[found])
            for g, rank in enumerate(ranks.tolist()):
                if rank not in waiting:
                    heapq.heappush(ranks_waiting, rank)
                waiting[rank].append(at[bounds[g]:bounds[g + 1]])

        at = np.flatnonzero((head[:-1] >= 0) & (head[1:] >= 0))
        wait(self.rank_of_bytes[head[at], head[at + 1]], at)
        while ranks_waiting:
            rank = heapq.heappop(ranks_waiting)
            left, right, new = self.merges[rank]
            at = np.concatenate(waiting.pop(rank))
            at = where_still(at, left, right, head, self.length)
            at.sort()
            at, before, behind = merge(at, left, right, new, head, tail, self.length)
            # Twice the new token in a row is one pair, not two: leave it to the one on the left.
            before[before == new] = -1
            wait(np.concatenate((self._ranks(self.left_partners.get(new), before),
                                 self._ranks(self.right_partners.get(new), behind))),
                 np.concatenate((at - self.length[before], at)))

        at = np.flatnonzero(head >= 0)
        return head[at], np.append(np.searchsorted(at, starts), len(at))

    def encode_batch(self, texts):
        """texts: list of str -> list of int32 arrays of ids, one for each text. Much faster than
        text by text: equal pieces are encoded once, and all the different ones together."""
        place, sequence, ends = {}, [], []      # a piece's number; the texts as numbers; text ends
        for text in texts:
            sequence += [place.setdefault(piece, len(place)) for piece in self.cut(text)]
            ends.append(len(sequence))
        ids, bounds = self._encode_pieces([p.encode("utf-8", "surrogatepass") for p in place])
        # Put each text together: token k of piece p is ids[bounds[p] + k].
        sequence = np.array(sequence, dtype=np.int64)
        n_tokens = np.diff(bounds)[sequence]
        token_ends = np.concatenate(([0], np.cumsum(n_tokens)))
        source = np.repeat(bounds[sequence] - token_ends[:-1], n_tokens) + np.arange(token_ends[-1])
        return np.split(ids[source], token_ends[ends[:-1]]) if texts else []

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
            if len({new for _, _, new in merges}) < len(merges):
                raise ValueError("two of its merges make the same token")
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


def file_sha256(path):
    """-> the SHA-256 of a file, in hexadecimal: by it data and models know their tokenizer"""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


# ----------------------------------------------------------------------------------------------
# The prompt. Tokenizers of instruction models carry their template with them, and so does ours.

ALPACA = ("Below is an instruction that describes a task{paired}. Write a response that "
          "appropriately completes the request.\n\n### Instruction:\n{instruction}\n\n"
          "{input}### Response:\n")


def alpaca_prompt(instruction, input=""):
    """The standard Alpaca prompt (Taori et al., 2023), with or without an input. The response is
    not part of it: its ids are joined on, so that the boundary lies between two tokens."""
    return ALPACA.format(
        paired=", paired with an input that provides further context" if input else "",
        instruction=instruction,
        input=f"### Input:\n{input}\n\n" if input else "")


def encode_prompts(tok, asked, rooms):
    """asked: list of (instruction, input); rooms: how many tokens each prompt may have. Where one is
    longer, tokens are cut off the end of its input, never of its instruction.
    -> (list of lists of ids, None where not even the instruction fits; how many were trimmed)"""
    prompts = [p.tolist() for p in tok.encode_batch([alpaca_prompt(*a) for a in asked])]
    long = [i for i, prompt in enumerate(prompts) if len(prompt) > rooms[i]]
    inputs = dict(zip(long, tok.encode_batch([asked[i][1] for i in long])))
    keep = {i: len(inputs[i]) for i in long}        # tokens of input, for those still too long
    while keep:
        for i in list(keep):
            if keep[i] == 0:
                prompts[i] = None
                del keep[i]
            else:
                keep[i] = max(0, keep[i] - (len(prompts[i]) - rooms[i]))
        texts = [alpaca_prompt(asked[i][0], tok.decode(inputs[i][:n])) for i, n in keep.items()]
        for i, prompt in zip(list(keep), tok.encode_batch(texts)):
            prompts[i] = prompt.tolist()
            if len(prompt) <= rooms[i]:
                del keep[i]
    return prompts, sum(prompts[i] is not None for i in long)


# ----------------------------------------------------------------------------------------------
# Showing tokens

def modalities(tok, text):
    """-> (id, bytes, modality) of each token of `text`; the modality is "dna" inside a run of DNA,
    "english" outside, "both" for a token that lies across the border (only without a split)"""
    inside = bytearray(len(text.encode()))
    for run in regex.finditer(RUN + "[ACGT]*", text):
        start = len(text[:run.start()].encode())
        inside[start:start + len(run[0])] = b"\1" * len(run[0])
    shown, place = [], 0
    for i in tok.encode(text):
        part = tok.bytes_of[i]
        cover = set(inside[place:place + len(part)])
        shown.append((i, part, "both" if len(cover) > 1 else "dna" if cover == {1} else "english"))
        place += len(part)
    return shown


def show(tok, text):
    """-> the text with its tokens in colours for a terminal, DNA green, English blue, both red, two
    shades in turn; and a line of counts"""
    shades = {"dna": (22, 28), "english": (18, 25), "both": (88, 124)}
    tokens = modalities(tok, text)
    shown = "".join(f"\x1b[97;48;5;{shades[kind][n % 2]}m{part.decode('utf-8', 'replace')}\x1b[0m"
                    for n, (_, part, kind) in enumerate(tokens))
    return shown + "\n" + "; ".join(summary(tokens))


def summary(tokens):
    """-> a phrase for each modality: how many tokens, and how long they are"""
    units = {"dna": "bases", "english": "bytes", "both": "bytes"}
    for kind, unit in units.items():
        sizes = [len(part) for _, part, k in tokens if k == kind]
        if sizes:
            yield f"{kind}: {len(sizes)} tokens, {sum(sizes) / len(sizes):.2f} {unit} a token"


def show_html(tok, text):
    """-> a page that works from disk: the tokens in colours, each with its id and bytes on pointing"""
    tokens = modalities(tok, text)
    spans = "".join(f'<span class="{kind}" title="id {i}: {len(part)} bytes, {part.hex(" ")}">'
                    f"{html.escape(part.decode('utf-8', 'replace'))}</span>"
                    for i, part, kind in tokens)
    template = os.path.join(os.path.dirname(os.path.abspath(__file__)), "assets", "tokens.html")
    with open(template, encoding="utf-8") as f:
        return f.read().replace("SUMMARY", html.escape("; ".join(summary(tokens)))) \
            .replace("TOKENS", spans)


def main(argv):
    """python bpe.py show TOKENIZER TEXT... [--html=FILE]"""
    page = [a.removeprefix("--html=") for a in argv if a.startswith("--html=")]
    words = [a for a in argv if not a.startswith("--")]
    if len(words) < 3 or words[0] != "show" or len(words) + len(page) < len(argv):
        sys.exit(f"usage: {main.__doc__}")
    try:
        tok, text = Tokenizer.load(words[1]), " ".join(words[2:])
        print(show(tok, text))
        for path in page:
            with open(path, "w", encoding="utf-8") as f:
                f.write(show_html(tok, text))
            print(f"wrote {path}; next: open it in a browser")
    except (OSError, ValueError) as e:
        sys.exit(f"error: {e}")


if __name__ == "__main__":
    main(sys.argv[1:])
