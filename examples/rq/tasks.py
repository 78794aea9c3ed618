"""Needs HEADWAY_URL: `rq worker --worker-class headway.integrations.rq.ReportedWorker`, and tasks.send()."""

from redis import Redis

from headway.integrations import current_job
from headway.integrations.rq import ReportedQueue


def thumbnails(n):
    return {"made": sum(1 for _ in current_job().track(range(n)))}


def send(url="redis://127.0.0.1:6379"):
    ReportedQueue(connection=Redis.from_url(url)).enqueue("tasks.thumbnails", 10)
