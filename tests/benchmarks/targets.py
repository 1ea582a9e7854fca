"""What is measured: the gateway, and what it is compared with, each as its users start it.

    direct            no gateway: the load client asks the simulated upstream itself
    qwen_asgi         the `qwen-asgi` command, all defaults: the log on the console and in a file,
                      bodies too, heartbeat, deadlines, the watch on the client, request ids; only
                      QWEN_MAX_CONNECTIONS is raised, so that 2,000 streams may be open
    embedded          the same gateway as a host's app under uvicorn, without logs; not measured
                      unless named
    model-studio      the same command, its upstream spoken to as Model Studio; only if named
    several           the same command with two upstreams for the model, and all layers around
                      each; only if named
    nginx             passing on without buffering, connections to the upstream kept
    starlette-httpx   passing on with Starlette and httpx, `programs/starlette_httpx.py`
    seed              the program that this project began from, `programs/seed.py`
    openai-forward    its app under uvicorn, as its command runs it
    litellm           the LiteLLM proxy's command with one model, telemetry off

Each runs in its own environment, with uvloop and httptools where these are installed in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.launch import Launch, Place
from tests.benchmarks.nginx import launch_nginx
from tests.benchmarks.processes import ROOT
from tests.benchmarks.scenarios import MODEL

PROGRAMS = Path(__file__).parent / "programs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One program to measure."""

    name: str
    launch: Callable[[Place], Launch]
    relayed: bool
    """Whether it passes on the upstream's bytes as they are."""
    modules: tuple[str, ...] = ()
    """What its Python must be able to import, and what its import time is of; none is no Python."""
    distributions: tuple[str, ...] = ()
    """Whose versions are told."""


def _qwen_asgi(place: Place) -> Launch:
    command = [place.executable, "-m", "qwen_asgi", "--port", f"{place.port}"]
    return Launch([*command, "--workers", f"{place.workers}"], _qwen_variables(place))


def _embedded(place: Place) -> Launch:
    return _uvicorn(place, "embedded:app", "--no-access-log", **_qwen_variables(place))


def _qwen_variables(place: Place) -> dict[str, str]:
    return {
        "PYTHONPATH": str(ROOT),
        "QWEN_API_KEY": "benchmark",
        "QWEN_BASE_URL": place.upstream,
        "QWEN_MAX_CONNECTIONS": "10000",
    }


def _model_studio(place: Place) -> Launch:
    launch = _qwen_asgi(place)
    upstream = {
        "QWEN_UPSTREAM": "model-studio",
        "QWEN_BASE_URL": f"{place.upstream}/v1",
        "QWEN_MODELS": MODEL,
    }
    return Launch(launch.command, {**launch.variables, **upstream})


def _several(place: Place) -> Launch:
    """Two upstreams for one model, with every layer around each."""
    upstream = (
        f'dialect = "qwen-web-v1"\nbase_url = "{place.upstream}"\napi_key = "benchmark"\n'
        f'models = ["{MODEL}"]\nretries = 1\nmax_concurrent = 10000\n'
    )
    file = place.folder / "gateway.toml"
    file.write_text(f"[upstreams.a]\n{upstream}[upstreams.b]\n{upstream}")
    launch = _qwen_asgi(place)
    variables = {k: v for k, v in launch.variables.items() if k != "QWEN_BASE_URL"}
    return Launch(launch.command, {**variables, "QWEN_CONFIG": str(file)})


def _starlette_httpx(place: Place) -> Launch:
    return _uvicorn(place, "starlette_httpx:app", "--no-access-log", UPSTREAM=place.upstream)


def _seed(place: Place) -> Launch:
    return _uvicorn(place, "seed:app", UPSTREAM=place.upstream)


def _openai_forward(place: Place) -> Launch:
    forward = [{"base_url": place.upstream, "route": "/", "type": "openai"}]
    return _uvicorn(place, "openai_forward.app:app", FORWARD_CONFIG=json.dumps(forward))


def _uvicorn(place: Place, app: str, *options: str, **variables: str) -> Launch:
    command = [place.executable, "-m", "uvicorn", app, "--app-dir", str(PROGRAMS)]
    command += ["--host", "127.0.0.1", "--port", f"{place.port}", "--workers", f"{place.workers}"]
    return Launch([*command, *options], variables)


def _litellm(place: Place) -> Launch:
    config = {
        "model_list": [
            {
                "model_name": MODEL,
                "litellm_params": {
                    "model": f"openai/{MODEL}",
                    "api_base": f"{place.upstream}/v1",
                    "api_key": "benchmark",
                },
            }
        ],
        "litellm_settings": {"telemetry": False, "num_retries": 0},
        "general_settings": {"master_key": "sk-benchmark"},
    }
    # JSON is YAML.
    file = place.folder / "config.yaml"
    file.write_text(json.dumps(config))
    command = [str(Path(place.executable).with_name("litellm")), "--config", str(file)]
    command += ["--host", "127.0.0.1", "--port", f"{place.port}"]
    variables = {
        "HOME": str(place.folder),
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_TELEMETRY": "False",
    }
    return Launch(
        [*command, "--num_workers", f"{place.workers}", "--telemetry", "False"], variables
    )


GATEWAY = Target(
    name="qwen_asgi",
    launch=_qwen_asgi,
    relayed=False,
    modules=("qwen_asgi",),
    distributions=("uvicorn", "starlette", "pydantic", "httpx", "httptools", "uvloop"),
)

RIVALS = (
    Target(name="nginx", launch=launch_nginx, relayed=True),
    Target(
        name="starlette-httpx",
        launch=_starlette_httpx,
        relayed=True,
        modules=("starlette.applications", "httpx"),
        distributions=("starlette", "httpx", "uvicorn", "httptools", "uvloop"),
    ),
    Target(
        name="seed",
        launch=_seed,
        relayed=False,
        modules=("fastapi", "requests"),
        distributions=("fastapi", "requests", "uvicorn", "httptools", "uvloop"),
    ),
    Target(
        name="openai-forward",
        launch=_openai_forward,
        relayed=True,
        modules=("openai_forward.app",),
        distributions=("openai-forward", "aiohttp", "uvicorn", "httptools", "uvloop"),
    ),
    Target(
        name="litellm",
        launch=_litellm,
        relayed=False,
        modules=("litellm",),
        distributions=("litellm", "openai", "aiohttp", "uvicorn", "httptools", "uvloop"),
    ),
)

EMBEDDED = Target(
    name="embedded",
    launch=_embedded,
    relayed=False,
    modules=("qwen_asgi",),
    distributions=GATEWAY.distributions,
)

OTHER_UPSTREAMS = tuple(
    Target(
        name=name,
        launch=launch,
        relayed=False,
        modules=GATEWAY.modules,
        distributions=GATEWAY.distributions,
    )
    for name, launch in (("model-studio", _model_studio), ("several", _several))
)

DIRECT = "direct"
BY_NAME = {target.name: target for target in (GATEWAY, EMBEDDED, *OTHER_UPSTREAMS, *RIVALS)}
DEFAULT = (GATEWAY.name, *(rival.name for rival in RIVALS))
