"""
The toy world: an invented genome with its tasks, and English that comes with Python.
"""
import os

import numpy as np
from tqdm import tqdm

MOTIFS = {      # consensus sequences in IUPAC letters
    "BRE": "SSRCGCC",                       # Lagrange et al., 1998; just before the TATA box
    "TATA box": "STATAWAWR",                # Bucher, 1990; about 30 bases before the start
    "initiator": "YYANWYY",                 # Smale and Kadonaga, 2003; at the start
    "GC box": "GGGGCGGGGC",                 # Sp1; Kadonaga et al., 1986; upstream
    "donor": "MAGGTRAGT",                   # Mount, 1982; an intron begins behind MAG
    "G triplets": "GGGNNGGGNNGGG",          # McCullough and Berget, 1997; early in short introns
    "acceptor": "YYYYYYYYYYNCAGG",          # Mount, 1982; an intron ends with CAG
    "poly-A signal": "AATAAA",              # Proudfoot and Brownlee, 1976
    "NF-kappa-B": "GGGRNWYYCC",             # Chen et al., 1998
    "AP-1": "TGASTCA",                      # Lee et al., 1987
    "CREB": "TGACGTCA",                     # Montminy et al., 1986
}
CODES = {"A": "A", "C": "C", "G": "G", "T": "T", "R": "AG", "Y": "CT", "S": "CG", "W": "AT",
         "K": "GT", "M": "AC", "N": "ACGT"}

# Each base after each other, in vertebrates' proportions: 41% G and C, few CG (Bird, 1980).
FOLLOWS = {"A": [.33, .17, .24, .26], "C": [.35, .25, .05, .35],
           "G": [.29, .21, .25, .25], "T": [.22, .20, .24, .34]}

GENES, TEST_GENES = 2200, 250
LOCUS = 1000        # bases of each gene with the stretch around it
START = 200         # where in its locus a gene starts
TASK_WINDOWS = {"promoter": 120, "core_promoter": 60, "splice": 60, "tf": 60}


def background(n, length, rng):
    """-> (n, length) letters of n random sequences, a first-order Markov chain each"""
    letters = np.array(list("ACGT"))
    chances = np.cumsum([FOLLOWS[base] for base in letters], axis=1)
    state = rng.integers(4, size=n)
    out = np.empty((n, length), dtype="<U1")
    for i in range(length):
        state = (rng.random(n)[:, None] > chances[state]).sum(axis=1).clip(max=3)
        out[:, i] = letters[state]
    return out


def plant(locus, place, name, rng):
    """Write a motif into a locus (length,) at `place`, an ambiguous letter as one it allows."""
    for i, code in enumerate(MOTIFS[name]):
        locus[place + i] = rng.choice(list(CODES[code]))


def make_locus(locus, rng):
    """Plant one gene into a background -> {task: [(sequence, label), ...]} cut from it.

    0: background   100: promoter   200: the gene starts   300: exon ends, intron   420: exon
    520: gene ends  600: enhancer   700: background, for the examples of what is not there
    """
    for place in rng.choice(np.arange(-110, -52, 12), size=2, replace=False):
        plant(locus, START + place, "GC box", rng)
    plant(locus, START - 38, "BRE", rng)
    plant(locus, START - 31, "TATA box", rng)
    plant(locus, START - 2, "initiator", rng)
    donor = 300 + rng.integers(20)
    acceptor = 420 + rng.integers(20)
    plant(locus, donor - 3, "donor", rng)
    plant(locus, donor + 9 + rng.integers(6), "G triplets", rng)
    plant(locus, acceptor - 14, "acceptor", rng)
    plant(locus, 520 + rng.integers(20), "poly-A signal", rng)
    for place in (606, 624, 642):
        plant(locus, place + rng.integers(8), "NF-kappa-B", rng)
    for place in (665, 680):
        plant(locus, place + rng.integers(7), rng.choice(["AP-1", "CREB"]), rng)

    def cut(task, start):
        return "".join(locus[start:start + TASK_WINDOWS[task]])

    return {"promoter": [(cut("promoter", START - 110), 1), (cut("promoter", 705), 0)],
            "core_promoter": [(cut("core_promoter", START - 40), 1), (cut("core_promoter", 830), 0)],
            "splice": [(cut("splice", acceptor - 30), 0), (cut("splice", donor - 30), 1),
                       (cut("splice", 895), 2)],
            "tf": [(cut("tf", 602), 1), (cut("tf", 30), 0)]}


def write(folder, seed):
    """Write the toy world's raw files. Genes of the test examples are
    in no training file: they have a genome of their own."""
    rng = np.random.default_rng(seed)
    loci = background(GENES + TEST_GENES, LOCUS, rng)
    tasks = {}
    for number, locus in enumerate(tqdm(loci, desc="inventing genes", unit=" genes", disable=None)):
        split = "train" if number < GENES else "test"
        for task, examples in make_locus(locus, rng).items():
            tasks.setdefault((task, split), []).extend(examples)
    for name, part in (("genome", loci[:GENES]), ("test_genome", loci[GENES:])):
        with open(os.path.join(folder, f"{name}.fa"), "w", encoding="utf-8") as f:
            for i in range(0, len(part), 10):
                text = "".join(part[i:i + 10].ravel())
                f.write(f">toy_contig_{i // 10 + 1} invented\n")
                f.writelines(text[j:j + 80] + "\n" for j in range(0, len(text), 80))
    for (task, split), examples in tasks.items():
        os.makedirs(os.path.join(folder, task), exist_ok=True)
        with open(os.path.join(folder, task, f"{split}.csv"), "w", encoding="utf-8") as f:
            f.write("sequence,label\n")
            f.writelines(f"{sequence},{label}\n" for sequence, label in examples)
    with open(os.path.join(folder, "english.txt"), "w", encoding="utf-8") as f:
        f.write("\n\n".join(python_prose()) + "\n")


def python_prose():
    """English that every Python carries: the manual's topics and the docstrings of its library."""
    import importlib
    import inspect
    from pydoc_data.topics import topics
    texts = list(topics.values())
    for name in ("argparse asyncio collections csv ctypes datetime decimal email.message fractions "
                 "functools heapq http.client inspect io json logging multiprocessing os pathlib "
                 "pickle random re shutil socket sqlite3 statistics string subprocess tarfile "
                 "tempfile textwrap threading turtle typing unittest urllib.request uuid "
                 "xml.dom.minidom zipfile").split():
        try:
            module = importlib.import_module(name)
        except ImportError:     # a Python built without this part
            continue
        for _, thing in [("", module), *inspect.getmembers(module)]:
            texts.append(inspect.getdoc(thing) or "")
            if inspect.isclass(thing):
                texts += [inspect.getdoc(m) or "" for _, m in inspect.getmembers(thing, callable)]
    return list(dict.fromkeys(t.strip() for t in texts if len(t) > 40))
