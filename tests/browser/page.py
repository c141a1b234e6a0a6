"""What the web page must do, seen through a browser. Started by run.sh.

Most replies come from real servers: the model inside the binary, and one of random weights that
thinks for as long as it may. What no small model writes (calls of tools, hostile text, failures)
is given to the page in place of a reply.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading

from chromium import Page

QUESTION = "c=b-7;b=0;d=c*9;d?"
REPLIES = "document.querySelectorAll('#messages > .assistant')"
LAST = f"[...{REPLIES}].at(-1)"
DONE = f"{LAST} && !{LAST}.matches('.live') && document.querySelector('#stop').hidden"


class Server:
    """`hybra serve` on a free port."""

    def __init__(self, binary, *args, key=None):
        env = {name: value for name, value in os.environ.items() if "API_KEY" not in name}
        env |= {"HYBRA_API_KEY": key} if key else {}
        self.process = subprocess.Popen([binary, "serve", "--port", "0", *args], env=env,
                                        stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"http://[\d.:]+", line):
                self.url = found.group()
                # It writes on, and must not wait for a reader.
                threading.Thread(target=self.process.stderr.read, daemon=True).start()
                return
        raise AssertionError("the server did not start")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)


def sse(*chunks):
    lines = "".join(f"data: {json.dumps(chunk)}\n\n" for chunk in chunks)
    return 200, "text/event-stream", lines + "data: [DONE]\n\n"


def chunk(delta, finish=None):
    choice = {"index": 0, "delta": delta, "finish_reason": finish}
    return {"id": "chatcmpl-canned", "object": "chat.completion.chunk", "choices": [choice]}


def ask(page, text):
    count = page.js(f"{REPLIES}.length")
    page.click("#input")
    page.type(text)
    page.key("Enter")
    page.until(f"{REPLIES}.length > {count} && {DONE}")


def stored(page):
    """The last reply as the page keeps it."""
    text = page.js("sessionStorage.getItem('hybra.conversation')")
    return [m for m in json.loads(text)["messages"] if m["role"] == "assistant"][-1]


def fresh(page, url):
    page.js("sessionStorage.clear(), localStorage.clear(), "
            "addEventListener('pagehide', () => sessionStorage.clear())")
    page.goto(url)


def set_field(page, field, value):
    page.click("#open-settings")
    page.js(f"document.getElementById('{field}').value = {json.dumps(value)}")
    page.click("#close-settings")
    page.until("!document.querySelector('#settings').open")


def test_a_question_is_answered_and_its_thinking_is_folded(page, url):
    page.goto(url)
    assert page.js("document.querySelector('#model').textContent") == "hybra-default"
    ask(page, QUESTION)
    reply = stored(page)
    assert page.js(f"{LAST}.querySelector('.body').innerText").strip() == "7"
    assert page.js(f"{LAST}.querySelector('.thinking').open") is False
    page.click(".thinking summary")
    assert "b=0" in page.js(f"{LAST}.querySelector('.thought').innerText")
    details = reply["usage"]["completion_tokens_details"]
    facts = page.js(f"{LAST}.querySelector('.facts').innerText")
    assert f"{details['reasoning_tokens']} tokens" in facts, facts
    assert reply["budget"]["ended_by"] == "natural", reply
    page.js("window.old = true; history.go(0)")
    page.until(f"!window.old && {REPLIES}.length === 1")
    assert page.js(f"{LAST}.querySelector('.body').innerText").strip() == "7", "lost in a reload"


def test_the_slider_sets_the_limit_and_off_is_off(page, url):
    for step, limit in ((1, 32), (3, 128)):
        page.js(f"(s => {{ s.value = {step}; s.dispatchEvent(new Event('input')); }})"
                "(document.querySelector('#budget'))")
        ask(page, QUESTION)
        assert stored(page)["budget"]["limit"] == limit, stored(page)
    page.click("#switch")
    assert page.js("document.querySelector('#budget-text').value") == "off"
    ask(page, QUESTION)
    assert stored(page)["budget"]["ended_by"] == "off", stored(page)
    page.click("#switch")
    assert page.js("document.querySelector('#budget-text').value") == "128 tokens"


def test_a_saving_is_shown_only_after_a_comparison(page, url):
    fresh(page, url)
    set_field(page, "temperature", "0")
    page.click("#switch")
    ask(page, QUESTION)
    assert page.js("document.querySelectorAll('.saving').length") == 0
    page.js(f"[...{LAST}.querySelectorAll('button')].find(b => b.textContent.startsWith('Compare'))"
            ".click()")
    page.until(f"document.querySelector('.saving') && {DONE}")
    own, other = stored(page)["usage"], stored(page)["comparison"]["usage"]
    difference = other["completion_tokens"] - own["completion_tokens"]
    assert difference > 0
    text = page.js("document.querySelector('.saving').innerText")
    assert f"saved {difference} tokens" in text, text
    assert f"= {other['completion_tokens']} tokens" in text, text


def test_text_stays_text(page, url):
    fresh(page, url)
    hostile = ("<img src=x onerror=\"window.hit=1\"> **<script>window.hit=1</script>**\n"
               "```html\n<svg onload=window.hit=1>\n```\n- <b>item</b>")
    page.can(sse(chunk({"reasoning_content": hostile}), chunk({"content": hostile}, "stop")))
    ask(page, hostile)
    page.can()
    assert page.js("window.hit") is None
    assert page.js("document.querySelectorAll('#messages :is(img, script, svg, b)').length") == 0
    assert "<img src=x" in page.js(f"{LAST}.querySelector('.body').innerText")
    assert page.js(f"{LAST}.querySelectorAll('.body :is(pre, strong, li)').length") == 3
    assert page.js("document.querySelector('.bubble').innerText") == hostile


def test_a_call_is_a_card_and_its_result_goes_back(page, url):
    fresh(page, url)
    tools = [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]
    page.click("#open-settings")
    page.js("document.querySelector('#tools').value = '[{'")
    page.click("#close-settings")
    assert "no JSON" in page.js("document.querySelector('#tools-error').textContent")
    page.js(f"document.querySelector('#tools').value = {json.dumps(json.dumps(tools))}")
    page.click("#close-settings")
    call = {"index": 0, "id": "call_1", "type": "function",
            "function": {"name": "add", "arguments": '{"a": 1'}}
    more = {"index": 0, "function": {"arguments": ', "b": 2}'}}
    page.can(sse(chunk({"tool_calls": [call]}), chunk({"tool_calls": [more]}, "tool_calls")),
             sse(chunk({"content": "It is **3**."}, "stop")))
    ask(page, "add 1 and 2")
    assert '"b": 2' in page.js(f"{LAST}.querySelector('.call pre').innerText")
    page.js(f"{LAST}.querySelector('.call textarea').focus()")
    page.type("3")
    page.click(".calls button[type=submit]")
    page.until(f"{REPLIES}.length === 2 && {DONE}")
    page.can()
    assert page.js(f"{LAST}.querySelector('strong').innerText") == "3"
    sent = json.loads(page.js("sessionStorage.getItem('hybra.conversation')"))["messages"][2]
    assert sent == {"role": "tool", "tool_call_id": "call_1", "content": "3"}, sent


def test_errors_are_shown(page, url):
    fresh(page, url)
    page.click("#open-settings")
    page.js("document.querySelector('#temperature').value = '0.5';"
            "document.querySelector('#max-tokens').value = '16'")
    page.click("#close-settings")
    ask(page, QUESTION)  # a budget above max_tokens: the server refuses
    text = page.js(f"{LAST}.querySelector('.error').innerText")
    assert "max_tokens" in text, text
    broken = sse(chunk({"content": "half"}))[2].replace("data: [DONE]\n\n", "")
    failed = 'event: error\ndata: {"error": {"message": "weights on fire"}}\n\n'
    page.can((200, "text/event-stream", broken), (200, "text/event-stream", broken + failed),
             (401, "application/json", '{"error": {"message": "wrong API key"}}'))
    for words in ("ended before", "weights on fire", "wrong API key"):
        ask(page, "again")
        assert words in page.js(f"{LAST}.querySelector('.error').innerText"), words
    page.can()
    assert page.js(f"[...{REPLIES}].at(-2).querySelector('.body').innerText").strip() == "half"
    assert "key" in page.js(f"{LAST}.querySelector('.error').innerText.toLowerCase()")
    page.call("Network.emulateNetworkConditions", offline=True, latency=0,
              downloadThroughput=-1, uploadThroughput=-1)
    ask(page, "offline")
    page.call("Network.emulateNetworkConditions", offline=False, latency=0,
              downloadThroughput=-1, uploadThroughput=-1)
    assert "cannot be reached" in page.js(f"{LAST}.querySelector('.error').innerText")


def test_the_keyboard_is_enough(page, url):
    fresh(page, url)
    focus = "(document.activeElement.id || document.activeElement.textContent)"
    page.js("document.querySelector('#input').focus()")
    page.type("first")
    page.key("Enter", shift=True)
    page.type("second")
    assert page.js("document.querySelector('#input').value") == "first\nsecond"
    page.js("document.querySelector('#input').value = ''")
    page.type(QUESTION)
    page.key("Enter")
    page.until(f"{REPLIES}.length === 1 && {DONE}")
    assert page.js(focus) == "input", "focus stays in the box"
    seen = []
    for _ in range(40):
        page.key("Tab")
        seen.append(page.js(focus))
        if page.js("document.activeElement.matches('.thinking summary')"):
            page.key("Enter", text="\r")
            assert page.js(f"{LAST}.querySelector('.thinking').open") is True
        if seen[-1] == "budget":
            before = page.js("document.querySelector('#budget').value")
            page.key("ArrowRight")
            assert page.js("document.querySelector('#budget').value") != before
        if seen[-1] == "input":
            break
    order = ["open-settings", "switch", "budget", "input"]
    assert [name for name in seen if name in order] == order, seen
    assert page.js(f"{LAST}.querySelector('.thinking').open") is True, seen
    unnamed = page.js("""[...document.querySelectorAll('button, textarea, input')].filter(n =>
        !n.textContent.trim() && !n.ariaLabel && !n.labels?.length && !n.title).length""")
    assert unnamed == 0, "controls without a name"


def test_earlier_messages_can_be_changed_and_answers_asked_again(page, url):
    page.click(".user .actions button:nth-child(2)")
    page.js("document.querySelector('.edit textarea').value = 'a=4;b=a+5;b?'")
    page.click(".edit button[type=submit]")
    page.until(f"document.querySelector('.bubble')?.innerText === 'a=4;b=a+5;b?' && {DONE}")
    first = stored(page)["id"]
    page.js(f"[...{LAST}.querySelectorAll('button')].find(b => b.textContent === 'Regenerate')"
            ".click()")
    page.until(f"{DONE}")
    assert stored(page)["id"] != first and page.js(f"{REPLIES}.length") == 1


def test_a_phone_scrolls_one_way_only_and_both_schemes_are_readable(page, url):
    page.can(sse(chunk({"reasoning_content": "x" * 400}),
                 chunk({"content": "w" * 300 + "\n```\n" + "y" * 300 + "\n```\n- item"}, "stop")))
    ask(page, "long " + "z" * 300)
    page.can()
    page.size(360, 740, mobile=True)
    wide = page.js("""[...document.querySelectorAll('body *')].filter(n => {
        const r = n.getBoundingClientRect();
        return r.width && r.right > innerWidth + 1 && !n.closest('pre, .thought, .unseen, dialog');
    }).map(n => n.outerHTML.slice(0, 80))""")
    assert wide == [], wide
    assert page.js("document.documentElement.scrollWidth") <= 360
    page.click("#open-settings")
    assert page.js("document.querySelector('#settings').scrollWidth") <= 360
    page.key("Escape")
    page.until("!document.querySelector('#settings').open")
    page.size(1100, 800)
    for scheme, theme in (("dark", "auto"), ("light", "auto"), ("light", "dark"), ("dark", "light")):
        page.scheme(scheme)
        page.js(f"document.documentElement.dataset.theme = '{theme}'")
        dark = (scheme if theme == "auto" else theme) == "dark"
        contrast = page.js(CONTRAST)
        assert contrast["dark"] == dark, (scheme, theme, contrast)
        assert contrast["least"] >= 4.5, (scheme, theme, contrast)
    page.js("document.documentElement.dataset.theme = 'auto'")
    page.click("#theme")
    assert page.js("document.documentElement.dataset.theme") == "light"
    page.click("#theme")
    assert page.js("document.documentElement.dataset.theme") == "dark"


# The least contrast of text and page, by the WCAG's formula.
CONTRAST = """(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)$/.test(colour)) return light(colour);
    }
  };
  let least = 21;
  for (const node of document.querySelectorAll('.bubble, .thought, .body p, summary, .facts dd, '
      + '.hint, #send, .model, header button, .actions button')) {
    const [a, b] = [light(getComputedStyle(node).color), behind(node)].sort((x, y) => y - x);
    least = Math.min(least, (a + 0.05) / (b + 0.05));
  }
  return { least, dark: behind(document.body) < 0.2 };
})()"""


def test_answer_now_ends_the_thinking(page, url):
    page.scheme("light")
    page.goto(url)
    set_field(page, "min-thinking", "100000")
    page.js("(s => { s.value = 12; s.dispatchEvent(new Event('input')); })"
            "(document.querySelector('#budget'))")
    page.click("#input")
    page.type("think")
    page.key("Enter")
    page.until("/Thinking · ≈/.test(document.querySelector('summary')?.innerText)")
    assert page.js(f"{LAST}.querySelector('.thinking').open") is True, "seen while it thinks"
    page.click("#answer-now")
    page.until(f"{LAST}.querySelector('.body').innerText.length > 0")
    page.until("document.querySelector('#answer-now').hidden")
    page.key("Escape")
    page.until(DONE)
    assert page.js(f"{LAST}.querySelector('.thinking').open") is False


def test_answer_now_is_reported(page, url):
    fresh(page, url)
    set_field(page, "min-thinking", "60000")
    page.js("document.querySelector('#max-tokens').value = '70000'")
    set_field(page, "max-tokens", "70000")
    page.js("(s => { s.value = 12; s.dispatchEvent(new Event('input')); })"
            "(document.querySelector('#budget'))")
    page.click("#input")
    page.type("think")
    page.key("Enter")
    page.click("#answer-now")
    page.until(DONE, 120)
    budget = stored(page)["budget"]
    assert budget["ended_by"] == "client", budget
    assert "Answer now" in page.js("document.querySelector('summary').innerText")


def test_escape_stops(page, url):
    fresh(page, url)
    set_field(page, "min-thinking", "100000")
    page.js("(s => { s.value = 12; s.dispatchEvent(new Event('input')); })"
            "(document.querySelector('#budget'))")
    page.click("#input")
    page.type("think")
    page.key("Enter")
    page.until("/Thinking/.test(document.querySelector('summary')?.innerText)")
    page.key("Escape")
    page.until(f"{DONE}", 5)
    assert "Stopped by you" in page.js(f"{LAST}.innerText")


def test_locked_servers_get_the_key_that_is_typed(page, url):
    fresh(page, url)
    page.until("document.querySelector('#settings').open")
    assert page.js("document.activeElement.id") == "api-key"
    page.type("s3cret")
    page.key("Enter")
    page.until("document.querySelector('#model').textContent === 'hybra-default'")
    ask(page, QUESTION)
    assert page.js(f"{LAST}.querySelector('.body').innerText").strip() == "7"
    assert page.js("JSON.stringify(localStorage).includes('s3cret')") is False


def endless_model(binary, folder):
    """Random weights with room for a very long thought."""
    subprocess.run([binary, "init", "micro", f"{folder}/micro"], check=True, stderr=-3)
    config = json.load(open(f"{folder}/micro/config.json"))
    config["max_position_embeddings"] = 131072
    with open(f"{folder}/config.json", "w") as file:
        json.dump(config, file)
    subprocess.run([binary, "init", f"{folder}/config.json", f"{folder}/endless"], check=True,
                   stderr=-3)
    return f"{folder}/endless"


def main(binary, chromium, shots):
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    endless = ("test_answer_now", "test_escape")
    with tempfile.TemporaryDirectory() as folder:
        model = endless_model(binary, folder)
        with (Server(binary) as small, Server(binary, model) as slow,
              Server(binary, key="s3cret") as locked, Page(chromium) as page):
            page.size(1100, 800)
            for name, test in tests:
                url = slow.url if name.startswith(endless) else small.url
                url = locked.url if name.startswith("test_locked") else url
                try:
                    test(page, url + "/")
                except BaseException:
                    if shots:
                        page.shot(os.path.join(shots, "failed.png"))
                    raise
                assert not page.problems, page.problems
                print(f"ok {name[5:].replace('_', ' ')}", flush=True)
                if shots:
                    page.shot(os.path.join(shots, f"{name}.png"))
    print(f"{len(tests)} browser tests passed")


if __name__ == "__main__":
    main(*sys.argv[1:4])
