// Server-sent events read by `fetch`: `EventSource` can send no token in a header, and a token in an address ends up in logs.
//
// What must stay true: the place in the stream is kept over a broken connection (`Last-Event-ID`), a silent connection counts as broken,
// and pauses between tries grow and differ, so that many pages don't come back at the same moment.

import { call, Refusal } from './session.js';

/** The server says something at least every 15 s. */
const SILENCE = 45_000;
/** The first pause, and the longest. */
const PAUSE = 500;
const LONGEST_PAUSE = 30_000;
/** More than any event. */
const LONGEST_EVENT = 1_000_000;

/** Takes a stream of text apart into events (https://html.spec.whatwg.org/#parsing-an-event-stream). */
export class Events {
  #rest = '';
  #event = { name: 'message', data: [], id: undefined };

  /** The events that are complete with this piece; `retry` in milliseconds where the server said so. */
  *take(piece) {
    this.#rest += piece;
    if (this.#rest.length > LONGEST_EVENT) throw new Error('an event without an end');
    for (;;) {
      const end = /\r\n|\n|\r(?!$)/.exec(this.#rest);
      if (!end) return;
      const line = this.#rest.slice(0, end.index);
      this.#rest = this.#rest.slice(end.index + end[0].length);
      if (line === '') {
        const { name, data, id, retry } = this.#event;
        this.#event = { name: 'message', data: [], id: undefined };
        if (data.length > 0 || id !== undefined || retry !== undefined) yield { name, data: data.join('\n'), id, retry };
        continue;
      }
      const colon = line.indexOf(':');
      if (colon === 0) continue;
      const field = colon < 0 ? line : line.slice(0, colon);
      const value = colon < 0 ? '' : line.slice(colon + 1).replace(/^ /, '');
      if (field === 'event') this.#event.name = value;
      else if (field === 'data') this.#event.data.push(value);
      else if (field === 'id' && !value.includes('\0')) this.#event.id = value;
      else if (field === 'retry' && /^\d+$/.test(value)) this.#event.retry = Number(value);
    }
  }
}

/**
 * Follows a stream until the signal says stop, over any number of connections.
 * `on(name, data)` gets each event, `state('on' | 'again')` how it stands. Answers only when the signal came or nothing can be done.
 */
export async function follow(path, signal, on, state) {
  let last;
  let pause = PAUSE;
  let told = 0;
  while (!signal.aborted) {
    const connection = new AbortController();
    const stop = () => connection.abort();
    signal.addEventListener('abort', stop);
    let silence = setTimeout(stop, SILENCE);
    try {
      const headers = { Accept: 'text/event-stream', ...(last === undefined ? {} : { 'Last-Event-ID': last }) };
      const answer = await call(path, { headers, signal: connection.signal, cache: 'no-store' });
      if (!answer.ok) throw new Refusal(answer.status, await answer.json().catch(() => null));
      state('on');
      const events = new Events();
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        clearTimeout(silence);
        silence = setTimeout(stop, SILENCE);
        for (const event of events.take(value)) {
          if (event.retry !== undefined) told = event.retry;
          if (event.id !== undefined) last = event.id;
          if (event.data !== '') await on(event.name, JSON.parse(event.data));
          pause = PAUSE;
        }
      }
    } catch (error) {
      // Signed out, or the product took the door away: trying again would not help.
      if (error instanceof Refusal && (error.status === 401 || error.status === 403)) throw error;
    } finally {
      clearTimeout(silence);
      signal.removeEventListener('abort', stop);
      connection.abort();
    }
    if (signal.aborted) return;
    state('again');
    const wait = Math.max(pause, Math.min(told, LONGEST_PAUSE)) * (0.75 + Math.random() / 2);
    pause = Math.min(pause * 2, LONGEST_PAUSE);
    await new Promise((resolve) => {
      const timer = setTimeout(resolve, wait);
      signal.addEventListener('abort', () => { clearTimeout(timer); resolve(); }, { once: true });
      // Who comes back to the page, or gets a network, need not wait.
      window.addEventListener('online', resolve, { once: true });
    });
  }
}
