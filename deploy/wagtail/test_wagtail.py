#!/usr/bin/env python3
"""Wagtail behind the gateway, end to end: test_wagtail.py DIR, for a DIR that setup.sh made.

Starts the site and the gateway (PORTCULLIS_BIN, by default target/release/portcullis) on free ports of
the loopback address, with gateway.yaml as it stands but for its three addresses; tries what README.md
promises; stops both. Prints a line a check and `N passed, N failed` at the end. Needs requests, which is
in DIR/venv, and starts itself again with that Python when it is missing here.
"""

import json
import os
import re
import secrets
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from contextlib import ExitStack, contextmanager
from html.parser import HTMLParser
from pathlib import Path

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
# Names as seed.py gives them to Wagtail, with the role that each has at the gateway.
USERS = {"vera": "Viewer", "eddie": "Editor", "sam": "SuperAdmin"}
FULL_NAMES = {"eddie": "Eddie Editor", "sam": "Sam Superadmin"}

# Every family of Wagtail's and Django's URLs below the two admins, and whether an Editor may request it. One that is
# in neither list is new (another version, another app): it fails the test until somebody has decided.
FOR_EDITORS = """account api block-preview choose-anchor-link choose-email-link choose-external-link choose-page
    choose-phone-link dismissibles documents editing-sessions embeds failwhale forms images jsi18n logout pages reports
    snippets sprite tag-autocomplete test404""".split()
NOT_FOR_EDITORS = """bulk collections groups login password_reset redirects sites users workflows""".split()
BULK_FOR_EDITORS = ["wagtailcore/page", "wagtailimages/image", "wagtaildocs/document"]

# Run inside the site: its URL patterns with parameters filled in, and the name of each model.
LIST_URLS = """
import json, re
from django.apps import apps
from django.urls import get_resolver
from django.urls.resolvers import URLPattern

def paths(resolver, before=""):
    for one in resolver.url_patterns:
        path = before + str(one.pattern)
        if isinstance(one, URLPattern):
            # <int:pk> and a regular expression's groups become an id that nothing has.
            path = re.sub(r"<[a-z_:]+>", "987654", re.sub(r"\\(\?P<[^()]*\)|\\([^()]*\)", "987654", path))
            yield "/" + re.sub(r"[\\^$]", "", path)
        else:
            yield from paths(one, path)

print(json.dumps([list(paths(get_resolver())), sorted(m._meta.label_lower.replace(".", "/") for m in apps.get_models())]))
"""


# Run inside the site: a user for each way in which Django stores passwords, an editor each but for the last two.
ADD_USERS = """
import json, sys
from django.contrib.auth import get_user_model
from django.contrib.auth.hashers import get_hashers, make_password
from django.contrib.auth.models import Group

added = {}
def add(name, hasher, groups=("Editors",), **more):
    defaults = {"password": make_password(sys.argv[1], hasher=hasher), "first_name": "First " + name, **more}
    user, _ = get_user_model().objects.update_or_create(username=name, defaults=defaults)
    user.groups.set(Group.objects.filter(name__in=groups))
    added[name] = user.password.split("$")[0]
for hasher in get_hashers():
    add("own-" + hasher.algorithm, hasher.algorithm)
add("own-root", "default", groups=(), is_superuser=True)
add("own-gone", "default", is_active=False)
print(json.dumps(added))
"""

# The same site with its own users.
OWN_USERS = """
listen: 127.0.0.1:{listen}
admin: false
preset: wagtail
upstream: http://127.0.0.1:{cms}
login: {{ cookie: false, page: false }}
users: {{ store: "sqlite:{database}" }}
"""


class Checks:
    """Counts, and prints each check as it is made."""

    passed = failed = 0

    def that(self, claim, holds, seen=""):
        if holds:
            self.passed += 1
            print(f"ok      {claim}", flush=True)
        else:
            self.failed += 1
            print(f"not ok  {claim}: saw {str(seen)[:300]!r}", flush=True)


class Form(HTMLParser):
    """The fields of a page's forms as a browser would send them back, buttons aside."""

    def __init__(self, html):
        super().__init__()
        self.fields, self.textarea, self.select = {}, None, None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        named = dict(attributes)
        name = named.get("name")
        if tag == "input" and name:
            kind = named.get("type", "text")
            ticked = kind not in ("checkbox", "radio") or "checked" in named
            if kind not in ("submit", "button", "file") and ticked:
                self.fields[name] = named.get("value") or ""
        elif tag == "textarea" and name:
            self.textarea = name
            self.fields[name] = ""
        elif tag == "select" and name:
            self.select = name
        elif tag == "option" and self.select and (self.select not in self.fields or "selected" in named):
            self.fields[self.select] = named.get("value", "")

    def handle_endtag(self, tag):
        if tag == "textarea":
            self.textarea = None
        elif tag == "select":
            self.select = None

    def handle_data(self, data):
        if self.textarea:
            self.fields[self.textarea] += data


def free_ports(count):
    """Ports that nobody listens on. Somebody could take one before it is used; then the start fails, loudly."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@contextmanager
def running(name, command, port, log, **options):
    """Runs a server until the block ends; entered once it listens."""
    with open(log, "wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, **options)
    try:
        deadline = time.monotonic() + 60
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"{name} did not start:\n{Path(log).read_text(errors='replace')[-3000:]}")
            time.sleep(0.05)
        yield process
    finally:
        # A second signal must not leave the rest running.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def gateway_file(folder, gateway, admin, cms):
    """gateway.yaml with other addresses, in a folder of its own. Says so if the file's have changed."""
    text = (HERE / "gateway.yaml").read_text()
    for written, meant in [
        ("listen: 127.0.0.1:8080", f"listen: 127.0.0.1:{gateway}"),
        ("admin: 127.0.0.1:9090", f"admin: 127.0.0.1:{admin}"),
        ("upstream: http://127.0.0.1:8000", f"upstream: http://127.0.0.1:{cms}"),
    ]:
        if text.count(written) != 1:
            sys.exit(f"gateway.yaml does not hold `{written}` once; this script needs to change it")
        text = text.replace(written, meant)
    file = Path(folder, "gateway.yaml")
    file.write_text(text)
    return file


def raw_get(port, path, lines):
    """Status and body of a GET with header lines exactly as given, which no HTTP library would send."""
    head = [f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Connection: close", *lines]
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(("\r\n".join(head) + "\r\n\r\n").encode())
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    status = re.match(rb"HTTP/1\.1 (\d{3})", answer)
    return int(status[1]) if status else 0, answer.decode(errors="replace")


def picture():
    """A small PNG, made here so that the test needs no file."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = 16
    rows = b"".join(b"\0" + bytes([40 * (row % 6), 120, 200]) * side for row in range(side))
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def main():
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} DIR   (made by setup.sh)")
    # A test that is stopped stops what it started, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(sys.argv[1]).resolve()
    python = folder / "venv/bin/python"
    portcullis = Path(os.environ.get("PORTCULLIS_BIN", REPOSITORY / "target/release/portcullis")).resolve()
    for needed, remedy in [(python, f"run {HERE}/setup.sh {folder}"), (portcullis, "build it, or set PORTCULLIS_BIN")]:
        if not needed.exists():
            sys.exit(f"{needed} is missing: {remedy}")
    try:
        import requests
    except ImportError:
        os.execv(python, [python, *sys.argv])

    name, _, secret = (folder / "gateway.env").read_text().strip().partition("=")
    environment = {**os.environ, name: secret}
    gateway_port, admin_port, cms_port = free_ports(3)
    gateway = f"http://127.0.0.1:{gateway_port}"
    cms = f"http://127.0.0.1:{cms_port}"
    check = Checks()

    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="portcullis-wagtail-"))
        file = gateway_file(scratch, gateway_port, admin_port, cms_port)

        def run(*arguments, **options):
            command = [str(portcullis), *arguments, "--config", str(file)]
            return subprocess.run(command, env=environment, capture_output=True, text=True, **options)

        checked = run("check")
        check.that("gateway.yaml is valid and its expectations hold", checked.returncode == 0, checked.stdout + checked.stderr)
        passwords = {user: secrets.token_urlsafe(12) for user in USERS}
        for user, role in USERS.items():
            added = run("user", "add", user, "--role", role, "--password-stdin", input=passwords[user] + "\n")
            check.that(f"user add {user} --role {role}", added.returncode == 0, added.stdout + added.stderr)

        gunicorn = [python, "-m", "gunicorn", "-c", "gunicorn_conf.py", "legacy.wsgi"]
        site_environment = {**environment, "CMS_LISTEN": f"127.0.0.1:{cms_port}", "PUBLIC_URL": gateway}
        cms_log = Path(scratch, "cms.log")
        stack.enter_context(
            running("Wagtail", gunicorn, cms_port, cms_log, cwd=folder / "site", env=site_environment)
        )
        serve = [portcullis, "serve", "--config", file]
        gateway_log = Path(scratch, "gateway.log")
        stack.enter_context(running("the gateway", serve, gateway_port, gateway_log, env=environment))
        failed_before = check.failed

        def get(path, **options):
            return requests.get(gateway + path, allow_redirects=False, timeout=30, **options)

        # ---- Who gets in
        home = get("/")
        check.that("the public site is public", home.status_code == 200, home.status_code)
        anonymous = get("/admin/")
        check.that("anonymous is refused by the gateway", anonymous.status_code == 401, anonymous.status_code)
        check.that(
            "... in the gateway's words",
            anonymous.headers.get("content-type", "").startswith("application/json")
            and anonymous.json() == {"error": "Missing Authorization header"},
            anonymous.text,
        )
        wrong = requests.post(f"{gateway}/auth/login", json={"username": "eddie", "password": "not this"}, timeout=30)
        check.that("a wrong password is refused", wrong.status_code == 401, wrong.text)

        tokens = {}
        for user, password in passwords.items():
            answer = requests.post(
                f"{gateway}/auth/login", json={"username": user, "password": password}, timeout=30
            )
            check.that(f"{user} logs in", answer.status_code == 200 and "token" in answer.json(), answer.text)
            tokens[user] = answer.json().get("token", "")
        if not all(tokens.values()):
            return finish(check, gateway_log, cms_log)
        bearer = {user: {"Authorization": f"Bearer {token}"} for user, token in tokens.items()}

        viewer = get("/admin/", headers=bearer["vera"])
        check.that("a Viewer is refused the admin", viewer.status_code == 403, viewer.status_code)
        for user, full_name in FULL_NAMES.items():
            dashboard = get("/admin/", headers=bearer[user])
            check.that(
                f"{USERS[user]} sees Wagtail's dashboard as {full_name}",
                dashboard.status_code == 200 and full_name in dashboard.text,
                (dashboard.status_code, dashboard.headers),
            )
        users = get("/admin/users/", headers=bearer["eddie"])
        check.that("an Editor is refused /admin/users/", users.status_code == 403, users.status_code)
        check.that(
            "... by the gateway, not by Wagtail",
            users.headers.get("content-type", "").startswith("application/json")
            and users.json() == {"error": "Access denied"},
            users.text,
        )
        users_refused = users.text
        bulk = requests.post(f"{gateway}/admin/bulk/auth/user/delete/?id=1", headers=bearer["eddie"], timeout=30)
        check.that("... nor deletes users in bulk", bulk.status_code == 403 and "Access denied" in bulk.text, bulk.text)
        users = get("/admin/users/", headers=bearer["sam"])
        check.that(
            "a SuperAdmin sees /admin/users/", users.status_code == 200 and "eddie" in users.text, users.status_code
        )
        form = requests.post(f"{gateway}/admin/login/", data={"username": "sam", "password": "x"}, timeout=30)
        check.that("Wagtail's own login form is closed", form.status_code == 401, form.status_code)

        # ---- Who one is, whatever one claims
        authorization = f"Authorization: Bearer {tokens['eddie']}"
        def stays_themself(where):
            for forged in [
                ["X-Auth-User: sam"],
                ["x-auth-user: sam"],
                ["X_Auth_User: sam"],
                ["X_AUTH-user: sam"],
                ["X.Auth.User: sam"],
                ["X-Auth-User: sam", "X-Auth-User: sam"],
                ["X-Gateway-Secret: x", "X-Auth-User: sam"],
                ["X_Gateway_Secret: x"],
                ["HTTP-X-Auth-User: sam"],
            ]:
                status, body = raw_get(gateway_port, "/admin/", [*forged, authorization])
                check.that(
                    f"an Editor who sends {', '.join(forged)} stays themself{where}",
                    status == 200 and FULL_NAMES["eddie"] in body and FULL_NAMES["sam"] not in body,
                    (status, body),
                )

        def moves_no_request(where):
            for line in ["SCRIPT_NAME: /documents", "Script-Name: /documents", "PATH_INFO: /admin/users/"]:
                status, body = raw_get(gateway_port, "/documents/admin/users/", [line, authorization])
                check.that(f"{line} moves no request to another path{where}", status in (400, 404), (status, body))

        stays_themself("")
        status, body = raw_get(gateway_port, "/", ["X-Auth-User: sam", "X_Auth_User: sam"])
        check.that("anonymous stays anonymous on a public page", status == 200 and "sessionid" not in body, body)
        moves_no_request("")

        # ---- Every URL the site has, against what gateway.yaml says of it
        listed = subprocess.run(
            [python, "manage.py", "shell", "--verbosity", "0", "--command", LIST_URLS],
            cwd=folder / "site",
            env={**site_environment, "DJANGO_SETTINGS_MODULE": "legacy.settings.gateway"},
            capture_output=True,
            text=True,
            check=True,
        )
        urls, models = json.loads(listed.stdout)
        families = {}
        for url in urls:
            _, top, second, *_ = [*url.split("/"), "", ""]
            if top == "admin":
                families.setdefault(second, []).append(url)
            elif top == "django-admin":
                families.setdefault(top, []).append(url)
        families["bulk"] = [f"/admin/bulk/{model}/delete/" for model in models if model not in BULK_FOR_EDITORS]
        # The dashboard itself, and the patterns that catch the rest of each admin.
        open_to_editors = {"", ".*", *FOR_EDITORS}
        unknown = set(families) - open_to_editors - {*NOT_FOR_EDITORS, "django-admin"}
        check.that("no part of the admin is unknown to gateway.yaml", len(families) > 20 and not unknown, unknown)
        with requests.Session() as editor:
            editor.headers.update(bearer["eddie"])

            def is_refused(method, url):
                seen = editor.request(method, gateway + url, allow_redirects=False, timeout=30)
                return seen.status_code == 403 and seen.text == users_refused

            for family in [*NOT_FOR_EDITORS, "django-admin"]:
                asked = [(method, url) for url in families[family] for method in ("GET", "POST")]
                through = [one for one in asked if not is_refused(*one)]
                check.that(f"an Editor is refused all {len(families[family])} URLs of {family}", not through, through)
            # Reading only: what a form does is Wagtail's to allow, and is tried below.
            asked = [url for family in open_to_editors for url in families.get(family, [])]
            asked += [f"/admin/bulk/{model}/delete/" for model in BULK_FOR_EDITORS]
            refused = [url for url in asked if is_refused("GET", url)]
            check.that(f"an Editor may request the other {len(asked)}", len(asked) > 100 and not refused, refused)
        for spelling in [
            "/admin/users",
            "//admin/users/",
            "/admin//users/",
            "/admin/%75sers/",
            "/admin/%2575sers/",
            "/ADMIN/Users/",
            "/admin/users;x=1/",
            "/admin/users%20/",
            "/admin/users%3Fx/",
            "/admin/%EF%BD%95sers/",
            "/admin%2Fusers/",
            "/documents/../admin/users/",
            "/documents/%2e%2e/admin/users/",
            "/documents/..;/admin/users/",
            "/documents\\..\\admin/users/",
            f"http://127.0.0.1:{gateway_port}/admin/users/",
        ]:
            status, body = raw_get(gateway_port, spelling, [authorization])
            check.that(f"{spelling} is no way round the rule", status in (400, 403) and '{"error":' in body, (status, body))

        def past_the_gateway(**headers):
            return requests.get(
                f"{cms}/admin/",
                headers={name.replace("_", "-"): value for name, value in headers.items()},
                allow_redirects=False,
                timeout=30,
            )

        believed = past_the_gateway(X_Auth_User="sam", X_Gateway_Secret=secret)
        check.that("Wagtail believes the secret (the checks below mean something)", believed.status_code == 200)
        for claim, headers in [
            ("no secret", {}),
            ("a wrong secret", {"X_Gateway_Secret": "0" * 64}),
            ("an empty secret", {"X_Gateway_Secret": ""}),
            ("a secret cut short", {"X_Gateway_Secret": secret[:-1]}),
            ("a secret in Latin-1", {"X_Gateway_Secret": b"\xe9" * 64}),
        ]:
            stranger = past_the_gateway(X_Auth_User="sam", **headers)
            check.that(f"{claim} direct to Wagtail is not believed", stranger.status_code == 302, stranger.status_code)
        unknown = past_the_gateway(X_Auth_User="mallory", X_Gateway_Secret=secret)
        check.that("a name that Wagtail does not know is nobody", unknown.status_code == 302, unknown.status_code)
        encoded = past_the_gateway(X_Auth_User="%73am", X_Gateway_Secret=secret)
        check.that("a percent-encoded name is read as the name", encoded.status_code == 200, encoded.status_code)
        broken = past_the_gateway(X_Auth_User="%ff", X_Gateway_Secret=secret)
        check.that("one that is not UTF-8 is nobody", broken.status_code == 302, broken.status_code)

        # ---- A careless site: gunicorn as it starts of its own accord, and told to drop nothing. What the site's
        # own settings would hide, the gateway has to get right alone.
        careless_port = free_ports(1)[0]
        careless = [python, "-m", "gunicorn", "--threads", "4", "--header-map", "dangerous", "legacy.wsgi"]
        careless_environment = {
            **site_environment,
            "DJANGO_SETTINGS_MODULE": "legacy.settings.gateway",
            "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{careless_port}",
        }
        careless_log = Path(scratch, "careless.log")
        stack.enter_context(
            running("the careless Wagtail", careless, careless_port, careless_log, cwd=folder / "site", env=careless_environment)
        )
        believed = [f"X-Gateway-Secret: {secret}", "X-Auth-User: eddie"]
        status, body = raw_get(careless_port, "/documents/admin/account/", [*believed, "SCRIPT_NAME: /documents"])
        check.that("a careless site can be talked into another path", status == 200, (status, body))
        status, body = raw_get(careless_port, "/admin/", [f"X_Gateway_Secret: {secret}", "X_Auth_User: sam"])
        check.that("... and reads underscored names", FULL_NAMES["sam"] in body, (status, body))
        file.write_text(file.read_text().replace(f"upstream: {cms}\n", f"upstream: http://127.0.0.1:{careless_port}\n"))
        reloaded = requests.post(f"http://127.0.0.1:{admin_port}/reload", timeout=30)
        check.that("the gateway turns to it without a restart", reloaded.status_code == 200, reloaded.text)
        arrived = raw_get(gateway_port, "/admin/", [authorization])[0], careless_log.read_text(errors="replace")
        check.that("... and requests arrive there", arrived[0] == 200, arrived)
        stays_themself(", careless site")
        moves_no_request(", careless site")

        # ---- What an editor came for
        with requests.Session() as browser:
            browser.headers.update(bearer["eddie"], Origin=gateway)
            mark = secrets.token_hex(4)

            page = browser.get(f"{gateway}/admin/images/add/", timeout=30)
            fields = {**Form(page.text).fields, "title": f"Harbour {mark}"}
            stored = browser.post(
                f"{gateway}/admin/images/add/",
                data=fields,
                files={"file": (f"harbour-{mark}.png", picture(), "image/png")},
                timeout=60,
            )
            listed = browser.get(f"{gateway}/admin/images/", timeout=30).text
            check.that(
                "an image is uploaded through the gateway",
                stored.status_code == 200 and f"Harbour {mark}" in listed,
                (stored.status_code, stored.url),
            )
            image = get(f"/media/original_images/harbour-{mark}.png")
            check.that(
                "... and arrives byte for byte", image.status_code == 200 and image.content == picture(), image
            )

            parent = browser.get(f"{gateway}/admin/api/main/pages/?child_of=1", timeout=30).json()["items"][0]["id"]
            add = f"{gateway}/admin/pages/add/home/homepage/{parent}/"
            page = browser.get(add, timeout=30)
            slug = f"first-page-{mark}"
            fields = {**Form(page.text).fields, "title": f"First page {mark}", "slug": slug}
            missing = get(f"/{slug}/")
            published = browser.post(add, data={**fields, "action-publish": "action-publish"}, timeout=60)
            visible = get(f"/{slug}/")
            check.that(
                "a page is published through the gateway",
                missing.status_code == 404 and published.status_code == 200,
                (missing.status_code, published.status_code, published.url),
            )
            check.that(
                "... and the public sees it",
                visible.status_code == 200 and f"First page {mark}" in visible.text,
                visible.status_code,
            )
            foreign = browser.post(add, data=fields, headers={"Origin": "https://elsewhere.example"}, timeout=30)
            check.that("a form from a foreign site is still refused", foreign.status_code == 403, foreign.status_code)

            # The CMS's own session cookie, without the token or with another's.
            cookies = browser.cookies.get_dict()
            check.that("Wagtail's session cookie reached the client", "sessionid" in cookies, cookies)
            stale = requests.get(f"{cms}/admin/", cookies=cookies, allow_redirects=False, timeout=30)
            check.that("the session cookie alone opens nothing", stale.status_code == 302, stale.status_code)
        with requests.Session() as browser:
            browser.get(f"{gateway}/admin/", headers=bearer["eddie"], timeout=30)
            other = browser.get(f"{gateway}/admin/", headers=bearer["sam"], timeout=30)
            check.that(
                "another's session cookie makes nobody someone else",
                other.status_code == 200 and FULL_NAMES["sam"] in other.text and FULL_NAMES["eddie"] not in other.text,
                other.status_code,
            )

        # ---- Wagtail's own users, with the passwords that Wagtail knows
        own_password = secrets.token_urlsafe(12)
        django = [python, "manage.py", "shell", "--no-imports", "-c", f"import sys; sys.argv = ['', {own_password!r}]\n{ADD_USERS}"]
        added = subprocess.run(django, cwd=folder / "site", env=site_environment, capture_output=True, text=True)
        hashes = json.loads(added.stdout) if added.returncode == 0 else {}
        check.that("Django stores passwords in five ways", len(set(hashes.values())) >= 5, hashes or added.stderr)
        (own_port,) = free_ports(1)
        own = f"http://127.0.0.1:{own_port}"
        own_folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="portcullis-wagtail-own-"))
        own_file, own_log = Path(own_folder, "gateway.yaml"), Path(own_folder, "gateway.log")
        database = folder / "site/db.sqlite3"
        own_file.write_text(OWN_USERS.format(listen=own_port, cms=cms_port, database=database))
        serve = [portcullis, "serve", "--config", own_file]
        stack.enter_context(running("the gateway for Wagtail's own users", serve, own_port, own_log, env=environment))
        for user, algorithm in hashes.items():
            log_in = lambda password: requests.post(  # noqa: E731
                f"{own}/auth/login", json={"username": user, "password": password}, timeout=60
            )
            answer = log_in(own_password)
            if user == "own-gone":
                check.that("a user who is not active is refused", answer.status_code == 401, answer.text)
                continue
            role = "SuperAdmin" if user == "own-root" else "Editor"
            body = answer.json()
            check.that(
                f"{user} logs in with a password that Django stored as {algorithm}",
                answer.status_code == 200 and body["user"]["role"] == role,
                answer.text,
            )
            check.that("... and with no other", log_in(own_password + "x").status_code == 401)
            headers = {"Authorization": f"Bearer {body.get('token')}"}
            page = requests.get(f"{own}/admin/", headers=headers, allow_redirects=False, timeout=30)
            check.that("... and is who they are in Wagtail", f"First {user}" in page.text, page.status_code)
        passwords["own"] = own_password

        logged = gateway_log.read_text(errors="replace") + cms_log.read_text(errors="replace")
        leaks = [what for what in [secret, *passwords.values(), *tokens.values()] if what in logged]
        check.that("no log holds the secret, a password or a token", not leaks, f"{len(leaks)} of them")
        if check.failed > failed_before:
            show(gateway_log, cms_log)

    return finish(check)


def show(*logs):
    for log in logs:
        print(f"---- the end of {log.name}\n{log.read_text(errors='replace')[-3000:]}")


def finish(check, *logs):
    show(*logs)
    print(f"{check.passed} passed, {check.failed} failed")
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
