"""
The toy world: an invented genome, tasks cut from it, and English that comes with Python.

    python -m dna.toy            # writes data/toy/raw; `python prepare.py` does so too

The files are what a user's own would be: FASTA, text, and a folder per task with
train.csv, test.csv and task.json. Textbook motifs are planted where textbooks put them,
so a working model must find them. A high score tests the code, and says nothing about
biology.
"""
import importlib
import inspect
import json
import os
from collections import defaultdict

import numpy as np

from config import require
from dna.tasks import FACTOR, PROMOTER, SPLICE

MOTIFS = {      # consensus sequences in IUPAC letters
    "BRE": "SSRCGCC",               # Lagrange et al., 1998; just before the TATA box
    "TATA box": "STATAWAWR",        # Bucher, 1990; about 30 bases before the start
    "initiator": "YYANWYY",         # Smale and Kadonaga, 2003; at the start
    "GC box": "GGGGCGGGGC",         # Sp1; Kadonaga et al., 1986; upstream
    "donor": "MAGGTRAGT",           # Mount, 1982; an intron begins after MAG
    "G triplets": "GGGNNGGGNNGGG",  # McCullough and Berget, 1997; early in short introns
    "acceptor": "YYYYYYYYYYNCAGG",  # Mount, 1982; an intron ends with CAG
    "poly-A signal": "AATAAA",      # Proudfoot and Brownlee, 1976
    "NF-kappa-B": "GGGRNWYYCC",     # Chen et al., 1998
    "AP-1": "TGASTCA",              # Lee et al., 1987
    "CREB": "TGACGTCA",             # Montminy et al., 1986
}
CODES = {"A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "S": "CG",
         "W": "AT", "K": "GT", "M": "AC", "N": "ACGT"}

# Probability of each next base, as in vertebrates: 41% G and C, few CG (Bird, 1980).
NEXT_BASE = {"A": [.33, .17, .24, .26], "C": [.35, .25, .05, .35],
             "G": [.29, .21, .25, .25], "T": [.22, .20, .24, .34]}

GENES, TEST_GENES = 2200, 250
CONTIG = 10         # genes
LOCUS = 1000        # bases of each gene with its surroundings
START = 200         # position in its locus where a gene starts
TASKS = {           # name: (bases, what is asked, a word for each label)
    "promoter": (120, "promoter detection", PROMOTER),
    "core_promoter": (60, "core promoter detection", PROMOTER),
    "splice": (60, "splice site detection", SPLICE),
    "tf": (60, "transcription factor binding site detection", FACTOR),
}


# --------------------------------------------------------------------------------------
# DNA

def background(n, length, rng):
    """-> (n, length) letters: n random sequences, each a first-order Markov chain"""
    letters = np.array(list("ACGT"))
    cumulative = np.cumsum([NEXT_BASE[base] for base in letters], axis=1)
    state = rng.integers(4, size=n)
    out = np.empty((n, length), dtype="<U1")
    for i in range(length):
        state = (rng.random(n)[:, None] > cumulative[state]).sum(axis=1).clip(max=3)
        out[:, i] = letters[state]
    return out


def plant(locus, position, name, rng):
    """Write a motif into a locus (length,). An ambiguous letter becomes a base that it
    allows."""
    for i, code in enumerate(MOTIFS[name]):
        locus[position + i] = rng.choice(list(CODES[code]))


def plant_gene(locus, rng):
    """Plant one gene into a background -> {task: {label: where its example begins}}

    0: background           100: promoter   200: the gene starts
    300: exon ends, intron  420: exon       520: the gene ends
    600: enhancer           700: background, for the negative examples
    """
    # promoter
    for position in rng.choice(np.arange(-110, -52, 12), size=2, replace=False):
        plant(locus, START + position, "GC box", rng)
    plant(locus, START - 38, "BRE", rng)
    plant(locus, START - 31, "TATA box", rng)
    plant(locus, START - 2, "initiator", rng)

    # intron and the end of the gene
    donor = 300 + rng.integers(20)
    acceptor = 420 + rng.integers(20)
    plant(locus, donor - 3, "donor", rng)
    plant(locus, donor + 9 + rng.integers(6), "G triplets", rng)
    plant(locus, acceptor - 14, "acceptor", rng)
    plant(locus, 520 + rng.integers(20), "poly-A signal", rng)

    # enhancer
    for position in (606, 624, 642):
        plant(locus, position + rng.integers(8), "NF-kappa-B", rng)
    for position in (665, 680):
        plant(locus, position + rng.integers(7), rng.choice(["AP-1", "CREB"]), rng)

    return {"promoter": {1: START - 110, 0: 705},
            "core_promoter": {1: START - 40, 0: 830},
            "splice": {0: acceptor - 30, 1: donor - 30, 2: 895},
            "tf": {1: 602, 0: 30}}


# --------------------------------------------------------------------------------------
# English

def python_prose():
    """-> texts that every Python carries: topics of its manual, and docstrings"""
    # imported here, because some Pythons come without it
    from pydoc_data.topics import topics
    texts = list(topics.values())
    for name in ("argparse asyncio collections csv ctypes datetime decimal "
                 "email.message fractions functools heapq http.client inspect io "
                 "json logging multiprocessing os pathlib pickle random re shutil "
                 "socket sqlite3 statistics string subprocess tarfile tempfile "
                 "textwrap threading turtle typing unittest urllib.request uuid "
                 "xml.dom.minidom zipfile").split():
        try:
            module = importlib.import_module(name)
        except ImportError:     # a Python built without this part
            continue
        for _, thing in [("", module), *inspect.getmembers(module)]:
            texts.append(inspect.getdoc(thing) or "")
            if inspect.isclass(thing):
                texts += [inspect.getdoc(method) or ""
                          for _, method in inspect.getmembers(thing, callable)]
    return list(dict.fromkeys(text.strip() for text in texts if len(text) > 40))


# --------------------------------------------------------------------------------------
# Files

def title(seed):
    """-> the first line of genome.fa. It tells the toy world from a user's own files."""
    return f">toy_contig_1 invented by dna/toy.py with seed {seed}\n"


def write_text(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as f:
        f.write(text)


def write(folder, seed):
    """Write the raw files. The genes of test examples are in no other file."""
    # invent the genes, and cut examples from them
    rng = np.random.default_rng(seed)
    loci = background(GENES + TEST_GENES, LOCUS, rng)
    tables = defaultdict(lambda: ["sequence,label\n"])
    for number, locus in enumerate(loci):
        split = "train" if number < GENES else "test"
        for task, starts in plant_gene(locus, rng).items():
            for label, start in starts.items():
                sequence = "".join(locus[start:start + TASKS[task][0]])
                tables[f"{task}/{split}.csv"].append(f"{sequence},{label}\n")

    # DNA: contigs of ten genes, in lines of 80 bases
    lines = []
    for number, genes in enumerate(loci[:GENES].reshape(-1, CONTIG * LOCUS), start=1):
        lines.append(title(seed) if number == 1 else f">toy_contig_{number} invented\n")
        contig = "".join(genes)
        lines += [contig[i:i + 80] + "\n" for i in range(0, len(contig), 80)]
    write_text(f"{folder}/genome.fa", "".join(lines))

    # English
    write_text(f"{folder}/english.txt", "\n\n".join(python_prose()) + "\n")

    # tasks: a table per split, and what its labels mean
    for name, rows in tables.items():
        write_text(f"{folder}/{name}", "".join(rows))
    for task, (_, asks, words) in TASKS.items():
        text = json.dumps({"asks": asks, "labels": dict(enumerate(words))}, indent=2)
        write_text(f"{folder}/{task}/task.json", f"{text}\n")


def files(folder, seed):
    """-> the toy world's files in `folder`, by prepare.py's keys: dna, english, tasks.
    They are written unless they are there, so that a student may change them."""
    if os.path.exists(folder):
        with open(f"{folder}/genome.fa", encoding="utf-8") as f:
            require(f.readline() == title(seed),
                    f"{folder}: not the toy world of seed {seed}: move it away, and it "
                    "will be made, or choose another data_dir")
    else:
        # renamed at the end: there is no `folder` if this is interrupted
        write(f"{folder}.part", seed)
        os.rename(f"{folder}.part", folder)
    return {"dna": (f"{folder}/genome.fa",), "english": (f"{folder}/english.txt",),
            "tasks": tuple(f"{folder}/{task}" for task in TASKS)}


if __name__ == "__main__":
    files("data/toy/raw", seed=1337)
    print("wrote data/toy/raw; next: python prepare.py")
