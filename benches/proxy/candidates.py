"""The proxies that are compared: each one's configuration, how it starts, and what it must do to take part."""

import http.client
import os
import shutil
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from tokens import AUDIENCE, ISSUER, broken

PATH = "/admin/content/articles/42"
ALGORITHMS = {"haproxy": ["HS256", "RS256", "ES256"], "portcullis": ["HS256", "RS256", "ES256", "EdDSA"]}

UPSTREAM = """
daemon off; master_process off; worker_processes 1;
pid {folder}/upstream.pid; error_log {folder}/upstream.log;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; default_type text/plain;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  # Otherwise X_Auth_User would be dropped here, and no candidate could be seen to let it through.
  underscores_in_headers on;
  server {{
    listen 127.0.0.1:{upstream} backlog=4096;
    location / {{ return 200 "{page}"; }}
    location = /admin/content/whoami {{
      return 200 "user=$http_x_auth_user role=$http_x_auth_role id=$http_x_auth_id";
    }}
  }}
}}
"""

NGINX = """
daemon off; master_process off; worker_processes 1;
pid {folder}/nginx.pid; error_log {folder}/nginx.log;
events {{ worker_connections 4096; }}
http {{
  access_log {log}; keepalive_requests 1000000000; keepalive_timeout 600s;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream cms {{ server 127.0.0.1:{upstream}; keepalive 256; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://cms; proxy_http_version 1.1;
      proxy_set_header Connection ""; proxy_set_header Host $http_host;
    }}
  }}
}}
"""

HAPROXY = """
global
  nbthread 1
  maxconn 8192
{log}
defaults
  mode http
  timeout connect 2s
  timeout client 75s
  timeout server 60s
  http-reuse always
{httplog}
frontend clients
  bind 127.0.0.1:{port} backlog 4096
  default_backend cms
{rules}
backend cms
  server cms 127.0.0.1:{upstream}
"""

# The cheapest form found that asks what the gateway asks: the claims are decoded once and read with
# json_query (jwt_payload_query would decode them for each claim), and names that could pass for an identity
# header are dropped by the parser's own option instead of a regular expression.
HAPROXY_JWT = """
  option http-restrict-req-hdr-names delete
  http-request set-var(txn.token) http_auth_bearer
  http-request return status 401 unless {{ var(txn.token) -m found }}
  http-request return status 401 unless {{ var(txn.token),jwt_header_query('$.alg') -m str {algorithm} }}
  http-request return status 401 unless {{ var(txn.token),jwt_verify("{algorithm}","{key}") -m int 1 }}
  http-request set-var(txn.claims) var(txn.token),word(2,.),ub64dec
  http-request set-var(txn.exp) var(txn.claims),json_query('$.exp','int')
  http-request set-var(txn.left) date,neg,add(txn.exp)
  http-request return status 401 unless {{ var(txn.left) -m int gt 0 }}
  http-request return status 401 unless {{ var(txn.claims),json_query('$.iss') -m str {issuer} }}
  http-request return status 401 unless {{ var(txn.claims),json_query('$.aud') -m str {audience} }}
  http-request set-var(txn.role) var(txn.claims),json_query('$.role')
  acl editor var(txn.role) -m str Editor SuperAdmin
  http-request return status 403 if {{ path_beg /admin/content/ }} !editor
  http-request return status 403 unless {{ path_beg /admin/content/ }}
  http-request del-header Authorization
  http-request set-header X-Auth-Id %[var(txn.claims),json_query('$.sub')]
  http-request set-header X-Auth-User %[var(txn.claims),json_query('$.preferred_username')]
  http-request set-header X-Auth-Role %[var(txn.role)]
"""

PORTCULLIS = """
listen: 127.0.0.1:{port}
admin: false
workers: 1
state: {state}
upstream: http://127.0.0.1:{upstream}
roles: [Viewer, Editor, SuperAdmin]
rules:
  - {{ path: /admin/schema/*,  allow: SuperAdmin }}
  - {{ path: /admin/content/*, allow: Editor }}
  - {{ path: /admin/user/:id,  methods: [GET], allow: Viewer }}
  - {{ path: /admin/user/*,    allow: SuperAdmin }}
  - {{ path: /public/*,        allow: public }}
tokens: {{ algorithm: {algorithm}, issuer: {issuer}, audience: {audience}, keys: {keys} }}
shutdown: {{ drain: 0s }}
log: {{ format: json, level: warn, access: {access} }}
"""


class Unfit(Exception):
    """A candidate that does not do the work; measuring it would compare nothing."""


@dataclass
class Candidate:
    name: str
    command: list
    port: int
    key: object = None
    environment: dict = field(default_factory=dict)
    process: object = None
    rounds: list = field(default_factory=list)

    def start(self, core, folder):
        log = Path(folder, f"{self.name}.out").open("wb")
        self.process = subprocess.Popen(
            self.command,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self.environment},
            preexec_fn=lambda: os.sched_setaffinity(0, {core}),
        )
        deadline = time.monotonic() + 20
        while True:
            try:
                return self.ask("/")
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    said = Path(folder, f"{self.name}.out").read_text(errors="replace")[-2000:]
                    raise Unfit(f"{self.name} did not start:\n{said}") from None
                time.sleep(0.05)

    def ask_to_end(self):
        if self.process and self.process.poll() is None:
            self.process.terminate()

    def stop(self):
        if self.process:
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def ask(self, path, headers=()):
        """Status and body of one GET; `headers` are pairs, sent as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.putrequest("GET", path)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def check(self):
        """Raises Unfit unless the candidate answers 200, 401 and 403 where it should and says who is asking."""
        if self.key is None:
            self._expect("a request", PATH, [], 200)
            return
        now = int(time.time())
        good = self.key.token(now)

        def bearer(token):
            return [("Authorization", f"Bearer {token}")]

        forged = [("X-Auth-User", "sam"), ("X-Auth-Role", "SuperAdmin"), ("X-Auth-Id", "3")]
        underscored = [(name.replace("-", "_"), value) for name, value in forged]
        self._expect("an Editor", PATH, bearer(good), 200)
        self._expect("no token", PATH, [], 401)
        self._expect("a token that is none", PATH, bearer("a.b.c"), 401)
        self._expect("a broken signature", PATH, bearer(broken(good)), 401)
        self._expect("an expired token", PATH, bearer(self.key.token(now - 7300)), 401)
        self._expect("another issuer", PATH, bearer(self.key.token(now, iss="someone")), 401)
        self._expect("another audience", PATH, bearer(self.key.token(now, aud="someone")), 401)
        self._expect("a Viewer", PATH, bearer(self.key.token(now, role="Viewer")), 403)
        self._expect("a path without a rule", "/elsewhere", bearer(good), 403)
        for headers in (bearer(good), [*forged, *underscored, *bearer(good)], [*bearer(good), *underscored, *forged]):
            seen = self._expect("identity", "/admin/content/whoami", headers, 200)
            if seen != "user=eddie role=Editor id=2":
                raise Unfit(f"{self.name} forwarded {seen!r} for {headers[:-1]}")

    def check_log(self, folder):
        """Raises Unfit unless a line was logged for each request of the rounds: cheaper is who writes nothing."""
        logs = [Path(folder, name) for name in (f"{self.name}.out", "nginx.access.log")]
        lines = logs[self.name == "nginx-plain"].read_bytes().count(PATH.encode())
        requests = sum(one["requests"] for one in self.rounds)
        if lines < requests:
            raise Unfit(f"{self.name} logged {lines} lines for {requests} requests")

    def _expect(self, what, path, headers, status):
        seen, body = self.ask(path, headers)
        if seen != status:
            raise Unfit(f"{self.name} answered {seen} where {what} should get {status}: {body[:200]}")
        return body


def candidates(folder, ports, keys, upstream, access_log, portcullis):
    """All that can run here, HAProxy plain first: the others are measured against it. `ports` is an iterator."""
    found = []

    def add(name, key, extension, render, command):
        port = next(ports)
        file = Path(folder, f"{name}.{extension}")
        file.write_text(render(port))
        found.append(Candidate(name, [part.format(file=file) for part in command], port, key))

    def haproxy(rules):
        return lambda port: HAPROXY.format(
            port=port,
            upstream=upstream,
            rules=rules,
            log="  log stdout format raw local0" if access_log else "",
            httplog="  log global\n  option httplog" if access_log else "",
        )

    haproxy_command = [shutil.which("haproxy") or "/usr/sbin/haproxy", "-db", "-f", "{file}"]
    add("haproxy-plain", None, "cfg", haproxy(""), haproxy_command)
    for algorithm in ALGORITHMS["haproxy"]:
        key = keys[algorithm]
        material = key.secret if algorithm == "HS256" else key.public
        rules = HAPROXY_JWT.format(algorithm=algorithm, key=material, issuer=ISSUER, audience=AUDIENCE)
        add(f"haproxy-{algorithm}", key, "cfg", haproxy(rules), haproxy_command)

    log = f"{folder}/nginx.access.log" if access_log else "off"
    add(
        "nginx-plain",
        None,
        "conf",
        lambda port: NGINX.format(folder=folder, port=port, upstream=upstream, log=log),
        [shutil.which("nginx") or "/usr/sbin/nginx", "-c", "{file}", "-p", str(folder)],
    )

    if portcullis:
        for algorithm in ALGORITHMS["portcullis"]:
            key = keys[algorithm]
            add(
                f"portcullis-{algorithm}",
                key,
                "yaml",
                lambda port, key=key: PORTCULLIS.format(
                    port=port,
                    upstream=upstream,
                    state=f"state-{key.algorithm}",
                    algorithm=key.algorithm,
                    issuer=ISSUER,
                    audience=AUDIENCE,
                    keys=f'{{ secret: "{key.secret}" }}' if key.algorithm == "HS256" else key.folder,
                    access=str(access_log).lower(),
                ),
                [str(portcullis), "serve", "--config", "{file}"],
            )
    return found


def upstream(folder, port):
    """The CMS: nginx with 1 KiB answers, and one path that tells which identity it was told."""
    file = Path(folder, "upstream.conf")
    file.write_text(UPSTREAM.format(folder=folder, upstream=port, page="x" * 1024))
    command = [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(file), "-p", str(folder)]
    return Candidate("upstream", command, port)
