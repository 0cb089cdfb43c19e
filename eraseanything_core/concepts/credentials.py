"""Keys of language model servers: from the environment or a file of the user, never from a graph.

A graph names a credential and an address. A key goes only to the address that it was stored with, so a graph of a
stranger cannot send it elsewhere.
"""

import json
import os
import re
from pathlib import Path
from urllib.parse import urlsplit

VARIABLE = "ERASE_LLM_API_KEY"
ADDRESS = "ERASE_LLM_BASE_URL"
OPENAI = "https://api.openai.com/v1"
FILE = "credentials.json"


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
    key, home = _stored(name, folder)
    if key is None:
        return None
    if not re.fullmatch(r"[!-~]+", key):
        raise CredentialError(f"the key of the credential {name!r} holds blanks or characters that no key has")
    if origin(home) != origin(base_url):
        raise CredentialError(f"the credential {name!r} is for {origin(home)}: it is not sent to {origin(base_url)}")
    return key


def check_name(name: str):
    """Raises CredentialError, without the name, for one that could be a key or a path."""
    if not re.fullmatch(r"\w{1,40}", name, re.ASCII):
        raise CredentialError(
            "the credential must be a short name of letters, digits and underscores, not the key itself"
        )


def stored(name: str, folder: Path) -> bool:
    """Whether a key is stored under a name."""
    return _stored(name, folder)[0] is not None


def _stored(name: str, folder: Path) -> tuple[str | None, str]:
    suffix = "" if name == "default" else f"_{name.upper()}"
    if key := os.environ.get(VARIABLE + suffix, "").strip():
        return key, os.environ.get(ADDRESS + suffix) or OPENAI
    path = folder / FILE
    if not path.exists():
        return None, ""
    try:
        entry = json.loads(path.read_text(encoding="utf-8")).get(name)
        return (None, "") if entry is None else (entry["key"].strip(), entry.get("base_url") or OPENAI)
    except (ValueError, KeyError, AttributeError, TypeError):
        raise CredentialError(f'{path} must hold {{"{name}": {{"key": "...", "base_url": "..."}}}}') from None


def origin(base_url: str) -> str:
    """Scheme, host and port of an address.

    Raises:
        CredentialError: it is no http address, or holds a user, a password or a query.
    """
    unusable = CredentialError("the base URL must be an address such as https://api.openai.com/v1")
    try:
        parts = urlsplit(base_url.strip())
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        raise unusable from None
    if not parts.hostname:
        raise unusable
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise CredentialError("the base URL must hold no user, password or query: store the key as a credential")
    return f"{parts.scheme}://{parts.hostname}:{port}"
