"""A processor from outside Headway: see docs/processors.md."""

from headway.processors import Job, processor


@processor("line-count", description="Counts the lines of a text", accepts=("text/*",))
def line_count(job: Job) -> dict[str, int]:
    with job.open_input() as file:
        return {"lines": sum(1 for _ in job.track(file))}
