// One Service: its figures over time, endpoints, callers, routes, events, identities.

import { clock, figures, FIGURES, h, health, latency, none, rate, span, success, svg, table } from './dom.js';

const WIDTH = 420;
const HEIGHT = 150;
const LEFT = 58;
const BOTTOM = 24;
const TOP = 10;
const SHOWN = 5 * 60e3;
// Samples further apart than this are not joined: nobody looked in between.
const GAP = 7e3;

export function servicePage(of, now) {
  const { namespace, name } = of;
  const ports = of.ports.map((p) => `${p.port}${p.name ? ` ${p.name}` : ''} (${p.protocol})`).join(', ');
  return [
    h('h2', { tabindex: -1 }, `Service ${namespace}/${name}`),
    h('p', { class: 'more' }, `Ports: ${ports}`),
    of.sampled ? null : h('p', { class: 'note' }, 'Traffic of this Service is not sampled: 200 others are busier, or no proxy has answered yet.'),
    tiles([
      ['Health', health(of.now.success)], ['Rate', rate(of.now.rps)], ['Success', success(of.now.success)],
      ['Latency p50', latency(of.now.p50_us)], ['Latency p99', latency(of.now.p99_us)],
    ]),
    h('div', { class: 'charts' },
      chart('Latency', of.series, now, latency, 1000, [['p50', 'p50_us', 'a'], ['p99', 'p99_us', 'b']]),
      chart('Rate', of.series, now, rate, 1, [['requests', 'rps', 'a']]),
      chart('Success', of.series, now, (part) => success(part), null, [['success', 'success', 'a']])),
    values(of.series),
    endpoints(of),
    callers(of),
    routes(of),
    events(of.events, 'Events', false),
    identities(of.identities, 'Identities behind it', false),
  ];
}

export const tiles = (pairs) => h('dl', { class: 'tiles' },
  pairs.map(([title, value]) => h('div', null, h('dt', null, title), h('dd', null, value))));

// A line for each of the series. `least` is the smallest top of the scale; without it the scale is that of
// a part, up to 1 and down to where the values are.
function chart(title, samples, now, write, least, series) {
  const recent = samples.filter(({ at_ms: at }) => now - at <= SHOWN);
  const values = series.flatMap(([, key]) => recent.map((s) => s[key]).filter((v) => v !== null));
  const high = least === null ? 1 : nice(Math.max(least, ...values));
  const low = least === null ? Math.min(0.9, ...values.map((v) => Math.floor(v * 10) / 10)) : 0;
  const x = (at) => LEFT + ((at - now + SHOWN) / SHOWN) * (WIDTH - LEFT - 8);
  const y = (value) => TOP + (1 - (value - low) / (high - low)) * (HEIGHT - TOP - BOTTOM);
  const ticks = [low, (low + high) / 2, high];
  const lines = series.map(([, key, style]) => svg('path', {
    class: `series ${style}`, d: line(recent, key, x, y),
  }));
  const summary = series.map(([label, key]) => {
    const known = recent.map((s) => s[key]).filter((v) => v !== null);
    if (!known.length) return `${label}: no data`;
    const [least_, most] = [Math.min(...known), Math.max(...known)];
    return `${label} between ${write(least_)} and ${write(most)}, last ${write(known.at(-1))}`;
  }).join('; ');
  return h('figure', null,
    h('figcaption', null, h('strong', null, title), series.length > 1 && series.map(([label, , style]) =>
      h('span', { class: 'legend' }, svg('svg', { width: 28, height: 10, 'aria-hidden': 'true' },
        svg('path', { class: `series ${style}`, d: 'M0 5H28' })), ` ${label}`))),
    svg('svg', { class: 'chart', viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', 'aria-label': `${title} over the last 5 minutes. ${summary}.` },
      ticks.map((tick) => svg('g', { class: 'tick' },
        svg('path', { d: `M${LEFT} ${y(tick)}H${WIDTH - 8}` }),
        svg('text', { x: LEFT - 8, y: y(tick) + 4, 'text-anchor': 'end' }, write(tick)))),
      svg('text', { x: LEFT, y: HEIGHT - 6 }, '5 min ago'),
      svg('text', { x: WIDTH - 8, y: HEIGHT - 6, 'text-anchor': 'end' }, 'now'),
      lines));
}

function line(samples, key, x, y) {
  let path = '';
  let last = -Infinity;
  for (const sample of samples) {
    if (sample[key] === null) continue;
    const point = `${x(sample.at_ms).toFixed(1)} ${y(sample[key]).toFixed(1)}`;
    // A point alone is a dot, by the round ends of lines.
    path += sample.at_ms - last > GAP ? `M${point}h0` : `L${point}`;
    last = sample.at_ms;
  }
  return path;
}

// The next of 1, 2, 5 times a power of ten.
function nice(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value);
}

// The charts in numbers, one row about every ten seconds, the newest first.
function values(samples) {
  const rows = [];
  let last = Infinity;
  for (const sample of [...samples].reverse()) {
    if (last - sample.at_ms < 9.5e3) continue;
    last = sample.at_ms;
    rows.push([sample.at_ms, clock(sample.at_ms), ...figures(sample)]);
  }
  return h('details', { 'data-key': 'values' }, h('summary', null, 'The charts as a table'),
    table('Figures over time', [['Time'], ...FIGURES], rows, 'No samples yet.'));
}

const SIGNS = { open: ['bad', '✕ ejected'], 'half-open': ['fair', '◐ half-open'], ready: ['good', '● ready'], unused: ['idle', '○ not called'] };

function state(of) {
  const [name, text] = SIGNS[of.state] ?? SIGNS.unused;
  const all = of.ready + of.half_open + of.open;
  const by = of.open + of.half_open && all > 1 ? ` by ${of.open + of.half_open} of ${all} callers` : '';
  const why = [of.reason, of.next_probe_ms !== null && `next probe in ${span(of.next_probe_ms)}`].filter(Boolean);
  return [
    h('span', { class: `health ${name}` }, `${text}${by}`),
    why.length ? h('span', { class: 'more' }, ` ${why.join(', ')}`) : null,
    of.known ? null : h('span', { class: 'more' }, ' no endpoint any more; a proxy still has it'),
  ];
}

function endpoints(of) {
  const rows = of.endpoints.map((e) => [
    `${e.port} ${e.address}`, e.address, String(e.port), e.pod ?? none, state(e), ...figures(e),
    String(e.in_flight), e.ewma_ms === null ? none : latency(e.ewma_ms * 1000), e.zone ?? none, e.node ?? none,
  ]);
  return [
    table('Endpoints', [['Endpoint'], ['Port', true], ['Pod'], ['State'], ...FIGURES, ['In flight', true], ['EWMA', true], ['Zone'], ['Node']],
      rows, 'No endpoint can take traffic.'),
    left(of.endpoints_left_out, 'endpoints'),
  ];
}

const left = (count, what) => (count ? h('p', { class: 'note' }, `${count} more ${what} are left out.`) : null);

function callers(of) {
  const rows = of.callers.map((c) => [`${c.namespace}/${c.workload}`, `${c.namespace}/${c.workload}`, String(c.pods), ...figures(c)]);
  const known = of.identified_callers.map((c) => [c.id, c.id === 'none' ? 'no identity (outside the mesh)' : c.id, String(c.requests), String(c.failures)]);
  return [
    table('Callers', [['Workload'], ['Pods', true], ...FIGURES], rows, 'No workload of the mesh has called it in the last minutes.'),
    table('Callers by identity', [['Identity'], ['Requests', true], ['Failures', true]], known, 'The proxies behind it have counted no request.'),
  ];
}

function routes(of) {
  const rows = of.routes.map((r, at) => [
    `${at} ${r.name}`, r.name, String(r.port), r.consumers ?? 'everybody',
    r.matches.length ? list(r.matches) : 'everything', list(r.backends.map((b) =>
      `${b.service} (weight ${b.weight})${b.invalid ? ` ✕ ${b.invalid}` : ''}`)),
    r.filters.length || r.policy.length ? list([...r.filters, ...r.policy]) : none, ...figures(r),
  ]);
  return [
    table('Routes, in order of precedence', [['Rule'], ['Port', true], ['Callers in'], ['Matches'], ['Backends'], ['Filters and policy'], ...FIGURES],
      rows, 'It has no routes: requests go to its endpoints.'),
    left(of.routes_left_out, 'routes'),
  ];
}

const list = (items) => (items.length === 1 ? items[0] : h('ul', null, items.map((item) => h('li', null, item))));

const KINDS = { ejected: ['bad', '✕ ejected'], recovered: ['good', '● recovered'] };

export function events(all, caption, withService, link) {
  const rows = all.map((e) => {
    const [name, text] = KINDS[e.kind] ?? ['idle', e.kind];
    const cells = [
      clock(e.at_ms), withService && (link?.(e.service) ?? e.service), h('span', { class: `health ${name}` }, text),
      `${e.pod ?? ''} ${e.endpoint}`.trim(), e.reason ?? none, e.penalty_ms === null ? none : span(e.penalty_ms), e.seen_by,
    ];
    return [`${e.at_ms} ${e.endpoint} ${e.seen_by} ${e.kind}`, ...cells.filter((cell) => cell !== false)];
  });
  const columns = [['Time'], withService && ['Service'], ['What'], ['Endpoint'], ['Why'], ['For'], ['Seen by']].filter(Boolean);
  return table(caption, columns, rows, 'No endpoint was ejected as far as the proxies remember.');
}

export function identities(all, caption, withPods) {
  const now = Date.now();
  const rows = all.map((i) => {
    const rest = i.expires_ms === null ? null : i.expires_ms - now;
    const ends = rest === null ? none : rest <= 0 ? h('span', { class: 'health bad' }, '✕ expired')
      : rest < 36e5 ? h('span', { class: 'health fair' }, `! in ${span(rest)}`) : `in ${span(rest)}`;
    return [i.identity, i.identity, ...(withPods ? [String(i.pods), i.workloads.join(', ')] : []), String(i.certificates), ends];
  });
  const columns = [['Identity'], ...(withPods ? [['Pods', true], ['Workloads']] : []), ['Certificates seen', true], ['First ends']];
  return table(caption, columns, rows, 'No pod with a sidecar is known.');
}
