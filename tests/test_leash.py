import signal
import subprocess
import sys

import psutil
import pytest

from handlers.leash import leashed


@pytest.mark.skipif(sys.platform != "linux", reason="prctl(2) is Linux's")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_what_is_on_a_leash_ends_with_who_started_it(how: signal.Signals) -> None:
    program = (
        "import subprocess, sys; from handlers.leash import leashed; "
        "child = subprocess.Popen(leashed(['sleep', '60'])); print(child.pid, flush=True); child.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        while child.name() != "sleep":  # until then it is on its way there
            pass
        parent.send_signal(how)
        child.wait(timeout=10)


def test_a_command_runs_as_it_is() -> None:
    done = subprocess.run(leashed(["echo", "a b"]), capture_output=True, text=True, check=True)
    assert done.stdout == "a b\n"
