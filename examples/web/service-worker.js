// Shows what is pushed, also while no page is open, and opens it on click.

self.addEventListener('install', () => self.skipWaiting());
self.addEventListener('activate', (event) => event.waitUntil(self.clients.claim()));

self.addEventListener('push', (event) => {
  const { id, title, body, url, icon, tag } = event.data.json();
  // A copy of a message has the same id and takes the first one's place.
  event.waitUntil(self.registration.showNotification(title, { body, icon: icon ?? '/icon.svg', tag: tag ?? id, data: { url } }));
});

self.addEventListener('notificationclick', (event) => {
  event.notification.close();
  const url = new URL(event.notification.data?.url ?? '/', self.location.origin);
  event.waitUntil((async () => {
    const pages = await self.clients.matchAll({ type: 'window', includeUncontrolled: true });
    const open = pages.find((page) => page.url === url.href);
    await (open ? open.focus() : self.clients.openWindow(url.href));
  })());
});

// The browser renewed its subscription by itself: the new one takes the old one's place. The page's backend knows by the cookie who it is.
self.addEventListener('pushsubscriptionchange', (event) => {
  event.waitUntil((async () => {
    const answer = await fetch('/session');
    if (!answer.ok) return;
    const { api, token } = await answer.json();
    const authorised = { Authorization: `Bearer ${token}`, 'Content-Type': 'application/json' };
    const { key } = await (await fetch(new URL('/v1/push/key', api), { headers: authorised })).json();
    const made = event.newSubscription
      ?? await self.registration.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: key });
    const body = JSON.stringify({ ...made.toJSON(), oldEndpoint: event.oldSubscription?.endpoint });
    await fetch(new URL('/v1/push/subscriptions', api), { method: 'POST', headers: authorised, body });
  })());
});
