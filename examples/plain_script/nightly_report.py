"""Progress of work that is not Headway's: a plain script (a cron job, a Celery task) that shows its own on the page.

HEADWAY_URL=http://127.0.0.1:8000 python nightly_report.py
"""

import time

from headway import Cancelled, report

CHAPTERS = ("Orders", "Returns", "Stock", "Forecast")

try:
    with report("nightly-report", phases=CHAPTERS, raise_cancelled=True, alive_seconds=0.5, lease_seconds=5) as job:
        print(job.task_id, flush=True)
        words = 0
        for chapter in CHAPTERS:
            job.phase(chapter)
            for _ in job.track(range(10)):
                time.sleep(0.05)  # the work itself: here it is only time
            words += len(chapter) * 100
            job.log(f"{chapter} is done")
        job.summary["words"] = words
except Cancelled:
    print("cancelled")
