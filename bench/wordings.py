"""
Score a model on wordings that it was not tuned on, as sample.py asks them: each in the
nearest wording of its tuning. A wording that is taken for another task's, or for no
question, is answered wrongly.

    python -m bench.wordings models/laptop 'data/laptop/tasks/unseen/*.dev.json'

A second table has the same rows in the usual wording.
"""
import numpy as np

import config
from dna.metrics import table, with_means
from dna.tasks import by_task, read_examples
from instruct import label_probabilities, score_task
from sample import find_question, load


def score(s, examples, wordings):
    """-> the scores of a task. wordings: {instruction: the words in which it is asked},
    with "" where it is taken for another question"""
    rows = [e | {"instruction": wordings[e["instruction"]]} for e in examples]
    answers = label_probabilities(s.model, s.tok, rows, s.max_len, s.machine, "scoring")
    for i, row in enumerate(rows):
        if not row["instruction"]:
            is_wrong = np.array([choice != row["output"] for choice in row["choices"]])
            answers[i] = answers[i]._replace(log_p=is_wrong, is_greedy=is_wrong)
    return score_task([row | {"answer": a} for row, a in zip(rows, answers)])


def match(instruction, task, questions):
    """-> the words in which an instruction is asked, "" if it is another question"""
    try:
        question = find_question(instruction, questions)
    except ValueError:
        question = {"task": "no question"}
    if question["task"] == task:
        return question["instruction"]
    print(f"{task}: taken for {question['task']}: {instruction}")
    return ""


def main(argv):
    folder, *patterns = argv
    s = load(folder)
    nearest, usual = {}, {}
    for task, examples in by_task(read_examples(patterns)).items():
        texts = sorted({e["instruction"] for e in examples})
        words = {text: match(text, task, s.questions) for text in texts}
        nearest[task] = score(s, examples, words)
        words = dict.fromkeys(texts, s.question(task)["instruction"])
        usual[task] = score(s, examples, words)
    print(f"{table(with_means(nearest))}\n\nin the usual wording\n"
          f"{table(with_means(usual))}")


if __name__ == "__main__":
    config.run(main)
