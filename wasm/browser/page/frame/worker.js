// The service worker of a member's origin: whatever pages here ask for comes from that member, or from nowhere.

const FRAME = "/~unisockets/frame";
const OWN_FILES = "/~unisockets/";
/** How long a member may take to begin to answer, in milliseconds. */
const LIMIT = 60_000;

self.addEventListener("install", () => self.skipWaiting());
self.addEventListener("activate", (event) => event.waitUntil(self.clients.claim()));

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (url.origin === location.origin && url.pathname.startsWith(OWN_FILES)) return;
  // On its own a page is in no sandbox, and could go wherever this machine can.
  if (event.request.destination === "document") event.respondWith(refusal(403, "A member's pages are shown only within the page that has joined its network."));
  else if (url.origin !== location.origin) event.respondWith(refusal(403, "members' pages reach only their own member"));
  else event.respondWith(ask(event.request, url));
});

function refusal(status, text) {
  return new Response(`${text}\n`, { status, headers: { "content-type": "text/plain; charset=utf-8" } });
}

/** Asks the frame above, which asks the page above it. */
async function ask(request, url) {
  const windows = await self.clients.matchAll({ type: "window", includeUncontrolled: true });
  const frame = windows.find((each) => new URL(each.url).pathname === FRAME);
  if (!frame) return refusal(503, "the page that showed this has been closed");
  const bodyless = ["GET", "HEAD"].includes(request.method);
  const body = bodyless ? undefined : await request.arrayBuffer();
  const { port1: reply, port2 } = new MessageChannel();
  const headers = [...request.headers].filter(([name]) => name !== "host");
  let late;
  const head = await new Promise((resolve) => {
    reply.onmessage = ({ data }) => resolve(data);
    request.signal.addEventListener("abort", () => {
      reply.postMessage("cancel");
      resolve({ error: "it is not wanted any more" });
    });
    frame.postMessage({ path: url.pathname + url.search, method: request.method, headers, body }, [port2]);
    late = setTimeout(() => {
      reply.postMessage("cancel");
      resolve({ error: "the member does not answer" });
    }, LIMIT);
  });
  clearTimeout(late);
  if (head.error !== undefined) return refusal(502, head.error);
  return new Response(head.empty ? null : stream(reply), { status: head.status, statusText: head.statusText, headers: head.headers });
}

/** The content, a part for each time that it is asked for; an error may come at any time. */
function stream(reply) {
  let wake = () => undefined;
  return new ReadableStream(
    {
      start(controller) {
        reply.onmessage = ({ data: part }) => {
          if (part.error !== undefined) controller.error(new TypeError(part.error));
          else if (part.data) controller.enqueue(part.data);
          else controller.close();
          wake();
        };
      },
      pull() {
        return new Promise((resolve) => {
          wake = resolve;
          reply.postMessage("more");
        });
      },
      cancel: () => reply.postMessage("cancel"),
    },
    { highWaterMark: 0 },
  );
}
