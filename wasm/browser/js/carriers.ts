// Memory in which bytes travel between a page and its worker.

/** How much it takes: as much as one read returns and one write hands over. */
const SIZE = 256 * 1024;
/** How long it is: no program's bytes and no copies of them are, so that it is known by that. */
const LENGTH = SIZE + 8;
/** From how many bytes on it is worth it. */
const WORTH = 8 * 1024;
/** Most that either side has. */
const COUNT_MAX = 4;

/** One side's. What it hands over comes back when the other side has the bytes, and is used again. Memory that is handed over
 * for good is left to the collector of the thread that gets it: Chromium's then stood still for 15 ms and more at a time. */
export class Carriers {
  /** Fewer bytes are given out in memory of their own. */
  readonly #worth: number;
  /** How many there are, here and on their way. */
  #count = 0;
  #free: ArrayBuffer[] = [];
  /** The other side's, which go back with the next message. */
  #spent: ArrayBuffer[] = [];
  /** Takes what finds no carrier free. */
  #scratch: ArrayBuffer | undefined;

  constructor(worth = WORTH) {
    this.#worth = worth;
  }

  /** Returns a carrier, if one is free or may be made. */
  #take(): ArrayBuffer | undefined {
    if (this.#free.length > 0 || this.#count === COUNT_MAX) return this.#free.pop();
    this.#count += 1;
    return new ArrayBuffer(LENGTH);
  }

  /** Has something write no more than so many bytes, and returns them so that they can be handed over; nothing where it says that
   * it wrote less than none. */
  fill(most: number, write: (into: Uint8Array) => number): Uint8Array | undefined {
    const carrier = this.#take();
    const memory = carrier ?? (this.#scratch ??= new ArrayBuffer(LENGTH));
    let length = -1;
    let isWorth = false;
    try {
      length = write(new Uint8Array(memory, 0, Math.min(most, SIZE)));
      isWorth = carrier !== undefined && length >= this.#worth;
    } finally {
      if (carrier && !isWorth) this.#free.push(carrier);
    }
    if (length < 0) return undefined;
    const written = new Uint8Array(memory, 0, length);
    return isWorth ? written : written.slice();
  }

  /** Returns a copy of bytes that can be handed over. */
  load(bytes: Uint8Array): Uint8Array {
    const carrier = bytes.length < this.#worth || bytes.length > SIZE ? undefined : this.#take();
    if (!carrier) return new Uint8Array(bytes);
    const loaded = new Uint8Array(carrier, 0, bytes.length);
    loaded.set(bytes);
    return loaded;
  }

  /** Returns bytes that came, in memory of their own. */
  unload(bytes: Uint8Array): Uint8Array {
    if (bytes.buffer.byteLength !== LENGTH) return bytes;
    const own = bytes.slice();
    this.spend(bytes);
    return own;
  }

  /** Notes that what came is done with. */
  spend({ buffer }: Uint8Array): void {
    if (buffer.byteLength === LENGTH) this.#spent.push(buffer as ArrayBuffer);
  }

  /** Returns what goes back to the other side. */
  takeSpent(): ArrayBuffer[] {
    return this.#spent.splice(0);
  }

  /** Takes what came back. */
  give(back: ArrayBuffer[]): void {
    this.#free.push(...back);
  }
}
