"""Needs CELERY_BROKER_URL and HEADWAY_URL: `celery -A tasks worker`, and `thumbnails.delay(10)` or a group of them."""

from celery import Celery

from headway.integrations.celery import report_tasks

app = Celery("tasks")
report_tasks(app)


@app.task(bind=True)
def thumbnails(self, n):
    for done in range(n):
        self.update_state(state="PROGRESS", meta={"current": done + 1, "total": n})
    return {"made": n}
