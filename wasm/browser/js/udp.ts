import type { Address, Bound, Calls, Message } from "./calls.js";
import { bytesOf, endpointOf, failure } from "./errors.js";
import type { Data } from "./errors.js";

type Taker = (message: Promise<Message>) => void;

/** A UDP socket: iterate over it for datagrams. */
export class UdpSocket implements AsyncIterable<Message> {
  readonly #calls: Calls;
  readonly #socket: number;
  readonly local: Address;
  #closed = false;
  /** Who waits for a datagram, in turn; one call at a time asks for the next. */
  readonly #takers: Taker[] = [];
  #asking = false;
  /** A datagram that came when whoever had waited for it no longer did. */
  #kept: Message | undefined;

  /** For `Node.bind` and `Node.ping`. */
  constructor(calls: Calls, { socket, local }: Bound) {
    this.#calls = calls;
    this.#socket = socket;
    this.local = local;
  }

  /** Sends a datagram to an address such as `10.80.0.1:53`; without one, to whom the socket is connected. */
  async send(data: Data, remote?: string): Promise<void> {
    if (this.#closed) throw failure("EBADF", "the socket is closed");
    const bytes = bytesOf(data);
    await this.#calls.sendTo(this.#socket, bytes, remote === undefined ? undefined : endpointOf(remote));
  }

  /** Waits for a datagram; returns nothing once the socket is closed, or the node has left. */
  async receive(signal?: AbortSignal): Promise<Message | undefined> {
    signal?.throwIfAborted();
    if (this.#closed) return undefined;
    const kept = this.#kept;
    this.#kept = undefined;
    if (kept) return kept;
    let stop: (() => void) | undefined;
    try {
      const message = await new Promise<Message>((resolve, reject) => {
        const taker: Taker = resolve;
        this.#takers.push(taker);
        stop = () => {
          const at = this.#takers.indexOf(taker);
          if (at >= 0) this.#takers.splice(at, 1);
          reject(signal?.reason as Error);
        };
        signal?.addEventListener("abort", stop);
        void this.#ask();
      });
      // What came as it was closed is nobody's any more.
      return this.#closed ? undefined : message;
    } catch (error) {
      if (this.#closed || (error as { code?: unknown }).code === "ENETDOWN") return undefined;
      throw error;
    } finally {
      if (stop) signal?.removeEventListener("abort", stop);
    }
  }

  async #ask(): Promise<void> {
    if (this.#asking) return;
    this.#asking = true;
    while (this.#takers.length > 0) {
      const message = this.#calls.receiveFrom(this.#socket);
      const arrived = await message.catch(() => undefined);
      const taker = this.#takers.shift();
      if (taker) taker(message);
      else this.#kept = arrived;
    }
    this.#asking = false;
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Message> {
    for (;;) {
      const message = await this.receive();
      if (!message) return;
      yield message;
    }
  }

  /** Connects the socket: it sends to this address, and takes from nobody else. */
  async connect(remote: string): Promise<void> {
    await this.#calls.udpConnect(this.#socket, endpointOf(remote));
  }

  /** Allows sending to a broadcast address (SO_BROADCAST). */
  async setBroadcast(on = true): Promise<void> {
    await this.#calls.setOption(this.#socket, "broadcast", Number(on));
  }

  /** Whether {@link UdpSocket.close} was called. */
  get closed(): boolean {
    return this.#closed;
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    void this.#calls.close(this.#socket, false).catch(() => undefined);
  }
}
