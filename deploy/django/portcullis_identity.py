"""Believes the gateway about who is asking, and nobody else.

The gateway removes the client's own copies of its identity headers and adds the true ones, together
with a secret that only it and this site know. Here the secret is compared first; without it a request
is anonymous whatever it says. Not here: which role may see which path. That is `gateway.yaml`; what a
user may then do inside Wagtail is the business of Wagtail's groups.
"""

import hmac
import os
from urllib.parse import unquote

from django.contrib.auth.backends import RemoteUserBackend
from django.contrib.auth.middleware import RemoteUserMiddleware
from django.core.exceptions import ImproperlyConfigured

SECRET_HEADER = "HTTP_X_GATEWAY_SECRET"
SHORTEST_SECRET = 32


class GatewayMiddleware(RemoteUserMiddleware):
    """Signs in the user that X-Auth-User names, for as long as each request names them.

    Belongs right after AuthenticationMiddleware. Not PersistentRemoteUserMiddleware: that one keeps
    the former user signed in by Django's session cookie when a request comes without identity, so a
    logout at the gateway, or a request past the gateway, would still find the session open.

    Raises ImproperlyConfigured at start when GATEWAY_SECRET is missing or shorter than 32 bytes: an
    empty secret would be equal to the one that a stranger does not send.
    """

    header = "HTTP_X_AUTH_USER"

    # Under ASGI, Django then runs this in a thread. Its own asynchronous variant reads the header under
    # "HTTP_" + header (Django 5.2), which is another name, and one that the gateway does not remove.
    async_capable = False

    def __init__(self, get_response):
        super().__init__(get_response)
        self.secret = os.environ.get("GATEWAY_SECRET", "").encode()
        if len(self.secret) < SHORTEST_SECRET:
            raise ImproperlyConfigured(f"GATEWAY_SECRET must hold at least {SHORTEST_SECRET} bytes")

    def process_request(self, request):
        # Taken out, so that no error page, report or template can show it.
        sent = request.META.pop(SECRET_HEADER, "")
        if not hmac.compare_digest(sent.encode(), self.secret):
            request.META.pop(self.header, None)
        return super().process_request(request)


class GatewayBackend(RemoteUserBackend):
    """Finds the Wagtail user of the name that the gateway sends. An unknown name is nobody."""

    # Otherwise each name that the gateway knows would become a user of the CMS at its first request.
    create_unknown_user = False

    def authenticate(self, request, remote_user):
        user = super().authenticate(request, remote_user)
        # A database that compares without regard to case or accents (MySQL) finds `sam` for `Sam`, who is
        # another user at the gateway.
        if user is not None and user.get_username() != self.clean_username(remote_user):
            return None
        return user

    def clean_username(self, username):
        """The name as it is stored: a header carries what is not ASCII percent-encoded, as UTF-8."""
        try:
            return unquote(username, errors="strict")
        except UnicodeDecodeError:
            return ""
