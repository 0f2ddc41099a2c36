"""
Ask a model: answer, chat, complete a text; label, explain, compare, score, embed
sequences.

    python sample.py                        # the model in the box, a human promoter
    python sample.py --chat
    python sample.py --web                  # a page to ask on, in a browser
    python sample.py --instruction="Is this a splice site?" --input=ACGT...
    python sample.py --instruction="..." --input=ACGT... --choices=yes,no
    python sample.py --predict=genes.csv --task=tf_0 --output=labels.csv
    python sample.py --predict=genome.fa --window=100 --stride=50 --task='tf_*'
    python sample.py --explain=ACGT... --task=tf_0 --output=why.tsv
    python sample.py --compare=ref.fa,alt.fa --out_dir=models/laptop-pretrained
    python sample.py --score=genes.fa --out_dir=models/laptop-pretrained
    python sample.py --prompt="The cell is" --out_dir=models/laptop-pretrained

The same in Python:

    from sample import load
    model = load("models/laptop")
    model.predict(["ACGT..."], task="tf_0")     # label, probabilities, note of each
    model.explain("ACGT...", task="tf_0")       # what each base does to it: (L, 4)
    model.embed(["ACGT..."])                    # mean hidden states: (N, C)
    model.ask("Is this a promoter?", "ACGT...")     # what the chat says

It needs nothing but a folder that train.py or instruct.py has written. A sequence
that is too long for a prompt is cut at its end, and a note says so. tools/analyze.py
says which files can be read.

Shapes: N sequences, L letters, C channels.
"""
import atexit
import codecs
import fnmatch
import itertools
import math
import os
import re
import select
import sys
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch

import config
from bpe import Tokenizer
from config import require
from config.machine import Machine, find_device
from dna.read import clean_dna, clean_input, is_dna, looks_like_dna
from instruct import load_for_prompts, max_prompt_len
from model import GPT
from tools import analyze, web

# The default example: the start of the human gene of beta-globin, HBB. Its TATA box is
# CATAAAA.
EXAMPLE = ("Is this a TATA core promoter?",
           "GGGCATAAAAGTCAGGGCAGAGCCATCTATTGCTTACATTTGCTTCTGACACAACTGTGTTCACTAGCAA")


@dataclass
class SampleConfig(analyze.AnalyzeConfig):
    # The model
    out_dir: str = "models/laptop"  # its folder
    device: str = "auto"            # auto, cpu, cuda, mps
    # In place of a file
    input: str = ""                 # of the instruction, a DNA sequence or text
    prompt: str = ""                # text to complete, as it is
    chat: bool = False              # read questions from the terminal
    web: bool = False               # a page to ask on, in a browser
    # How to write what has no choices
    num_samples: int = 1            # completions of the prompt, or answers
    max_new_tokens: int = 128       # longest answer
    temperature: float = 0.0        # 0: greedy decoding; 1: draw as the model says
    top_k: int = 50                 # draw among the k most likely tokens; 0: among all
    seed: int = 1337                # of the draws


# --------------------------------------------------------------------------------------
# A model that is ready to be asked

class Session(NamedTuple):
    """What load() returns. tools/ is given it too."""
    model: GPT
    tok: Tokenizer
    folder: str                 # of the model, where its scores.json may be
    questions: list             # that it was tuned on, as instruct.py stores them
    max_len: int                # the most tokens that a prompt may have, as in tuning
    machine: Machine            # in float32, because figures are compared

    def predict(self, sequences, task=""):
        """sequences: DNA, a list of N texts
        task: the name of a question; a model that was tuned on one needs none
        -> list of N analyze.Prediction: label, probability, probabilities, note
        """
        question, sequences = self.question(task), clean_all(sequences)
        return analyze.predictions(self, question, sequences, "predicting")

    def explain(self, sequence, task=""):
        """-> what replacing each letter with A, C, G or T adds to the log-odds of the
        likeliest label, in nats, float64 (L, 4)"""
        (sequence,) = clean_all([sequence])
        return analyze.mutation_effects(self, self.question(task), sequence)[2]

    def embed(self, sequences):
        """-> the mean of the final hidden states of each sequence, float32 (N, C)"""
        return analyze.mean_states(self, clean_all(sequences))

    def ask(self, text, sequence=""):
        """text: a question in words, or its task's name, or its number
        -> the answer as the chat prints it"""
        return answer(self, find_question(text, self.questions),
                      clean_dna(sequence, "the sequence"))

    def question(self, task=""):
        """-> the question of one task, an example without its input"""
        found = self.named([task])
        require(len(found) == 1, f"task={task}: {len(found)} tasks: give one of them")
        return found[0]

    def named(self, tasks):
        """tasks: names, or patterns such as tf_*; all means each of them, as does "" for
        a model of one task
        -> their questions, each once"""
        known, found = {q["task"]: q for q in self.questions}, {}
        for task in tasks:
            is_all = task == "all" or not task and len(known) == 1
            names = fnmatch.filter(known, "*" if is_all else task)
            require(names, f"task={task}: the model of {self.folder} was tuned on "
                    f"{', '.join(known) or 'no tasks'}"
                    f"{config.did_you_mean(task, known)}")
            found |= {name: known[name] for name in names}
        return list(found.values())


def clean_all(sequences):
    require(not isinstance(sequences, str), "give a list of sequences")
    return [clean_dna(sequence, f"sequence {number}")
            for number, sequence in enumerate(sequences, start=1)]


def load(folder="models/laptop", device="auto", choices=()):
    """-> the Session with the model of a folder

    device: auto, cpu, cuda or mps
    choices: the possible answers, if they are not those of the model's questions
    """
    device = find_device(device)
    model, tok, state = load_for_prompts(folder, device)
    questions = [{"task": task} | q for task, q in state.get("questions", {}).items()]

    # room for the longest choice of all questions, as in tuning
    choices = choices or [choice for q in questions for choice in q["choices"]]
    max_len = max_prompt_len(tok, choices, model.config.block_size)
    return Session(model.eval(), tok, folder, questions, max_len,
                   Machine(device, torch.float32))


# --------------------------------------------------------------------------------------
# Questions

NEAR = 0.3      # the similarity from which on a text asks a question
GUESS = "the model was not tuned on this question: its answer is a guess"


def words(text):
    return set(re.findall(r"\w+", text.casefold()))


def nearest(text, questions):
    """-> [(similarity, question), ...], the nearest first, each in the wording that is
    nearest to the text. The name of its task is one too.

    The similarity of two texts is the weight of the words in both over the geometric
    mean of their whole weights. A word weighs the more, the fewer questions have it:
    log((N + 2) / (n + 1)) for n of N questions (the inverse document frequency of
    Sparck Jones, 1972, smoothed).
    """
    # each question's wordings, and their words
    ways = []
    for q in questions:
        names = q["task"], q["task"].replace("_", " ")
        texts = q["instruction"], *q.get("wordings", ()), *names
        ways.append({wording: words(wording) for wording in texts})
    n_with = Counter(word for way in ways for word in set().union(*way.values()))

    def weight(words):
        return sum(math.log((len(questions) + 2) / (n_with[w] + 1)) for w in words)

    # the nearest wording of each
    asked, found = words(text), []
    for q, way in zip(questions, ways):
        similarity, wording = max(
            (weight(asked & known) / math.sqrt(weight(asked) * weight(known) or 1),
             wording) for wording, known in way.items())
        if wording in q.get("wordings", ()):
            q = q | {"instruction": wording}
        found.append((round(similarity, 6), q))
    return sorted(found, key=lambda pair: (-pair[0], len(short(pair[1]))))


def find_question(text, questions):
    """-> the question that a text asks by its number, its task's name or its words, in
    the nearest wording of its tuning. ValueError if it asks none, or several alike"""
    if number := re.fullmatch(r"(\d+)[.:)]?", text):
        require(1 <= int(number[1]) <= len(questions),
                f"questions have the numbers 1 to {len(questions)}")
        return questions[int(number[1]) - 1]

    found = nearest(text, questions)
    best = [q for similarity, q in found if similarity >= max(NEAR, found[0][0])]
    if len(best) == 1:
        return best[0]

    # what to ask in its place
    ways = ", ".join(f'"{short(q)}"' for _, q in found[:3])
    hint = (config.did_you_mean(text, [q["task"] for q in questions])
            or f": ask {ways or 'a tuned model'}")
    raise ValueError(f"{text!r} is unlike any question of this model, or like several"
                     f"{hint}")


def short(question):
    """-> the shortest of a question's wordings that end in a question mark"""
    asked = [text for text in question.get("wordings", ()) if text.endswith("?")]
    return min(asked, key=len, default=question["instruction"])


# --------------------------------------------------------------------------------------
# Answers

def answer(s, question, input):
    """-> the answer to a question with choices, in one form everywhere:

        asked as prom_core_tata, of 70 bases
        promoter: 98.2% (right 78 of 100 times on held-out rows)

    It is the likeliest choice, of both strands where they have the same answer.
    """
    require(input or not question["is_dna"],
            "this question is about a sequence: give one as the input")
    (found,) = analyze.predictions(s, question, [input], "")
    require(found.label, f"no answer: {found.note}")

    # what was asked, of what
    task = question.get("task", "")
    asked = f"asked as {task}" if task else "asked in these words"
    if question["is_dna"]:
        asked += f", of {len(input):,} bases"
    if found.note:
        asked += f"; {found.note}"

    # how far to trust the answer
    record = analyze.track_record(s).get(task, {"labels": {}, "no_better": ""})
    trust = []
    if found.label in record["labels"]:
        trust.append(f"{record['labels'][found.label]} on held-out rows")
    if record["no_better"]:
        trust.append(record["no_better"])
    trust = f" ({', '.join(trust)})" if trust else ""
    return f"{asked}\n{found.label}: {found.probability:.1%}{trust}"


def write(s, cfg, ids):
    """Print what the model writes after `ids`, while it writes -> the text"""
    # tokens split characters
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = ""
    for token in s.model.generate(ids, cfg.max_new_tokens, cfg.temperature,
                                  cfg.top_k or None, s.tok.eot):
        if token != s.tok.eot:
            new = decoder.decode(s.tok.decode_bytes([token]))
            print(new, end="", flush=True)
            text += new
    print()
    return text


def write_answer(s, cfg, instruction, input):
    """Print what the model writes to an instruction without choices."""
    ids, kept = analyze.prompt(s, {"instruction": instruction}, input)
    if input:
        print(f"read {kept:,} of {len(input):,} letters")
    for _ in range(cfg.num_samples):
        write(s, cfg, ids.tolist())


# --------------------------------------------------------------------------------------
# Chat: a message is words, or DNA, or words and then DNA

HELP = """\
Ask a question in words, or by its number or name, and give a DNA sequence:

    Is this a TATA core promoter? GGGCATAAAAGTCAGGGCAGAGCCATCTATTGCTTACATTTGC
    tf_0

The last question stays for the next sequence, the last sequence for the next question.
    list    what can be asked, and how often the answers are right
    why     which bases the last answer depends on
    quit    the end, as Ctrl-D; Ctrl-C stops an answer"""

# No English word has so many of these letters. What else is long and in capitals is
# meant as a sequence, and so are shorter pieces behind it, and bases behind a question.
SEQUENCE = re.compile(r"""
    \b (?: [acgtunACGTUN]{8,} | [A-Z]{12,} ) \b
        (?: [\s-]+ (?: [ACGTUN]+ | [acgtun]{4,} ) \b )*
    | (?<= [?:]\ ) [ACGTUN]+ $
    """, re.VERBOSE)
# of a sequence, with the line numbers that GenBank has
SHORT_LINE = re.compile(r"[\d\s]*[ACGTUN][\d\sACGTUN]*", re.IGNORECASE)


def is_sequence(line, lines):
    """Whether a line below `lines` of its message is DNA, or the header of FASTA. A
    number at its beginning is a question's. GenBank's line numbers are indented."""
    if line[:1].isdigit():
        return False
    return (line.startswith(">") or looks_like_dna(line)
            or lines and SHORT_LINE.fullmatch(line))


def read_messages():
    """Yield the lines of one message after the other. An empty line ends a message, as
    do the next words, and in a terminal the end of what was typed or pasted."""
    lines = []
    while True:
        # a line, or a whole paste
        try:
            new = input("> ").splitlines() or [""]
        except EOFError:
            if lines:
                yield lines
            return

        for line in new:
            if lines and not is_sequence(line, lines):
                yield lines
                lines = []
            if line.strip():
                lines.append(line)
        waits = not sys.stdin.isatty() or select.select([sys.stdin], [], [], 0.1)[0]
        if lines and not waits:
            yield lines
            lines = []


def split_message(lines):
    """The lines of a message -> (words, DNA), either of which may be empty"""
    require(sum(line.startswith(">") for line in lines) <= 1,
            "several FASTA records: give one sequence at a time")
    words, dna = "", ""
    for line in lines:
        if is_sequence(line, words + dna):
            dna += "" if line.startswith(">") else line + "\n"
        else:
            dna += " ".join(SEQUENCE.findall(line))
            words = " ".join(SEQUENCE.sub("", line).split())
    return words, clean_dna(dna, "the sequence")


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


def list_questions(s):
    """Print what can be asked, those with the same choices together."""
    records = analyze.track_record(s)
    numbered = enumerate(s.questions, start=1)
    for choices, group in itertools.groupby(numbered, lambda item: item[1]["choices"]):
        print(f"\n{', '.join(choices)}:")
        for number, q in group:
            remark = ""
            if record := records.get(q["task"]):
                remark = record["no_better"] or record["right"]
            print(f"{number:4}  {q['task']:21} {short(q):45} {remark}".rstrip())


def chat(s, cfg):
    """Answer one message after the other."""
    keep_whole_pastes()
    n = len(s.questions)
    print(f"{s.folder} was tuned on {n} question{'s' * (n != 1)}: type list, or help.\n")
    question, dna = None, ""
    if n == 1:
        (question,) = s.questions

    for lines in read_messages():
        try:
            # a command
            words, new = split_message(lines)
            command = words.casefold().strip(" ?!.")
            if command in ("quit", "exit"):
                return
            if command == "help":
                print(HELP)
            elif command == "list":
                list_questions(s)
            elif command == "why":
                require(question and dna, "why: first ask about a sequence")
                analyze.tell(s, question, "sequence", dna)
                print(analyze.LEGEND)
            elif not s.questions:
                write_answer(s, cfg, words, new)

            # the last question and the last sequence stay
            else:
                dna = new or dna
                question = find_question(words, s.questions) if words else question
                require(question, "what do you want to know of it? Type list or help")
                if question["is_dna"] and not dna:
                    print(f"asked as {question['task']}: of which sequence?")
                else:
                    print(answer(s, question, dna if question["is_dna"] else ""))
        except ValueError as e:
            print(e)
        except KeyboardInterrupt:       # it stops an answer
            print()
        print()


# --------------------------------------------------------------------------------------

def chosen_questions(s, cfg):
    """-> a list of the questions that the keys name. One that has choices of its own, or
    is unlike those of the tuning, is asked in its own words."""
    if not cfg.instruction:
        return s.named(cfg.task or [""] * (len(s.questions) == 1))
    if not cfg.choices:
        with suppress(ValueError):
            return [find_question(cfg.instruction, s.questions)]
    if s.questions:
        print(GUESS, file=sys.stderr)
    return [{"instruction": cfg.instruction, "choices": list(cfg.choices)}]


def answer_input(s, cfg, question, input):
    """Print the answer to a question about an input, a DNA sequence or text."""
    clean = clean_dna if question.get("is_dna") else clean_input
    input = clean(input, "the input")
    if question["choices"]:
        # a question of one's own is about whatever it is given
        print(answer(s, {"is_dna": is_dna(input)} | question, input))
    else:
        write_answer(s, cfg, question["instruction"], input)


def main(argv):
    # one of its uses
    cfg = config.from_command_line(SampleConfig, "sample", argv)
    uses = [use for use in ("chat", "web", "prompt", *analyze.USES) if getattr(cfg, use)]
    require(len(uses) <= 1, f"--{' and --'.join(uses)}: give one of them")
    use = uses[0] if uses else "answer"
    require(not cfg.task or not (cfg.instruction or cfg.choices),
            "--task has an instruction and choices: give it without others")
    require(not os.path.isfile(cfg.input),
            f"input={cfg.input}: a file? Use --predict={cfg.input}")
    analyze.check(cfg, use)
    s = load(cfg.out_dir, cfg.device, cfg.choices)
    torch.manual_seed(cfg.seed)

    # on what is typed
    if use == "chat":
        with suppress(KeyboardInterrupt):
            chat(s, cfg)
    elif use == "web":
        web.serve(s)
    elif use == "prompt":
        for _ in range(cfg.num_samples):
            print(cfg.prompt, end="")
            write(s, cfg, s.tok.encode(cfg.prompt))
            print()
    # on a file, on the keys, or on the example
    else:
        questions = chosen_questions(s, cfg)
        if use in analyze.USES:
            analyze.run(s, cfg, use, questions)
        elif cfg.instruction or cfg.task or cfg.input:
            require(questions, "--input needs an --instruction that says what to do with "
                    "it, or a --task")
            for question in questions:
                answer_input(s, cfg, question, cfg.input)
        else:
            instruction, input = EXAMPLE
            asks = replace(cfg, instruction=instruction)
            for question in questions or chosen_questions(s, asks):
                print(question["instruction"], input)
                answer_input(s, cfg, question, input)
            command = config.next_command("sample", argv, out_dir=cfg.out_dir)
            print(f"\nnext: {command} --chat")


if __name__ == "__main__":
    config.run(main)
