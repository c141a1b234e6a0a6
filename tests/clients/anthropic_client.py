"""The anthropic package against the server: messages, thinking, streams, counting, errors."""

import anthropic
from client_support import ANSWER, BASE, MODEL, QUESTION, TOOL, raises, run

client = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0)
GREEDY = {"temperature": 0}
ASK = {
    "model": MODEL,
    "max_tokens": 120,
    "messages": [{"role": "user", "content": QUESTION}],
    "extra_body": GREEDY,
}
TOOLS = [{
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": TOOL["function"]["parameters"],
}]


def messages():
    thinking = {"type": "enabled", "budget_tokens": 60}
    reply = client.messages.create(**ASK, thinking=thinking)
    assert [block.type for block in reply.content] == ["thinking", "text"], reply
    assert reply.content[1].text == ANSWER and reply.stop_reason == "end_turn"
    assert reply.usage.output_tokens > 0
    turns = [*ASK["messages"], {"role": "assistant", "content": reply.content}, ASK["messages"][0]]
    again = client.messages.create(**{**ASK, "messages": turns})
    assert again.content[-1].type == "text"


def no_thinking():
    reply = client.messages.create(**ASK, thinking={"type": "disabled"})
    assert [block.type for block in reply.content] == ["text"], reply


def stops():
    reply = client.messages.create(**{**ASK, "max_tokens": 2})
    assert reply.stop_reason == "max_tokens", reply
    reply = client.messages.create(**ASK, stop_sequences=[ANSWER])
    assert (reply.stop_reason, reply.stop_sequence) == ("stop_sequence", ANSWER), reply


def stream():
    whole = client.messages.create(**ASK)
    with client.messages.stream(**ASK) as events:
        kinds = [event.type for event in events]
        final = events.get_final_message()
    assert kinds[0] == "message_start" and kinds[-1] == "message_stop", kinds
    assert "thinking" in kinds and "text" in kinds, kinds
    dump = lambda message: [block.model_dump(exclude={"parsed_output"}) for block in message.content]
    assert dump(final) == dump(whole)
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens


def count_tokens():
    count = client.messages.count_tokens(model=MODEL, messages=ASK["messages"], tools=TOOLS)
    reply = client.messages.create(**ASK, tools=TOOLS)
    usage = reply.usage
    assert count.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def errors():
    bad = lambda **fields: lambda: client.messages.create(**{**ASK, **fields})
    raises(anthropic.BadRequestError, bad(extra_body={"temperature": -1}), "temperature", "invalid_request_error")
    raises(anthropic.NotFoundError, bad(model="other"), "not_found_error")
    image = {"type": "image", "source": {"type": "url", "url": "x"}}
    raises(anthropic.BadRequestError, bad(messages=[{"role": "user", "content": [image]}]), "image")


run([messages, no_thinking, stops, stream, count_tokens, errors])
