// Routes, polling, the overview. Figures come every two seconds while the page is seen.

import { clock, figures, FIGURES, h, health, rate, serviceLink, show, success, table } from './dom.js';
import { boxesOf, draw, layout } from './graph.js';
import { events, identities, servicePage, tiles } from './service.js';

const EVERY = 2000;
const PATIENCE = 5000;
const one = (id) => document.getElementById(id);
const main = one('main');

let topology = null;
let service = null;
let paused = false;
let failedSince = null;
let timer = 0;
let turn = 0;

function route() {
  const [view, ...rest] = location.hash.replace(/^#\/?/, '').split('/');
  if (view === 'services' && rest.length === 2) {
    try {
      return { view, namespace: decodeURIComponent(rest[0]), name: decodeURIComponent(rest[1]) };
    } catch {
      return { view: 'topology' };
    }
  }
  return { view: ['events', 'identities'].includes(view) ? view : 'topology' };
}

async function json(path) {
  const response = await fetch(path, { cache: 'no-store', signal: AbortSignal.timeout(PATIENCE) });
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`status ${response.status}`);
  return response.json();
}

// Each turn ends the one before: an answer that comes late for a view that was left is dropped.
async function update() {
  clearTimeout(timer);
  turn += 1;
  const mine = turn;
  const at = route();
  const path = at.view === 'services'
    && `dashboard/services/${encodeURIComponent(at.namespace)}/${encodeURIComponent(at.name)}.json`;
  try {
    const [overview, detail] = await Promise.all([json('dashboard/topology.json'), path && json(path)]);
    if (mine !== turn) return;
    topology = overview?.sampled_ms ? overview : topology;
    service = path ? { ...at, of: detail } : null;
    failedSince = null;
  } catch (error) {
    if (mine !== turn) return;
    failedSince ??= { at: Date.now(), why: error.name === 'TimeoutError' ? 'no answer' : 'no connection' };
  }
  render();
  if (!paused && !document.hidden) timer = setTimeout(update, EVERY);
}

function render() {
  const at = route();
  for (const link of document.querySelectorAll('nav a')) {
    if (link.dataset.view === at.view) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  show(main, h('div', { 'data-key': location.hash }, view(at)));
  document.title = at.view === 'services' ? `${at.namespace}/${at.name} – Remora`
    : `${at.view[0].toUpperCase()}${at.view.slice(1)} – Remora`;
  problems();
  scrollable();
}

function view(at) {
  if (at.view === 'services') {
    if (service?.namespace !== at.namespace || service?.name !== at.name) return heading('Loading…');
    if (!service.of) {
      return [heading(`Service ${at.namespace}/${at.name}`), h('p', null, 'There is no such Service. ', h('a', { href: '#/' }, 'All Services'))];
    }
    return servicePage(service.of, topology?.sampled_ms ?? Date.now());
  }
  if (!topology) return heading(failedSince ? 'No figures' : 'Loading…');
  if (at.view === 'events') {
    return [heading('Breaker events'), events(topology.events, 'Newest first', true, (text) => {
      const [, namespace, name] = /^([^/]*)\/(.*?)(?::\d+)?$/.exec(text) ?? [];
      return name ? serviceLink(namespace, name, text) : text;
    })];
  }
  if (at.view === 'identities') return [heading('Identities'), identities(topology.identities, 'Pods with a sidecar, by identity', true)];
  return overview(topology);
}

const heading = (text) => h('h2', { tabindex: -1 }, text);

function overview(all) {
  const chosen = new URLSearchParams(location.search).get('namespace') ?? '';
  const namespaces = [...new Set(all.nodes.map((node) => node.namespace))].sort();
  const wanted = all.nodes.filter((node) => !chosen || node.namespace === chosen);
  const ids = new Set(wanted.map(({ id }) => id));
  // Whoever calls into the namespace is shown with it.
  const edges = all.edges.filter(({ from, to }) => ids.has(to) || ids.has(from));
  edges.forEach(({ from, to }) => ids.add(from).add(to));
  const nodes = all.nodes.filter(({ id }) => ids.has(id));
  const services = wanted.filter(({ kind }) => kind === 'service');
  const calls = edges.filter(({ kind }) => kind === 'calls');
  const total = services.reduce((sum, { rps }) => sum + rps, 0);
  const good = services.reduce((sum, { rps, success: part }) => sum + rps * (part ?? 0), 0);
  const ejected = services.reduce((sum, { ejected: count }) => sum + count, 0);
  return [
    h('h2', { tabindex: -1 }, 'Topology'),
    namespaces.length > 1 && h('p', { class: 'tools' }, h('label', { for: 'namespace' }, 'Namespace '),
      h('select', { id: 'namespace' }, ['', ...namespaces].map((name) =>
        h('option', { value: name, selected: name === chosen }, name || 'all')))),
    tiles([['Services', String(services.length)], ['Rate', rate(total)], ['Success', success(total ? good / total : null)],
      ['Ejected endpoints', ejected ? h('span', { class: 'health bad' }, `✕ ${ejected}`) : 'none']]),
    graph(nodes, edges, namespaces.length > 1),
    legend(),
    table('Services', [['Service'], ['Health'], ['Ports'], ['Endpoints', true], ['Ejected', true], ...FIGURES], services.map((s) =>
      [s.id, serviceLink(s.namespace, s.name), health(s.success), s.ports.join(', '), String(s.endpoints), String(s.ejected), ...figures(s)]), 'No Service is known.'),
    table('Calls', [['Caller'], ['Service'], ['Health'], ...FIGURES], calls.map((c) => {
      const target = all.nodes.find(({ id }) => id === c.to);
      return [`${c.from} ${c.to}`, c.from.replace(/^workload:/, ''), serviceLink(target.namespace, target.name), health(c.success), ...figures(c)];
    }), 'No proxy has called a Service in the last minutes.'),
    [[all.services_left_out, 'Services'], [all.edges_left_out, 'calls']].filter(([count]) => count).map(([count, what]) =>
      h('p', { class: 'note' }, `${count} more ${what}, the least busy, are left out.`)),
  ];
}

// Positions are worked out anew only where something has come or gone.
let laid = { key: '' };
function graph(nodes, edges, manyNamespaces) {
  const { boxes, arrows } = boxesOf(nodes, edges);
  if (!boxes.length) return null;
  const key = JSON.stringify([boxes.map(({ id }) => id), arrows.map(({ from, to }) => [from, to])]);
  if (laid.key !== key) laid = { key, at: layout(boxes, arrows) };
  return h('div', { class: 'scroll graph-frame', 'data-key': 'graph', role: 'region', 'aria-label': 'Topology graph' },
    draw(boxes, arrows, laid.at, manyNamespaces));
}

const legend = () => h('p', { class: 'legend-row', 'data-key': 'legend' }, 'Success of calls: ', [
  [1, 'at least 99 %'], [0.97, '95 to 99 %'], [0, 'less'], [null, 'nothing in the last 10 s'],
].map(([part, text]) => h('span', { class: 'legend' }, health(part), ` ${text}`)));

function problems() {
  const list = [];
  const live = [];
  if (failedSince) {
    const text = `The control plane cannot be reached since ${clock(failedSince.at)} (${failedSince.why}).`;
    list.push(h('p', { class: 'problem' }, `✕ ${text} What is shown is older.`));
    live.push(text);
  }
  if (topology) {
    const { failed, failures, known, asked } = topology.proxies;
    if (failed) {
      const text = `${failed} of ${asked} proxies did not answer.`;
      live.push(text);
      list.push(h('details', { class: 'problem', 'data-key': 'failures' }, h('summary', null, `! ${text}`),
        h('ul', null, failures.map((f) => h('li', null, `${f.namespace}/${f.pod}: ${f.error}`)),
          failed > failures.length && h('li', null, `and ${failed - failures.length} more`))));
    }
    if (known > asked) list.push(h('p', { class: 'note' }, `${asked} of ${known} proxies are asked; figures are theirs alone.`));
    const ejected = topology.nodes.reduce((sum, node) => sum + (node.ejected ?? 0), 0);
    if (ejected) live.push(`${ejected} ${ejected === 1 ? 'endpoint is' : 'endpoints are'} ejected.`);
    show(one('updated'), `${topology.proxies.answered} of ${asked} proxies · ${paused ? 'paused at' : 'updated'} ${clock(topology.sampled_ms)}`);
    show(one('about'), `Remora ${topology.version}. Rates, success and latency are those of the last 10 seconds, as callers' proxies saw them.`);
  }
  show(one('problems'), list);
  // Said only where it changes.
  show(one('live'), live.join(' '));
}

// What scrolls can be scrolled by keyboard.
function scrollable() {
  for (const region of document.querySelectorAll('.scroll')) {
    if (region.scrollWidth > region.clientWidth) region.setAttribute('tabindex', '0');
    else region.removeAttribute('tabindex');
  }
}

document.addEventListener('click', (event) => {
  const action = event.target.closest('[data-action]')?.dataset.action;
  if (action === 'skip') {
    event.preventDefault();
    main.focus();
  } else if (action === 'pause') {
    paused = !paused;
    one('pause').setAttribute('aria-pressed', String(paused));
    if (paused) {
      clearTimeout(timer);
      render();
    } else update();
  }
});

document.addEventListener('change', (event) => {
  if (event.target.id !== 'namespace') return;
  const url = new URL(location.href);
  if (event.target.value) url.searchParams.set('namespace', event.target.value);
  else url.searchParams.delete('namespace');
  history.replaceState(null, '', url);
  render();
});

window.addEventListener('hashchange', () => {
  render();
  main.querySelector('h2')?.focus();
  update();
});
window.addEventListener('resize', scrollable);
document.addEventListener('visibilitychange', () => !document.hidden && !paused && update());

update();
