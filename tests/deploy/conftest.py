"""The chart, rendered by Helm itself; in a process of its own, since its library brings Go's signal handlers."""

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/eorouter"

_PROGRAM = """
import json, sys
import helm_python as helm

with helm.Chart.load(sys.argv[1]) as chart:
    for line in sys.stdin:
        order = json.loads(line)
        try:
            chart.validate_schema(order["values"])
            said = {
                "files": chart.render(order["values"], name="eo", namespace="earth", is_upgrade=order["is_upgrade"]),
                "lint": helm.lint(sys.argv[1], order["values"], strict=True),
                "values": chart.merge_values(order["values"]),
            }
        except helm.HelmError as error:
            said = {"refused": str(error)}
        print(json.dumps(said), flush=True)
"""


class Refused(Exception):
    """Helm does not take the values; the message is its own."""


class Rendered:
    """What Helm makes of the chart with some values."""

    def __init__(self, values: dict[str, Any], said: dict[str, Any]) -> None:
        self.values = values
        self.files: dict[str, str] = said["files"]
        self.lint: dict[str, Any] = said["lint"]
        self.values_in_use: dict[str, Any] = said["values"]
        self.objects: list[dict[str, Any]] = [
            found
            for name, text in sorted(self.files.items())
            if name.endswith(".yaml")
            for found in yaml.safe_load_all(text)
            if found is not None
        ]

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Objects of a kind by name, without the name of the release."""
        return {
            found["metadata"]["name"].removeprefix("eo-eorouter-"): found
            for found in self.objects
            if found["kind"] == kind
        }

    @property
    def pods(self) -> dict[str, dict[str, Any]]:
        """Pod templates by part."""
        lasting = {name: found["spec"] for name, found in self.of("Deployment").items()}
        ending = {name: found["spec"] for name, found in self.of("Job").items()}
        ending |= {name: found["spec"]["jobTemplate"]["spec"] for name, found in self.of("CronJob").items()}
        return {name: spec["template"] for name, spec in (lasting | ending).items()}


@pytest.fixture(scope="session")
def render() -> Iterator[Callable[..., Rendered]]:
    """Renders the chart; `Refused` where Helm does not take the values."""
    if importlib.util.find_spec("helm_python") is None:
        assert not os.environ.get("CI"), "helm-python-sdk is missing; the test extra has it"
        pytest.skip("helm-python-sdk is not installed; there is no wheel of it for this machine")
    with subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(CHART)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as helm:
        assert helm.stdin is not None
        assert helm.stdout is not None
        orders, answers = helm.stdin, helm.stdout

        def rendered(values: dict[str, Any], *, is_upgrade: bool = False) -> Rendered:
            print(json.dumps({"values": values, "is_upgrade": is_upgrade}), file=orders, flush=True)
            said = json.loads(answers.readline())
            if "refused" in said:
                raise Refused(said["refused"])
            return Rendered(values, said)

        yield rendered


@pytest.fixture(scope="session")
def least_values() -> dict[str, Any]:
    """The values that the runbook shows as the least that install."""
    page = (ROOT / "docs/runbook.md").read_text()
    return yaml.safe_load(textwrap.dedent(page.partition("```yaml\n")[2].partition("   ```\n")[0]))


@pytest.fixture(scope="session")
def least(render, least_values) -> Rendered:
    return render(least_values)


@pytest.fixture(scope="session")
def everything(render, least_values) -> Rendered:
    """The chart with all its options."""
    return render(_with_all_options(least_values))


def _with_all_options(least: dict[str, Any]) -> dict[str, Any]:
    digest = "sha256:" + "0123456789abcdef" * 4
    return least | {
        "image": {
            "pullSecrets": ["registry"],
            "api": {"repository": "registry.example/eo/api", "digest": digest},
            "worker": {"repository": "registry.example/eo/worker", "tag": "0.1.0-7"},
        },
        "settings": {
            "quota_bytes": 107374182400, "ingest_wait_s": 2.5, "remote_hosts": "minio.lan:9000", "log_level": "debug",
        },
        "otlpEndpoint": "http://collector.observability:4318",
        "worker": {
            "nodeSelector": {"pool": "compute"},
            "tolerations": [{"key": "compute", "operator": "Exists", "effect": "NoSchedule"}],
            "serviceAccount": {"annotations": {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/eo"}},
            "podAnnotations": {"a": "b"},
            "autoscaling": {"kind": "hpa"},
        },
        "networkPolicy": least["networkPolicy"] | {
            "collector": {"to": [{"podSelector": {"matchLabels": {"app": "collector"}}}]}
        },
        "monitoring": least["monitoring"] | {"labels": {"release": "prometheus"}, "runbook": "https://wiki.example/eo"},
    }  # fmt: skip
