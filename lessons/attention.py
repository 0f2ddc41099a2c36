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
import json
import math
import os

import numpy as np
import torch

import config
from dna import toy
from dna.tasks import alpaca_parts
from instruct import encode_prompts, load_for_prompts

# An intron begins or ends before this base of the toy world's splice sites.
MIDDLE = 30

# What dna/toy.py plants there: (first base, consensus)
MOTIFS = {
    "Donor Sites": [(MIDDLE - 3, toy.MOTIFS["donor"]),
                    (MIDDLE + 9, "G triplets, 0 to 5 bases on")],
    "Acceptor Sites": [(MIDDLE - 14, toy.MOTIFS["acceptor"])],
}


@torch.no_grad()
def attention_weights(model, ids):
    """ids: list of T token ids -> (L, H, T, T): how much of each token's attention
    (third axis) goes to each of the tokens up to it (fourth axis)"""
    weights = []

    def keep(module, inputs, output):
        # the network does not return its weights, so compute them once more
        T, H = len(ids), model.config.n_head
        q, k, _ = output[0].view(T, 3, H, -1).transpose(0, 2).unbind(1)     # (H, T, D)
        scores = q @ k.transpose(1, 2) / math.sqrt(q.size(-1))              # (H, T, T)
        future = torch.ones(T, T, dtype=torch.bool).triu(1)
        weights.append(scores.masked_fill(future, -math.inf).softmax(dim=-1))

    hooks = [block.attn.c_attn.register_forward_hook(keep)
             for block in model.transformer.h]
    model(torch.tensor([ids]))
    for hook in hooks:
        hook.remove()
    return torch.stack(weights)


def encode_example(tok, example, block_size):
    """-> (ids of an example's prompt, (N,) the index of each base's token)"""
    prompt = example["instruction"], example["input"]
    (ids,), _ = encode_prompts(tok, [prompt], block_size)
    ids = ids.tolist()

    # read the bytes after the input's heading; a line break among them is not a base
    before, _ = alpaca_parts(example["instruction"], has_input=True)
    tokens = [j for j, i in enumerate(ids) for _ in tok.bytes_of[i]]
    prompt, start = tok.decode_bytes(ids), len(before.encode())
    bases = [tokens[at] for at in range(start, len(prompt)) if prompt[at] in b"ACGT"]
    return ids, np.array(bases[:len(example["input"])])


def attention_on_bases(model, tok, example):
    """-> (L, H, N): the attention of the answer to each base of the input. The bases of
    a token share its attention."""
    ids, tokens = encode_example(tok, example, model.config.block_size)
    weights = attention_weights(model, ids)[:, :, -1].numpy()           # (L, H, T)
    return weights[:, :, tokens] / np.bincount(tokens)[tokens]


def mean_attention(model, tok, examples):
    """-> {label: (L, H, N), the mean over the examples with this label}"""
    weights = {}
    for example in examples:
        of_label = weights.setdefault(example["output"], [])
        of_label.append(attention_on_bases(model, tok, example))
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
    import matplotlib.pyplot as plt
    figure, axes = plt.subplots(len(means), 1, figsize=(10, 8.4), layout="constrained")
    for axis, (label, weights) in zip(axes, means.items()):
        L, H, N = weights.shape
        image = axis.imshow(weights.reshape(L * H, N), aspect="auto", cmap="cividis",
                            vmin=0, vmax=0.12, extent=(0, N, L * H, 0))
        heads = [f"{i}.{j}" for i, j in np.ndindex(L, H)]
        bases = [1, *range(10, N + 1, 10)]
        axis.set_title(label, loc="left", fontweight="bold", pad=20)
        axis.set_yticks(np.arange(L * H) + 0.5, heads, fontsize=7)
        axis.set_xticks([base - 0.5 for base in bases], bases)
        axis.axvline(MIDDLE, color="white", linewidth=1, linestyle=":")
        axis.hlines(np.arange(H, L * H, H), 0, N, color="white", linewidth=1)

        # the planted motifs, a letter above each base
        for first, motif in MOTIFS.get(label, []):
            letters = [motif] if " " in motif else motif
            for i, letter in enumerate(letters, start=first):
                axis.text(i + 0.1, -0.3, letter, fontsize=9, family="monospace")
    axes[-1].set_xlabel("base of the input (dotted: the line break in the prompt)")
    axes[len(axes) // 2].set_ylabel("layer.head")
    figure.colorbar(image, ax=axes, extend="max", shrink=0.6,
                    label="attention of the answer, mean over the test rows")
    figure.savefig(path, dpi=100)


def main(argv):
    parser = argparse.ArgumentParser(prog="python -m lessons.attention")
    path = os.path.expanduser
    parser.add_argument("--out_dir", type=path, default="out/toy-instruct",
                        help="a model folder")
    parser.add_argument("--task", type=path, default="data/toy/tasks/splice.test.json",
                        help="a file of examples")
    parser.add_argument("--rows", type=int, default=300, help="how many of them")
    parser.add_argument("--png", type=path, metavar="FILE", help="draw it")
    args = parser.parse_args(argv)

    model, tok, _ = load_for_prompts(args.out_dir)
    with open(args.task, encoding="utf-8") as f:
        means = mean_attention(model.eval(), tok, json.load(f)[:args.rows])
    print(*report(means), sep="\n")
    if args.png:
        draw(means, args.png)
        print(f"wrote {args.png}")


if __name__ == "__main__":
    config.run(main)
