"""
Ask a model: answer, chat, complete a text; label, explain, compare, score, embed
sequences.

    python sample.py                        # the toy model answers an instruction
    python sample.py --chat
    python sample.py --instruction="..." --input=ACGT... --choices=yes,no
    python sample.py --prompt="The cell is" --temperature=0.8 --out_dir=out/toy
    python sample.py --predict=genes.csv --task=promoter --output=labels.tsv
    python sample.py --explain=ACGT... --task=promoter --output=why.tsv
    python sample.py --compare=ref.fa,alt.fa --out_dir=out/toy
    python sample.py --score=genes.fa --out_dir=out/toy

It needs nothing but a folder that train.py or instruct.py has written. A sequence
that is too long for a prompt is cut at its end, and a note says so. tools/analyze.py
says which files can be read.
"""
import atexit
import codecs
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

import config
from bpe import Tokenizer
from config import require
from config.machine import Machine, find_device
from dna.read import clean_dna, clean_input, is_dna
from dna.tasks import INSTRUCTION, alpaca_prompt
from instruct import (encode_prompts, label_probabilities, load_for_prompts,
                      max_prompt_len)
from model import GPT
from tools import analyze

# The default example: a promoter of the toy world, of a gene held out of all training.
EXAMPLE = ("Determine promoter detection of following dna sequence, "
           "The result will be one of the following: Non-promoter, promoter.",
           "GGGGCGGGGCCGTCTTTTCCTCTATCAGATCCACTTTTCAGTAGATTTGGGGCGGGGCAA"
           "GAAGCTTGGTTTGGACGCCCTATAAAAGGAAATCTCATGACTCAGCATCTAATTCATGGT")


@dataclass
class SampleConfig(analyze.AnalyzeConfig):
    # The model
    out_dir: str = "out/toy-instruct"   # its folder
    device: str = "auto"            # auto, cpu, cuda, mps
    # In place of a file
    input: str = ""                 # of the instruction, a DNA sequence or text
    prompt: str = ""                # text to complete, as it is
    chat: bool = False              # read questions from the terminal
    # How to write
    num_samples: int = 1            # completions of the prompt, or answers
    max_new_tokens: int = 128       # longest answer
    temperature: float = 0.0        # 0: greedy decoding; 1: draw as the model says
    top_k: int = 50                 # draw among the k most likely tokens; 0: among all
    seed: int = 1337                # of the draws


class Session(NamedTuple):
    """A model that is ready to be asked. tools/analyze.py is given it too."""
    model: GPT
    tok: Tokenizer
    cfg: SampleConfig
    questions: list             # that the model was tuned on, as instruct.py stores them
    max_len: int                # the most tokens that a prompt may have, as in tuning
    machine: Machine            # in float32, because figures are compared
    generator: torch.Generator


# --------------------------------------------------------------------------------------
# Questions

GUESS = "the model was not tuned on this question: its answer is a guess"


def find_question(instruction, questions):
    """-> which of the questions that the model was tuned on an instruction asks, in
    the same words or by naming all its choices; None if it asks none of them"""
    def names_all(choices):
        # the longest first, as "No Mark" does not name "Mark"
        text = instruction
        for choice in sorted(choices, key=len, reverse=True):
            text, n = re.subn(rf"(?<!\w){re.escape(choice)}(?!\w)", "|", text)
            if not n:
                return False
        return True

    same = [q for q in questions
            if instruction in (q["instruction"], *q.get("wordings", ()))]
    named = [q for q in questions if names_all(q["choices"])]
    return max(same or named, key=lambda q: len(q["choices"]), default=None)


def make_question(instruction, choices, questions):
    """What an instruction asks -> an example without its input, in the words of the
    instruction. It has what the model was told of the question in tuning, and `choices`
    in place of the question's own, if they are given."""
    question = find_question(instruction, questions) or {"choices": []}
    if questions and "task" not in question:
        print(GUESS, file=sys.stderr)
    choices = list(choices) or question["choices"]
    return question | {"instruction": instruction, "choices": choices}


def lacks_input(question, input):
    """Whether a question about DNA is asked without a sequence"""
    return question.get("is_dna", False) and not input


# --------------------------------------------------------------------------------------
# Answers

def write(s, ids):
    """Print what the model writes after `ids`, while it writes -> the text"""
    # tokens split characters
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for token in s.model.generate(ids, s.cfg.max_new_tokens, s.cfg.temperature,
                                  s.cfg.top_k or None, s.tok.eot, s.generator):
        if token != s.tok.eot:
            new = decoder.decode(s.tok.decode_bytes([token]))
            print(new, end="", flush=True)
            text += new
    print()
    return text


def probabilities(s, question, input):
    """-> "(promoter: 98.2%, Non-promoter: 1.8%)", as shares of the choices' total
    likelihood; the mean of both strands where both have the same answer"""
    examples = [question | {"input": input}]
    (answer,) = label_probabilities(s.model, s.tok, examples, s.max_len, s.machine, "")
    ranked = sorted(zip(np.exp(answer.log_p), question["choices"]), reverse=True)
    both = "both strands: " if question.get("either_strand") else ""
    return f"({both}" + ", ".join(f"{choice}: {p:.1%}" for p, choice in ranked) + ")"


def answer(s, instruction, input, show_prompt=False):
    """Print the answer to an instruction. If it is one of the choices, print their
    probabilities too."""
    question = make_question(instruction, s.cfg.choices, s.questions)
    require(not lacks_input(question, input),
            "this question is about a sequence: give one as the input")
    if question.get("is_dna"):
        input = clean_dna(input, "the input")
    (ids,), (kept,) = encode_prompts(s.tok, [question | {"input": input}], s.max_len)
    require(ids is not None,
            f"the instruction does not fit into {s.max_len} tokens: shorten it")

    # what to know before reading the answer
    if is_dna(input):
        remarks = analyze.note(input, kept)
        print(f"read {len(input):,} bases" + (remarks and f"; {remarks}"))
    elif input:
        print(f"read {kept:,} of {len(input):,} characters")
    if show_prompt:
        prompt = alpaca_prompt(instruction, input)
        print(prompt[prompt.index(INSTRUCTION):], end="")

    # the answer
    for _ in range(s.cfg.num_samples):
        response = write(s, ids.tolist())
        if s.cfg.choices or response in question["choices"]:
            print(probabilities(s, question, input))


# --------------------------------------------------------------------------------------
# Chat

# no English word has so many of these letters
DNA_RUN = re.compile(r"\b[ACGTUN]{12,}\b", re.IGNORECASE)
# of a sequence, which may be too short to be DNA by itself
LAST_LINE = re.compile(r"[\d\sACGTUN]+", re.IGNORECASE)


def is_sequence(line):
    # words stay in lower case
    return clean_input(line.lower(), "the sequence").isupper()


def parse_message(text, questions):
    """What somebody typed or pasted -> (instruction, DNA), either of which may be empty

    FASTA headers are skipped. A question's number or its task's name asks it, and
    all else is its sequence. Otherwise DNA is told from words line by line.
    """
    lines = [line for line in text.splitlines() if line.strip()]
    if sum(line.startswith(">") for line in lines) > 1:
        raise ValueError("several FASTA records: give one sequence at a time")
    lines = [line for line in lines if not line.startswith(">")]

    # a task's name is as good as its number
    numbers = {q["task"]: str(n) for n, q in enumerate(questions, start=1)}
    if lines and lines[0].split()[0] in numbers:
        name, *rest = lines[0].split(maxsplit=1)
        lines[0] = " ".join([numbers[name], *rest])

    # a number, and its sequence (or what is meant as one: capitals) on the same line or
    # below
    number = re.match(r"(\d+)[.:)]?(?!\S)", lines[0]) if lines and questions else None
    rest = lines[0][number.end():] if number else ""
    if number and (not rest.strip() or is_sequence(rest)
                   or re.fullmatch("[A-Z ]+", rest)):
        if not 1 <= int(number[1]) <= len(questions):
            raise ValueError(f"questions have the numbers 1 to {len(questions)}")
        instruction = questions[int(number[1]) - 1]["instruction"]
        return instruction, clean_dna("\n".join([rest, *lines[1:]]), "the sequence")

    # words and DNA
    words, dna = [], []
    for line in lines:
        if is_sequence(line) or dna and LAST_LINE.fullmatch(line):
            dna.append(line)
        else:
            dna += DNA_RUN.findall(line)
            words += DNA_RUN.sub("", line).split()
    return " ".join(words), clean_dna("\n".join(dna), "the sequence")


def read_message(questions):
    """Read lines until they are a whole message -> (instruction, DNA). A blank line
    ends it, but not between a question and its sequence. EOFError where there is nothing to read."""
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
        elif text:
            instruction, dna = parse_message(text, questions)
            if not lacks_input(find_question(instruction, questions) or {}, dna):
                return instruction, dna
            prompt = "  its sequence: "


def keep_whole_pastes():
    """Switch on readline, for line editing and a history.

    Between prompts a terminal is in its canonical mode, which drops what exceeds 4,095
    characters of a line. A long pasted sequence would lose bases, so that mode is
    switched off."""
    with suppress(ImportError):     # not on Windows
        import readline  # noqa: F401
        import termios
        if sys.stdin.isatty() and sys.stdout.isatty():
            before, mode = termios.tcgetattr(sys.stdin), termios.tcgetattr(sys.stdin)
            mode[3] &= ~termios.ICANON
            atexit.register(termios.tcsetattr, sys.stdin, termios.TCSADRAIN, before)
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, mode)


def chat(s):
    """Answer one message after the other; nothing is remembered from one to the
    next."""
    keep_whole_pastes()

    # what can be asked, and how
    for number, q in enumerate(s.questions, start=1):
        print(f"{number:4}  {q['task']}: {', '.join(q['choices'])}")
    if not s.questions:
        print("This model was not tuned on questions with choices.")
    print("Type a question's number, or an instruction, and below it a DNA sequence. An "
          "empty line\nends a message; Ctrl-C drops it, or stops an answer; Ctrl-D ends "
          "the chat.\n")

    while True:
        instruction = None
        try:
            instruction, dna = read_message(s.questions)
            require(instruction,
                    "a sequence without a question: begin with the question")
            answer(s, instruction, dna)
        except ValueError as e:
            print(e)
        except EOFError:
            return print()
        except KeyboardInterrupt:
            # it stops an answer; at the prompt it ends the chat
            if instruction is None:
                return print()
        print()


# --------------------------------------------------------------------------------------

def load(cfg):
    """-> the Session with the model of cfg.out_dir"""
    device = find_device(cfg.device)
    model, tok, state = load_for_prompts(cfg.out_dir, device)
    questions = [{"task": task} | q for task, q in state.get("questions", {}).items()]

    # the instruction of a task
    instructions = {q["task"]: q["instruction"] for q in questions}
    require(cfg.task in ["", *instructions], f"task={cfg.task}: the model of "
            f"{cfg.out_dir} was tuned on {', '.join(instructions) or 'no tasks'}")
    cfg = replace(cfg, instruction=cfg.instruction or instructions.get(cfg.task, ""))

    # room for the longest choice of all questions, as in tuning
    choices = cfg.choices or [choice for q in questions for choice in q["choices"]]
    max_len = max_prompt_len(tok, choices, model.config.block_size)
    return Session(model.eval(), tok, cfg, questions, max_len,
                   Machine(device, torch.float32),
                   torch.Generator(device).manual_seed(cfg.seed))


def main(argv):
    # one of its uses
    cfg = config.from_command_line(SampleConfig, "sample", argv)
    uses = [use for use in ("chat", "prompt", *analyze.USES) if getattr(cfg, use)]
    require(len(uses) <= 1, f"--{' and --'.join(uses)}: give one of them")
    use = uses[0] if uses else "answer"
    require(not cfg.input or cfg.instruction or cfg.task,
            "--input needs an --instruction that says what to do with it, or a --task")
    require(not os.path.isfile(cfg.input),
            f"input={cfg.input}: a file? Use --predict={cfg.input}")
    if use in analyze.USES:
        analyze.check(cfg, use)
    s = load(cfg)

    # on a file
    if use in analyze.USES:
        question = None
        if s.cfg.instruction:
            question = make_question(s.cfg.instruction, cfg.choices, s.questions)
        analyze.run(s, use, question)
    # on what is typed
    elif use == "chat":
        chat(s)
    elif use == "prompt":
        for _ in range(cfg.num_samples):
            print(cfg.prompt, end="")
            write(s, s.tok.encode(cfg.prompt))
            print()
    else:
        example = (s.cfg.instruction, cfg.input) if s.cfg.instruction else EXAMPLE
        answer(s, example[0], clean_input(example[1], "input"), show_prompt=True)
        if not s.cfg.instruction:
            command = config.next_command("sample", argv, out_dir=cfg.out_dir)
            print(f"\nnext: {command} --chat")


if __name__ == "__main__":
    config.run(main)
