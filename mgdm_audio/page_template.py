"""The page of :mod:`mgdm_audio.page`: style, layout and player, as one string.

It uses nothing from outside. ``__TITLE__`` and ``__DATA__`` are replaced; the data is JSON, see
`mgdm_audio.page.page`.
"""

from __future__ import annotations

__all__ = ["TEMPLATE"]

TEMPLATE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>__TITLE__</title>
<style>
:root { color-scheme: light dark; --line: #8884; --accent: #2a7; }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem auto; max-width: 64rem;
  padding: 0 1rem; }
h1 { font-size: 1.3rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 1.6rem 0 .4rem; }
.bar { position: sticky; top: 0; background: Canvas; padding: .5rem 0; z-index: 1;
  border-bottom: 1px solid var(--line); display: flex; gap: 1rem; align-items: center; }
button { font: inherit; min-width: 2.2rem; padding: .15rem .6rem; border: 1px solid var(--line);
  border-radius: .3rem; background: Canvas; color: CanvasText; cursor: pointer; }
button[aria-pressed=true] { background: var(--accent); color: #fff; }
.track { display: grid; grid-template-columns: 8.5rem 1fr; gap: .2rem .8rem; padding: .5rem 0;
  border-bottom: 1px solid var(--line); }
.track .side { grid-row: span 2; }
.track .name { font-weight: 600; }
.track input { width: 7rem; }
.view { position: relative; cursor: crosshair; }
canvas { width: 100%; display: block; }
canvas.spectrum { height: 96px; }
canvas.doubt { height: 56px; }
.head { position: absolute; top: 0; bottom: 0; width: 1px; background: #f40; left: 0;
  pointer-events: none; }
table { border-collapse: collapse; }
td, th { text-align: left; padding: .1rem 1rem .1rem 0; vertical-align: top; }
.note { opacity: .75; font-size: .9rem; }
.silenced { opacity: .45; }
</style>
</head>
<body>
<h1 id="title"></h1>
<div id="warnings"></div>
<div class="bar">
  <button id="play" aria-pressed="false" disabled>Play</button>
  <span id="time">0:00 / 0:00</span>
  <span class="note" id="state">decoding</span>
</div>
<div id="tracks"></div>
<p class="note" id="legend"></p>
<h2>What was found</h2>
<table id="facts"></table>
<h2>Settings</h2>
<table id="settings"></table>
<script type="application/json" id="data">__DATA__</script>
<script>
"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const make = (tag, parent, text, cls) => {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (cls) element.className = cls;
  parent.appendChild(element);
  return element;
};
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const clock = (s) => Math.floor(s / 60) + ":" + String(Math.floor(s % 60)).padStart(2, "0");

// One clock for all: every track is a buffer that starts at the same instant of one context.
class Player {
  constructor(tracks) {
    this.context = new AudioContext();
    this.tracks = tracks.map((t) => ({...t, mute: t.muted, solo: false, volume: 1,
      gain: this.context.createGain()}));
    for (const t of this.tracks) t.gain.connect(this.context.destination);
    this.offset = 0; this.started = 0; this.duration = data.seconds;
    this.playing = false; this.starting = false;
  }
  async load() {
    for (const t of this.tracks)
      t.buffer = await this.context.decodeAudioData(bytes(t.audio).buffer);
    this.update();
  }
  time() {
    if (!this.playing) return this.offset;
    const now = this.offset + this.context.currentTime - this.started;
    return Math.max(this.offset, Math.min(now, this.duration));
  }
  async play() {
    if (this.playing || this.starting) return;
    // Other presses come while the context resumes: one more play must not start a second set of
    // sources, which nothing would stop, and a stop must not be forgotten.
    this.starting = true;
    try {
      await this.context.resume();
    } catch (error) {
      this.starting = false;
      throw error;
    }
    if (!this.starting) return;
    this.starting = false;
    if (this.offset >= this.duration - 0.01) this.offset = 0;
    this.started = this.context.currentTime + 0.05;
    for (const t of this.tracks) {
      t.source = this.context.createBufferSource();
      t.source.buffer = t.buffer;
      t.source.connect(t.gain);
      t.source.start(this.started, this.offset);
    }
    this.playing = true;
  }
  stop() {
    this.starting = false;
    if (!this.playing) return;
    this.offset = this.time();
    this.playing = false;
    for (const t of this.tracks) t.source.stop();
  }
  async seek(time) {
    const again = this.playing || this.starting;
    this.stop();
    this.offset = Math.max(0, Math.min(time, this.duration));
    if (again) await this.play();
  }
  heard(t) {
    return this.tracks.some((o) => o.solo) ? t.solo : !t.mute;
  }
  gains() { return this.tracks.map((t) => (this.heard(t) ? t.volume : 0)); }
  update() {
    const gains = this.gains();
    this.tracks.forEach((t, i) => {
      t.gain.gain.setTargetAtTime(gains[i], this.context.currentTime, 0.01);
      if (!t.box) return;
      t.box.classList.toggle("silenced", gains[i] === 0);
      t.soloButton.setAttribute("aria-pressed", t.solo);
      t.muteButton.setAttribute("aria-pressed", t.mute);
    });
  }
}

function heat(v) {  // dark to light
  return [255 * Math.min(1, 1.6 * v), 255 * v * v, 90 * Math.sin(Math.PI * v) + 160 * v ** 4];
}
function paint(canvas, grid, colour) {
  const values = bytes(grid.values);
  canvas.width = grid.columns; canvas.height = grid.rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(grid.columns, grid.rows);
  for (let r = 0; r < grid.rows; r++)
    for (let c = 0; c < grid.columns; c++) {
      const to = 4 * ((grid.rows - 1 - r) * grid.columns + c);
      const [red, green, blue] = colour(values[r * grid.columns + c] / 255);
      image.data.set([red, green, blue, 255], to);
    }
  context.putImageData(image, 0, 0);
}
function bandOf(canvas, interval) {  // level interval over time, from -80 dB to 0
  const n = interval.low.length, height = 112;
  canvas.width = Math.max(n, 2); canvas.height = height;
  const context = canvas.getContext("2d");
  const y = (db) => height * Math.min(1, Math.max(0, -db / 80));
  context.fillStyle = "#2a78";
  context.beginPath();
  for (let i = 0; i < n; i++) context.lineTo(i * canvas.width / n, y(interval.high[i]));
  for (let i = n - 1; i >= 0; i--) context.lineTo(i * canvas.width / n, y(interval.low[i]) + 1);
  context.fill();
  context.strokeStyle = "#2a7";
  context.lineWidth = 2;
  context.stroke();
}

const player = new Player(data.tracks);
window.player = player;
byId("title").textContent = data.title;
for (const text of data.warnings) make("p", byId("warnings"), "Warning: " + text);
byId("legend").textContent = data.legend;
for (const [id, rows] of [["facts", data.facts], ["settings", data.settings]])
  for (const [name, value] of rows) {
    const row = make("tr", byId(id));
    make("th", row, name); make("td", row, value);
  }
const heads = [];
for (const t of player.tracks) {
  const box = t.box = make("div", byId("tracks"), undefined, "track");
  box.dataset.name = t.name;
  const side = make("div", box, undefined, "side");
  make("div", side, t.name, "name");
  t.soloButton = make("button", side, "S", "solo");
  t.soloButton.title = "Solo"; t.soloButton.setAttribute("aria-label", "Solo " + t.name);
  t.muteButton = make("button", side, "M", "mute");
  t.muteButton.title = "Mute"; t.muteButton.setAttribute("aria-label", "Mute " + t.name);
  t.soloButton.onclick = () => { t.solo = !t.solo; player.update(); };
  t.muteButton.onclick = () => { t.mute = !t.mute; player.update(); };
  const volume = make("input", side);
  volume.type = "range"; volume.min = 0; volume.max = 1.5; volume.step = 0.01; volume.value = 1;
  volume.setAttribute("aria-label", "Volume of " + t.name);
  volume.oninput = () => { t.volume = Number(volume.value); player.update(); };
  if (t.note) make("div", side, t.note, "note");
  const view = make("div", box, undefined, "view");
  paint(make("canvas", view, undefined, "spectrum"), t.spectrum, heat);
  if (t.doubt)
    paint(make("canvas", view, undefined, "doubt"), t.doubt,
      (v) => [40 + 215 * v, 60, 200 * (1 - v)]);
  if (t.interval) bandOf(make("canvas", view, undefined, "doubt interval"), t.interval);
  heads.push(make("div", view, undefined, "head"));
  view.onclick = (event) => {
    const box = view.getBoundingClientRect();
    player.seek((event.clientX - box.left) / box.width * player.duration);
  };
}
byId("play").onclick = async () => { if (player.playing) player.stop(); else await player.play(); };
document.addEventListener("keydown", (event) => {
  if (event.code === "Space" && event.target === document.body) {
    event.preventDefault(); byId("play").click();
  }
});
(function tick() {
  const time = player.time();
  if (player.playing && time >= player.duration) player.stop();
  byId("time").textContent = clock(time) + " / " + clock(player.duration);
  byId("play").textContent = player.playing ? "Pause" : "Play";
  byId("play").setAttribute("aria-pressed", player.playing);
  for (const head of heads) head.style.left = 100 * time / player.duration + "%";
  requestAnimationFrame(tick);
})();
player.update();
player.load().then(
  () => { byId("state").textContent = ""; byId("play").disabled = false; },
  (error) => { byId("state").textContent = "this browser cannot decode the audio: " + error; });
</script>
</body>
</html>
"""
