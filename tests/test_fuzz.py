"""Damaged and odd files, names and outputs: each case ends in success with sane content or in one line,
never in a traceback, a hang, or a file that is lost or half-written. Case k is a function of k alone.
`FUZZ=10000 python -m pytest -m torture` tries that many cases, not 300."""
import contextlib
import gzip
import io
import json
import os
import re
import shutil
import signal
import stat
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
import torch

import config
import instruct
import prepare
import sample
import train
from bpe import Tokenizer
from conftest import TINY, TUNING, listing
from dna import read
from dna.tasks import find_tables, make_examples
from model import GPT, GPTConfig, load_checkpoint, save_checkpoint
from tools.gpt2 import export_gpt2, read_gpt2
from train import TrainConfig

MANY = pytest.mark.parametrize("cases", [300, pytest.param(int(os.environ.get("FUZZ", 10000)),
                                                           marks=pytest.mark.torture)], ids=["few", "many"])
NASTY = [b"\x00", b"\xef\xbb\xbf", b"\xff\xfe", b"\r", b"\r\n", b"\n\n", b'"', b"'", b",", b";", b"\t",
         b"null", b"NaN", b"1e999", b"-1", b"[", b"]", b"{", b"}", b"[" * 3000, b"\xe2\x82", b">", b"N" * 50,
         b"A" * 3000, b"  ", b":", b"=", b"\\", b"\\ud800", b"9" * 5000, b"true", b"MKLVWYH", b"\x1f\x8b\x08"]


def mutate(data, rng):
    """A few random edits of some bytes"""
    for _ in range(rng.integers(1, 4)):
        at, n = rng.integers(len(data) + 1), int(rng.integers(1, 40))
        kind = rng.integers(6)
        if kind == 0:
            data = data[:at]                                            # cut short
        elif kind == 1:
            data = data[:at] + NASTY[rng.integers(len(NASTY))] + data[at:]
        elif kind == 2:
            data = data[:at] + data[at + n:]                            # a piece is missing
        elif kind == 3:
            data = data[:at] + data[at:at + n] * 2 + data[at + n:]      # a piece comes twice
        elif kind == 4:
            data = data[:at] + rng.bytes(n) + data[at + n:]             # noise
        else:
            other = rng.integers(len(data) + 1)                         # a piece from elsewhere
            data = data[:at] + data[other:other + n] + data[at + n:]
    return data


# -- what is mutated, and what must hold of it where it is read

def fasta(path):
    for stretch in read.read_dna(path, Counter()):
        assert set(stretch) <= set("ACGT") and len(stretch) >= 8


def table(path):
    (task, tables), = find_tables(path).items()
    for records in make_examples(task, tables, 0).values():
        for r in records:
            assert set(r["input"]) <= set(read.IUPAC) and r["output"] in r["choices"]


def alpaca(path):
    for r in read.read_alpaca(path):
        assert r["instruction"].strip() and r["output"].strip() and isinstance(r["input"], str)
        assert r["output"] in r.get("choices", [r["output"]])


def toml(path):
    cfg = config.from_command_line(TrainConfig, "train", [path])
    assert cfg.batch_size > 0 and cfg.learning_rate > 0 and isinstance(cfg.out_dir, str)


def tokenizer(path):
    tok = Tokenizer.load(path)
    text = "The CAT sat.\nGGCTATAAAAGGGCNN é"
    ids = tok.encode(text)
    assert all(0 <= i < len(tok) for i in ids)
    if tok.decode(ids) != text:
        assert tok.unknown


def bins(path):
    folder = os.path.dirname(path)
    meta, tok = train.read_data(folder)
    ids = train.open_bin(folder, "train.bin", meta)
    windows = train.Windows(ids, 16, 1)
    assert windows.rows(0, 2)[0].shape == (2, 16)


def checkpoint(path):
    model, state = load_checkpoint(path)
    assert model.config.n_layer == 1 and state["step"] == 3


def gpt2(path):
    assert read_gpt2(os.path.dirname(path), 280).config.n_embd == 8


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """-> {reader: a valid file that it reads}"""
    folder = tmp_path_factory.mktemp("valid")
    rng = np.random.default_rng(0)

    def dna(n):
        return "".join(rng.choice(list("ACGT"), size=n))

    rows = "".join(f"{dna(40)},{i % 2}\n" for i in range(40))
    record = {"instruction": "Say it.", "input": "", "output": "yes", "choices": ["yes", "no"]}
    tok = Tokenizer.train(["the cell is read", dna(200), dna(200)], 300)
    torch.manual_seed(0)
    model = GPT(GPTConfig(len(tok), 16, 1, 2, 8))
    texts = {"x.fa": f">one\n{dna(100)}\n{dna(50)}nnnn{dna(9)}\n>two\n{dna(30).lower()}\n",
             "x.csv": "sequence,label\n" + rows, "x.json": json.dumps([record] * 9, indent=1),
             "x.jsonl": (json.dumps(record) + "\n") * 9,
             "x.toml": '[train]\nbatch_size = 4\nlearning_rate = 1e-3\nout_dir = "x"\ncompile = "no"\n'}
    for name, text in texts.items():
        (folder / name).write_text(text)
    tok.save(folder / "tokenizer.json")
    save_checkpoint(folder / "x.pt", model, step=3)
    sha256 = config.file_sha256(folder / "tokenizer.json")
    save_checkpoint(folder / "best.pt", model, tokenizer_sha256=sha256)
    export_gpt2(folder, folder / "gpt2")
    for name in ("data", "meta"):
        os.mkdir(folder / name)
        tok.save(folder / name / "tokenizer.json")
        ids = np.array(tok.encode("".join(dna(40) + " " for _ in range(20))), dtype="<u2")
        ids.tofile(folder / name / "train.bin")
        (folder / name / "meta.json").write_text(json.dumps({
            "dtype": "<u2", "vocab_size": len(tok), "modalities": {},
            "bins": {"train.bin": {"documents": 1, "tokens": len(ids), "bases": 800, "bytes": 0}},
            "tokenizer_sha256": config.file_sha256(folder / name / "tokenizer.json")}))
    return [(fasta, folder / "x.fa"), (table, folder / "x.csv"), (alpaca, folder / "x.json"),
            (alpaca, folder / "x.jsonl"), (toml, folder / "x.toml"), (tokenizer, folder / "tokenizer.json"),
            (bins, folder / "data/train.bin"), (bins, folder / "meta/meta.json"), (checkpoint, folder / "x.pt"),
            (gpt2, folder / "gpt2/model.safetensors"), (gpt2, folder / "gpt2/config.json")]


def one_line(error):
    """What config.run would print of an error that the user can fix"""
    text = f"{error.filename}: {error.strerror}" if isinstance(error, OSError) and error.filename \
        else str(error)
    return " ".join(text.split())


def test_valid_files_are_read(valid):
    for reader, path in valid:
        reader(str(path))


@MANY
def test_mutated_files(valid, tmp_path, cases):
    refused = 0
    for k in range(cases):
        rng = np.random.default_rng(k)
        reader, source = valid[k % len(valid)]
        folder = tmp_path / "case"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source.parent, folder) if source.parent.name != "valid0" else os.mkdir(folder)
        path = folder / source.name
        path.write_bytes(mutate(source.read_bytes(), rng))
        try:
            reader(str(path))
        except (ValueError, OSError) as e:
            refused += 1
            assert source.name.split(".")[0] in one_line(e) or str(folder) in one_line(e), (k, e)
        except Exception as e:
            raise AssertionError(f"case {k}, {reader.__name__}: {type(e).__name__}: {e}") from e
    print(f"{cases} cases of readers, {refused} refused")
    assert 0.2 * cases < refused < cases


@MANY
def test_mutated_input_leaves_no_half_written_folder(tmp_path, toy, cases):
    """prepare.py on mutated files: a whole folder or none"""
    raw = f"{toy}/data/raw"
    small = tmp_path / "raw"
    os.makedirs(small / "promoter")
    for name, n in (("genome.fa", 60_000), ("english.txt", 60_000)):
        with open(f"{raw}/{name}", "rb") as f:
            (small / name).write_bytes(f.read(n))
    for name in ("train.csv", "test.csv"):
        with open(f"{raw}/promoter/{name}", "rb") as f:
            (small / "promoter" / name).write_bytes(b"".join(f.readlines()[:30]))
    names = ["genome.fa", "english.txt", "promoter/train.csv", "promoter/test.csv"]
    done = 0
    for k in range(cases // 40):
        rng = np.random.default_rng(10_000 + k)
        case = tmp_path / "case"
        shutil.rmtree(case, ignore_errors=True)
        shutil.copytree(small, case / "raw")
        path = case / "raw" / names[k % 4]
        path.write_bytes(mutate(path.read_bytes(), rng))
        before = listing(case)
        try:
            prepare.main([f"--dna={case}/raw/genome.fa", f"--english={case}/raw/english.txt",
                          f"--tasks={case}/raw/promoter", f"--data_dir={case}/data", "--vocab_size=300",
                          "--val_fraction=0.4"])
            train.read_data(f"{case}/data")
            done += 1
        except (ValueError, OSError) as e:
            assert listing(case) == before, (k, e)
            assert not os.path.exists(case / "data") or not os.listdir(case / "data"), (k, e)
    print(f"{cases // 40} cases of prepare.py, {cases // 40 - done} refused")
    assert done > 1


# -- whole scripts: what their files are called, where they write, and what is damaged

NAMES = ["x", "a b", " x", "x ", "gène", "漢字", "new\nline", "tab\tx", "-x", "--help", "[a]", "[!a]*?", "~", "~root",
         "$HOME `ls`", "it's \"x\"", "x" * 240, "x" * 251, ".hidden", "test", "val", "dev", "test.train", "train.test",
         "a,b", "a=b", "#%s{0}\\n", "caf\udce9", "x.names", "tasks", "data", "meta.json", "preparing.tmp", "best.pt.tmp"]
OUTPUTS = ["new", "file", "link to a file", "dangling link", "link into no folder", "link to itself", "pipe", "device",
           "link to a device", "folder", "folder with files", "link to a folder", "the input", "link to the input",
           "hard link to the input", "-", "in no folder", "below a file", "read-only file", "in a read-only folder"]
IMPOSSIBLE = {"read-only file", "in a read-only folder"} if os.geteuid() == 0 else {"device", "link to a device"}


class Use(NamedTuple):
    """One way to use a script"""
    script: ModuleType
    key: str            # of the input; "" for a preset
    source: str         # what is given, a file or a folder of the fixture `tiny`
    more: str           # other arguments, of which {} is that folder
    out: str            # the key of the output
    suffix: str = ""    # of the output


USES = [
    Use(prepare, "dna", "genome.fa", "--vocab_size=300 --val_fraction=0.2", "data_dir"),
    Use(prepare, "english", "english.txt", "--vocab_size=300 --val_fraction=0.2 --tasks={}/x", "data_dir"),
    Use(prepare, "tokenizer", "data/tokenizer.json", "--val_fraction=0.2 --dna={}/genome.fa", "data_dir"),
    Use(prepare, "tasks", "x", "", "data_dir"),
    Use(prepare, "tasks", "x/train.csv", "", "data_dir"),
    Use(prepare, "tasks", "data/tasks/x.train.json", "", "data_dir"),
    Use(prepare, "tasks", "x", "--tasks_as_text --vocab_size=300 --val_fraction=0.5", "data_dir"),
    Use(train, "data_dir", "data", " ".join(TINY) + " --max_steps=1", "out_dir"),
    Use(train, "", "preset.toml", " ".join(TINY) + " --max_steps=1 --data_dir={}/data", "out_dir"),
    Use(train, "out_dir", "out", " ".join(TINY) + " --max_steps=3 --data_dir={}/data --resume", ""),
    Use(instruct, "init_from", "out", " ".join(TUNING) + " --max_steps=1 --tasks={}/data/tasks/x.train.json "
        "--eval_tasks={}/data/tasks/x.test.json", "out_dir"),
    Use(instruct, "init_from", "tuned", "--device=cpu --epochs=0 --eval_tasks={}/data/tasks/x.test.json", "out_dir"),
    Use(instruct, "tasks", "data/tasks/x.train.json", " ".join(TUNING) + " --max_steps=1 --init_from={}/out "
        "--eval_tasks={}/data/tasks/x.test.json", "out_dir"),
    Use(instruct, "eval_tasks", "data/tasks/x.test.json", "--device=cpu --epochs=0 --init_from={}/out", "out_dir"),
    Use(instruct, "out_dir", "tuned", " ".join(TUNING) + " --max_steps=3 --tasks={}/data/tasks/x.train.json "
        "--eval_tasks={}/data/tasks/x.test.json --init_from={}/out --resume", ""),
    *[Use(sample, "out_dir", "tuned", f"--device=cpu --task=x --{use}={{}}/seqs.fa", "output", ".tsv")
      for use in ("predict", "score")],
    *[Use(sample, use, source, "--device=cpu --task=x --out_dir={}/tuned", "output", suffix)
      for use, suffix in (("predict", ".tsv"), ("score", ".tsv.gz"), ("explain", ".tsv"), ("embed", ".npy"))
      for source in ("seqs.fa", "seqs.csv")],
    Use(sample, "compare", "seqs.fa", "--device=cpu --out_dir={}/tuned --compare={}/seqs.fa", "output"),
]


def state_of(folder):
    """-> {path below a folder: what is there}: a file's bytes, a link's target, or its type"""
    state = {}
    for parent, folders, names in os.walk(folder):
        for name in folders + names:
            path = os.path.join(parent, name)
            kind = stat.S_IFMT(os.lstat(path).st_mode)
            if kind == stat.S_IFREG:
                kind = Path(path).read_bytes()
            elif kind == stat.S_IFLNK:
                kind = f"-> {os.readlink(path)}"
            state[path] = kind
    return state


def make_output(kind, folder, name, source):
    """Make what stands where a script is told to write -> the path that it is given, and a file's
    descriptor from which a pipe can be read"""
    path, other = f"{folder}/{name}", f"{folder}/other"
    # what a link leads to
    if kind.startswith("link to ") or kind == "dangling link":
        goals = {"link to itself": path, "link to the input": source}
        os.symlink(goals.get(kind, other), path)
        name = "other"
    # what is there
    match kind.removeprefix("link to a ").removeprefix("in a "):
        case "file" | "read-only file":
            Path(folder, name).write_text("old")
            os.chmod(f"{folder}/{name}", 0o444 if "read-only" in kind else 0o644)
        case "folder" | "folder with files" | "read-only folder":
            os.mkdir(f"{folder}/{name}")
            if "files" in kind:
                Path(path, "notes.txt").write_text("mine")
            if "read-only" in kind:
                os.chmod(path, 0o555)
                return f"{path}/x{Path(name).suffix}", None
        case "device":
            os.mknod(f"{folder}/{name}", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        case "pipe":
            os.mkfifo(path)
            return path, os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        case "the input":
            return source, None
        case "hard link to the input" if os.path.isfile(source):
            os.link(source, path)
        case "link into no folder":
            os.symlink(f"{folder}/none/x", path)
        case "-":
            return "-", None
        case "in no folder":
            return f"{folder}/none/{name}", None
        case "below a file":
            Path(other).write_text("old")
            return f"{other}/{name}", None
    return path, None


def damage(folder, rng):
    """Damage one of the files of a folder, or a file; a checkpoint also in its content"""
    paths = sorted(p for p in Path(folder).rglob("*") if p.is_file()) if folder.is_dir() else [folder]
    path, kind = paths[rng.integers(len(paths))], rng.integers(4)
    if path.suffix == ".pt" and kind:
        state = torch.load(path)
        name = [*state][rng.integers(len(state))]
        weights = state["model"]
        if kind == 1:
            del state[name]
        elif kind == 2:
            key = [*weights][rng.integers(len(weights))]
            weights[key] = weights[key][:-1]
        else:
            key = [*state["model_config"]][rng.integers(len(state["model_config"]))]
            state["model_config"][key] += 1
        torch.save(state, path)
    elif path.name == "last.pt" and (path.parent / "best.pt").exists():
        shutil.copy(path.parent / "best.pt", path)
    elif kind == 0 and folder.is_dir():
        path.unlink()
    elif path.suffix == ".bin":     # its ids are not looked at before they are used
        path.write_bytes(path.read_bytes()[:rng.integers(path.stat().st_size)])
    else:
        path.write_bytes(mutate(path.read_bytes(), rng))


class Hang(BaseException):
    pass


def run_script(module, argv):
    """Run a script as the command line does -> what it prints, and the line that it ends with, "" if
    all went well"""
    def hang(*_):
        raise Hang

    before = signal.signal(signal.SIGALRM, hang), signal.getsignal(signal.SIGTERM)
    signal.setitimer(signal.ITIMER_REAL, 60)
    printed = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")      # strict, as a terminal's
    try:
        with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), \
                contextlib.redirect_stderr(io.StringIO()):
            patch.setattr(sys, "argv", ["x.py", *argv])
            config.run(module.main)
            line = ""
    except SystemExit as e:
        line = e.code or ""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for signum, handler in zip((signal.SIGALRM, signal.SIGTERM), before):
            signal.signal(signum, handler)
    printed.flush()
    return printed.buffer.getvalue().decode(), line


def check_result(use, out, content):
    """Check what a script wrote, a folder or a file. content: of the file, bytes"""
    if use.script is prepare:
        names = [path for path in Path(out, "tasks").glob("*.json")]
        assert names or use.key != "tasks"
        for path in names:
            alpaca(str(path))
        if os.path.exists(f"{out}/train.bin"):
            train.read_data(out)
    elif "--epochs=0" in use.more:
        assert json.loads(Path(out, "scores.json").read_text())["tasks"]
    elif use.out == "out_dir" or use.key == "out_dir" and use.script is not sample:
        assert train.load_model(out)[0].config.n_layer == 1
    elif use.key == "embed":
        vectors = np.load(io.BytesIO(content))
        assert vectors.shape[1] == 8 and not np.isinf(vectors).any()
    else:
        text = (gzip.decompress(content) if use.suffix.endswith(".gz") and out != "-" else content).decode()
        rows = [line.split("\t") for line in text.splitlines() if "\t" in line]
        assert rows and len({len(row) for row in rows}) == 1


def script_case(k, tiny, folder):
    """Case k, a function of k alone -> the line that the script ended with"""
    # the input, under an odd name, or damaged, or neither
    rng = np.random.default_rng(k)
    use, odd = USES[k % len(USES)], rng.integers(2, size=3)
    name, target = (NAMES[rng.integers(len(NAMES)) * i] for i in odd[:2])
    suffix = Path(use.source).suffix
    source = folder / "in" / f"{name[:250 - len(suffix)]}{suffix}"
    copy = shutil.copytree if (tiny / use.source).is_dir() else shutil.copy
    for parent in (source.parent, folder / "out"):
        parent.mkdir(parents=True)
    copy(tiny / use.source, source)
    if use.key and rng.random() < 0.4:
        damage(source, rng)

    # the output
    out, pipe = str(source), None
    if use.out:
        kind = OUTPUTS[rng.integers(len(OUTPUTS)) * odd[2]]
        kind = "new" if kind in IMPOSSIBLE else kind
        out, pipe = make_output(kind, folder / "out", f"{target[:255 - len(use.suffix)]}{use.suffix}", str(source))
    written = os.path.realpath(out) if os.path.isabs(out) else str(source.parent / out)

    # run
    given = source if rng.integers(2) else source.name
    argv = [*use.more.format(*[tiny] * 3).split(), f"--{use.key}={given}" if use.key else str(given)]
    before = state_of(folder) | state_of(tiny)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(source.parent)
        patch.setenv("HOME", str(folder / "home"))
        printed, line = run_script(use.script, argv + [f"--{use.out}={out}"] * bool(use.out))
    after = state_of(folder) | state_of(tiny)
    changed = {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)}

    # refused: all is as it was, but for an empty folder
    if line:
        assert re.fullmatch("error: .{10,1000}", line), line
        assert all(after.get(path) == stat.S_IFDIR for path in changed), (line, changed)
        return line
    # done: what it was to write is whole, and nothing else has changed
    names = out.removesuffix(".npy") + ".names.txt"
    for path in changed:
        assert path in (written, names, str(folder / "out/none")) or path.startswith(f"{written}/") and (
            path not in before or not use.out or path.endswith("scores.json")), path
    if pipe:
        check_result(use, out, os.read(pipe, 1 << 20))
    elif out == "-" and use.script is sample:
        check_result(use, "-", printed.encode())
    elif not stat.S_ISCHR(os.stat(written).st_mode):
        check_result(use, written, os.path.isfile(written) and Path(written).read_bytes())
    return ""


@MANY
def test_scripts(tiny, tmp_path, cases):
    """Whatever files are called, wherever a script is told to write, and whatever is damaged: it is done,
    or one line says what is wrong, and no other file has changed."""
    lines = []
    for k in range(cases // 4):
        folder = tmp_path / str(k)
        try:
            lines.append(script_case(k, tiny, folder))
        except (Exception, Hang) as e:
            raise AssertionError(f"case {k}: {type(e).__name__}: {e}") from e
        shutil.rmtree(folder)
    refused = sum(map(bool, lines))
    print(f"{len(lines)} cases of scripts, {refused} refused")
    assert 0.2 * len(lines) < refused < 0.9 * len(lines)
