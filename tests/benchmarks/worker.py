"""One case in a process of its own: time and memory of its steps."""

import ctypes
import gc
import re
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Literal

import torch
from cases import CASES, Case
from sizes import Size
from torch import Tensor
from torch.optim import AdamW

MIB = 2**20


@dataclass
class Measurement:
    """What one process saw.

    Attributes:
        seconds: of each step.
        peak_mib: greatest memory of a step, less what weights and optimizer take.
        loss, gradient_norm: of the first step.
    """

    seconds: list[float]
    peak_mib: float
    loss: float
    gradient_norm: float
    store_seconds: float | None
    store_mib: float | None


class Training:
    """Policy, optimizer, reference: all that a step needs, and the bytes that the first two take."""

    def __init__(self, case: Case, size: Size) -> None:
        self.memory = AllocatorMemory() if size.device == "cuda" else ResidentMemory()
        policy = case.policy(size)
        self.parameters = [each for each in policy.parameters() if each.requires_grad]
        self.optimizer = AdamW(self.parameters, lr=1e-5)
        self._make_moments()
        self.weights_and_optimizer = self.memory.now()
        self.prepared = case.prepare(policy, size)
        self._move_policy()

    def _make_moments(self) -> None:
        rate = self.optimizer.param_groups[0]["lr"]
        self.optimizer.param_groups[0]["lr"] = 0.0
        for each in self.parameters:
            each.grad = torch.zeros_like(each)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.optimizer.param_groups[0]["lr"] = rate

    @torch.no_grad()
    def _move_policy(self) -> None:
        """Away from the reference: where the two agree, losses do not show what they are made of."""
        torch.manual_seed(1)
        for each in self.parameters:
            each.add_(torch.randn_like(each), alpha=0.01)

    def gradients(self) -> Tensor:
        """The loss; leaves its gradients on the parameters."""
        loss = self.prepared.loss()
        loss.backward()
        return loss.detach()

    def step(self) -> None:
        self.gradients()
        self.optimizer.step()
        self.optimizer.zero_grad()


def measure(
    key: str, size: Size, warmup: int, steps: int, threads: int, clock: Literal["wall", "processor"]
) -> Measurement:
    """Runs in a fresh process."""
    torch.set_num_threads(threads)
    now = {"wall": perf_counter, "processor": process_time}[clock]
    case = CASES[key]
    # Kernels are loaded and threads started before memory is looked at.
    Training(case, size.tiny()).step()
    training = Training(case, size)
    memory = training.memory
    loss = training.gradients().item()
    gradients = [each.grad for each in training.parameters if each.grad is not None]
    norm = torch.nn.utils.get_total_norm(gradients).item()
    del gradients
    training.optimizer.zero_grad()
    for _ in range(warmup):
        training.step()
    seconds = []
    for _ in range(steps):
        memory.wait()
        start = now()
        training.step()
        memory.wait()
        seconds.append(now() - start)
    memory.reset_peak()
    training.step()
    peak = memory.peak() - training.weights_and_optimizer
    prepared = training.prepared
    return Measurement(seconds, peak / MIB, loss, norm, prepared.store_seconds, prepared.store_mib)


def profile(key: str, size: Size, threads: int) -> str:
    """The operators of a step that take most time, as a table."""
    torch.set_num_threads(threads)
    training = Training(CASES[key], size)
    training.step()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        training.step()
    return recorded.key_averages().table(sort_by="self_cpu_time_total", row_limit=15)


class ResidentMemory:
    """Resident set of this process, in bytes, as Linux counts it, without what malloc keeps of freed memory."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None)

    def now(self) -> int:
        gc.collect()
        self._libc.malloc_trim(0)
        return self._status("VmRSS")

    def reset_peak(self) -> None:
        # M_MMAP_THRESHOLD: from here on whatever is larger than 64 KiB goes back when it is freed. It takes
        # time, so that no step is timed after this.
        self._libc.mallopt(-3, 2**16)
        self.now()
        # proc_pid_clear_refs(5): the peak becomes the present size.
        Path("/proc/self/clear_refs").write_text("5")

    def peak(self) -> int:
        return self._status("VmHWM")

    def wait(self) -> None:
        """Steps end when they return."""

    def _status(self, field: str) -> int:
        match = re.search(rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
        assert match
        return 1024 * int(match[1])


class AllocatorMemory:
    """What PyTorch has allocated on the GPU, in bytes."""

    def now(self) -> int:
        gc.collect()
        return torch.cuda.memory_allocated()

    def reset_peak(self) -> None:
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    def wait(self) -> None:
        torch.cuda.synchronize()
