"""Health by the standard protocol (grpc.health.v1): what probes and load balancers ask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthServicer

from cacheservice.server.changes import Changes
from cacheservice.server.guard import Context


class Health(HealthServicer):
    """Tells of services what `set` was told; not one who watches holds up `set`, or anybody else."""

    def __init__(self) -> None:
        self._statuses: dict[str, Any] = {}
        self._changes = Changes()

    def set(self, serving: Mapping[str, bool]) -> None:
        """By service; the empty name is the node as a whole."""
        for service, is_serving in serving.items():
            self._statuses[service] = (
                HealthCheckResponse.SERVING if is_serving else HealthCheckResponse.NOT_SERVING
            )
        self._changes.changed()

    async def Check(self, request: HealthCheckRequest, context: Context) -> HealthCheckResponse:
        status = self._statuses.get(request.service)
        if status is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service[:100]!r}")
        return HealthCheckResponse(status=status)

    async def Watch(self, request: HealthCheckRequest, context: Context) -> None:
        def current() -> Any:
            return self._statuses.get(request.service, HealthCheckResponse.SERVICE_UNKNOWN)

        async def send(status: Any) -> None:
            await context.write(HealthCheckResponse(status=status))

        await self._changes.tell(current, send)
