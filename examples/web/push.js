// This browser's subscription to web push: made with the product's key, registered for who is signed in, taken back at sign-out.

import { ask } from './session.js';

export const isSupported = 'serviceWorker' in navigator && 'PushManager' in window && 'Notification' in window;

let worker = null;

/** Starts the service worker, which shows what comes. */
export async function begin() {
  if (!isSupported) return;
  await navigator.serviceWorker.register('/service-worker.js');
  worker = await navigator.serviceWorker.ready;
}

export async function subscription() {
  return worker ? worker.pushManager.getSubscription() : null;
}

/** Asks the user, subscribes, and registers the browser for who is signed in. Must be called from a click. */
export async function turnOn() {
  if ((await Notification.requestPermission()) !== 'granted') {
    throw new Error('The browser does not allow this page notifications. Allow them in the site’s settings and try again.');
  }
  const { key } = await ask('GET', '/v1/push/key');
  let made = await worker.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: key }).catch(async (error) => {
    // The key has changed since: a subscription is bound to the one it was made with.
    const old = await worker.pushManager.getSubscription();
    if (!old || error.name !== 'InvalidStateError') throw error;
    await old.unsubscribe();
    return worker.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: key });
  });
  await ask('POST', '/v1/push/subscriptions', made.toJSON());
  return made;
}

/** At each sign-in: from now on the browser is that user's. */
export async function adopt() {
  const made = await subscription();
  if (made) await ask('POST', '/v1/push/subscriptions', made.toJSON());
  return made;
}

/**
 * Takes the subscription back, here and there: the next who signs in must not see what was meant for this user. Where the API can't be
 * asked, the browser's own end is enough: its push service then answers 410, and the address is forgotten.
 */
export async function turnOff() {
  const made = await subscription();
  if (!made) return;
  const told = ask('DELETE', '/v1/push/subscriptions', { endpoint: made.endpoint });
  const [answer] = await Promise.allSettled([told]);
  await made.unsubscribe();
  if (answer.status === 'rejected' && answer.reason.status !== 404) throw answer.reason;
}
