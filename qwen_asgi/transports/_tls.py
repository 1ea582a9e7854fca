"""What upstreams are checked with, on every lane."""

from __future__ import annotations

import os
import ssl


def verifying_context() -> ssl.SSLContext:
    """Return a context that checks certificates and host names by the system's certificates.

    OpenSSL finds them, and SSL_CERT_FILE and SSL_CERT_DIR name others to it. Reading them takes
    longer than a request: make one context and keep it.
    """
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and not _has_certificate_folder():
        # A small container, or a Python that came with an OpenSSL of its own.
        import certifi

        context.load_verify_locations(certifi.where())
    return context


def _has_certificate_folder() -> bool:
    """OpenSSL reads the certificates of a folder only when it needs them."""
    folder = ssl.get_default_verify_paths().capath
    return folder is not None and bool(os.listdir(folder))
