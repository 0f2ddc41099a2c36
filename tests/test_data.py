"""results/data.sh, on a server of the test's own: nothing outside this machine is asked."""
import gzip
import hashlib
import http.server
import io
import os
import shutil
import subprocess
import threading
import tomllib
import zipfile

import pytest
from conftest import random_dna

import config

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(config.__file__)))
UCSC = "/hgdownload.soe.ucsc.edu/goldenPath"
BOOKS = (10, 84, 98, 100, 135, 145, 345, 766, 944, 996, 1184, 1228, 1342, 1399, 1661, 2300, 2600, 2701,
         28054)
pytestmark = pytest.mark.skipif(not (shutil.which("curl") and shutil.which("unzip")),
                                reason="needs curl and unzip")


class Handler(http.server.BaseHTTPRequestHandler):
    """It goes on in the middle of a file, which that of http.server cannot."""

    def do_GET(self):
        path, asked = self.path.partition("?")[0], self.headers["Range"]
        self.server.log.append((path, asked))
        if path not in self.server.files:
            self.send_error(404)
            return
        whole = self.server.files[path]
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if asked and first >= len(whole):
            self.send_error(416)
            return
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{len(whole) - 1}/{len(whole)}")
        self.send_header("Content-Length", str(len(whole) - first))
        self.end_headers()
        # one connection breaks off in the middle of this file
        cut = path == self.server.breaks and not asked
        self.wfile.write(whole[first:first + len(whole) // 2] if cut else whole[first:])

    def log_message(self, *args):
        pass


def chromosome(seed):
    return gzip.compress(f">chr{seed}\n{random_dna(3000, seed)}\n".encode())


@pytest.fixture
def server():
    """-> a server with all files that the script fetches: .files {path: content}, .log [(path, range)]"""
    files = {f"{UCSC}/hg38/chromosomes/chr{n}.fa.gz": chromosome(n) for n in (21, 22)}
    files |= {f"{UCSC}/sacCer3/bigZips/sacCer3.fa.gz": chromosome(3)}
    for folder in ("hg38/chromosomes", "sacCer3/bigZips"):
        sums = [f"{hashlib.md5(content).hexdigest()}  {os.path.basename(path)}\n"
                for path, content in files.items() if folder in path]
        # names that only end alike
        others = [f"{'0' * 32}  x_{line[34:]}" for line in sums]
        files[f"{UCSC}/{folder}/md5sum.txt"] = "".join(others + sums).encode()
    files |= {f"/www.gutenberg.org/cache/epub/{n}/pg{n}.txt": f"Book {n}.\nThe end.".encode() for n in BOOKS}
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as f:
        for folder in ("EMP/H3", "mouse/0", "prom/prom_core_all", "splice/reconstructed", "tf/0",
                       "virus/covid"):
            f.writestr(f"GUE/{folder}/train.csv", "sequence,label\nACGTACGT,1\n")
    files["/drive.usercontent.google.com/download"] = packed.getvalue()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.files, server.log, server.breaks = files, [], None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def download(server, tmp_path, monkeypatch):
    """-> a function that runs the script in an empty folder -> (status, what it printed)"""
    os.makedirs(tmp_path / "results")
    shutil.copy(f"{ROOT}/results/data.sh", tmp_path / "results")
    # it need not wait for this server's sake
    os.makedirs(tmp_path / "bin")
    for name, program in (("sleep", "true"), ("python", shutil.which("python") or shutil.which("python3"))):
        os.symlink(shutil.which(program), tmp_path / "bin" / name)
    monkeypatch.chdir(tmp_path)
    env = os.environ | {"MIRROR": f"http://127.0.0.1:{server.server_port}", "no_proxy": "127.0.0.1",
                        "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}

    def run():
        server.log.clear()
        run = subprocess.run(["bash", "results/data.sh"], env=env, capture_output=True, text=True)
        return run.returncode, run.stdout + run.stderr
    return run


def have(*paths):
    """Files that are there already"""
    for path in paths:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb"):
            pass


def read(path):
    with open(path, "rb") as f:
        return f.read()


def test_what_the_laptop_preset_reads(server, download):
    """The raw files by the names in the preset, with what was on the server, and nothing fetched twice"""
    status, out = download()
    assert status == 0, out
    for licence in ("free for any use", "public domain", "DNABERT-2"):
        assert licence in out
    with open(f"{ROOT}/config/laptop.toml", "rb") as f:
        preset = tomllib.load(f)["prepare"]
    for path in (*preset["dna"], *preset["english"], *preset["tasks"]):
        assert os.path.exists(path), path
    genome = gzip.decompress(read("raw/genome.fa.gz")).decode()
    assert genome == f">chr21\n{random_dna(3000, 21)}\n>chr22\n{random_dna(3000, 22)}\n"
    assert read("raw/english.txt").decode() == "".join(f"Book {n}.\nThe end.\n" for n in BOOKS)
    assert sorted(os.listdir("raw/GUE")) == ["EMP", "mouse", "prom", "splice", "tf"]
    assert not [name for _, _, names in os.walk("raw") for name in names if name.endswith(".part")]
    assert len(server.log) == len(set(server.log)) + 1      # md5sum.txt, for each chromosome

    status, _ = download()
    assert status == 0 and not server.log


def test_half_a_file_is_gone_on_with(server, download):
    have("raw/yeast.fa.gz", "raw/english.txt", "raw/GUE/a")
    path = f"{UCSC}/hg38/chromosomes/chr22.fa.gz"
    server.breaks = path
    status, out = download()
    assert status != 0 and "raw/chr22.fa.gz is not whole: run the same command" in out
    assert not os.path.exists("raw/genome.fa.gz")
    half = os.path.getsize("raw/chr22.fa.gz.part")
    assert half == len(server.files[path]) // 2

    status, out = download()
    assert status == 0, out
    assert [(path, f"bytes={half}-")] == [line for line in server.log if "md5sum" not in line[0]]
    assert read("raw/chr22.fa.gz") == server.files[path]


def test_a_whole_file_that_was_not_renamed(server, download):
    """The script may be killed between the last byte and the new name."""
    have("raw/genome.fa.gz", "raw/english.txt", "raw/GUE/a")
    with open("raw/yeast.fa.gz.part", "wb") as f:
        f.write(server.files[f"{UCSC}/sacCer3/bigZips/sacCer3.fa.gz"])
    assert download()[0] == 0
    assert gzip.decompress(read("raw/yeast.fa.gz")).startswith(b">chr3")


def test_a_wrong_checksum(server, download):
    server.files[f"{UCSC}/hg38/chromosomes/chr21.fa.gz"] = chromosome(5)
    status, out = download()
    assert status != 0
    assert "error: raw/chr21.fa.gz.part has another MD5 than md5sum.txt says: remove it" in out
    assert os.listdir("raw") == ["chr21.fa.gz.part"]


def test_what_cannot_be_checked_is_said(server, download):
    have("raw/genome.fa.gz", "raw/english.txt", "raw/GUE/a")
    sums = f"{UCSC}/sacCer3/bigZips/md5sum.txt"
    del server.files[sums]
    status, out = download()
    assert status != 0 and "error: no http://127.0.0.1" in out and sums in out
    server.files[sums] = f"{'0' * 32}  another.fa.gz\n".encode()
    status, out = download()
    assert status == 0 and "raw/yeast.fa.gz.part is not checked: http://127.0.0.1" in out


def test_a_page_is_no_zip_file(server, download):
    have("raw/genome.fa.gz", "raw/yeast.fa.gz", "raw/english.txt")
    path = "/drive.usercontent.google.com/download"
    whole, server.files[path] = server.files[path], b"<html>Too many users have viewed it."
    status, out = download()
    assert status != 0 and "raw/GUE.zip.part is not a zip file: remove it" in out
    assert not os.path.exists("raw/GUE")

    # saved in another way
    with open("raw/GUE.zip", "wb") as f:
        f.write(whole)
    assert download()[0] == 0 and not server.log
    assert read("raw/GUE/tf/0/train.csv").startswith(b"sequence,label")
