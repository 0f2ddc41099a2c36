"""
Where a tuned model looks when it answers: its attention over the bases of splice sites.

    python -m lessons.attention                         # the toy model, after make toy
    python -m lessons.attention --png=attention.png     # draws it too (pip install matplotlib)

Attention moves information between tokens: each head of each layer looks, from every token, at
the tokens before it, with weights that sum to 1. The answer is predicted at the last token of
the prompt, so the weights in its row say what the answer could draw on.

Shapes: L layers, H heads, T time (tokens), C channels, D head size (C / H), N bases.
"""
import argparse
import json
import math

import numpy as np
import torch

import config
from dna import toy
from instruct import encode_prompts
from train import load_model

MIDDLE = 30     # an intron begins or ends before this base of the toy world's splice sites
MOTIFS = {      # what dna/toy.py plants there: (first base, consensus)
    "Donor Sites": [(MIDDLE - 3, toy.MOTIFS["donor"]), (MIDDLE + 9, "G triplets, 0 to 5 bases on")],
    "Acceptor Sites": [(MIDDLE - 14, toy.MOTIFS["acceptor"])],
}


@torch.no_grad()
def attention_weights(model, ids):
    """ids: list of T token ids -> (L, H, T, T): how much of each token's attention (third axis)
    goes to each of the tokens up to it (fourth axis)"""
    weights = []

    def keep(module, inputs, output):
        # the network goes on without its weights, so they are computed here once more
        T, H = len(ids), model.config.n_head
        q, k, _ = (part.view(T, H, -1).transpose(0, 1) for part in output[0].chunk(3, dim=1))
        scores = q @ k.transpose(1, 2) / math.sqrt(q.size(-1))          # (H, T, T)
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        weights.append(scores.masked_fill(future, -math.inf).softmax(dim=-1))

    hooks = [block.attn.c_attn.register_forward_hook(keep) for block in model.transformer.h]
    model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return torch.stack(weights)


def encode_record(tok, record, block_size):
    """-> (ids of a record's prompt, {base: the token that holds it})"""
    (ids,), _ = encode_prompts(tok, [(record["instruction"], record["input"])], block_size)
    ids = ids.tolist()

    # the input begins after its heading; a line break within it is not a base
    at, start = 0, tok.decode(ids).rindex("### Input:\n") + len("### Input:\n")
    token_of = {}
    for j, i in enumerate(ids):
        for letter in tok.decode([i]):
            if at >= start and letter in "ACGT" and len(token_of) < len(record["input"]):
                token_of[len(token_of)] = j
            at += 1
    return ids, token_of


def attention_on_bases(model, tok, record):
    """-> (L, H, N): the attention of the answer to each base of the input. That of a token is
    shared out among its bases."""
    ids, token_of = encode_record(tok, record, model.config.block_size)
    weights = attention_weights(model, ids)[:, :, -1].numpy()           # (L, H, T)
    tokens = np.array(list(token_of.values()))
    return weights[:, :, tokens] / np.bincount(tokens)[tokens]


def mean_attention(model, tok, records):
    """-> {label: (L, H, N), the mean over the records with this label}"""
    labels = sorted({r["output"] for r in records})
    return {label: np.mean([attention_on_bases(model, tok, r) for r in records
                            if r["output"] == label], axis=0) for label in labels}


def report(means):
    """-> a line per label and head: its share of attention to the sequence, and its favourite base"""
    yield f"{'label':18}{'layer':>6}{'head':>6}{'on the DNA':>12}   most on base"
    for label, weights in means.items():
        for layer, head in np.ndindex(weights.shape[:2]):
            row = weights[layer, head]
            yield (f"{label:18}{layer:6}{head:6}{row.sum():12.0%}   {row.argmax() + 1} "
                   f"({row.max():.0%})")


def draw(means, path):
    """A heat map per label: heads in rows, bases in columns"""
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(len(means), 1, figsize=(10, 8.4), layout="constrained")
    for axis, (label, weights) in zip(axes, means.items()):
        L, H, N = weights.shape
        image = axis.imshow(weights.reshape(L * H, N), aspect="auto", cmap="cividis", vmin=0,
                            vmax=0.12, extent=(0, N, L * H, 0))
        axis.set_title(label, loc="left", fontweight="bold", pad=20)
        axis.set_yticks(np.arange(L * H) + 0.5, [f"{i}.{j}" for i, j in np.ndindex(L, H)], fontsize=7)
        axis.set_xticks([0.5, 9.5, 19.5, 29.5, 39.5, 49.5, 59.5], [1, 10, 20, 30, 40, 50, 60])
        axis.axvline(MIDDLE, color="white", linewidth=1, linestyle=":")
        axis.hlines(np.arange(H, L * H, H), 0, N, color="white", linewidth=1)

        # the planted motifs, a letter above each base
        for first, motif in MOTIFS.get(label, []):
            letters = [motif] if " " in motif else motif
            for i, letter in enumerate(letters):
                axis.text(first + i + (0 if " " in motif else 0.5), -0.3, letter, fontsize=9,
                          ha="left" if " " in motif else "center", family="monospace")
    axes[-1].set_xlabel("base of the input (the prompt breaks its line at the dotted line)")
    axes[len(axes) // 2].set_ylabel("layer.head")
    figure.colorbar(image, ax=axes, label="attention of the answer, mean over the test rows",
                    extend="max", shrink=0.6)
    figure.savefig(path, dpi=100)


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m lessons.attention")
    parser.add_argument("--out_dir", default="out/toy-instruct", help="folder of the model")
    parser.add_argument("--task", default="data/toy/tasks/splice.test.json", help="its rows")
    parser.add_argument("--rows", type=int, default=300, help="how many of them")
    parser.add_argument("--png", metavar="FILE", help="draw it")
    args = parser.parse_args(argv)

    model, tok, _ = load_model(args.out_dir)
    with open(args.task, encoding="utf-8") as f:
        means = mean_attention(model.eval(), tok, json.load(f)[:args.rows])
    print(*report(means), sep="\n")
    if args.png:
        draw(means, args.png)
        print(f"wrote {args.png}")


if __name__ == "__main__":
    config.run(main)
