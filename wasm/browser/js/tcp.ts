import type { Engine } from "./engine.js";
import { failure } from "./errors.js";

/** Most bytes that one read returns unless it asks for fewer. */
const READ_MAX = 64 * 1024;

/** An address and a port. */
export interface Address {
  address: string;
  port: number;
}

/** Splits `10.80.0.1:80` or `[fd75:6e69::1]:80`. */
export function split(text: string): Address {
  const at = text.lastIndexOf(":");
  return { address: text.slice(0, at).replace(/^\[|\]$/g, ""), port: Number(text.slice(at + 1)) };
}

/** A TCP connection. */
export class TcpSocket {
  readonly #engine: Engine;
  readonly #socket: number;
  readonly local: Address;
  readonly remote: Address;
  #closed = false;
  #readable: ReadableStream<Uint8Array> | undefined;
  #writable: WritableStream<Uint8Array> | undefined;

  /** For `Node.connect` and `TcpListener`. */
  constructor(engine: Engine, socket: number) {
    this.#engine = engine;
    this.#socket = socket;
    this.local = split(engine.call((core) => core.localAddress(socket)));
    this.remote = split(engine.call((core) => core.remoteAddress(socket)));
  }

  /** Begins to connect; the promise is kept when the connection is made. */
  static async connect(engine: Engine, remote: string, signal?: AbortSignal): Promise<TcpSocket> {
    signal?.throwIfAborted();
    const socket = engine.call((core, now) => core.tcpConnect(now, remote));
    const abort = (): void => engine.closeSocket(socket, true);
    signal?.addEventListener("abort", abort);
    try {
      while (!engine.call((core) => core.isConnected(socket))) {
        await engine.readiness(socket, "write");
        signal?.throwIfAborted();
      }
      return new TcpSocket(engine, socket);
    } catch (error) {
      if (!signal?.aborted) engine.closeSocket(socket, true);
      throw error;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  /** Reads what there is, and waits if that is nothing; returns nothing at the end of the stream. */
  async read(most = READ_MAX): Promise<Uint8Array | undefined> {
    for (;;) {
      if (this.#closed) throw failure("EBADF", "the connection is closed");
      const data = this.#engine.call((core, now) => core.recv(now, this.#socket, most));
      if (data) return data.length > 0 ? data : undefined;
      await this.#engine.readiness(this.#socket, "read");
    }
  }

  /** Writes all of it; waits while the network takes no more. */
  async write(data: Uint8Array | string): Promise<void> {
    let rest = typeof data === "string" ? new TextEncoder().encode(data) : data;
    while (rest.length > 0) {
      if (this.#closed) throw failure("EPIPE", "the connection is closed");
      const part = rest.subarray(0, READ_MAX);
      const taken = this.#engine.call((core, now) => core.send(now, this.#socket, part));
      if (taken < 0) await this.#engine.readiness(this.#socket, "write");
      else rest = rest.subarray(taken);
    }
  }

  /** Says that nothing more will be written; reading goes on. */
  shutdown(): void {
    if (!this.#closed) this.#engine.call((core, now) => core.shutdown(now, this.#socket, 1));
  }

  /** Sends small segments at once (TCP_NODELAY). */
  setNoDelay(on = true): void {
    this.#engine.call((core) => core.setOption(this.#socket, "noDelay", Number(on)));
  }

  /** Probes an idle connection (SO_KEEPALIVE), the first time after so many milliseconds. */
  setKeepAlive(on = true, delay = 0): void {
    this.#engine.call((core) => {
      core.setOption(this.#socket, "keepAlive", Number(on));
      if (delay > 0) core.setOption(this.#socket, "keepIdle", delay);
    });
  }

  /** Closes the connection; what was written is delivered. */
  close(): void {
    this.#end(false);
  }

  /** Resets the connection: the other end sees ECONNRESET. */
  reset(): void {
    this.#end(true);
  }

  #end(reset: boolean): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#engine.closeSocket(this.#socket, reset);
  }

  /** What arrives; not read faster than it is taken. */
  get readable(): ReadableStream<Uint8Array> {
    this.#readable ??= new ReadableStream<Uint8Array>(
      {
        pull: async (controller) => {
          const data = await this.read();
          if (data) controller.enqueue(data);
          else controller.close();
        },
        cancel: () => {
          if (!this.#closed) this.#engine.call((core, now) => core.shutdown(now, this.#socket, 0));
        },
      },
      { highWaterMark: 0 },
    );
    return this.#readable;
  }

  /** What is sent; closing it shuts this direction, aborting it resets the connection. */
  get writable(): WritableStream<Uint8Array> {
    this.#writable ??= new WritableStream<Uint8Array>({
      write: (data) => this.write(data),
      close: () => this.shutdown(),
      abort: () => this.reset(),
    });
    return this.#writable;
  }
}

/** A socket that listens: iterate over it for connections. */
export class TcpListener implements AsyncIterable<TcpSocket> {
  readonly #engine: Engine;
  readonly #socket: number;
  readonly local: Address;
  #closed = false;

  /** For `Node.listen`. */
  constructor(engine: Engine, local: string, backlog: number, onlyV6: boolean) {
    this.#engine = engine;
    this.#socket = engine.call((core, now) => core.tcpListen(now, local, backlog, onlyV6));
    this.local = split(engine.call((core) => core.localAddress(this.#socket)));
  }

  /** Waits for a connection; returns nothing once the listener is closed. */
  async accept(): Promise<TcpSocket | undefined> {
    while (!this.#closed && !this.#engine.ended) {
      const socket = this.#engine.call((core, now) => core.accept(now, this.#socket));
      if (socket !== undefined) {
        try {
          return new TcpSocket(this.#engine, socket);
        } catch {
          // It has ended already.
          this.#engine.closeSocket(socket, true);
          continue;
        }
      }
      await this.#engine.readiness(this.#socket, "read");
    }
    return undefined;
  }

  async *[Symbol.asyncIterator](): AsyncIterator<TcpSocket> {
    for (;;) {
      const socket = await this.accept();
      if (!socket) return;
      yield socket;
    }
  }

  /** Stops listening; connections that wait are refused. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#engine.closeSocket(this.#socket, false);
  }
}
