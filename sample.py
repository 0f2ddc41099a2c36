"""
Ask a model: answer, chat, complete a text; label, explain, compare, score, embed sequences.

    python sample.py                                      # the toy model answers an instruction
    python sample.py --chat
    python sample.py --instruction="..." --input=ACGT... --choices=yes,no
    python sample.py --prompt="The cell is" --temperature=0.8 --out_dir=out/toy
    python sample.py --predict=genes.csv --task=promoter --output=labels.tsv
    python sample.py --explain=ACGT... --task=promoter --output=why.tsv
    python sample.py --compare=ref.fa,alt.fa --out_dir=out/toy      # --score=x.fa, --embed=x.fa

It needs nothing but a folder that train.py or instruct.py has written. A file is FASTA or a table
with a column `sequence`, packed (gzip, xz) or not; - is standard input. A sequence too long for a
prompt is cut at its end, and that is said. Where both strands have the same answer, probabilities
of a file's sequences are the mean of both.
"""
import atexit
import codecs
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

import config
from bpe import Tokenizer
from config import require
from config.machine import Machine, fast_dtype, find_device
from dna.read import clean_dna, clean_input
from dna.tasks import alpaca_prompt
from instruct import max_prompt_len
from model import GPT
from tools import analyze
from tools.analyze import (GUESS, Question, encode_inputs, find_question,
                           log_probabilities, make_question, what_was_read)
from train import load_model

# The default example: a promoter of the toy world, of a gene held out of all training.
EXAMPLE = ("Determine promoter detection of following dna sequence, "
           "The result will be one of the following: Non-promoter, promoter.",
           "GGGGCGGGGCCGTCTTTTCCTCTATCAGATCCACTTTTCAGTAGATTTGGGGCGGGGCAA"
           "GAAGCTTGGTTTGGACGCCCTATAAAAGGAAATCTCATGACTCAGCATCTAATTCATGGT")


@dataclass
class SampleConfig:
    # The model
    out_dir: str = "out/toy-instruct"   # its folder
    device: str = "auto"            # auto, cpu, cuda, mps
    # The question
    instruction: str = ""           # what to do
    task: str = ""                  # in its place: a task that the model was tuned on, by its name
    input: str = ""                 # of the instruction, a DNA sequence or text
    choices: tuple = ()             # the possible answers, if not those of the task
    # In place of one answer, one of these
    chat: bool = False              # read questions from the terminal
    prompt: str = ""                # text to complete, as it is
    predict: str = ""               # file: a label for each sequence, and the labels' probabilities
    explain: str = ""               # file or sequence: the bases that the label depends on
    compare: tuple = ()             # file of pairs, or two files: reference and alternative alleles
    score: str = ""                 # file: bits and bits per base of each sequence
    embed: str = ""                 # file: mean of the final hidden states, to --output=NAME.npy
    output: str = ""                # file for the result; .gz is packed
    # How to write
    num_samples: int = 1            # completions of the prompt, or answers
    max_new_tokens: int = 128       # longest answer
    temperature: float = 0.0        # 0: greedy decoding; 1: draw from the model's distribution
    top_k: int = 50                 # draw among the k most likely tokens; 0: among all
    seed: int = 1337                # of the draws


# Functions of analyze.py, of (model, tok, file, question, output); the last two ask no question.
FILE_USES = "predict", "explain", "compare", "score", "embed"


class Session(NamedTuple):
    model: GPT
    tok: Tokenizer
    cfg: SampleConfig
    questions: list                 # that the model was tuned on, as instruct.py stores them
    max_len: int                    # the most tokens that a prompt may have, as in tuning
    is_tuned: bool                  # to answer
    generator: torch.Generator
    machine: Machine


# ----------------------------------------------------------------------------------------------
# Answers

def lacks_input(question, input):
    """Whether a question about a sequence is asked without one"""
    return question is not None and question.get("has_input", True) and not input


def write(s, ids):
    """Print what the model writes after `ids`, while it writes -> the text"""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")      # tokens split characters
    text = ""
    with s.machine.autocast():
        for token in s.model.generate(ids, s.cfg.max_new_tokens, s.cfg.temperature,
                                      s.cfg.top_k or None, s.tok.eot, s.generator):
            if token != s.tok.eot:
                new = decoder.decode(s.tok.decode_bytes([token]))
                print(new, end="", flush=True)
                text += new
    print()
    return text


def probabilities(model, tok, question, input):
    """-> "(promoter: 98.2%, Non-promoter: 1.8%)", as shares of the choices' total likelihood; the
    mean of both strands where both have the same answer, as --predict has it"""
    p = log_probabilities(model, tok, question, [input], "")[0].exp().tolist()
    ranked = sorted(zip(p, question.choices), reverse=True)
    both = "both strands: " if question.either_strand else ""
    return f"({both}" + ", ".join(f"{choice}: {x:.1%}" for x, choice in ranked) + ")"


def answer(s, instruction, input, show_prompt=False):
    """Print the answer to an instruction, and the probabilities of cfg.choices, or else of its
    question's, if the answer is one of them."""
    question = find_question(instruction, s.questions)
    require(not lacks_input(question, input),
            "this question is about a sequence: give one as the input")
    if question and question.get("is_dna"):
        input = clean_dna(input, "the input")
    (ids,), _ = encode_inputs(s.tok, instruction, [input], s.max_len)

    # what to know before reading the answer
    if input:
        print(what_was_read(s.tok, instruction, input, s.max_len))
    if s.questions and not question:
        print(GUESS)
    if show_prompt:
        print("###" + alpaca_prompt(instruction, input).partition("###")[2], end="")

    # the answer
    choices = s.cfg.choices or (question["choices"] if question else ())
    either_strand = question is not None and question.get("either_strand", False)
    asked = Question(instruction, tuple(choices), s.max_len, either_strand)
    for _ in range(s.cfg.num_samples):
        response = write(s, ids.tolist())
        if s.cfg.choices or response in choices:
            print(probabilities(s.model, s.tok, asked, input))


# ----------------------------------------------------------------------------------------------
# Chat

DNA_RUN = re.compile(r"\b[ACGTUN]{12,}\b", re.IGNORECASE)     # no English word has so many
LAST_LINE = re.compile(r"[\d\sACGTUN]+", re.IGNORECASE)       # of a sequence, too short for is_dna


def is_dna(line):
    return clean_input(line.lower(), "the sequence").isupper()      # words stay in lower case


def parse_message(text, questions):
    """What somebody typed or pasted -> (instruction, DNA), either of which may be empty

    FASTA headers are skipped. A question's number or its task's name asks it, and all else is its
    sequence. Otherwise DNA is told from words line by line.
    """
    # a prompt as sample.py prints it
    if "### Instruction:" in text:
        text = text.split("### Instruction:")[1].split("### Response:")[0]
        text = text.replace("### Input:", "")
    lines = [line for line in text.splitlines() if line.strip()]
    if sum(line.startswith(">") for line in lines) > 1:
        raise ValueError("several FASTA records: give one sequence at a time")
    lines = [line for line in lines if not line.startswith(">")]

    # a task's name is as good as its number
    numbers = {q["task"]: str(n) for n, q in enumerate(questions, start=1)}
    if lines and lines[0].split()[0] in numbers:
        name, *rest = lines[0].split(maxsplit=1)
        lines[0] = " ".join([numbers[name], *rest])

    # a number, and its sequence (or what is meant as one: capitals) on the same line or below
    number = re.match(r"(\d+)[.:)]?(?!\S)", lines[0]) if lines and questions else None
    rest = lines[0][number.end():] if number else ""
    if number and (not rest.strip() or is_dna(rest) or re.fullmatch("[A-Z ]+", rest)):
        if not 1 <= int(number[1]) <= len(questions):
            raise ValueError(f"questions have the numbers 1 to {len(questions)}")
        instruction = questions[int(number[1]) - 1]["instruction"]
        return instruction, clean_dna("\n".join([rest, *lines[1:]]), "the sequence")

    # words and DNA
    words, dna = [], []
    for line in lines:
        if is_dna(line) or dna and LAST_LINE.fullmatch(line):
            dna.append(line)
        else:
            dna += DNA_RUN.findall(line)
            words += DNA_RUN.sub("", line).split()
    return " ".join(words), clean_dna("\n".join(dna), "the sequence")


def read_message(questions):
    """Read lines until they are a whole message -> (instruction, DNA). A blank line ends it, but
    not between a question and its sequence, nor in a pasted prompt. EOFError where there is
    nothing to read."""
    text, prompt = "", "> "
    while True:
        # a line, or a whole paste
        try:
            line = input(prompt)
        except EOFError:
            if not text:
                raise
            return parse_message(text, questions)
        except KeyboardInterrupt:
            if not text:
                raise
            print("\n")
            text, prompt = "", "> "
            continue

        # does it end the message?
        if line.strip():
            text, prompt = f"{text}{line}\n", "  "
        elif text and ("### Instruction:" not in text or "### Response:" in text):
            instruction, dna = parse_message(text, questions)
            if not lacks_input(find_question(instruction, questions), dna):
                return instruction, dna
            prompt = "  its sequence: "


def keep_whole_pastes():
    """Switch on readline: line editing, and a history of the session. Between prompts it leaves the
    terminal in its canonical mode, which drops what exceeds 4,095 characters of a line: bases of a
    sequence that is pasted together with its question. Out of that mode nothing is dropped."""
    with suppress(ImportError):     # not on Windows
        import readline  # noqa: F401
        import termios
        if sys.stdin.isatty() and sys.stdout.isatty():
            before, mode = termios.tcgetattr(sys.stdin), termios.tcgetattr(sys.stdin)
            mode[3] &= ~termios.ICANON
            atexit.register(termios.tcsetattr, sys.stdin, termios.TCSADRAIN, before)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, mode)


def chat(s):
    """Answer one message after the other; nothing is remembered from one to the next."""
    keep_whole_pastes()

    # what can be asked, and how
    for number, q in enumerate(s.questions, start=1):
        print(f"{number:4}  {q['task']}: {', '.join(q['choices'])}")
    if not s.questions:
        print("This model was not tuned on questions with choices.")
    print("Type a question's number, or an instruction, and below it a DNA sequence. An empty "
          "line\nends a message; Ctrl-C drops it, or stops an answer; Ctrl-D ends the chat.\n")

    # a second Ctrl-C in a row at the prompt ends the chat
    stopping = False
    while True:
        instruction = None
        try:
            instruction, dna = read_message(s.questions)
            stopping = False
            require(instruction, "a sequence without a question: begin with the question")
            answer(s, instruction, dna)
        except ValueError as e:
            print(e)
        except EOFError:
            return print()
        except KeyboardInterrupt:
            if stopping:
                return print()
            stopping = instruction is None
            print("\nCtrl-C again or Ctrl-D ends the chat" if stopping else "")
        print()


# ----------------------------------------------------------------------------------------------

def load(cfg):
    """-> the Session with the model of cfg.out_dir"""
    device = find_device(cfg.device)
    model, tok, state = load_model(cfg.out_dir, device)
    questions = [{"task": task} | q for task, q in state.get("questions", {}).items()]

    # the instruction of a task; room for the longest choice of all questions, as in tuning
    known = {q["task"]: q["instruction"] for q in questions}
    require(cfg.task in ["", *known], f"task={cfg.task}: the model of {cfg.out_dir} was tuned on "
            f"{', '.join(known) or 'no tasks'}")
    cfg = replace(cfg, instruction=cfg.instruction or known.get(cfg.task, ""))
    choices = cfg.choices or [c for q in questions for c in q["choices"]]
    max_len = max_prompt_len(tok, choices, model.config.block_size)
    generator = torch.Generator(device).manual_seed(cfg.seed)
    # writing is limited by memory traffic, which bfloat16 halves on a GPU; a CPU would gain nothing
    dtype = fast_dtype(device) if device.type == "cuda" else torch.float32
    return Session(model.eval(), tok, cfg, questions, max_len, "questions" in state, generator,
                   Machine(device, dtype))


def main(argv):
    # one of its uses
    cfg = config.from_command_line(SampleConfig, "sample", argv)
    uses = [use for use in ("chat", "prompt", *FILE_USES) if getattr(cfg, use)]
    require(len(uses) <= 1, f"--{' and --'.join(uses)}: give one of them")
    require(not cfg.input or cfg.instruction or cfg.task,
            "--input needs an --instruction that says what to do with it, or a --task")
    folder = os.path.dirname(cfg.output) or "."
    require(os.path.isdir(folder) and not os.path.isdir(cfg.output),
            f"output={cfg.output}: a file in a folder that exists, please")
    s = load(cfg)

    # on files
    if uses and uses[0] in FILE_USES:
        use, file = getattr(analyze, uses[0]), getattr(cfg, uses[0])
        question = make_question(s.cfg.instruction, cfg.choices, s.questions, s.max_len)
        require(question or uses[0] not in ("predict", "explain"),
                f"--{uses[0]} needs a --task, or an --instruction and its --choices")
        use(s.model, s.tok, file, question, cfg.output)
        if uses[0] in ("score", "compare") and s.is_tuned:
            print("warning: this model was tuned to answer: bits per base belong to the "
                  "pretrained one, by its --out_dir", file=sys.stderr)
    # on what is typed
    elif cfg.chat:
        chat(s)
    elif cfg.prompt:
        for _ in range(cfg.num_samples):
            print(cfg.prompt, end="")
            write(s, s.tok.encode(cfg.prompt))
            print()
    else:
        instruction, input = (s.cfg.instruction, cfg.input) if s.cfg.instruction else EXAMPLE
        answer(s, instruction, clean_input(input, "input"), show_prompt=True)
        if not s.cfg.instruction:
            folder = f" --out_dir={cfg.out_dir}" if cfg.out_dir != SampleConfig.out_dir else ""
            print(f"\nnext: python sample.py{folder} --chat")


if __name__ == "__main__":
    config.run(main)
