"""What gRPC and OpenSSL tell of connections that do not come about, with what an operator should look at.

They have no codes for all of the reasons, only English; so this changes nothing but what people read.
"""

from __future__ import annotations

from typing import Final

_HUNG_UP: Final = "the node hung up: perhaps it wants TLS, or a certificate that its CA has signed"
_OTHER_NAME: Final = "the node's certificate has another name: say so as server name"

_HINTS: Final = {
    "Hostname mismatch": _OTHER_NAME,
    "IP address mismatch": _OTHER_NAME,
    "CERTIFICATE_VERIFY_FAILED": "the node's certificate is not signed by the CA given here, or has expired",
    "Hostname Verification Check failed": _OTHER_NAME,
    "WRONG_VERSION_NUMBER": "the node does not use TLS",
    "Socket closed": _HUNG_UP,
    "the connection was closed": _HUNG_UP,
    "Connection reset by peer": _HUNG_UP,
}


def explained(details: str) -> str:
    """The details of an error, and a hint if they tell of an attempt to connect that failed over TLS."""
    if not details.startswith("failed to connect"):
        return details
    return next((f"{details} ({hint})" for sign, hint in _HINTS.items() if sign in details), details)
