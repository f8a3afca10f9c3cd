"""Signatures of the Standard Webhooks specification: https://www.standardwebhooks.com.

A webhook's secret is not kept anywhere: it follows from the webhook's id and the registry's pepper. So a copy of the
database forges nothing.
"""

import base64
import hmac
from collections.abc import Mapping
from datetime import datetime

PREFIX = "whsec_"


def secret_of(webhook_id: str, pepper: bytes) -> str:
    """ "whsec_" and 32 bytes in base64."""
    return PREFIX + base64.b64encode(_key(webhook_id, pepper)).decode()


def signed_headers(webhook_id: str, delivery_id: str, body: bytes, now: datetime, pepper: bytes) -> Mapping[str, str]:
    """Headers by which the receiver knows the sender, the delivery and its age."""
    timestamp = str(int(now.timestamp()))
    content = b".".join((delivery_id.encode(), timestamp.encode(), body))
    signature = hmac.digest(_key(webhook_id, pepper), content, "sha256")
    return {
        "webhook-id": delivery_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
    }


def _key(webhook_id: str, pepper: bytes) -> bytes:
    return hmac.digest(pepper, b"webhook " + webhook_id.encode(), "sha256")
