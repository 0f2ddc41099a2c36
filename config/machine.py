"""
The machine: device, dtype, and the processes that train together.

    machine = find_machine(cfg)             # cfg has device, dtype, gradient_accumulation_steps
    with machine.autocast(): ...
    total, count = machine.sum(total, count)    # over all processes that torchrun started
"""
import ctypes
import importlib.util
import os
import re
import shutil
import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist

# Peak bfloat16 FLOP/s of some GPUs, dense, from their data sheets; the more specific name first.
PEAK_FLOPS = {"B200": 2250e12, "H200 NVL": 835e12, "H200": 989e12, "H100 PCIe": 756e12,
              "H100 NVL": 835e12, "H100": 989e12, "A100": 312e12, "A40": 149.7e12,
              "RTX A6000": 154.8e12, "L40S": 362e12, "L40": 181e12, "L4": 121e12,
              "RTX 5090": 209.5e12, "RTX 4090": 165.2e12, "RTX 3090": 71e12}
RELATIVES = {"Ti", "SUPER", "D", "Laptop", "MIG"}   # words in the names of others, not listed


@dataclass
class Machine:
    device: torch.device
    dtype: torch.dtype          # of matrix products, under autocast; weights stay float32
    peak: float | None = None   # FLOP/s of all processes together, None where it is not listed
    rank: int = 0               # of this process
    world: int = 1              # number of processes

    @property
    def is_main(self):
        return self.rank == 0

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def to_device(self, tensors):
        if self.device.type == "cuda":      # from pinned memory, copies overlap with computation
            return [t.pin_memory().to(self.device, non_blocking=True) for t in tensors]
        return [t.to(self.device) for t in tensors]

    def sum(self, *numbers):
        """Numbers summed over all processes -> list of float"""
        if self.world == 1:
            return [float(n) for n in numbers]
        device = self.device if self.device.type == "cuda" else "cpu"
        total = torch.tensor([float(n) for n in numbers], dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()

    def barrier(self):
        if dist.is_initialized():
            dist.barrier()

    def close(self):
        """Leave the process group, after the main process has finished writing."""
        self.barrier()
        if dist.is_initialized():
            dist.destroy_process_group()


def find_machine(cfg):
    """cfg: a RunConfig -> the Machine to run on, this process's share of it under torchrun"""
    # the device, and the other processes
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = find_device(cfg.device)
    if cfg.gradient_accumulation_steps % world:
        raise ValueError(f"gradient_accumulation_steps={cfg.gradient_accumulation_steps} cannot be "
                         f"divided among {world} processes: choose a multiple")
    if "RANK" in os.environ:
        if device.type == "cuda":
            dist.init_process_group("nccl", device_id=device)
        else:
            dist.init_process_group("gloo")

    # the dtype of its matrix products
    dtypes = {"auto": fast_dtype(device), "float32": torch.float32, "bfloat16": torch.bfloat16}
    if cfg.dtype not in dtypes:
        raise ValueError(f"dtype={cfg.dtype} is not one of {', '.join(dtypes)}")
    dtype = dtypes[cfg.dtype]

    # what makes it fast, and on a CPU, but on no other device, repeatable to the bit
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")      # TF32
    elif device.type == "cpu":
        keep_memory()
        # compiled, the embedding's gradient would be summed in a different order each time
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    peak = None
    if device.type == "cuda" and dtype == torch.bfloat16:
        peak = listed_peak(torch.cuda.get_device_name(device))
    return Machine(device, dtype, peak and world * peak, rank, world)


def find_device(name):
    """A device by name, the best one there is for "auto"; under torchrun the GPU of this process.
    ValueError if there is no such device"""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else \
            "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda":       # chosen before anything is allocated on another one
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", device.index or 0)))
            torch.cuda.set_device(device)
            # cuDNN would plan anew, for up to a second, for each of the many shapes of tuning,
            # scoring and generation; for the one shape of pretraining flash attention is as fast
            torch.backends.cuda.enable_cudnn_sdp(False)
        torch.empty(1, device=device)
        return device
    except (RuntimeError, AssertionError, AttributeError):     # the last: torch without CUDA
        raise ValueError(f"device={name}: no such device here: use auto or cpu") from None


def fast_dtype(device):
    """bfloat16 where the hardware has units for it, float32 where it would be emulated"""
    fast = {"cuda": lambda: torch.cuda.is_bf16_supported(including_emulation=False),
            "cpu": lambda: (torch.cpu._is_avx512_bf16_supported()
                            or torch.cpu._is_amx_tile_supported())}
    return torch.bfloat16 if fast.get(device.type, bool)() else torch.float32


def listed_peak(name):
    """name: of a GPU, as "NVIDIA H100 80GB HBM3" -> FLOP/s from its data sheet, None if not listed"""
    words = set(re.findall(r"\w+", name))
    return next((flops for model, flops in PEAK_FLOPS.items()
                 if words >= set(model.split()) and not words & RELATIVES), None)


def keep_memory():
    """On Linux, let glibc keep the memory of freed tensors. By default it returns it to the OS, and
    every large tensor page-faults in fresh zeroed memory: 10% of a step or more."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):        # glibc has it, musl does not
            libc.mallopt(-4, 0)             # M_MMAP_MAX: do not mmap large blocks one by one
            libc.mallopt(-1, 2 ** 31 - 1)   # M_TRIM_THRESHOLD: how much may stay unused


def should_compile(cfg, machine, flops):
    """compile=auto: where there is a compiler, and on a CPU only for runs of more than 1e14 FLOPs
    (some minutes), which win back the half minute that compiling takes. flops: of the run"""
    choices = {"yes": True, "true": True, "no": False, "false": False}
    if cfg.compile != "auto":
        if cfg.compile not in choices:
            raise ValueError(f"compile={cfg.compile} is not one of auto, yes, no")
        return choices[cfg.compile]
    if machine.device.type == "cuda":       # Triton needs a C compiler, and a GPU of 2017 or later
        return importlib.util.find_spec("triton") is not None \
            and shutil.which(os.environ.get("CC", "gcc")) is not None \
            and torch.cuda.get_device_capability(machine.device) >= (7, 0)
    return machine.device.type == "cpu" and flops > 1e14 \
        and shutil.which(os.environ.get("CXX", "g++")) is not None
