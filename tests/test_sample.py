"""Asking a model."""
import fcntl
import json
import math
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
import torch

import instruct
import sample
from bpe import Tokenizer
from dna.tasks import alpaca_prompt
from sample import find_question, nearest, read_messages, split_message
from tools import analyze

ROOT = os.path.dirname(os.path.abspath(sample.__file__))
BASES = "ACGTTGCAAC" * 6
QUESTIONS = [
    {"task": "bases", "instruction": "Is it DNA?", "choices": ["yes", "no"], "is_dna": True,
     "wordings": ["Is it DNA?", "DNA or not?"]},
    {"task": "tail_2", "instruction": "What tail has it: yes, no, perhaps.",
     "choices": ["yes", "no", "perhaps"], "is_dna": True},
    {"task": "sums", "instruction": "What is 1 + 1?", "choices": ["two", "three"], "is_dna": False},
]


def messages(monkeypatch, *lines):
    """-> [(words, DNA), ...] of what is typed, a paste in one piece"""
    lines = iter(lines)

    def type_line(prompt):
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", type_line)
    return [split_message(message) for message in read_messages()]


@pytest.mark.parametrize("text,expected", [
    ("Is this a promoter?\nACGTACGTAC\nGGTT", [("Is this a promoter?", "ACGTACGTACGGTT")]),
    ("Is this one?\n>chr1 a header\nacgtacgtac\n  ggnn\n", [("Is this one?", "ACGTACGTACGGNN")]),
    ("Is this one?\n\nACGTACGTACGTACGR\n", [("Is this one?", ""), ("", "ACGTACGTACGTACGR")]),
    ("list\nwhy?\nquit", [("list", ""), ("why?", ""), ("quit", "")]),
    ("ACGTACGT", [("", "ACGTACGT")]),
    ("Is acgtacgtacgtaa a promoter?", [("Is a promoter?", "ACGTACGTACGTAA")]),
    ("Say it.\n   1 acgtacgtac gtacgtacgt\n  21 ggggg\n", [("Say it.", "ACGTACGTACGTACGTACGTGGGGG")]),
    ("Say it.\r\nACGUACGU\r\n", [("Say it.", "ACGTACGT")]),
    ("2\nacgtac\n3\nwhy", [("2", "ACGTAC"), ("3", ""), ("why", "")]),
    ("2. ACGTACGT\nGG", [("2.", "ACGTACGTGG")]),
    # pieces, the last of them short, and what is short behind a question
    ("Is it DNA? GGGCATAAAA GTCAGGGCAG AGCC", [("Is it DNA?", "GGGCATAAAAGTCAGGGCAGAGCC")]),
    ("acgtacgtaa at a site?", [("at a site?", "ACGTACGTAA")]),
    ("Is this a TATA box? ACGTA", [("Is this a TATA box?", "ACGTA")]),
    ("tf_0: TATA", [("tf_0:", "TATA")]),
    ("2 ACGTACGTAC\nGG\n1 ACGTACGTAC", [("2", "ACGTACGTACGG"), ("1", "ACGTACGTAC")]),
    ("  1 acgtacgtac gtac\n 21 acg", [("", "ACGTACGTACGTACACG")]),
    ("tf_0: ACGTACGTNNRY\nACGTACGTAC\nwhat?", [("tf_0:", "ACGTACGTNNRYACGTACGTAC"), ("what?", "")]),
    ("2\n>name\n        1 acgtacgtac gtacgtacgt\n       21 ac\n", [("2", "ACGTACGTACGTACGTACGTAC")]),
    ("ACGTACGT\nACGTACGT\n\nACGTACGA", [("", "ACGTACGT" * 2), ("", "ACGTACGA")]),
    (">only a header", [("", "")]),
    ("\n\n", []),
])
def test_messages(monkeypatch, text, expected):
    """The same line by line, as from a pipe, and as one paste"""
    assert messages(monkeypatch, *text.splitlines()) == expected
    assert messages(monkeypatch, text) == expected


@pytest.mark.parametrize("text,message", [
    ("Say it.\nACGTAC--GTACGTAC", "remove the gaps"),
    (">a\nACGTACGT\n>b\nACGTACGT", "one sequence at a time"),
    ("2 MKLVAWMKTAYIAK", "is no nucleotide"),
])
def test_what_is_not_one_sequence_is_refused(monkeypatch, text, message):
    with pytest.raises(ValueError, match=message):
        messages(monkeypatch, text)


# -- which question

@pytest.mark.parametrize("text,task,wording", [
    ("Is it DNA?", "bases", "Is it DNA?"), ("is this DNA", "bases", "Is it DNA?"),
    ("dna or NOT", "bases", "DNA or not?"), ("bases:", "bases", "Is it DNA?"),
    ("tail_2", "tail_2", "What tail has it: yes, no, perhaps."),
    ("Tail 2?", "tail_2", "What tail has it: yes, no, perhaps."),
    ("2", "tail_2", "What tail has it: yes, no, perhaps."), ("1.", "bases", "Is it DNA?"),
])
def test_find_question(text, task, wording):
    """A question is asked in the nearest words of its tuning: the tasks' names are none."""
    found = find_question(text, QUESTIONS)
    assert (found["task"], found["instruction"]) == (task, wording)
    assert found | {"instruction": ""} == {q["task"]: q for q in QUESTIONS}[task] | {"instruction": ""}


@pytest.mark.parametrize("text,message", [
    ("hello", 'ask "Is it DNA\\?", "What is 1 \\+ 1\\?", "What tail'),
    ("Who are you?", "is unlike"),
    ("4", "the numbers 1 to 3"), ("0", "the numbers 1 to 3"), ("?", "is unlike"), ("", "is unlike")])
def test_what_asks_no_question(text, message):
    with pytest.raises(ValueError, match=message):
        find_question(text, QUESTIONS)


def test_what_may_be_several_questions():
    marks = [{"task": f"m{i}", "instruction": f"Is there mark {i} here?", "choices": []} for i in range(3)]
    assert find_question("does it have mark 2", marks)["task"] == "m2"
    with pytest.raises(ValueError, match="or like several: ask \"Is there mark 0 here"):
        find_question("Is there a mark?", marks)
    with pytest.raises(ValueError, match="ask a tuned model"):
        find_question("Is there a mark?", [])


def test_similarity():
    """By hand, for two questions: a word of both weighs log(4/3), of one log(2), of none log(4)."""
    two = [{"task": "a", "instruction": "is cat"}, {"task": "b", "instruction": "is dog"}]
    (near, q), (far, other) = nearest("Is CAT, here?", two)
    both, one, none = math.log(4 / 3), math.log(2), math.log(4)
    size = math.sqrt((both + one + none) * (both + one))
    assert (q["task"], other["task"]) == ("a", "b")
    assert [near, far] == pytest.approx([(both + one) / size, both / size], abs=1e-6)


# what people type, and the task of the model in the box that they mean
TYPED = {"Is this sequence a splice donor?": "splice_reconstructed", "is it a promoter": "prom_300_all",
         "H3K4me3?": "EMP_H3K4me3", "does tf 0 bind": "tf_0", "prom_core_tata:": "prom_core_tata",
         "non tata promoter?": "prom_300_notata", "core promoter?": "prom_core_all",
         "Is there a TATA box in this core promoter": "prom_core_tata", "mouse 4": "mouse_4",
         "does this have h3k9ac": "EMP_H3K9ac", "Does mouse factor 3 bind?": "mouse_3",
         "acceptor or donor": "splice_reconstructed", "human transcription factor 2": "tf_2",
         "what is the weather": None, "hello": None, "Is there H3K27ac here?": None, "is this human?": None,
         "Is it an enhancer?": None, "does CTCF bind here?": None, "Is this a binding site?": None}


@pytest.fixture(scope="module")
def box():
    return sample.load(f"{ROOT}/models/laptop", "cpu")


@pytest.mark.parametrize("text", TYPED)
def test_what_people_type(box, text):
    if "wordings" not in box.questions[0]:
        pytest.skip("a model that knows one wording a task")
    if TYPED[text]:
        assert find_question(text, box.questions)["task"] == TYPED[text]
    else:
        with pytest.raises(ValueError, match="unlike any question"):
            find_question(text, box.questions)


# -- in Python

def test_in_python(box, capsys):
    """The lines of sample.py's docstring, as they stand there"""
    lines = re.search("from sample import load\n(.*?)\n\n", sample.__doc__, re.DOTALL)[1]
    lines = lines.replace("models/laptop", f"{ROOT}/models/laptop").replace("ACGT...", sample.EXAMPLE[1])
    lines = [line.strip() for line in lines.splitlines()]
    names = {"load": sample.load}
    exec(lines[0], names)
    predicted, changes, states, said = (eval(line, names) for line in lines[1:])

    ((label, p, shares, note, kept),) = predicted
    assert shares[label] == p == max(shares.values()) and (note, kept) == ("", 70)
    assert sum(shares.values()) == pytest.approx(1)
    assert changes.shape == (70, 4) and states.shape == (1, box.model.config.n_embd)
    own = [changes[i, "ACGT".index(base)] for i, base in enumerate(sample.EXAMPLE[1])]
    assert not np.any(own) and changes.any(axis=1).mean() > 0.9
    # the chat's words, and the same label
    asked = find_question("Is this a promoter?", box.questions)
    (prediction,) = analyze.predictions(box, asked, [sample.EXAMPLE[1]], "")
    assert prediction.note == "tuned on sequences of 300 bases"
    assert said.startswith(f"asked as {asked['task']}, of 70 bases; {prediction.note}\n"
                           f"{prediction.label}: {prediction.probability:.1%} (right ")


def test_what_python_refuses(box):
    for call, message in [
            (lambda: box.predict("ACGTACGT", "tf_0"), "give a list"),
            (lambda: box.predict(["ACGTACGT", "MKL"], "tf_0"), "sequence 2: 'L' is no nucleotide"),
            (lambda: box.predict(["ACGTACGT"], "tf_9"), "task=tf_9: the model of .* was tuned on EMP_H3, "),
            (lambda: box.predict(["ACGTACGT"]), "was tuned on EMP_H3, "),
            (lambda: box.ask("tf_0"), "this question is about a sequence"),
            (lambda: box.ask("tf_0", "ACGT"), "no answer: no 8 bases in a row")]:
        with pytest.raises(ValueError, match=message):
            call()


def test_the_example_of_the_model_in_the_box(box, capsys):
    """It is a promoter to any good model, which finds CATAAAAG there: all but its C is the
    consensus TATAWAWR of the TATA box (Bucher, 1990)."""
    sample.main([f"--out_dir={ROOT}/models/laptop", "--device=cpu"])
    said = capsys.readouterr().out
    assert said.startswith(" ".join(sample.EXAMPLE) + "\nasked as prom_core_tata, of 70 bases\npromoter: ")
    assert " on held-out rows)\n" in said
    means = analyze.mean_changes(sample.EXAMPLE[1], box.explain(sample.EXAMPLE[1], "prom_core_tata"))
    assert set(np.argsort(means)[:4]) <= set(range(3, 11))


# -- how often answers are right

SCORES = {"tasks": {
    "bases": {"labels": ["no", "yes"], "confusion": [[30, 10], [90, 270]], "accuracy": 0.75, "majority": 0.9, "mcc": 0.3},
    "tail_2": {"labels": ["no", "perhaps", "yes"], "confusion": [[5, 0, 1], [0, 0, 2], [1, 0, 3]],
               "accuracy": 8 / 12, "majority": 0.5, "mcc": 0.4},
    "free": {"labels": [], "confusion": [], "accuracy": None, "majority": 0.1}}}


def test_track_record(toy, tmp_path):
    s = sample.load(tuned(toy, tmp_path, QUESTIONS).partition("=")[2], "cpu")
    assert analyze.track_record(s) == {}        # never scored
    assert "(" not in s.ask("bases", BASES)
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    assert analyze.track_record(s) == {
        "bases": {"mcc": 0.3, "right": "right 75 of 100 times", "no_better": "no better than always saying yes",
                  "labels": {"no": "right 25 of 100 times", "yes": "right 96 of 100 times"}},
        "tail_2": {"mcc": 0.4, "right": "right 8 of 12 times", "no_better": "",
                   "labels": {"no": "right 5 of 6 times", "perhaps": "right 0 of 0 times",
                              "yes": "right 3 of 6 times"}}}
    # the label, its probability and its record agree
    (found,) = s.predict([BASES], "bases")
    right = {"yes": "right 96 of 100", "no": "right 25 of 100"}[found.label]
    assert s.ask("bases", BASES) == (
        f"asked as bases, of 60 bases\n{found.label}: {found.probability:.1%} ({right} times on held-out "
        "rows, no better than always saying yes)")


def test_both_strands_in_an_answer(toy, tmp_path, capsys):
    """Where both have the same answer, it is that of --predict."""
    folder = tuned(toy, tmp_path, [QUESTIONS[0] | {"either_strand": True}, QUESTIONS[1]])
    dna = "GATTACAGATTACACCGT"
    (tmp_path / "x.fa").write_text(f">x\n{dna}\n")
    said = run(capsys, folder, "--task=bases", f"--input={dna}")
    head, row = (line.split("\t") for line in run(
        capsys, folder, "--task=bases", f"--predict={tmp_path}/x.fa").splitlines())
    p = float(row[head.index(row[1])])
    assert p >= 0.5 and said == f"asked as bases, of 18 bases\n{row[1]}: {p:.1%}\n"


def test_a_model_of_one_task_needs_no_task(toy, tmp_path, capsys):
    folder = tuned(toy, tmp_path, QUESTIONS[:1])
    (tmp_path / "x.fa").write_text(f">x\n{BASES}\n")
    assert "asked as bases" in run(capsys, folder, f"--input={BASES}")
    # its own question is asked about the example's sequence
    assert run(capsys, folder).startswith(f"Is it DNA? {sample.EXAMPLE[1]}\nasked as bases, of 70 bases\n")
    assert run(capsys, folder, f"--predict={tmp_path}/x.fa").startswith("name\tlabel\tyes\tno\tnote\n")


def test_protein_is_no_answer_to_a_question_about_dna(toy, tmp_path, capsys):
    folder = tuned(toy, tmp_path, [QUESTIONS[0] | {"is_dna": True}])
    with pytest.raises(ValueError, match="'I' is no nucleotide: is this protein"):
        run(capsys, folder, "--task=bases", "--input=MKTAYIAKQRQISFVKSHFSRQ")


def test_a_bad_output_is_refused_at_once(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "load", None)       # before the model is read
    (tmp_path / "x.fa").write_text(f">a\n{BASES}\n")
    os.symlink(tmp_path / "x.fa", tmp_path / "link.fa")
    for output, message in [(f"{tmp_path}/none/x.tsv", "none/x.tsv: no such folder"),
                            (str(tmp_path), "a folder: name a file in it"),
                            (f"{tmp_path}/x.fa", "x.fa: the output is the input"),
                            (f"{tmp_path}/link.fa", "link.fa: the output is the input"),
                            ("/proc/x.tsv", "cannot be written|no such folder")]:
        for use in (f"--score={tmp_path}/x.fa", f"--compare={tmp_path}/y.fa,{tmp_path}/x.fa"):
            with pytest.raises((ValueError, OSError), match=message):
                sample.main([f"--out_dir={toy}/out", use, f"--output={output}"])
    assert sorted(os.listdir(tmp_path)) == ["link.fa", "x.fa"]


def test_a_file_is_no_input(toy, tmp_path):
    (tmp_path / "genes.fa").write_text(f">a\n{BASES}\n")
    with pytest.raises(ValueError, match="genes.fa: a file\\? Use --predict=.*genes.fa"):
        sample.main([f"--out_dir={toy}/out", "--instruction=Is it?", f"--input={tmp_path}/genes.fa"])


def tuned(toy, folder, questions):
    """A copy of the toy model that says it was tuned on `questions`, and whose greedy answers have
    no end -> its --out_dir"""
    state = torch.load(f"{toy}/out/best.pt", weights_only=True)
    for name in ("transformer.wte.weight", "lm_head.weight"):
        state["model"][name][0] = 0         # <|endoftext|>
    state["questions"] = {q["task"]: {k: v for k, v in q.items() if k != "task"} for q in questions}
    state["prompt"] = instruct.prompt_form()
    torch.save(state, folder / "best.pt")
    shutil.copy(f"{toy}/out/tokenizer.json", folder)
    return f"--out_dir={folder}"


def command(*args, text=None):
    return subprocess.run([sys.executable, f"{ROOT}/sample.py", "--device=cpu", *args], input=text,
                          capture_output=True, text=True)


def run(capsys, *args):
    sample.main([*args, "--device=cpu"])
    return capsys.readouterr().out


# -- one answer

def test_completes(toy, capsys):
    ask = [f"--out_dir={toy}/out", "--prompt=The ", "--num_samples=2"]
    first, second = run(capsys, *ask, "--max_new_tokens=5").split("\n\n")[:2]
    assert first.startswith("The ") and first == second         # greedy
    out = run(capsys, *ask, "--temperature=1")
    first, second = out.split("The ")[1:]
    assert first != second


def test_streams_whole_characters(capsys):
    """A character of three bytes in three tokens is printed once, when it is whole."""
    tok = Tokenizer.train([], 257)
    ids = tok.encode("a€b\u00e9")

    class Model:
        def generate(self, prompt, *args):
            for token in [*ids, tok.eot]:
                yield token
                printed.append(capsys.readouterr().out)

    printed = []
    session = sample.Session(Model(), tok, "", [], 9, None)
    sample.write(session, sample.SampleConfig(), [1])
    assert printed == ["a", "", "", "€", "b", "", "\u00e9", ""]


def test_answers(toy, capsys):
    """An instruction without choices is written to. One with choices has the likeliest."""
    assert run(capsys, f"--out_dir={toy}/out", "--instruction=Speak.", "--max_new_tokens=5").endswith("\n")
    out = run(capsys, f"--out_dir={toy}/out", "--instruction=Speak.", "--choices=yes,no")
    chance = re.fullmatch(r"asked in these words\n(yes|no): ([\d.]+)%\n", out)
    assert float(chance[2]) >= 50


@pytest.mark.parametrize("given,kept", [
    ("acgttgcaac" * 6, BASES), (" 1 ACGUUGCAAC\n 11 " + BASES[10:], BASES),
    ("Magna Carta", "Magna Carta"), ("see acgttgcaac", "see acgttgcaac")])
def test_dna_is_cleaned_and_prose_is_not(toy, capsys, monkeypatch, given, kept):
    asked = []
    monkeypatch.setattr(sample, "write_answer", lambda s, cfg, *parts: asked.append(parts))
    run(capsys, f"--out_dir={toy}/out", "--instruction=Speak.", f"--input={given}")
    assert asked == [("Speak.", kept)]
    # a question of one's own may be about either
    said = run(capsys, f"--out_dir={toy}/out", "--instruction=Speak.", f"--input={given}", "--choices=yes,no")
    assert said.startswith("asked in these words" + (", of 60 bases\n" if kept == BASES else "\n"))


def test_long_inputs_are_cut_at_their_end(toy, capsys):
    out_dir = f"--out_dir={toy}/out"
    ask = [out_dir, "--instruction=Speak.", "--choices=yes,no"]
    out = run(capsys, *ask, "--input=" + "RACGTTGCAAC" * 200)
    kept = re.match("asked in these words, of 2,200 bases; 200 of 2,200 letters are ambiguous; "
                    "only the first ([0-9]+) of 2,200 letters were read\n", out)
    kept = int(kept[1])
    # all that fits, and the answer does not depend on what does not
    tok = Tokenizer.load(f"{toy}/out/tokenizer.json")
    max_len = sample.max_prompt_len(tok, ["yes", "no"], 256)
    prompt = alpaca_prompt("Speak.", ("RACGTTGCAAC" * 200)[:kept])
    assert abs(len(tok.encode(prompt)) - max_len) <= 3
    changed = run(capsys, *ask, "--input=" + ("RACGTTGCAAC" * 200)[:kept + 20] + "G" * 900)
    assert changed.splitlines()[1] == out.splitlines()[1]
    assert run(capsys, *ask[:2], "--input=" + "a word " * 400, "--max_new_tokens=1").startswith("read ")
    with pytest.raises(ValueError, match="the instruction does not fit into 2[0-9]+ tokens"):
        run(capsys, out_dir, "--instruction=" + "Speak. " * 400, "--input=ACGTACGT")
    with pytest.raises(ValueError, match="tokens long, of block_size=256: shorten it"):
        run(capsys, out_dir, "--instruction=Speak.", "--choices=" + "long " * 400)


def test_whose_words_are_asked(toy, tmp_path, capsys):
    """A question of the tuning in its nearest wording; one's own, with choices or unlike all, as it is."""
    out_dir = tuned(toy, tmp_path, QUESTIONS)
    ask = [out_dir, f"--input={BASES}", "--max_new_tokens=3", "--device=cpu"]
    for args, said, warned in [
            (["--instruction=is this dna"], "asked as bases, of 60 bases\n", ""),
            (["--instruction=Is it DNA?", "--choices=aye,no"], "asked in these words, of 60 bases\n",
             sample.GUESS + "\n"),
            (["--instruction=Speak."], "read 60 of 60 letters\n", sample.GUESS + "\n"),
            (["--task=bases"], "asked as bases, of 60 bases\n", "")]:
        sample.main([*ask, *args])
        out, err = capsys.readouterr()
        assert out.startswith(said) and err == warned
    (tmp_path / "x.fa").write_text(f">x\n{BASES}\n")
    sample.main([out_dir, "--instruction=is this dna", f"--predict={tmp_path}/x.fa"])
    assert capsys.readouterr().err == "asked as bases\n"


# -- chat

@pytest.fixture(scope="module")
def chat_model(toy, tmp_path_factory):
    return tuned(toy, tmp_path_factory.mktemp("tuned"), QUESTIONS)


@pytest.mark.parametrize("typed,said", [
    (f"2\n{BASES}", ["asked as tail_2, of 60 bases"]),                   # a question by its number
    (f"2\n\n\n{BASES}", ["asked as tail_2: of which sequence?", "asked as tail_2, of 60 bases"]),
    (f"tail_2: {BASES}", ["asked as tail_2, of 60 bases"]),
    (f"2 {BASES}", ["asked as tail_2, of 60 bases"]),
    (f"{BASES}\n2", ["what do you want to know", "asked as tail_2, of 60 bases"]),
    (f"is this dna\n{BASES[:30]}\n{BASES[30:]}", ["asked as bases, of 60 bases"]),
    (f"2\n>a header\n{BASES}RNN\n", ["asked as tail_2, of 63 bases; 3 of 63 letters are ambiguous"]),
    # the last question stays, and the last sequence
    (f"2\n{BASES}\n\n{BASES[:9]}\n1\nwhy?", ["asked as tail_2, of 60 bases", "asked as tail_2, of 9 bases",
                                         "asked as bases, of 9 bases", "sequence: ", "Replacing the base"]),
    (f"1\n{BASES * 99}", [r"asked as bases, of 5,940 bases; only the first \d+ of 5,940 letters were read"]),
    (f"{BASES}\nsums\nbases", ["what do you want", "asked as sums$", "asked as bases, of 60 bases"]),
    ("HELP\nlist\nhello\nwhy\nquit\n1", ["Ask a question in words", "yes, no:", "yes, no, perhaps:",
                                       "two, three:", "'hello' is unlike any question", "why: first ask"]),
    (f"ACGT-ACGTACGT\n2 MKLVAWMKTAYIAK\n9\n{'word ' * 900}\n2\n{BASES}", [
        "the sequence: '-'", "the sequence: 'L' is no nucleotide", "questions have the numbers 1 to 3",
        "'word word", "asked as tail_2, of 60 bases"]),
    # too few bases to answer, or to explain
    (f"2 {BASES}\nIs it DNA? ACGTA\n\nNNNNNNNNNNNN\nwhy\n2: ACGTRYACGTACGTAC-GT\ntail2", [
        "asked as tail_2, of 60 bases", "no answer: no 8 bases in a row", "no answer: no 8 bases in a row",
        "no answer: no 8 bases in a row", "the sequence: '-' is no nucleotide",
        "'tail2' is unlike any question of this model, or like several: did you mean tail_2\\?"]),
])
def test_chat(chat_model, capsys, monkeypatch, typed, said):
    lines = iter(typed.splitlines())

    def type_line(prompt):
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", type_line)
    sample.main([chat_model, "--chat", "--device=cpu"])
    out, err = capsys.readouterr()
    begun = [line for line in out.splitlines() if re.match("|".join(said), line)]
    assert len(begun) == len(said) and all(map(re.match, said, begun)) and err == ""
    assert len(re.findall(r"^(yes|no|perhaps|two|three): [\d.]+%$", out, re.MULTILINE)) == \
        len(re.findall("^asked as [^:]*$", out, re.MULTILINE))


def test_the_list_says_what_is_guessed(toy, tmp_path, capsys):
    s = sample.load(tuned(toy, tmp_path, QUESTIONS).partition("=")[2], "cpu")
    (tmp_path / "scores.json").write_text(json.dumps(SCORES))
    sample.list_questions(s)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "bases" in line or "tail" in line or "sums" in line] == [
        ["1", "bases", "Is", "it", "DNA?", *"no better than always saying yes".split()],
        ["2", "tail_2", *QUESTIONS[1]["instruction"].split(), *"right 8 of 12 times".split()],
        ["3", "sums", *"What is 1 + 1?".split()]]


def test_a_model_without_questions_writes(toy, capsys, monkeypatch):
    monkeypatch.setattr("sample.read_messages", lambda: [["Speak."], ["quit"], ["Speak."]])
    out = run(capsys, f"--out_dir={toy}/out", "--chat", "--max_new_tokens=2")
    assert "tuned on 0 questions" in out and "asked" not in out


def test_chat_in_a_pipe(chat_model):
    done = command(chat_model, "--chat", text=f"2\n{BASES}\nnothing like it\n1")
    assert done.returncode == 0 and done.stderr == ""
    for text in ("asked as tail_2", "unlike any", "asked as bases"):
        assert done.stdout.count(text) == 1


class Terminal:
    """sample.py in a terminal of its own, as a person has it."""

    def __init__(self, *args):
        self.fd, other_end = pty.openpty()
        self.unread = ""
        self.child = subprocess.Popen(
            [sys.executable, f"{ROOT}/sample.py", "--device=cpu", *args], stdin=other_end,
            stdout=other_end, stderr=other_end, start_new_session=True,
            env=os.environ | {"TERM": "xterm", "OMP_NUM_THREADS": "1", "INPUTRC": os.devnull},
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(other_end)

    def type(self, text):
        time.sleep(0.5)         # a signal just after the prompt would wait for a key
        for start in range(0, len(text), 1000):
            os.write(self.fd, text[start:start + 1000].encode())

    def read_until(self, text):
        """-> what is shown, up to and with `text`"""
        while text not in self.unread:
            assert select.select([self.fd], [], [], 60)[0], self.unread
            self.unread += os.read(self.fd, 9999).decode(errors="replace")
        before, _, self.unread = self.unread.partition(text)
        assert "Traceback" not in before
        return before + text


@pytest.mark.skipif(not os.environ.get("TERMINAL"),
                    reason="TERMINAL=1: readline may miss a key on a busy machine")
@pytest.mark.parametrize("end", ["\x03", "\x04"])
def test_chat_in_a_terminal(chat_model, end):
    """An answer after each Enter, a paste longer than a terminal's line, and Ctrl-C."""
    pytest.importorskip("readline")
    terminal = Terminal(chat_model, "--chat")
    terminal.read_until("> ")
    terminal.type(f"2 {BASES}\n")                  # one line is a message
    terminal.read_until("asked as tail_2, of 60 bases\r\n")
    terminal.read_until("> ")
    terminal.type(f"1\n{BASES[:30]}\n{BASES[30:]}\n")      # as is a paste of several
    terminal.read_until("asked as bases, of 60 bases\r\n")
    terminal.read_until("> ")
    terminal.type(f"2\n{BASES * 200}\n")           # 12,000 bases in a line, in the same paste
    terminal.read_until("of 12,000 bases; only the first ")
    terminal.read_until("> ")
    terminal.type("why\n")
    time.sleep(1)
    terminal.type("\x03")                          # stops an answer
    terminal.read_until("> ")
    terminal.type(end)
    assert terminal.child.wait(60) == 0


# -- what is refused

def test_one_clear_line(toy, chat_model, tmp_path):
    out_dir = f"--out_dir={toy}/out"
    for args, message in [
            ([f"--out_dir={tmp_path}/none"], "none/best.pt: no such checkpoint"),
            ([out_dir, "--score=x.fa", "--chat"], "--chat and --score: give one of them"),
            ([chat_model, "--task=tial", f"--input={BASES}"], "was tuned on bases, tail_2, sums"),
            ([out_dir, "--task=tail_2", f"--input={BASES}"], "was tuned on no tasks"),
            ([out_dir, "--temprature=1"], "did you mean temperature?"),
            ([out_dir, "--input=ACGT"], "--input needs an --instruction"),
            ([chat_model, "--task=bases", "--choices=a,b"], "--task has an instruction and choices"),
            ([out_dir, "--instruction=Speak.", "--input=ACGT--ACGT"], "remove the gaps"),
            ([chat_model, "--instruction=Is it DNA?"], "this question is about a sequence")]:
        done = command(*args)
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
        assert message in done.stderr


def test_a_tokenizer_from_elsewhere_is_refused(toy, tmp_path):
    os.symlink(f"{toy}/out/best.pt", tmp_path / "best.pt")
    Tokenizer.train(["another corpus"], 260).save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="tokenizer.json: not the tokenizer"):
        sample.main([f"--out_dir={tmp_path}", "--prompt=x"])
