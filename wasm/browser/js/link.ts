import type { Engine } from "./engine.js";

/** The channels of a link, by the numbers that both ends give them. */
const LANES = ["control", "interactive", "bulk", "datagram"] as const;
const DATAGRAM = 3;

interface IceServer {
  url: string;
  username?: string;
  credential?: string;
}

/** What two ends tell each other before a link exists. */
type Signal =
  | { kind: "offer" | "answer"; sdp: string }
  | { kind: "candidate"; candidate: string; mid: string | null };

/** A peer connection with its four channels: does what the node says, and reports what happens. */
export class PageLink {
  readonly #engine: Engine;
  readonly #id: number;
  readonly #connection: RTCPeerConnection;
  readonly #channels: RTCDataChannel[];
  #open = 0;
  #closed = false;
  /** Signals are worked on one after the other. */
  #work: Promise<void> = Promise.resolve();
  #described = false;
  #early: RTCIceCandidateInit[] = [];

  constructor(engine: Engine, id: number, offers: boolean, servers: IceServer[]) {
    this.#engine = engine;
    this.#id = id;
    this.#connection = new RTCPeerConnection({
      iceServers: servers.map(({ url, username, credential }) => ({
        urls: url,
        ...(username ? { username } : {}),
        ...(credential ? { credential } : {}),
      })),
    });
    this.#connection.onicecandidate = ({ candidate }) => {
      if (candidate && candidate.candidate !== "") {
        this.#tell({ kind: "candidate", candidate: candidate.candidate, mid: candidate.sdpMid });
      }
    };
    this.#connection.onconnectionstatechange = () => {
      const state = this.#connection.connectionState;
      if (state === "failed" || state === "closed") this.#lose();
    };
    this.#channels = LANES.map((label, lane) => this.#channel(label, lane));
    if (offers) this.#then(() => this.#offer());
  }

  #channel(label: string, lane: number): RTCDataChannel {
    const datagrams = lane === DATAGRAM;
    const channel = this.#connection.createDataChannel(label, {
      negotiated: true,
      id: lane,
      ordered: !datagrams,
      ...(datagrams ? { maxRetransmits: 0 } : {}),
    });
    channel.binaryType = "arraybuffer";
    channel.onopen = () => {
      this.#open += 1;
      this.#engine.call((core, now) => core.linkOpen(now, this.#id, lane));
      if (this.#open === LANES.length) void this.#findRoute();
    };
    channel.onmessage = ({ data }: MessageEvent<unknown>) => {
      if (data instanceof ArrayBuffer) {
        this.#engine.call((core, now) => core.linkMessage(now, this.#id, lane, new Uint8Array(data)));
      }
    };
    channel.onbufferedamountlow = () => this.#engine.call((core, now) => core.linkDrained(now, this.#id));
    channel.onclose = () => this.#lose();
    return channel;
  }

  #tell(signal: Signal): void {
    if (this.#closed) return;
    this.#engine.call((core, now) => core.linkSignal(now, this.#id, JSON.stringify(signal)));
  }

  #lose(): void {
    if (this.#closed) return;
    this.#engine.call((core, now) => core.linkLost(now, this.#id, this.#open === LANES.length));
  }

  /** Does something after all that was begun before; a failure is the end of the link. */
  #then(work: () => Promise<void>): void {
    this.#work = this.#work.then(work).catch(() => this.#lose());
  }

  async #offer(): Promise<void> {
    const offer = await this.#connection.createOffer();
    // The offer leaves before gathering begins, so that candidates follow it.
    this.#tell({ kind: "offer", sdp: offer.sdp ?? "" });
    await this.#connection.setLocalDescription(offer);
  }

  /** Takes a signal of the peer. */
  negotiate(text: string): void {
    const signal = JSON.parse(text) as Signal;
    this.#then(() => this.#take(signal));
  }

  async #take(signal: Signal): Promise<void> {
    if (this.#closed) return;
    const connection = this.#connection;
    if (signal.kind === "candidate") {
      const candidate = { candidate: signal.candidate, sdpMid: signal.mid ?? "0" };
      if (this.#described) await this.#try(candidate);
      else this.#early.push(candidate);
      return;
    }
    await connection.setRemoteDescription({ type: signal.kind, sdp: signal.sdp });
    this.#described = true;
    for (const candidate of this.#early.splice(0)) await this.#try(candidate);
    if (signal.kind === "offer") {
      const answer = await connection.createAnswer();
      this.#tell({ kind: "answer", sdp: answer.sdp ?? "" });
      await connection.setLocalDescription(answer);
    }
  }

  /** A candidate that the browser does not understand is one address fewer to try, no more. */
  async #try(candidate: RTCIceCandidateInit): Promise<void> {
    await this.#connection.addIceCandidate(candidate).catch(() => undefined);
  }

  async #findRoute(): Promise<void> {
    const stats = await this.#connection.getStats();
    let pair: { localCandidateId: string; remoteCandidateId: string } | undefined;
    stats.forEach((entry) => {
      if (entry.type === "transport" && entry.selectedCandidatePairId) pair = stats.get(entry.selectedCandidatePairId);
    });
    if (!pair || this.#closed) return;
    const relayed = [pair.localCandidateId, pair.remoteCandidateId].some(
      (id) => stats.get(id)?.candidateType === "relay",
    );
    this.#engine.call((core) => core.linkRoute(this.#id, relayed));
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
    this.#closed = true;
    for (const channel of this.#channels) {
      channel.onopen = channel.onmessage = channel.onclose = channel.onbufferedamountlow = null;
    }
    this.#connection.onicecandidate = this.#connection.onconnectionstatechange = null;
    this.#connection.close();
  }
}
