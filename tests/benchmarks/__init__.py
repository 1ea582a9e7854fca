"""What the gateway costs, beside what it can be compared with: `python -m tests.benchmarks`.

One run starts a simulated upstream, the gateway and its rivals, each in processes of their own,
and puts them under the same loads in turns. Every answer is compared byte for byte with what it
must be; a wrong one fails the run. CPU time is the processes' own account of it. All traffic stays
on 127.0.0.1.

Rivals are measured when they are installed, each in a virtual environment of its own, because they
pin versions that contradict one another; it is found as `.venv-bench-NAME` in the checkout or
named with `--venv NAME=PATH`. nginx is Debian's package `nginx-light`; Starlette and httpx are
there with the gateway. The others:

    python3 -m venv .venv-bench-seed
    .venv-bench-seed/bin/pip install fastapi requests 'uvicorn[standard]'
    python3 -m venv .venv-bench-openai-forward
    .venv-bench-openai-forward/bin/pip install openai-forward==0.8.1 'uvicorn[standard]'
    python3 -m venv .venv-bench-litellm
    .venv-bench-litellm/bin/pip install 'litellm[proxy]==1.108.7'

A whole run takes about an hour on two cores; `--workers 1 --blocks 3` takes twenty minutes. Other
work on the machine shows in every figure, so it should be still. A target that cannot do what is
asked of it (hold 1,000 streams open, say) has a word in its place.

Where to look: `targets` says what is compared, `scenarios` what is sent, `templates` what a right
answer is, `loads` how it is measured, `figures` what is read from it, `goals` what it should be.
"""
