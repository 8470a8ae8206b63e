"""How patient the failure detector is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MembershipConfig:
    """Times in milliseconds. The defaults are memberlist's for local networks."""

    cluster_id: str = "cacheservice"
    probe_interval_ms: int = 1_000
    """One member is probed each interval, all in turn. Shorter detects sooner and costs messages."""
    probe_timeout_ms: int = 500
    """How long to wait for a direct answer before others are asked. Above a slow round trip."""
    indirect_probes: int = 3
    """How many others are asked to probe a member that did not answer."""
    suspicion_multiplier: int = 4
    """A suspect is declared dead after this x log10(members, at least 10) x probe_interval_ms."""
    gossip_interval_ms: int = 200
    """How often rumours are sent out by themselves, between probes."""
    gossip_fanout: int = 3
    """To how many members."""
    retransmit_multiplier: int = 4
    """Each rumour is sent this x ceil(log10(members + 1)) times."""
    sync_interval_ms: int = 30_000
    """How often the whole view is exchanged with one member."""
    join_interval_ms: int = 300
    """How often seeds are tried while nobody has answered; later every sync_interval_ms."""
    dead_retention_ms: int = 3_600_000
    """How long dead and left members are remembered, so that old news does not revive them."""
    max_members: int = 10_000
    """Members beyond this number are not taken in."""
    max_rumours: int = 32
    """Rumours on the back of one message."""
