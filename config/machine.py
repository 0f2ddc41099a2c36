"""
The machine: its device, its dtype, and the processes that train together.

    machine = find_machine(cfg)     # of device, dtype, gradient_accumulation_steps
    with machine.autocast(): ...
    total, count = machine.sum(total, count)    # over all processes of torchrun
"""
import ctypes
import importlib.util
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.distributed as dist

from config import require

# Peak TFLOP/s of some GPUs, dense, in bfloat16, or in float16 where they have no
# bfloat16. They are from their data sheets, by the full name: a GPU of a similar name may
# be another one.
PEAK_TFLOPS = {
    "NVIDIA B200": 2250, "NVIDIA H200": 989, "NVIDIA H200 NVL": 835,
    "NVIDIA H100 80GB HBM3": 989, "NVIDIA H100 PCIe": 756, "NVIDIA H100 NVL": 835,
    "NVIDIA A100-SXM4-80GB": 312, "NVIDIA A100-SXM4-40GB": 312,
    "NVIDIA A100 80GB PCIe": 312, "NVIDIA A100-PCIE-40GB": 312,
    "NVIDIA A40": 149.7, "NVIDIA RTX A6000": 154.8,
    "NVIDIA L40S": 362, "NVIDIA L40": 181, "NVIDIA L4": 121,
    "NVIDIA GeForce RTX 5090": 209.5, "NVIDIA GeForce RTX 4090": 165.2,
    "NVIDIA GeForce RTX 3090": 71,
    "Tesla T4": 65, "Tesla V100S-PCIE-32GB": 130,
    "Tesla V100-SXM2-16GB": 125, "Tesla V100-SXM2-32GB": 125,
    "Tesla V100-PCIE-16GB": 112, "Tesla V100-PCIE-32GB": 112}


@dataclass
class Machine:
    device: torch.device
    dtype: torch.dtype          # of matrix products, by autocast; weights stay float32
    peak: float | None = None   # FLOP/s of all processes together, None if not listed
    rank: int = 0               # of this process
    world: int = 1              # number of processes

    def __post_init__(self):
        # In float16 small gradients would be zero. So the loss is scaled up, and they are
        # scaled down again in float32. In another dtype the scaler does nothing.
        self.scaler = torch.amp.GradScaler(self.device.type,
                                           enabled=self.dtype == torch.float16)

    @property
    def is_main(self):
        return self.rank == 0

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype,
                              enabled=self.dtype != torch.float32)

    def to_device(self, tensors):
        # from pinned memory, so that copies overlap with computation
        if self.device.type == "cuda":
            return [t.pin_memory().to(self.device, non_blocking=True) for t in tensors]
        return [t.to(self.device) for t in tensors]

    def now(self):
        """-> seconds, when all is computed that was asked for"""
        if self.device.type != "cpu":       # Python does not wait for what a GPU computes
            getattr(torch, self.device.type).synchronize()
        return time.perf_counter()

    def workers(self):
        """-> how many items map() works on at a time"""
        return torch.get_num_threads() if self.device.type == "cpu" else 1

    def map(self, function, items):
        """-> function(item) of each item, in order. On a CPU each core has an item of its
        own. That is faster than to share every product among the cores, and a product's
        rounding does not depend on how many share it."""
        workers = self.workers()
        if workers == 1:
            yield from map(function, items)
            return
        pool = ThreadPoolExecutor(workers)
        torch.set_num_threads(1)
        try:
            yield from pool.map(function, items)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(workers)

    def matmul_rate(self):
        """-> FLOP/s of products of two n x n matrices, measured, times all processes"""
        # a GPU gets several large ones: a single small one would be over sooner than it
        # can be launched and waited for
        n, times = (8192, 10) if self.device.type == "cuda" else (1024, 1)
        a = torch.ones(n, n, device=self.device, dtype=self.dtype)
        a @ a       # the first one is slow: it is planned
        start = self.now()
        for _ in range(times):
            a @ a
        return self.world * times * 2 * n ** 3 / (self.now() - start)

    def sum(self, *numbers):
        """Numbers summed over all processes -> list of float"""
        total = torch.tensor(numbers, dtype=torch.float64)
        if self.world > 1:
            dist.all_reduce(total)
        return total.tolist()

    def gather(self, value):
        """-> a list with each process's value, anything that can be pickled"""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def barrier(self):
        if dist.is_initialized():
            dist.barrier()

    def close(self):
        """Leave the process group, after the main process has finished writing."""
        self.barrier()
        if dist.is_initialized():
            dist.destroy_process_group()


def find_machine(cfg):
    """cfg: a RunConfig -> the Machine to run on; under torchrun, this process's share"""
    # the device, and the other processes
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = find_device(cfg.device)
    require(cfg.gradient_accumulation_steps % world == 0,
            f"gradient_accumulation_steps={cfg.gradient_accumulation_steps} cannot be "
            f"divided among {world} processes: choose a multiple")
    if "RANK" in os.environ and device.type == "cuda":
        # gloo sums what is on the CPU, without waiting for the GPU
        dist.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    elif "RANK" in os.environ:
        dist.init_process_group("gloo")

    # the dtype of its matrix products
    dtype = fast_dtype(device) if cfg.dtype == "auto" else getattr(torch, cfg.dtype)

    # speed settings; on a CPU also reproducibility to the bit
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")      # TF32
    elif device.type == "cpu":
        keep_memory()
        # oneDNN plans a product anew for each shape, and by default keeps 1,024 plans. The
        # batches of tuning have more shapes.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
        # compiled, the embedding's gradient would be summed in another order each time
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False

    # its peak
    peak = None
    if device.type == "cuda" and dtype != torch.float32:
        peak = PEAK_TFLOPS.get(torch.cuda.get_device_name(device))
    return Machine(device, dtype, peak and world * peak * 1e12, rank, world)


def find_device(name):
    """A device by name, the best one there is for "auto"; under torchrun the GPU of this
    process. ValueError if there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else \
            "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":
            # chosen before anything is allocated on another one
            index = int(os.environ.get("LOCAL_RANK", device.index or 0))
            device = torch.device("cuda", index)
            torch.cuda.set_device(device)
            # cuDNN would plan anew, for up to a second, for each of the many shapes of
            # tuning, scoring and generation. For the one shape of pretraining flash
            # attention is as fast.
            torch.backends.cuda.enable_cudnn_sdp(False)
        torch.empty(1, device=device)
        return device
    except (RuntimeError, AssertionError, AttributeError):  # the last: no CUDA in torch
        raise ValueError(f"device={name}: no such device here: use auto or "
                         "cpu") from None


def fast_dtype(device):
    """bfloat16 where the hardware has units for it; else float16 on a CUDA device (before
    compute capability 8.0) and float32 on another"""
    if device.type == "cuda":
        has_units = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has_units else torch.float16
    has_units = device.type == "cpu" and (torch.cpu._is_avx512_bf16_supported()
                                          or torch.cpu._is_amx_tile_supported())
    return torch.bfloat16 if has_units else torch.float32


def keep_memory():
    """On Linux, let glibc keep the memory of freed tensors. By default it returns memory
    to the OS, and every large tensor page-faults in fresh zeroed pages, which takes 10%
    of a step or more."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):        # glibc has it, musl does not
            libc.mallopt(-4, 0)             # M_MMAP_MAX: do not mmap large blocks
            libc.mallopt(-1, 2 ** 31 - 1)   # M_TRIM_THRESHOLD: how much may stay unused


def should_compile(cfg, machine, flops):
    """compile=auto: where there is a compiler, and on a CPU only for runs of more than
    1e14 FLOPs (some minutes), which win back the half minute that compiling takes.
    flops: of the whole run"""
    if cfg.compile != "auto":
        return cfg.compile == "yes"
    if machine.device.type == "cuda":
        # Triton needs a C compiler, and a GPU of 2017 or later
        return importlib.util.find_spec("triton") is not None \
            and shutil.which(os.environ.get("CC", "gcc")) is not None \
            and torch.cuda.get_device_capability(machine.device) >= (7, 0)
    return machine.device.type == "cpu" and flops > 1e14 \
        and shutil.which(os.environ.get("CXX", "g++")) is not None
