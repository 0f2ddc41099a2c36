"""
The CNN baseline: what a small convolutional network learns, without a language model.

    python -m tools.cnn data/toy/tasks

It trains one network per task, by the same recipe and budget for all, on the rows of
NAME.train.json. It scores those of NAME.test.json, or of NAME.dev.json where there is
none. The scores go to scores/cnn.json in the same folder, where instruct.py finds them
for its table. The 27 tasks of GUE take half an hour of one core with fast bfloat16.

Unlike counts of 6-mers, the network matches longer and inexact motifs. In tasks with a
fixed strand it also sees where they stand.

Shapes: B sequences in a batch, N in all, S strands, L letters, K labels.
"""
import copy

import torch
from torch import nn
from torch.nn import functional as F

import config
from config.machine import Machine, fast_dtype, keep_memory
from dna.read import reverse_complement
from tools.kmers import baseline, digits

# A task trains for 40 epochs, or fewer if they would exceed this many bases, but for at
# least one.
EPOCHS = 40
BASES = 25_000_000

BATCH = 64                              # rows a step
LEARNING_RATE, DECAY = 1e-3, 0.01       # of AdamW
HELD_OUT = 20                           # one training row in 20 chooses the weights
PADDING = 4                             # as a base; other letters than ACGT are it too
ONE_HOT = torch.eye(5)[:, :4]           # a row per base, all zeros for padding

CPU = torch.device("cpu")
MACHINE = Machine(CPU, fast_dtype(CPU))


def encode(examples, length):
    """-> bases (N, S, L) of the examples, 0 to 4, L = `length`. S is 2 where both
    strands have the same answer, and else 1."""
    strands = [[e["input"] for e in examples]]
    if all(e.get("either_strand") for e in examples):
        strands.append([reverse_complement(sequence) for sequence in strands[0]])
    text = "".join(s.ljust(length) for rows in zip(*strands) for s in rows)
    bases = torch.from_numpy(digits(text, PADDING))
    return bases.view(len(examples), len(strands), length)


class CNN(nn.Module):
    """Two convolutions, then the maximum and the mean of each channel over each of
    `bins` equal parts of the sequence, then two linear layers"""

    def __init__(self, n_labels, bins):
        super().__init__()
        self.bins = bins
        # in two dimensions, the first of size 1: with channels last these are the
        # fastest on a CPU, twice as fast as Conv1d
        self.body = nn.Sequential(
            nn.Conv2d(4, 128, (1, 11), padding=(0, 5)), nn.BatchNorm2d(128),
            nn.MaxPool2d((1, 4), ceil_mode=True), nn.ReLU(), nn.Dropout(0.2),
            nn.Conv2d(128, 128, (1, 5), padding=(0, 2)), nn.BatchNorm2d(128), nn.ReLU())
        self.head = nn.Sequential(
            nn.Dropout(0.3), nn.Linear(2 * 128 * bins, 64), nn.ReLU(),
            nn.Dropout(0.3), nn.Linear(64, n_labels))

    def forward(self, bases):
        """bases: (B, L), 0 to 4 -> logits (B, K)"""
        x = ONE_HOT[bases.int()][:, None].permute(0, 3, 1, 2)       # (B, 4, 1, L)
        with MACHINE.autocast():
            x = self.body(x)
            x = torch.cat([F.adaptive_max_pool2d(x, (1, self.bins)),
                           F.adaptive_avg_pool2d(x, (1, self.bins))], dim=1)
            return self.head(x.flatten(1)).float()


@torch.no_grad()
def mean_logits(net, x):
    """-> logits (N, K), the mean over strands. x: bases (N, S, L)"""
    net.eval()
    return torch.cat([net(rows.flatten(0, 1)).view(*rows.shape[:2], -1).mean(dim=1)
                      for rows in x.split(BATCH)])


def fit(net, x, y):
    """Train a network in place; it ends with the weights that are best on held-out rows.

    x: bases (N, S, L); y: indices of labels (N,)
    """
    order = torch.randperm(len(x))
    held_out, train = order.tensor_split([len(x) // HELD_OUT + 1])
    epochs = max(1, min(EPOCHS, BASES // (len(train) * x.size(2))))
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=DECAY,
                                  fused=True)
    lowest, best = float("inf"), None
    for _ in range(epochs):
        # train on either strand of each row
        net.train()
        for rows in train[torch.randperm(len(train))].split(BATCH):
            strand = torch.randint(x.size(1), rows.shape)
            loss = F.cross_entropy(net(x[rows, strand]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

        # keep the weights if they are the best so far
        loss = F.cross_entropy(mean_logits(net, x[held_out]), y[held_out]).item()
        if loss < lowest:
            lowest, best = loss, copy.deepcopy(net.state_dict())
    net.load_state_dict(best)


def predict(train, test, labels):
    """Fit on the training examples of a task -> a label for each test example"""
    torch.manual_seed(0)
    length = max(len(e["input"]) for e in train + test)
    x, x_test = encode(train, length), encode(test, length)
    # where both strands have the same answer, a place on one is another on the other
    net = CNN(len(labels), bins=8 if x.size(1) == 1 else 1)
    fit(net, x, torch.tensor([labels.index(e["output"]) for e in train]))
    return [labels[i] for i in mean_logits(net, x_test).argmax(dim=1)]


def main(argv):
    keep_memory()
    baseline(argv, "tools.cnn", "cnn", predict)


if __name__ == "__main__":
    config.run(main)
