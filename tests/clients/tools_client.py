"""Tools and schemas through the openai and anthropic packages, against a model of random weights
whose vocabulary can write JSON: what it says is noise, the form holds all the same."""

import json

import anthropic
import openai
from client_support import BASE, MODEL, TOOL, run

client = openai.OpenAI(base_url=f"{BASE}/v1", api_key="none", max_retries=0)
claude = anthropic.Anthropic(base_url=BASE, api_key="none", max_retries=0)
USER = {"role": "user", "content": "weather?"}
TOOLS = [{
    "name": "get_weather",
    "description": "Weather of a city",
    "input_schema": TOOL["function"]["parameters"],
}]
ASK = {
    "model": MODEL,
    "max_tokens": 1000,
    "messages": [USER],
    "extra_body": {"temperature": 1, "seed": 1, "thinking_budget": 8},
}


def tool_round_trip():
    forced = {"type": "function", "function": {"name": "get_weather"}}
    asked = dict(model=MODEL, messages=[USER], tools=[TOOL], max_tokens=1000, temperature=1,
                 extra_body={"thinking_budget": 8, "seed": 1})
    reply = client.chat.completions.create(**asked, tool_choice=forced)
    message = reply.choices[0].message
    assert reply.choices[0].finish_reason == "tool_calls", reply
    call = message.tool_calls[0]
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city"}
    turns = [USER, message, {"role": "tool", "tool_call_id": call.id, "content": "sunny"}]
    reply = client.chat.completions.create(**{**asked, "messages": turns})
    assert reply.choices[0].message.role == "assistant"


def parse_schema():
    import pydantic

    class Found(pydantic.BaseModel):
        found: bool

    reply = client.chat.completions.parse(model=MODEL, messages=[USER], max_tokens=1000, temperature=1, response_format=Found)
    assert isinstance(reply.choices[0].message.parsed.found, bool)


def responses_tool():
    tool = {"type": "function", "strict": True, **TOOL["function"]}
    reply = client.responses.create(
        model=MODEL, input="weather?", tools=[tool], tool_choice="required", temperature=1,
        extra_body={"seed": 1},
        max_output_tokens=1000,
    )
    call = next(item for item in reply.output if item.type == "function_call")
    assert set(json.loads(call.arguments)) == {"city"}
    output = {"type": "function_call_output", "call_id": call.call_id, "output": "sunny"}
    turns = [USER, *reply.output, output]
    reply = client.responses.create(model=MODEL, input=turns, tools=[tool], max_output_tokens=60)
    assert reply.object == "response"


def anthropic_tools():
    reply = claude.messages.create(
        **ASK, tools=TOOLS, tool_choice={"type": "any"}
    )
    assert reply.stop_reason == "tool_use", reply
    call = reply.content[-1]
    assert call.name == "get_weather" and set(call.input) == {"city"}, call
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "sunny"}
    turns = [
        USER,
        {"role": "assistant", "content": reply.content},
        {"role": "user", "content": [result]},
    ]
    reply = claude.messages.create(**{**ASK, "messages": turns}, tools=TOOLS)
    assert reply.role == "assistant"


run([tool_round_trip, parse_schema, responses_tool, anthropic_tools])
