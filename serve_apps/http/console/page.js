"use strict";
// Every text reaches the page by textContent: nothing that a model, a run or an operator wrote is ever read as HTML.

const EVERY_MS = 5000;
const ROUTES = {
  status: "admin/status",
  models: "admin/models",
  releases: "admin/releases",
  breakers: "admin/breakers",
  runs: "runs",
};
const STATES = ["all", "PENDING", "RUNNING", "SUCCESS", "FAILED", "CANCELLED"];
const KIND = {
  SUCCESS: "good", ready: "good", closed: "good", promoted: "good",
  FAILED: "bad", failed: "bad", open: "bad", rolled_back: "bad",
  RUNNING: "busy", running: "busy", starting: "busy",
  half_open: "warn", paused: "warn", CANCELLED: "warn", SKIPPED: "dim", PENDING: "dim",
};

const find = (id) => document.getElementById(id);
const seen = { key: sessionStorage.getItem("headrace.key") || "", state: "all", run: "", timer: 0, turn: 0, admin: true };

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

async function ask(path, query) {
  const where = query ? `${path}?${new URLSearchParams(query)}` : path;
  const headers = seen.key ? { "x-api-key": seen.key } : {};
  const answer = await fetch(where, { headers, cache: "no-store", credentials: "omit", redirect: "error" });
  if (answer.ok) return answer.json();
  const told = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, told.detail || `${answer.status} ${answer.statusText}`);
}

function make(name, text, kind) {
  const node = document.createElement(name);
  if (text !== undefined && text !== null) node.textContent = String(text);
  if (kind) node.className = kind;
  return node;
}

const state = (value) => make("span", String(value).replaceAll("_", " "), KIND[value]);
const dim = (text) => make("span", text, "dim");

function table(heads, rows, empty) {
  if (!rows.length) return dim(empty);
  const made = make("table");
  const head = made.createTHead().insertRow();
  for (const text of heads) {
    const cell = make("th", text);
    cell.scope = "col";
    head.append(cell);
  }
  const body = made.createTBody();
  for (const { cells, chosen } of rows) {
    const line = body.insertRow();
    if (chosen) line.className = "chosen";
    for (const cell of cells) {
      const place = line.insertCell();
      if (cell instanceof Node) place.append(cell);
      else place.textContent = cell === null || cell === undefined || cell === "" ? "–" : String(cell);
    }
  }
  return made;
}

function show(id, ...nodes) {
  find(id).replaceChildren(...nodes);
}

function ago(at) {
  if (!at) return "–";
  const s = Math.max(0, Date.now() / 1000 - at);
  if (s < 60) return `${Math.round(s)} s ago`;
  if (s < 3600) return `${Math.round(s / 60)} min ago`;
  return s < 86400 ? `${Math.round(s / 3600)} h ago` : `${Math.round(s / 86400)} d ago`;
}

function took(from, to) {
  if (!from) return "–";
  const s = Math.max(0, (to || Date.now() / 1000) - from);
  return s < 10 ? `${s.toFixed(2)} s` : s < 120 ? `${s.toFixed(0)} s` : `${(s / 60).toFixed(1)} min`;
}

function weight(value) {
  const whole = make("span");
  const bar = make("meter");
  bar.max = 100;
  bar.value = value;
  whole.append(bar, `${+value.toFixed(2)} %`);
  return whole;
}

function showModels(models) {
  const rows = models.flatMap((model) =>
    model.versions.map((version, place) => ({
      cells: [
        make("strong", place ? "" : model.name),
        version.version,
        state(version.status),
        weight(version.weight || 0),
        state(version.breaker),
        ago(version.since),
        version.reason || (version.serving ? "" : dim("not serving")),
      ],
    })));
  show("models", table(["model", "version", "state", "weight", "breaker", "since", "note"], rows, "no models are deployed"));
}

function showReleases(releases) {
  const rows = releases.slice(0, 10).map((release) => ({
    cells: [
      make("strong", release.model),
      `${release.stable} → ${release.candidate}`,
      state(release.state),
      weight(release.percent),
      `${samples(release, "stable")} / ${samples(release, "candidate")}`,
      ago(release.ended_at || release.started_at),
      release.decision.why || (release.history.at(-1) || {}).why || "",
    ],
  }));
  const heads = ["model", "stable → candidate", "state", "candidate's share", "answers / of candidate", "when", "why"];
  show("releases", table(heads, rows, "there was no release yet"));
}

const samples = (release, side) => (release.samples[side] || {}).requests ?? 0;

function showBreakers(breakers) {
  const rows = breakers.map((breaker) => ({
    cells: [make("strong", breaker.target), state(breaker.state), breaker.ejections, ago(breaker.changed_at), breaker.why],
  }));
  show("breakers", table(["target", "state", "ejections", "changed", "why"], rows, "none has ever opened"));
}

function showRuns(runs) {
  const rows = runs.map((run) => ({ chosen: run.id === seen.run, cells: [
    choose(run.id), run.workflow, state(run.state), ago(run.created_at), took(run.started_at, run.finished_at), run.error,
  ] }));
  show("runs", table(["run", "workflow", "state", "submitted", "took", "error"], rows, "no runs"));
}

function choose(id) {
  const button = make("button", id, "link");
  button.type = "button";
  button.addEventListener("click", () => {
    seen.run = seen.run === id ? "" : id;
    refresh();
  });
  return button;
}

function showRun(run) {
  const place = find("run");
  place.hidden = !run;
  if (!run) return place.replaceChildren();
  const rows = run.steps.map((step) => ({ cells: [
    make("strong", step.id), step.type, state(step.state), step.attempts, took(step.started_at, step.finished_at),
    step.chosen ? `${step.chosen.model} ${step.chosen.version || ""}` : "",
    step.child_run_id ? choose(step.child_run_id) : (step.error || {}).message || step.reason || step.message || "",
  ] }));
  const steps = make("div");
  steps.append(table(["step", "type", "state", "attempts", "took", "model", "note"], rows, "no steps"));
  place.replaceChildren(make("h2", `${run.workflow} ${run.id}`), steps);
  for (const [name, value] of [["input", run.input], ["output", run.output], ["error", run.error]]) {
    if (value === null || value === undefined) continue;
    const text = JSON.stringify(value, null, 1);
    place.append(make("h3", name), make("pre", text.length > 4000 ? `${text.slice(0, 4000)} …` : text));
  }
}

function showStates() {
  show("states", ...STATES.map((name) => {
    const button = make("button", name.toLowerCase());
    button.type = "button";
    button.setAttribute("aria-pressed", String(seen.state === name));
    button.addEventListener("click", () => {
      seen.state = name;
      refresh();
    });
    return button;
  }));
}

async function administration(turn) {
  const [status, models, releases, breakers] = await Promise.all([
    ask(ROUTES.status), ask(ROUTES.models), ask(ROUTES.releases), ask(ROUTES.breakers),
  ]);
  if (turn !== seen.turn) return;
  find("about").textContent = `${status.environment || "?"}, table revision ${status.revision}`;
  showModels(models.models);
  showReleases(releases.releases);
  showBreakers(breakers.breakers);
}

async function workflows(turn) {
  const query = { limit: 50, ...(seen.state === "all" ? {} : { state: seen.state }) };
  const wanted = seen.run;
  const [runs, run] = await Promise.all([
    ask(ROUTES.runs, query),
    wanted ? ask(`${ROUTES.runs}/${encodeURIComponent(wanted)}`) : null,
  ]);
  if (turn !== seen.turn) return;
  showRuns(runs.runs);
  showRun(run);
}

async function refresh() {
  clearTimeout(seen.timer);
  const turn = ++seen.turn;
  showStates();
  // Runs first: a key that is refused there need not be tried on the rest.
  let parts = await Promise.allSettled([workflows(turn)]);
  if (turn !== seen.turn) return;
  if (seen.admin && (parts[0].reason || {}).status !== 401) {
    parts = [...parts, ...(await Promise.allSettled([administration(turn)]))];
    if (turn !== seen.turn) return;
  }
  const failed = parts.filter((part) => part.status === "rejected").map((part) => part.reason);
  const denied = failed.find((error) => error.status === 401);
  seen.admin = seen.admin && !failed.some((error) => error.status === 403);
  for (const section of document.querySelectorAll("[data-admin]")) section.hidden = !seen.admin;
  if (!seen.admin) find("about").textContent = "this key has the role invoke: only runs are shown";
  find("login").hidden = !denied;
  find("boards").hidden = Boolean(denied);
  find("forget").hidden = !seen.key || Boolean(denied);
  const told = failed.filter((error) => error.status !== 403 && !(error.status === 401 && !seen.key));
  find("problem").textContent = told.length ? told[0].message : "";
  if (denied) {
    sessionStorage.removeItem("headrace.key");
    return find("key").focus();
  }
  if (!document.hidden) seen.timer = setTimeout(refresh, EVERY_MS);
}

function use(key) {
  seen.key = key;
  seen.admin = true;
  if (key) sessionStorage.setItem("headrace.key", key);
  else sessionStorage.removeItem("headrace.key");
  refresh();
}

find("login").addEventListener("submit", (event) => {
  event.preventDefault();
  const given = find("key").value.trim();
  find("key").value = "";
  use(given);
});
find("forget").addEventListener("click", () => {
  for (const id of ["models", "releases", "breakers", "runs", "run", "about"]) find(id).replaceChildren();
  find("boards").hidden = true;
  seen.run = "";
  use("");
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && find("login").hidden) refresh();
});
refresh();
