// The frame around a member's pages, at the origin of that member: hands what the service worker wants to the page, over
// the one port that the page gave it, which reaches this member only.

const FRAME = "/~unisockets/frame";

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
  view.addEventListener("load", () => {
    let location;
    try {
      ({ location } = view.contentWindow);
      if (location.protocol === "about:") return;
      location = location.pathname + location.search + location.hash;
      // Links to the member by its name are links within this origin.
      view.contentDocument.addEventListener("click", (event) => {
        const link = event.target.closest?.("a[href]");
        if (!link || event.defaultPrevented || link.origin === globalThis.location.origin) return;
        if (!/^https?:$/.test(link.protocol)) return;
        event.preventDefault();
        port.postMessage({ kind: "link", url: link.href });
      });
    } catch {
      return; // It shows something of another origin, which is an error page.
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
