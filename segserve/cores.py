"""How many cores this process may use."""

import math
import os
from pathlib import Path

QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Of a control group of version 2: quota and period, https://docs.kernel.org/admin-guide/cgroup-v2.html."""


def available_cores(quota: Path = QUOTA) -> int:
    """Those it may run on; fewer where its container has a share of their time only, of which PyTorch does not know."""
    cores = len(os.sched_getaffinity(0))
    try:
        most, period = quota.read_text().split()
    except FileNotFoundError:
        return cores
    return cores if most == "max" else min(cores, math.ceil(int(most) / int(period)))
