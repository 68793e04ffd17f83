import type { Engine } from "./engine.js";
import { failure } from "./errors.js";
import { type Address, split } from "./tcp.js";

/** A datagram, and who sent it. */
export interface Message {
  data: Uint8Array;
  remote: Address;
  hopLimit: number;
}

/** A UDP socket: iterate over it for datagrams. */
export class UdpSocket implements AsyncIterable<Message> {
  readonly #engine: Engine;
  readonly #socket: number;
  readonly local: Address;
  #closed = false;

  /** For `Node.bind` and `Node.ping`. */
  constructor(engine: Engine, socket: number) {
    this.#engine = engine;
    this.#socket = socket;
    this.local = split(engine.call((core) => core.localAddress(socket)));
  }

  /** Sends a datagram to an address such as `10.80.0.1:53`; without one, to whom the socket is connected. */
  async send(data: Uint8Array | string, remote?: string): Promise<void> {
    const bytes = typeof data === "string" ? new TextEncoder().encode(data) : data;
    for (;;) {
      if (this.#closed) throw failure("EBADF", "the socket is closed");
      if (this.#engine.call((core, now) => core.sendTo(now, this.#socket, bytes, remote)) >= 0) return;
      await this.#engine.readiness(this.#socket, "write");
    }
  }

  /** Waits for a datagram; returns nothing once the socket is closed. */
  async receive(signal?: AbortSignal): Promise<Message | undefined> {
    let wake: (() => void) | undefined;
    const aborted = new Promise<void>((resolve) => (wake = resolve));
    const abort = (): void => wake?.();
    signal?.addEventListener("abort", abort);
    try {
      while (!this.#closed && !this.#engine.ended) {
        signal?.throwIfAborted();
        const datagram = this.#engine.call((core) => core.recvFrom(this.#socket));
        if (datagram) {
          const message = { data: datagram.data, remote: split(datagram.remote), hopLimit: datagram.hopLimit };
          datagram.free();
          return message;
        }
        await Promise.race([this.#engine.readiness(this.#socket, "read"), aborted]);
      }
      return undefined;
    } finally {
      signal?.removeEventListener("abort", abort);
    }
  }

  async *[Symbol.asyncIterator](): AsyncIterator<Message> {
    for (;;) {
      const message = await this.receive();
      if (!message) return;
      yield message;
    }
  }

  /** Connects the socket: it sends to this address, and takes from nobody else. */
  connect(remote: string): void {
    this.#engine.call((core, now) => core.udpConnect(now, this.#socket, remote));
  }

  /** Allows sending to a broadcast address (SO_BROADCAST). */
  setBroadcast(on = true): void {
    this.#engine.call((core) => core.setOption(this.#socket, "broadcast", Number(on)));
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#engine.closeSocket(this.#socket, false);
  }
}
