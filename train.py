"""
Pretraining: data order, optimizer, schedule, evaluation, checkpoints, several GPUs.

    python train.py                                           # the toy world, after prepare.py
    python train.py config/laptop.toml --max_steps=500
    python train.py config/laptop.toml --resume               # go on where the run stopped
    torchrun --nproc_per_node=4 train.py config/gpt2.toml

It writes to out_dir:

    last.pt, best.pt    the newest checkpoint, and the one of the lowest held-out loss
    log.jsonl           a line for each logged step and for each evaluation
    config.json, tokenizer.json

Letters in shapes: B batch, T time (tokens). instruct.py tunes with the same fit().
"""
import contextlib
import json
import math
import os
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

import config
from bpe import Tokenizer
from config.machine import find_machine, worth_compiling
from model import GPT, GPTConfig, load_checkpoint, save_checkpoint


@dataclass
class RunConfig:
    """What pretraining and tuning have in common."""
    out_dir: str = "out/toy"        # folder to write to
    batch_size: int = 16            # rows a micro-step
    gradient_accumulation_steps: int = 1    # micro-steps a step, those of all processes together
    max_steps: int = 300            # steps of the optimizer
    optimizer: str = "muon"         # muon (of the blocks' matrices, the rest by AdamW) or adamw
    learning_rate: float = 2e-3     # the highest
    warmup_steps: int = 40          # steps to reach it; then down to zero in a line
    weight_decay: float = 0.1       # of matrices; vectors have none
    grad_clip: float = 1.0          # longest gradient; 0: no limit
    dropout: float = 0.0            # share of activations zeroed in training
    eval_interval: int = 100        # steps between evaluations, each with a checkpoint
    log_interval: int = 10          # steps between lines of the log
    device: str = "auto"            # auto, cpu, cuda, cuda:1, mps
    dtype: str = "auto"             # auto, float32, bfloat16; of the products, weights are float32
    compile: str = "auto"           # auto, yes, no: torch.compile
    seed: int = 1337                # of the weights, the data order and dropout
    resume: bool = False            # go on from last.pt in out_dir


@dataclass
class TrainConfig(RunConfig):
    data_dir: str = "data/toy"      # folder that prepare.py wrote
    learning_rate: float = 6e-3     # the highest; about 2e-3 for adamw
    n_layer: int = 3                # blocks
    n_head: int = 4                 # attention heads in each
    n_embd: int = 128               # channels
    block_size: int = 160           # context, in tokens


# ----------------------------------------------------------------------------------------------
# Data

def read_data(data_dir):
    """-> (what prepare.py wrote about its bins, their tokenizer), both checked"""
    path = os.path.join(data_dir, "meta.json")
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file: run prepare.py --data_dir={data_dir} first")
    with open(path, encoding="utf-8") as f:
        meta = json.load(f)
    tok = Tokenizer.load(os.path.join(data_dir, "tokenizer.json"), meta["tokenizer_sha256"])
    for name, b in meta["bins"].items():
        path = os.path.join(data_dir, name)
        found, size = os.path.getsize(path), b["tokens"] * np.dtype(meta["dtype"]).itemsize
        if found != size:
            raise ValueError(f"{path}: {found:,} bytes, but meta.json says {size:,}: cut short? "
                             "Run prepare.py again")
    return meta, tok


def open_bin(data_dir, name, meta):
    """-> the ids of a bin, on disk until they are read; an empty array for an empty bin"""
    if meta["bins"][name]["tokens"] == 0:
        return np.zeros(0, dtype=meta["dtype"])
    return np.memmap(os.path.join(data_dir, name), dtype=meta["dtype"], mode="r")


class Windows:
    """Training rows: the text cut into windows of T tokens, every one once before any comes again.

    Row k is a function of the seed and k alone: nothing to save, and nothing that evaluation could
    disturb. Each time through, the order is new and the cuts are shifted.
    """

    def __init__(self, ids, block_size, seed):
        self.ids, self.T, self.seed = ids, block_size, seed
        self.n = (len(ids) - 1) // block_size - 1
        if self.n < 1:
            raise ValueError(f"train.bin has {len(ids):,} tokens, too few for "
                             f"block_size={block_size}: prepare more text")
        self.epoch = None

    def rows(self, first, count):
        """-> rows first, first + 1, ...: idx (B, T) and targets (B, T)"""
        out = np.empty((count, self.T + 1), dtype=np.int64)
        for i, k in enumerate(range(first, first + count)):
            epoch, place = divmod(k, self.n)
            if epoch != self.epoch:
                rng = np.random.default_rng((self.seed, epoch))
                self.epoch, self.shift, self.order = epoch, rng.integers(self.T), \
                    rng.permutation(self.n)
            start = self.shift + self.order[place] * self.T
            out[i] = self.ids[start:start + self.T + 1]
        out = torch.from_numpy(out)
        return out[:, :-1], out[:, 1:]


def total_nats(model, ids, cfg, machine, eot):
    """The loss of a whole held-out bin: every token once, in windows of block_size that follow one
    another. <|endoftext|> is read but not counted: it is our mark, not part of the text.
    -> (sum of nats, tokens counted), over all processes"""
    T = model.config.block_size
    n_windows = math.ceil(max(0, len(ids) - 1) / T)
    nats = tokens = 0.0
    for first in range(machine.rank * cfg.batch_size, n_windows, machine.world * cfg.batch_size):
        # One shape throughout: the last windows are filled up with targets of -1.
        part = np.full(cfg.batch_size * T + 1, -1, dtype=np.int64)
        found = ids[first * T:(first + cfg.batch_size) * T + 1]
        part[:len(found)] = found
        idx = torch.from_numpy(part[:-1]).view(-1, T).clamp(min=0).to(machine.device)
        targets = torch.from_numpy(part[1:]).view(-1, T).to(machine.device)
        targets = targets.masked_fill(targets == eot, -1)
        count = (targets != -1).sum().item()
        with machine.autocast():
            nats += model(idx, targets)[1].item() * count
        tokens += count
    return machine.sum(nats, tokens)


# ----------------------------------------------------------------------------------------------
# Fitting

def make_optimizers(model, cfg, machine):
    """-> a list of optimizers that share the parameters among them. Muon, if it is asked for, has the
    matrices of the blocks, AdamW the rest: with weight decay for matrices and embeddings, without
    for biases and LayerNorms."""
    if cfg.optimizer not in ("muon", "adamw"):
        raise ValueError(f"optimizer={cfg.optimizer} is not one of muon, adamw")
    hidden = {}
    if cfg.optimizer == "muon":
        hidden = {name: p for name, p in model.transformer.h.named_parameters() if p.dim() == 2}
    mine = {id(p) for p in hidden.values()}
    rest = [p for p in model.parameters() if id(p) not in mine]
    groups = [{"params": [p for p in rest if p.dim() >= 2], "weight_decay": cfg.weight_decay},
              {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(0.9, 0.95),
                                    fused=machine.device.type in ("cuda", "cpu"))]
    if hidden:
        optimizers.append(Muon(hidden, cfg.learning_rate, cfg.weight_decay, machine.dtype))
    return optimizers


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/): the momentum of a
    matrix is made orthogonal before it is applied. So a step goes equally far in all directions,
    and not almost wholly in the few that most gradients point to.

    Beside torch.optim.Muon, this one sees that c_attn is three matrices, query, key and value;
    takes all matrices of a shape at once; and multiplies in the dtype that the machine is fast at.

    A step is as long as one of AdamW usually is, 0.2 times the learning rate in each element, root
    mean square (Liu et al., 2025, "Muon is scalable for LLM training"), so that the two can share a
    learning rate.

    hidden: {name: matrix}
    """

    def __init__(self, hidden, lr, weight_decay, dtype, momentum=0.95):
        super().__init__(list(hidden.values()), {"lr": lr, "weight_decay": weight_decay})
        self.parts = [3 if name.endswith("c_attn.weight") else 1 for name in hidden]
        self.dtype, self.momentum = dtype, momentum

    @torch.no_grad()
    def step(self):
        group = self.param_groups[0]
        shapes = {}         # shape of a part: [(parameter, its update in parts)]
        for p, parts in zip(group["params"], self.parts):
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            state["momentum"].lerp_(p.grad, 1 - self.momentum)
            update = p.grad.lerp(state["momentum"], self.momentum)      # Nesterov's: a look ahead
            update = update.view(parts, -1, p.size(1)).to(self.dtype)
            shapes.setdefault(update.shape[1:], []).append((p, update))
        for shape, members in shapes.items():
            length = 0.2 * math.sqrt(max(shape))
            orthogonal = orthogonalize(torch.cat([update for _, update in members]))
            for (p, update), part in zip(members, orthogonal.split([len(u) for _, u in members])):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(part.reshape(p.shape), alpha=-group["lr"] * length)


def orthogonalize(x, steps=5):
    """Make the rows, or the columns if there are fewer, of each matrix nearly orthogonal and of
    length one: the singular values all go to about 1 (0.7 to 1.2), the singular vectors stay. By
    the iteration of Newton and Schulz, which only multiplies; the three numbers are Jordan's, and
    make small singular values grow fast. x: (number of matrices, rows, columns) -> the same"""
    tall = x.size(1) > x.size(2)
    if tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)       # no singular value above 1
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if tall else x


def learning_rate(step, cfg):
    """Of step 0, 1, ...: up in a line for warmup_steps, then down in a line to zero at max_steps."""
    if step < cfg.warmup_steps:
        return cfg.learning_rate * (step + 1) / cfg.warmup_steps
    return cfg.learning_rate * (cfg.max_steps - step) / max(1, cfg.max_steps - cfg.warmup_steps)


class Log:
    """log.jsonl: one JSON object a line. A run that goes on drops the lines beyond its checkpoint,
    which it is about to write again."""

    def __init__(self, path, step):
        kept = []
        if step and os.path.exists(path):
            with open(path, encoding="utf-8") as f:
                kept = [line for line in f if line.endswith("\n") and json.loads(line)["step"] <= step]
        with open(f"{path}.tmp", "w", encoding="utf-8") as f:
            f.writelines(kept)
        os.replace(f"{path}.tmp", path)
        self.path = path

    def write(self, **line):
        with open(self.path, "a", encoding="utf-8") as f:
            f.write(json.dumps(line) + "\n")


def forward_backward(runner, micro, machine):
    """Add up the gradients of a step's micro-batches -> their mean loss, on the device"""
    loss = 0.0
    for i, batch in enumerate(micro):
        if machine.device.type == "cuda":       # from pinned memory it copies while the GPU works
            batch = [t.pin_memory().to(machine.device, non_blocking=True) for t in batch]
        else:
            batch = [t.to(machine.device) for t in batch]
        waiting = machine.world > 1 and i < len(micro) - 1      # gradients are shared once
        with runner.no_sync() if waiting else contextlib.nullcontext():
            with machine.autocast():
                part = runner(*batch)[1] / len(micro)
            part.backward()
        loss = loss + part.detach()
    return loss


def update(model, optimizers, lr, grad_clip):
    """One step of the optimizers -> the length of the gradient, before it was clipped"""
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return norm


def fit(model, cfg, machine, batches, evaluate, extra, resumed=None):
    """Train `model` for cfg.max_steps, with a log, evaluations and checkpoints in cfg.out_dir.

    batches(step): -> this process's micro-batches of the step, each a tuple of the arguments of
        model(): idx, targets and perhaps weights. All micro-batches count the same.
    evaluate(): -> a dict to log with, in it "val_loss", the lower the better
    extra: what every checkpoint should hold besides (plain tensors, numbers, strings)
    resumed: the checkpoint to go on from
    """
    optimizers = make_optimizers(model, cfg, machine)
    step, tokens, best = 0, 0, float("inf")
    if resumed:
        if len(resumed["optimizers"]) != len(optimizers):
            raise ValueError(f"{cfg.out_dir}/last.pt was trained with another optimizer: resume with "
                             "the one that it began with")
        for optimizer, state in zip(optimizers, resumed["optimizers"]):
            optimizer.load_state_dict(state)
        step, tokens, best = resumed["step"], resumed["tokens"], resumed["best"]
        if step >= cfg.max_steps:
            print(f"{cfg.out_dir} is at step {step} already: give more max_steps to go on")
            return
    flops = cfg.max_steps * machine.world * sum(model.training_flops(*b) for b in batches(step))
    runner = make_runner(model, cfg, machine, flops)

    def save(name, **more):
        save_checkpoint(os.path.join(cfg.out_dir, name), model, step=step, tokens=tokens, best=best,
                        config=asdict(cfg), **extra, **more)

    def save_last():
        save("last.pt", optimizers=[optimizer.state_dict() for optimizer in optimizers])

    if machine.is_main:
        log = Log(os.path.join(cfg.out_dir, "log.jsonl"), step)
        if not resumed:     # now, and not after an hour, is the time to learn that the disk is full
            save_last()
    bar = tqdm(total=cfg.max_steps, initial=step, unit=" steps", disable=None if machine.is_main
               else True)
    losses, clock, clocked_tokens, clocked_flops = [], time.perf_counter(), 0, 0
    model.train()
    with interruptible(machine) as interrupted:
        while step < cfg.max_steps:
            lr = learning_rate(step, cfg)
            # Dropout too draws by seed and step, so that a resumed run draws the same.
            torch.manual_seed((cfg.seed * 1_000_003 + step) * machine.world + machine.rank)
            micro = batches(step)
            clocked_tokens += sum((targets != -1).sum().item() for _, targets, *_ in micro)
            clocked_flops += sum(model.training_flops(*batch) for batch in micro)
            losses.append(forward_backward(runner, micro, machine))
            norm = update(model, optimizers, lr, cfg.grad_clip)
            step += 1
            bar.update()

            evaluating = step % cfg.eval_interval == 0 or step == cfg.max_steps
            logging = step % cfg.log_interval == 0 or evaluating
            # Several processes stop together, at a step where they talk to each other anyway.
            stopping = (logging or machine.world == 1) and step < cfg.max_steps \
                and machine.sum(interrupted())[0] > 0
            if logging or stopping:
                *losses, new_tokens, flops = machine.sum(*losses, clocked_tokens, clocked_flops)
                losses = [loss / machine.world for loss in losses]
                check_finite(losses, norm.item(), step, cfg.out_dir)
                tokens += int(new_tokens)
                seconds = time.perf_counter() - clock
                bar.set_postfix(loss=f"{losses[-1]:.3f}")
                if machine.is_main and logging:
                    log.write(step=step, tokens=tokens, loss=losses[-1], lr=lr,
                              grad_norm=norm.item(), tokens_per_second=new_tokens / seconds,
                              mfu=flops / seconds / machine.peak)
                losses, clock, clocked_tokens, clocked_flops = [], time.perf_counter(), 0, 0
            if evaluating:
                model.eval()
                with torch.no_grad():
                    scores = evaluate()
                model.train()
                check_finite([scores["val_loss"]], 0.0, step, cfg.out_dir)
                if machine.is_main:
                    log.write(step=step, **scores)
                    tqdm.write(f"step {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in scores.items()
                                                            if v is not None))
                if scores["val_loss"] < best:
                    best = scores["val_loss"]
                    if machine.is_main:
                        save("best.pt")
                clock = time.perf_counter()
            if machine.is_main and (evaluating or stopping):
                save_last()
            if stopping:
                bar.close()
                sys.exit(f"stopped at step {step}; --resume goes on from there"
                         if machine.is_main else 1)
    bar.close()


def make_runner(model, cfg, machine, flops):
    """-> `model` as it is to be called in training for so many `flops`: compiled, if that pays, and
    sharing its gradients with the other processes, if there are any"""
    compiled = worth_compiling(cfg, machine, flops)
    if machine.is_main:
        print(f"{model.num_params():,} parameters on {machine.device}, "
              f"{str(machine.dtype).removeprefix('torch.')}"
              f"{', compiled' if compiled else ''}; "
              f"the machine multiplies at {machine.peak / 1e12:.3g} TFLOP/s")
    runner = torch.compile(model) if compiled else model
    return DistributedDataParallel(runner) if machine.world > 1 else runner


def check_finite(losses, norm, step, out_dir):
    """losses: of the last steps up to `step`; norm: of the last gradient. ValueError, before
    anything is saved, where one of them is no number or infinite: the weights are lost then."""
    for at, value in enumerate(losses, start=step - len(losses) + 1):
        if not math.isfinite(value):
            raise ValueError(f"the loss is {value} at step {at}: try a lower learning_rate or a "
                             f"longer warm-up; {out_dir} keeps the last good checkpoint")
    if not math.isfinite(norm):
        raise ValueError(f"the gradient is {norm} long at step {step}: try a lower learning_rate or "
                         f"a longer warm-up; {out_dir} keeps the last good checkpoint")


@contextlib.contextmanager
def interruptible(machine):
    """Within, Ctrl-C and SIGTERM (a cluster's way to ask for its machine) are only noted, so that
    the step at hand can be finished and saved. A second Ctrl-C stops at once; not under torchrun,
    which passes the first one on and so sends it twice.
    -> a function that says whether one came"""
    noted = []

    def note(signum, frame):
        if signum in noted and signum == signal.SIGINT and machine.world == 1:
            raise KeyboardInterrupt
        noted.append(signum)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:      # not the main thread: signals are somebody else's
        yield lambda: False
        return
    try:
        yield lambda: bool(noted)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


# ----------------------------------------------------------------------------------------------

def prepare_out_dir(cfg, machine, tokenizer):
    """Make out_dir a whole model's folder: beside the checkpoints the config and the tokenizer.
    ValueError where a run stands there that is not at its end, so that none is lost by accident."""
    path = os.path.join(cfg.out_dir, "last.pt")
    if os.path.exists(path) and not cfg.resume:
        state = load_checkpoint(path)[1]
        if 0 < state["step"] < state["config"]["max_steps"]:
            raise ValueError(f"{cfg.out_dir} holds a run at step {state['step']} of "
                             f"{state['config']['max_steps']}: go on with --resume, or take another "
                             "out_dir, or delete this one")
    if machine.is_main:
        os.makedirs(cfg.out_dir, exist_ok=True)
        config.write_json(os.path.join(cfg.out_dir, "config.json"), asdict(cfg))
        target = os.path.join(cfg.out_dir, "tokenizer.json")
        shutil.copyfile(tokenizer, f"{target}.tmp")
        os.replace(f"{target}.tmp", target)


def resume_from(cfg, machine, sha256):
    """-> (model, checkpoint) of last.pt, if it belongs to this tokenizer"""
    path = os.path.join(cfg.out_dir, "last.pt")
    model, state = load_checkpoint(path, machine.device, cfg.dropout)
    if state["tokenizer_sha256"] != sha256:
        raise ValueError(f"{path}: trained with another tokenizer than the data's: give the data_dir "
                         "that it began with")
    return model, state


def main(argv):
    cfg = config.from_command_line(TrainConfig, "train", argv)
    meta, tok = read_data(cfg.data_dir)
    machine = find_machine(cfg)
    torch.manual_seed(cfg.seed)
    model_config = GPTConfig(vocab_size=meta["vocab_size"], block_size=cfg.block_size,
                             n_layer=cfg.n_layer, n_head=cfg.n_head, n_embd=cfg.n_embd,
                             dropout=cfg.dropout)
    resumed = None
    if cfg.resume:
        model, resumed = resume_from(cfg, machine, meta["tokenizer_sha256"])
        if asdict(model.config) != asdict(model_config):
            raise ValueError(f"{cfg.out_dir}/last.pt is {model.config}, not {model_config}: resume "
                             "with the configuration that it began with")
    else:
        model = GPT(model_config).to(machine.device)

    windows = Windows(open_bin(cfg.data_dir, "train.bin", meta), cfg.block_size, cfg.seed)
    bins = {name: open_bin(cfg.data_dir, f"val_{name}.bin", meta) for name in ("dna", "english")}
    rows_a_step = cfg.batch_size * cfg.gradient_accumulation_steps

    def batches(step):
        return [windows.rows(step * rows_a_step + m * cfg.batch_size, cfg.batch_size)
                for m in range(machine.rank, cfg.gradient_accumulation_steps, machine.world)]

    def evaluate():
        (dna, n_dna), (english, n_english) = (total_nats(model, ids, cfg, machine, tok.eot)
                                              for ids in bins.values())
        bases = meta["bins"]["val_dna.bin"]["bases"]
        n_bytes = meta["bins"]["val_english.bin"]["bytes"]
        return {"val_loss": (dna + english) / (n_dna + n_english),
                "bits_per_base": dna / math.log(2) / bases if bases else None,
                "bits_per_byte": english / math.log(2) / n_bytes if n_bytes else None}

    prepare_out_dir(cfg, machine, os.path.join(cfg.data_dir, "tokenizer.json"))
    fit(model, cfg, machine, batches, evaluate,
        {"tokenizer_sha256": meta["tokenizer_sha256"]}, resumed)
    if machine.world > 1:
        dist.barrier()      # the others are not to hang up while the first one writes its files
        dist.destroy_process_group()
    if machine.is_main:
        print(f"wrote {cfg.out_dir}; next: python instruct.py"
              + ("" if cfg.out_dir == "out/toy" else f" --init_from={cfg.out_dir}"))


if __name__ == "__main__":
    config.run(main)
