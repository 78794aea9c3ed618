// @ts-check
/**
 * Taking turns: so many uploads at a time, in the order they came, counted over all tabs of this browser. A browser has
 * six connections to a server over HTTP/1.1, and the rest of them are for the stream and for looking around meanwhile.
 */

const AT_ONCE = 3;
const PLACES = Array.from({ length: AT_ONCE }, (_, number) => `headway-sending-${number}`);

export class Turns {
  constructor() {
    this.running = 0;
    /** @type {(() => void)[]} */
    this.waiting = [];
  }

  /** Does it when it is its turn. Raises what it raises. @template Answer @param {() => Promise<Answer>} work @returns {Promise<Answer>} */
  async take(work) {
    if (this.running >= AT_ONCE) await new Promise((next) => this.waiting.push(() => next(undefined)));
    this.running++;
    try {
      return await inPlace(work);
    } finally {
      this.running--;
      this.waiting.shift()?.();
    }
  }
}

/** Waits for any of the places that all tabs share. @template Answer @param {() => Promise<Answer>} work @returns {Promise<Answer>} */
function inPlace(work) {
  if (!globalThis.navigator?.locks) return work();
  return new Promise((resolve, reject) => {
    const others = new AbortController();
    let begun = false;
    for (const name of PLACES) {
      const granted = async () => {
        if (begun) return; // two became free at once
        begun = true;
        others.abort(); // those that are still asked for
        await work().then(resolve, reject);
      };
      navigator.locks.request(name, { signal: others.signal }, granted).catch(() => {});
    }
  });
}
