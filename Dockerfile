FROM python:3.13 AS build

ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_ROOT_USER_ACTION=ignore

WORKDIR /src
COPY . .
# With what each key passes compiled (docs/performance.md).
RUN HATCH_BUILD_HOOKS_ENABLE=true pip wheel --no-deps --wheel-dir /dist .

RUN python -m venv --without-pip /opt/venv \
    && pip --python /opt/venv/bin/python install --only-binary=:all: /dist/*.whl


FROM python:3.13-slim

# Numeric, so that Kubernetes can check runAsNonRoot.
RUN groupadd --gid 10001 cacheservice \
    && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /nonexistent \
        --shell /usr/sbin/nologin cacheservice

# Same path as in the build stage: scripts in a venv hold absolute paths.
COPY --from=build /opt/venv /opt/venv

ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1

USER 10001:10001

EXPOSE 7700

ENTRYPOINT ["cacheservice"]
CMD ["serve"]
