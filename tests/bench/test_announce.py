"""The webhook of the gate: what it is told, and that it can never fail the gate."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from click.testing import CliRunner

from flashpoint.bench import announce, gate
from flashpoint.bench.__main__ import main
from flashpoint.bench.gate_works import GateWork
from flashpoint.bench.timing import Timing


@pytest.fixture
def server():
    """A web server that keeps what it is sent, and answers with ``server.status``."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            self.server.got.append((self.headers["Content-Type"], json.loads(content)))
            self.send_response(self.server.status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.got, server.status = [], 204
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Returns a function that runs the gate with stubs."""
    monkeypatch.setattr(gate, "check_correct", lambda *_: None)
    monkeypatch.setattr(gate, "states_problem", lambda: None)
    monkeypatch.setattr(gate, "works", lambda *_: [GateWork("step", None, None)])

    def command(*options, speedup=2.0):
        timing = Timing(100 / speedup, 100.0, speedup, speedup, speedup, 40)
        monkeypatch.setattr(gate, "measure", lambda *_: {"step": timing})
        where = ["gate", "--device", "cpu", "--history", str(tmp_path)]
        return CliRunner().invoke(main, [*where, *options])

    return command


def address(server):
    return f"http://127.0.0.1:{server.server_port}/secret"


def test_the_webhook_is_told_the_verdict_on_each_work(run, server, monkeypatch):
    assert run("--webhook", address(server)).exit_code == 4
    monkeypatch.setenv("FLASHPOINT_GATE_WEBHOOK", address(server))
    assert run(speedup=1.6).exit_code == 1
    (kind, first), (_, second) = server.got
    assert kind == "application/json"
    assert (first["status"], first["verdict"], first["works"][0]["slowdown"]) == (4, "first", None)
    assert second["text"].endswith(": slower: step")
    assert (second["status"], second["verdict"]) == (1, "slower")
    assert second["works"] == [{"work": "step", "verdict": "slower", "slowdown": 1.25}]
    assert {"date", "device", "commit"} <= second.keys()


def test_numbers_that_are_no_numbers_are_sent_as_null(run, server):
    run()
    assert run("--webhook", address(server), speedup=float("nan")).exit_code == 3
    assert server.got[0][1]["works"] == [{"work": "step", "verdict": "invalid", "slowdown": None}]


@pytest.mark.parametrize("status", [404, 500])
def test_a_webhook_that_refuses_does_not_fail_the_gate(run, server, status):
    run()
    server.status = status
    done = run("--webhook", address(server))
    assert done.exit_code == 0
    assert "the webhook was not told: " in done.output
    assert "secret" not in done.output


def test_a_webhook_that_is_not_there_or_is_silent_does_not_fail_the_gate(run, monkeypatch):
    run()
    assert run("--webhook", "http://127.0.0.1:1/secret").exit_code == 0
    monkeypatch.setattr(announce, "_SECONDS", 0.2)
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:  # it never accepts
        done = run("--webhook", address(silent))
    assert done.exit_code == 0
    assert "the webhook was not told: timed out" in done.output


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.org", "example.org/hook", "https://", "http://a b",
            "http://[", "http://example.org:99999", "http://exämple.org"]
)  # fmt: skip
def test_what_is_no_address_is_refused_before_the_work(run, monkeypatch, url):
    def never(*_):
        raise AssertionError("it was measured")

    monkeypatch.setattr(gate, "ending_of", never)
    done = run("--webhook", url)
    assert done.exit_code == 2
    assert done.output == "error: --webhook must be an address like https://example.org/hook\n"
