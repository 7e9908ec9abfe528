"""Where a webhook may go: names are resolved once, every address is judged, and the connection goes to the one that was judged.

A name that answers with a public address when it is checked and with a private one when it is called (DNS rebinding) gains nothing.
"""

import ipaddress
import socket
from collections.abc import Callable, Sequence

from protocol.errors import ForbiddenError, TransferError

#: Gives the addresses of a host and port, as text.
Resolve = Callable[[str, int], Sequence[str]]
#: Addresses looked at for one name.
MAX_ADDRESSES = 16
#: Carries IPv4 inside: judged by the address that it stands for (RFC 6052).
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


def resolve(host: str, port: int) -> list[str]:
    """The addresses of the host in the system's order. Raises: TransferError when the name is not known."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError) as error:
        raise TransferError(f"The name {host!r} has no address: {error}.", code="webhook-name") from error
    return list(dict.fromkeys(str(one[4][0]) for one in found))[:MAX_ADDRESSES]


def is_public(text: str) -> bool:
    """Whether the address is one of the open internet, itself and the IPv4 address that it may carry inside. Pure."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    inner = _inner(address)
    return address.is_global and not address.is_multicast and (inner is None or (inner.is_global and not inner.is_multicast))


def permitted(host: str, port: int, *, allows_private: bool, resolve_name: Resolve = resolve) -> list[str]:
    """The addresses that a request to the host may be sent to.

    One private address among them refuses the name: nobody needs both. Raises: ForbiddenError; TransferError.
    """
    found = list(resolve_name(host, port))
    if not found:
        raise TransferError(f"The name {host!r} has no address.", code="webhook-name")
    private = [address for address in found if not is_public(address)]
    if private and not allows_private:
        raise ForbiddenError(
            f"{host} is {private[0]}, an address of a private network.",
            hint="Make the webhook with --allow-private if that is meant.",
            code="webhook-private",
        )
    return found


def _inner(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = address.teredo[1] if address.teredo else None
    return address.ipv4_mapped or address.sixtofour or teredo
