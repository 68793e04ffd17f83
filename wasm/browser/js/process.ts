// What the streams of `./net` and `./dgram` ask of Node.js's `process`, in the place of a package that waits for a timer:
// in a hidden tab a timer takes a second.

interface Process {
  env: Record<string, string | undefined>;
  nextTick: (work: (...values: unknown[]) => void, ...values: unknown[]) => void;
}

const process: Process = {
  env: {},
  nextTick: (work, ...values) => queueMicrotask(() => work(...values)),
};

export default process;
