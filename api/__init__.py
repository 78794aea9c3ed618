"""The HTTP edge: takes files and requests in, relays progress out. Nothing here processes a file.

Its name is `headway.api`. In a checkout `uvicorn api.main:app` works too, and gets the same application: under the name
`api` there is `api.main` and nothing else, so no module of ours is there twice.
"""

import sys
from importlib import import_module

if __name__ == "api":
    sys.modules["api.main"] = import_module("headway.api.main")
    globals().update(__path__=[], main=sys.modules["api.main"])
