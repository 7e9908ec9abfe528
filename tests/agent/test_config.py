"""Settings: the order in which sources win, errors that name key, value and allowed, and a desired config applied in parts."""

import tomllib
from pathlib import Path

import pytest

from agent.config import AgentConfig
from agent.orders import mask
from agent.settings.desired import DesiredConfig, parse_desired
from agent.settings.doubts import doubts
from agent.settings.loading import LoadedConfig, changed_serving, load_config
from agent.settings.overlaying import effective_config, resolve_secrets, settable, with_settable
from protocol.configuration import checked, overlay
from protocol.errors import ConfigError
from runtime.providers import KINDS

PIPELINE = {"name": "front", "line": "digits", "source": {"kind": "video", "path": "/v.mp4"}}


def load(folder: Path, text: str = "", *, flags=None, environment=None, file: str = "") -> LoadedConfig:
    etc, vendor = folder / "etc", folder / "vendor"
    (etc / "agent.d").mkdir(parents=True, exist_ok=True)
    vendor.mkdir(exist_ok=True)
    if text:
        (etc / "agent.toml").write_text(text)
    path = None
    if file:
        path = folder / "own.toml"
        path.write_text(file)
    return load_config(flags=flags, environment=environment, config_path=path, etc_dir=etc, vendor_dir=vendor)


def origins(loaded: LoadedConfig) -> dict[str, str]:
    return {key: origin for key, _, origin in loaded.rows()}


def test_without_anything_the_defaults_hold(tmp_path):
    loaded = load(tmp_path)
    assert loaded.config == AgentConfig()
    assert set(origins(loaded).values()) == {"default"}


def test_each_source_wins_over_the_one_below(tmp_path):
    (tmp_path / "vendor").mkdir()
    (tmp_path / "vendor" / "agent.toml").write_text(
        "[update]\npoll_s = 1\nreport_s = 1\nmin_inferences = 1\nmin_seconds = 1\nmax_seconds = 1\n"
    )
    (tmp_path / "etc" / "agent.d").mkdir(parents=True)
    (tmp_path / "etc" / "agent.d" / "50.toml").write_text("[update]\nmin_inferences = 3\n")
    loaded = load(
        tmp_path,
        "[update]\nreport_s = 2\nmin_inferences = 2\nmin_seconds = 2\nmax_seconds = 2\nself_test_s = 2\n",
        file="[update]\nmin_seconds = 4\nmax_seconds = 4\nself_test_s = 4\n",
        environment={"MOORING_AGENT_UPDATE__MAX_SECONDS": "5", "MOORING_AGENT_UPDATE__SELF_TEST_S": "5"},
        flags={"update.self_test_s": 6.0, "update.poll_s": None},
    )
    update = loaded.config.update
    assert (update.poll_s, update.report_s, update.min_inferences) == (1, 2, 3)
    assert (update.min_seconds, update.max_seconds, update.self_test_s) == (4, 5, 6)
    found = origins(loaded)
    assert found["update.max_seconds"] == "environment MOORING_AGENT_UPDATE__MAX_SECONDS"
    assert found["update.self_test_s"] == "flag"
    assert found["update.min_inferences"].endswith("agent.d/50.toml")
    assert found["update.spare_disk_mb"] == "default"


def test_a_systemd_credential_wins_over_etc_and_loses_to_the_environment(tmp_path):
    (tmp_path / "credentials").mkdir()
    (tmp_path / "credentials" / "agent.toml").write_text('[server]\nproxy = "http://u:p@proxy:1"\ntimeout_s = 7\n')
    environment = {"CREDENTIALS_DIRECTORY": str(tmp_path / "credentials"), "MOORING_AGENT_SERVER__TIMEOUT_S": "8"}
    loaded = load(tmp_path, '[server]\nproxy = "http://other:1"\n', environment=environment)
    assert (loaded.config.server.proxy, loaded.config.server.timeout_s) == ("http://u:p@proxy:1", 8)


def test_lists_come_from_the_environment_as_toml(tmp_path):
    value = '[{name="a", line="b", source={kind="video", path="x"}}]'
    loaded = load(tmp_path, environment={"MOORING_AGENT_PIPELINES": value, "MOORING_AGENT_RUNTIME__PROVIDERS": '["cuda","cpu"]'})
    assert loaded.config.pipelines[0].name == "a"
    assert loaded.config.runtime.providers == ("cuda", "cpu")


def test_other_environment_variables_are_not_settings(tmp_path):
    environment = {"MOORING_CLOCK": "x", "MOORING_AGENT_TOKEN": "mrg1.secret", "MOORING_DATA": "/x", "PATH": "/bin"}
    assert load(tmp_path, environment=environment).config == AgentConfig()


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[update]\npol_s = 3", ["update.pol_s", "unknown key", "poll_s"]),
        ("colour = 1", ["colour", "unknown key", "device_type"]),
        ("[update]\npoll_s = -3", ["update.poll_s", "'-3'", "greater than or equal to 1"]),
        ('device_type = "Rasp Pi"', ["device_type", "'Rasp Pi'", "[a-z0-9]"]),
        ('[server]\nurl = "http://x"', ["server.url", "'http://x'", "https://host"]),
        ('[broker]\nurl = "mqtt://x"', ["broker.url", "mqtts://host"]),
        ('[server]\nproxy = "ftp://x"', ["server.proxy", "socks5"]),
        ('[[pipelines]]\nname="a"\nline="b"\nsource={kind="film"}', ["pipelines.0.source", "film", "video"]),
        ('[[pipelines]]\nname="a"\nline="b"\nsource={kind="video"}', ["path", "missing"]),
        ('[[pipelines]]\nname="a"\nline="b"\nsource={kind="video",path="x"}\n' * 2, ["two pipelines have one name"]),
        ("[outbox]\nbudget_mb = 0", ["outbox.budget_mb", "0.25"]),
        ("[telemetry]\nperf_s = inf", ["telemetry.perf_s"]),
        ('[update]\ntime_zone = "Europe/Nowhere"', ["update.time_zone", "Nowhere", "Europe/Berlin"]),
        ('[update]\ndownload_windows = [{from = "22:00", to = "24:00"}]', ["update.download_windows.0.to", "24:00"]),
        (
            '[update]\nactivation_windows = [{days = ["monday"], from = "22:00", to = "04:00"}]',
            ["update.activation_windows.0.days.0", "'mon'"],
        ),
        ('[update]\nactivation_windows = [{from = "22:00"}]', ["update.activation_windows.0.to", "missing"]),
        ('[update]\nfull_download = "always"', ["update.full_download", "always", "delta_only"]),
        ('[update]\nconsent = "email"', ["update.consent", "site"]),
    ],
)
def test_a_wrong_setting_stops_with_key_value_and_what_is_allowed(tmp_path, text, parts):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    for part in [*parts, "agent.toml"]:
        assert part in str(caught.value)


def test_the_manners_of_updates_are_read_as_documented(tmp_path):
    text = """
[update]
metered = true
full_download = "full_up_to"
full_up_to_bytes = 2000000
bandwidth_kib_s = 64
time_zone = "Europe/Berlin"
download_windows = [{ days = ["mon", "fri"], from = "22:00", to = "04:00" }]
activation_windows = [{ from = "01:00", to = "03:30" }]
consent = "site"
"""
    loaded = load(tmp_path, text)
    update = loaded.config.update
    assert (update.metered, update.full_download, update.full_up_to_bytes, update.bandwidth_kib_s) == (True, "full_up_to", 2_000_000, 64)
    assert [(one.days, one.from_, one.to) for one in update.download_windows] == [(("mon", "fri"), "22:00", "04:00")]
    assert update.activation_windows[0].days == ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
    shown = {key: value for key, value, _ in loaded.rows()}
    assert shown["update.download_windows"] == [{"days": ["mon", "fri"], "from": "22:00", "to": "04:00"}]


def test_without_settings_an_update_may_come_at_any_time_and_nobody_is_asked():
    update = AgentConfig().update
    assert (update.metered, update.download_windows, update.activation_windows, update.consent) == (False, (), (), "none")
    assert (update.full_download, update.bandwidth_kib_s, update.time_zone) == ("delta_only", 0, "UTC")


def test_every_wrong_setting_is_named_at_once(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, "[update]\npoll_s = 0\n[outbox]\nresend_s = 0")
    assert "update.poll_s" in str(caught.value)
    assert "outbox.resend_s" in str(caught.value)


def test_a_file_that_is_not_toml_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"own\.toml is not TOML"):
        load(tmp_path, file="[update")
    with pytest.raises(ConfigError, match=r"nothing\.toml cannot be read"):
        load_config(config_path=tmp_path / "nothing.toml", etc_dir=tmp_path, vendor_dir=tmp_path)
    with pytest.raises(ConfigError, match="MOORING_AGENT_PIPELINES"):
        load(tmp_path, environment={"MOORING_AGENT_PIPELINES": "[{"})


def test_secrets_are_masked_where_settings_are_shown(tmp_path):
    loaded = load(
        tmp_path,
        '[server]\nproxy = "http://me:hunter2@proxy:3128"\n[[pipelines]]\nname="a"\nline="b"\nsource={kind="stream",url="rtsp://u:hunter2@cam/1"}',
    )
    shown = str(loaded.rows())
    assert "hunter2" not in shown
    assert "***@proxy:3128" in shown
    assert "rtsp://***@cam/1" in shown


def test_errors_do_not_repeat_a_password(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, '[server]\nproxy = "gopher://me:hunter2@proxy"')
    assert "hunter2" not in str(caught.value)


def test_masking_reaches_into_lists_and_objects():
    assert mask({"a": ["x://u:p@h", 1]}) == {"a": ["x://***@h", 1]}


# --- desired config ---


def test_a_good_desired_config_is_taken_whole():
    desired, errors = parse_desired(
        {"pipelines": [PIPELINE], "telemetry": {"perf_s": 30}, "update": {"poll_s": 60}, "secrets": {"cam": "c2VhbGVk"}}
    )
    assert errors == {}
    config = effective_config(AgentConfig(), desired)
    assert [one.name for one in config.pipelines] == ["front"]
    assert (config.telemetry.perf_s, config.telemetry.sys_s, config.update.poll_s) == (30, 10, 60)
    assert desired.secrets == {"cam": "c2VhbGVk"}


def test_one_bad_key_does_not_fail_the_rest():
    desired, errors = parse_desired(
        {
            "pipelines": [{"name": "x"}, PIPELINE, {**PIPELINE, "line": "other"}, 7],
            "telemetry": {"perf_s": -1, "sys_s": 20, "foo": 1},
            "update": "soon",
            "secrets": {"BAD NAME": "x"},
            "colour": "red",
        }
    )
    assert [one.name for one in desired.pipelines or ()] == ["front"]
    assert desired.telemetry.sys_s == 20
    assert set(errors) == {
        "pipelines.0.line", "pipelines.0.source", "pipelines.2.name", "pipelines.3.",
        "telemetry.perf_s", "telemetry.foo", "update", "secrets", "colour",
    }  # fmt: skip


def test_without_pipelines_in_the_desired_config_the_local_ones_run():
    local = AgentConfig.model_validate({"pipelines": [PIPELINE]})
    assert effective_config(local, parse_desired({})[0]) == local
    assert effective_config(local, parse_desired({"pipelines": []})[0]).pipelines == ()
    assert effective_config(local, parse_desired({"pipelines": "none"})[0]).pipelines == local.pipelines


def test_a_desired_config_is_bounded():
    _, errors = parse_desired({"pipelines": [PIPELINE] * 65, "secrets": {"a": "x" * 20_000}})
    assert set(errors) == {"pipelines", "secrets"}


def test_a_secret_is_put_into_its_url_and_a_missing_one_is_named():
    desired, _ = parse_desired(
        {
            "pipelines": [
                {"name": "a", "line": "l", "source": {"kind": "stream", "url": "rtsp://old@cam:8554/1", "secret": "cam"}},
                {
                    "name": "b",
                    "line": "l",
                    "source": {"kind": "sensor", "broker": "mqtt://h", "topic": "t", "fields": ["x"], "secret": "cam"},
                },
                {"name": "c", "line": "l", "source": {"kind": "stream", "url": "rtsp://cam", "secret": "lost"}},
                PIPELINE,
            ]
        }
    )
    resolved, errors = resolve_secrets(desired.pipelines or (), {"cam": "ad@min:p/w:1"})
    sources = {one.name: one.source for one in resolved}
    assert sources["a"].url == "rtsp://ad%40min:p%2Fw%3A1@cam:8554/1"
    assert sources["b"].broker == "mqtt://ad%40min:p%2Fw%3A1@h"
    assert set(sources) == {"a", "b", "front"}
    text = "no secret named 'lost' has reached this device; send it: mooring device secret DEVICE lost"
    assert errors == {"pipelines.c.source.secret": text}
    assert sources["a"].secret is None


def test_a_secret_opens_the_sub_stream_too():
    source = {"kind": "stream", "url": "rtsp://cam/main", "sub_url": "rtsp://cam/sub", "secret": "cam"}
    desired, errors = parse_desired({"pipelines": [{**PIPELINE, "source": source}]})
    assert not errors
    (resolved,), _ = resolve_secrets(desired.pipelines or (), {"cam": "viewer:pw"})
    assert (resolved.source.url, resolved.source.sub_url) == ("rtsp://viewer:pw@cam/main", "rtsp://viewer:pw@cam/sub")


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"roi": [0.5, 0, 0.5, 1]}, "x0"),
        ({"roi": [0, 0, 1]}, "roi"),
        ({"roi": [0, 0, 1.5, 1]}, "roi"),
        ({"motion": {"min_area": 2}}, "min_area"),
        ({"motion": {"loudness": 2}}, "unknown key"),
        ({"source": {"kind": "stream", "url": "rtsp://cam", "hardware": "magic"}}, "hardware"),
        ({"source": {"kind": "sensor", "broker": "mqtt://h", "topic": "t", "fields": ["x"]}, "preview": True}, "readings"),
    ],
)
def test_how_a_pipeline_looks_is_checked(settings, part):
    desired, errors = parse_desired({"pipelines": [{**PIPELINE, **settings}]})
    assert desired.pipelines == ()
    assert part in " ".join([*errors, *errors.values()])


PIPELINE_TEXT = '[[pipelines]]\nname = "a"\nline = "b"\n'
FOLDER_TEXT = PIPELINE_TEXT + 'source = {kind = "folder", path = "x"}\n'


@pytest.mark.parametrize(
    ("text", "known"),
    [
        (FOLDER_TEXT + '[[pipelines.rules]]\nname = "r"\nkind = "present"\nzome = "z"', ["labels", "schedule", "zone"]),
        (FOLDER_TEXT + '[[pipelines.zones]]\nname = "z"\ncorners = []', ["kind", "name", "points"]),
        (FOLDER_TEXT + "motion = {area = 1}", ["hold_s", "idle_s", "min_area", "threshold"]),
        (PIPELINE_TEXT + 'source = {kind = "stream", url = "rtsp://h", loop = true}', ["decode", "sub_url", "transport"]),
        (FOLDER_TEXT + "fps = 5", ["max_fps", "source"]),
        ("[serving]\nliste = 1", ["lines", "listen"]),
    ],
)
def test_a_key_that_is_unknown_is_told_with_those_that_stand_there(tmp_path, text, known):
    with pytest.raises(ConfigError, match="unknown key") as caught:
        load(tmp_path, text)
    offered = str(caught.value).split("known here: ")[1].split(" (from")[0].split(", ")
    assert set(known) <= set(offered)
    assert ("max_fps" in offered) == ("max_fps" in known)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ('[serving]\nlisten = "192.0.2.7:8443"', r"Wrong setting: serving: listen = '192\.0\.2\.7:8443' is beyond this machine; wanted"),
        (
            FOLDER_TEXT + '[[pipelines.zones]]\nname = "z"\npoints = [[0, 0], [1, 1], [1, 0], [0, 1]]',
            r"Wrong setting: pipelines\.0\.zones\.0: zone 'z' is no polygon: its border crosses itself",
        ),
        (
            FOLDER_TEXT + '[[pipelines.rules]]\nname = "r"\nkind = "enter"\nzone = "z"',
            r"Wrong setting: pipelines\.0\.rules: rule 'r' names the zone 'z'; this pipeline's zones: none",
        ),
        (FOLDER_TEXT + "roi = [0.5, 0, 0.2, 1]", r"pipelines\.0\.roi: '\[0\.5, 0, 0\.2, 1\]': wanted x0"),
    ],
)
def test_what_is_wrong_with_several_values_is_said_in_words_alone(tmp_path, text, wanted):
    with pytest.raises(ConfigError, match=wanted):
        load(tmp_path, text)


def test_what_is_wrong_with_a_flag_of_serve_names_the_setting():
    with pytest.raises(ConfigError, match=r"Wrong setting: serving: 'localhost:1' is no address to listen on; wanted 127\.0\.0\.1:8000"):
        changed_serving(AgentConfig().serving, {"listen": "localhost:1"})


def test_signed_configuration_sets_how_a_pipeline_looks():
    config = AgentConfig.model_validate({"pipelines": [{**PIPELINE, "motion": {"min_area": 0.02}}]})
    wished = checked({"pipelines": {"*": {"roi": [0.5, 0, 1, 1], "motion": {"threshold": 30}, "preview": True}}}, what="test")
    changed, errors = with_settable(config, overlay(settable(config), wished).values)
    assert not errors
    (front,) = changed.pipelines
    assert (front.roi, front.motion.min_area, front.motion.threshold, front.preview) == ((0.5, 0, 1, 1), 0.02, 30, True)


def test_desired_config_is_a_value():
    assert parse_desired({}) == (DesiredConfig(), {})


def test_the_page_of_cameras_shows_every_kind_of_source_as_settings_take_it():
    page = (Path(__file__).parents[2] / "docs" / "capture.md").read_text()
    head, *others = (block.partition("```")[0] for block in page.split("```toml\n")[1:])
    sources = [tomllib.loads(line)["source"] for block in others for line in block.splitlines() if line.startswith("source")]
    pipelines = [*tomllib.loads(head)["pipelines"], *({"name": f"p{n}", "line": "l", "source": one} for n, one in enumerate(sources))]
    shown = {one.source.kind for one in AgentConfig.model_validate({"pipelines": pipelines}).pipelines}
    assert shown == {"stream", "camera", "video", "folder", "sensor"}


class TestDoubts:
    """Names of providers that are likely misspelt."""

    @staticmethod
    def of(*providers: str, **options: dict[str, str]) -> list[str]:
        runtime = {"providers": providers, "options": {name.replace("_", "-"): value for name, value in options.items()}}
        return [f"{key}: {text}" for key, text in doubts(AgentConfig.model_validate({"runtime": runtime}))]

    @pytest.mark.parametrize(
        "name",
        [*KINDS, "openvino-gpu", "qnn-htp", "edgetpu-usb", "external-teflon", "CUDAExecutionProvider", "SNPEExecutionProvider"],
    )
    def test_what_is_documented_is_not_doubted(self, name):
        assert self.of(name) == []

    def test_a_name_that_is_registered_with_a_library_of_its_own_is_not_doubted(self):
        assert self.of("ggml-cpu", ggml_cpu={"library": "/opt/libggml.so"}) == []
        assert self.of("qnn-npu", qnn_npu={"library": "/opt/libqnn.so"}) == []

    @pytest.mark.parametrize(
        ("name", "seen", "nearest"),
        [
            ("xnnpak", "'xnnpak' is no provider that this agent knows", "nearest: xnnpack"),
            ("Cuda", "'Cuda' is no provider that this agent knows", "nearest: cuda"),
            ("onnxruntime:cudaa", "'onnxruntime:cudaa' names a back end; wanted the provider alone", "nearest: cuda"),
            ("onnx:openvino", "'onnx:openvino' names a back end", "nearest: openvino"),
            ("openvino-gqu", "openvino knows no device 'gqu'", "openvino-gpu"),
            ("cuda-1", "cuda knows no device '1'", "wanted cuda"),
            ("TensorRTExecutionProvider", "is not how ONNX Runtime spells it", "TensorrtExecutionProvider"),
            ("zzz", "'zzz' is no provider", "known: cpu, xnnpack"),
        ],
    )
    def test_a_likely_mistake_names_what_was_seen_and_the_nearest(self, name, seen, nearest):
        (told,) = self.of(name)
        assert told.startswith("runtime.providers: ")
        assert seen in told
        assert nearest in told

    def test_options_of_a_name_that_nobody_asks_for_are_looked_at_too(self):
        (told,) = self.of("openvino-npu", openvino_npuu={"num_streams": "1"})
        assert told.startswith("runtime.options.openvino-npuu: ")
        assert self.of("openvino-npu", openvino_gpu={"num_streams": "1"}) == []


class TestDoubtsOfSources:
    """An address that nothing can open is told before a camera stays dark for it."""

    @staticmethod
    def of(**source: str | list[str]) -> list[tuple[str, str]]:
        pipelines = [{"name": "one", "line": "digits", "source": {"kind": "video", "path": "/x.avi"}}]
        pipelines.append({"name": "two", "line": "digits", "source": source})
        return doubts(AgentConfig.model_validate({"pipelines": pipelines}))

    @pytest.mark.parametrize("url", ["rtsp://cam/1", "rtsps://u:p@10.0.0.7:322/live?x=1", "http://[::1]:8080/video", "https://cam/a"])
    def test_an_address_of_a_stream_is_not_doubted(self, url):
        assert self.of(kind="stream", url=url, sub_url=url) == []

    @pytest.mark.parametrize(
        "url", ["cam/1", "rtps://cam/1", "rtsp://", "rtsp:/cam/1", "rtsp://cam:port/1", "/dev/video0", "rtsp://[::1/1"]
    )
    def test_what_is_none_is_told_with_what_is_wanted(self, url):
        [(key, text)] = self.of(kind="stream", url="rtsp://cam/1", sub_url=url)
        assert key == "pipelines.1.source.sub_url"
        assert text.startswith(repr(url))

    @pytest.mark.parametrize("url", ["rtsp://ola:hun/ter2@cam/1", "rtsp:/ola:hunter2@cam", "ola:hunter2@cam", "tcp://ola:hun@ter2@cam"])
    def test_whatever_may_be_a_password_is_not_repeated(self, url):
        [(_, text)] = self.of(kind="stream", url=url)
        assert ("hun" in text, "ter2" in text, "cam" in text) == (False, False, True)

    @pytest.mark.parametrize("url", ["cam/1", "rtps://cam/1"])
    def test_it_says_what_is_wanted(self, url):
        [(_, text)] = self.of(kind="stream", url=url)
        assert "wanted rtsp://host[:port] or" in text

    def test_a_broker_of_sensors_has_schemes_of_its_own_and_passwords_are_not_repeated(self):
        sensor = {"kind": "sensor", "topic": "t", "fields": ["a"]}
        assert self.of(broker="mqtt://127.0.0.1:1883", **sensor) == []
        [(key, text)] = self.of(broker="tcp://ola:hunter2@127.0.0.1:1883", **sensor)
        assert (key, "hunter2" in text, "mqtt://host[:port] or mqtts://" in text) == ("pipelines.1.source.broker", False, True)
