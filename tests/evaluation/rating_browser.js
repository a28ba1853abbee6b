// Runs the script of a rating page as a browser would, with as much of a document as it uses.
// node rating_browser.js INDEX.html < {"rater", "stored": {..}, "blocked", "do": [key or ["play"]..]}  ->  what is shown.
"use strict";
const fs = require("fs");
const vm = require("vm");
const html = fs.readFileSync(process.argv[2], "utf8");
const order = JSON.parse(fs.readFileSync(0, "utf8"));
const script = html.split("<script>")[1].split("</script>")[0];
const data = html.split('<script type="application/json" id="data">')[1].split("</script>")[0];

const element = () => ({
  textContent: "", hidden: false, children: [], heard: {}, attributes: {}, plays: 0,
  append(child) { this.children.push(child); },
  setAttribute(name, value) { this.attributes[name] = value; },
  addEventListener(name, act) { this.heard[name] = act; },
  blur() {},
  play() { this.plays += 1; if (order.autoplay !== false) this.heard.play(); return Promise.resolve(); },
  click() { if (this.download) saved = { name: this.download }; else this.heard.click?.({}); },
});
const parts = {};
for (const [, id] of html.matchAll(/ id="([a-z]+)"/g)) parts[id] = element();
parts.data.textContent = data;
parts.rating.hidden = true;
const stored = order.stored ?? {}, heard = {};
let saved = null, blob = null;
const context = {
  console, JSON, TextEncoder,
  Blob: class { constructor(pieces) { blob = pieces.join(""); } },
  URL: { createObjectURL: () => "blob:" },
  localStorage: {
    getItem: (name) => stored[name] ?? null,
    setItem: (name, value) => { if (order.blocked) throw new Error("blocked"); stored[name] = value; },
  },
  document: {
    getElementById: (id) => parts[id],
    createElement: element,
    addEventListener: (name, act) => { heard[name] = act; },
  },
};
vm.runInNewContext(script, context);
const seen = [], prevented = [];
const look = () => seen.push({
  progress: parts.progress.textContent, text: parts.text.textContent, clip: parts.clip.src, category: parts.category.textContent,
  expected: parts.expected.textContent, status: parts.status.textContent, plays: parts.clip.plays, lang: parts.text.lang,
  pressed: parts.levels.children.filter((b) => b.attributes["aria-pressed"] === "true").map((b) => b.value),
});
const press = (key, more = {}) => {
  heard.keydown({ key, preventDefault: () => prevented.push(key), ...more });
};
press("3");  // before a rater has a name, keys belong to the form
parts.rater.value = order.rater;
parts.start.heard.submit({ preventDefault() {} });
look();
for (const act of order.do) {
  if (act === "save") parts.save.heard.click({});
  else if (act === "ctrl+3") press("3", { ctrlKey: true });
  else if (act.startsWith("click")) parts.levels.children[+act.slice(5) - 1].heard.click({});
  else press(act);
  look();
}
console.log(JSON.stringify({ seen, stored, prevented, saved: saved && { ...saved, content: JSON.parse(blob) } }));
