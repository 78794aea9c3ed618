"""Needs HEADWAY_URL and a Redis: `dramatiq tasks`, and `thumbnails.send(10)`."""

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from headway.integrations.dramatiq import Reported, current_job

dramatiq.set_broker(RedisBroker())
dramatiq.get_broker().add_middleware(Reported())


@dramatiq.actor
def thumbnails(n):
    return {"made": sum(1 for _ in current_job().track(range(n)))}
