"""The baseline of small CNNs: tools/cnn.py."""
import json

import numpy as np
import pytest
import torch

from dna.metrics import add_baselines, table, with_means
from dna.read import reverse_complement
from test_bench import random_dna
from tools import cnn, kmers


def example(sequence, label, **more):
    return {"task": "place", "instruction": "Where is it?", "input": sequence, "output": label,
            "choices": ["left", "right"], **more}


def examples_of_place(n):
    """All have the motif: some in their left half, the others in their right one."""
    rng = np.random.default_rng(0)
    examples = []
    for i in range(n):
        sequence, at = random_dna(rng, 48), 12 if i % 2 else 36
        examples.append(example(f"{sequence[:at]}GATTACAT{sequence[at:]}", "left" if i % 2 else "right"))
    return examples


def test_bases_by_hand():
    """A sequence is padded on the right; on the other strand too."""
    assert cnn.encode([example("ACGT", "left"), example("AN", "left")], 5).tolist() == [
        [[0, 1, 2, 3, 4]], [[0, 4, 4, 4, 4]]]
    both = cnn.encode([example("AACG", "left", either_strand=True)], 5)
    assert both.tolist() == [[[0, 0, 1, 2, 4], [1, 2, 3, 3, 4]]]
    assert cnn.ONE_HOT[torch.tensor([2, 4])].tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("length", [1, 5, 70])
def test_any_length_has_logits(length):
    net = cnn.CNN(3, bins=8).eval()
    assert net(torch.zeros(2, length, dtype=torch.uint8)).shape == (2, 3)


@pytest.mark.filterwarnings("error")
def test_float32_and_bfloat16_agree(monkeypatch):
    """A processor without fast bfloat16 does without, and nothing is said of it."""
    torch.manual_seed(0)
    net, bases = cnn.CNN(2, bins=8).eval(), torch.randint(4, (5, 60), dtype=torch.uint8)
    logits = []
    for dtype in (torch.float32, torch.bfloat16):
        monkeypatch.setattr(cnn.MACHINE, "dtype", dtype)
        logits.append(net(bases))
    torch.testing.assert_close(*logits, rtol=0.02, atol=0.02)
    assert not torch.equal(*logits)


def test_both_strands_give_the_same_answer():
    rng = np.random.default_rng(0)
    sequences = [random_dna(rng, length) for length in (60, 41, 8)]
    torch.manual_seed(0)
    net = cnn.CNN(2, bins=1)
    logits = [cnn.mean_logits(net, cnn.encode([example(s, "left", either_strand=True) for s in strand], 60))
              for strand in (sequences, map(reverse_complement, sequences))]
    torch.testing.assert_close(*logits)
    assert logits[0].std(dim=0).min() > 0       # and not because all are the same


def test_the_weights_of_the_lowest_held_out_loss_are_kept(monkeypatch):
    """Here those after the second epoch of three."""
    torch.manual_seed(0)
    monkeypatch.setattr(cnn, "EPOCHS", 3)
    x, y = torch.randint(4, (40, 1, 24), dtype=torch.uint8), torch.zeros(40, dtype=torch.long)
    net, kept = cnn.CNN(2, bins=1), []
    losses = iter([0.3, 0.1, 0.2])
    cross_entropy = cnn.F.cross_entropy

    def loss_of(logits, labels):
        if net.training:
            return cross_entropy(logits, labels)
        kept.append(net.head[-1].weight.clone())
        return torch.tensor(next(losses))

    monkeypatch.setattr(cnn.F, "cross_entropy", loss_of)
    cnn.fit(net, x, y)
    assert len(kept) == 3 and torch.equal(net.head[-1].weight, kept[1])
    assert not torch.equal(kept[1], kept[2])


def test_the_budget_is_in_bases(monkeypatch):
    """Long training files are read fewer times, and each at least once."""
    x, y = torch.zeros(40, 1, 10, dtype=torch.uint8), torch.zeros(40, dtype=torch.long)
    monkeypatch.setattr(cnn, "mean_logits", lambda net, x: evaluations.append(1) or torch.zeros(len(x), 2))
    for bases, epochs in ((1, 1), (40 * 10 * 3, 3), (10 ** 9, 5)):
        evaluations = []
        monkeypatch.setattr(cnn, "EPOCHS", 5)
        monkeypatch.setattr(cnn, "BASES", bases)
        cnn.fit(cnn.CNN(2, bins=1), x, y)
        assert len(evaluations) == epochs


def test_it_knows_the_place_of_a_motif(monkeypatch):
    """6-mers do not. The same training gives the same answers again."""
    monkeypatch.setattr(cnn, "EPOCHS", 8)
    examples = examples_of_place(500)
    train, test = examples[:400], examples[400:]
    scores = kmers.score_task(train, test, cnn.predict)
    assert scores["mcc"] > 0.9 and scores["n"] == 100
    assert kmers.score_task(train, test, kmers.predict)["mcc"] < 0.5
    assert kmers.score_task(train, test, cnn.predict) == scores


def test_its_scores_are_a_column(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cnn, "EPOCHS", 1)
    examples = examples_of_place(60)
    for split, part in (("train", examples[:40]), ("dev", examples[40:])):
        (tmp_path / f"place.{split}.json").write_text(json.dumps(part))
    cnn.main([str(tmp_path)])
    result = json.loads((tmp_path / "scores/cnn.json").read_text())
    assert result["tasks"]["place"]["n"] == 20 and result["mean_mcc"] is not None
    assert capsys.readouterr().out.endswith(f"wrote {tmp_path}/scores/cnn.json\n")

    scores = {"place": {"n": 20, "mcc": 0.0}}
    add_baselines(scores, [str(tmp_path / "place.dev.json")])
    assert scores["place"]["cnn_mcc"] == result["tasks"]["place"]["mcc"]
    assert table(with_means(scores)).splitlines()[0].split() == ["task", "n", "MCC", "CNN"]


def test_a_folder_without_tasks(tmp_path):
    with pytest.raises(ValueError, match="no NAME.train.json: give the tasks folder that prepare.py wrote"):
        cnn.main([str(tmp_path)])
    assert not list(tmp_path.iterdir())
