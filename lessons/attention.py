"""
Where a tuned model looks when it answers: its attention over the bases of splice sites.

    python -m lessons.attention                      # the toy model, after make toy
    python -m lessons.attention --png=attention.png  # a picture too (needs matplotlib)

Attention moves information between tokens. From every token, each head of each layer
looks at the tokens before it, with weights that sum to 1. The answer is predicted at the
last token of the prompt, so the weights in its row say what the answer could draw on.

Shapes: L layers, H heads, T time (tokens), C channels, D head size (C / H), N bases.
"""
import argparse
import math
from collections import defaultdict

import numpy as np
import torch

import config
from dna import toy
from dna.tasks import alpaca_parts
from instruct import encode_prompts, load_for_prompts
from tools.plot import panels

MODEL = "out/toy-instruct"
ROWS = 300      # examples of a task, for the means

# An intron begins or ends after this base of the toy world's splice sites.
MIDDLE = 30

# What dna/toy.py plants there: the base that the motif begins on, and its letters
MOTIFS = {
    "Donor Sites": [(MIDDLE - 2, toy.MOTIFS["donor"]),
                    (MIDDLE + 10, ["G triplets, 0 to 5 bases on"])],
    "Acceptor Sites": [(MIDDLE - 13, toy.MOTIFS["acceptor"])],
}


@torch.no_grad()
def attention_weights(model, ids):
    """ids: list of T token ids -> (L, H, T, T): how much of each token's attention
    (third axis) goes to each of the tokens up to it (fourth axis)"""
    T, H = len(ids), model.config.n_head
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    idx = torch.tensor([ids])
    x = model.embed(idx, torch.arange(T)[None], idx)                # (1, T, C)
    weights = []
    for block in model.transformer.h:
        # a block does not return its weights, so compute them beside it
        qkv = block.attn.c_attn(block.ln_1(x)).view(T, 3, H, -1)
        q, k, _ = qkv.transpose(0, 2).unbind(1)                             # (H, T, D)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.size(-1))              # (H, T, T)
        weights.append(scores.masked_fill(future, -math.inf).softmax(dim=-1))
        x = block(x)
    return torch.stack(weights)


def encode_example(tok, example, block_size):
    """-> (ids of an example's prompt, (N,) the index of each base's token)"""
    (ids,), _ = encode_prompts(tok, [example], block_size)
    ids = ids.tolist()

    # the tokens from the input on, once for each of their bases; a line break is not a base
    before, _ = alpaca_parts(example["instruction"], has_input=True)
    tokens = [j for j in range(len(tok.encode(before)), len(ids))
              for byte in tok.bytes_of[ids[j]] if byte in b"ACGT"]
    return ids, np.array(tokens[:len(example["input"])])


def attention_on_bases(model, tok, example):
    """-> (L, H, N): the attention of the answer to each base of the input. The bases of
    a token share its attention."""
    ids, tokens = encode_example(tok, example, model.config.block_size)
    weights = attention_weights(model, ids)[:, :, -1].numpy()           # (L, H, T)
    return weights[:, :, tokens] / np.bincount(tokens)[tokens]


def mean_attention(model, tok, examples):
    """-> {label: (L, H, N), the mean over the examples with this label}"""
    weights = defaultdict(list)
    for example in examples:
        weights[example["output"]].append(attention_on_bases(model, tok, example))
    return {label: np.mean(weights[label], axis=0) for label in sorted(weights)}


def report(means):
    """-> a line per label and head: its attention to the DNA, and its favourite base"""
    yield f"{'label':18}{'layer':>6}{'head':>6}{'on the DNA':>12}   most on base"
    for label, weights in means.items():
        for layer, head in np.ndindex(weights.shape[:2]):
            row = weights[layer, head]
            yield (f"{label:18}{layer:6}{head:6}{row.sum():12.0%}   {row.argmax() + 1} "
                   f"({row.max():.0%})")


def draw(means, path):
    """A heat map per label: heads in rows, bases in columns"""
    figure, axes = panels(len(means), 1, 10, 2.8)
    for axis, (label, weights) in zip(axes, means.items()):
        L, H, N = weights.shape
        heads = [f"{layer}.{head}" for layer, head in np.ndindex(L, H)]
        image = axis.imshow(weights.reshape(L * H, N), aspect="auto", cmap="cividis",
                            vmin=0, vmax=0.12, extent=(0.5, N + 0.5, L * H - 0.5, -0.5))
        axis.set_title(label, loc="left", pad=20)
        axis.set_yticks(range(L * H), heads, fontsize=7)
        axis.axvline(MIDDLE + 0.5, color="white", linewidth=1, linestyle=":")

        # the planted motifs, a letter above each base
        for first, letters in MOTIFS.get(label, []):
            for i, letter in enumerate(letters, start=first):
                axis.text(i - 0.4, -0.8, letter, family="monospace")
    axes[-1].set_xlabel("base of the input (dotted: the line break in the prompt)")
    figure.supylabel("layer.head")
    figure.colorbar(image, ax=axes, extend="max", shrink=0.6,
                    label="attention of the answer, mean over the test rows")
    figure.savefig(path)


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m lessons.attention")
    parser.add_argument("--task", default="data/toy/tasks/splice.test.json",
                        help="a file of examples")
    parser.add_argument("--png", metavar="FILE", help="draw it")
    args = parser.parse_args(argv)

    model, tok, _ = load_for_prompts(MODEL)
    examples = config.read_json(args.task)[:ROWS]
    means = mean_attention(model.eval(), tok, examples)
    print(*report(means), sep="\n")
    if args.png:
        draw(means, args.png)
        print(f"wrote {args.png}")


if __name__ == "__main__":
    config.run(main)
