"""The openai package against the server: typed parsing, streams, tools, errors."""

import openai
from client_support import ANSWER, BASE, MODEL, QUESTION, raises, run

client = openai.OpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0)
ASK = {"model": MODEL, "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 120}


def chat():
    reply = client.chat.completions.create(**ASK, temperature=0, logprobs=True, top_logprobs=2)
    choice = reply.choices[0]
    assert choice.message.content == ANSWER, reply
    assert choice.message.model_extra["reasoning_content"], reply
    assert choice.finish_reason == "stop"
    usage = reply.usage
    assert usage.completion_tokens == len(choice.logprobs.content), usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens, usage
    assert 0 < usage.completion_tokens_details.reasoning_tokens < usage.completion_tokens


def chat_stream():
    whole = client.chat.completions.create(**ASK, seed=3, temperature=0.6, n=3)
    options = {"include_usage": True}
    with client.chat.completions.create(
        **ASK, seed=3, temperature=0.6, n=3, stream=True, stream_options=options
    ) as stream:
        chunks = list(stream)
    for choice in whole.choices:
        deltas = [c for k in chunks for c in k.choices if c.index == choice.index]
        assert "".join(d.delta.content or "" for d in deltas) == choice.message.content
        thought = "".join(getattr(d.delta, "reasoning_content", "") or "" for d in deltas)
        assert thought == getattr(choice.message, "reasoning_content", "")
        assert [d.finish_reason for d in deltas if d.finish_reason] == [choice.finish_reason]
    assert chunks[-1].usage == whole.usage, (chunks[-1], whole.usage)


def chat_stream_helper():
    with client.chat.completions.stream(**ASK, temperature=0) as stream:
        for _ in stream:
            pass
        assert stream.get_final_completion().choices[0].message.content == ANSWER


def budget():
    extra = {"thinking_budget": 4, "thinking_budget_grace": 0}
    reply = client.chat.completions.create(**ASK, temperature=0, extra_body=extra)
    account = reply.choices[0].model_extra["reasoning_budget"]
    assert account["used"] <= 7 and account["ended_by"] == "budget_hard", account


def responses():
    ask = dict(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=120)
    reply = client.responses.create(**ask, reasoning={"effort": "low", "summary": "auto"})
    assert reply.output_text == ANSWER and reply.status == "completed", reply
    assert [item.type for item in reply.output] == ["reasoning", "message"]
    assert reply.output[0].content[0].text
    assert reply.usage.output_tokens_details.reasoning_tokens > 0
    turns = [{"role": "user", "content": QUESTION}, *reply.output, {"role": "user", "content": QUESTION}]
    again = client.responses.create(**{**ask, "input": turns}, instructions="Be exact.")
    assert again.usage.input_tokens > reply.usage.input_tokens
    cut = client.responses.create(**{**ask, "max_output_tokens": 3})
    assert cut.status == "incomplete" and cut.incomplete_details.reason == "max_output_tokens"


def responses_stream():
    ask = dict(model=MODEL, input=QUESTION, temperature=0, max_output_tokens=120)
    whole = client.responses.create(**ask)
    with client.responses.stream(**ask) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [e.sequence_number for e in events] == list(range(len(events)))
    kinds = [e.type for e in events]
    assert kinds[:2] == ["response.created", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    assert "response.reasoning_text.delta" in kinds and "response.output_text.delta" in kinds
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == whole.output_text == final.output_text == ANSWER
    assert final.usage == whole.usage
    done = [e.item for e in events if e.type == "response.output_item.done"]
    names = lambda items: [(item.type, item.id, item.status) for item in items]
    assert names(done) == names(final.output)
    texts = lambda items: [part.text for item in items for part in item.content]
    assert texts(done) == texts(final.output) == texts(whole.output)


def responses_refuse_state():
    for field in [{"store": True}, {"previous_response_id": "resp_1"}, {"background": True}]:
        call = lambda: client.responses.create(model=MODEL, input="x", **field)
        error = raises(openai.BadRequestError, call, next(iter(field)))
        assert error.param == next(iter(field))


def completions():
    ask = dict(model=MODEL, prompt=["c=b-7;b=0;", "b=1;"], max_tokens=6, temperature=0, logprobs=3)
    whole = client.completions.create(**ask)
    assert [c.index for c in whole.choices] == [0, 1]
    for choice in whole.choices:
        logprobs = choice.logprobs
        assert len(logprobs.tokens) == len(logprobs.token_logprobs) == len(logprobs.text_offset)
        for token, logprob, top in zip(
            logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, strict=True
        ):
            assert top[token] == logprob == max(top.values())
    texts = {0: "", 1: ""}
    for chunk in client.completions.create(**ask, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {c.index: c.text for c in whole.choices}


def completions_echo():
    prompt = "c=b-7;b=0;"
    ask = dict(model=MODEL, temperature=0, logprobs=1)
    said = client.completions.create(**ask, prompt=prompt, max_tokens=3).choices[0]
    text = prompt + said.text
    echo = client.completions.create(**ask, prompt=text, max_tokens=0, echo=True).choices[0]
    assert echo.text == text and echo.finish_reason == "length"
    logprobs = echo.logprobs
    assert logprobs.token_logprobs[0] is None
    offsets = logprobs.text_offset
    assert [text[i:j] for i, j in zip(offsets, [*offsets[1:], len(text)])] == [
        token if i else text[: offsets[1]] for i, token in enumerate(logprobs.tokens)
    ]
    found = logprobs.token_logprobs[-3:]
    assert logprobs.tokens[-3:] == said.logprobs.tokens
    for a, b in zip(found, said.logprobs.token_logprobs, strict=True):
        assert abs(a - b) < 1e-4, (found, said)


def models():
    assert MODEL in [model.id for model in client.models.list()]
    assert client.models.retrieve(MODEL).id == MODEL
    raises(openai.NotFoundError, lambda: client.models.retrieve("other"))


def errors():
    bad = lambda **fields: lambda: client.chat.completions.create(**{**ASK, **fields})
    error = raises(openai.BadRequestError, bad(temperature=-1), "temperature")
    assert error.param == "temperature"
    raises(openai.BadRequestError, bad(extra_body={"top_q": 1}), "top_q")
    raises(openai.BadRequestError, bad(messages=[]), "messages")
    raises(openai.NotFoundError, bad(model="gpt-4"), "gpt-4")
    raises(openai.BadRequestError, bad(extra_body={"thinking_budget": -7}), "thinking_budget")


run([
    chat, chat_stream, chat_stream_helper, budget, responses, responses_stream,
    responses_refuse_state, completions, completions_echo, models, errors,
])
