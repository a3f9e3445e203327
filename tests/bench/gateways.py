"""How each gateway is started and spoken to: nginx as the measure, Chasqui, and the peers that `make bench-peers` installs.

Every function writes the configuration it needs below `home` and returns what to run; it starts nothing.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from tests.bench.process import ROOT, free_port

KEY = "sk-bench-0123456789abcdef"
SECRETS = {"BENCH_KEY": KEY, "CHASQUI_ADMIN_KEY": "sk-admin-0123456789abcdef"}
PEERS = ROOT / ".venv-bench"

HEADERS = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}


class NotInstalled(Exception):
    """The message says how to install it."""


class Gateway(NamedTuple):
    name: str
    port: int
    command: list[str]
    environment: Mapping[str, str] = {}
    headers: Mapping[str, str] = HEADERS
    start_s: float = 20.0


CHASQUI = """
home: {home}/chasqui
server: {{port: {port}}}
backends: [{{name: up, engine: openai, base_url: "http://127.0.0.1:{upstream}/v1"}}]
models: [{{name: m, route: [up]}}]
roles:
  - name: default
    limits: [{{per: 1h, requests: 1000000000}}, {{per: 24h, tokens: 1000000000000}}, {{concurrent: 10000}}]
keys: [{{name: bench, key_env: BENCH_KEY}}]
"""

NGINX = """
daemon off; worker_processes 1; pid {home}/nginx.pid; error_log {home}/nginx.err;
events {{ worker_connections 4096; }}
http {{
  access_log {home}/nginx.log; client_body_temp_path {home}/b; proxy_temp_path {home}/p;
  fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 256; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{ proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; }}
  }}
}}
"""

LITELLM = """
model_list: [{{model_name: m, litellm_params: {{model: openai/m, api_base: "http://127.0.0.1:{upstream}/v1", api_key: none}}}}]
litellm_settings: {{telemetry: false, set_verbose: false, num_retries: 0, request_timeout: 600}}
general_settings: {{master_key: {key}}}
"""

LITELLM_ENVIRONMENT = {
    "LITELLM_MODE": "PRODUCTION",
    "LITELLM_LOG": "ERROR",  # which also silences its access log
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",  # these would be fetched at the start
    "LITELLM_LOCAL_ANTHROPIC_BETA_HEADERS": "True",
    "LITELLM_LOCAL_BLOG_POSTS": "True",
    "LITELLM_LOCAL_POLICY_TEMPLATES": "True",
    "LITELLM_LOCAL_AUTOROUTER_PRESETS": "True",
    "NO_PROXY": "127.0.0.1",
}


def nginx(home: Path, upstream: int) -> Gateway:
    if shutil.which("nginx") is None:
        raise NotInstalled("it is not installed (apt-get install nginx)")
    port = free_port()
    config = home / "nginx.conf"
    config.write_text(NGINX.format(home=home, upstream=upstream, port=port))
    return Gateway("nginx", port, ["nginx", "-p", str(home), "-c", str(config)])


def chasqui(home: Path, upstream: int) -> Gateway:
    port = free_port()
    config = home / "chasqui.yaml"
    config.write_text(CHASQUI.format(home=home, upstream=upstream, port=port))
    command = [sys.executable, "-m", "gateway.cli", "serve", "--config", str(config)]
    return Gateway("chasqui", port, command, SECRETS)


def portkey(home: Path, upstream: int) -> Gateway:
    program = PEERS / "portkey" / "node_modules" / "@portkey-ai" / "gateway" / "build" / "start-server.js"
    if not program.exists() or shutil.which("node") is None:
        raise NotInstalled("it is not installed (make bench-peers; needs npm)")
    port = free_port()
    command = ["node", str(program), f"--port={port}", "--headless"]
    custom = {"x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1"}
    return Gateway("portkey", port, command, {"NODE_ENV": "production"}, {**HEADERS, **custom})


def litellm(home: Path, upstream: int) -> Gateway:
    program = PEERS / "litellm" / "bin" / "litellm"
    if not program.exists():
        raise NotInstalled("it is not installed (make bench-peers)")
    port = free_port()
    config = home / "litellm.yaml"
    config.write_text(LITELLM.format(upstream=upstream, key=KEY))
    options = ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False"]
    command = [str(program), "--config", str(config), *options]
    return Gateway("litellm", port, command, LITELLM_ENVIRONMENT, start_s=120.0)


ALL = (nginx, chasqui, portkey, litellm)


def request_body(message: str, *, stream: bool) -> str:
    return json.dumps({"model": "m", "stream": stream, "messages": [{"role": "user", "content": message}]})
