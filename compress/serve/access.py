"""The names by which clients reach the service, and its token."""

import ipaddress
import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
EVERY_ADDRESS = ("0.0.0.0", "::")


@dataclass(frozen=True)
class Access:
    """The address that the service listens on, its token, and further host names by which clients reach it."""

    host: str = "127.0.0.1"
    token: str | None = None
    names: tuple[str, ...] = ()

    def allows_host(self, header: str) -> bool:
        """Whether a Host header is one of the names of this service, with any port."""
        name = host_name(header)
        if name is None:
            return False
        names = LOOPBACK | {self.host.lower()} | {one.lower() for one in self.names}
        return name in names or (self.host in EVERY_ADDRESS and is_address(name))

    def allows_token(self, header: str) -> bool:
        """Whether an Authorization header holds the token. Always true without a token."""
        expected = f"Bearer {self.token}".encode()
        return self.token is None or secrets.compare_digest(header.encode(), expected)


def is_loopback(host: str) -> bool:
    return host.lower() in LOOPBACK


def host_name(header: str) -> str | None:
    """The name in a Host header, in lower case. None if the header is malformed."""
    try:
        parts = urlsplit(f"//{header}")
        if parts.path or parts.query or parts.fragment or "@" in header or parts.port == 0:
            return None
        return (parts.hostname or "").rstrip(".") or None
    except ValueError:
        return None


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
