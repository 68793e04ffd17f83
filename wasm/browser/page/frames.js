// Members' pages in a frame: each member has an origin of its own, which reaches that member and nothing else.

/** The page's name on the server's own machine, with members' names below it. */
const ON_LOOPBACK = "unisockets.localhost";
/** Requests of one frame that are answered at one time; the rest waits for its turn. */
const REQUESTS_MAX = 32;
/** How often a page is shown again that makes its frame load again before it has come. */
const AGAIN_MAX = 3;
/** Requests that wait; what exceeds it is refused. */
const WAITING_MAX = 512;
/** The longest path that is shown, in characters. */
const LOCATION_MAX = 4096;
/** How long a member may take to begin to answer, in milliseconds. */
const HEAD_LIMIT = 60_000;
/** How long a frame may leave an answer unread before it is dropped, in milliseconds. */
const UNREAD_LIMIT = 300_000;
/** How long an origin may take to come up, in milliseconds. */
const READY_LIMIT = 10_000;

/** Fields of a member's answer that have a meaning for the connection only, or that would bind the frame's own origin. */
const DROPPED = ["connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "alt-svc", "strict-transport-security", "clear-site-data", "service-worker-allowed", "x-frame-options", "report-to", "reporting-endpoints", "nel", "content-security-policy-report-only"];
/** Nothing outside of the member's own origin is loaded, sent to or framed. */
const POLICY = "default-src 'self' data: blob: 'unsafe-inline' 'unsafe-eval'; base-uri 'self'; form-action 'self'";

/** What the server has said of members' origins. */
let learnt;

/** Returns the pattern of members' origins here, or why there is none. */
export async function frameOrigins() {
  if (!globalThis.isSecureContext) {
    return { why: "This page came over plain http from another machine, and browsers allow service workers only over https or from localhost." };
  }
  if (!("serviceWorker" in navigator)) return { why: "This browser has no service workers, or they are switched off." };
  if (learnt === undefined) {
    const answer = await fetch("/frame-origin").catch(() => undefined);
    if (answer?.ok) learnt = (await answer.text()).trim();
    else if (!answer) return { why: "The signaling server cannot be asked where members' pages belong." };
  }
  if (learnt) return { pattern: learnt };
  const port = location.port ? `:${location.port}` : "";
  if (location.hostname === ON_LOOPBACK) return { pattern: `${location.protocol}//*.${ON_LOOPBACK}${port}` };
  if (/^(localhost|127\.\d+\.\d+\.\d+|\[::1\])$/.test(location.hostname)) {
    return { why: `Members' pages have names of their own only when this page is opened as ${location.protocol}//${ON_LOOPBACK}${port}/.` };
  }
  return { why: "The signaling server has no wildcard name for members' pages; whoever runs it can give it one with --frame-origin." };
}

/** Returns the name of the origin of a member's port, as this tab sees it, for tabs share service workers: its key may have capitals, names have none. */
async function labelOf(network, own, key, port) {
  const digest = await crypto.subtle.digest("SHA-256", new TextEncoder().encode(`unisockets-frame-v1\n${network}\n${own}\n${key}\n${port}`));
  return [...new Uint8Array(digest, 0, 20)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** The browser does not let members' origins work as they must. */
export class Unusable extends Error {}

/** A frame with one member's pages. */
export class Frame {
  #node;
  #member;
  /** As in the address, with the port if it is not 80. */
  #host;
  #portNumber;
  #element;
  #port;
  #greet;
  /** What is to be shown, until it is, and how often that was begun anew. */
  #wanted;
  #again = 0;
  #running = 0;
  #waiting = [];
  /** What ends the requests that run. */
  #stops = new Set();
  /** What tells that a frame does not do what it is asked to: a page in it may have put itself in its place. */
  #silent;
  #tell;
  opened;

  /** `tell` hears of what is shown, and of links that lead elsewhere. */
  constructor(node, member, host, element, tell) {
    this.#node = node;
    this.#member = member;
    this.#host = host;
    this.#portNumber = new URL(`http://${host}`).port || "80";
    this.#element = element;
    this.#tell = tell;
  }

  get host() {
    return this.#host;
  }

  get key() {
    return this.#member.key;
  }

  /** Loads the member's origin; `opened` says when it is there, or why not. */
  open(pattern) {
    this.opened = this.#load(pattern);
    // Whoever wants another page meanwhile does not wait for it.
    this.opened.catch(() => undefined);
  }

  async #load(pattern) {
    const origin = pattern.replace("*", await labelOf(this.#node.network, this.#node.key, this.#member.key, this.#portNumber));
    this.#element.removeAttribute("srcdoc");
    this.#element.setAttribute("sandbox", "allow-scripts allow-same-origin allow-forms allow-downloads");
    await new Promise((resolve, reject) => {
      const limit = setTimeout(() => reject(new Error(`the frame at ${origin} does not come up`)), READY_LIMIT);
      // A frame that loads again asks again.
      this.#greet = ({ source, origin: from, data }) => {
        if (source !== this.#element.contentWindow || from !== origin || data !== "unisockets-frame") return;
        const { port1, port2 } = new MessageChannel();
        this.#port?.close();
        this.#port = port1;
        port1.onmessage = ({ data, ports }) => {
          if (data?.kind === "broken") return reject(new Unusable(`This browser gives members' pages no service worker here: ${String(data.why).replace(/^.*\): /, "")}`));
          if (data?.kind !== "ready") return this.#take(data, ports);
          clearTimeout(limit);
          resolve();
          // What was wanted while it loaded again went to nobody.
          if (this.#wanted !== undefined && (this.#again += 1) <= AGAIN_MAX) port1.postMessage({ kind: "show", location: this.#wanted });
        };
        source.postMessage("unisockets-port", origin, [port2]);
      };
      addEventListener("message", this.#greet);
      // Nothing to go back to: a frame that is gone back to belongs to nobody.
      this.#element.contentWindow.location.replace(`${origin}/~unisockets/frame`);
    }).catch((error) => {
      this.close();
      throw error;
    });
  }

  show(location) {
    this.#wanted = location;
    this.#again = 0;
    clearTimeout(this.#silent);
    this.#silent = setTimeout(() => this.#tell({ silent: true }), READY_LIMIT);
    this.#port.postMessage({ kind: "show", location });
  }

  close() {
    removeEventListener("message", this.#greet);
    clearTimeout(this.#silent);
    this.#port?.close();
    this.#waiting = [];
    this.#stops.forEach((stop) => stop.abort());
    this.#stops.clear();
  }

  #take(data, [reply]) {
    clearTimeout(this.#silent);
    if (data?.kind === "shown" && data.location === this.#wanted) this.#wanted = undefined;
    // A member's page can say anything here: what it shows is below its own name.
    const isPath = typeof data?.location === "string" && data.location.startsWith("/") && data.location.length <= LOCATION_MAX;
    if (data?.kind === "shown" && isPath) this.#tell({ shown: `http://${this.#host}${data.location}` });
    if (data?.kind === "link") this.#follow(String(data.url));
    if (data?.kind !== "request" || !reply) return;
    if (this.#waiting.length >= WAITING_MAX) return reply.postMessage({ error: "there are too many requests at one time" });
    this.#waiting.push({ data, reply });
    this.#next();
  }

  #next() {
    while (this.#running < REQUESTS_MAX && this.#waiting.length > 0) {
      const { data, reply } = this.#waiting.shift();
      this.#running += 1;
      void this.#answer(data, reply)
        .catch((error) => reply.postMessage({ error: String(error?.message ?? error) }))
        .finally(() => {
          this.#stops.forEach((stop) => stop.signal.aborted && this.#stops.delete(stop));
          this.#running -= 1;
          this.#next();
        });
    }
  }

  /** Whether a URL leads to this frame's member, and to the port whose pages these are. */
  #isOwn({ protocol, hostname, port }) {
    const { name, ipv4, ipv6 } = this.#member;
    const names = [new URL(`http://${this.#host}`).hostname, name, ipv4, `[${ipv6}]`];
    return protocol === "http:" && names.includes(hostname) && (port || "80") === this.#portNumber;
  }

  #follow(text) {
    if (!URL.canParse(text)) return;
    const url = new URL(text);
    if (this.#isOwn(url)) this.show(url.pathname + url.search + url.hash);
    else this.#tell({ link: text });
  }

  async #answer({ path, method, headers, body }, reply) {
    if (typeof path !== "string" || !path.startsWith("/") || typeof method !== "string" || !Array.isArray(headers)) {
      throw new Error("that is no request");
    }
    // The address is the key's, so the answer is the member's, whoever has its name by now.
    const base = new URL(`http://[${this.#member.ipv6}]:${this.#portNumber}`);
    const url = new URL(path, base);
    if (url.origin !== base.origin) throw new Error("that is no request");
    const stop = new AbortController();
    this.#stops.add(stop);
    reply.onmessage = ({ data }) => data === "cancel" && stop.abort();
    const init = { method, headers, redirect: "manual", signal: stop.signal, host: this.#host };
    const late = setTimeout(() => stop.abort(new Error("the member does not answer")), HEAD_LIMIT);
    const response = await this.#node
      .fetch(url, body ? { ...init, body } : init)
      .catch((error) => {
        stop.abort();
        throw error;
      })
      .finally(() => clearTimeout(late));
    const reader = response.body?.getReader();
    const kept = [...response.headers].filter(([name]) => !DROPPED.includes(name)).map(([name, value]) => [name, this.#bent(name, value)]);
    kept.push(["content-security-policy", POLICY], ["x-dns-prefetch-control", "off"], ["referrer-policy", "same-origin"], ["origin-agent-cluster", "?1"]);
    const { status, statusText } = response;
    reply.postMessage({ status, statusText, headers: kept, empty: !reader });
    if (!reader) return stop.abort();
    await new Promise((resolve) => {
      const forget = () => {
        reply.postMessage({ error: "nobody has read it for too long" });
        resolve();
      };
      let unread = setTimeout(forget, UNREAD_LIMIT);
      reply.onclose = resolve;
      reply.onmessage = async ({ data }) => {
        clearTimeout(unread);
        if (data !== "more") return resolve();
        const part = await reader.read().catch((error) => ({ error: String(error.message) }));
        reply.postMessage(part.error ? { error: part.error } : { data: part.value });
        if (!part.value) return resolve();
        unread = setTimeout(forget, UNREAD_LIMIT);
      };
    });
    stop.abort();
    reply.close();
  }

  /** A redirect to the member by its name stays within its origin, and a policy of the member's reports to nobody: a browser sends reports whatever the policy here says. */
  #bent(name, value) {
    if (name === "content-security-policy") return value.replace(/(^|[;,])\s*report-(uri|to)\b[^;,]*/gi, "$1");
    if (name !== "location" || !URL.canParse(value)) return value;
    const url = new URL(value);
    return this.#isOwn(url) ? url.pathname + url.search + url.hash : value;
  }
}
