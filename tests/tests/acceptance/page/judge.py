"""A person at the example's page, in Debian's Chromium: judge.py PAGE PUSH-SERVICE PROFILE [PICTURES].

The test that runs it answers what the browser can't know: a line `ask WHAT` on standard output, a line of JSON on standard input.

What stands in for the vendors: Chromium's own push service is Google's, which a test does not reach. So `PushManager.subscribe` is made to
subscribe at the sandbox's push service, which checks and unseals what the product sends; what it unsealed is handed to the browser by its
developer protocol, and from there on everything is real: the service worker, the notification as the desktop is asked to show it
(org.freedesktop.Notifications, of a bus of our own), and the click on it.
"""
import json
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.request

from jeepney import DBusAddress, HeaderFields, MessageType, new_error, new_method_return, new_signal
from jeepney.bus_messages import message_bus
from jeepney.io.blocking import open_dbus_connection
from playwright.sync_api import expect, sync_playwright

PAGE, PUSH, PROFILE = sys.argv[1:4]
PICTURES = sys.argv[4] if len(sys.argv) > 4 else None
# A debug build on a machine that does other things too.
PATIENCE = 60_000
expect.set_options(timeout=PATIENCE)

# `subscribe` at the sandbox's push service; a browser keeps its subscription over reloads, hence the storage.
STAND_IN = """
(() => {
  const made = (json) => json && {
    endpoint: json.endpoint, toJSON: () => json,
    unsubscribe: async () => { localStorage.removeItem('stand-in'); return true; },
  };
  const kept = () => made(JSON.parse(localStorage.getItem('stand-in')));
  PushManager.prototype.getSubscription = async () => kept();
  PushManager.prototype.subscribe = async function (options) {
    if (!options.userVisibleOnly) throw new DOMException('must be visible', 'NotAllowedError');
    if (!kept()) localStorage.setItem('stand-in', await window.subscribeAtSandbox(options.applicationServerKey));
    return kept();
  };
})();
"""


def ask(what):
    print('ask', what, flush=True)
    return json.loads(sys.stdin.readline())


def fetch(url, body=None):
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), {'Content-Type': 'application/json'})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def until(what, look):
    end = time.monotonic() + PATIENCE / 1000
    while time.monotonic() < end:
        found = look()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(f'not in time: {what}')


class Desktop:
    """Takes notifications as a desktop does, and lets one be clicked."""

    address = DBusAddress('/org/freedesktop/Notifications', 'org.freedesktop.Notifications', 'org.freedesktop.Notifications')

    def __init__(self):
        command = ['dbus-daemon', '--session', '--nofork', '--print-address']
        self.bus = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.bus_address = self.bus.stdout.readline().strip()
        self.connection = open_dbus_connection(self.bus_address)
        self.connection.send_and_get_reply(message_bus.RequestName('org.freedesktop.Notifications'))
        self.shown = queue.Queue()
        self.count = 0
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self):
        while True:
            try:
                call = self.connection.receive()
            except Exception:
                return
            if call.header.message_type != MessageType.method_call:
                continue
            member = call.header.fields.get(HeaderFields.member)
            if member == 'GetCapabilities':
                answer = new_method_return(call, 'as', (['actions', 'body', 'persistence'],))
            elif member == 'GetServerInformation':
                answer = new_method_return(call, 'ssss', ('judge', 'offstage', '1', '1.2'))
            elif member == 'Notify':
                self.count += 1
                _, _, _, title, body, actions, _, _ = call.body
                shown = {'id': self.count, 'title': title, 'body': body, 'actions': actions}
                answer = new_method_return(call, 'u', (self.count,))
            elif member == 'CloseNotification':
                answer = new_method_return(call)
            else:
                answer = new_error(call, 'org.freedesktop.DBus.Error.UnknownMethod')
            self.connection.send(answer)
            if member == 'Notify':
                # Only now: a click on what the browser knows no number of yet is lost.
                self.shown.put(shown)
            if member == 'CloseNotification':
                self.connection.send(new_signal(self.address, 'NotificationClosed', 'uu', (call.body[0], 3)))

    def click(self, notification):
        self.connection.send(new_signal(self.address, 'ActionInvoked', 'us', (notification['id'], 'default')))

    def end(self):
        self.bus.terminate()
        self.bus.wait()


def picture(page, name, size, scheme='light'):
    if not PICTURES:
        return
    page.emulate_media(color_scheme=scheme, reduced_motion='reduce')
    page.set_viewport_size(size)
    page.screenshot(path=os.path.join(PICTURES, name))
    page.emulate_media(color_scheme='light')
    page.set_viewport_size({'width': 1100, 'height': 760})


def main(playwright, desktop):
    context = playwright.chromium.launch_persistent_context(
        PROFILE, executable_path=os.environ.get('CHROMIUM', '/usr/bin/chromium'), headless=True, viewport={'width': 1100, 'height': 760},
        env={**os.environ, 'DBUS_SESSION_BUS_ADDRESS': desktop.bus_address}, args=['--no-sandbox'], permissions=['notifications'],
    )
    context.set_default_timeout(PATIENCE)
    context.expose_function('subscribeAtSandbox', lambda key: json.dumps(fetch(PUSH + '/subscriptions', {'applicationServerKey': key})))
    context.add_init_script(STAND_IN)
    page = context.pages[0]
    complaints = []
    page.on('pageerror', lambda error: complaints.append(str(error)))
    page.on('console', lambda message: complaints.append(message.text) if 'Content Security Policy' in message.text else None)

    # Signed in by a token, live.
    page.goto(PAGE)
    expect(page.get_by_role('heading', name='Welcome')).to_be_visible()
    picture(page, 'page-sign-in.png', {'width': 900, 'height': 520})
    page.get_by_label('Sign in as').fill('demo')
    page.get_by_role('button', name='Sign in').click()
    expect(page.locator('#live-text')).to_have_text('live')
    expect(page.locator('#inbox-empty')).to_be_visible()
    scripts_see = page.evaluate('document.cookie')
    assert scripts_see == '', scripts_see

    # The inbox, live.
    ask('tell 1')
    inbox = page.locator('#inbox > li')
    expect(inbox.filter(has_text='Number 1')).to_be_visible()
    expect(page.locator('#unread')).to_have_text('1')

    # An export, live from its start to its end, and its notification.
    page.get_by_label('as', exact=True).select_option('xlsx')
    ask('hold')
    page.get_by_role('button', name='Export', exact=True).click()
    badge = page.locator('#exports > li').first.locator('.badge')
    expect(badge).to_have_text('waiting')
    ask('release')
    expect(badge).to_have_text('ready')
    expect(inbox.filter(has_text='Your export is ready')).to_be_visible()
    expect(page.locator('#unread')).to_have_text('2')
    export = page.locator('#exports > li').first.get_attribute('data-key')
    assert page.locator('#exports .download').first.get_attribute('href')

    # The API goes and comes: what was told meanwhile is there, without a reload, and once.
    page.evaluate('window.notReloaded = true')
    ask('hold')
    ask('tell 2')
    ask('stop')
    expect(page.locator('#live-text')).to_have_text('connecting …')
    ask('release')
    ask('told 2')
    ask('start')
    expect(page.locator('#live-text')).to_have_text('live')
    expect(inbox.filter(has_text='Number 2')).to_have_count(1)
    expect(page.locator('#unread')).to_have_text('3')
    assert page.evaluate('window.notReloaded'), 'the page was reloaded'

    # Subscribed, with the product's key.
    page.get_by_role('button', name='Turn on').click()
    expect(page.get_by_role('button', name='Send me one')).to_be_visible()
    assert ask('subscriptions') == 1
    endpoint = page.evaluate("JSON.parse(localStorage.getItem('stand-in')).endpoint")
    picture(page, 'page.png', {'width': 1100, 'height': 760})
    picture(page, 'page-dark-narrow.png', {'width': 420, 'height': 900}, 'dark')

    # A push: sealed and signed by the product, unsealed by the push service, shown by the service worker, opened by a click.
    session = context.new_cdp_session(page)
    registrations = queue.Queue()
    session.on('ServiceWorker.workerRegistrationUpdated', lambda event: [registrations.put(one) for one in event['registrations']])
    session.send('ServiceWorker.enable')
    page.wait_for_timeout(0)
    registration = until('the registration', lambda: page.wait_for_timeout(20) or (not registrations.empty() and registrations.get()))
    ask(f'push /?export={export}')
    payload = until('the push at its service', lambda: [one['payload'] for one in fetch(PUSH + '/messages') if one['endpoint'] == endpoint])[0]
    session.send('ServiceWorker.deliverPushMessage', {'origin': PAGE, 'registrationId': registration['registrationId'], 'data': payload})
    shown = desktop.shown.get(timeout=PATIENCE / 1000)
    assert shown['title'] == 'Your export is ready' and 'prompts.xlsx' in shown['body'], shown
    assert 'default' in shown['actions'], shown
    with context.expect_page() as opened:
        desktop.click(shown)
    opened = opened.value
    opened.wait_for_url(f'{PAGE}/?export={export}')
    expect(opened.locator(f'#exports > li[data-key="{export}"] .download')).to_be_focused()
    opened.close()

    # Signed out: the subscription is gone here and there, and nothing of the user is left on the page.
    page.get_by_role('button', name='Sign out').click()
    expect(page.get_by_role('heading', name='Welcome')).to_be_visible()
    assert ask('subscriptions') == 0
    assert page.evaluate("localStorage.getItem('stand-in')") is None
    assert page.locator('#inbox > li, #exports > li').count() == 0
    assert page.request.get(PAGE + '/session').status == 401
    page.reload()
    expect(page.get_by_role('heading', name='Welcome')).to_be_visible()
    assert not complaints, complaints
    context.close()


desktop = Desktop()
try:
    with sync_playwright() as playwright:
        main(playwright, desktop)
finally:
    desktop.end()
print('done', flush=True)
