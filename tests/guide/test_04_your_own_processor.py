"""Write a processor of your own.

A processor is a function in a module of yours, found by its name in HEADWAY_PROCESSORS (or by an entry point of your
package). It is handed a `job`: it reads the input, says how far it is, writes result files, and returns a summary. It
runs in a process of its own, so it may block, crash or take its time. This is the whole of one:
"""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from tests.processes import Platform
from tests.streams import frames_of, opened

WORD_COUNT = """
from collections import Counter
from pydantic import Field
from headway.processors import BadInput, Job, Options, processor

class WordCountOptions(Options):
    top: int = Field(default=3, ge=1, description="how many words to list")

@processor("word-count", description="Counts words", accepts=("text/*",), options=WordCountOptions,
           phases={"Counting": 9, "Writing": 1})
def word_count(job: Job) -> dict[str, object]:
    job.phase("Counting")
    counts = Counter()
    with job.open_input() as file:
        for line in job.track(file, unit="lines"):
            counts.update(line.decode().split())
    if not counts:
        raise BadInput("There are no words in this file; send one with some.")
    job.log(f"{len(counts)} different words")
    job.phase("Writing")
    with job.create_output("words.txt", "text/plain") as output:
        for word, count in counts.most_common():
            output.write(f"{count} {word}\\n".encode())
    return {"words": counts.total(), "top": dict(counts.most_common(job.options.top))}
"""


@pytest.fixture
def with_word_count(own_platform: Platform, tmp_path: Path) -> Platform:
    """An API and a worker that have been told of the module `my_processors`. No file of Headway is edited."""
    (tmp_path / "my_processors.py").write_text(WORD_COUNT)
    own_platform.start_worker(wait=False, PYTHONPATH=str(tmp_path), HEADWAY_PROCESSORS="my_processors")
    own_platform.start_api(PYTHONPATH=str(tmp_path), HEADWAY_PROCESSORS="my_processors")
    return own_platform


def test_a_processor_of_ones_own_is_offered_run_watched_and_its_files_are_kept(with_word_count: Platform) -> None:
    url = with_word_count.url

    # It is on the list with the schema of its options, which is what the page makes its form of.
    [offered] = [p for p in httpx.get(f"{url}/processors").json()["processors"] if p["name"] == "word-count"]
    assert offered["description"] == "Counts words"
    assert offered["options"]["properties"]["top"]["description"] == "how many words to list"

    # Its phases and its logs are on the stream.
    task = with_word_count.submit("word-count", b"to be or not to be\n", filename="hamlet.txt", options='{"top": 2}')
    with opened(f"{url}{task['links']['events']}?last_event_id=0") as stream:
        story = list(frames_of(stream))
    assert {"Counting", "Writing"} <= {frame.data["message"] for frame in story}
    assert [frame.data["message"] for frame in story if frame.name == "log"] == ["4 different words"]
    assert next(f.data["progress"] for f in story if f.name == "" and f.data["message"] == "Writing") == 90

    # What it returned is the summary, what it wrote is a file of the result.
    result = story[-1].data["result"]
    assert result["summary"] == {"words": 6, "top": {"to": 2, "be": 2}}
    [file] = result["files"]
    download = httpx.get(f"{url}{file['url']}")
    assert download.text.splitlines() == ["2 to", "2 be", "1 or", "1 not"]
    assert download.headers["Content-Disposition"].startswith("attachment")

    # Wrong options are refused at once; a wrong file is told by the processor itself.
    form = {"processor": "word-count", "options": '{"top": 0}'}
    refused = httpx.post(f"{url}/tasks", data=form, files={"file": ("hamlet.txt", b"to be")})
    assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "options.top")
    empty = with_word_count.wait(with_word_count.submit("word-count", b"\n")["task_id"])
    assert empty["error"] == {
        "type": "bad_input",
        "message": "There are no words in this file; send one with some.",
        "retryable": False,
    }
