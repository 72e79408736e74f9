// The backend's own pages: the gallery of public apps, and one app's playground.
import type { JSX } from 'preact';
import { useRef, useState } from 'preact/hooks';
import { HttpTransport } from '../api/http';
import type { AppDetail, AppSummary } from '../api/wire.gen';
import { CopyButton, Status } from '../ui/base/parts';
import { mount } from '../ui/mount';
import { PagePlayground } from '../ui/playground/Standalone';
import { stateText } from '../ui/panel/Panel';
import values from './values.css';

/** What the server wrote into the page. */
export type PageData = { page: 'gallery'; apps: AppSummary[] } | { page: 'playground'; app: AppDetail };

/** Bring the theme's values and draw the page. */
export function mountPage(host: HTMLElement, data: PageData): void {
  const sheet = new CSSStyleSheet();
  sheet.replaceSync(values);
  document.adoptedStyleSheets = [...document.adoptedStyleSheets, sheet];
  if (data.page === 'gallery') {
    mount(Gallery, host, { apps: data.apps });
  } else {
    const socket = (path: string): WebSocket => new WebSocket(`${location.origin.replace(/^http/, 'ws')}/${path}`);
    if (data.app.auth_mode === 'shared') {
      mount(SharedPlayground, host, { detail: data.app });
      return;
    }
    const transport = new HttpTransport('/', (url, init) => fetch(url, { ...init, credentials: 'omit' }), { socket });
    mount(PagePlayground, host, { transport, detail: data.app });
  }
}

/** Callers of a shared app pay for their calls, so the page asks for a key; it lives in this page alone and is kept nowhere. */
function SharedPlayground({ detail }: { detail: AppDetail }): JSX.Element {
  const key = useRef('');
  const [transport] = useState(
    () =>
      new HttpTransport('/', (url, init) => {
        const headers = new Headers(init.headers);
        if (key.current) {
          headers.set('authorization', `Key ${key.current}`);
        }
        return fetch(url, { ...init, headers, credentials: 'omit' });
      })
  );
  return (
    <div class="fal-ui">
      <div class="fal-sec">
        <label class="fal-stack-4">
          <span class="fal-strong">Your key</span>
          <input
            class="fal-input"
            type="password"
            autocomplete="off"
            placeholder="fk_…:…"
            onInput={event => (key.current = event.currentTarget.value.trim())}
          />
          <span class="fal-dim fal-sm">Calls of this app are charged to you. The key stays in this page and is kept nowhere.</span>
        </label>
      </div>
      <PagePlayground transport={transport} detail={detail} />
    </div>
  );
}

function Gallery({ apps }: { apps: AppSummary[] }): JSX.Element {
  return (
    <section class="fal-ui fal-card" aria-label="Public apps">
      <div class="fal-card-head">
        <div class="fal-who">
          <span class="fal-card-title">Public apps</span>
          <span class="fal-dim fal-sm">anyone who reaches this page can call them, the shared ones with a key of this backend</span>
        </div>
      </div>
      {apps.map(app => (
        <GalleryRow key={app.endpoint_id} app={app} />
      ))}
      {!apps.length && (
        <div class="fal-sec">
          <div class="fal-empty">
            <strong>No public apps yet</strong>
            <div>
              An app is listed here when it is deployed with <code>--auth public</code> or <code>--auth shared</code>.
            </div>
          </div>
        </div>
      )}
    </section>
  );
}

const KINDS = { deploying: 'busy', idle: 'idle', starting: 'busy', serving: 'ok', failing: 'err' } as const;

function GalleryRow({ app }: { app: AppSummary }): JSX.Element {
  const [word, ...rest] = stateText(app).split(', ');
  return (
    <div class="fal-sec fal-sec-tight fal-row fal-wrap">
      <span class="fal-grow fal-stack-4">
        <span class="fal-row fal-base">
          <a class="fal-linkplain fal-strong fal-trunc" href={`/playground/${app.endpoint_id}`}>
            {app.alias}
          </a>
          <Status kind={KINDS[app.state]}>{word}</Status>
          <span class="fal-dim fal-sm fal-trunc">
            {[`by ${app.owner}`, ...rest, ...(app.auth_mode === 'shared' ? ['needs a key'] : [])].join(', ')}
          </span>
        </span>
        <span class="fal-row fal-row-4 fal-sm">
          <code class="fal-trunc fal-dim">{app.urls.run}</code>
          <CopyButton text={app.urls.run} label={`Copy URL of ${app.alias}`} />
        </span>
      </span>
      <a class="fal-btn" href={`/playground/${app.endpoint_id}`}>
        Open playground
      </a>
    </div>
  );
}
