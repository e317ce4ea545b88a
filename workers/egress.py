"""Connections to the outside for tasks whose target a caller names: public addresses only, and in time.

A name is resolved once, every address it has is checked, and the connection goes to one of those very addresses, so
an answer that changes between check and connection changes nothing. TLS still checks the name.
"""

import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from typing import Any, Final

import httpcore
import httpx

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
#: What `ipaddress` calls global and is none the less not somebody's server.
_SPECIAL: Final = tuple(ipaddress.ip_network(text) for text in ("192.0.0.0/24", "192.88.99.0/24", "2002::/16"))


class TimeUp(TimeoutError):
    """The whole exchange took longer than it may."""


def is_public(text: str) -> bool:
    """Whether an address, as the resolver writes it, is one of a server on the public internet."""
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)))
        if address.is_site_local:
            return False
    if any(address in network for network in _SPECIAL):
        return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """Every address of a host, in the resolver's order; ValueError if one of them is not public."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:
        raise ValueError(f"url: not a host's name: {host:.100}") from None
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    for address in addresses:
        if not allow_private and not is_public(address):
            raise ValueError(f"url: {host} is {address}, which is not a public address")
    return addresses


def transport(*, allow_private: bool, deadline: float) -> httpx.HTTPTransport:
    """An httpx transport for one exchange that ends by `deadline` on the monotonic clock, and ignores proxies."""
    context = httpx.create_ssl_context(trust_env=False)
    made = httpx.HTTPTransport(verify=context, trust_env=False)
    made._pool = httpcore.ConnectionPool(
        ssl_context=context,
        max_connections=1,
        max_keepalive_connections=0,
        network_backend=_Backend(allow_private, deadline),
    )
    return made


def _left(deadline: float, timeout: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeUp
    return left if timeout is None else min(left, timeout)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, allow_private: bool, deadline: float) -> None:
        self._allow_private = allow_private
        self._deadline = deadline
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = resolve(host, port, allow_private=self._allow_private)
        except OSError as error:
            raise httpcore.ConnectError(f"no address for {host}: {error}") from error
        last: httpcore.ConnectError | httpcore.ConnectTimeout | None = None
        for address in addresses:
            try:
                stream = self._plain.connect_tcp(
                    address, port, _left(self._deadline, timeout), local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
            else:
                return _Stream(stream, self._deadline)
        raise last or httpcore.ConnectError(f"no address for {host}")


class _Stream(httpcore.NetworkStream):
    """A stream that nobody can keep open beyond the deadline by sending a byte now and then."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline, timeout))
        return _Stream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
