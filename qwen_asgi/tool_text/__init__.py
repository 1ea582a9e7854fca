"""Tools for upstreams that only know text: described in the prompt, and read out of the answer.

Qwen's models were trained to write a call as text. `prompt` puts the tools, and the calls and
results of a history, into the conversation; `parser` finds the calls in an answer as it comes;
`calls` reads one whole call, strictly first. Source: the wire notes on tool calling, TC-01 to
TC-85; none of it does I/O.
"""
