"""The site's settings behind the gateway: those of `wagtail start`, and what differs.

From the environment: PUBLIC_URL, the address that browsers use (default http://127.0.0.1:8080), and
GATEWAY_SECRET, which `portcullis_identity` reads.
"""

import os
from pathlib import Path
from urllib.parse import urlsplit

from .base import *  # noqa: F403 (the way Wagtail's own settings files build on one another)

PUBLIC_URL = os.environ.get("PUBLIC_URL", "http://127.0.0.1:8080").rstrip("/")

DEBUG = False
SECRET_KEY = Path(BASE_DIR, "secret_key").read_text().strip()  # noqa: F405
ALLOWED_HOSTS = [urlsplit(PUBLIC_URL).hostname, "localhost", "127.0.0.1"]
ROOT_URLCONF = "legacy.gateway_urls"
WAGTAILADMIN_BASE_URL = PUBLIC_URL

MIDDLEWARE.insert(  # noqa: F405
    MIDDLEWARE.index("django.contrib.auth.middleware.AuthenticationMiddleware") + 1,  # noqa: F405
    "legacy.portcullis_identity.GatewayMiddleware",
)

# The only one: no password of the CMS's own opens anything, so there is one place to guess at, to lock
# and to log. Permissions of users and groups work as before (the backend is a ModelBackend too).
AUTHENTICATION_BACKENDS = ["legacy.portcullis_identity.GatewayBackend"]
WAGTAIL_PASSWORD_MANAGEMENT_ENABLED = False
WAGTAIL_PASSWORD_RESET_ENABLED = False
WAGTAILUSERS_PASSWORD_ENABLED = False

# The gateway overwrites X-Forwarded-Proto with what it knows, and keeps Host (`host: preserve`), so
# Host is the truth here and X-Forwarded-Host stays unread: one source for a fact, not two.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
USE_X_FORWARDED_HOST = False
# Django's own protection against foreign forms stays on. It compares Origin with Host and scheme; this
# covers a load balancer in front that changes either of the two.
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = PUBLIC_URL.startswith("https://")
