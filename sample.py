"""
Ask a model: complete a text, answer an instruction, chat, score sequences.

    python sample.py                                          # the toy model answers an instruction
    python sample.py --instruction="..." --input=ACGT... --choices=yes,no
    python sample.py --chat
    python sample.py --prompt="The cell is" --temperature=0.8 --out_dir=out/toy
    python sample.py --score=sequences.fa --out_dir=out/toy

An out_dir of train.py or instruct.py is all it needs.
"""
import math
import os
import re
from dataclasses import dataclass, field

import torch

import config
from bpe import Tokenizer
from config.machine import find_device
from model import load_checkpoint
from prepare import alpaca_prompt, clean_dna, encode_prompts, read_fasta


# What is asked when nothing is: a promoter of the toy world, from a gene held out of all training.
EXAMPLE = ("Determine promoter detection of following dna sequence, The result will be one of the "
           "following: Non-promoter, promoter.",
           "GGGGCGGGGCCGTCTTTTCCTCTATCAGATCCACTTTTCAGTAGATTTGGGGCGGGGCAA"
           "GAAGCTTGGTTTGGACGCCCTATAAAAGGAAATCTCATGACTCAGCATCTAATTCATGGT")


@dataclass
class SampleConfig:
    out_dir: str = "out/toy-instruct"   # folder of the model
    prompt: str = ""                # text to complete, as it is
    instruction: str = ""           # to answer
    input: str = ""                 # of the instruction, a sequence for example
    choices: list[str] = field(default_factory=list)    # how likely is each of these as the answer?
    chat: bool = False              # read instructions from the terminal
    score: str = ""                 # FASTA file: print the bits per base of each record
    num_samples: int = 1            # completions of the prompt, or answers
    max_new_tokens: int = 128       # longest answer
    temperature: float = 0.0        # 0: the likeliest token each time; 1: as the model thinks
    top_k: int = 50                 # draw among the k likeliest tokens; 0: among all
    device: str = "auto"            # auto, cpu, cuda, mps
    seed: int = 1337                # of the draws


def complete(model, tok, ids, cfg, generator):
    """-> the text that the model lets follow `ids`, up to <|endoftext|>"""
    new = model.generate([ids], cfg.max_new_tokens, cfg.temperature, cfg.top_k or None, tok.eot,
                         generator=generator)[0]
    return tok.decode([i for i in new if i != tok.eot])


def answer(model, tok, instruction, input, cfg, generator, known=()):
    """-> the response to an instruction, and where there are choices how likely each of them is among
    them. An input that is too long is cut at its end, so that there is room for the longest choice,
    or where none are known an eighth of the context; it says so.
    known: the choices of the tasks that the model was tuned on"""
    words = cfg.choices or [c for choices in known for c in choices]
    block_size = model.config.block_size
    longest = max((len(e) + 1 for e in tok.encode_batch(words)), default=block_size // 8)
    if longest > block_size // 2:
        raise ValueError(f"a choice is {longest} tokens long, of {block_size} in all: shorten it")
    room = block_size - longest
    (ids,), trimmed = encode_prompts(tok, [(instruction, input)], [room])
    if ids is None:
        raise ValueError(f"the instruction is longer than the {room} tokens that fit: shorten it")
    ids = ids.tolist()
    response = complete(model, tok, ids, cfg, generator)
    choices = cfg.choices or find_choices(instruction, response, known)
    if choices:
        encoded = [c.tolist() + [tok.eot] for c in tok.encode_batch(choices)]
        chances = model.log_likelihoods([ids], encoded)[0][0].softmax(dim=0).tolist()
        ranked = sorted(zip(chances, choices), reverse=True)
        response += "\n(" + ", ".join(f"{c}: {p:.1%}" for p, c in ranked) + ")"
    return response + "\n(the input is too long, and was cut at its end)" * trimmed


def find_choices(instruction, response, known):
    """-> of the lists of choices that are known, the longest of which each stands in the instruction;
    else one that the response is from; else none"""
    named = [c for c in known if c and all(word in instruction for word in c)]
    meant = [c for c in known if response in c]
    return max(named or meant or [[]], key=len)


def read_message(text):
    """What somebody typed or pasted -> (instruction, input). Lines of nothing but nucleotides, of
    four letters and more, wrapped, numbered or in lower case, are the input, and so is a run of
    twelve letters and more within a line; FASTA headers are left out."""
    words, dna = [], []
    for line in text.splitlines():
        if line.startswith(">"):
            continue
        if re.fullmatch(r"[\s\d]*[ACGTUNacgtun][\sACGTUNacgtun]{3,}[\s\d]*", line):
            dna.append(re.sub(r"\d", "", line))
            continue
        dna += re.findall(r"\b[ACGTUNacgtun]{12,}\b", line)
        words.append(re.sub(r"\s*\b[ACGTUNacgtun]{12,}\b", "", line).strip())
    return " ".join(w for w in words if w), clean_dna("".join(dna), "input")


def chat(model, tok, cfg, generator, known):
    """Answer one instruction after the other; nothing is remembered from one to the next."""
    print("Type an instruction, and a sequence on the lines below it if there is one; end with an "
          "empty line. Ctrl-D ends the chat.")
    while True:
        lines = []
        try:
            while line := input("> " if not lines else "  "):
                lines.append(line)
        except (EOFError, KeyboardInterrupt):
            print()
            if not lines:
                return
        instruction, dna = read_message("\n".join(lines))
        if instruction:
            try:
                print(answer(model, tok, instruction, dna, cfg, generator, known) + "\n")
            except ValueError as e:
                print(f"{e}\n")
        elif dna:
            print("What about this sequence? Begin with an instruction.\n")


@torch.inference_mode()
def bits_per_base(model, tok, sequences):
    """The model's own surprise at each DNA sequence, read as a document: low where it resembles what
    the model was trained on. sequences: list of str -> list of bits per base"""
    T, results = model.config.block_size, []
    for ids, sequence in zip(tok.encode_batch(sequences), sequences):
        ids = torch.tensor([tok.eot] + ids.tolist(), device=model.device)
        nats = 0.0
        # Windows that overlap by half: each token is counted once, with half a context or more.
        for start in range(0, max(1, len(ids) - 1 - T // 2), T // 2):
            part = ids[start:start + T + 1]
            targets = part[1:].clone()
            if start:
                targets[:T - T // 2] = -1
            count = (targets != -1).sum().item()
            nats += model(part[None, :-1], targets[None])[1].item() * count
        results.append(nats / math.log(2) / len(sequence))
    return results


def score_file(model, tok, path):
    """Print the bits per base of each record of a FASTA file; its stretches between N's are read
    apart from each other."""
    records = {}
    for name, stretch in read_fasta(path):
        records.setdefault(name, []).append(stretch)
    print("bits_per_base\tbases\trecord")
    for name, stretches in records.items():
        bases = sum(map(len, stretches))
        bits = sum(b * len(s) for b, s in zip(bits_per_base(model, tok, stretches), stretches))
        print(f"{bits / bases:.4f}\t{bases}\t{name}", flush=True)


def main(argv):
    cfg = config.from_command_line(SampleConfig, "sample", argv)
    device = find_device(cfg.device)
    path = os.path.join(cfg.out_dir, "best.pt")
    model, state = load_checkpoint(path, device)
    tok = Tokenizer.load(os.path.join(cfg.out_dir, "tokenizer.json"), state["tokenizer_sha256"])
    model.eval()
    known = state.get("choices", [])
    generator = torch.Generator(device).manual_seed(cfg.seed)

    if cfg.score:
        score_file(model, tok, cfg.score)
    elif cfg.chat:
        chat(model, tok, cfg, generator, known)
    elif cfg.prompt:
        for _ in range(cfg.num_samples):
            print(cfg.prompt + complete(model, tok, tok.encode(cfg.prompt), cfg, generator) + "\n")
    else:
        if cfg.input and not cfg.instruction:
            raise ValueError("--input needs an --instruction that says what to do with it")
        instruction, input = (cfg.instruction, cfg.input) if cfg.instruction else EXAMPLE
        text = alpaca_prompt(instruction, input)
        print(text[text.index("### Instruction"):], end="")
        for _ in range(cfg.num_samples):
            print(answer(model, tok, instruction, input, cfg, generator, known))
        if not cfg.instruction:
            print("\nnext: python sample.py --chat")


if __name__ == "__main__":
    config.run(main)
