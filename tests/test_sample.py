"""Asking a model."""
import fcntl
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import termios
import time

import pytest
import torch

import instruct
import sample
from bpe import Tokenizer
from dna.tasks import fold
from sample import find_question, make_question, parse_message

ROOT = os.path.dirname(os.path.abspath(sample.__file__))
BASES = "ACGTTGCAAC" * 6
QUESTIONS = [
    {"task": "bases", "instruction": "Is it DNA?", "choices": ["yes", "no"], "is_dna": True},
    {"task": "tail", "instruction": "One of: yes, no, perhaps.",
     "choices": ["yes", "no", "perhaps"], "is_dna": True},
    {"task": "sums", "instruction": "What is 1 + 1?", "choices": ["two", "three"]},
]


@pytest.mark.parametrize("text,expected", [
    ("Is this a promoter?\nACGTACGTAC\nGGTT", ("Is this a promoter?", "ACGTACGTACGGTT")),
    ("Is this one?\n>chr1 a header\nacgtacgtac\n  ggnn\n", ("Is this one?", "ACGTACGTACGGNN")),
    ("Is this one?\n\nACGTACGTACGTACGR\n", ("Is this one?", "ACGTACGTACGTACGR")),
    ("What is\na gene?", ("What is a gene?", "")),
    ("ACGTACGT", ("", "ACGTACGT")),
    ("Is acgtacgtacgtaa a promoter?", ("Is a promoter?", "ACGTACGTACGTAA")),
    ("Say it.\n   1 acgtacgtac gtacgtacgt\n  21 ggggg\n",
     ("Say it.", "ACGTACGTACGTACGTACGTGGGGG")),
    ("Say it.\r\nACGUACGU\r\n", ("Say it.", "ACGTACGT")),
    ("The cat\nMKLVAW", ("The cat MKLVAW", "")),
    ("2\nacgtac", ("One of: yes, no, perhaps.", "ACGTAC")),
    ("2. ACGTACGT\nRYN", ("One of: yes, no, perhaps.", "ACGTACGTRYN")),
    ("2\n>name\n        1 acgtacgtac gtacgtacgt\n       21 ac\n",
     ("One of: yes, no, perhaps.", "ACGTACGTACGTACGTACGTAC")),
    ("2 genes are here", ("2 genes are here", "")),
    (">only a header", ("", "")),
    ("", ("", "")),
])
def test_parse_message(text, expected):
    assert parse_message(text, QUESTIONS) == expected


@pytest.mark.parametrize("text,message", [
    ("2\nMKLVAW", "is no nucleotide"),
    ("Say it.\nACGTAC--GTACGTAC", "remove the gaps"),
    ("4\nACGTACGT", "questions have the numbers 1 to 3"),
    ("0", "questions have the numbers 1 to 3"),
    (">a\nACGTACGT\n>b\nACGTACGT", "one sequence at a time"),
    ("2 MKLVAWMKTAYIAK", "is no nucleotide"),
    ("tail MKLVAWMKTAYIAK", "is no nucleotide"),
])
def test_what_is_not_one_sequence_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_message(text, QUESTIONS)


def test_find_question():
    assert find_question("Is it DNA?", QUESTIONS) is QUESTIONS[0]       # the same words
    assert find_question("Is this a gene? yes or no", QUESTIONS) is QUESTIONS[0]
    assert find_question("yes, no or perhaps", QUESTIONS) is QUESTIONS[1]    # the most choices
    assert find_question("Have you eyes? Do you know?", QUESTIONS) is None   # whole words only
    assert find_question("Is it?", QUESTIONS) is find_question("yes, no", []) is None
    marks = [{"instruction": "?", "choices": ["Mark", "No Mark"]}]
    assert find_question("Is it No Mark?", marks) is None       # which does not name "Mark"
    assert find_question("Mark or No Mark?", marks) is marks[0]


def test_a_question_is_known_by_all_its_wordings():
    """A task is asked in any of the wordings that it was tuned on, also those that name no choice."""
    known = [QUESTIONS[0], QUESTIONS[1] | {"wordings": ["Which tail?", "The tail, please."]}]
    assert find_question("The tail, please.", known) is known[1]
    assert find_question("The tail", known) is None
    assert make_question("Which tail?", (), known)["choices"] == ["yes", "no", "perhaps"]


def test_make_question():
    """With the properties of the question that it asks, and its choices unless others are given"""
    question = make_question("Is it DNA? yes or no", (), QUESTIONS)
    assert question == QUESTIONS[0] | {"instruction": "Is it DNA? yes or no"}
    assert make_question("Is it DNA?", ("aye", "no"), QUESTIONS) == QUESTIONS[0] | {"choices": ["aye", "no"]}
    assert make_question("Speak.", (), QUESTIONS) == {"instruction": "Speak.", "choices": []}


def test_a_tasks_name_asks_its_question():
    assert parse_message("bases ACGTACGT\n", QUESTIONS) == ("Is it DNA?", "ACGTACGT")
    assert parse_message("tail\nACGT", QUESTIONS) == ("One of: yes, no, perhaps.", "ACGT")
    assert parse_message("1 ACGT", QUESTIONS) == ("Is it DNA?", "ACGT")


def test_both_strands_in_an_answer(toy, tmp_path, capsys):
    """Where both have the same answer, its probabilities are those of --predict."""
    folder = tuned(toy, tmp_path, [QUESTIONS[0] | {"either_strand": True}])
    dna = "GATTACAGATTACACCGT"
    (tmp_path / "x.fa").write_text(f">x\n{dna}\n")
    said = run(capsys, folder, "--task=bases", f"--input={dna}", "--choices=yes,no",
               "--max_new_tokens=3")
    head, row = (line.split("\t") for line in run(
        capsys, folder, "--task=bases", f"--predict={tmp_path}/x.fa").splitlines())
    for choice, p in zip(head[2:-1], row[2:]):
        assert f"{choice}: {float(p):.1%}" in said.splitlines()[-1]
    assert said.splitlines()[-1].startswith("(both strands: ")


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
    session = sample.Session(Model(), tok, sample.SampleConfig(), [], 9, None, None)
    assert sample.write(session, [1]) == "a€b\u00e9"
    assert printed == ["a", "", "", "€", "b", "", "\u00e9", ""]


def test_answers(toy, capsys):
    out = run(capsys, f"--out_dir={toy}/out", "--instruction=Speak.", "--max_new_tokens=5")
    assert out.startswith("### Instruction:\nSpeak.\n\n### Response:\n")
    out = run(capsys, f"--out_dir={toy}/out", "--instruction=Speak.", "--choices=yes,no",
              "--max_new_tokens=5")
    chances = re.search(r"\n\((yes|no): ([\d.]+)%, (yes|no): ([\d.]+)%\)\n$", out)
    assert {chances[1], chances[3]} == {"yes", "no"} and float(chances[2]) >= float(chances[4])
    assert float(chances[2]) + float(chances[4]) == pytest.approx(100, abs=0.11)


@pytest.mark.parametrize("given,kept", [
    ("acgttgcaac" * 6, BASES), (" 1 ACGUUGCAAC\n 11 " + BASES[10:], BASES),
    ("Magna Carta", "Magna Carta"), ("see acgttgcaac", "see acgttgcaac")])
def test_dna_is_cleaned_and_prose_is_not(toy, capsys, given, kept):
    out = run(capsys, f"--out_dir={toy}/out", "--instruction=Speak.", f"--input={given}",
              "--max_new_tokens=1")
    read = "60 bases" if kept == BASES else f"{len(kept)} of {len(kept)} characters"
    assert out.startswith(f"read {read}\n### Instruction:\nSpeak.\n\n"
                          f"### Input:\n{fold(kept)}\n\n### Response:\n")


def test_long_inputs_are_cut_at_their_end(toy, capsys):
    out_dir = f"--out_dir={toy}/out"
    out = run(capsys, out_dir, "--instruction=Speak.", "--input=" + "RACGTTGCAAC" * 200,
              "--choices=yes,no", "--max_new_tokens=3")
    kept = re.match("read 2,200 bases; 200 of 2,200 letters are ambiguous; "
                    "only the first ([0-9]+) of 2,200 letters were read\n", out)
    kept = int(kept[1])
    # all that fits, and the answer does not depend on what does not
    tok = Tokenizer.load(f"{toy}/out/tokenizer.json")
    max_len = sample.max_prompt_len(tok, ["yes", "no"], 256)
    prompt = sample.alpaca_prompt("Speak.", ("RACGTTGCAAC" * 200)[:kept])
    assert abs(len(tok.encode(prompt)) - max_len) <= 3
    changed = run(capsys, out_dir, "--instruction=Speak.", "--choices=yes,no", "--max_new_tokens=3",
                  "--input=" + ("RACGTTGCAAC" * 200)[:kept + 20] + "G" * 900)
    assert changed.split("### Response:")[1] == out.split("### Response:")[1]
    with pytest.raises(ValueError, match="the instruction does not fit into 2[0-9]+ tokens"):
        run(capsys, out_dir, "--instruction=" + "Speak. " * 400, "--input=ACGTACGT")
    with pytest.raises(ValueError, match="tokens long, of block_size=256: shorten it"):
        run(capsys, out_dir, "--instruction=Speak.", "--choices=" + "long " * 400)


def test_probabilities_are_of_the_answers_own_labels(toy, tmp_path, capsys):
    """What the model answers to this prompt is made one of the choices, so that they are shown."""
    ask = ["--instruction=Which?", f"--input={BASES}", "--max_new_tokens=3"]
    out = run(capsys, f"--out_dir={toy}/out", *ask)
    response = out.split("### Response:\n")[1].removesuffix("\n")
    question = {"task": "which", "instruction": "Which?", "choices": [response, "no"]}
    out = run(capsys, tuned(toy, tmp_path, [*QUESTIONS, question]), *ask)
    assert out.count("%") == 2
    chances = out.split(f"### Response:\n{response}\n")[1]
    assert f"{response}: " in chances and "no: " in chances and "yes: " not in chances
    # an answer that is none of the choices has no probabilities
    out = run(capsys, tuned(toy, tmp_path, [question | {"choices": ["aye", "no"]}]), *ask)
    assert out.endswith(f"### Response:\n{response}\n")
    # nor has a question that the model was not tuned on, unless they are asked for
    out_dir = tuned(toy, tmp_path, QUESTIONS)
    sample.main([out_dir, *ask, "--device=cpu"])
    out, err = capsys.readouterr()
    assert err == f"{sample.GUESS}\n" and out.endswith(f"### Response:\n{response}\n")
    assert "%, " in run(capsys, out_dir, *ask, "--choices=aye,no")


# -- chat

@pytest.fixture(scope="module")
def chat_model(toy, tmp_path_factory):
    return tuned(toy, tmp_path_factory.mktemp("tuned"), QUESTIONS)


@pytest.mark.parametrize("typed,reads,guesses", [
    (f"2\n{BASES}\n\n", ["60 bases"], 0),                           # a question by its number
    (f"2\n\n\n{BASES}\n\n", ["60 bases"], 0),                   # blank lines before the sequence
    (f"2 {BASES}\n\n", ["60 bases"], 0),
    (f"Is it DNA?\n\n{BASES[:30]}\n{BASES[30:]}\n", ["60 bases"], 0),   # ended by Ctrl-D
    (f"2\n>a header\n{BASES}RNN\n\n", ["63 bases; 3 of 63 letters are ambiguous"], 0),
    (f"2\n{BASES}\n\n1\n{BASES[:9]}\n\n", ["60 bases", "9 bases"], 0),
    (f"2\n{BASES * 99}\n\n", [r"5,940 bases; only the first \d+ of 5,940 letters were read"], 0),
    ("What is 1 + 1?\n\n", [], 0),                                  # a question without a sequence
    ("hello\n\n", [], 1),
    (f"What is this?\n{BASES}\n\n", ["60 bases"], 1),
])
def test_chat(toy, chat_model, capsys, monkeypatch, typed, reads, guesses):
    lines = iter(typed.splitlines())

    def type_line(prompt):
        for line in lines:
            return line
        raise EOFError

    monkeypatch.setattr("builtins.input", type_line)
    sample.main([chat_model, "--chat", "--max_new_tokens=2", "--device=cpu"])
    out, err = capsys.readouterr()
    assert "   2  tail: yes, no, perhaps\n" in out
    found = re.findall("^read (.*)$", out, re.MULTILINE)
    assert len(found) == len(reads) and all(map(re.fullmatch, reads, found))
    assert err.count(sample.GUESS) == guesses and "%" not in out


def test_chat_says_what_is_wrong_and_goes_on(chat_model):
    done = command(chat_model, "--chat", "--max_new_tokens=2", text=(
        f"2\nMKLVAW\n\n{BASES}\n\n9\n\n" + "word " * 900 + f"\n\n2\n{BASES}\n\n2\n\n"))
    assert done.returncode == 0 and done.stderr == f"{sample.GUESS}\n"      # of the words
    for line in ("is no nucleotide", "begin with the question", "the numbers 1 to 3",
                 "the instruction does not fit into", "read 60 bases", "give one as the input"):
        assert done.stdout.count(line) == 1, line



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
    """With a paste longer than a terminal's line, and Ctrl-C in each place where it may come."""
    pytest.importorskip("readline")
    terminal = Terminal(chat_model, "--chat", "--max_new_tokens=100000")
    terminal.read_until("> ")
    terminal.type("half a message\n")
    terminal.read_until("  ")
    terminal.type("\x03")
    terminal.read_until("> ")
    terminal.type(f"2\n{BASES * 200}\n\n")         # 12,000 bases in a line, in the same paste
    terminal.read_until("read 12,000 bases; only the first ")
    terminal.read_until("\n")
    terminal.type("\x03")                          # stops the answer, which has no end
    terminal.read_until("> ")
    terminal.type(end)
    assert terminal.child.wait(60) == 0


# -- what is refused

def test_one_clear_line(toy, chat_model, tmp_path):
    out_dir = f"--out_dir={toy}/out"
    for args, message in [
            ([f"--out_dir={tmp_path}/none"], "none/best.pt: no such checkpoint"),
            ([out_dir, "--score=x.fa", "--chat"], "--chat and --score: give one of them"),
            ([chat_model, "--task=tial", f"--input={BASES}"], "was tuned on bases, tail, sums"),
            ([out_dir, "--task=tail", f"--input={BASES}"], "was tuned on no tasks"),
            ([out_dir, "--temprature=1"], "did you mean temperature?"),
            ([out_dir, "--input=ACGT"], "--input needs an --instruction"),
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
