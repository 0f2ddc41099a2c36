"""SIGKILL at any moment: prepare.py, run again, and train.py and instruct.py, resumed, end as if nothing
had happened. `KILLS=50 python -m pytest -m torture` kills each script 50 times, not 6. Processes are
forked from this one, which has imported torch already, so that a kill costs no start."""
import contextlib
import io
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch
import tqdm
from conftest import TINY, TUNING, fasta, listing, merge, random_dna, some_rows, table, write
from test_train import read_log, same, weights

import instruct
import prepare
import train
from model import load_checkpoint

pytestmark = [pytest.mark.torture,
              pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows cannot fork")]
KILLS = int(os.environ.get("KILLS", 6))


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def victim(main, argv, die_in):
    """Run a script's main(), and die in the middle of its n-th save or renaming if die_in is n > 0."""
    # the bars' lock is shared by all forks, and one that is killed while it holds it blocks the others
    tqdm.tqdm.set_lock(threading.RLock())
    save, rename, left = torch.save, os.rename, die_in

    def dying_save(state, file):
        nonlocal left
        left -= 1
        if left == 0:
            whole = io.BytesIO()
            save(state, whole)
            file.write(whole.getvalue()[:len(whole.getvalue()) // 2])
            file.flush()
            die()
        save(state, file)

    def dying_rename(a, b):
        nonlocal left
        left -= 1
        if left == 0:
            die()
        rename(a, b)

    torch.save, os.rename = dying_save, dying_rename
    os.fsync = lambda f: None       # slow, and no help against a kill
    with open(os.devnull, "w") as null, contextlib.redirect_stdout(null), contextlib.redirect_stderr(null):
        main(argv)


def start(main, argv, die_in=0):
    process = multiprocessing.get_context("fork").Process(target=victim, args=(main, argv, die_in))
    process.start()
    return process


def finish(process):
    process.join()
    assert process.exitcode == 0


def kill(main, argv, seconds, in_save, rng):
    """Run a script and kill it at a random moment of so many seconds, or in the middle of a save
    -> whether it was killed; it may have finished before"""
    process = start(main, argv, int(rng.integers(1, 9)) if in_save else 0)
    if not in_save:
        time.sleep(rng.uniform(0, seconds))
        process.kill()
    process.join()
    assert process.exitcode in (0, -signal.SIGKILL)
    return process.exitcode != 0


def duration(main, argv):
    begin = time.monotonic()
    finish(start(main, argv))
    return time.monotonic() - begin


@pytest.mark.parametrize("script", ["train", "instruct"])
def test_resumed_after_kills(tiny, tmp_path, script):
    """Bit for bit what an uninterrupted run is, whatever was killed and however often"""
    main, own = {"train": (train.main, [*TINY, "--block_size=64", f"--data_dir={tiny}/data"]),
                 "instruct": (instruct.main, [*TUNING, f"--init_from={tiny}/out",
                                              f"--tasks={tiny}/data/tasks/x.train.json",
                                              f"--eval_tasks={tiny}/data/tasks/x.test.json"])}[script]
    args = merge(*own, "--batch_size=2", f"--max_steps={40 * KILLS}", "--eval_interval=5", "--log_interval=2",
                 "--dropout=0.1")
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    seconds = duration(main, [*args, f"--out_dir={whole}"])

    rng, killed, steps, resume = np.random.default_rng(0), 0, set(), ["--overwrite"]
    while killed < KILLS and kill(main, [*args, f"--out_dir={parts}", *resume], 2.2 * seconds / KILLS,
                                  killed % 3 == 2, rng):
        killed += 1
        if os.path.exists(parts / "last.pt"):
            resume = ["--resume"]
            steps.add(load_checkpoint(parts / "last.pt")[1]["step"])
    finish(start(main, [*args, f"--out_dir={parts}", *resume]))
    print(f"{script}: {killed} kills, resumed from {len(steps)} different steps")
    assert killed > KILLS // 2 and len(steps) > 1
    assert sorted(os.listdir(parts)) == sorted(os.listdir(whole))
    for name in ("last.pt", "best.pt"):
        assert same(weights(parts, name), weights(whole, name))
    assert read_log(parts) == read_log(whole)


def files(folder):
    """-> {path in a folder: content}"""
    return {os.path.relpath(path, folder): content for path, content in listing(folder).items()}


def test_prepared_after_kills(tmp_path):
    """Byte for byte what an uninterrupted run writes; a killed one leaves what is there or nothing that
    looks whole, and its temporary folder, which the next one removes."""
    dna = [fasta(tmp_path / f"{i}.fa", [random_dna(1000, (i, k).__hash__()) for k in range(200)]) for i in range(2)]
    english = write(tmp_path / "english.txt", "\n\n".join(f"The cell is read {i} times." for i in range(2000)))
    x = table(tmp_path / "x", {"train": some_rows(100), "test": some_rows(20, 1)})
    args = [f"--english={english}", f"--tasks={x}", "--vocab_size=300", "--val_fraction=0.2"]
    runs = [[f"--dna={path}", *args] for path in dna]
    seconds = [duration(prepare.main, [*run, f"--data_dir={tmp_path}/{i}"]) for i, run in enumerate(runs)]
    whole = [files(tmp_path / str(i)) for i in range(2)]
    assert whole[0] != whole[1]

    # the two runs in turn, in the same folder
    data, rng, killed, states = tmp_path / "data", np.random.default_rng(0), 0, set()
    write(data / "notes.txt", "mine")
    notes = {"notes.txt": b"mine"}
    while killed < KILLS:
        i = int(rng.integers(2))
        if kill(prepare.main, [*runs[i], f"--data_dir={data}"], 1.1 * seconds[i], killed % 2 == 1, rng):
            killed += 1
            found = {path: content for path, content in files(data).items()
                     if not path.startswith("preparing.tmp")}
            states.add("incomplete" if "meta.json" not in found else "whole")
            assert "meta.json" not in found or found in [w | notes for w in whole]
            assert set(os.listdir(data)) <= {*os.listdir(tmp_path / "0"), "notes.txt", "preparing.tmp"}
        else:
            assert files(data) == whole[i] | notes
    for i in range(2):
        finish(start(prepare.main, [*runs[i], f"--data_dir={data}"]))
        assert files(data) == whole[i] | notes and "preparing.tmp" not in os.listdir(data)
    print(f"prepare: {killed} kills, which left a folder {' or '.join(sorted(states))}")
