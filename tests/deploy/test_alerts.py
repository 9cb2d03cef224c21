"""Alerts and scaling ask for metrics that are exported, fire when they should, and have a page that helps."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from eorouter.jobs.meters import Meters
from eorouter.settings import Settings
from eorouter.storage.database import Database, database_url
from eorouter.surface.meters import ApiMeters

ROOT = Path(__file__).resolve().parents[2]
PARTS_OF = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
DISPATCHER = 'job="earth/eo-eorouter-dispatcher",namespace="earth"'
API = 'job="eo-eorouter-api",namespace="earth"'


@pytest.fixture(scope="session")
def alerts(least):
    (group,) = least.of("PrometheusRule")["alerts"]["spec"]["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


@pytest.fixture(scope="session")
def queries(least, alerts):
    triggers = least.of("ScaledObject")["worker"]["spec"]["triggers"]
    return [rule["expr"] for rule in alerts.values()] + [each["metadata"]["query"] for each in triggers]


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """Names of series, with those of the dispatcher's that carry `job` of its PodMonitor."""
    db = Database(database_url("", tmp_path_factory.mktemp("db")))
    registries = (ApiMeters().registry, Meters(Settings(), db).registry)
    return {
        family.name + ending
        for registry in registries
        for family in registry.collect()
        for ending in PARTS_OF.get(family.type, ())
    }


def test_every_metric_asked_for_is_exported(queries, exported):
    asked = {name for query in queries for name in re.findall(r"\beorouter_\w+", query)}
    assert len(asked) > 8
    assert asked <= exported


def test_every_label_asked_for_is_one_the_metric_has(queries):
    page = (ROOT / "docs/watching.md").read_text()
    rows = re.findall(r"^\| (`eorouter_.*?) \| (.*?) \|", page, re.MULTILINE)
    labels = {name: set(re.findall(r"\w+", cell)) for names, cell in rows for name in re.findall(r"`(\w+)`", names)}
    for query in queries:
        for name, matchers in re.findall(r"\b(eorouter_\w+)\{(.*?)\}", query):
            asked = set(re.findall(r"(\w+)(?:=~|!~|=|!=)", matchers)) - {"job", "namespace"}
            assert asked <= labels[name.removesuffix("_bucket")], name


def test_every_query_is_about_this_release_only(queries):
    for query in queries:
        for name, matchers in re.findall(r"\b(eorouter_\w+|up)\{(.*?)\}", query):
            assert "eo-eorouter-" in matchers, name
        assert not re.findall(r"\beorouter_\w+(?![\w{])", query), query


def test_every_alert_says_what_to_do(alerts, everything):
    page = (ROOT / "docs/runbook.md").read_text()
    heads = re.findall(r"^#+ (.*)$", page, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
    assert len(alerts) > 8
    for name, rule in alerts.items():
        path, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert (ROOT / path) == ROOT / "docs/runbook.md"
        assert anchor == name.lower()
        assert anchor in anchors
        assert rule["annotations"]["summary"].endswith(".")
        assert rule["labels"]["severity"] in {"warning", "critical"}
    assert {head for head in heads if head.startswith("Eorouter")} == alerts.keys()
    (group,) = everything.of("PrometheusRule")["alerts"]["spec"]["groups"]
    assert all(rule["annotations"]["runbook_url"].startswith("https://wiki.example/eo#") for rule in group["rules"])


def test_no_alerts_about_metrics_that_nobody_may_read(render, least_values):
    values = least_values | {"monitoring": {}}
    closed = render(values)
    (group,) = closed.of("PrometheusRule")["alerts"]["spec"]["groups"]
    assert not [rule for rule in group["rules"] if "eorouter_http" in rule["expr"] or "NoApi" in rule["alert"]]
    assert not closed.of("ServiceMonitor")
    nothing = render(least_values | {"monitoring": {"enabled": False}})
    assert not nothing.of("PrometheusRule")


# ---------------------------------------------------------------------------------------------------------------------
# Carried out by Prometheus's own tool

WELL = {
    f"up{{{DISPATCHER}}}": "1+0x120",
    f"up{{{API}}}": "1+0x120",
    f"eorouter_dispatcher_workers{{{DISPATCHER}}}": "4+0x120",
    f'eorouter_queue_shards{{{DISPATCHER},class="batch"}}': "100+0x120",
    f'eorouter_queue_age_seconds{{{DISPATCHER},class="interactive"}}': "2+0x120",
    f'eorouter_queue_age_seconds{{{DISPATCHER},class="batch"}}': "200+0x120",
    f"eorouter_dispatcher_completions_total{{{DISPATCHER}}}": "0+600x120",
    f'eorouter_dispatcher_failures_total{{{DISPATCHER},kind="machine",code="worker_lost"}}': "0+1x120",
    f'eorouter_dispatcher_failures_total{{{DISPATCHER},kind="request",code="invalid"}}': "0+300x120",
    f'eorouter_dispatcher_failures_total{{{DISPATCHER},kind="memory",code="shard_out_of_memory"}}': "0+0x120",
    f"eorouter_dispatcher_lease_expiries_total{{{DISPATCHER}}}": "0+0x120",
    f"eorouter_db_seconds_total{{{DISPATCHER}}}": "0+6x120",
    f"eorouter_db_statements_total{{{DISPATCHER}}}": "0+6000x120",
    f'eorouter_http_requests_total{{{API},operation="items.search",status="200"}}': "0+6000x120",
    f'eorouter_http_requests_total{{{API},operation="items.search",status="503"}}': "0+1x120",
    f'eorouter_http_request_seconds_bucket{{{API},operation="items.search",le="0.1"}}': "0+5990x120",
    f'eorouter_http_request_seconds_bucket{{{API},operation="items.search",le="5"}}': "0+6000x120",
    f'eorouter_http_request_seconds_bucket{{{API},operation="items.search",le="+Inf"}}': "0+6000x120",
    f'eorouter_http_request_seconds_bucket{{{API},operation="uploads.put",le="0.1"}}': "0+0x120",
    f'eorouter_http_request_seconds_bucket{{{API},operation="uploads.put",le="+Inf"}}': "0+9000x120",
}
"""A healthy installation, a sample a minute for two hours."""

ILL = {
    "EorouterNoDispatcher": {f"up{{{DISPATCHER}}}": "1+0x30 0+0x90"},
    "EorouterNoApi": {f"up{{{API}}}": "1+0x30 _x90"},
    "EorouterNoWorkers": {f"eorouter_dispatcher_workers{{{DISPATCHER}}}": "4+0x30 0+0x90"},
    "EorouterInteractiveWaits": {f'eorouter_queue_age_seconds{{{DISPATCHER},class="interactive"}}': "0+0x30 60+60x90"},
    "EorouterBatchWaits": {f'eorouter_queue_age_seconds{{{DISPATCHER},class="batch"}}': "0+60x120"},
    "EorouterShardsFail": {
        f'eorouter_dispatcher_failures_total{{{DISPATCHER},kind="machine",code="worker_lost"}}': "0+60x120"
    },
    "EorouterOutOfMemory": {
        f'eorouter_dispatcher_failures_total{{{DISPATCHER},kind="memory",code="shard_out_of_memory"}}': "0+1x120"
    },
    "EorouterLeasesExpire": {f"eorouter_dispatcher_lease_expiries_total{{{DISPATCHER}}}": "0+2x120"},
    "EorouterDatabaseSlow": {f"eorouter_db_seconds_total{{{DISPATCHER}}}": "0+1200x120"},
    "EorouterApiErrors": {f'eorouter_http_requests_total{{{API},operation="items.search",status="503"}}': "0+300x120"},
    "EorouterApiSlow": {
        f'eorouter_http_request_seconds_bucket{{{API},operation="items.search",le="0.1"}}': "0+5000x120"
    },
}
"""What makes each alert fire, in the place of the healthy series of the same name."""


def promtool(*arguments, folder):
    tool = shutil.which("promtool")
    if tool is None:
        assert not os.environ.get("CI"), "promtool is missing; .ci/run installs it"
        pytest.skip("promtool is not installed (Debian: prometheus)")
    return subprocess.run([tool, *arguments], cwd=folder, capture_output=True, text=True, check=False)


def test_alerts_fire_when_something_is_wrong_and_only_then(alerts, tmp_path):
    assert ILL.keys() == alerts.keys()
    rules = {"groups": [{"name": "eorouter", "rules": list(alerts.values())}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    checked = promtool("check", "rules", "rules.yaml", folder=tmp_path)
    assert checked.returncode == 0, checked.stdout + checked.stderr

    def case(series, firing):
        asked = [{"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}}) or vector(0)', "eval_time": "115m",
                  "exp_samples": [{"labels": "{}", "value": int(name == firing)}]} for name in alerts]  # fmt: skip
        given = [{"series": name, "values": values} for name, values in series.items()]
        return {"interval": "1m", "name": firing or "well", "input_series": given, "promql_expr_test": asked}

    cases = [case(WELL, None), *(case(WELL | series, name) for name, series in ILL.items())]
    assert all(series.keys() <= WELL.keys() for series in ILL.values())
    tests = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": cases}
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    ran = promtool("test", "rules", "tests.yaml", folder=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_workers_are_held_while_they_have_work_and_grow_with_the_age_of_the_queue(least, tmp_path):
    triggers = {each["name"]: each for each in least.of("ScaledObject")["worker"]["spec"]["triggers"]}
    assert triggers.keys() == {"interactive", "batch", "busy"}
    threads = least.values_in_use["worker"]["threads"]

    def asked(name, minute, value):
        query = f"({triggers[name]['metadata']['query']}) / {float(triggers[name]['metadata']['threshold'])}"
        return {"expr": query, "eval_time": f"{minute}m", "exp_samples": [{"labels": "{}", "value": value}]}

    two = [DISPATCHER + ',pod="a"', DISPATCHER + ',pod="b"']
    series = {f"eorouter_dispatcher_workers{{{labels}}}": "6+0x9" for labels in two}
    series |= {
        f"eorouter_dispatcher_in_flight{{{two[0]}}}": f"{9 * threads} {threads} 0",
        f"eorouter_dispatcher_in_flight{{{two[1]}}}": f"{9 * threads} {threads} 0",
    }
    series |= {f'eorouter_queue_age_seconds{{{each},class="interactive"}}': "30 0 0" for each in two}
    case = {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [
            asked("interactive", 0, 2),  # twice too old: twice the workers
            asked("interactive", 1, 0),
            asked("busy", 0, 6),  # a full window holds all there are, and asks for no more
            asked("busy", 1, 2),
            asked("busy", 2, 0),
        ],
    }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump({"rule_files": [], "tests": [case]}))
    ran = promtool("test", "rules", "tests.yaml", folder=tmp_path)
    assert ran.returncode == 0, ran.stdout + ran.stderr
