// What browsers bring along and Node.js does not: taken there from packages, if they are installed.

import type { ConnectionClass } from "./connections.js";
import { failure } from "./errors.js";

/** Packages with WebRTC for Node.js, in the order in which they are looked for. */
const PACKAGES = ["node-datachannel/polyfill", "@roamhq/wrtc"];

/** Makes a WebSocket. */
export type SocketClass = new (url: string) => WebSocket;

/** Whether this is Node.js, or something that goes by its ways. */
const isNode = (globalThis as { process?: { versions?: { node?: string } } }).process?.versions?.node !== undefined;

/** Imports a package of Node.js, if it is there; bundlers do not look for it. */
async function optional(name: string): Promise<Record<string, unknown> | undefined> {
  try {
    const found = (await import(/* @vite-ignore */ /* webpackIgnore: true */ name)) as { default?: object };
    return { ...found, ...found.default };
  } catch (error) {
    const { code } = error as { code?: string };
    if (code === "ERR_MODULE_NOT_FOUND") return undefined;
    throw error;
  }
}

/** Returns the class of peer connections. */
export async function webrtc(): Promise<ConnectionClass> {
  if (typeof RTCPeerConnection !== "undefined") return RTCPeerConnection;
  if (!isNode) throw failure("ENOSYS", "this browser has no WebRTC, or it is switched off; without it there are no links");
  for (const name of PACKAGES) {
    const found = await optional(name);
    if (found?.RTCPeerConnection) return found.RTCPeerConnection as ConnectionClass;
  }
  throw failure("ENOSYS", "Node.js has no WebRTC of its own: 'npm install node-datachannel', or '@roamhq/wrtc'");
}

/** Returns the class of WebSockets. */
export async function webSocket(): Promise<SocketClass> {
  if (typeof WebSocket !== "undefined") return WebSocket;
  const found = isNode ? await optional("ws") : undefined;
  if (found?.WebSocket) return found.WebSocket as SocketClass;
  throw failure("ENOSYS", "this Node.js has no WebSocket: use Node.js 22 or newer, or 'npm install ws'");
}
