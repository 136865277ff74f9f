"""A real Prometheus on a free port of the loopback that scrapes real servers, and its end."""

from __future__ import annotations

import math
import queue
import re
import subprocess
import threading
import time

import httpx
import yaml

TIMEOUT_S = 30.0
LISTENING = re.compile(r'msg="Listening on" address=127\.0\.0\.1:(\d+)')
JOB = "rewardserve"


class Prometheus:
    """Prometheus that scrapes these servers and evaluates the rules every `scrape`. Its data lies in `folder`.

    `labels` are those that service discovery adds to all series of the servers.
    """

    def __init__(self, folder, servers, rules, scrape="250ms", labels=None):
        targets = [url.removeprefix("http://") for url in servers]
        config = {
            "global": {"scrape_interval": scrape, "scrape_timeout": scrape, "evaluation_interval": scrape},
            "rule_files": [str(path) for path in rules],
            "scrape_configs": [
                {"job_name": JOB, "static_configs": [{"targets": targets, "labels": labels or {}}]},
            ],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        flags = [f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'tsdb'}"]
        self.process = subprocess.Popen(
            ["prometheus", *flags, "--web.listen-address=127.0.0.1:0"],
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self._ports: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        port = self._ports.get(timeout=TIMEOUT_S)
        assert port is not None, "".join(self._lines)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=TIMEOUT_S)

    def _read(self):
        for line in self.process.stderr:
            self._lines.append(line)
            if found := LISTENING.search(line):
                self._ports.put(found.group(1))
        self._ports.put(None)

    def instant(self, expr, at=None):
        """Series of an instant query: [(labels, [value])]."""
        found = self._ask("/query", query=expr, **({} if at is None else {"time": at}))
        if found["resultType"] == "scalar":
            return [({}, [float(found["result"][1])])]
        return [(each["metric"], [float(each["value"][1])]) for each in found["result"]]

    def over(self, expr, seconds, step="1s"):
        """Series of the last `seconds`: [(labels, values)]."""
        now = time.time()
        found = self._ask("/query_range", query=expr, start=now - seconds, end=now, step=step)
        return [(each["metric"], [float(value) for _, value in each["values"]]) for each in found["result"]]

    def values(self, label, series):
        """Values of a label, as Grafana's label_values returns them."""
        reply = self.client.get(f"/label/{label}/values", params={"match[]": series})
        return reply.json()["data"]

    def wait_for(self, expr, seconds):
        """Wait until the expression has a value that is not NaN."""
        deadline = time.monotonic() + seconds
        while not any(not math.isnan(value) for _, values in self.instant(expr) for value in values):
            assert time.monotonic() < deadline, f"nothing after {seconds:g} s: {expr}"
            threading.Event().wait(0.25)

    def _ask(self, path, **params):
        reply = self.client.post(path, data=params)
        said = reply.json()
        assert said["status"] == "success", f"{said.get('error')}\n{params['query']}"
        assert not said.get("warnings"), said["warnings"]
        return said["data"]

    def close(self):
        self.client.close()
        self.process.terminate()
        self.process.wait(TIMEOUT_S)
        self._reader.join(TIMEOUT_S)
        self.process.stderr.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()
