import type { Calls, Connections, MembershipEvent, Reports, Settings } from "./calls.js";
import { Carriers } from "./carriers.js";
import { type ConnectionClass, PageConnections } from "./connections.js";
import { Engine, load } from "./engine.js";
import { failure } from "./errors.js";
import { LocalCalls } from "./local.js";
import type { SocketClass } from "./platform.js";
import { Caller, type ToPage } from "./rpc.js";

/** Where a node's stack runs. */
export type Runs = "worker" | "page";

/** How long a worker may take to begin before the page does its work, in milliseconds. */
const WORKER_TIMEOUT = 5_000;

/** What a node begins with. */
export interface Start {
  module: WebAssembly.Module;
  url: string;
  settings: Settings;
  key: Uint8Array;
  connectionClass: ConnectionClass;
  socketClass: SocketClass;
  notify: (event: MembershipEvent) => void;
}

/** A node that runs. */
export interface Running {
  calls: Calls;
  runs: Runs;
  /** Ends everything at once. */
  end(): void;
}

/** Whether this browser lets channels be handed to a worker. */
function canHandOver(connectionClass: ConnectionClass): boolean {
  if (typeof Worker === "undefined") return false;
  const { port1 } = new MessageChannel();
  const connection = new connectionClass();
  try {
    const channel = connection.createDataChannel("", { negotiated: true, id: 0 });
    port1.postMessage(channel, [channel as unknown as Transferable]);
    return true;
  } catch {
    return false;
  } finally {
    connection.close();
    port1.close();
  }
}

/** Starts a node: in a worker unless that is not wished, or not possible here. */
export async function start(begin: Start, where: Runs | undefined): Promise<Running> {
  // Heads of HTTP are read here with the module, too.
  await load(begin.module);
  if (where !== "page" && canHandOver(begin.connectionClass)) {
    const worker = await open();
    if (worker) return inWorker(begin, worker);
  }
  if (where === "worker") {
    throw failure("ENOSYS", "this browser does not let a worker have data channels; leave 'stack' out, or say 'page'");
  }
  return onPage(begin);
}

function onPage(begin: Start): Running {
  const connections = new PageConnections(begin.connectionClass);
  // The node may ask for connections while it is being made: none before it has joined.
  const engine = new Engine(begin.url, begin.settings, begin.key, { connections, socketClass: begin.socketClass, notify: begin.notify });
  connections.reports = engine;
  const end = (): void => {
    engine.end();
    connections.end();
  };
  return { calls: new LocalCalls(engine, new Carriers(Infinity)), runs: "page", end };
}

/** Makes a worker; returns nothing if the page's policy or its place forbids it. */
async function open(): Promise<Worker | undefined> {
  let worker: Worker;
  try {
    worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module", name: "unisockets" });
  } catch {
    return undefined;
  }
  const ready = await new Promise<boolean>((resolve) => {
    worker.onmessage = () => resolve(true);
    worker.onerror = () => resolve(false);
    setTimeout(() => resolve(false), WORKER_TIMEOUT);
  });
  if (ready) return worker;
  worker.terminate();
  return undefined;
}

async function inWorker(begin: Start, worker: Worker): Promise<Running> {
  const caller = new Caller(worker);
  const connections = new PageConnections(begin.connectionClass);
  const report = (method: keyof Reports, args: unknown[], transfer: Transferable[] = []): void =>
    worker.postMessage({ kind: "report", method, args }, transfer);
  connections.reports = {
    takeChannels: (link, channels) => report("takeChannels", [link, channels], channels as unknown as Transferable[]),
    signal: (...args) => report("signal", args),
    lost: (...args) => report("lost", args),
    route: (...args) => report("route", args),
  };
  const end = (): void => {
    void caller.end();
    connections.end();
  };
  worker.onmessage = ({ data }: MessageEvent<ToPage>) => {
    switch (data.kind) {
      case "answer":
        return caller.answered(data.id, data.value, data.spent);
      case "failure":
        return caller.failed(data.id, failure(data.code, data.message));
      case "connection":
        return (connections[data.method satisfies keyof Connections] as (...args: unknown[]) => void)(...data.args);
      case "event":
        return begin.notify(data.event);
    }
  };
  worker.onerror = ({ message }) => {
    void caller.end(failure("EIO", `the node's worker has failed: ${message}`));
    connections.end();
    begin.notify({ kind: "rejected", code: "failed", message: `the node's worker has failed: ${message}; reload the page` });
  };
  const { module, url, settings, key } = begin;
  try {
    await caller.begin({ module, url, settings, key });
  } catch (error) {
    end();
    throw error;
  }
  return { calls: caller.calls, runs: "worker", end };
}
