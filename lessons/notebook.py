"""
Write lessons/nanodnahlm.ipynb, the notebook, from lessons/notebook.md.

    python -m lessons.notebook

What the page fences as python is a cell of code. The text between is a cell of text.
"""
import os
import re

import config

FOLDER = os.path.dirname(__file__)
PAGE, NOTEBOOK = f"{FOLDER}/notebook.md", f"{FOLDER}/nanodnahlm.ipynb"


def read_cells():
    """-> the texts of the page's cells, in which every second one is code"""
    with open(PAGE, encoding="utf-8") as f:
        parts = re.split(r"^```(?:python)?\n", f.read(), flags=re.MULTILINE)
    return [part.strip() for part in parts]


def notebook(cells):
    """-> the notebook as JSON, in version 4.5 of Jupyter's format
    (https://nbformat.readthedocs.io)"""
    found = []
    for number, text in enumerate(cells):
        cell = {"id": f"cell-{number}", "metadata": {},
                "source": text.splitlines(keepends=True), "cell_type": "markdown"}
        if number % 2:
            cell |= {"cell_type": "code", "execution_count": None, "outputs": []}
        found.append(cell)
    # Colab reads "accelerator", and opens the notebook on a GPU.
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": found, "metadata": {"accelerator": "GPU", "kernelspec": kernel},
            "nbformat": 4, "nbformat_minor": 5}


def main(argv):
    config.require(not argv, "it takes no arguments")
    config.write_json(NOTEBOOK, notebook(read_cells()))
    print(f"wrote {NOTEBOOK}")


if __name__ == "__main__":
    config.run(main)
