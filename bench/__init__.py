"""What the project is measured against, a script each. What is compared runs in turn, so
that a busy machine slows all alike, and each time in a new process."""
import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor


def in_turn(measure, names, rounds, *args):
    """Call measure(name, *args) for each name, `rounds` times
    -> {name: list of what it returned}"""
    results = {name: [] for name in names}
    for _ in range(rounds):
        for name in names:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                results[name].append(process.submit(measure, name, *args).result())
    return results


def peak_rss():
    """-> the most bytes of memory that this process has had"""
    import resource     # Unix has it
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
