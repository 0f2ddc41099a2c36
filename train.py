"""
Pretraining: data order, optimizer, evaluation, training steps, several GPUs; then the
run's log, checkpoints and model folders. main(), at the end, shows how they fit together.

    python train.py                                     # the toy world, after prepare.py
    python train.py config/laptop.toml --max_steps=500
    python train.py config/laptop.toml --resume         # continue a run that was stopped
    torchrun --nproc_per_node=4 train.py config/gpt2.toml

It writes to out_dir:

    last.pt         the newest checkpoint
    best.pt         the checkpoint with the lowest validation loss
    log.jsonl       a line per logged step, per skipped one and per evaluation
    config.json, tokenizer.json

instruct.py tunes with the same fit(). Shapes: B batch, T time (tokens).
"""
import contextlib
import glob
import json
import math
import os
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
from config import require
from config.machine import find_machine, should_compile
from model import GPT, GPTConfig, load_checkpoint, save_checkpoint


@dataclass
class RunConfig:
    # Of pretraining and of tuning alike
    batch_size: int = 16            # rows per micro-batch
    warmup_steps: int = 40          # of linear warmup, a tenth of the run at most
    weight_decay: float = 0.1       # of matrices; vectors have none
    grad_clip: float = 1.0          # largest norm of the gradient; 0: no limit
    dropout: float = 0.0            # share of activations zeroed in training
    log_interval: int = 10          # steps between lines of the log
    device: str = "auto"            # auto, cpu, cuda, cuda:1, mps
    dtype: str = "auto"             # of products: auto, float32, bfloat16, float16
    seed: int = 1337                # of the weights, the data order and dropout
    resume: bool = False            # continue from last.pt in out_dir
    overwrite: bool = False         # delete the run that out_dir holds, and start anew


@dataclass
class TrainConfig(RunConfig):
    data_dir: str = "data/toy"      # folder that prepare.py wrote
    out_dir: str = "out/toy"        # folder to write to
    n_layer: int = 3                # blocks
    n_head: int = 4                 # attention heads per block
    n_embd: int = 128               # channels
    block_size: int = 160           # context length, in tokens
    motifs: int = 0                 # filters over the bases of DNA; 0: plain GPT-2
    gradient_accumulation_steps: int = 1    # micro-batches per step, over all processes
    max_steps: int = 300            # steps of the optimizer
    optimizer: str = "muon"         # muon (blocks' matrices; AdamW for others) or adamw
    learning_rate: float = 6e-3     # the highest, after the warmup; about 2e-3 for adamw
    eval_interval: int = 100        # steps between evaluations, each with a checkpoint
    compile: str = "auto"           # auto, yes, no: torch.compile


# --------------------------------------------------------------------------------------
# Data

def read_data(data_dir):
    """Read what prepare.py wrote besides the bins, and check the bins against it.

    -> (the content of meta.json, the tokenizer). ValueError if they do not fit together.
    """
    path = os.path.join(data_dir, "meta.json")
    try:
        meta = config.read_json(path)
        sizes = {name: b["tokens"] * np.dtype(meta["dtype"]).itemsize
                 for name, b in meta["bins"].items()}
        for name, unit in meta["modalities"].items():       # each has a bin and a size
            meta["bins"][f"val_{name}.bin"][f"{unit}s"]
        sha256 = meta["tokenizer_sha256"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file: run prepare.py "
                                f"--data_dir={data_dir} first") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: damaged, or from an older prepare.py: run prepare.py "
                         "again, with text to train on") from None
    tok = Tokenizer.load(os.path.join(data_dir, "tokenizer.json"), sha256)
    for name, size in sizes.items():
        path = os.path.join(data_dir, name)
        require(os.path.getsize(path) == size,
                f"{path}: {os.path.getsize(path):,} bytes, but meta.json says {size:,}: "
                "cut short? Run prepare.py again")
    return meta, tok


def open_bin(data_dir, name, meta):
    """-> the ids of a bin as an array, on disk until they are used"""
    if meta["bins"][name]["tokens"] == 0:
        return np.zeros(0, dtype=meta["dtype"])
    return np.memmap(os.path.join(data_dir, name), dtype=meta["dtype"], mode="r")


class Windows:
    """The training text in windows of T tokens. Each epoch visits every window once, in
    a new order and from a new offset. Row k depends on the seed and k alone, so there is
    no state to checkpoint."""

    def __init__(self, ids, block_size, seed):
        self.ids, self.T, self.seed = ids, block_size, seed
        # One window is lost, because each epoch starts at an offset of its own.
        self.n = (len(ids) - 1) // block_size - 1
        require(self.n >= 1, f"train.bin has {len(ids):,} tokens, too few for "
                f"block_size={block_size}: prepare more text")
        self.epoch = None

    def rows(self, first, count):
        """-> rows first, first + 1, ...: idx (B, T) and targets (B, T)"""
        out = np.empty((count, self.T + 1), dtype=np.int64)
        for i in range(count):
            epoch, index = divmod(first + i, self.n)
            if epoch != self.epoch:
                rng = np.random.default_rng((self.seed, epoch))
                self.offset, self.order = rng.integers(self.T), rng.permutation(self.n)
                self.epoch = epoch
            start = self.offset + self.order[index] * self.T
            out[i] = self.ids[start:start + self.T + 1]
        out = torch.from_numpy(out)
        return out[:, :-1], out[:, 1:]

    def micro_batches(self, step, cfg, machine):
        """-> the micro-batches of a step (0, 1, ...) that this process computes"""
        n = cfg.gradient_accumulation_steps
        return [self.rows((step * n + i) * cfg.batch_size, cfg.batch_size)
                for i in range(machine.rank, n, machine.world)]


def open_windows(cfg, meta):
    """-> the Windows of train.bin"""
    ids = open_bin(cfg.data_dir, "train.bin", meta)
    return Windows(ids, cfg.block_size, cfg.seed)


# --------------------------------------------------------------------------------------
# Optimizer and schedule

def make_optimizers(model, cfg, machine):
    """-> a list of optimizers. With optimizer=muon, Muon has the matrices of the blocks.
    AdamW has all else, with weight decay for matrices and embeddings, without for biases
    and LayerNorms."""
    matrices = {name: p for name, p in model.transformer.h.named_parameters()
                if p.dim() == 2 and cfg.optimizer == "muon"}
    in_muon = set(matrices.values())
    in_adamw = [p for p in model.parameters() if p not in in_muon]
    groups = [{"params": [p for p in in_adamw if p.dim() >= 2],
               "weight_decay": cfg.weight_decay},
              {"params": [p for p in in_adamw if p.dim() < 2], "weight_decay": 0.0}]
    optimizers = [torch.optim.AdamW(groups, lr=cfg.learning_rate, betas=(0.9, 0.95),
                                    fused=machine.device.type in ("cuda", "cpu"))]
    if matrices:
        optimizers.append(Muon(matrices, cfg.learning_rate, cfg.weight_decay,
                               machine.dtype))
    return optimizers


class Muon(torch.optim.Optimizer):
    """Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon/): the
    momentum of a matrix is made orthogonal before it is applied, so that no direction
    dominates the update.

    Unlike torch.optim.Muon it treats c_attn as the three matrices that it is (query,
    key, value), and multiplies in the dtype that the machine is fast at. An update has
    an RMS of 0.2 times the learning rate, about that of AdamW, so that both can share
    one (Liu et al., 2025, "Muon is scalable for LLM training"). matrices: {name: matrix}
    """

    def __init__(self, matrices, lr, weight_decay, dtype, momentum=0.95):
        super().__init__(list(matrices.values()),
                         {"lr": lr, "weight_decay": weight_decay})
        self.parts = [3 if name.endswith("c_attn.weight") else 1 for name in matrices]
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
            # Nesterov: one step ahead
            update = p.grad.lerp(momentum, self.momentum)
            update = update.view(parts, -1, p.size(1))
            if self.dtype == torch.float16:
                # its smallest number is 6e-8, and an update may be smaller
                update = torch.nn.functional.normalize(update, dim=(1, 2))
            updates[update.shape[1:]].append((p, update.to(self.dtype)))

        # matrices of the same shape are orthogonalized together, which is faster
        for shape, members in updates.items():
            params, parts = zip(*members)
            orthogonal = orthogonalize(torch.cat(parts)).split(list(map(len, parts)))
            # bring the RMS of an orthogonal matrix, 1 / sqrt(its longer side), to 0.2
            scale = 0.2 * math.sqrt(max(shape))
            for p, update in zip(params, orthogonal):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.reshape(p.shape), alpha=-group["lr"] * scale)


def orthogonalize(x, steps=5):
    """Bring the singular values of each matrix to about 1 (0.7 to 1.2) and keep its
    singular vectors, by the Newton-Schulz iteration, which consists of products only.
    The three coefficients are Jordan's; they make small singular values grow fast.

    x: (number of matrices, rows, columns) -> the same shape
    """
    is_tall = x.size(1) > x.size(2)
    if is_tall:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)       # no singular value above 1
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if is_tall else x


def learning_rate(step, cfg):
    """Linear warmup over warmup_steps, or over a tenth of a shorter run, then linear
    decay to zero at max_steps. step: 0, 1, ..."""
    warmup = min(cfg.warmup_steps, cfg.max_steps // 10)
    if step < warmup:
        return cfg.learning_rate * (step + 1) / warmup
    return cfg.learning_rate * (cfg.max_steps - step) / (cfg.max_steps - warmup)


# --------------------------------------------------------------------------------------
# Evaluation

def total_nats(model, ids, cfg, machine, eot):
    """The loss of a whole validation bin: every token once, in consecutive windows of
    block_size. <|endoftext|> is read but not counted, because it is our separator and
    not part of the text.

    -> (sum of nats, tokens counted), over all processes
    """
    T = model.config.block_size
    # 4,096 tokens at once: logits of more, not compiled, would take more memory than
    # training does
    rows = min(cfg.batch_size, max(1, 4096 // T))
    size = rows * T
    nats = tokens = 0.0
    for start in range(machine.rank * size, len(ids) - 1, machine.world * size):
        # one shape throughout: the last windows are padded with targets of -1
        text = ids[start:start + size + 1].astype(np.int64)
        text = np.pad(text, (0, size + 1 - len(text)), constant_values=-1)
        idx, targets = (torch.from_numpy(x).view(rows, T) for x in (text[:-1], text[1:]))
        targets = targets.masked_fill(targets == eot, -1)

        # the model gives the mean over the targets
        count = count_targets((idx, targets))
        with machine.autocast():
            loss = model(*machine.to_device([idx.clamp(min=0), targets]))[1]
        nats += loss.item() * count
        tokens += count
    return machine.sum(nats, tokens)


def evaluate_bins(model, bins, meta, cfg, machine, eot):
    """bins: {modality: ids}; meta: the content of meta.json, with the sizes of the bins

    -> {"val_loss": nats per token of all bins, "bits_per_UNIT": ... of each modality,
    None where its bin is empty}
    """
    scores, total, n_tokens = {}, 0.0, 0
    for name, unit in meta["modalities"].items():
        nats, tokens = total_nats(model, bins[name], cfg, machine, eot)
        size = meta["bins"][f"val_{name}.bin"][f"{unit}s"]
        scores[f"bits_per_{unit}"] = nats / math.log(2) / size if size else None
        total, n_tokens = total + nats, n_tokens + tokens
    return {"val_loss": total / n_tokens} | scores


# --------------------------------------------------------------------------------------
# Training

# The state from which a run starts that resumes no checkpoint
NEW_RUN = {"step": 0, "tokens": 0, "best": math.inf, "optimizers": []}


def fit(model, cfg, machine, batches, evaluate, extra, start, tokens_per_step=0):
    """Train `model` for cfg.max_steps; log, evaluate and save checkpoints in
    cfg.out_dir.

    batches(step) -> this process's micro-batches, each the arguments of model(): idx,
        targets, ...
    evaluate() -> what to log, a dict with "val_loss", the lower the better
    extra: more fields of every checkpoint (plain tensors, numbers, strings)
    start: the checkpoint to continue from, or NEW_RUN
    tokens_per_step: of all processes; 0 where rows vary in length, then without mfu
    """
    optimizers = make_optimizers(model, cfg, machine)
    step, best = start["step"], start["best"]
    for optimizer, state in zip(optimizers, start["optimizers"]):
        optimizer.load_state_dict(state)
    if start.get("scaler"):         # it has none in another dtype
        machine.scaler.load_state_dict(start["scaler"])
    flops_per_step = tokens_per_step * model.flops_per_token(model.config.block_size)
    ddp_model = wrap_model(model, cfg, machine, cfg.max_steps * flops_per_step)
    log = RunLog(model, cfg, machine, extra, start, tokens_per_step, flops_per_step)
    model.train()
    with deferred_signals(machine) as signals:
        while step < cfg.max_steps:
            # Each step has a seed of its own (the prime keeps runs apart). So a resumed
            # run draws the same dropout.
            seed = cfg.seed * 1_000_003 + step
            torch.manual_seed(seed * machine.world + machine.rank)
            lr, micro_batches = learning_rate(step, cfg), batches(step)
            loss = forward_backward(ddp_model, micro_batches, machine)
            norm = update(model, optimizers, lr, cfg.grad_clip, machine)
            step += 1

            # ---- training ends here; below is bookkeeping ----
            is_last = step == cfg.max_steps
            evaluating = step % cfg.eval_interval == 0 or is_last
            logging = step % cfg.log_interval == 0 or evaluating
            # several processes stop together
            stopping = not is_last and machine.sum(len(signals))[0] > 0
            log.step(step, micro_batches, loss, norm, lr, logging, stopping)
            if evaluating:
                val_loss = log.evaluate(step, evaluate)
                if val_loss < best:
                    best = val_loss
                    log.save("best.pt", step=step, best=best)
            if evaluating or stopping:
                log.save("last.pt", step=step, best=best,
                         optimizers=[optimizer.state_dict() for optimizer in optimizers],
                         scaler=machine.scaler.state_dict())
            if stopping:
                sys.exit(f"stopped at step {step}: --resume continues" if machine.is_main
                         else 1)


def wrap_model(model, cfg, machine, flops):
    """-> the model wrapped for training: compiled if a run of so many FLOPs is long
    enough, and in DistributedDataParallel if there are several processes"""
    compiled = should_compile(cfg, machine, flops)
    if machine.is_main:
        dtype = str(machine.dtype).removeprefix("torch.")
        print(f"{model.num_params():,} parameters on {machine.device}, {dtype}"
              f"{', compiled' if compiled else ''}")
    # the rows of tuning vary in length, so the FLOPs of a step are not given
    wrapped = torch.compile(model, dynamic=None if flops else True) if compiled else model
    if torch.distributed.is_initialized():
        return DistributedDataParallel(wrapped)
    return wrapped


def count_targets(batch):
    """-> how many tokens of a micro-batch have a loss"""
    return (batch[1] != -1).sum().item()


def forward_backward(ddp_model, micro_batches, machine):
    """Compute the gradients of a step, one micro-batch at a time.

    -> this process's loss. Averaged over processes, it is the mean loss per target.
    """
    # The model gives the mean over a micro-batch's targets. It weighs by its share of
    # the step's targets. So several micro-batches equal one large batch.
    counts = [count_targets(batch) for batch in micro_batches]
    targets_per_process = machine.sum(sum(counts))[0] / machine.world
    loss = 0.0
    for i, (batch, count) in enumerate(zip(micro_batches, counts)):
        # DDP averages gradients over processes after the last micro-batch only
        ddp_model.require_backward_grad_sync = i == len(micro_batches) - 1
        with machine.autocast():
            mean = ddp_model(*machine.to_device(batch))[1]
        part = mean / (targets_per_process / count)
        machine.scaler.scale(part).backward()
        loss += part.detach()
    return loss


def update(model, optimizers, lr, grad_clip, machine):
    """Change the weights by their gradients -> the norm of the gradient, before
    clipping; None if it has overflowed float16, and the weights stay as they are"""
    for optimizer in optimizers:
        machine.scaler.unscale_(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = lr
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), grad_clip or math.inf)

    # An overflow may be in the gradients of one optimizer only. It stops all of them.
    if machine.dtype == torch.float16 and not norm.isfinite():
        norm = None
    else:
        for optimizer in optimizers:
            optimizer.step()
    machine.scaler.update()
    model.zero_grad(set_to_none=True)
    return norm


# --------------------------------------------------------------------------------------
# The run's log

# About the share of the peak that training reaches. It stands for the time of a step
# until steps have been timed.
USUAL_MFU = 0.4


class RunLog:
    """Writes log.jsonl, checkpoints and a progress bar. Every process counts tokens, the
    main one writes. extra, start, tokens_per_step: as in fit()"""

    def __init__(self, model, cfg, machine, extra, start, tokens_per_step,
                 flops_per_step):
        self.model, self.cfg, self.machine, self.extra = model, cfg, machine, extra
        self.flops_per_step = flops_per_step
        self.path = os.path.join(cfg.out_dir, "log.jsonl")
        # tokens of all processes, at the last log; and of this one since then
        self.tokens = start["tokens"]
        self.new_tokens, self.steps, self.n_logged = 0, 0, 0
        if machine.is_main:
            trim_log(self.path, start["step"])
            if flops_per_step:
                self.forecast(start["step"], tokens_per_step)
        self.bar = tqdm(total=cfg.max_steps, initial=start["step"], unit=" steps",
                        disable=None if machine.is_main else True)
        self.clock = time.perf_counter()

    def step(self, step, micro_batches, loss, norm, lr, logging, stopping):
        """Count a step's tokens, and log the step if it is to be logged."""
        self.new_tokens += sum(map(count_targets, micro_batches))
        self.steps += 1
        self.bar.update()
        if norm is None:
            self.skipped(step)
        if not (logging or stopping):
            return

        # gather from all processes
        loss, new_tokens = self.machine.sum(loss, self.new_tokens)
        loss /= self.machine.world
        self.tokens += int(new_tokens)

        # write, and start counting again
        if norm is not None:
            self.check_finite(step, "loss", loss)
            self.check_finite(step, "gradient", norm.item())
        if norm is not None and logging:
            rate = self.steps / (time.perf_counter() - self.clock)
            mfu = None
            if self.flops_per_step and self.machine.peak:
                mfu = self.flops_per_step * rate / self.machine.peak
            self.log(step=step, tokens=self.tokens, loss=loss, lr=lr,
                     grad_norm=norm.item(), mfu=mfu,
                     tokens_per_second=new_tokens / self.steps * rate)
            self.bar.set_postfix(loss=f"{loss:.3f}")

            # the time is measured once, without the first steps, which may compile
            self.n_logged += 1
            if self.n_logged == 2:
                self.say_time(step, rate)
        self.new_tokens, self.steps, self.clock = 0, 0, time.perf_counter()

    def forecast(self, start, tokens_per_step):
        """Say what the steps after `start` will compute, and guess how long they take."""
        steps = self.cfg.max_steps - start
        peak = self.machine.peak or self.machine.matmul_rate()
        self.say_time(start, USUAL_MFU * peak / self.flops_per_step,
                      f", for {steps * tokens_per_step:,} tokens, "
                      f"{steps * self.flops_per_step:.1e} FLOPs at {USUAL_MFU:.0%} of "
                      f"{peak / 1e12:.3g} TFLOP/s")

    def say_time(self, step, rate, why=""):
        """rate: steps per second"""
        if self.machine.is_main:
            left = tqdm.format_interval((self.cfg.max_steps - step) / rate)
            tqdm.write(f"step {step} of {self.cfg.max_steps:,}: about {left} to go{why}")

    def skipped(self, step):
        """Say that the gradient of a step has overflowed float16."""
        scale = self.machine.scaler.get_scale()
        require(scale >= 1, f"float16 cannot hold the gradient at step {step}: try a "
                f"lower learning_rate or --dtype=float32; {self.cfg.out_dir} keeps the "
                "last good checkpoint")
        self.log(step=step, skipped=True, scale=scale)
        if self.machine.is_main:
            tqdm.write(f"step {step}: skipped, its gradient overflows float16; the loss "
                       f"is now scaled by {scale:,.0f}")

    def evaluate(self, step, evaluate):
        """-> the validation loss"""
        self.model.eval()
        with torch.no_grad():
            scores = evaluate()
        self.model.train()
        self.check_finite(step, "validation loss", scores["val_loss"])
        self.log(step=step, **scores)
        if self.machine.is_main:
            shown = [f"{key} {value:.4f}" for key, value in scores.items()
                     if value is not None]
            tqdm.write(f"step {step}: {', '.join(shown)}")
        self.clock = time.perf_counter()
        return scores["val_loss"]

    def check_finite(self, step, name, value):
        """Stop before anything is saved if the weights are lost."""
        require(math.isfinite(value),
                f"the {name} is {value} at step {step}: try a lower learning_rate or a "
                f"longer warmup; {self.cfg.out_dir} keeps the last good checkpoint")

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
                save_checkpoint(temporary, self.model, tokens=self.tokens,
                                config=asdict(self.cfg), **self.extra, **state)
        except OSError as e:
            hint = "start again"
            if os.path.exists(os.path.join(self.cfg.out_dir, "last.pt")):
                hint = "continue with --resume from the one before it, which is intact"
            raise OSError(f"{path}: cannot be written, is the disk full? ({e}) Free "
                          f"some space and {hint}") from None


def trim_log(path, step):
    """Drop the lines beyond a checkpoint's step, which the resumed run will write again.
    A line that a crash has damaged is dropped too."""
    kept = []
    if os.path.exists(path):
        with open(path, encoding="utf-8", errors="replace") as f:
            for line in f:
                with contextlib.suppress(ValueError, TypeError, KeyError):
                    if line.endswith("\n") and config.parse_json(line)["step"] <= step:
                        kept.append(line)
    with config.replacing(path) as temporary:
        with open(temporary, "w", encoding="utf-8") as f:
            f.writelines(kept)


# --------------------------------------------------------------------------------------
# Starting a run, or resuming it

def new_model(cfg, tok, machine, vocab_size=0):
    """-> a model of random weights for the ids of a tokenizer, or for so many ids"""
    torch.manual_seed(cfg.seed)
    model = GPT(GPTConfig(vocab_size or len(tok), cfg.block_size, cfg.n_layer,
                          cfg.n_head, cfg.n_embd, cfg.dropout, cfg.motifs))
    if cfg.motifs:
        model.transformer.bases.read_vocab(tok.vocab, tok.encode("\n")[0])
    return model.to(machine.device)


def check_no_run(cfg):
    """Find out before long work whether a run can be written to out_dir: ValueError if
    it holds one already, OSError if the system refuses it."""
    last, best = (os.path.join(cfg.out_dir, name) for name in ("last.pt", "best.pt"))
    require(not (cfg.resume and cfg.overwrite), "--resume, --overwrite: give only one")
    holds_run = os.path.exists(last) or os.path.exists(best)
    require(not holds_run or cfg.resume or cfg.overwrite,
            f"{cfg.out_dir} holds a run already: "
            f"{'--resume continues it, ' if os.path.exists(last) else ''}another "
            "--out_dir keeps it, --overwrite deletes it")
    config.check_output(last)


@contextlib.contextmanager
def open_out_dir(cfg, machine, tokenizer):
    """Within, out_dir belongs to this run alone. It is made a complete model folder,
    with config and tokenizer beside the checkpoints to come."""
    os.makedirs(cfg.out_dir, exist_ok=True)
    with config.locked(cfg.out_dir) if machine.is_main else contextlib.nullcontext():
        if machine.is_main:
            # once more: another run may have been here since the first time
            check_no_run(cfg)
            for name in ("last.pt", "best.pt", "scores.json") if cfg.overwrite else ():
                with contextlib.suppress(FileNotFoundError):
                    os.remove(os.path.join(cfg.out_dir, name))
            config.write_json(os.path.join(cfg.out_dir, "config.json"), asdict(cfg))
            config.copy_file(tokenizer, os.path.join(cfg.out_dir, "tokenizer.json"))
        machine.barrier()
        yield


# A resumed run may differ from its beginning in these keys. Any other would make it
# another run. (More max_steps also stretch the schedule of the learning rate.)
MAY_CHANGE = ("max_steps epochs eval_interval log_interval device dtype compile resume "
              "overwrite out_dir data_dir init_from tasks eval_tasks").split()


def resume_from(cfg, machine, extra):
    """-> (model, checkpoint) of out_dir's last.pt

    extra: more checkpoint fields; tokenizer_sha256 and data_sha256 must be the old run's
    ValueError if the run began with other settings or other data.
    """
    path = os.path.join(cfg.out_dir, "last.pt")
    model, state = load_checkpoint(path, machine.device, cfg.dropout)
    require({"config", *NEW_RUN} <= state.keys(),
            f"{path}: a model to use, without what resuming needs: give the last.pt of a "
            "run")
    for key, value in asdict(cfg).items():
        began_with = state["config"].get(key)
        require(key in MAY_CHANGE or began_with == value,
                f"{path}: began with {key}={began_with}, not {value}: resume with the "
                "configuration that it began with")
    for name in ("tokenizer", "data"):
        require(state.get(f"{name}_sha256") == extra[f"{name}_sha256"],
                f"{path}: began with another {name}: resume with the files that it began "
                "with")
    if machine.is_main and state["step"] >= cfg.max_steps:
        print(f"{path} is at step {state['step']} already: more max_steps would "
              "continue it")
    return model, state


# --------------------------------------------------------------------------------------
# Model folders

def load_model(folder, device="cpu", dropout=0.0):
    """Read a folder that train.py, instruct.py or a tool wrote.

    -> (model on `device`, its tokenizer, the whole checkpoint as a dict). A tuned
    checkpoint also holds its questions. ValueError if model and tokenizer do not belong
    together.
    """
    path = os.path.join(folder, "best.pt")
    model, state = load_checkpoint(path, device, dropout)
    sha256 = state.get("tokenizer_sha256")
    require(sha256, f"{path}: it does not say which tokenizer is its own, as "
            "checkpoints of train.py, instruct.py and tools/gpt2.py do")
    tok = Tokenizer.load(os.path.join(folder, "tokenizer.json"), sha256)
    n_ids = model.config.vocab_size
    require(n_ids == len(tok), f"{path}: {n_ids} ids, but its tokenizer has {len(tok)}")
    return model, tok, state


# --------------------------------------------------------------------------------------
# Ctrl-C

@contextlib.contextmanager
def deferred_signals(machine):
    """Within, Ctrl-C and SIGTERM are only noted in a list, so that a step can be
    finished and saved -> that list.

    A second Ctrl-C stops at once. Under torchrun it does not, because each process gets
    every Ctrl-C twice: from the terminal and from torchrun."""
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


# --------------------------------------------------------------------------------------
# The run

def command_after(cfg, argv):
    """-> what to run next: tuning on the tasks beside the data, or else sampling"""
    tasks = os.path.join(glob.escape(cfg.data_dir), "tasks", "*")
    if not glob.glob(f"{tasks}.train.json"):
        return config.next_command("sample", argv, out_dir=cfg.out_dir)
    return config.next_command("instruct", argv, init_from=cfg.out_dir,
                               out_dir=f"{cfg.out_dir}-instruct",
                               tasks=f"{tasks}.train.json")


def main(argv):
    # data and machine
    cfg = config.from_command_line(TrainConfig, "train", argv)
    check_no_run(cfg)
    meta, tok = read_data(cfg.data_dir)
    windows = open_windows(cfg, meta)
    bins = {name: open_bin(cfg.data_dir, f"val_{name}.bin", meta)
            for name in meta["modalities"]}
    extra = {"tokenizer_sha256": meta["tokenizer_sha256"],
             "data_sha256": config.file_sha256(os.path.join(cfg.data_dir, "meta.json"))}
    machine = find_machine(cfg)

    # model
    if cfg.resume:
        model, start = resume_from(cfg, machine, extra)
    else:
        model, start = new_model(cfg, tok, machine), NEW_RUN

    # train
    def batches(step):
        return windows.micro_batches(step, cfg, machine)

    def evaluate():
        return evaluate_bins(model, bins, meta, cfg, machine, tok.eot)

    tokens_per_step = cfg.batch_size * cfg.gradient_accumulation_steps * cfg.block_size
    wrote = ""
    if start["step"] < cfg.max_steps:
        with open_out_dir(cfg, machine, os.path.join(cfg.data_dir, "tokenizer.json")):
            fit(model, cfg, machine, batches, evaluate, extra, start, tokens_per_step)
        wrote = f"wrote {cfg.out_dir}; "
    machine.close()
    if machine.is_main:
        print(f"{wrote}next: {command_after(cfg, argv)}")


if __name__ == "__main__":
    config.run(main)
