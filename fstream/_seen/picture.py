"""The page that shows a trace: what comes before its events, and what comes after them. It needs no network."""

from __future__ import annotations

from typing import Final

__all__ = ["AFTER", "BEFORE"]

BEFORE: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>fstream: a trace</title>
<style>
body { font: 13px system-ui, sans-serif; margin: 1em; color: #222; background: #fff }
table.fstream { border-collapse: collapse; margin: .5em 0 0 }
table.fstream th, table.fstream td { padding: .15em .7em; border-bottom: 1px solid #ddd }
canvas { width: 100%; border: 1px solid #ccc; cursor: grab; display: block; margin-top: 1em }
#hint { color: #666 } #cut { color: #b00 }
#tip { position: fixed; display: none; background: #222; color: #fff; padding: .3em .6em; border-radius: 3px;
  pointer-events: none; white-space: pre; max-width: 60em; overflow: hidden }
</style></head><body>
<div id="tables"></div>
<p id="hint">The wheel zooms, dragging moves, a double click shows all, the mouse on a block says what it is.</p>
<p id="cut"></p>
<canvas id="picture"></canvas><div id="tip"></div>
<script type="application/json" id="trace">
"""

AFTER: Final = r"""<template id="made"><!--tables--></template>
<script>
"use strict";
const trace = JSON.parse(document.getElementById("trace").textContent);
document.getElementById("tables").append(document.getElementById("made").content.cloneNode(true));
document.getElementById("cut").textContent = trace.otherData.cut || "";

const groups = new Map();            // pid -> {name, rows: tid -> {name, blocks}, held, marks}
function group(pid) {
  if (!groups.has(pid)) groups.set(pid, {pid, name: "", rows: new Map(), held: []});
  return groups.get(pid);
}
function row(pid, tid) {
  const rows = group(pid).rows;
  if (!rows.has(tid)) rows.set(tid, {tid, name: "", blocks: [], marks: []});
  return rows.get(tid);
}
let end = 1;
for (const e of trace.traceEvents) {
  if (e.ph === "M") {
    if (e.name === "process_name") group(e.pid).name = e.args.name;
    if (e.name === "thread_name") row(e.pid, e.tid).name = e.args.name;
    continue;
  }
  end = Math.max(end, e.ts + (e.dur || 0));
  if (e.ph === "X") row(e.pid, e.tid).blocks.push(e);
  else if (e.ph === "i") row(e.pid, e.tid).marks.push(e);
  else if (e.ph === "C") group(e.pid).held.push(e);
}
const HEAD = 34, ROW = 16, LEFT = 150;
const lines = [];                    // what stands at which height
let height = 22;
for (const g of [...groups.values()].sort((a, b) => a.pid - b.pid)) {
  lines.push({y: height, h: HEAD, group: g});
  height += HEAD;
  for (const r of [...g.rows.values()].sort((a, b) => a.tid - b.tid)) {
    r.blocks.sort((a, b) => a.ts - b.ts);
    lines.push({y: height, h: ROW, row: r, group: g});
    height += ROW;
  }
}
height += 10;
const canvas = document.getElementById("picture"), paint = canvas.getContext("2d");
const tip = document.getElementById("tip");
const view = {from: 0, to: end, lines, end};
window.view = view;
const x_of = (ts) => LEFT + (ts - view.from) / (view.to - view.from) * (canvas.clientWidth - LEFT);
const ts_of = (x) => view.from + (x - LEFT) / (canvas.clientWidth - LEFT) * (view.to - view.from);
function time(us) {
  if (Math.abs(us) >= 1e6) return +(us / 1e6).toPrecision(4) + " s";
  if (Math.abs(us) >= 1e3) return +(us / 1e3).toPrecision(4) + " ms";
  return +us.toPrecision(4) + " us";
}
function draw() {
  const scale = window.devicePixelRatio || 1, width = canvas.clientWidth;
  canvas.style.height = height + "px";
  canvas.width = width * scale; canvas.height = height * scale;
  paint.setTransform(scale, 0, 0, scale, 0, 0);
  paint.font = "11px system-ui, sans-serif"; paint.textBaseline = "middle";
  paint.fillStyle = "#666";
  const rough = (view.to - view.from) / 8, unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((n) => n * unit).find((n) => n >= rough);
  for (let ts = Math.ceil(view.from / step) * step; ts < view.to; ts += step) {
    const x = x_of(ts);
    paint.fillText(time(ts), x + 3, 9);
    paint.fillRect(x, 0, .5, height);
  }
  lines.forEach((line) => {
    const color = `hsl(${line.group.pid * 67 % 360} 55% 55%)`, middle = line.y + line.h / 2;
    paint.save();
    if (!line.row) {
      paint.fillStyle = "#222"; paint.font = "bold 12px system-ui, sans-serif";
      paint.fillText(line.group.name, 4, line.y + 22);
      held(line, color);
    } else {
      paint.fillStyle = "#444"; paint.fillText(line.row.name, 12, middle);
      paint.beginPath(); paint.rect(LEFT, 0, width - LEFT, height); paint.clip();
      paint.fillStyle = color;
      let last = -1;                 // blocks that fall on the same pixel are drawn once
      for (const e of line.row.blocks) {
        if (e.ts + e.dur < view.from) continue;
        if (e.ts > view.to) break;
        const x = x_of(e.ts), w = Math.max(1, x_of(e.ts + e.dur) - x);
        if (w <= 1 && Math.floor(x) === last) continue;
        last = Math.floor(x);
        paint.fillRect(x, line.y + 2, Math.max(1, w - .5), line.h - 4);
      }
      paint.fillStyle = "#c00";
      for (const e of line.row.marks) {
        const x = x_of(e.ts);
        paint.beginPath(); paint.moveTo(x, middle - 5); paint.lineTo(x - 4, middle + 5);
        paint.lineTo(x + 4, middle + 5); paint.fill();
      }
    }
    paint.restore();
  });
}
function held(line, color) {
  const points = line.group.held, most = Math.max(1, ...points.slice(0, 50000).map((e) => e.args.items));
  paint.beginPath(); paint.rect(LEFT, 0, canvas.clientWidth - LEFT, height); paint.clip();
  paint.strokeStyle = color; paint.beginPath();
  let y = line.y + line.h - 3, begun = false;
  for (const e of points) {
    const x = x_of(e.ts);
    if (begun) paint.lineTo(x, y); else paint.moveTo(x, y);
    y = line.y + line.h - 3 - e.args.items / most * (line.h - 12); begun = true;
    paint.lineTo(x, y);
  }
  paint.stroke();
}
function zoom(times, x) {
  const at = ts_of(Math.max(LEFT, x)), from = at - (at - view.from) * times, to = at + (view.to - at) * times;
  if (to - from < 1) return;
  view.from = Math.max(0, from); view.to = Math.min(end, to);
  draw();
}
function found(x, y) {
  const line = lines.find((each) => y >= each.y && y < each.y + each.h);
  if (!line || x < LEFT) return null;
  const ts = ts_of(x), near = (view.to - view.from) / canvas.clientWidth * 4;
  if (!line.row) return {line, event: line.group.held.findLast((e) => e.ts <= ts)};
  const mark = line.row.marks.find((e) => Math.abs(e.ts - ts) < near);
  return {line, event: mark || line.row.blocks.find((e) => e.ts - near / 4 <= ts && ts <= e.ts + e.dur + near / 4)};
}
function told(line, e) {
  const where = line.group.name + (line.row ? ", " + line.row.name : "");
  if (e.ph === "C") return where + "\nholds " + e.args.items + " items at " + time(e.ts);
  if (e.ph === "i") {
    const said = Object.entries(e.args).map(([name, value]) => name + ": " + value).join("\n");
    return where + "\n" + e.name + " at " + time(e.ts) + "\n" + said;
  }
  const items = e.args.items === 1 ? "item " + e.args.first
    : e.args.items + " items from " + e.args.first;
  return where + "\n" + items + "\n" + time(e.dur) + ", from " + time(e.ts);
}
canvas.addEventListener("wheel", (e) => {
  e.preventDefault();
  zoom(e.deltaY > 0 ? 1.25 : .8, e.offsetX);
}, {passive: false});
canvas.addEventListener("dblclick", () => { view.from = 0; view.to = end; draw(); });
let drag = null;
canvas.addEventListener("mousedown", (e) => { drag = {x: e.offsetX, from: view.from, to: view.to}; });
window.addEventListener("mouseup", () => { drag = null; });
canvas.addEventListener("mousemove", (e) => {
  if (drag) {
    const by = (drag.x - e.offsetX) / (canvas.clientWidth - LEFT) * (drag.to - drag.from);
    const moved = Math.max(-drag.from, Math.min(end - drag.to, by));
    view.from = drag.from + moved; view.to = drag.to + moved;
    draw();
    return;
  }
  const hit = found(e.offsetX, e.offsetY);
  tip.style.display = hit && hit.event ? "block" : "none";
  if (!hit || !hit.event) return;
  tip.textContent = told(hit.line, hit.event);
  tip.style.left = Math.min(e.clientX + 12, window.innerWidth - tip.offsetWidth - 8) + "px";
  tip.style.top = e.clientY + 14 + "px";
});
canvas.addEventListener("mouseleave", () => { tip.style.display = "none"; });
window.addEventListener("resize", draw);
draw();
</script></body></html>
"""
