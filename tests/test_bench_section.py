from pathlib import Path

from bench.section import add_section


def test_a_section_is_added_to_a_file_whose_folder_need_not_be_there(tmp_path: Path) -> None:
    page = tmp_path / "new/page.md"
    add_section(page, "## One\n", title="Figures")
    add_section(page, "## Two\n", title="Figures")
    assert page.read_text() == "# Figures\n\n## One\n\n## Two\n"
