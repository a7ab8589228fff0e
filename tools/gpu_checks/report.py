"""Findings as they come: to the screen, and to a file that survives whatever ends the process."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

VERDICTS = {True: "ok", False: "FAILED", None: ""}


@dataclass(frozen=True)
class Finding:
    """One line: a check that held or not (`ok`), or a measurement (None)."""

    section: str
    name: str
    value: Any
    unit: str = ""
    ok: bool | None = None
    note: str = ""


class Reporter:
    """Writes the findings of one section."""

    def __init__(self, section: str, path: Path) -> None:
        self._section = section
        self._path = path
        self.findings: list[Finding] = []

    def __call__(self, name: str, value: Any, unit: str = "", ok: bool | None = None, note: str = "") -> None:
        finding = Finding(self._section, name, value, unit, ok, note)
        self.findings.append(finding)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(finding)) + "\n")
        print(line(finding), flush=True)


def read(path: Path) -> list[Finding]:
    """What a section has written so far."""
    if not path.exists():
        return []
    return [Finding(**json.loads(text)) for text in path.read_text(encoding="utf-8").splitlines()]


def line(finding: Finding) -> str:
    value = f"{finding.value:.4g}" if isinstance(finding.value, float) else str(finding.value)
    text = f"{finding.section:<12} {finding.name:<58} {value:>12} {finding.unit:<9} {VERDICTS[finding.ok]:<6}"
    return f"{text} {finding.note}".rstrip()


def table(findings: Iterable[Finding]) -> str:
    return "\n".join(line(finding) for finding in findings)


def write_json(path: Path, facts: dict[str, Any], findings: Sequence[Finding]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {**facts, "findings": [asdict(finding) for finding in findings]}
    path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
