"""
Convert GPT-2 files, in the layout of the `transformers` library, to a model folder, and
a model folder to GPT-2 files.

    python -m tools.gpt2 downloads/gpt2 models/gpt2     # for --init_from=models/gpt2
    python -m tools.gpt2 out/mine out/mine-gpt2         # for GPT2LMHeadModel

GPT-2 files are model.safetensors, config.json and tokenizer.json. Whichever of the two
the first folder holds, the second folder becomes the other.
"""
import json
import os
from dataclasses import asdict

import numpy as np
import torch

import config
from bpe import Tokenizer
from config import replacing, require
from model import GPT, GPTConfig, save_checkpoint
from train import load_model

# What a config.json says of a network that is model.py's. One that is read may leave
# some of it out.
NETWORK = {"model_type": "gpt2", "activation_function": "gelu_new",
           "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
           "scale_attn_by_inverse_layer_idx": False, "tie_word_embeddings": True,
           "add_cross_attention": False}
OTHER_NAMES = {"activation_function": "gelu_pytorch_tanh"}     # of the same
# The published GPT-2 keeps these matrices as (in, out), where nn.Linear has (out, in).
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
# These tensors of the published GPT-2 are no weights: two masks.
NO_WEIGHTS = (".attn.bias", ".attn.masked_bias")
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
          "BOOL": torch.bool, "U8": torch.uint8}


# --------------------------------------------------------------------------------------
# From GPT-2 files

def import_gpt2(source, target):
    """Write the GPT-2 of one folder to another one as best.pt, config.json and
    tokenizer.json. ValueError if it is another network, or lacks a file."""
    vocabulary = os.path.join(source, "tokenizer.json")
    require(os.path.exists(vocabulary),
            f"{source}: no tokenizer.json. Where there are vocab.json and merges.txt, "
            "AutoTokenizer.from_pretrained(FOLDER).save_pretrained(FOLDER) of the "
            "`transformers` library writes it")
    tok = Tokenizer.load(vocabulary)
    require(tok.eot is not None, f"{vocabulary}: it has no <|endoftext|>")
    model = read_gpt2(source, len(tok))

    sha256 = config.file_sha256(vocabulary)
    os.makedirs(target, exist_ok=True)
    config.copy_file(vocabulary, os.path.join(target, "tokenizer.json"))
    config.write_json(os.path.join(target, "config.json"), asdict(model.config))
    with replacing(os.path.join(target, "best.pt")) as temporary:
        save_checkpoint(temporary, model, tokenizer_sha256=sha256)


def read_gpt2(folder, n_tokens):
    """-> the GPT of a folder's config.json and model.safetensors, with the first
    `n_tokens` of its token embeddings; the rest have no token"""
    # its shape
    path = os.path.join(folder, "config.json")
    try:
        c = config.read_json(path)
        for key, value in NETWORK.items():
            require(c.get(key, value) in (value, OTHER_NAMES.get(key, value)),
                    f"{key} is {c.get(key)!r}, which this network does not have")
        require(c.get("n_inner") in (None, 4 * c["n_embd"]),
                f"n_inner is {c.get('n_inner')}, not four times n_embd")
        require(c["vocab_size"] >= n_tokens,
                f"vocab_size is {c['vocab_size']}, tokenizer.json has {n_tokens} ids")
        model = GPT(GPTConfig(n_tokens, c["n_positions"], c["n_layer"], c["n_head"],
                              c["n_embd"]))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path}: not the config of a GPT-2 that can be read here "
                         f"({e})") from None

    # its weights: each tensor of the file is one of the network's, and the other way
    # round
    path = os.path.join(folder, "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor
               for name, tensor in read_safetensors(path).items()
               if not name.endswith(NO_WEIGHTS)}
    head = tensors.pop("lm_head.weight", None)
    weights = dict(model.transformer.named_parameters())
    for names, what in ((weights.keys() - tensors, "missing"),
                        (tensors.keys() - weights, "not part of this network")):
        require(not names, f"{path}: {', '.join(sorted(names))}: {what}")
    require(head is None or torch.equal(head, tensors["wte.weight"]),
            f"{path}: lm_head.weight is not wte.weight, as it is in this network")
    with torch.no_grad():
        for name, p in weights.items():
            tensor = tensors[name]
            if name == "wte.weight":
                tensor = tensor[:n_tokens]
            if name.endswith(CONV1D):
                tensor = tensor.T
            require(tensor.shape == p.shape, f"{path}: {name} is {tuple(tensor.shape)}, "
                    f"not {tuple(p.shape)} as config.json says")
            p.copy_(tensor)
    return model


# --------------------------------------------------------------------------------------
# To GPT-2 files

def export_gpt2(source, target):
    """Write the model of a folder to another one as model.safetensors, config.json,
    tokenizer.json and tokenizer_config.json, which `transformers` loads. ValueError if
    the model has what GPT-2 does not have."""
    model, tok, _ = load_model(source)
    c = model.config
    require(not c.motifs, f"{source}: a model with motif filters, which GPT-2 files cannot "
            "hold")
    tensors = {f"transformer.{name}": p.T if name.endswith(CONV1D) else p
               for name, p in model.transformer.named_parameters()}

    os.makedirs(target, exist_ok=True)
    config.write_json(os.path.join(target, "config.json"), NETWORK | dict(
        architectures=["GPT2LMHeadModel"], vocab_size=c.vocab_size,
        n_positions=c.block_size, n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
        bos_token_id=tok.eot, eos_token_id=tok.eot))
    # without it, AutoTokenizer would split by the pattern of OpenAI's GPT-2
    config.write_json(os.path.join(target, "tokenizer_config.json"), dict(
        tokenizer_class="PreTrainedTokenizerFast", model_max_length=c.block_size,
        bos_token="<|endoftext|>", eos_token="<|endoftext|>",
        clean_up_tokenization_spaces=False))
    with replacing(os.path.join(target, "tokenizer.json")) as temporary:
        tok.save(temporary)
    with replacing(os.path.join(target, "model.safetensors")) as temporary:
        write_safetensors(temporary, tensors)


# --------------------------------------------------------------------------------------
# A .safetensors file: the length of a JSON header (8 bytes, little-endian); the header,
# with each tensor's dtype, shape and offsets; the tensors' raw bytes.

def read_safetensors(path):
    """-> {name: float32 tensor} of all tensors in the file"""
    try:
        raw = np.memmap(path, mode="r")
        size = int.from_bytes(raw[:8].tobytes(), "little")
        header = config.parse_json(raw[8:8 + size].tobytes())
        header.pop("__metadata__", None)
        tensors = {}
        for name, entry in header.items():
            start, end = entry["data_offsets"]
            data = torch.from_numpy(np.array(raw[8 + size + start:8 + size + end]))
            data = data.view(DTYPES[entry["dtype"]])
            tensors[name] = data.view(entry["shape"]).float()
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError,
            OverflowError) as e:
        raise ValueError(f"{path}: not a complete .safetensors file, or one with other "
                         f"dtypes than {', '.join(DTYPES)} ({e})") from None


def write_safetensors(path, tensors):
    """tensors: {name: tensor}, written as float32"""
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        size = 4 * tensor.numel()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + size]}
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)         # tensors start at a multiple of eight
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            f.write(tensor.detach().float().contiguous().numpy().tobytes())


def main(argv):
    require(len(argv) == 2 and not argv[0].startswith("-"),
            "give two folders: the one to convert, and the one to write to")
    source, target = argv
    for name in ("best.pt", "model.safetensors"):
        require(not os.path.exists(os.path.join(target, name)),
                f"{target} holds a model already: give another folder")
    names = os.listdir(source)
    if "best.pt" in names:
        export_gpt2(source, target)
        print(f"wrote {target}, GPT-2 files for the `transformers` library")
    elif "model.safetensors" in names:
        import_gpt2(source, target)
        print(f"wrote {target}; next: "
              f"{config.next_command('sample', [], out_dir=target)}")
    else:
        found = ", ".join(sorted(names)[:9])
        raise ValueError(f"{source}: neither best.pt nor model.safetensors, but "
                         f"{found or 'nothing'}. The `transformers` "
                         "library makes one model.safetensors of other files, or of "
                         "several: save_pretrained(FOLDER, max_shard_size='100GB')")


if __name__ == "__main__":
    config.run(main)
