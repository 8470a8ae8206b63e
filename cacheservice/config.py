"""The settings of a node: units, defaults, bounds.

They come from flags, then from environment variables CACHESERVICE_*, then from a TOML file, then from the
defaults here. The README's table is generated from this module.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    FilePath,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

from cacheservice.address import split_address
from cacheservice.certificates import Certificates, Tls
from cacheservice.limits import MAX_TTL_SECONDS

ENV_PREFIX = "CACHESERVICE_"

KiB = 1024
MiB = 1024 * KiB
LEAST_SHARE = 0.01
MAX_SHARES = 0.95
"""What namespaces may have to themselves of max_memory, together."""
LONGEST_NAME = 253
LEAST_MEMORY = 1 * MiB
MAX_PORT = 65_535
MAX_WORKERS = 64
ENTRY_SLACK = 64 * KiB
"""What key, tags and framing may add to a value in one message."""
PEER_SLACK = 4 * MiB
"""What 10,000 entries, or their answers, may take beyond max_message_bytes on their way between nodes."""


def _is_address(address: str) -> str:
    split_address(address)
    return address


def _split_list(value: object) -> object:
    if isinstance(value, str):
        return tuple(part for part in re.split(r"[,\s]+", value) if part)
    return value


Address = Annotated[str, AfterValidator(_is_address)]
Seconds = Annotated[float, Field(ge=0, le=MAX_TTL_SECONDS, allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME, pattern=r"^[A-Za-z0-9._-]+$")]


Policy = Literal["lru", "lfu", "fifo", "s3fifo", "adaptive"]
Jitter = Annotated[float, Field(ge=0, le=0.9, allow_inf_nan=False)]


Replication = Literal["all", "async"]


class LoadSettings(BaseModel):
    """How values are loaded from their origin, and what is served until they are."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    stale_seconds: Seconds = 0
    """How long past its time to live an entry is served, as stale, while one caller loads it anew; of entries
    written without stale_seconds."""
    stale_if_error_seconds: Seconds = 0
    """How long past its time to live an entry is kept for when its value cannot be loaded; of entries written
    without stale_if_error_seconds."""
    absent_ttl_seconds: Seconds = 1
    """Time to live of the knowledge that the origin has no such value; 0 not to keep it."""
    early_refresh: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] = 1
    """How early before its expiry a value is loaded anew, relative to the time that loading takes (XFetch's
    beta); 0 for never."""
    lease_seconds: Annotated[float, Field(ge=0.1, le=3600, allow_inf_nan=False)] = 10
    """How long one caller has to load a value before another one may."""
    retry_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 10
    """For how long nobody loads a value again whose load has failed twice in a row."""


class NamespaceSettings(LoadSettings):
    """What holds for the keys of one namespace (what stands before the first ":" of a key)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    default_ttl_seconds: Seconds = 0
    """Time to live of entries written without one; 0 for no expiry."""
    max_ttl_seconds: Seconds = 0
    """Longest time to live; longer ones, and none at all, are cut to it. 0 for no bound."""
    ttl_jitter: Jitter = 0
    """The part of its time to live, at most, by which an entry's own is shortened at random."""
    share: Annotated[float, Field(ge=0, le=MAX_SHARES, allow_inf_nan=False)] = 0
    """The part of max_memory that the namespace has to itself, and is bound to; 0 for none."""
    policy: Policy | None = None
    """What is evicted when its share is full; that of the other keys when there is none."""

    replication: Replication | None = None
    """When its writes are answered; as those of the other keys when there is none."""

    @model_validator(mode="after")
    def _fits_together(self) -> NamespaceSettings:
        _check_ttls(self.default_ttl_seconds, self.max_ttl_seconds)
        if 0 < self.share < LEAST_SHARE:
            raise ValueError(f"share must be 0 or at least {LEAST_SHARE:g}, got {self.share:g}")
        if self.policy and not self.share:
            raise ValueError("a namespace with a policy of its own needs a share")
        return self


def _check_ttls(default_ttl_seconds: float, max_ttl_seconds: float) -> None:
    if 0 < max_ttl_seconds < default_ttl_seconds:
        bound = f"at most max_ttl_seconds ({max_ttl_seconds:g})"
        raise ValueError(f"default_ttl_seconds ({default_ttl_seconds:g}) must be {bound}")


class Settings(LoadSettings, BaseSettings):
    """One node's settings, checked and frozen."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        use_attribute_docstrings=True,
        nested_model_default_partial_update=False,
    )

    node_id: Name = "n1"
    """The node's identity on the ring: stable over restarts, distinct in the cluster. In Kubernetes the
    pod's name."""
    cluster_id: Name = "cacheservice"
    """Nodes of another cluster are refused, whatever their address."""
    listen: Address = "127.0.0.1:7700"
    """HOST:PORT to serve on; port 0 takes a free one."""
    advertise: Address | None = None
    """HOST:PORT at which the others reach this node. Needed when listening on all interfaces; else the
    same as listen."""
    seeds: Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split_list)] = ()
    """HOST:PORT of some members, or a DNS name with all their addresses, separated by commas. Tried for
    ever; the node's own address may be among them."""
    tls_cert: FilePath | None = None
    """The node's certificate, with all intermediate ones, as PEM. With it, tls_key and tls_ca, clients and
    other nodes are talked to with TLS alone. The files are read again when they have changed."""
    tls_key: FilePath | None = None
    """The certificate's private key, as PEM without passphrase."""
    tls_ca: FilePath | None = None
    """Certificates of those who may sign the other nodes' and the clients' certificates, as PEM."""
    tls_client_auth: Literal["require", "none"] = "require"
    """Whether callers need a certificate that tls_ca has signed. With none, whoever reaches the port can do
    whatever a node can."""
    tls_server_name: Annotated[str, Field(max_length=LONGEST_NAME)] = ""
    """A name that the certificates of all nodes have, if they have not those of the nodes' addresses."""
    health_listen: Address | None = None
    """HOST:PORT to serve health on, and nothing else, without TLS: for probes that know none, or have no
    certificate."""
    zone: Annotated[str, Field(max_length=LONGEST_NAME)] = ""
    """The node's failure domain: replicas prefer another one."""
    host: Annotated[str, Field(max_length=LONGEST_NAME)] = ""
    """What the node shares with others that fail with it: two nodes of one host never hold the same entry.
    Empty for nothing; workers have their common node_id then."""
    workers: Annotated[int, Field(ge=1, le=MAX_WORKERS)] = 1
    """Processes to serve with, each a member of its own. With more than one their ids are node_id with -w0,
    -w1 and so on, their ports those of listen, advertise and health_listen and the ones that follow, and
    each has its part of max_memory; all other settings are those of each."""
    weight: Annotated[int, Field(ge=1, le=100)] = 1
    """The node's share of the keys, relative to the others."""
    max_memory: Annotated[ByteSize, Field(ge=LEAST_MEMORY)] = ByteSize(256 * MiB)
    """What the entries may occupy, keys and overhead included, for instance 256MiB; with several workers in
    all of them together. A process as a whole stays within 1.15 times its part of that and 64 MiB."""
    policy: Policy = "lru"
    """What is evicted when memory is full: lru, lfu, fifo, s3fifo, or adaptive, which is hardly ever worse
    than lru, and mostly the best of them."""
    replication_factor: Annotated[int, Field(ge=1, le=5)] = 2
    """How many nodes hold each entry. The same on all nodes."""
    replication: Replication = "all"
    """When a write is answered: all, once every live node that is to hold it has it; or async, once its
    owner has it. A write that asks for min_replicas waits for that many all the same."""
    min_members: Annotated[int, Field(ge=0, le=10_000)] = 0
    """With fewer nodes in the ring writes are refused, as on the smaller side of a parted network."""
    vnodes: Annotated[int, Field(ge=1, le=4096)] = 256
    """Points on the ring for each unit of weight. The same on all nodes."""
    max_value_bytes: Annotated[ByteSize, Field(ge=1, le=256 * MiB)] = ByteSize(8 * MiB)
    """Longer values are refused."""
    max_message_bytes: Annotated[ByteSize, Field(ge=64 * KiB, le=1024 * MiB)] = ByteSize(32 * MiB)
    """Longer requests are refused, and batch answers cut: bounds what one call can hold in memory."""
    max_in_flight: Annotated[int, Field(ge=1, le=100_000)] = 2_000
    """Client requests at work at a time; more are refused with RESOURCE_EXHAUSTED."""
    default_timeout_seconds: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] = 5.0
    """The deadline of client requests that come without one."""
    forward_timeout_seconds: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] = 1.0
    """How long another node may take to answer for a key before the next one is asked."""
    replication_timeout_seconds: Annotated[float, Field(gt=0, le=60, allow_inf_nan=False)] = 0.5
    """How long a write waits for its replicas."""
    join_timeout_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 5.0
    """How long a node with seeds waits for one of them before it is ready to serve on its own."""
    drain_seconds: Annotated[float, Field(ge=0, le=3600, allow_inf_nan=False)] = 60.0
    """How long a node that was told to stop may take to hand its entries over."""
    handoff_rate: Annotated[ByteSize, Field(ge=64 * KiB)] = ByteSize(64 * MiB)
    """Bytes a second that a node hands over to others when the ring has changed, for instance 64MiB."""
    default_ttl_seconds: Seconds = 0
    """Time to live of entries written without one, in namespaces without settings; 0 for no expiry."""
    max_ttl_seconds: Seconds = 0
    """Longest time to live in namespaces without settings; longer ones, and none at all, are cut to it.
    0 for no bound."""
    ttl_jitter: Jitter = 0
    """The part of its time to live, at most, by which an entry's own is shortened at random, in namespaces
    without settings, so that what was written at one time does not expire at one time."""
    namespaces: dict[str, NamespaceSettings] = {}
    """Settings for each namespace, in the TOML file as [namespaces.NAME]; in the environment as JSON. What
    they leave out has its default, whatever is set for the other keys, but for policy and replication."""
    config: FilePath | None = None
    """A TOML file with settings, by the names of this table in lower case, without the prefix."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """What is logged, to stderr."""

    @model_validator(mode="after")
    def _fits_together(self) -> Settings:
        advertised, _ = split_address(self.advertise or self.listen)
        if _is_wildcard(advertised):
            raise ValueError(f"advertise must be an address that the others can call, not {advertised}")
        _check_ttls(self.default_ttl_seconds, self.max_ttl_seconds)
        if self.workers > 1:
            _check_workers(self)
        if any(not name or ":" in name for name in self.namespaces):
            raise ValueError("the name of a namespace must not be empty, nor have a ':' in it")
        if sum(namespace.share for namespace in self.namespaces.values()) > MAX_SHARES:
            raise ValueError(f"the shares of the namespaces must be at most {MAX_SHARES:g} together")
        if self.max_value_bytes + ENTRY_SLACK > self.max_message_bytes:
            raise ValueError(
                f"max_message_bytes ({self.max_message_bytes}) must be at least max_value_bytes "
                f"({self.max_value_bytes}) + {ENTRY_SLACK}"
            )
        return self

    @model_validator(mode="after")
    def _certificates_can_be_used(self) -> Settings:
        if self.certificates() is None:
            _check_plaintext(self)
        return self

    def certificates(self) -> Certificates | None:
        """What is in the files now; None without TLS. ValueError when they cannot be used."""
        if self.tls_cert is None or self.tls_key is None or self.tls_ca is None:
            return None
        return Certificates(Tls(self.tls_ca, self.tls_cert, self.tls_key, self.tls_server_name), "tls_")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        file = init_settings().get("config") or env_settings().get("config")
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, file))


def _check_plaintext(settings: Settings) -> None:
    """Who has given anything for TLS is not to be without, unawares."""
    given = [
        name
        for name in ("tls_cert", "tls_key", "tls_ca", "tls_server_name", "tls_client_auth")
        if name in settings.model_fields_set and getattr(settings, name)
    ]
    if given:
        rule = "tls_cert, tls_key and tls_ca must be given together"
        missing = [name for name in ("tls_cert", "tls_key", "tls_ca") if name not in given]
        raise ValueError(f"{' and '.join(given)} without {' and '.join(missing)}: {rule}")


def _check_workers(settings: Settings) -> None:
    longest = LONGEST_NAME - len(f"-w{settings.workers - 1}")
    if len(settings.node_id) > longest:
        raise ValueError(f"node_id must be at most {longest} characters with {settings.workers} workers")
    if settings.max_memory < settings.workers * LEAST_MEMORY:
        raise ValueError(f"max_memory must be at least 1 MiB for each of {settings.workers} workers")
    for name in ("listen", "advertise", "health_listen"):
        address = getattr(settings, name)
        if address is None:
            continue
        _, port = split_address(address)
        highest = MAX_PORT + 1 - settings.workers
        if not 1 <= port <= highest:
            bound = f"from 1 to {highest} with {settings.workers} workers, which have the ports that follow"
            raise ValueError(f"the port of {name} must be {bound}, got {port}")
    for name in ("listen", "advertise"):
        if _overlap(getattr(settings, name), settings.health_listen, settings.workers):
            raise ValueError(
                f"the ports of {name} ({getattr(settings, name)}) and health_listen "
                f"({settings.health_listen}) must be at least {settings.workers} apart with "
                f"{settings.workers} workers, which have the ports that follow"
            )


def _overlap(one: str | None, other: str | None, count: int) -> bool:
    """Whether so many ports from the one address on have any in common with as many from the other."""
    if one is None or other is None:
        return False
    (host, port), (other_host, other_port) = split_address(one), split_address(other)
    may_be_same = host == other_host or _is_wildcard(host) or _is_wildcard(other_host)
    return may_be_same and abs(port - other_port) < count


def _is_wildcard(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def flag_of(name: str) -> str:
    """The command line's flag for the setting."""
    return f"--{name.replace('_', '-')}"


def meaning_of(name: str) -> str:
    """The setting's description, on one line."""
    return " ".join((Settings.model_fields[name].description or "").split())


def as_markdown() -> str:
    """The settings as the table of the README."""
    rows = ["| flag, variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        flag = "" if name == "namespaces" else f"`{flag_of(name)}`, "
        default = field.default.human_readable() if isinstance(field.default, ByteSize) else field.default
        shown = "" if default in (None, "", (), {}) else default
        rows.append(f"| {flag}`{ENV_PREFIX}{name.upper()}` | {shown} | {meaning_of(name)} |")
    return "\n".join(rows) + "\n"
