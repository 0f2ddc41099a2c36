"""
Pack a model for others: the same model folder, smaller, with weights in bfloat16 and
without what only training needs.

    python -m tools.pack out/laptop-instruct models/laptop

It writes best.pt, config.json and tokenizer.json, and scores.json if the model has been
scored.
"""
import os

import torch

import config
from config import replacing, require
from model import save_checkpoint
from train import load_model


def pack(source, target):
    """Write the model of a folder to another one, in bfloat16."""
    model, _, state = load_model(source)
    os.makedirs(target, exist_ok=True)
    # save_checkpoint writes these anew
    del state["model"], state["model_config"]
    with replacing(os.path.join(target, "best.pt")) as temporary:
        save_checkpoint(temporary, model.to(torch.bfloat16), **state)
    for name in ("config.json", "tokenizer.json", "scores.json"):
        if os.path.exists(os.path.join(source, name)):
            config.copy_file(os.path.join(source, name), os.path.join(target, name))


def main(argv):
    require(len(argv) == 2 and not argv[0].startswith("-"),
            "give two folders: the model's, and the one to write to")
    source, target = argv
    require(os.path.realpath(source) != os.path.realpath(target),
            f"{target}: that is where the model is: give another folder")
    pack(source, target)
    size = sum(entry.stat().st_size for entry in os.scandir(target))
    print(f"wrote {target}, {size / 1e6:.1f} MB; next: "
          f"{config.next_command('sample', [], out_dir=target)}")


if __name__ == "__main__":
    config.run(main)
