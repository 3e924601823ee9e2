from pathlib import Path

import pytest
from pydantic import ValidationError

from training.lint.findings import ClassCount, ClassSummary, Finding, Kind, Report, Severity, SplitSummary


def _finding(
    *files: str,
    kind: Kind = "void",
    severity: Severity = "warning",
    split: str | None = None,
    command: str | None = None,
) -> Finding:
    return Finding(kind=kind, severity=severity, split=split, files=files, sentence="is so.", command=command)


def _report(*findings: Finding) -> Report:
    count = ClassCount(images=2, pixels=30, share=0.25)
    return Report(
        dataset="data/set",
        task="segmentation",
        ignore_index=None,
        splits=(SplitSummary(name="train", images=3, scenes=2, void=0.125),),
        classes=(
            ClassSummary(id=0, name="a", color=(0, 0, 0), splits={"train": count}, weight=1.5),
            ClassSummary(id=1, name="longer", color=(0, 0, 0), splits={"train": count}, weight=None),
        ),
        findings=findings,
        pairs=(),
    )


@pytest.mark.parametrize(
    ("finding", "lines"),
    [
        (_finding(), ["is so."]),
        (_finding(split="val"), ["split val: is so."]),
        (_finding("a", "b"), ["a, b: is so."]),
        (_finding("a", "b", "c", "d", "e"), ["a and 4 more: is so."]),
        (_finding("a", kind="scenes", split="val"), ["split val: is so."]),
        (_finding("a", command="mend it"), ["a: is so.", "    mend it"]),
    ],
)
def test_a_finding_names_its_files_or_its_split(finding: Finding, lines: list[str]) -> None:
    assert list(finding.lines()) == lines


def test_the_text_has_splits_classes_errors_and_warnings() -> None:
    text = _report(_finding("w"), _finding("e", kind="size", severity="error")).text()
    assert text.splitlines() == [
        "train      3 images, about 2 independent scene(s), void 12.5%",
        "",
        "class      train    weight (median frequency)",
        "a         25.00%     1.500",
        "longer    25.00%         -",
        "",
        "1 error(s)",
        "  e: is so.",
        "",
        "1 warning(s)",
        "  w: is so.",
    ]


def test_the_text_does_not_repeat_itself_without_end() -> None:
    lines = _report(*(_finding(f"f{index}") for index in range(23)), _finding("e", kind="scenes")).text().splitlines()
    assert lines[-1] == "  and 3 more of kind void: see --json or --html"
    assert sum(": is so." in line for line in lines) == 20
    assert "24 warning(s)" in lines


def test_kinds_are_closed_and_findings_frozen() -> None:
    with pytest.raises(ValidationError, match="kind"):
        Finding.model_validate({"kind": "odd", "severity": "error", "sentence": ""})
    with pytest.raises(ValidationError, match="frozen"):
        _finding().sentence = "other"  # type: ignore[misc]


def test_it_comes_back_from_json(tmp_path: Path) -> None:
    report = _report(_finding("a", command="mend it"))
    report.write(tmp_path / "lint.json")
    assert Report.model_validate_json((tmp_path / "lint.json").read_text()) == report
    assert [path.name for path in tmp_path.iterdir()] == ["lint.json"]
