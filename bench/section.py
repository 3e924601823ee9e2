"""The Markdown file that a benchmark adds its figures to, a section a call."""

from pathlib import Path


def add_section(path: Path, section: str, *, title: str) -> None:
    """Print a section and append it to the file, which begins with the title where it is new; its folder is made."""
    print(section)
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        path.write_text(f"# {title}\n")
    with path.open("a") as file:
        file.write(f"\n{section}")
