// The dashboard: reads the admin API every two seconds and shows it. No state of its own, no libraries.
"use strict";

const REFRESH_MS = 2000;
const HISTORY = 150; // samples: five minutes
const ROWS = 25;
const backlogs = [];
const byId = (id) => document.getElementById(id);

async function call(method, path, body) {
  const options = { method, headers: { "OpenHQM-Admin": "dashboard" } };
  if (body !== undefined) {
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify(body);
  }
  const response = await fetch(path, options);
  const data = await response.json();
  if (!response.ok) throw new Error(data.detail || response.statusText);
  return data;
}

function element(tag, text, attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

function age(seconds) {
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

const since = (moment) => (moment ? `${age((Date.now() - Date.parse(moment)) / 1000)} ago` : "");
const count = (number) => number.toLocaleString("en");
const rate = (number) => (number === null ? "–" : `${number >= 100 ? Math.round(number) : number}/s`);

function showFigures(stats) {
  const { requests, store } = stats;
  byId("queue").textContent = stats.queue;
  const trouble = [
    stats.phase !== "serving" && stats.phase,
    !store.reachable && "store unreachable",
    stats.breaker === "open" && "circuit breaker open: the app refuses",
    !requests.conserved && "counts do not add up",
  ].filter(Boolean);
  byId("about").textContent =
    trouble.join(", ") || `serving for ${age(stats.uptime_seconds)}, durability ${store.durability}, version ${stats.version}`;
  byId("about").className = trouble.length ? "bad" : "";

  const pause = byId("pause");
  pause.hidden = false;
  pause.textContent = stats.paused ? "Resume" : "Pause";
  pause.onclick = () => act("POST", stats.paused ? "/admin/v1/resume" : "/admin/v1/pause", {});

  const tiles = [
    ["backlog", count(stats.backlog)],
    ["in flight", `${stats.in_flight} / ${stats.concurrency}`],
    ["accepted", rate(stats.arrival_per_second)],
    ["finished", rate(stats.drain_per_second)],
    ["oldest waits", age(stats.oldest_age_seconds)],
    ["app takes", stats.mean_app_seconds === null ? "–" : `${stats.mean_app_seconds.toPrecision(2)} s`],
    ["to be retried", count(requests.retrying)],
    ["dead letters", count(requests.dead_letters), requests.dead_letters > 0],
    ["done", count(requests.done)],
  ];
  byId("tiles").replaceChildren(...tiles.map(([name, value, bad]) => {
    const tile = element("div", "", { class: bad ? "tile bad" : "tile" });
    tile.append(element("b", value), element("span", name));
    return tile;
  }));
}

function showBacklog(backlog) {
  backlogs.push(backlog);
  if (backlogs.length > HISTORY) backlogs.shift();
  const top = Math.max(...backlogs, 1);
  const step = 600 / (HISTORY - 1);
  const left = 600 - (backlogs.length - 1) * step;
  const points = backlogs.map((value, i) => `${(left + i * step).toFixed(1)},${(76 - (value / top) * 70).toFixed(1)}`);
  byId("backlog").querySelector("polyline").setAttribute("points", points.join(" "));
  byId("backlog").querySelector("polygon").setAttribute("points", [`${left},80`, ...points, "600,80"].join(" "));
  byId("backlog-range").textContent = `peak ${count(Math.max(...backlogs))}`;
}

function showRows(table, records, cells, buttons) {
  const rows = records.map((record) => {
    const row = document.createElement("tr");
    row.append(element("td", `${record.method || "?"} ${record.path || ""}`));
    for (const cell of cells(record)) row.append(element("td", cell));
    const id = element("td", "");
    id.append(element("code", record.id));
    const actions = element("td", "");
    for (const [label, action, style] of buttons(record)) {
      const button = element("button", label, { type: "button", class: style || "" });
      button.onclick = action;
      actions.append(button, " ");
    }
    row.append(id, actions);
    return row;
  });
  if (!rows.length) {
    const row = document.createElement("tr");
    row.append(element("td", "none", { class: "empty", colspan: "6" }));
    rows.push(row);
  }
  byId(table).tBodies[0].replaceChildren(...rows);
}

async function showDetails(id) {
  const dialog = byId("details");
  try {
    const found = await call("GET", `/admin/v1/requests/${id}`);
    dialog.querySelector("pre").textContent = JSON.stringify(found, null, 2);
    dialog.showModal();
  } catch (error) {
    complain(error);
  }
}

async function act(method, path, body) {
  try {
    await call(method, path, body);
    await refresh();
  } catch (error) {
    complain(error);
  }
}

function complain(error) {
  byId("about").textContent = error.message;
  byId("about").className = "bad";
}

async function refresh() {
  const [stats, dead, unfinished] = await Promise.all([
    call("GET", "/admin/v1/stats"),
    call("GET", `/admin/v1/dead-letters?limit=${ROWS}`),
    call("GET", `/admin/v1/requests?state=queued,running,retrying&limit=${ROWS}`),
  ]);
  showFigures(stats);
  showBacklog(stats.backlog);
  const show = (record) => ["Show", () => showDetails(record.id)];
  const reason = (r) => (r.replayed_as ? `${r.reason} (replayed)` : r.reason);
  showRows("dead", dead.records, (r) => [reason(r), r.attempts, since(r.finished_at)], (r) => [
    show(r),
    ...(r.replayed_as ? [] : [["Replay", () => act("POST", "/admin/v1/dead-letters/replay", { ids: [r.id] })]]),
    ["Purge", () => act("POST", "/admin/v1/dead-letters/purge", { ids: [r.id] }), "danger"],
  ]);
  showRows("unfinished", unfinished.records, (r) => [r.state, r.attempts, since(r.accepted_at)], (r) => [
    show(r),
    ["Cancel", () => act("DELETE", `/admin/v1/requests/${r.id}`), "danger"],
  ]);
  byId("purge-all").disabled = !dead.records.length;
  byId("replay-all").disabled = !dead.records.some((r) => !r.replayed_as) && dead.records.length < ROWS;
}

async function keepRefreshing() {
  try {
    if (!document.hidden) await refresh();
  } catch (error) {
    complain(error instanceof TypeError ? new Error("OpenHQM does not answer; trying again") : error);
  }
  setTimeout(keepRefreshing, REFRESH_MS);
}

byId("replay-all").onclick = () =>
  confirm("Run every dead letter that was not replayed yet again, as a new request?") && act("POST", "/admin/v1/dead-letters/replay", { all: true });
byId("purge-all").onclick = () =>
  confirm("Delete every dead letter, with its request?") && act("POST", "/admin/v1/dead-letters/purge", { all: true });
keepRefreshing();
