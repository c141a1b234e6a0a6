// The page: connects the conversation with the server, the views and the keys.

import { STEPS, stepText } from './budget.js';
import { Conversation, isThinking, newReply, questionKey, take } from './conversation.js';
import { element } from './markdown.js';
import { ReplyView, userView } from './message.js';
import { Settings } from './settings.js';
import { WireError, chat, endThinking, models } from './wire.js';

const $ = (id) => document.getElementById(id);
const EXAMPLES = ['c=b-7;b=0;d=c*9;d?', 'a=4;b=a+5;c=b*2;c?'];
const conversation = new Conversation();
const settings = new Settings(connect);
let model;
let running = null; // { reply, view, abort } of the answer that is being written
let step = Number(sessionStorage.getItem('hybra.step') ?? 6);
let lastOn = step || 6;

// ---- the server

async function connect() {
  try {
    const list = await models(settings.key);
    model = list[0]?.id;
    $('model').textContent = model ?? '';
    $('model').classList.remove('bad');
    $('model').title = 'The model that answers';
  } catch (error) {
    const words = { 401: 'API key needed', 503: 'loading…' };
    $('model').textContent = words[error.status] ?? 'no server';
    $('model').classList.toggle('bad', error.status !== 503);
    if (error.status === 503) setTimeout(connect, 1000);
    $('model').title = error.message;
    if (error.status === 401 && !settings.dialog.open && !settings.key) settings.open('api-key');
  }
}

// Asks for an answer to the first `count` messages and streams it into `reply`.
async function answer(reply, count, view) {
  const body = conversation.request(count, reply.asked, settings.values(), model);
  reply.key = questionKey(body);
  running = { reply, view, abort: new AbortController() };
  controls();
  say('Waiting for the answer');
  try {
    await chat(body, {
      key: settings.key, conversation: conversation.id, signal: running.abort.signal,
      take(chunk) {
        const before = isThinking(reply);
        take(reply, chunk);
        if (isThinking(reply) !== before) say(before ? 'Answering' : 'Thinking');
        refresh();
      },
    });
    conversation.keepBaseline(reply);
    say(`Answer complete: ${reply.content.slice(0, 300)}`);
  } catch (error) {
    if (error.name === 'AbortError') {
      reply.stopped = true;
      say('Stopped');
    } else {
      const known = error instanceof WireError;
      reply.error = known ? error.message : `The page failed: ${error.message}`;
      reply.status = error.status;
    }
  }
  reply.live = false;
  running = null;
  conversation.save();
  render();
}

function ask() {
  const reply = newReply(STEPS[step]);
  const count = conversation.messages.length;
  conversation.messages.push(reply);
  running = { reply };
  const views = render();
  return answer(reply, count, views.at(-1));
}

function send(text) {
  conversation.messages.push({ role: 'user', content: text });
  stick = true;
  return ask();
}

function askAgain(from) {
  if (running) return;
  conversation.messages.length = from;
  ask();
}

function compare(index) {
  if (running) return;
  const message = conversation.messages[index];
  message.comparison = newReply(-1);
  running = { reply: message.comparison };
  const views = render();
  const view = views.find((one) => one.reply === message);
  answer(message.comparison, index, view);
}

function stop() {
  running?.abort?.abort();
}

async function answerNow() {
  const { reply } = running ?? {};
  if (!reply?.id) return;
  $('answer-now').disabled = true;
  try {
    await endThinking(reply.id, settings.key);
  } catch (error) {
    // It may have begun to answer in the meantime: then all is well.
    if (error.status !== 404 && error.status !== 409) say(error.message, true);
  }
  $('answer-now').disabled = false;
}

// ---- what is seen

// Follow the end of the text, until the reader scrolls away from it.
let stick = true;
$('log').addEventListener('scroll', () => {
  const log = $('log');
  stick = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
});
const follow = () => { if (stick) $('log').scrollTop = $('log').scrollHeight; };

function render() {
  const { messages } = conversation;
  const views = messages.map((message, index) => view(message, index)).filter(Boolean);
  $('messages').replaceChildren(...views.map((one) => one.item));
  $('welcome').hidden = messages.length > 0;
  $('new-chat').disabled = messages.length === 0;
  controls();
  follow();
  return views;
}

function view(message, index) {
  const busy = Boolean(running);
  if (message.role === 'tool') return null;
  if (message.role === 'user') {
    const edit = (text) => {
      if (running) return;
      conversation.messages.length = index;
      send(text);
    };
    return userView(message, { edit, busy });
  }
  const rest = conversation.messages.slice(index + 1);
  const num = rest.findIndex((next) => next.role !== 'tool');
  const results = rest.slice(0, num < 0 ? rest.length : num).map((next) => next.content);
  const actions = {
    retry: () => askAgain(index),
    compare: () => compare(index),
    askKey: () => settings.open('api-key'),
    results: (texts) => {
      if (running) return;
      message.tool_calls.forEach((call, i) => {
        conversation.messages.push({ role: 'tool', tool_call_id: call.id, content: texts[i] });
      });
      ask();
    },
  };
  const baseline = conversation.baseline(message);
  return new ReplyView(message, { actions, results, baseline, busy });
}

let waiting = false;
let saved = 0;
function refresh() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    if (!running) return;
    const { view: shown, reply } = running;
    if (shown) (shown.reply === reply ? shown : shown.other).update();
    controls();
    follow();
    if (performance.now() - saved > 1000) {
      saved = performance.now();
      conversation.save();
    }
  });
}

function controls() {
  const busy = Boolean(running);
  $('send').hidden = busy;
  $('stop').hidden = !busy;
  $('answer-now').hidden = !(busy && running.reply && isThinking(running.reply));
  $('budget').value = step;
  $('budget-text').textContent = stepText(step);
  $('budget').setAttribute('aria-valuetext', stepText(step));
  $('switch').setAttribute('aria-checked', String(step > 0));
}

function say(text, loud = false) {
  $('status').textContent = text;
  $('status').classList.toggle('unseen', !loud);
}

// ---- controls and keys

function setStep(value) {
  step = value;
  if (step) lastOn = step;
  sessionStorage.setItem('hybra.step', step);
  controls();
}

function submit() {
  const text = $('input').value.trim();
  if (!text || running) return;
  $('input').value = '';
  grow();
  send(text);
}

function grow() {
  const input = $('input');
  input.style.height = 'auto';
  input.style.height = `${Math.min(input.scrollHeight, 200)}px`;
}

$('composer').addEventListener('submit', (event) => { event.preventDefault(); submit(); });
$('input').addEventListener('input', grow);
$('input').addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
document.addEventListener('keydown', (event) => {
  if (event.key === 'Escape' && running && !settings.dialog.open) stop();
});
$('stop').addEventListener('click', () => { stop(); $('input').focus(); });
$('answer-now').addEventListener('click', () => { answerNow(); $('input').focus(); });
$('budget').addEventListener('input', () => setStep(Number($('budget').value)));
$('switch').addEventListener('click', () => setStep(step ? 0 : lastOn));
$('new-chat').addEventListener('click', () => {
  stop();
  conversation.reset();
  conversation.save();
  render();
  $('input').focus();
});

const THEMES = { auto: ['◐', 'as the system'], light: ['☀', 'light'], dark: ['☾', 'dark'] };
function setTheme(theme) {
  document.documentElement.dataset.theme = theme;
  const [symbol, words] = THEMES[theme];
  $('theme').textContent = symbol;
  $('theme').title = `Colours: ${words}`;
  $('theme').ariaLabel = `Colours: ${words}`;
  localStorage.setItem('hybra.theme', theme);
}
$('theme').addEventListener('click', () => {
  const names = Object.keys(THEMES);
  const now = names.indexOf(document.documentElement.dataset.theme);
  setTheme(names[(now + 1) % names.length]);
});

addEventListener('pagehide', () => conversation.save());
for (const text of EXAMPLES) {
  const example = element('button', { type: 'button' }, text);
  example.addEventListener('click', () => { if (!running) send(text); });
  $('examples').append(example);
}
const kept = localStorage.getItem('hybra.theme');
setTheme(kept in THEMES ? kept : 'auto');
render();
connect();
