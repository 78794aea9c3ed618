"""`app`, for `uvicorn api.main:app`; nothing else. A bad setting ends the start with one line, not a traceback."""

import sys

from api.app import create_app
from shared.errors import SettingsError
from shared.logging import configure
from shared.settings import load_settings
from shared.storage import open_storage

try:
    settings = load_settings()
    configure(settings.log_format)
    open_storage(settings).prepare()
    app = create_app(settings)
except SettingsError as error:
    sys.exit(str(error))
