"""GPT-2 files, both ways: the same network, and nothing lost without a word."""
import json
import os

import pytest
import torch

import config
from bpe import Tokenizer
from model import GPT, GPTConfig, save_checkpoint
from tools import gpt2
from tools.gpt2 import read_safetensors, write_safetensors
from train import load_model


@pytest.fixture
def folder(tmp_path):
    """-> a model folder, as train.py writes it"""
    return model_folder(tmp_path / "model")


def model_folder(path, split="mixed", **more):
    os.makedirs(path)
    tok = Tokenizer.train(["see ACGTACGTAA. It's the cell", "GATTACAGATTACA"] * 5, 300, split)
    tok.save(path / "tokenizer.json")
    torch.manual_seed(0)
    model = GPT(GPTConfig(len(tok), block_size=32, n_layer=2, n_head=2, n_embd=16, **more))
    with torch.no_grad():       # away from the zeros and ones that it starts from
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    save_checkpoint(path / "best.pt", model, tokenizer_sha256=config.file_sha256(path / "tokenizer.json"))
    return path


@pytest.fixture
def files(folder, tmp_path):
    """-> a folder of GPT-2 files"""
    gpt2.main([str(folder), str(tmp_path / "files")])
    return tmp_path / "files"


def change(path, **tensors):
    """Put tensors into a .safetensors file, or take them out (None)."""
    kept = read_safetensors(path) | {name.replace("__", "."): t for name, t in tensors.items()}
    write_safetensors(path, {name: t for name, t in kept.items() if t is not None})


def test_there_and_back(folder, files, tmp_path):
    gpt2.main([str(files), str(tmp_path / "back")])
    (ours, tok, _), (again, tok_again, _) = (load_model(str(path)) for path in (folder, tmp_path / "back"))
    assert again.config == ours.config and tok_again.vocab == tok.vocab
    for (name, p), q in zip(ours.named_parameters(), again.parameters()):
        assert torch.equal(p, q), name
    assert sorted(os.listdir(tmp_path / "back")) == ["best.pt", "config.json", "tokenizer.json"]


def test_what_the_published_gpt2_has_besides(files, tmp_path):
    """Its names have no prefix, and its masks are no weights; ids that are padding go, so that none
    without a token is ever drawn."""
    path = files / "model.safetensors"
    tensors = {name.removeprefix("transformer."): t for name, t in read_safetensors(path).items()}
    wte = torch.cat([tensors["wte.weight"], torch.ones(5, 16)])
    write_safetensors(path, tensors | {"h.0.attn.bias": torch.ones(1, 1, 32, 32), "wte.weight": wte,
                                       "h.0.attn.masked_bias": torch.tensor(-1e4), "lm_head.weight": wte})
    c = json.loads((files / "config.json").read_text())
    (files / "config.json").write_text(json.dumps(c | {"vocab_size": len(wte)}))
    gpt2.main([str(files), str(tmp_path / "back")])
    model, tok, _ = load_model(str(tmp_path / "back"))
    assert model.config.vocab_size == len(tok) == len(wte) - 5


def test_tensors_that_do_not_fit_are_refused(files, tmp_path):
    """Each would make another network of it, without a word."""
    path, whole = files / "model.safetensors", (files / "model.safetensors").read_bytes()
    for tensors, message in [
            ({"transformer__h__0__attn__rotary": torch.ones(4)}, "h.0.attn.rotary: not part of this network"),
            ({"transformer__ln_f__bias": None}, "ln_f.bias: missing"),
            ({"transformer__ln_f__bias": torch.ones(3)}, r"ln_f.bias is \(3,\), not \(16,\)"),
            ({"lm_head__weight": torch.ones(3)}, "lm_head.weight is not wte.weight")]:
        change(path, **tensors)
        with pytest.raises(ValueError, match=f"model.safetensors: {message}"):
            gpt2.main([str(files), str(tmp_path / "back")])
        path.write_bytes(whole)
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="not a complete .safetensors"):
        gpt2.main([str(files), str(tmp_path / "back")])
    assert not os.path.exists(tmp_path / "back")


def test_half_precision_is_read(files):
    whole = read_safetensors(files / "model.safetensors")
    for name, dtype in (("BF16", torch.bfloat16), ("F16", torch.float16)):
        raw = whole["transformer.ln_f.weight"].to(dtype)
        header = json.dumps({"x": {"dtype": name, "shape": [16], "data_offsets": [0, 32]}}).encode()
        (files / "x").write_bytes(len(header).to_bytes(8, "little") + header + bytes(raw.view(torch.uint8).numpy()))
        assert torch.equal(read_safetensors(files / "x")["x"], raw.float())


@pytest.mark.parametrize("key, value", [
    ("scale_attn_by_inverse_layer_idx", True), ("activation_function", "relu"), ("n_inner", 99),
    ("tie_word_embeddings", False), ("model_type", "gpt_neo"), ("layer_norm_epsilon", 1e-6), ("vocab_size", 9)])
def test_a_gpt2_that_is_not_plain_is_refused(files, tmp_path, key, value):
    path = files / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(ValueError, match=f"config.json: not the config of a GPT-2 that can be read here .{key} is"):
        gpt2.main([str(files), str(tmp_path / "back")])


def test_what_a_folder_lacks_is_named(files, tmp_path):
    for name in ("model-00001-of-00002.safetensors", "pytorch_model.bin"):
        (tmp_path / "x").mkdir(exist_ok=True)
        (tmp_path / "x" / name).write_bytes(b"x")
    with pytest.raises(ValueError, match="x: neither best.pt nor model.safetensors, but model-00001-of-00002.safetensors, "
                       "pytorch_model.bin. .*save_pretrained"):
        gpt2.main([str(tmp_path / "x"), str(tmp_path / "back")])
    with pytest.raises(ValueError, match="files holds a model already"):
        gpt2.main([str(files), str(files)])
    os.remove(files / "tokenizer.json")
    with pytest.raises(ValueError, match="files: no tokenizer.json. Where there are vocab.json and merges.txt"):
        gpt2.main([str(files), str(tmp_path / "back")])
    assert not os.path.exists(tmp_path / "back")


def test_motifs_cannot_be_exported(tmp_path):
    model_folder(tmp_path / "motifs", motifs=3)
    with pytest.raises(ValueError, match="motifs: a model with motif filters, which GPT-2 files cannot hold"):
        gpt2.main([str(tmp_path / "motifs"), str(tmp_path / "files")])
    assert not os.path.exists(tmp_path / "files")


# -- beside the `transformers` library

def test_equals_transformers(folder, files, tmp_path):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.GPT2LMHeadModel.from_pretrained(files).eval()
    ours, tok, _ = load_model(str(folder))
    idx = torch.randint(len(tok), (3, 32), generator=torch.Generator().manual_seed(1))
    assert (theirs(idx).logits - ours.eval()(idx)[0]).abs().max() < 1e-4
    theirs.save_pretrained(tmp_path / "theirs")
    tok.save(tmp_path / "theirs/tokenizer.json")
    gpt2.main([str(tmp_path / "theirs"), str(tmp_path / "back")])
    assert torch.equal(load_model(str(tmp_path / "back"))[0].eval()(idx)[0], ours(idx)[0])


@pytest.mark.parametrize("split", ["mixed", "mixed6", "mixed1", "none"])
def test_transformers_read_our_tokenizer(tmp_path, split):
    transformers = pytest.importorskip("transformers")
    gpt2.main([str(model_folder(tmp_path / "model", split)), str(tmp_path / "files")])
    tok = Tokenizer.load(tmp_path / "model/tokenizer.json")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "files")
    for text in ("see ACGTACGTAA.", "The CAT sat, ACGTNNACGTACGTA\n\nIt's 12 é 日本", " x  y "):
        assert theirs(text)["input_ids"] == tok.encode(text)
        assert theirs.decode(tok.encode(text)) == text
