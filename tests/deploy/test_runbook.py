"""What the runbook names is there: objects, values, commands, events, pages."""

import re
from pathlib import Path

from eorouter.__main__ import COMMANDS

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/runbook.md").read_text()
CODE = [*re.findall(r"`([^`\n]+)`", PAGE), *(block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL))]


def test_objects_it_names_are_in_the_chart(least):
    there = {found["metadata"]["name"] for found in least.objects}
    named = set(re.findall(r"\beo-eorouter-\w+", PAGE))
    assert len(named) >= 5
    assert named <= there
    for kind, name in re.findall(r"\b(deploy|cronjob|job)/(eo-eorouter-\w+)", PAGE):
        kinds = {"deploy": "Deployment", "cronjob": "CronJob", "job": "Job"}
        assert name in {found["metadata"]["name"] for found in least.of(kinds[kind]).values()}


def test_values_it_names_are_in_the_chart(least):
    sections = "|".join(least.values_in_use)
    named = {text for text in CODE if re.fullmatch(rf"({sections})(\.[A-Za-z]+)+", text)} - {"tls.key"}
    assert len(named) > 12
    for path in named:
        place = least.values_in_use
        for word in path.split("."):
            assert word in place, path
            place = place[word]


def test_commands_it_names_exist():
    known = {name for _, name in COMMANDS}
    named = {
        word
        for text in CODE
        for word in re.findall(r"(?:^|\beorouter-api:\S+ \\\n\s+|`)(?:eorouter|ctl) (ledger \w+|[\w-]+)", text)
    }
    assert {"ledger verify", "migrate", "certificates", "allot"} <= named
    assert named <= known


def test_events_it_names_are_logged():
    sources = "\n".join(path.read_text() for package in ("src", "compute") for path in (ROOT / package).rglob("*.py"))
    events = {text for text in CODE if re.fullmatch(r"(worker|cluster|dispatcher)(\.[a-z_]+)+", text)}
    logged = {event for event in events if f'"{event}"' in sources}
    assert {"worker.not_connected", "cluster.workers.of_another_build"} <= logged


def test_pages_and_sections_it_points_to_exist():
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        path, _, anchor = target.partition("#")
        page = (ROOT / "docs" / path) if path else ROOT / "docs/runbook.md"
        heads = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
        assert not anchor or anchor in {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}, (
            target
        )
