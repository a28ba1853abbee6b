// The rating page: no network, no server; progress stays in localStorage per page and rater, and it
// never learns a system's name. The order is a Fisher-Yates shuffle with mulberry32, seeded with
// FNV-1a of seed, rater and sentence: always the same.
"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const part = (id) => document.getElementById(id);

const random = (text) => {
  let state = 0x811c9dc5;
  for (const unit of new TextEncoder().encode(text)) state = Math.imul(state ^ unit, 0x01000193);
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), state | 1);
    mixed ^= mixed + Math.imul(mixed ^ (mixed >>> 7), mixed | 61);
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
};
const shuffled = (values, seed) => {
  const drawn = random(seed), order = [...values];
  for (let last = order.length - 1; last > 0; last--) {
    const other = Math.floor(drawn() * (last + 1));
    [order[last], order[other]] = [order[other], order[last]];
  }
  return order;
};
const orderFor = (rater) => shuffled(page.sentences, `${page.seed}/${rater}`).flatMap((sentence) =>
  shuffled(sentence.clips, `${page.seed}/${rater}/${sentence.id}`).map((clip, place) => ({ sentence, clip, place })));

let rater = "", order = [], scores = {}, at = 0;
const played = new Set();
const place = () => `llasa-rating/${page.page}/${rater}`;

const recall = () => {
  try { return JSON.parse(localStorage.getItem(place())) ?? {}; } catch { return {}; }
};
const keep = () => {
  try { localStorage.setItem(place(), JSON.stringify({ scores, at })); } catch {
    part("status").textContent = "This browser keeps no progress: save the file before you close the page.";
  }
};
const open = (name) => {
  rater = name;
  order = orderFor(rater);
  const known = recall(), items = new Set(order.map(({ clip }) => clip.item));
  const whole = ([item, level]) => items.has(item) && level in page.levels;
  scores = Object.fromEntries(Object.entries(known.scores ?? {}).filter(whole));
  at = Math.min(Math.max(known.at ?? 0, 0), order.length - 1);
  part("start").hidden = true;
  part("rating").hidden = false;
  show();
};
const play = () => {
  const clip = part("clip");
  clip.currentTime = 0;
  clip.play()?.catch(() => { part("status").textContent = "Press space to play."; });
};
const show = () => {
  const { sentence, clip, place: nth } = order[at];
  const done = Object.keys(scores).length;
  part("progress").textContent = `${at + 1} of ${order.length}, ${done} scored`;
  part("category").textContent = `${sentence.category} · sample ${nth + 1} of ${sentence.clips.length}`;
  part("text").textContent = sentence.text;
  part("text").lang = sentence.language;
  part("expected").textContent = `To be heard: ${sentence.expected}`;
  part("expected").lang = sentence.language;
  part("clip").src = clip.clip;
  part("status").textContent = done === order.length ? "All scored. Save the scores as a file." : "";
  for (const button of part("levels").children) {
    button.setAttribute("aria-pressed", String(scores[clip.item] === +button.value));
  }
  play();
};
const move = (to) => {
  at = Math.min(Math.max(to, 0), order.length - 1);
  keep();
  show();
};
const unscored = () => {
  const left = [...order.keys()].filter((index) => !(order[index].clip.item in scores));
  return left.find((index) => index > at) ?? left[0] ?? at;
};
const score = (level) => {
  const { item } = order[at].clip;
  if (!played.has(item)) {
    part("status").textContent = "Listen first: press space to play.";
    return;
  }
  scores[item] = level;
  keep();
  if (Object.keys(scores).length === order.length || at === order.length - 1) show(); else move(at + 1);
};
const exported = () => ({
  schema: 1, page: page.page, rater, complete: Object.keys(scores).length === order.length,
  scores: order.filter(({ clip }) => clip.item in scores).map(({ clip, place: nth }) =>
    ({ item: clip.item, score: scores[clip.item], place: nth })),
});
const save = () => {
  const missing = order.length - Object.keys(scores).length;
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(exported(), null, 1) + "\n"], { type: "application/json" }));
  link.download = `scores-${page.page}-${rater}.json`;
  link.click();
  part("status").textContent = missing ? `Saved, but ${missing} have no score yet.` : "Saved.";
};

for (const [level, meaning] of Object.entries(page.levels)) {
  const button = document.createElement("button");
  button.type = "button";
  button.value = level;
  button.textContent = `${level}  ${meaning}`;
  button.addEventListener("click", () => { button.blur(); score(+level); });
  part("levels").append(button);
}
part("clip").addEventListener("play", () => { played.add(order[at].clip.item); });
part("start").addEventListener("submit", (event) => { event.preventDefault(); open(part("rater").value.trim()); });
part("save").addEventListener("click", () => { part("save").blur(); save(); });
document.addEventListener("keydown", (event) => {
  if (part("rating").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const act = { " ": play, ArrowRight: () => move(at + 1), ArrowLeft: () => move(at - 1), n: () => move(unscored()) };
  for (const level of Object.keys(page.levels)) act[level] = () => score(+level);
  if (!Object.hasOwn(act, event.key)) return;
  event.preventDefault();
  act[event.key]();
});
