// Fetches the page anew every few seconds and puts its middle in the place of the old one; without it the page is as
// complete, and only stands still.
"use strict";

const PERIOD_MS = 5000;

async function refresh() {
  if (document.hidden) return;
  const stale = document.getElementById("stale");
  try {
    const answer = await fetch("/operator", { cache: "no-store", signal: AbortSignal.timeout(15000) });
    if (answer.redirected) {
      location.reload();
      return;
    }
    if (!answer.ok) throw new Error(`the service answered ${answer.status}`);
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const focused = document.activeElement && document.activeElement.id;
    document.querySelector("main").replaceWith(document.adoptNode(fresh.querySelector("main")));
    document.title = fresh.title;
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    stale.hidden = true;
  } catch (error) {
    stale.textContent = `Not refreshed: ${error.message}. What you see is old.`;
    stale.hidden = false;
  }
}

async function keepRefreshing() {
  await refresh();
  setTimeout(keepRefreshing, PERIOD_MS);
}

setTimeout(keepRefreshing, PERIOD_MS);
document.addEventListener("visibilitychange", refresh);
