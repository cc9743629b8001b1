// The status page: asks /api/status every two seconds and brings the page up to date in place, so
// that open details, the chosen trace and the focus stay. Everything shown is set as text, never as
// markup: peers choose some of these strings.
"use strict";

const EVERY_MS = 2000;
const PATIENCE_MS = 5000;
const SVG_WIDTH = 600;
const SVG_HEIGHT = 140;
const byId = (id) => document.getElementById(id);

let chosenTrace = null;
let lastContact = null;

// -- small helpers ------------------------------------------------------------------------------

function text(node, value) {
  const wanted = String(value);
  if (node.textContent !== wanted) node.textContent = wanted;
}

function make(tag, className, content) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (content !== undefined) node.textContent = content;
  return node;
}

function fill(node, ...children) {
  node.replaceChildren(...children);
  return node;
}

// Makes the children of `list` show `items`: known keys are kept, and redrawn only when they changed.
function sync(list, items, keyOf, create, draw) {
  const known = new Map([...list.children].map((child) => [child.dataset.key, child]));
  let place = list.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    let child = known.get(key);
    known.delete(key);
    if (!child) {
      child = create(item);
      child.dataset.key = key;
    }
    const state = JSON.stringify(item);
    if (child.drawn !== state) {
      draw(child, item);
      child.drawn = state;
    }
    if (child === place) place = place.nextElementSibling;
    else list.insertBefore(child, place);
  }
  for (const gone of known.values()) gone.remove();
}

const count = (n, one, many = `${one}s`) => `${n.toLocaleString("en")} ${n === 1 ? one : many}`;

function duration(seconds) {
  const s = Math.max(0, Math.round(seconds));
  const two = (whole, unit, rest, restUnit) => `${Math.floor(whole)} ${unit}${rest ? ` ${rest} ${restUnit}` : ""}`;
  if (s < 60) return `${s} s`;
  if (s < 600) return two(s / 60, "min", s % 60, "s");
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return two(s / 3600, "h", Math.floor((s % 3600) / 60), "min");
  return two(s / 86400, "d", Math.floor((s % 86400) / 3600), "h");
}

const ago = (seconds) => (seconds < 1.5 ? "just now" : `${duration(seconds)} ago`);

function scaled(value, units, step) {
  let unit = 0;
  let rest = value;
  while (rest >= step && unit < units.length - 1) {
    rest /= step;
    unit += 1;
  }
  const digits = unit === 0 || rest >= 100 ? 0 : rest >= 10 ? 1 : 2;
  return [rest.toFixed(digits), units[unit]];
}

const rate = (bps) => scaled(bps, ["bit/s", "kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"], 1000);
const size = (pages) => scaled(pages * 4096, ["B", "KiB", "MiB", "GiB", "TiB"], 1024).join(" ");

// "pagegate.v1.Attestation/Attest" -> "Attestation/Attest": the prefix says nothing on this page.
const brief = (name) => name.replace(/^pagegate\.(v1\.)?/, "");

function short(hex) {
  const node = make("code", "short", hex.length > 20 ? `${hex.slice(0, 12)}…${hex.slice(-6)}` : hex || "masked");
  if (hex.length > 20) node.title = hex;
  return node;
}

function cell(label, ...children) {
  const td = make("td");
  td.dataset.label = label;
  td.append(fill(make("div", "value"), ...children));
  return td;
}

function numeric(label, ...children) {
  const td = cell(label, ...children);
  td.className = "num";
  return td;
}

function pairs(list, entries) {
  fill(list, ...entries.filter(([, value]) => value !== "").flatMap(([name, value]) => {
    const dd = make("dd");
    dd.append(value);
    return [make("dt", "", name), dd];
  }));
  return list;
}

// -- parts of the page --------------------------------------------------------------------------

function showServer(data) {
  const server = data.server;
  text(byId("name"), server.name);
  text(byId("about"), `${server.version} · up ${duration(server.uptime_s)} · ${server.listening.join(", ")}`);
  text(byId("state"), server.state);
  byId("state").dataset.state = server.state;
  document.title = `${data.refusals_total ? `(${data.refusals_total}) ` : ""}${server.name} · pagegate status`;

  const simulated = server.simulated || data.simulated_sessions > 0;
  byId("simulated").hidden = !simulated;
  if (simulated) {
    const whose = [];
    if (server.simulated) whose.push("this server's platform");
    if (data.simulated_sessions) whose.push(`${data.simulated_sessions} of ${count(data.sessions_live, "session")}`);
    text(byId("simulated-text"), `The evidence of ${whose.join(" and ")} proves nothing. Not for real data.`);
  }

  byId("policy-problem").hidden = !server.policy_problem;
  text(byId("policy-problem"), server.policy_problem && `The newest policy file is not in force: ${server.policy_problem}`);
  byId("other-problems").hidden = server.other_problems.length === 0;
  text(byId("other-problems"), server.other_problems.map((problem) => `Not in force: ${problem}`).join(" "));
  const state = JSON.stringify(server, (key, value) => (key === "uptime_s" ? undefined : value));
  if (byId("facts").drawn !== state) {
    byId("facts").drawn = state;
    pairs(byId("facts"), [
      ["Platform", server.platform],
      ["Bridge", server.bridge],
      ["Policy", server.policy],
      ["Policy digest", server.policy_digest && make("code", "", server.policy_digest)],
      ["Listening on", server.listening.join(", ")],
    ]);
  }
}

function figure(id, value, unit) {
  const node = byId(`figure-${id}`);
  if (node.textContent === value + (unit || "")) return;
  fill(node, value, ...(unit ? [make("small", "", unit)] : []));
}

function showFigures(data) {
  const newest = data.throughput.at(-1) || { in_bps: 0, out_bps: 0 };
  const peak = (key) => rate(Math.max(0, ...data.throughput.map((point) => point[key]))).join(" ");
  figure("sessions", data.sessions_live.toLocaleString("en"));
  text(byId("note-sessions"), `${data.sessions_total.toLocaleString("en")} since start`);
  figure("in", ...rate(newest.in_bps));
  text(byId("note-in"), `peak ${peak("in_bps")}`);
  figure("out", ...rate(newest.out_bps));
  text(byId("note-out"), `peak ${peak("out_bps")}`);
  figure("refusals", data.refusals_total.toLocaleString("en"));
  text(byId("note-refusals"), data.refusals.length ? `last ${ago(data.refusals[0].ago_s)}` : "since start");
}

function showChart(points) {
  if (points.length < 2) return;
  const span = Math.max(1, points[0].ago_s - points.at(-1).ago_s);
  const top = Math.max(1, ...points.map((p) => Math.max(p.in_bps, p.out_bps)));
  const x = (p) => (SVG_WIDTH * (1 - (p.ago_s - points.at(-1).ago_s) / span)).toFixed(1);
  const y = (bps) => (SVG_HEIGHT - 1 - (bps / top) * (SVG_HEIGHT - 8)).toFixed(1);
  const line = (key) => points.map((p, i) => `${i ? "L" : "M"}${x(p)} ${y(p[key])}`).join("");
  byId("line-in").setAttribute("d", line("in_bps"));
  byId("line-out").setAttribute("d", line("out_bps"));
  byId("area-in").setAttribute("d", `${line("in_bps")}L${SVG_WIDTH} ${SVG_HEIGHT}L0 ${SVG_HEIGHT}Z`);
  text(byId("axis-from"), ago(points[0].ago_s));
  text(byId("axis-peak"), `top ${rate(top).join(" ")}`);
  const newest = points.at(-1);
  byId("chart").setAttribute("aria-label",
    `Throughput over ${duration(span)}: in ${rate(newest.in_bps).join(" ")}, out ${rate(newest.out_bps).join(" ")}, highest ${rate(top).join(" ")}`);
}

function drawSession(row, s) {
  const who = make("th");
  who.scope = "row";
  who.append(s.identity || "no identity", make("div", "muted", s.peer));
  const evidence = cell("Evidence", `${s.evidence}${s.product ? ` · ${s.product}` : ""} `,
    ...(s.simulated ? [make("span", "tag simulated-tag", "SIMULATED")] : []),
    fill(make("div", "muted"), "runs ", short(s.measurement)), fill(make("div", "muted"), "chip ", short(s.platform_id)));
  const tcb = make("div", "tcb");
  tcb.append(...s.tcb.map(({ part, version }) => fill(make("span"), `${part} `, make("b", "", version))));
  const grants = s.grants.map((g) => fill(make("div", "grant"), `${g.mode} `, make("code", "", g.region)));
  const open = numeric("Open for", duration(s.age_s),
    ...(s.expires_in_s === null ? [] : [make("div", "muted", `ends in ${duration(s.expires_in_s)}`)]));
  fill(row, who, evidence, cell("Reported TCB", tcb), cell("May", ...(grants.length ? grants : ["nothing"])),
    numeric("Pages", make("div", "", `${s.pages_in.toLocaleString("en")} in`), make("div", "", `${s.pages_out.toLocaleString("en")} out`)), open);
}

function drawRegion(row, r) {
  const name = make("th");
  name.scope = "row";
  name.append(r.name, make("div", "muted", r.backing));
  const state = [];
  if (r.expected_pages) {
    const part = Math.min(1, r.staged_pages / r.expected_pages);
    const meter = make("span", "meter");
    meter.append(make("i"));
    meter.firstChild.style.width = `${part * 100}%`;
    meter.setAttribute("aria-hidden", "true");
    state.push(`${Math.floor(part * 100)} % verified`, meter,
      make("div", "muted", `${r.staged_pages.toLocaleString("en")} of ${count(r.expected_pages, "page")}`));
  } else {
    state.push(make("span", "muted", "none"));
  }
  const pages = numeric("Size", size(r.pages), make("div", "muted", count(r.pages, "page")));
  fill(row, name, cell("First address", make("code", "", r.base_gpa)), pages, numeric("Generation", r.generation.toLocaleString("en")),
    numeric("Committed", r.committed_s === null ? "never" : ago(r.committed_s)), cell("Transfer", ...state));
}

function makeRefusal() {
  const details = make("details");
  details.append(make("summary"), make("div", "why"));
  return details;
}

function drawRefusal(details, refusal) {
  const [summary, why] = details.children;
  const when = make("span", "muted", ago(refusal.ago_s));
  when.title = refusal.at;
  fill(summary, make("span", "tag bad", refusal.reason), make("span", "message", refusal.message), when);
  if (details.why === refusal.key + refusal.traceKnown) return;
  details.why = refusal.key + refusal.traceKnown;
  const about = make("p", "pairs muted");
  for (const [name, value] of [["peer", refusal.peer], ["identity", refusal.identity], ["session", refusal.session_id], ["at", refusal.at]]) {
    if (value) about.append(fill(make("span"), `${name} `, make("code", "", value)));
  }
  if (refusal.traceKnown) {
    const link = make("button", "link", "show its trace");
    link.type = "button";
    link.addEventListener("click", () => chooseTrace(refusal.trace_id, true));
    about.append(link);
  }
  fill(why, about, ...refusal.failures.map((failure) => {
    const box = make("div", "failure");
    box.append(make("code", "", failure.code), pairs(make("dl"), [
      ["field", make("code", "", failure.field)],
      ["expected", make("code", "", failure.expected)],
      ["found", make("code", "", failure.found)],
      ["specified in", failure.source],
      ["what to do", failure.hint],
    ]));
    return box;
  }));
}

function makeTrace(trace) {
  const item = make("li");
  const button = make("button");
  button.type = "button";
  button.addEventListener("click", () => chooseTrace(trace.trace_id, false));
  item.append(button);
  return item;
}

function drawTrace(item, trace) {
  const children = [make("span", "what", brief(trace.root)), make("span", "muted", trace.duration), make("span", "muted", ago(trace.ago_s))];
  if (trace.refusals.length) children.push(make("span", "why-not", `refused: ${trace.refusals.join(", ")}`));
  fill(item.firstElementChild, ...children);
}

function chooseTrace(id, scroll) {
  chosenTrace = id;
  if (latest) showTraces(latest.traces);
  if (scroll) {
    byId("h-traces").scrollIntoView();
    document.querySelector("#traces [aria-current=true]")?.focus();
  }
}

function showTraces(traces) {
  byId("wrap-traces").hidden = traces.length === 0;
  byId("empty-traces").hidden = traces.length > 0;
  sync(byId("traces"), traces, (t) => t.trace_id, makeTrace, drawTrace);
  const shown = traces.find((t) => t.trace_id === chosenTrace) || traces[0];
  if (!shown) return;
  for (const item of byId("traces").children) {
    item.firstElementChild.setAttribute("aria-current", String(item.dataset.key === shown.trace_id));
  }
  text(byId("trace-name"), brief(shown.root));
  text(byId("trace-about"), `${shown.duration} · ${shown.services.join(" → ")} · trace ${shown.trace_id}`);
  byId("trace-more").hidden = !shown.dropped_spans;
  text(byId("trace-more"), `and ${count(shown.dropped_spans, "more span")}`);
  const first = shown.services[0];
  sync(byId("spans"), shown.spans, (s) => shown.trace_id + s.id, () => make("li"), (row, span) => {
    row.className = `${span.error ? "error" : ""} ${span.service === first ? "" : "other"}`;
    row.style.setProperty("--depth", Math.min(span.depth, 8));
    row.style.setProperty("--offset", span.offset);
    row.style.setProperty("--width", span.width);
    row.title = [span.name, ...Object.entries(span.attributes).map(([key, value]) => `${key}: ${value}`)].join("\n");
    const name = fill(make("span", "name"), make("b", "", brief(span.name)));
    if (shown.services.length > 1) name.append(make("span", "muted", ` ${span.service}`));
    if (span.message) name.append(make("div", "muted", span.message));
    fill(row, name, fill(make("span", "rail"), make("span", "bar")), make("span", "took", span.duration));
  });
}

function showTable(name, items, keyOf, draw) {
  byId(`wrap-${name}`).hidden = items.length === 0;
  byId(`empty-${name}`).hidden = items.length > 0;
  sync(byId(name), items, keyOf, () => make("tr"), draw);
}

// -- the loop -----------------------------------------------------------------------------------

let latest = null;

function show(data) {
  latest = data;
  showServer(data);
  showFigures(data);
  showChart(data.throughput);
  showTable("sessions", data.sessions, (s) => s.id, drawSession);
  showTable("regions", data.regions, (r) => r.name, drawRegion);
  const traces = new Set(data.traces.map((t) => t.trace_id));
  for (const refusal of data.refusals) refusal.traceKnown = traces.has(refusal.trace_id);
  byId("empty-refusals").hidden = data.refusals.length > 0;
  sync(byId("refusals"), data.refusals, (r) => r.key, makeRefusal, drawRefusal);
  showTraces(data.traces);
}

function contact(kind, words) {
  byId("contact").dataset.contact = kind;
  text(byId("contact"), words);
}

async function poll() {
  try {
    const response = await fetch("/api/status", { cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (!response.ok) throw new Error(`status ${response.status}`);
    show(await response.json());
    lastContact = Date.now();
    contact("live", "live");
  } catch (error) {
    console.warn(error);
    contact("lost", lastContact === null ? "no contact" : "contact lost, values are old");
  }
}

async function run() {
  for (;;) {
    if (!document.hidden) await poll();
    await new Promise((resolve) => { setTimeout(resolve, EVERY_MS); });
  }
}

document.addEventListener("visibilitychange", () => { if (!document.hidden) poll(); });
run();
