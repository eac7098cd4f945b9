// The item explorer: filters, list, detail, keys and links. Everything shown follows from `state`.

const section = document.getElementById("items");
const part = (name) => section.querySelector(`[data-part="${name}"]`);
const SELECTS = ["task", "checkpoint", "protocol", "outcome", "quadrant", "failure", "finish", "reference"];
const ANY = -1;
const quadrantNames = (wrong) => ({
  both: "ranked right and generated right", ranked_only: `ranked right, generated ${wrong}`,
  generated_only: `ranked ${wrong}, generated right`, neither: `ranked ${wrong} and generated ${wrong}`,
});

async function start() {
  const index = await openIndex();
  const { numRows, checkpoints, protocols } = index;
  const base = checkpoints.length > 1 ? 1 : 0; // the checkpoint a reader asks about first
  const generative = protocols.indexOf("generative");
  const clean = () => ({
    task: ANY, checkpoint: base, protocol: ANY, outcome: ANY, quadrant: ANY, failure: ANY, finish: ANY, reference: ANY,
    q: "", item: ANY, left: ANY, right: ANY,
  });
  const names = {
    task: index.tasks.map((task) => task.name), checkpoint: checkpoints, protocol: protocols, outcome: OUTCOMES.slice(1),
    quadrant: index.quadrants, failure: index.classes, finish: index.finishes, reference: OUTCOMES.slice(1, 4),
    left: checkpoints, right: checkpoints,
  };
  const quadrants = quadrantNames(index.outcome.includes(2) ? "not fully right" : "wrong"); // with partial scores
  const numItems = index.keys.filter((key, row) => key !== index.keys[row - 1] || index.task[row] !== index.task[row - 1]).length;
  let state = clean(), matches = new Int32Array(0), cursor = 0, found = null, foundFor = "", detailFor = "", presetsFor = "", missing = [];
  const list = part("list"), space = part("space"), search = part("q");

  // -- links ---------------------------------------------------------------------------------------------------
  const same = (name, value) => name === value || name.toWellFormed?.() === value; // links hold no lone surrogates

  function readLink() {
    const given = new URLSearchParams(location.hash.split("?").slice(1).join("?"));
    state = clean();
    missing = [];
    for (const [name, values] of Object.entries(names)) {
      const value = given.get(name);
      if (value === null) continue;
      const place = values.findIndex((one) => same(one, value));
      if (place >= 0 || value === "any") state[name] = place;
      else missing.push([["left", "right"].includes(name) ? "checkpoint" : name, value]);
    }
    state.q = given.get("q") ?? "";
    if (given.has("item")) {
      const task = given.get("of") ?? given.get("task");
      const rows = index.keys.flatMap((key, row) =>
        (same(key, given.get("item")) && (task === null || same(names.task[index.task[row]], task)) ? [row] : []));
      state.item = rows.find((row) => seedOf(row) === given.get("seed")) ?? rows[0] ?? ANY;
      if (state.item < 0) missing.push(["item", given.get("item")]);
    }
  }

  const seedOf = (row) => (index.seed[row] ? String(index.seeds[index.seed[row] - 1]) : null);

  function link() {
    const given = new URLSearchParams(), usual = clean();
    for (const [name, values] of Object.entries(names))
      if (state[name] !== usual[name]) given.set(name, values[state[name]] ?? "any");
    if (state.q) given.set("q", state.q);
    if (state.item >= 0) {
      if (state.task < 0) given.set("of", names.task[index.task[state.item]]); // tasks may share keys
      given.set("item", index.keys[state.item]);
      if (index.seeds.length > 1 && seedOf(state.item)) given.set("seed", seedOf(state.item));
    }
    return String(given) ? `#items?${given}` : "#items";
  }

  // `how`: "push" makes a step that Back undoes.
  function keepLink(how) {
    const address = link();
    if (address === location.hash) return;
    try { history[how === "push" ? "pushState" : "replaceState"](null, "", address); } catch { /* too many in a short time */ }
  }

  // -- filters -------------------------------------------------------------------------------------------------
  const asked = (wanted) => wanted.q.trim().toLowerCase(); // what is pasted often has spaces around it

  function searched() {
    const query = asked(state);
    const opened = index.blocks.filter((block) => block.data);
    const key = `${opened.length} ${query}`;
    if (foundFor !== key) {
      found = new Uint8Array(numRows);
      searchNames(index, query, found);
      for (const block of opened) searchTexts(index, block, query, found);
      foundFor = key;
    }
    return found;
  }

  function matching(wanted) {
    const rows = [], hits = asked(wanted) ? searched() : null;
    const tried = wanted.checkpoint < 0 ? checkpoints.map((_, i) => i) : [wanted.checkpoint];
    const arms = wanted.failure >= 0 ? [generative].filter((arm) => wanted.protocol < 0 || arm === wanted.protocol)
      : wanted.protocol < 0 ? protocols.map((_, i) => i) : [wanted.protocol];
    const asksCells = [wanted.protocol, wanted.outcome, wanted.failure, wanted.finish].some((value) => value >= 0);
    const cellFits = (cell) => index.score[cell] > 0
      && (wanted.outcome < 0 || index.outcome[cell] === wanted.outcome + 1)
      && (wanted.failure < 0 || index.failure[cell] === wanted.failure + 1)
      && (wanted.finish < 0 || index.finish[cell] === wanted.finish + 1);
    const fits = (checkpoint, row) => (wanted.quadrant < 0 || index.quadrant[checkpoint * numRows + row] === wanted.quadrant + 1)
      && (!asksCells || arms.some((arm) => cellFits(cellOf(index, checkpoint, arm, row, numRows))));
    for (let row = 0; row < numRows; row++) {
      if (wanted.task >= 0 && index.task[row] !== wanted.task) continue;
      if (hits && !hits[row]) continue;
      if (wanted.reference >= 0
        && (generative < 0 || index.outcome[cellOf(index, 0, generative, row, numRows)] !== wanted.reference + 1)) continue;
      if (tried.some((checkpoint) => fits(checkpoint, row))) rows.push(row);
    }
    return Int32Array.from(rows);
  }

  const PRESETS = [
    ["all", {}],
    [`${quadrants.ranked_only}, ${shortened(checkpoints[0], 24)} generates it right`, { quadrant: "ranked_only", reference: "right" }],
    ["right answer, not read by the scorer", { failure: "recoverable" }],
    ["cut off", { failure: "truncated" }],
    ["loops", { failure: "loop" }],
    [quadrants.generated_only, { quadrant: "generated_only" }],
  ];

  function presetState(wanted) {
    const made = { ...clean(), task: state.task, checkpoint: state.checkpoint > 0 ? state.checkpoint : base };
    for (const [name, value] of Object.entries(wanted)) made[name] = names[name].indexOf(value);
    return made;
  }

  // They stay with the task and the checkpoint chosen.
  function drawPresets() {
    const drawnFor = `${state.task} ${state.checkpoint}`, focused = document.activeElement?.dataset.preset;
    if (presetsFor === drawnFor) return;
    presetsFor = drawnFor;
    part("presets").replaceChildren(...PRESETS.flatMap(([text, wanted]) => {
      const count = matching(presetState(wanted)).length;
      if (!count) return [];
      const button = make("button", { type: "button", dataset: { preset: Object.values(wanted).join(" ") || "all" } },
        text === "all" ? `all items${state.task >= 0 ? " of the task" : ""} ` : `${text} `,
        make("span", { className: "count" }, count.toLocaleString("en")));
      button.onclick = () => { state = { ...presetState(wanted), left: state.left, right: state.right }; changed("push"); };
      return [button];
    }));
    if (focused) ([...part("presets").children].find((button) => button.dataset.preset === focused) ?? list).focus();
  }

  function fillSelects() {
    const labels = {
      ...names, task: index.tasks.map((task) => task.title), protocol: protocols.map((name) => NAMES[name] ?? name),
      failure: index.class_names, quadrant: index.quadrants.map((name) => quadrants[name]), finish: index.finishes.map((name) => FINISHES.get(name) ?? (name || "not known")),
    };
    for (const name of SELECTS) {
      const select = part(name), hasAny = make("option", { value: ANY }, name === "checkpoint" && checkpoints.length > 1 ? "any checkpoint" : "any");
      select.replaceChildren(hasAny, ...labels[name].map((text, i) => make("option", { value: i }, shortened(text, 60) || "(no name)")));
      select.onchange = () => { state[name] = Number(select.value); state.item = ANY; changed("push"); };
    }
    if (checkpoints.length < 2) part("reference").closest("label").hidden = true;
    search.oninput = () => { state.q = search.value; state.item = ANY; changed("replace"); };
    part("clear").onclick = () => { state = clean(); changed("push"); search.focus(); };
  }

  // -- list ----------------------------------------------------------------------------------------------------
  const compared = () => {
    const right = state.right >= 0 ? state.right : state.checkpoint > 0 ? state.checkpoint : base;
    return checkpoints.length > 1 ? [state.left >= 0 ? state.left : 0, right] : [0];
  };
  const rowHeight = () => parseFloat(getComputedStyle(list).getPropertyValue("--row"));
  const short = { loglikelihood: "ranked", generative: "generated" };

  function rowTags(row, checkpoint) {
    const whose = named("span", { className: "said whose" }, checkpoints[checkpoint], 28);
    return [whose, " ", ...protocols.flatMap((name, protocol) => {
      if (!(name in short)) return [];
      const record = recordOf(index, null, row, checkpoint, protocol);
      if (!record) return [make("span")];
      const kind = OUTCOME_CLASSES[record.outcome], outcome = OUTCOMES[record.outcome] || number(record.score);
      const why = record.failure && !["right", "wrong"].includes(record.failure) && record.outcome !== 1 ? record.failureName : outcome;
      return [tag(why, kind)].map((one) => make("span", {}, make("span", { className: "said" }, `${short[name]} `), one));
    })];
  }

  function rowElement(place, pair, height) {
    const row = matches[place], key = index.keys[row], tail = key.slice(key.lastIndexOf("/") + 1);
    return make("div", {
      className: "row", role: "option", id: `items-row-${place}`, ariaSelected: String(place === cursor), ariaSetSize: matches.length,
      ariaPosInSet: place + 1, style: { top: `${place * height}px` }, dataset: { place },
    },
    make("span", { className: "row-key" }, shortened(tail.length > 14 ? `…${wholeSlice(tail, tail.length - 8, tail.length)}` : tail, 16) || "(no key)",
      seedOf(row) && index.seeds.length > 1 ? make("span", { className: "row-seed" }, ` seed ${seedOf(row)}`) : null),
    named("span", { className: "row-task" }, index.tasks[index.task[row]].title, 24),
    make("span", { className: "row-text" }, shortened(index.snippets[row], 110), index.blockOf[row] < 0 ? tag("no text here") : null),
    ...pair.map((checkpoint) => make("span", { className: "row-tags" }, ...rowTags(row, checkpoint))));
  }

  function drawList() {
    const height = rowHeight(), pair = compared();
    const first = Math.max(0, Math.floor(list.scrollTop / height) - 4);
    const last = Math.min(matches.length, Math.ceil((list.scrollTop + list.clientHeight) / height) + 4);
    space.style.height = `${matches.length * height}px`;
    part("header").style.paddingRight = `calc(.6rem + ${list.offsetWidth - list.clientWidth}px)`; // a scroll bar, where there is one
    // Rows that stay as they are stay: replaced while the button is down, as the list scrolls, they lose the click.
    const places = Array.from({ length: Math.max(last - first, 0) }, (_, i) => first + i);
    const drawn = places.map((place) => `${[matches[place], place, matches.length, place === cursor, pair, height]}`);
    for (const row of [...space.children]) if (!drawn.includes(row.dataset.drawn)) row.remove();
    for (const [i, place] of places.entries()) {
      if (space.children[i]?.dataset.drawn === drawn[i]) continue;
      const row = rowElement(place, pair, height);
      row.dataset.drawn = drawn[i];
      space.insertBefore(row, space.children[i] ?? null);
    }
    if (cursor >= first && cursor < last) list.setAttribute("aria-activedescendant", `items-row-${cursor}`);
    else list.removeAttribute("aria-activedescendant");
  }

  function moveTo(place) {
    cursor = Math.max(0, Math.min(matches.length - 1, place));
    const height = rowHeight(), top = cursor * height;
    if (top < list.scrollTop) list.scrollTop = top;
    else if (top + height > list.scrollTop + list.clientHeight) list.scrollTop = top + height - list.clientHeight;
    drawList();
  }

  function drawCount() {
    const reading = state.q && index.blocks.some((block) => !block.data) ? ", still reading texts" : "";
    const [shown, all, items] = [matches.length, numRows, numItems].map((value) => value.toLocaleString("en"));
    const unit = index.seeds.length > 1 ? `rows (${items} items, ${index.seeds.length} seeds)` : "items";
    part("count").textContent = `${shown} of ${all} ${unit}${reading}`;
    part("count").dataset.matches = matches.length;
    part("empty").hidden = matches.length > 0;
    list.hidden = part("header").hidden = !matches.length;
  }

  function drawHeader() {
    const cell = (name, text) => make("span", { className: name }, text);
    part("header").replaceChildren(cell("row-key", "item"), cell("row-task", "task"), cell("row-text", "question"),
      ...compared().map((checkpoint) => make("span", { className: "row-tags" }, named("span", { className: "whose" }, checkpoints[checkpoint], 28),
        ...protocols.filter((name) => name in short).map((name) => cell("", short[name])))));
    section.dataset.sides = compared().length;
  }

  function drawMissing() {
    const named = missing.map(([name, value]) => `${name} “${shortened(value, 80)}”`).join(", ");
    part("missing").textContent = named && `The link asks for what is not in this file: ${named}.`;
  }

  function changed(how) {
    if (how) missing = [];
    section.classList.toggle("is-open", state.item >= 0);
    for (const name of SELECTS) part(name).value = state[name];
    if (search.value !== state.q) search.value = state.q;
    const open = matches[cursor];
    matches = matching(state);
    const wanted = matches.indexOf(state.item >= 0 ? state.item : open);
    cursor = Math.max(wanted, 0);
    if (wanted < 0) list.scrollTop = 0;
    drawPresets(); drawMissing(); drawHeader(); drawCount(); moveTo(cursor); drawDetail();
    if (how) keepLink(how);
  }

  // What is found in texts read since; nothing moves under the reader's eyes.
  function findMore() {
    const wanted = state.item >= 0 ? state.item : matches[cursor];
    matches = matching(state);
    cursor = Math.max(matches.indexOf(wanted), 0);
    drawCount(); drawList(); drawPosition();
  }

  // -- detail --------------------------------------------------------------------------------------------------
  function open(row) {
    state.item = row;
    changed("push");
    part("title").focus();
  }

  function close() {
    state.item = ANY;
    changed("push");
    (matches.length ? list : search).focus();
  }

  function step(by) {
    const at = matches.indexOf(state.item);
    const next = matches[Math.max(0, Math.min(matches.length - 1, at + by))];
    if (next === undefined || next === state.item) return;
    state.item = next;
    changed("replace");
  }

  async function drawDetail() {
    const row = state.item, pair = compared(), wanted = `${row} ${pair}`;
    part("detail").hidden = row < 0;
    if (row < 0) { part("detail").replaceChildren(); detailFor = ""; return; }
    drawPosition();
    if (wanted === detailFor) return;
    detailFor = wanted;
    const focused = part("detail").contains(document.activeElement) ? document.activeElement.dataset.part ?? "title" : "";
    const heading = make("h3", { tabIndex: -1, dataset: { part: "title" } }, beginning(index.keys[row]));
    const body = make("div", { dataset: { part: "body" } });
    part("detail").replaceChildren(heading, itemFacts(row), toolbar(pair), body);
    drawPosition();
    if (focused) (part(focused) ?? heading).focus();
    const block = index.blocks[index.blockOf[row]] ?? null;
    if (block && !block.data) {
      body.replaceChildren(make("p", { className: "quiet" }, "Reading the texts …"));
      await openTexts(block);
    }
    if (detailFor === wanted) body.replaceChildren(...itemParts(index, block, row, pair));
  }

  function itemFacts(row) {
    const subset = index.subsets[index.subset[row]];
    return make("p", { className: "quiet" }, beginning(index.tasks[index.task[row]].title),
      ...(subset && subset !== "default" ? [", subset ", beginning(subset)] : []), seedOf(row) ? `, seed ${seedOf(row)}` : "");
  }

  function toolbar(pair) {
    const button = (name, text, action) => make("button", { type: "button", dataset: { part: name }, onclick: action }, text);
    const choose = (name, text, value) => {
      const select = make("select", { dataset: { part: name } }, ...checkpoints.map((label, i) => make("option", { value: i }, shortened(label, 60))));
      select.value = value;
      select.onchange = () => { state[name] = Number(select.value); changed("replace"); };
      return make("label", {}, `${text} `, select);
    };
    return make("div", { className: "tools" }, button("previous", "Previous", () => step(-1)), button("next", "Next", () => step(1)),
      make("span", { className: "quiet", dataset: { part: "position" } }), button("close", "Back to the list", close),
      ...(pair.length > 1 ? [choose("left", "left", pair[0]), choose("right", "right", pair[1])] : []));
  }

  function drawPosition() {
    const at = matches.indexOf(state.item), place = part("position");
    if (place) place.textContent = at < 0 ? "not among the items filtered" : `${(at + 1).toLocaleString("en")} of ${matches.length.toLocaleString("en")}`;
  }

  // -- keys ----------------------------------------------------------------------------------------------------
  function inList(event) {
    const page = Math.max(1, Math.floor(list.clientHeight / rowHeight()) - 1);
    const moves = {
      ArrowDown: cursor + 1, j: cursor + 1, ArrowUp: cursor - 1, k: cursor - 1, PageDown: cursor + page, PageUp: cursor - page,
      Home: 0, End: matches.length - 1,
    };
    if (event.key in moves) moveTo(moves[event.key]);
    else if (event.key === "Enter" && matches.length) open(matches[cursor]);
    else return false;
    return true;
  }

  function inSection(event) {
    if (event.key === "Escape" && state.item >= 0) close();
    else if (event.key === "Escape" && event.target === search) list.focus();
    else if (event.target.matches("input, select, textarea")) return false;
    else if (event.key === "n" && state.item >= 0) step(1);
    else if (event.key === "p" && state.item >= 0) step(-1);
    else if (event.key === "/") { search.focus(); search.select(); }
    else if (event.key === "?") { part("keys").open = !part("keys").open; part("keys").firstElementChild.focus(); }
    else return false;
    return true;
  }

  section.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if ((event.target === list && inList(event)) || inSection(event)) event.preventDefault();
  });
  list.addEventListener("scroll", drawList);
  list.addEventListener("click", (event) => {
    const place = event.target.closest(".row")?.dataset.place;
    if (place !== undefined) { cursor = Number(place); open(matches[cursor]); }
  });
  new ResizeObserver(drawList).observe(list);
  window.addEventListener("hashchange", () => {
    if (/^#items(\?|$)/.test(location.hash)) arrive();
    else if (!location.hash) { readLink(); changed(null); } // back to before the first filter
  });

  // A link to where the address already is changes nothing in it.
  document.addEventListener("click", (event) => {
    const followed = event.target.closest?.('a[href^="#items"]');
    if (followed && followed.hash === location.hash && !event.defaultPrevented) arrive();
  });

  function arrive() {
    readLink();
    changed(null);
    (state.item >= 0 ? part("detail") : section).scrollIntoView();
  }

  fillSelects();
  part("ready").hidden = false;
  part("waiting").hidden = true;
  if (/^#items\?/.test(location.hash)) arrive(); else changed(null);

  // The texts, in idle time: so that a search finds them all.
  for (const block of index.blocks) {
    await new Promise((go) => (window.requestIdleCallback ? requestIdleCallback(go, { timeout: 2000 }) : setTimeout(go, 50)));
    await openTexts(block);
    if (state.q) findMore();
  }
  section.dataset.read = "all";
}

start().catch((error) => {
  part("waiting").textContent = `The items cannot be shown: ${error.message}`;
  throw error;
});
