"""Celery as a contestant of the benchmark. How a peer talks to the harness stands in ../README.md.

Prefork with two processes and a prefetch of 64, results ignored, acknowledged when taken (all defaults but the prefetch): a job that a
killed process had is lost, and nothing is kept of what is finished. There is no bulk add.
"""

import json
import logging
import os
import sys
import threading
import time
import warnings

import celery
from celery import Celery
from celery.worker import strategy

POOL = 2


def say(**event):
    sys.__stdout__.write(json.dumps(event) + "\n")
    sys.__stdout__.flush()


def now():
    return time.time() * 1e3


def line():
    # Not through sys.stdin: its lock would be held while the pool forks, and the children would wait for it for ever.
    os.read(0, 64)


def gate():
    say(event="ready")
    line()


def pad(size):
    return "x" * (size - len('{"pad":""}'))


app = Celery("peer", broker=os.environ.get("BENCH_REDIS_URL", "redis://127.0.0.1:6379"))
app.conf.update(
    task_default_queue="bench",
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    worker_send_task_events=False,
    worker_hijack_root_logger=False,
    worker_redirect_stdouts=False,
    broker_connection_retry_on_startup=True,
    broker_pool_limit=10,
    broker_transport_options={"visibility_timeout": 3600},
)

tally = {"completed": 0, "begun": 0.0, "last": 0.0}
latencies = []


def counted(create):
    """Requests as the main process sees them: given to a child, and reported done."""

    def create_counted(*arguments, **options):
        class Counted(create(*arguments, **options)):
            def execute_using_pool(self, pool, **options):
                tally["begun"] = tally["begun"] or now()
                return super().execute_using_pool(pool, **options)

            def on_success(self, outcome, **options):
                answer = super().on_success(outcome, **options)
                tally["completed"] += 1
                tally["last"] = now()
                result = str(outcome[1]).strip("'")
                if result.startswith("waited "):
                    latencies.append(float(result[7:]))
                return answer

        return Counted

    return create_counted


strategy.create_request_cls = counted(strategy.create_request_cls)


@app.task(name="probe")
def probe(job):
    pass


@app.task(name="timed")
def timed(job):
    return f"waited {now() - job['sent']}"


def work(beside):
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    worker = app.Worker(pool="prefork", concurrency=POOL, without_gossip=True, without_mingle=True, without_heartbeat=True, quiet=True, loglevel="CRITICAL")
    threading.Thread(target=beside, daemon=True).start()
    worker.start()


def drain():
    gate()

    def report():
        said = 0
        while True:
            completed = tally["completed"]
            if completed != said:
                said = completed
                say(event="count", jobs=completed)
            time.sleep(0.01)

    def stop():
        line()
        say(event="begun", at=tally["begun"])
        say(event="done", at=tally["last"])
        leave()

    threading.Thread(target=stop, daemon=True).start()
    work(report)


def leave():
    """Ends the children too: they are killed before us, since we leave without a farewell."""
    import multiprocessing

    for child in multiprocessing.active_children():
        child.kill()
    try:
        from billiard.process import active_children

        for child in active_children():
            os.kill(child.pid, 9)
    finally:
        os._exit(0)


def pickup(jobs, _concurrency):
    def wait():
        # The pool's children are there some time after the start; the harness may go on then.
        time.sleep(3)
        gate()
        while len(latencies) < jobs:
            time.sleep(0.01)
        say(event="done", at=now(), latencies=latencies)
        leave()

    work(wait)


def single(jobs, size, in_flight):
    job = {"pad": pad(size)}
    threads = min(in_flight, 8)
    left = iter(range(jobs))
    lock = threading.Lock()

    def add():
        while True:
            with lock:
                if next(left, None) is None:
                    return
            probe.delay(job)

    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=3)
    gate()
    say(event="begun", at=now())
    adding = [threading.Thread(target=add) for _ in range(threads)]
    for thread in adding:
        thread.start()
    for thread in adding:
        thread.join()
    say(event="done", at=now())


def pace(jobs, size, rate):
    text = pad(size)
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=3)
    gate()
    start = time.monotonic()
    say(event="begun", at=now())
    for number in range(jobs):
        wait = start + number / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        timed.delay({"pad": text, "sent": now()})
    say(event="done", at=now())


def versions():
    import redis

    python = ".".join(map(str, sys.version_info[:3]))
    say(event="versions", text=f"Celery {celery.__version__} (prefork {POOL}), redis-py {redis.__version__}, Python {python}")


commands = {"versions": versions, "single": single, "drain": lambda *_: drain(), "pickup": pickup, "pace": pace}

if __name__ == "__main__":
    command, *numbers = sys.argv[1:]
    if command not in commands:
        sys.exit(f"unknown command {command}; there are {', '.join(commands)}")
    commands[command](*map(int, numbers))
