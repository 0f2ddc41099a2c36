"""The lessons: what is shown of tokens, the page, and that every line of a lesson runs."""
import doctest
import json
import os
import re

import pytest

from bpe import GPT2_PATTERN, Tokenizer
from lessons import tokens as lesson
from test_bpe import prose_and_dna

TEXT = "The TATA box </script> of CAT: GGGCTATAAAAGGGC, é 12."


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(prose_and_dna(), 600)


def test_bpe_lesson():
    """Every line of bpe.md prints what it says it prints."""
    path = os.path.join(os.path.dirname(lesson.__file__), "bpe.md")
    failed, tried = doctest.testfile(path, module_relative=False)
    assert tried > 15 and failed == 0


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
    lesson.main(["show", str(tmp_path / "tokenizer.json"), str(tmp_path / "text.txt"), f"--html={page}"])
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


def test_no_colours_in_a_pipe(tok, tmp_path, capsys):
    tok.save(tmp_path / "tokenizer.json")
    text = TEXT.replace("é", "e")
    lesson.main(["show", str(tmp_path / "tokenizer.json"), text])
    out = capsys.readouterr().out
    assert "\x1b" not in out and out.splitlines()[0].replace("|", "") == text
    assert "\x1b[" in lesson.show(tok, lesson.modalities(tok, TEXT))


def test_what_looks_like_a_file_is_one(tok, tmp_path):
    (tmp_path / "x.fa").write_text(">one\nacgt\nacgt\n>two\nGGCC\n")
    assert lesson.read_text(str(tmp_path / "x.fa")) == "ACGTACGT\nGGCC"
    assert lesson.read_text("and/or this") == "and/or this"
    with pytest.raises(OSError):
        lesson.read_text("no.txt")
    with pytest.raises(OSError):
        lesson.main(["report", "no.json"])


def test_report(tok):
    lines = list(lesson.report(tok))
    ids = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines
           if line.split() and line.split()[0] in lesson.MODALITIES}
    assert sum(ids.values()) == len(tok) - 1 and ids["dna"] > 20 and "both" not in ids
    assert "never used: 0 tokens (0.0%)" in lines[-1]
    none = Tokenizer.train(prose_and_dna(), 600, "none")
    wrong = Tokenizer(none.vocab, none.merges, GPT2_PATTERN)        # split as it was not trained
    assert int(list(lesson.report(wrong))[-1].split()[2]) > 100
