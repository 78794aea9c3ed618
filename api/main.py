"""`app`, for `uvicorn api.main:app`; nothing else. A bad setting ends the start with one line, not a traceback."""

import sys

from api.app import create_app
from shared.errors import SettingsError
from shared.settings import load_settings
from shared.storage import Storage

try:
    settings = load_settings()
    Storage(settings.data_dir).prepare()
    app = create_app(settings)
except SettingsError as error:
    sys.exit(str(error))
