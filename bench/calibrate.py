"""
Zero-shot answers, calibrated.

    python -m bench.calibrate --init_from=out/laptop --eval_tasks='data/laptop/tasks/*.dev.json'

A model that was not tuned on a task likes one of its labels best, whatever the sequence. Subtracting
from a label's log-likelihood its mean over all inputs (no label is looked at) leaves what the
sequence changes. Zhao et al. (2021), "Calibrate before use", divide in this way by the likelihood
after an input without content. Both ways are scored, beside each other; the keys are instruct.py's,
and --scores names a file to write the calibrated scores to.
"""
import sys

import numpy as np
from tqdm import tqdm

import config
from bench.kmers import score_labels, write_scores
from config.machine import find_machine
from gpt2 import load_model
from instruct import InstructConfig, answer, answer_both_strands
from metrics import table, with_means
from tasks import by_task, max_prompt_len, read_tasks


def calibrate(p):
    """Probabilities (rows, labels) -> the same, relative to each label's geometric mean"""
    log_p = np.log(np.maximum(p, 1e-30))
    return np.exp(log_p - log_p.mean(axis=0))


def main(argv):
    # records that have labels, and the model
    cfg = config.from_command_line(InstructConfig, "instruct", argv)
    test = by_task([r for r in read_tasks(cfg.eval_tasks) if r.get("choices")])
    if not test:
        raise ValueError(f"{', '.join(cfg.eval_tasks)}: no task with choices")
    machine = find_machine(cfg)
    model, tok, _ = load_model(cfg.init_from, machine.device)
    model.eval()
    choices = sorted({c for members in test.values() for r in members for c in r["choices"]})
    max_len = max_prompt_len(tok, choices, model.config.block_size)

    # the labels of each task, by both ways
    ask = answer_both_strands if cfg.both_strands else answer
    scores = {}
    bar = tqdm(desc="scoring", unit=" rows", disable=None)
    for task, members in sorted(test.items()):
        answers = ask(model, tok, members, max_len, cfg, machine, bar)
        answered = [(r, a[0]) for r, a in zip(members, answers) if a is not None]
        labels = members[0]["choices"]
        true = [labels.index(r["output"]) for r, _ in answered]
        p = np.array([[dict(zip(r["choices"], p))[label] for label in labels]
                      for r, p in answered])
        plain, calibrated = (score_labels(true, x.argmax(axis=1).tolist(), len(labels))
                             for x in (p, calibrate(p)))
        scores[task] = calibrated | {"zero_shot_mcc": plain["mcc"]}
    bar.close()
    print(table(with_means(scores)))
    if cfg.scores:
        write_scores(cfg.scores, scores)
        print(f"\nwrote {cfg.scores}", file=sys.stderr)


if __name__ == "__main__":
    config.run(main)
