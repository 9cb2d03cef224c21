"""Who is at the other end of a connection, as far as the network says."""

from ipaddress import IPv6Address, ip_address, ip_network
from typing import Any

from litestar import Request


def address_of(request: Request[Any, Any, Any]) -> str:
    """Where a request comes from; of IPv6 the network, which is one customer's."""
    host = request.client.host if request.client is not None else ""
    try:
        address = ip_address(host)
    except ValueError:
        return host
    return str(ip_network((address, 64), strict=False)) if isinstance(address, IPv6Address) else host
