// The conversation: messages, what a request is made of, and how chunks become a reply.
// What always holds: it survives a reload of the tab and is gone when the tab is closed; a reply
// that was cut off says so.

import { fields } from './budget.js';

const STORE = 'hybra.conversation';

export class Conversation {
  constructor() {
    this.reset();
    try {
      Object.assign(this, JSON.parse(sessionStorage.getItem(STORE)) ?? {});
    } catch { /* What cannot be read is forgotten. */ }
    for (const message of this.messages) {
      for (const reply of [message, message.comparison]) {
        if (!reply?.live) continue;
        reply.live = false;
        reply.error = 'The page was reloaded before the answer was complete.';
      }
    }
  }

  reset() {
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    this.id = Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
    this.messages = [];
    // Usage of answers that no budget cut, by what was asked.
    this.baselines = {};
  }

  save() {
    const { id, messages, baselines } = this;
    try {
      sessionStorage.setItem(STORE, JSON.stringify({ id, messages, baselines }));
    } catch { /* Too long to be kept: it lives on in memory. */ }
  }

  // The request for an answer to the first `count` messages.
  request(count, budget, settings, model) {
    const messages = this.messages.slice(0, count).map(wireMessage);
    if (settings.system) messages.unshift({ role: 'system', content: settings.system });
    const optional = {
      model, temperature: settings.temperature, seed: settings.seed,
      max_tokens: settings.maxTokens, tools: settings.tools,
      min_thinking_tokens: budget === 0 ? undefined : settings.minThinking,
    };
    return {
      ...optional, messages, ...fields(budget), stream: true,
      stream_options: { include_usage: true }, reasoning_control: true, return_progress: true,
    };
  }

  // The usage of an uncut answer to the same question, if there was one.
  baseline(reply) {
    return reply.key ? this.baselines[reply.key] : undefined;
  }

  keepBaseline(reply) {
    if (reply.asked < 0 && uncut(reply)) this.baselines[reply.key] = reply.usage;
  }
}

// Whether the reply thought and answered to its own end.
export function uncut(reply) {
  const ends = ['natural', 'eos', 'tool_call', null];
  const thought = ends.includes(reply.budget?.ended_by ?? null);
  return Boolean(reply.usage) && reply.finish !== 'length' && thought;
}

// Names a question: the same text asked in the same way has the same key.
export function questionKey({ messages, tools, model, temperature, max_tokens }) {
  const text = JSON.stringify([messages, tools, model, temperature, max_tokens]);
  let hash = 0xcbf29ce484222325n;
  for (const byte of new TextEncoder().encode(text)) {
    hash = BigInt.asUintN(64, (hash ^ BigInt(byte)) * 0x100000001b3n);
  }
  return hash.toString(16);
}

function wireMessage({ role, content, tool_calls, tool_call_id }) {
  if (role === 'tool') return { role, content, tool_call_id };
  if (role === 'assistant' && tool_calls?.length) return { role, content, tool_calls };
  return { role, content };
}

export function newReply(asked) {
  return {
    role: 'assistant', content: '', reasoning: '', tool_calls: [], asked, live: true,
    thinkingPieces: 0, answerPieces: 0,
  };
}

// Takes a chunk of the stream into the reply.
export function take(reply, chunk) {
  reply.id = chunk.id;
  if (chunk.prompt_progress) reply.progress = chunk.prompt_progress;
  if (chunk.warnings?.length) reply.warnings = chunk.warnings;
  if (chunk.usage) {
    reply.usage = chunk.usage;
    const seconds = (reply.last - reply.first) / 1000;
    const counted = chunk.usage.completion_tokens - 1;
    // What arrives in one burst tells nothing about speed.
    reply.rate = seconds > 0.1 && counted > 0 ? counted / seconds : undefined;
  }
  const choice = chunk.choices?.[0];
  if (!choice) return;
  const { delta } = choice;
  const thought = delta.reasoning_content ?? delta.reasoning;
  if (thought) {
    reply.reasoning += thought;
    reply.thinkingPieces += 1;
  }
  if (delta.content) {
    reply.content += delta.content;
    reply.answerPieces += 1;
  }
  for (const piece of delta.tool_calls ?? []) takeCall(reply.tool_calls, piece);
  if (thought || delta.content || delta.tool_calls) {
    reply.last = performance.now();
    reply.first ??= reply.last;
  }
  if (choice.finish_reason) reply.finish = choice.finish_reason;
  if (choice.reasoning_budget) reply.budget = choice.reasoning_budget;
}

function takeCall(calls, { index, id, function: part }) {
  calls[index] ??= { id: '', type: 'function', function: { name: '', arguments: '' } };
  if (id) calls[index].id = id;
  if (part?.name) calls[index].function.name += part.name;
  if (part?.arguments) calls[index].function.arguments += part.arguments;
}

export function isThinking(reply) {
  return reply.live && !reply.content && !reply.tool_calls.length && reply.thinkingPieces > 0;
}
