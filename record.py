"""
What a run of train.py or instruct.py leaves behind in out_dir, and how a later one goes on from it:
the log, the checkpoints, and signals that wait until both are written.
"""
import contextlib
import json
import math
import os
import shutil
import signal
import time
from dataclasses import asdict

import torch
from tqdm import tqdm

import config
from model import load_checkpoint, save_checkpoint


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
        shutil.copyfile(tokenizer, f"{target}.tmp")
        os.replace(f"{target}.tmp", target)


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

class Record:
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
        if self.machine.is_main:
            save_checkpoint(os.path.join(self.cfg.out_dir, name), self.model, tokens=self.tokens,
                            config=asdict(self.cfg), **self.extra, **state)


def trim_log(path, step):
    """Drop the lines beyond a checkpoint's step, which the resumed run will write again."""
    kept = []
    if step and os.path.exists(path):
        with open(path, encoding="utf-8") as f:
            kept = [line for line in f if line.endswith("\n") and json.loads(line)["step"] <= step]
    with open(f"{path}.tmp", "w", encoding="utf-8") as f:
        f.writelines(kept)
    os.replace(f"{path}.tmp", path)


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
