// The thinking budget: the slider's steps, the fields of a request, and what a reply says about it.
// What always holds: every number shown about a finished reply is one that the server counted.

export const STEPS = [0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, -1];

export const number = (n) => n.toLocaleString('en');
const tokens = (n) => `${number(n)} token${n === 1 ? '' : 's'}`;

export function stepText(step) {
  const budget = STEPS[step];
  return budget === 0 ? 'off' : budget < 0 ? 'no limit' : tokens(budget);
}

export function fields(budget) {
  if (budget === 0) return { enable_thinking: false };
  return { enable_thinking: true, thinking_budget: budget };
}

const ENDINGS = {
  budget_newline: 'cut at a newline',
  budget_sentence: 'cut at the end of a sentence',
  budget_hard: 'cut at the hard limit',
  client: 'ended by “Answer now”',
  tool_call: 'ended by a tool call',
  eos: 'the model ended its text while thinking',
  stop: 'ended by a stop string',
  max_tokens: 'ran out of tokens',
};

const SOURCES = {
  effort: ['by effort', 'the budget of the effort asked for'],
  server: ['server', 'the server allows no more'],
  max_tokens: ['max tokens', 'so that max tokens leaves room for an answer'],
  context: ['context', 'so that the context leaves room for an answer'],
};

// One line for the fold, e.g. “Thought 128 tokens, cut at a newline”.
export function headline(budget) {
  if (!budget) return 'Thought';
  if (!budget.ended_by || budget.ended_by === 'off') return 'Did not think';
  const count = `Thought ${tokens(budget.used)}`;
  if (budget.ended_by === 'natural') return count;
  return `${count}, ${ENDINGS[budget.ended_by] || `ended by ${budget.ended_by}`}`;
}

// The numbers below an answer: name, value, explanation.
export function facts({ usage, budget, rate }) {
  const out = [];
  if (usage) {
    const thought = usage.completion_tokens_details?.reasoning_tokens ?? 0;
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    const note = cached ? ` (${number(cached)} cached)` : '';
    out.push(['Thinking', tokens(thought), thinkingTitle(budget)]);
    out.push(['Answer', tokens(usage.completion_tokens - thought), '']);
    out.push(['Prompt', tokens(usage.prompt_tokens) + note, 'cached: read in an earlier turn']);
  }
  if (budget && budget.limit !== null && budget.ended_by !== 'off') {
    const [source, title] = SOURCES[budget.limit_source] ?? ['', 'the budget asked for'];
    out.push(['Limit', tokens(budget.limit) + (source && ` (${source})`), title]);
  }
  if (rate) out.push(['Speed', `${number(Math.round(rate))} tok/s`, 'as it arrived here']);
  return out;
}

function thinkingTitle(budget) {
  if (!budget || !budget.ended_by || budget.ended_by === 'off') return '';
  const parts = [`${tokens(budget.used)} of thought`];
  if (budget.forced) parts.push(`${number(budget.forced)} inserted to end it`);
  else parts.push('the rest is the closing tag');
  if (budget.limit !== null) parts.push(`${number(budget.grace)} more allowed for a good cut`);
  return parts.join('; ');
}

// What a budget saved against an answer to the same conversation without one.
export function saving(own, other) {
  const difference = other.completion_tokens - own.completion_tokens;
  const parts = (usage) => {
    const thought = usage.completion_tokens_details?.reasoning_tokens ?? 0;
    const answer = usage.completion_tokens - thought;
    return `${number(thought)} + ${number(answer)} = ${tokens(usage.completion_tokens)}`;
  };
  const share = Math.round((Math.abs(difference) / other.completion_tokens) * 100);
  const verdict = difference > 0 ? `saved ${tokens(difference)} (${share} %)`
    : difference < 0 ? `cost ${tokens(-difference)} more (${share} %)` : 'cost the same';
  return `With the budget ${parts(own)}, without ${parts(other)}: ${verdict}. One answer each.`;
}
