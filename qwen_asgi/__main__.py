"""`python -m qwen_asgi` is the `qwen-asgi` command."""

from __future__ import annotations

from qwen_asgi.standalone import main

if __name__ == "__main__":
    main()
