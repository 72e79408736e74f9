// The backend's own pages: the gallery of public apps, and one app's playground.
import type { JSX } from 'preact';
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
    const transport = new HttpTransport('/', (url, init) => fetch(url, { ...init, credentials: 'omit' }), { socket });
    mount(PagePlayground, host, { transport, detail: data.app });
  }
}

function Gallery({ apps }: { apps: AppSummary[] }): JSX.Element {
  return (
    <section class="fal-ui fal-card" aria-label="Public apps">
      <div class="fal-card-head">
        <div class="fal-who">
          <span class="fal-card-title">Public apps</span>
          <span class="fal-dim fal-sm">anyone who reaches this page can call them</span>
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
              An app is listed here when it is deployed with <code>--auth public</code>.
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
            by {app.owner}, {rest.join(', ')}
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
