// The page's own behaviour: theme, links into closed parts, copying, printing. It runs in the head, so that a page
// that is to be dark never flashes white.
const KEY = "distill-eval-theme";
const THEMES = ["auto", "light", "dark"];

// Storage is refused to pages on disk by some browsers and settings.
const stored = () => { try { return localStorage.getItem(KEY); } catch { return null; } };
const store = (theme) => { try { localStorage.setItem(KEY, theme); } catch { /* lasts as long as the page */ } };

let theme = THEMES.includes(stored()) ? stored() : "auto";
const applyTheme = () => {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
};
applyTheme();

const wireTheme = () => {
  const button = document.getElementById("theme");
  const say = () => { button.textContent = `Theme: ${theme}`; };
  button.hidden = false;
  say();
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    store(theme);
    applyTheme();
    say();
  });
};

const decoded = (text) => { try { return decodeURIComponent(text); } catch { return text; } };

const openTarget = () => {
  const target = document.getElementById(decoded(location.hash.slice(1).split("?")[0]));
  if (target === null) return;
  let closed = false;
  for (let part = target; part !== null; part = part.parentElement) {
    if (part.localName === "details" && !part.open) closed = part.open = true;
  }
  if (closed) target.scrollIntoView();
};

const wireCopying = () => {
  for (const button of document.querySelectorAll("button[data-copy]")) {
    const status = button.parentElement.querySelector("[role=status]");
    const source = document.getElementById(button.dataset.copy);
    button.hidden = false;
    button.addEventListener("click", async () => {
      let done = false;
      try {
        await navigator.clipboard.writeText(source.textContent);
        done = true;
      } catch {
        getSelection().selectAllChildren(source);
        done = document.execCommand("copy");
      }
      status.textContent = done ? "Copied" : "Selected: copy it by hand";
    });
  }
};

const wirePrinting = () => {
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const part of opened) part.open = true;
  });
  addEventListener("afterprint", () => {
    for (const part of opened) part.open = false;
  });
};

addEventListener("DOMContentLoaded", () => {
  wireTheme();
  wireCopying();
  wirePrinting();
  openTarget();
});
addEventListener("hashchange", openTarget);
