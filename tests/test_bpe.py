"""The tokenizer: against plain BPE, against the `tokenizers` library, and against its promises."""
import copy
import doctest
import itertools
import json
import os
import random
from functools import cache

import numpy as np
import pytest

import bpe
from bench import vs_tokenizers
from bpe import (BYTE_NAME, GPT2_PATTERN, PATTERNS, Tokenizer, byte_ids, plain_encode, plain_train,
                 to_json)
from dna.tasks import alpaca_parts

PAPER = os.path.join(os.path.dirname(__file__), "../../shared/data/paper/dna_eng_bpe_dict.json")


def test_examples_in_the_docstrings():
    failed, tried = doctest.testmod(bpe)
    assert tried >= 4 and failed == 0


# -- fast against plain

def plain_merges(docs, vocab_size, split):
    """-> the merges of plain BPE as a Tokenizer lists them"""
    blank = Tokenizer.train([], 257, split)
    pieces = [byte_ids(piece) for doc in docs for piece in blank.split_text(doc)]
    return [(*pair, new) for pair, new in plain_train(pieces, vocab_size).items()]


def plain_ids(tok, text):
    merges = {(left, right): new for left, right, new in tok.merges}
    return [i for piece in tok.split_text(text) for i in plain_encode(byte_ids(piece), merges)]


def corpora():
    """Small texts of many kinds, those on which counting goes wrong among them"""
    rng = random.Random(0)
    letters = {"dna": "ACGT", "two letters": "ab", "words": "the cat sat on a mat. ",
               "mixed": ["ACGTACGTAC", "GGTATAAAAG", "the ", "CAT ", "N", "\n", "é", "日本", "12", "'s"]}
    for name, source in letters.items():
        yield name, ["".join(rng.choice(source) for _ in range(n)) for n in (0, 1, 2, 50, 300, 300)]
    yield "one letter", ["A" * n for n in (1, 2, 3, 7, 100, 1001)]
    yield "copies", ["ACGTTGCAACGT", "the end"] * 20 + ["GATTACAGATTACA"]


CORPORA = dict(corpora())


@cache
def plainly(name, split):
    """-> (merges, [(text, ids), ...]) of plain BPE"""
    docs = CORPORA[name]
    tok = Tokenizer.train(docs, 340, split)
    return plain_merges(docs, 340, split), [(text, plain_ids(tok, text))
                                            for text in ["".join(docs)[::-1], *docs]]


@pytest.mark.parametrize("block", [bpe.BLOCK, 64, 7])
@pytest.mark.parametrize("split", PATTERNS)
@pytest.mark.parametrize("name", CORPORA)
def test_equals_plain(name, split, block, monkeypatch):
    monkeypatch.setattr(bpe, "BLOCK", block)
    merges, encoded = plainly(name, split)
    tok = Tokenizer.train(CORPORA[name], 340, split)
    assert tok.merges == merges
    assert [ids.tolist() for ids in tok.encode_batch([text for text, _ in encoded])] == \
        [ids for _, ids in encoded]


def test_long_run_of_one_letter():
    docs = ["A" * 10_000]
    tok = Tokenizer.train(docs, 270)
    assert tok.merges == plain_merges(docs, 270, "mixed")
    assert tok.encode(docs[0]) == plain_ids(tok, docs[0])


def test_pairs_are_read_again(monkeypatch):
    """A corpus whose pairs are found in several readings, with ever lower floors"""
    readings, push = [], bpe.Corpus.push
    monkeypatch.setattr(bpe.Corpus, "push", lambda corpus, at: readings.append(corpus.floor) or push(corpus, at))
    rng = random.Random(2)
    docs = ["".join(rng.choices("ACGT", [8, 4, 2, 1], k=3000))]
    assert Tokenizer.train(docs, 600).merges == plain_merges(docs, 600, "mixed")
    assert len(set(readings)) > 3 and readings == sorted(readings, reverse=True) and readings[0] > 50


def test_neighbours_that_want_the_same_token():
    """Within a level the lower rank wins, however long the chain of those that wait."""
    docs = ["ab"] * 9 + ["bc"] * 8 + ["cd"] * 7 + ["de"] * 6 + ["ee"] * 5 + ["ef"] * 4
    tok = Tokenizer.train(docs, 263)
    assert len(tok.encoder.level_ends) == 1 and len(tok.merges) == 6
    for text in ("abcdef", "bcdeeef", "eeeef", "deeee", "abcdeeeeefedcba", "e" * 101 + "f"):
        assert tok.encode(text) == plain_ids(tok, text)


def test_levels_need_nothing_of_their_own(tok):
    start = 0
    for end in tok.encoder.level_ends:
        made = {new for _, _, new in tok.merges[start:end]}
        assert made and not made & {i for pair in tok.merges[start:end] for i in pair[:2]}
        start = end
    assert start == len(tok.merges) and 1 < len(tok.encoder.level_ends) < len(tok.merges) / 3


def test_table_of_ranks():
    """Every pair is found, those whose slot another one took too, and no other"""
    left, right = np.divmod(np.random.default_rng(0).permutation(3_000_000)[:20_000], 2000)
    merges = np.stack((left, right, left), axis=1)[:10_000]
    table = bpe.PairRanks(merges, 2000)
    assert len(table.overflow) > 100
    assert table.find(left, right).tolist() == [*range(10_000), *[10_000] * 10_000]
    assert bpe.PairRanks(merges[:0], 2000).find(left[:3], right[:3]).tolist() == [0, 0, 0]


def test_a_long_run_is_cut_nowhere(tok, monkeypatch):
    run = "".join(random.Random(3).choices("ACGT", k=5000))
    monkeypatch.setattr(bpe, "BLOCK", 512)
    assert tok.encode(run) == plain_ids(tok, run)


def test_too_large(monkeypatch):
    with pytest.raises(ValueError, match="bytes are too many for a vocabulary of 3000000000"):
        list(bpe.learn_merges({b"ab": 1}, 3_000_000_000))


# -- the split

ENGLISH = (r"'(?:[sdmt]|ll|ve|re)| ?(?:[^\P{L}ACGT]|(?![ACGT]{8})[ACGT])+| ?\p{N}+"
           r"| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")


def test_the_patterns_of_the_files_out_there():
    """A tokenizer.json holds its pattern as text. Another text would make the older files foreign."""
    assert PATTERNS == {
        "mixed": "[ACGT]{8,}|" + ENGLISH,
        "mixed6": "(?=[ACGT]{8})[ACGT]{6}|(?<=[ACGT]{6})[ACGT]{1,6}|" + ENGLISH,
        "mixed1": "(?=[ACGT]{8})[ACGT]|(?<=[ACGT])[ACGT]|" + ENGLISH, "none": None}
    assert GPT2_PATTERN == r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    assert bpe.COMPLETE == {*PATTERNS.values(), GPT2_PATTERN} - {None}


@pytest.mark.parametrize("split", ["mixed", "mixed6", "mixed1"])
@pytest.mark.parametrize("alphabets", [["ACGT"], ["ACGT", "(.)"], ["(.)", "01"], ["ACGT", "HEC-"], [r"[]\^"]])
def test_a_run_has_the_same_pieces_everywhere(alphabets, split):
    """Letters, numbers and punctuation end where a run begins, whatever stands before it."""
    tok = Tokenizer(Tokenizer.train([], 257).vocab, [], bpe.split_patterns(alphabets)[split])
    rng = random.Random(5)
    ends = ["", " ", "\n", " the", "x", "é", "'", "'s", "12", "!", '"', " N", "  ", "\t", "日本", "-" * 9]
    for alphabet in alphabets:
        for n in (8, 9, 14, 40):
            run = "".join(rng.choices(alphabet, k=n))
            pieces = tok.split_text(run)
            assert [len(piece) for piece in pieces] == {
                "mixed": [n], "mixed6": [6] * (n // 6) + [n % 6] * (n % 6 > 0), "mixed1": [1] * n}[split]
            for before, after in itertools.product(ends, ends):
                if not set(before + after) & set(alphabet):
                    split_up = tok.split_text(before + run + after)
                    starts = list(itertools.accumulate(map(len, split_up), initial=0))
                    first = starts.index(len(before))
                    assert split_up[first:first + len(pieces)] == pieces

        # seven in a row are English
        gpt2 = Tokenizer(tok.vocab, [], GPT2_PATTERN)
        for text in ("a " + alphabet[0] * 7 + " b", "a" + alphabet[0] * 7 + "!"):
            assert tok.split_text(text) == gpt2.split_text(text)


# -- promises

def prose_and_dna():
    rng = random.Random(1)
    words = "the gene a promoter of human cells binds DNA and is read by an enzyme".split()
    motifs = ["TATAAAAG", "GGGCGG", "CCAAT", "ACGT", "TTTT", "GATTACA"]
    return [" ".join(rng.choices(words, k=30)) for _ in range(60)] + \
           ["".join(rng.choices(motifs, k=40)) for _ in range(60)]


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(prose_and_dna(), 600)


ODD = ["", " ", "\n\n  \t", "".join(map(chr, range(256))), "naïve – “quotes” 日本語 🧬 e\u0301",
       "<|endoftext|>", "ACGTNNNNACGTACGTNacgtacgt", "\ud800", "A" * 999, "x'll 've\u2028\u00a0 12³"]


@pytest.mark.parametrize("split", PATTERNS)
def test_round_trip(split):
    tok = Tokenizer.train(prose_and_dna(), 400, split)
    assert tok.unknown == b""
    for text in ODD + prose_and_dna():
        assert tok.decode_bytes(tok.encode(text)) == text.encode("utf-8", "surrogatepass")
    every_byte = [tok.vocab[name] for name in BYTE_NAME]
    assert tok.decode_bytes(every_byte) == bytes(range(256))


@pytest.mark.parametrize("pattern", [r"\p{N}{1,3}", r"(\p{L})\p{L}*", r"x*", "", r"(?=(e))", r" ?\S"])
def test_round_trip_with_any_pattern(tok, pattern):
    """A pattern that leaves characters out, has groups or matches nothing loses nothing."""
    foreign = Tokenizer(tok.vocab, tok.merges, pattern)
    for text in ODD + ["The cell divides.", "12345 genes and 6 more"]:
        assert "".join(foreign.split_text(text)) == text
        assert foreign.decode_bytes(foreign.encode(text)) == bpe.to_bytes(text)


def test_batch_is_one_by_one(tok):
    texts = ODD + prose_and_dna()
    assert [ids.tolist() for ids in tok.encode_batch(texts)] == [tok.encode(t) for t in texts]
    assert tok.encode_batch([]) == [] and [ids.tolist() for ids in tok.encode_batch(["", ""])] == [[], []]


@pytest.mark.parametrize("pattern", [*PATTERNS.values(), GPT2_PATTERN, r"\S+\s*|\s+"])
def test_words_are_split_as_the_text_is(pattern):
    tok = Tokenizer(Tokenizer.train([], 257).vocab, [], pattern)
    rng = random.Random(4)
    parts = [" ", "  ", "\n", "\t", "\x1c", "\x85", "\u3000", "a", "I'll", "CAT", "ACGTACGTAC", "12", "!", "é"]
    for text in ODD + ["".join(rng.choice(parts) for _ in range(30)) for _ in range(300)]:
        words = bpe.split_words(text, pattern)
        assert "".join(words) == text
        assert [piece for word in words for piece in tok.split_text(word)] == tok.split_text(text)


@pytest.mark.parametrize("split", ["mixed", "mixed6", "mixed1"])
def test_same_dna_same_tokens_everywhere(split):
    tok = Tokenizer.train(prose_and_dna(), 600, split)
    for dna in ("TATAAAAGGGGCGGCCAATACGTTTTT", "ACGTACGT", "G" * 50):
        alone = tok.encode(dna)
        for before, after in [("", " is"), ("of ", "."), ("\n", "\n"), ("  ", ""), ("N", "N"),
                              ("the", "end"), ("12", "x"), ("(", ")"), ("acgt", "acgt")]:
            assert tok.encode(before + dna + after) == \
                tok.encode(before) + alone + tok.encode(after)
        before, after = alpaca_parts("Is this a promoter?", has_input=True)
        prompt, start = before + dna + after, len(tok.encode(before))
        assert tok.encode(prompt)[start:start + len(alone)] == alone


def test_short_capital_words_are_english(tok):
    for word in ("CAT", "TAG", "TATA", "ACT", "GATTACA"):
        assert tok.split_text(f"the {word} sat") == ["the", f" {word}", " sat"]
    assert tok.split_text("the GATTACAG sat") == ["the", " ", "GATTACAG", " sat"]


def test_no_token_crosses_the_boundary():
    tok = Tokenizer.train(["xACGTACGTACGTy the ACGTACGTACGT."] * 50, 330)
    for text in tok.bytes_of.values():
        letters = set(text.decode("utf-8", "replace"))
        assert letters <= set("ACGT") or len(text) == 1 or not letters & set("CG")


def test_widths_of_dna_tokens():
    dna = "TATAAAAGGGGCGGCCAATACGTTTTTGGC" * 5
    widths = {split: [len(Tokenizer.train([dna] * 9, 400, split).bytes_of[i]) for i in
                      Tokenizer.train([dna] * 9, 400, split).encode(dna)]
              for split in ("mixed", "mixed6", "mixed1")}
    assert set(widths["mixed1"]) == {1}
    assert max(widths["mixed6"]) == 6 and sum(widths["mixed6"]) == len(dna)
    assert max(widths["mixed"]) > 6


def test_an_id_without_a_token_is_named(tok):
    with pytest.raises(ValueError, match="id 600 has no token in this vocabulary of 600 ids"):
        tok.decode([65, 600])


def test_special_tokens_never_come_from_text(tok):
    assert tok.eot == 0 and tok.eot not in tok.encode("<|endoftext|>")
    assert tok.decode([tok.eot]) == "<|endoftext|>"


def test_ids(tok):
    """<|endoftext|>, then GPT-2's printable order, then one id per merge"""
    assert BYTE_NAME[ord(" ")] == "Ġ" and BYTE_NAME[ord("\n")] == "Ċ" and BYTE_NAME[0xad] == "Ń"
    assert [tok.vocab[c] for c in "!\"~¡ÿĀŃ"] == [1, 2, 94, 95, 188, 189, 256]
    assert [new for _, _, new in tok.merges] == list(range(257, 600)) and len(tok) == 600
    assert len(set(tok.bytes_of.values())) == len(tok)


def test_verbose_prints_each_merge(capsys):
    tok = Tokenizer.train(["banana bandana", "a\n" * 3], 270, verbose=True)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["merge 1: b'a' + b'n' = b'an', count 4", "merge 2: b'b' + b'an' = b'ban', count 2"]
    assert len(lines) == len(tok.merges)


def test_train_twice_same_file(tmp_path):
    for name, docs in (("a", prose_and_dna()), ("b", reversed(prose_and_dna()))):
        Tokenizer.train(docs, 400).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("split", PATTERNS)
def test_save_and_load(tmp_path, split):
    tok = Tokenizer.train(prose_and_dna(), 400, split)
    tok.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert to_json(again) == to_json(tok) and again.split == split
    assert [again.encode(t) for t in ODD] == [tok.encode(t) for t in ODD]


def test_wrong_arguments(tmp_path, tok):
    with pytest.raises(ValueError, match="vocab_size=256 is too small"):
        Tokenizer.train(["x"], 256)
    with pytest.raises(ValueError, match="split=mixt is not one of mixed"):
        Tokenizer.train(["x"], 300, "mixt")
    tok.save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="tokenizer.json: not the tokenizer that"):
        Tokenizer.load(tmp_path / "tokenizer.json", sha256="0" * 64)


# -- a tokenizer.json of other programs

FILE = to_json(Tokenizer.train(["The cell divides 12345 times, ACGTACGTACGT.", "naïve it's 12 3"] * 5, 330))
TEXTS = ["The cell divides.", "ACGTACGTAC 12345 it'S", "a\nb  c\u00e9 it's", "don't 2024 日本 The\x1c x²", ""]
GPT2_STEP = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BYTES_STEP = GPT2_STEP | {"use_regex": False}
UNSAID_STEP = {key: value for key, value in GPT2_STEP.items() if key != "use_regex"}
PAD = FILE["added_tokens"][0] | {"id": 330, "content": "<pad>"}
LLAMA = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
         r"|\s*[\r\n]+|\s+(?!\S)|\s+")


def changed(*path, to):
    """-> FILE with one setting changed"""
    file = copy.deepcopy(FILE)
    place = file
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = to
    return file


def without(*path):
    file = changed(*path, to=None)
    del (file[path[0]] if len(path) == 2 else file)[path[-1]]
    return file


def steps(*steps):
    return changed("pre_tokenizer", to={"type": "Sequence", "pretokenizers": list(steps)})


def split(pattern, **settings):
    return {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False} | settings


def regex_split(pattern, then=BYTES_STEP, **settings):
    return steps(split({"Regex": pattern}, **settings), then)


READ = {
    "as saved": FILE, "GPT-2's split": changed("pre_tokenizer", to=GPT2_STEP),
    "GPT-2's split unsaid": changed("pre_tokenizer", to=UNSAID_STEP),
    "no split": changed("pre_tokenizer", to=BYTES_STEP), "sequence of one": steps(GPT2_STEP),
    "a pattern with gaps": regex_split(r"\p{N}{1,3}"), "groups": regex_split(r"(\d)(\d)?"),
    "Llama's": regex_split(LLAMA), "empty pattern": regex_split(""), "empty matches": regex_split("l*"),
    "look around": regex_split(r"(?<=c)e|d(?!i)"), "atomic": regex_split("(?>i|iv)|[A-Z]+?"),
    "white space": regex_split(r"\s+"), "set": regex_split(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][a-z]+"),
    "merges as text": changed("model", "merges", to=[" ".join(pair) for pair in FILE["model"]["merges"]]),
    "no type": without("model", "type"), "no ignore_merges": without("model", "ignore_merges"),
    "empty suffix": changed("model", "end_of_word_suffix", to=""), "no dropout": changed("model", "dropout", to=0.0),
    "another special token": changed("added_tokens", to=FILE["added_tokens"] + [PAD]),
    "no special token": without("added_tokens"), "a gap in the ids": changed("model", "vocab", "Ġt", to=999),
    "ByteLevel post-processor": changed("post_processor", to=GPT2_STEP),
}
REFUSED = {
    "Split, then GPT-2's": (regex_split(r"\p{N}{1,3}", GPT2_STEP), "use_regex is true"),
    "Split, then unsaid": (regex_split(r"\p{N}{1,3}", UNSAID_STEP), "use_regex is true"),
    "add_prefix_space": (changed("pre_tokenizer", to=GPT2_STEP | {"add_prefix_space": True}), "add_prefix_space is true"),
    "NFC": (changed("normalizer", to={"type": "NFC"}), 'normalizer is {"type": "NFC"}'),
    "Lowercase": (changed("normalizer", to={"type": "Lowercase"}), "normalizer is"),
    "ignore_merges": (changed("model", "ignore_merges", to=True), "model.ignore_merges is true"),
    "suffix": (changed("model", "end_of_word_suffix", to="</w>"), 'model.end_of_word_suffix is "</w>"'),
    "prefix": (changed("model", "continuing_subword_prefix", to="#"), "model.continuing_subword_prefix is"),
    "byte_fallback": (changed("model", "byte_fallback", to=True), "model.byte_fallback is true"),
    "unk_token": (changed("model", "unk_token", to="!"), 'model.unk_token is "!"'),
    "dropout": (changed("model", "dropout", to=0.5), "model.dropout is 0.5"),
    "truncation": (changed("truncation", to={"direction": "Right", "max_length": 3, "strategy": "LongestFirst",
                                             "stride": 0}), "truncation is"),
    "padding": (changed("padding", to={"strategy": {"Fixed": 20}}), "padding is"),
    "template": (changed("post_processor", to={"type": "TemplateProcessing"}), "post_processor.type is"),
    "added token": (changed("added_tokens", to=FILE["added_tokens"] + [PAD | {"content": "cell", "special": False}]),
                    "added_tokens.special is false; supported: true"),
    "special letter": (changed("added_tokens", to=[PAD | {"id": FILE["model"]["vocab"]["c"], "content": "c"}]),
                       "special token 'c' is a token of text too"),
    **{behavior: (regex_split(r"\s+", behavior=behavior), f'Split.behavior is "{behavior}"')
       for behavior in ("Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous")},
    "invert": (regex_split(r"\s+", invert=True), "Split.invert is true"),
    "String": (steps(split({"String": "l"}), BYTES_STEP), "KeyError: 'Regex'"),
    "other step": (steps({"type": "Digits", "individual_digits": True}, GPT2_STEP), "pre_tokenizer is Digits"),
    "wrong order": (steps(BYTES_STEP, split({"Regex": "a"})), "pre_tokenizer is ByteLevel + Split"),
    "no step": (steps(), "pre_tokenizer is"), "null step": (changed("pre_tokenizer", to=None), "pre_tokenizer is null"),
    "does not compile": (regex_split("(a"), "error: missing )"),
    "WordPiece": (changed("model", "type", to="WordPiece"), 'model.type is "WordPiece"'),
    "not bytes": (changed("model", "vocab", "▁the", to=400), "KeyError: '▁'"),
    "unknown part": (changed("model", "merges", to=[["zz", "a"]]), "merge 1, 'zz' and 'a', makes no new token"),
    "unknown result": (changed("model", "merges", to=[["z", "a"]]), "merge 1, 'z' and 'a', makes no new token"),
    "merge twice": (changed("model", "merges", to=FILE["model"]["merges"][:1] * 2), "merge 2,"),
    "merges reversed": (changed("model", "merges", to=FILE["model"]["merges"][::-1]), "merge 1,"),
    "merge of three": (changed("model", "merges", to=["a b c"]), "too many values"),
    "another file": ({"the": 1}, "KeyError: 'model'"), "a list": ([FILE], "TypeError"),
}


@pytest.mark.parametrize("name", READ)
def test_other_files_give_the_librarys_ids(name, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(READ[name]), encoding="utf-8")
    tok = Tokenizer.load(path)
    assert [tok.decode(tok.encode(text)) for text in TEXTS] == TEXTS
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(path))
    assert [tok.encode(text) for text in TEXTS] == [theirs.encode(text).ids for text in TEXTS]


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_by_the_setting(name, tmp_path):
    file, reason = REFUSED[name]
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(file), encoding="utf-8")
    with pytest.raises(ValueError) as refusal:
        Tokenizer.load(path)
    message = str(refusal.value)
    assert message.startswith(f"{path}: not a byte-level BPE that") and reason in message
    assert "\n" not in message and len(message) < len(str(path)) + 260


@pytest.mark.parametrize("pattern", ["^a", r"\w+", r"\bcell", "[a-z&&[^aeiou]]", r"\S+\s*|\s+"])
def test_an_unknown_pattern_is_used_as_it_stands(pattern, tmp_path, capsys):
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(regex_split(pattern)), encoding="utf-8")
    tok = Tokenizer.load(path)
    assert tok.pattern == pattern and tok.split == "custom"
    assert [tok.decode(tok.encode(text)) for text in TEXTS] == TEXTS
    note, = capsys.readouterr().err.splitlines()
    assert note == f"{path}: its split is none of bpe.py's, and is used as it stands: {pattern}"


def test_a_known_pattern_needs_no_note(tmp_path, capsys):
    tok = Tokenizer.train([], 257)
    for pattern in [*PATTERNS.values(), GPT2_PATTERN]:
        Tokenizer(tok.vocab, tok.merges, pattern).save(tmp_path / "tokenizer.json")
        assert Tokenizer.load(tmp_path / "tokenizer.json").pattern == pattern
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe\xff", b'{"model": 1e}', b"not json"])
def test_broken_files_are_refused(raw, tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(raw)
    with pytest.raises(ValueError, match="tokenizer.json: not a byte-level BPE that"):
        Tokenizer.load(tmp_path / "tokenizer.json")


def test_a_byte_order_mark_is_read_over(tmp_path, tok):
    text = json.dumps(to_json(tok), ensure_ascii=False)
    (tmp_path / "tokenizer.json").write_text(text, encoding="utf-8-sig")
    assert to_json(Tokenizer.load(tmp_path / "tokenizer.json")) == to_json(tok)


def test_bytes_without_a_token_are_told(tmp_path):
    """`unknown` are the bytes that encode() drops, as the library does."""
    few = {token: i for token, i in FILE["model"]["vocab"].items() if token not in ("!", "é", "q", "Ã")}
    merges = [pair for pair in FILE["model"]["merges"] if "Ã" not in "".join(pair)]
    file = changed("model", to=FILE["model"] | {"vocab": few, "merges": merges})
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), encoding="utf-8")
    tok = Tokenizer.load(tmp_path / "tokenizer.json")
    assert tok.unknown == bytes(b for b, name in enumerate(BYTE_NAME) if name in "!éqÃ")
    text = "quite naïve! it's aïqcell"
    kept = text.encode().translate(None, tok.unknown)
    assert tok.decode_bytes(tok.encode(text)) == kept != text.encode()
    tokenizers = pytest.importorskip("tokenizers")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tok.encode(text) == theirs.encode(text).ids


# -- the `tokenizers` library, where it is installed

@pytest.mark.parametrize("split", PATTERNS)
def test_equals_the_library(tmp_path, split):
    tokenizers = pytest.importorskip("tokenizers")
    docs = prose_and_dna() + [t for t in ODD if "\ud800" not in t]
    theirs = vs_tokenizers.library_trainer(docs, 700, split)
    ours = Tokenizer.train(docs, 700, split)
    model = json.loads(theirs.to_str())["model"]
    assert (model["vocab"], model["merges"]) == (ours.vocab, to_json(ours)["model"]["merges"])

    ours.save(tmp_path / "tokenizer.json")
    reads = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in docs:
        if "<|endoftext|>" not in text:
            assert reads.encode(text).ids == theirs.encode(text).ids == ours.encode(text)
            assert reads.decode(ours.encode(text)) == text


@pytest.mark.skipif(not os.path.exists(PAPER), reason="the paper's tokenizer is not here")
def test_the_papers_tokenizer():
    tok = Tokenizer.load(PAPER)
    assert len(tok) == 50_000 and len(tok.merges) == 49_797 and tok.split == "none"
    assert len(tok.unknown) == 54
    text = "The TATA box GGCTATAAAAGGGC is read.\nA naïve \x00 byte is dropped: 日本"
    assert tok.decode(tok.encode("The cell ACGTACGTGG")) == "The cell ACGTACGTGG"
    tokenizers = pytest.importorskip("tokenizers")
    assert tok.encode(text) == tokenizers.Tokenizer.from_file(PAPER).encode(text).ids
