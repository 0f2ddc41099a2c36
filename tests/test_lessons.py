"""The lessons: what is shown of tokens, the page, and that every line of a lesson runs."""
import doctest
import json
import os
import random
import re
import sys

import pytest

import bpe
from bpe import GPT2_PATTERN, Tokenizer, plain_encode, plain_train
from lessons import tokens as lesson
from test_bpe import prose_and_dna

TEXT = "The TATA box </script> of CAT: GGGCTATAAAAGGGC, é 12."


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(prose_and_dna(), 600)


LESSON = os.path.join(os.path.dirname(lesson.__file__), "bpe.md")


@pytest.fixture
def saved(tok, tmp_path):
    """-> the path of a tokenizer.json"""
    tok.save(tmp_path / "tokenizer.json")
    return str(tmp_path / "tokenizer.json")


def test_bpe_lesson():
    """Every line of bpe.md prints what it says it prints."""
    failed, tried = doctest.testfile(LESSON, module_relative=False)
    assert tried > 20 and failed == 0


def test_the_checks_of_the_exercises(tmp_path, monkeypatch, capsys):
    """They accept a right solution, and notice a wrong one."""
    with open(LESSON, encoding="utf-8") as f:
        exercises = f.read().split("## Exercises")[1]
    checks = ["\n".join(line[7:] for line in block.split("\n"))
              for block in re.findall(r"(?:^ {7}.*\n)+", exercises, re.MULTILINE)]
    assert len(checks) == 5
    monkeypatch.chdir(tmp_path)
    os.makedirs("data/toy/raw")
    with open("data/toy/raw/genome.fa", "w", encoding="utf-8") as f:
        f.write(">toy\n" + "".join(random.Random(0).choices("ACGT", k=2000)) + "\n")

    def solve(my_train=plain_train, my_encode=plain_encode,
              my_split=lambda text: [part for part in re.split("([ACGT]{8,})", text) if part]):
        names = vars(bpe) | {"my_train": my_train, "my_encode": my_encode, "my_split": my_split}
        for check in checks:
            exec(check, names)

    solve()
    assert "merge 3: b'ab' + b'ra' = b'abra', count 2" in capsys.readouterr().out
    for wrong in ({"my_train": lambda pieces, size: plain_train(pieces, size - 1)},
                  {"my_encode": lambda ids, merges: ids}, {"my_split": lambda text: [text]}):
        with pytest.raises(AssertionError):
            solve(**wrong)


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


def test_page(tok, saved, tmp_path, capsys):
    """All that the page needs is in it: every token's parts, down to the bytes"""
    page = tmp_path / "tokens.html"
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    lesson.main(["show", saved, str(tmp_path / "text.txt"), f"--html={page}"])
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


def test_modalities_where_bytes_have_no_token(tok):
    """Bytes that encode() drops do not shift what each token covers."""
    few = {token: i for token, i in tok.vocab.items() if token != "!"}
    tokens = lesson.modalities(Tokenizer(few, tok.merges, tok.pattern), "!!!! GGGCTATAAAAGGGC so")
    dna = [i for i, kind in tokens if kind == "dna"]
    assert tok.decode(dna) == "GGGCTATAAAAGGGC"


@pytest.mark.parametrize("terminal, no_color, coloured", [(True, None, True), (False, None, False),
                                                          (True, "1", False), (True, "", True)])
def test_colour_only_to_a_terminal(saved, capsys, monkeypatch, terminal, no_color, coloured):
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal, raising=False)
    lesson.main(["show", saved, "the gene", "TATAAAAG"])
    out = capsys.readouterr().out
    assert ("\x1b[" in out) == coloured
    assert coloured or out.splitlines()[0] == "the| gene| |TATAAAAG"
    assert re.search(r" dna .*1 tokens \(25%\), 8.00 bases per token", out)


@pytest.mark.parametrize("text", ["./lost", "data/lost", "/lost", "lost.txt", "my lost.fa", "lost.fa.gz"])
def test_a_missing_file_is_no_text(saved, text):
    with pytest.raises(FileNotFoundError, match="lost"):
        lesson.main(["show", saved, text])


@pytest.mark.parametrize("text", ["either / or", "and/or this", "1/2 of them", "e.g. this.", "lost"])
def test_text_that_is_no_path(saved, text, capsys):
    lesson.main(["show", saved, text])
    assert capsys.readouterr().out.splitlines()[0].replace("|", "") == text


def test_fasta_is_shown_as_its_sequence(tmp_path, saved, capsys):
    (tmp_path / "two.fa").write_bytes(b"\xef\xbb\xbf>one a b\r\ntataaaag\r\nTATA\r\n\n>two\nGATTACA\n")
    lesson.main(["show", saved, str(tmp_path / "two.fa")])
    assert "TATAAAAGTATA\nGATTACA\n" in capsys.readouterr().out.replace("|", "")
    (tmp_path / "odd.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="odd.txt: not UTF-8"):
        lesson.main(["show", saved, str(tmp_path / "odd.txt")])


@pytest.mark.parametrize("argv", [["show", "no.json", "text"], ["report", "no.json"]])
def test_a_missing_tokenizer_is_named(argv):
    with pytest.raises(OSError, match="No such file.*no.json"):
        lesson.main(argv)


def test_report_is_printed(saved, capsys):
    lesson.main(["report", saved])
    assert capsys.readouterr().out.startswith("600 ids: 343 merges, split mixed\n")


def test_report(tok):
    lines = list(lesson.report(tok))
    ids = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines
           if line.split() and line.split()[0] in lesson.MODALITIES}
    assert sum(ids.values()) == len(tok) - 1 and ids["dna"] > 20 and "both" not in ids
    assert "never used: 0 tokens (0.0%)" in lines[-1]
    none = Tokenizer.train(prose_and_dna(), 600, "none")
    wrong = Tokenizer(none.vocab, none.merges, GPT2_PATTERN)        # split as it was not trained
    assert int(list(lesson.report(wrong))[-1].split()[2]) > 100
