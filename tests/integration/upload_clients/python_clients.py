"""tuspy, as its documentation says, uploading one file and saying where it is now.

python -m tests.integration.upload_clients.python_clients ENDPOINT FILE
"""

from __future__ import annotations

import sys
from pathlib import Path

from tusclient.client import TusClient

endpoint, path = sys.argv[1:]

# It reads a chunk into memory before it sends it, and counts its tries by the chunk.
chunk_bytes = max(8, Path(path).stat().st_size // 4)
metadata = {"filename": "large.bin", "filetype": "x/y", "processor": "checksum"}
uploader = TusClient(endpoint).uploader(path, chunk_size=chunk_bytes, metadata=metadata, retries=300, retry_delay=0)
uploader.upload()
print(uploader.url)
