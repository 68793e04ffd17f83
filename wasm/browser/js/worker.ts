// The worker in which a node's stack runs, with the data channels that its page hands over.

import type { Calls, Connections, MembershipEvent, Reports } from "./calls.js";
import { Carriers } from "./carriers.js";
import { Engine, load } from "./engine.js";
import { LocalCalls } from "./local.js";
import { type Beginning, type ToPage, type ToWorker, handedOver } from "./rpc.js";

/** Calls of both kinds are by name: the names are those of the interfaces, which the page's side was checked against. */
type Methods = Record<string, ((...args: unknown[]) => unknown) | undefined>;

const thread = globalThis as unknown as {
  onmessage: (event: MessageEvent<ToWorker>) => void;
  postMessage(message: ToPage, transfer?: Transferable[]): void;
};
const carriers = new Carriers();
let engine: Engine | undefined;
let calls: Calls | undefined;

const tell = (method: keyof Connections, args: unknown[]): void => thread.postMessage({ kind: "connection", method, args });
const connections: Connections = {
  open: (...args) => tell("open", args),
  negotiate: (...args) => tell("negotiate", args),
  findRoute: (...args) => tell("findRoute", args),
  close: (...args) => tell("close", args),
};

async function begin({ module, url, settings, key }: Beginning): Promise<void> {
  await load(module);
  const notify = (event: MembershipEvent): void => thread.postMessage({ kind: "event", event });
  engine = new Engine(url, settings, key, { connections, socketClass: WebSocket, notify });
  calls = new LocalCalls(engine, carriers);
}

async function call(method: keyof Calls, args: unknown[]): Promise<unknown> {
  try {
    return await (calls as unknown as Methods)[method]?.(...args);
  } finally {
    for (const arg of args) if (arg instanceof Uint8Array) carriers.spend(arg);
  }
}

function answer(id: number, work: Promise<unknown>): void {
  work.then(
    (value) => {
      const spent = carriers.takeSpent();
      thread.postMessage({ kind: "answer", id, value, spent }, [...handedOver(value), ...spent]);
    },
    (error: { code?: unknown; message?: unknown }) => {
      const code = typeof error.code === "string" ? error.code : "EIO";
      thread.postMessage({ kind: "failure", id, code, message: String(error.message) });
    },
  );
}

thread.onmessage = ({ data }) => {
  switch (data.kind) {
    case "begin":
      return answer(data.id, begin(data.beginning));
    case "call":
      carriers.give(data.spent);
      return answer(data.id, call(data.method, data.args));
    case "report":
      (engine as unknown as Methods | undefined)?.[data.method satisfies keyof Reports]?.(...data.args);
  }
};
thread.postMessage({ kind: "ready" });
