"""What a computation runs on: said in words, and given back the memory that was freed."""

import ctypes
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def machine(device: str = "cpu") -> dict[str, str]:
    """Return processor, cores, threads, device, memory and system.

    Args:
        device: that the model is on.
    """
    import torch

    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count() or 1),
        "threads": str(torch.get_num_threads()),
        "device": device,
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
    if device.startswith("cuda"):
        found["device"] = torch.cuda.get_device_name(device)
    return found


def versions(packages: list[str]) -> dict[str, str]:
    """Return the versions of distributions, of those that are installed."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def give_back_memory() -> None:
    """Give memory that was freed back to the system, where the C library does so when asked (glibc).

    Forwards of many lengths leave its heap full of holes, tens of MiB for small models. It takes some
    milliseconds.
    """
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
        if trim is not None:
            trim(0)


def _processor() -> str:
    """Return the processor's name; Linux alone tells it in a file."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()
