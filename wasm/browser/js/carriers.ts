// Memory in which bytes travel between a page and its worker.

/** How large it is: as much as one read returns and one write hands over. */
const SIZE = 256 * 1024;
/** From how many bytes on it is worth it. */
const WORTH = 8 * 1024;
/** Most that is kept, for either direction. */
const KEPT_MAX = 4;

/** One side's. What it hands over comes back when the other side has the bytes, and is used again. Memory that is handed over
 * for good is left to the collector of the thread that gets it: Chromium's then stood still for 15 ms and more at a time. */
export class Carriers {
  /** Fewer bytes are given out in memory of their own. */
  readonly #worth: number;
  #free: ArrayBuffer[] = [];
  /** The other side's, which go back with the next message. */
  #spent: ArrayBuffer[] = [];

  constructor(worth = WORTH) {
    this.#worth = worth;
  }

  #take(): ArrayBuffer {
    return this.#free.pop() ?? new ArrayBuffer(SIZE);
  }

  /** Has something write no more than so many bytes, and returns them so that they can be handed over; nothing where it says that
   * it wrote less than none. */
  fill(most: number, write: (into: Uint8Array) => number): Uint8Array | undefined {
    const memory = this.#take();
    let length = -1;
    try {
      length = write(new Uint8Array(memory, 0, Math.min(most, SIZE)));
    } finally {
      if (length < this.#worth) this.#free.push(memory);
    }
    if (length < 0) return undefined;
    const written = new Uint8Array(memory, 0, length);
    return length < this.#worth ? written.slice() : written;
  }

  /** Returns a copy of bytes that can be handed over. */
  load(bytes: Uint8Array): Uint8Array {
    if (bytes.length < this.#worth || bytes.length > SIZE) return new Uint8Array(bytes);
    const loaded = new Uint8Array(this.#take(), 0, bytes.length);
    loaded.set(bytes);
    return loaded;
  }

  /** Returns bytes that came, in memory of their own. */
  unload(bytes: Uint8Array): Uint8Array {
    if (bytes.buffer.byteLength !== SIZE) return bytes;
    const own = bytes.slice();
    this.spend(bytes);
    return own;
  }

  /** Notes that what came is done with. */
  spend({ buffer }: Uint8Array): void {
    if (buffer.byteLength === SIZE && this.#spent.length < KEPT_MAX) this.#spent.push(buffer as ArrayBuffer);
  }

  /** Returns what goes back to the other side. */
  takeSpent(): ArrayBuffer[] {
    return this.#spent.splice(0);
  }

  /** Takes what came back. */
  give(back: ArrayBuffer[]): void {
    this.#free.push(...back.slice(0, KEPT_MAX - this.#free.length));
  }
}
