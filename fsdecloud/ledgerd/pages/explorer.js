// Shows the ledger: one page, what is on it named by the part of the address after "#". Everything that comes from the server
// is put on the page as text (`el`), never as markup: names and addresses in it are other people's words.
"use strict";

const main = document.getElementById("main");
const PAGE_SIZE = 20;
const CHART_SIZE = 60;
let overview = null;
let turn = 0; // of the page that is being fetched: what comes late for an earlier one is dropped

// ---- making elements ----------------------------------------------------------------------------------------------------
function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, value);
  element.append(...children.map((child) => (child instanceof Node ? child : String(child))));
  return element;
}

function svg(tag, attributes) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

const short = (id) => (id.length > 20 ? `${id.slice(0, 12)}…${id.slice(-4)}` : id);
const link = (kind, id, text) => el("a", { href: `#/${kind}/${id}`, class: "id", title: id }, text === undefined ? short(id) : text);
const orDash = (value) => (value === null || value === undefined || value === "" ? "–" : value);

// The roles are said again because on a phone the style sheet makes blocks of the table's parts, which takes them away.
function table(caption, columns, rows, empty) {
  if (!rows.length) return el("p", { class: "quiet" }, empty);
  const kind = (name) => (isNumber(name) ? { class: "number" } : LONG.has(name) ? { class: "long" } : {});
  const head = columns.map((name) => el("th", { role: "columnheader", scope: "col", ...kind(name) }, label(name)));
  const body = rows.map((row) => el("tr", { role: "row" }, ...row.map((cell, index) => el(
    "td", { role: "cell", "data-label": label(columns[index]), ...kind(columns[index]) }, orDash(cell)))));
  return el("table", { role: "table" }, el("caption", {}, caption),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, ...head)), el("tbody", { role: "rowgroup" }, ...body));
}

// A column of numbers is named with a # before its name; in some columns stand other people's words, however long.
const LONG = new Set(["Address", "Stake", "What it does"]);
const isNumber = (name) => name.startsWith("#");
const label = (name) => name.replace(/^#/, "");

const facts = (rows) => el("dl", { class: "facts" }, ...rows.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, orDash(value))]));
const cards = (rows) => el("dl", { class: "cards" }, ...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, orDash(value)))));

function chart(title, blocks, value, words) {
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${CHART_SIZE} 20`, preserveAspectRatio: "none", role: "img" });
  const values = blocks.map(value);
  const top = Math.max(...values, 1e-9);
  values.forEach((height, index) => {
    const size = Math.max(height > 0 ? 0.4 : 0, (20 * height) / top);
    picture.append(svg("rect", { x: CHART_SIZE - 1 - index + 0.1, y: 20 - size, width: 0.8, height: size }));
  });
  const range = `${words(Math.min(...values))} to ${words(Math.max(...values))} in the last ${blocks.length} blocks`;
  picture.setAttribute("aria-label", `${title}: ${range}`);
  return el("figure", {}, el("figcaption", {}, `${title}: ${range}`), picture);
}

// ---- words for numbers --------------------------------------------------------------------------------------------------
function scaled(number, step, units) {
  let unit = 0;
  while (number >= step && unit < units.length - 1) { number /= step; unit += 1; }
  return `${unit && number < 100 ? number.toPrecision(3) : Math.round(number)}${units[unit]}`;
}

const bytes = (number) => (number === null ? "–" : scaled(Number(number), 1024, [" B", " KiB", " MiB", " GiB", " TiB", " PiB", " EiB"]));
const count = (number) => scaled(Number(number), 1000, ["", " k", " M", " G", " T", " P", " E", " Z"]);
const rate = (number) => (number === null ? "–" : scaled(number, 1000, [" H/s", " kH/s", " MH/s", " GH/s", " TH/s", " PH/s", " EH/s"]));

function span(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h`;
  return `${Math.floor(whole / 86400)} days`;
}

function moment(seconds) {
  const date = new Date(seconds * 1000);
  return el("time", { datetime: date.toISOString() }, date.toLocaleString());
}

function age(seconds) {
  const date = new Date(seconds * 1000);
  const now = overview ? overview.now : Date.now() / 1000;
  const text = seconds > now + 1 ? `in ${span(seconds - now)}` : `${span(now - seconds)} ago`;
  return el("time", { datetime: date.toISOString(), title: date.toLocaleString() }, text);
}

// ---- pages --------------------------------------------------------------------------------------------------------------
async function get(path) {
  const answer = await fetch(path, { headers: { Accept: "application/json" } });
  if (!answer.ok) throw new Error((await answer.text()).slice(0, 300).trim() || `status ${answer.status}`);
  return answer.json();
}

async function blocksPage(before) {
  overview = await get("/api/overview");
  const first = before ? `before=${before}&` : "";
  const [shown, drawn] = await Promise.all([
    get(`/api/blocks?${first}count=${PAGE_SIZE}`), before ? null : get(`/api/blocks?count=${CHART_SIZE}`)]);
  const parts = [el("h1", {}, before ? `Blocks below ${before}` : `Height ${overview.height}`)];
  if (!before) {
    parts.push(cards([
      ["Last block", overview.height ? age(overview.tip_time) : "none yet"],
      ["Waiting transactions", `${overview.mempool.count} (${bytes(overview.mempool.bytes)})`],
      ["Difficulty, hashes per block", count(overview.difficulty)],
      ["Hash rate of the network", rate(overview.network_rate)],
      ["Mining here", overview.mining ? `yes, ${rate(overview.hash_rate)}` : "not now"],
      ["Connected daemons", overview.daemons],
    ]));
    if (drawn.blocks.length > 1) {
      parts.push(el("div", { class: "charts" },
        chart("Difficulty", drawn.blocks, (block) => Number(block.difficulty), count),
        chart("Transactions in a block", drawn.blocks, (block) => block.transactions || 0, count)));
    }
    parts.push(el("h2", {}, "Latest blocks"));
  }
  parts.push(table("Blocks of the best chain, the newest first", ["#Height", "Id", "Age", "#Transactions", "#Size", "Mined by"],
    shown.blocks.map((block) => [
      link("block", block.height, block.height), link("block", block.id), age(block.time), block.transactions, bytes(block.bytes),
      block.miner ? link("key", block.miner) : "–"]),
    "There is no block yet."));
  const last = shown.blocks[shown.blocks.length - 1];
  const pager = el("div", { class: "pager" });
  if (before) pager.append(el("a", { href: "#/" }, "Newest blocks"));
  if (last && last.height > 1) pager.append(el("a", { href: `#/before/${last.height}` }, "Older blocks"));
  parts.push(pager);
  return parts;
}

function transactions(caption, list, empty) {
  return table(caption, ["Id", "Kind", "What it does", "#Fee", "#Size"],
    list.map((tx) => [tx.id ? link("tx", tx.id) : "–", tx.kind, tx.text, tx.fee, bytes(tx.bytes)]), empty);
}

async function blockPage(id) {
  const block = await get(`/api/block/${encodeURIComponent(id)}`);
  const state = block.is_best ? `${block.confirmations} deep in the best chain` : "not in the best chain";
  const parts = [
    el("h1", {}, `Block ${block.height}`),
    facts([
      ["State", block.is_best ? state : el("span", { class: "problem" }, state)],
      ["Id", el("span", { class: "id" }, block.id)],
      ["Time", moment(block.time)],
      ["Mined by", block.miner ? link("key", block.miner) : "–"],
      ["Difficulty", `${block.difficulty} hashes`],
      ["Size", block.bytes === null ? "only its header is kept here" : bytes(block.bytes)],
      ["Block before", block.height > 1 ? link("block", block.parent) : "the genesis block: the network document"],
      ["Block after", block.next ? link("block", block.next) : "–"],
      ["Target", el("span", { class: "id" }, block.target)],
      ["Nonce", el("span", { class: "id" }, block.nonce)],
      ["Root of the ids", el("span", { class: "id" }, block.ids_root)],
      ["Root of the bytes", el("span", { class: "id" }, block.bytes_root)],
      ["Root of the state", el("span", { class: "id" }, block.state_root)],
    ]),
    el("h2", {}, "Transactions"),
  ];
  if (block.transactions === null) parts.push(el("p", { class: "quiet" }, "They are not kept here any more."));
  else {
    const rest = block.transactions - block.list.length;
    parts.push(transactions(rest > 0 ? `The first ${block.list.length} of ${block.transactions}` : "All of this block", block.list, "none"));
  }
  return parts;
}

const KEYS = new Set(["recipient", "sender", "peer", "volume", "operator", "device"]);

async function txPage(id) {
  const tx = await get(`/api/tx/${encodeURIComponent(id)}`);
  return [
    el("h1", {}, `Transaction: ${tx.kind}`),
    facts([
      ["State", tx.height === null ? "waiting for a block" : `${tx.confirmations} deep in the best chain`],
      ["Id", el("span", { class: "id" }, tx.id)],
      ["Block", tx.height === null ? "–" : link("block", tx.height, `${tx.height}, place ${tx.index}`)],
      ["Fee", tx.fee],
      ["Size", bytes(tx.bytes)],
    ]),
    el("h2", {}, "What it says"),
    facts(tx.fields.map(({ name, value }) => [
      name.replaceAll("_", " "),
      KEYS.has(name) && value ? link("key", value, value)
        : name === "lease_expiry" ? moment(Number(value)) : el("span", { class: /^[0-9a-f]{40,}$/.test(value) ? "id" : "" }, value)])),
  ];
}

async function keyPage(id) {
  const found = await get(`/api/key/${encodeURIComponent(id)}`);
  const parts = [
    el("h1", {}, "Key"),
    facts([
      ["Key", el("span", { class: "id" }, found.key)],
      ["Address to pay to", el("span", { class: "id" }, found.address)],
      ["Balance", found.balance],
      ["Transfers sent", found.nonce],
    ]),
  ];
  if (found.peer) {
    parts.push(el("h2", {}, "Storage peer"), facts([
      ["Address", found.peer.url],
      ["Capacity", found.peer.capacity ? bytes(found.peer.capacity) : "takes nothing new"],
      ["Price for a GiB and 30 days", found.peer.price],
      ["Registered", link("block", found.peer.height, `block ${found.peer.height}`)],
      ["Run by", found.operator ? link("key", found.operator) : "not declared"],
    ]));
  }
  if (found.volume) {
    parts.push(el("h2", {}, "Volume"), facts([
      ["Latest state", found.volume.sequence],
      ["Anchored in", link("block", found.volume.height, `block ${found.volume.height}`)],
      ["Written by the device", el("span", { class: "id" }, found.volume.device)],
      ["Its lease ends", moment(found.volume.lease_expiry)],
    ]), el("h2", {}, "Anchors"));
    parts.push(table("The latest, newest first", ["Transaction", "What it does", "#Block"],
      found.anchors.map((anchor) => [link("tx", anchor.id), anchor.text, link("block", anchor.height, anchor.height)]), "none"));
  }
  return parts;
}

async function waitingPage() {
  const pool = await get("/api/mempool");
  return [
    el("h1", {}, "Waiting transactions"),
    el("p", { class: "quiet" }, `Waiting for a block: ${pool.count}, ${bytes(pool.bytes)}.`),
    transactions(pool.list.length < pool.count ? `The first ${pool.list.length}` : "All, in the order of arrival", pool.list, "Nothing waits."),
  ];
}

async function peersPage() {
  const found = await get("/api/peers");
  const health = (daemon) => {
    const behind = found.height - daemon.height;
    return behind > 2 ? `${behind} blocks behind` : behind < -2 ? `${-behind} blocks ahead` : "in step";
  };
  const price = (peer) => (peer.price === "0" ? "nothing" : peer.price);
  const since = (peer) => el("span", {}, link("block", peer.height, `block ${peer.height}`), ", ", peer.time === null ? "–" : age(peer.time));
  const stake = (peer) => {
    const own = peer.stake;
    if (!own) return "none";
    if (own.burned) return "burned: its votes contradicted each other";
    const left = own.release ? `, paid back at block ${own.release}` : own.votes ? "" : ", suspended for not voting";
    if (own.last_vote === null) return `${own.amount}${left}; no vote yet`;
    const missed = Math.max(0, Math.floor((found.checkpoint - own.last_vote) / found.interval));
    return `${own.amount}${left}; last vote for block ${own.last_vote}, ${missed > 1 ? `${missed} checkpoints ago` : "in step"}`;
  };
  const stakes = found.interval
    ? " A peer with a stake votes about each checkpoint: one whose last vote is many checkpoints ago was off for so long."
    : " This network has no checkpoints, so nobody bonds a stake or votes.";
  return [
    el("h1", {}, "Peers"),
    el("h2", {}, "Storage peers in the registry"),
    el("p", { class: "quiet" }, `${found.count === 1 ? "One is" : `${found.count} are`} registered, with ${bytes(found.capacity)} `
      + "on offer. A registration says what a peer offers and asks; a peer sends a new one when that changes, so an old one is no "
      + "bad sign. Whether a peer answers, this daemon does not know: decloud status says it of those that hold your data."
      + stakes),
    table(found.peers.length < found.count ? `The first ${found.peers.length}` : "By the order of their first registration",
      ["Peer", "Address", "Capacity", "Price for a GiB and 30 days", "Last registered", "Stake", "Run by"],
      found.peers.map((peer) => [
        link("key", peer.id), peer.url, peer.capacity === "0" ? "takes nothing new" : bytes(peer.capacity),
        price(peer), since(peer), stake(peer), peer.operator ? link("key", peer.operator) : "not declared"]),
      "No storage peer is registered."),
    el("h2", {}, "Connected ledger daemons"),
    table("What they say of themselves", ["Address", "Id", "Way", "#Height", "Health"],
      found.daemons.map((daemon) => [
        daemon.url, daemon.id ? short(daemon.id) : "–", daemon.inbound ? "called us" : "called by us", daemon.height, health(daemon)]),
      "No other daemon is connected."),
  ];
}

async function dealsPage() {
  return [
    el("h1", {}, "Deals"),
    el("p", {}, "There are none yet: this version of the ledger has no storage contracts. Peers admit writers by a list of their own, and nothing is paid."),
  ];
}

const PAGES = {
  "": ["Blocks", () => blocksPage(0)],
  before: ["Blocks", (id) => blocksPage(Number(id) || 0)],
  block: ["Block", blockPage],
  tx: ["Transaction", txPage],
  key: ["Key", keyPage],
  waiting: ["Waiting", waitingPage],
  peers: ["Peers", peersPage],
  deals: ["Deals", dealsPage],
};

async function show(isNew) {
  const [kind, id] = location.hash.replace(/^#\/?/, "").split("/");
  const [title, page] = PAGES[kind] || ["Not found", async () => [el("h1", {}, "Not found"), el("p", {}, "There is no such page.")]];
  turn += 1;
  const mine = turn;
  main.setAttribute("aria-busy", "true");
  let parts;
  try {
    parts = await page(decodeURIComponent(id || ""));
  } catch (error) {
    if (!isNew && mine === turn) { main.setAttribute("aria-busy", "false"); return; } // what is shown stays, until it can be renewed
    parts = [el("h1", {}, "Not shown"), el("p", { class: "problem", role: "alert" }, error.message)];
  }
  if (mine !== turn) return;
  const focused = main.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
  main.replaceChildren(...parts);
  main.dataset.page = location.hash;
  main.setAttribute("aria-busy", "false");
  document.title = `${title} · Ledger${overview ? ` ${overview.network.name}` : ""}`;
  for (const entry of document.querySelectorAll("nav a")) {
    if (entry.getAttribute("href") === `#/${kind === "before" ? "" : kind}`) entry.setAttribute("aria-current", "page");
    else entry.removeAttribute("aria-current");
  }
  if (focused) {
    const again = [...main.querySelectorAll("a")].find((anchor) => anchor.getAttribute("href") === focused);
    if (again) again.focus({ preventScroll: true });
  } else if (isNew === "moved") { main.focus({ preventScroll: true }); window.scrollTo(0, 0); }
}

// ---- live updates -------------------------------------------------------------------------------------------------------
const liveText = document.getElementById("live");
const pause = document.getElementById("pause");
const alarm = document.getElementById("alarm");
let socket = null;
let delay = 1000;

const paused = () => pause.getAttribute("aria-pressed") === "true";

function say(text, isOn) {
  if (liveText.textContent !== text) liveText.textContent = text;
  liveText.classList.toggle("on", isOn);
}

function changed(before, now) {
  if (!before) return true;
  const kind = location.hash.replace(/^#\/?/, "").split("/")[0];
  const isNewTip = before.tip !== now.tip;
  const isNewPool = before.mempool.count !== now.mempool.count || before.mempool.bytes !== now.mempool.bytes;
  if (kind === "") return true;
  if (kind === "waiting" || kind === "tx") return isNewTip || isNewPool;
  if (kind === "peers") return isNewTip || before.daemons !== now.daemons;
  return (kind === "block" || kind === "key") && isNewTip;
}

function take(message) {
  const before = overview;
  overview = JSON.parse(message.data);
  document.getElementById("name").textContent = overview.network.name;
  if (alarm.textContent !== overview.alarm) alarm.textContent = overview.alarm;
  alarm.hidden = !overview.alarm;
  if (changed(before, overview)) show(false);
}

function connect() {
  if (paused() || socket) return;
  const opened = new WebSocket(`ws://${location.host}/live`);
  socket = opened;
  opened.onmessage = (message) => { delay = 1000; say("live", true); take(message); };
  opened.onclose = () => {
    if (socket === opened) socket = null;
    if (paused()) return;
    say("not connected", false);
    setTimeout(connect, delay * (0.5 + Math.random()));
    delay = Math.min(30000, delay * 2);
  };
}

pause.addEventListener("click", () => {
  pause.setAttribute("aria-pressed", paused() ? "false" : "true");
  if (paused()) {
    say("paused", false);
    if (socket) socket.close();
    socket = null;
  } else connect();
});

document.getElementById("search").addEventListener("submit", async (event) => {
  event.preventDefault();
  const query = document.getElementById("query").value.trim();
  if (!query) return;
  try {
    const found = await get(`/api/search?q=${encodeURIComponent(query)}`);
    location.hash = `#/${found.kind}/${found.id}`;
  } catch (error) {
    turn += 1;
    main.replaceChildren(el("h1", {}, "Not found"), el("p", { class: "problem", role: "alert" }, error.message));
    main.setAttribute("aria-busy", "false");
  }
});

document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
window.addEventListener("hashchange", () => show("moved"));
show("first");
connect();
