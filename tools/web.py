"""
A page on which to ask a model about a sequence: sample.py --web.

The page is web.html. It is for this machine alone, and nothing that is pasted there is
stored. The server answers programs too: all questions, or why one is answered so.

    curl --data-binary @promoter.fa http://127.0.0.1:8000/
    curl --data-binary @promoter.fa http://127.0.0.1:8000/prom_core_tata
"""
import json
import os
import secrets
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import numpy as np

from config import require
from dna.read import clean_dna, read_fasta, stretches
from instruct import label_probabilities
from tools.analyze import mean_changes, mutation_effects, note, track_record

PORTS = range(8000, 8100)   # the first free one is taken
LIMIT = 100_000             # bytes of a request

# The page runs its own script and style, and speaks to its server alone.
POLICY = ("default-src 'none'; script-src 'nonce-{0}'; style-src 'nonce-{0}'; "
          "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
          "frame-ancestors 'none'")


# --------------------------------------------------------------------------------------
# What is asked

def read_sequence(text):
    """What somebody pasted, DNA or one FASTA record -> its sequence"""
    sequence, where = text.strip(), "the sequence"
    if sequence.startswith((">", ";")):
        lines = enumerate(sequence.splitlines(), start=1)
        (_, sequence), *others = read_fasta(lines, where)
        require(not others, "several FASTA records: give one sequence at a time")
    sequence = clean_dna(sequence, where)
    require(stretches(sequence), f"{where}: {note(sequence)}: too few to ask about")
    return sequence


def questions_on_dna(s):
    return [q for q in s.questions if q["is_dna"]]


def answer_all(s, sequence):
    """-> {"sequence", "read": how many of its letters all prompts hold, "note": what to
    know, "answers": {task: the probability of each choice}}"""
    examples = [q | {"input": sequence} for q in questions_on_dna(s)]
    answers = label_probabilities(s.model, s.tok, examples, s.max_len, s.machine, "")
    read = min(answer.kept for answer in answers)
    return {"sequence": sequence, "read": read, "note": note(sequence, read),
            "answers": {e["task"]: np.exp(answer.log_p).tolist()
                        for e, answer in zip(examples, answers)}}


def explain(s, sequence, task):
    """-> {"label": the likeliest one, "changes": what replacing each letter adds to its
    log-odds, as mean_changes() says}"""
    question = s.question(task)
    k, _, changes = mutation_effects(s, question, sequence)
    return {"label": question["choices"][k],
            "changes": mean_changes(sequence, changes).tolist()}


def write_page(s, nonce):
    """-> web.html with what it must know of the model, and the nonce of POLICY"""
    data = json.dumps({"questions": questions_on_dna(s), "records": track_record(s),
                       "limit": LIMIT})
    path = os.path.join(os.path.dirname(__file__), "web.html")
    with open(path, encoding="utf-8") as f:
        page = f.read()
    return page.replace("NONCE", nonce).replace("DATA", data.replace("<", r"\u003c"))


# --------------------------------------------------------------------------------------
# The server

class Handler(BaseHTTPRequestHandler):
    timeout = 30        # seconds; browsers open connections that they do not use

    def handle(self):
        # a browser may leave before it has its answer
        with suppress(ConnectionError):
            super().handle()

    def parse_request(self):
        """Refuse what comes from the page of another site. Its name may have been made
        to mean this machine (DNS rebinding), or it may send to our name."""
        if not super().parse_request():
            return False
        host, port = self.headers["Host"], self.server.server_port
        if (host in (f"127.0.0.1:{port}", f"localhost:{port}")
                and self.headers["Origin"] in (None, f"http://{host}")):
            return True
        self.send_error(403, "for this machine alone")
        return False

    def do_GET(self):
        """/ is the page."""
        nonce = secrets.token_urlsafe()
        if self.path == "/":
            page = write_page(self.server.session, nonce)
            self.reply(200, page, "text/html", POLICY.format(nonce))
        else:
            self.send_error(404)

    def do_POST(self):
        """The body is a sequence. / is what answer_all() says of it, and /TASK what
        explain() says. Wrong input has status 400 and {"error": a line}."""
        session, task = self.server.session, unquote(self.path[1:])
        try:
            size = int(self.headers["Content-Length"] or 0)
            require(0 <= size <= LIMIT, f"{size:,} bytes: give {LIMIT:,} at most")
            sequence = read_sequence(self.rfile.read(size).decode())
            # one computation at a time
            with self.server.lock:
                found = (explain(session, sequence, task) if task
                         else answer_all(session, sequence))
            self.reply(200, json.dumps(found), "application/json")
        except ValueError as e:
            self.reply(400, json.dumps({"error": str(e)}), "application/json")

    def reply(self, status, text, kind, policy="default-src 'none'"):
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Security-Policy", policy)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *args):
        """The terminal stays quiet."""


def make_server(s):
    """-> a server of the page, at the first free port. ValueError for a model that was
    tuned on no question about DNA"""
    require(questions_on_dna(s), "this model was tuned on no question about DNA: give "
            "the --out_dir of one that was")
    for port in PORTS:
        with suppress(OSError):
            server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
            server.session, server.lock = s, threading.Lock()
            return server
    raise ValueError(f"the ports {PORTS[0]} to {PORTS[-1]} are taken: end a program "
                     "that listens there")


def serve(s):
    """Serve the page until Ctrl-C."""
    with make_server(s) as server, suppress(KeyboardInterrupt):
        print(f"open http://127.0.0.1:{server.server_port} in a browser; Ctrl-C ends "
              "this", flush=True)
        server.serve_forever()
    print()
