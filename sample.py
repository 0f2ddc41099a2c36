"""
Ask a model: complete a text, answer an instruction, chat, score sequences.

    python sample.py                                      # the toy model answers an instruction
    python sample.py --instruction="..." --input=ACGT... --choices=yes,no
    python sample.py --chat
    python sample.py --prompt="The cell is" --temperature=0.8 --out_dir=out/toy
    python sample.py --score=sequences.fa --out_dir=out/toy

It needs nothing but a folder that train.py or instruct.py has written.
"""
import codecs
import math
import os
import re
import sys
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch.nn import functional as F

import config
from bpe import Tokenizer
from config.machine import find_device
from config.read import IUPAC, clean_dna, clean_input, read_fasta
from model import load_checkpoint
from prepare import alpaca_prompt, encode_prompts, max_prompt_len

# The default example: a promoter of the toy world, of a gene held out of all training.
EXAMPLE = ("Determine promoter detection of following dna sequence, "
           "The result will be one of the following: Non-promoter, promoter.",
           "GGGGCGGGGCCGTCTTTTCCTCTATCAGATCCACTTTTCAGTAGATTTGGGGCGGGGCAA"
           "GAAGCTTGGTTTGGACGCCCTATAAAAGGAAATCTCATGACTCAGCATCTAATTCATGGT")


@dataclass
class SampleConfig:
    out_dir: str = "out/toy-instruct"   # folder of the model
    prompt: str = ""                # text to complete, as it is
    instruction: str = ""           # to answer
    input: str = ""                 # of the instruction, a DNA sequence or text
    choices: tuple = ()             # show how likely each of these is as the answer
    chat: bool = False              # read instructions from the terminal
    score: str = ""                 # FASTA file: print bits and bits per base of each record
    num_samples: int = 1            # completions of the prompt, or answers
    max_new_tokens: int = 128       # longest answer
    temperature: float = 0.0        # 0: greedy decoding; 1: draw from the model's distribution
    top_k: int = 50                 # draw among the k most likely tokens; 0: among all
    device: str = "auto"            # auto, cpu, cuda, mps
    seed: int = 1337                # of the draws


# ----------------------------------------------------------------------------------------------
# Answers

def find_question(instruction, questions):
    """-> which of the questions that the model was tuned on an instruction asks, in the same words
    or by naming all its choices; None if it asks none of them"""
    def names(choice):
        return re.search(rf"(?<!\w){re.escape(choice)}(?!\w)", instruction)

    same = [q for q in questions if q["instruction"] == instruction]
    named = [q for q in questions if all(map(names, q["choices"]))]
    return max(same or named, key=lambda q: len(q["choices"]), default=None)


def lacks_input(question, input):
    """Whether a question about a sequence is asked without one"""
    return question is not None and question.get("has_input", True) and not input


def encode_question(model, tok, instruction, input, choices):
    """-> ids of the prompt; a note on the input, as "read 120 bases, kept the first 90" """
    # a long input is cut at its end
    max_len = max_prompt_len(tok, choices, model.config.block_size)
    (ids,), n_cut = encode_prompts(tok, [(instruction, input)], max_len)
    n_lost = 0 if ids is None else len(alpaca_prompt(instruction, input)) - len(tok.decode(ids))
    if ids is None or 0 < len(input) <= n_lost:
        raise ValueError(f"the instruction does not fit into {max_len} tokens: shorten it")

    # what was read and kept
    is_dna = re.fullmatch(f"[{IUPAC}]+", input)
    note = f"read {len(input):,} {'bases' if is_dna else 'characters'}"
    if is_dna and (ambiguous := len(re.findall("[^ACGT]", input))):
        note += f", {ambiguous:,} of them ambiguous"
    if n_cut:
        note += f", kept the first {len(input) - n_lost:,}"
    return ids.tolist(), note if input else ""


def write(model, tok, ids, cfg, generator):
    """Print what the model writes after `ids`, while it writes -> the text"""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")      # tokens split characters
    text = ""
    for token in model.generate(ids, cfg.max_new_tokens, cfg.temperature, cfg.top_k or None,
                                tok.eot, generator):
        if token != tok.eot:
            new = decoder.decode(tok.decode_bytes([token]))
            print(new, end="", flush=True)
            text += new
    print()
    return text


def probabilities(model, tok, ids, choices):
    """-> "(promoter: 98.2%, Non-promoter: 1.8%)", as shares of the choices' total likelihood"""
    encoded = [c.tolist() + [tok.eot] for c in tok.encode_batch(choices)]
    p = model.log_likelihoods([ids], encoded)[0][0].softmax(dim=0).tolist()
    ranked = sorted(zip(p, choices), reverse=True)
    return "(" + ", ".join(f"{choice}: {x:.1%}" for x, choice in ranked) + ")"


def answer(model, tok, instruction, input, cfg, generator, questions, show_prompt=False):
    """Print the answer to an instruction, and the probabilities of cfg.choices, or else of its
    question's, if the answer is one of them."""
    # the prompt, cut as in tuning: the longest choice of all questions would fit after it
    question = find_question(instruction, questions)
    if lacks_input(question, input):
        raise ValueError("this question is about a sequence: give one as the input")
    known = [c for q in questions for c in q["choices"]]
    ids, note = encode_question(model, tok, instruction, input, cfg.choices or known)

    # what to know before reading the answer
    if note:
        print(note)
    if questions and not question:
        print("the model was not tuned on this question: its answer is a guess")
    if show_prompt:
        print("###" + alpaca_prompt(instruction, input).partition("###")[2], end="")

    # the answer
    choices = cfg.choices or (question["choices"] if question else ())
    for _ in range(cfg.num_samples):
        response = write(model, tok, ids, cfg, generator)
        if cfg.choices or response in choices:
            print(probabilities(model, tok, ids, choices))


# ----------------------------------------------------------------------------------------------
# Chat

DNA_RUN = re.compile(r"\b[ACGTUN]{12,}\b", re.IGNORECASE)     # in a line of words
LAST_LINE = re.compile(r"[\d\sACGTUN]+", re.IGNORECASE)       # of a sequence, if short


def is_dna(line):
    return clean_input(line.lower(), "the sequence").isupper()      # words stay in lower case


def parse_message(text, questions):
    """What somebody typed or pasted -> (instruction, DNA), either of which may be empty

    FASTA headers are skipped. A number asks one of the questions, and all else is its sequence.
    Otherwise DNA is told from words line by line.
    """
    # a prompt as sample.py prints it
    if "### Instruction:" in text:
        text = text.split("### Instruction:")[1].split("### Response:")[0]
        text = text.replace("### Input:", "")
    lines = [line for line in text.splitlines() if line.strip()]
    if sum(line.startswith(">") for line in lines) > 1:
        raise ValueError("several FASTA records: give one sequence at a time")
    lines = [line for line in lines if not line.startswith(">")]

    # a number, and DNA on the same line or below
    number = re.match(r"(\d+)[.:)]?(?!\S)", lines[0]) if lines and questions else None
    rest = lines[0][number.end():] if number else ""
    if number and (not rest.strip() or is_dna(rest)):
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

        # does it end the message?
        if line.strip():
            text, prompt = f"{text}{line}\n", "  "
        elif text and ("### Instruction:" not in text or "### Response:" in text):
            instruction, dna = parse_message(text, questions)
            if not lacks_input(find_question(instruction, questions), dna):
                return instruction, dna
            prompt = "  its sequence: "


def chat(model, tok, cfg, generator, questions):
    """Answer one message after the other; nothing is remembered from one to the next."""
    with suppress(ImportError):     # not on Windows
        import readline             # line editing, and lines of more than 4,095 characters

    # what can be asked, and how
    for number, q in enumerate(questions, start=1):
        print(f"{number:4}  {q['task']}: {', '.join(q['choices'])}")
    if not questions:
        print("This model was not tuned on questions with choices.")
    print("Type a question's number, or an instruction, and below it a DNA sequence. An empty "
          "line\nends a message; Ctrl-C drops it, or stops an answer; Ctrl-D ends the chat.\n")

    # a second Ctrl-C in a row at the prompt ends the chat
    stopping = False
    while True:
        instruction = None
        try:
            instruction, dna = read_message(questions)
            stopping = False
            if not instruction:
                raise ValueError("a sequence without a question: begin with the question")
            answer(model, tok, instruction, dna, cfg, generator, questions)
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
# Scores

@torch.inference_mode()
def total_bits(model, tok, sequence):
    """-> the bits that the model needs for a sequence, read as a document: few if the sequence
    resembles what the model was trained on"""
    T = model.config.block_size
    ids = torch.tensor([tok.eot] + tok.encode(sequence), device=model.device)
    nats = []
    # windows overlap by half: each token counts once, with at least half a context before it
    for start in range(0, max(1, len(ids) - 1 - T // 2), T // 2):
        window = ids[start:start + T + 1]
        logits, _ = model(window[None, :-1])
        loss = F.cross_entropy(logits[0].float(), window[1:], reduction="none")
        nats += loss[T - T // 2 if start else 0:].tolist()
    return math.fsum(nats) / math.log(2)


def score_file(model, tok, path):
    """Print bits and bits per base of each record of a FASTA file, in its order. The stretches
    between ambiguous letters are scored separately."""
    records = []        # (name, stretches); all are read first, so that errors precede output
    for name, stretch in read_fasta(path):
        if not stretch:             # a new record
            records.append((" ".join(name.split()), []))
        else:
            records[-1][1].append(stretch)

    print("bits_per_base", "bits", "bases", "record", "note", sep="\t")
    for name, stretches in records:
        bases = sum(map(len, stretches))
        bits = math.fsum(total_bits(model, tok, s) for s in stretches) if bases else math.nan
        note = "" if bases else "nothing to score: no 8 bases in a row"
        print(f"{bits / max(bases, 1):.6f}\t{bits:.6f}\t{bases}\t{name}\t{note}", flush=True)


# ----------------------------------------------------------------------------------------------

def main(argv):
    # the model, and the questions that it was tuned on
    cfg = config.from_command_line(SampleConfig, "sample", argv)
    if cfg.input and not cfg.instruction:
        raise ValueError("--input needs an --instruction that says what to do with it")
    device = find_device(cfg.device)
    model, state = load_checkpoint(os.path.join(cfg.out_dir, "best.pt"), device)
    model.eval()
    tok = Tokenizer.load(os.path.join(cfg.out_dir, "tokenizer.json"), state["tokenizer_sha256"])
    questions = [{"task": task} | q for task, q in state.get("questions", {}).items()]
    generator = torch.Generator(device).manual_seed(cfg.seed)

    # one of its four uses
    if cfg.score:
        score_file(model, tok, cfg.score)
        if "questions" in state:
            print("warning: this model was tuned to answer: bits per base belong to the "
                  "pretrained one, by its --out_dir", file=sys.stderr)
    elif cfg.chat:
        chat(model, tok, cfg, generator, questions)
    elif cfg.prompt:
        for _ in range(cfg.num_samples):
            print(cfg.prompt, end="")
            write(model, tok, tok.encode(cfg.prompt), cfg, generator)
            print()
    else:
        instruction, input = (cfg.instruction, cfg.input) if cfg.instruction else EXAMPLE
        input = clean_input(input, "input")
        answer(model, tok, instruction, input, cfg, generator, questions, show_prompt=True)
        if not cfg.instruction:
            print("\nnext: python sample.py --chat")


if __name__ == "__main__":
    config.run(main)
