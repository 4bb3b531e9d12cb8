"""The viewer over HTTP in the same process: what it shows, what it refuses, and users at once."""

from __future__ import annotations

import base64
import http.client
import json
import threading
from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from llava import pruning
from llava.analysis import overlay, traced
from llava.serve import handler, viewer
from llava.serve.handler import ViewerServer
from llava.serve.viewing import Viewer, ViewerQuestion

from .conftest import QUESTION
from .paths import DEMO
from .test_pictures import encoded, png_of


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def send(server, method: str, path: str, body: bytes | None = None, **headers: str):
    """Status, headers and body of a request."""
    connection = http.client.HTTPConnection(*server.server_address[:2], timeout=300)
    if body is not None:
        headers = {"Content-Type": "application/json", **headers}
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    data = response.read()
    connection.close()
    return response.status, response.headers, data


def ask(server, data: bytes, method: str = "autoprune", tokens: float | None = 64, **changes):
    body = {"image": b64(data), "question": QUESTION, "method": method, "tokens": tokens, **changes}
    status, _, answer = send(server, "POST", "/api/answer", json.dumps(body).encode())
    return status, json.loads(answer)


def picture_of(url: str) -> Image.Image:
    head, data = url.split(",")
    assert head == "data:image/png;base64"
    return Image.open(BytesIO(base64.b64decode(data)))


def test_the_page_loads_nothing_from_elsewhere(served) -> None:
    pages = {path: send(served, "GET", path) for path in ("/", "/style.css", "/script.js")}
    for path, (status, headers, data) in pages.items():
        assert status == 200 and len(data) > 500
        assert b"http" not in data.replace(b"http-equiv", b""), path
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy
        assert "*" not in policy and "http" not in policy
    assert pages["/"][1]["Content-Type"] == "text/html; charset=utf-8"
    assert b"<style" not in pages["/"][2] and b"style=" not in pages["/"][2]


def test_settings_are_those_of_the_command_line(served) -> None:
    status, _, data = send(served, "GET", "/api/settings")
    settings = json.loads(data)
    assert status == 200 and settings["model"] == "llava-demo"
    assert (settings["layers"], settings["most_tokens"], settings["tokens"]) == (12, 576, 64)
    assert (settings["about"], settings["given"]) == ("576 patches", "x0=5.6")
    budgets = {method["name"]: method["budget"] for method in settings["methods"]}
    assert budgets.keys() == pruning.METHODS.keys()
    assert budgets["fastv"] and not budgets["no-image"]


def test_an_answer_is_that_of_the_model_and_its_trace(served, demo, wide) -> None:
    image, data = wide
    status, found = ask(served, data, tokens=96)
    chosen = pruning.build("autoprune", target_token_num=96, x0=5.6)
    expected = traced.run(
        *(demo.model, demo.tokenizer, demo.image_processor, image, QUESTION, chosen),
        max_new_tokens=8,
    )
    assert status == 200 and found["text"] == expected.text
    assert found["entering"] == expected.sample.entering and found["entering"][0] == 576
    assert found["cost"] == expected.cost.to_dict()
    assert found["complexity"]["mi"] == pytest.approx(expected.mutual_information, rel=1e-4)
    assert found["seconds"].keys() == {"prefill", "decode", "waited"}
    assert [panel["kept"] for panel in found["panels"]] == [len(kept) for kept in expected.kept]
    assert [panel["merged"] for panel in found["panels"]] == [len(m) for m in expected.merged]
    assert not any(panel["nowhere"] for panel in found["panels"])
    assert found["views"] == [{"title": "", "columns": 24, "rows": 24}]
    for layer in (0, 5, 12):
        shown = picture_of(found["pictures"][found["panels"][layer]["pictures"][0]])
        drawn = overlay.draw(
            expected.picture,
            24,
            expected.kept[layer],
            merged=expected.merged[layer],
            letterbox=expected.letterbox,
        )
        assert shown.size == (336, 336) and shown.tobytes() == drawn.tobytes()


def test_an_unpruned_answer_has_one_picture(served, wide) -> None:
    status, found = ask(served, wide[1], method="none", tokens=None)
    assert status == 200 and found["entering"] == [576] * 12
    assert len(found["pictures"]) == 1 and len(found["panels"]) == 13
    assert found["cost"]["prefill_flops"] == found["cost"]["dense_prefill_flops"]


def test_other_methods_prune_at_depths_of_this_decoder(served) -> None:
    made = served.viewer
    # SparseVLM cuts when 3, 7 and 16 of 32 layers have run: of 12, 1.1, 2.6 and 6.
    assert made.pruner("sparsevlm", 64).cut_depths == (1, 3, 6)
    assert made.pruner("autoprune", 32) == pruning.build("autoprune", target_token_num=32, x0=5.6)
    assert made.pruner("no-image", 32) == pruning.build("no-image")
    by_flops = pruning.build("autoprune", target_flops=0.25)
    other = Viewer(made._loaded, by_flops, name="x")
    assert other.pruner("autoprune", None) == by_flops
    assert other.pruner("autoprune", 32) == pruning.build("autoprune", target_token_num=32)


def test_settings_of_a_question_are_read_as_those_of_a_run(served) -> None:
    made = served.viewer
    assert made.pruner("autoprune", 32, "x0=3,preset=paper") == pruning.build(
        "autoprune", preset="paper", target_token_num=32, x0=3.0
    )
    # Without x0 among them the depth is that of 32 layers in 12, and the command line's 5.6 is not.
    assert made.pruner("autoprune", 32, "beta=2").x0 == pytest.approx(14.9 * 12 / 32)
    assert made.pruner("sparsevlm", 64, "stages=1+2+3").stages == (1, 2, 3)


def test_a_share_of_the_tokens_is_where_the_budget_starts(demo) -> None:
    made = Viewer(demo, pruning.build("fastv", target_fraction=0.25), name="x")
    assert made.settings()["tokens"] == 144  # of 576
    assert made.pruner("fastv", 32) == pruning.build("fastv", target_token_num=32)


def test_two_users_at_once_do_not_mix(served, demo, picture, wide) -> None:
    """Four requests at once, of other pictures, budgets and methods, each as if alone."""
    whole = encoded("PNG", picture)
    cases = [
        (wide[1], "autoprune", 32),
        (whole, "fastv", 128),
        (whole, "autoprune", 128),
        (wide[1], "none", None),
    ]
    alone = [ask(served, *case) for case in cases]
    together: list = [None] * len(cases)

    def work(i: int) -> None:
        together[i] = ask(served, *cases[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(cases))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for before, now in zip(alone, together):
        assert before[0] == now[0] == 200
        assert {**before[1], "seconds": 0} == {**now[1], "seconds": 0}
    assert len({tuple(answer["entering"]) for _, answer in alone}) == 4


SMALL = encoded("PNG", Image.new("RGB", (20, 20), "red"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": ""}, "choose a picture first"),
        ({"image": "&&&"}, "image must be base64"),
        ({"image": b64(b"GIF89")}, "no image that can be read here"),
        ({"image": b64(png_of(60000, 60000))}, "at most 40 megapixels"),
        ({"image": b64(png_of(9000, 9000))}, "too large (9000 x 9000)"),
        ({"image": b64(SMALL[:60])}, "the picture is"),
        ({"question": "  "}, "ask something"),
        ({"question": "?" * 2001}, "question may have 2000 characters, got 2001"),
        (
            {"question": "half \ud800 of it"},
            "question: the text has half of",
        ),
        ({"image": b64(png_of(40_000, 2))}, "too large (40000 x 2)"),
        ({"method": "autoprun"}, "did you mean 'autoprune'"),
        ({"method": "idpruner"}, "not implemented"),
        ({"method": "cdpruner"}, "needs CLIP's text tower and projections"),
        ({"tokens": 0}, "tokens must be from 1 to 1000000, got 0"),
        ({"method": "pdrop", "tokens": 3}, "below the floor"),
        ({"settings": "x0"}, "expected FIELD=VALUE"),
        ({"settings": "x9=3"}, "unknown setting"),
        ({"settings": "preset=no"}, "unknown preset"),
        ({"settings": "target_flops=0.5"}, "target_flops cannot be set here"),
        ({"settings": "x" * 201}, "settings may have 200 characters, got 201"),
        ({"method": "cdpruner", "settings": "clip=folder"}, "clip cannot be set here"),
    ],
)
def test_a_bad_question_gets_its_message(served, changes, message) -> None:
    status, found = ask(served, SMALL, **changes)
    assert status == 400 and message in found["error"]


def test_a_prompt_beyond_the_context_gets_its_message(served, demo, monkeypatch) -> None:
    monkeypatch.setattr(demo.model.config, "max_position_embeddings", 600)
    status, found = ask(served, SMALL, question="what " * 30)
    assert (
        status == 400 and "576 of them visual; the context of this model is 600" in found["error"]
    )


def test_sixteen_bits_are_scaled_and_a_note_says_so(served, wide) -> None:
    grey = wide[0].convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    status, found = ask(served, encoded("PNG", deep))
    assert status == 200 and "16-bit grey is divided by 257" in found["note"]
    _, eight = ask(served, encoded("PNG", grey))
    assert eight["note"] is None and eight["pictures"] == found["pictures"]


def test_bad_requests_get_their_message(served, monkeypatch) -> None:
    good = json.dumps({"image": b64(SMALL), "question": "?", "method": "none"}).encode()

    def refused(status: int, message: str, *request, **headers) -> None:
        found, _, data = send(served, *request, **headers)
        assert (found, message in json.loads(data)["error"]) == (status, True), data

    refused(404, "nothing at /../secret", "GET", "/../secret")
    refused(404, "nothing at /api/else", "POST", "/api/else", good)
    refused(415, "application/json", "POST", "/api/answer", good, Content_Type="text/plain")
    refused(403, "own page", "POST", "/api/answer", good, Origin="https://example.org")
    refused(403, "as localhost", "POST", "/api/answer", good, Host="example.org")
    refused(403, "as localhost", "GET", "/", Host="example.org:7860")
    monkeypatch.setattr(handler, "MOST_BODY", len(good) - 1)
    refused(413, "at most 20.0 MiB", "POST", "/api/answer", good)


def test_names_of_this_machine_are_taken(served) -> None:
    port = served.server_address[1]
    for host in (f"localhost:{port}", "127.0.0.1", f"[::1]:{port}"):
        assert send(served, "GET", "/api/settings", Host=host)[0] == 200
    body = json.dumps({"image": "", "question": "?", "method": "none"}).encode()
    own = f"http://localhost:{port}"
    assert send(served, "POST", "/api/answer", body, Host=f"localhost:{port}", Origin=own)[0] == 400


def test_too_many_who_wait_are_told(served, monkeypatch) -> None:
    monkeypatch.setattr(served.viewer, "_places", threading.BoundedSemaphore(1))
    with served.viewer.place():
        status, found = ask(served, SMALL)
    assert status == 503 and "try again" in found["error"]
    assert ask(served, SMALL)[0] == 200


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("out of memory\nand how much there is"), "the model failed: out of memory"),
        (RuntimeError(), "the model failed: RuntimeError"),
        (MemoryError(), "the model failed: MemoryError"),
        (KeyError("mi"), "the model failed: KeyError: 'mi'"),
    ],
)
def test_a_model_that_fails_is_said(served, monkeypatch, caplog, error, message) -> None:
    def fail(*_):
        raise error

    monkeypatch.setattr(traced, "run", fail)
    status, found = ask(served, SMALL)
    assert (status, found["error"]) == (500, message)
    assert [record.exc_info[1] for record in caplog.records] == [error]
    monkeypatch.undo()
    assert ask(served, SMALL)[0] == 200


def test_a_page_that_cannot_be_read_is_said(served, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(handler, "_PAGE", tmp_path)
    status, _, data = send(served, "GET", "/")
    assert status == 500 and b"the viewer failed: FileNotFoundError" in data


def test_nothing_is_kept_between_questions(served) -> None:
    before = dict(vars(served.viewer))
    assert ask(served, SMALL)[0] == 200
    assert vars(served.viewer) == before
    assert not [
        value for value in before.values() if isinstance(value, (dict, list, ViewerQuestion))
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--max-new-tokens", "0"], "--max-new-tokens must be at least 1"),
        (["--port", "70000"], "--port must be 0 to 65535"),
        (["--host", "256.1.1.1"], "--host 256.1.1.1 --port 7860 cannot be listened on"),
        (["--host", "a" * 64], "cannot be listened on"),
        (["--set", "no_such=1"], "unknown setting"),
        (["--target-kv", "0.5"], "the page's budget is a number of tokens"),
        (["--set", "target_flops=0.5"], "the page's budget is a number of tokens"),
    ],
)
def test_wrong_input_is_named(flags, message, demo, monkeypatch, capsys) -> None:
    monkeypatch.setattr(viewer, "load", lambda args: demo)
    assert viewer.main(["--model-path", str(DEMO), *flags]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_a_port_that_is_taken_is_said(served, demo, monkeypatch, capsys) -> None:
    monkeypatch.setattr(viewer, "load", lambda args: demo)
    port = str(served.server_address[1])
    assert viewer.main(["--model-path", str(DEMO), "--port", port]) == 2
    assert f"--port {port} cannot be listened on" in capsys.readouterr().err


def test_the_program_serves_on_loopback_unless_told_otherwise(demo, monkeypatch, capsys) -> None:
    seen = []

    def serve(self, poll_interval: float) -> None:
        seen.append((self.server_address[0], self.local, self.viewer.settings()["tokens"]))

    monkeypatch.setattr(viewer, "load", lambda args: demo)
    monkeypatch.setattr(ViewerServer, "serve_forever", serve)
    flags = ["--model-path", str(DEMO), "--port", "0", "--target-token-num", "32"]
    assert viewer.main(flags) == 0
    assert seen == [("127.0.0.1", True, 32.0)]
    out = capsys.readouterr()
    assert out.out.startswith("http://127.0.0.1:") and "no login" not in out.err
    assert viewer.main([*flags, "--host", "0.0.0.0"]) == 0
    assert seen[1][1] is False and "there is no login" in capsys.readouterr().err
