"""tools/plot.py: the loss, the scores, the table, and what it says where something is missing."""
import gzip
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from bpe import Tokenizer
from config import file_sha256
from dna.metrics import read_scores
from dna.read import reverse_complement
from model import GPT, GPTConfig, save_checkpoint
from tools import plot as tool
from tools.plot import (DNABERT_2, DNAHLM, compare, draw_confusion,
                        draw_explanation, draw_loss, draw_scores,
                        read_explanation, read_log)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PNG = b"\x89PNG"


def plot(*args, cwd=ROOT, **env):
    """Run it as a user does -> the finished process"""
    return subprocess.run([sys.executable, "-m", "tools.plot", *map(str, args)], cwd=cwd,
                          env=os.environ | {"PYTHONPATH": ROOT} | env, text=True,
                          capture_output=True)


def write_log(folder, *lines):
    folder.mkdir(exist_ok=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(folder)


def write_scores(folder, tasks):
    folder.mkdir(exist_ok=True)
    (folder / "scores.json").write_text(json.dumps({"tasks": tasks}))
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    """-> two pretraining runs; the second has no English"""
    a = write_log(tmp_path / "a",
                  {"step": 10, "tokens": 1000, "loss": 6.0},
                  {"step": 10, "val_loss": 6.1, "bits_per_base": 2.0, "bits_per_byte": 3.0},
                  {"step": 20, "tokens": 2000, "loss": 5.0},
                  {"step": 20, "val_loss": 5.2, "bits_per_base": 1.9, "bits_per_byte": 2.5})
    b = write_log(tmp_path / "b",
                  {"step": 10, "tokens": 500, "loss": 6.0},
                  {"step": 10, "val_loss": 6.1, "bits_per_base": 1.8, "bits_per_byte": None})
    return a, b


def texts(figure):
    """-> all the text in a figure, once it can be drawn"""
    figure.canvas.draw()
    return {t.get_text() for t in figure.findobj(match=lambda o: hasattr(o, "get_text"))}


# -- the loss

def test_read_log(runs):
    """An evaluation happened after the tokens of the training line before it."""
    curves = read_log(runs[0])
    assert curves["bits_per_base"] == [(0.001, 2.0), (0.002, 1.9)] and curves["loss"][-1] == (0.002, 5.0)
    assert set(read_log(runs[1])) == {"loss", "val_loss", "bits_per_base"}


def test_loss_of_one_run(runs, tmp_path):
    pytest.importorskip("matplotlib")
    run = plot(runs[0])
    assert run.stdout == f"wrote {runs[0]}/loss.png\n" and run.returncode == 0, run.stderr
    assert (tmp_path / "a/loss.png").read_bytes().startswith(PNG)


def test_loss_of_two_runs(runs, tmp_path):
    """Each run is named with the loss that it ended with, in the panels that it has."""
    pytest.importorskip("matplotlib")
    assert {"a: 1.900", "b: 1.800", "a: 2.500", "bits per base", "bits per byte",
            "a: 5.200"} <= texts(draw_loss(runs))
    assert plot(*runs).stdout == f"wrote {runs[0]}/loss.png\n"
    assert plot(*runs, "--out=two.svg", cwd=tmp_path).stdout == "wrote two.svg\n"
    assert "<svg" in (tmp_path / "two.svg").read_text()


def test_panels_follow_from_the_log(tmp_path):
    """One for each unit that a run has bits of, whatever it is called."""
    a = write_log(tmp_path / "a", {"step": 1, "val_loss": 6.1, "bits_per_base": 2.0, "bits_per_byte": None,
                                   "bits_per_residue": 4.0})
    pytest.importorskip("matplotlib")
    figure = draw_loss([a])
    assert {"bits per base", "bits per residue"} <= texts(figure) and len(figure.axes) == 3
    assert "bits per byte" not in texts(figure)


def test_loss_of_tuning(tmp_path):
    """It has no bits: one panel, with the loss of training and that of held-out rows."""
    pytest.importorskip("matplotlib")
    a = write_log(tmp_path / "a", {"step": 5, "tokens": 1000, "loss": 0.5},
                  {"step": 9, "tokens": 2000, "loss": 0.25}, {"step": 9, "val_loss": 0.75})
    axis, = draw_loss([a]).axes
    training, held_out = axis.lines
    assert training.get_xydata().tolist() == [[0.001, 0.5], [0.002, 0.25]]
    assert held_out.get_xydata().tolist() == [[0.002, 0.75]] and held_out.get_label() == "a: 0.750"
    assert training.get_alpha() < 1 and "training" in axis.get_title()


def test_log_without_evaluation_is_refused(tmp_path):
    pytest.importorskip("matplotlib")
    folder = write_log(tmp_path / "short", {"step": 1, "tokens": 10, "loss": 3.0})
    run = plot(folder)
    assert run.returncode == 1 and not os.path.exists(f"{folder}/loss.png")
    assert run.stderr.startswith(f"error: {folder}/log.jsonl: no evaluation of held-out text in it")
    assert run.stderr.count("\n") <= 1


def test_damaged_log_is_refused(tmp_path):
    folder = write_log(tmp_path / "cut", {"step": 1, "tokens": 10, "loss": 3.0})
    with open(f"{folder}/log.jsonl", "a", encoding="utf-8") as f:
        f.write('{"step": 2, "tok')
    with pytest.raises(ValueError, match="log.jsonl: line 2: not JSON"):
        read_log(folder)


# -- the scores

def test_scores(tmp_path):
    """What a run does not know is not drawn."""
    pytest.importorskip("matplotlib")
    a = write_scores(tmp_path / "tuned", {
        "tf_0": {"n": 9, "mcc": 0.5, "mcc_interval": [0.4, 0.6], "kmer_mcc": 0.55, "cnn_mcc": 0.6,
                 "tuned": True},
        "tf_1": {"n": 9, "mcc": 0.1, "mcc_interval": [0.0, 0.2], "tuned": False},
        "talk": {"n": 9, "mcc": None, "exact_match": 0.2}})
    b = write_scores(tmp_path / "bare", {"tf_0": {"mcc": 0.3}, "elsewhere": {"mcc": 0.9}})
    shown = texts(draw_scores([a, b]))
    assert {"tuned", "bare", "tf_0", "tf_1", "elsewhere", "6-mers", "CNN",
            "DNABERT-2"} <= shown
    assert "talk" not in shown


def test_runs_of_the_same_name(tmp_path):
    """One run, if it was scored on different tasks; else nobody could tell them apart."""
    pytest.importorskip("matplotlib")
    for world in "ab":
        (tmp_path / world).mkdir()
    a = write_scores(tmp_path / "a/mixed", {"tf_0": {"mcc": 0.5}})
    b = write_scores(tmp_path / "b/mixed", {"splice": {"mcc": 0.25}})
    none = write_scores(tmp_path / "b/none", {"splice": {"mcc": 0.125}})
    figure = draw_scores([a, f"{b}/scores.json", none])
    lines = {line.get_label(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines["mixed"] == [[0.5, pytest.approx(0.2)], [0.25, pytest.approx(1.2)]]
    assert lines["none"] == [[0.125, pytest.approx(0.8)]]
    with pytest.raises(ValueError, match="b/mixed: another run has its name: rename its folder"):
        draw_scores([b, none, b])


def test_published_figures_have_the_names_of_the_logs():
    """A misspelled task would be left out of the picture without a word."""
    assert DNAHLM.keys() | DNABERT_2.keys() <= read_scores(f"{ROOT}/results/laptop-14m-instruct").keys()


def test_confusion(tmp_path):
    """A matrix per task that has one, its rows the right labels."""
    pytest.importorskip("matplotlib")
    a = write_scores(tmp_path / "a", {
        "splice": {"mcc": 0.5, "labels": ["a", "d", "n"], "confusion": [[7, 1, 0], [2, 5, 3], [0, 0, 9]]},
        "old": {"mcc": 0.1}, "tf": {"mcc": 0.25, "labels": ["x", "y"], "confusion": [[1234, 0], [0, 0]]}})
    figure = draw_confusion(a)
    assert {"splice: MCC 0.500", "tf: MCC 0.250", "1,234", "7", "predicted", "right"} <= texts(figure)
    assert not [text for text in texts(figure) if "old" in text]
    first = figure.axes[0]
    cells = {(round(t.get_position()[1]), round(t.get_position()[0])): t.get_text() for t in first.texts}
    assert cells[1, 2] == "3" and cells[2, 1] == "0"
    assert first.images[0].get_array()[1].tolist() == [0.2, 0.5, 0.3]
    bare = write_scores(tmp_path / "bare", {"old": {"mcc": 0.1}})
    with pytest.raises(ValueError, match="bare: no confusion matrix in it: score the model again"):
        draw_confusion(bare)
    run = plot("--confusion", a, bare)
    assert run.returncode == 1 and run.stderr.startswith("error: --confusion draws one at a time")


# -- which bases matter

WHY = ("name\tquestion\tlabel\tposition\tbase\tA\tC\tG\tT\n"
       "s\tis_it\tyes\t1\tG\t-3\t-1\t0\t-2\n" "s\tis_it\tyes\t2\tN\t1\t0\t0\t1\n"
       "t\tis_it\tno\t1\tA\t0\t1\t1\t1\n")


def heights(axis):
    """-> (bottom, top) of each letter drawn as a shape"""
    return [(box.y0, box.y1) for box in (patch.get_path().get_extents() for patch in axis.patches)]


def test_explanation(tmp_path):
    """A letter stands as high as the log-odds fall, and hangs where they rise; a panel per sequence."""
    pytest.importorskip("matplotlib")
    (tmp_path / "why.tsv").write_text(WHY)
    sequences = read_explanation(str(tmp_path / "why.tsv"))
    (tmp_path / "why.csv").write_text(WHY.replace("\t", ","))
    assert read_explanation(str(tmp_path / "why.csv")) == sequences
    assert sequences == [("s: yes, is_it", [{"G": 2.0}, {"N": -0.5}]), ("t: no, is_it", [{"A": -1.0}])]
    figure = draw_explanation(str(tmp_path / "why.tsv"), [("box", "1", "2")])
    assert {"s: yes, is_it", "t: no, is_it", "box", "G", "N", "A"} <= texts(figure)
    assert heights(figure.axes[0]) == [pytest.approx((0, 2)), pytest.approx((-0.5, 0))]
    letters = [patch.get_path().get_extents() for patch in figure.axes[0].patches]
    assert [(b.x0 + b.x1) / 2 for b in letters] == pytest.approx([1, 2])


def test_lines_of_an_explanation(tmp_path):
    """A sequence is shared out evenly: no line is nearly empty. A mark is where its bases are."""
    pytest.importorskip("matplotlib")
    rows = "".join(f"s\tis_it\tyes\t{i}\tA\t0\t-1\t-1\t-1\n" for i in range(1, 77))
    (tmp_path / "why.tsv").write_text(WHY.partition("\n")[0] + "\n" + rows)
    figure = draw_explanation(str(tmp_path / "why.tsv"), [("box", 36, 40)])
    assert [len(axis.patches) for axis in figure.axes] == [38, 38]
    first, second = (axis.get_xlim() for axis in figure.axes)
    assert first == pytest.approx((0.4, 38.6)) and second == pytest.approx((38.4, 76.6))
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["s: yes, is_it", ""]
    box, = (text for text in figure.axes[1].texts if text.get_text() == "box")
    assert box.get_position()[0] == 38 and box.get_clip_on()


def test_logo():
    """Letters on top of each other, the highest uppermost."""
    pytest.importorskip("matplotlib")
    _, (axis,) = tool.panels(1, 1, 1, 1)
    tool.draw_logo(axis, [{"A": 3, "C": 1}, {"T": -2}], first=5)
    assert heights(axis) == [pytest.approx(pair) for pair in ((0, 1), (1, 4), (-2, 0))]
    assert [patch.get_path().get_extents().x0 for patch in axis.patches] == pytest.approx([4.55, 4.55, 5.55])


def test_explanation_as_a_command(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "why.tsv").write_text(WHY)
    run = plot("--explain", "why.tsv", "--mark", "TATA box", "1", "2", cwd=tmp_path)
    assert run.stdout == "wrote why.png\n" and run.returncode == 0, run.stderr
    (tmp_path / "packed.tsv.gz").write_bytes(gzip.compress(WHY.encode()))
    assert plot("--explain", "packed.tsv.gz", cwd=tmp_path).stdout == "wrote packed.png\n"


def test_sequences_of_the_same_name(tmp_path):
    (tmp_path / "why.tsv").write_text(WHY + WHY.partition("\n")[2])
    assert [len(columns) for _, columns in read_explanation(str(tmp_path / "why.tsv"))] == [2, 1, 2, 1]
    head, *_, last = WHY.splitlines(keepends=True)
    (tmp_path / "many.tsv").write_text(head + 61 * last)
    with pytest.raises(ValueError, match="61 lines of sequences are too many for a picture"):
        draw_explanation(str(tmp_path / "many.tsv"), [])


@pytest.mark.parametrize("text, message", [
    ("", "an empty file"), ("name\tlabel\n", "sample.py --explain wrote"),
    ("a\tb\n1\t2\n", "sample.py --explain wrote"), (WHY.replace("-3", "x"), "sample.py --explain wrote")])
def test_wrong_explanations_are_refused(tmp_path, text, message):
    (tmp_path / "why.tsv").write_text(text)
    with pytest.raises(ValueError, match=f"why.tsv: .*{message}"):
        read_explanation(str(tmp_path / "why.tsv"))


# -- the table

def test_compare(tmp_path):
    mccs = {"a": {"x": 0.1, "y": 0.5}, "b": {"x": 0.3, "y": 0.7}, "c": {"x": -0.2}, "d": {"z": 0.1}}
    a, b, c, d = (write_scores(tmp_path / run, {task: {"mcc": mcc} for task, mcc in tasks.items()})
                  for run, tasks in mccs.items())
    *_, head, x, y, mean = compare([f"{a}+{b}", f"{c}/scores.json"]).splitlines()
    assert head.split() == ["MCC", "1", "2"]
    assert x.split() == ["x", "0.200", "±", "0.141", "-0.200"]
    assert y.split() == ["y", "0.600", "±", "0.141"]
    assert mean.split() == ["mean", "of", "1", "0.200", "±", "0.141", "-0.200"]
    assert "mean" not in compare([a, d])        # no task in common


def test_mean_deviates_over_runs_not_tasks(tmp_path):
    """Two seeds whose tasks differ but whose means agree: ± 0 in the last line."""
    a = write_scores(tmp_path / "a", {"x": {"mcc": 0.2}, "y": {"mcc": 0.6}})
    b = write_scores(tmp_path / "b", {"x": {"mcc": 0.6}, "y": {"mcc": 0.2}})
    last = compare([f"{a}+{b}"]).splitlines()[-1]
    assert last.split() == ["mean", "of", "2", "0.400", "±", "0.000"]


@pytest.mark.parametrize("text", ["[]", "{}", '{"tasks": [1]}', '{"tasks": {"x": 1}}', "no"])
def test_wrong_scores_are_refused(tmp_path, text):
    (tmp_path / "wrong.json").write_text(text)
    with pytest.raises(ValueError, match="wrong.json: not a scores.json"):
        compare([str(tmp_path / "wrong.json")])


def test_missing_files_are_named(tmp_path):
    run = plot("--compare", tmp_path / "nothing")
    assert run.returncode == 1
    assert run.stderr == f"error: {tmp_path}/nothing: No such file or directory\n"


# -- without matplotlib

def test_without_matplotlib(runs, tmp_path):
    """One line says what to install; the table needs no picture."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden/matplotlib.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'matplotlib'\", name='matplotlib')")
    hidden = {"PYTHONPATH": f"{tmp_path}/hidden{os.pathsep}{ROOT}"}
    run = plot(runs[0], **hidden)
    assert run.returncode == 1 and not os.path.exists(f"{runs[0]}/loss.png")
    assert run.stderr.startswith("error: matplotlib is missing") and run.stderr.count("\n") <= 1
    assert "pip install matplotlib" in run.stderr
    scores = write_scores(tmp_path / "scores", {"x": {"mcc": 0.25}})
    run = plot("--compare", scores, **hidden)
    assert run.returncode == 0 and run.stdout.endswith("mean of 1  0.250\n"), run.stderr


# -- motifs

def test_a_filter_that_reads_a_motif_is_found(monkeypatch):
    """On either strand, and wherever it stands in the filter; filters of noise are like shuffled motifs"""
    monkeypatch.setattr(tool, "KNOWN", {"TATA box": "STATAWAWR", "donor": "MAGGTRAGT", "AP-1": "TGASTCA"})
    filters = np.random.default_rng(1).normal(size=(20, 11, 4))
    filters[3, 1:10] += 20 * tool.profile("STATAWAWR")
    filters[5, 2:11] += 20 * tool.profile(reverse_complement("MAGGTRAGT"))
    filters -= filters.mean(axis=2, keepdims=True)
    found = {name: (consensus, i, r, share) for name, consensus, i, r, share in tool.find_motifs(filters)}
    assert found["TATA box"][:2] == ("STATAWAWR", 3) and found["donor"][:2] == ("ACTYACCTK", 5)
    assert all(found[name][2] > 0.9 and found[name][3] == 0 for name in ("TATA box", "donor"))
    assert found["AP-1"][2] < 0.9 and found["AP-1"][3] > 0.05


def test_profile_by_hand():
    assert tool.profile("AWN").tolist() == [[.75, -.25, -.25, -.25], [.25, -.25, -.25, .25], [0, 0, 0, 0]]


def test_motifs_of_a_model(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    tok = Tokenizer.train(["ACGTACGTAACCGGTT" * 9], 280)
    tok.save(str(tmp_path / "tokenizer.json"))
    for motifs in (0, 3):
        model = GPT(GPTConfig(len(tok), 16, 1, 1, 8, motifs=motifs))
        save_checkpoint(tmp_path / "best.pt", model, tokenizer_sha256=file_sha256(str(tmp_path / "tokenizer.json")))
        if not motifs:
            with pytest.raises(ValueError, match="a model without motif filters: train it with --motifs=128"):
                tool.main(["--motifs", str(tmp_path)])
    monkey = pytest.MonkeyPatch()
    monkey.setattr(tool, "SHUFFLED", 5)
    tool.main(["--motifs", str(tmp_path)])
    monkey.undo()
    printed = capsys.readouterr().out
    assert "TATA box" in printed and printed.endswith(f"wrote {tmp_path}/motifs.png\n")
    assert (tmp_path / "motifs.png").stat().st_size > 10_000
