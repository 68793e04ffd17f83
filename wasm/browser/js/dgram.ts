// Sockets in the shape of Node.js's 'node:dgram', on a node instead of the machine's own network.

import { heed } from "./aborting.js";
import { bytesOf, failure, hostOf, nodePortOf, optionsOf } from "./errors.js";
import type { AddressInfo } from "./net.js";
import type { Node } from "./node.js";
import { EventEmitter, bufferOf } from "./streams.js";
import type { UdpSocket } from "./udp.js";

export type SocketType = "udp4" | "udp6";

export interface SocketOptions {
  type: SocketType;
  /** Closes the socket when it is aborted. */
  signal?: AbortSignal;
}

export interface BindOptions {
  port?: number | string;
  address?: string;
}

/** Who sent a datagram, and how long it is. */
export interface RemoteInfo extends AddressInfo {
  size: number;
}

type Done = (error: Error | null, bytes?: number) => void;

/** A UDP socket that emits `message`. */
export class Socket extends EventEmitter {
  readonly #node: Node;
  readonly #type: SocketType;
  #socket: UdpSocket | undefined;
  /** Kept when the socket is bound; what is sent before waits for it. */
  #bound: Promise<UdpSocket> | undefined;
  #remote: { address: string; port: number } | undefined;
  #connecting = false;
  #closed = false;

  /** For `Dgram`. */
  constructor(node: Node, type: SocketType) {
    super();
    if (type !== "udp4" && type !== "udp6") throw failure("ERR_SOCKET_BAD_TYPE", "the type is 'udp4' or 'udp6'");
    this.#node = node;
    this.#type = type;
  }

  /** Binds: `bind(port?, address?, listener?)` or `bind({ port, address }, listener?)`. */
  bind(options: BindOptions | number | (() => void) = 0, ...rest: (string | (() => void) | undefined)[]): this {
    const all = [options, ...rest];
    const listener = all.find((each) => typeof each === "function") as (() => void) | undefined;
    const address = rest.find((each) => typeof each === "string") as string | undefined;
    const settings: BindOptions = typeof options === "object" ? optionsOf(options) : { port: typeof options === "number" ? options : 0, ...(address ? { address } : {}) };
    this.#checkRunning();
    if (this.#bound) throw failure("ERR_SOCKET_ALREADY_BOUND", "the socket is bound");
    const port = nodePortOf(settings.port ?? 0);
    if (listener) this.once("listening", listener);
    this.#open({ ...settings, port }).catch((error: unknown) => {
      this.#bound = undefined;
      this.#fail(error);
    });
    return this;
  }

  #checkRunning(): void {
    if (this.#closed) throw failure("ERR_SOCKET_DGRAM_NOT_RUNNING", "the socket is closed");
  }

  #open({ port = 0, address }: { port?: number; address?: string }): Promise<UdpSocket> {
    if (this.#closed) return Promise.reject(failure("ERR_SOCKET_DGRAM_NOT_RUNNING", "the socket is closed"));
    const host = address === undefined ? (this.#type === "udp6" ? "::" : "0.0.0.0") : this.#here(address);
    this.#bound ??= this.#node.bind(port, { host }).then((socket) => {
      if (this.#closed) {
        socket.close();
        throw failure("ERR_SOCKET_DGRAM_NOT_RUNNING", "the socket is closed");
      }
      this.#socket = socket;
      this.#emit("listening");
      void this.#receive(socket);
      return socket;
    });
    return this.#bound;
  }

  async #receive(socket: UdpSocket): Promise<void> {
    while (!this.#closed) {
      try {
        const message = await socket.receive();
        if (!message || this.#closed) break;
        const { data, remote } = message;
        const family = remote.address.includes(":") ? "IPv6" : "IPv4";
        this.#emit("message", bufferOf(data), { ...remote, family, size: data.length } satisfies RemoteInfo);
      } catch (error) {
        // A connected socket hears of an answer that was an error, and goes on.
        this.#fail(error);
      }
    }
    if (!this.#closed) this.close();
  }

  /** What a listener throws is its own affair. */
  #emit(event: string, ...values: unknown[]): void {
    queueMicrotask(() => {
      if (!this.#closed) this.emit(event, ...values);
    });
  }

  #fail(error: unknown): void {
    this.#emit("error", error);
  }

  #here(host: string): string {
    if (host !== "localhost") return host;
    return this.#type === "udp6" ? "::1" : "127.0.0.1";
  }

  async #target(address: string | undefined, port: number): Promise<string> {
    const host = this.#here(hostOf(address ?? "localhost").replace(/^\[|\]$/g, ""));
    if (host.includes(":")) return `[${host}]:${port}`;
    if (/^[\d.]+$/.test(host)) return `${host}:${port}`;
    const member = await this.#node.resolve(host);
    return this.#type === "udp6" ? `[${member.ipv6}]:${port}` : `${member.ipv4}:${port}`;
  }

  /** Sends: `send(data, port, address?, done?)`, `send(data, offset, length, port, address?, done?)`, or to whom it is connected. */
  send(data: Part | Part[], ...rest: (number | string | Done | undefined)[]): void {
    this.#checkRunning();
    const done = rest.find((each) => typeof each === "function") as Done | undefined;
    // A port may be a text, and stands before the address.
    const at = rest.findIndex((each) => typeof each === "string");
    if (typeof rest[at] === "string" && (at === 0 || at === 2) && /^\d+$/.test(rest[at])) rest[at] = Number(rest[at]);
    const numbers = rest.filter((each) => typeof each === "number");
    const address = rest.find((each) => typeof each === "string") as string | undefined;
    let bytes = joined(data);
    if (numbers.length >= 2) {
      const [offset, length] = numbers as [number, number];
      if (offset < 0 || length < 0 || offset + length > bytes.length) {
        throw failure("ERR_BUFFER_OUT_OF_BOUNDS", "offset and length lie outside of the data");
      }
      bytes = bytes.slice(offset, offset + length);
    }
    const port = numbers.length === 1 || numbers.length === 3 ? numbers.at(-1) : undefined;
    if (port === undefined && !this.#remote) throw failure("EDESTADDRREQ", "the datagram has no destination: give a port");
    if (port !== undefined && this.#remote) throw failure("ERR_SOCKET_DGRAM_IS_CONNECTED", "the socket is connected");
    if (port !== undefined) nodePortOf(port, "port", 1);
    this.#send(bytes, port, address).then(
      () => done?.(null, bytes.length),
      (error: Error) => (done ? done(error) : this.#fail(error)),
    );
  }

  async #send(bytes: Uint8Array, port: number | undefined, address: string | undefined): Promise<void> {
    const socket = await this.#open({});
    await socket.send(bytes, port === undefined ? undefined : await this.#target(address, port));
  }

  /** Connects: it sends to this address, and takes from nobody else. */
  connect(wanted: number | string, ...rest: (string | (() => void) | undefined)[]): void {
    this.#checkRunning();
    const listener = rest.find((each) => typeof each === "function") as (() => void) | undefined;
    const address = rest.find((each) => typeof each === "string") as string | undefined;
    const port = nodePortOf(wanted, "port", 1);
    if (this.#remote || this.#connecting) throw failure("ERR_SOCKET_DGRAM_IS_CONNECTED", "the socket is connected");
    this.#connecting = true;
    if (listener) this.once("connect", listener);
    void (async () => {
      try {
        const socket = await this.#open({});
        const target = await this.#target(address, port);
        await socket.connect(target);
        const at = target.lastIndexOf(":");
        this.#remote = { address: target.slice(0, at).replace(/^\[|\]$/g, ""), port };
        this.#emit("connect");
      } catch (error) {
        this.#fail(error);
      } finally {
        this.#connecting = false;
      }
    })();
  }

  address(): AddressInfo {
    this.#checkRunning();
    if (!this.#socket) throw failure("EBADF", "the socket is not bound");
    return { ...this.#socket.local, family: this.#type === "udp6" ? "IPv6" : "IPv4" };
  }

  remoteAddress(): AddressInfo {
    if (!this.#remote) throw failure("ERR_SOCKET_DGRAM_NOT_CONNECTED", "the socket is not connected");
    return { ...this.#remote, family: this.#type === "udp6" ? "IPv6" : "IPv4" };
  }

  setBroadcast(on: boolean): void {
    void this.#open({}).then((socket) => socket.setBroadcast(on)).catch((error: unknown) => this.#fail(error));
  }

  close(listener?: () => void): this {
    this.#checkRunning();
    if (listener) this.once("close", listener);
    this.#closed = true;
    this.#socket?.close();
    queueMicrotask(() => this.emit("close"));
    return this;
  }

  /** Whether it was closed. */
  get closed(): boolean {
    return this.#closed;
  }

  ref(): this {
    return this;
  }

  unref(): this {
    return this;
  }
}

/** A datagram, or a part of one. */
type Part = ArrayBufferView | string;

function joined(data: Part | Part[]): Uint8Array {
  const parts = (Array.isArray(data) ? data : [data]).map((part) => {
    if (typeof part === "string" || ArrayBuffer.isView(part)) return bytesOf(part);
    throw failure("ERR_INVALID_ARG_TYPE", "a datagram is bytes or a text");
  });
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}

/** What `node:dgram` offers, for one node. */
export interface Dgram {
  createSocket(options: SocketType | SocketOptions, listener?: (data: Uint8Array, from: RemoteInfo) => void): Socket;
}

/** Makes what `node:dgram` offers for a node. */
export function dgram(node: Node): Dgram {
  return {
    createSocket(options, listener) {
      const { type, signal } = typeof options === "string" ? { type: options, signal: undefined } : optionsOf<SocketOptions>(options);
      const socket = new Socket(node, type);
      if (listener) socket.on("message", listener);
      // One that is closed already may be aborted before it says so.
      if (signal) heed(signal, socket, () => !socket.closed && socket.close());
      return socket;
    },
  };
}
