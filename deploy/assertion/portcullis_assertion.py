"""Who the gateway says is asking. Needs the package `cryptography`."""

import base64
import json
import time

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def assertion(token, jwks, issuer, audience, now=None):
    """The claims of an assertion, or None when it is not the gateway's, not for this audience, or over.

    `jwks` is the decoded /.well-known/jwks.json.
    """
    try:
        decode = lambda text: base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)  # noqa: E731
        parts = token.split(".")
        header, claims, signature = json.loads(decode(parts[0])), decode(parts[1]), decode(parts[2])
        if len(parts) != 3 or (header["typ"], header["alg"]) != ("portcullis-assertion+jwt", "EdDSA"):
            return None
        key = next(key for key in jwks["keys"] if key["kid"] == header["kid"] and key.get("crv") == "Ed25519")
        Ed25519PublicKey.from_public_bytes(decode(key["x"])).verify(signature, ".".join(parts[:2]).encode())
        claims = json.loads(claims)
        meant = (claims["iss"], claims["aud"]) == (issuer, audience)
        return claims if meant and claims["exp"] > (time.time() if now is None else now) else None
    except (InvalidSignature, ValueError, KeyError, IndexError, TypeError, StopIteration):
        return None
