"""A real nginx on a free port of the loopback, before a real server, with kept-alive connections and forwarded upgrades."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading

CONFIGURATION = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 256; }}
http {{
  access_log off; merge_slashes {merge};
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u;
  scgi_temp_path {folder}/s; ignore_invalid_headers off; underscores_in_headers on; client_max_body_size 64m;
  map $http_upgrade $kind {{ default upgrade; '' ''; }}
  upstream rewardserve {{ server {server}; keepalive 1; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://rewardserve; proxy_http_version 1.1; proxy_set_header Host $http_host;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $kind; proxy_request_buffering {buffering};
      proxy_next_upstream off;
    }}
  }}
}}
"""


def why_none():
    return "" if shutil.which("nginx") else "needs nginx (Debian: nginx-light)"


class Nginx:
    """Reverse proxy that forwards everything over one kept-alive connection, in the usual configuration for WebSockets too."""

    def __init__(self, folder, url, *, buffering="on", merge="on"):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        text = CONFIGURATION.format(
            folder=folder, port=port, server=url.partition("://")[2], buffering=buffering, merge=merge
        )
        (folder / "nginx.conf").write_text(text)
        command = ["nginx", "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.url = f"http://127.0.0.1:{port}"
        for _ in range(500):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            if self.process.poll() is not None:
                break
            threading.Event().wait(0.02)
        raise AssertionError(f"nginx does not listen: {(folder / 'error.log').read_text()}")

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.process.terminate()
        self.process.wait(30)
        self.process.stderr.close()
