"""What a benchmark ran on."""

import os
import platform
import time
from pathlib import Path

import torch


def conditions() -> str:
    """Date, processor, cores, torch, and the GPU if there is one."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{time.strftime('%Y-%m-%d')}, {processor()}, {os.cpu_count()} cores, torch {torch.__version__}{gpu}"


def processor() -> str:
    """What the machine computes with."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
