"""`app`, for `uvicorn api.main:app`; nothing else. A bad setting ends the start with one line, not a traceback."""

import sys

from headway.api.app import create_app
from headway.shared.errors import SettingsError
from headway.shared.files.place import open_storage
from headway.shared.logging import configure
from headway.shared.settings import load_settings

try:
    settings = load_settings()
    configure(settings.log_format)
    open_storage(settings).prepare()
    app = create_app(settings)
except SettingsError as error:
    sys.exit(str(error))
