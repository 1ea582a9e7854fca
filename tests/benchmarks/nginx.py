"""nginx as a pass-through: its configuration, for whoever runs it, root or not."""

from __future__ import annotations

import os
import subprocess

from tests.benchmarks.launch import Launch, Place

CONNECTIONS = 8192
"""That a worker may have open, to clients and to the upstream."""


def launch_nginx(place: Place) -> Launch:
    file = place.folder / "nginx.conf"
    file.write_text(_configuration(place))
    return Launch([place.executable, "-p", f"{place.folder}/", "-e", "stderr", "-c", str(file)])


def _configuration(place: Place) -> str:
    # Only the server's own user may read the folder. Without root, nginx takes no user.
    user = "user root root;" if os.geteuid() == 0 else ""
    built = subprocess.run([place.executable, "-V"], capture_output=True, text=True).stderr
    temporary = "".join(
        f"{kind}_temp_path {place.folder}/{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        if f"--without-http_{kind}_module" not in built
    )
    return f"""
        {user}
        daemon off;
        pid {place.folder}/nginx.pid;
        worker_processes {place.workers};
        events {{ worker_connections {CONNECTIONS}; }}
        http {{
            access_log off;
            {temporary}
            keepalive_requests 100000000;
            upstream qwen {{
                server {place.upstream.removeprefix("http://")};
                keepalive 1024;
                keepalive_requests 100000000;
            }}
            server {{
                listen 127.0.0.1:{place.port} backlog=4096;
                location / {{
                    proxy_pass http://qwen;
                    proxy_http_version 1.1;
                    proxy_set_header Connection "";
                    proxy_buffering off;
                    proxy_read_timeout 1h;
                }}
            }}
        }}
    """
