/** An error of the network, with a code as in Node.js: `ECONNREFUSED`, `EHOSTUNREACH`, `EINVAL`, … */
export interface NetworkError extends Error {
  code: string;
}

/** Makes an error with a code; its message says what to do. */
export function failure(code: string, message: string): NetworkError {
  return Object.assign(new Error(message), { code });
}

/** Checks a port. */
export function portOf(value: unknown, what = "port", least = 0): number {
  if (typeof value !== "number" || !Number.isInteger(value) || value < least || value > 65535) {
    throw failure("EINVAL", `the ${what} is a whole number from ${least} to 65535, not ${String(value)}`);
  }
  return value;
}

/** Checks a host: a name or an address. */
export function hostOf(value: unknown): string {
  if (typeof value !== "string" || value === "" || value.length > 253 || /[\s/@]/.test(value)) {
    throw failure("EINVAL", `the host is a member's name or an address, not ${JSON.stringify(value)}`);
  }
  return value;
}
