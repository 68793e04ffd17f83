import type { Engine } from "./engine.js";

/** Returns the bytes of a message: an ArrayBuffer in browsers, a Buffer from some packages for Node.js. */
function bytesOf(data: unknown): Uint8Array | undefined {
  if (data instanceof ArrayBuffer) return new Uint8Array(data);
  return ArrayBuffer.isView(data) ? new Uint8Array(data.buffer, data.byteOffset, data.byteLength) : undefined;
}

/** The four channels of a link, where the stack runs. */
export class Channels {
  readonly #channels: RTCDataChannel[];
  #open = 0;

  constructor(engine: Engine, link: number, channels: RTCDataChannel[]) {
    this.#channels = channels;
    channels.forEach((channel, lane) => {
      channel.binaryType = "arraybuffer";
      channel.onopen = () => {
        this.#open += 1;
        engine.call((core, now) => core.linkOpen(now, link, lane));
        if (this.open) engine.findRoute(link);
      };
      channel.onmessage = ({ data }: MessageEvent<unknown>) => {
        const message = bytesOf(data);
        if (message) engine.call((core, now) => core.linkMessage(now, link, lane, message));
      };
      channel.onbufferedamountlow = () => engine.call((core, now) => core.linkDrained(now, link));
      channel.onclose = () => engine.lost(link);
    });
  }

  /** Whether all have opened. */
  get open(): boolean {
    return this.#open === this.#channels.length;
  }

  /** Sends a message; returns whether the channel took it. */
  send(lane: number, message: Uint8Array): boolean {
    try {
      this.#channels[lane]?.send(message as Uint8Array<ArrayBuffer>);
      return true;
    } catch {
      return false;
    }
  }

  /** Returns the bytes that wait in each channel. */
  buffered(): Uint32Array {
    return Uint32Array.from(this.#channels, (channel) => channel.bufferedAmount);
  }

  /** Has the channel tell when no more than so many bytes wait in it. */
  watch(lane: number, bytes: number): void {
    const channel = this.#channels[lane];
    if (channel) channel.bufferedAmountLowThreshold = bytes;
  }

  close(): void {
    for (const channel of this.#channels) {
      channel.onopen = channel.onmessage = channel.onclose = channel.onbufferedamountlow = null;
      channel.close();
    }
  }
}
