"use strict";
// Everything that comes from a document or a model is shown as text (textContent), never as markup.

const $ = (id) => document.getElementById(id);
const LEVELS = 5; // shades of a score
const BLOCK = [64, 512]; // chunks that the browser lays out together, when they come into view: from so many on, to a line's end
const TAIL_PART = 8; // of the budget, what the end of a prompt may take (selection/rule.py)

const percent = (part) => `${(100 * part).toFixed(part < 0.095 ? 1 : 0)} %`;
const seconds = (ms) => (ms < 9950 ? (ms / 1000).toFixed(2) : (ms / 1000).toFixed(1));
const count = (number) => number.toLocaleString("en");

// ---- the map of a document: kept, revived, dropped -------------------------------------------------------------------

class ChunkMap {
  constructor() {
    this.spans = [];
    this.here = -1;
    $("text").addEventListener("mouseover", (event) => this.#hovered(event.target));
    $("text").addEventListener("click", (event) => this.#hovered(event.target, true));
    $("text").addEventListener("keydown", (event) => this.#key(event));
    $("overview").addEventListener("click", (event) => this.#picked(event));
    new ResizeObserver(() => this.spans.length && this.#overview()).observe($("map"));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.spans.length && this.#overview());
  }

  /** What a reply's chunks became. */
  show(data) {
    this.data = data;
    const n = data.scores.length;
    this.order = Array.from(data.scores.keys()).sort((a, b) => data.scores[b] - data.scores[a] || a - b);
    this.rank = new Int32Array(n);
    this.order.forEach((chunk, place) => (this.rank[chunk] = place));
    this.levels = Array.from(this.rank, (place) => LEVELS - Math.round((LEVELS * place) / Math.max(1, n - 1)));
    this.fates = data.fates;
    this.shown = this.fates.map((fate, at) => this.#style(fate, at));
    this.#write();
    $("map").hidden = false;
    $("text").scrollTop = 0;
    this.#overview();
    this.here = -1;
    this.#summary();
    this.#detail(-1);
  }

  hide() {
    $("map").hidden = true;
    this.spans = [];
    this.data = null;
  }

  /** About what another keep ratio would keep by the same scores; only asking again says exactly. */
  preview(ratio) {
    if (!this.data) return;
    const { reply, scores } = this.data;
    const same = Math.abs(ratio - reply.keep_ratio_used) < 0.005;
    this.fates = same ? this.data.fates : this.#chosen(ratio, reply, scores.length);
    this.fates.forEach((fate, at) => {
      const style = this.#style(fate, at);
      if (style !== this.shown[at]) this.#dress(at, style);
    });
    this.#overview();
    this.#summary(same ? null : ratio);
    this.#detail(this.here);
  }

  #chosen(ratio, reply, n) {
    const budget = Math.ceil(reply.prompt_tokens * ratio);
    const size = reply.chunk_size;
    let end = 0;
    while (end < n && this.data.fates[n - 1 - end] !== "dropped") end++;
    const tail = ratio === 1 ? n : Math.max(1, Math.min(end, Math.floor(budget / TAIL_PART / size)));
    const fates = new Array(n).fill("dropped").fill("kept", n - tail);
    let free = Math.max(1, Math.floor(budget / size) - tail);
    for (const chunk of this.order) {
      if (free === 0) break;
      if (fates[chunk] === "dropped") {
        fates[chunk] = "kept";
        free--;
      }
    }
    return fates;
  }

  #style(fate, at) {
    return fate === "kept" ? `k${this.levels[at]}` : fate[0];
  }

  #dress(at, style) {
    this.shown[at] = style;
    this.spans[at].className = at === this.here ? `${style} here` : style;
  }

  #write() {
    const all = document.createDocumentFragment();
    let block = null;
    this.spans = this.data.chunks.map((text, at, texts) => {
      const length = block?.childElementCount ?? BLOCK[1];
      if (length >= BLOCK[1] || (length >= BLOCK[0] && texts[at - 1].endsWith("\n"))) {
        block = all.appendChild(document.createElement("div"));
        block.className = "block";
      }
      const span = document.createElement("span");
      span.textContent = text;
      span.className = this.shown[at];
      span.dataset.at = at;
      return block.appendChild(span);
    });
    $("text").replaceChildren(all);
  }

  #overview() {
    const canvas = $("overview");
    const width = canvas.clientWidth;
    const n = this.shown.length;
    if (!width) return;
    const cell = Math.max(2, Math.min(12, Math.floor(Math.sqrt((width * 76) / n))));
    this.columns = Math.floor(width / cell);
    this.cell = cell;
    const scale = window.devicePixelRatio || 1;
    canvas.width = width * scale;
    canvas.height = Math.ceil(n / this.columns) * cell * scale;
    canvas.style.height = `${canvas.height / scale}px`;
    const style = getComputedStyle(document.documentElement);
    const [heat, back, gone] = ["--heat", "--back", "--bar"].map((name) => style.getPropertyValue(name).trim());
    const colours = { d: gone, r: `rgb(${back})` };
    for (let level = 0; level <= LEVELS; level++) colours[`k${level}`] = `rgb(${heat} / ${0.35 + 0.13 * level})`;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    const gap = cell > 4 ? 1 : 0;
    for (let at = 0; at < n; at++) {
      pen.fillStyle = colours[this.shown[at]];
      pen.fillRect((at % this.columns) * cell, Math.floor(at / this.columns) * cell, cell - gap, cell - gap);
    }
  }

  #summary(ratio = null) {
    const { reply } = this.data;
    const tokens = { kept: 0, revived: 0, dropped: 0 };
    this.fates.forEach((fate, at) => (tokens[fate] += Math.min(reply.chunk_size, reply.prompt_tokens - at * reply.chunk_size)));
    const read = tokens.kept + tokens.revived;
    const parts = [`${count(read)} of ${count(reply.prompt_tokens)} tokens read (${percent(read / reply.prompt_tokens)})`];
    if (tokens.revived) parts.push(`${count(tokens.revived)} of them returned`);
    parts.push(`chunks of ${reply.chunk_size}`);
    const preview = `Preview at ${ratio?.toFixed(2)}, by the same scores: about `;
    $("summary").textContent = (ratio === null ? "" : preview) + parts.join(", ") + ".";
  }

  #hovered(element, stay = false) {
    const at = Number(element.dataset?.at ?? -1);
    if (at < 0) return;
    if (stay) this.go(at, false);
    this.#detail(at);
  }

  #picked(event) {
    const at = Math.floor(event.offsetY / this.cell) * this.columns + Math.floor(event.offsetX / this.cell);
    if (at < this.spans.length) this.go(at, true);
  }

  /** Stand on a chunk. */
  go(at, scroll) {
    const before = this.here;
    this.here = at;
    if (before >= 0) this.#dress(before, this.shown[before]);
    this.#dress(at, this.shown[at]);
    if (scroll) this.#reveal(at);
    $("said").textContent = this.#detail(at);
  }

  #reveal(at) {
    // blocks that were never laid out have a guessed height: bring the block in first, then the chunk
    this.spans[at].parentElement.scrollIntoView({ block: "nearest" });
    this.spans[at].scrollIntoView({ block: "nearest" });
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const last = this.spans.length - 1;
    const read = (from, step) => {
      let at = from + step;
      while (at >= 0 && at <= last && this.fates[at] === "dropped") at += step;
      return at < 0 || at > last ? from : at;
    };
    const moves = {
      ArrowRight: () => Math.min(last, this.here + 1),
      ArrowLeft: () => Math.max(0, this.here - 1),
      n: () => read(this.here, 1),
      p: () => read(this.here, -1),
      Home: () => 0,
      End: () => last,
    };
    const move = moves[event.key];
    if (!move || last < 0) return;
    event.preventDefault();
    const at = move();
    if (at >= 0) this.go(at, true);
  }

  #detail(at) {
    const [fate, place, score, voters] = $("detail").children;
    if (at < 0) {
      for (const part of [fate, place, score, voters]) part.textContent = "";
      return "";
    }
    const { scores, queries, voters: asked } = this.data;
    fate.textContent = this.fates[at];
    place.textContent = `chunk ${count(at)} of ${count(scores.length)}`;
    score.textContent = `score ${scores[at].toPrecision(3)}, place ${count(this.rank[at] + 1)}`;
    const names = asked[at].map((one) => queries[one]);
    voters.textContent = names.length ? `asked for by ${names.join(", ")}` : "";
    return [fate, place, score, voters].map((part) => part.textContent).filter(Boolean).join(", ");
  }
}

const map = new ChunkMap();
const ratio = () => Number($("ratio").value) / 100;
let frame = 0;

function slid() {
  $("ratio-shown").textContent = ratio().toFixed(2);
  cancelAnimationFrame(frame);
  frame = requestAnimationFrame(() => map.preview(ratio()));
}
$("ratio").addEventListener("input", slid);

// ---- a page that only explains one prompt ----------------------------------------------------------------------------

function explain(data) {
  document.body.classList.add("standalone");
  $("summary").before($("ratio-field"));
  $("ask").remove();
  $("empty").remove();
  $("server").textContent = `Read by ${data.reply.method} in ${seconds(data.reply.draft_ms)} s`;
  $("ratio").value = Math.round(100 * data.reply.keep_ratio_used);
  $("ratio-shown").textContent = ratio().toFixed(2);
  map.show(data);
}

// ---- asking ----------------------------------------------------------------------------------------------------------

class Answer {
  constructor(id) {
    this.card = $(id);
    for (const name of ["number", "unit", "facts", "answer"]) this[name] = this.card.querySelector(`.${name}`);
    this.bar = this.card.querySelector(".bar span");
    this.clear("");
  }

  clear(unit) {
    clearInterval(this.clock);
    this.card.classList.remove("waiting");
    Object.assign(this, { ttft: null, text: "", done: null });
    for (const part of [this.number, this.facts, this.answer]) part.textContent = "";
    this.unit.textContent = unit;
    this.bar.style.width = "0";
  }

  wait() {
    this.clear("s");
    this.card.classList.add("waiting");
    const start = performance.now();
    this.clock = setInterval(() => (this.number.textContent = seconds(performance.now() - start)), 100);
  }

  say(text, ttft) {
    clearInterval(this.clock);
    this.card.classList.remove("waiting");
    [this.text, this.ttft] = [text, ttft];
    this.number.textContent = seconds(ttft);
    this.unit.textContent = "s to the first token";
    this.answer.textContent = text.trimStart();
  }
}

const sparse = new Answer("sparse");
const dense = new Answer("dense");
let running = null; // an AbortController while something is asked
let denseOf = null; // the question the dense answer belongs to

function problem(sentence) {
  $("problem").hidden = !sentence;
  $("problem").textContent = sentence ?? "";
}

async function lines(response, each) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    const found = (rest + (value ?? "")).split("\n");
    rest = found.pop();
    for (const line of found) each(JSON.parse(line));
    if (done) return;
  }
}

async function answer(card, body, signal) {
  card.wait();
  const response = await fetch("/ask", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw new Error((await response.json()).error);
  await lines(response, (event) => {
    if (event.error) throw new Error(event.error);
    if (event.prompt) card.facts.textContent = `${count(event.prompt)} tokens`;
    if (event.text !== undefined) {
      card.say(event.text, event.ttft_ms);
      bars();
    }
    if (event.done) card.done = event.done;
  });
  if (!card.done) throw new Error("The answer ended early.");
}

function bars() {
  const longest = Math.max(sparse.ttft ?? 0, dense.ttft ?? 0) || 1;
  for (const card of [sparse, dense]) card.bar.style.width = `${(100 * (card.ttft ?? 0)) / longest}%`;
}

function verdict() {
  if (!(sparse.done && dense.done && sparse.done.reply.applied)) return "";
  const times = dense.ttft / sparse.ttft;
  const sooner = times >= 1 ? `${times.toFixed(1)} times sooner` : `${(1 / times).toFixed(1)} times later`;
  const a = sparse.text.trim().split(/\s+/);
  const b = dense.text.trim().split(/\s+/);
  const at = a.findIndex((word, place) => word !== b[place]);
  const same = a.length === b.length && at < 0;
  return `First token ${sooner}. The answers ${same ? "are the same." : `differ from word ${(at < 0 ? Math.min(a.length, b.length) : at) + 1} on.`}`;
}

function sparseFacts() {
  const { reply } = sparse.done;
  if (!reply.applied) {
    sparse.facts.textContent = `Served dense: ${reply.reason}`;
    return;
  }
  sparse.facts.textContent =
    `${count(reply.kept_tokens)} of ${count(reply.prompt_tokens)} tokens, ${reply.method} ${seconds(reply.draft_ms)} s` +
    (reply.revived_tokens ? `, ${count(reply.revived_tokens)} returned` : "") +
    (sparse.done.chunks ? "" : "; no scores to show");
}

function asked() {
  const shared = {
    document: $("document").value,
    question: $("question").value,
    chat: $("chat").checked,
    answer_tokens: Math.min(4096, Math.max(1, Math.round(Number($("tokens").value)) || 64)),
  };
  const own = { keep_ratio: ratio(), selection: $("selection").value };
  if ($("method").value) own.method = $("method").value;
  if ($("revive").value) own.revive_every = Number($("revive").value);
  return [shared, own];
}

async function ask() {
  if (running) return;
  const [shared, own] = asked();
  if (!shared.document.trim() && !shared.question.trim()) {
    $("document").focus();
    return;
  }
  problem(null);
  running = new AbortController();
  const { signal } = running;
  [$("go").disabled, $("stop").hidden, $("answers").hidden, $("empty").hidden] = [true, false, false, true];
  $("verdict").textContent = "Asking.";
  const same = denseOf === JSON.stringify(shared) && dense.done;
  if (!same) dense.clear("");
  try {
    await answer(sparse, { ...shared, ...own, sparse: true }, signal);
    sparseFacts();
    if (sparse.done.chunks) map.show(sparse.done);
    else map.hide();
    if (!same) {
      denseOf = null;
      await answer(dense, { ...shared, sparse: false }, signal);
      denseOf = JSON.stringify(shared);
    }
    $("verdict").textContent = verdict();
  } catch (error) {
    $("verdict").textContent = "";
    for (const card of [sparse, dense]) if (card.card.classList.contains("waiting")) card.clear("");
    $("answers").hidden = !sparse.text && !dense.text;
    if (!signal.aborted) {
      problem(error instanceof TypeError ? "The playground itself does not answer. Is its command still running?" : error.message);
      look();
    }
  } finally {
    running = null;
    [$("go").disabled, $("stop").hidden] = [false, true];
  }
}

function counted() {
  const length = $("document").value.length;
  $("length").textContent = length ? `${count(length)} characters` : "";
}

async function load(file) {
  if (!file) return;
  $("document").value = await file.text();
  counted();
}

// ---- the server ------------------------------------------------------------------------------------------------------

let known = false; // whether the settings are the server's
let next = 0; // a timer: while the server is down it is looked for

async function look() {
  clearTimeout(next);
  const line = $("server");
  let found;
  try {
    const response = await fetch("/server");
    found = await response.json();
    if (!response.ok) throw new Error(found.error);
  } catch (error) {
    line.textContent = error instanceof TypeError ? "The playground itself does not answer." : error.message;
    line.className = "down";
    next = setTimeout(look, 3000);
    return;
  }
  line.className = "";
  line.textContent = `${found.model.split("/").slice(-2).join("/")} at ${found.url}` + (found.spec_prefill ? "" : ", started without --spec-prefill");
  if (known) return;
  known = true;
  $("chat").checked = found.chat;
  $("chat-field").hidden = !found.chat;
  const settings = found.spec_prefill;
  if (!settings) return;
  $("method").replaceChildren(...settings.method.map((name) => new Option(name, name)));
  $("selection").value = settings.selection;
  $("ratio").value = Math.round(100 * settings.keep_ratio);
  slid();
}

function start() {
  $("ask").addEventListener("submit", (event) => {
    event.preventDefault();
    ask();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
    if (event.key === "Escape") running?.abort();
  });
  $("stop").addEventListener("click", () => running?.abort());
  $("open").addEventListener("click", () => $("file").click());
  $("file").addEventListener("change", () => load($("file").files[0]));
  $("document").addEventListener("input", counted);
  $("document").addEventListener("dragover", (event) => {
    event.preventDefault();
    $("document").classList.add("over");
  });
  $("document").addEventListener("dragleave", () => $("document").classList.remove("over"));
  $("document").addEventListener("drop", (event) => {
    $("document").classList.remove("over");
    if (!event.dataTransfer.files.length) return;
    event.preventDefault();
    load(event.dataTransfer.files[0]);
  });
  slid();
  look();
}

const given = $("explained").textContent;
if (given) explain(JSON.parse(given));
else start();
