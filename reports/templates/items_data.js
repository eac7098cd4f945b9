// What distill_eval/render/report/payload.py packed: blocks are opened here, texts found and searched.

const ARRAYS = { u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, f4: Float32Array, f8: Float64Array };

async function openBlock(id) {
  if (!("DecompressionStream" in globalThis)) throw new Error("this browser is too old to unpack them. Every record is in records.parquet.");
  const text = document.getElementById(id).textContent.trim();
  const bytes = Uint8Array.fromBase64
    ? Uint8Array.fromBase64(text)
    : Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const data = await new Response(stream).arrayBuffer();
  const size = new DataView(data).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, size)));
  const columns = {};
  let start = 4 + size;
  for (const [name, type, length] of header.columns) {
    columns[name] = new ARRAYS[type](data, start, length);
    start += Math.ceil((length * ARRAYS[type].BYTES_PER_ELEMENT) / 8) * 8;
  }
  return { ...header.values, ...columns };
}

// Codes count from the first use on: 0 is the next new number, n + 1 is n again.
function numbersOf(codes) {
  const numbers = new Uint32Array(codes.length);
  let next = 0;
  codes.forEach((code, i) => { numbers[i] = code === 0 ? next++ : code - 1; });
  return numbers;
}

function sums(counts) {
  const starts = new Uint32Array(counts.length + 1);
  for (let i = 0; i < counts.length; i++) starts[i + 1] = starts[i] + counts[i];
  return starts;
}

function lineStarts(text) {
  const starts = [0];
  for (let at = text.indexOf("\n"); at >= 0; at = text.indexOf("\n", at + 1)) starts.push(at + 1);
  starts.push(text.length + 1);
  return Uint32Array.from(starts);
}

// Of the two compared axes and the arms: where cell (checkpoint, protocol, row) stands in a column.
const cellOf = (index, checkpoint, protocol, row, numRows) =>
  (checkpoint * index.protocols.length + protocol) * numRows + row;

async function openIndex() {
  const index = await openBlock("items-index");
  index.numRows = index.keys.length;
  index.blocks = [];
  index.blockOf = new Int32Array(index.numRows).fill(-1);
  index.placeOf = new Uint32Array(index.numRows);
  index.block.forEach((number, row) => {
    if (!number) return;
    const block = (index.blocks[number - 1] ??= { id: `items-text-${number - 1}`, rows: [], opened: null, data: null });
    index.blockOf[row] = number - 1;
    index.placeOf[row] = block.rows.length;
    block.rows.push(row);
  });
  index.outcome = outcomes(index);
  return index;
}

const OUTCOMES = ["", "right", "partly right", "wrong", "unscored"];

// One of OUTCOMES for every cell; 0 where there is no record, or a score that says nothing about right and wrong.
function outcomes(index) {
  const found = new Uint8Array(index.score.length);
  const kinds = Array.from(index.score_values, (value) =>
    Number.isNaN(value) ? 4 : value >= 1 - 1e-9 ? 1 : value > 0 ? 2 : 3);
  for (let cell = 0; cell < found.length; cell++) {
    if (!index.score[cell]) continue;
    const protocol = Math.floor(cell / index.numRows) % index.protocols.length;
    const kind = kinds[index.score[cell] - 1];
    found[cell] = index.tasks[index.task[cell % index.numRows]].graded[protocol] || kind === 4 ? kind : 0;
  }
  return found;
}

// Opens a block of texts once, whoever asks.
function openTexts(block) {
  block.opened ??= openBlock(block.id).then((raw) => {
    const lower = raw.text.toLowerCase();
    const numCodes = raw.texts.length;
    const texts = new Uint32Array(numCodes); // 0: none, otherwise 1 + the text's number
    let next = 1;
    for (let i = 0; i < numCodes; i++) texts[i] = raw.texts[i] === 0 ? 0 : raw.texts[i] === 1 ? next++ : raw.texts[i] - 1;
    block.data = {
      ...raw, texts, lower, starts: lineStarts(raw.text), lowerStarts: lineStarts(lower),
      textStarts: sums(raw.line_counts), lines: numbersOf(raw.lines), logprobStarts: sums(raw.num_logprobs),
      optionStarts: sums(raw.num_options),
    };
    return block.data;
  });
  return block.opened;
}

function textOf(data, number) {
  if (number === 0) return null;
  const lines = [];
  for (let i = data.textStarts[number - 1]; i < data.textStarts[number]; i++) {
    const line = data.lines[i];
    lines.push(data.text.slice(data.starts[line], data.starts[line + 1] - 1));
  }
  return lines.join("\n");
}

// Everything known of one record, null where there is none.
function recordOf(index, block, row, checkpoint, protocol) {
  const cell = cellOf(index, checkpoint, protocol, row, index.numRows);
  if (!index.score[cell]) return null;
  const record = {
    score: index.score_values[index.score[cell] - 1], outcome: index.outcome[cell],
    failure: index.failure[cell] ? index.classes[index.failure[cell] - 1] : "",
    failureName: index.failure[cell] ? index.class_names[index.failure[cell] - 1] : "",
    finish: index.finishes[index.finish[cell] - 1], tokens: index.tokens[cell] - 2,
  };
  if (!block) return record;
  const data = block.data, numRows = block.rows.length, place = index.placeOf[row];
  const here = cellOf(index, checkpoint, protocol, place, numRows);
  const numCells = numRows * index.protocols.length * index.checkpoints.length;
  index.fields.forEach((field, number) => {
    record[`${field}Number`] = data.texts[number * numCells + here];
    record[field] = textOf(data, record[`${field}Number`]);
  });
  const first = data.optionStarts[protocol * numRows + place];
  const optionTexts = index.fields.length * numCells + first;
  record.promptTokens = data.prompt_tokens[here] - 2;
  record.picked = data.picked[here] - 1;
  record.choices = Array.from(
    data.logprobs.subarray(data.logprobStarts[here], data.logprobStarts[here + 1]),
    (logprob, number) => ({
      logprob, text: textOf(data, data.texts[optionTexts + number] ?? 0), right: data.right[first + number] === 1,
    }),
  );
  return record;
}

// Marks in `found` [rows] the rows of an opened block that hold `query` (lower case, without line breaks).
function searchTexts(index, block, query, found) {
  const { lower, lowerStarts, lines, textStarts, texts } = block.data;
  const lineHits = new Uint8Array(lowerStarts.length - 1);
  for (let at = lower.indexOf(query); at >= 0; at = lower.indexOf(query, at)) {
    let low = 0, high = lineHits.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (lowerStarts[middle] <= at) low = middle; else high = middle - 1;
    }
    lineHits[low] = 1;
    at = lowerStarts[low + 1];
  }
  const textHits = new Uint8Array(textStarts.length);
  for (let text = 0; text < textStarts.length - 1; text++)
    for (let i = textStarts[text]; i < textStarts[text + 1]; i++)
      if (lineHits[lines[i]]) { textHits[text + 1] = 1; break; }
  const numRows = block.rows.length;
  const numCells = index.fields.length * index.checkpoints.length * index.protocols.length * numRows;
  for (let i = 0; i < numCells; i++) if (textHits[texts[i]]) found[block.rows[i % numRows]] = 1;
}

function searchNames(index, query, found) {
  for (let row = 0; row < index.numRows; row++)
    if (index.keys[row].toLowerCase().includes(query) || index.snippets[row].toLowerCase().includes(query)) found[row] = 1;
}
