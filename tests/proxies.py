"""nginx, Caddy, HAProxy, Apache, lighttpd and Varnish as real processes in front of APIs: each in a folder of its own,
on loopback, ended by whoever entered it. What a test says is what stands inside nginx's `http` block, or in the others'
files behind what they need to run at all."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import httpx

from tests.processes import free_port
from tests.waiting import wait_for

Kind = Literal["nginx", "caddy", "haproxy", "apache", "lighttpd", "varnish"]

#: What has to be there for each, where it is not a program of the same name.
_NEEDS: Final = {"apache": ("apache2",), "varnish": ("varnishd", "cc")}

#: A proxied stream takes two connections.
CONNECTIONS: Final = 16_384

_NGINX: Final = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections {connections}; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
{inside}
}}
"""
_CADDY: Final = """
{{
  admin off
  auto_https off
  servers {{
    protocols h1 h2 h2c
  }}
}}
{inside}
"""

_HAPROXY: Final = """
global
  log stdout format raw local0
defaults
  mode http
  timeout connect 5s
  timeout client 1h
  timeout server 1h
  option forwardfor
{inside}
"""
_MODULES: Final = ("mpm_event", "authz_core", "setenvif", "headers", "deflate", "proxy", "proxy_http", "http2", "ssl")
_APACHE: Final = """
ServerRoot {folder}
ServerName localhost
PidFile {folder}/pid
DefaultRuntimeDir {folder}
Mutex file:{folder} default
ErrorLog {folder}/error.log
{modules}
{user}
{inside}
"""
_LIGHTTPD: Final = """
server.modules = ("mod_proxy", "mod_deflate", "mod_openssl")
server.document-root = "{folder}"
server.upload-dirs = ("{folder}")
server.errorlog = "{folder}/error.log"
server.bind = "127.0.0.1"
server.port = {port}
{inside}
"""
_FRAMES: Final[dict[Kind, str]] = {
    "nginx": _NGINX,
    "caddy": _CADDY,
    "haproxy": _HAPROXY,
    "apache": _APACHE,
    "lighttpd": _LIGHTTPD,
    "varnish": "{inside}",
}

# What a deploy one process at a time needs of a proxy: what cannot be connected to is passed over, request by request,
# and one broken connection does not take the API that is left out of service (nginx answers 502 then, at once, and that
# ends an EventSource for good); nothing is held back; an idle connection is given up before the API closes it.
_BALANCING_NGINX: Final = """
  upstream apis {{ {servers} keepalive 16; keepalive_timeout 2s; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    client_max_body_size 0;
    location / {{
      proxy_pass http://apis; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_read_timeout 1h;
      proxy_connect_timeout 1s;
      proxy_buffering off; proxy_request_buffering off;
    }}
  }}
"""
_BALANCING_CADDY: Final = """
http://127.0.0.1:{port} {{
  bind 127.0.0.1
  reverse_proxy {addresses} {{
    lb_policy least_conn
    lb_try_duration 30s
    lb_try_interval 50ms
    lb_retry_match method GET HEAD
    fail_duration 1s
    max_fails 5
    transport http {{
      dial_timeout 1s
      keepalive 2s
    }}
  }}
}}
"""


def missing(*programs: str) -> str | None:
    """Why a test that needs them is skipped; None: they are all there."""
    needed = [one for program in programs for one in _NEEDS.get(program, (program,))]
    absent = [program for program in needed if shutil.which(program) is None]
    return f"there is no {absent[0]} here" if absent else None


@contextmanager
def running(kind: Kind, folder: Path, inside: str, url: str) -> Iterator[str]:
    """The proxy until the end of the block; `url` is where it listens by HTTP/1.1, and is answered when this begins."""
    folder.mkdir(exist_ok=True)
    text = _FRAMES[kind]
    config = folder / "config"
    modules = [f"LoadModule {name}_module /usr/lib/apache2/modules/mod_{name}.so" for name in _MODULES]
    names = {
        "modules": "\n".join(modules),
        "user": "User www-data\nGroup www-data" if os.geteuid() == 0 else "",
        "port": urlsplit(url).port,
    }
    config.write_text(text.format(folder=folder, connections=CONNECTIONS, inside=inside, **names))
    if kind == "nginx":
        command = ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(config)]
    elif kind == "haproxy":
        command = ["haproxy", "-db", "-f", str(config)]
    elif kind == "apache":
        command = ["apache2", "-D", "FOREGROUND", "-f", str(config)]
    elif kind == "lighttpd":
        command = ["lighttpd", "-D", "-f", str(config)]
    elif kind == "varnish":
        command = ["varnishd", "-F", "-j", "none", "-n", str(folder / "work"), "-s", "malloc,32m", "-f", str(config)]
        command += ["-a", urlsplit(url).netloc]
    else:
        command = ["caddy", "run", "--config", str(config), "--adapter", "caddyfile"]
    home = {key: str(folder) for key in ("HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | home, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def answers() -> bool:
        assert process.poll() is None, (folder / "log").read_text()
        with suppress(httpx.TransportError):
            return httpx.get(f"{url}/healthz", timeout=2).status_code == 200
        return False

    try:
        wait_for(f"{kind} answers; its log: {folder}", answers, seconds=20)
        yield url
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def balancing(kind: Kind, folder: Path, urls: list[str]) -> Iterator[str]:
    """One address for several APIs, of which any may be away; what cannot connect to one goes to another."""
    port = free_port()
    addresses = [urlsplit(url).netloc for url in urls]
    servers = " ".join(f"server {address} max_fails=0;" for address in addresses)
    text = _BALANCING_NGINX if kind == "nginx" else _BALANCING_CADDY
    inside = text.format(port=port, servers=servers, addresses=" ".join(addresses))
    with running(kind, folder, inside, f"http://127.0.0.1:{port}") as url:
        yield url
