"""
GPT-2 files, in the layout of the `transformers` library: model.safetensors, config.json and
tokenizer.json in a folder. Not needed to understand the network.

    model = from_gpt2("folder/of/gpt2")
    save_gpt2(model, tok, "packed", torch.bfloat16)
"""
import json
import os

import numpy as np
import torch

from model import GPT, GPTConfig

# What these keys of a config.json must say, where present, for the network to be that of model.py.
SUPPORTED = {"model_type": ("gpt2", "gpt2-kmers"),
             "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
             "layer_norm_epsilon": (1e-5,), "scale_attn_weights": (True,),
             "scale_attn_by_inverse_layer_idx": (False,), "tie_word_embeddings": (True,),
             "add_cross_attention": (False,)}
# The published GPT-2 keeps these matrices as (in, out), where nn.Linear has (out, in).
CONV1D = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def from_gpt2(folder, dropout=0.0):
    """Read a GPT-2 from `model.safetensors` and `config.json` in a folder -> GPT"""
    path = os.path.join(folder, "config.json")
    try:
        with open(path, encoding="utf-8") as f:
            c = json.load(f)
        for key, allowed in SUPPORTED.items():
            if c.get(key, allowed[0]) not in allowed:
                raise ValueError(f"{key} is {c[key]!r}, which this network does not have")
        if c.get("n_inner") not in (None, 4 * c["n_embd"]):
            raise ValueError(f"n_inner is {c['n_inner']}, not four times n_embd")
        model = GPT(GPTConfig(vocab_size=c["vocab_size"], block_size=c["n_positions"],
                              n_layer=c["n_layer"], n_head=c["n_head"], n_embd=c["n_embd"],
                              dropout=dropout, kmer=c.get("kmer", 0)))
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{path}: not the config of a GPT-2 that can be read here ({e})") from None

    path = os.path.join(folder, "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor
               for name, tensor in read_safetensors(path).items()}
    with torch.no_grad():
        for name, p in model.transformer.named_parameters():
            if name not in tensors:
                raise ValueError(f"{path}: {name} is missing")
            tensor = tensors[name].T if name.endswith(CONV1D) else tensors[name]
            if tensor.shape != p.shape:
                raise ValueError(f"{path}: {name} is {tuple(tensor.shape)}, not {tuple(p.shape)} as "
                                 "config.json says")
            p.copy_(tensor)
    if model.config.kmer:
        # its tables are no parameters, but made of the vocabulary
        with open(os.path.join(folder, "tokenizer.json"), encoding="utf-8") as f:
            model.transformer.kmers.read_vocab(json.load(f)["model"]["vocab"])
    return model


def save_gpt2(model, tok, folder, dtype=torch.float32):
    """Write weights as float32 or in another `dtype`, config, and the tokenizer `tok` to a folder.

    `transformers` loads it, except with k-mers: it would ignore them, so that model_type makes it
    refuse.
    """
    os.makedirs(folder, exist_ok=True)
    c = model.config
    files = {
        "config.json": dict(
            model_type="gpt2-kmers" if c.kmer else "gpt2", architectures=["GPT2LMHeadModel"],
            vocab_size=c.vocab_size, n_positions=c.block_size, n_ctx=c.block_size,
            n_embd=c.n_embd, n_layer=c.n_layer, n_head=c.n_head, kmer=c.kmer,
            activation_function="gelu_new", layer_norm_epsilon=1e-5, tie_word_embeddings=True,
            resid_pdrop=c.dropout, embd_pdrop=c.dropout, attn_pdrop=c.dropout,
            bos_token_id=tok.eot, eos_token_id=tok.eot),
        # without it, AutoTokenizer would split by the pattern of OpenAI's GPT-2
        "tokenizer_config.json": dict(
            tokenizer_class="PreTrainedTokenizerFast", model_max_length=c.block_size,
            bos_token="<|endoftext|>", eos_token="<|endoftext|>", clean_up_tokenization_spaces=False),
    }
    for name, content in files.items():
        with open(os.path.join(folder, name), "w", encoding="utf-8") as f:
            json.dump(content, f, indent=2)
    tok.save(os.path.join(folder, "tokenizer.json"))
    tensors = {f"transformer.{name}": (p.T if name.endswith(CONV1D) else p).detach().to(dtype)
               for name, p in model.transformer.named_parameters()}
    write_safetensors(os.path.join(folder, "model.safetensors"), tensors)


# A .safetensors file: the length of a JSON header (8 bytes, little-endian); the header, with each
# tensor's dtype, shape and offsets; the tensors' raw bytes.

def read_safetensors(path):
    """-> {name: float32 tensor} of the floating-point tensors in the file"""
    try:
        raw = np.memmap(path, mode="r")
        size = int.from_bytes(raw[:8].tobytes(), "little")
        header = json.loads(raw[8:8 + size].tobytes())
        tensors = {}
        for name, entry in header.items():
            if entry.get("dtype") in SAFETENSORS_DTYPES:
                start, end = entry["data_offsets"]
                data = torch.from_numpy(np.array(raw[8 + size + start:8 + size + end]))
                data = data.view(SAFETENSORS_DTYPES[entry["dtype"]])
                tensors[name] = data.view(entry["shape"]).float()
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, OverflowError) as e:
        raise ValueError(f"{path}: not a complete .safetensors file ({e})") from None


def write_safetensors(path, tensors):
    """tensors: {name: tensor}"""
    names = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + tensor.nbytes]}
        offset += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)         # tensors start at a multiple of eight
    with open(path, "wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            f.write(tensor.contiguous().cpu().view(torch.uint8).numpy().tobytes())
