'use strict';
(() => {
const root = document.documentElement;
let errors = 0;
const fault = () => { root.dataset.errors = String(++errors); };
root.dataset.errors = '0';
addEventListener('error', fault);

const data = JSON.parse(document.getElementById('data').textContent);
const byId = id => document.getElementById(id);
const colours = ['#3b82d6', '#d95f02', '#1b9e77', '#8b7bd8', '#e7298a', '#66a61e', '#b8860b', '#7f8c99', '#17becf', '#c0504d'];
const W = 620, H = 260, edge = {l: 58, r: 12, t: 10, b: 26};
const make = (name, attributes, into) => {
  const e = document.createElementNS('http://www.w3.org/2000/svg', name);
  for (const [key, value] of Object.entries(attributes)) e.setAttribute(key, value);
  if (into) into.append(e);
  return e;
};
const show = v => v === 0 ? '0' : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(2) : String(+v.toPrecision(4));

document.title = `${data.name.split('/').filter(Boolean).pop() || 'training'} · fastfold`;
byId('name').textContent = data.name;
const facts = [['steps', data.facts.steps]];
if (data.facts['run/samples']) facts.push(['samples', data.facts['run/samples']]);
if (data.facts['run/seconds']) facts.push(['hours', (data.facts['run/seconds'] / 3600).toFixed(2)]);
if (data.facts['run/memory']) facts.push(['GiB of memory', (data.facts['run/memory'] / 2 ** 30).toFixed(2)]);
if (data.bad) facts.push(['lines of the log that are no records', data.bad]);
for (const [name, value] of facts) {
  const span = document.createElement('span'), b = document.createElement('b');
  b.textContent = value;
  span.append(b, name);
  byId('facts').append(span);
}

// A step of 1, 2 or 5 times a power of ten that gives about `count` of them.
function ticks(low, high, count) {
  const raw = (high - low) / count || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find(s => s * power >= raw * .999) * power, out = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; ++k) out.push(k * step);
  return out;
}
function smoothed(points, weight) {
  let last = 0, norm = 0;
  return points.map(([x, y]) => {
    last = weight * last + (1 - weight) * y;
    norm = weight * norm + 1 - weight;
    return [x, last / norm];
  });
}

function draw(chart) {
  const {svg, output} = chart, weight = Number(byId('smooth').value);
  svg.replaceChildren();
  const all = chart.series.flatMap(s => s.at);
  const log = byId('log').checked && all.every(p => p[1] > 0);
  const height = v => log ? Math.log10(v) : v;
  let [low, high] = all.reduce(([a, b], p) => [Math.min(a, height(p[1])), Math.max(b, height(p[1]))], [Infinity, -Infinity]);
  const [first, last] = all.reduce(([a, b], p) => [Math.min(a, p[0]), Math.max(b, p[0])], [Infinity, -Infinity]);
  const room = (high - low) * .05 || Math.abs(high) * .1 || 1;
  low -= room; high += room;
  const x = v => edge.l + (last > first ? (v - first) / (last - first) : .5) * (W - edge.l - edge.r);
  const y = v => edge.t + (high - height(v)) / (high - low) * (H - edge.t - edge.b);
  for (const t of ticks(low, high, 5)) {
    const value = log ? 10 ** t : t, at = y(value);
    make('line', {class: 'grid', x1: edge.l, x2: W - edge.r, y1: at, y2: at}, svg);
    make('text', {x: edge.l - 6, y: at + 4, 'text-anchor': 'end'}, svg).textContent = show(value);
  }
  for (const t of ticks(first, last, 6))
    if (Number.isInteger(t)) make('text', {x: x(t), y: H - 8, 'text-anchor': 'middle'}, svg).textContent = t;
  chart.series.forEach((s, k) => {
    const points = weight ? smoothed(s.at, weight) : s.at, colour = colours[k % colours.length];
    make('polyline', {fill: 'none', stroke: colour, 'stroke-width': 1.8, 'stroke-linejoin': 'round', points: points.map(p => `${x(p[0]).toFixed(1)},${y(p[1]).toFixed(1)}`).join(' ')}, svg);
    if (points.length < 30) for (const p of points) make('circle', {cx: x(p[0]), cy: y(p[1]), r: 2.5, fill: colour}, svg);
  });
  const cursor = make('line', {class: 'grid', y1: edge.t, y2: H - edge.b, visibility: 'hidden'}, svg);
  svg.onpointermove = e => {
    const box = svg.getBoundingClientRect(), at = first + ((e.clientX - box.left) / box.width * W - edge.l) / (W - edge.l - edge.r) * (last - first);
    const near = s => s.at.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a);
    const step = near(chart.series[0])[0];
    cursor.setAttribute('x1', x(step));
    cursor.setAttribute('x2', x(step));
    cursor.setAttribute('visibility', 'visible');
    output.textContent = `step ${step}: ` + chart.series.slice(0, 6).map(s => show(near(s)[1])).join(', ');
  };
  svg.onpointerleave = () => { cursor.setAttribute('visibility', 'hidden'); output.textContent = ''; };
}

for (const chart of data.charts) {
  const section = document.createElement('section'), head = document.createElement('div'), title = document.createElement('h2');
  section.className = 'chart';
  head.className = 'head';
  title.textContent = chart.title;
  chart.output = document.createElement('output');
  head.append(title, chart.output);
  chart.svg = make('svg', {viewBox: `0 0 ${W} ${H}`, role: 'img', 'aria-label': chart.title});
  const keys = document.createElement('p');
  keys.className = 'keys';
  chart.series.forEach((s, k) => {
    const span = document.createElement('span'), mark = document.createElement('i');
    mark.style.background = colours[k % colours.length];
    span.append(mark, `${s.name} ${show(s.at[s.at.length - 1][1])}`);
    keys.append(span);
  });
  const note = document.createElement('p');
  note.className = 'note';
  note.textContent = chart.note;
  section.append(head, chart.svg, keys, note);
  byId('charts').append(section);
}
const drawAll = () => data.charts.forEach(draw);
byId('smooth').addEventListener('input', drawAll);
byId('log').addEventListener('change', drawAll);
drawAll();

// What a test reads.
root.dataset.charts = String(data.charts.length);
root.dataset.blank = String([...document.querySelectorAll('.chart svg')].filter(s => !s.querySelector('polyline') || /NaN|Infinity/.test(s.outerHTML)).length);
root.dataset.overflow = String(Math.max(0, root.scrollWidth - innerWidth));
root.dataset.ready = '1';
})();
