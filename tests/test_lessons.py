"""The lessons: what is shown of tokens, the page, and that every line of a lesson runs."""
import doctest
import gzip
import json
import os
import random
import re
import shutil
import subprocess
import sys
import unicodedata

import pytest
import torch
from conftest import random_dna
from test_bpe import prose_and_dna

import bpe
from bpe import GPT2_PATTERN, PATTERNS, Tokenizer, plain_encode, plain_train
from lessons import attention
from tools import tokens as lesson
from train import load_model

TEXT = "The TATA box </script> of CAT: GGGCTATAAAAGGGC, é 12."


@pytest.fixture(scope="module")
def tok():
    return Tokenizer.train(prose_and_dna(), 600)


LESSON = os.path.join(os.path.dirname(attention.__file__), "bpe.md")
GPT_LESSON = os.path.join(os.path.dirname(attention.__file__), "gpt.md")


@pytest.fixture
def saved(tok, tmp_path):
    """-> the path of a tokenizer.json"""
    tok.save(tmp_path / "tokenizer.json")
    return str(tmp_path / "tokenizer.json")


def test_bpe_lesson():
    """Every line of bpe.md prints what it says it prints."""
    failed, tried = doctest.testfile(LESSON, module_relative=False)
    assert tried > 20 and failed == 0


def test_gpt_lesson(toy, tmp_path, monkeypatch, capsys):
    """What needs no model prints what gpt.md says that it prints. The rest runs, on the small world
    of the tests; its figures are those of a trained model."""
    with open(GPT_LESSON, encoding="utf-8") as f:
        exact, rest = f.read().split("<!-- From here on")
    names = {}
    test = doctest.DocTestParser().get_doctest(exact, names, "gpt.md", GPT_LESSON, 0)
    failed, tried = doctest.DocTestRunner().run(test, clear_globs=False)
    assert tried > 15 and failed == 0, capsys.readouterr().out

    monkeypatch.chdir(tmp_path)
    for folder, name in (("data", "data/toy"), ("out", "out/toy"), ("out", "out/toy-instruct")):
        os.makedirs(os.path.dirname(name), exist_ok=True)
        os.symlink(f"{toy}/{folder}", name)
    examples = doctest.DocTestParser().get_examples(rest)
    assert len(examples) > 30
    for example in examples:
        exec(compile(example.source, f"gpt.md: {example.source}", "single"), test.globs)
    assert "### Response:\nDonor Sites" in capsys.readouterr().out

    # what the lesson has defined is there for the solutions of its exercises
    examples = doctest.DocTestParser().get_examples(solutions().split("<!-- From here on")[1])
    assert len(examples) > 15
    for example in examples:
        exec(compile(example.source, f"solutions.md: {example.source}", "single"), test.globs)
    assert 1 < test.globs["cost"]("ACGT" * 10) < 9


def solutions():
    with open(os.path.join(os.path.dirname(LESSON), "solutions.md"), encoding="utf-8") as f:
        return f.read()


def test_the_solutions(tmp_path, monkeypatch, capsys):
    """What needs no model prints what it says, on a genome of the test's own. Every exercise has one."""
    for path, heading in ((LESSON, "## One vocabulary"), (GPT_LESSON, "## From tokens")):
        with open(path, encoding="utf-8") as f:
            text = f.read().split("## Exercises")[1]
        exercises = re.findall(r"^(\d+)\. \*\*(.*?)\*\*", text, re.MULTILINE)
        part = solutions().split(heading)[1].split("\n## ")[0]
        assert exercises == re.findall(r"^\*\*(\d+)\. (.*?)\*\*", part, re.MULTILINE) and exercises
    os.makedirs(tmp_path / "data/toy/raw")
    (tmp_path / "data/toy/raw/genome.fa").write_text(">toy\n" + random_dna(3000) + "\n", encoding="utf-8")
    os.symlink(bpe.__file__, tmp_path / "bpe.py")
    monkeypatch.chdir(tmp_path)
    test = doctest.DocTestParser().get_doctest(solutions().split("<!-- From here on")[0], {}, "solutions.md",
                                               "solutions.md", 0)
    failed, tried = doctest.DocTestRunner().run(test)
    assert tried > 45 and failed == 0, capsys.readouterr().out


def test_attention(toy, tmp_path, capsys, monkeypatch):
    """The weights are those that the network uses, and its bases are those of the input."""
    model, tok, _ = load_model(f"{toy}/out")
    ids = tok.encode("the gene reads GATTACAGATTACA")
    weights = attention.attention_weights(model.eval(), ids)
    assert weights.shape == (2, 2, len(ids), len(ids))
    assert torch.allclose(weights.sum(dim=-1), torch.ones(()))
    assert not weights.triu(1).any()

    # the first block's output, from the weights
    block, x = model.transformer.h[0], model.transformer.wte(torch.tensor([ids]))
    x = block.ln_1(x + model.transformer.wpe(torch.arange(len(ids))))
    v = block.attn.c_attn(x).chunk(3, dim=2)[2].view(len(ids), 2, -1).transpose(0, 1)
    y = block.attn.c_proj((weights[0] @ v).transpose(0, 1).reshape(1, len(ids), -1))
    assert torch.allclose(y, block.attn(x), atol=1e-5)

    # each base has the token that holds it, in a prompt with a line break in the middle
    example = {"instruction": "Is ACGT a naïve CAT?", "input": "ACGTTGCAAGGCTATAAAAG" * 2, "output": "yes"}
    ids, tokens = attention.encode_example(tok, example, 256)
    assert "".join(tok.decode([ids[j]]).strip() for j in dict.fromkeys(tokens)) == example["input"]
    assert len(tokens) == 40
    assert 0 < attention.attention_on_bases(model, tok, example).sum(axis=2).max() <= 1

    monkeypatch.setattr(attention, "MODEL", f"{toy}/out")
    attention.main([f"--task={toy}/data/tasks/splice.test.json"])
    assert len(capsys.readouterr().out.splitlines()) == 1 + 3 * 4
    pytest.importorskip("matplotlib")
    attention.main([f"--task={toy}/data/tasks/splice.test.json", f"--png={tmp_path}/a.png"])
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")


def test_the_checks_of_the_exercises(tmp_path, monkeypatch, capsys):
    """They accept a right solution, and notice a wrong one."""
    with open(LESSON, encoding="utf-8") as f:
        exercises = f.read().split("## Exercises")[1]
    checks = ["\n".join(line[7:] for line in block.split("\n"))
              for block in re.findall(r"(?:^ {7}.*\n)+", exercises, re.MULTILINE)]
    assert len(checks) == 6
    monkeypatch.chdir(tmp_path)
    os.makedirs("data/toy/raw")
    with open("data/toy/raw/genome.fa", "w", encoding="utf-8") as f:
        f.write(">toy\n" + "".join(random.Random(0).choices("ACGT", k=2000)) + "\n")

    # protein: twenty letters, and none of them the start of a run of DNA
    amino_acids = "ACDEFGHIKLMNPQRSTVWY"
    protein = f"(?:(?![ACGT]{{8}})[{amino_acids}])"
    pattern = rf"[ACGT]{{8,}}|{protein}{{20,}}|" + GPT2_PATTERN.replace(
        r"\p{L}+", rf"(?:(?![ACGT]{{8}}|{protein}{{20}})\p{{L}})+")

    def solve(my_train=plain_train, my_encode=plain_encode, my_pattern=pattern,
              my_split=lambda text: [part for part in re.split("([ACGT]{8,})", text) if part]):
        names = vars(bpe) | {"my_train": my_train, "my_encode": my_encode, "my_split": my_split,
                             "my_pattern": my_pattern}
        for check in checks:
            exec(check, names)

    solve()
    assert "merge 3: b'ab' + b'ra' = b'abra', count 2" in capsys.readouterr().out
    for wrong in ({"my_train": lambda pieces, size: plain_train(pieces, size - 1)},
                  {"my_encode": lambda ids, merges: ids}, {"my_split": lambda text: [text]},
                  {"my_pattern": bpe.split_patterns(["ACGT", amino_acids])["mixed"]}):
        with pytest.raises(AssertionError):
            solve(**wrong)


def test_modalities(tok):
    tokens = lesson.modalities(tok, TEXT)
    assert b"".join(tok.bytes_of[i] for i, _ in tokens).decode() == TEXT
    kinds = {kind: "".join(lesson.spell(tok.bytes_of[i]) for i, k in tokens if k == kind)
             for _, kind in tokens}
    assert kinds["dna"] == "GGGCTATAAAAGGGC" and "both" not in kinds
    assert "TATA" in kinds["english"] and "CAT" in kinds["english"]
    # the two bytes of é are two tokens
    assert set(kinds["other"].replace(r"\xc3", "").replace(r"\xa9", "")) <= set(" :,.<>/12")
    for text in ("é", "你好", "🧬", "ДНК"):
        assert {k for _, k in lesson.modalities(tok, text)} == {"other"}
        assert {lesson.modality_of(tok.bytes_of[i]) for i in tok.encode(text)} == {"other"}
    none = Tokenizer.train(["see ACGTACGTACGT."] * 9, 290, "none")
    assert [k for _, k in lesson.modalities(none, "see ACGTACGTACGT.")] == ["both"]


def page_of(tok, text=""):
    """-> (the data in the page, its script without the page's own part)"""
    page = lesson.show_html(tok, text)
    return (re.search(r'id="data">(.*)</script>', page)[1],
            re.search(r'<script id="bpe">(.*?)</script>', page, re.DOTALL)[1])


def test_page(saved, tmp_path, capsys):
    """All that the page needs is in it, and no text can break out of it."""
    page = tmp_path / "tokens.html"
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    lesson.main(["show", saved, str(tmp_path / "text.txt"), f"--html={page}"])
    assert capsys.readouterr().out.startswith(f"wrote {page}")
    html = page.read_text(encoding="utf-8")
    assert "http" not in html and html.count("</script>") == 3
    assert json.loads(re.search(r'id="data">(.*)</script>', html)[1])["text"] == TEXT


def test_page_does_not_replace_its_text(saved, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    for path in (saved, str(tmp_path / "text.txt")):
        with pytest.raises(ValueError, match="the output is the input"):
            lesson.main(["show", saved, str(tmp_path / "text.txt"), f"--html={path}"])
    assert (tmp_path / "text.txt").read_text(encoding="utf-8") == TEXT


def test_page_with_a_pattern_from_elsewhere(tok):
    """A browser might read it in another way, so it is refused; GPT-2's is known."""
    with pytest.raises(ValueError, match=r"another pattern in another way: \[a-z\]\+"):
        lesson.show_html(Tokenizer(tok.vocab, tok.merges, "[a-z]+"), "")
    assert "custom" in json.loads(page_of(Tokenizer(tok.vocab, tok.merges, GPT2_PATTERN))[0])["patterns"]


def texts_to_type():
    """Prose, DNA, and what text boxes get: accents, emoji, white space of all kinds, repeats"""
    rng = random.Random(3)
    assigned = [chr(c) for c in range(0x20000) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    yield from ["", "A", " ", "A" * 500, "GA" * 200, TEXT, "naïve café, 你好, ДНК, 🧬🧬", "it's I'LL",
                "a\u0085b\ufeff c\x1c\x1d d\u3000\n\n  e \t\r\n", "".join(rng.sample(assigned, 500))]
    yield from (" ".join(prose_and_dna())[i:i + 700] for i in range(0, 2800, 700))
    for letters in ("ACGT", "ACGTN", "ACGTacgt ", ["ACGTACGT", "CAT", " ", "the ", "N", "é", "12", "\n"]):
        yield from ("".join(rng.choices(letters, k=n)) for n in (7, 8, 9, 60, 300))


NODE = """
const data = JSON.parse(process.argv[2]), tok = makeTokenizer(data);
const texts = JSON.parse(require("fs").readFileSync(0, "utf8"));
const answers = texts.map(text => Object.values(data.patterns).flatMap(pattern => {
  const cells = layOut(tok, text, pattern, data.modalities), film = runMerges(tok, cells);
  return [12, data.merges.length].map(used => {
    const { at, ids } = tokensAfter(tok, cells, film, used);
    return ids.map((id, i) => [id, modality(tok, cells, id, at[i]), spell(tok.bytesOf.get(id))]);
  });
}));
console.log(JSON.stringify(answers));
"""


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node, to run JavaScript")
@pytest.mark.parametrize("split", ["mixed", "none"])
def test_page_gives_the_same_tokens(split, tmp_path):
    """Ids, modalities and spelling, with each split and after some of the merges, as in Python"""
    across = "see ACGTACGTACGT."         # with the split none, this becomes one token
    tok = Tokenizer.train(prose_and_dna() + [across] * 99, 600, split)
    texts = [across, *texts_to_type()]
    data, script = page_of(tok)
    (tmp_path / "page.js").write_text(script + NODE, encoding="utf-8")
    run = subprocess.run(["node", tmp_path / "page.js", data], input=json.dumps(texts),
                         capture_output=True, text=True, encoding="utf-8", check=True)
    answers = json.loads(run.stdout)
    assert len(answers) == len(texts) > 25
    assert any(kind == "both" for tokens in answers[0] for _, kind, _ in tokens) == (split == "none")

    few = [Tokenizer(tok.vocab, tok.merges[:used], pattern)
           for pattern in PATTERNS.values() for used in (12, None)]
    for text, answer in zip(texts, answers):
        for partly, tokens in zip(few, answer, strict=True):
            assert [tuple(token) for token in tokens] == [
                (i, kind, lesson.spell(tok.bytes_of[i])) for i, kind in lesson.modalities(partly, text)]


@pytest.mark.skipif(not shutil.which("node"), reason="needs Node, to parse JavaScript")
def test_page_parses(tok, tmp_path):
    scripts = re.findall(r'<script id="(?:bpe|page)">(.*?)</script>', lesson.show_html(tok, ""), re.DOTALL)
    assert len(scripts) == 2
    (tmp_path / "page.js").write_text("".join(scripts), encoding="utf-8")
    subprocess.run(["node", "--check", tmp_path / "page.js"], check=True)


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
    (tmp_path / "two.fa.gz").write_bytes(gzip.compress(b">one\ntataaaag\nTATA\n"))
    lesson.main(["show", saved, str(tmp_path / "two.fa.gz")])
    assert "TATAAAAGTATA\n" in capsys.readouterr().out.replace("|", "")
    (tmp_path / "odd.txt").write_bytes(b"\xff\xff")
    with pytest.raises(ValueError, match="odd.txt: line 1 or after: not utf-8 text"):
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
           if line[:10].strip() in lesson.KINDS}
    assert sum(ids.values()) == len(tok) - 1 and ids["dna"] > 20 and "both" not in ids
    assert "never used: 0 tokens (0.0%)" in lines[-1]
    none = Tokenizer.train(prose_and_dna(), 600, "none")
    wrong = Tokenizer(none.vocab, none.merges, GPT2_PATTERN)        # split as it was not trained
    assert int(list(lesson.report(wrong))[-1].split()[2]) > 100
