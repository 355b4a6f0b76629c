"""The W&B workspace: its definition without a network, and how it is saved, to a server of our own."""

import json
import re
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from genstab.errors import InputError
from genstab.loggers import wandb_workspace as workspace
from genstab.loggers.wandb import STEP
from genstab.metrics.registry import best_ends, metrics
from genstab.training.callbacks import pictures
from tests.helpers.wandb_file import finish

pytest.importorskip("wandb_workspaces", reason="wandb-workspaces is not installed")
pytestmark = pytest.mark.usefixtures("nobody")
LOGGED = {key for key, metric in metrics().items() if metric.in_training}


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("a definition needs no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def section_of(definition):
    view = definition._to_model()
    return json.loads(view.spec.model_dump_json(by_alias=True, exclude_none=True))["section"]


def panels(section, kind):
    return [
        panel["config"]
        for part in section["panelBankConfig"]["sections"]
        for panel in part["panels"]
        if panel["viewType"] == kind
    ]


@pytest.mark.usefixtures("no_network")
def test_it_compares_stability_with_quality_beside_it():
    section = section_of(workspace.workspace("me", "mine"))
    lines = panels(section, "Run History Line Plot")
    keys = [key for line in lines for key in line["metrics"]]
    assert {"val/shift_psnr", "val/shift_psnr_crop", "val/shift_psnr_worst", "val/l1", "val/ssim"} <= set(keys)
    assert ["val/tv", "val/tv_target"] in [line["metrics"] for line in lines]
    assert set(keys) <= LOGGED
    assert {line["xAxis"] for line in lines} == {STEP}
    scatters = [(plot["xAxis"], plot["yAxis"]) for plot in panels(section, "Scatter Plot")]
    # The summary of a run holds the best of these beside the last one.
    assert ("summary:val/l1.last", "summary:val/shift_psnr.last") in scatters
    assert ("summary:val/tv", "summary:val/shift_psnr.last") in scatters
    for axis in {axis for plot in scatters for axis in plot}:
        key = axis.removeprefix("summary:").removesuffix(".last")
        assert key in LOGGED
        assert axis.endswith(".last") == (key in best_ends())
    assert panels(section, "Run Comparer") == [{"diffOnly": "split"}]


@pytest.mark.usefixtures("no_network")
def test_it_shows_the_pictures_and_tables_that_runs_log():
    section = section_of(workspace.workspace("me"))
    media = [key for panel in panels(section, "Media Browser") for key in panel["mediaKeys"]]
    assert media == ["samples", "shift", "shift_map", "shift_film"]
    code = Path(pictures.__file__).read_text()
    assert all(f'"{key}"' in code for key in media)
    text = json.dumps(section)
    for key in ("per_shift", "per_image", "corruptions", "features"):
        assert f'"{key}"' in text


@pytest.mark.usefixtures("no_network")
def test_runs_are_grouped_by_options_that_exist_and_sorted_by_stability():
    (runs,) = section_of(workspace.workspace("me"))["runSets"]
    assert [(key["section"], key["name"]) for key in runs["grouping"]] == [
        ("config", "antialias.value.filter"),
        ("config", "antialias.value.placement"),
    ]
    option = yaml.safe_load((Path(__file__).parents[2] / "conf/antialias/tri3.yaml").read_text())
    assert {"filter", "placement"} <= set(option)
    (order,) = runs["sort"]["keys"]
    assert (order["key"]["name"], order["ascending"]) == ("val/shift_psnr.last", False)
    assert "config:antialias.filter" in runs["runFeed"]["columnOrder"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("", "genstab"), "entity='' is not the name of a W&B entity"),
        (("me/mine", "genstab"), "entity='me/mine' is not"),
        (("me", " "), "project=' ' is not the name of a W&B project"),
        ((None, "genstab"), "entity=None is not"),
    ],
)
def test_bad_names_are_named(arguments, message):
    with pytest.raises(InputError, match=message):
        workspace.workspace(*arguments)


def test_without_the_extra_it_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "wandb_workspaces"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "wandb_workspaces", None)
    with pytest.raises(InputError, match=re.escape("pip install 'genstab[workspace]'")):
        workspace.workspace("me")


class Server(BaseHTTPRequestHandler):
    """Answers as W&B does, and keeps what it was asked."""

    asked: list[dict]
    refuses = False

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path != "/graphql":
            self.answer({})
            return
        question = json.loads(body)
        self.asked.append(question)
        if "upsertView" not in question["query"]:
            self.answer({"data": {"viewer": {"id": "1", "entity": "me", "username": "me", "flags": "{}"}}})
        elif self.refuses:
            self.answer({"data": {"upsertView": None}, "errors": [{"message": "permission denied"}]})
        else:
            self.answer({"data": {"upsertView": {"view": {"id": "1", "name": "nw-abc-v"}, "inserted": True}}})

    def answer(self, content):
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Server, "asked", [], raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{running.server_port}")
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        yield running
        finish()
        running.shutdown()
        thread.join()


def test_it_is_saved_and_its_address_printed(server, capsys):
    url = workspace.publish("me", "mine")
    assert url == f"http://127.0.0.1:{server.server_port}/me/mine?nw=abc"
    assert capsys.readouterr().out == f"{url}\n"
    (sent,) = [question["variables"] for question in Server.asked if "upsertView" in question["query"]]
    assert (sent["entityName"], sent["projectName"], sent["displayName"]) == ("me", "mine", workspace.NAME)
    assert "val/shift_psnr_crop" in sent["spec"]


def test_a_refusal_is_one_line(server, monkeypatch):
    monkeypatch.setattr(Server, "refuses", True)
    with pytest.raises(InputError, match=r"^W&B did not save the workspace: .*permission denied") as error:
        workspace.publish("me", "other")
    assert "\n" not in str(error.value)


def test_nobody_logged_in_is_an_error_at_once():
    start = time.monotonic()
    with pytest.raises(InputError, match=r"^nobody is logged in to W&B: run `wandb login` first$"):
        workspace.publish("me")
    assert time.monotonic() - start < 5


@pytest.mark.parametrize(("key", "message"), [("short", "API key"), ("a" * 40, "http://127.0.0.1:9")])
def test_a_bad_key_and_a_dead_server_are_one_line_within_seconds(monkeypatch, key, message):
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nothing listens there
    monkeypatch.setattr(workspace, "ANSWER_TIMEOUT", 1)
    start = time.monotonic()
    with pytest.raises(InputError, match=f"^W&B did not save the workspace: .*{message}") as error:
        workspace.publish("me")
    assert time.monotonic() - start < 8
    assert "\n" not in str(error.value)
