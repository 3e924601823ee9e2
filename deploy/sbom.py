"""The third-party packages of the image as CycloneDX 1.5: `python -m deploy.sbom FILE [EXTRA]`, or `make sbom`.

uv writes it, from a lock file in its own format, which is made of the versions in requirements.lock and thrown away.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from segserve.whole import write_whole

ROOT = Path(__file__).parents[1]
PLATFORM = "sys_platform == 'linux' and platform_machine == 'x86_64' and implementation_name == 'cpython'"
UV = Path(sys.executable).with_name("uv")


def sbom(extra: str | None = None) -> dict[str, Any]:
    """The document.

    Args:
        extra: the Dockerfile's EXTRA, whose packages are to be there, too.

    Raises:
        RuntimeError: uv fails; it asks the package index for what it has not kept.
    """
    with tempfile.TemporaryDirectory() as folder:
        settings = f"\n[tool.uv]\nconstraint-dependencies = {json.dumps(_pins())}\nenvironments = [{PLATFORM!r}]\n"
        (Path(folder) / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + settings)
        (Path(folder) / "README.md").touch()
        _uv(folder, "lock", "--python", sys.executable)
        extras = ["--extra", extra] if extra else []
        exported = _uv(folder, "export", "--frozen", "--no-dev", "--format", "cyclonedx1.5", *extras)
    document: dict[str, Any] = json.loads(exported)
    return document


def _pins() -> list[str]:
    return re.findall(r"^[\w.-]+==[^\s;]+", (ROOT / "requirements.lock").read_text(), re.MULTILINE)


def _uv(folder: str, *arguments: str) -> str:
    done = subprocess.run([UV, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"expected `uv {arguments[0]}` to work, but it says: {done.stderr.strip()}")
    return done.stdout


if __name__ == "__main__":
    write_whole(Path(sys.argv[1]), json.dumps(sbom(*sys.argv[2:3]), indent=1) + "\n")
