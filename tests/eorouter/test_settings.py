"""Settings from the environment: what is taken, what is refused, and the folder they live in."""

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from eorouter.settings import PREFIX, BadSetting, Settings, describe, kept_here, load, prepare


def test_nothing_set_is_the_defaults():
    assert load({}) == Settings()


def test_values_are_converted_and_other_variables_left_alone(tmp_path):
    found = load(
        {"EOROUTER_PORT": "9000", "EOROUTER_DATA_DIR": str(tmp_path), "EOROUTER_LOG_FORMAT": "json",
         "EOROUTER_INGEST_WAIT_S": "2.5", "HOME": "/root", "EOROUTER_URL": "http://x", "EOROUTER_API_KEY": "k"}
    )  # fmt: skip
    assert (found.port, found.data_dir, found.log_format, found.ingest_wait_s) == (9000, tmp_path, "json", 2.5)


def test_command_line_wins_where_it_says_something():
    assert load({"EOROUTER_PORT": "9000"}, port=0, host=None).port == 0
    assert load({"EOROUTER_PORT": "9000"}, port=None).port == 9000


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("EOROUTER_PORT", "http", "Expected `int`"),
        ("EOROUTER_PORT", "70000", "<= 65535"),
        ("EOROUTER_LOG_LEVEL", "loud", "Invalid enum value 'loud'"),
        ("EOROUTER_WORKER_COUNT", "-1", ">= 0"),
        ("EOROUTER_POTR", "1", "is not a setting"),
        ("EOROUTER_SECRET", "short", "32 or more"),
        ("EOROUTER_SCHEDULER_ADDRESS", "tcp://10.1.2.3:8786", "may only be a loopback address"),
        ("EOROUTER_SCHEDULER_ADDRESS", "tcp://127.0.0.1.evil.example:8786", "may only be a loopback address"),
        ("EOROUTER_SCHEDULER_ADDRESS", "scheduler.lan:8786", "is not tls://host:port"),
        ("EOROUTER_SCHEDULER_ADDRESS", "tls://scheduler.lan", "is not tls://host:port"),
        ("EOROUTER_SCHEDULER_ADDRESS", "tls://user@scheduler.lan:8786", "is not tls://host:port"),
        ("EOROUTER_WORKER_DRAIN_S", "-1", ">= 0"),
    ],
)
def test_bad_value_names_its_variable(variable, value, words):
    with pytest.raises(BadSetting) as raised:
        load({variable: value})
    assert variable in str(raised.value)
    assert words in str(raised.value)


def test_all_faults_are_told_at_once_and_each_shows_an_example():
    with pytest.raises(BadSetting) as raised:
        load({"EOROUTER_PORT": "x", "EOROUTER_BCRYPT_COST": "99", "EOROUTER_NOPE": "1"})
    lines = str(raised.value).splitlines()
    assert len(lines) == 3
    assert "Example: EOROUTER_PORT=8000" in lines[0]


@pytest.mark.parametrize(
    "address",
    ["tls://scheduler.lan:8786", "tls://10.1.2.3:1", "tcp://127.0.0.2:8786", "tcp://localhost:1", "tcp://[::1]:1"],
)
def test_addresses_of_a_scheduler(address):
    assert load({"EOROUTER_SCHEDULER_ADDRESS": address}).scheduler_address == address
    assert load({}, scheduler_address=address).scheduler_address == address


def test_proxies_are_addresses_and_networks():
    assert load({"EOROUTER_TRUSTED_PROXIES": "10.0.0.0/8,::1"}).trusted_proxies == "10.0.0.0/8,::1"
    assert load({"EOROUTER_TRUSTED_PROXIES": ""}).trusted_proxies == ""
    with pytest.raises(BadSetting, match=r"EOROUTER_TRUSTED_PROXIES: 'ingress\.lan'"):
        load({"EOROUTER_TRUSTED_PROXIES": "10.0.0.1,ingress.lan"})


def test_what_stays_on_this_machine_is_told():
    everything = {"DATABASE_URL": "postgresql://h/d", "OBJECTS_URL": "s3://b", "SECRET": "s" * 40}
    assert kept_here(load({PREFIX + name: value for name, value in everything.items()})) == []
    assert [fact.partition(" ")[0] for fact in kept_here(load({}))] == [PREFIX + name for name in everything]


@pytest.mark.parametrize("bad", [{"port": 70000}, {"worker_count": -1}])
def test_bad_value_of_the_command_line_is_refused(bad):
    with pytest.raises(BadSetting, match="eorouter settings"):
        load({}, **bad)


def test_every_setting_has_a_description_and_an_example_that_is_taken(tmp_path):
    for field in msgspec.structs.fields(Settings):
        text = describe(field.name)
        assert text.partition(" Example: ")[0].endswith("."), field.name
        variable, _, example = text.partition(" Example: ")[2].partition("=")
        assert variable == PREFIX + field.name.upper()
        if field.name != "secret":
            load({variable: example})


def test_prepare_makes_the_folder_and_a_secret_that_stays(tmp_path):
    folder = tmp_path / "deep" / "data"
    first = prepare(Settings(data_dir=folder))
    assert first.data_dir == folder.absolute()
    assert len(first.secret) >= 32
    assert prepare(Settings(data_dir=folder)).secret == first.secret
    assert stat.S_IMODE((folder / "secret").stat().st_mode) == 0o600
    assert prepare(Settings(data_dir=folder, secret="s" * 40)).secret == "s" * 40


def test_folder_that_is_made_is_closed_to_others(tmp_path):
    made = prepare(load({}, data_dir=tmp_path / "new"))
    assert stat.S_IMODE(made.data_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE((made.data_dir / "secret").stat().st_mode) == 0o600


def test_processes_that_start_at_once_share_one_secret(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        secrets = {each.secret for each in pool.map(lambda _: prepare(Settings(data_dir=tmp_path)), range(64))}
    assert len(secrets) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["secret"]


def test_folder_that_cannot_be_made_is_said_with_the_remedy(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(BadSetting) as raised:
        prepare(Settings(data_dir=Path(tmp_path / "file" / "data")))
    assert str(tmp_path / "file" / "data") in str(raised.value)
    assert "--data-dir" in str(raised.value)
