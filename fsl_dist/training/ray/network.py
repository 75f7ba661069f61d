"""The network interface for the communication of workers: the one with the node's address in the Ray cluster."""

import fcntl
import os
import socket
import struct
from typing import Any

from ray.train.torch import TorchConfig
from ray.util import get_node_ip_address

_ADDRESS_OF_INTERFACE = 0x8915
"""SIOCGIFADDR of Linux"""
_VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")


def interface_of(address: str) -> str:
    """Name of the interface that has this IPv4 address; empty where none has it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        for _, name in socket.if_nameindex():
            request = struct.pack("256s", name.encode()[:15])
            try:
                answer = fcntl.ioctl(asking.fileno(), _ADDRESS_OF_INTERFACE, request)
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return ""


def name_interface() -> None:
    """Set the interface of this Ray node's address for gloo and NCCL, unless the environment sets one.

    By default, gloo uses the address to which the host's own name resolves. In a container or with a common
    /etc/hosts that may be the loopback, which other hosts cannot reach.
    """
    if name := interface_of(get_node_ip_address()):
        for variable in _VARIABLES:
            os.environ.setdefault(variable, name)


class _Backend(TorchConfig().backend_cls):  # type: ignore[misc]
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(name_interface)
        super().on_start(worker_group, backend_config)


class InterfaceTorchConfig(TorchConfig):
    """Ray Train's settings of the process group, after `name_interface` in each worker."""

    @property
    def backend_cls(self) -> type:
        """What sets the process group up."""
        return _Backend
