"""Keys of language model servers: from the environment or a file of the user, never from a graph.

A graph names a credential and an address. A key goes only to the address that it was stored with, so a graph of a
stranger cannot send it elsewhere.
"""

import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..quoting import quoted
from .network import DEFAULT_PORTS, is_link_local

KEY_VARIABLE = "ERASE_LLM_API_KEY"
ADDRESS_VARIABLE = "ERASE_LLM_BASE_URL"
OPENAI = "https://api.openai.com/v1"  # where a key without an address belongs
FILE = "credentials.json"
HOST = re.compile(r"[a-z0-9_.-]{1,253}|[0-9a-f:.]{2,45}")  # a name or an IPv4 address; an IPv6 address
LONG_KEY = 8  # characters from which a key is taken out wherever it stands, also within a word
HIDDEN = "***"


class CredentialError(ValueError):
    """A key that is missing, unusable or for another address; the message never holds a key."""


def find_key(name: str, base_url: str, folder: Path) -> str | None:
    """The key of a credential for an address, or None when there is none of that name.

    Args:
        name: letters, digits and underscores; `default` reads ERASE_LLM_API_KEY, `x` ERASE_LLM_API_KEY_X.
        base_url: where it would be sent.
        folder: has `credentials.json`: {name: {"key": ..., "base_url": ...}}; the environment comes first.

    Raises:
        CredentialError: the name, the file or the key is malformed, or the key belongs to another address.
    """
    if not re.fullmatch(r"\w+", name, re.ASCII):
        raise CredentialError(
            "the credential's name may hold letters, digits and underscores: type its name, not a key"
        )
    key, home = _read(name, folder)
    if key is None:
        return None
    # A line break in a key would end the HTTP header that carries it.
    if not re.fullmatch(r"[!-~]+", key):
        raise CredentialError(f"the key of the credential {quoted(name)} holds blanks or characters that no key has")
    if origin(home) != origin(base_url):
        raise CredentialError(
            f"the credential {quoted(name)} is for {origin(home)}: it is not sent to {origin(base_url)}"
        )
    return key


def check_credential_name(name: str) -> None:
    """Raises CredentialError, without the name, for one that could be a key or a path."""
    if not re.fullmatch(r"\w{1,40}", name, re.ASCII):
        raise CredentialError(
            "the credential must be a short name of letters, digits and underscores, not the key itself"
        )


def has_key(name: str, folder: Path) -> bool:
    """Whether a key is stored under a name."""
    key, _ = _read(name, folder)
    return key is not None


def _read(name: str, folder: Path) -> tuple[str | None, str]:
    """A key and the address that it is for; (None, "") when there is none of that name."""
    suffix = "" if name == "default" else f"_{name.upper()}"
    key = os.environ.get(KEY_VARIABLE + suffix, "").strip()
    if key:
        return key, os.environ.get(ADDRESS_VARIABLE + suffix) or OPENAI
    path = folder / FILE
    if not path.exists():
        return None, ""
    try:
        entry = json.loads(path.read_text(encoding="utf-8")).get(name)
        if entry is None:
            return None, ""
        return entry["key"].strip(), entry.get("base_url") or OPENAI
    except (ValueError, KeyError, AttributeError, TypeError):
        # Without the reason: it may quote the file, and so a key.
        raise CredentialError(f'{path} must hold {{"{name}": {{"key": "...", "base_url": "..."}}}}') from None


def origin(base_url: str) -> str:
    """Scheme, host and port of an address.

    Raises:
        CredentialError: it is no http address, is link-local, or holds a user, a password or a query.
    """
    unusable = CredentialError("the base URL must be an address such as https://api.openai.com/v1")
    address = base_url.strip()
    # Two readers of an address may disagree about blanks and backslashes, and so about the host that gets the key.
    if not re.fullmatch(r"[!-\[\]-~]+", address):
        raise unusable
    try:
        parts = urlsplit(address)
        default_port = DEFAULT_PORTS[parts.scheme]
        port = default_port if parts.port is None else parts.port
    except (ValueError, KeyError):
        raise unusable from None
    # A password in an address would be saved with the graph and with every picture.
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise CredentialError("the base URL must hold no user, password or query: store the key as a credential")
    if not HOST.fullmatch(parts.hostname or "") or port == 0:
        raise unusable
    host = parts.hostname or ""
    if is_link_local(host):
        raise CredentialError(f"the base URL names the link-local address {host}, which is not asked: type another")
    shown_host = f"[{host}]" if ":" in host else host
    return f"{parts.scheme}://{shown_host}:{port}"


def scrub(text: str, key: str | None) -> str:
    """The text without the key, should a server have sent it back. Scrub before a text is cut: half a key stays."""
    if not key:
        return text
    pattern = re.escape(key)
    # Servers without keys are given ones such as `x`, which would be taken out of every word.
    if len(key) < LONG_KEY:
        pattern = rf"(?<!\w){pattern}(?!\w)"
    return re.sub(pattern, HIDDEN, text, flags=re.IGNORECASE)


def scrub_values(value: Any, key: str | None, depth: int = 6) -> Any:
    """A value from JSON with every text in it scrubbed; lists and objects below `depth` levels are left out."""
    if isinstance(value, str):
        return scrub(value, key)
    if not isinstance(value, (list, dict)):
        return value
    if depth == 0:
        return None
    if isinstance(value, list):
        return [scrub_values(entry, key, depth - 1) for entry in value]
    return {scrub(name, key): scrub_values(entry, key, depth - 1) for name, entry in value.items()}
