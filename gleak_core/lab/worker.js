/* One attack, in a worker of its own: the client and what he sends, the attacker, and a judge who
   alone knows the private pictures. After engine.js, in the same file. */
'use strict';

const CLASSES = 10, PIXELS = 3072;
const LIMIT = 4000; /* evaluations, for each picture */
const SOLVED = 1e-8; /* of ‖g*‖²: the gradient agrees to four digits */
const PACES = { slow: 0, normal: 16, fast: 80 }; /* ms of work between two frames */
const PAUSE = { slow: 90, normal: 0, fast: 0 };

let parts, kernels, floor, attack, judge, token = 0, on = false, pace = 'normal', spent = 0, timer = 0;

/* --- the client ------------------------------------------------------------------------------------- */

const by = (value, k) => Array.isArray(value) ? value.map(v => by(v, k))
  : value === null || typeof value !== 'object' ? value
  : 'by' in value ? value.by[k]
  : Object.fromEntries(Object.entries(value).map(([name, v]) => [name, by(v, k)]));
const tapeFor = (name, batch) => batch === 1 ? parts.tapes[name].one : by(parts.tapes[name].more, batch - 2);

function halves(text) { /* numbers of half precision, as they are kept */
  const bytes = Uint8Array.from(atob(text), c => c.charCodeAt(0)), words = new Uint16Array(bytes.buffer);
  return Float64Array.from(words, h => {
    const e = h >> 10 & 31, m = h & 1023;
    return (h >> 15 ? -1 : 1) * (e ? 2 ** (e - 15) * (1 + m / 1024) : 2 ** -24 * m);
  });
}

/* Layers: [{name, size, fan}], in the order in which torch draws them. */
function weightsOf(kind, layers, seed = 0) {
  if (kind === 'trained') {
    const all = halves(parts.trained);
    let at = 0;
    return layers.map(({ size }) => all.slice(at, at += size));
  }
  const draw = uniforms(seed), bound = { uniform: () => 0.5, quarter: () => 0.25, pytorch: fan => 1 / Math.sqrt(fan) }[kind];
  return layers.map(({ size, fan }) => draw(size, -bound(fan), bound(fan)));
}

/* The gradient of the loss of these pictures, layer by layer. */
function gradientOf(images, labels, weights, open) {
  const client = load(tapeFor(open ? 'open' : 'gradient', labels.length), kernels), layers = parts.layers[open ? 'open' : 'lenet'];
  layers.forEach(({ name }, i) => client.inputs['w.' + name].set(weights[i]));
  client.inputs.x.set(images);
  client.inputs.y.set(unit(labels));
  return client.run().map(g => g.slice());
}

function unit(labels) {
  const y = new Float64Array(labels.length * CLASSES);
  labels.forEach((k, i) => { y[i * CLASSES + k] = 1; });
  return y;
}

const toEven = v => { const r = Math.round(v); return Math.abs(v % 1) === 0.5 && r % 2 ? r - 1 : r; };

function half(value) { /* to the nearest of half precision, as torch does it: by way of float32 */
  const v = Math.fround(value), size = Math.abs(v);
  if (size >= 65520) return Math.sign(v) * Infinity;
  const step = 2 ** (Math.max(Math.floor(Math.log2(size || 1e-9)), -14) - 10);
  return toEven(v / step) * step;
}

/* What the client sends instead of his gradient: once, whatever the attacker begins with. */
function defend(gradient, { defence, sigma, share }) {
  if (defence === 'noise') {
    const draw = normals(7919);
    return gradient.map(g => { const n = draw(g.length); return g.map((v, i) => v + sigma * n[i]); });
  }
  if (defence === 'half') return gradient.map(g => g.map(half));
  if (defence === 'int8') return gradient.map(g => {
    const scale = g.reduce((most, v) => Math.max(most, Math.abs(v)), 0) / 127;
    return scale ? g.map(v => scale * toEven(v / scale)) : g;
  });
  if (defence === 'prune') {
    const sizes = gradient.flatMap(g => [...g].map(Math.abs)), kept = gradient.map(g => g.slice());
    const order = sizes.map((_, i) => i).sort((i, j) => sizes[i] - sizes[j] || i - j);
    const ends = kept.map((total => g => total += g.length)(0));
    for (const i of order.slice(0, Math.floor(share * sizes.length / 100))) {
      const k = ends.findIndex(end => i < end);
      kept[k][i - ends[k] + kept[k].length] = 0;
    }
    return kept;
  }
  return gradient;
}

/* --- the attacker ----------------------------------------------------------------------------------- */

/* The labels, read off the gradient of the last layer's weights, one row a class. */
function readLabels(message, rule, batch) {
  const last = message[message.length - 2], width = last.length / CLASSES;
  const rows = Array.from({ length: CLASSES }, (_, k) => last.subarray(k * width, (k + 1) * width));
  const sums = rows.map(row => row.reduce((sum, v) => sum + v, 0)), lowest = rows.map(row => Math.min(...row));
  const ranked = of => of.map((_, k) => k).sort((i, j) => of[i] - of[j] || i - j);
  if (rule === 'cpl') return Array(batch).fill(ranked(sums)[0]); /* one class for all of them */
  if (batch === 1) return [ranked(sums)[0]];
  return ranked(lowest).slice(0, batch).sort((i, j) => i - j); /* GradInversion's: each class once */
}

function start(name, batch, seed) {
  const uniform = uniforms(seed), normal = normals(seed), n = batch * PIXELS;
  const folded = folds => { /* a quadrant, repeated; the quadrant may be made so itself */
    const side = 32 >> folds, small = uniform(batch * 3 * side * side, 0, 1);
    return Float64Array.from({ length: n }, (_, i) => {
      const z = i & 31, y = i >> 5 & 31, c = i >> 10;
      return small[(c * side + y % side) * side + z % side];
    });
  };
  switch (name) {
    case 'normal': return normal(n);
    case 'normal_half': return normal(n).map(v => 0.5 + v);
    case 'uniform_centred': return uniform(n, -0.5, 0.5);
    case 'grey': return normal(n).map(v => 0.5 + 0.2 * v);
    case 'flat_grey': return new Float64Array(n).fill(0.5);
    case 'black': return new Float64Array(n);
    case 'white': return new Float64Array(n).fill(1);
    case 'level-1': return folded(1);
    case 'level-2': return folded(2);
    case 'uniform': return uniform(n, 0, 1);
    default: throw new Error(`there is no start ${name}`);
  }
}

/* An attack that descends: to a gradient that agrees. */
class Descent {
  constructor(message, weights, batch, s) {
    const tape = load(tapeFor(s.attack, batch), kernels), joint = s.attack === 'dlg', n = batch * PIXELS;
    const masked = s.defence === 'prune' && s.masked;
    parts.layers.lenet.forEach(({ name }, i) => {
      tape.inputs['g.' + name].set(message[i]);
      tape.inputs['w.' + name].set(weights[i]);
      tape.inputs['m.' + name].set(message[i].map(v => masked && v === 0 ? 0 : 1));
    });
    const square = message.reduce((sum, g) => g.reduce((total, v) => total + v * v, sum), 0);
    this.enough = SOLVED * (s.attack === 'cosine' ? 1 : square);
    for (const [name, value] of [['c.pull', s.alpha], ['c.tv_mean', s.tv]]) if (name in tape.inputs) tape.inputs[name][0] = value;
    const x = kernels.alloc(n + (joint ? batch * CLASSES : 0)), slope = kernels.alloc(x.length);
    x.set(start(s.start, batch, s.seed));
    if (joint) x.set(normals(s.seed + 1)(batch * CLASSES), n);
    else {
      this.read = readLabels(message, s.attack, batch);
      tape.inputs.y.set(unit(this.read));
    }
    const value = () => {
      tape.inputs.x.set(x.subarray(0, n));
      if (joint) tape.inputs.y.set(x.subarray(n));
      const [loss, pixels, logits] = tape.run();
      slope.set(pixels);
      if (joint) slope.set(logits, n);
      return loss[0];
    };
    const objective = { x, slope, value };
    this.solver = s.solver === 'adam' ? new Adam(kernels, objective)
      : new LBFGS(kernels, objective, { history: batch > 2 ? 50 : 100, search: s.solver === 'wolfe' });
    Object.assign(this, { images: x.subarray(0, n), logits: joint ? x.subarray(n) : null, batch });
  }

  get labels() {
    if (!this.logits) return this.read;
    return Array.from({ length: this.batch }, (_, i) => {
      const row = this.logits.subarray(i * CLASSES, (i + 1) * CLASSES);
      return row.indexOf(Math.max(...row));
    });
  }

  get evaluations() { return this.solver.evaluations; }
  get loss() { return this.solver.loss; }

  iterate() {
    if (!this.solver.iterate()) return this.solver.stalled ? 'stalled' : 'diverged';
    if (!this.images.every(Number.isFinite)) return 'diverged';
    if (this.loss <= this.enough) return 'solved';
    if (this.solver.stalled) return 'stalled';
    return this.evaluations >= LIMIT * this.batch ? 'limit' : '';
  }
}

/* No descent: a first layer that is fully connected sends δ·x and δ, and a division is left. With
   several pictures a unit sends a mixture of those that it is on for: one alone if only one, and
   then two units agree to the last digit, which mixtures do not. */
class Division {
  constructor(message, weights, batch) {
    const [slopes, deltas] = message, size = PIXELS;
    this.labels = readLabels(message, 'idlg', batch);
    const quotient = k => slopes.subarray(k * size, (k + 1) * size).map(v => v / deltas[k]);
    const units = [...deltas.keys()].filter(k => deltas[k] !== 0).sort((i, j) => Math.abs(deltas[j]) - Math.abs(deltas[i]));
    const traits = units.map(k => [0, 331, 977, 1500, 2222, 3071].map(i => slopes[k * size + i] / deltas[k]));
    const same = (a, b) => a.every((v, i) => Math.abs(v - b[i]) <= 1e-9 * (1 + Math.abs(v)));
    const found = [];
    traits.forEach((a, i) => {
      if (found.length < batch && !found.some(k => same(a, traits[k])) && traits.some((b, j) => j > i && same(a, b))) found.push(i);
    });
    this.sure = found.length;
    for (let i = 0; found.length < batch && i < units.length; i++) if (!found.includes(i)) found.push(i);
    this.images = new Float64Array(batch * size).fill(0.5);
    found.forEach((i, place) => this.images.set(quotient(units[i]), place * size));
    Object.assign(this, { evaluations: 0, loss: 0 });
  }

  iterate() { return 'divided'; }
}

/* --- the judge -------------------------------------------------------------------------------------- */

function permutations(n) {
  if (n === 1) return [[0]];
  return permutations(n - 1).flatMap(p => Array.from({ length: n }, (_, k) => [...p.slice(0, k), n - 1, ...p.slice(k)]));
}

/* Mean PSNR in the best order, and that order: which of the found pictures stands for which. */
function judgeOf(truth) {
  const batch = truth.length / PIXELS, orders = permutations(batch);
  return images => {
    const errors = Array.from({ length: batch }, (_, i) => Array.from({ length: batch }, (_, j) => {
      let sum = 0;
      for (let k = 0; k < PIXELS; k++) {
        const d = Math.min(1, Math.max(0, images[j * PIXELS + k])) - truth[i * PIXELS + k];
        sum += d * d;
      }
      return sum / PIXELS;
    }));
    const total = order => order.reduce((sum, j, i) => sum + errors[i][j], 0);
    const order = orders.reduce((best, one) => total(one) < total(best) ? one : best);
    const each = order.map((j, i) => Math.min(100, -10 * Math.log10(errors[i][j] + 1e-30)));
    return { order, each, psnr: each.reduce((sum, v) => sum + v, 0) / batch };
  };
}

/* --- what the page asks for ------------------------------------------------------------------------- */

function frame(more) {
  const seen = judge(attack.images);
  postMessage({ token, images: Float32Array.from(attack.images), labels: attack.labels, ...seen, spent, ...more });
}

function work(mine, once = false) {
  if (mine !== token || !(on || once)) return;
  const began = performance.now(), points = [];
  let end = '';
  do {
    end = attack.iterate();
    points.push([attack.evaluations, attack.loss, judge(attack.images).psnr]);
  } while (!end && !once && performance.now() - began < PACES[pace]);
  spent += performance.now() - began;
  if (end || once) on = false;
  frame({ what: 'frame', points, end, sure: attack.sure });
  if (on) timer = setTimeout(() => guarded(mine), PAUSE[pace]);
}

function guarded(mine) {
  try { work(mine); } catch (error) { broken(error, mine); }
}

function broken(error, number) {
  on = false;
  postMessage({ what: 'broken', token: number, words: error.message });
}

const actions = {
  async init(given) {
    parts = given;
    try {
      kernels = given.plain ? plain() : await compiled(Uint8Array.from(atob(given.kernels), c => c.charCodeAt(0)));
    } catch { kernels = plain(); } /* no WebAssembly here: the same, slower */
    floor = kernels.mark();
    postMessage({ what: 'ready', kernels: kernels.name });
  },
  share({ images, labels, settings, number }) {
    token = number;
    on = false;
    spent = 0;
    const open = settings.attack === 'division', batch = labels.length, layers = parts.layers[open ? 'open' : 'lenet'];
    kernels.release(floor);
    const weights = weightsOf(open ? 'pytorch' : settings.weights, layers);
    const gradient = gradientOf(images, labels, weights, open), message = defend(gradient, settings);
    kernels.release(floor);
    attack = open ? new Division(message, weights, batch) : new Descent(message, weights, batch, settings);
    judge = judgeOf(images);
    const flat = new Float32Array(126 * 126), count = message.reduce((sum, g) => sum + g.length, 0);
    let at = 0;
    for (const g of message) for (let i = 0; i < g.length && at < flat.length; i++) flat[at++] = g[i];
    const zeros = update => update.reduce((sum, g) => sum + g.filter(v => v === 0).length, 0);
    if (open) attack.shown = new Float64Array(images.length).fill(0.5);
    const held = attack.images;
    if (open) attack.images = attack.shown; /* nothing is shown before the button is pressed */
    frame({ what: 'shared', sent: flat, count, zeros: zeros(message), before: zeros(gradient), used: kernels.mark() });
    attack.images = held;
  },
  run() { clearTimeout(timer); on = true; work(token); },
  pause() { clearTimeout(timer); on = false; },
  step() { clearTimeout(timer); on = false; work(token, true); },
  pace(given) { pace = given.pace; },
};

let before = Promise.resolve(); /* the kernels are compiled before the first attack is asked for */
onmessage = ({ data }) => {
  before = before.then(() => actions[data.what](data))
    .catch(error => broken(error, data.number ?? token));
};
