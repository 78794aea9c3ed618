"""The public contract of processors: what a module of your own imports.

    from headway.processors import BadInput, Job, Options, processor

    @processor("line-count", description="Counts lines", accepts=("text/*",))
    def line_count(job: Job) -> dict[str, int]:
        with job.open_input() as file:
            return {"lines": sum(1 for _ in job.track(file, unit="lines"))}

A worker finds it by the entry-point group `headway.processors` or by HEADWAY_PROCESSORS. Needs
`pip install 'headway[server]'`.
"""

from __future__ import annotations

from headway.needs import extra

with extra("server", "headway.processors"):
    from headway.shared.errors import BadInput
    from headway.shared.tasks.processors import Job, Options, processor
    from headway.shared.tasks.retries import Retries

__all__ = ["BadInput", "Job", "Options", "Retries", "processor"]
