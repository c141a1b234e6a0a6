// A little Markdown as DOM nodes: code blocks, headings, lists, bold, italics, code.
// What always holds: model text only ever becomes text nodes, never markup.

export function element(name, properties = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in node) node[key] = value;
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}

const FENCE = /^\s*(```+|~~~+)\s*([\w+#.-]*)\s*$/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const ITEM = /^\s*(?:[-*+]|(\d{1,9})[.)])\s+(.*)$/;

export function markdown(text) {
  const out = document.createDocumentFragment();
  const lines = text.split('\n');
  let i = 0;
  while (i < lines.length) {
    const fence = FENCE.exec(lines[i]);
    const heading = HEADING.exec(lines[i]);
    if (fence) {
      const code = [];
      for (i += 1; i < lines.length && lines[i].trim() !== fence[1]; i += 1) code.push(lines[i]);
      i += 1;
      out.append(codeBlock(code.join('\n'), fence[2]));
    } else if (heading) {
      const level = Math.min(6, heading[1].length + 2);
      out.append(element(`h${level}`, {}, ...inline(heading[2])));
      i += 1;
    } else if (ITEM.test(lines[i])) {
      i = list(lines, i, out);
    } else if (lines[i].trim() === '') {
      i += 1;
    } else {
      const start = i;
      const ends = (line) => line.trim() === '' || [FENCE, HEADING, ITEM].some((r) => r.test(line));
      do i += 1; while (i < lines.length && !ends(lines[i]));
      out.append(element('p', {}, ...inline(lines.slice(start, i).join('\n'))));
    }
  }
  return out;
}

function list(lines, start, out) {
  const first = ITEM.exec(lines[start]);
  const ordered = first[1] !== undefined;
  const node = element(ordered ? 'ol' : 'ul');
  if (ordered) node.start = Number(first[1]);
  let i = start;
  for (let item; i < lines.length && (item = ITEM.exec(lines[i])); i += 1) {
    if ((item[1] !== undefined) !== ordered) break;
    node.append(element('li', {}, ...inline(item[2])));
  }
  out.append(node);
  return i;
}

function codeBlock(text, language) {
  const copy = element('button', { type: 'button', className: 'quiet' }, 'Copy');
  copy.addEventListener('click', () => copyText(text, copy));
  const head = element('div', { className: 'code-head' }, element('span', {}, language), copy);
  const code = element('pre', { tabIndex: 0 }, element('code', {}, text));
  return element('div', { className: 'code-block' }, head, code);
}

// The longest form first: `code`, **bold**, *italics*.
const INLINE = /(`+)(.+?)\1|\*\*(\S(?:.*?\S)?)\*\*|\*([^\s*](?:[^*]*[^\s*])?)\*/s;

function inline(text) {
  const out = [];
  let rest = text;
  for (let hit; (hit = INLINE.exec(rest)); rest = rest.slice(hit.index + hit[0].length)) {
    if (hit.index) out.push(rest.slice(0, hit.index));
    if (hit[2] !== undefined) out.push(element('code', {}, hit[2]));
    else if (hit[3] !== undefined) out.push(element('strong', {}, ...inline(hit[3])));
    else out.push(element('em', {}, ...inline(hit[4])));
  }
  if (rest) out.push(rest);
  return out;
}

export async function copyText(text, button) {
  const before = button.textContent;
  button.textContent = (await copied(text)) ? 'Copied' : 'Copying failed';
  setTimeout(() => { button.textContent = before; }, 1500);
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch { /* Without TLS a browser offers only the older way. */ }
  const area = element('textarea', { value: text, className: 'unseen' });
  document.body.append(area);
  area.select();
  const done = document.execCommand('copy');
  area.remove();
  return done;
}
