"""Keys and tokens for the bench, made without the gateway, so that it measures what others would send it.

Signs through libcrypto (ctypes), which takes microseconds where starting `openssl` takes milliseconds:
`--cold` wants a hundred thousand tokens.
"""

import base64
import ctypes
import ctypes.util
import hmac
import json
import secrets
import subprocess
from pathlib import Path

ISSUER = AUDIENCE = "portcullis"
KID = "bench"

_GENPKEY = {
    "RS256": ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
    "ES256": ["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
    "EdDSA": ["-algorithm", "ED25519"],
}


def _libcrypto():
    library = ctypes.CDLL(ctypes.util.find_library("crypto") or "libcrypto.so.3")
    for name in ["BIO_new_mem_buf", "PEM_read_bio_PrivateKey", "EVP_MD_CTX_new", "EVP_sha256"]:
        getattr(library, name).restype = ctypes.c_void_p
    return library


def _b64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _compact(value):
    return _b64(json.dumps(value, separators=(",", ":")).encode())


def _raw_ecdsa(der):
    """R and S, 32 bytes each, of a DER signature over P-256 (RFC 7518 section 3.4)."""
    numbers, at = b"", 2
    for _ in range(2):
        length = der[at + 1]
        numbers += der[at + 2 : at + 2 + length].lstrip(b"\0").rjust(32, b"\0")
        at += 2 + length
    return numbers


class Key:
    """A fresh signing key for one algorithm, in files under `folder` where it is not a secret."""

    def __init__(self, algorithm, folder):
        self.algorithm = algorithm
        if algorithm == "HS256":
            self.secret = secrets.token_hex(32)
            return
        # A folder of its own with `<kid>.pem` of mode 0600 in it: what the gateway's `tokens.keys` wants.
        self.folder = Path(folder, f"keys-{algorithm}")
        self.folder.mkdir(mode=0o700)
        self.private = self.folder / f"{KID}.pem"
        self.public = Path(folder, f"{algorithm}.pub.pem")
        self.private.touch(mode=0o600)
        subprocess.run(
            ["openssl", "genpkey", *_GENPKEY[algorithm], "-out", self.private], check=True, capture_output=True
        )
        subprocess.run(["openssl", "pkey", "-in", self.private, "-pubout", "-out", self.public], check=True)
        pem = self.private.read_bytes()
        self._crypto = _libcrypto()
        self._pkey = self._crypto.PEM_read_bio_PrivateKey(
            ctypes.c_void_p(self._crypto.BIO_new_mem_buf(pem, len(pem))), None, None, None
        )
        if not self._pkey:
            raise RuntimeError(f"libcrypto could not read the {algorithm} key that openssl wrote")

    def sign(self, message):
        """The JWS signature of `message`, raw."""
        if self.algorithm == "HS256":
            return hmac.digest(self.secret.encode(), message, "sha256")
        crypto, context = self._crypto, ctypes.c_void_p(self._crypto.EVP_MD_CTX_new())
        try:
            digest = None if self.algorithm == "EdDSA" else ctypes.c_void_p(crypto.EVP_sha256())
            signature = ctypes.create_string_buffer(512)
            length = ctypes.c_size_t(len(signature))
            done = crypto.EVP_DigestSignInit(context, None, digest, None, ctypes.c_void_p(self._pkey)) == 1
            done = done and crypto.EVP_DigestSign(
                context, signature, ctypes.byref(length), message, ctypes.c_size_t(len(message))
            ) == 1
        finally:
            crypto.EVP_MD_CTX_free(context)
        if not done:
            raise RuntimeError(f"libcrypto could not sign with the {self.algorithm} key")
        raw = signature.raw[: length.value]
        return _raw_ecdsa(raw) if self.algorithm == "ES256" else raw

    def token(self, now, *, ttl=7200, user="eddie", role="Editor", **changed):
        """A token as the gateway issues them; `changed` replaces claims."""
        header = {"alg": self.algorithm, "kid": KID, "typ": "JWT"}
        if self.algorithm == "HS256":
            del header["kid"]  # a secret in gateway.yaml has no file, and so no name
        claims = {
            "iss": ISSUER,
            "sub": "2",
            "aud": AUDIENCE,
            "exp": now + ttl,
            "iat": now - 1,
            "jti": secrets.token_hex(16),
            "sid": secrets.token_hex(16),
            "preferred_username": user,
            "role": role,
            **changed,
        }
        signed = _compact(header) + b"." + _compact(claims)
        return (signed + b"." + _b64(self.sign(signed))).decode()


def broken(token):
    """The same token with one bit of its signature changed."""
    head, _, signature = token.rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4)))
    raw[3] ^= 1
    return f"{head}.{_b64(bytes(raw)).decode()}"
