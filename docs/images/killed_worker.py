"""Makes killed-worker.gif beside it: a task on the page while the worker that runs it is killed, filmed for real.

    .venv/bin/python docs/images/killed_worker.py

Needs redis-server and Chromium on the PATH. Starts a Redis, an API and two workers, submits a rehearsal, waits for its
ninth step, sends SIGKILL to the worker that has it, and takes pictures of the page until the task has ended.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import httpx
import redis
from PIL import Image, ImageDraw, ImageFont
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
SIZE = (820, 380)
STRIP_HEIGHT = 92
FLAGS = ["--no-sandbox", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
STEPS, STEP_SECONDS, KILLED_AT_STEP = 20, 0.5, 9
PICTURES_A_SECOND = 5
MONO = "/usr/share/fonts/truetype/dejavu/DejaVuSansMono.ttf"


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


def with_strip(picture: bytes, lines: list[str]) -> Image.Image:
    """The page above, what is typed in a terminal below."""
    page = Image.open(io.BytesIO(picture)).convert("RGB")
    whole = Image.new("RGB", (page.width, page.height + STRIP_HEIGHT), "#16181d")
    whole.paste(page, (0, 0))
    draw, font = ImageDraw.Draw(whole), ImageFont.truetype(MONO, 14)
    for number, line in enumerate(lines[-4:]):
        colour = "#ff8f7e" if "kill" in line else "#8fd6a8" if "later" in line else "#cfd6e4"
        draw.text((14, page.height + 8 + 20 * number), line, font=font, fill=colour)
    return whole


def main() -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        redis_port, port = free_port(), free_port()
        url = f"http://127.0.0.1:{port}"
        env = os.environ | {
            "HEADWAY_REDIS_URL": f"redis://127.0.0.1:{redis_port}/0",
            "HEADWAY_DATA_DIR": str(folder / "data"),
            "HEADWAY_FILES_DIR": str(folder / "files"),
        }
        log = stack.enter_context((folder / "log").open("wb"))

        def start(*command: str) -> subprocess.Popen[bytes]:
            process = subprocess.Popen(command, env=env, cwd=folder, stdout=log, stderr=log)
            stack.callback(process.wait, 20)
            stack.callback(process.terminate)
            return process

        start("redis-server", "--port", str(redis_port), "--save", "", "--dir", str(folder))
        headway = (sys.executable, "-m", "headway.cli.main")
        time.sleep(1)
        start(*headway, "api", "--port", str(port))
        workers = {process.pid: process for process in (start(*headway, "worker"), start(*headway, "worker"))}
        store = redis.Redis(port=redis_port, decode_responses=True)
        deadline = time.monotonic() + 60
        while store.zcard("headway:workers") < 2 and time.monotonic() < deadline:
            time.sleep(0.2)

        browser = stack.enter_context(sync_playwright()).chromium.launch(
            executable_path=shutil.which("chromium"), headless=True, args=FLAGS
        )
        stack.callback(browser.close)
        page = browser.new_page(viewport={"width": SIZE[0], "height": SIZE[1]}, color_scheme="light")

        options = {"steps": STEPS, "step_seconds": STEP_SECONDS}
        task = httpx.post(f"{url}/tasks", json={"processor": "rehearsal", "options": options}).raise_for_status().json()
        page.goto(f"{url}/#task={task['task_id']}")
        page.wait_for_selector("#task:visible")
        first, second = sorted(workers)
        lines = [f"$ headway worker &   # pid {first}", f"$ headway worker &   # pid {second}"]
        frames: list[Image.Image] = []
        durations: list[int] = []
        killed = ended_at = None
        killed_at, taken_over = 0.0, False
        started = last = time.monotonic()
        while True:
            state = httpx.get(f"{url}/tasks/{task['task_id']}").json()
            now = time.monotonic()
            if killed is None and state["step"] == KILLED_AT_STEP:
                [lease] = [store.get(key) for key in store.keys("arq:in-progress:*")]
                killed = int(lease.split(":")[1])  # HOST:PID:RANDOM
                os.kill(killed, signal.SIGKILL)
                killed_at = time.monotonic()
                workers[killed].wait(5)
                lines.append(f"$ kill -9 {killed}        # the worker that runs the task")
            if killed is not None and not taken_over and state["attempt"] == 2 and state["status"] == "processing":
                taken_over = True
                lines.append(
                    f"                     # {now - killed_at:.1f} s later: attempt 2, from step {state['step']}"
                )
            frame = with_strip(page.screenshot(animations="allow"), lines)
            if frames and frame.tobytes() == frames[-1].tobytes():
                durations[-1] += int((now - last) * 1000)
            else:
                frames.append(frame)
                durations.append(int((now - last) * 1000) or 100)
            last = now
            if ended_at is None and state["status"] in ("completed", "failed", "cancelled"):
                ended_at = now
            if ended_at is not None and now - ended_at > 1 or now - started > 60:
                break
            time.sleep(max(0.0, 1 / PICTURES_A_SECOND - (time.monotonic() - now)))
        print(
            json.dumps({name: state[name] for name in ("status", "attempt", "progress", "version")}), "killed", killed
        )
        if state["status"] != "completed" or state["attempt"] != 2:
            sys.exit("This run is not what the picture is to show.")
        durations[-1] = 4000
        target = HERE / "killed-worker.gif"
        first_picture, *others = (frame.quantize(96, dither=Image.Dither.NONE) for frame in frames)
        first_picture.save(target, save_all=True, append_images=others, duration=durations, loop=0, optimize=True)
        print(target.name, len(frames), "pictures", target.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
