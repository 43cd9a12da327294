// Who is signed in, and the token by which the page asks Offstage. The product's key never comes here: the page's own backend has it and
// makes tokens that act for one user and end soon.

/** An answer that is no success. `code` is stable; `message` is for people. */
export class Refusal extends Error {
  constructor(status, problem) {
    super(problem?.detail ?? problem?.title ?? problem?.error ?? `The server answered ${status}.`);
    this.status = status;
    this.code = problem?.code;
  }
}

/** A token this close to its end is not used any more. */
const MARGIN = 30_000;

let current = null;

async function read(answer) {
  const body = answer.status === 204 ? null : await answer.json().catch(() => null);
  if (!answer.ok) throw new Refusal(answer.status, body);
  return body;
}

/** Asks the page's own backend. */
export async function backend(method, path, body) {
  const headers = body === undefined ? {} : { 'Content-Type': 'application/json' };
  return read(await fetch(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body), signal: AbortSignal.timeout(20_000) }));
}

/** The session that the browser's cookie stands for, if there is one. */
export async function resume() {
  try {
    current = await backend('GET', '/session');
  } catch (error) {
    if (error.status !== 401) throw error;
    current = null;
  }
  return current;
}

export async function signIn(user) {
  current = await backend('POST', '/session', { user });
  return current;
}

export async function signOut() {
  current = null;
  await backend('DELETE', '/session');
}

/** A token that is good for a while. Two who ask at once get the same. */
let asking = null;
export async function token(fresh = false) {
  if (!fresh && current && Date.parse(current.expires_at) - Date.now() > MARGIN) return current.token;
  asking ??= backend('GET', '/session').then((session) => { current = session; }).finally(() => { asking = null; });
  await asking;
  return current.token;
}

/** Calls Offstage's API as the user. A token that was ended meanwhile is replaced once. */
export async function call(path, options = {}) {
  const ask = async (fresh) => fetch(new URL(path, current.api), {
    signal: AbortSignal.timeout(20_000),
    ...options,
    headers: { ...options.headers, Authorization: `Bearer ${await token(fresh)}` },
  });
  const answer = await ask(false);
  return answer.status === 401 ? ask(true) : answer;
}

/** As `call`, and reads the JSON. */
export async function ask(method, path, body) {
  const headers = body === undefined ? {} : { 'Content-Type': 'application/json' };
  return read(await call(path, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) }));
}
