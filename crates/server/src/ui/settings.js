// The settings panel: what it holds is kept until the tab is closed, the key included.
// What always holds: the panel does not close over a list of tools that cannot be sent.

const KEY = 'hybra.key';
const STORE = 'hybra.settings';
const FIELDS = ['system', 'temperature', 'seed', 'max-tokens', 'min-thinking', 'tools'];
const field = (id) => document.getElementById(id);

export class Settings {
  constructor(changed) {
    this.dialog = field('settings');
    field('api-key').value = sessionStorage.getItem(KEY) ?? '';
    let kept = {};
    try {
      kept = JSON.parse(sessionStorage.getItem(STORE)) ?? {};
    } catch { /* What cannot be read is forgotten. */ }
    for (const id of FIELDS) field(id).value = kept[id] ?? '';
    field('open-settings').addEventListener('click', () => this.open());
    this.dialog.querySelector('form').addEventListener('submit', (event) => {
      if (!this.check()) event.preventDefault();
    });
    this.dialog.addEventListener('cancel', (event) => {
      if (!this.check()) event.preventDefault();
    });
    this.dialog.addEventListener('close', () => {
      this.keep();
      changed();
    });
  }

  open(id) {
    this.dialog.showModal();
    if (id) field(id).focus();
  }

  check() {
    const error = toolsError(field('tools').value);
    field('tools-error').textContent = error;
    if (error) field('tools').focus();
    return !error;
  }

  keep() {
    sessionStorage.setItem(KEY, field('api-key').value);
    const values = Object.fromEntries(FIELDS.map((id) => [id, field(id).value]));
    sessionStorage.setItem(STORE, JSON.stringify(values));
  }

  get key() {
    return field('api-key').value.trim();
  }

  // The fields of a request; what is empty is left to the server.
  values() {
    const value = (id) => (field(id).value === '' ? undefined : Number(field(id).value));
    const tools = field('tools').value.trim();
    return {
      system: field('system').value.trim(),
      temperature: value('temperature'), seed: value('seed'),
      maxTokens: value('max-tokens'), minThinking: value('min-thinking'),
      tools: tools && !toolsError(tools) ? JSON.parse(tools) : undefined,
    };
  }
}

function toolsError(text) {
  if (!text.trim()) return '';
  let tools;
  try {
    tools = JSON.parse(text);
  } catch (error) {
    return `This is no JSON: ${error.message}`;
  }
  if (!Array.isArray(tools)) return 'Expected a list: [ … ]';
  const bad = tools.findIndex((tool) => typeof tool?.function?.name !== 'string');
  if (bad < 0) return '';
  return `Tool ${bad + 1}: expected {"type": "function", "function": {"name": …}}`;
}
