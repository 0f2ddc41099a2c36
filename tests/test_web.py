"""The page to ask on: its server, and the page itself where there is a browser."""
import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from conftest import random_dna
from model import GPT
from sample import load
from tools import web
from tools.analyze import ask, mean_changes, mutation_effects

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(web.__file__)))
DNA = random_dna(60)


@pytest.fixture(scope="module")
def session(tiny):
    return load(f"{tiny}/tuned", "cpu")


@pytest.fixture(scope="module")
def server(session):
    with web.make_server(session) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def request(server, method, path, body=None, **headers):
    """-> (status, headers, body) of the answer; names of headers with _ for -"""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, headers)
    response = connection.getresponse()
    found = response.status, response.headers, response.read().decode()
    connection.close()
    return found


def post(server, path, body, **headers):
    status, _, found = request(server, "POST", path, body, **headers)
    return status, json.loads(found)


# What is answered

@pytest.mark.parametrize("text", [DNA, f">a record\n{DNA[:30].lower()}\n{DNA[30:]}\n", f" {DNA}\n"])
def test_answers_are_those_of_the_command_line(server, session, text):
    status, found = post(server, "/", text)
    assert status == 200 and found["sequence"] == DNA and (found["read"], found["note"]) == (60, "")
    assert found["answers"].keys() == {q["task"] for q in session.questions}
    for q in session.questions:
        log_p, _ = ask(session, q, [DNA], "")
        assert np.allclose(found["answers"][q["task"]], np.exp(log_p[0]))


def test_all_questions_are_asked_at_once(server, session, monkeypatch):
    """Prompts of similar lengths are in one batch, whatever their instructions."""
    questions = [session.questions[0] | {"task": f"{i}", "instruction": f"Is it {i}?"} for i in range(9)]
    monkeypatch.setattr(server, "session", session._replace(questions=questions))
    batches, real = [], GPT.log_likelihoods
    monkeypatch.setattr(GPT, "log_likelihoods", lambda self, prompts, choices, P:
                        batches.append(prompts) or real(self, prompts, choices, P))
    found = post(server, "/", DNA)[1]["answers"]
    assert len(found) == sum(map(len, batches)) == 9 and len(batches) <= 2
    for q in questions:
        assert np.allclose(found[q["task"]], np.exp(ask(session, q, [DNA], "")[0][0]))


def test_explanation_is_that_of_the_command_line(server, session):
    question = session.questions[0]
    k, _, changes = mutation_effects(session, question, DNA)
    status, found = post(server, f"/{question['task']}", DNA)
    assert status == 200 and found["label"] == question["choices"][k]
    assert np.allclose(found["changes"], mean_changes(DNA, changes), atol=1e-5)


def test_a_cut_is_noted(server):
    dna = random_dna(3000)
    _, found = post(server, "/", dna)
    assert 0 < found["read"] < 3000 and found["sequence"] == dna
    assert found["note"] == f"only the first {found['read']:,} of 3,000 letters were read"


@pytest.mark.parametrize("path, body, error", [
    ("/", "MKVLAAGEF", "the sequence: 'L' is no nucleotide: is this protein?"),
    ("/", ">a\nACGTACGT\n>b\nACGTACGT\n", "several FASTA records: give one sequence at a time"),
    ("/", "", "the sequence: no 8 bases in a row"),
    ("/", "NNNNACGTNNNN", "the sequence: no 8 bases in a row"),
    ("/", b"\xff\xfe", "can't decode"), ("/tf_99", DNA, "task=tf_99: the model of ")])
def test_wrong_input_gets_one_line(server, path, body, error):
    status, found = post(server, path, body)
    assert status == 400 and error in found["error"] and "\n" not in found["error"]


@pytest.mark.parametrize("size", ["100001", "-1", "9" * 5000, "many"])
def test_requests_have_a_size(server, size):
    """The server refuses before it reads."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
    connection.putrequest("POST", "/")
    connection.putheader("Content-Length", size)
    connection.endheaders()
    assert connection.getresponse().status == 400


# For whom

def test_other_sites_are_refused(server):
    port = server.server_port
    for headers in ({"Host": "evil.example"}, {"Host": f"evil.example:{port}"}, {"Host": "127.0.0.1"},
                    {"Origin": "http://evil.example"}, {"Origin": "null"},
                    {"Origin": f"https://localhost:{port}"}, {"Origin": "http://localhost:1"}):
        assert request(server, "POST", "/", DNA, **headers)[0] == 403
        assert request(server, "GET", "/", **headers)[0] == 403
    for host in ("127.0.0.1", "localhost"):
        here = f"{host}:{port}"
        assert request(server, "POST", "/", DNA, Host=here, Origin=f"http://{here}")[0] == 200


def test_it_listens_on_this_machine_alone(server):
    assert server.server_address[0] == "127.0.0.1"


def test_page_runs_its_own_script_alone(server):
    (status, headers, page), (_, others, _) = request(server, "GET", "/"), request(server, "GET", "/")
    policy = headers["Content-Security-Policy"]
    assert status == 200 and policy.startswith("default-src 'none'; script-src 'nonce-")
    assert policy != others["Content-Security-Policy"]
    nonce = re.search("script-src 'nonce-(.+?)'", policy)[1]
    for tag in re.findall("<(?:script|style).*?>", page):
        assert f'nonce="{nonce}"' in tag
    # nothing is fetched from elsewhere
    assert not re.search("https?:", page) and re.findall(r'(?:src|href)="(.*?)"', page) == ["data:,"]
    assert request(server, "GET", "/etc/passwd")[0] == 404


def test_page_knows_the_questions(server, session, monkeypatch):
    """A task may have any name and words."""
    odd = session.questions[0] | {"task": "</script><b>", "choices": ["<i>", "&"]}
    monkeypatch.setattr(server, "session", session._replace(questions=[odd]))
    page = request(server, "GET", "/")[2]
    assert page.count("</script>") == 2 and "<b>" not in page
    data = json.loads(re.search('<script type="application/json".*?>(.*?)</script>', page)[1])
    assert data["questions"] == [odd]
    assert data["records"].keys() == {"x"}


def test_one_computation_at_a_time(server, monkeypatch):
    now, most = [], []

    def slow(*args):
        now.append(1)
        most.append(len(now))
        time.sleep(0.05)
        now.pop()
        return {}

    monkeypatch.setattr(web, "answer_all", slow)
    threads = [threading.Thread(target=post, args=(server, "/", DNA)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1, 1, 1, 1]


def test_a_browser_may_leave(server, monkeypatch, capfd):
    """The terminal stays quiet, and the next request is answered."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    left, done = threading.Event(), threading.Event()

    def slow(*args):
        left.wait()
        return {"answers": "x" * 10_000_000}

    monkeypatch.setattr(web, "answer_all", slow)
    monkeypatch.setattr(server, "shutdown_request", lambda request: (request.close(), done.set()))
    connection.request("POST", "/", DNA)
    connection.close()
    left.set()
    done.wait(60)
    monkeypatch.undo()
    assert post(server, "/", DNA)[0] == 200
    assert capfd.readouterr() == ("", "")


# Where, and from when to when

def test_the_next_free_port(server, session, monkeypatch):
    monkeypatch.setattr(web, "PORTS", range(server.server_port, server.server_port + 20))
    with web.make_server(session) as other:
        assert server.server_port < other.server_port < server.server_port + 20
    monkeypatch.setattr(web, "PORTS", range(server.server_port, server.server_port + 1))
    with pytest.raises(ValueError, match="are taken"):
        web.make_server(session)


def test_a_model_needs_questions_on_dna(session):
    for questions in ([], [session.questions[0] | {"is_dna": False}]):
        with pytest.raises(ValueError, match="tuned on no question about DNA"):
            web.make_server(session._replace(questions=questions))


def test_as_a_command(tiny):
    run = subprocess.Popen([sys.executable, "sample.py", "--web", f"--out_dir={tiny}/tuned", "--device=cpu"],
                           cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert re.match(r"open http://127\.0\.0\.1:80\d\d in a browser", run.stdout.readline())
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=60)
    assert (run.returncode, out.strip(), err) == (0, "", "")


# In a browser

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium") or pytest.skip("needs Chromium")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server):
    """-> the page, once it has answered about its first example. It may not complain."""
    page = browser.new_page()
    said = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url) if "127.0.0.1" not in request.url
            and not request.url.startswith("data:") else None)
    page.goto(f"http://127.0.0.1:{server.server_port}/")
    page.locator(".row b").first.wait_for()
    yield page
    page.close()
    assert not [text for text in said if "400 (Bad Request)" not in text]


def wait_until(page, script):
    """The page's policy forbids playwright's own wait_for_function()."""
    end = time.time() + 60
    while not page.evaluate(script):
        assert time.time() < end, script
        time.sleep(0.02)


def bases(page):
    return "".join(page.locator("#bases button").all_text_contents())


def test_browser_colours_bases_and_changes_them(page):
    original = bases(page)
    assert len(original) == 70 and page.locator(".row").count() == 1
    was = page.locator(".row .was")
    assert was.text_content() == ""

    # colours
    page.locator(".row").click()
    wait_until(page, "document.querySelector('.row').ariaPressed === 'true'")
    shares = page.evaluate("""[...document.querySelectorAll('#bases button')].map(base =>
        Number(base.style.getPropertyValue('--up')) + Number(base.style.getPropertyValue('--down')))""")
    assert max(shares) == 1 and min(shares) >= 0
    assert page.locator("#legend").is_visible() and not page.locator("#stale").is_visible()

    # a click, and the way back
    page.locator("#bases button").nth(3).click()
    changed = "ACGT"["ACGT".index(original[3]) - 3]
    assert bases(page) == original[:3] + changed + original[4:] == page.locator("#text").input_value()
    wait_until(page, "document.querySelector('.row .was').textContent.startsWith('was ')")
    assert page.locator("#stale").is_visible()
    page.get_by_role("button", name="Undo").click()
    assert bases(page) == original
    wait_until(page, "document.querySelector('.row .was').textContent === ''")

    # a second click takes the colours away
    page.locator(".row").click()
    assert not page.locator("#legend").is_visible()


def test_browser_by_keyboard(page):
    """Tab stops once at the bases, and arrows move there."""
    original = bases(page)
    page.locator("#text").focus()
    for _ in range(6):      # Ask, four examples; Undo and the way back are disabled
        page.keyboard.press("Tab")
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "t", "ArrowDown", "End", "Home", "ArrowLeft", "G"):
        page.keyboard.press(key)
    assert bases(page) == "G" + "T" + original[2:]
    assert page.evaluate("document.activeElement.ariaLabel") == "G at 1"
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.ariaLabel") == f"T at 2, was {original[1]}"
    page.keyboard.press("Backspace")
    assert bases(page) == original
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.textContent") == "Histone H3"


def test_browser_says_what_is_wrong(page):
    page.locator("#text").fill("MKVLAAGEF")
    page.keyboard.press("Control+Enter")
    page.get_by_role("alert").filter(has_text="is this protein?").wait_for()
    assert page.locator("#text").get_attribute("aria-invalid") == "true"
    page.locator("#text").fill("A" * 100_001)
    page.get_by_role("button", name="Ask", exact=True).click()
    page.get_by_role("alert").filter(has_text="100001 letters").wait_for()
    page.get_by_role("button", name="Splice donor").click()
    wait_until(page, "document.querySelectorAll('#bases button').length > 70")
    assert page.get_by_role("alert").text_content() == ""


@pytest.mark.parametrize("width", [320, 390, 800, 1280])
def test_browser_fits_the_page_into_any_width(page, width):
    page.set_viewport_size({"width": width, "height": 844})
    page.locator(".row").click()
    assert page.evaluate("document.documentElement.scrollWidth") == width
