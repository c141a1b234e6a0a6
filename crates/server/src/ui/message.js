// How a message looks, and the buttons on it.
// What always holds: text of users and models becomes text nodes only.

import { facts, headline, number, saving } from './budget.js';
import { isThinking, uncut } from './conversation.js';
import { copyText, element, markdown } from './markdown.js';

function button(text, title, click) {
  const node = element('button', { type: 'button', className: 'quiet', title }, text);
  node.addEventListener('click', () => click(node));
  return node;
}

export function userView(message, { edit, busy }) {
  const item = element('li', { className: 'user', 'aria-label': 'You' });
  const show = () => {
    const change = button('Edit', 'Change this message and ask again from here', open);
    change.disabled = busy;
    item.replaceChildren(
      element('div', { className: 'bubble' }, message.content),
      element('div', { className: 'actions' }, copyButton(message), change),
    );
  };
  const open = () => {
    const area = element('textarea', { value: message.content, 'aria-label': 'Edit message' });
    const row = element('div', { className: 'actions' },
      button('Cancel', 'Leave the message as it was', show),
      element('button', { type: 'submit', className: 'primary' }, 'Send again'));
    const form = element('form', { className: 'edit' }, area, row);
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      if (area.value.trim()) edit(area.value.trim());
    });
    area.addEventListener('keydown', (event) => {
      if (event.key === 'Escape') { event.stopPropagation(); show(); }
      if (event.key === 'Enter' && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    item.replaceChildren(form);
    area.focus();
  };
  show();
  return { item, update() {} };
}

const copyButton = (message) =>
  button('Copy', 'Copy the text', (node) => copyText(message.content, node));

// An answer of the model: thinking, text, calls, numbers, errors.
export class ReplyView {
  constructor(reply, { actions = {}, results = [], baseline, busy, name = 'Answer' }) {
    Object.assign(this, { reply, actions, results, baseline, busy });
    this.item = element('li', { className: 'assistant', 'aria-label': name });
    this.summary = element('summary');
    this.thought = element('div', { className: 'thought' });
    this.fold = element('details', { className: 'thinking' }, this.summary, this.thought);
    this.summary.addEventListener('click', () => { this.byHand = true; });
    this.progress = element('div', { className: 'progress' });
    this.body = element('div', { className: 'body' });
    this.calls = element('div', { className: 'calls' });
    this.foot = element('div', { className: 'foot' });
    this.item.append(this.progress, this.fold, this.body, this.calls, this.foot);
    this.update();
  }

  update() {
    this.showProgress();
    this.showThinking();
    if (this.shownContent !== this.reply.content) {
      this.shownContent = this.reply.content;
      this.body.replaceChildren(markdown(this.reply.content.trim()));
    }
    this.item.classList.toggle('live', this.reply.live);
    this.showFoot();
    if (!this.reply.live) this.showCalls();
  }

  showProgress() {
    const { live, progress, thinkingPieces, answerPieces } = this.reply;
    const waiting = live && !thinkingPieces && !answerPieces;
    this.progress.hidden = !waiting;
    if (!waiting) return;
    if (!progress) return void this.progress.replaceChildren('Waiting for the server…');
    const { processed, total, cache } = progress;
    const note = cache ? `, ${number(cache)} of them cached` : '';
    this.progress.replaceChildren(
      `Reading ${number(processed)} of ${number(total)} tokens${note}`,
      element('progress', { max: total, value: processed, 'aria-label': 'Reading the prompt' }),
    );
  }

  showThinking() {
    const { reply } = this;
    const thinking = isThinking(reply);
    this.fold.hidden = !reply.reasoning;
    if (this.thought.textContent.length !== reply.reasoning.length) {
      const text = reply.reasoning;
      const shown = this.thought.textContent;
      if (text.startsWith(shown)) this.thought.append(text.slice(shown.length));
      else this.thought.textContent = text;
      this.thought.scrollTop = this.thought.scrollHeight;
    }
    const limit = reply.asked > 0 ? ` of ${number(reply.asked)}` : '';
    const counted = `≈ ${number(reply.thinkingPieces)}${limit} tokens`;
    const text = thinking ? `Thinking · ${counted}`
      : reply.budget ? headline(reply.budget) : `Thought ${counted}`;
    if (this.summary.textContent !== text) this.summary.textContent = text;
    this.fold.classList.toggle('running', thinking);
    if (!this.byHand) this.fold.open = thinking;
  }

  showFoot() {
    const { reply } = this;
    if (reply.live) {
      const seconds = (reply.last - reply.first) / 1000;
      const pieces = reply.thinkingPieces + reply.answerPieces;
      const rate = seconds > 0.2 ? `≈ ${number(Math.round((pieces - 1) / seconds))} tok/s` : '';
      return void this.foot.replaceChildren(element('div', { className: 'facts' }, rate));
    }
    const list = element('dl', { className: 'facts' });
    for (const [name, value, title] of facts(reply)) {
      list.append(element('div', { title }, element('dt', {}, name), element('dd', {}, value)));
    }
    const notes = this.notes().map(([kind, text]) => element('p', { className: kind }, text));
    const error = reply.error ? [this.errorCard()] : [];
    this.foot.replaceChildren(...error, list, ...notes, this.buttons(), ...this.comparison());
  }

  notes() {
    const { reply, baseline } = this;
    const out = (reply.warnings ?? []).map((text) => ['note', `The server says: ${text}`]);
    if (reply.finish === 'length') out.push(['note', 'Cut off: the limit of tokens was reached.']);
    if (reply.stopped) out.push(['note', 'Stopped by you.']);
    if (reply.asked >= 0 && reply.usage && baseline) {
      out.push(['note saving', saving(reply.usage, baseline)]);
    }
    return out;
  }

  errorCard() {
    const row = element('div', { className: 'actions' });
    const { retry, askKey } = this.actions;
    if (retry) row.append(button('Try again', 'Ask the same again', retry));
    if (askKey && this.reply.status === 401) {
      row.append(button('Enter the API key', 'Open the settings', askKey));
    }
    const text = element('p', {}, this.reply.error);
    return element('div', { className: 'error', role: 'alert' }, text, row);
  }

  buttons() {
    const row = element('div', { className: 'actions' });
    if (this.reply.content) row.append(copyButton(this.reply));
    const { retry, compare } = this.actions;
    if (retry && !this.reply.error) row.append(button('Regenerate', 'Ask again, from here', retry));
    if (compare && this.reply.usage && this.reply.asked >= 0 && !this.baseline) {
      const title = 'Ask again without a budget and compare the tokens';
      row.append(button('Compare without a budget', title, compare));
    }
    for (const node of row.querySelectorAll('button')) {
      node.disabled = Boolean(this.busy) && node.textContent !== 'Copy';
    }
    return row;
  }

  // The answer without a budget that was asked for to compare.
  comparison() {
    const other = this.reply.comparison;
    if (!other) return [];
    this.other = new ReplyView(other, { name: 'Answer without a budget' });
    const box = element('ol', { className: 'comparison' }, this.other.item);
    const cut = !other.live && other.usage && !uncut(other);
    const note = cut ? [element('p', { className: 'note' },
      'This answer was cut too, so nothing is known about what the budget saved.')] : [];
    return [element('h3', {}, 'Without a budget'), box, ...note];
  }

  showCalls() {
    const { tool_calls: calls } = this.reply;
    if (this.shownCalls || !calls.length) return;
    this.shownCalls = true;
    const cards = calls.map((call, i) => callCard(call, this.results[i]));
    this.calls.replaceChildren(...cards.map((card) => card.node));
    if (this.results.length || !this.actions.results) return;
    const form = element('form', {}, ...this.calls.childNodes,
      element('button', { type: 'submit', className: 'primary' }, 'Send results'));
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.actions.results(cards.map((card) => card.area.value));
    });
    this.calls.replaceChildren(form);
  }
}

function callCard(call, result) {
  let pretty = call.function.arguments;
  try {
    pretty = JSON.stringify(JSON.parse(pretty), null, 2);
  } catch { /* Not JSON: shown as the model wrote it. */ }
  const { name } = call.function;
  const node = element('section', { className: 'call', 'aria-label': `Call of ${name}` },
    element('h3', {}, 'Tool call ', element('code', {}, name)),
    element('pre', { tabIndex: 0 }, pretty));
  if (result !== undefined) {
    node.append(element('h3', {}, 'Result'), element('pre', { tabIndex: 0 }, result));
    return { node };
  }
  const area = element('textarea', { rows: 2, required: true, className: 'code',
    'aria-label': `Result of ${name}`, placeholder: 'Type the tool’s result' });
  node.append(area);
  return { node, area };
}
