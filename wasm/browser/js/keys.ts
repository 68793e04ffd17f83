/** The key of a tab, and what was learnt of others' keys: kept, so that a reload keeps its address. */
export interface Identity {
  key: Uint8Array;
  pins: Record<string, string> | null;
  /** Whether the key is kept in this browser. */
  kept: boolean;
  keepPins(pins: Record<string, string>): void;
  /** Gives the key free for another tab. */
  release(): void;
}

const DATABASE = "unisockets";
const STORE = "identities";
/** Tabs of one browser that can have keys of their own at one time. */
const SLOTS = 256;
/** How long a reload waits for the page before it to give its key free, in milliseconds. */
const PATIENCE = 3000;

interface Kept {
  key: Uint8Array;
  pins: Record<string, string> | null;
}

function promised<T>(request: IDBRequest<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error ?? new Error("the browser's storage failed"));
  });
}

async function open(): Promise<IDBDatabase> {
  const request = indexedDB.open(DATABASE, 1);
  request.onupgradeneeded = () => request.result.createObjectStore(STORE);
  return promised(request);
}

/** Takes a slot by a lock that lasts as long as the page; returns how to give it free, or nothing if it is taken. */
function lock(slot: number, wait: boolean): Promise<(() => void) | undefined> {
  return new Promise((resolve) => {
    const options = wait ? { signal: AbortSignal.timeout(PATIENCE) } : { ifAvailable: true };
    navigator.locks
      .request(`${DATABASE}-${slot}`, options, (granted) => {
        if (!granted) return resolve(undefined);
        return new Promise<void>((release) => resolve(release));
      })
      .catch(() => resolve(undefined));
  });
}

/** Which of this page's nodes have a key: after a reload the first has the first one's again, and so on. */
const positions = new Set<number>();

function takePosition(): number {
  let position = 0;
  while (positions.has(position)) position += 1;
  positions.add(position);
  return position;
}

async function claim(position: number): Promise<{ slot: number; release: () => void } | undefined> {
  const place = `${DATABASE}-${position}`;
  const remembered = sessionStorage.getItem(place);
  const former = remembered === null ? undefined : Number(remembered);
  if (former !== undefined && Number.isInteger(former)) {
    const release = await lock(former, true);
    if (release) return { slot: former, release };
  }
  for (let slot = 0; slot < SLOTS; slot += 1) {
    const release = await lock(slot, false);
    if (release) {
      sessionStorage.setItem(place, String(slot));
      return { slot, release };
    }
  }
  return undefined;
}

/** Reads bytes that were written as hexadecimal digits. */
function bytesOfHex(text: string | null): Uint8Array<ArrayBuffer> | undefined {
  if (text === null || !/^[0-9a-f]{64}$/.test(text)) return undefined;
  return Uint8Array.from(text.match(/../g) ?? [], (digits) => parseInt(digits, 16));
}

/**
 * Returns the identity of a tab without locks (no secure context), where two tabs could not tell whose key it is: it outlives
 * reloads. The tab's storage has the key only while no page uses it, so that a copy of the tab gets one of its own.
 */
function ofSession(position: number): Identity {
  if (session === undefined) {
    session = new Map();
    addEventListener("pagehide", () => session?.forEach((key, at) => sessionStorage.setItem(placeOf(at), hexOf(key))));
    // A page that was put aside, and is shown again, uses them again.
    addEventListener("pageshow", () => session?.forEach((_, at) => sessionStorage.removeItem(placeOf(at))));
  }
  const place = placeOf(position);
  const key = session.get(position) ?? bytesOfHex(sessionStorage.getItem(place)) ?? crypto.getRandomValues(new Uint8Array(32));
  sessionStorage.removeItem(place);
  session.set(position, key);
  return { ...ephemeral(key), release: () => void positions.delete(position) };
}

/** The keys of this page's nodes, where they are of its tab. */
let session: Map<number, Uint8Array<ArrayBuffer>> | undefined;

function placeOf(position: number): string {
  return `${DATABASE}-key-${position}`;
}

function hexOf(bytes: Uint8Array): string {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Returns an identity that nobody keeps. */
export function ephemeral(key = crypto.getRandomValues(new Uint8Array(32))): Identity {
  return { key, pins: null, kept: false, keepPins: () => undefined, release: () => undefined };
}

/** Returns this tab's identity: that of its slot, where the browser keeps keys. */
export async function identity(): Promise<Identity> {
  if (!("indexedDB" in globalThis)) return ephemeral();
  const position = takePosition();
  const release = (): void => void positions.delete(position);
  let claimed: { slot: number; release: () => void } | undefined;
  try {
    if (globalThis.navigator?.locks === undefined) return ofSession(position);
    claimed = await claim(position);
    if (!claimed) return { ...ephemeral(), release };
    const { slot, release: unlock } = claimed;
    const database = await open();
    // Whoever deletes the database need not wait for this page; pins are not kept then.
    database.onversionchange = () => database.close();
    const store = (mode: IDBTransactionMode) => database.transaction(STORE, mode).objectStore(STORE);
    let kept = (await promised(store("readonly").get(slot))) as Kept | undefined;
    if (!(kept?.key instanceof Uint8Array) || kept.key.length !== 32) {
      kept = { key: crypto.getRandomValues(new Uint8Array(32)), pins: null };
      await promised(store("readwrite").put(kept, slot));
    }
    const { key } = kept;
    return {
      key,
      pins: kept.pins,
      kept: true,
      keepPins: (pins) => {
        try {
          void promised(store("readwrite").put({ key, pins }, slot)).catch(() => undefined);
        } catch {
          // Somebody has deleted the database.
        }
      },
      release: () => {
        unlock();
        release();
      },
    };
  } catch {
    // Storage is forbidden here, or fails.
    claimed?.release();
    return { ...ephemeral(), release };
  }
}
