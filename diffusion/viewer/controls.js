// Colours, time and controls of the page; it starts at the end of this file.

function colorOf(name) {
  const probe = document.createElement("i");
  probe.style.color = `var(--${name})`;
  document.body.append(probe);
  const color = getComputedStyle(probe).color;
  probe.remove();
  return color;
}

const rgb = (color) => (color[0] === "#" ? [1, 3, 5].map((i) => parseInt(color.slice(i, i + 2), 16)) : color.match(/[\d.]+/g).map(Number));

const dark = () => {
  const scheme = document.documentElement.style.colorScheme;
  return scheme ? scheme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
};

function paint() {
  for (const name of ["plot", "soft", "accent", "point", "map", "warm", "arrow", "path"]) inks[name] = colorOf(name);
  // On a dark ground the palette is a third lighter.
  const lighter = (color) => `rgb(${rgb(color).map((v) => Math.round(v + (255 - v) * 0.34)).join()})`;
  inks.classes = dark() ? run.colors.map(lighter) : run.colors;
  document.querySelectorAll(".swatch").forEach((swatch, n) => (swatch.style.background = classInk(n)));
  $("theme").textContent = dark() ? "Light" : "Dark";
  drawNoise();
  redraw();
}

let before = 0;
function tick(now) {
  if (!view.playing) return;
  // The first frame may have begun before the key was pressed.
  const passed = Math.min(Math.max(now - before, 0) / 1000, 0.1);
  before = now;
  if (view.at < last) view.at = Math.min(last, view.at + passed * FRAMES_PER_SECOND * Number($("speed").value));
  else if ((view.rest += passed) > PAUSE_AT_END) [view.at, view.rest] = [0, 0];
  redraw();
  requestAnimationFrame(tick);
}

function play(on) {
  if (on === view.playing) return;
  view.playing = on;
  $("play").textContent = on ? "❚❚" : "▶";
  $("play").setAttribute("aria-label", on ? "Pause" : "Play");
  if (!on) return;
  if (view.at >= last) view.at = 0;
  before = performance.now();
  requestAnimationFrame(tick);
}

function goTo(at) {
  play(false);
  view.at = Math.max(0, Math.min(last, at));
  redraw();
}

function choice(kind, group, text, checked, change, swatch = false) {
  const label = document.createElement("label"), input = document.createElement("input");
  Object.assign(input, { type: kind, name: group, checked, value: text });
  input.addEventListener("change", () => { change(input.checked); redraw(); });
  label.append(input);
  if (swatch) label.append(Object.assign(document.createElement("span"), { className: "swatch" }));
  label.append(text);
  $(group).append(label);
}

function buildControls() {
  run.chains.forEach((chain, k) => choice("radio", "chains", chain.title, k === 0, () => useChain(k)));
  run.classes.forEach((name, c) => choice("checkbox", "classes", name, true,
    (on) => (on ? view.hidden.delete(c) : view.hidden.add(c)), true));
  choice("checkbox", "layers", "Paths of points", view.paths, (on) => (view.paths = on));
  choice("checkbox", "layers", "Data", view.data, (on) => (view.data = on));
  if (run.outlines.length) choice("checkbox", "layers", "True outlines", false, (on) => (view.outlines = on));
  if (!run.fields) return;
  const maps = { none: "Nothing", data: "Density of the data", samples: "Density of the samples", excess: "Error of the network" };
  if (run.fields.regions) maps.regions = "Classifier's regions";
  for (const name in maps) choice("radio", "maps", maps[name], name === view.map, () => (view.map = name));
  const scores = { none: "Hidden", network: "Of the network", exact: "Of the data, exact" };
  for (const name in scores) choice("radio", "scores", scores[name], name === view.score, () => (view.score = name));
  $("maps").hidden = $("scores").hidden = false;
}

function useChain(k) {
  view.chain = k;
  const chain = run.chains[k], count = chain.x.shape[1];
  $("classes").hidden = !chain.labels.length;
  view.followed = new Set(Array.from({ length: Math.min(count, FOLLOWED_AT_START) }, (_, n) => n));
}

/** Follows the point nearest to a place on the canvas, or stops following it. */
function follow(x, y) {
  const chain = run.chains[view.chain], project = projector();
  let nearest = -1, least = (canvas.width / 30) ** 2;
  for (let n = 0; n < chain.x.shape[1]; n++) {
    if (!shown(chain, n)) continue;
    const [px, py] = placeAt(chain, n, view.at, project), gap = (px - x) ** 2 + (py - y) ** 2;
    if (gap < least) [nearest, least] = [n, gap];
  }
  if (nearest < 0) return;
  if (!view.followed.delete(nearest)) view.followed.add(nearest);
  redraw();
}

function zoomBy(factor) {
  view.zoom = Math.max(0.5, Math.min(20, view.zoom * factor));
  redraw();
}

function dragBy(dx, dy) {
  if (solid) {
    view.yaw += dx * 0.008;
    view.pitch = Math.max(-1.55, Math.min(1.55, view.pitch + dy * 0.008));
  } else {
    const unit = ((canvas.clientWidth / 2) * view.zoom) / run.reach;
    view.x -= dx / unit;
    view.y += dy / unit;
  }
  redraw();
}

function listen() {
  let start = null, moved = 0;
  canvas.addEventListener("pointerdown", (event) => {
    [start, moved] = [[event.clientX, event.clientY], 0];
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!start) return;
    const [dx, dy] = [event.clientX - start[0], event.clientY - start[1]];
    if ((moved += Math.hypot(dx, dy)) > 4) dragBy(dx, dy);
    start = [event.clientX, event.clientY];
  });
  canvas.addEventListener("pointerup", (event) => {
    const ratio = canvas.width / canvas.clientWidth;
    if (start && moved <= 4) follow(event.offsetX * ratio, event.offsetY * ratio);
    start = null;
  });
  canvas.addEventListener("pointercancel", () => (start = null));
  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    zoomBy(Math.exp(-event.deltaY * 0.0015));
  }, { passive: false });
  $("closer").addEventListener("click", () => zoomBy(1.4));
  $("farther").addEventListener("click", () => zoomBy(1 / 1.4));
  $("whole").addEventListener("click", () => {
    Object.assign(view, { zoom: 1, x: 0, y: 0 });
    redraw();
  });
  $("play").addEventListener("click", () => play(!view.playing));
  $("time").addEventListener("input", (event) => goTo(Number(event.target.value)));
  $("theme").addEventListener("click", () => {
    document.documentElement.style.colorScheme = dark() ? "light" : "dark";
    paint();
  });
  document.addEventListener("keydown", onKey);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);
  new ResizeObserver(() => { drawNoise(); redraw(); }).observe(canvas);
}

/** Handles the keys of the page, except those that a focused control handles itself. */
function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const focus = event.target, onCanvas = focus === canvas, inControl = /INPUT|SELECT|BUTTON/.test(focus.tagName);
  const turns = { ArrowLeft: [-20, 0], ArrowRight: [20, 0], ArrowUp: [0, -20], ArrowDown: [0, 20] };
  const act = {
    " ": () => play(!view.playing),
    ArrowLeft: () => goTo(Math.ceil(view.at) - 1), ArrowRight: () => goTo(Math.floor(view.at) + 1),
    Home: () => goTo(0), End: () => goTo(last),
    "+": () => zoomBy(1.4), "-": () => zoomBy(1 / 1.4),
  }[event.key];
  if (onCanvas && event.shiftKey && turns[event.key]) dragBy(...turns[event.key]);
  else if (!act || (inControl && !(focus.id === "time" && event.key === " "))) return;
  else act();
  event.preventDefault();
}

async function begin() {
  await unpackAll();
  dataBox = boundsOfData();
  $("time").max = last;
  $("drag").textContent = solid
    ? "Drag to turn, or use Shift and the arrows on the picture; the wheel zooms."
    : "Drag to move, the wheel zooms.";
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  buildControls();
  useChain(0);
  listen();
  paint();
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  if (still) view.at = last;
  draw();
  document.documentElement.dataset.ready = "yes";
  play(!still);
}
begin();
