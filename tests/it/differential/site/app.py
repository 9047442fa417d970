"""A Django site that takes a path in every way that Python code is known to take one, and in every combination."""

import posixpath
import re
import unicodedata
from urllib.parse import unquote, unquote_plus, urlsplit

import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path, re_path
from django.views.decorators.csrf import csrf_exempt

MARKER = "PROTECTED-MARKER"
PROTECTED = re.compile(r"/admin(/(?!open(/|$)).*)?|/users\.php|/item/[^/]+/.+", re.DOTALL)
ANY_CASE = re.compile(PROTECTED.pattern, re.DOTALL | re.IGNORECASE)


def each_segment(change):
    return lambda text: "/".join(map(change, text.split("/")))


def without_marks(text):
    """As a database compares that is told to ignore accents."""
    return "".join(c for c in unicodedata.normalize("NFKD", text) if unicodedata.category(c) not in ("Mn", "Cf"))


def network_path(text):
    try:
        return urlsplit(text).path
    except ValueError:
        return text


CHANGES = [
    unquote,
    unquote_plus,
    str.lower,
    str.casefold,
    network_path,
    posixpath.normpath,
    without_marks,
    lambda text: unicodedata.normalize("NFKC", text),
    lambda text: text.upper().lower(),
    lambda text: re.sub("/+", "/", text),
    lambda text: text.replace("\\", "/"),
    lambda text: text.split("\0")[0],
    lambda text: text.split("?")[0],
    lambda text: text.split("#")[0],
    each_segment(lambda segment: segment.split(";")[0]),
    each_segment(str.strip),
    each_segment(lambda segment: segment.rstrip(". ")),
    lambda text: re.sub(r"^(.*?\.php)/.*", r"\1", text, flags=re.I | re.S),
]


def reaches(start):
    seen, queue = {start}, [start]
    for current in queue:
        if len(seen) > 150:
            break
        # Resolved without a look at symbolic links, as file servers do.
        if PROTECTED.fullmatch(posixpath.normpath(current)) or ANY_CASE.fullmatch(current):
            return True
        for change in CHANGES:
            changed = change(current)
            if changed not in seen:
                seen.add(changed)
                queue.append(changed)
    return False


def text(body):
    return HttpResponse(body, content_type="text/plain")


@csrf_exempt
def protected(request, **_):
    return text(MARKER)


@csrf_exempt
def harmless(request, **_):
    return text("nothing here")


@csrf_exempt
def whoami(request):
    lines = [f"{name}: {value}" for name, value in request.META.items() if name.startswith("HTTP_")]
    lines += [f"{name}: {value}" for name, value in request.headers.items()]
    return text("\n".join(lines))


@csrf_exempt
def anything(request):
    given = request.META
    paths = [request.path_info, request.path, request.get_full_path(), given.get("RAW_URI", "")]
    for name in ("ORIGINAL_URL", "ORIGINAL_URI", "REWRITE_URL", "REWRITE_URI", "OVERRIDE_URL", "FORWARDED_URI"):
        paths.append(given.get("HTTP_X_" + name, ""))
    paths.append(given.get("HTTP_X_FORWARDED_PREFIX", "") + request.path)
    methods = [request.method, *request.GET.getlist("_method")]
    for name in ("HTTP_METHOD_OVERRIDE", "HTTP_METHOD", "METHOD_OVERRIDE", "ORIGINAL_METHOD", "FORWARDED_METHOD"):
        methods.append(given.get("HTTP_X_" + name, ""))
    found = any(reaches(each.split("?")[0]) for each in paths if each)
    found |= request.path_info == "/page" and any(each.strip().upper() == "DELETE" for each in methods)
    found |= any(re.match("/+private(/|$)", each, re.I) for each in request.GET.getlist("rest_route"))
    return text(MARKER if found else "nothing here")


settings.configure(
    ALLOWED_HOSTS=["*"],
    ROOT_URLCONF=__name__,
    SECRET_KEY="for tests alone",
    APPEND_SLASH=False,
    DEBUG=False,
    LOGGING_CONFIG=None,
)
django.setup()
urlpatterns = [
    path("open/whoami", whoami),
    re_path("^admin/open/", harmless),
    path("admin/<path:rest>", protected),
    re_path("(?i)^admin/", protected),
    re_path("", anything),
]
application = get_wsgi_application()
