// The frame around a member's pages, at the origin of that member: hands what the service worker wants to the page, over
// the one port that the page gave it, which reaches this member only.

const FRAME = "/~unisockets/frame";
/** How often a new page is looked for, in milliseconds. */
const HEAR_INTERVAL = 50;

/** Asks the page above for a port. */
function portOfPage() {
  return new Promise((resolve) => {
    addEventListener("message", ({ source, ports }) => {
      if (source === parent && ports[0]) resolve(ports[0]);
    });
    parent.postMessage("unisockets-frame", "*");
  });
}

function say(text) {
  const line = document.createElement("p");
  line.textContent = text;
  document.body.replaceChildren(line);
}

/** Waits until the service worker answers for this origin. */
async function ready() {
  const registration = await navigator.serviceWorker.register("/~unisockets/worker.js", { scope: "/" });
  const worker = registration.active ?? registration.waiting ?? registration.installing;
  while (worker.state !== "activated") {
    await new Promise((resolve) => worker.addEventListener("statechange", resolve, { once: true }));
    if (worker.state === "redundant") throw new Error("the service worker could not start");
  }
}

async function begin() {
  const port = await portOfPage();
  navigator.serviceWorker.addEventListener("message", ({ data, ports: [reply] }) => {
    if (reply) port.postMessage({ ...data, kind: "request" }, [reply]);
  });
  navigator.serviceWorker.startMessages();
  try {
    await ready();
  } catch (error) {
    port.postMessage({ kind: "broken", why: error.message });
    throw error;
  }
  const view = document.createElement("iframe");
  view.title = "A member's page";
  // Links to the member by its name are links within this origin.
  const clicked = (event) => {
    const link = event.target.closest?.("a[href]");
    if (!link || event.defaultPrevented || event.button > 1) return;
    // In a window of its own a page would be in no sandbox.
    const opens = event.button === 1 || event.ctrlKey || event.metaKey || event.shiftKey;
    if (!/^https?:$/.test(link.protocol)) return opens && event.preventDefault();
    if (link.origin !== globalThis.location.origin) {
      event.preventDefault();
      port.postMessage({ kind: "link", url: link.href });
    } else if (opens || (link.target && link.target !== "_self" && !view.contentWindow.frames[link.target])) {
      // There are no other windows here.
      event.preventDefault();
      view.src = link.href;
    }
  };
  const hear = () => {
    try {
      // Of the window: what the page does itself comes first. Added twice it is there once, and a page may take it away.
      view.contentWindow.addEventListener("click", clicked);
      view.contentWindow.addEventListener("auxclick", clicked);
    } catch {
      // It shows something of another origin, which is an error page.
    }
  };
  // A page has links that can be clicked long before all of it has come.
  setInterval(hear, HEAR_INTERVAL);
  view.addEventListener("load", () => {
    hear();
    let location;
    try {
      ({ location } = view.contentWindow);
      if (location.protocol === "about:") return;
      location = location.pathname + location.search + location.hash;
    } catch {
      return;
    }
    port.postMessage({ kind: "shown", location });
  });
  port.onmessage = async ({ data }) => {
    if (data?.kind !== "show" || typeof data.location !== "string" || !data.location.startsWith("/")) return;
    // Pages here may have ended the service worker: it is theirs, too.
    await ready().then(
      () => (view.src = data.location),
      (error) => say(`This frame cannot be used: ${error.message}`),
    );
  };
  document.body.replaceChildren(view);
  port.postMessage({ kind: "ready" });
}

if (location.pathname === FRAME && parent !== globalThis) begin().catch((error) => say(`This frame cannot be used: ${error.message}`));
else say("A member's pages are shown only within the page that has joined its network.");
