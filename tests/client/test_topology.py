"""What a client takes from a topology."""

from __future__ import annotations

from cacheservice.client.placement import Placement
from cacheservice.v1.cluster_pb2 import (
    MEMBER_STATE_ALIVE,
    MEMBER_STATE_DEAD,
    MEMBER_STATE_LEAVING,
    MEMBER_STATE_LEFT,
)
from tests.client.scripted import Teller


def test_who_is_dead_but_not_where_another_member_is_now() -> None:
    teller = Teller()
    teller.tell(
        {
            "alive": MEMBER_STATE_ALIVE,
            "dead": MEMBER_STATE_DEAD,
            "leaving": MEMBER_STATE_LEAVING,
            "left": MEMBER_STATE_LEFT,
        }
    )
    topology = teller.topology()
    topology.members.add(node_id="before", address="alive", state=MEMBER_STATE_DEAD)
    placement = Placement(topology)
    assert placement.dead == {"dead"}
    assert placement.addresses == ["alive"]
