"""
Pretraining: data order, optimizer, schedule, evaluation, several GPUs; the log, checkpoints and
model folders.

    python train.py                                           # the toy world, after prepare.py
    python train.py config/laptop.toml --max_steps=500
    python train.py config/laptop.toml --resume               # continue a run that was stopped
    torchrun --nproc_per_node=4 train.py config/gpt2.toml

It writes to out_dir:

    last.pt, best.pt    the newest checkpoint, and the one with the lowest validation loss
    log.jsonl           a line per logged step and per evaluation
    config.json, tokenizer.json

Shapes: B batch, T time (tokens). instruct.py tunes with the same fit().
"""
import contextlib
import glob
import json
import math
import os
import shutil
import signal
import sys
import time
from collections import defaultdict
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import config
from bpe import Tokenizer
from config.machine import find_machine, should_compile
from model import GPT, GPTConfig, load_checkpoint, save_checkpoint


@dataclass
class RunConfig:
    # Of pretraining and of tuning alike
    batch_size: int = 16            # rows per micro-batch
    warmup_steps: int = 40          # steps of linear warmup; then linear decay to zero
    weight_decay: float = 0.1       # of matrices; vectors have none
    grad_clip: float = 1.0          # largest norm of the gradient; 0: no limit
    dropout: float = 0.0            # share of activations zeroed in training
    log_interval: int = 10          # steps between lines of the log
    device: str = "auto"            # auto, cpu, cuda, cuda:1, mps
    dtype: str = "auto"             # auto, float32, bfloat16: autocast; weights stay float32
    seed: int = 1337                # of the weights, the data order and dropout
    resume: bool = False            # continue from last.pt in out_dir


@dataclass
class TrainConfig(RunConfig):
    data_dir: str = "data/toy"      # folder that prepare.py wrote
    out_dir: str = "out/toy"        # folder to write to
    n_layer: int = 3                # blocks
    n_head: int = 4                 # attention heads per block
    n_embd: int = 128               # channels
    block_size: int = 160           # context length, in tokens
    kmer: int = 0                   # length of k-mers that have embeddings, as 6; 0: plain GPT-2
    gradient_accumulation_steps: int = 1    # micro-batches per step, over all processes
    max_steps: int = 300            # steps of the optimizer
    optimizer: str = "muon"         # muon (the blocks' matrices; AdamW for the rest) or adamw
    learning_rate: float = 6e-3     # the highest, after the warmup; about 2e-3 for adamw
    eval_interval: int = 100        # steps between evaluations, each with a checkpoint
    compile: str = "auto"           # auto, yes, no: torch.compile


# ----------------------------------------------------------------------------------------------
# Data

def read_data(data_dir):
    """Read what prepare.py wrote besides the bins, and check them all against it.

    -> (meta.json, the tokenizer). Of meta.json, modalities is {name: the unit of its size}
    """
    path = os.path.join(data_dir, "meta.json")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file: run prepare.py --data_dir={data_dir} first")
    try:
        with open(path, encoding="utf-8") as f:
            meta = json.load(f)
        sizes = {name: b["tokens"] * np.dtype(meta["dtype"]).itemsize
                 for name, b in meta["bins"].items()}
        for name, unit in meta["modalities"].items():
            meta["bins"][f"val_{name}.bin"][f"{unit}s"]
        sha256 = meta["tokenizer_sha256"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: damaged, or from an older prepare.py: run prepare.py "
                         "again") from None
    tok = Tokenizer.load(os.path.join(data_dir, "tokenizer.json"), sha256)
    for name, size in sizes.items():
        path = os.path.join(data_dir, name)
        if os.path.getsize(path) != size:
            raise ValueError(f"{path}: {os.path.getsize(path):,} bytes, but meta.json says {size:,}: "
                             "cut short? Run prepare.py again")
    return meta, tok


def open_bin(data_dir, name, meta):
    """-> the ids of a bin as an array, on disk until they are used"""
    if meta["bins"][name]["tokens"] == 0:
        return np.zeros(0, dtype=meta["dtype"])
    return np.memmap(os.path.join(data_dir, name), dtype=meta["dtype"], mode="r")


class Windows:
    """Training rows: the text in windows of T tokens, every one once before any comes again, in each
    epoch in a new order and from a new offset. Row k is a function of the seed and k alone, so there
    is no state to checkpoint."""

    def __init__(self, ids, block_size, seed):
        self.ids, self.T, self.seed = ids, block_size, seed
        self.n = (len(ids) - 1) // block_size - 1       # one less, to leave room for the offset
        if self.n < 1:
            raise ValueError(f"train.bin has {len(ids):,} tokens, too few for "
                             f"block_size={block_size}: prepare more text")
        self.epoch = None

    def rows(self, first, count):
        """-> rows first, first + 1, ...: idx (B, T) and targets (B, T)"""
        out = np.empty((count, self.T + 1), dtype=np.int64)
        for i, k in enumerate(range(first, first + count)):
            epoch, index = divmod(k, self.n)
            if epoch != self.epoch:
                rng = np.random.default_rng((self.seed, epoch))
                self.offset, self.order = rng.integers(self.T), rng.permutation(self.n)
                self.epoch = epoch
            start = self.offset + self.order[index] * self.T
            out[i] = self.ids[start:start + self.T + 1]
        out = torch.from_numpy(out)
        return out[:, :-1], out[:, 1:]


def total_nats(model, ids, cfg, machine, eot):
    """The loss of a whole validation bin, every token once, in consecutive windows of block_size.
    <|endoftext|> is read but not counted: it is our separator, not part of the text.
    -> (sum of nats, tokens counted), over all processes"""
    T = model.config.block_size
    # 4,096 tokens at once: logits of more, not compiled, would take more memory than training
    rows = min(cfg.batch_size, max(1, 4096 // T))
    n_windows = math.ceil(max(0, len(ids) - 1) / T)
    nats = tokens = 0.0
    for first in range(machine.rank * rows, n_windows, machine.world * rows):
        # one shape throughout: the last windows are padded with targets of -1
        found = ids[first * T:(first + rows) * T + 1].astype(np.int64)
        part = np.pad(found, (0, rows * T + 1 - len(found)), constant_values=-1)
        idx, targets = (torch.from_numpy(x).view(rows, T) for x in (part[:-1], part[1:]))
        targets = targets.masked_fill(targets == eot, -1)

        # the model gives the mean over the targets
        count = (targets != -1).sum().item()
        with machine.autocast():
            nats += model(*machine.to_device([idx.clamp(min=0), targets]))[1].item() * count
        tokens += count
    return machine.sum(nats, tokens)


# ----------------------------------------------------------------------------------------------
# Optimizer and schedule

def make_optimizers(model, cfg, machine):
    """-> a list of optimizers. With optimizer=muon, Muon has the matrices of the blocks; AdamW has
    the rest, with weight decay for matrices and embeddings, without for biases and LayerNorms."""
    if cfg.optimizer not in ("muon", "adamw"):
        raise ValueError(f"optimizer={cfg.optimizer} is not one of muon, adamw")
    hidden = {name: p for name, p in model.transformer.h.named_parameters()
              if p.dim() == 2 and cfg.optimizer == "muon"}
    in_muon = {id(p) for p in hidden.values()}
    rest = [p for p in model.parameters() if id(p) not in in_muon]
    groups = [{"params": [p for p in rest if p.dim() >= 2], "weight_decay": cfg.weight_decay},
              {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(0.9, 0.95),
                                    fused=machine.device.type in ("cuda", "cpu"))]
    if hidden:
        optimizers.append(Muon(hidden, cfg.learning_rate, cfg.weight_decay, machine.dtype))
    return optimizers


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/): the momentum of a
    matrix is made orthogonal before it is applied, so that no direction dominates the update.

    Unlike torch.optim.Muon it treats c_attn as the three matrices that it is (query, key, value) and
    multiplies in the dtype that the machine is fast at. An update has an RMS of 0.2 times the learning
    rate, about that of AdamW, so that both can share one (Liu et al., 2025, "Muon is scalable for LLM
    training"). hidden: {name: matrix}
    """

    def __init__(self, hidden, lr, weight_decay, dtype, momentum=0.95):
        super().__init__(list(hidden.values()), {"lr": lr, "weight_decay": weight_decay})
        self.parts = [3 if name.endswith("c_attn.weight") else 1 for name in hidden]
        self.dtype, self.momentum = dtype, momentum

    @torch.no_grad()
    def step(self):
        # the momentum of each parameter, as the matrices that it consists of
        group, updates = self.param_groups[0], defaultdict(list)
        for p, parts in zip(group["params"], self.parts):
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            momentum = state["momentum"].lerp_(p.grad, 1 - self.momentum)
            update = p.grad.lerp(momentum, self.momentum)       # Nesterov: one step ahead
            update = update.view(parts, -1, p.size(1)).to(self.dtype)
            updates[update.shape[1:]].append((p, update))

        # matrices of the same shape are orthogonalized together, which is faster
        for shape, members in updates.items():
            params, parts = zip(*members)
            orthogonal = orthogonalize(torch.cat(parts)).split([len(part) for part in parts])
            # an orthogonal matrix has an RMS of 1 / sqrt(its longer side): bring it to 0.2
            scale = 0.2 * math.sqrt(max(shape))
            for p, update in zip(params, orthogonal):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)


def orthogonalize(x, steps=5):
    """Bring the singular values of each matrix to about 1 (0.7 to 1.2) and keep its singular
    vectors, by the Newton-Schulz iteration, which consists of products only. The three coefficients
    are Jordan's; they make small singular values grow fast.

    x: (number of matrices, rows, columns) -> the same shape
    """
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)       # no singular value above 1
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


def learning_rate(step, cfg):
    """Linear warmup over warmup_steps, then linear decay to zero at max_steps; step: 0, 1, ..."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    return cfg.learning_rate * (cfg.max_steps - step) / max(1, cfg.max_steps - cfg.warmup_steps)


# ----------------------------------------------------------------------------------------------
# Starting a run, or resuming it

def open_out_dir(cfg, machine, tokenizer):
    """Make out_dir a complete model folder: config and tokenizer beside the checkpoints to come.
    ValueError rather than overwriting an unfinished run."""
    path = os.path.join(cfg.out_dir, "last.pt")
    if os.path.exists(path) and not cfg.resume:
        state = load_checkpoint(path)[1]
        if state["step"] < state["config"]["max_steps"]:
            raise ValueError(f"{cfg.out_dir} holds a run at step {state['step']} of "
                             f"{state['config']['max_steps']}: continue with --resume, or give "
                             "another out_dir, or delete this one")
    machine.barrier()           # all have looked, before one changes it
    if machine.is_main:
        os.makedirs(cfg.out_dir, exist_ok=True)
        for name in ("last.pt", "best.pt") if not cfg.resume else ():    # of a finished run
            with contextlib.suppress(FileNotFoundError):
                os.remove(os.path.join(cfg.out_dir, name))
        config.write_json(os.path.join(cfg.out_dir, "config.json"), asdict(cfg))
        target = os.path.join(cfg.out_dir, "tokenizer.json")
        with config.replacing(target) as temporary:
            shutil.copyfile(tokenizer, temporary)


# A resumed run may differ from its beginning in these keys; any other would make it another run.
# (More max_steps also stretch the schedule of the learning rate.)
MAY_CHANGE = ("max_steps epochs eval_interval log_interval device dtype compile resume out_dir "
              "data_dir init_from tasks eval_tasks scores").split()


def resume_from(cfg, machine, extra):
    """-> (model, checkpoint) of out_dir's last.pt. ValueError if it was trained with other settings
    or on other data. extra: what every checkpoint holds besides; of it, NAME_sha256 are fingerprints
    of the data and of the tokenizer, which must be the same"""
    path = os.path.join(cfg.out_dir, "last.pt")
    model, state = load_checkpoint(path, machine.device, cfg.dropout)
    for key, value in asdict(cfg).items():
        began_with = state["config"].get(key)
        if key not in MAY_CHANGE and began_with != value:
            raise ValueError(f"{path}: began with {key}={began_with}, not {value}: resume with the "
                             "configuration that it began with")
    if machine.is_main and state["step"] >= cfg.max_steps:
        print(f"{path} is at step {state['step']} already: more max_steps would continue it")
    for key in [key for key in extra if key.endswith("_sha256")]:
        if state.get(key) != extra[key]:
            raise ValueError(f"{path}: began with another {key.removesuffix('_sha256')}: resume with "
                             "the files that it began with")
    return model, state


# ----------------------------------------------------------------------------------------------
# The log and the checkpoints

class RunLog:
    """Writes log.jsonl, checkpoints and a progress bar. Every process counts tokens, only the main
    one writes. extra, resumed, flops_per_step: as in train.fit()"""

    def __init__(self, model, cfg, machine, extra, resumed, flops_per_step):
        self.model, self.cfg, self.machine, self.extra = model, cfg, machine, extra
        self.flops_per_step = flops_per_step
        self.path = os.path.join(cfg.out_dir, "log.jsonl")
        # tokens of all processes, at the last log; and of this one since then
        start, self.tokens = (resumed["step"], resumed["tokens"]) if resumed else (0, 0)
        self.new_tokens, self.steps = 0, 0
        if machine.is_main:
            trim_log(self.path, start)
        self.bar = tqdm(total=cfg.max_steps, initial=start, unit=" steps",
                        disable=None if machine.is_main else True)
        self.clock = time.perf_counter()

    def step(self, step, micro_batches, loss, norm, lr, logging, stopping):
        """Count a step's tokens; log it, if it is to be logged."""
        self.new_tokens += sum((targets != -1).sum().item() for _, targets, *_ in micro_batches)
        self.steps += 1
        self.bar.update()
        if not (logging or stopping):
            return

        # gather from all processes
        loss, new_tokens = self.machine.sum(loss, self.new_tokens)
        loss /= self.machine.world
        self.tokens += int(new_tokens)
        self.check_finite(step, loss=loss, gradient=norm.item())

        # write, and start counting again
        if logging:
            rate = self.steps / (time.perf_counter() - self.clock)
            known = self.flops_per_step and self.machine.peak
            mfu = self.flops_per_step * rate / self.machine.peak if known else None
            self.log(step=step, tokens=self.tokens, loss=loss, lr=lr, grad_norm=norm.item(),
                     tokens_per_second=new_tokens / self.steps * rate, mfu=mfu)
            self.bar.set_postfix(loss=f"{loss:.3f}")
        self.new_tokens, self.steps, self.clock = 0, 0, time.perf_counter()

    def evaluate(self, step, evaluate):
        """-> the validation loss"""
        self.model.eval()
        with torch.no_grad():
            scores = evaluate()
        self.model.train()
        self.check_finite(step, **{"validation loss": scores["val_loss"]})
        self.log(step=step, **scores)
        if self.machine.is_main:
            tqdm.write(f"step {step}: " + ", ".join(f"{key} {value:.4f}" for key, value
                                                    in scores.items() if value is not None))
        self.clock = time.perf_counter()
        return scores["val_loss"]

    def check_finite(self, step, **values):
        """Stop, before anything is saved, if the weights are lost."""
        for name, value in values.items():
            if not math.isfinite(value):
                raise ValueError(f"the {name} is {value} at step {step}: try a lower learning_rate or "
                                 f"a longer warmup; {self.cfg.out_dir} keeps the last good checkpoint")

    def log(self, **line):
        if self.machine.is_main:
            with open(self.path, "a", encoding="utf-8") as f:
                f.write(json.dumps(line) + "\n")

    def save(self, name, **state):
        """Write a checkpoint. If the disk is full, the one before it stays as it is."""
        if not self.machine.is_main:
            return
        path = os.path.join(self.cfg.out_dir, name)
        try:
            with config.replacing(path) as temporary:
                save_checkpoint(temporary, self.model, tokens=self.tokens, config=asdict(self.cfg),
                                **self.extra, **state)
        except OSError as e:
            raise OSError(f"{path}: cannot be written, is the disk full? ({e}) The one before it is "
                          "intact: free some space and continue with --resume") from None


def trim_log(path, step):
    """Drop the lines beyond a checkpoint's step, which the resumed run will write again."""
    kept = []
    if step and os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            kept = [line for line in f if line.endswith("\n") and json.loads(line)["step"] <= step]
    with config.replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as f:
        f.writelines(kept)


# ----------------------------------------------------------------------------------------------
# Ctrl-C

@contextlib.contextmanager
def deferred_signals(machine):
    """Within, Ctrl-C and SIGTERM are only noted in a list -> that list; the step can be finished and
    saved. A second Ctrl-C stops at once; not under torchrun, which passes each one on to processes
    that had it from the terminal."""
    received = []

    def note(signum, frame):
        if signal.SIGINT in received and signum == signal.SIGINT and machine.world == 1:
            raise KeyboardInterrupt
        received.append(signum)

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


# ----------------------------------------------------------------------------------------------
# Training

def fit(model, cfg, machine, batches, evaluate, extra, resumed=None, flops_per_step=None):
    """Train `model` for cfg.max_steps; log, evaluate and save checkpoints in cfg.out_dir.

    batches(step) -> this process's micro-batches, each the arguments of model(): idx, targets, ...
    evaluate() -> what to log, a dict with "val_loss", the lower the better
    extra: what every checkpoint holds besides (plain tensors, numbers, strings)
    resumed: the checkpoint to continue from
    flops_per_step: of all processes; None where unknown, then without mfu
    """
    optimizers = make_optimizers(model, cfg, machine)
    step, best = (resumed["step"], resumed["best"]) if resumed else (0, math.inf)
    for optimizer, state in zip(optimizers, resumed["optimizers"] if resumed else []):
        optimizer.load_state_dict(state)
    ddp_model = wrap_model(model, cfg, machine, cfg.max_steps * (flops_per_step or 0))
    log = RunLog(model, cfg, machine, extra, resumed, flops_per_step)
    model.train()
    with deferred_signals(machine) as signals:
        while step < cfg.max_steps:
            # learning rate
            lr = learning_rate(step, cfg)
            for group in [g for optimizer in optimizers for g in optimizer.param_groups]:
                group["lr"] = lr

            # forward and backward, one micro-batch at a time; dropout depends on the seed and the
            # step alone (the prime keeps them apart), so that a resumed run draws the same
            torch.manual_seed((cfg.seed * 1_000_003 + step) * machine.world + machine.rank)
            loss, micro_batches = 0.0, batches(step)
            for i, batch in enumerate(micro_batches):
                # gradients are averaged over processes with the last one; otherwise this says nothing
                ddp_model.require_backward_grad_sync = i == len(micro_batches) - 1
                with machine.autocast():
                    part = ddp_model(*machine.to_device(batch))[1] / len(micro_batches)
                part.backward()
                loss += part.detach()

            # update
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.grad_clip or math.inf)
            for optimizer in optimizers:
                optimizer.step()
            model.zero_grad(set_to_none=True)
            step += 1

            # ---- training ends here; the rest is bookkeeping ----
            last = step == cfg.max_steps
            evaluating = step % cfg.eval_interval == 0 or last
            logging = step % cfg.log_interval == 0 or evaluating
            # several processes stop together, at a step where they communicate anyway
            stopping = not last and (logging or machine.world == 1) \
                and machine.sum(len(signals))[0] > 0
            log.step(step, micro_batches, loss, norm, lr, logging, stopping)
            if evaluating:
                val_loss = log.evaluate(step, evaluate)
                if val_loss < best:
                    best = val_loss
                    log.save("best.pt", step=step, best=best)
            if evaluating or stopping:
                log.save("last.pt", step=step, best=best,
                            optimizers=[optimizer.state_dict() for optimizer in optimizers])
            if stopping:
                sys.exit(f"stopped at step {step}: --resume continues" if machine.is_main else 1)


def wrap_model(model, cfg, machine, flops):
    """-> the model wrapped for training: compiled if a run of so many FLOPs is long enough, and in
    DistributedDataParallel if there are several processes"""
    compiled = should_compile(cfg, machine, flops)
    if machine.is_main:
        print(f"{model.num_params():,} parameters on {machine.device}, "
              f"{str(machine.dtype).removeprefix('torch.')}{', compiled' if compiled else ''}")
    wrapped = torch.compile(model) if compiled else model
    return DistributedDataParallel(wrapped) if torch.distributed.is_initialized() else wrapped


# ----------------------------------------------------------------------------------------------
# Model folders

def load_model(folder, device="cpu", dropout=0.0):
    """Read a folder that train.py, instruct.py or tools/pack.py wrote

    -> (model on `device`, its tokenizer, the whole checkpoint, a dict, with what else is known of the
    model, such as the questions that it was tuned on)
    """
    model, state = load_checkpoint(os.path.join(folder, "best.pt"), device, dropout)
    tok = Tokenizer.load(os.path.join(folder, "tokenizer.json"), state.get("tokenizer_sha256"))
    return model, tok, state


# ----------------------------------------------------------------------------------------------
# The run

def tuning_command(cfg, argv):
    """-> what to run next: tuning on the tasks beside the data, or else the model itself"""
    tasks = os.path.join(glob.escape(cfg.data_dir), "tasks", "*")
    if not glob.glob(f"{tasks}.train.json"):
        return config.next_command("sample", argv, out_dir=cfg.out_dir)
    split = "dev" if glob.glob(f"{tasks}.dev.json") else "test"
    return config.next_command("instruct", argv, init_from=cfg.out_dir,
                               out_dir=f"{cfg.out_dir}-instruct", tasks=f"{tasks}.train.json",
                               eval_tasks=f"{tasks}.{split}.json")


def main(argv):
    # data and machine
    cfg = config.from_command_line(TrainConfig, "train", argv)
    meta, tok = read_data(cfg.data_dir)
    windows = Windows(open_bin(cfg.data_dir, "train.bin", meta), cfg.block_size, cfg.seed)
    bins = {name: open_bin(cfg.data_dir, f"val_{name}.bin", meta) for name in meta["modalities"]}
    extra = {"tokenizer_sha256": meta["tokenizer_sha256"],
             "data_sha256": config.file_sha256(os.path.join(cfg.data_dir, "meta.json"))}
    machine = find_machine(cfg)

    # model
    torch.manual_seed(cfg.seed)
    resumed = None
    if cfg.resume:
        model, resumed = resume_from(cfg, machine, extra)
    else:
        model = GPT(GPTConfig(vocab_size=meta["vocab_size"], block_size=cfg.block_size,
                              n_layer=cfg.n_layer, n_head=cfg.n_head, n_embd=cfg.n_embd,
                              dropout=cfg.dropout, kmer=cfg.kmer)).to(machine.device)
        if cfg.kmer:
            model.transformer.kmers.read_vocab(tok.vocab)
    open_out_dir(cfg, machine, os.path.join(cfg.data_dir, "tokenizer.json"))
    rows_per_step = cfg.batch_size * cfg.gradient_accumulation_steps

    def batches(step):
        return [windows.rows(step * rows_per_step + m * cfg.batch_size, cfg.batch_size)
                for m in range(machine.rank, cfg.gradient_accumulation_steps, machine.world)]

    def evaluate():
        scores, nats, tokens = {}, 0.0, 0
        for name, unit in meta["modalities"].items():
            bin_nats, bin_tokens = total_nats(model, bins[name], cfg, machine, tok.eot)
            size = meta["bins"][f"val_{name}.bin"][f"{unit}s"]
            scores[f"bits_per_{unit}"] = bin_nats / math.log(2) / size if size else None
            nats, tokens = nats + bin_nats, tokens + bin_tokens
        return {"val_loss": nats / tokens} | scores

    flops_per_step = rows_per_step * cfg.block_size * model.flops_per_token(cfg.block_size)
    fit(model, cfg, machine, batches, evaluate, extra, resumed, flops_per_step)
    machine.close()
    if machine.is_main:
        print(f"wrote {cfg.out_dir}; next: {tuning_command(cfg, argv)}")


if __name__ == "__main__":
    config.run(main)
