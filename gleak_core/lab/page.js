/* The page of the lab: what the reader turns and sees. The attacks run in workers. */
(() => {
  'use strict';

  const $ = id => document.getElementById(id);
  const parts = JSON.parse($('parts').textContent), { names } = parts;
  const SIDE = 32, AREA = SIDE * SIDE, PIXELS = 3 * AREA;
  const HUGE = 60e6; // bytes of a file

  /* --- what can be turned ------------------------------------------------------------------------- */

  const CHOICES = { // a title, and the options by their values; none: a box to tick
    attack: ['Attack', {
      idlg: 'iDLG: read the label, fit the picture', dlg: 'DLG: fit picture and label together',
      cpl: 'CPL: read the label, let it pull', cosine: 'the angle, and total variation',
      division: 'no optimisation: one division',
    }],
    start: ['Start', {
      uniform: 'noise, U(0, 1)', normal: 'noise, N(0, 1), as published', normal_half: 'noise, N(½, 1)',
      uniform_centred: 'noise, U(−½, ½)', grey: 'grey, a little noise', flat_grey: 'flat grey', black: 'black',
      white: 'white', 'level-1': 'pattern, 4 quadrants', 'level-2': 'pattern, 16 parts',
    }],
    solver: ['Optimiser', {
      wolfe: 'L-BFGS, line search', plain: 'L-BFGS as DLG was published', adam: 'Adam, rate 0.05',
    }],
    weights: ['Weights', {
      uniform: 'untrained, U(±½), as published', quarter: 'untrained, U(±¼)',
      pytorch: 'untrained, PyTorch’s default', trained: 'trained on crops of the photographs',
    }],
    defence: ['Defence', {
      none: 'none', noise: 'noise on the gradient', prune: 'prune the small entries', half: 'half precision', int8: '8-bit integers',
    }],
    sigma: ['Noise, standard deviation', Object.fromEntries(
      [[1e-6, '0.000001'], [1e-5, '0.00001'], [1e-4, '0.0001'], [1e-3, '0.001'], [1e-2, '0.01'], [1e-1, '0.1']])],
    share: ['Entries set to zero', Object.fromEntries([10, 30, 50, 70, 90, 99].map(n => [n, `${n} %`]))],
    masked: ['The attacker ignores what was pruned', null],
    alpha: ['Pull of the label, α', { 0: '0', 0.0001: '0.0001', 0.001: '0.001', 0.01: '0.01', 0.1: '0.1' }],
    tv: ['Weight of total variation', { 0: '0', 0.0001: '0.0001', 0.001: '0.001', 0.01: '0.01', 0.1: '0.1' }],
  };
  const DEFAULTS = {
    attack: 'idlg', start: 'uniform', solver: 'wolfe', weights: 'uniform', defence: 'none',
    sigma: '0.001', share: '70', masked: '', alpha: '0.001', tv: '0.0001', seed: '1',
  };
  const NUMBERS = new Set(['sigma', 'share', 'alpha', 'tv', 'seed']);
  const PRESETS = { // addresses, as `fragment` writes them
    '': 'a preset…',
    'attack=dlg&start=normal&seed=3&race=1&b.attack=dlg&b.start=normal&b.solver=plain&b.seed=3': 'line search against none (race)',
    'race=1&b.start=normal': 'two starts (race)',
    'defence=noise&sigma=0.0001&race=1&b.defence=noise&b.sigma=0.01': 'little noise, much noise (race)',
    'defence=prune&race=1&b.defence=prune&b.share=30': 'prune 70 %, prune 30 % (race)',
    'defence=half&race=1&b.defence=int8': 'half precision, 8 bits (race)',
    'weights=pytorch&race=1&b.weights=pytorch&b.defence=half': 'default weights, exact and rounded (race)',
    'weights=trained&race=1&b.attack=cosine&b.weights=trained&b.tv=0': 'a trained network: distance, angle (race)',
    'picture=cat,rocket': 'two pictures at once (takes a minute)',
    'attack=division': 'no optimisation at all',
    'picture=cat,flower,rocket,temple&attack=division': 'four pictures by division',
  };

  const applies = { // when a control matters
    sigma: s => s.defence === 'noise', share: s => s.defence === 'prune', masked: s => s.defence === 'prune' && s.attack !== 'division',
    alpha: s => s.attack === 'cpl', tv: s => s.attack === 'cosine',
    start: s => s.attack !== 'division', solver: s => s.attack !== 'division', weights: s => s.attack !== 'division',
  };

  /* --- the pictures ------------------------------------------------------------------------------- */

  const state = { pictures: [], slot: 0, race: false, running: false, number: 0, lanes: [], samples: {}, address: '' };
  window.lab = Object.assign(state, { CHOICES, DEFAULTS, outcome, between, restore }); // for the tests, and the curious

  function paint(canvas, x, at = 0) {
    const context = canvas.getContext('2d'), data = context.createImageData(SIDE, SIDE);
    for (let i = 0; i < AREA; i++) {
      for (let k = 0; k < 3; k++) data.data[4 * i + k] = Math.round(255 * Math.min(1, Math.max(0, x[at + k * AREA + i])));
      data.data[4 * i + 3] = 255;
    }
    context.putImageData(data, 0, 0);
  }

  function pixelsOf(canvas, left = 0) {
    const { data } = canvas.getContext('2d', { willReadFrequently: true }).getImageData(left, 0, SIDE, SIDE), x = new Float64Array(PIXELS);
    for (let i = 0; i < AREA; i++) for (let k = 0; k < 3; k++) x[k * AREA + i] = data[4 * i + k] / 255;
    return x;
  }

  function canvasOf(width, height = width, label = '') {
    const canvas = Object.assign(document.createElement('canvas'), { width, height });
    if (label) { canvas.setAttribute('role', 'img'); canvas.setAttribute('aria-label', label); }
    return canvas;
  }

  /* The middle square of a picture or a video, 32×32: halved until it is near, so that every pixel counts. */
  function shrink(source, width, height) {
    let side = Math.min(width, height), from = canvasOf(Math.min(side, 1024));
    const draw = (to, ...rest) => {
      const context = to.getContext('2d');
      context.imageSmoothingQuality = 'high';
      context.drawImage(...rest, 0, 0, to.width, to.height);
      return to;
    };
    draw(from, source, (width - side) / 2, (height - side) / 2, side, side);
    for (side = from.width; side > 2 * SIDE; side = from.width) from = draw(canvasOf(Math.ceil(side / 2)), from, 0, 0, side, side);
    return pixelsOf(draw(canvasOf(SIDE), from, 0, 0, side, side));
  }

  async function openFile(file) {
    if (!file) return;
    if (file.size > HUGE) return refuse(`This file has ${Math.round(file.size / 1e6)} MB, more than the lab opens: make it smaller than ${HUGE / 1e6} MB.`);
    let bitmap;
    try { bitmap = await createImageBitmap(file); }
    catch { return refuse('The browser cannot read this file as a picture: take a JPEG, a PNG or a WebP.'); }
    const x = shrink(bitmap, bitmap.width, bitmap.height);
    bitmap.close();
    put({ x, name: 'your own picture', label: state.pictures[state.slot].label });
  }

  /* Nothing runs on that could talk over a sentence. */
  function refuse(words) {
    stop();
    say(words);
  }

  function put(picture) {
    state.pictures[state.slot] = picture;
    if (state.pictures.length > 1) state.slot = (state.slot + 1) % state.pictures.length;
    drawSlots();
    share();
  }

  function resize(batch) {
    const free = names.filter(n => !state.pictures.some(p => p.name === n));
    while (state.pictures.length > batch) state.pictures.pop();
    while (state.pictures.length < batch) state.pictures.push(state.samples[free.shift()]);
    state.slot = Math.min(state.slot, batch - 1);
    $('batch').value = batch;
    drawSlots();
  }

  function drawSlots() {
    const held = $('slots').contains(document.activeElement), many = state.pictures.length > 1;
    $('slots').className = many ? 'slots many' : 'slots';
    $('slots').replaceChildren(...state.pictures.map((picture, i) => {
      const box = Object.assign(document.createElement('div'), { className: 'slot' });
      const canvas = canvasOf(SIDE, SIDE, `Private picture ${many ? i + 1 : ''}: ${picture.name}`);
      paint(canvas, picture.x);
      if (many) {
        const button = Object.assign(document.createElement('button'), { type: 'button', onclick: () => { state.slot = i; drawSlots(); } });
        button.setAttribute('aria-pressed', String(i === state.slot));
        button.setAttribute('aria-label', `Picture ${i + 1}, ${picture.name}: choose what stands here`);
        box.classList.toggle('chosen', i === state.slot);
        canvas.setAttribute('aria-hidden', 'true');
        button.append(canvas);
        box.append(button);
      } else box.append(canvas);
      const select = document.createElement('select');
      select.setAttribute('aria-label', `Class of picture ${i + 1}`);
      names.forEach((name, k) => select.add(new Option(name, k)));
      select.value = picture.label;
      select.onchange = () => { state.pictures[i] = { ...picture, label: +select.value }; share(); };
      box.append(select);
      return box;
    }));
    if (held) $('slots').querySelectorAll('button')[state.slot]?.focus();
    for (const button of $('samples').children) {
      button.setAttribute('aria-pressed', String(state.pictures.some(p => p.name === button.dataset.name)));
    }
  }

  /* --- lanes: a setting, its worker, what is seen of it ---------------------------------------------- */

  class Lane {
    constructor(index) {
      Object.assign(this, { index, settings: { ...DEFAULTS }, points: [], last: null, end: '' });
      this.element = $('lane').content.cloneNode(true).firstElementChild;
      const find = what => this.element.querySelector(what);
      Object.assign(this, {
        title: find('h2'), sent: find('.sent'), rebuilt: find('.rebuilt'), what: find('.what'), now: find('.now'), read: find('.read'),
        controls: {}, boxes: {},
      });
      this.title.id = `lane-${index}`;
      this.element.setAttribute('aria-labelledby', this.title.id);
      for (const [name, [words, options]] of Object.entries(CHOICES)) this.control(find('.settings'), name, words, options);
      this.open();
    }

    open() {
      const code = URL.createObjectURL(new Blob([$('work').textContent], { type: 'text/javascript' }));
      this.worker = new Worker(code);
      URL.revokeObjectURL(code);
      this.worker.onmessage = ({ data }) => this.hear(data);
      this.worker.onerror = event => refuse(`The attack broke off (${event.message}): reload the page.`);
      this.worker.postMessage({ what: 'init', ...parts.work, plain: state.plain });
    }

    control(parent, name, words, options) {
      const label = document.createElement('label'), id = `${name}-${this.index}`;
      const control = options ? document.createElement('select') : Object.assign(document.createElement('input'), { type: 'checkbox' });
      control.id = id;
      if (options) {
        for (const [value, text] of Object.entries(options)) control.add(new Option(text, value));
        label.append(words, control);
      } else {
        label.className = 'check';
        label.append(control, words);
      }
      control.onchange = () => {
        this.settings[name] = options ? control.value : control.checked ? '1' : '';
        this.show();
        share();
      };
      this.controls[name] = control;
      this.boxes[name] = label;
      parent.append(label);
    }

    show() {
      for (const [name, control] of Object.entries(this.controls)) {
        if (control.type === 'checkbox') control.checked = this.settings[name] === '1';
        else control.value = this.settings[name];
        this.boxes[name].hidden = applies[name] ? !applies[name](this.settings) : false;
      }
      this.title.textContent = state.race ? `Attacker ${'AB'[this.index]}: ${this.words()}` : `The attacker: ${this.words()}`;
    }

    words() {
      const s = this.settings, chosen = name => CHOICES[name][1][s[name]];
      const told = [chosen('attack').split(':')[0]];
      if (s.attack !== 'division' && s.start !== DEFAULTS.start) told.push(chosen('start'));
      if (s.attack !== 'division' && s.solver !== DEFAULTS.solver) told.push(s.solver === 'plain' ? 'no line search' : 'Adam');
      if (s.attack !== 'division' && s.weights !== DEFAULTS.weights) told.push(chosen('weights'));
      if (s.defence !== 'none') told.push(s.defence === 'noise' ? `noise ${chosen('sigma')}` : s.defence === 'prune' ? `${s.share} % pruned${s.masked ? ', seen through' : ''}` : chosen('defence'));
      return told.join(', ');
    }

    share() {
      Object.assign(this, { points: [], end: '', last: null, heard: 0, shared: false });
      const numbers = Object.fromEntries(Object.entries(this.settings).map(([k, v]) => [k, NUMBERS.has(k) ? +v : v]));
      const images = Float64Array.from(state.pictures.flatMap(p => [...p.x])), labels = state.pictures.map(p => p.label);
      this.worker.postMessage({ what: 'share', images, labels, settings: numbers, number: state.number });
    }

    hear(data) {
      if (data.what === 'ready') {
        this.kernels = data.kernels;
        return;
      }
      if (data.token !== state.number) return; // of a run before
      if (data.what === 'broken') {
        this.end = 'broken';
        return refuse(`The attack broke off: ${data.words}. Choose other settings, or fewer pictures.`);
      }
      this.paint(data);
      if (data.what === 'shared') return this.told(data);
      this.points.push(...data.points);
      this.last = data;
      this.end = data.end;
      this.report();
      chart();
      button();
      if (data.end) finished();
      else if (!state.running) say(`Paused. ${explain()}`);
      else if (!state.race) this.announce();
    }

    paint({ images, order }) {
      const many = order.length;
      this.rebuilt.className = many > 1 ? 'rebuilt slots many' : 'rebuilt slots';
      while (this.rebuilt.children.length > many) this.rebuilt.lastChild.remove();
      while (this.rebuilt.children.length < many) this.rebuilt.append(canvasOf(SIDE, SIDE, 'noise'));
      order.forEach((j, i) => paint(this.rebuilt.children[i], images, j * PIXELS));
    }

    told({ sent, count, zeros, before, labels, psnr, used }) {
      this.used = used; // bytes: the same after every run
      gradientPicture(this.sent, sent);
      const share = n => `${Math.round(100 * n / count)} %`, all = count.toLocaleString('en'), shown = Math.min(count, sent.length).toLocaleString('en');
      const pruned = this.settings.defence === 'prune' ? `, ${share(zeros)} of them zero${before > count / 100 ? ` (${share(before)} were before)` : ''}` : '';
      this.what.textContent = `${shown === all ? all : `the first ${shown} of ${all}`} numbers${pruned}`;
      this.sent.setAttribute('aria-label', `The gradient as a picture: ${all} numbers, blue below zero, orange above.`);
      this.kept = count - zeros;
      this.now.textContent = this.settings.attack === 'division' ? 'not yet divided' : `the start, PSNR ${psnr.toFixed(1)} dB`;
      this.read.textContent = this.settings.attack === 'dlg' ? 'label: to be found' : this.readWords(labels);
      [...this.rebuilt.children].forEach(c => c.setAttribute('aria-label', 'The start of the attack'));
      this.shared = true;
      chart();
    }

    readWords(read) {
      const true_ = state.pictures.map(p => p.label), right = sorted(read).join() === sorted(true_).join();
      const said = [...new Set(read)].map(k => names[k]).join(', ');
      return `${read.length > 1 ? 'labels' : 'label'} ${this.settings.attack === 'dlg' ? 'found' : 'read'}: ${said} ${right ? '✓' : '✗ wrong'}`;
    }

    /* Said once each, on the way: the attacker, who knows no PSNR, goes on. */
    announce() {
      const { psnr } = this.last, n = this.points.at(-1)[0], s = ` after ${n} evaluations and ${(this.last.spent / 1000).toFixed(1)} s`;
      const many = state.pictures.length > 1;
      if (psnr >= 30 && this.heard < 30) say(`${many ? 'The pictures are' : 'The picture is'} back: PSNR 30 dB${s}. The attacker, who cannot know, goes on until the gradient agrees.`);
      else if (psnr >= 20 && this.heard < 20) say(`${many ? 'The pictures begin' : 'The picture begins'} to show: PSNR 20 dB${s}.`);
      else return;
      this.heard = psnr >= 30 ? 30 : 20;
    }

    report() {
      const { psnr, spent, labels } = this.last, [evaluations] = this.points.at(-1), slow = this.kernels === 'JavaScript' ? ', without WebAssembly' : '';
      const many = this.settings.attack === 'division' ? 'one division' : `${evaluations} evaluations, ${(spent / 1000).toFixed(1)} s${slow}`;
      this.now.textContent = `PSNR ${psnr.toFixed(1)} dB · ${many}`;
      this.read.textContent = this.readWords(labels);
      [...this.rebuilt.children].forEach((c, i) => c.setAttribute('aria-label', `Rebuilt picture ${i + 1}, PSNR ${this.last.each[i].toFixed(1)} dB`));
    }
  }

  const sorted = list => [...list].sort((a, b) => a - b);

  function gradientPicture(canvas, g) {
    const context = canvas.getContext('2d'), data = context.createImageData(126, 126);
    const most = g.reduce((m, v) => Math.max(m, Math.abs(v)), 0) || 1, low = [33, 102, 172], high = [200, 90, 10], grey = [247, 247, 245];
    g.forEach((v, i) => {
      const t = Math.min(1, (Math.abs(v) / most) ** 0.35), to = v < 0 ? low : high;
      for (let k = 0; k < 3; k++) data.data[4 * i + k] = grey[k] + (to[k] - grey[k]) * t;
      data.data[4 * i + 3] = 255;
    });
    context.putImageData(data, 0, 0);
  }

  /* --- running ------------------------------------------------------------------------------------ */

  const active = () => state.lanes.slice(0, state.race ? 2 : 1);
  const every = what => active().forEach(lane => lane.worker.postMessage(what));

  function share() {
    state.number++;
    state.running = false;
    active().forEach(lane => lane.share());
    state.lanes.slice(active().length).forEach(lane => lane.worker.postMessage({ what: 'pause' }));
    button();
    const s = active()[0].settings;
    say(state.race ? 'Both attackers get the same pictures’ gradient, each as his client defends it. Press Attack.'
      : s.attack === 'division' ? 'This network’s first layer is fully connected. Press Attack: there is nothing to optimise.'
        : 'The client has sent the gradient of one training step, nothing else. Press Attack.');
    remember();
  }

  function button() {
    const over = active().every(lane => lane.end), fresh = active().every(lane => !lane.points.length);
    $('go').textContent = state.running ? 'Pause' : over && !fresh ? 'Again' : fresh ? 'Attack' : 'Continue';
    $('step').disabled = state.running || over;
  }

  function go() {
    if (state.running) {
      every({ what: 'pause' });
      state.running = false;
      say(`Paused. ${explain()}`); // and again with the frame that is on its way
    } else {
      if (active().every(lane => lane.end)) share();
      state.running = true;
      every({ what: 'pace', pace: $('pace').value });
      active().filter(lane => !lane.end).forEach(lane => lane.worker.postMessage({ what: 'run' }));
      say(active()[0].settings.attack === 'division' ? 'Dividing…' : 'The attacker changes his picture until its gradient agrees with the one that was sent…');
    }
    button();
  }

  function stop() {
    every({ what: 'pause' });
    state.running = false;
    button();
  }

  function finished() {
    if (!active().every(lane => lane.end)) return;
    stop();
    say(explain());
  }

  function say(words) { $('story').textContent = words; }

  /* What just happened, and why. */
  function explain() {
    if (!active().some(lane => lane.last)) return '';
    if (!state.race) return outcome(state.lanes[0]);
    return [between(), ...active().map(lane => `${'AB'[lane.index]}: ${lane.last ? outcome(lane) : lane.end ? 'broke off.' : 'has not begun.'}`)].join(' ');
  }

  /* Who was first at a picture that is clear. */
  function between() {
    const [a, b] = active().map(lane => lane.points.find(p => p[2] >= 30)?.[0] ?? Infinity), least = Math.min(a, b);
    const over = active().every(lane => lane.end), cost = n => n === 0 ? 'by division' : `after ${n} evaluations`;
    if (least === Infinity) return '';
    const first = a < b ? 'A' : 'B', other = a < b ? 'B' : 'A', last = Math.max(a, b);
    if (a === b) return `Both reach 30 dB ${cost(a)}.`;
    if (last === Infinity) return `${over ? 'Only' : 'So far only'} ${first} reaches 30 dB, ${cost(least)}.`;
    return `${first} is first at 30 dB, ${cost(least)}; ${other} gets there ${cost(last)}.`;
  }

  const HIDES = { // what a defence does, as a verb
    noise: s => `noise of ${CHOICES.sigma[1][s.sigma]} covers`, prune: s => `pruning ${s.share} % takes away`,
    half: () => 'rounding to half precision takes away', int8: () => 'rounding to 8 bits takes away',
  };

  function outcome(lane) {
    const { settings: s, last, end } = lane, [evaluations, loss] = lane.points.at(-1), { psnr, spent } = last;
    const cost = `${evaluations} evaluations, ${(spent / 1000).toFixed(1)} s`, clear = psnr >= 30, batch = state.pictures.length;
    if (end === 'divided') return divided(lane);
    if (end === 'diverged') {
      return `The run flew apart after ${evaluations} evaluations: ${s.solver === 'plain' ? 'without a line search a step can be too long, and nothing calls it back. Choose the line search, or another start' : 'choose another start, or L-BFGS with a line search'}.`;
    }
    if (clear && s.defence === 'none') {
      const label = s.attack === 'dlg' ? 'was found on the way' : s.attack === 'cpl' || batch === 1 ? 'was read off the last layer’s gradient first' : 'of each was read off the last layer’s gradient first';
      return `${batch > 1 ? 'The pictures are' : 'The picture is'} back (PSNR ${psnr.toFixed(1)} dB; ${cost}), out of the gradient, the network and its weights; the label ${label}.`;
    }
    if (clear) {
      const why = s.defence === 'noise' ? 'this noise is too small beside the gradient'
        : s.defence === 'prune' ? `${lane.kept.toLocaleString('en')} entries are left, and there are ${(PIXELS * batch).toLocaleString('en')} values to find`
          : 'rounding changes the gradient less than the picture does';
      return `The defence does not help: PSNR ${psnr.toFixed(1)} dB after ${cost}; ${why}.`;
    }
    const quality = `${psnr >= 20 ? 'A picture can be recognised' : 'No clear picture'} (PSNR ${psnr.toFixed(1)} dB; ${cost})`;
    return end ? `${quality}: ${reason(lane, evaluations, loss, batch)}` : `${quality} so far.`;
  }

  /* Why an attack that ended has no clear picture. */
  function reason(lane, evaluations, loss, batch) {
    const { settings: s, last, end } = lane, said = [...new Set(last.labels)].map(k => names[k]).join(', ');
    const wrong = s.attack !== 'dlg' && sorted(last.labels).join() !== sorted(state.pictures.map(p => p.label)).join();
    if (wrong && s.attack === 'cpl' && batch > 1) return 'CPL takes one label for the whole batch, and these pictures have several.';
    if (wrong && s.defence !== 'none') return `the label was read wrong (${said}), as the defence has changed the last layer’s gradient as well.`;
    if (wrong && batch > 1) return `the labels were read wrong (${said}): the rule gives each class once, and small entries mislead it.`;
    if (wrong) return `the label is wrong (${said}), and with a wrong label no picture has this gradient.`;
    if (s.defence === 'prune' && !s.masked) return `the attacker fits the ${s.share} % zeros that the client made. Let him ignore what was pruned, and look again.`;
    if (s.defence === 'prune') return `what is left, ${lane.kept.toLocaleString('en')} entries for ${(PIXELS * batch).toLocaleString('en')} values, says too little, even to an attacker who ignores the zeros.`;
    if (s.defence !== 'none') return `${HIDES[s.defence](s)} the small differences that pixels make in the gradient.${s.defence === 'noise' ? ' The client’s own training has to live with it, too.' : ''}`;
    if (end === 'solved') return 'the gradient agrees to four digits all the same. With these weights very different pictures have almost the same gradient: agreement is no proof of a picture.';
    const losses = lane.points.map(p => p[1]), tenth = Math.ceil(losses.length / 10), least = values => Math.min(...values);
    const falls = least(losses.slice(-tenth)) < 0.98 * least(losses.slice(0, -tenth));
    if (end === 'limit' && falls) return `the ${evaluations} evaluations of this page are used up, and the loss still falls (${loss.toExponential(0)}). An attacker has more time.`;
    if (s.solver === 'plain') return `the loss (${loss.toExponential(0)}) falls no more. Without a line search a step that was too long is not taken back, and the run has lost its way: choose the line search.`;
    if (s.weights === 'trained' && s.attack !== 'cosine') return `the squared distance is stuck at ${loss.toExponential(0)}. A trained network answers noise with a far greater gradient than its own pictures: try the angle, which ignores size.`;
    return `the loss (${loss.toExponential(0)}) falls no more: the descent lies in a valley that is not the picture’s. Try new starting noise.`;
  }

  function divided(lane) {
    const batch = state.pictures.length, { sure, psnr } = lane.last, s = lane.settings, defended = s.defence !== 'none';
    if (psnr < 30 && defended) return `The division gives PSNR ${psnr.toFixed(1)} dB: it trusts every digit, and ${HIDES[s.defence](s)} some.`;
    if (psnr < 99 && defended) return `The division gives PSNR ${psnr.toFixed(1)} dB: the defence spoils digits, and not the picture.`;
    if (batch === 1) return `The picture, to the last digit (PSNR ${psnr.toFixed(0)} dB), without one step of optimisation: a fully connected layer sends δ·x as the gradient of its weights and δ as that of its bias. The quotient is x.`;
    const each = lane.last.each.filter(one => one >= 99).length;
    return `${each} of ${batch} pictures to the last digit: a unit that is on for one picture only sends that picture alone. Two such units agree exactly, which is how the attacker knows them (here of ${sure}); ${each < batch ? 'the others show mixtures' : 'no picture was hidden among the others'}.`;
  }

  /* --- curves ------------------------------------------------------------------------------------- */

  function chart() {
    const lanes = active(), end = Math.max(200, ...lanes.map(l => l.points.at(-1)?.[0] ?? 0));
    draw($('psnr'), 'PSNR in dB', lanes, 2, end, 0, 60, v => v, v => `${v}`, [0, 20, 40, 60], v => `${v.toFixed(1)} dB`);
    draw($('loss'), 'what the attacker minimises', lanes, 1, end, -9, 3, v => Math.log10(Math.max(v, 1e-12)), v => `1e${v}`, [-9, -6, -3, 0, 3], v => v.toExponential(1));
  }

  function draw(svg, title, lanes, column, end, low, high, map, tick, ticks, words) {
    const L = 50, R = 452, T = 28, B = 170, X = e => L + (R - L) * e / end, Y = v => B - (B - T) * (Math.min(high, Math.max(low, v)) - low) / (high - low);
    const drawn = [`<text x="${L}" y="14">${title}${lanes.length > 1 ? ' (A solid, B dashed)' : ''}</text>`];
    for (const t of ticks) drawn.push(`<line class="grid" x1="${L}" x2="${R}" y1="${Y(t)}" y2="${Y(t)}"/><text x="${L - 6}" y="${Y(t) + 4}" text-anchor="end">${tick(t)}</text>`);
    drawn.push(`<text x="${L}" y="194">0</text><text x="${R}" y="194" text-anchor="end">${end} evaluations</text>`);
    const told = [];
    lanes.forEach((lane, i) => {
      const gap = Math.ceil(lane.points.length / 300), kept = lane.points.filter((p, k) => (k % gap === 0 || k === lane.points.length - 1) && Number.isFinite(p[column]));
      if (!kept.length) return;
      const [x, y] = [X(kept.at(-1)[0]), Y(map(kept.at(-1)[column]))];
      drawn.push(`<circle class="lane-${i}" cx="${x}" cy="${y}" r="2"/><polyline class="lane-${i}" points="${kept.map(p => `${X(p[0]).toFixed(1)},${Y(map(p[column])).toFixed(1)}`).join(' ')}"/>`);
      told.push(`${lanes.length > 1 ? `${'AB'[i]}: ` : ''}${words(kept.at(-1)[column])} after ${kept.at(-1)[0]} evaluations`);
    });
    svg.innerHTML = drawn.join('');
    svg.setAttribute('aria-label', `${title}: ${told.join('; ') || 'nothing yet'}`);
  }

  /* --- the address -------------------------------------------------------------------------------- */

  function fragment() {
    const held = new URLSearchParams(), shown = state.pictures.map(p => p.name);
    if (shown.every(n => names.includes(n)) && shown.join() !== parts.first) held.set('picture', shown.join(','));
    else if (shown.length > 1) held.set('batch', shown.length);
    if (state.pictures.some(p => p.label !== names.indexOf(p.name))) held.set('labels', state.pictures.map(p => p.label).join(','));
    active().forEach((lane, i) => {
      if (i) held.set('race', '1');
      for (const [k, v] of Object.entries(lane.settings)) {
        if (v !== DEFAULTS[k] && (!applies[k] || applies[k](lane.settings))) held.set(i ? `b.${k}` : k, v || '0');
      }
    });
    return held.toString().replaceAll('%2C', ',');
  }

  /* Settings from a fragment; what is misspelt is said, and left out. */
  function restore(text) {
    const given = new URLSearchParams(text.replace(/^#/, '')), odd = [];
    const settings = [{ ...DEFAULTS }, { ...DEFAULTS }];
    let shown = [parts.first], batch = 1, race = false, labels = [];
    for (const [key, value] of given) {
      const name = key.replace(/^b\./, ''), lane = key.startsWith('b.') ? 1 : 0, options = Object.hasOwn(CHOICES, name) ? CHOICES[name][1] : null;
      if (key === 'race') race = value === '1';
      else if (key === 'picture' && value.split(',').every(n => names.includes(n)) && value.split(',').length <= 4) shown = value.split(',');
      else if (key === 'batch' && /^[1-4]$/.test(value)) batch = +value;
      else if (key === 'labels' && /^\d(,\d){0,3}$/.test(value)) labels = value.split(',').map(Number);
      else if (name === 'seed' && /^\d{1,6}$/.test(value)) settings[lane].seed = value;
      else if (name === 'masked' && /^[01]?$/.test(value)) settings[lane].masked = value === '1' ? '1' : '';
      else if (options && Object.hasOwn(options, value)) settings[lane][name] = value;
      else odd.push(`${key}=${value}`);
    }
    state.race = race;
    settings.forEach((s, i) => { if (i === 0 || race) { lane(i).settings = s; } });
    state.pictures = shown.map(n => state.samples[n]);
    state.slot = 0;
    layout();
    resize(Math.max(batch, shown.length));
    state.pictures = state.pictures.map((p, i) => ({ ...p, label: labels[i] ?? p.label }));
    drawSlots();
    share();
    if (odd.length) say(`The address asks for what the lab does not have (${odd.join(', ').slice(0, 80)}): the rest is set. Press Attack.`);
  }

  function remember() {
    const hash = fragment();
    state.hash = hash;
    $('preset').value = Object.hasOwn(PRESETS, hash) ? hash : '';
    if (parent === window) history.replaceState(null, '', hash ? `#${hash}` : location.pathname + location.search);
    else if (state.hosted) parent.postMessage({ lab: 'hash', hash }, '*'); // not before the host has said his
    $('copied').hidden = true;
  }

  function copy() {
    const base = (state.address || location.href).split('#')[0];
    $('address').value = state.hash ? `${base}#${state.hash}` : base;
    $('copied').hidden = false;
    $('address').focus();
    $('address').select();
    if (!document.execCommand('copy')) return; // the newer way is shut to frames and files: the reader can
    $('link').textContent = 'Copied';
    setTimeout(() => { $('link').textContent = 'Copy a link'; }, 1500);
  }

  /* --- the camera --------------------------------------------------------------------------------- */

  let stream = null;
  async function openCamera() {
    closeCamera();
    try {
      stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: 'user' } });
      $('video').srcObject = stream;
      await $('video').play();
    } catch {
      closeCamera();
      return refuse('The browser gives no camera to this page: allow it, or open the lab in a tab of its own, or take a file.');
    }
    $('viewfinder').hidden = false;
    $('snap').focus();
  }

  function closeCamera() {
    stream?.getTracks().forEach(track => track.stop());
    stream = null;
    $('video').srcObject = null;
    if ($('viewfinder').contains(document.activeElement)) $('camera').focus();
    $('viewfinder').hidden = true;
  }

  function snap() {
    const video = $('video');
    if (!video.videoWidth) return;
    put({ x: shrink(video, video.videoWidth, video.videoHeight), name: 'your own picture', label: state.pictures[state.slot].label });
    closeCamera();
  }

  /* --- putting it together -------------------------------------------------------------------------- */

  function lane(i) {
    while (state.lanes.length <= i) state.lanes.push(new Lane(state.lanes.length));
    return state.lanes[i];
  }

  function layout() {
    lane(state.race ? 1 : 0);
    $('race').checked = state.race;
    $('lanes').replaceChildren(...active().map(l => l.element));
    active().forEach(l => l.show());
  }

  function wire() {
    $('go').onclick = go;
    $('step').onclick = () => { active().filter(l => !l.end).forEach(l => l.worker.postMessage({ what: 'step' })); };
    $('again').onclick = () => { const seed = +active()[0].settings.seed % 999999 + 1; active().forEach(l => { l.settings.seed = String(seed); }); share(); };
    $('pace').onchange = () => every({ what: 'pace', pace: $('pace').value });
    $('race').onchange = () => {
      const fresh = state.lanes.length < 2;
      state.race = $('race').checked;
      if (state.race && fresh) Object.assign(lane(1).settings, state.lanes[0].settings, { start: state.lanes[0].settings.start === 'normal' ? 'uniform' : 'normal' });
      layout();
      share();
    };
    $('batch').onchange = () => { resize(+$('batch').value); share(); };
    for (const [value, words] of Object.entries(PRESETS)) $('preset').add(new Option(words, value));
    $('preset').onchange = () => { if ($('preset').value) restore($('preset').value); };
    $('link').onclick = copy;
    $('own').onclick = () => $('file').click();
    $('file').onchange = () => { openFile($('file').files[0]); $('file').value = ''; };
    $('camera').onclick = openCamera;
    $('snap').onclick = snap;
    $('dismiss').onclick = closeCamera;
    const zone = document.body;
    zone.ondragover = event => { event.preventDefault(); $('client').classList.add('over'); };
    zone.ondragleave = () => $('client').classList.remove('over');
    zone.ondrop = event => {
      event.preventDefault();
      $('client').classList.remove('over');
      openFile(event.dataTransfer.files[0]);
    };
    addEventListener('hashchange', () => { if (location.hash.slice(1) !== state.hash) restore(location.hash); });
  }

  /* A page that frames the lab tells its colours and its address, and is told the lab's height. */
  function host() {
    const dark = matchMedia('(prefers-color-scheme: dark)'), theme = name => { document.documentElement.dataset.theme = name; };
    const follow = () => theme(dark.matches ? 'dark' : 'light');
    follow();
    dark.addEventListener('change', follow);
    if (parent === window) return;
    document.documentElement.classList.add('framed');
    addEventListener('message', ({ source, data }) => {
      if (source !== parent || !data || !data.lab) return;
      if (data.theme) { dark.removeEventListener('change', follow); theme(data.theme); }
      state.hosted = true;
      if (data.address) state.address = data.address;
      if (typeof data.hash === 'string' && data.hash !== state.hash) restore(data.hash);
    });
    new ResizeObserver(() => parent.postMessage({ lab: 'height', height: document.documentElement.offsetHeight }, '*')).observe(document.body);
  }

  async function begin() {
    host();
    const sheet = new Image();
    sheet.src = `data:image/png;base64,${parts.pictures}`;
    await sheet.decode();
    const canvas = canvasOf(sheet.width, SIDE);
    canvas.getContext('2d', { willReadFrequently: true }).drawImage(sheet, 0, 0);
    names.forEach((name, label) => {
      state.samples[name] = { x: pixelsOf(canvas, SIDE * label), name, label };
      const button = Object.assign(document.createElement('button'), { type: 'button', title: name, onclick: () => put(state.samples[name]) });
      button.dataset.name = name;
      button.setAttribute('aria-label', name);
      const small = canvasOf(SIDE);
      small.setAttribute('aria-hidden', 'true');
      paint(small, state.samples[name].x);
      button.append(small);
      $('samples').append(button);
    });
    state.plain = new URLSearchParams(location.search).has('plain');
    wire();
    $('lab').hidden = false;
    restore(location.hash);
    if (parent !== window) parent.postMessage({ lab: 'ready' }, '*');
  }

  begin().catch(error => {
    $('lab').hidden = false;
    say(`The lab cannot begin here (${error.message}): open it in a newer browser.`);
  });
})();
