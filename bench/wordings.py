"""
Score a model on wordings that it was not tuned on, as sample.py asks them: each in the
nearest wording of its tuning. A question of another task, or of none, is wrong.

    python -m bench.wordings models/laptop 'data/laptop/tasks/unseen/*.dev.json'

Beside them stand the scores of the same rows in the usual wording.
"""
import config
from dna.metrics import align, cell, judge
from dna.tasks import by_task, read_examples
from instruct import label_probabilities
from sample import find_question, load


def matches(instructions, task, questions):
    """-> {instruction: the question of the task that it asks, None if it asks another}"""
    found = {}
    for instruction in sorted(instructions):
        try:
            question = find_question(instruction, questions)
        except ValueError:
            question = {"task": "none"}
        found[instruction] = question if question["task"] == task else None
        if not found[instruction]:
            print(f"{task}: {instruction} asks {question['task']}")
    return found


def scores(s, examples, questions):
    """-> what judge() says of examples that are asked as a question each, None of
    which is answered with a wrong label"""
    asked = [question["instruction"] if question else "" for question in questions]
    rows = [e | {"instruction": instruction} for e, instruction in zip(examples, asked)]
    answers = label_probabilities(s.model, s.tok, rows, s.max_len, s.machine, "scoring")
    chosen = []
    for e, question, answer in zip(examples, questions, answers):
        wrong = next(choice for choice in e["choices"] if choice != e["output"])
        chosen.append(e["choices"][answer.log_p.argmax()] if question else wrong)
    return judge([e["output"] for e in examples], chosen, examples[0]["choices"])


def main(argv):
    folder, *patterns = argv
    s = load(folder)
    table = [["task", "n", "accuracy", "MCC", "usual accuracy", "MCC"]]
    for task, examples in by_task(read_examples(patterns)).items():
        found = matches({e["instruction"] for e in examples}, task, s.questions)
        row = [task, len(examples)]
        for questions in ([found[e["instruction"]] for e in examples],
                          [s.question(task)] * len(examples)):
            judged = scores(s, examples, questions)
            row += [judged["accuracy"], judged["mcc"]]
        table.append([cell(value) if i else value for i, value in enumerate(row)])
    print(align(table))


if __name__ == "__main__":
    config.run(main)
