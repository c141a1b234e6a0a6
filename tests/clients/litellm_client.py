"""litellm against the server: completion and stream with the thinking kept apart."""

import litellm
from client_support import ANSWER, BASE, MODEL, QUESTION, run

ASK = {
    "model": f"hosted_vllm/{MODEL}",
    "api_base": f"{BASE}/v1",
    "api_key": "none",
    "messages": [{"role": "user", "content": QUESTION}],
    "temperature": 0,
    "max_tokens": 120,
}


def completion():
    reply = litellm.completion(**ASK)
    message = reply.choices[0].message
    assert message.content == ANSWER and message.reasoning_content, message
    assert reply.usage.completion_tokens_details.reasoning_tokens > 0, reply.usage


def stream():
    whole = litellm.completion(**ASK).choices[0].message
    chunks = list(litellm.completion(**ASK, stream=True))
    join = lambda name: "".join(getattr(c.choices[0].delta, name, None) or "" for c in chunks)
    assert join("content") == whole.content
    assert join("reasoning_content") == whole.reasoning_content


run([completion, stream])
