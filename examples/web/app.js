// The page: inbox and exports as they happen, and this device's notifications.

import { ask, backend, resume, signIn, signOut } from './session.js';
import { follow } from './stream.js';
import * as push from './push.js';

const at = (id) => document.getElementById(id);
/** As many as are shown of each. */
const SHOWN = 20;

/** Ends what belongs to a session. */
let session = null;

// ── what is shown ──

function complain(error) {
  const toast = at('trouble');
  toast.textContent = error.message;
  toast.hidden = false;
  clearTimeout(complain.timer);
  complain.timer = setTimeout(() => { toast.hidden = true; }, 8_000);
}

/** Runs what a button does: it can't be pressed twice meanwhile, and what goes wrong is said. */
async function doing(button, work) {
  button.disabled = true;
  try {
    await work();
  } catch (error) {
    complain(error);
  } finally {
    button.disabled = false;
  }
}

function showTime(element, iso) {
  element.dateTime = iso;
  element.textContent = new Date(iso).toLocaleString(undefined, { dateStyle: 'medium', timeStyle: 'short' });
}

function fromTemplate(id) {
  return at(id).content.firstElementChild.cloneNode(true);
}

/** Puts an item in its place by time, the newest first; one that is there is replaced. */
function place(list, item, key, time) {
  item.dataset.key = key;
  item.dataset.time = time;
  const old = list.querySelector(`[data-key="${CSS.escape(key)}"]`);
  if (old) {
    // Who is on one of its buttons stays there.
    const held = old.contains(document.activeElement) ? document.activeElement.classList[document.activeElement.classList.length - 1] : null;
    old.replaceWith(item);
    if (held) item.querySelector(`.${CSS.escape(held)}:not([hidden])`)?.focus();
    return;
  }
  const next = [...list.children].find((other) => other.dataset.time <= time);
  list.insertBefore(item, next ?? null);
  while (list.children.length > SHOWN) list.lastElementChild.remove();
}

/** Takes away what is not among these. What stays is not made anew, so that nobody loses their place. */
function keep(list, items) {
  const known = new Set(items.map((one) => one.id));
  for (const item of [...list.children]) if (!known.has(item.dataset.key)) item.remove();
}

const showEmpty = (name) => { at(`${name}-empty`).hidden = at(name).children.length > 0; };

// ── the inbox ──

let unread = 0;

function showUnread(count) {
  unread = count;
  at('unread').textContent = count > 99 ? '99+' : count;
  at('unread').hidden = count === 0;
  at('unread').setAttribute('aria-label', `${count} unread`);
  at('read-all').hidden = count === 0;
  document.title = count > 0 ? `(${count}) promptlockr` : 'promptlockr';
}

function showNotification(notification, isNew) {
  const item = fromTemplate('notification');
  item.classList.toggle('unread', notification.read_at === null);
  item.classList.toggle('new', isNew);
  item.querySelector('h3').textContent = notification.title;
  item.querySelector('.message').textContent = notification.message;
  showTime(item.querySelector('time'), notification.created_at);
  const mark = async (how) => {
    const marked = await ask('POST', `/v1/notifications/${notification.id}/${how}`);
    if (how === 'archived') item.remove();
    else showNotification(marked, false);
    await countUnread();
  };
  const open = item.querySelector('.open');
  const job = notification.data?.export_id;
  if (job && notification.data.state === 'completed') {
    open.hidden = false;
    open.href = `/?export=${encodeURIComponent(job)}`;
    open.addEventListener('click', (event) => {
      event.preventDefault();
      mark('clicked').catch(complain);
      showExportOf(job);
    });
  }
  // Ours, or the web's: the API takes no other address.
  const url = notification.data?.url;
  if (open.hidden && typeof url === 'string' && /^(https:\/\/|\/(?!\/))/.test(url)) {
    open.hidden = false;
    open.href = url;
    open.addEventListener('click', () => mark('clicked').catch(complain));
  }
  const archive = item.querySelector('.archive');
  archive.setAttribute('aria-label', `Archive “${notification.title}”`);
  archive.addEventListener('click', () => doing(archive, () => mark('archived')));
  place(at('inbox'), item, notification.id, notification.created_at);
  showEmpty('inbox');
}

async function countUnread() {
  const { unread_count } = await ask('GET', '/v1/notifications?limit=1');
  showUnread(unread_count);
  showEmpty('inbox');
}

async function listInbox() {
  const page = await ask('GET', `/v1/notifications?limit=${SHOWN}`);
  keep(at('inbox'), page.items);
  for (const notification of page.items) showNotification(notification, false);
  showUnread(page.unread_count);
  showEmpty('inbox');
}

async function onInbox(name, data) {
  if (name === 'inbox') await listInbox();
  if (name === 'notification') {
    // One can come twice to who connects again.
    const known = at('inbox').querySelector(`[data-key="${CSS.escape(data.id)}"]`);
    showNotification(data, true);
    if (!known) showUnread(unread + 1);
  }
}

// ── exports ──

const WORDS = { pending: 'waiting', processing: 'being made', completed: 'ready', failed: 'failed', cancelled: 'cancelled', expired: 'gone' };
const TITLES = { prompts: 'My prompts', collections: 'My collections', packages: 'Debian’s package catalogue', full: 'Everything' };
const isOver = (one) => ['completed', 'failed', 'cancelled', 'expired'].includes(one.state);

function size(bytes) {
  const units = ['bytes', 'kB', 'MB', 'GB'];
  const step = Math.min(units.length - 1, Math.floor(Math.log10(Math.max(bytes, 1)) / 3));
  return `${(bytes / 1000 ** step).toLocaleString(undefined, { maximumFractionDigits: step > 0 ? 1 : 0 })} ${units[step]}`;
}

function showExport(one) {
  const item = fromTemplate('export');
  const title = `${TITLES[one.dataset] ?? one.dataset} as ${one.format}`;
  item.querySelector('h3').textContent = title;
  const badge = item.querySelector('.badge');
  badge.dataset.state = one.state;
  badge.textContent = WORDS[one.state] ?? one.state;
  const bar = item.querySelector('progress');
  bar.hidden = isOver(one);
  bar.setAttribute('aria-label', `${title}: progress`);
  const { done, total } = one.progress ?? {};
  if (total > 0) bar.value = Math.min(1, done / total);
  const message = item.querySelector('.message');
  if (one.state === 'completed') message.textContent = [one.file.rows === null ? null : `${one.file.rows.toLocaleString()} rows`, size(one.file.size)].filter(Boolean).join(', ');
  else if (one.error) message.textContent = one.error.message;
  else message.textContent = done > 0 ? `${done.toLocaleString()} rows so far` : '';
  showTime(item.querySelector('time'), one.created_at);
  const download = item.querySelector('.download');
  if (one.state === 'completed' && one.page_url) {
    download.hidden = false;
    download.href = one.page_url;
    download.target = '_blank';
    download.setAttribute('aria-label', `Download ${title}`);
  }
  place(at('exports'), item, one.id, one.created_at);
  showEmpty('exports');
  return item;
}

async function listExports() {
  const page = await ask('GET', `/v1/exports?limit=${SHOWN}`);
  keep(at('exports'), page.items);
  for (const one of page.items) showExport(one);
  showEmpty('exports');
}

/** Shows where an export is, as a click on a notification wants. */
async function showExportOf(id) {
  const item = showExport(await ask('GET', `/v1/exports/${encodeURIComponent(id)}`));
  item.scrollIntoView({ block: 'center' });
  item.classList.add('new');
  item.querySelector('.download').focus();
}

async function onJob(name, data) {
  if (name === 'snapshot') await listExports();
  if ((name === 'changed' || name === 'ended') && data.kind === 'export.create') {
    showExport(await ask('GET', `/v1/exports/${data.id}`));
  }
}

// ── this device ──

async function showPush() {
  const made = await push.subscription();
  const denied = push.isSupported && Notification.permission === 'denied';
  at('push-on').hidden = !push.isSupported || denied || made !== null;
  at('push-off').hidden = made === null;
  at('push-try').hidden = made === null;
  if (!push.isSupported) at('push-text').textContent = 'This browser knows no web push.';
  else if (denied) at('push-text').textContent = 'Notifications of this page are blocked in the browser’s settings.';
  else if (made) at('push-text').textContent = 'On. Messages are shown here, also while this page is closed.';
  else at('push-text').textContent = 'Be told when something is ready, also while this page is closed.';
}

// ── signing in and out ──

function live(states) {
  const each = Object.values(states);
  const state = each.every((one) => one === 'on') ? 'on' : 'again';
  at('live').dataset.state = state;
  at('live-text').textContent = state === 'on' ? 'live' : 'connecting …';
}

async function begin({ user }) {
  const own = new AbortController();
  session = own;
  at('sign-in').hidden = true;
  for (const id of ['board', 'account', 'live']) at(id).hidden = false;
  at('user').textContent = user;
  at('avatar').textContent = user.slice(0, 1);
  const states = { inbox: 'again', exports: 'again' };
  live(states);
  const stream = (name, path, on) => follow(path, own.signal, on, (state) => { states[name] = state; live(states); }).catch((error) => {
    if (session === own) end(error);
  });
  stream('inbox', '/v1/notifications/events', onInbox);
  stream('exports', '/v1/events?kind=export.create', onJob);
  try {
    await push.begin();
    await push.adopt();
  } catch (error) {
    complain(error);
  }
  await showPush();
  const wanted = new URLSearchParams(location.search).get('export');
  if (wanted) await showExportOf(wanted).catch(complain);
}

/** Nobody is signed in: nothing of who was stays on the page. */
function end(error) {
  session?.abort();
  session = null;
  for (const id of ['board', 'account', 'live']) at(id).hidden = true;
  at('sign-in').hidden = false;
  at('inbox').replaceChildren();
  at('exports').replaceChildren();
  showUnread(0);
  at('who').focus();
  if (error) complain(error);
}

at('sign-in-form').addEventListener('submit', (event) => {
  event.preventDefault();
  doing(event.submitter, async () => begin(await signIn(at('who').value)));
});
at('sign-out').addEventListener('click', (event) => doing(event.target, async () => {
  // While the token still holds.
  await push.turnOff().catch(complain);
  session?.abort();
  await signOut();
  end();
}));
at('read-all').addEventListener('click', (event) => doing(event.target, async () => {
  await ask('POST', '/v1/notifications/read', { ids: [] });
  await listInbox();
}));
at('export-form').addEventListener('submit', (event) => {
  event.preventDefault();
  doing(event.submitter, async () => {
    const { id } = await backend('POST', '/exports', { dataset: at('dataset').value, format: at('format').value });
    // What the stream told meanwhile is newer.
    if (!at('exports').querySelector(`[data-key="${CSS.escape(id)}"]`)) showExport(await ask('GET', `/v1/exports/${id}`));
  });
});
at('push-on').addEventListener('click', (event) => doing(event.target, async () => { await push.turnOn(); await showPush(); }));
at('push-off').addEventListener('click', (event) => doing(event.target, async () => { await push.turnOff(); await showPush(); }));
at('push-try').addEventListener('click', (event) => doing(event.target, () => backend('POST', '/pushes', {})));

try {
  const signedIn = await resume();
  if (signedIn) await begin(signedIn);
  else end();
} catch (error) {
  end(error);
}
