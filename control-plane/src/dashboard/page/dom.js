// Elements from values, an update that leaves alone what has not changed (so that focus, selection and
// scroll positions stay), and how figures are written. Text from the network enters as text nodes and
// attribute values only.

const SVG = 'http://www.w3.org/2000/svg';

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value !== null && value !== undefined && value !== false) {
      element.setAttribute(name, value === true ? '' : String(value));
    }
  }
  for (const child of children.flat(Infinity)) {
    if (child !== null && child !== undefined && child !== false) {
      element.append(child instanceof Node ? child : String(child));
    }
  }
  return element;
}

export const h = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

// Makes the children of an element what is wanted. Elements with a `data-key` are found again by it,
// others by their place.
export function show(element, ...wanted) {
  const next = element.cloneNode(false);
  next.append(...wanted.flat(Infinity).filter(Boolean));
  children(element, next);
}

const keyOf = (node) => node.dataset?.key;

function children(old, next) {
  const keyed = new Map();
  for (const child of old.childNodes) {
    if (keyOf(child)) keyed.set(keyOf(child), child);
  }
  let at = old.firstChild;
  for (const wanted of [...next.childNodes]) {
    const key = keyOf(wanted);
    let match = key ? keyed.get(key) : at && !keyOf(at) ? at : null;
    if (match?.nodeName !== wanted.nodeName) match = null;
    if (!match) {
      old.insertBefore(wanted, at);
      continue;
    }
    if (match === at) at = at.nextSibling;
    else old.insertBefore(match, at);
    patch(match, wanted);
  }
  while (at) {
    const after = at.nextSibling;
    at.remove();
    at = after;
  }
}

function patch(old, next) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // What the reader has opened stays open.
    if (!next.hasAttribute(name) && name !== 'open') old.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  children(old, next);
}

export const none = '–';

export function rate(rps) {
  if (rps === null || rps === undefined) return none;
  return `${rps > 0 && rps < 9.95 ? rps.toFixed(1) : Math.round(rps)}/s`;
}

// Rounded down: 100 % is said of no failure at all.
export function success(part) {
  if (part === null || part === undefined) return none;
  return part === 1 ? '100 %' : `${(Math.floor(part * 1000) / 10).toFixed(1)} %`;
}

export function latency(us) {
  if (us === null || us === undefined) return none;
  if (us < 1000) return `${Math.round(us)} µs`;
  if (us < 1e6) return `${us < 1e4 ? (us / 1e3).toFixed(1) : Math.round(us / 1e3)} ms`;
  return `${(us / 1e6).toFixed(1)} s`;
}

export function span(ms) {
  const units = [[864e5, 'd'], [36e5, 'h'], [6e4, 'min'], [1e3, 's']];
  for (const [size, unit] of units) {
    if (ms >= size) return `${Math.round(ms / size)} ${unit}`;
  }
  return `${Math.round(ms)} ms`;
}

export const clock = (ms) => new Date(ms).toLocaleTimeString();

// How well it goes: a class for the colour, a sign and a word for those who do not see it.
export function level(part) {
  if (part === null || part === undefined) return { name: 'idle', sign: '', word: 'no traffic' };
  if (part >= 0.99) return { name: 'good', sign: '', word: 'healthy' };
  if (part >= 0.95) return { name: 'fair', sign: '! ', word: 'degraded' };
  return { name: 'bad', sign: '✕ ', word: 'failing' };
}

export function health(part) {
  const { name, sign, word } = level(part);
  return h('span', { class: `health ${name}` }, sign, word);
}

// Names are not broken at their hyphens; what is long is.
const kind = (cell) => typeof cell === 'string' && cell.length <= 48 && 'short';

// A table that scrolls on its own where the screen is narrow. A column is [title, is a number];
// a row is [key, ...cells]; the first cell is the row's heading.
export function table(caption, columns, rows, empty) {
  const id = `t-${caption.replace(/\W+/g, '-')}`;
  if (!rows.length) {
    return [h('h3', { 'data-key': `${id}-h` }, caption), h('p', { 'data-key': `${id}-none` }, empty)];
  }
  const head = columns.map(([title, number]) => h('th', { scope: 'col', class: number && 'n' }, title));
  const body = rows.map(([key, ...cells]) => h('tr', { 'data-key': `r${key}` }, cells.map((cell, at) =>
    at === 0 ? h('th', { scope: 'row', class: kind(cell) }, cell)
      : h('td', { class: columns[at][1] ? 'n' : kind(cell) }, cell))));
  return [
    h('h3', { id, 'data-key': `${id}-h` }, caption),
    h('div', { class: 'scroll', role: 'region', 'aria-labelledby': id, 'data-key': id },
      h('table', { 'aria-labelledby': id }, h('thead', null, h('tr', null, head)), h('tbody', null, body))),
  ];
}

export const serviceLink = (namespace, name, ...text) => h('a', {
  href: `#/services/${encodeURIComponent(namespace)}/${encodeURIComponent(name)}`,
}, ...(text.length ? text : [`${namespace}/${name}`]));

export const figures = (of) => [rate(of.rps), success(of.success), latency(of.p50_us), latency(of.p99_us)];

export const FIGURES = [['Rate', true], ['Success', true], ['p50', true], ['p99', true]];
