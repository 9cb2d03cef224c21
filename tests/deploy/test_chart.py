"""What Helm makes of the chart, held against Kubernetes' own schemas and against what we promise of every pod."""

import copy
import ipaddress
import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import jsonschema
import kubernetes_validate
import msgspec
import pytest

from eorouter import app
from eorouter.__main__ import COMMANDS
from eorouter.settings import PREFIX, WITHHELD, Settings, load
from eorouter.surface import readiness

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy/helm/eorouter"
FIELDS = {field.name: field for field in msgspec.structs.fields(Settings)}
KUBERNETES = ("1.27", "1.37")
CUSTOM = {"ScaledObject", "ServiceMonitor", "PodMonitor", "PrometheusRule"}
OWN_PARTS = ("api", "dispatcher", "scheduler", "worker")
ONCE = {"migrate": "migrate", "verify": "ledger verify"}


@pytest.fixture(params=["least", "everything"])
def rendered(request):
    return request.getfixturevalue(request.param)


def containers(template, *, with_first=False):
    spec = template["spec"]
    return [*(spec.get("initContainers", []) if with_first else []), *spec["containers"]]


def variables(template):
    return {each["name"]: each for container in containers(template) for each in container.get("env", [])}


# ---------------------------------------------------------------------------------------------------------------------
# Values and objects


def test_lint_has_nothing_to_say_but_for_the_icon(rendered):
    assert rendered.lint["errors"] == []
    assert [each["error"] for each in rendered.lint["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", KUBERNETES)
def test_objects_are_what_kubernetes_knows(rendered, version):
    for found in rendered.objects:
        if found["kind"] not in CUSTOM:
            kubernetes_validate.validate(found, version, strict=True)
    assert {found["metadata"]["namespace"] for found in rendered.objects} == {"earth"}


def test_chart_is_of_this_release():
    project = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    chart = (CHART / "Chart.yaml").read_text()
    assert project is not None
    assert f'appVersion: "{project[1]}"' in chart
    assert f"\nversion: {project[1]}\n" in chart


def test_defaults_alone_are_refused_with_all_that_is_missing(render):
    with pytest.raises(Exception, match="publicUrl") as caught:
        render({})
    for missing in ("/publicUrl", "/secret/existingSecret", "/database/existingSecret", "/tls/existingSecret",
                    "/objects/url", "/networkPolicy/objects/to", "/networkPolicy/database/to"):  # fmt: skip
        assert missing in str(caught.value)


def changed(values, path, value):
    values = copy.deepcopy(values)
    *folders, last = path.split(".")
    place = values
    for folder in folders:
        place = place.setdefault(folder, {})
    place[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("publicUrl", "eo.example", "publicUrl"),
        ("publicURL", "https://eo.example", "publicURL"),
        ("image.api.tag", "latest", "/image/api/tag"),
        ("image.worker.digest", "sha256:12", "/image/worker/digest"),
        ("database.url", "postgresql://u:p@db/eo", "url"),
        ("secret.value", "0" * 40, "value"),
        ("settings.quota_byte", 1, "quota_byte"),
        ("settings.quota_bytes", "many", "/settings/quota_bytes"),
        ("settings.database_url", "postgresql://u:p@db/eo", "database_url"),
        ("objects.url", "file:///srv", "/objects/url"),
        ("objects.environment.AWS_SECRET_ACCESS_KEY", "x", "AWS_SECRET_ACCESS_KEY"),
        ("objects.environment.EOROUTER_DATABASE_URL", "x", "EOROUTER_DATABASE_URL"),
        ("objects.variables.EOROUTER_DATABASE_URL", "url", "EOROUTER_DATABASE_URL"),
        ("objects.existingSecret", "", "/objects/existingSecret"),
        ("api.replicas", 0, "/api/replicas"),
        ("api.ingress.host", "", "/api/ingress/host"),
        ("worker.autoscaling.kind", "magic", "/worker/autoscaling/kind"),
        ("worker.autoscaling.prometheus", "", "/worker/autoscaling"),
        ("worker.autoscaling", {"kind": "hpa", "minReplicas": 0}, "minReplicas"),
        ("worker.memoryMiB", 100, "/worker/memoryMiB"),
        ("worker.maxUnavailable", "0%", "/worker/maxUnavailable"),
        ("networkPolicy.objects.to", [], "/networkPolicy/objects/to"),
        ("networkPolicy.objects.ports", [443, 5432], "the database's port"),
        ("otlpEndpoint", "http://collector:4318", "/networkPolicy/collector/to"),
        ("monitoring.token.key", "a b", "/monitoring/token/key"),
    ],
)
def test_values_that_cannot_be_meant_are_refused_by_name(render, least_values, path, value, words):
    with pytest.raises(Exception, match=re.escape(words)):
        render(changed(least_values, path, value))


def test_settings_that_values_may_hold_are_those_the_chart_does_not_set_itself(least):
    schema = json.loads((CHART / "values.schema.json").read_text())
    offered = schema["properties"]["settings"]["properties"]
    of_the_chart = {
        name.removeprefix(PREFIX).lower() for template in least.pods.values() for name in variables(template)
    } - {"log_format", "log_level"}
    of_other_ways_to_run = {"worker_count", "dashboard_port"}  # a dispatcher's own workers
    assert set(offered) == FIELDS.keys() - of_the_chart - of_other_ways_to_run - {"otlp_endpoint"}
    for name, form in offered.items():
        jsonschema.validate(FIELDS[name].default, form)


def test_templates_read_values_that_exist(least):
    for path in CHART.glob("templates/*"):
        for found in re.findall(r"(?:\$|\s|\()\.?Values((?:\.\w+)+)", path.read_text()):
            place = least.values_in_use
            for name in found.strip(".").split("."):
                assert name in place, f"{path.name}: .Values{found}"
                place = place[name]


def test_notes_say_how_to_see_that_it_works(least, render, least_values):
    assert "/readyz" in least.files["eorouter/templates/NOTES.txt"]
    bare = changed(changed(least_values, "networkPolicy", {"enabled": False}), "monitoring.token.existingSecret", "")
    notes = render(bare, is_upgrade=True).files["eorouter/templates/NOTES.txt"]
    assert "upgraded" in notes
    assert "no network policies" in notes
    assert "metrics to nobody" in notes


# ---------------------------------------------------------------------------------------------------------------------
# Pods


def test_no_container_is_root_or_may_become_it(rendered):
    assert rendered.pods.keys() == {*OWN_PARTS, *ONCE}
    for name, template in rendered.pods.items():
        security = template["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, name
        assert security["runAsUser"] >= 1000, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not template["spec"]["automountServiceAccountToken"]
        for container in containers(template, with_first=True):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name


def test_the_user_of_the_pods_is_that_of_the_images(least):
    uid = re.search(r"^USER (\d+):(\d+)$", (ROOT / "deploy/Dockerfile").read_text(), re.MULTILINE)
    assert uid is not None
    for template in least.pods.values():
        security = template["spec"]["securityContext"]
        assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (
            int(uid[1]),
            int(uid[2]),
            int(uid[2]),
        )


def test_every_container_has_resources_and_every_lasting_one_probes(rendered):
    for name, template in rendered.pods.items():
        for container in containers(template, with_first=True):
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert "memory" in container["resources"]["limits"], name
        if name not in ONCE:
            (container,) = template["spec"]["containers"]
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), name


def test_probes_over_http_ask_pages_that_exist(least, tmp_path):
    served = {route.path for route in app.create(Settings(data_dir=tmp_path)).routes}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        asked = urlsplit(least.pods["api"]["spec"]["containers"][0][kind]["httpGet"]["path"])
        assert asked.path in served
        parts = readiness.wanted(parse_qs(asked.query).get("parts", [None])[0])
        assert asked.path != "/readyz" or "cluster" not in parts  # without workers the API still takes jobs in


def test_probes_by_command_run_what_the_image_has(least):
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    for template in least.pods.values():
        for container in containers(template):
            for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
                if command := container.get(kind, {}).get("exec", {}).get("command"):
                    assert command[:2] == ["python", "-I"]
                    assert f"COPY deploy/health.py {command[2]}\n" in dockerfile


def test_every_image_is_pinned(rendered):
    for template in rendered.pods.values():
        for container in containers(template, with_first=True):
            assert re.search(r"(:\d[\w.-]*|@sha256:[0-9a-f]{64})$", container["image"]), container["image"]


def test_scheduler_and_workers_run_the_image_without_server_and_database(everything):
    images = {name: template["spec"]["containers"][0]["image"] for name, template in everything.pods.items()}
    assert {name for name, image in images.items() if "/worker" in image} == {"scheduler", "worker"}
    assert len(set(images.values())) == 2


def test_parts_run_commands_that_exist(rendered):
    known = {name for _, name in COMMANDS}
    for name, template in rendered.pods.items():
        (container,) = template["spec"]["containers"]
        assert " ".join(container["args"]) == ONCE.get(name, name)
        assert ONCE.get(name, name) in known


def test_parts_are_given_settings_that_they_take(rendered):
    """As the part itself would load them, with something in the place of every secret."""
    for name, template in rendered.pods.items():
        given = {
            key: each.get("value", "x" * 40) for key, each in variables(template).items() if key.startswith(PREFIX)
        }
        settings = load(given)
        if name in {"dispatcher", "worker"}:
            assert settings.scheduler_address == "tls://eo-eorouter-scheduler.earth.svc:8786"
        assert settings.data_dir == Path("/var/lib/eorouter")


def test_numbers_of_the_values_arrive_whole(everything):
    given = {name: each.get("value") for name, each in variables(everything.pods["api"]).items()}
    assert given["EOROUTER_QUOTA_BYTES"] == "107374182400"
    assert given["EOROUTER_INGEST_WAIT_S"] == "2.5"
    assert given["EOROUTER_REMOTE_HOSTS"] == "minio.lan:9000"


def test_every_secret_is_a_reference(rendered):
    assert not rendered.of("Secret")
    assert not rendered.of("ConfigMap")
    secret = re.compile(r"SECRET|TOKEN|PASSWORD|DATABASE_URL|ACCESS_KEY")
    for name, template in rendered.pods.items():
        for variable, each in variables(template).items():
            if secret.search(variable):
                assert each["valueFrom"].keys() == {"secretKeyRef"}, f"{name} {variable}"
        assert all("envFrom" not in container for container in containers(template, with_first=True))


def test_workers_and_scheduler_know_neither_database_nor_secret_nor_token(rendered):
    withheld = {PREFIX + name.upper() for name in WITHHELD}
    references = {rendered.values["database"]["existingSecret"], rendered.values["secret"]["existingSecret"]}
    for name in ("scheduler", "worker"):
        template = rendered.pods[name]
        assert not withheld & variables(template).keys()
        assert not [name for name in references if name in json.dumps(template)]
    assert not [name for name in variables(rendered.pods["scheduler"]) if name.startswith("AWS_")]
    for name in ONCE:
        given = variables(rendered.pods[name]).keys() - {"EOROUTER_LOG_FORMAT", "EOROUTER_LOG_LEVEL"}
        assert given - {"EOROUTER_OTLP_ENDPOINT"} == {"EOROUTER_DATABASE_URL", "EOROUTER_DATA_DIR"}


def test_no_part_learns_of_services_by_variables_that_look_like_settings(rendered):
    assert all(template["spec"]["enableServiceLinks"] is False for template in rendered.pods.values())


def test_everything_that_is_written_to_is_a_volume(least):
    dockerfile = (ROOT / "deploy/Dockerfile").read_text()
    for template in least.pods.values():
        (container,) = template["spec"]["containers"]
        mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        kinds = {volume["name"]: volume for volume in template["spec"]["volumes"]}
        assert {"/tmp", "/var/lib/eorouter", "/var/cache/eorouter"} <= mounts.keys()
        assert all("emptyDir" in kinds[mounts[path]] for path in ("/tmp", "/var/lib/eorouter", "/var/cache/eorouter"))
        assert "sizeLimit" in kinds["data"]["emptyDir"]
    assert "NUMBA_CACHE_DIR=/var/cache/eorouter" in dockerfile
    for name in OWN_PARTS:
        (first,) = least.pods[name]["spec"]["initContainers"]
        assert first["command"] == ["cp", "-R", "/var/cache/eorouter/.", "/kernels/"]


def test_pods_have_time_to_end(least):
    worker = least.pods["worker"]["spec"]
    drain_s = float(variables(least.pods["worker"])["EOROUTER_WORKER_DRAIN_S"]["value"])
    assert worker["terminationGracePeriodSeconds"] >= drain_s + 30
    api = least.pods["api"]["spec"]
    pause_s = int(api["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][1])
    assert api["terminationGracePeriodSeconds"] > pause_s + app.GRACE_S


def test_a_worker_pod_has_the_memory_that_its_process_is_allowed(render, least_values):
    pods = render(changed(least_values, "worker", {"memoryMiB": 8192, "overheadMiB": 1024, "threads": 4})).pods
    resources = pods["worker"]["spec"]["containers"][0]["resources"]
    assert resources == {"requests": {"cpu": "4", "memory": "9216Mi"}, "limits": {"memory": "9216Mi"}}
    for name in ("worker", "dispatcher"):
        assert variables(pods[name])["EOROUTER_WORKER_MEMORY_MB"]["value"] == "8192"
        assert variables(pods[name])["EOROUTER_WORKER_THREADS"]["value"] == "4"


# ---------------------------------------------------------------------------------------------------------------------
# What points at pods


def matches(selector, labels):
    assert selector.keys() == {"matchLabels"}
    return selector["matchLabels"].items() <= labels.items()


def test_selectors_find_the_pods_of_their_part_and_no_others(rendered):
    labels = {name: template["metadata"]["labels"] for name, template in rendered.pods.items()}
    pointing = {
        (kind, name): found["spec"]["selector"]
        for kind in ("Deployment", "PodDisruptionBudget", "PodMonitor")
        for name, found in rendered.of(kind).items()
    }
    services = rendered.of("Service").items()
    pointing |= {("Service", name): {"matchLabels": found["spec"]["selector"]} for name, found in services}
    assert {name for kind, name in pointing if kind == "PodDisruptionBudget"} == {"api", "dispatcher", "worker"}
    for (kind, name), selector in pointing.items():
        assert "app.kubernetes.io/version" not in selector["matchLabels"]  # selectors cannot change
        assert [part for part, own in labels.items() if matches(selector, own)] == [name], kind
    for name, template in rendered.pods.items():
        for spread in template["spec"]["topologySpreadConstraints"]:
            assert matches(spread["labelSelector"], labels[name])
    for monitor in rendered.of("ServiceMonitor").values():
        found = [s for _, s in services if matches(monitor["spec"]["selector"], s["metadata"]["labels"])]
        assert [service["metadata"]["name"] for service in found] == ["eo-eorouter-api"]
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in found[0]["spec"]["ports"]}


def test_scalers_and_services_name_what_is_there(rendered):
    deployments = {found["metadata"]["name"] for found in rendered.of("Deployment").values()}
    scalers = [*rendered.of("HorizontalPodAutoscaler").values(), *rendered.of("ScaledObject").values()]
    assert {found["spec"]["scaleTargetRef"]["name"] for found in scalers} == {"eo-eorouter-api", "eo-eorouter-worker"}
    for found in scalers:
        name = found["spec"]["scaleTargetRef"]["name"]
        assert name in deployments
        assert "replicas" not in rendered.of("Deployment")[name.removeprefix("eo-eorouter-")]["spec"]
    accounts = {found["metadata"]["name"] for found in rendered.of("ServiceAccount").values()}
    assert {template["spec"]["serviceAccountName"] for template in rendered.pods.values()} == accounts


def test_workers_are_scaled_as_the_values_say(render, least_values):
    fixed = render(changed(least_values, "worker", {"autoscaling": {"kind": "none"}, "replicas": 3}))
    assert fixed.of("Deployment")["worker"]["spec"]["replicas"] == 3
    assert "worker" not in {**fixed.of("ScaledObject"), **fixed.of("HorizontalPodAutoscaler")}
    keda = render(changed(least_values, "worker.autoscaling.minReplicas", 0)).of("ScaledObject")["worker"]["spec"]
    assert keda["minReplicaCount"] == 0
    assert all(each["type"] == "prometheus" for each in keda["triggers"])
    assert {each["metricType"] for each in keda["triggers"] if "queue_age" in each["metadata"]["query"]} == {"Value"}
    hpa = render(changed(least_values, "worker.autoscaling.kind", "hpa")).of("HorizontalPodAutoscaler")["worker"][
        "spec"
    ]
    assert {each["external"]["metric"]["name"] for each in hpa["metrics"]} == {"eorouter_queue_age_seconds"}


def test_one_scheduler_and_never_two(least):
    scheduler = least.of("Deployment")["scheduler"]["spec"]
    assert (scheduler["replicas"], scheduler["strategy"]) == (1, {"type": "Recreate"})


def test_schema_is_migrated_before_anything_of_the_release_changes(least, render, least_values):
    job, account = least.of("Job")["migrate"], least.of("ServiceAccount")["migrate"]
    weights = [int(found["metadata"]["annotations"]["helm.sh/hook-weight"]) for found in (account, job)]
    assert weights == sorted(weights)
    for found in (job, account):
        assert found["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    without = render(changed(least_values, "migrations.enabled", False))
    assert not without.of("Job")


# ---------------------------------------------------------------------------------------------------------------------
# Who reaches whom


def port_numbers(rule, template):
    names = {} if template is None else {
        port["name"]: port["containerPort"] for container in containers(template) for port in container.get("ports", [])
    }  # fmt: skip
    for port in rule["ports"]:
        number = names.get(port["port"], port["port"])
        if isinstance(number, int):
            yield range(number, port.get("endPort", number) + 1)


def fits(peer, end):
    """Whether a peer of a rule is this end: labels of a pod of the release, of a namespace, or an address."""
    if "ipBlock" in peer:
        block = peer["ipBlock"]
        if not isinstance(end, str):
            return False
        address = ipaddress.ip_address(end)
        excepted = any(address in ipaddress.ip_network(each) for each in block.get("except", []))
        return address in ipaddress.ip_network(block["cidr"]) and not excepted
    if isinstance(end, str):
        return False
    if "namespaceSelector" in peer:
        return "namespace" in end and matches(
            peer["namespaceSelector"], {"kubernetes.io/metadata.name": end["namespace"]}
        )
    return "namespace" not in end and matches(peer["podSelector"], end)


def lets(rendered, part, direction, end, port, template=None):  # noqa: PLR0917 - a sentence of six words
    labels = rendered.pods[part]["metadata"]["labels"]
    mine = [
        each["spec"] for each in rendered.of("NetworkPolicy").values() if matches(each["spec"]["podSelector"], labels)
    ]
    assert all(set(spec["policyTypes"]) == {"Ingress", "Egress"} for spec in mine)
    side = "from" if direction == "ingress" else "to"
    for rule in (rule for spec in mine for rule in spec.get(direction, [])):
        assert rule[side], "a rule without peers lets everybody pass"
        assert rule["ports"], "a rule without ports lets everything pass"
        if any(fits(peer, end) for peer in rule[side]) and any(
            port in numbers for numbers in port_numbers(rule, template)
        ):
            return True
    return False


def test_parts_reach_each_other_only_where_they_must(rendered):
    labels = {name: template["metadata"]["labels"] for name, template in rendered.pods.items()}
    reached = {
        (one, other, port)
        for one in labels
        for other in labels
        for port in (80, 8000, 8786, 9464, 40000)
        if lets(rendered, one, "egress", labels[other], port, rendered.pods[other])
        and lets(rendered, other, "ingress", labels[one], port, rendered.pods[other])
    }
    assert reached == {
        ("dispatcher", "scheduler", 8786),
        ("worker", "scheduler", 8786),
        *(("scheduler", "worker", port) for port in (8000, 8786, 9464, 40000)),
    }


@pytest.mark.parametrize(
    ("address", "port", "parts"),
    [
        ("10.20.0.5", 5432, {"api", "dispatcher", "migrate", "verify"}),  # the database
        ("10.20.0.5", 443, set()),
        ("10.30.0.7", 443, {"api", "dispatcher", "worker"}),  # the object store
        ("10.30.0.7", 5432, set()),
        ("93.184.216.34", 443, {"api"}),  # somewhere public: assets that callers name
        ("93.184.216.34", 5432, set()),
        ("169.254.169.254", 80, set()),  # the cloud's metadata
        ("10.96.0.1", 443, set()),  # the cluster's own API
    ],
)
def test_parts_reach_outside_only_what_they_need(rendered, address, port, parts):
    assert {part for part in rendered.pods if lets(rendered, part, "egress", address, port)} == parts


def test_only_ingress_and_monitoring_come_in_from_elsewhere(rendered):
    came = {
        (namespace, part, port)
        for namespace in ("ingress-nginx", "monitoring", "default", "kube-system")
        for part, template in rendered.pods.items()
        for port in (8000, 8786, 9464, 40000)
        if lets(rendered, part, "ingress", {"namespace": namespace}, port, template)
    }
    assert came == {
        ("ingress-nginx", "api", 8000),
        ("monitoring", "api", 8000),
        *(("monitoring", part, 9464) for part in ("dispatcher", "worker")),
    }


def test_remote_assets_can_be_switched_off(render, least_values):
    closed = render(changed(least_values, "networkPolicy.remote", False))
    assert not lets(closed, "api", "egress", "93.184.216.34", 443)
