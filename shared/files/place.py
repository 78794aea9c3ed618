"""Which place of files the settings name: the data directory, or a bucket."""

from __future__ import annotations

from headway.shared.files.directory import DirectoryStorage
from headway.shared.files.storage import Storage
from headway.shared.settings import Settings


def open_storage(settings: Settings) -> Storage:
    """The place that the settings name."""
    if settings.storage_url:
        from headway.shared.files.bucket import BucketStorage  # brings obstore along, which nobody else needs

        return BucketStorage(settings)
    return DirectoryStorage(settings.data_dir, settings.disk_reserve_bytes)
