// Foreign text on the page: always text nodes; characters that hide or turn text are written out and marked.

const LONGEST = 20000;
// Seen or needed, though of these kinds: what joins and colours emoji, and Arabic signs around numbers.
const SEEN = /(?<=\p{Emoji})[\ufe0e\ufe0f]|(?<=[\p{Extended_Pictographic}\p{Emoji_Modifier}\ufe0f])\u200d(?=\p{Extended_Pictographic})|[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\u{110bd}\u{110cd}]/u;
const UNSEEN = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff\p{Surrogate}\p{Cf}\p{Default_Ignorable_Code_Point}]/u;
const HIDDEN = new RegExp(`(?=${UNSEEN.source})(?!${SEEN.source})[^]`, "u");
const HIDDEN_RUNS = new RegExp(`(?:${HIDDEN.source})+`, "gu");
const ALL_HIDDEN = new RegExp(HIDDEN.source, "gu");

const code = (character) => {
  const number = character.codePointAt(0);
  const digits = number.toString(16);
  return number < 0x100 ? `\\x${digits.padStart(2, "0")}` : number < 0x10000 ? `\\u${digits.padStart(4, "0")}` : `\\u{${digits}}`;
};
const plain = (text) => text.replace(ALL_HIDDEN, code);
const shortened = (text, length) => {
  const line = plain(text.slice(0, 2 * length + 2)).replace(/\s+/g, " ").trim();
  return line.length > length ? `${wholeSlice(line, 0, length)}…` : line;
};

// Like slice, but never between the halves of one character.
function wholeSlice(text, start, end) {
  const isHalf = (at) => at > 0 && at < text.length && /^[\udc00-\udfff]$/.test(text[at]) && /^[\ud800-\udbff]$/.test(text[at - 1]);
  return text.slice(isHalf(start) ? start - 1 : start, isHalf(end) ? end - 1 : end);
}

function make(tag, properties = {}, ...children) {
  const { dataset, style, ...rest } = properties;
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(rest))
    if (name in element) element[name] = value; else element.setAttribute(name, value);
  Object.assign(element.dataset, dataset);
  Object.assign(element.style, style);
  element.append(...children.filter((child) => child !== null));
  return element;
}

function marked(text) {
  const parts = document.createDocumentFragment();
  let last = 0;
  for (const run of text.matchAll(HIDDEN_RUNS)) {
    if (run.index > last) parts.append(text.slice(last, run.index));
    const codes = [...run[0]].map(code).join("");
    parts.append(make("span", { className: "hidden-character", title: "characters that are not shown as such" }, codes));
    last = run.index + run[0].length;
  }
  if (last < text.length || !text) parts.append(text.slice(last));
  return parts;
}

// A foreign name in short, whole where the pointer rests on it.
const named = (tag, properties, text, length) => make(tag,
  { ...properties, ...(text.length > length ? { title: shortened(text, 1000) } : {}) }, shortened(text, length));

const size = (text) => `${text.length.toLocaleString("en")} characters`;

// The beginning of a foreign text, and how much there is.
function beginning(text, most = 300) {
  const parts = document.createDocumentFragment();
  parts.append(marked(text.length > most ? wholeSlice(text, 0, most) : text));
  if (text.length > most) parts.append(make("span", { className: "cut" }, ` … (${size(text)})`));
  return parts;
}

// The same with a button for the rest.
function opening(text, most) {
  if (text.length <= most) return marked(text);
  const part = make("span", { className: "long", tabIndex: -1 });
  const more = make("button", { type: "button", onclick: () => { part.replaceChildren(marked(text)); part.focus(); } }, `show all ${size(text)}`);
  part.append(marked(wholeSlice(text, 0, most)), " … ", more);
  return part;
}

async function copyText(text, button) {
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "copied";
  } catch {
    button.textContent = "not allowed here";
  }
  setTimeout(() => { button.textContent = said; }, 1500);
}

// A text as it is, cut when it is very long; `differs`: where it stops being like the other side's (-1: nowhere).
function textBlock(label, text, differs = -1) {
  const body = make("pre", { tabIndex: 0, role: "region", ariaLabel: label });
  const fill = (shown) => {
    const split = differs > 0 && differs < shown.length ? wholeSlice(shown, 0, differs).length : -1;
    if (split < 0) return body.replaceChildren(marked(shown));
    const mark = make("span", { className: "first-difference", title: "from here on the two differ" });
    body.replaceChildren(marked(shown.slice(0, split)), mark, marked(shown.slice(split)));
  };
  const tools = make("p", { className: "text-tools" },
    make("button", { type: "button", ariaLabel: `Copy: ${label}`, onclick: (event) => copyText(text, event.target) }, "copy"));
  if (!text) return make("div", { className: "text-block" }, make("p", { className: "quiet" }, "(empty)"));
  fill(text.length > LONGEST ? wholeSlice(text, 0, LONGEST) : text);
  if (text.length > LONGEST) {
    const more = make("button", { type: "button" }, "show all");
    const said = make("span", { className: "quiet" }, `the first ${LONGEST.toLocaleString("en")} of ${size(text)}`); // in print, too
    more.onclick = () => { fill(text); said.remove(); more.remove(); body.focus(); };
    tools.prepend(said, more);
  }
  return make("div", { className: "text-block" }, body, tools);
}

function firstDifference(one, other) {
  if (one === null || other === null || one === other) return -1;
  const most = Math.min(one.length, other.length);
  let at = 0;
  while (at < most && one[at] === other[at]) at++;
  return at;
}
