"""The gateway as a program of its own.

    uvicorn qwen_asgi.standalone:app --host 0.0.0.0 --port 8008
    qwen-asgi --demo

Here, and only here, `.env` is read and logging is set up; not when this module is imported, but
when `app` is asked for or the command runs.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import ipaddress
import logging
import math
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from qwen_asgi.app import Gateway
from qwen_asgi.authentication import Authenticate, NoForeignPages
from qwen_asgi.bounded_http import BoundedHTTP
from qwen_asgi.check import check
from qwen_asgi.log_batch import BatchHandler, Console, Formatter, Output, spare_log_records
from qwen_asgi.log_file import BACKUPS, MAX_BYTES, SharedRotatingFileHandler
from qwen_asgi.settings import Settings, SettingsError, name_config

LOG_FORMAT = "%(asctime)s - %(levelname)s - %(message)s"
MISSING_KEY = (
    "QWEN_API_KEY is not set: put the line QWEN_API_KEY=... into a file .env in this folder, or "
    "set it in the environment; qwen-asgi --demo runs without one"
)
DEMO_PACE = 0.03
"""Seconds between two pieces of the demo's answers."""

UNREAD_SECONDS = 2
"""What clients have to take the last of their answers when all else is over."""

WRONG_USAGE = 2
WORKER_CANNOT_START = 3
"""The exit status that tells uvicorn not to start a worker again, and again."""

logger = logging.getLogger(__name__)


def __getattr__(name: str) -> Any:
    """Make `app` when a server asks for it, so that importing this module does nothing."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    app = globals()[name] = create_app()
    return app


def create_app() -> ASGIApp:
    """Return the program's app, as a factory: for hypercorn, which looks a plain name up in its own
    way and does not find `app`."""
    settings = load_settings()
    configure_logging(settings, "qwen_asgi")
    _warn_if_open(settings)
    return build(settings)


def create_worker_app() -> ASGIApp:
    """Return the app of one of our own command's workers; the command has said what is to say."""
    settings = load_settings()
    spare_log_records()
    configure_logging(settings, "qwen_asgi", "uvicorn")
    spare_collector()
    return build(settings)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the `qwen-asgi` command."""
    options = _parser().parse_args(arguments)
    if options.config:
        name_config(options.config)
    if options.command == "check":
        sys.exit(run_check())
    if options.demo:
        if options.workers > 1:
            _stop("--demo runs one worker")
        run_demo(options.host, options.port)
        return
    settings = load_settings()
    # Where another program serves `app`, the process's log is that program's.
    spare_log_records()
    configure_logging(settings, "qwen_asgi", "uvicorn")
    if not settings.client_keys and not _is_loopback(options.host):
        logger.warning(
            "listening on %s without client keys: whoever reaches this port uses the upstream's "
            "credential; set QWEN_CLIENT_KEYS",
            options.host,
        )
    spare_collector()
    # Several workers each make their own app, by its factory's name; one is handed it as it is.
    several = options.workers > 1
    uvicorn.run(
        f"{__name__}:create_worker_app" if several else build(settings),
        factory=several,
        host=options.host,
        port=options.port,
        workers=options.workers,
        http=BoundedHTTP,
        log_config=None,
        access_log=False,
        # A client that does not read what it is sent holds up nobody's end.
        timeout_graceful_shutdown=math.ceil(settings.shutdown_seconds) + UNREAD_SECONDS,
        # A client's address is what limits and the log tell clients apart by.
        proxy_headers=options.trusted_proxies is not None,
        forwarded_allow_ips=options.trusted_proxies,
        server_header=False,
    )


class _Program(Gateway):
    """The gateway of a process that ends with it, and that reads its settings anew on SIGHUP."""

    @asynccontextmanager
    async def lifespan(self, app: Any = None) -> AsyncIterator[None]:
        async with super().lifespan(app):
            with _on_hangup(self._read_anew), _on_stop(self.begin_drain):
                yield

    def reload(self, settings: Settings) -> None:
        # Nobody is asked who it is: said when the program began, or by this very call.
        self._given_authenticate = _authenticate(settings)
        super().reload(settings)

    def _read_anew(self) -> None:
        try:
            settings = read_settings()
            self.reload(settings)
        except (SettingsError, ValueError) as exc:
            logger.error("the settings were read anew and are wrong; the old ones stay: %s", exc)
        else:
            logger.info("the settings were read anew")

    async def aclose(self) -> None:
        await super().aclose()
        # A server may end itself by a signal next, and that leaves no time to write.
        for handler in logging.getLogger("qwen_asgi").handlers:
            if isinstance(handler, BatchHandler):
                handler.write_through()


def _authenticate(settings: Settings) -> Authenticate | None:
    return None if settings.client_keys else NoForeignPages(settings.cors_origins)


def read_settings() -> Settings:
    """Read the environment, `.env` and the file that QWEN_CONFIG names. Raises SettingsError."""
    env_file = Path(".env")
    settings = Settings.from_env(env_file=env_file if env_file.is_file() else None, log_bodies=True)
    if settings.api_key is None and not settings.upstreams and settings.upstream != "openai":
        raise SettingsError(MISSING_KEY)
    return settings


def load_settings() -> Settings:
    """Read the settings; end the program with status 2 if they will not do."""
    try:
        return read_settings()
    except SettingsError as exc:
        _stop(str(exc))


def run_check() -> int:
    """Print what is configured and what is wrong with it; return the program's exit status."""
    report = asyncio.run(check(load_settings()))
    print("\n".join(report.lines))
    return 0 if report.is_well else 1


@contextmanager
def _on_hangup(act: Callable[[], None]) -> Iterator[None]:
    """Act on SIGHUP, where there is such a signal and this is the process's main thread.

    A terminal that is closed sends it too: then the program is to end.
    """
    loop = asyncio.get_running_loop()
    had_terminal = _has_terminal()

    def hang_up() -> None:
        if had_terminal and not _has_terminal():
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            act()

    try:
        loop.add_signal_handler(signal.SIGHUP, hang_up)
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


@contextmanager
def _on_stop(act: Callable[[], None]) -> Iterator[None]:
    """Act on SIGTERM and SIGINT ahead of the server, which goes on to do what it does then.

    A server that waits for open streams tells them nothing of it.
    """
    loop = asyncio.get_running_loop()
    before: dict[signal.Signals, Any] = {}

    def stop(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(act)
        theirs = before[signal.Signals(number)]
        if callable(theirs):
            theirs(number, frame)

    # Only the main thread may, and a host's own handler is called by Python only.
    with suppress(ValueError):
        for number in (signal.SIGTERM, signal.SIGINT):
            theirs = signal.getsignal(number)
            if callable(theirs):
                before[number] = theirs
                signal.signal(number, stop)
    try:
        yield
    finally:
        for number, theirs in before.items():
            if signal.getsignal(number) is stop:
                signal.signal(number, theirs)


def _has_terminal() -> bool:
    return sys.stdin is not None and not sys.stdin.closed and sys.stdin.isatty()


def spare_collector() -> None:
    """Have Python's cycle collector look for garbage where there can be some, and less often.

    What was imported stays for good, and a request leaves hardly a cycle behind; but by default the
    collector runs each time that 700 objects more are alive, as when many answers are under way.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 20)


def build(settings: Settings) -> ASGIApp:
    """Return the gateway, with the headers that browsers ask for if origins are set."""
    # That it is open was said before this, in words that fit a program of its own.
    gateway = _Program(settings, authenticate=_authenticate(settings))
    if not settings.cors_origins:
        return gateway
    return CORSMiddleware(
        gateway,
        allow_origins=settings.cors_origins,
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=[
            "x-request-id",
            "x-qwen-asgi-ignored",
            "x-qwen-asgi-upstream",
            "x-qwen-asgi-attempts",
            "retry-after",
        ],
    )


def configure_logging(settings: Settings, *names: str) -> None:
    """Send these loggers to the console and to the log file, in the seed's format."""
    outputs: list[Output] = [Console()]
    problem = None
    if settings.log_file is not None:
        try:
            outputs.append(SharedRotatingFileHandler(settings.log_file, MAX_BYTES, BACKUPS))
        except OSError as exc:
            problem = exc
    handler = BatchHandler(outputs)
    handler.setFormatter(Formatter(LOG_FORMAT))
    for name in names:
        named = logging.getLogger(name)
        named.handlers[:] = [handler]
        named.setLevel(settings.log_level)
        named.propagate = False
    if problem is not None:
        logger.warning("the log goes to the console only (QWEN_LOG_FILE): %s", problem)


def run_demo(host: str, port: int) -> None:
    """Run the gateway against a simulated Qwen, over a real socket in this process."""
    from qwen_asgi.testing import SIMULATIONS, SimulatedQwen, serve

    key = "demo"
    with serve(SimulatedQwen(api_key=key, pace=DEMO_PACE)) as upstream:
        settings = Settings(
            api_key=key,
            base_url=upstream,
            upload_hosts=(upstream,),
            log_bodies=True,
            log_file=None,
        )
        configure_logging(settings, "qwen_asgi", "uvicorn")
        # uvicorn's own log stays off, as `serve` has left it. An answer that was told to stall does
        # not hold the end up.
        config = uvicorn.Config(
            build(settings),
            http=BoundedHTTP,
            log_config=None,
            access_log=False,
            timeout_graceful_shutdown=1,
        )
        with _listener(host, port) as listener, suppress(KeyboardInterrupt):
            # Said when the port is ours, so that nobody asks another program.
            banner = _demo_banner(listener.getsockname()[1], SIMULATIONS)
            print(banner, file=sys.stderr, flush=True)
            uvicorn.Server(config).run([listener])


def _listener(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as exc:
        sys.exit(f"qwen-asgi: cannot listen on {host}, port {port}: {exc.strerror or exc}")


def _demo_banner(port: int, simulations: Iterable[str]) -> str:
    url = f"http://localhost:{port}/v1/chat/completions"
    body = '{"model": "qwen-max-latest", "messages": [{"role": "user", "content": "你好"}]'
    return f"""\
A gateway against a simulated Qwen: no key is needed and nothing leaves this machine; Ctrl+C ends
it. In another terminal, try

  curl {url} -H 'Content-Type: application/json' -d '{body}}}'
  curl -N {url} -H 'Content-Type: application/json' -d '{body}, "stream": true}}'
  curl -N {url} -H 'Content-Type: application/json' \\
    -d '{body}, "stream": true, "enable_thinking": true}}'

In place of 你好, "simulate: 429" makes the simulated Qwen fail so; it knows
{", ".join(simulations)}.
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="qwen-asgi",
        description="An OpenAI-compatible API over a Qwen upstream. Its settings are read from the "
        "environment, from .env and from the file that --config names; QWEN_API_KEY is required "
        "unless that file names upstreams.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        choices=["check"],
        help="check: print what is configured, ask each upstream for its models, and say what is "
        "wrong; without it the gateway runs",
    )
    parser.add_argument(
        "--config", type=Path, help="TOML file with several upstreams and routes (QWEN_CONFIG)"
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--port", type=_port, default=8008, help="port to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--demo", action="store_true", help="answer from a simulated Qwen; needs no key"
    )
    parser.add_argument(
        "--workers", type=_workers, default=1, help="processes to run (default: %(default)s)"
    )
    parser.add_argument(
        "--trusted-proxies",
        type=_proxies,
        metavar="ADDRESSES",
        help="addresses or networks of proxies, with commas between them, or *: their "
        "X-Forwarded-For tells a client's address (default: none)",
    )
    return parser


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"a port is a number from 0 to 65535, not {text!r}")


def _workers(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 64:
        return int(text)
    raise argparse.ArgumentTypeError(f"workers are a number from 1 to 64, not {text!r}")


def _proxies(text: str) -> str:
    # uvicorn takes any text, and of one that is no address it matches nobody.
    proxies = [proxy.strip() for proxy in text.split(",")]
    try:
        if proxies != ["*"]:
            for proxy in proxies:
                ipaddress.ip_network(proxy)
    except ValueError as exc:
        raise argparse.ArgumentTypeError(
            f"proxies are addresses and networks with commas between them, or *: {exc}"
        ) from None
    return ",".join(proxies)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _warn_if_open(settings: Settings) -> None:
    if not settings.client_keys:
        logger.warning(
            "no client keys are set (QWEN_CLIENT_KEYS): whoever reaches this port uses the "
            "upstream's credential; that is right only if it listens on this machine alone"
        )


def _stop(message: str) -> NoReturn:
    print(f"qwen-asgi: {message}", file=sys.stderr)
    is_worker = multiprocessing.parent_process() is not None
    raise SystemExit(WORKER_CANNOT_START if is_worker else WRONG_USAGE)
