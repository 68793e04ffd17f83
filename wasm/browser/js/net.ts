// Sockets in the shape of Node.js's 'node:net', on a node instead of the machine's own network.

import { aborted, heed } from "./aborting.js";
import { failure, leave, nodePortOf, optionsOf } from "./errors.js";
import type { Node } from "./node.js";
import { Duplex, EventEmitter } from "./streams.js";
import type { TcpListener, TcpSocket } from "./tcp.js";

/** Where `address` says that a socket is. */
export interface AddressInfo {
  address: string;
  port: number;
  family: "IPv4" | "IPv6";
}

export interface ConnectOptions {
  port: number | string;
  host?: string;
  noDelay?: boolean;
  keepAlive?: boolean;
  /** In milliseconds. */
  keepAliveInitialDelay?: number;
  /** Whether the writable side stays open when the other end has ended its own. */
  allowHalfOpen?: boolean;
  /** In milliseconds; after being idle for so long the socket emits `timeout`. */
  timeout?: number;
  /** Destroys the socket when it is aborted. */
  signal?: AbortSignal;
}

export interface ListenOptions {
  port?: number | string;
  host?: string;
  backlog?: number;
  /** Closes the server when it is aborted. */
  signal?: AbortSignal;
}

export interface ServerOptions {
  allowHalfOpen?: boolean;
  noDelay?: boolean;
  keepAlive?: boolean;
}

/** Bytes that are written at a time. */
const WRITE_PART = 64 * 1024;

function family(address: string): "IPv4" | "IPv6" {
  return address.includes(":") ? "IPv6" : "IPv4";
}

/** A TCP connection as a stream. */
export class Socket extends Duplex {
  readonly #node: Node;
  #socket: TcpSocket | undefined;
  #cancel: AbortController | undefined;
  #reading = false;
  #timer: ReturnType<typeof setTimeout> | undefined;
  #timeout = 0;
  /** The end of a connection is not said yet, and nothing of it may be taken for the next one's. */
  #closing = false;
  connecting = false;
  bytesRead = 0;
  bytesWritten = 0;

  /** For `Net`. */
  constructor(node: Node, options: { allowHalfOpen?: boolean } = {}, accepted?: TcpSocket) {
    super({ allowHalfOpen: options.allowHalfOpen ?? false, emitClose: false });
    this.#node = node;
    this.#socket = accepted;
  }

  /** Connects: `connect(port, host?, listener?)` or `connect({ port, host }, listener?)`. */
  connect(options: ConnectOptions | number | string, ...rest: (string | (() => void) | undefined)[]): this {
    const host = rest.find((each) => typeof each === "string") as string | undefined;
    const listener = rest.find((each) => typeof each === "function") as (() => void) | undefined;
    const settings: ConnectOptions = typeof options === "object" ? optionsOf(options) : { port: options, ...(host ? { host } : {}) };
    const port = nodePortOf(settings.port, "port", 1);
    if (this.#closing) throw failure("EALREADY", "the socket is being closed: connect it again once it has emitted 'close'");
    if (this.destroyed) this.#beginAgain();
    if (this.connecting || this.#socket) throw failure("EISCONN", "the socket is connected, or being connected");
    if (listener) this.once("connect", listener);
    if (settings.timeout) this.setTimeout(settings.timeout);
    this.connecting = true;
    this.#cancel = new AbortController();
    const { signal } = settings;
    if (signal) heed(signal, this, () => void this.destroy(aborted(signal)));
    if (!this.destroyed) void this.#connect({ ...settings, port }, this.#cancel.signal);
    return this;
  }

  /** A socket that was destroyed is as good as a new one. */
  #beginAgain(): void {
    this._undestroy();
    this.#socket = undefined;
    this.#reading = false;
    this.bytesRead = this.bytesWritten = 0;
  }

  async #connect(settings: ConnectOptions & { port: number }, signal: AbortSignal): Promise<void> {
    try {
      const socket = await this.#node.connect(settings.host ?? "localhost", settings.port, { signal });
      try {
        if (settings.noDelay) await socket.setNoDelay();
        if (settings.keepAlive) await socket.setKeepAlive(true, settings.keepAliveInitialDelay);
        if (signal.aborted) throw failure("ECONNABORTED", "the socket was destroyed");
      } catch (error) {
        socket.reset();
        throw error;
      }
      this.#socket = socket;
      this.connecting = false;
      // What a listener throws is its own affair.
      queueMicrotask(() => {
        this.emit("connect");
        this.emit("ready");
      });
      if (this.#reading) void this.#pull();
      // A reset is noticed by those who only write, too.
      else this.read(0);
    } catch (error) {
      // Whoever destroyed the socket meanwhile may have begun again with it.
      if (signal.aborted) return;
      this.connecting = false;
      this.destroy(error as Error);
    }
  }

  /** Does something as soon as there is a connection. */
  #connected(work: (socket: TcpSocket) => Promise<void>, done: (error?: Error | null) => void): void {
    const begin = (): void => {
      const socket = this.#socket;
      if (!socket) return done(failure("ENOTCONN", "the socket is not connected"));
      work(socket).then(() => done(), done);
    };
    if (!this.connecting) return begin();
    const settle = (): void => {
      this.off("connect", settle);
      this.off("close", settle);
      begin();
    };
    this.once("connect", settle);
    this.once("close", settle);
  }

  override _read(): void {
    if (this.#reading) return;
    this.#reading = true;
    if (this.#socket) void this.#pull();
  }

  async #pull(): Promise<void> {
    const socket = this.#socket as TcpSocket;
    for (;;) {
      let data: Uint8Array | undefined;
      try {
        data = await socket.read();
      } catch (error) {
        if (!this.destroyed && this.#socket === socket) this.destroy(error as Error);
        return;
      }
      if (this.destroyed || this.#socket !== socket) return;
      this.#active();
      this.bytesRead += data?.length ?? 0;
      // The next '_read' may come within 'push'.
      this.#reading = false;
      let more = true;
      try {
        more = this.push(data ?? null);
      } catch (error) {
        leave(error);
      }
      // The end is for those as well who never read.
      if (!data) return void this.read(0);
      if (!more && !this.#reading) return;
      this.#reading = true;
    }
  }

  /** What arrives; as in Node.js the socket is destroyed when whoever iterates stops before the end. */
  override async *[Symbol.asyncIterator](): AsyncIterator<Uint8Array> {
    let ended = false;
    try {
      // Its own end would take a socket for broken off that is still saying its last word.
      yield* this.iterator({ destroyOnReturn: false });
      ended = true;
    } finally {
      if (!ended) this.destroy();
    }
  }

  override _write(chunk: Uint8Array, _encoding: string, done: (error?: Error | null) => void): void {
    this.#connected(async (socket) => {
      // All of it is the connection's at once, and what goes on is no idleness, however long the whole takes.
      this.#active();
      const written: Promise<void>[] = [];
      for (let at = 0; at < chunk.length || at === 0; at += WRITE_PART) {
        const part = chunk.subarray(at, at + WRITE_PART);
        const taken = (): void => {
          this.bytesWritten += part.length;
          if (this.#socket === socket) this.#active();
        };
        written.push(socket.write(part).then(taken));
      }
      await Promise.all(written);
    }, done);
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#connected((socket) => socket.shutdown(), (error) => done((error as { code?: string } | null)?.code === "ENOTCONN" ? null : error));
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    clearTimeout(this.#timer);
    this.#cancel?.abort();
    this.connecting = false;
    this.#socket?.close();
    this.#closing = true;
    done(error);
    queueMicrotask(() => {
      this.#closing = false;
      this.emit("close", error !== null);
    });
  }

  /** Resets the connection: the other end sees ECONNRESET. */
  resetAndDestroy(): this {
    this.#socket?.reset();
    return this.destroy();
  }

  /** Destroys the socket when all is written. */
  destroySoon(): void {
    if (!this.writableEnded) this.end();
    if (this.writableFinished) this.destroy();
    else this.once("finish", () => this.destroy());
  }

  #active(): void {
    if (this.#timeout > 0 && !this.destroyed) this.setTimeout(this.#timeout);
  }

  /** Emits `timeout` after so many milliseconds without traffic; 0 is never. */
  setTimeout(timeout: number, listener?: () => void): this {
    if (this.destroyed) return this;
    if (listener && timeout > 0) this.once("timeout", listener);
    else if (listener) this.off("timeout", listener);
    clearTimeout(this.#timer);
    this.#timeout = timeout;
    if (timeout > 0) this.#timer = setTimeout(() => this.emit("timeout"), timeout);
    return this;
  }

  setNoDelay(on = true): this {
    this.#connected((socket) => socket.setNoDelay(on), () => undefined);
    return this;
  }

  setKeepAlive(on = false, initialDelay = 0): this {
    this.#connected((socket) => socket.setKeepAlive(on, initialDelay), () => undefined);
    return this;
  }

  /** A page ends when it is closed; these change nothing. */
  ref(): this {
    return this;
  }

  unref(): this {
    return this;
  }

  address(): AddressInfo | Record<string, never> {
    const local = this.#socket?.local;
    return local ? { ...local, family: family(local.address) } : {};
  }

  get pending(): boolean {
    return this.#socket === undefined;
  }

  get readyState(): "opening" | "open" | "readOnly" | "writeOnly" | "closed" {
    if (this.connecting) return "opening";
    if (this.destroyed || !this.#socket) return "closed";
    if (this.readableEnded) return this.writableEnded ? "closed" : "writeOnly";
    return this.writableEnded ? "readOnly" : "open";
  }

  get localAddress(): string | undefined {
    return this.#socket?.local.address;
  }

  get localPort(): number | undefined {
    return this.#socket?.local.port;
  }

  get localFamily(): string | undefined {
    return this.#socket && family(this.#socket.local.address);
  }

  get remoteAddress(): string | undefined {
    return this.#socket?.remote.address;
  }

  get remotePort(): number | undefined {
    return this.#socket?.remote.port;
  }

  get remoteFamily(): string | undefined {
    return this.#socket && family(this.#socket.remote.address);
  }
}

/** A server of TCP connections. */
export class Server extends EventEmitter {
  readonly #node: Node;
  readonly #options: ServerOptions;
  readonly #connections = new Set<Socket>();
  #listener: TcpListener | undefined;
  #state: "new" | "opening" | "open" | "closed" = "new";
  /** How often it was told to listen, or to listen no more: what a listener that comes late was for is over. */
  #turn = 0;
  /** More connections than this are refused, with the event `drop`. */
  maxConnections: number | undefined;

  /** For `Net`. */
  constructor(node: Node, options: ServerOptions, listener?: (socket: Socket) => void) {
    super();
    this.#node = node;
    this.#options = options;
    if (listener) this.on("connection", listener);
  }

  /** Listens: `listen(port, host?, backlog?, listener?)` or `listen({ port, host, backlog }, listener?)`. */
  listen(options: ListenOptions | number | string = 0, ...rest: (string | number | (() => void) | undefined)[]): this {
    const host = rest.find((each) => typeof each === "string") as string | undefined;
    const backlog = rest.find((each) => typeof each === "number") as number | undefined;
    const listener = rest.find((each) => typeof each === "function") as (() => void) | undefined;
    const { port: wanted = 0, signal, ...more } = typeof options === "object" ? optionsOf<ListenOptions>(options) : { port: options, ...(host ? { host } : {}), ...(backlog ? { backlog } : {}) };
    const port = nodePortOf(wanted);
    if (this.#state === "opening" || this.#state === "open") throw failure("EALREADY", "the server listens already");
    if (listener) this.once("listening", listener);
    this.#state = "opening";
    void this.#open(port, more);
    if (signal) heed(signal, this, () => void this.close());
    return this;
  }

  async #open(port: number, options: { host?: string; backlog?: number }): Promise<void> {
    const turn = (this.#turn += 1);
    try {
      const listener = await this.#node.listen(port, options);
      if (this.#turn !== turn) return listener.close();
      this.#listener = listener;
      this.#state = "open";
      this.emit("listening");
      for await (const socket of listener) this.#accept(socket);
      // Closed by the node, and not by the program, which may listen again by now.
      if (this.#listener === listener) this.close();
    } catch (error) {
      if (this.#turn !== turn) return;
      this.#state = "closed";
      this.#listener?.close();
      queueMicrotask(() => this.emit("error", error));
    }
  }

  #accept(accepted: TcpSocket): void {
    if (this.maxConnections !== undefined && this.#connections.size >= this.maxConnections) {
      accepted.close();
      const { local, remote } = accepted;
      this.emit("drop", {
        localAddress: local.address,
        localPort: local.port,
        localFamily: family(local.address),
        remoteAddress: remote.address,
        remotePort: remote.port,
        remoteFamily: family(remote.address),
      });
      return;
    }
    const socket = new Socket(this.#node, this.#options, accepted);
    if (this.#options.noDelay) socket.setNoDelay();
    if (this.#options.keepAlive) socket.setKeepAlive(true);
    this.#connections.add(socket);
    socket.once("close", () => {
      this.#connections.delete(socket);
      this.#ended();
    });
    queueMicrotask(() => {
      this.emit("connection", socket);
      socket.read(0);
    });
  }

  /** Stops listening; `close` is emitted when the last connection has ended. */
  close(listener?: (error?: Error) => void): this {
    if (this.#state === "new" || this.#state === "closed") {
      if (listener) queueMicrotask(() => listener(failure("ERR_SERVER_NOT_RUNNING", "the server does not listen")));
      return this;
    }
    if (listener) this.once("close", listener);
    this.#state = "closed";
    this.#turn += 1;
    this.#listener?.close();
    this.#listener = undefined;
    queueMicrotask(() => this.#ended());
    return this;
  }

  #ended(): void {
    if (this.#state !== "closed" || this.#connections.size > 0) return;
    // Once, as in Node.js: it may listen again from now on.
    this.#state = "new";
    this.emit("close");
  }

  get listening(): boolean {
    return this.#state === "open";
  }

  address(): AddressInfo | null {
    const local = this.#listener?.local;
    return local && this.listening ? { ...local, family: family(local.address) } : null;
  }

  getConnections(listener: (error: Error | null, count: number) => void): this {
    queueMicrotask(() => listener(null, this.#connections.size));
    return this;
  }

  ref(): this {
    return this;
  }

  unref(): this {
    return this;
  }
}

/** What `node:net` offers, for one node. */
export interface Net {
  createServer(options?: ServerOptions | ((socket: Socket) => void), listener?: (socket: Socket) => void): Server;
  connect: Socket["connect"] extends (...args: infer Args) => unknown ? (...args: Args) => Socket : never;
  createConnection: Net["connect"];
  Socket: new (options?: { allowHalfOpen?: boolean }) => Socket;
  Server: new (options?: ServerOptions, listener?: (socket: Socket) => void) => Server;
  isIP(address: string): 0 | 4 | 6;
  isIPv4(address: string): boolean;
  isIPv6(address: string): boolean;
}

/** Makes what `node:net` offers for a node. */
export function net(node: Node): Net {
  const connect: Net["connect"] = (options, ...rest) => {
    const { allowHalfOpen } = typeof options === "object" ? optionsOf<ConnectOptions>(options) : {};
    return new Socket(node, allowHalfOpen === undefined ? {} : { allowHalfOpen }).connect(options, ...rest);
  };
  const isIPv4 = (address: string): boolean => /^(25[0-5]|2[0-4]\d|1?\d?\d)(\.(25[0-5]|2[0-4]\d|1?\d?\d)){3}$/.test(address);
  const isIPv6 = (address: string): boolean => address.includes(":") && URL.canParse(`http://[${address}]/`);
  // Those of 'connect' and of servers are sockets and servers as well; what is derived from these has its own.
  const Sockets: Net["Socket"] = class extends Socket {
    constructor(options?: { allowHalfOpen?: boolean }) {
      super(node, options);
    }

    static override [Symbol.hasInstance](value: unknown): boolean {
      return Function.prototype[Symbol.hasInstance].call(this === Sockets ? Socket : this, value);
    }
  };
  const Servers: Net["Server"] = class extends Server {
    constructor(options: ServerOptions = {}, listener?: (socket: Socket) => void) {
      super(node, options, listener);
    }

    static override [Symbol.hasInstance](value: unknown): boolean {
      return Function.prototype[Symbol.hasInstance].call(this === Servers ? Server : this, value);
    }
  };
  return {
    createServer: (options, listener) =>
      typeof options === "function" ? new Server(node, {}, options) : new Server(node, options ?? {}, listener),
    connect,
    createConnection: connect,
    Socket: Sockets,
    Server: Servers,
    isIP: (address) => (isIPv4(address) ? 4 : isIPv6(address) ? 6 : 0),
    isIPv4,
    isIPv6,
  };
}
