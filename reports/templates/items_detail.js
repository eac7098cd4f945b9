// One item: two checkpoints side by side, protocol by protocol.

const NAMES = {
  loglikelihood: "Log-likelihood", generative: "Generation", letters: "Letters ranked under the generation prompt",
  generate_until: "Generation by lm-eval",
};
const FINISHES = new Map(Object.entries({ // a map: a server may answer with any name
  length: "cut off at the length limit", loop: "stopped in a loop", stop: "ended by itself", stop_string: "ended at a stop string",
  scored: "scored, not generated",
}));
const OUTCOME_CLASSES = ["", "is-right", "is-partly", "is-wrong", "is-unscored"];

const tag = (text, kind = "") => make("span", { className: `tag ${kind}` }, text);

function outcomeTag(record, missing = "not scored") {
  if (record.outcome === 2) return tag(`partly right (${number(record.score)})`, "is-partly");
  if (record.outcome) return tag(OUTCOMES[record.outcome] === "unscored" ? missing : OUTCOMES[record.outcome], OUTCOME_CLASSES[record.outcome]);
  return tag(`score ${number(record.score)}`);
}

const number = (value) => (Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(4))));
const tokens = (count) => (count < 0 ? "unknown" : count.toLocaleString("en"));

function facts(record, protocol, hasTexts) {
  const list = make("dl", { className: "facts" });
  const add = (name, ...values) => list.append(make("dt", {}, name), make("dd", {}, ...values));
  add("score", outcomeTag(record), ...(record.failure && record.failure !== OUTCOMES[record.outcome]
    ? [" ", tag(record.failureName, record.failure === "right" ? "is-right" : "is-wrong")] : []));
  if (hasTexts) {
    // The class is by our own strict reading, which may find none where the engine's scorer reads one.
    add(record.failure ? "scorer reads" : "answer read", record.extracted === null ? make("em", {}, "none") : opening(record.extracted, 2000));
    add("right answer", opening(record.target ?? "", 2000));
    add("tokens", protocol === "generative" || protocol === "generate_until"
      ? `${tokens(record.promptTokens)} in, ${tokens(record.tokens)} out` : `${tokens(record.promptTokens)} in, ${tokens(record.tokens)} scored`);
  } else add("tokens", `${tokens(record.tokens)} out`);
  if (record.finish && record.finish !== "scored") add("end", FINISHES.get(record.finish) ?? opening(record.finish, 300));
  return list;
}

function choices(record, low, high) {
  const list = make("ol", { className: "choices" });
  record.choices.forEach((choice, i) => {
    const picked = i === record.picked, width = 100 * ((choice.logprob - low) / (high - low || 1));
    list.append(make("li", {},
      make("span", { className: "choice-text" }, choice.text === null ? `option ${i + 1}` : opening(choice.text, 300)),
      make("span", { className: "choice-value" }, choice.logprob.toFixed(2)),
      make("span", { className: "bar", ariaHidden: "true" }, make("i", { style: { width: `${Number.isFinite(width) ? Math.max(width, 1) : 0}%` } })),
      make("span", { className: "choice-marks" }, picked ? tag("picked") : null, choice.right ? tag("right answer", "is-right") : null)));
  });
  return list;
}

const promptBlock = (summary, record, mark) =>
  make("details", { className: "prompt" }, make("summary", {}, summary, ...(mark ? [" ", tag("differs", "is-wrong")] : [])),
    textBlock("prompt as sent", record.prompt ?? ""));

function protocolPart(index, block, row, protocol, pair) {
  const records = pair.map((checkpoint) => recordOf(index, block, row, checkpoint, protocol));
  if (records.every((record) => record === null)) return null;
  const name = index.protocols[protocol];
  const part = make("section", { className: "protocol" }, make("h4", {}, NAMES[name] ?? name));
  const [one, other] = records;
  const shared = !!block && records.every((record) => record?.promptNumber === one?.promptNumber);
  const saidTokens = (record) => (record.promptTokens < 0 ? "" : ` (${tokens(record.promptTokens)} tokens)`);
  if (shared) {
    const whose = pair.length > 1 ? ", the same for both" : "";
    part.append(promptBlock(`Prompt as sent${whose}${saidTokens(one)}`, one, false));
  }
  const values = records.flatMap((record) => record?.choices?.map((choice) => choice.logprob).filter(Number.isFinite) ?? []);
  const highest = Math.max(...values), lowest = Math.min(...values);
  const low = lowest - 0.08 * (highest - lowest || 1);
  const differs = block && other ? firstDifference(one?.output ?? null, other.output) : -1;
  const columns = records.map((record, side) => {
    const column = make("div", { className: "side" },
      named("h5", {}, index.checkpoints[pair[side]], 80));
    if (record === null) column.append(make("p", { className: "quiet" }, "No record."));
    else {
      column.append(facts(record, name, !!block));
      if (block && !shared) column.append(promptBlock(`Prompt as sent${saidTokens(record)}`, record, pair.length > 1 && !records.includes(null)));
      if (block && record.choices.length > 1) column.append(choices(record, low, highest));
      else if (block && record.choices.length === 1)
        column.append(make("p", { className: "quiet" }, `log-likelihood ${record.choices[0].logprob.toFixed(2)}`));
      if (block && !(record.choices.length > 1))
        column.append(textBlock(`output of ${shortened(index.checkpoints[pair[side]], 80)}`, record.output ?? "", differs));
    }
    return column;
  });
  part.append(make("div", { className: `pair of-${columns.length}` }, ...columns));
  return part;
}

// The parts of an item that change with the row and the two checkpoints; `block` is opened or null (no texts here).
function itemParts(index, block, row, pair) {
  const parts = index.protocols.map((_, protocol) => protocolPart(index, block, row, protocol, pair)).filter((part) => part !== null);
  if (!parts.length) return [make("p", { className: "quiet" }, "Neither checkpoint has a record of this item: choose another one above.")];
  if (!block) parts.unshift(make("p", { className: "no-text" }, "This item's text is in records.parquet: it is not part of the sample in this file."));
  return parts;
}
