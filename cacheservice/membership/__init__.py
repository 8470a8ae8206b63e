"""Gossip membership without I/O: (event, now) -> outputs."""

from cacheservice.membership.config import MembershipConfig
from cacheservice.membership.core import Membership
from cacheservice.membership.member import Member, Phase, State

__all__ = ["Member", "Membership", "MembershipConfig", "Phase", "State"]
