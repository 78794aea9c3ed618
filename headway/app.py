"""The platform as an ASGI application, for `uvicorn`, gunicorn with uvicorn's worker, or another application's `mount`.

    from headway.app import Settings, create_app

    app = create_app(Settings(redis_url="redis://127.0.0.1:6379/0"))

Mounted, it wants its lifespan entered: `async with app.running(): yield` in the outer application's (docs/clients.md).
With `create_app(settings, identify=f)` the application that this one is part of says who asks: `async f(request)`
returns `Owner("alice")`, or None for 401.

Needs `pip install 'headway[server]'`. Without one, an ImportError says so.
"""

from __future__ import annotations

from headway.needs import extra

with extra("server", "headway.app"):
    from headway.api.access.grant import Owner
    from headway.api.app import Application, create_app
    from headway.shared.settings import Settings, load_settings

__all__ = ["Application", "Owner", "Settings", "create_app", "load_settings"]
