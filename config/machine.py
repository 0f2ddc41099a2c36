"""
The machine: device, dtype, and the processes that train together.
"""
import ctypes
import os
import shutil
import sys
import time
from dataclasses import dataclass

import torch
import torch.distributed as dist

# bfloat16 peak of some GPUs in FLOP/s, dense, from their data sheets. Others are measured.
PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}


@dataclass
class Machine:
    device: torch.device
    dtype: torch.dtype
    peak: float                 # FLOP/s of all processes together
    rank: int = 0               # this process
    world: int = 1              # of so many

    @property
    def is_main(self):
        return self.rank == 0

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def sum(self, *numbers):
        """Add numbers up over all processes -> list of float"""
        if self.world == 1:
            return [float(n) for n in numbers]
        device = self.device if self.device.type == "cuda" else "cpu"
        total = torch.tensor([float(n) for n in numbers], dtype=torch.float64, device=device)
        dist.all_reduce(total)
        return total.tolist()


def find_machine(cfg):
    """cfg: a RunConfig -> the Machine to run on; one of several where torchrun started us"""
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    device = find_device(cfg.device)
    if world > 1:
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        if cfg.gradient_accumulation_steps % world:
            raise ValueError(f"gradient_accumulation_steps={cfg.gradient_accumulation_steps} cannot "
                             f"be shared among {world} processes: choose a multiple")
    dtypes = {"auto": fast_dtype(device), "float32": torch.float32, "bfloat16": torch.bfloat16}
    if cfg.dtype not in dtypes:
        raise ValueError(f"dtype={cfg.dtype} is not one of {', '.join(dtypes)}")
    dtype = dtypes[cfg.dtype]
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")      # TF32
    elif device.type == "cpu":
        keep_memory()
        # Compiled, the embedding's gradient would be added up in an order that differs each time.
        torch.use_deterministic_algorithms(True)
        torch.utils.deterministic.fill_uninitialized_memory = False
    return Machine(device, dtype, world * peak_flops(device, dtype), rank, world)


def keep_memory():
    """On Linux, let the C library keep the memory of large tensors for the next ones. As a rule it
    gives it back to the system, which must clear each page anew: a tenth of a step and more."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):        # glibc has it
            libc.mallopt(-4, 0)             # M_MMAP_MAX: no mapping of its own for a large tensor
            libc.mallopt(-1, 2 ** 31 - 1)   # M_TRIM_THRESHOLD: so much may lie idle


def fast_dtype(device):
    """bfloat16 where the hardware multiplies it, float32 where it would be emulated"""
    fast = {"cuda": torch.cuda.is_bf16_supported, "mps": lambda: False,
            "cpu": lambda: (torch.cpu._is_avx512_bf16_supported()
                            or torch.cpu._is_amx_tile_supported())}
    return torch.bfloat16 if fast[device.type]() else torch.float32


def peak_flops(device, dtype):
    """FLOP/s of matrix products: the data sheet's where it is listed, else measured."""
    if listed := listed_peak(device, dtype):
        return listed
    for n, tries in ((256, 20), (2048, 4)):     # a small one is easily held up by other work
        flops = max(matmul_flops(device, dtype, n) for _ in range(tries))
        if flops < 1e10:        # a dtype that the processor only emulates: the small one must do
            break
    return flops


def listed_peak(device, dtype):
    """-> FLOP/s by the data sheet, None where it is not listed"""
    if device.type == "cuda" and dtype == torch.bfloat16:
        name = torch.cuda.get_device_name(device)
        return next((flops for model, flops in PEAK_FLOPS.items() if model in name), None)


def matmul_flops(device, dtype, n):
    """-> FLOP/s of one product of two n x n matrices, on the clock"""
    a, b = torch.randn(2, n, n, device=device).to(dtype)
    a[0, 0].item()                      # .item() waits for the device
    start = time.perf_counter()
    (a @ b)[0, 0].item()
    return 2 * n ** 3 / (time.perf_counter() - start)


def worth_compiling(cfg, machine, flops):
    """compile=auto: on a GPU yes. On a CPU only with a C++ compiler at hand, and for runs of more
    than five minutes, which win back the half minute that compiling takes."""
    if cfg.compile not in ("auto", "yes", "no"):
        raise ValueError(f"compile={cfg.compile} is not one of auto, yes, no")
    if cfg.compile != "auto":
        return cfg.compile == "yes"
    return machine.device.type == "cuda" or (
        machine.device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is not None
        and flops / machine.peak > 300)


def find_device(name):
    """A device by its name, "auto" for the best there is; ValueError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else \
            "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError):
        raise ValueError(f"device={name}: there is no such device here: use auto or cpu") from None
