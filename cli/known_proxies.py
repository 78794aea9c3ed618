"""Which line of which proxy's configuration mends what `headway doctor` found. A proxy is known by what it adds to an
answer; where nothing gives it away, the lines of all are told. docs/proxies.md has each in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

Fault = Literal["buffering", "compression", "idle", "origin", "size", "progress", "multiplexing", "connections"]

#: By what its `Server` or `Via` says.
_SIGNS: Final = {
    "nginx": "nginx",
    "openresty": "nginx",
    "caddy": "Caddy",
    "apache": "Apache",
    "haproxy": "HAProxy",
    "lighttpd": "lighttpd",
    "varnish": "Varnish",
    "h2o": "h2o",
    "squid": "Squid",
    "traefik": "Traefik",
    "envoy": "Envoy",
    "cloudflare": "Cloudflare",
    "awselb": "AWS ALB",
}

LINES: Final[Mapping[Fault, Mapping[str, str]]] = {
    "buffering": {
        "nginx": "`proxy_buffering off;` in the location, and no `proxy_ignore_headers X-Accel-Buffering`",
        "Caddy": "`flush_interval -1` in reverse_proxy",
        "Apache": "`ProxyPass … flushpackets=on`, and no mod_cache on these paths",
        "HAProxy": "no `option http-buffer-request`, and no cache or compression on these paths",
        "lighttpd": "`server.stream-response-body = 2`",
        "Varnish": "`set beresp.do_stream = true;`, or `return (pipe)` for streams",
        "Envoy": "no buffer filter on these routes",
        "Traefik": "no `buffering` middleware on these routes",
    },
    "compression": {
        "nginx": "leave text/event-stream out of `gzip_types`",
        "Caddy": "`encode` with a `match` on other types",
        "Apache": "`SetEnvIf Request_URI /events$ no-gzip`",
        "HAProxy": "leave text/event-stream out of `compression type`",
        "lighttpd": "leave text/event-stream out of `deflate.mimetypes`",
        "Varnish": "`set beresp.do_gzip = false;` for text/event-stream",
    },
    "idle": {
        "nginx": "`proxy_read_timeout 1h;` in the location",
        "Caddy": "no `read_timeout` in the transport",
        "Apache": "`ProxyTimeout 3600`",
        "HAProxy": "`timeout server 1h` and `timeout client 1h`",
        "lighttpd": '`proxy.server` with `"read-timeout" => 3600`',
        "Varnish": "`.between_bytes_timeout = 1h;` in the backend",
        "Traefik": "`respondingTimeouts.writeTimeout: 0`",
        "Envoy": "`timeout: 0s` and a longer `idle_timeout` in the route",
        "AWS ALB": "a longer `idle_timeout.timeout_seconds`",
    },
    "origin": {
        "nginx": "`proxy_set_header Host $http_host; proxy_set_header X-Forwarded-Proto $scheme;`",
        "Caddy": "no `header_up Host` in reverse_proxy",
        "Apache": "`ProxyPreserveHost On` and `RequestHeader set X-Forwarded-Proto expr=%{REQUEST_SCHEME}`",
        "HAProxy": "`http-request set-header X-Forwarded-Proto %[ssl_fc,iif(https,http)]`, and no `set-header Host`",
        "lighttpd": '`proxy.forwarded = ("for" => 1, "proto" => 1, "host" => 1)`',
        "Varnish": "no `set req.http.Host`; X-Forwarded-Proto from what ends TLS",
        "h2o": "`proxy.preserve-host: ON`",
        "Squid": "`cache_peer … originserver` with `http_port … accel vhost`",
        "Traefik": "`passHostHeader: true`",
        "Envoy": "no `host_rewrite_literal` in the route",
    },
    "size": {
        "nginx": "`client_max_body_size 0;`",
        "Caddy": "no `request_body max_size` that is less",
        "Apache": "`LimitRequestBody 0`",
        "lighttpd": "`server.max-request-size = 0`",
        "Cloudflare": "tus, as the page sends: its pieces have 16 MiB; bodies over 100 MB need a paid plan",
    },
    "progress": {
        "nginx": "`proxy_request_buffering off; proxy_http_version 1.1;` in the location",
        "Caddy": "no `request_buffers` in reverse_proxy",
        "Apache": "no `SetEnv proxy-sendcl`",
        "HAProxy": "no `option http-buffer-request`",
        "lighttpd": "`server.stream-request-body = 2`",
        "Traefik": "no `buffering` middleware on these routes",
        "Envoy": "no buffer filter on these routes",
        "Cloudflare": "nothing: it collects a body before it sends it on; the page's pieces keep the steps small",
    },
    "multiplexing": {
        "nginx": "`listen 443 ssl http2;`",
        "Caddy": "TLS, and it speaks HTTP/2 by itself",
        "Apache": "`Protocols h2 http/1.1` with mod_http2",
        "HAProxy": "`bind :443 ssl crt … alpn h2,http/1.1`",
        "lighttpd": '`server.feature-flags += ("server.h2proto" => "enable")`, the default since 1.4.65',
    },
    "connections": {
        "nginx": "a higher `limit_conn`",
        "Apache": "a higher `MaxRequestWorkers`",
        "HAProxy": "a higher `maxconn`",
        "Varnish": "a higher `.max_connections` in the backend",
    },
}


def proxy_of(headers: Mapping[str, str]) -> str | None:
    """Who answered with these headers, or passed them on; None: nobody who says so."""
    if "x-varnish" in headers:
        return "Varnish"
    if "cf-ray" in headers:
        return "Cloudflare"
    said = f"{headers.get('server', '')} {headers.get('via', '')}".lower()
    return next((name for sign, name in _SIGNS.items() if sign in said), None)


def lines(fault: Fault, proxy: str | None) -> str:
    """What to change: of this proxy, or of each."""
    known = LINES[fault]
    if proxy is not None and proxy in known:
        return f"{proxy}: {known[proxy]}."
    return " ".join(f"{name}: {line}." for name, line in known.items())
