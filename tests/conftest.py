"""Small worlds for the tests: a prepared folder and a trained model, made once."""
import os
import random

import pytest
import torch

import instruct
import prepare
import train
from dna import toy as toy_world

torch.set_num_threads(1)      # small networks; on a busy machine two threads wait for each other


# `make check` leaves these tests out: each takes a quarter of a second or more. It leaves out the
# tests on the toy world too.
SLOW = """
test_help_is_of_the_script_that_runs test_missing_files_are_named test_the_same_to_the_last_digit
test_the_fit_is_at_a_minimum test_in_python test_the_example_of_the_model_in_the_box
test_6mers_of_the_toy_world test_a_bad_loss_stops_the_run
test_a_full_disk_says_what_is_left test_a_last_bad_step_is_not_saved
test_a_newer_tokenizer_is_read_with_a_note test_a_packed_model_scores_and_answers
test_a_process_that_dies_ends_the_job test_a_run_has_the_same_pieces_everywhere
test_a_second_run_replaces_the_first test_a_step_is_one_graph
test_a_page_is_no_zip_file test_a_step_never_waits_for_the_device
test_a_structure_has_the_same_tokens_everywhere test_a_whole_file_that_was_not_renamed
test_a_tokenizer_that_loses_text_is_refused test_adamw_trains_and_resumes_too
test_an_older_tokenizer_keeps_its_pattern test_as_a_command test_batch_is_one_by_one
test_bench test_both_strands_give_the_same_answer
test_chat_says_what_is_wrong_and_goes_on
test_checkpoint_of_a_compiled_model_loads_uncompiled
test_compiled_runs_are_the_same_twice test_ctrl_c_saves_and_says_how_to_go_on
test_ctrl_c_stops_all_processes_together test_gpt_lesson test_half_a_file_is_gone_on_with
test_in_turn
test_intervals_change_nothing_but_the_log test_it_knows_the_place_of_a_motif
test_its_cells_run
test_left_out_tasks_and_baselines test_long_records_are_held_out_too
test_motifs_from_pretraining_to_an_answer
test_long_records_come_in_blocks test_memory_of_a_step test_missing_file_is_named
test_modalities_are_those_of_meta_json test_mutated_files
test_mutated_input_leaves_no_half_written_folder test_next_after_the_toy_world
test_one_clear_line test_one_command_goes_on_where_it_was_cut_off
test_one_process_of_torchrun_has_a_group test_only_scoring
test_overlapping_takes_time_that_grows_with_the_rows test_page_gives_the_same_tokens
test_pipes_and_one_clear_line test_planted_elements_stand_out
test_prepared_trained_and_evaluated test_repeated_documents_are_on_one_side
test_resumed_equals_uninterrupted test_resuming_a_finished_run_writes_nothing
test_resuming_another_run_is_refused test_round_trip test_scripts
test_sigterm_leaves_nothing_behind test_small_genomes_are_held_out_too
test_step_computes_what_training_does test_step_reports_where_the_time_goes
test_the_page_has_it_too test_the_solutions test_tokens_show_has_it_too
test_tuning_compiles_a_handful_of_times test_two_processes_accumulate_as_one
test_two_processes_equal_one test_two_processes_score_as_one
test_two_runs_do_not_share_a_folder test_what_cannot_be_checked_is_said
test_what_is_not_read_is_noted test_what_the_laptop_preset_reads
test_a_run_has_the_loss_of_float32 test_an_overflow_is_said_and_logged
test_an_overflow_in_one_process_skips_the_step_in_all test_another_dtype_may_continue
test_tuning_and_scores_in_float16 test_what_a_run_will_take
test_browser_by_keyboard test_browser_colours_bases_and_changes_them
test_browser_fits_the_page_into_any_width test_browser_says_what_is_wrong
test_where_there_are_no_locks test_whole_way test_without_matplotlib
"""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.originalname in SLOW.split() or "toy" in item.fixturenames:
            item.add_marker(pytest.mark.slow)


@pytest.fixture
def two_cores():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """-> a folder with data/ (a toy world of few genes) and out/ (a model of a few steps)"""
    folder = tmp_path_factory.mktemp("toy")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_world, "GENES", 200)
        patch.setattr(toy_world, "TEST_GENES", 12)
        prose = toy_world.python_prose()[:1000]
        patch.setattr(toy_world, "python_prose", lambda: prose)
        prepare.main([f"--data_dir={folder}/data", "--vocab_size=400", "--val_fraction=0.1"])
    train.main([*SMALL, f"--data_dir={folder}/data", f"--out_dir={folder}/out", "--max_steps=20",
                "--eval_interval=10", "--log_interval=1"])
    return str(folder)


SMALL = ["--n_layer=2", "--n_head=2", "--n_embd=16", "--block_size=256", "--batch_size=4",
         "--learning_rate=1e-2", "--warmup_steps=2", "--device=cpu", "--dtype=float32",
         "--compile=no"]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """-> a folder in which all files are so small that a script needs a tenth of a second for them:
    genome.fa, english.txt, a task x, data/, out/, tuned/, and seqs.fa and seqs.csv to ask about, preset.toml"""
    folder = tmp_path_factory.mktemp("tiny")
    dna = fasta(folder / "genome.fa", [random_dna(500, i) for i in range(12)])
    english = write(folder / "english.txt", "\n\n".join(f"The cell is read {i} times." for i in range(200)))
    x = table(folder / "x", {"train": some_rows(40), "test": some_rows(8, 1)})
    fasta(folder / "seqs.fa", [random_dna(30, i) for i in range(3)])
    write(folder / "seqs.csv", "name,sequence\n" + "".join(f"{i},{random_dna(30, i)}\n" for i in range(3)))
    write(folder / "preset.toml", "[train]\nlearning_rate = 1e-3\n")
    prepare.main([f"--dna={dna}", f"--english={english}", f"--tasks={x}", f"--data_dir={folder}/data",
                  "--vocab_size=400", "--val_fraction=0.2"])
    train.main([*TINY, f"--data_dir={folder}/data", f"--out_dir={folder}/out", "--max_steps=2"])
    tasks = f"{folder}/data/tasks"
    instruct.main([*TUNING, f"--init_from={folder}/out", f"--out_dir={folder}/tuned", "--max_steps=2",
                   f"--tasks={tasks}/x.train.json", f"--eval_tasks={tasks}/x.test.json"])
    return folder


@pytest.fixture
def small():
    return SMALL


# the 28 tasks of GUE, by their folders
GUE_FOLDERS = [f"GUE/{folder}" for folder in """
prom/prom_core_all prom/prom_core_notata prom/prom_core_tata
prom/prom_300_all prom/prom_300_notata prom/prom_300_tata splice/reconstructed virus/covid
mouse/0 mouse/1 mouse/2 mouse/3 mouse/4 tf/0 tf/1 tf/2 tf/3 tf/4
EMP/H3 EMP/H3K14ac EMP/H3K36me3 EMP/H3K4me1 EMP/H3K4me2 EMP/H3K4me3 EMP/H3K79me3 EMP/H3K9ac
EMP/H4 EMP/H4ac""".split()]

LETTERS = [{"task": "letters", "instruction": "Which letter?", "input": "a" * n,
            "output": "yes" if n % 2 else "no"} for n in range(1, 41)]


def merge(*args):
    """Command-line arguments, of which a later one replaces an earlier one of the same key"""
    return list({arg.partition("=")[0]: arg for arg in args}.values())


TINY = merge(*SMALL, "--n_layer=1", "--n_head=1", "--n_embd=8", "--eval_interval=1")
TUNING = ["--device=cpu", "--dtype=float32", "--gradient_accumulation_steps=1", "--eval_interval=1"]


def listing(folder):
    """-> {path: content} of all files below a folder, to see that nothing has changed"""
    found = {}
    for parent, _, names in os.walk(folder):
        for name in names:
            with open(os.path.join(parent, name), "rb") as f:
                found[os.path.join(parent, name)] = f.read()
    return found


def write(path, text):
    os.makedirs(os.path.dirname(path), exist_ok=True)
    path.write_bytes(text.encode())
    return str(path)


def random_dna(n, seed=0):
    return "".join(random.Random(seed).choices("ACGT", k=n))


def fasta(path, records):
    return write(path, "".join(f">{i}\n{r}\n" for i, r in enumerate(records)))


def table(folder, splits):
    for split, rows in splits.items():
        write(folder / f"{split}.csv", "sequence,label\n" + "".join(f"{s},{x}\n" for s, x in rows))
    return str(folder)


def some_rows(n, seed=0):
    return [(random_dna(50, (seed, i).__hash__()), i % 2) for i in range(n)]


def example(instruction, input="", output="yes", **more):
    return {"instruction": instruction, "input": input, "output": output} | more
