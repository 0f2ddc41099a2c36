"""The machine: what a GPU is asked for, and in which order, seen on a machine without one."""
import os
import subprocess
import sys
import threading
import time

import pytest
import torch

import train
from config import machine as machine_module
from config.machine import PEAK_TFLOPS, Machine, find_machine, should_compile
from train import TrainConfig

ROOT = os.path.dirname(os.path.abspath(train.__file__))


def test_an_unlisted_gpu_has_no_peak(gpu, monkeypatch):
    """Better no figure than that of a GPU with a similar name"""
    for name in ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA RTX A4000"):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: name)
        assert name not in PEAK_TFLOPS and find_machine(TrainConfig()).peak is None


@pytest.fixture
def gpu(monkeypatch):
    """A pretended machine of four H100s -> the calls that reach it, in order"""
    calls = []
    empty = torch.empty
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda d: calls.append(f"set_device {d}"))
    monkeypatch.setattr(torch, "empty", lambda *size, device="cpu", **more: calls.append(
        f"allocate on {device}") if "cuda" in str(device) else empty(*size, device=device, **more))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: "NVIDIA H100 80GB HBM3")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda d: (9, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr(torch.backends.cuda, "enable_cudnn_sdp",
                        lambda on: calls.append(f"cudnn attention {on}"))
    monkeypatch.setattr(machine_module.dist, "init_process_group",
                        lambda backend, device_id: calls.append(f"{backend} on {device_id}"))
    monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda precision: None)
    return calls


def test_a_gpu_is_chosen_before_anything_is_allocated(gpu, monkeypatch):
    machine = find_machine(TrainConfig(device="cuda:1"))
    assert gpu == ["set_device cuda:1", "cudnn attention False", "allocate on cuda:1"]
    assert machine.device == torch.device("cuda:1") and machine.dtype == torch.bfloat16
    assert machine.peak == 989e12

    # each process of torchrun has its own, and tells NCCL which
    gpu.clear()
    for key, value in {"RANK": "2", "LOCAL_RANK": "2", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(key, value)
    machine = find_machine(TrainConfig(gradient_accumulation_steps=4))
    assert gpu == ["set_device cuda:2", "cudnn attention False", "allocate on cuda:2",
                   "cpu:gloo,cuda:nccl on cuda:2"]
    assert (machine.rank, machine.world, machine.peak) == (2, 4, 4 * 989e12)


def test_bfloat16_only_where_the_hardware_has_it(gpu, monkeypatch):
    """A T4 emulates it, which torch calls supported unless it is asked exactly."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported",
                        lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda d: "Tesla T4")
    machine = find_machine(TrainConfig())
    assert machine.dtype == torch.float16 and machine.peak == 65e12 and machine.scaler.is_enabled()
    for dtype, peak in (("bfloat16", 65e12), ("float32", None)):
        machine = find_machine(TrainConfig(dtype=dtype))
        assert machine.dtype == getattr(torch, dtype) and machine.peak == peak


def test_a_matrix_product_is_timed(monkeypatch):
    """Of all processes together, once what is computed for the first time is planned"""
    clock = iter([3.0, 3.5])
    monkeypatch.setattr(Machine, "now", lambda self: next(clock))
    machine = Machine(torch.device("cpu"), torch.float32, world=2)
    assert machine.matmul_rate() == 2 * 2 * 1024 ** 3 / 0.5


def test_each_core_works_on_an_item_of_its_own(two_cores):
    """Two items meet, so they are worked on at a time, each by one thread of torch's."""
    meeting = threading.Barrier(2, timeout=20)

    def square(x):
        meeting.wait()
        return x * x, torch.get_num_threads()

    assert list(Machine(torch.device("cpu"), torch.float32).map(square, range(6))) == [
        (x * x, 1) for x in range(6)]
    assert torch.get_num_threads() == 2


def test_a_single_item_has_one_core_too(two_cores):
    """Two cores round a product in another way than one."""
    machine = Machine(torch.device("cpu"), torch.float32)
    assert list(machine.map(lambda x: torch.get_num_threads(), ["one"])) == [1]
    assert list(machine.map(lambda x: x, [])) == []


def test_a_gpu_has_one_item_after_the_other(two_cores):
    machine = Machine(torch.device("cuda:0"), torch.bfloat16)
    assert machine.workers() == 1
    assert list(machine.map(lambda x: torch.get_num_threads(), range(3))) == [2, 2, 2]


def test_what_is_not_begun_is_dropped_after_an_error(two_cores):
    """So Ctrl-C does not wait for a whole file"""
    begun = []

    def fail(x):
        # long enough that the error is met before all are begun
        begun.append(x)
        if x:
            time.sleep(0.01)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(Machine(torch.device("cpu"), torch.float32).map(fail, range(1000)))
    assert len(begun) < 1000 and torch.get_num_threads() == 2


@pytest.mark.parametrize("missing", ["nothing", "triton", "compiler", "capability"])
def test_compile_auto_needs_triton_and_a_compiler(gpu, monkeypatch, missing):
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(machine_module.importlib.util, "find_spec",
                        lambda name: None if missing == "triton" else name)
    monkeypatch.setattr(machine_module.shutil, "which",
                        lambda name: None if missing == "compiler" else f"/usr/bin/{name}")
    monkeypatch.setattr(torch.cuda, "get_device_capability",
                        lambda d: (6, 1) if missing == "capability" else (7, 0))
    machine = Machine(torch.device("cuda:0"), torch.bfloat16)
    assert should_compile(TrainConfig(), machine, flops=0) == (missing == "nothing")
    assert should_compile(TrainConfig(compile="yes"), machine, flops=0)


def test_on_a_cpu_only_long_runs_are_compiled(monkeypatch):
    monkeypatch.setattr(machine_module.shutil, "which", lambda name: f"/usr/bin/{name}")
    machine = Machine(torch.device("cpu"), torch.float32)
    assert [should_compile(TrainConfig(), machine, flops) for flops in (1e13, 1e15)] == [False, True]


ONE = """
import sys, torch
from config.machine import find_machine
from train import TrainConfig
machine = find_machine(TrainConfig(device="cpu"))
machine.barrier()
print(torch.distributed.is_initialized(), machine.sum(torch.tensor(2.0), 3), machine.world)
machine.close()
print(torch.distributed.is_initialized())
"""


def test_one_process_of_torchrun_has_a_group():
    """So that a single GPU goes the way of several"""
    env = os.environ | {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "PYTHONPATH": ROOT,
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run([sys.executable, "-c", ONE], env=env, text=True, capture_output=True)
    assert done.stdout.split("\n")[:2] == ["True [2.0, 3.0] 1", "False"], done.stderr


def test_an_accumulation_that_cannot_be_shared_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match="gradient_accumulation_steps=4 cannot be divided among 3"):
        find_machine(TrainConfig(device="cpu", gradient_accumulation_steps=4))
