
"use strict";
(() => {
  const root = document.documentElement;
  const bar = document.querySelector(".bar");
  const dialog = document.getElementById("details");
  const grids = [...document.querySelectorAll(".grid")];
  const numbers = [...document.querySelectorAll("td.n")];
  const STAGES = ["dataset", "split", "asset", "poison", "train", "adopt", "purify", "evaluate"];
  const MINUS = "\u2212", DASH = "\u2013";
  let parsed = null;
  const data = () => (parsed ??= JSON.parse(document.getElementById("data").textContent));

  // An element. Text goes in as text: nothing that a file says is ever read as markup.
  function make(name, attributes = {}, ...children) {
    const svg = ["svg", "path", "text", "line", "circle"].includes(name);
    const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", name) : document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    element.append(...children.flat().filter((child) => child !== null && child !== undefined));
    return element;
  }

  // --- what the tables show

  function show(view) {
    root.dataset.view = view;
    for (const cell of numbers) {
      cell.ours ??= [...cell.childNodes];
      const other = { published: cell.dataset.p, difference: cell.dataset.d }[view] ?? DASH;
      cell.replaceChildren(...(view === "ours" ? cell.ours : [other]));
    }
    for (const grid of grids) if (grid.querySelector("th.n-sorted")) sort(grid);
  }

  function chooseMetrics() {
    const chosen = [...bar.querySelectorAll("[name=metric]:checked")].map((box) => box.value);
    root.dataset.metrics = chosen.join(" ");
    for (const head of document.querySelectorAll("th[data-over]")) {
      const over = head.dataset.over.split(" ").filter((metric) => !metric || chosen.includes(metric)).length;
      head.hidden = !over;
      head.colSpan = Math.max(1, over);
    }
    for (const grid of grids) home(grid);
  }

  function filter(text) {
    // A word that begins like a number is a number: 5% is not the end of 0.5%.
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    const meant = words.map((word) => new RegExp((/^[\d.]/.test(word) ? "(?<![\\d.])" : "") + word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")));
    let all = 0, shown = 0;
    for (const row of document.querySelectorAll("section.table .grid:not(.plain) tbody tr")) {
      const text = [...row.querySelectorAll("th")].map((head) => head.textContent).join(" ").toLowerCase();
      row.hidden = !meant.every((word) => word.test(text));
      all += 1;
      shown += !row.hidden;
    }
    bar.querySelector("output").textContent = words.length ? `${shown} of ${all} rows; averages are over all` : "";
    for (const grid of grids) home(grid);
  }

  const value = (cell) => {
    const text = (cell.dataset.v ?? cell.textContent).trim().replaceAll(MINUS, "-").replace(/^[\u00b1<]/, "");
    return /^[+-]?[\d.]/.test(text) ? parseFloat(text) : text === "" || text === DASH ? null : text;
  };

  // Missing ones come last either way; equal ones stay as printed.
  function sort(grid) {
    const head = grid.querySelector("th.n-sorted"), body = grid.tBodies[0];
    const rows = (grid.order ??= [...body.rows]);
    if (!head) return body.append(...rows);
    const column = heads(grid).indexOf(head), sign = head.ariaSort === "descending" ? -1 : 1;
    const keyed = rows.map((row, i) => [value(row.cells[column]), i, row]);
    keyed.sort(([a, i], [b, j]) => {
      if (a === null || b === null) return (a === null) - (b === null) || i - j;
      const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
      return sign * order || i - j;
    });
    body.append(...keyed.map(([, , row]) => row));
  }

  const heads = (grid) => [...grid.querySelectorAll("thead th")].filter((head) => head.querySelector("button"));

  function turn(head) {
    const grid = head.closest("table"), next = { ascending: "descending", descending: null }[head.ariaSort] ?? (head.ariaSort ? null : "ascending");
    for (const other of heads(grid)) {
      other.removeAttribute("aria-sort");
      other.classList.remove("n-sorted");
    }
    if (next) {
      head.setAttribute("aria-sort", next);
      head.classList.add("n-sorted");
    }
    sort(grid);
  }

  // --- moving with the keyboard: each table is one stop of Tab

  function lines(grid) {
    const seen = (cell) => cell.checkVisibility();
    const first = heads(grid).map((head) => head.querySelector("button")).filter(seen);
    const rest = [...grid.tBodies, ...(grid.tFoot ? [grid.tFoot] : [])].flatMap((part) => [...part.rows]).map((row) => [...row.cells].filter(seen));
    return [first, ...rest].filter((line) => line.length);
  }

  function home(grid) {
    grid.querySelector("[tabindex='0']")?.setAttribute("tabindex", "-1");
    const row = [...grid.tBodies[0].rows].find((row) => !row.hidden);
    const cell = row && [...row.cells].find((cell) => cell.tagName === "TD" && getComputedStyle(cell).display !== "none");
    (cell ?? grid.querySelector("thead button")).tabIndex = 0;
  }

  function enter(grid, cell) {
    const before = grid.querySelector("[tabindex='0']");
    if (before !== cell) before?.setAttribute("tabindex", "-1");
    cell.tabIndex = 0;
    cell.focus();
  }

  function move(event) {
    const cell = event.target.closest("td, th button, th"), grid = event.currentTarget;
    if (!cell || event.altKey || event.metaKey) return;
    if ((event.key === "Enter" || event.key === " ") && cell.dataset.e !== undefined) {
      event.preventDefault();
      return tell(cell);
    }
    if (!["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "End"].includes(event.key)) return;
    const all = lines(grid);
    let i = all.findIndex((line) => line.includes(cell)), j = all[i]?.indexOf(cell) ?? -1;
    if (i < 0) return;
    // A summary's label is as wide as two columns.
    const from = (line) => (line[0]?.colSpan === 2 ? 1 : 0);
    const place = j + (j ? from(all[i]) : 0);
    if (event.key === "ArrowUp" || event.key === "ArrowDown") {
      i = Math.min(Math.max(i + (event.key === "ArrowDown" ? 1 : -1), 0), all.length - 1);
      j = Math.max(0, place - from(all[i]));
    } else if (event.key === "ArrowLeft") j -= 1;
    else if (event.key === "ArrowRight") j += 1;
    else if (event.key === "Home") [i, j] = [event.ctrlKey ? 0 : i, 0];
    else [i, j] = [event.ctrlKey ? all.length - 1 : i, Infinity];
    event.preventDefault();
    const line = all[i];
    enter(grid, line[Math.min(Math.max(j, 0), line.length - 1)]);
  }

  for (const grid of grids) {
    for (const button of grid.querySelectorAll("thead button")) button.tabIndex = -1;
    const first = grid.tBodies[0].querySelector("td") ?? grid.querySelector("thead button");
    first.tabIndex = 0;
    grid.addEventListener("keydown", move);
    grid.addEventListener("click", (event) => {
      const button = event.target.closest("thead button"), cell = event.target.closest("td[data-e]");
      if (button) {
        turn(button.closest("th"));
        enter(grid, button);
      } else if (cell && !String(getSelection())) {
        enter(grid, cell);
        tell(cell);
      }
    });
  }

  // --- how a number came about

  const fixed = (number, decimals = 2) => {
    if (number === null || number === undefined) return DASH;
    const text = Math.abs(number).toFixed(decimals);
    return (number < 0 && Number(text) !== 0 ? MINUS : "") + text;
  };
  const signed = (number, decimals = 2) => {
    if (number === null || number === undefined) return DASH;
    const text = Math.abs(number).toFixed(decimals);
    return (Number(text) === 0 ? "\u00b1" : number < 0 ? MINUS : "+") + text;
  };
  const shown = (value) => value === null ? "none" : typeof value === "object" ? JSON.stringify(value) : String(value);
  const bytes = (size) => (size >= 2 ** 30 ? `${(size / 2 ** 30).toFixed(1)} GiB` : `${(size / 2 ** 20).toFixed(0)} MiB`);
  const duration = (s) => (s < 90 ? `${s.toFixed(1)} s` : s < 5400 ? `${(s / 60).toFixed(1)} min` : `${(s / 3600).toFixed(1)} h`);

  function tell(cell) {
    const entry = data().entries[Number(cell.dataset.e)], table = data().tables[entry.table];
    const title = `${table.heading}: ${[entry.row, entry.value].filter(Boolean).join(" ")}, ${entry.column}`;
    const close = make("button", { type: "button" }, "Close");
    close.addEventListener("click", () => dialog.close());
    dialog.replaceChildren(
      make("div", { class: "head" }, make("h2", { id: "details-title", tabindex: "-1" }, title), close),
      make("div", { class: "body" }, ...summary(entry, table, cell), ...entry.cells.map((number, i) => about(number, entry.cells.length, i))),
    );
    if (!dialog.open) dialog.showModal();
    dialog.scrollTop = 0;
    dialog.querySelector("h2").focus();
  }

  function summary(entry, table, cell) {
    const row = cell.parentElement, rows = [];
    for (const [metric, { label, decimals }] of Object.entries(data().metrics)) {
      const [ours, interval, published, difference] = entry.numbers[metric] ?? [null, null, null, null];
      if (ours === null && published === null) continue;
      const color = [...(row.querySelector(`[data-e="${cell.dataset.e}"].m-${metric}`)?.classList ?? [])].find((name) => /^[bw]\d$/.test(name));
      rows.push(make("tr", {}, make("th", { scope: "row" }, label), make("td", {}, interval === null ? fixed(ours, decimals) : `${fixed(ours, decimals)} \u00b1 ${fixed(interval, decimals)}`),
        make("td", {}, fixed(published, decimals)), make("td", color ? { class: color } : {}, signed(difference, decimals))));
    }
    const heads = ["", table.seeds.length > 1 ? "Ours, mean \u00b1 95%" : "Ours", "Published", "Difference"].map((text) => make("th", { scope: "col" }, text));
    const parts = rows.length ? [make("div", { class: "scroll" }, make("table", { class: "pair" }, make("thead", {}, make("tr", {}, heads)), make("tbody", {}, rows)))] : [];
    if (entry.gap) parts.push(make("p", {}, `Not implemented, or cannot be: ${entry.gap}.`));
    if (entry.untaken) parts.push(make("p", {}, `The attack did not take here (${data().untaken}), so the number says nothing of a defense.`));
    if (entry.oracle) parts.push(make("p", {}, "\u2020 The threshold of this defense was chosen by looking at the test set."));
    return parts;
  }

  function about(number, of, i) {
    const cell = data().cells[number], parts = [make("p", {}, make("code", {}, cell.name))];
    const artifacts = cell.chain.map((n) => data().artifacts[n]), by = (stage) => artifacts.filter((one) => one.stage === stage);
    if (cell.metrics) {
      const words = Object.entries(data().metrics).filter(([metric]) => typeof cell.metrics[metric] === "number").map(([metric, { label }]) => {
        const under = cell.denominators?.[metric];
        return `${label} ${fixed(cell.metrics[metric])}${under ? ` (of ${under} images)` : ""}`;
      });
      parts.push(make("p", {}, words.join(", ") + "."));
    } else {
      parts.push(make("p", {}, "Not made yet. ", make("code", { class: "command" }, `${data().commands.make} ${quoted(cell.name)}`)));
    }
    const courses = [...by("train").flatMap((one) => charts(one, "Training")), ...by("purify").flatMap((one) => charts(one, "Purification", [cell.before, cell.metrics]))];
    if (courses.length) parts.push(make("div", { class: "charts" }, courses));
    const images = cell.chain.map((n) => data().examples[n]).find(Boolean);
    if (images) parts.push(make("h3", {}, "Test images: clean, backdoored, difference"), gallery(images));
    parts.push(make("h3", {}, "From the dataset to this number"));
    const order = [...artifacts].sort((a, b) => STAGES.indexOf(a.stage) - STAGES.indexOf(b.stage) || ("undefended" in a.upstream) - ("undefended" in b.upstream));
    for (const one of order) parts.push(stage(one, order));
    parts.push(settings(cell));
    parts.push(make("p", {}, "The same in a terminal: ", make("code", { class: "command" }, `${data().commands.explain} ${quoted(cell.name)}`)));
    if (of === 1) return make("div", {}, parts);
    const whole = make("details", { class: "seed" }, make("summary", {}, make("b", {}, `Seed ${cell.seed}`), cell.metrics ? "" : ", not made yet"), parts);
    whole.open = i === 0;
    return whole;
  }

  const quoted = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", `'"'"'`)}'`);

  // The evaluation without defense, which others compare with.
  const before = (one, order) => one.stage === "evaluate" && order.some((other) => other !== one && "undefended" in other.upstream);

  function stage(one, order) {
    const run = one.run, packages = run && typeof run.packages === "number" ? data().packages[run.packages] : run?.packages;
    const told = [run?.seconds !== undefined ? duration(run.seconds) : null, one.there || run ? null : "not made yet", one.there || !run ? null : "its file is not here"];
    const details = make("details", { class: "stage" }, make("summary", {}, make("b", {}, before(one, order) ? "evaluate, before" : one.stage), make("code", {}, one.directory), make("span", {}, told.filter(Boolean).join(", "))));
    const list = make("dl");
    const line = (key, value, kind = {}) => list.append(make("dt", kind, key), make("dd", kind, value));
    function nested(prefix, value) {
      if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.keys(value).length) {
        for (const key of Object.keys(value)) nested(prefix ? `${prefix} ${key}` : key, value[key]);
      } else line(prefix, Array.isArray(value) && value.length && value.every((each) => each !== null && typeof each === "object") ? sweep(value) : shown(value));
    }
    line("Specification", "", { class: "sub" });
    line("stage version", shown(one.version));
    line("seed", one.seed === null ? "none: nothing is drawn" : shown(one.seed));
    for (const [role, n] of Object.entries(one.upstream)) line(`made from ${role}`, data().artifacts[n].directory);
    const parameters = { ...one.parameters };
    if (typeof parameters.recipe === "number") parameters.recipe = data().recipe[parameters.recipe];
    nested("", parameters);
    line("Record", run ? "" : "no run.json is here", { class: "sub" });
    if (run) {
      const { seconds, started, device, threads, peak_memory_bytes, peak_device_memory_bytes, commit, packages: _, sha256, ...facts } = run;
      if (started) line("started", started);
      if (seconds !== undefined) line("time", `${duration(seconds)} (${seconds} s)`);
      line("device", device ?? "not recorded");
      if (threads !== undefined) line("CPU threads", shown(threads));
      if (peak_memory_bytes !== undefined) line("peak memory", `${bytes(peak_memory_bytes)} (${peak_memory_bytes} bytes)`);
      if (peak_device_memory_bytes !== undefined) line("peak GPU memory", `${bytes(peak_device_memory_bytes)} (${peak_device_memory_bytes} bytes)`);
      line("git commit", commit ?? "not recorded");
      for (const [name, version] of Object.entries(packages ?? {})) line(`version of ${name}`, shown(version));
      for (const [name, sum] of Object.entries(sha256 ?? {})) line(`sha256 of ${name}`, make("code", {}, shown(sum)));
      if (Object.keys(facts).length) nested("", facts);
    }
    details.append(list);
    return details;
  }

  // A list of alike objects, such as the candidates that a defense chose from.
  function sweep(rows) {
    const keys = [...new Set(rows.flatMap((row) => Object.keys(row)))];
    const text = (value) => (typeof value === "number" && !Number.isInteger(value) ? String(Number(value.toFixed(4))) : shown(value ?? null));
    return make("details", {}, make("summary", {}, `${rows.length} rows`), make("div", { class: "scroll" }, make("table", {},
      make("thead", {}, make("tr", {}, keys.map((key) => make("th", { scope: "col" }, key)))),
      make("tbody", {}, rows.map((row) => make("tr", {}, keys.map((key) => make("td", {}, text(row[key])))))))));
  }

  function settings(cell) {
    const bodies = cell.settings.map((n) => data().settings[n]).filter((each) => each.values.length).map((each) =>
      make("tbody", {}, each.values.map(([key, value, layer, place]) =>
        make("tr", {}, make("td", {}, each.kind), make("td", {}, key), make("td", {}, value), make("td", {}, [layer, place].filter(Boolean).join(", "))))));
    const heads = ["Of", "Value", "", "Set by"].map((text) => make("th", { scope: "col" }, text));
    return make("details", { class: "stage" }, make("summary", {}, make("b", {}, "values"), make("span", {}, "each hyper-parameter of this cell, and who set it")),
      make("div", { class: "scroll" }, make("table", { class: "settings" }, make("thead", {}, make("tr", {}, heads)), bodies)));
  }

  function gallery(examples) {
    return make("div", { class: "images" }, examples.images.map((one) => make("figure", {},
      ...["clean", "backdoored", "difference"].map((kind) => make("img", { src: one[kind], alt: `${kind}, test image ${one.index}`, width: 72, height: 72 })),
      make("figcaption", {}, `test image ${one.index}; difference \u00d7 ${one.amplified}, at most ${one.largest} of 255`))));
  }

  // --- training curves

  const nameOf = (key) => ({ train_acc: "training accuracy", loss: "loss" })[key] ?? data().metrics[key]?.label ?? key;
  const series = (history) => ["train_acc", ...Object.keys(data().metrics)].filter((key) => history[key]);
  const classOf = (key) => (key === "loss" ? "c-loss" : `c-${(Object.keys(data().metrics).indexOf(key) + 1) % 5}`);

  // By column, its epochs and its values.
  const courseOf = (artifact) => Object.fromEntries(Object.entries(artifact.history ?? {}).map(([key, [epochs, values]]) => [key, [data().epochs[epochs], values]]));

  const listed = (names) => (names.length > 1 ? `${names.slice(0, -1).join(", ")} and ${names.at(-1)}` : names.join());

  // What was not measured by epoch is known before and after, from the evaluations, where these are there.
  function charts(artifact, title, ends = []) {
    const history = courseOf(artifact);
    const followed = series(history);
    const last = Math.max(...Object.values(history).flatMap(([epochs]) => epochs));
    const wanted = root.dataset.shown.split(" ");
    const measured = Number.isFinite(last) ? wanted.filter((key) => !history[key] && ends.length && ends.every((end) => typeof end?.[key] === "number")) : [];
    for (const key of measured) history[key] = [[0, last], ends.map((end) => end[key]), "ends"];
    const told = [followed.length && `${listed(followed.map(nameOf))} by epoch`, measured.length && `${listed(measured.map(nameOf))} before and after`];
    const found = followed.length || measured.length ? [chart(history, [...followed, ...measured], `${title}: ${told.filter(Boolean).join("; ")}, in percent`, [0, 100])] : [];
    return history.loss ? [...found, chart(history, ["loss"], `${title}: loss by epoch`)] : found;
  }

  function chart(history, keys, title, range, explained = true) {
    const W = 280, H = 110, left = 34, right = 8, top = 6, bottom = 16;
    const epochs = keys.flatMap((key) => history[key][0]), values = keys.flatMap((key) => history[key][1]);
    const [x0, x1] = [Math.min(...epochs), Math.max(...epochs)];
    const [y0, y1] = range ?? [Math.min(0, ...values), Math.max(...values) || 1];
    const x = (e) => left + ((e - x0) / (x1 - x0 || 1)) * (W - left - right);
    const y = (v) => H - bottom - ((v - y0) / (y1 - y0 || 1)) * (H - top - bottom);
    const label = (v) => (Math.abs(v) >= 100 || Number.isInteger(v) ? v.toFixed(0) : v.toPrecision(2));
    const marks = [y0, (y0 + y1) / 2, y1].flatMap((v) => [
      make("line", { class: "axis", x1: left, x2: W - right, y1: y(v), y2: y(v) }),
      make("text", { x: left - 5, y: y(v) + 3.5, "text-anchor": "end" }, label(v)),
    ]);
    for (const e of new Set([x0, x1])) marks.push(make("text", { x: x(e), y: H - 2, "text-anchor": e === x0 ? "start" : "end" }, String(e)));
    const drawn = keys.flatMap((key) => {
      const [at, of, ends] = history[key];
      if (ends || at.length === 1) return at.map((e, i) => make("circle", { class: classOf(key), cx: x(e), cy: y(of[i]), r: ends ? 3.5 : 2 }));
      return make("path", { class: `line ${classOf(key)}`, d: at.map((e, i) => `${i ? "L" : "M"}${x(e).toFixed(1)} ${y(of[i]).toFixed(1)}`).join("") });
    });
    const last = keys.map((key) => `${nameOf(key)} ends at ${label(history[key][1].at(-1))}`).join(", ");
    return make("figure", { class: "chart" }, make("figcaption", {}, title),
      make("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}: ${last}` }, marks, drawn),
      keys.length > 1 && explained ? legend(keys, history) : null);
  }

  function legend(keys, history = {}) {
    const sign = (key) => (history[key]?.[2] ? make("circle", { class: classOf(key), cx: 13.5, cy: 5, r: 3.5 }) : make("line", { class: `line ${classOf(key)}`, x1: 0, x2: 27, y1: 5, y2: 5 }));
    const swatch = (key) => make("svg", { viewBox: "0 0 27 10", "aria-hidden": "true" }, sign(key));
    return make("ul", {}, keys.map((key) => make("li", {}, swatch(key), nameOf(key))));
  }

  const courses = document.getElementById("course-list");
  function draw() {
    if (courses.childElementCount) return;
    const drawn = ["train_acc", ...root.dataset.shown.split(" ")];
    const found = data().artifacts.filter((one) => one.stage === "train" && one.history).sort((a, b) => a.title.localeCompare(b.title, "en", { numeric: true }));
    courses.append(...found.map((one) => {
      const history = courseOf(one);
      const keys = drawn.filter((key) => history[key]);
      return chart(history, keys.length ? keys : ["loss"], one.title + (keys.length ? "" : ": loss"), keys.length ? [0, 100] : undefined, false);
    }));
    const list = legend(drawn);
    list.className = "curve-legend";
    courses.before(list);
  }
  if (courses) {
    new IntersectionObserver((seen, self) => {
      if (!seen.some((one) => one.isIntersecting)) return;
      self.disconnect();
      draw();
    }, { rootMargin: "800px" }).observe(courses.parentElement);
    addEventListener("beforeprint", draw);
  }

  // Paper has nothing to open.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll(".paired:not([open]), #contents:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });

  // --- controls

  const remembered = (() => {
    try {
      return localStorage.getItem("depoison-theme");
    } catch {
      return null;
    }
  })();
  function paint(theme) {
    if (theme === "auto") delete root.dataset.theme;
    else root.dataset.theme = theme;
    try {
      localStorage.setItem("depoison-theme", theme);
    } catch { /* a page that may not remember */ }
  }
  if (matchMedia("(max-width: 36rem)").matches) document.getElementById("contents").open = false;

  // A reloaded page may keep what its controls said.
  bar.reset();
  const choice = bar.querySelector(`[name=theme][value="${remembered === "light" || remembered === "dark" ? remembered : "auto"}"]`);
  choice.checked = true;
  if (choice.value !== "auto") root.dataset.theme = choice.value;

  bar.addEventListener("change", ({ target }) => {
    if (target.name === "view") show(target.value);
    if (target.name === "metric") chooseMetrics();
    if (target.name === "theme") paint(target.value);
  });
  bar.addEventListener("submit", (event) => event.preventDefault());
  bar.elements.filter.addEventListener("input", ({ target }) => filter(target.value));
  dialog.addEventListener("click", (event) => event.target === dialog && dialog.close());
  addEventListener("keydown", (event) => {
    if (event.key !== "/" || dialog.open || event.target.matches("input[type=search]")) return;
    event.preventDefault();
    bar.elements.filter.focus();
  });
})();
