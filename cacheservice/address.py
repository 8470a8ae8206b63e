"""Addresses as people write them: HOST:PORT."""

from __future__ import annotations


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[v6]:port"; ValueError when it is neither."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise ValueError(f"{address!r} is not HOST:PORT")
    if ":" in host and not (host.startswith("[") and host.endswith("]")):
        raise ValueError(f"{address!r} is not HOST:PORT (an IPv6 address stands in [brackets])")
    return host.strip("[]"), int(port)


def join_address(host: str, port: int) -> str:
    """The inverse of split_address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def endpoint(target: str) -> tuple[str, int] | str:
    """Host and port, or the path of a Unix socket, of HOST:PORT or a gRPC target with one of the schemes dns,
    ipv4, ipv6 and unix; ValueError when it is neither."""
    scheme, colon, rest = target.partition(":")
    if colon and scheme == "unix":
        return rest.removeprefix("//")
    if colon and scheme in ("dns", "ipv4", "ipv6"):
        return split_address(rest.rpartition("/")[2])
    return split_address(target)
