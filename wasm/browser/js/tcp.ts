import type { Address, Bound, Calls, Connected } from "./calls.js";
import { bytesOf, failure, numberOf } from "./errors.js";
import type { Data } from "./errors.js";

/** Most bytes that one read returns unless it asks for fewer, and that one write hands over. */
const PART_MAX = 256 * 1024;
/** The same of a connection that is closed, which is watched for whether any goes. */
const LAST_PART = 16 * 1024;
/** How long a peer may take nothing of what was written before a connection was closed, in milliseconds: as long as the
 * stack waits with a connection that has no program. */
const CLOSE_PATIENCE = 60_000;

/** The writes of each node that have not ended. */
const unwritten = new WeakMap<Calls, Set<Promise<void>>>();

/** For `Node.leave`: waits until everything that was to be written so far has been, or cannot be. */
export async function written(calls: Calls): Promise<void> {
  await Promise.allSettled([...(unwritten.get(calls) ?? [])]);
}

/** A TCP connection. */
export class TcpSocket {
  readonly #calls: Calls;
  readonly #socket: number;
  readonly local: Address;
  readonly remote: Address;
  #closed = false;
  /** Whether the stack has been told so. */
  #gone = false;
  /** Writes that have not ended. */
  #queued = 0;
  /** Parts that the network has taken. */
  #taken = 0;
  /** Writes are done one after the other. */
  #writing: Promise<void> = Promise.resolve();
  #readable: ReadableStream<Uint8Array> | undefined;
  #writable: WritableStream<Uint8Array> | undefined;

  /** For `Node.connect` and `TcpListener`. */
  constructor(calls: Calls, { socket, local, remote }: Connected) {
    this.#calls = calls;
    this.#socket = socket;
    this.local = local;
    this.remote = remote;
  }

  /** For `Node.connect`: the promise is kept when the connection is made. */
  static async connect(calls: Calls, remote: string, signal?: AbortSignal): Promise<TcpSocket> {
    signal?.throwIfAborted();
    const socket = await calls.tcpConnect(remote);
    const drop = (): void => void calls.close(socket, true).catch(() => undefined);
    signal?.addEventListener("abort", drop);
    try {
      signal?.throwIfAborted();
      const connected = await calls.tcpConnected(socket);
      signal?.throwIfAborted();
      return new TcpSocket(calls, connected);
    } catch (error) {
      drop();
      signal?.throwIfAborted();
      throw error;
    } finally {
      signal?.removeEventListener("abort", drop);
    }
  }

  /** Does a call; once the connection is closed here, its failure says so. */
  async #attempt<T>(code: string, work: () => Promise<T>): Promise<T> {
    if (this.#closed) throw failure(code, "the connection is closed");
    return work().catch((error: unknown) => {
      throw this.#closed ? failure(code, "the connection is closed") : error;
    });
  }

  /** Reads what there is, and waits if that is nothing; returns nothing at the end of the stream. */
  async read(most = PART_MAX): Promise<Uint8Array | undefined> {
    numberOf(most, "what is read at most", 1, Number.MAX_SAFE_INTEGER);
    const data = await this.#attempt("EBADF", () => this.#calls.tcpRead(this.#socket, Math.min(most, PART_MAX)));
    return data.length > 0 ? data : undefined;
  }

  /** Writes all of it, after what was written before; waits while the network takes no more. */
  async write(data: Data): Promise<void> {
    const bytes = bytesOf(data);
    if (this.#closed) throw failure("EPIPE", "the connection is closed");
    this.#queued += 1;
    return this.#inTurn(() => this.#write(bytes)).finally(() => (this.#queued -= 1));
  }

  #inTurn(work: () => Promise<void>): Promise<void> {
    const done = this.#writing.then(work);
    const tail = done.catch(() => undefined);
    this.#writing = tail;
    const all = unwritten.get(this.#calls) ?? new Set();
    unwritten.set(this.#calls, all.add(tail));
    void tail.finally(() => all.delete(tail));
    return done;
  }

  async #write(bytes: Uint8Array): Promise<void> {
    for (let at = 0, part; at < bytes.length; at += part.length) {
      part = bytes.subarray(at, at + (this.#closed ? LAST_PART : PART_MAX));
      if (this.#gone) throw failure("EPIPE", "the connection is closed");
      await this.#calls.tcpWrite(this.#socket, part).catch((error: unknown) => {
        throw this.#gone ? failure("EPIPE", "the connection is closed") : error;
      });
      this.#taken += 1;
    }
  }

  /** Waits until the connection is over, whoever ended it: both ways, by a reset, or by being closed here. */
  async over(): Promise<void> {
    if (!this.#closed) await this.#calls.tcpOver(this.#socket).catch(() => undefined);
  }

  /** Says that nothing more will be written after what was; reading goes on. */
  shutdown(): Promise<void> {
    return this.#inTurn(async () => {
      if (!this.#closed) await this.#calls.shutdown(this.#socket, 1);
    });
  }

  /** Says that nothing more will be read. */
  async shutdownReading(): Promise<void> {
    if (!this.#closed) await this.#calls.shutdown(this.#socket, 0);
  }

  /** Sends small segments at once (TCP_NODELAY). */
  async setNoDelay(on = true): Promise<void> {
    await this.#attempt("EBADF", () => this.#calls.setOption(this.#socket, "noDelay", Number(on)));
  }

  /** Probes an idle connection (SO_KEEPALIVE), the first time after so many milliseconds. */
  async setKeepAlive(on = true, delay = 0): Promise<void> {
    numberOf(delay, "the delay of keep-alive, in milliseconds,", 0, 2 ** 31 - 1);
    await this.#attempt("EBADF", async () => {
      await this.#calls.setOption(this.#socket, "keepAlive", Number(on));
      if (delay > 0) await this.#calls.setOption(this.#socket, "keepIdle", delay);
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
    // It can fail only because the whole node has ended.
    const close = async (breaks: boolean): Promise<void> => {
      this.#gone = true;
      await this.#calls.close(this.#socket, breaks).catch(() => undefined);
    };
    // What was written before goes before.
    if (reset || this.#queued === 0) return void close(reset);
    let [before, idle] = [this.#taken, 0];
    const patience = setInterval(() => {
      idle = this.#taken === before ? idle + 1 : 0;
      before = this.#taken;
      // A part that was long on its way when it was closed has twice the time. What is missing then is no end.
      if (idle < 2) return;
      clearInterval(patience);
      void close(true);
    }, CLOSE_PATIENCE);
    void this.#inTurn(async () => {
      clearInterval(patience);
      if (!this.#gone) await close(false);
    });
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
        cancel: () => this.shutdownReading(),
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
  readonly #calls: Calls;
  readonly #socket: number;
  readonly local: Address;
  #closed = false;

  /** For `Node.listen`. */
  constructor(calls: Calls, { socket, local }: Bound) {
    this.#calls = calls;
    this.#socket = socket;
    this.local = local;
  }

  /** Waits for a connection; returns nothing once the listener is closed, or the node has left. */
  async accept(): Promise<TcpSocket | undefined> {
    if (this.#closed) return undefined;
    try {
      return new TcpSocket(this.#calls, await this.#calls.tcpAccept(this.#socket));
    } catch (error) {
      if (this.#closed || (error as { code?: unknown }).code === "ENETDOWN") return undefined;
      throw error;
    }
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
    void this.#calls.close(this.#socket, false).catch(() => undefined);
  }
}
