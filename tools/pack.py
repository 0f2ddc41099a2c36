"""
Pack a model for others: the same model folder with its weights in bfloat16, without what
only training needs.

    python -m tools.pack out/laptop-instruct models/laptop

It writes best.pt, config.json and tokenizer.json, and scores.json if the model has been
scored.
"""
import os
import shutil

import torch

import config
from config import replacing, require
from model import save_checkpoint
from train import load_model

# What a checkpoint holds for training alone: the shape and weights are written anew.
TRAINING = {"model", "model_config", "optimizers"}


def pack(source, target):
    """Write the model of a folder to another one, in bfloat16."""
    model, tok, state = load_model(source)
    os.makedirs(target, exist_ok=True)
    kept = {key: value for key, value in state.items() if key not in TRAINING}
    with replacing(os.path.join(target, "best.pt")) as temporary:
        save_checkpoint(temporary, model.to(torch.bfloat16), **kept)
    for name in ("config.json", "tokenizer.json", "scores.json"):
        if os.path.exists(os.path.join(source, name)):
            with replacing(os.path.join(target, name)) as temporary:
                shutil.copyfile(os.path.join(source, name), temporary)


def main(argv):
    require(len(argv) == 2 and not argv[0].startswith("-"),
            "give two folders: the model's, and the one to write to")
    source, target = argv
    require(os.path.realpath(source) != os.path.realpath(target),
            f"{target}: that is where the model is: give another folder")
    pack(source, target)
    size = sum(os.path.getsize(os.path.join(target, name)) for name in os.listdir(target))
    print(f"wrote {target}, {size / 1e6:.1f} MB; next: python sample.py --out_dir={target} --chat")


if __name__ == "__main__":
    config.run(main)
