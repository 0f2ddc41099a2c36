"""
Pack a model for others: GPT-2 files in bfloat16, which sample.py and instruct.py read like a
folder of train.py's, and `transformers` too.

    python -m models.export out/laptop-instruct models/laptop

It writes model.safetensors, config.json, tokenizer.json and tokenizer_config.json; of a
tuned model also questions.json, what it was tuned on; and scores.json, if it has been scored.
"""
import os
import shutil

import torch

import config
from gpt2 import load_model, save_gpt2


def main(argv):
    if len(argv) != 2 or argv[0].startswith("-"):
        raise ValueError("give two folders: the model's, and the one to write to")
    source, target = argv
    if os.path.realpath(source) == os.path.realpath(target):
        raise ValueError(f"{target}: that is where the model is: give another folder")
    model, tok, state = load_model(source)

    save_gpt2(model, tok, target, torch.bfloat16)
    if "questions" in state:        # it was tuned
        config.write_json(os.path.join(target, "questions.json"), state["questions"])
    scores = os.path.join(source, "scores.json")
    if os.path.exists(scores):
        shutil.copyfile(scores, os.path.join(target, "scores.json"))
    size = sum(os.path.getsize(os.path.join(target, name)) for name in os.listdir(target))
    print(f"wrote {target}, {size / 1e6:.1f} MB; next: python sample.py --out_dir={target} --chat")


if __name__ == "__main__":
    config.run(main)
