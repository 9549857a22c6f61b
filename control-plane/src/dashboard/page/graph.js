// The topology as a layered graph: callers to the left of whom they call.

import { level, rate, success, latency, svg } from './dom.js';

const WIDTH = 184;
const HEIGHT = 64;
const GAP_X = 132;
const GAP_Y = 26;
const DUMMY = 22;
const PAD = 24;

// Boxes and arrows of what is shown. A Service with one workload behind it that is behind no other is one
// box with it: chains of calls stay short.
export function boxesOf(nodes, edges) {
  const behind = new Map();
  const serving = new Map();
  const note = (map, key, value) => map.set(key, [...(map.get(key) ?? []), value]);
  for (const { from, to, kind } of edges) {
    if (kind === 'serves') {
      note(behind, from, to);
      note(serving, to, from);
    }
  }
  const known = new Map(nodes.map((node) => [node.id, node]));
  const joined = new Map();
  for (const [service, workloads] of behind) {
    if (workloads.length === 1 && serving.get(workloads[0]).length === 1) joined.set(workloads[0], service);
  }
  const boxes = nodes.filter(({ id }) => !joined.has(id)).map((node) => {
    const partner = node.kind === 'service' && behind.get(node.id)?.length === 1
      && joined.get(behind.get(node.id)[0]) === node.id ? known.get(behind.get(node.id)[0]) : null;
    return { ...node, workload: node.kind === 'workload' ? node : partner, serves: serving.has(node.id) };
  });
  const ends = new Set(boxes.map(({ id }) => id));
  const box = (id) => joined.get(id) ?? id;
  const arrows = edges
    .map((edge) => ({ ...edge, from: box(edge.from), to: box(edge.to) }))
    .filter(({ from, to, kind }) => ends.has(from) && ends.has(to) && !(kind === 'serves' && from === to));
  return { boxes, arrows };
}

// Positions for boxes, and the points that each arrow passes. Depends on names alone, so that nothing
// moves while figures change.
export function layout(boxes, arrows) {
  const ids = boxes.map(({ id }) => id).sort();
  const out = new Map(ids.map((id) => [id, []]));
  const pairs = [...new Map(arrows.filter(({ from, to }) => from !== to)
    .map(({ from, to }) => [`${from} ${to}`, { from, to }])).entries()].sort().map(([, pair]) => pair);
  pairs.forEach((pair) => out.get(pair.from).push(pair));
  // Depth first: what leads back to where we come from is turned round for the layers.
  const state = new Map();
  const order = [];
  const visit = (id) => {
    state.set(id, 'open');
    for (const pair of out.get(id)) {
      if (state.get(pair.to) === 'open') pair.back = true;
      else if (!state.has(pair.to)) visit(pair.to);
    }
    state.set(id, 'done');
    order.unshift(id);
  };
  const called = new Set(pairs.map(({ to }) => to));
  [...ids.filter((id) => !called.has(id)), ...ids].forEach((id) => state.has(id) || visit(id));
  const rank = new Map(ids.map((id) => [id, 0]));
  for (const id of order) {
    for (const { to, back } of out.get(id)) {
      if (!back) rank.set(to, Math.max(rank.get(to), rank.get(id) + 1));
    }
  }
  // Long arrows get a place in every layer that they pass.
  const layers = [];
  const put = (at, entry) => {
    (layers[at] ??= []).push(entry);
    return entry;
  };
  const entries = new Map(ids.map((id) => [id, put(rank.get(id), { id, height: HEIGHT, near: [] })]));
  const link = (a, b) => {
    a.near.push(b);
    b.near.push(a);
  };
  for (const pair of pairs) {
    const [low, high] = pair.back ? [pair.to, pair.from] : [pair.from, pair.to];
    let last = entries.get(low);
    pair.via = [];
    for (let at = rank.get(low) + 1; at < rank.get(high); at += 1) {
      const dummy = put(at, { height: DUMMY, near: [] });
      link(last, dummy);
      pair.via.push(dummy);
      last = dummy;
    }
    link(last, entries.get(high));
    if (pair.back) pair.via.reverse();
  }
  place(layers);
  const height = Math.max(0, ...layers.map((layer) => Math.max(...layer.map((e) => e.y + e.height)))) + PAD;
  const width = layers.length * (WIDTH + GAP_X) - GAP_X + 2 * PAD;
  return { entries, pairs, width, height };
}

// Orders each layer by where its neighbours are, then sets coordinates.
function place(layers) {
  const stack = (layer) => {
    let y = 0;
    for (const entry of layer) {
      entry.y = y;
      y += entry.height + GAP_Y;
    }
    return y - GAP_Y;
  };
  const tall = Math.max(0, ...layers.map(stack));
  const centre = (entry) => entry.y + entry.height / 2;
  const settle = () => layers.forEach((layer, at) => {
    const top = PAD + (tall - stack(layer)) / 2;
    layer.forEach((entry) => {
      entry.x = PAD + at * (WIDTH + GAP_X);
      entry.y += top;
    });
  });
  settle();
  for (let sweep = 0; sweep < 8; sweep += 1) {
    for (const layer of sweep % 2 ? [...layers].reverse() : layers) {
      const mean = new Map(layer.map((e) => [e, e.near.length
        ? e.near.reduce((sum, near) => sum + centre(near), 0) / e.near.length : centre(e)]));
      layer.sort((a, b) => mean.get(a) - mean.get(b));
    }
    settle();
  }
}

export function draw(boxes, arrows, { entries, pairs, width, height }, manyNamespaces) {
  const pairOf = new Map(pairs.map((pair) => [`${pair.from} ${pair.to}`, pair]));
  const port = ports(arrows.filter(({ from, to }) => from !== to), entries);
  const lines = [];
  const labels = [];
  for (const arrow of arrows) {
    const { path, label, end } = arrow.from === arrow.to
      ? loop(entries.get(arrow.from))
      : curve(arrow, pairOf.get(`${arrow.from} ${arrow.to}`), port);
    const calls = arrow.kind === 'calls';
    const { name, sign } = calls ? level(arrow.success) : { name: 'serves', sign: '' };
    const key = `${arrow.kind} ${arrow.from} ${arrow.to}`;
    lines.push(svg('g', { class: `edge ${name}`, 'data-key': key },
      svg('path', { d: path, class: 'line' }),
      svg('path', { d: `M${end[0]} ${end[1]}l-9 -4.5v9z`, class: 'head' })));
    if (calls) labels.push(tag(key, label, name, `${sign}${rate(arrow.rps)}${arrow.success === null ? '' : ` · ${success(arrow.success)}`}`));
  }
  return svg('svg', {
    class: 'graph', width, height, viewBox: `0 0 ${width} ${height}`, role: 'group',
    'aria-label': 'Graph of who calls which Service. The tables below say the same.',
  },
  svg('g', { 'aria-hidden': 'true' }, lines, labels),
  boxes.map((box) => node(box, entries.get(box.id), manyNamespaces)));
}

// Above the line, whose pattern is to be seen.
function tag(key, [x, y], name, text) {
  const width = 7 * text.length;
  return svg('g', { class: `tag ${name}`, 'data-key': `tag ${key}` },
    svg('rect', { x: x - width / 2, y: y - 22, width, height: 17, rx: 4 }),
    svg('text', { x, y: y - 9, 'text-anchor': 'middle' }, text));
}

// Where each arrow leaves and arrives: side by side, in the order of the other ends.
function ports(arrows, entries) {
  const places = new Map();
  const spread = (mine, other, side) => {
    const groups = new Map();
    for (const arrow of arrows) groups.set(arrow[mine], [...(groups.get(arrow[mine]) ?? []), arrow]);
    for (const [id, group] of groups) {
      const entry = entries.get(id);
      group.sort((a, b) => entries.get(a[other]).y - entries.get(b[other]).y);
      group.forEach((arrow, at) => {
        const y = entry.y + (HEIGHT * (at + 1)) / (group.length + 1);
        places.set(`${side} ${arrow.kind} ${arrow.from} ${arrow.to}`, [entry.x + (side === 'out' ? WIDTH : 0), y]);
      });
    }
  };
  spread('from', 'to', 'out');
  spread('to', 'from', 'in');
  return (side, arrow) => places.get(`${side} ${arrow.kind} ${arrow.from} ${arrow.to}`);
}

function curve(arrow, pair, port) {
  const start = port('out', arrow);
  const end = port('in', arrow);
  const passed = pair.via.map(({ x, y }) => [[x, y + DUMMY / 2], [x + WIDTH, y + DUMMY / 2]]);
  const points = [start, ...(pair.back ? passed.map(([a, b]) => [b, a]) : passed).flat(), end];
  const reach = pair.back ? GAP_X : GAP_X / 2;
  let path = `M${start[0]} ${start[1]}`;
  for (let at = 1; at < points.length; at += 1) {
    const [[ax, ay], [bx, by]] = [points[at - 1], points[at]];
    // An arrow that leads back leaves and arrives as others do, and passes layers the other way.
    const leave = pair.back && at > 1 ? -reach : reach;
    const arrive = pair.back && at < points.length - 1 ? -reach : reach;
    // Within a layer it passes straight.
    path += at % 2 ? `C${ax + leave} ${ay} ${bx - arrive} ${by} ${bx} ${by}` : `L${bx} ${by}`;
  }
  const [bx, by] = points[1];
  return { path, end, label: [(start[0] + bx) / 2, (start[1] + by) / 2] };
}

function loop({ x, y }) {
  const [ax, bx] = [x + WIDTH - 40, x + WIDTH];
  const by = y + HEIGHT / 4;
  return {
    path: `M${ax} ${y}C${ax} ${y - 30} ${bx + 60} ${by} ${bx} ${by}`,
    label: [bx + 20, y - 8],
    end: [bx, by],
  };
}

// What runs there; its name only where that is not the box's own.
function behind({ name, pods }, title) {
  const [kind, own] = name.split('/');
  return `${own === title ? kind : name} · ${pods} ${pods === 1 ? 'pod' : 'pods'}`;
}

function node(box, { x, y }, manyNamespaces) {
  const isService = box.kind === 'service';
  const { name, word, sign } = level(isService ? box.success : null);
  const title = isService ? box.name : box.name.split('/').pop();
  const pods = box.workload ? behind(box.workload, title) : 'Service';
  const traffic = isService && box.success !== null
    ? `${sign}${rate(box.rps)} · ${success(box.success)} · p99 ${latency(box.p99_us)}`
    : isService ? 'no traffic' : box.serves ? '' : 'behind no Service';
  const ejected = isService && box.ejected > 0 ? `${box.ejected} of ${box.endpoints} ejected` : null;
  const second = manyNamespaces ? `${box.namespace} · ${pods}` : pods;
  const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);
  const content = [
    svg('rect', { x, y, width: WIDTH, height: HEIGHT, rx: 6 }),
    svg('text', { x: x + 12, y: y + 21, class: 'name' }, cut(title, 22)),
    svg('text', { x: x + 12, y: y + 38, class: 'more' }, cut(second, 27)),
    svg('text', { x: x + 12, y: y + 54, class: `more ${ejected ? 'bad' : name}` }, cut(ejected ? `✕ ${ejected}` : traffic, 29)),
  ];
  if (!isService) {
    return svg('g', { class: 'box workload', 'data-key': box.id, role: 'img', 'aria-label': `${box.namespace}/${box.name}, a caller` }, content);
  }
  return svg('a', {
    class: `box service ${ejected ? 'bad' : name}`, 'data-key': box.id,
    href: `#/services/${encodeURIComponent(box.namespace)}/${encodeURIComponent(box.name)}`,
    'aria-label': `Service ${box.namespace}/${box.name}: ${word}, ${traffic}${ejected ? `, ${ejected}` : ''}`,
  }, content);
}
