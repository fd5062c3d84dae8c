"use strict";

// Draws the page: the points on their way, maps, arrows and the curve of the noise.

const $ = (id) => document.getElementById(id);
const run = JSON.parse($("payload").textContent);
const canvas = $("canvas"), pen = canvas.getContext("2d");
const FRAMES_PER_SECOND = 9, PAUSE_AT_END = 1.5, FOLLOWED_AT_START = 6;

// What is shown. `at` is a frame, possibly between two; frame 0 is noise, the last one samples.
const view = {
  at: 0, playing: false, rest: 0, chain: 0, followed: new Set(), hidden: new Set(),
  data: false, outlines: false, paths: true, map: "none", score: "none",
  zoom: 1, x: 0, y: 0, yaw: 0.6, pitch: 0.35,
};
const last = run.steps.length - 1, solid = run.dim > 2;
let inks = {}, wanted = false, dataBox = [];

/** Unpacks numbers that Python packed: integers times a scale, deflated, in base64. */
async function unpack(packed) {
  const bytes = Uint8Array.from(atob(packed.content), (c) => c.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const buffer = await new Response(stream).arrayBuffer();
  const whole = packed.bits === 16 ? new Int16Array(buffer) : new Int8Array(buffer);
  return { values: Float32Array.from(whole, (v) => v * packed.scale), shape: packed.shape };
}

async function unpackAll() {
  for (const chain of run.chains) chain.x = await unpack(chain.x);
  run.data.x = await unpack(run.data.x);
  run.outlines = await Promise.all(run.outlines.map(unpack));
  if (!run.fields) return;
  const { maps, scores, regions } = run.fields;
  for (const group of [maps, scores, regions ?? {}])
    for (const name in group) Object.assign(group[name], await unpack(group[name]));
}

/** Returns the map from a place in the data to a place on the canvas. */
function projector() {
  const half = canvas.width / 2, unit = (half / run.reach) * view.zoom;
  if (!solid) return (x, y) => [half + (x - view.x) * unit, half - (y - view.y) * unit, 0];
  const [a, b] = [Math.cos(view.yaw), Math.sin(view.yaw)];
  const [c, d] = [Math.cos(view.pitch), Math.sin(view.pitch)];
  return (x, y, z) => {
    const right = a * x + b * y, deep = -b * x + a * y;
    const up = c * z + d * deep;
    return [half + (right - view.x) * unit * 0.8, half - (up - view.y) * unit * 0.8, (c * deep - d * z) / run.reach];
  };
}

/** Returns the place of point `n` of a chain at frame `at`, on a line between two frames. */
function placeAt(chain, n, at, project) {
  const [, count, dim] = chain.x.shape, v = chain.x.values;
  const k = Math.min(Math.floor(at), last), share = at - k;
  const from = (k * count + n) * dim, to = (Math.min(k + 1, last) * count + n) * dim;
  const mix = (axis) => v[from + axis] * (1 - share) + v[to + axis] * share;
  return project(mix(0), mix(1), dim > 2 ? mix(2) : 0);
}

const shown = (chain, n) => !chain.labels.length || !view.hidden.has(chain.labels[n]);
const classInk = (label) => inks.classes[label % inks.classes.length];
const inkOf = (labels, n, other) => (labels.length ? classInk(labels[n]) : other);

function draw() {
  wanted = false;
  const side = Math.round(canvas.clientWidth * devicePixelRatio);
  if (canvas.width !== side) canvas.width = canvas.height = side;
  pen.clearRect(0, 0, side, side);
  const project = projector(), chain = run.chains[view.chain], t = timestep();
  if (solid) drawBox(project);
  if (view.map !== "none") drawMap(project, fieldAt(t));
  if (view.outlines) for (const curve of run.outlines) drawCurve(curve, project);
  if (view.data) drawData(project);
  if (view.score !== "none") drawArrows(project, fieldAt(t));
  const [drawn, outside] = drawSamples(chain, project);
  if (view.paths) for (const n of view.followed) if (shown(chain, n)) drawPath(chain, n, project);
  report(t, chain, drawn, outside);
}

function redraw() {
  if (!wanted) requestAnimationFrame(draw);
  wanted = true;
}

function timestep() {
  const k = Math.floor(view.at), next = Math.min(k + 1, last);
  return Math.round(run.steps[k] + (run.steps[next] - run.steps[k]) * (view.at - k));
}

/** Returns the index of the timestep with fields whose noise level is nearest to that of t. */
function fieldAt(t) {
  const gaps = run.fields.steps.map((step) => Math.abs(run.noise[step] - run.noise[t]));
  return gaps.indexOf(Math.min(...gaps));
}

/** Draws the samples; returns their number, and how many of them lie outside the picture. */
function drawSamples(chain, project) {
  const count = chain.x.shape[1], size = dot(count);
  let drawn = 0, outside = 0;
  pen.globalAlpha = 0.8;
  for (let n = 0; n < count; n++) {
    if (!shown(chain, n)) continue;
    const [x, y, depth] = placeAt(chain, n, view.at, project);
    pen.fillStyle = inkOf(chain.labels, n, inks.point);
    const far = Math.max(-1, Math.min(1, depth));
    if (solid) pen.globalAlpha = 0.55 - far * 0.4;
    disc(x, y, size * (1 - far * 0.25));
    drawn++;
    if (!(x >= 0 && x <= canvas.width && y >= 0 && y <= canvas.height)) outside++;
  }
  pen.globalAlpha = 1;
  return [drawn, outside];
}

/** Returns the radius of a dot, which is smaller where there are many. */
const dot = (count) => (canvas.width / canvas.clientWidth) * Math.max(1, Math.min(3.2, (canvas.clientWidth / 9) / Math.sqrt(count)));

function disc(x, y, radius) {
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fill();
}

function drawData(project) {
  const { values, shape: [count, dim] } = run.data.x;
  pen.fillStyle = inks.soft;
  pen.globalAlpha = 0.4;
  for (let n = 0; n < count; n++) {
    const [x, y] = project(values[n * dim], values[n * dim + 1], values[n * dim + 2] ?? 0);
    disc(x, y, dot(count) * 0.8);
  }
  pen.globalAlpha = 1;
}

function stroke(points, color, width, alpha = 1) {
  pen.strokeStyle = color;
  pen.lineWidth = width * (canvas.width / canvas.clientWidth);
  pen.globalAlpha = alpha;
  pen.lineJoin = "round";
  pen.beginPath();
  for (const [x, y] of points) pen.lineTo(x, y);
  pen.stroke();
  pen.globalAlpha = 1;
}

function drawCurve({ values, shape: [count] }, project) {
  const points = Array.from({ length: count }, (_, k) => project(values[2 * k], values[2 * k + 1]));
  stroke(points, inks.soft, 1.2, 0.8);
}

/** Draws the way of one sample so far, over a halo that sets it off from the points. */
function drawPath(chain, n, project) {
  const points = [];
  for (let k = 0; k <= view.at; k++) points.push(placeAt(chain, n, k, project));
  points.push(placeAt(chain, n, view.at, project));
  const color = inkOf(chain.labels, n, inks.path);
  stroke(points, inks.plot, 4, 0.8);
  stroke(points, color, 1.8);
  const [x, y] = points[points.length - 1], unit = canvas.width / canvas.clientWidth;
  pen.fillStyle = inks.plot;
  disc(x, y, 6 * unit);
  pen.fillStyle = color;
  disc(x, y, 4.2 * unit);
}

/** Draws the edges of the box that holds the data. */
function drawBox(project) {
  const [x, y, z] = dataBox, line = (from, to) => stroke([project(...from), project(...to)], inks.soft, 1, 0.35);
  for (const i of [0, 1]) for (const j of [0, 1]) {
    line([x[0], y[i], z[j]], [x[1], y[i], z[j]]);
    line([x[i], y[0], z[j]], [x[i], y[1], z[j]]);
    line([x[i], y[j], z[0]], [x[i], y[j], z[1]]);
  }
}

/** Returns the least and the greatest value of each coordinate of the data. */
function boundsOfData() {
  const { values, shape: [, dim] } = run.data.x;
  return [...Array(dim).keys()].map((axis) => {
    let [low, high] = [Infinity, -Infinity];
    for (let i = axis; i < values.length; i += dim) [low, high] = [Math.min(low, values[i]), Math.max(high, values[i])];
    return [low, high];
  });
}

const tile = document.createElement("canvas");

/** Draws a map as an image in one colour, or in those of the classes, as opaque as it is large. */
function drawMap(project, field) {
  const { grid, maps, regions } = run.fields, cells = grid * grid;
  tile.width = tile.height = grid;
  const brush = tile.getContext("2d"), image = brush.createImageData(grid, grid);
  const ink = rgb(view.map === "excess" ? inks.warm : inks.map);
  for (let c = 0; c < cells; c++) {
    const i = field * cells + c;
    const color = view.map === "regions" ? rgb(classInk(Math.round(regions.label.values[i]))) : ink;
    const opaque = view.map === "regions" ? 0.08 + 0.47 * regions.sure.values[i] : 0.85 * maps[view.map].values[i];
    image.data.set([color[0], color[1], color[2], 255 * opaque], 4 * c);
  }
  brush.putImageData(image, 0, 0);
  const [left, top] = project(-run.reach, run.reach), [right, bottom] = project(run.reach, -run.reach);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(tile, left, top, right - left, bottom - top);
}

/** Draws the arrows of a grid; the longest reach nearly to the next one. */
function drawArrows(project, field) {
  const count = run.fields.arrows, { values } = run.fields.scores[view.score];
  const step = (2 * run.reach) / count, unit = canvas.width / canvas.clientWidth;
  pen.strokeStyle = inks.arrow;
  pen.lineWidth = 1.1 * unit;
  pen.globalAlpha = 0.75;
  for (let row = 0; row < count; row++) for (let column = 0; column < count; column++) {
    const i = 2 * ((field * count + row) * count + column);
    const x = (column + 0.5) * step - run.reach, y = run.reach - (row + 0.5) * step;
    arrow(project(x, y), project(x + 0.9 * step * values[i], y + 0.9 * step * values[i + 1]));
  }
  pen.globalAlpha = 1;
}

function arrow([x0, y0], [x1, y1]) {
  const angle = Math.atan2(y1 - y0, x1 - x0), head = Math.min(Math.hypot(x1 - x0, y1 - y0) * 0.4, canvas.width / 120);
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  for (const turn of [2.6, -2.6]) {
    pen.moveTo(x1, y1);
    pen.lineTo(x1 + head * Math.cos(angle + turn), y1 + head * Math.sin(angle + turn));
  }
  pen.stroke();
}

/** Draws the noise level at every frame, above the slider. */
function drawNoise() {
  const curve = $("noise"), ratio = devicePixelRatio, ink = curve.getContext("2d");
  const [width, height] = [(curve.width = curve.clientWidth * ratio), (curve.height = curve.clientHeight * ratio)];
  const pad = 8 * ratio, span = width - 2 * pad;
  const line = (value) => run.steps.map((t, k) => [pad + (span * k) / last, height - 6 * ratio - value(t) * (height - 10 * ratio)]);
  const noise = line((t) => run.noise[t]);
  ink.fillStyle = inks.accent;
  ink.globalAlpha = 0.16;
  ink.beginPath();
  for (const [x, y] of [[pad, height - 6 * ratio], ...noise, [pad + span, height - 6 * ratio]]) ink.lineTo(x, y);
  ink.fill();
  ink.globalAlpha = 1;
  ink.strokeStyle = inks.accent;
  ink.lineWidth = 1.5 * ratio;
  ink.beginPath();
  for (const [x, y] of noise) ink.lineTo(x, y);
  ink.stroke();
}

/** Describes the canvas in words and in data-* attributes. */
function report(t, chain, drawn, outside) {
  const noise = run.noise[t];
  const left = outside ? `<span>${outside} of ${drawn} outside</span>` : "";
  $("reading").innerHTML = `<b>t = ${t}</b><span>noise level ${noise.toFixed(3)}</span>${left}`;
  Object.assign(canvas.dataset, { t, drawn, outside, chain: chain.title, map: view.map, score: view.score, followed: view.followed.size });
  canvas.setAttribute("aria-label", `${drawn} samples, ${chain.title}, at timestep ${t} of ${run.total}, noise level ${noise.toFixed(2)}`);
  const slider = $("time");
  slider.value = Math.round(view.at);
  slider.setAttribute("aria-valuetext", `timestep ${t} of ${run.total}, noise level ${noise.toFixed(2)}`);
  $("note").textContent = note(t);
}

function note(t) {
  if (!run.fields) return run.dim > 3 ? "The data's first three principal axes are drawn." : "";
  const parts = [], known = run.fields.steps[fieldAt(t)];
  const top = run.fields.maps[view.map]?.top[run.fields.steps.indexOf(known)];
  if (view.map === "data") parts.push(`p(x_t) of the data noised to t = ${known}; at most ${top}.`);
  if (view.map === "samples") parts.push(`p(x_t) of the finished samples noised to t = ${known}; at most ${top}. Equal to the data's where the model is right.`);
  if (view.map === "excess") parts.push(`p(x_t) |eps_θ − eps*|² at t = ${known}: where the network loses against the best denoiser of these data; at most ${top}.`);
  if (view.map === "regions") parts.push(`The classifier's likeliest class at t = ${known}, ${dark() ? "darker" : "paler"} where it is less sure.`);
  if (view.score !== "none") parts.push(`Arrows: score times noise level, −eps, at t = ${known}; long ones are shortened.`);
  return parts.join(" ");
}

