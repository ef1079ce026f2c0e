# SPDX-License-Identifier: MIT
"""
The protocol over a unix SOCK_SEQPACKET socket with SCM_RIGHTS: the transport between a supervisor and the daemon.

The parts: L{ssa.protocol.link} moves frames and descriptors, L{ssa.protocol.interceptor} and L{ssa.protocol.daemon} are the
two ends, L{ssa.protocol.port} is where the daemon listens.
"""

from ssa.protocol.answering import LinkLimits
from ssa.protocol.daemon import DaemonEnd
from ssa.protocol.interceptor import InterceptorEnd
from ssa.protocol.link import Link
from ssa.protocol.port import SupervisedPort

__all__ = ["DaemonEnd", "InterceptorEnd", "Link", "LinkLimits", "SupervisedPort"]
