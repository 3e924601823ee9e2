"""How the review page looks and what it does: its style sheet and its script, both inside the page."""

STYLE = """
:root { --ink: #1f2430; --faint: #d9dce3; --muted: #565e6c; --blue: #1f5f9e; --pale: #f5f6f9 }
:root { --accept: #1d7a4c; --work: #a35c00; --reject: #a3232f }
* { box-sizing: border-box }
body { margin: 0; color: var(--ink); background: #fff; font: 15px/1.45 system-ui, "Segoe UI", Roboto, sans-serif }
header { position: sticky; top: 0; z-index: 3; background: #fff; border-bottom: 1px solid var(--faint) }
header { padding: 10px 20px; box-shadow: 0 1px 6px #0000000d }
h1 { font-size: 20px; margin: 0 }
.bar { display: flex; flex-wrap: wrap; gap: 8px 18px; align-items: center }
.bar + .bar { margin-top: 8px }
.end { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; margin-left: auto }
.note { color: var(--muted); font-size: 14px; margin: 0 }
.counts { display: flex; gap: 6px; margin: 0 0 0 auto; padding: 0; list-style: none; font-size: 14px }
.counts li { border-radius: 14px; padding: 2px 12px; background: var(--pale); border: 1px solid var(--faint) }
.counts b { font-variant-numeric: tabular-nums }
.counts .accept b { color: var(--accept) } .counts .work b { color: var(--work) }
.counts .reject b { color: var(--reject) }
button, select, input[type=text] { font: inherit; border: 1px solid #b9bfcb; border-radius: 6px; background: #fff }
button, select, input[type=text] { padding: 4px 12px; color: var(--ink) }
button { cursor: pointer } button:hover:enabled { background: var(--pale) } button:disabled { color: #9097a3 }
button.main { background: var(--blue); border-color: var(--blue); color: #fff }
button.main:hover:enabled { background: #174a7c }
:focus-visible { outline: 2px solid var(--blue); outline-offset: 2px }
kbd { font: 12px ui-monospace, Menlo, Consolas, monospace; border: 1px solid #b9bfcb; border-bottom-width: 2px }
kbd { border-radius: 4px; padding: 0 5px; background: #fff; color: var(--muted) }
label { font-size: 14px; color: var(--muted); display: inline-flex; gap: 8px; align-items: center }
input[type=range] { width: 100px; accent-color: var(--blue) }
.legend { display: flex; flex-wrap: wrap; gap: 2px 14px; list-style: none; margin: 0; padding: 0; font-size: 14px }
.legend span { display: inline-block; width: 13px; height: 13px; border: 1px solid #8b93a1; border-radius: 3px }
.legend span { margin-right: 6px; vertical-align: -2px }
main { display: grid; grid-template-columns: minmax(0, 1fr) minmax(340px, 42%); gap: 20px; padding: 16px 20px }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(158px, 1fr)); gap: 12px; align-content: start }
.card { border: 2px solid transparent; border-radius: 8px; padding: 5px; background: var(--pale); text-align: left }
.card { width: 100%; align-self: start }
.card.here { border-color: var(--blue); background: #e9f1fa }
.stack { position: relative; display: block; overflow: hidden; border-radius: 4px; background: #e3e6ec }
.stack img { display: block; width: 100%; height: auto }
.stack .mask { position: absolute; inset: 0; height: 100%; image-rendering: pixelated; opacity: var(--opacity, 0.5) }
.card .label { display: flex; justify-content: space-between; gap: 6px; font-size: 13px; margin-top: 4px }
.card .label span:first-child { overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.card .label span:last-child { color: var(--muted); font-variant-numeric: tabular-nums }
.badge { position: absolute; left: 6px; top: 6px; border-radius: 10px; padding: 0 9px; font-size: 12px; color: #fff }
.badge { background: #4d5563; line-height: 20px }
.accept > .stack > .badge { background: var(--accept) } .work > .stack > .badge { background: var(--work) }
.reject > .stack > .badge { background: var(--reject) }
.judged .stack > img:first-child { filter: saturate(0.7) }
.detail { position: sticky; top: var(--head, 130px); align-self: start; max-height: calc(100vh - var(--head, 130px)) }
.detail { overflow: auto }
.detail h2 { margin: 0 0 8px; font-size: 17px; overflow-wrap: anywhere }
.detail h2 { display: flex; gap: 10px; align-items: baseline }
.detail h2 small { color: var(--muted); font-weight: 400; font-size: 14px }
.detail > div > .stack { margin: 0 auto }
.small { display: grid; grid-template-columns: 1fr 1fr; gap: 8px; margin-top: 8px }
.small img { width: auto; max-width: 100%; max-height: 23vh; display: block }
figure { margin: 0 } figcaption { font-size: 13px; color: var(--muted); margin-top: 3px }
.actions { display: flex; flex-wrap: wrap; gap: 8px; margin: 10px 0 }
.actions button { flex: 1; padding: 8px 10px; border-width: 2px; font-weight: 600 }
.actions .accept { border-color: var(--accept); color: var(--accept) }
.actions .work { border-color: var(--work); color: var(--work) }
.actions .reject { border-color: var(--reject); color: var(--reject) }
.actions .chosen.accept { background: var(--accept); color: #fff } .actions .chosen.work { background: var(--work) }
.actions .chosen.work, .actions .chosen.reject { color: #fff } .actions .chosen.reject { background: var(--reject) }
table { border-collapse: collapse; font-size: 13px; width: 100%; font-variant-numeric: tabular-nums }
td, th { text-align: left; padding: 2px 8px 2px 0; font-weight: 400; border-bottom: 1px solid var(--faint) }
td:last-child { width: 45% } meter { width: 100%; height: 10px; vertical-align: middle }
.empty { color: var(--muted); padding: 40px 0 }
@media (max-width: 820px) { main { grid-template-columns: 1fr } .detail { position: static; order: -1 } }
"""

SCRIPT = """
"use strict";
const DATA = JSON.parse(document.getElementById("data").textContent);
// Pages may share their storage: a decision is kept by what was looked at, for other rounds have other images.
const key = image => `segserve-review-${DATA.artifact}-${DATA.round}-${image.looked_at}`;
const WORDS = { accept: "accepted", work: "needs work", reject: "rejected" };
const GUESS = { accept: "accept", review: "review", relabel: "relabel" };
const at = id => document.getElementById(id);
const cards = [...document.querySelectorAll(".card")];
let decisions = {}, past = [], here = -1, isSaved = true;

try {
  for (const image of DATA.images) {
    const verdict = localStorage.getItem(key(image));
    if (verdict) decisions[image.name] = verdict;
  }
} catch (error) { /* private windows have none */ }

const shown = () => cards.map((card, index) => index).filter(index => !cards[index].hidden);

function draw() {
  const counted = { accept: 0, work: 0, reject: 0 };
  cards.forEach((card, index) => {
    const image = DATA.images[index], verdict = decisions[image.name];
    if (verdict) counted[verdict] += 1;
    card.className = `card ${verdict ? `${verdict} judged` : ""} ${index === here ? "here" : ""}`;
    card.setAttribute("aria-current", index === here);
    card.querySelector(".badge").textContent = verdict ? WORDS[verdict] : GUESS[image.verdict] + "?";
  });
  for (const verdict in counted) at(`count-${verdict}`).textContent = counted[verdict];
  at("count-left").textContent = cards.length - counted.accept - counted.work - counted.reject;
  at("undo").disabled = past.length === 0;
  for (const button of document.querySelectorAll(".actions button"))
    button.classList.toggle("chosen", here >= 0 && decisions[DATA.images[here].name] === button.dataset.verdict);
}

function go(index, isScrolled = true) {
  here = index;
  at("detail").hidden = index < 0;
  at("none").hidden = index >= 0;
  if (index >= 0) {
    const image = DATA.images[index], [photo, mask] = cards[index].querySelectorAll("img");
    at("name").textContent = image.name;
    at("guess").textContent = `${image.by}: ${GUESS[image.verdict]}`;
    at("large").src = at("plain").src = photo.src;
    at("large-mask").src = mask.src;
    at("large").parentElement.style.maxWidth = `calc(${image.aspect} * 48vh)`;
    at("views").src = image.views;
    at("scores").innerHTML = "";
    for (const [name, value] of Object.entries(image.scores)) {
      const row = at("scores").insertRow(), meter = document.createElement("meter");
      meter.value = value;
      row.insertCell().textContent = name.replaceAll("_", " ");
      row.insertCell().textContent = value.toFixed(3);
      row.insertCell().append(meter);
    }
    if (isScrolled) cards[index].scrollIntoView({ block: "nearest" });
  }
  draw();
}

function step(by) {
  const places = shown(), next = places[places.indexOf(here) + by];
  if (next !== undefined) go(next);
}

function keep(image, verdict) {
  isSaved = false;
  if (verdict) decisions[image.name] = verdict; else delete decisions[image.name];
  try {
    if (verdict) localStorage.setItem(key(image), verdict); else localStorage.removeItem(key(image));
  } catch (error) { /* likewise */ }
}

function judge(verdict) {
  if (here < 0) return;
  const image = DATA.images[here];
  past.push([here, decisions[image.name]]);
  keep(image, verdict);
  const places = shown(), after = places.filter(index => index > here), left = [...after, ...places];
  go(left.find(index => !decisions[DATA.images[index].name]) ?? here);
}

function undo() {
  if (!past.length) return;
  const [index, before] = past.pop();
  keep(DATA.images[index], before);
  cards[index].hidden = false;
  go(index);
}

function save() {
  const judged = DATA.images.filter(image => decisions[image.name]);
  const looked_at = Object.fromEntries(judged.map(image => [image.name, image.looked_at]));
  const reviewer = at("reviewer").value.trim();
  const table = { round: DATA.round, artifact: DATA.artifact, reviewer, decisions, looked_at };
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([JSON.stringify(table, null, 1) + "\\n"], { type: "application/json" }));
  link.download = "decisions.json";
  link.click();
  isSaved = true;
}

function filter() {
  const wanted = at("filter").value;
  cards.forEach((card, index) => {
    const image = DATA.images[index], isOpen = !decisions[image.name];
    card.hidden = !(wanted === "all" || wanted === image.verdict || (wanted === "open" && isOpen));
  });
  at("empty").hidden = shown().length > 0;
  go(shown()[0] ?? -1, false);
}

function opacity(value) {
  at("opacity").value = value;
  document.documentElement.style.setProperty("--opacity", value / 100);
}

const KEYS = {
  a: () => judge("accept"), w: () => judge("work"), r: () => judge("reject"),
  ArrowRight: () => step(1), ArrowLeft: () => step(-1), j: () => step(1), k: () => step(-1),
  u: undo, s: save, " ": () => opacity(at("opacity").value > 0 ? 0 : 50),
};
addEventListener("keydown", event => {
  const isTyping = event.target.id === "reviewer" || event.target.tagName === "SELECT";
  if (isTyping || event.altKey || (event.ctrlKey || event.metaKey) && event.key !== "z") return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const act = event.ctrlKey || event.metaKey ? undo : KEYS[key];
  if (!act) return;
  event.preventDefault();
  act();
});
cards.forEach((card, index) => card.addEventListener("click", () => go(index, false)));
for (const button of document.querySelectorAll(".actions button"))
  button.addEventListener("click", () => judge(button.dataset.verdict));
at("undo").addEventListener("click", undo);
at("save").addEventListener("click", save);
at("filter").addEventListener("change", filter);
at("opacity").addEventListener("input", event => opacity(event.target.value));
addEventListener("beforeunload", event => { if (!isSaved) event.preventDefault(); });
const measure = () => document.documentElement.style.setProperty(
  "--head", `${document.querySelector("header").getBoundingClientRect().height + 16}px`);
addEventListener("resize", measure);
measure();
opacity(50);
filter();
"""
