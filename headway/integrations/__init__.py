"""What turns the tasks of other queues into reported ones, each with one line: celery, rq, dramatiq, executors.

None of those libraries is needed by Headway: whoever has one imports the module of its name. What they share is
headway/integrations/work.py. `current_job()` is the job of the task that runs here.
"""

from __future__ import annotations

from headway.integrations.work import current_job

__all__ = ["current_job"]
