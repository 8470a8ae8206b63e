"""How patient the failure detector is."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log


@dataclass(frozen=True, slots=True)
class MembershipConfig:
    """Times in milliseconds. What the defaults cost and bring is in docs/membership.md."""

    cluster_id: str = "cacheservice"
    probe_interval_ms: int = 1_000
    """One member is probed each interval. Shorter detects sooner and costs messages."""
    probe_timeout_ms: int = 500
    """How long to wait for a direct answer before others are asked. Above a slow round trip."""
    indirect_probes: int = 3
    """How many others are asked to probe a member that did not answer."""
    nack_timeout_ms: int = 400
    """How long they wait before they say that they got no answer either. Below probe_interval_ms less
    probe_timeout_ms, so that they are heard in time."""
    suspicion_ms: int = 4_000
    """How long a suspect has to refute, beyond the time that the news takes there and back. Longer than
    any pause of a process that is to be forgiven."""
    doubtful_multiplier: int = 6
    """Times that, when nobody else confirms the suspicion."""
    gossip_interval_ms: int = 200
    """How often rumours are sent out by themselves, between probes."""
    gossip_fanout: int = 3
    """To how many members."""
    retransmit_multiplier: int = 4
    """Each rumour is sent this x ceil(log10(members + 1)) times."""
    worst_health: int = 3
    """Probes of a node that thinks itself unhealthy take up to 1 + this times as long."""
    lag_ms: int = 200
    """A timer that is later than this shows that the process did not run; that time does not count."""
    reconcile_interval_ms: int = 1_000
    """How soon after news, and after the last such exchange, whole views are exchanged with a member that
    differs; doubled each time that it did not help, up to search_interval_ms."""
    search_interval_ms: int = 10_000
    """How often one address is tried of the members that are dead and of the seeds that are strange."""
    join_interval_ms: int = 300
    """How soon seeds are tried again while nobody has answered; doubled each time, up to
    search_interval_ms."""
    sync_interval_ms: int = 60_000
    """How often whole views are exchanged with one member in any case, times 1 + members / 100."""
    recent_dead: int = 10
    """Every second time one of the dead is tried it is one of so many who died last."""
    max_members: int = 10_000
    """Members beyond this number are not taken in."""
    max_gone: int = 1_000
    """How many dead and left members are remembered, so that old news does not revive them: the latest."""
    max_rumours: int = 32
    """Rumours on the back of one message."""
    max_probes: int = 32
    """Probes under way at a time, and as many for others."""
    witnesses: int = 3
    """How many members must confirm that they know that a node is ready, or that it leaves."""

    def transmissions(self, members: int) -> int:
        """How often a rumour is sent by each of that many members."""
        return self.retransmit_multiplier * _digits(members)

    def spread_ms(self, members: int) -> int:
        """About how long a rumour takes to all of that many members, each round reaching 1 + fanout times
        as many as the one before."""
        return self.gossip_interval_ms * ceil(log(max(members, 2)) / log(1 + self.gossip_fanout))

    def refutable_ms(self, members: int) -> int:
        """How long a suspect has, when its silence is confirmed."""
        return self.suspicion_ms + 2 * self.spread_ms(members)


def _digits(number: int) -> int:
    """ceil(log10(number + 1)), exactly."""
    return len(str(number))
