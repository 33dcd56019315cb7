"""Every document that code or Markdown cites is there, with the section that is cited."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.house import ROOT, files, relative

CITED = re.compile(r"[\w./-]*\w\.md\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")
SECTION = re.compile(r"PIGEON\.md sections? ([0-9]+)")
DECISION = re.compile(r"\bdecisions? (\d+)(?:(?:, | and |, and )(\d+))*")
DOCUMENTS = files(".md")
SOURCES = [*files(".py", ".md", ".toml", ".j2"), ROOT / "Makefile"]


def _resolves(name: str, citing: Path) -> bool:
    places = (citing.parent / name, ROOT / name)
    return any(place.is_file() for place in places) or any(path.name == name for path in DOCUMENTS)


@pytest.mark.parametrize("source", SOURCES, ids=relative)
def test_a_cited_document_exists(source: Path) -> None:
    text = source.read_text(encoding="utf-8")
    written = {
        "evaluation.md",
        "card.md",
        "shop/card.md",
        "set/card.md",
        "shop-evaluation/evaluation.md",
        "table.md",
    }  # by `pigeon evaluate`, `pigeon dataset build` and `pigeon simulate`
    gone = sorted({name for name in CITED.findall(text) if name not in written and not _resolves(name, source)})
    assert not gone or source == Path(__file__), f"{relative(source)} cites {gone}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_a_link_leads_somewhere(document: Path) -> None:
    links = [link for link in LINK.findall(document.read_text(encoding="utf-8")) if "://" not in link]
    broken = [link for link in links if not _target(document, link)]
    assert not broken, f"{relative(document)} links to {broken}"


def _target(document: Path, link: str) -> bool:
    path, _, heading = link.partition("#")
    target = document.parent / path if path else document
    if not target.exists() or not heading:
        return target.exists()
    headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.MULTILINE)
    return heading in {re.sub(r"[^\w -]", "", one.lower()).replace(" ", "-") for one in headings}


def test_cited_sections_of_the_model_exist() -> None:
    model = (ROOT / "generator" / "pigeon" / "PIGEON.md").read_text(encoding="utf-8")
    there = set(re.findall(r"^## ([0-9]+)\.", model, re.MULTILINE))
    cited = {number for path in files(".py") for number in SECTION.findall(path.read_text(encoding="utf-8"))}
    assert cited
    assert cited <= there


def test_decisions_say_what_they_are_and_cited_ones_exist() -> None:
    folder = ROOT / "deploy" / "decisions"
    records = {int(path.name[:4]): path.read_text(encoding="utf-8") for path in sorted(folder.glob("[0-9]*.md"))}
    assert sorted(records) == list(range(1, len(records) + 1))
    for number, text in records.items():
        lines = text.splitlines()
        assert lines[0].startswith(f"# {number}. ")
        assert re.search(r"^\*\*Status:\*\* (Accepted|Superseded by \[decision \d+\]|Proposed)", text, re.MULTILINE), (
            number
        )
        assert re.search(r"^\*\*Date:\*\* \d{4}-\d{2}-\d{2}", text, re.MULTILINE), number
        assert [name for name in ("Context", "Decision", "Consequences") if f"\n## {name}\n" not in text] == [], number
    cited = {
        int(number)
        for path in (*files(".py"), *DOCUMENTS)
        for match in DECISION.finditer(path.read_text(encoding="utf-8"))
        for number in re.findall(r"\d+", match.group())
    }
    assert cited <= set(records)
