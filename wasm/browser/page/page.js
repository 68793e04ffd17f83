// The demo page: this tab joins a network, serves, and looks at others.

import { Frame, Unusable, frameOrigins } from "./frames.js";
import { join } from "./unisockets/dist/index.js";

/** How often what is shown live is looked at, in milliseconds. */
const LOOK_INTERVAL = 1_000;
/** How often signaling is asked who is there, in milliseconds. */
const MEMBERS_INTERVAL = 3_000;
/** Most bytes of all files that come: they are kept in memory. */
const FILES_MAX = 512 * 1024 * 1024;
/** Most files. */
const FILES_COUNT_MAX = 1000;
/** They are kept in blocks of so many bytes. */
const BLOCK = 256 * 1024;
/** Characters of an answer that are looked at. */
const ANSWER_MAX = 10_000;
/** Packets that are shown. */
const PACKETS_MAX = 200;
/** Most bytes of packets that are kept for Wireshark. */
const CAPTURE_MAX = 64 * 1024 * 1024;
/** How long whoever is sent a file may take none of it, or not say that it came, in milliseconds. */
const DELIVERY_LIMIT = 60_000;
/** How long the rest of a file goes on being sent after an answer, in milliseconds. */
const UNWANTED_LIMIT = 1_000;
/** Most bytes of a page that is shown. */
const PAGE_MAX = 2 * 1024 * 1024;
/** How long an offered link stays before another one may take its place, in milliseconds. */
const OFFER_STAYS = 1_000;
const VIEW_NOTE = "At an origin of its own, which reaches that member and nothing else.";
const ECHO_PORT = 7;
const HTTP_PORT = 80;

const $ = (id) => document.getElementById(id);
let node;
let capture;
/** Whether the browser had put this page aside: it is loaded again, and joins again. */
let returned = false;
/** Whether signaling can be asked. */
let reachable = true;
let requests = 0;
/** Bytes of files that are kept, or are coming. */
let kept = 0;
/** Files that are kept, or are coming. */
let files = 0;
const rates = new Map();

function say(text) {
  $("state").textContent = text;
}

function complain(error) {
  $("problem").hidden = !error;
  $("problem").textContent = error ? `${error.message ?? error}` : "";
}

/** Does something that a person asked for, with the button disabled meanwhile; failures are shown. */
async function perform(button, work) {
  complain();
  const focused = button !== null && button !== undefined && document.activeElement === button;
  if (button) button.disabled = true;
  try {
    await work();
  } catch (error) {
    complain(error);
  } finally {
    if (button) button.disabled = false;
    // A browser takes the focus from what is disabled: whoever uses the keyboard goes on where he was.
    if (focused && document.activeElement === document.body) button.focus();
  }
}

/** What this tab remembers over a reload, where its browser lets it. */
const memory = {
  get(what) {
    try {
      return sessionStorage.getItem(`unisockets-${what}`);
    } catch {
      return null;
    }
  },
  set(what, text) {
    try {
      sessionStorage.setItem(`unisockets-${what}`, text);
    } catch {
      // It is asked for again.
    }
  },
};

/** Makes an element; texts are never taken for HTML. */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

function row(...cells) {
  return element("tr", {}, ...cells.map((cell) => element("td", {}, cell)));
}

/** Decodes percent-encoded text; what is not encoded as it should be is taken as it is. */
function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function size(bytes) {
  const units = ["B", "kB", "MB", "GB"];
  let at = 0;
  for (; bytes >= 1000 && at < units.length - 1; at += 1) bytes /= 1000;
  return `${bytes.toFixed(at === 0 ? 0 : 1)} ${units[at]}`;
}

// Joining.

async function enter({ network, name, secret }) {
  say(secret ? "Deriving the network's keys…" : "Joining…");
  // Let the text be seen: deriving keys holds the page up for a moment.
  await new Promise((resolve) => setTimeout(resolve, 30));
  try {
    node = await join({ network, name, ...(secret ? { secret } : {}) });
  } catch (error) {
    say("This tab is not on a network.");
    throw error;
  }
  node.addEventListener("joined", () => {
    reachable = true;
    say(`On ${node.network}.`);
  });
  node.addEventListener("disconnected", () => {
    reachable = false;
    say("Signaling cannot be reached; links go on, and it is tried again.");
  });
  node.addEventListener("left", () => returned || location.replace(location.pathname));
  // The page begins anew when the node has left; what was wrong is said then.
  node.addEventListener("rejected", ({ detail }) => memory.set("problem", `${detail.message ?? detail}`));
  // A reload joins again. The secret stays with this entry of the tab's history, and out of the address bar.
  const again = new URLSearchParams({ network, name: node.name });
  history.replaceState(secret ? { secret } : null, "", `${location.pathname}?${again}`);
  capture = await node.capture({ limit: CAPTURE_MAX });
  await serve();
  show(secret);
}

/** What programs outside of browsers call this server: they know no names below `localhost`. */
function signalingOfShells() {
  return location.origin.replace(/^http/, "ws").replace("unisockets.localhost", "localhost");
}

function show(secret) {
  say(`On ${node.network}.`);
  const focused = $("join").contains(document.activeElement) || document.activeElement === document.body;
  $("join").hidden = true;
  $("joined").hidden = false;
  if (focused) $("self-title").focus();
  $("leave").hidden = false;
  $("self-name").textContent = node.name;
  $("self-ipv4").textContent = node.ipv4;
  $("self-ipv6").textContent = node.ipv6;
  $("self-network").textContent = node.network;
  const network = node.network.split("~")[0];
  const settings = network === "default" ? "" : ` --network ${network}`;
  const keys = secret ? "UNISOCKETS_SECRET=… " : "";
  $("self-hint").textContent =
    `${keys}unisockets run --signal ${signalingOfShells()}${settings} -- curl http://${node.name}/`;
  $("invite").onclick = () =>
    perform($("invite"), async () => {
      const link = new URL(`/?network=${encodeURIComponent(network)}`, location.href);
      // The secret is behind the '#', which browsers send to nobody.
      if (secret) link.hash = encodeURIComponent(secret);
      const copied = await navigator.clipboard?.writeText(link.href).then(() => true, () => false);
      if (copied) return say("The invitation is copied. Whoever opens it is asked for a name, and joins.");
      // Over plain http there is no clipboard, and it can be forbidden.
      const field = element("input", { readOnly: true, value: link.href, ariaLabel: "Invitation" });
      $("invite").replaceWith(field);
      field.select();
      say("Copy the invitation from the field. Whoever opens it is asked for a name, and joins.");
    });
  void look();
  setInterval(() => {
    void look();
    void watch();
  }, LOOK_INTERVAL);
  void members();
  setInterval(() => void members(), MEMBERS_INTERVAL);
}

// Serving.

async function serve() {
  $("content").value ||= `<h1>Hello from ${node.name}</h1>\n<p>This page is served by a browser tab.</p>`;
  await node.serve({ port: HTTP_PORT }, async (request, { remote, headers }) => {
    const path = new URL(request.url).pathname;
    if (request.method === "PUT" && path.startsWith("/inbox/")) return receive(request, headers, path, remote);
    if (!["GET", "HEAD"].includes(request.method)) return new Response("only GET and HEAD\n", { status: 405 });
    if (path !== "/") return new Response("there is only /\n", { status: 404 });
    requests += 1;
    $("requests").textContent = `${requests} requests, the last from ${remote.address}.`;
    return new Response(`<!doctype html><meta charset="utf-8">${$("content").value}`, {
      headers: { "content-type": "text/html; charset=utf-8" },
    });
  });
  const echo = await node.listen(ECHO_PORT);
  void (async () => {
    for await (const socket of echo) {
      void socket.readable.pipeTo(socket.writable).catch(() => undefined).finally(() => socket.close());
    }
  })();
}

async function receive(request, headers, path, remote) {
  const name = decoded(path.slice("/inbox/".length)).replace(/[/\\]/g, "_").slice(0, 200) || "file";
  const full = () => new Response("that is more than this tab can keep\n", { status: 413 });
  if (files >= FILES_COUNT_MAX || kept + Number(headers.get("content-length") ?? 0) > FILES_MAX) return full();
  files += 1;
  // Blocks of one size are counted, for small pieces take more memory than they have bytes.
  const parts = [];
  let [block, filled, length, held, whole] = [undefined, 0, 0, 0, false];
  try {
    for (const reader = request.body?.getReader(); reader; ) {
      const { value, done } = await reader.read();
      if (done) break;
      for (let rest = value; rest.length > 0; ) {
        if (!block) {
          if (kept + BLOCK > FILES_MAX) return full();
          kept += BLOCK;
          held += BLOCK;
          [block, filled] = [new Uint8Array(BLOCK), 0];
        }
        const part = rest.subarray(0, BLOCK - filled);
        block.set(part, filled);
        filled += part.length;
        length += part.length;
        rest = rest.subarray(part.length);
        if (filled === BLOCK) block = void parts.push(new Blob([block]));
      }
    }
    if (block) parts.push(new Blob([block.subarray(0, filled)]));
    const url = URL.createObjectURL(new Blob(parts, { type: "application/octet-stream" }));
    const link = element("a", { href: url, download: name, textContent: name });
    const forget = element("button", { type: "button", textContent: "Forget", ariaLabel: `Forget ${name}` });
    const entry = element("li", {}, link, ` ${size(length)} from ${remote.address} `, forget);
    forget.onclick = () => {
      URL.revokeObjectURL(url);
      kept -= held;
      files -= 1;
      const next = entry.nextElementSibling ?? entry.previousElementSibling;
      entry.remove();
      if (!$("files").querySelector("a")) $("files").replaceChildren(element("li", {}, "None yet."));
      // Whoever uses the keyboard goes on where he was.
      (next?.querySelector("button") ?? $("files")).focus();
    };
    if (!$("files").querySelector("a")) $("files").replaceChildren();
    $("files").append(entry);
    whole = true;
    return new Response("kept\n", { status: 201 });
  } finally {
    // What did not come whole is not kept.
    if (!whole) {
      kept -= held;
      files -= 1;
    }
  }
}

// Looking.

async function look() {
  const status = await node.status().catch(() => undefined);
  if (!status) return; // The node has left.
  const now = performance.now();
  const links = status.peers.map((peer) => {
    const passed = peer.counters.sent_bytes + peer.counters.received_bytes;
    const before = rates.get(peer.key) ?? { passed, now: now - LOOK_INTERVAL };
    rates.set(peer.key, { passed, now });
    const rate = Math.max((passed - before.passed) / Math.max(now - before.now, 1) / 1000, 0);
    return row(
      peer.name ?? peer.key.slice(0, 10),
      peer.path ?? (peer.dialling ? "being made" : "none"),
      peer.round_trip_us === null ? "" : `${(peer.round_trip_us / 1000).toFixed(1)} ms`,
      size(peer.counters.sent_bytes),
      size(peer.counters.received_bytes),
      `${rate.toFixed(1)} MB/s`,
    );
  });
  const none = element("tr", {}, element("td", { colSpan: 6, textContent: "None yet: they are made when needed." }));
  $("links").replaceChildren(...(links.length > 0 ? links : [none]));
  $("sockets").replaceChildren(
    ...status.sockets.map((socket) =>
      row(
        socket.kind,
        socket.local ?? "",
        socket.remote ?? "",
        socket.state ?? "",
        socket.send_queue + socket.receive_queue > 0 ? `${size(socket.send_queue)} / ${size(socket.receive_queue)}` : "",
      ),
    ),
  );
}

/** Shows the newest packets, the newest first; the capture has all of them, up to its limit. */
async function watch() {
  if (capture.lost > 0) $("capture-note").textContent = `${size(CAPTURE_MAX)} are kept; ${capture.lost} later packets are not.`;
  if (!$("watch").checked || document.hidden) return;
  const packets = await capture.packets().catch(() => []);
  const rows = packets.slice(-PACKETS_MAX).reverse().map(({ time, link, direction, source, destination, protocol, length, info, dropped }) => {
    const clock = new Date(time).toISOString().slice(11, 23);
    const way = direction === "in" ? `← ${link}` : `→ ${link}`;
    const line = row(clock, way, source, destination, protocol, String(length), dropped ? `dropped: ${dropped}; ${info}` : info);
    if (dropped) line.className = "dropped";
    return line;
  });
  const list = $("packets");
  list.prepend(...rows);
  while (list.children.length > PACKETS_MAX) list.lastChild.remove();
}

/** The members that are there, and their lines. */
const lines = new Map();

/** Finds a member: as it was known last while signaling cannot be asked. */
async function find(host) {
  const known = [...lines.values()].find(({ member }) => [member.name, member.ipv4, member.ipv6].includes(host));
  return !reachable && known ? known.member : node.resolve(host);
}

let asking = false;

async function members() {
  // While signaling is away, which the line at the top says, the question waits: one is enough.
  if (node.left || asking) return;
  asking = true;
  let found;
  try {
    found = await node.members();
  } catch {
    return;
  } finally {
    asking = false;
  }
  const present = found.filter((member) => member.present && member.key !== node.key);
  for (const [key, { busy }] of lines) {
    if (busy.count === 0 && !present.some((member) => member.key === key)) lines.delete(key);
  }
  for (const member of present) {
    const known = lines.get(member.key);
    const same = known && known.member.name === member.name && known.member.ipv4 === member.ipv4;
    if (same || known?.busy.count > 0) continue;
    const busy = { count: 0 };
    lines.set(member.key, { member, busy, shown: line(member, busy) });
  }
  // Whoever has another secret is on another network: that looks like nobody.
  const secretly = node.network.includes("~") ? " If somebody should be, compare the network's name and the secret." : "";
  const alone = element("li", {}, `Nobody else is here yet: send somebody an invitation.${secretly}`);
  // A line with a transfer stays until that is over.
  const wanted = lines.size > 0 ? [...lines.values()].map(({ shown }) => shown) : [alone];
  const list = $("members");
  // Lines that stay are not touched: somebody may be on one of their buttons.
  for (const each of [...list.children]) if (!wanted.includes(each)) each.remove();
  wanted.forEach((each, at) => list.children[at] === each || list.insertBefore(each, list.children[at] ?? null));
}

function line(member, busy) {
  const host = member.name ?? member.ipv4;
  const about = element("output", { textContent: member.ipv4 });
  const transfer = element("output");
  const button = (text, work) => {
    const made = element("button", { type: "button", textContent: text, ariaLabel: `${text} ${host}` });
    made.onclick = () => perform(made, work);
    return made;
  };
  const ping = button("Ping", async () => {
    const echo = await node.ping(member.ipv4);
    about.textContent = `${member.ipv4}: ${echo.roundTrip.toFixed(1)} ms`;
  });
  const browse = button("Browse", () => visit(`http://${host}/`));
  const send = button("Send a file", async () => {
    busy.count += 1;
    await choose(member, host, transfer).finally(() => (busy.count -= 1));
  });
  return element("li", {}, element("strong", { textContent: host }), about, ping, browse, send, transfer);
}

let frame;
let visits = 0;

async function visit(address) {
  $("leads").hidden = true;
  // Whoever asks for another page meanwhile wants that one.
  const own = (visits += 1);
  const text = address.includes("://") ? address : `http://${address}`;
  if (!URL.canParse(text)) throw new Error(`'${address}' is no address of a page; write http://MEMBER/`);
  const url = new URL(text);
  if (url.protocol !== "http:") throw new Error(`'${url.protocol}' is not spoken here: write http://${url.host}/`);
  const member = await find(url.hostname.replace(/^\[|\]$/g, ""));
  const { pattern, why } = await frameOrigins();
  if (own !== visits) return;
  const bare = (why) => {
    // The place is the same: what was there is gone.
    frame?.close();
    frame = undefined;
    $("view-note").textContent = `${why} So it is shown without its scripts and pictures.`;
    return peek(url, () => own === visits);
  };
  if (why) return bare(why);
  $("view-note").textContent = VIEW_NOTE;
  if (frame?.key !== member.key || frame.host !== url.host) {
    frame?.close();
    const made = new Frame(node, member, url.host, $("view"), ({ shown, link, silent }) => {
      if (frame !== made) return;
      // Not while somebody is about to go elsewhere.
      if (shown && !$("browse").contains(document.activeElement)) $("address").value = shown;
      if (link) offer(link);
      if (silent) {
        made.close();
        frame = undefined;
        complain(new Error("The page in the frame does not answer. Press Go to load it again."));
      }
    });
    frame = made;
    frame.open(pattern);
  }
  const current = frame;
  try {
    await current.opened;
  } catch (error) {
    if (frame === current) frame = undefined;
    if (own !== visits) return;
    if (error instanceof Unusable) return bare(error.message);
    throw error;
  }
  if (own !== visits) return;
  current.show(url.pathname + url.search + url.hash);
}

let offered = -Infinity;

/** Offers to follow a link to another member, which only a person does: a member's page may ask for it at any time, and as often as it likes. */
function offer(link) {
  // What is about to be pressed does not change under the finger.
  if (performance.now() - offered < OFFER_STAYS) return;
  offered = performance.now();
  const follow = element("button", { type: "button", textContent: "Follow" });
  follow.onclick = () =>
    perform(follow, async () => {
      $("address").focus();
      $("leads").hidden = true;
      $("address").value = link;
      await visit(link);
    });
  $("leads").replaceChildren(`The link leads to ${link.slice(0, 200)} `, follow);
  $("leads").hidden = false;
}

/** Shows a page where members have no origins of their own. */
async function peek(url, wanted) {
  const response = await node.fetch(url, { signal: AbortSignal.timeout(30_000) });
  const type = response.headers.get("content-type") ?? "text/plain";
  const reader = response.body?.getReader();
  const parts = [];
  let length = 0;
  while (reader && length < PAGE_MAX) {
    const { value, done } = await reader.read();
    if (done) break;
    parts.push(value);
    length += value.length;
  }
  await reader?.cancel();
  const text = await new Blob(parts).text();
  if (!wanted()) return;
  const escaped = (bare) => bare.replace(/[&<>]/g, (sign) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;" })[sign]);
  $("address").value = url.href;
  $("view").setAttribute("sandbox", "");
  $("view").srcdoc = /^text\/html/i.test(type) ? text : `<pre>${escaped(text)}</pre>`;
}

function choose(member, host, about) {
  return new Promise((resolve, reject) => {
    const input = element("input", { type: "file" });
    input.oncancel = () => resolve();
    input.onchange = () => {
      const [file] = input.files;
      if (file) deliver(member, host, file, about).then(resolve, reject);
      else resolve();
    };
    input.click();
  });
}

/** Sends a file with PUT, and shows how far it is. */
async function deliver(member, host, file, about) {
  const before = about.textContent;
  const progress = element("progress", { max: Math.max(file.size, 1), value: 0, ariaLabel: `${file.name} to ${host}` });
  const cancel = element("button", { type: "button", textContent: "Cancel", ariaLabel: `Cancel ${file.name} to ${host}` });
  const stop = new AbortController();
  cancel.onclick = () => stop.abort(new Error("it was cancelled here"));
  about.replaceChildren(progress, " ", cancel);
  const began = performance.now();
  try {
    const answer = await put(member.ipv4, host, file, stop, (sent) => (progress.value = sent));
    const [head, ...said] = answer.split("\r\n\r\n");
    if (!/^HTTP\/1\.1 2/.test(head)) {
      throw new Error(said.join("").replace(/^[0-9a-f]+\r\n|\r\n0$/g, "").trim().slice(0, 200) || head.split("\r\n")[0].slice(0, 200) || "no answer");
    }
    if (progress.value < file.size) throw new Error("it wanted no more than the beginning");
    const seconds = Math.max(performance.now() - began, 1) / 1000;
    about.textContent = `${file.name}: ${size(file.size)} at ${size(file.size / seconds)}/s`;
  } catch (error) {
    about.textContent = before;
    throw new Error(`${host} did not take ${file.name}: ${error.message ?? error}`);
  }
}

/** Sends a PUT request with a file, and returns the answer: whoever does not take the file may say so before it has come. */
async function put(address, host, file, stop, tell) {
  let limit;
  const alive = () => {
    clearTimeout(limit);
    limit = setTimeout(() => stop.abort(new Error("it does not answer, or takes no more of it")), DELIVERY_LIMIT);
  };
  alive();
  let socket;
  let answer = "";
  let whole = false;
  const end = () => socket?.reset();
  stop.signal.addEventListener("abort", end);
  try {
    socket = await node.connect(address, HTTP_PORT, { signal: stop.signal });
    const answered = (async () => {
      const decoder = new TextDecoder();
      for (let part; answer.length < ANSWER_MAX && (part = await socket.read()); ) answer += decoder.decode(part, { stream: true });
    })();
    const target = `/inbox/${encodeURIComponent(file.name)}`;
    const sent = (async () => {
      await socket.write(`PUT ${target} HTTP/1.1\r\nHost: ${host}\r\nConnection: close\r\nContent-Length: ${file.size}\r\n\r\n`);
      let passed = 0;
      for (const reader = file.stream().getReader(); answer === ""; ) {
        const { value, done } = await reader.read().catch((error) => {
          stop.abort(new Error(`the file cannot be read: ${error.message}`));
          throw error;
        });
        if (done) break;
        await socket.write(value);
        tell((passed += value.length));
        alive();
      }
      whole = passed === file.size;
    })();
    sent.catch(() => undefined);
    // Who has answered, and ended, may take the rest of it, or not.
    const unwanted = answered.then(() => new Promise((resolve) => setTimeout(resolve, UNWANTED_LIMIT)));
    const ends = await Promise.allSettled([answered, Promise.race([sent, unwanted])]);
    stop.signal.throwIfAborted();
    const failed = ends.find(({ status }) => status === "rejected");
    if (answer === "" && failed) throw failed.reason;
    return answer;
  } finally {
    clearTimeout(limit);
    stop.signal.removeEventListener("abort", end);
    if (whole) socket.close();
    else socket?.reset();
  }
}

// Beginning.

$("leave").onclick = () => perform($("leave"), () => node.leave());
$("browse").onsubmit = (event) => {
  event.preventDefault();
  void perform(event.submitter, () => visit($("address").value.trim()));
};
$("capture").onclick = () =>
  perform($("capture"), async () => {
    const url = URL.createObjectURL(await capture.blob());
    element("a", { href: url, download: `${node.name}.pcapng` }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  });
$("join").onsubmit = (event) => {
  event.preventDefault();
  const [network, name, secret] = [$("network").value.trim(), $("name").value.trim(), $("secret").value];
  memory.set("name", name);
  memory.set("network", network);
  void perform(event.submitter ?? $("enter"), () => enter({ network, name, secret }));
};

const asked = new URLSearchParams(location.search);
const secret = decoded(location.hash.slice(1)) || history.state?.secret || "";
if (secret) history.replaceState({ secret }, "", location.pathname + location.search);
// Another invitation for this page: only its secret is new.
addEventListener("hashchange", () => location.reload());
const problem = memory.get("problem");
if (problem) complain(problem);
memory.set("problem", "");
// A page that the browser had put aside has said goodbye before.
addEventListener("pageshow", ({ persisted }) => {
  if (!persisted) return;
  returned = true;
  location.reload();
});
$("network").value = asked.get("network") || memory.get("network") || "default";
$("secret").value = secret;
$("name").value = asked.get("name") || memory.get("name") || `tab-${Math.floor(Math.random() * 9000 + 1000)}`;
if (asked.get("name")) $("join").requestSubmit();
