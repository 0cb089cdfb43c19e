"""What stands between this machine and a server: addresses that are not asked, proxies and certificates.

The HTTP client is told not to read the environment. What it would read is read here, so that a variable that cannot
be used ends in one line that names it, and not in a traceback of a library.
"""

import asyncio
import importlib.util
import ipaddress
import os
import re
import socket
import ssl
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import getproxies, getproxies_environment, proxy_bypass

from ..quoting import quoted

DEFAULT_PORTS = {"http": 80, "https": 443}
PROXY_SCHEMES = ("http", "https", "socks5", "socks5h")
SYSTEM_SETTINGS = "the system's proxy setting"  # of Windows and macOS, where no variable is set

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class NetworkError(RuntimeError):
    """A server that cannot or must not be reached from here; the message names the variable or address."""


class Proxy(NamedTuple):
    """A proxy, and the variable that names it."""

    url: str
    variable: str


def numeric_address(host: str) -> Address | None:
    """The IP address that a host spells; None for a name.

    Besides the usual forms these are the ones that the system's resolver takes: `127.1`, `2130706433`, `0x7f000001`.
    """
    try:
        address: Address = ipaddress.ip_address(host)
    except ValueError:
        try:
            return ipaddress.IPv4Address(socket.inet_aton(host))
        except (OSError, UnicodeError):
            return None
    # ::ffff:127.0.0.1 reaches 127.0.0.1.
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def is_host(host: str) -> bool:
    """Whether this can be a host: `999.1.1.1` is neither an address nor a name."""
    is_number = bool(re.fullmatch(r"[\d.]+", host))
    return bool(host) and (not is_number or numeric_address(host) is not None)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine. 0.0.0.0 counts: people type it for a server that listens everywhere."""
    address = numeric_address(host)
    if address is None:
        return host == "localhost" or host.endswith(".localhost")
    return address.is_loopback or address.is_unspecified


def is_link_local(host: str) -> bool:
    """Whether a host is spelt as an address of 169.254.0.0/16 or fe80::/10.

    Clouds give machines their own secrets at 169.254.169.254, to whoever asks from inside.
    """
    address = numeric_address(host)
    return address is not None and address.is_link_local


async def check_resolved(host: str) -> None:
    """Raises NetworkError when a name stands for a link-local address."""
    loop = asyncio.get_running_loop()
    try:
        entries = await loop.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return  # the request itself fails next, with the usual message
    for *_, address in entries:
        if is_link_local(str(address[0])):
            raise NetworkError(f"{host} stands for the link-local address {address[0]}, which is not asked")


def proxy_for(url: str) -> Proxy | None:
    """The proxy that the environment or the system names for an address; None to connect at once.

    Raises:
        NetworkError: that proxy cannot be used. Variables for other schemes are not looked at.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    # A proxy elsewhere cannot reach this machine under the name `localhost`.
    if is_loopback(host) or _is_bypassed(host, parts.port or DEFAULT_PORTS.get(parts.scheme, 0)):
        return None
    proxies = getproxies()
    for name in (parts.scheme, "all"):
        if proxies.get(name):
            return _usable(proxies[name], _variable(f"{name}_proxy"))
    return None


def _is_bypassed(host: str, port: int) -> bool:
    """Whether NO_PROXY or the system says that a host is asked without the proxy."""
    shown = f"[{host}]" if ":" in host else host
    if proxy_bypass(host) or proxy_bypass(f"{shown}:{port}"):
        return True
    address = numeric_address(host)
    for entry in getproxies_environment().get("no", "").split(","):
        entry = entry.strip().lower()
        # What `urllib` does not know and curl does: brackets, wildcards and networks such as 192.168.0.0/16.
        if entry in (shown, f"{shown}:{port}") or (entry.startswith("*.") and host.endswith(entry[1:])):
            return True
        if address is not None and "/" in entry and _holds(entry, address):
            return True
    return False


def _holds(network: str, address: Address) -> bool:
    """Whether an address is of a network; what is no network holds none."""
    try:
        return address in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False


def _variable(name: str) -> str:
    """The name of the variable as it is spelt; the lower case comes first, as in `urllib`."""
    for spelling in (name, name.upper()):
        if os.environ.get(spelling):
            return spelling
    return SYSTEM_SETTINGS


def _usable(proxy: str, variable: str) -> Proxy:
    proxy = proxy.strip()
    url = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(url)
        is_address = is_host(parts.hostname or "") and parts.port != 0 and proxy.isprintable() and " " not in proxy
    except ValueError:
        raise NetworkError(
            f"{variable} is no address of a proxy: correct it, as in http://host:3128, or unset it"
        ) from None
    # The address is not repeated whole: it may hold a password.
    if parts.scheme not in PROXY_SCHEMES or not is_address:
        shown = quoted(f"{parts.scheme}://{parts.hostname or ''}")
        raise NetworkError(f"{variable} names the proxy {shown}: use http://, https:// or socks5://, or unset it")
    if parts.scheme.startswith("socks") and importlib.util.find_spec("socksio") is None:
        raise NetworkError(
            f"{variable} names a SOCKS proxy, which needs the package socksio: run `pip install socksio` in ComfyUI's "
            "Python, or unset it"
        )
    return Proxy(url, variable)


def tls_context(url: str) -> ssl.SSLContext | None:
    """The certificates that a server is checked against; None for those that the HTTP client brings.

    Raises:
        NetworkError: SSL_CERT_FILE, SSL_CERT_DIR or SSLKEYLOGFILE names something that cannot be used.
    """
    if urlsplit(url).scheme == "http":
        # Nothing is encrypted. An empty context spares reading certificates, also broken ones.
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    file = os.environ.get("SSL_CERT_FILE")
    folder = os.environ.get("SSL_CERT_DIR")
    if file and not os.access(file, os.R_OK):
        raise NetworkError(f"SSL_CERT_FILE names {quoted(file)}, which cannot be read: correct it or unset it")
    # SSL_CERT_DIR may list several.
    if folder and not any(Path(part).is_dir() for part in folder.split(os.pathsep)):
        raise NetworkError(f"SSL_CERT_DIR names {quoted(folder)}, which is no folder: correct it or unset it")
    log = os.environ.get("SSLKEYLOGFILE")
    if log and not Path(log).parent.is_dir():
        raise NetworkError(f"SSLKEYLOGFILE names {quoted(log)}, which cannot be written: correct it or unset it")
    if not file and not folder:
        return None
    try:
        return ssl.create_default_context(cafile=file or None, capath=folder or None)
    except OSError:  # ssl.SSLError is one
        message = f"SSL_CERT_FILE names {quoted(file)}, which holds no certificates: correct it or unset it"
        raise NetworkError(message) from None
