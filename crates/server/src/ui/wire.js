// The server's side of the page: requests, server-sent events, errors.
// What always holds: a stream ends with `done`, or throws a WireError that says why it did not.

export class WireError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

function headers(key) {
  const all = { 'content-type': 'application/json' };
  if (key) all.authorization = `Bearer ${key}`;
  return all;
}

async function request(path, key, options) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: { ...headers(key), ...options.headers } });
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    throw new WireError('The server cannot be reached. Is it running?');
  }
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  let message = `${response.status} ${response.statusText}`;
  try {
    const { error } = await response.json();
    message = error.message || message;
  } catch { /* The body is no error object: the status has to do. */ }
  const wait = response.headers.get('retry-after');
  if (wait) message += ` (try again in ${wait} s)`;
  return new WireError(message, response.status);
}

export async function models(key) {
  return (await (await request('./v1/models', key, { method: 'GET' })).json()).data;
}

export function endThinking(id, key) {
  const body = JSON.stringify({ id, action: 'reasoning_end' });
  return request('./v1/chat/completions/control', key, { method: 'POST', body });
}

// Sends a chat request and hands every chunk to `take`.
export async function chat(body, { key, conversation, signal, take }) {
  const response = await request('./v1/chat/completions', key, {
    method: 'POST', body: JSON.stringify(body), signal,
    headers: { 'x-conversation-id': conversation },
  });
  let done = false;
  try {
    for await (const { event, data } of events(response.body)) {
      if (data === '[DONE]') { done = true; break; }
      let object;
      try {
        object = JSON.parse(data);
      } catch {
        throw new WireError('The server sent an event that is no JSON.');
      }
      if (event === 'error' || object.error) {
        throw new WireError(object.error?.message || 'The server reported an error.');
      }
      take(object);
    }
  } catch (error) {
    if (error.name === 'AbortError' || error instanceof WireError) throw error;
    throw new WireError('The connection to the server was lost.');
  }
  if (!done) throw new WireError('The connection ended before the answer was complete.');
}

// Server-sent events of a byte stream; comments, which keep it alive, are left out.
async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  let event = '';
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const lines = (rest + value).split('\n');
      rest = lines.pop();
      for (const raw of lines) {
        const line = raw.endsWith('\r') ? raw.slice(0, -1) : raw;
        if (line === '') {
          if (data.length) yield { event, data: data.join('\n') };
          event = '';
          data = [];
        } else if (line.startsWith('data:')) {
          data.push(line.slice(line[5] === ' ' ? 6 : 5));
        } else if (line.startsWith('event:')) {
          event = line.slice(6).trim();
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
