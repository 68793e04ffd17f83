// A member in a process of Node.js, on the WebRTC of a package: 'node peer.mjs PACKAGE SIGNAL NAME [altered|unaltered]'.
//
// It serves checksums, and asks whom it is told to on its standard input: a line is a host, and a line is the answer.

import { createHash } from "node:crypto";
import { createInterface } from "node:readline";
import { WebSocket } from "ws";
import { join } from "../dist/index.js";

const [kind, signal, name, altered] = process.argv.slice(2);
const { RTCPeerConnection } = await {
  "node-datachannel": () => import("node-datachannel/polyfill"),
  wrtc: async () => (await import("@roamhq/wrtc")).default,
  werift: () => import("werift"),
}[kind]();
// Node.js 22 has a WebSocket of its own, which not all of these get along with the same way: take one everywhere.
globalThis.WebSocket = WebSocket;

/** Says that its certificate is another one than it has; or does all the same, and says the truth. */
class Liar extends RTCPeerConnection {
  #alter(description) {
    if (altered === "unaltered") return description;
    const sdp = description.sdp.replace(/(a=fingerprint:sha-256 )(..)/g, (_, field, byte) => field + (byte === "00" ? "01" : "00"));
    return { type: description.type, sdp };
  }

  async createOffer() {
    this.own = await super.createOffer();
    return this.#alter(this.own);
  }

  async createAnswer() {
    this.own = await super.createAnswer();
    return this.#alter(this.own);
  }

  setLocalDescription() {
    return super.setLocalDescription(this.own);
  }
}

/** Takes the part in DTLS that its SCTP expects: it opens an association where it offers, and waits where it answers. */
class Passive extends RTCPeerConnection {
  async createAnswer() {
    const { type, sdp } = await super.createAnswer();
    return { type, sdp: sdp.replaceAll("a=setup:active", "a=setup:passive") };
  }
}

// The first of the packages is found without being named.
const found = kind === "node-datachannel" && !altered;
const webrtc = altered ? Liar : kind === "werift" ? Passive : RTCPeerConnection;
const node = await join({ signal, name, ...(found ? {} : { webrtc }) });
const sha256 = (bytes) => createHash("sha256").update(new Uint8Array(bytes)).digest("hex");
await node.serve({ port: 80 }, async (request) => new Response(sha256(await request.arrayBuffer())));
const body = Uint8Array.from({ length: 1024 * 1024 }, (_, at) => Math.imul(at, 2654435761) >>> 24);

async function ask(url) {
  const method = url.endsWith("/") ? "POST" : "GET";
  const response = await node.fetch(url, method === "POST" ? { method, body } : { method });
  const answer = await response.arrayBuffer();
  // A file's checksum is its name; what was posted comes back as its checksum.
  const right = method === "POST" ? new TextDecoder().decode(answer) === sha256(body) : url.endsWith(sha256(answer));
  return right ? "right" : `wrong: ${response.status}, ${answer.byteLength} bytes`;
}

console.log("ready");
for await (const url of createInterface({ input: process.stdin })) {
  const failed = async ({ code, message }) => {
    const status = await node.status().catch(() => undefined);
    return `failed: ${code} ${message} ${JSON.stringify(status?.incidents)}`;
  };
  console.log(`${url} ${await ask(url).catch(failed)}`);
}
process.exit(0);
