"""The tokenizer: against a naive one, against the `tokenizers` library, and against its promises."""
import doctest
import json
import os
import random
import re
from collections import Counter
from functools import cache

import pytest

import bpe
from bench import vs_tokenizers
from bpe import BYTE_NAME, GPT2_PATTERN, SPLITS, Tokenizer
from lessons import tokens as lesson
from prepare import alpaca_prompt

PAPER = os.path.join(os.path.dirname(__file__), "../../shared/data/paper/dna_eng_bpe_dict.json")


def replace_pair(ids, pair, new):
    """ids=[1, 2, 3, 1, 2], pair=(1, 2), new=4 -> [4, 3, 4]"""
    out, i = [], 0
    while i < len(ids):
        hit = tuple(ids[i:i + 2]) == pair
        out.append(new if hit else ids[i])
        i += 2 if hit else 1
    return out


def naive_merges(docs, vocab_size, split):
    """BPE as in the textbook: count all pairs, merge the commonest, again."""
    blank = Tokenizer.train([], 257, split)
    pieces = [[int(blank.byte_id[b]) for b in p.encode()] for d in docs for p in blank.cut(d)]
    merges = []
    for new in range(257, vocab_size):
        counts = Counter(pair for ids in pieces for pair in zip(ids, ids[1:]))
        if not counts:
            break
        pair = min(counts, key=lambda p: (-counts[p], p))
        merges.append((*pair, new))
        pieces = [replace_pair(ids, pair, new) for ids in pieces]
    return merges


def naive_encode(tok, text):
    """Of all merges that apply the earliest, again and again, piece by piece."""
    rank = {(left, right): (i, new) for i, (left, right, new) in enumerate(tok.merges)}
    out = []
    for piece in tok.cut(text):
        ids = [int(tok.byte_id[b]) for b in piece.encode()]
        while found := [(*rank[p], p) for p in zip(ids, ids[1:]) if p in rank]:
            _, new, pair = min(found)
            ids = replace_pair(ids, pair, new)
        out += ids
    return out


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
def by_hand(name, split):
    """-> (merges, [(text, ids), ...]) of the naive trainer and encoder"""
    docs = CORPORA[name]
    tok = Tokenizer.train(docs, 340, split)
    return naive_merges(docs, 340, split), [(text, naive_encode(tok, text))
                                            for text in ["".join(docs)[::-1], *docs]]


# Pairs are found by scanning as long as they are common, and by lists from there on; both in blocks.
@pytest.mark.parametrize("scan_share,block", [(bpe.SCAN_SHARE, bpe.BLOCK), (1, 50), (20, 7),
                                              (10 ** 9, 64)])
@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", CORPORA)
def test_equals_naive(name, split, scan_share, block, monkeypatch):
    monkeypatch.setattr(bpe, "SCAN_SHARE", scan_share)
    monkeypatch.setattr(bpe, "BLOCK", block)
    merges, encoded = by_hand(name, split)
    tok = Tokenizer.train(CORPORA[name], 340, split)
    assert tok.merges == merges
    assert [ids.tolist() for ids in tok.encode_batch([text for text, _ in encoded])] == \
        [ids for _, ids in encoded]


def test_long_run_of_one_letter():
    docs = ["A" * 10_000]
    tok = Tokenizer.train(docs, 270)
    assert tok.merges == naive_merges(docs, 270, "mixed")
    assert tok.encode(docs[0]) == naive_encode(tok, docs[0])


def test_many_floors():
    """A corpus whose pairs are found in several readings, with ever lower floors."""
    rng = random.Random(2)
    docs = ["".join(rng.choices("ACGT", [8, 4, 2, 1], k=3000))]
    assert Tokenizer.train(docs, 600).merges == naive_merges(docs, 600, "mixed")


def test_neighbours_that_want_the_same_token():
    """Within a generation the lower rank wins, however long the chain of those that wait."""
    docs = ["ab"] * 9 + ["bc"] * 8 + ["cd"] * 7 + ["de"] * 6 + ["ee"] * 5 + ["ef"] * 4
    tok = Tokenizer.train(docs, 263)
    assert tok.n_generations == 1 and len(tok.merges) == 6
    for text in ("abcdef", "bcdeeef", "eeeef", "deeee", "abcdeeeeefedcba", "e" * 101 + "f"):
        assert tok.encode(text) == naive_encode(tok, text)


def test_generations_need_nothing_of_their_own(tok):
    made = {new: int(tok.generation[rank]) for rank, (_, _, new) in enumerate(tok.merges)}
    for rank, (left, right, _) in enumerate(tok.merges):
        assert max(made.get(left, -1), made.get(right, -1)) < tok.generation[rank]
    assert 1 < tok.n_generations < len(tok.merges) / 3


def test_a_long_run_is_cut_nowhere(tok, monkeypatch):
    run = "".join(random.Random(3).choices("ACGT", k=5000))
    monkeypatch.setattr(bpe, "BLOCK", 512)
    assert tok.encode(run) == naive_encode(tok, run)


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


@pytest.mark.parametrize("split", SPLITS)
def test_round_trip(split):
    tok = Tokenizer.train(prose_and_dna(), 400, split)
    for text in ODD + prose_and_dna():
        assert tok.decode_bytes(tok.encode(text)) == text.encode("utf-8", "surrogatepass")
    assert sorted(tok.decode_bytes([tok.byte_id[b]])[0] for b in range(256)) == list(range(256))


def test_batch_is_one_by_one(tok):
    texts = ODD + prose_and_dna()
    assert [ids.tolist() for ids in tok.encode_batch(texts)] == [tok.encode(t) for t in texts]
    assert tok.encode_batch([]) == []


@pytest.mark.parametrize("pattern", [*SPLITS.values(), GPT2_PATTERN, r"\S+\s*|\s+"])
def test_words_are_cut_as_the_text_is(pattern):
    tok = Tokenizer(Tokenizer.train([], 257).vocab, [], pattern)
    rng = random.Random(4)
    parts = [" ", "  ", "\n", "\t", "\x1c", "\x85", "\u3000", "a", "I'll", "CAT", "ACGTACGTAC", "12", "!", "é"]
    for text in ODD + ["".join(rng.choices(parts, k=30)) for _ in range(300)]:
        words = tok.words(text)
        assert "".join(words) == text
        assert [piece for word in words for piece in tok.cut(word)] == tok.cut(text)


@pytest.mark.parametrize("split", ["mixed", "mixed6", "mixed1"])
def test_same_dna_same_tokens_everywhere(split):
    tok = Tokenizer.train(prose_and_dna(), 600, split)
    for dna in ("TATAAAAGGGGCGGCCAATACGTTTTT", "ACGTACGT", "G" * 50):
        alone = tok.encode(dna)
        for before, behind in [("", " is"), ("of ", "."), ("\n", "\n"), ("  ", ""), ("N", "N"),
                               ("the", "end"), ("12", "x"), ("(", ")"), ("acgt", "acgt")]:
            assert tok.encode(before + dna + behind) == \
                tok.encode(before) + alone + tok.encode(behind)
        prompt = alpaca_prompt("Is this a promoter?", dna)
        start = len(tok.encode(prompt[:prompt.index(dna)]))
        assert tok.encode(prompt)[start:start + len(alone)] == alone


def test_short_capital_words_are_english(tok):
    for word in ("CAT", "TAG", "TATA", "ACT", "GATTACA"):
        assert tok.cut(f"the {word} sat") == ["the", f" {word}", " sat"]
    assert tok.cut("the GATTACAG sat") == ["the", " ", "GATTACAG", " sat"]


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


def test_special_tokens_never_come_from_text(tok):
    assert tok.eot == 0 and tok.eot not in tok.encode("<|endoftext|>")
    assert tok.decode([tok.eot]) == "<|endoftext|>"


def test_ids(tok):
    """<|endoftext|>, then GPT-2's printable order, then one id a merge"""
    assert BYTE_NAME[ord(" ")] == "Ġ" and BYTE_NAME[ord("\n")] == "Ċ" and BYTE_NAME[0xad] == "Ń"
    assert [tok.vocab[c] for c in "!\"~¡ÿĀŃ"] == [1, 2, 94, 95, 188, 189, 256]
    assert [new for _, _, new in tok.merges] == list(range(257, 600)) and len(tok) == 600
    assert len(set(tok.bytes_of.values())) == len(tok)


def test_train_twice_same_file(tmp_path):
    for name, docs in (("a", prose_and_dna()), ("b", reversed(prose_and_dna()))):
        Tokenizer.train(docs, 400).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("split", SPLITS)
def test_save_and_load(tmp_path, split):
    tok = Tokenizer.train(prose_and_dna(), 400, split)
    tok.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.to_json() == tok.to_json() and again.split == split
    assert [again.encode(t) for t in ODD] == [tok.encode(t) for t in ODD]


def test_refusals(tmp_path, tok):
    with pytest.raises(ValueError, match="vocab_size=256 is too small"):
        Tokenizer.train(["x"], 256)
    with pytest.raises(ValueError, match="split=mixt is not one of mixed"):
        Tokenizer.train(["x"], 300, "mixt")
    path = tmp_path / "tokenizer.json"
    tok.save(path)
    with pytest.raises(ValueError, match="not the tokenizer"):
        Tokenizer.load(path, sha256="0" * 64)
    path.write_text(path.read_text(encoding="utf-8")[:1000], encoding="utf-8")
    with pytest.raises(ValueError, match="tokenizer.json: not a byte-level BPE"):
        Tokenizer.load(path)
    file = tok.to_json()
    file["model"]["merges"].reverse()
    path.write_text(json.dumps(file), encoding="utf-8")
    with pytest.raises(ValueError, match="before the merge that makes one of its parts"):
        Tokenizer.load(path)
    path.write_text('{"model": {}}')
    with pytest.raises(ValueError, match="not a byte-level BPE"):
        Tokenizer.load(path)


# -- in plain sight

TEXT = "The TATA box </script> of CAT: GGGCTATAAAAGGGC, é 12."


def test_modalities(tok):
    tokens = lesson.modalities(tok, TEXT)
    assert b"".join(tok.bytes_of[i] for i, _ in tokens).decode() == TEXT
    kinds = {kind: "".join(lesson.spell(tok.bytes_of[i]) for i, k in tokens if k == kind)
             for _, kind in tokens}
    assert kinds["dna"] == "GGGCTATAAAAGGGC" and "both" not in kinds
    assert "TATA" in kinds["english"] and "CAT" in kinds["english"]
    assert set(kinds["other"]) <= set(" :,.<>/12")

    none = Tokenizer.train(["see ACGTACGTACGT."] * 9, 290, "none")
    assert [k for _, k in lesson.modalities(none, "see ACGTACGTACGT.")] == ["both"]


def test_page(tok, tmp_path, capsys):
    """All that the page needs is in it: every token's parts, down to the bytes"""
    tok.save(tmp_path / "tokenizer.json")
    page = tmp_path / "tokens.html"
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    lesson.main(["show", str(tmp_path / "tokenizer.json"), str(tmp_path / "text.txt"),
              f"--html={page}"])
    assert f"wrote {page}" in capsys.readouterr().out
    html = page.read_text(encoding="utf-8")
    assert "http" not in html and html.count("</script>") == 2
    data = json.loads(re.search(r'id="data">(.*)</script>', html)[1])
    assert [i for i, _ in data["tokens"]] == tok.encode(TEXT)
    for i, token in data["vocab"].items():
        assert bytes.fromhex(token["bytes"]) == tok.bytes_of[int(i)]
        if token["parts"]:
            assert tok.merges[token["rank"]] == (*token["parts"], int(i))
            assert all(str(part) in data["vocab"] for part in token["parts"])
        else:
            assert len(tok.bytes_of[int(i)]) == 1
    assert sum(share[1] for share in data["shares"]) == len(data["tokens"])


def test_report(tok):
    lines = list(lesson.report(tok))
    ids = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines
           if line.split() and line.split()[0] in lesson.MODALITIES}
    assert sum(ids.values()) == len(tok) - 1 and ids["dna"] > 20 and "both" not in ids
    assert "never used: 0 tokens (0.0%)" in lines[-1]
    wrong = Tokenizer(tok.vocab, tok.merges, GPT2_PATTERN)      # split as it was not trained
    assert "never used: 0" in list(lesson.report(wrong))[-1]
    none = Tokenizer.train(prose_and_dna(), 600, "none")
    wrong = Tokenizer(none.vocab, none.merges, GPT2_PATTERN)
    assert int(list(lesson.report(wrong))[-1].split()[2]) > 100


def test_bench(tmp_path, capsys):
    (tmp_path / "a.fa").write_text(">one\nacgtacgtta\nACGT\n>two\nGGGGGGGGCA\n")
    assert vs_tokenizers.read_documents(str(tmp_path / "a.fa"), 1) == ["ACGTACGTTAACGT", "GGGGGGGGCA"]
    (tmp_path / "b.txt").write_text("One\ntwo.\n\n> quoted\n\n\nThree.")
    assert vs_tokenizers.read_documents(str(tmp_path / "b.txt"), 1) == ["One\ntwo.\n", "> quoted\n", "Three."]
    assert vs_tokenizers.read_documents(str(tmp_path / "b.txt"), 1e-6) == ["One\ntwo.\n"]
    vs_tokenizers.main([str(tmp_path / "a.fa"), "--vocab_size=270", "--rounds=1"])
    out = capsys.readouterr().out
    assert "vocabulary 270, split mixed" in out and "\nours " in out
    assert ("merges and ids: the same" in out) == ("\ntokenizers " in out)


@pytest.mark.parametrize("main, argv", [(lesson.main, ["show", "no.json", "text"]),
                                        (lesson.main, ["report", "no.json"]),
                                        (vs_tokenizers.main, ["no.fa", "--rounds=1"])])
def test_missing_file_is_named(main, argv):
    with pytest.raises(OSError, match="No such file.*no\\.(json|fa)"):
        main(argv)


# -- the `tokenizers` library, where it is installed

@pytest.mark.parametrize("split", SPLITS)
def test_equals_the_library(tmp_path, split):
    tokenizers = pytest.importorskip("tokenizers")
    docs = prose_and_dna() + [t for t in ODD if "\ud800" not in t]
    theirs = vs_tokenizers.library_trainer(docs, 700, split)
    ours = Tokenizer.train(docs, 700, split)
    model = json.loads(theirs.to_str())["model"]
    assert (model["vocab"], model["merges"]) == (ours.vocab, ours.to_json()["model"]["merges"])

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
    text = "The TATA box GGCTATAAAAGGGC is read.\nA naïve \x00 byte is dropped: 日本"
    assert tok.decode(tok.encode("The cell ACGTACGTGG")) == "The cell ACGTACGTGG"
    tokenizers = pytest.importorskip("tokenizers")
    assert tok.encode(text) == tokenizers.Tokenizer.from_file(PAPER).encode(text).ids


def test_the_lesson():
    """Every line of bpe.md prints what it says it prints."""
    path = os.path.join(os.path.dirname(lesson.__file__), "bpe.md")
    failed, tried = doctest.testfile(path, module_relative=False)
    assert tried > 10 and failed == 0
